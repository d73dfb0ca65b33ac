"""Runs `experiments.main` on every worker of a Cloud TPU slice and brings the report back.

    python -m launch.tpu_vm --name=NAME --zone=ZONE [--create=v5litepod-16 [--spot] [--queued]] -- [flags of experiments.main]

A slice that is there is used; with --create one that is not there is made, directly or as a queued resource. The tracked files
of this checkout are copied to each worker and installed, the same command runs on all, its log comes here line by line with
the worker's number, and at the end <workdir>/report is copied to --out. Running it again continues a run that was cut off.

A slice of several workers needs a --workdir and --store that all of them see: mount a shared folder with --setup.
"""

import argparse
import contextlib
import pathlib
import shlex
import tempfile
import time
from collections.abc import Sequence

from launch import command

RUNTIMES = {
    "v5litepod-": "v2-alpha-tpuv5-lite",
    "v5p-": "v2-alpha-tpuv5",
    "v6e-": "v2-alpha-tpuv6e",
    "": "tpu-ubuntu2204-base",
}
"""The virtual machine's image by the slice's kind; the first prefix that fits holds."""
POLL_S = 20.0
ARCHIVE = "w2s_jax.tar.gz"

# What an earlier copy left of the checkout goes, runs stay. The images' own Python is too old, so uv brings one.
INSTALL = """\
set -euo pipefail
mkdir -p {folder}
cd {folder}
tar -tzf ~/{archive} | cut -d / -f 1 | sort -u | xargs rm -rf
tar -xzf ~/{archive}
export PATH="$HOME/.local/bin:$PATH"
command -v uv >/dev/null || curl -LsSf https://astral.sh/uv/install.sh | sh >&2
uv venv --quiet --allow-existing --python=3.12 .venv
uv pip install --quiet --python=.venv/bin/python -e '.[tpu]'
{setup}
"""

RUN = """\
set -euo pipefail
cd {folder}
if [ -f run.pid ] && grep -qs experiments.main "/proc/$(cat run.pid)/cmdline"; then
  echo "an earlier run (process $(cat run.pid)) is still going on here; end it with --stop" >&2
  exit 1
fi
echo $$ >run.pid
exec .venv/bin/python -u -m experiments.main {arguments}
"""

STOP = """\
cd {folder} || exit 0
if [ -f run.pid ] && grep -qs experiments.main "/proc/$(cat run.pid)/cmdline"; then kill "$(cat run.pid)"; fi
"""


def parser() -> argparse.ArgumentParser:
    flags = argparse.ArgumentParser(prog="python -m launch.tpu_vm", usage="%(prog)s [flags] -- [flags of experiments.main]")
    flags.add_argument("--name", default="", help="the slice's name")
    flags.add_argument("--zone", default="", help="its zone, such as us-central2-b")
    flags.add_argument("--project", default="", help="its project, by default gcloud's")
    flags.add_argument("--create", default="", metavar="TYPE", help="make one of this type, such as v5litepod-16, if need be")
    flags.add_argument("--version", default="", help="its image, by default the one that fits the type")
    flags.add_argument("--spot", action="store_true", help="with --create: cheaper, may be taken away")
    flags.add_argument("--queued", action="store_true", help="with --create: wait in the queue for one")
    flags.add_argument("--folder", default="w2s_jax", help="the checkout's place on the workers, from the home folder")
    flags.add_argument("--setup", default="", help="a further shell line for each worker, such as the mount of a shared folder")
    flags.add_argument("--ssh_flag", action="append", default=[], help="handed to gcloud ssh and scp, such as --internal-ip")
    flags.add_argument("--out", default="", help="where the report goes here, by default runs/NAME")
    flags.add_argument("--stop", action="store_true", help="only end what runs there")
    flags.add_argument("--delete", action="store_true", help="delete the slice once the report is here")
    flags.add_argument("--dry_run", action="store_true", help="print the commands only")
    return flags


def launch(flags: argparse.Namespace, passed: Sequence[str]) -> None:
    """Brings the run to its end; see the module.

    Raises:
        ValueError: no name or zone, gcloud is missing, no such slice, or a worker failed.
    """
    for name, like in (("name", "my-tpu"), ("zone", "us-central2-b")):
        if not getattr(flags, name):
            raise ValueError(f"--{name} is missing: say which slice, such as --{name}={like}")
    commands = command.Commands(flags.dry_run)
    tpu = Slice(commands, flags)
    workers = tpu.find() if flags.stop or not flags.create else tpu.find_or_make()
    if flags.stop:
        commands.follow({f"worker {w}": tpu.ssh(w, STOP.format(folder=shlex.quote(flags.folder))) for w in workers})
        return
    passed, workdir = command.with_workdir(passed, f"runs/{flags.name}")
    with tempfile.TemporaryDirectory() as folder:
        archive = pathlib.Path(folder) / ARCHIVE
        commands.say(f"the tracked files of {command.ROOT} go to {len(workers)} worker(s)")
        if not flags.dry_run:
            command.pack_checkout(archive)
        commands.run(*tpu.scp(str(archive), f"{flags.name}:{ARCHIVE}", worker="all"))
    install = INSTALL.format(folder=shlex.quote(flags.folder), archive=ARCHIVE, setup=flags.setup)
    commands.follow({f"worker {w}": tpu.ssh(w, install) for w in workers})
    try:
        commands.follow({f"worker {w}": tpu.ssh(w, run_line(flags.folder, passed)) for w in workers})
    except (ValueError, KeyboardInterrupt):
        commands.say("ending the run on all workers")
        with contextlib.suppress(ValueError):  # the first fault is the one to tell
            commands.follow({f"worker {w}": tpu.ssh(w, STOP.format(folder=shlex.quote(flags.folder))) for w in workers})
        commands.say(f"the slice is still there (and costs); to delete it: {shlex.join(tpu.deletion())}")
        raise
    out = flags.out or f"runs/{flags.name}"
    there = workdir if workdir.startswith("/") else f"{flags.folder}/{workdir}"
    if not flags.dry_run:
        pathlib.Path(out).mkdir(parents=True, exist_ok=True)
    commands.run(*tpu.scp("--recurse", f"{flags.name}:{there}/report", out, worker="0"))
    commands.say(f"report: {out}/report/index.html")
    if flags.delete:
        commands.run(*tpu.deletion())


