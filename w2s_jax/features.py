"""A model's hidden states at its answers (stage observe): Rollout in, x f32[R, P, D] out.

A teacher-forced, packed pass over prompt and completion; the vector at the final answer token is gathered inside the
compiled program, so that no [B, L, D] stack of layers and no logits ever exist. Results go to disk in numbered parts while
the next batch runs: memory does not grow with the number of rows, and a killed pass continues behind its last part.

Source: arXiv 2606.01000 (last layer, final generated token).
Deviations: 1. which token is "final" is not said; ours is the last content token before the stop token (`token="content"`);
the stop token, the one that ended the answer or else the tokenizer's own, is an option (`token="eos"`), and so is the last
token of the prompt, before anything is answered (`token="prompt"`). 2. any set of layers may be observed.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from w2s_jax import packing, processes
from w2s_jax.models.compute import Compute
from w2s_jax.models.decoder import Decoder
from w2s_jax.packing import Shape
from w2s_jax.progress import Progress
from w2s_jax.types import LM, Batch, Ragged, Rollout

VERSION = "1"
ROWS_PER_PART = 4096
TOKENS = {
    "content": "the last token before the stop token",
    "eos": "the stop token",
    "prompt": "the last token of the question",
}


@functools.partial(jax.jit, static_argnames=("model", "layers"))
def gathered(params, batch: Batch, *, model: Decoder, layers: tuple) -> jax.Array:
    """f32[B, G, P, D]: the hidden state of each segment's probed token, layer by layer."""
    out = model.apply({"params": params}, batch.token, batch.segment, batch.position, probe=batch.probe, layers=layers)
    return jnp.moveaxis(out.probe, 0, 2)


def observe(
    lm: LM,
    rollout: Rollout,
    *,
    layers: tuple[int | str, ...],
    token: str,
    shape: Shape,
    compute: Compute,
    out,
    partial,
) -> np.ndarray:
    """Hidden states of R answers.

    Args:
        lm: the model, as a rule the teacher.
        rollout: R prompts and completions under its tokenizer.
        layers: P layers, 0..M as in transformers (M = after the final norm; -1 is M), or "prenorm".
        token: a word of `TOKENS`.
        shape: device shape.
        compute: how the model computes.
        out: folder for `x.npy`, written at the end.
        partial: durable folder for the numbered parts.

    Returns:
        f32[R, P, D], a read-only memory map of `x.npy`.

    Raises:
        ValueError: an unknown `token`.
    """
    sequence, probe = sequences(rollout, token, lm.tokenizer.stop_ids)
    model = compute.model(lm.config)
    bins = packing.pack(sequence.length, shape)
    batches_per_part = max(1, ROWS_PER_PART // (shape.batch_rows * shape.max_segments))
    num_parts = -(-len(packing.batches(len(bins), shape)) // batches_per_part)
    parts = [partial / f"x.{i:05d}.npy" for i in range(num_parts)]
    done = processes.from_first(lambda: next((i for i, part in enumerate(parts) if not part.exists()), num_parts))

    def program(batch: Batch) -> jax.Array:
        return gathered(lm.params, compute.place_rows(batch), model=model, layers=layers)

    values_of_part: list[np.ndarray] = []
    with Progress("observe", int(sequence.length.sum()), unit="tok") as progress:
        results = packing.sweep(program, sequence, shape, probe=probe, start=done * batches_per_part)
        for i, (_, values, tokens) in enumerate(results, 1):
            values_of_part.extend(values)
            progress.add(tokens)
            if i % batches_per_part == 0:
                _write_part(parts[done], values_of_part)
                done, values_of_part = done + 1, []
    if values_of_part:
        _write_part(parts[done], values_of_part)
    if processes.is_first():
        _join(parts, bins, shape, batches_per_part, out / "x.npy", len(sequence))
    processes.barrier("observe: parts joined")
    return np.load(out / "x.npy", mmap_mode="r", allow_pickle=False)


def sequences(rollout: Rollout, token: str, stop_ids) -> tuple[Ragged, np.ndarray]:
    """Prompt and completion end to end (or as much as is looked at), and the place of the token to look at.

    Raises:
        ValueError: an unknown `token`, or one that the model does not have.
    """
    if token not in TOKENS:
        allowed = ", ".join(f"{word!r} ({said})" for word, said in TOKENS.items())
        raise ValueError(f"observe.token={token!r}: allowed are {allowed}; change it in the config")
    if token == "eos" and not stop_ids:
        raise ValueError(
            "observe.token='eos', but the model names no stop token (eos_token_id): use 'content', or add it there"
        )
    if token == "prompt":
        return rollout.prompt, rollout.prompt.length - 1
    rows, probe = [], []
    for r in range(len(rollout.prompt)):
        completion = [t for t in rollout.completion[r].tolist() if t not in stop_ids]
        if token == "eos":
            ended_by = [t for t in rollout.completion[r].tolist() if t in stop_ids]
            completion.append(ended_by[0] if ended_by else stop_ids[0])
        rows.append([*rollout.prompt[r].tolist(), *completion])
        probe.append(len(rows[-1]) - 1)
    return Ragged.of(rows, np.int32), np.array(probe, np.int64)


def _write_part(path, values) -> None:
    """A part appears whole or not at all."""
    if not processes.is_first():
        return
    unfinished = path.parent / (path.name + ".unfinished")
    with unfinished.open("wb") as f:
        np.save(f, np.stack(values).astype(np.float32), allow_pickle=False)
    unfinished.rename(path)


def _join(parts, bins, shape, batches_per_part, path, num_rows) -> None:
    """The parts in the order of the rows, as one file; one part is in memory at a time."""
    groups = packing.batches(len(bins), shape)
    x = None
    for i, part in enumerate(parts):
        with part.open("rb") as f:
            values = np.load(f, allow_pickle=False)
        if x is None:
            x = np.lib.format.open_memmap(path, "w+", np.float32, (num_rows, *values.shape[1:]))
        zs = [z for batch in groups[i * batches_per_part : (i + 1) * batches_per_part] for z in batch]
        x[np.concatenate([bins[z] for z in zs])] = values
    x.flush()
