"""Models from and to Hugging Face directories; no conversion step, no remote code, no torch."""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from flax import traverse_util
from jax.sharding import PartitionSpec as P
from safetensors.numpy import save_file

from w2s_jax import files, processes
from w2s_jax.models import checkpoint, decoder, quantised, sharding
from w2s_jax.models.config import DecoderConfig
from w2s_jax.models.families import family
from w2s_jax.models.families.names import Name
from w2s_jax.models.tokenizer import Tokenizer
from w2s_jax.types import LM

VERSION = "2"
CLASSIFIER = "ForSequenceClassification"
HEAD = "score.weight"


def load(
    path: str | pathlib.Path,
    *,
    mesh: jax.sharding.Mesh | None = None,
    dtype: Any = None,
    quantise: str = "",
    key: str | None = None,
) -> LM:
    """Loads a model and its tokenizer.

    Weights are read slice by slice straight to where they belong; see `read_params` for what the host holds meanwhile.

    Args:
        path: a local directory with `config.json`, safetensors files and `tokenizer.json`.
        mesh: places parameters by `sharding.RULES`; None = all on the first device.
        dtype: of the parameters; None = as stored (training wants float32 masters).
        quantise: format of `quantised.FORMATS` for the kernels of the blocks, for training adapters on; "" = none.
        key: the directory's `files.content_key` if already known; None = compute it.

    Raises:
        ValueError: something in the directory is missing, cut off, inconsistent or not supported.
    """
    path = pathlib.Path(path)
    config = check(path)
    tokenizer = read_tokenizer(path, config)
    found, foreign = text_tensors(path, config)
    if foreign:
        logging.warning("%s: read as a text model; %d other tensors, such as %s, are left out", path, len(foreign), foreign[0])
    params = read_params(config, found, mesh, dtype, quantise)
    return LM(config, params, tokenizer, files.content_key(path) if key is None else key)


def load_classifier(
    path: str | pathlib.Path, *, mesh: jax.sharding.Mesh | None = None, dtype: Any = None, key: str | None = None
) -> tuple[LM, np.ndarray]:
    """Loads a sequence classifier, as transformers' `...ForSequenceClassification` writes it.

    Args:
        path, mesh, dtype, key: as in `load`.

    Returns:
        Its decoder, and its head f32[num_labels, D], which reads the hidden state of a text's last token after the final norm.
        The decoder's own logits mean nothing: a classifier has no output map.

    Raises:
        ValueError: see `check_classifier` and `load`.
    """
    path = pathlib.Path(path)
    config, found, head = check_classifier(path)
    tokenizer = read_tokenizer(path, config)
    params = read_params(config, found, mesh, dtype)
    lm = LM(config, params, tokenizer, files.content_key(path) if key is None else key)
    return lm, np.array(head.view()).astype(np.float32)


def check_classifier(path: str | pathlib.Path) -> tuple[DecoderConfig, dict[str, checkpoint.Tensor], checkpoint.Tensor]:
    """Judges the directory of a sequence classifier; no tensor is read.

    Returns:
        Its decoder's config, where the decoder's tensors are, and where the head is.

    Raises:
        ValueError: it is no classifier, one of another number of labels than 1 or 2, or of a decoder that is not read.
    """
    path = pathlib.Path(path)
    config = read_classifier_config(path)
    found, _ = text_tensors(path, config)
    head = found.pop(HEAD, None)
    if head is None or len(head.shape) != 2 or head.shape[0] not in (1, 2) or head.shape[1] != config.width:
        shape = "is not there" if head is None else f"has shape {head.shape}"
        raise ValueError(
            f"{path}: {HEAD} {shape}; allowed is (1, {config.width}), a reward, or (2, {config.width}), wrong and right"
        )
    if head.dtype not in checkpoint.DTYPES:
        raise ValueError(f"{path}: {HEAD} is stored as {head.dtype}; allowed are {', '.join(checkpoint.DTYPES)}")
    named = read_object_of(path).get("id2label")
    if isinstance(named, dict) and len(named) != head.shape[0]:
        raise ValueError(f"{path}: config.json has id2label = {named!r}, but {HEAD} has shape {head.shape}; fetch them again")
    checkpoint.check(found, {hf: shape for _, _, hf, shape in entries(config)}, path)
    return config, found, head


