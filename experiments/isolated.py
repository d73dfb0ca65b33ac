"""A peer in a process and an environment of its own, whose packages need not go together with ours.

The environment is made once, below ~/.cache/w2s_jax; its jax is of our version, so that both sides have the same
compiler.
"""

import json
import os
import pathlib
import subprocess
import sys
from importlib import metadata
from typing import Any

from experiments import main as cli

TUNIX = "0.1.7"


def environment() -> pathlib.Path:
    """The Python of the environment with tunix, made if it is not there.

    Raises:
        ValueError: pip cannot install it.
    """
    cache = pathlib.Path.home() / ".cache"
    jax, version = metadata.version("jax"), f"{sys.version_info.major}.{sys.version_info.minor}"
    folder = cache / "w2s_jax" / f"tunix-{TUNIX}-jax-{jax}-python-{version}"
    python, done = folder / "bin" / "python", folder / "installed"
    if not done.exists():
        cli.say(f"installing google-tunix {TUNIX} into {folder}")
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", f"google-tunix=={TUNIX}", f"jax=={jax}"]
        ran = subprocess.run(pip, stdout=sys.stderr, stderr=subprocess.PIPE, text=True)
        if ran.returncode:
            raise ValueError(f"google-tunix cannot be installed ({ran.stderr.strip()[-500:]}); --notunix leaves it out")
        done.touch()
    return python


class Tunix:
    """`experiments/tunix_peer.py` at work; each request is answered before the next one is made."""

    def __enter__(self) -> "Tunix":
        peer = pathlib.Path(__file__).with_name("tunix_peer.py")
        command = [str(environment()), str(peer)]
        # From another folder: the peer must not find our packages.
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=os.path.expanduser("~")
        )
        return self

    def __exit__(self, *exc) -> None:
        try:
            self.process.stdin.close()
            self.process.wait(timeout=30)
        except BrokenPipeError:
            self.process.wait()
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def ask(self, **request: Any) -> dict[str, Any]:
        """The answer to a request.

        Raises:
            ValueError: the peer ended; what it had to say is on standard error.
        """
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise ValueError("the tunix peer ended, see above; --notunix leaves it out")
        return json.loads(line)