def run_line(folder: str, passed: Sequence[str]) -> str:
    """What each worker runs; the flags arrive as they were given, whatever they hold."""
    arguments = shlex.join(["--distributed=auto", "--require_backend=tpu", *passed])
    return RUN.format(folder=shlex.quote(folder), arguments=arguments)


class Slice:
    """The gcloud commands of one slice."""

    def __init__(self, commands: command.Commands, flags: argparse.Namespace):
        self.commands, self.flags = commands, flags
        self.place = [f"--zone={flags.zone}", *([f"--project={flags.project}"] if flags.project else [])]

    def find(self) -> list[int]:
        """The numbers of the workers.

        Raises:
            ValueError: there is no such slice, or it is not ready.
        """
        found = self._describe()
        if found is None:
            raise ValueError(
                f"there is no TPU slice {self.flags.name!r} in {self.flags.zone}: correct --name and --zone, or make one with "
                "--create=TYPE, such as --create=v5litepod-8"
            )
        return self._workers(found)

    def find_or_make(self) -> list[int]:
        """The numbers of the workers of the slice, made if it is not there."""
        found = self._describe()
        if found and not self.commands.dry_run:
            return self._workers(found)
        flags = self.flags
        version = flags.version or next(image for kind, image in RUNTIMES.items() if flags.create.startswith(kind))
        spot = ["--spot"] if flags.spot else []
        tpus = ("gcloud", "compute", "tpus")
        self.commands.say(f"making {flags.name} ({flags.create}, {version})")
        if flags.queued:
            if not self._queued():  # it may stand in the queue since an earlier try
                self.commands.run(
                    *tpus, "queued-resources", "create", flags.name, *self.place, f"--node-id={flags.name}",
                    f"--accelerator-type={flags.create}", f"--runtime-version={version}", *spot, "--quiet",
                )  # fmt: skip
            self._wait_in_queue()
        else:
            self.commands.run(
                *tpus, "tpu-vm", "create", flags.name, *self.place, f"--accelerator-type={flags.create}",
                f"--version={version}", *spot, "--quiet",
            )  # fmt: skip
        return self.find()

    def ssh(self, worker: int, line: str) -> list[str]:
        """The command that runs a shell text on one worker."""
        tpu = ["gcloud", "compute", "tpus", "tpu-vm", "ssh", self.flags.name, *self.place, *self.flags.ssh_flag]
        return [*tpu, f"--worker={worker}", "--quiet", f"--command={line}"]

    def scp(self, *what: str, worker: str) -> list[str]:
        tpu = ["gcloud", "compute", "tpus", "tpu-vm", "scp", *what, *self.place, *self.flags.ssh_flag]
        return [*tpu, f"--worker={worker}", "--quiet"]

    def deletion(self) -> list[str]:
        """The command that gives the slice back."""
        if self.flags.queued:
            kind = ["queued-resources", "delete", self.flags.name, "--force"]
        else:
            kind = ["tpu-vm", "delete", self.flags.name]
        return ["gcloud", "compute", "tpus", *kind, *self.place, "--quiet"]

    def _describe(self) -> dict | None:
        asked = ("gcloud", "compute", "tpus", "tpu-vm", "describe", self.flags.name, *self.place)
        return self.commands.ask(*asked, "--format=json(state,networkEndpoints)")

    def _workers(self, found: dict) -> list[int]:
        if self.commands.dry_run:
            self.commands.say("shown for worker 0; a slice of several workers runs the same on each of them")
            return [0]
        if found.get("state") != "READY":
            raise ValueError(
                f"the TPU slice {self.flags.name!r} is {found.get('state')}, not READY: wait for it, or delete it with "
                f"`{shlex.join(self.deletion())}` and make another with --create=TYPE"
            )
        return list(range(max(1, len(found.get("networkEndpoints", [])))))

    def _queued(self) -> str:
        """The state of the queued resource, "" where there is none."""
        asked = ("gcloud", "compute", "tpus", "queued-resources", "describe", self.flags.name, *self.place)
        return (self.commands.ask(*asked, "--format=json(state)") or {}).get("state", {}).get("state", "")

    def _wait_in_queue(self) -> None:
        said = ""
        while not self.commands.dry_run:
            state = self._queued() or "GONE"
            if state != said:
                self.commands.say(f"queued resource {self.flags.name}: {state}")
            if state == "ACTIVE":
                return
            if state in ("FAILED", "SUSPENDED", "SUSPENDING", "DELETING", "GONE"):
                raise ValueError(
                    f"the queued resource {self.flags.name!r} is {state}: no slice will come; delete it with "
                    f"`{shlex.join(self.deletion())}`, then try another --zone or --create=TYPE"
                )
            said = state
            time.sleep(POLL_S)


if __name__ == "__main__":
    command.start(launch, parser())