def read_tokenizer(path: pathlib.Path, config: DecoderConfig) -> Tokenizer:
    """Reads the tokenizer of a directory for a model of that config."""
    try:
        return Tokenizer.load(path).limited(config.vocab_size)
    except ValueError as error:
        raise ValueError(str(error) if str(path) in str(error) else f"{path}: {error}") from None


def check(path: str | pathlib.Path) -> DecoderConfig:
    """Judges a directory by `config.json` and the headers of its weights, in milliseconds; no tensor is read.

    Raises:
        ValueError: see `read_config`, `checkpoint.tensors` and `checkpoint.check`.
    """
    path = pathlib.Path(path)
    config = read_config(path)
    found, _ = text_tensors(path, config)
    checkpoint.check(found, {hf: shape for _, _, hf, shape in entries(config)}, path)
    return config


def text_tensors(path: pathlib.Path, config: DecoderConfig) -> tuple[dict[str, checkpoint.Tensor], list[str]]:
    """Lists the tensors of a directory under the names of the family's table, without those that only repeat others.

    Returns:
        The tensors, and the stored names of those that are no part of the text model.

    Raises:
        ValueError: two stored names mean the same tensor; or see `checkpoint.tensors`.
    """
    found: dict[str, checkpoint.Tensor] = {}
    stored_as: dict[str, str] = {}
    foreign = []
    for stored, tensor in checkpoint.tensors(path).items():
        name = family(config.family).canonical(stored)
        if name is None:
            foreign.append(stored)
        elif name in found:
            raise ValueError(f"{path}: tensors {stored_as[name]} and {stored} both mean {name}; remove one of them")
        elif not harmless(name, config):
            found[name], stored_as[name] = tensor, stored
    return found, sorted(foreign)


def read_classifier_config(path: str | pathlib.Path) -> DecoderConfig:
    """The decoder of a sequence classifier, from its `config.json` alone.

    Raises:
        ValueError: it is no classifier, or of a decoder that is not read.
    """
    path = pathlib.Path(path)
    hf = read_object_of(path)
    kind = hf.get("architectures")
    if not isinstance(kind, list) or len(kind) != 1 or not str(kind[0]).endswith(CLASSIFIER):
        raise ValueError(
            f"{path / 'config.json'}: architectures = {kind!r} is no sequence classifier; allowed is one of ...{CLASSIFIER} "
            "(a language model without such a head can judge by likelihood: trust.reward_model.kind='likelihood')"
        )
    # The rest of the file is that of the family's language model; without an output map, which is what tied ones store.
    plain = {name: value for name, value in hf.items() if name not in ("architectures", "num_labels")}
    return decoder_config(path, plain | {"tie_word_embeddings": True})


def read_config(path: str | pathlib.Path) -> DecoderConfig:
    """Reads `config.json` alone: enough to plan for a model before its weights are there.

    Raises:
        ValueError: it is missing, no JSON object, of an unknown family, or asks for what is not supported.
    """
    return decoder_config(path, read_object_of(path))


def read_object_of(path: str | pathlib.Path) -> dict[str, Any]:
    """The fields of a directory's `config.json`."""
    file = pathlib.Path(path) / "config.json"
    if not file.exists():
        raise ValueError(f"{file} does not exist; a model is a directory with config.json, *.safetensors and tokenizer.json")
    return checkpoint.read_object(file)


def decoder_config(path: str | pathlib.Path, hf: Mapping[str, Any]) -> DecoderConfig:
    """The config that the fields of a directory's `config.json` describe."""
    try:
        return family(hf.get("model_type")).decoder_config(hf)
    except ValueError as error:
        raise ValueError(f"{pathlib.Path(path)}: {error}") from None


def harmless(name: str, config: DecoderConfig) -> bool:
    """Says whether a stored tensor repeats what the model has anyway."""
    return name.endswith("rotary_emb.inv_freq") or (config.tied and name == "lm_head.weight")


def places(config: DecoderConfig) -> Iterator[tuple[str, int | None, str, Name]]:
    """Lists where each tensor lives: our path, row of the stack (None = not stacked), name on disk, table entry."""
    for name in family(config.family).names(config):
        if not name.in_block:
            yield name.ours, None, name.hf, name
            continue
        for layer in range(config.num_layers):
            path, row = decoder.block_path(config, layer)
            yield f"{'/'.join(path)}/{name.ours}", row, name.hf.format(layer), name


