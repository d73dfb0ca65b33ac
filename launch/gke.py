"""Runs `experiments.main` on Kubernetes (GKE): one pod for each node, as an indexed Job with a name service.

    python -m launch.gke --name=NAME --image=IMAGE --claim=CLAIM --gpu=nvidia-l4 --gpus_per_node=1 --nodes=2 -- [main's flags]
    python -m launch.gke --name=NAME --image=IMAGE --claim=CLAIM --tpu=tpu-v5-lite-podslice --topology=4x4 -- [main's flags]

IMAGE holds the project (launch/Dockerfile makes one); CLAIM is a PersistentVolumeClaim that all pods may write, mounted at
/runs. The logs come here line by line with the pod's number, and at the end <workdir>/report is copied to --out. Running it
again continues a run that was cut off.
"""

import argparse
import json
import math
import pathlib
import time
from collections.abc import Sequence

from launch import command

PORT = 8476
POLL_S = 5.0
CHIPS_PER_NODE = 4
INDEX = "batch.kubernetes.io/job-completion-index"
NEVER_STARTS = ("ImagePull", "InvalidImageName", "ConfigError")
MOUNT = {"volumeMounts": [{"name": "runs", "mountPath": "/runs"}]}


def parser() -> argparse.ArgumentParser:
    flags = argparse.ArgumentParser(prog="python -m launch.gke", usage="%(prog)s [flags] -- [flags of experiments.main]")
    flags.add_argument("--name", default="", help="the job's name")
    flags.add_argument("--image", default="", help="container image with the project in it")
    flags.add_argument("--claim", default="", help="PersistentVolumeClaim, writable by many, for store and report")
    flags.add_argument("--namespace", default="default", help="Kubernetes namespace")
    flags.add_argument("--gpu", default="", help="GPU nodes of this kind, such as nvidia-l4")
    flags.add_argument("--gpus_per_node", type=int, default=1, help="with --gpu")
    flags.add_argument("--tpu", default="", help="TPU nodes of this kind, such as tpu-v5-lite-podslice")
    flags.add_argument("--topology", default="", help="with --tpu: chips of the slice, such as 4x4")
    flags.add_argument("--chips_per_node", type=int, default=CHIPS_PER_NODE, help="with --tpu")
    flags.add_argument("--nodes", type=int, default=1, help="how many pods; with --tpu it follows from the topology")
    flags.add_argument("--spot", action="store_true", help="spot nodes: cheaper, may be taken away")
    flags.add_argument("--out", default="", help="where the report goes here, by default runs/NAME")
    flags.add_argument("--delete", action="store_true", help="delete the job once the report is here")
    flags.add_argument("--dry_run", action="store_true", help="print manifest and commands only")
    return flags


def launch(flags: argparse.Namespace, passed: Sequence[str]) -> None:
    """Brings the job to its end; see the module.

    Raises:
        ValueError: a flag is missing, kubectl is missing or refused the job, or a pod failed.
    """
    for name, what in (("name", "NAME"), ("image", "IMAGE"), ("claim", "CLAIM")):
        if not getattr(flags, name):
            raise ValueError(f"--{name} is missing: give --{name}={what}, see `python -m launch.gke --help`")
    if bool(flags.gpu) == bool(flags.tpu):
        raise ValueError("give either --gpu=KIND or --tpu=KIND: the kind of node to run on")
    passed, workdir = command.with_workdir(passed, f"/runs/{flags.name}")
    if not workdir.startswith("/runs/"):
        raise ValueError(f"--workdir={workdir}: allowed is a folder below /runs, where the claim is mounted; the rest is lost")
    commands = command.Commands(flags.dry_run)
    kubectl = ["kubectl", f"--namespace={flags.namespace}"]
    job = manifest(flags, passed)
    num_pods = job["items"][1]["spec"]["completions"]
    make_room(commands, kubectl, flags.name)
    commands.run(*kubectl, "apply", "--filename=-", stdin=json.dumps(job, indent=1))
    pods = wait_for_start(commands, kubectl, flags.name, num_pods)
    commands.follow({f"pod {i}": [*kubectl, "logs", "--follow", f"pod/{pod}"] for i, pod in enumerate(pods)})
    wait_for_end(commands, kubectl, flags.name)
    fetch(commands, kubectl, flags, f"{workdir}/report", flags.out or f"runs/{flags.name}")
    if flags.delete:
        commands.run(*kubectl, "delete", f"job/{flags.name}", f"service/{flags.name}")


