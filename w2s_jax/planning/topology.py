"""Devices by a word, whether they are here or not.

    v5e:4x4, v5p:2x2x1, v6e:2x2   a TPU slice: libtpu holds that chip's compiler and runs on any machine; exact
    gpu:h200x8                    GPUs: exact where so many of that kind are here, otherwise an estimate by the CPU's compiler
    cpu:2                         simulated devices of this machine; exact

Call `find` before anything else asks JAX for its devices.

Source: the makers' data sheets, see `CHIPS`.
"""

import dataclasses
import importlib.metadata
import importlib.util
import os
import re
from typing import Any

import jax

GB, TERA = 10**9, 10**12
GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """A row of a data sheet.

    Attributes:
        kind: what JAX calls the device, or a part of it.
        memory: bytes that programs may take, None = unknown.
        flops: dense bfloat16 products, operations/s, None = unknown.
        bandwidth: of main memory, bytes/s, None = unknown.
    """

    kind: str
    memory: int | None
    flops: float | None
    bandwidth: float | None


GPU_FRAC = 0.75  # of its memory: what JAX takes of a GPU unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise

CHIPS = {
    # Rates: cloud.google.com/tpu/docs/v5e, /v5p, /v6e. Memory: what libtpu 0.0.52 calls available of 16, 96 and 32 GiB.
    "v5e": Chip("TPU v5 lite", int(15.75 * GIB), 197 * TERA, 819 * GB),
    "v5p": Chip("TPU v5", int(95.73 * GIB), 459 * TERA, 2765 * GB),
    "v6e": Chip("TPU v6 lite", int(31.24 * GIB), 918 * TERA, 1640 * GB),
    # NVIDIA's data sheets: SXM modules, the L4 a PCIe card; without sparsity.
    "a100": Chip("A100", int(GPU_FRAC * 80 * GB), 312 * TERA, 2039 * GB),
    "h100": Chip("H100", int(GPU_FRAC * 80 * GB), 989 * TERA, 3350 * GB),
    "h200": Chip("H200", int(GPU_FRAC * 141 * GB), 989 * TERA, 4800 * GB),
    "b200": Chip("B200", int(GPU_FRAC * 180 * GB), 2250 * TERA, 7700 * GB),
    "l4": Chip("L4", int(GPU_FRAC * 24 * GB), 121 * TERA, 300 * GB),
}
TPUS, GPUS = ("v5e", "v5p", "v6e"), ("a100", "h100", "h200", "b200", "l4")
ALLOWED = (
    f"a TPU slice ({', '.join(TPUS)}, such as v5e:4x4 or v5p:2x2x1), gpu:<kind>x<count> ({', '.join(GPUS)}, such as "
    "gpu:h200x8), or cpu:<count>"
)


@dataclasses.dataclass(frozen=True)
class Topology:
    """Devices to plan for.

    Attributes:
        word: as given.
        devices: what a mesh is made of; they need not exist.
        chip: each of them.
        exact: whether the compiler that is asked is the one that a run would use.
        compiler: its name and version.
    """

    word: str
    devices: tuple[Any, ...]
    chip: Chip
    exact: bool
    compiler: str


def find(word: str) -> Topology:
    """The devices of a word.

    Raises:
        ValueError: there is no such topology, or its compiler is not installed.
    """
    chip, _, layout = word.partition(":")
    if chip in TPUS and re.fullmatch(r"\d+(x\d+){0,2}", layout):
        return _tpu(word, chip)
    if chip == "gpu" and (match := re.fullmatch(r"(\w+?)x(\d+)", layout)) and match[1] in GPUS and int(match[2]):
        return _gpu(word, CHIPS[match[1]], int(match[2]))
    if chip == "cpu" and layout.isdigit() and int(layout):
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // int(layout)
        return Topology(word, _simulated(int(layout)), Chip("cpu", memory, None, None), True, f"jaxlib {_version('jaxlib')}")
    raise ValueError(f"--topology={word}: allowed are {ALLOWED}")


def _tpu(word: str, chip: str) -> Topology:
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError(f"--topology={word} needs libtpu, which holds the TPU's compiler: pip install 'w2s_jax[plan]'")
    # Nothing here is a TPU: do not look for one's metadata, nor wait for a process that uses one.
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"
    os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"
    os.environ["TPU_WORKER_HOSTNAMES"] = "localhost"
    jax.config.update("jax_platforms", "cpu")
    from jax.experimental import topologies

    chips = [int(n) for n in word.partition(":")[2].split("x")]
    host = {} if max(chips) > 1 else {"chips_per_host_bounds": [1, 1, 1]}  # of a single chip; else libtpu knows
    try:
        devices = topologies.get_topology_desc(topology_name=word, platform="tpu", **host).devices
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(f"--topology={word}: libtpu says {str(error).splitlines()[0]}; allowed are {ALLOWED}") from error
    return Topology(word, tuple(devices), CHIPS[chip], True, f"libtpu {_version('libtpu')}")


def _gpu(word: str, chip: Chip, count: int) -> Topology:
    devices = _simulated(count)  # before JAX is asked for GPUs: their number is settled with the first device
    try:
        here = [device for device in jax.devices("gpu") if chip.kind in device.device_kind]
    except RuntimeError:
        here = []
    if len(here) < count:
        return Topology(word, devices, chip, False, f"jaxlib {_version('jaxlib')}, the CPU's")
    limit = (here[0].memory_stats() or {}).get("bytes_limit")
    chip = dataclasses.replace(chip, memory=limit or chip.memory)
    return Topology(word, tuple(here[:count]), chip, True, f"jaxlib {_version('jaxlib')}")


def _simulated(count: int) -> tuple[Any, ...]:
    """That many devices of this machine's processor.

    Raises:
        ValueError: JAX has already settled on fewer.
    """
    try:
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError:
        pass  # devices have been asked for already: there may be enough of them
    devices = jax.devices("cpu")
    if len(devices) < count:
        raise ValueError(f"{count} simulated devices are wanted and JAX has started with {len(devices)}: use a fresh process")
    return tuple(devices[:count])


def _version(package: str) -> str:
    return importlib.metadata.version(package)