def entries(config: DecoderConfig) -> Iterator[tuple[str, int | None, str, tuple[int, ...]]]:
    """Lists our path, row of the stack, name on disk and shape on disk of each tensor."""
    shapes = traverse_util.flatten_dict(decoder.shapes(config), sep="/")
    for ours, row, hf, name in places(config):
        shape = shapes[ours].shape[0 if row is None else 1 :]
        yield ours, row, hf, shape[::-1] if name.transposed else shape


def read_params(
    config: DecoderConfig,
    found: Mapping[str, checkpoint.Tensor],
    mesh: jax.sharding.Mesh | None,
    dtype: Any,
    quantise: str = "",
) -> Any:
    """Reads all parameters of a checked directory, tensor by tensor in the order of its files.

    Stacks are made on the devices and filled there row by row. The host holds two tensors at most, in the format that they are
    stored in: one on its way to the devices, and the next one.
    """
    shapes = traverse_util.flatten_dict(decoder.shapes(config), sep="/")
    table = sorted(places(config), key=lambda place: (found[place[2]].file, found[place[2]].offset))
    stored: dict[str, list[np.dtype]] = {}
    for ours, _, hf, _ in table:
        stored.setdefault(ours, []).append(np.dtype(checkpoint.DTYPES[found[hf].dtype]))
    params: dict[str, Any] = {}
    written = None
    for ours, row, hf, name in table:
        leaf = shapes[ours].update(dtype=jnp.result_type(*stored[ours]) if dtype is None else jnp.dtype(dtype))
        if mesh is None:
            place = part = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        else:
            place = sharding.sharding_of(ours, leaf.shape, mesh)
            spec = place.spec if row is None else place.spec[1:]
            part = jax.sharding.NamedSharding(mesh, P(*(swapped(spec) if name.transposed else spec)))
        raw = jax.make_array_from_callback(found[hf].shape, part, once(found[hf].view()))
        jax.block_until_ready(written)  # or reading would run ahead of the devices, and pile up tensors on the host
        form = Form(name.transposed, leaf.dtype, quantise if name.in_block and name.transposed else "")
        if row is None and form == Form(False, raw.dtype, ""):
            written = raw
        elif row is None:
            written = jax.jit(in_form, static_argnums=1, out_shardings=form.places(leaf, place))(raw, form)
        else:
            stack = params.pop(ours) if ours in params else form.empty(leaf, place)
            write = jax.jit(with_row, static_argnums=3, out_shardings=form.places(leaf, place), donate_argnums=0)
            written = write(stack, np.int32(row), raw, form)
        params[ours] = written
    return traverse_util.unflatten_dict(params, sep="/")


def in_form(raw: jax.Array, form: "Form") -> Any:
    """Calls `form`; a function of the module, so that its program is compiled once."""
    return form(raw)


def with_row(stack: Any, row: jax.Array, raw: jax.Array, form: "Form") -> Any:
    """Replaces a row of a stack by a tensor as it is on disk."""
    return jax.tree.map(lambda old, new: jax.lax.dynamic_update_index_in_dim(old, new, row, 0), stack, form(raw))


@dataclasses.dataclass(frozen=True)
class Form:
    """What happens on the devices to a tensor as it is on disk; they do it many times faster than the host.

    Attributes:
        transposed: whether its last two axes are swapped.
        dtype: what it is converted to.
        quantise: format that it is packed in, or "".
    """

    transposed: bool
    dtype: np.dtype
    quantise: str

    def __call__(self, raw: jax.Array) -> Any:
        x = (swap(raw) if self.transposed else raw).astype(self.dtype)
        return quantised.pack(x, self.quantise) if self.quantise else x

    def parts(self, leaf: jax.ShapeDtypeStruct) -> Any:
        """The shapes of what a parameter of our shape and dtype becomes: of itself, or of its codes and scales."""
        return jax.eval_shape(lambda x: quantised.pack(x, self.quantise), leaf) if self.quantise else leaf

    def places(self, leaf: jax.ShapeDtypeStruct, place: jax.sharding.Sharding) -> Any:
        """Where these go, given the parameter's place: scales are split where the parameter is, but along its inputs."""

        def place_of(part: jax.ShapeDtypeStruct) -> jax.sharding.Sharding:
            if part.shape == leaf.shape or not isinstance(place, jax.sharding.NamedSharding):
                return place
            axes = [axis if size == whole else None for axis, size, whole in zip(place.spec, part.shape, leaf.shape)]
            return jax.sharding.NamedSharding(place.mesh, P(*axes))

        return jax.tree.map(place_of, self.parts(leaf))

    def empty(self, leaf: jax.ShapeDtypeStruct, place: jax.sharding.Sharding) -> Any:
        """Zeros in their shapes and places."""
        return jax.tree.map(
            lambda part, place: jnp.zeros(part.shape, part.dtype, device=place), self.parts(leaf), self.places(leaf, place)
        )


