"""A language model chooses among a question's options (stage answer).

Each question's candidate continuations are scored in one packed pass: where every candidate is a single token, the prompt alone
is run and the candidates' logits are read at its last token; otherwise each prompt + candidate is a segment and the candidate's
tokens are scored.

Source: option scoring and its normalisations, Gu et al. (OLMES), arXiv 2406.08446.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from w2s_jax import packing
from w2s_jax.models import decoder
from w2s_jax.models.compute import Compute
from w2s_jax.models.decoder import Decoder
from w2s_jax.models.likelihood import token_logp
from w2s_jax.packing import Shape
from w2s_jax.progress import Progress
from w2s_jax.tasks.asking import Asked
from w2s_jax.types import LM, Batch, Ragged, Rollout

VERSION = "2"


@dataclasses.dataclass(frozen=True)
class Choice:
    """What was chosen.

    Attributes:
        rollout: N rows: the prompt, the chosen candidate's tokens, and its log-probability among the candidates (nats),
            spread evenly over its tokens.
        option: i32[N], the chosen option.
        option_logp: f32[N, O], nats, normalised over the options; -inf where a question has fewer than O.
    """

    rollout: Rollout
    option: np.ndarray
    option_logp: np.ndarray


NORMALISE = {
    "none": lambda logp, num_tokens, num_bytes: logp,
    "token": lambda logp, num_tokens, num_bytes: logp / num_tokens,
    "byte": lambda logp, num_tokens, num_bytes: logp / num_bytes,
}
"""What a candidate of several tokens is ranked by: its log-probability, or that per token or per UTF-8 byte."""


def choose(lm: LM, asked: Sequence[Asked], *, normalise: str, shape: Shape, compute: Compute, label: str = "answer") -> Choice:
    """The most probable candidate after each prompt.

    Args:
        lm: the model that answers.
        asked: N questions as the model reads them, each with at least two candidates.
        normalise: a name in `NORMALISE`; without effect on single-token candidates.
        shape: device shape.
        compute: how the model computes.
        label: what the progress bar says.

    Raises:
        ValueError: an unknown `normalise`; a question longer than the device row.
    """
    if normalise not in NORMALISE:
        raise ValueError(
            f"normalise={normalise!r}: allowed are {', '.join(NORMALISE)}; "
            "change teacher.normalise or student.normalise in the config"
        )
    _refuse_long(asked, [len(a.prompt) + max(map(len, a.candidates)) for a in asked], shape.row_length)
    prompt = Ragged.of([a.prompt for a in asked], np.int32)
    run = functools.partial(_sweep, lm, compute, shape=shape, label=label)
    if all(len(candidate) == 1 for a in asked for candidate in a.candidates):
        score = _score_tokens(run, prompt, asked)
    else:
        score = _score_texts(run, asked, NORMALISE[normalise])
    if np.isnan(score).any() or np.isposinf(score).any():
        n = int(np.argmax(~np.isfinite(score).all(1)))
        raise ValueError(
            f"the model gives question {asked[n].id!r} scores that are no numbers: its weights are damaged, or it was trained "
            "with too large a rate (lower lr in the config)"
        )
    option_logp = score - np.logaddexp.reduce(score, axis=1, keepdims=True)
    option = option_logp.argmax(1)
    completion = Ragged.of([a.candidates[o] for a, o in zip(asked, option, strict=True)], np.int32)
    chosen_logp = option_logp[np.arange(len(option)), option]
    logp = np.repeat(chosen_logp / completion.length, completion.length)
    rollout = Rollout(prompt, completion, Ragged(logp.astype(np.float32), completion.offset))
    return Choice(rollout, option.astype(np.int32), option_logp.astype(np.float32))


def _refuse_long(asked: Sequence[Asked], length: list[int], allowed: int) -> None:
    if max(length, default=0) > allowed:
        n = int(np.argmax(length))
        raise ValueError(
            f"question {asked[n].id!r} has {length[n]} tokens, allowed are {allowed}: raise shape.row_length of this model in "
            "the config, or shorten the prompt (fewer shots)"
        )


@functools.partial(jax.jit, static_argnames="model")
def candidate_logits(params, batch: Batch, *, model: Decoder) -> jax.Array:
    """f32[B, G, O]: the logits of each segment's candidate tokens at its last token."""
    out = model.apply({"params": params}, batch.token, batch.segment, batch.position, probe=batch.probe)
    logits = decoder.logits(model, params, out.probe[0].astype(model.dtype))
    return jnp.take_along_axis(logits, batch.extra["candidate"], axis=-1)


@functools.partial(jax.jit, static_argnames="model")
def continuation_logp(params, batch: Batch, *, model: Decoder) -> jax.Array:
    """f32[B, L]: each candidate token's log-probability, nats; 0 in the prompts."""
    hidden = model.apply({"params": params}, batch.token, batch.segment, batch.position).hidden
    return token_logp(model, params, hidden, batch.token, batch.segment, wanted=batch.weight > 0)[0]


def _sweep(lm, compute: Compute, program, token: Ragged, *, shape, label, **segments) -> list[np.ndarray]:
    """A program's result for each row, in the rows' order."""
    found: list[np.ndarray] = [np.empty(0)] * len(token)

    model = compute.model(lm.config)

    def placed(batch: Batch) -> jax.Array:
        return program(lm.params, compute.place_rows(batch), model=model)

    with Progress(label, len(token.flat), unit="tok") as progress:
        for rows, values, tokens in packing.sweep(placed, token, shape, **segments):
            for row, value in zip(rows, values, strict=True):
                found[row] = value
            progress.add(tokens)
    return found


def _score_tokens(run, prompt: Ragged, asked: Sequence[Asked]) -> np.ndarray:
    """f64[N, O], -inf where a question has fewer than O candidates."""
    num_options = np.array([len(a.candidates) for a in asked])
    O = max(4, 1 << int(num_options.max() - 1).bit_length())  # few shapes: 4, 8, 16, ... options
    candidate = np.array([[option for (option,) in a.candidates] + [0] * (O - len(a.candidates)) for a in asked], np.int32)
    logits = np.stack(run(candidate_logits, prompt, probe=prompt.length - 1, extra={"candidate": candidate})).astype(np.float64)
    return np.where(np.arange(O) < num_options[:, None], logits, -np.inf)[:, : num_options.max()]


def _score_texts(run, asked: Sequence[Asked], normalise) -> np.ndarray:
    """f64[N, O], -inf where a question has fewer than O candidates."""
    place = [(n, o) for n, a in enumerate(asked) for o in range(len(a.candidates))]
    texts = [(asked[n].prompt, asked[n].candidates[o]) for n, o in place]
    token = Ragged.of([[*prompt, *candidate] for prompt, candidate in texts], np.int32)
    weight = Ragged.of([[0.0] * len(prompt) + [1.0] * len(candidate) for prompt, candidate in texts], np.float32)
    logp = run(continuation_logp, token, weight=weight)
    score = np.full((len(asked), max(len(a.candidates) for a in asked)), -np.inf)
    for (n, o), row in zip(place, logp, strict=True):
        num_tokens = len(asked[n].candidates[o])
        score[n, o] = normalise(row[-num_tokens:].astype(np.float64).sum(), num_tokens, asked[n].num_bytes[o])
    return score
