"""The tensor files of a Hugging Face directory: headers are read and judged before any tensor is."""

import dataclasses
import difflib
import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

VERSION = "1"

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
DTYPES = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}


@dataclasses.dataclass(frozen=True)
class Tensor:
    """Where a tensor is, and its shape.

    Attributes:
        file: the shard.
        shape: on disk.
        dtype: as safetensors spells it, such as "BF16".
        offset: first byte in the file.
    """

    file: pathlib.Path
    shape: tuple[int, ...]
    dtype: str
    offset: int

    def view(self) -> np.ndarray:
        """Maps the tensor into memory; nothing is read until a part of it is copied."""
        return np.memmap(self.file, DTYPES[self.dtype], "r", self.offset, self.shape)


def read_object(file: pathlib.Path, remedy: str = "fetch it again") -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        ValueError: the file is cut off or holds something else; `remedy` says what to do about it.
    """
    try:
        value = json.loads(file.read_bytes())
    except ValueError as error:
        raise ValueError(f"{file} is no JSON: {error}; it is cut off or damaged: {remedy}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{file} is no JSON object but a {type(value).__name__}: {remedy}")
    return value


def header(file: pathlib.Path) -> dict[str, Tensor]:
    """Reads the header of one safetensors file and checks that the file is complete.

    Raises:
        ValueError: the file is cut off, contradicts itself, or is no safetensors file.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 + length:
            raise ValueError(
                f"{file} has {size} bytes but a header of {length}: it is cut off or no safetensors file; fetch it again"
            )
        try:
            entries = json.loads(stream.read(length))
        except ValueError as error:
            raise ValueError(f"{file} is no safetensors file: {error}") from None
    if not isinstance(entries, dict):
        raise ValueError(f"{file} is no safetensors file: its header is no JSON object; fetch it again")
    entries.pop("__metadata__", None)
    for name, entry in entries.items():
        first, end = entry["data_offsets"]
        if entry["dtype"] in DTYPES and end - first != math.prod(entry["shape"]) * np.dtype(DTYPES[entry["dtype"]]).itemsize:
            raise ValueError(
                f"{file}: {name} of shape {tuple(entry['shape'])} in {entry['dtype']} cannot be {end - first} bytes long; the "
                "file is damaged: fetch it again"
            )
    needed = 8 + length + max((entry["data_offsets"][1] for entry in entries.values()), default=0)
    if size != needed:
        raise ValueError(f"{file} has {size} bytes, its header speaks of {needed}: it is cut off or damaged; fetch it again")
    return {
        name: Tensor(file, tuple(entry["shape"]), entry["dtype"], 8 + length + entry["data_offsets"][0])
        for name, entry in entries.items()
    }


def tensors(path: pathlib.Path) -> dict[str, Tensor]:
    """Lists the tensors of a directory, from its index where it is sharded.

    Raises:
        ValueError: there are no weights, the index is damaged or names tensors that its shards lack, or a shard is missing or
            cut off.
    """
    if (path / INDEX).exists():
        index = read_object(path / INDEX).get("weight_map")
        if not isinstance(index, dict) or not all(isinstance(name, str) for name in index.values()):
            raise ValueError(f"{path / INDEX} has no weight_map from tensors to files; fetch it again")
        files = [path / name for name in sorted(set(index.values()))]
        if missing := [file.name for file in files if not file.exists()]:
            raise ValueError(f"{path / INDEX} names {len(missing)} shards that are not there: {', '.join(missing)}; fetch them")
    elif (path / SINGLE).exists():
        index, files = {}, [path / SINGLE]
    else:
        raise ValueError(f"{path} has neither {SINGLE} nor {INDEX}; other weight formats are not read")
    found: dict[str, Tensor] = {}
    for file in files:
        found |= header(file)
    if lost := sorted(set(index) - set(found)):
        raise ValueError(f"{path / INDEX} names {len(lost)} tensors that are in no shard, such as {lost[0]}; fetch them again")
    return found


def check(
    found: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]], where: pathlib.Path, spec: str = "config.json"
) -> None:
    """Compares the tensors of a directory with those that a model needs; `spec` is what messages say settles these.

    Raises:
        ValueError: one table of all that is missing, unexpected or of another shape, with the nearest names; or tensors are
            stored as numbers that are not read.
    """
    missing, unexpected = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))

    def near(name: str, others: list[str]) -> str:
        close = difflib.get_close_matches(name, others, n=1, cutoff=0.6)
        return f"  (near: {close[0]})" if close else ""

    # Comparing every name with every other is slow in a model of hundreds of layers, and nobody reads so far.
    shown = 20
    rows = [f"  missing     {name} {expected[name]}{near(name, unexpected)}" for name in missing[:shown]]
    rows += [f"  unexpected  {name} {found[name].shape}{near(name, missing)}" for name in unexpected[:shown]]
    misshapen = [name for name in sorted(set(expected) & set(found)) if found[name].shape != expected[name]]
    for name in misshapen[:shown]:
        rows.append(f"  misshapen   {name} is {found[name].shape}, {spec} asks for {expected[name]}")
    if rows:
        counts = f"{len(missing)} missing, {len(unexpected)} unexpected, {len(misshapen)} misshapen"
        more = len(missing) + len(unexpected) + len(misshapen) - len(rows)
        rows += [f"  and {more} more"] if more else []
        raise ValueError(
            f"the weights in {where} are not those of its {spec} ({counts}); correct the {spec} or the files:\n"
            + "\n".join(rows)
        )
    if odd := [name for name in sorted(expected) if found[name].dtype not in DTYPES]:
        raise ValueError(
            f"{where}: {odd[0]} and {len(odd) - 1} others are stored as {found[odd[0]].dtype}; allowed are {', '.join(DTYPES)}"
        )
