"""LoRA adapters from and to PEFT directories: `adapter_config.json` and `adapter_model.safetensors`; no torch.

The tensors say which linear maps are adapted (PEFT's `target_modules` may be a pattern); every layer must have the same ones.
Settings that change the function and are not computed here are refused by name. An adapter directory holds no tokenizer of its
own as far as this project is concerned: the base model's is used.
"""

import math
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from safetensors.numpy import save_file

from w2s_jax import processes
from w2s_jax.models import checkpoint, decoder, hf_io, sharding
from w2s_jax.models.config import DecoderConfig
from w2s_jax.models.families.fields import FLAG, NUMBER, WHOLE, Fields
from w2s_jax.models.lora import Adapters

VERSION = "1"

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
PARTS = {"a": "lora_A", "b": "lora_B"}
"""Our name of a factor -> PEFT's; both are transposed on disk."""

SUPPORTED: Mapping[str, tuple] = {
    "peft_type": ("LORA",),
    "task_type": ("CAUSAL_LM",),
    "bias": ("none",),
    # Other start values (pissa, olora, loftq, ...) replace the base model's weights too.
    "init_lora_weights": (True, "gaussian"),
    "revision": ("main",),
}
"""Fields that are checked -> what they may be; null, false and whatever is empty count as absent."""

HARMLESS = frozenset(
    """
    auto_mapping base_model_name_or_path ensure_weight_tying exclude_modules inference_mode layers_pattern lora_alpha
    lora_dropout megatron_core peft_version qalora_group_size r runtime_config target_modules use_rslora
    """.split()
)
"""Fields that are read elsewhere or do not change the forward pass."""


def is_adapter(path: str | pathlib.Path) -> bool:
    """Says whether a directory holds an adapter and no model."""
    path = pathlib.Path(path)
    return (path / CONFIG).exists() and not any((path / name).exists() for name in (checkpoint.SINGLE, checkpoint.INDEX))


def base_of(path: str | pathlib.Path) -> str:
    """The base model that an adapter names: a local directory or a hub id.

    Raises:
        ValueError: it names none.
    """
    base = read_object(path).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise ValueError(
            f"{pathlib.Path(path) / CONFIG}: base_model_name_or_path = {base!r}; write the directory or hub id of the model "
            "that the adapter was trained on"
        )
    return base


def check(path: str | pathlib.Path, config: DecoderConfig, base: str = "") -> tuple[int, float]:
    """Judges an adapter directory by its config and the header of its weights; no tensor is read.

    Args:
        path: the directory.
        config: of the base model.
        base: what messages call the base model.

    Returns:
        The rank, and alpha such that the adapters are scaled by alpha / rank.

    Raises:
        ValueError: a file is missing or damaged, a setting is not supported, or the adapters do not fit the base model; the
            last one with a table of names and shapes.
    """
    path = pathlib.Path(path)
    fields = Fields(read_object(path), f"{path / CONFIG}")
    refuse_unsupported(fields)
    rank, alpha = fields.take("r", WHOLE), float(fields.take("lora_alpha", NUMBER))
    # arXiv 2312.03732 divides by the root of the rank instead.
    alpha *= math.sqrt(rank) if fields.take("use_rslora", FLAG, False) else 1.0
    if not (path / WEIGHTS).exists():
        raise ValueError(f"{path} has no {WEIGHTS}; other formats are not read: save the adapter with safe_serialization=True")
    found = checkpoint.header(path / WEIGHTS)
    maps = [(module, shape) for _, _, module, shape in linear_maps(config)]
    kinds = {module.rpartition(".")[2] for module, _ in maps if any(name in found for name in stored_names(module).values())}
    expected: dict[str, tuple[int, int]] = {}
    for module, (num_in, num_out) in maps:
        if module.rpartition(".")[2] in kinds:
            names = stored_names(module)
            expected |= {names["a"]: (rank, num_in), names["b"]: (num_out, rank)}
    if not found:
        raise ValueError(f"{path / WEIGHTS} holds no tensors; save the adapter again")
    checkpoint.check(found, expected, path, spec=f"base model {base}".rstrip())
    return rank, alpha


