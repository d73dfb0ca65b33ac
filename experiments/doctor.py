"""What is here, and what to type where something is missing: `python -m experiments.doctor [--require_backend=tpu]`.

Prints versions, devices and their memory, the compilation cache, and whether this combination of versions was tested. Exit
status 1 = something is wrong.
"""

import glob
import os
import platform
import sys
from collections.abc import Iterator
from importlib import metadata

from absl import app, flags

FLAGS = flags.FLAGS
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "transformers", "datasets", "safetensors")
EXTRAS = ("torch", "libtpu", "peft", "wandb")
TESTED = tuple(
    dict(zip(("python", "jax", "flax", "optax", "orbax-checkpoint", "transformers"), row.split(), strict=True))
    for row in ("3.11 0.10.2 0.12.8 0.2.8 0.12.8 5.23.0", "3.12 0.12.0.1 0.12.12 0.2.8 0.12.8 5.23.0")
)
"""Combinations that the whole test suite passed on; README.md shows the same table."""


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"{argv[1]!r} is no flag")
    problems = 0
    for what, value, remedy in examine(FLAGS.require_backend):
        print(f"{what:<24}{value}" + (f"\n{'':<24}--> {remedy}" if remedy else ""))
        problems += bool(remedy) and not remedy.startswith("note: ")
    print("all is well" if not problems else f"{problems} thing{'s' * (problems > 1)} to mend")
    sys.exit(bool(problems))


def examine(wanted: str | None = None) -> Iterator[tuple[str, str, str]]:
    """Yields (what, how it is, what to type or ""); a remedy that begins with "note: " is no fault."""
    here = {"python": ".".join(platform.python_version_tuple()[:2])}
    yield "python", platform.python_version(), ""
    for name in PACKAGES:
        here[name] = version(name)
        yield name, here[name] or "missing", "" if here[name] else "pip install -e ."
    for name in EXTRAS:
        if version(name):
            yield name, version(name), ""
    tested = any(all(here[name] == value for name, value in one.items()) for one in TESTED)
    yield "tested combination", "yes" if tested else "no", "" if tested else "note: " + nearest(here)
    yield from devices(wanted)
    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    yield "compilation cache", cache or "<store>/xla of each run (JAX_COMPILATION_CACHE_DIR is not set)", ""


def devices(wanted: str | None) -> Iterator[tuple[str, str, str]]:
    """What JAX finds, and what the machine seems to have beyond that."""
    try:
        import jax

        found = jax.devices()
    except Exception as error:  # whatever keeps a back end from starting is what the user wants to see
        yield "devices", f"{type(error).__name__}: {error}", "see who holds the accelerator, below; or set JAX_PLATFORMS=cpu"
        yield from holders()
        return
    backend = jax.default_backend()
    yield "devices", f"{len(found)} {backend} ({found[0].device_kind})", missing_backend(backend, wanted)
    stats = found[0].memory_stats() or {}  # not every back end has them
    if limit := stats.get("bytes_limit"):
        yield "memory of a device", f"{limit / 2**30:.1f} GiB, {stats.get('bytes_in_use', 0) / 2**30:.1f} in use", ""
    if backend == "gpu":
        fraction = os.environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION")
        advice = "" if fraction else "note: JAX takes 75 % of the memory; export XLA_PYTHON_CLIENT_MEM_FRACTION=.92 for more"
        yield "memory fraction", fraction or "0.75 (default)", advice


def missing_backend(backend: str, wanted: str | None) -> str:
    """What to type where the machine has an accelerator that JAX does not use, or lacks the one that is wanted."""
    install = {"gpu": "pip install -e '.[cuda]'", "tpu": "pip install -e '.[tpu]'", "cpu": "JAX_PLATFORMS=cpu"}
    if wanted and backend != wanted:
        return f"{wanted} is wanted: {install[wanted]}"
    if wanted or backend != "cpu" or os.environ.get("JAX_PLATFORMS") == "cpu":
        return ""
    if glob.glob("/dev/nvidia[0-9]*"):
        return f"this machine has a GPU: {install['gpu']}"
    if glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*"):
        return f"this machine has a TPU: {install['tpu']}"
    return ""


def holders() -> Iterator[tuple[str, str, str]]:
    """Processes that have an accelerator open; only one may."""
    for link in glob.glob("/proc/[0-9]*/fd/*"):
        try:
            target = os.readlink(link)
        except OSError:
            continue
        if target.startswith(("/dev/accel", "/dev/vfio/", "/tmp/libtpu_lockfile")):
            process = link.split("/")[2]
            with open(f"/proc/{process}/cmdline", "rb") as file:
                command = file.read().replace(b"\0", b" ").decode(errors="replace").strip()
            yield "in use by", f"process {process}: {command[:80]}", f"end it: kill {process}"


def nearest(here: dict[str, str]) -> str:
    """How to come by the tested combination of this Python, or the nearest."""
    row = next((one for one in TESTED if one["python"] == here["python"]), TESTED[-1])
    other = " ".join(f"{name}=={value}" for name, value in row.items() if name != "python" and here.get(name) != value)
    python = "" if row["python"] == here["python"] else f"Python {row['python']}, "
    return f"it may well work; tested was {python}{other}"


def version(name: str) -> str:
    """A package's version, "" where it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


if __name__ == "__main__":
    flags.DEFINE_enum("require_backend", None, ["cpu", "gpu", "tpu"], "What the devices must be.")
    app.run(main)
