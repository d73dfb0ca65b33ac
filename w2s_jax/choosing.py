"""A language model answers (stage answer): it chooses among options, or writes freely.

`choose` scores each question's candidate continuations in one packed pass: where every candidate is a single token, the
prompt alone is run and the candidates' logits are read at its last token; otherwise each prompt + candidate is a segment and
the candidate's tokens are scored. `generate` writes token by token over a key-value cache.

Source: option scoring and its normalisations, Gu et al. (OLMES), arXiv 2406.08446; nucleus-free temperature sampling.
Deviations: 1. a row's sample depends on (key, question id, sample number) alone, never on the batch it was in.
"""

import dataclasses
import functools
import zlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from w2s_jax import packing, processes
from w2s_jax.models import decoder
from w2s_jax.models.compute import Compute
from w2s_jax.models.config import DecoderConfig
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


def generate(
    lm: LM,
    asked: Sequence[Asked],
    *,
    num_samples: int,
    temperature: float,
    max_new_tokens: int,
    batch_rows: int,
    row_length: int,
    compute: Compute,
    key: jax.Array,
    label: str = "answer",
) -> Rollout:
    """Writes S answers to each prompt, token by token.

    Args:
        lm: the model that answers.
        asked: N questions as the model reads them; id, key and the sample's number settle each row's randomness.
        num_samples: S.
        temperature: divides the logits; 0 = greedy.
        max_new_tokens: an answer that reaches it without a stop token is cut.
        batch_rows: sequences decoded together.
        row_length: longest prompt and answer together that later passes can take, in tokens.
        compute: how the model computes.
        key: consumed.
        label: what the progress bar says.

    Returns:
        R = N * S rows; a completion holds its stop token, if it reached one; logp under the tempered distribution.

    Raises:
        ValueError: a prompt is too long, the temperature is negative, or the model has no stop token.
    """
    if temperature < 0:
        raise ValueError(
            f"temperature={temperature}: allowed are 0 (greedy) and above; change teacher.temperature in the config"
        )
    if not lm.tokenizer.stop_ids:
        raise ValueError(
            "the model names no stop token (eos_token_id in generation_config.json or config.json): answers would never end; "
            "add it there"
        )
    _refuse_long(asked, [len(a.prompt) for a in asked], longest_prompt(lm.config, row_length, max_new_tokens))
    one = Ragged.of([a.prompt for a in asked], np.int32)
    row_of = np.repeat(np.arange(len(one)), num_samples)
    words = np.array([(zlib.crc32(asked[n].id.encode()), r % num_samples) for r, n in enumerate(row_of)], np.uint32)
    model = compute.model(lm.config)
    params = decoder.unstack(lm.config, lm.params, model.dtype)
    stop = np.array(sorted(lm.tokenizer.stop_ids), np.int32)
    completions: list[np.ndarray] = [np.empty(0)] * len(row_of)
    logps: list[np.ndarray] = [np.empty(0)] * len(row_of)
    order = np.argsort(one.length[row_of], kind="stable")  # rows of like length share a batch, and a bucket
    with Progress(label, len(order), unit="row") as progress:
        for start in range(0, len(order), batch_rows):
            rows = order[start : start + batch_rows]
            num_slots = bucket(int(one.length[row_of[rows]].max()))
            token = np.zeros((batch_rows, num_slots), np.int32)
            length = np.ones(batch_rows, np.int32)
            word = np.zeros((batch_rows, 2), np.uint32)
            for b, r in enumerate(rows):
                length[b] = len(one[row_of[r]])
                token[b, : length[b]] = one[row_of[r]]
                word[b] = words[r]
            placed = compute.place_rows((token, length, word))
            written, logp, count = decode(
                params, *placed, np.float32(temperature), stop, key, model=model, max_new_tokens=max_new_tokens
            )
            written, logp, count = map(processes.fetch, (written, logp, count))
            for b, r in enumerate(rows):
                completions[r], logps[r] = written[b, : count[b]], logp[b, : count[b]]
            progress.add(len(rows))
    prompt = Ragged.of([one[n] for n in row_of], np.int32)
    return Rollout(prompt, Ragged.of(completions, np.int32), Ragged.of(logps, np.float32))


def longest_prompt(config: DecoderConfig, row_length: int, max_new_tokens: int) -> int:
    """Tokens of the longest prompt that leaves room for its answer.

    Raises:
        ValueError: no prompt does.
    """
    allowed = min(row_length, config.max_position) - max_new_tokens - 1
    if allowed < 1:
        raise ValueError(
            f"max_new_tokens={max_new_tokens} leaves no room for a prompt in rows of {row_length} tokens and a context of "
            f"{config.max_position}: raise this model's shape.row_length, or lower its max_new_tokens in the config"
        )
    return allowed


def bucket(length: int) -> int:
    """Slots for prompts up to a length: powers of two, so that there are few shapes."""
    return max(16, 1 << (length - 1).bit_length())


@functools.partial(jax.jit, static_argnames=("model", "max_new_tokens"))
def decode(params, token, length, word, temperature, stop, key, *, model: Decoder, max_new_tokens: int):
    """Prefills one batch and decodes it until every row has stopped.

    Returns:
        i32[B, T] tokens, f32[B, T] log-probabilities, i32[B] how many of them count.
    """
    B, num_slots = token.shape
    keys = jax.vmap(lambda w: jax.random.fold_in(jax.random.fold_in(key, w[0]), w[1]))(word)
    cache = decoder.init_cache(model.config, B, num_slots + max_new_tokens, model.dtype)
    place = jnp.broadcast_to(jnp.arange(num_slots), (B, num_slots))
    hidden, cache = decoder.extend(model, params, None, cache, token, place, place < length[:, None])
    last = jnp.take_along_axis(hidden, length[:, None, None] - 1, axis=1)[:, 0]

    def draw(hidden, t):
        logits = decoder.logits(model, params, hidden)
        tempered = jax.nn.log_softmax(logits / jnp.where(temperature > 0, temperature, 1.0))
        noise = jax.vmap(lambda k: jax.random.gumbel(jax.random.fold_in(k, t), logits.shape[1:]))(keys)
        chosen = jnp.argmax(tempered + jnp.where(temperature > 0, noise, 0.0), axis=-1)
        return chosen, jnp.take_along_axis(tempered, chosen[:, None], axis=-1)[:, 0]

    def step(carry):
        t, hidden, cache, going, written, logps, count = carry
        chosen, logp = draw(hidden, t)
        written = written.at[:, t].set(jnp.where(going, chosen, 0))
        logps = logps.at[:, t].set(jnp.where(going, logp, 0.0))
        count = count + going
        going = going & ~jnp.isin(chosen, stop)
        new, cache = decoder.extend(model, params, None, cache, chosen[:, None], (length + t)[:, None], going[:, None])
        return t + 1, new[:, 0], cache, going, written, logps, count

    start = (
        0, last, cache, jnp.ones(B, bool),
        jnp.zeros((B, max_new_tokens), jnp.int32), jnp.zeros((B, max_new_tokens)), jnp.zeros(B, jnp.int32),
    )  # fmt: skip
    *_, written, logps, count = jax.lax.while_loop(lambda c: (c[0] < max_new_tokens) & c[3].any(), step, start)
    return written, logps, count