def load(path: str | pathlib.Path, config: DecoderConfig, *, mesh: jax.sharding.Mesh | None = None, base: str = "") -> Adapters:
    """Loads the adapters of a directory in float32, whatever they are stored in.

    Args:
        path, config, base: see `check`.
        mesh: places them by `sharding.RULES`; None = all on the first device.

    Raises:
        ValueError: see `check`.
    """
    path = pathlib.Path(path)
    rank, alpha = check(path, config, base)
    found = checkpoint.header(path / WEIGHTS)
    layers: dict[str, list[np.ndarray]] = {}
    stacked = set()
    for ours, row, module, _ in linear_maps(config):
        for part, name in stored_names(module).items():
            if name in found:
                layers.setdefault(f"{ours}/{part}", []).append(np.asarray(found[name].view(), np.float32).T)
                stacked |= set() if row is None else {f"{ours}/{part}"}
    tree = {}
    for ours, parts in layers.items():
        value = np.stack(parts) if ours in stacked else np.ascontiguousarray(parts[0])
        place = jax.local_devices()[0] if mesh is None else sharding.sharding_of(ours, value.shape, mesh)
        tree[ours] = jax.device_put(value, place)
    return Adapters(traverse_util.unflatten_dict(tree, sep="/"), rank, alpha)


def save(adapters: Adapters, config: DecoderConfig, path: str | pathlib.Path, *, base: str) -> None:
    """Writes a directory that PEFT opens on top of the base model, and that `load` reads back bit for bit.

    Args:
        adapters: trained on a model of this config; stored in their own dtype.
        config: of the base model.
        path: created.
        base: the base model: a hub id, or a directory, which is written as an absolute path.
    """
    path = pathlib.Path(path)
    flat = {name: processes.fetch(leaf) for name, leaf in traverse_util.flatten_dict(adapters.tree, sep="/").items()}
    stored, modules = {}, set()
    for ours, row, module, _ in linear_maps(config):
        for part, name in stored_names(module).items():
            if f"{ours}/{part}" in flat:
                leaf = flat[f"{ours}/{part}"]
                stored[name] = np.ascontiguousarray((leaf if row is None else leaf[row]).T)
                modules.add(module.rpartition(".")[2])
    if jax.process_index() == 0:
        path.mkdir(parents=True, exist_ok=True)
        save_file(stored, path / WEIGHTS, metadata={"format": "pt"})
        described = {
            "base_model_name_or_path": str(pathlib.Path(base).absolute()) if pathlib.Path(base).is_dir() else base,
            "bias": "none",
            "fan_in_fan_out": False,
            "inference_mode": True,
            "init_lora_weights": True,
            "lora_alpha": int(adapters.alpha) if float(adapters.alpha).is_integer() else adapters.alpha,
            "lora_dropout": 0.0,
            "peft_type": "LORA",
            "r": adapters.rank,
            "target_modules": sorted(modules),
            "task_type": "CAUSAL_LM",
            "use_rslora": False,
        }
        hf_io.write_json(path / CONFIG, described)
    processes.barrier(f"saved {path}")


def linear_maps(config: DecoderConfig) -> Iterator[tuple[str, int | None, str, tuple[int, int]]]:
    """Lists the linear maps of the blocks: our path, row of the stack (None = not stacked), module on disk, (in, out)."""
    shapes = traverse_util.flatten_dict(decoder.shapes(config), sep="/")
    for ours, row, hf, name in hf_io.places(config):
        if name.in_block and name.transposed:
            yield ours.removesuffix("/kernel"), row, hf.removesuffix(".weight"), shapes[ours].shape[-2:]


def stored_names(module: str) -> dict[str, str]:
    """Our name of each factor of a linear map -> the tensor's name on disk."""
    return {part: f"{PREFIX}{module}.{word}.weight" for part, word in PARTS.items()}


def refuse_unsupported(fields: Fields) -> None:
    """Goes through the fields of an `adapter_config.json`.

    Raises:
        ValueError: the kind of adapter is missing, or one or more fields change the function in a way that is not computed.
    """
    fields.take("peft_type", "anything")
    used = {name: value for name, value in fields.hf.items() if value and name not in HARMLESS}
    odd = {name: value for name, value in sorted(used.items()) if value not in SUPPORTED.get(name, ())}
    if odd:
        allowed = {name: ", ".join(map(repr, SUPPORTED.get(name, (None,)))) for name in odd}
        rows = [f"{name} = {value!r} (allowed: {allowed[name]})" for name, value in odd.items()]
        raise ValueError(
            f"{fields.where}: not supported are {'; '.join(rows)}; merge the adapter with PEFT (merge_and_unload) and name the "
            "merged directory instead"
        )


def read_object(path: str | pathlib.Path) -> dict[str, Any]:
    """Reads an `adapter_config.json`.

    Raises:
        ValueError: it is missing or no JSON object.
    """
    file = pathlib.Path(path) / CONFIG
    if not file.exists():
        raise ValueError(f"{file} does not exist; an adapter is a directory with {CONFIG} and {WEIGHTS}")
    return checkpoint.read_object(file)
