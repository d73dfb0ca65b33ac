"""Several processes of `experiments.main` on this machine's CPU, joined by `jax.distributed`: a cluster in the small.

    python -m launch.local --processes=2 [--devices=1] [--dry_run] -- --config.mesh.data=2 [flags of experiments.main]

The mesh must use all devices: processes * devices of them. Every line says which process wrote it; Ctrl-C ends all, and where
one fails the others are ended and it is named.
"""

import argparse
import socket
import sys
from collections.abc import Sequence

from launch import command


def parser() -> argparse.ArgumentParser:
    flags = argparse.ArgumentParser(prog="python -m launch.local", usage="%(prog)s [flags] -- [flags of experiments.main]")
    flags.add_argument("--processes", type=int, required=True, help="how many processes")
    flags.add_argument("--devices", type=int, default=1, help="CPU devices of each process")
    flags.add_argument("--dry_run", action="store_true", help="print the commands only")
    return flags


def launch(flags: argparse.Namespace, passed: Sequence[str]) -> None:
    """Starts the processes and waits for them.

    Raises:
        ValueError: a number below 1, or a process failed.
    """
    for name in ("processes", "devices"):
        if getattr(flags, name) < 1:
            raise ValueError(f"--{name}={getattr(flags, name)}: allowed is 1 or more")
    coordinator = f"localhost:{free_port()}"
    variables = {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(flags.devices),
        "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
        "PYTHONUNBUFFERED": "1",
    }
    members = {f"process {i}": member(coordinator, flags.processes, i, passed) for i in range(flags.processes)}
    command.Commands(flags.dry_run).follow(members, env=dict.fromkeys(members, variables))


def member(coordinator: str, num_processes: int, process_id: int, passed: Sequence[str]) -> list[str]:
    """The command of one process."""
    place = [f"--coordinator={coordinator}", f"--num_processes={num_processes}", f"--process_id={process_id}"]
    return [sys.executable, "-m", "experiments.main", *place, *passed]


def free_port() -> int:
    """A port that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


if __name__ == "__main__":
    command.start(launch, parser())
