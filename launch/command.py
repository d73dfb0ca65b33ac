"""What the launchers share: a command line cut at `--`, the commands of a place run or shown, several followed side by side."""

import argparse
import collections
import contextlib
import json
import os
import pathlib
import queue
import re
import shlex
import signal
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence

ROOT = pathlib.Path(__file__).parents[1]
SHOWN_LINES = 20
GRACE_S = 10.0
INSTALL = {
    "gcloud": "install the Google Cloud SDK (https://cloud.google.com/sdk/docs/install), then run `gcloud auth login`",
    "kubectl": "run `gcloud components install kubectl`, or see https://kubernetes.io/docs/tasks/tools",
    "sbatch": "start this on a machine of the cluster that can submit jobs (a login node)",
    "git": "install git; the tracked files of the checkout are what is copied",
}


def start(launch: Callable[[argparse.Namespace, list[str]], None], parser: argparse.ArgumentParser) -> None:
    """Runs a launcher on this process's command line; what a user can mend is said in one line, without a traceback."""
    own, passed = cut(sys.argv[1:])
    arguments = parser.parse_args(own)
    try:
        launch(arguments, passed)
    except ValueError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


def cut(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The launcher's own flags, and those for `experiments.main`.

    >>> cut(["--name=a", "--", "--config.seeds=(0,1)", "--", "x"])
    (['--name=a'], ['--config.seeds=(0,1)', '--', 'x'])
    """
    arguments = list(arguments)
    at = arguments.index("--") if "--" in arguments else len(arguments)
    return arguments[:at], arguments[at + 1 :]


def with_workdir(passed: Sequence[str], default: str) -> tuple[list[str], str]:
    """The flags of `experiments.main` with a `--workdir` among them, and that folder.

    >>> with_workdir(["--config.select.n=5"], "runs/a")
    (['--workdir=runs/a', '--config.select.n=5'], 'runs/a')
    >>> with_workdir(["--workdir", "w"], "runs/a")
    (['--workdir', 'w'], 'w')
    """
    found = None
    for at, flag in enumerate(passed):
        name, equals, value = flag.lstrip("-").partition("=")
        if flag.startswith("-") and name == "workdir":
            found = value if equals else "".join(passed[at + 1 : at + 2])
    return (list(passed), found) if found else ([f"--workdir={default}", *passed], default)


class Commands:
    """Runs commands, or with `dry_run` prints them as a shell would take them.

    Args:
        dry_run: print only.
    """

    def __init__(self, dry_run: bool):
        self.dry_run = dry_run

    def say(self, line: str) -> None:
        """Tells the user something; among printed commands as a comment."""
        print(f"# {line}" if self.dry_run else line, file=sys.stdout if self.dry_run else sys.stderr, flush=True)

    def run(self, *command: str, stdin: str = "") -> str:
        """Runs a command to its end and returns its standard output; "" where it is only printed.

        Raises:
            ValueError: it is not installed, or it failed: with its last lines.
        """
        if self.dry_run:
            self.show(command, stdin)
            return ""
        done = _run(command, stdin)
        if done.returncode:
            raise _refused(command, done)
        return done.stdout

    def ask(self, *command: str) -> dict | None:
        """The JSON object that a command prints, {} where it is only printed; None where what it asks for does not exist.

        Raises:
            ValueError: it is not installed, or it failed for another reason.
        """
        if self.dry_run:
            self.show(command)
            return {}
        done = _run(command)
        if done.returncode and re.search("not[_ ]?found", done.stderr, re.IGNORECASE):
            return None
        if done.returncode:
            raise _refused(command, done)
        return json.loads(done.stdout)

    def follow(self, members: Mapping[str, Sequence[str]], *, env: Mapping[str, Mapping[str, str]] | None = None) -> None:
        """Runs commands side by side, see `follow`."""
        if self.dry_run:
            for name, command in members.items():
                self.show(command, variables=(env or {}).get(name, {}))
        else:
            follow(members, env=env)

    def show(self, command: Sequence[str], stdin: str = "", variables: Mapping[str, str] | None = None) -> None:
        words = [*(f"{name}={shlex.quote(value)}" for name, value in (variables or {}).items()), shlex.join(command)]
        print(" ".join(words) + (f" <<'END'\n{stdin}\nEND" if stdin else ""), flush=True)


def follow(members: Mapping[str, Sequence[str]], *, env: Mapping[str, Mapping[str, str]] | None = None) -> None:
    """Runs commands side by side until all have ended.

    What they write to standard error comes out with the member's name before each line; standard output passes as it is, so
    that a table stays a table. Ctrl-C and SIGTERM are handed on to all; where one fails, the others are ended.

    Args:
        members: name -> command.
        env: name -> variables beside those of this process.

    Raises:
        ValueError: a member failed: which, how, and its last lines. The first to fail is named, as others fail in its wake.
        KeyboardInterrupt: this process was told to end.
    """
    ended: queue.Queue[tuple[str, int]] = queue.Queue()
    last: dict[str, collections.deque[str]] = {name: collections.deque(maxlen=SHOWN_LINES) for name in members}
    running: dict[str, subprocess.Popen] = {}

    def watch(name: str, process: subprocess.Popen) -> None:
        table = threading.Thread(target=_pass_on, args=(process.stdout, sys.stdout, "", []), daemon=True)
        table.start()
        _pass_on(process.stderr, sys.stderr, f"[{name}] ", last[name])
        table.join()
        ended.put((name, process.wait()))

    with _ctrl_c_on_term():
        try:
            for name, command in members.items():
                variables = {**os.environ, **(env or {}).get(name, {})}
                running[name] = _started(
                    subprocess.Popen, command, env=variables, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE, text=True, errors="replace", start_new_session=True,
                )  # fmt: skip
                threading.Thread(target=watch, args=(name, running[name]), daemon=True).start()
            for _ in members:
                name, code = ended.get()
                if code:
                    raise ValueError(_failure(name, code, last[name]))
        except KeyboardInterrupt:
            _end(running.values(), signal.SIGINT)
            raise
        finally:
            _end(running.values(), signal.SIGTERM)


def pack_checkout(path: pathlib.Path, root: pathlib.Path = ROOT) -> None:
    """Writes the tracked files of the checkout, as they are now, to a .tar.gz.

    Raises:
        ValueError: `root` is no git checkout.
    """
    listed = _run(["git", "-C", str(root), "ls-files", "-z"])
    if listed.returncode:
        raise ValueError(f"{root} is no git checkout, so it is unknown which files to copy; start this from a clone")
    with tarfile.open(path, "w:gz") as archive:
        for name in filter(None, listed.stdout.split("\0")):
            if os.path.lexists(root / name):  # a tracked file may have been deleted
                archive.add(root / name, name, recursive=False)


def _run(command: Sequence[str], stdin: str = "") -> subprocess.CompletedProcess:
    return _started(subprocess.run, command, input=stdin, capture_output=True, text=True, check=False)


def _refused(command: Sequence[str], done: subprocess.CompletedProcess) -> ValueError:
    return ValueError(_failure(shlex.join(command), done.returncode, (done.stdout + done.stderr).splitlines()))


def _started(start: Callable, command: Sequence[str], **how):
    try:
        return start(list(command), **how)
    except FileNotFoundError:
        remedy = INSTALL.get(command[0], "install it, or put it on the PATH")
        raise ValueError(f"{command[0]} was not found: {remedy}") from None


def _pass_on(source, sink, prefix: str, last) -> None:
    for line in source:
        last.append(line.rstrip("\n"))
        print(prefix + line.rstrip("\n"), file=sink, flush=True)


def _failure(name: str, code: int, lines) -> str:
    how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"failed with exit code {code}"
    shown = "\n".join(f"  {line}" for line in list(lines)[-SHOWN_LINES:])
    return f"{name} {how}" + (f"; its last lines:\n{shown}" if shown else " and said nothing")


def _end(processes, first_word: signal.Signals) -> None:
    """Asks each process group to end, and makes it after a while."""
    processes = list(processes)
    for word in (first_word, signal.SIGKILL):
        for process in processes:
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, word)
        for process in processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE_S)


@contextlib.contextmanager
def _ctrl_c_on_term() -> Iterator[None]:
    """SIGTERM is treated as Ctrl-C is."""

    def interrupt(number, frame):
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
