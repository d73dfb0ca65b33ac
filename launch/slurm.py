"""Submits `experiments.main` to a Slurm cluster, one process for each node or for each GPU.

    python -m launch.slurm --nodes=2 --gpus_per_node=8 [--per=node] [--setup='source .venv/bin/activate'] -- [main's flags]

The batch script is written to <workdir>/launch.sbatch, submitted from the checkout's folder, and its log (standard error with
the process number before each line) lies beside it. The checkout and the workdir must be on a file system that all nodes see.
"""

import argparse
import pathlib
import shlex
from collections.abc import Sequence

from launch import command

# Process 0 listens on the first node; the port differs from job to job, as two may share that node.
SCRIPT = """\
#!/bin/bash
{directives}
set -euo pipefail
cd {root}
{setup}
mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
coordinator=${{hosts[0]}}:$((20000 + SLURM_JOB_ID % 20000))
# shellcheck disable=SC2016  # expanded in each process, not here
srun --label --kill-on-bad-exit=1 bash -c {process} main "$coordinator" {arguments}
"""

PROCESS = """\
coordinator=$1
shift
exec python -u -m experiments.main --coordinator="$coordinator" --num_processes="$SLURM_NTASKS" \\
  --process_id="$SLURM_PROCID" {local}"$@"\
"""


def parser() -> argparse.ArgumentParser:
    flags = argparse.ArgumentParser(prog="python -m launch.slurm", usage="%(prog)s [flags] -- [flags of experiments.main]")
    flags.add_argument("--name", default="w2s_jax", help="the job's name")
    flags.add_argument("--nodes", type=int, default=1, help="how many nodes")
    flags.add_argument("--gpus_per_node", type=int, default=0, help="0 = run on the CPUs")
    flags.add_argument("--per", choices=("node", "gpu"), default="node", help="one process for each of these")
    flags.add_argument("--time", default="", help="limit, such as 12:00:00")
    flags.add_argument("--partition", default="", help="the cluster's partition")
    flags.add_argument("--account", default="", help="who pays")
    flags.add_argument("--sbatch", action="append", default=[], help="a further sbatch flag, such as --sbatch=--mem=0")
    flags.add_argument("--setup", default="", help="shell line before the run, such as 'source .venv/bin/activate'")
    flags.add_argument("--wait", action="store_true", help="come back when the job has ended")
    flags.add_argument("--dry_run", action="store_true", help="print script and command only")
    return flags


def launch(flags: argparse.Namespace, passed: Sequence[str]) -> None:
    """Writes the script and submits it.

    Raises:
        ValueError: numbers that do not fit together, sbatch is missing, or it refused the job.
    """
    if flags.nodes < 1 or flags.gpus_per_node < 0:
        raise ValueError(f"--nodes={flags.nodes}, --gpus_per_node={flags.gpus_per_node}: allowed are 1 and 0 or more")
    if flags.per == "gpu" and not flags.gpus_per_node:
        raise ValueError("--per=gpu needs --gpus_per_node=N: say how many GPUs each node gives")
    passed, workdir = command.with_workdir(passed, f"runs/{flags.name}")
    folder = command.ROOT / workdir
    script = folder / "launch.sbatch"
    text = batch_script(flags, passed, folder)
    commands = command.Commands(flags.dry_run)
    submission = ["sbatch", "--parsable", *(["--wait"] if flags.wait else []), str(script)]
    if flags.dry_run:
        commands.say(f"{script}:")
        print(text)
        commands.run(*submission)
        return
    folder.mkdir(parents=True, exist_ok=True)
    script.write_text(text)
    commands.say(f"submitting {script}")
    job = commands.run(*submission).strip().partition(";")[0]
    commands.say(f"job {job}; log: tail -F {shlex.quote(str(folder / f'slurm-{job}.log'))}; report: {folder}/report/index.html")


def batch_script(flags: argparse.Namespace, passed: Sequence[str], folder: pathlib.Path) -> str:
    """The text that sbatch gets; the flags of `experiments.main` arrive as they were given, whatever they hold."""
    per_node = flags.gpus_per_node if flags.per == "gpu" else 1
    wanted = {
        "job-name": flags.name,
        "nodes": flags.nodes,
        "ntasks-per-node": per_node,
        "gpus-per-node": flags.gpus_per_node,
        "time": flags.time,
        "partition": flags.partition,
        "account": flags.account,
        "output": folder / "slurm-%j.log",
    }
    directives = [f"--{name}={value}" for name, value in wanted.items() if value] + flags.sbatch
    # All GPUs of a node stay visible to all its processes, which then copy between them directly.
    local = '--local_device="$SLURM_LOCALID" ' if flags.per == "gpu" else ""
    arguments = [f"--require_backend={'gpu' if flags.gpus_per_node else 'cpu'}", *passed]
    return SCRIPT.format(
        directives="\n".join(f"#SBATCH {line}" for line in directives),
        root=shlex.quote(str(command.ROOT)),
        setup=flags.setup,
        process=shlex.quote(PROCESS.format(local=local)),
        arguments=shlex.join(arguments),
    )


if __name__ == "__main__":
    command.start(launch, parser())