def manifest(flags: argparse.Namespace, passed: Sequence[str]) -> dict:
    """The service that gives pods names and the job itself, as one Kubernetes list.

    Raises:
        ValueError: the topology is no product of numbers, or its chips do not fill whole nodes.
    """
    kind, num_nodes, labels, devices = nodes_of(flags)
    arguments = [f"--require_backend={kind}", *passed]
    if num_nodes > 1:
        place = [f"--coordinator={flags.name}-0.{flags.name}:{PORT}", f"--num_processes={num_nodes}"]
        arguments = [*place, "--process_id=$(PROCESS_ID)", *map(literal, arguments)]
    else:
        arguments = list(map(literal, arguments))
    main = {
        "name": "main",
        "image": flags.image,
        "command": ["python", "-u", "-m", "experiments.main"],
        "args": arguments,
        "env": [{"name": "PROCESS_ID", "valueFrom": {"fieldRef": {"fieldPath": f"metadata.annotations['{INDEX}']"}}}],
        "ports": [{"containerPort": PORT}],
        "resources": {"limits": devices},
        **MOUNT,
    }
    pod = {
        "subdomain": flags.name,
        "restartPolicy": "Never",
        "nodeSelector": labels,
        "containers": [main],
        "volumes": [volume(flags)],
    }
    job = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": flags.name},
        "spec": {
            "completionMode": "Indexed",
            "completions": num_nodes,
            "parallelism": num_nodes,
            "backoffLimit": 0,
            "template": {"metadata": {"labels": {"app": flags.name}}, "spec": pod},
        },
    }
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": flags.name},
        "spec": {"clusterIP": "None", "selector": {"app": flags.name}, "publishNotReadyAddresses": True},
    }
    return {"apiVersion": "v1", "kind": "List", "items": [service, job]}


