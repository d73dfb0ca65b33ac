"""How likely a model finds the tokens of its rows, without the logits of all of them ever being in memory.

A row's wanted positions (the answer's, not the prompt's) are moved to its front and turned into logits `chunk` columns at a
time; chunks in which no row wants anything are not computed, forward or backward. The backward pass is written out: it makes
a chunk's logits again from the stored normaliser and adds up the output map's gradient as it goes.

Source: chunked cross-entropy as in Wijmans et al., arXiv 2411.09009 (their filtering of small gradients is left out: ours are
exact).
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from w2s_jax.models.decoder import Decoder, logits

VERSION = "1"


def token_logp(
    model: Decoder,
    params: Any,
    hidden: jax.Array,
    token: jax.Array,
    segment: jax.Array,
    *,
    wanted: jax.Array | None = None,
    temperature: float = 1.0,
    entropy: bool = False,
    chunk: int = 128,
) -> tuple[jax.Array, jax.Array | None]:
    """Computes the log-probability of each token given those before it in its segment.

    Differentiable once in `params` and `hidden`.

    Args:
        model: the decoder.
        params: stacked or unstacked.
        hidden: [B, L, D] after the final norm.
        token, segment: i32[B, L].
        wanted: bool[B, L], the tokens whose probability matters; None = all.
        temperature: divides the logits; above 0.
        entropy: whether to return the entropy of each token's distribution too.
        chunk: columns that are turned into logits at once, for all B rows.

    Returns:
        logp f32[B, L] in nats, 0 at the first token of a segment, at padding and where nothing is wanted; and entropy
        f32[B, L] in nats of the distribution that the token was predicted from, 0 at the same places, or None where it was not
        asked for.
    """
    B, L = token.shape
    if L < 2:
        nothing = jnp.zeros((B, L), jnp.float32)
        return nothing, nothing if entropy else None
    # Column t of a row predicts token t + 1.
    follows = (segment[:, 1:] == segment[:, :-1]) & (segment[:, 1:] > 0)
    if wanted is not None:
        follows &= wanted[:, 1:]
    chunk = min(chunk, L - 1)
    place = jnp.argsort(~follows, axis=1, stable=True)
    # The last column predicts nothing: it fills up the last chunk.
    place = jnp.pad(place, ((0, 0), (0, -(L - 1) % chunk)), constant_values=L - 1)
    num_chunks = -(-jnp.max(jnp.sum(follows, axis=1)) // chunk)
    target = jnp.take_along_axis(jnp.roll(token, -1, axis=1), place, axis=1)
    output = {name: params[name] for name in ("embed", "head") if name in params}
    columns = _front(model, temperature, chunk, entropy, output, hidden, target, place, num_chunks)

    def put_back(column: jax.Array) -> jax.Array:
        whole = jnp.zeros((B, L), jnp.float32).at[jnp.arange(B)[:, None], place].set(column)
        return jnp.pad(jnp.where(follows, whole[:, :-1], 0.0), ((0, 0), (1, 0)))

    return put_back(columns[0]), put_back(columns[1]) if entropy else None


def option_logp(logp: jax.Array, segment: jax.Array, scale: jax.Array) -> jax.Array:
    """Adds up the tokens of each option and normalises over the options of each question; differentiable in `logp`.

    Args:
        logp: f32[B, L] from `token_logp`, nats.
        segment: i32[B, L]; a device row holds G questions one after another, and each takes a number for its stem and one for
            each of its options, in order (`packing.lay_out` with branches).
        scale: f32[B, G, O], what an option's sum is multiplied by; 0 = the question has no such option, or the row no such
            question.

    Returns:
        f32[B * G, O], nats, normalised over each question's options; 0 where there is none.
    """
    (B, L), O = logp.shape, scale.shape[-1]
    real = scale > 0
    num_taken = real.sum(axis=-1) + real.any(axis=-1)
    stem = jnp.cumsum(num_taken, axis=1) - num_taken + 1
    option = jnp.minimum(stem[..., None] + 1 + jnp.arange(O), L)
    total = jax.vmap(lambda part, number: jax.ops.segment_sum(part, number, num_segments=L + 1))(logp, segment)
    score = jnp.take_along_axis(total, option.reshape(B, -1), axis=1).reshape(option.shape) * scale
    found = jax.nn.log_softmax(jnp.where(real, score, -1e30), axis=-1)
    return jnp.where(real, found, 0.0).reshape(-1, O)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3))
def _front(model, temperature, chunk, entropy, output, hidden, target, place, num_chunks):
    """(logp, entropy or zeros), each f32[B, columns], of the targets at `place`; 0 beyond `num_chunks` chunks."""
    return _forward(model, temperature, chunk, entropy, output, hidden, target, place, num_chunks)[0]


def _forward(model, temperature, chunk, entropy, output, hidden, target, place, num_chunks):
    def step(c, found):
        logit = _logits(model, temperature, output, _gather(hidden, _columns(place, c, chunk)))
        total = jax.nn.logsumexp(logit, axis=-1)
        logp = jnp.take_along_axis(logit, _columns(target, c, chunk)[..., None], axis=-1)[..., 0] - total
        spread = total - jnp.sum(jnp.exp(logit - total[..., None]) * logit, axis=-1) if entropy else jnp.zeros_like(logp)
        return tuple(
            jax.lax.dynamic_update_slice_in_dim(column, new, c * chunk, axis=1)
            for column, new in zip(found, (logp, spread, total), strict=True)
        )

    nothing = jnp.zeros(place.shape, jnp.float32)
    logp, spread, total = jax.lax.fori_loop(0, num_chunks, step, (nothing, nothing, nothing))
    return (logp, spread), (output, hidden, target, place, num_chunks, spread, total)


def _backward(model, temperature, chunk, entropy, kept, gradient):
    output, hidden, target, place, num_chunks, spread, total = kept

    def step(c, carry):
        output_gradient, hidden_gradient = carry
        here = _columns(place, c, chunk)
        logit, pull = jax.vjp(functools.partial(_logits, model, temperature), output, _gather(hidden, here))
        logp = logit - _columns(total, c, chunk)[..., None]
        share = jnp.exp(logp)
        chosen = jnp.arange(logit.shape[-1]) == _columns(target, c, chunk)[..., None]
        down = _columns(gradient[0], c, chunk)[..., None] * (chosen - share)
        if entropy:
            down -= _columns(gradient[1], c, chunk)[..., None] * share * (logp + _columns(spread, c, chunk)[..., None])
        to_output, to_state = pull(down)
        rows = jnp.arange(len(here))[:, None]
        return (
            jax.tree.map(lambda total, new: total + new.astype(total.dtype), output_gradient, to_output),
            hidden_gradient.at[rows, here].add(to_state, mode="promise_in_bounds"),
        )

    start = (jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), output), jnp.zeros_like(hidden))
    to_output, to_hidden = jax.lax.fori_loop(0, num_chunks, step, start)
    return jax.tree.map(lambda new, x: new.astype(x.dtype), to_output, output), to_hidden, None, None, None


_front.defvjp(_forward, _backward)


def _logits(model: Decoder, temperature: float, output: Any, state: jax.Array) -> jax.Array:
    return logits(model, output, state) / temperature


def _columns(x: jax.Array, c: jax.Array, chunk: int) -> jax.Array:
    """Chunk c of the columns of x [B, columns]."""
    return jax.lax.dynamic_slice_in_dim(x, c * chunk, chunk, axis=1)


def _gather(hidden: jax.Array, place: jax.Array) -> jax.Array:
    return jnp.take_along_axis(hidden, place[..., None], axis=1)
