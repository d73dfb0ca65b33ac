"""Several processes that compute one run together, one on each host or device: the first decides and writes, the others follow.

Every process runs the same program on the same host values; arrays on the mesh are shared among them. With a single process
nothing here does anything: no collective is started, no program compiled.
"""

import json
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

SEEN_WITHIN_S = 10.0  # network file systems show a new file a little late


def join(coordinator: str, num_processes: int | None, process_id: int | None, local_device: int | None = None) -> None:
    """Joins the other processes of a run; before anything asks for a device.

    Args:
        coordinator: `host:port` of the first process, or "" where JAX finds all three itself (TPU slices, Slurm, Open MPI).
        num_processes, process_id: how many there are, and which one this is.
        local_device: the one device of this host that is this process's own; None = all.

    Raises:
        ValueError: something is missing or wrong, or JAX finds nothing.
    """
    given = {"coordinator": coordinator or None, "num_processes": num_processes, "process_id": process_id}
    if missing := [f"--{name}" for name, value in given.items() if value is None] if coordinator else []:
        raise ValueError(f"--coordinator={coordinator} needs {' and '.join(missing)} too")
    if coordinator and not 0 <= process_id < num_processes:
        raise ValueError(
            f"--process_id={process_id}: allowed are 0 to {num_processes - 1} with --num_processes={num_processes}"
        )
    try:
        if coordinator:
            devices = None if local_device is None else [local_device]
            jax.distributed.initialize(coordinator, num_processes, process_id, devices, "deactivate")
        else:
            jax.distributed.initialize()
    except (ValueError, RuntimeError) as error:
        remedy = "correct --coordinator" if coordinator else "give --coordinator, --num_processes and --process_id"
        raise ValueError(f"the processes did not find each other ({error}); {remedy}") from error


def several() -> bool:
    """Whether this run has more than one process."""
    return jax.process_count() > 1


def is_first() -> bool:
    """Whether this process is the one that decides, writes and speaks."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Waits for all processes."""
    if several():
        multihost_utils.sync_global_devices(name)


def from_first(decide: Callable[[], Any]) -> Any:
    """What the first process decides, in all of them; the others do not call `decide`.

    Args:
        decide: returns what JSON can hold.
    """
    if not several():
        return decide()
    said = json.dumps(decide()).encode() if is_first() else b""
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(said))))
    room = 1 << max(size - 1, 1).bit_length()  # few shapes: powers of two
    said = multihost_utils.broadcast_one_to_all(
        np.frombuffer(said.ljust(room), np.uint8) if is_first() else np.zeros(room, np.uint8)
    )
    return json.loads(np.asarray(said, np.uint8).tobytes())


def where(true_here: bool) -> list[int]:
    """The numbers of the processes in which something is true, in all of them."""
    if not several():
        return [0] if true_here else []
    return np.flatnonzero(multihost_utils.process_allgather(np.int32(true_here))).tolist()


def place(tree: Any, sharding: jax.sharding.Sharding) -> Any:
    """Puts the arrays of a tree, which all processes hold alike, where they belong; each process keeps its own part."""
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)

    def part(x):
        if isinstance(x, jax.Array) and not x.is_fully_addressable:
            return jax.device_put(x, sharding)
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    return jax.tree.map(part, tree)


def fetch(x: jax.Array | np.ndarray) -> np.ndarray:
    """The whole of an array on the host, in every process."""
    if isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated):
        return np.asarray(multihost_utils.process_allgather(x, tiled=True))
    return np.asarray(x)


def refuse_private(folder: epath.Path, flag: str) -> None:
    """Makes sure that all processes see one folder.

    Raises:
        ValueError: some have one of their own of that name; `flag` is what to change.
    """
    if not several():
        return
    token = folder / from_first(lambda: f"seen.{time.time_ns()}.tmp")
    if is_first():
        token.write_text("")
    barrier("processes: token written")
    blind = where(not _appears(token))
    if is_first():
        token.unlink()
    if blind:
        raise ValueError(
            f"{folder} is not the same folder in all processes: process {', '.join(map(str, blind))} did not see what process "
            f"0 wrote; give one on a file system that all share with {flag}"
        )


def _appears(path: epath.Path) -> bool:
    began = time.monotonic()
    while not path.exists():
        if time.monotonic() - began > SEEN_WITHIN_S:
            return False
        time.sleep(0.2)
    return True