def nodes_of(flags: argparse.Namespace) -> tuple[str, int, dict[str, str], dict[str, int]]:
    """The back end, how many nodes, their labels, and the devices that a pod takes."""
    spot = {"cloud.google.com/gke-spot": "true"} if flags.spot else {}
    if flags.gpu:
        return (
            "gpu",
            flags.nodes,
            {"cloud.google.com/gke-accelerator": flags.gpu, **spot},
            {"nvidia.com/gpu": flags.gpus_per_node},
        )
    try:
        chips = math.prod(int(side) for side in flags.topology.split("x"))
    except ValueError:
        raise ValueError(f"--topology={flags.topology}: allowed are chips along each side, such as 4x4") from None
    if chips > flags.chips_per_node and chips % flags.chips_per_node:
        raise ValueError(
            f"--topology={flags.topology} has {chips} chips, which do not fill nodes of --chips_per_node={flags.chips_per_node}"
        )
    labels = {"cloud.google.com/gke-tpu-accelerator": flags.tpu, "cloud.google.com/gke-tpu-topology": flags.topology, **spot}
    return "tpu", max(1, chips // flags.chips_per_node), labels, {"google.com/tpu": min(chips, flags.chips_per_node)}


def literal(argument: str) -> str:
    """Kubernetes would expand $(NAME) in an argument; doubling the sign keeps it as it is.

    >>> literal("--x=$(PATH)")
    '--x=$$(PATH)'
    """
    return argument.replace("$(", "$$(")


def volume(flags: argparse.Namespace) -> dict:
    return {"name": "runs", "persistentVolumeClaim": {"claimName": flags.claim}}


def make_room(commands: command.Commands, kubectl: Sequence[str], name: str) -> None:
    """Takes away a finished job of the same name: Kubernetes neither runs it again nor lets it be changed.

    Raises:
        ValueError: it is still running.
    """
    found = commands.ask(*kubectl, "get", f"job/{name}", "--output=json")
    if found is None:
        return
    if found.get("status", {}).get("active"):
        raise ValueError(
            f"job {name!r} is still running: take another --name, or end it with `{' '.join(kubectl)} delete job/{name}`"
        )
    commands.run(*kubectl, "delete", f"job/{name}", "--ignore-not-found")


def wait_for_start(commands: command.Commands, kubectl: Sequence[str], name: str, num_pods: int) -> list[str]:
    """The pods in the order of their numbers, once all have started (nodes may have to be made first).

    Raises:
        ValueError: a pod's image cannot be had.
    """
    if commands.dry_run:
        return [f"{name}-{i}-xxxxx" for i in range(num_pods)]
    said = ""
    while True:
        phases = pods_of(commands, kubectl, name)
        state = ", ".join(f"{pod} {phase} ({why})" if why else f"{pod} {phase}" for pod, phase, why in phases) or "no pods yet"
        if state != said:
            commands.say(state)
        if stuck := [why for _, _, why in phases if any(word in why for word in NEVER_STARTS)]:
            raise ValueError(f"job {name!r} cannot start: {stuck[0]}; correct --image, --claim or --namespace")
        if len(phases) >= num_pods and all(phase not in ("Pending", "Unknown") for _, phase, _ in phases):
            return [pod for pod, _, _ in phases]
        said = state
        time.sleep(POLL_S)


def wait_for_end(commands: command.Commands, kubectl: Sequence[str], name: str) -> None:
    """Waits until every pod has ended.

    Raises:
        ValueError: one failed: which, and its last lines.
    """
    while not commands.dry_run:
        phases = pods_of(commands, kubectl, name)
        for pod, phase, why in phases:
            if phase == "Failed":
                lines = commands.run(*kubectl, "logs", f"--tail={command.SHOWN_LINES}", f"pod/{pod}")
                raise ValueError(f"pod {pod} failed ({why or 'no reason'}); its last lines:\n{lines}")
        if phases and all(phase == "Succeeded" for _, phase, _ in phases):
            return
        time.sleep(POLL_S)


def pods_of(commands: command.Commands, kubectl: Sequence[str], name: str) -> list[tuple[str, str, str]]:
    """Name, phase and its reason of each pod of a job, in the order of their numbers."""
    found = commands.ask(*kubectl, "get", "pods", f"--selector=batch.kubernetes.io/job-name={name}", "--output=json") or {}

    def why(pod) -> str:
        states = [container["state"] for container in pod["status"].get("containerStatuses", [])]
        waits = [state["waiting"].get("reason", "") for state in states if "waiting" in state]
        ends = [state["terminated"] for state in states if "terminated" in state]
        return ", ".join([*waits, *(f"{end.get('reason', 'Error')}, exit code {end.get('exitCode')}" for end in ends)])

    pods = sorted(found.get("items", []), key=lambda pod: int(pod["metadata"]["annotations"][INDEX]))
    return [(pod["metadata"]["name"], pod["status"]["phase"], why(pod)) for pod in pods]


def fetch(commands: command.Commands, kubectl: Sequence[str], flags: argparse.Namespace, report: str, out: str) -> None:
    """Copies the report out of the claim, through a pod that lives for that only: those of the job have ended."""
    reader = f"{flags.name}-fetch"
    container = {"name": "main", "image": flags.image, "command": ["sleep", "3600"], **MOUNT}
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": reader},
        "spec": {"restartPolicy": "Never", "containers": [container], "volumes": [volume(flags)]},
    }
    commands.run(*kubectl, "apply", "--filename=-", stdin=json.dumps(pod, indent=1))
    try:
        commands.run(*kubectl, "wait", "--for=condition=Ready", f"pod/{reader}", "--timeout=600s")
        if not commands.dry_run:
            pathlib.Path(out).mkdir(parents=True, exist_ok=True)
        commands.run(*kubectl, "cp", f"{reader}:{report}", f"{out}/report")
    finally:
        commands.run(*kubectl, "delete", f"pod/{reader}", "--wait=false")
    commands.say(f"report: {out}/report/index.html")


if __name__ == "__main__":
    command.start(launch, parser())