def swap(x: jax.Array) -> jax.Array:
    """Transposes the last two axes."""
    return jnp.swapaxes(x, -1, -2)


def swapped(sizes: tuple) -> tuple:
    """Does to a shape or a spec what `swap` does to an array."""
    return (*sizes[:-2], sizes[-1], sizes[-2])


def once(source: np.ndarray) -> Callable[[tuple[slice, ...]], np.ndarray]:
    """Copies parts of a mapped tensor; devices that repeat a part share a single read."""
    parts: dict[tuple, np.ndarray] = {}

    def read(index: tuple[slice, ...]) -> np.ndarray:
        bounds = tuple((part.start, part.stop) for part in index)
        if bounds not in parts:
            parts[bounds] = np.array(source[index])
        return parts[bounds]

    return read


def save(lm: LM, path: str | pathlib.Path, *, max_shard_bytes: int = 5_000_000_000) -> None:
    """Writes a model as a directory that transformers opens and `load` reads back bit for bit.

    Args:
        lm: its parameters are stored in their own dtype.
        path: created; files of a model that was there before are removed.
        max_shard_bytes: weights beyond this are split over several files, with an index.

    Raises:
        ValueError: the config's family has no way to write all of it down.
    """
    path = pathlib.Path(path)
    written = family(lm.config.family).hf_config(lm.config)
    back = vars(family(lm.config.family).decoder_config(written))
    if lost := {name: value for name, value in vars(lm.config).items() if back[name] != value}:
        values = [back[name] for name in lost]
        raise ValueError(f"family {lm.config.family!r} cannot store {lost}: it would be read back as {values}")
    writer = processes.is_first()
    path.mkdir(parents=True, exist_ok=True)
    if writer:
        for old in [*path.glob("model*.safetensors"), path / checkpoint.INDEX]:
            old.unlink(missing_ok=True)
    write_weights(lm, path, max_shard_bytes, writer)
    if writer:
        ids = token_ids(lm.tokenizer)
        kind = jnp.dtype(jax.tree.leaves(lm.params)[0].dtype).name
        write_json(path / "config.json", written | ids | {"torch_dtype": kind})
        write_json(path / "generation_config.json", ids)
        lm.tokenizer.save(path)
    processes.barrier("model saved")


def token_ids(tokenizer: Tokenizer) -> dict[str, Any]:
    """Writes the tokens that begin and end a text as transformers spells them."""
    ids = {"eos_token_id": list(tokenizer.stop_ids) if len(tokenizer.stop_ids) > 1 else next(iter(tokenizer.stop_ids), None)}
    return ids | {"bos_token_id": next(iter(tokenizer.bos_ids), None)}


def write_weights(lm: LM, path: pathlib.Path, max_shard_bytes: int, writer: bool) -> None:
    """Writes shards of whole tensors, in the order of the name table, and an index where there are several."""
    params = traverse_util.flatten_dict(lm.params, sep="/")
    shards: list[list[tuple[str, int | None, str, Name]]] = [[]]
    filled = total = 0
    for place in places(lm.config):
        leaf = params[place[0]]
        size = leaf.nbytes // (1 if place[1] is None else leaf.shape[0])
        if shards[-1] and filled + size > max_shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(place)
        filled, total = filled + size, total + size
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = checkpoint.SINGLE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        stored = {}
        for ours, row, hf, name in shard:
            leaf = params[ours] if row is None else params[ours][row]
            stored[hf] = np.ascontiguousarray(processes.fetch(swap(leaf) if name.transposed else leaf))
        if writer:
            save_file(stored, path / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(stored, file)
    if writer and len(shards) > 1:
        write_json(path / checkpoint.INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def write_json(file: pathlib.Path, value: Any) -> None:
    """Writes JSON such that equal values are equal bytes."""
    file.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")
