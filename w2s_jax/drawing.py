"""How the next token is drawn from a model's logits: tempered, cut to a support, and by whose randomness.

Order of the cuts, and their meaning, as in transformers: temperature, then the `top_k` most probable tokens, then the smallest
set of these with at least `top_p` of the probability, then those with at least `min_p` times the largest probability. Tokens as
probable as the last one kept are kept too.

Source: top-p, arXiv 1904.09751; min-p, arXiv 2407.01082; drawing by Gumbel noise, arXiv 1611.01144.
Deviations: 1. nothing is sorted: thresholds are found by bisection over the floats themselves, which is exact.
"""

import dataclasses

import jax
import jax.numpy as jnp

VERSION = "1"


@dataclasses.dataclass(frozen=True)
class Drawing:
    """The distribution that tokens are drawn from; hashable, so that it can be a static argument.

    Attributes:
        temperature: divides the logits; 0 = always the most probable token.
        top_k: how many tokens are kept, 0 = all.
        top_p: how much probability is kept, 1 = all.
        min_p: tokens below this share of the largest probability are left out, 0 = none.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    def __post_init__(self):
        for name, allowed, fine in (
            ("temperature", "0 (greedy) and above", self.temperature >= 0),
            ("top_k", "0 (all) and above", self.top_k >= 0 and self.top_k == int(self.top_k)),
            ("top_p", "above 0, up to 1 (all)", 0 < self.top_p <= 1),
            ("min_p", "from 0 (all) to 1", 0 <= self.min_p <= 1),
        ):
            if not fine:
                raise ValueError(f"{name}={getattr(self, name)}: allowed are {allowed}; change {name} in the config")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0


def restricted(logits: jax.Array, drawing: Drawing) -> jax.Array:
    """Log-probabilities under a drawing that is not greedy, -inf outside its support.

    Args:
        logits: f32[..., V].
        drawing: static.

    >>> p = jnp.log(jnp.array([0.5, 0.25, 0.15, 0.1]))
    >>> jnp.isfinite(restricted(p, Drawing(top_p=0.7))).tolist()
    [True, True, False, False]
    """
    logp = jax.nn.log_softmax(logits / drawing.temperature)
    if 0 < drawing.top_k < logits.shape[-1]:
        logp = _keep(logp, lambda kept: jnp.sum(kept, axis=-1) >= drawing.top_k)
    if drawing.top_p < 1:
        share = jnp.exp(logp)
        logp = _keep(logp, lambda kept: jnp.sum(jnp.where(kept, share, 0.0), axis=-1) >= drawing.top_p)
    if drawing.min_p > 0:
        logp = _renormalised(logp, logp >= jnp.max(logp, axis=-1, keepdims=True) + jnp.log(drawing.min_p))
    return logp


def draw(logp: jax.Array, key: jax.Array) -> jax.Array:
    """One token for each row.

    Args:
        logp: f32[B, V].
        key: keys [B]; a row's token depends on its own alone.
    """
    noise = jax.vmap(lambda k: jax.random.gumbel(k, logp.shape[-1:], jnp.float32))(key)
    return jnp.argmax(logp + noise, axis=-1)


def _keep(logp: jax.Array, enough) -> jax.Array:
    """Keeps the most probable tokens: as few as are enough.

    Args:
        logp: f32[..., V].
        enough: whether a kept set, bool[..., V], is enough: bool[...]; a larger set is too.
    """
    order = _order(logp)
    low = jnp.zeros(logp.shape[:-1], jnp.uint32)  # keeps everything
    high = jnp.max(order, axis=-1)

    def halve(_, bounds):
        low, high = bounds
        middle = low + (high - low + 1) // 2
        fine = enough(order >= middle[..., None])
        return jnp.where(fine, middle, low), jnp.where(fine, high, middle - 1)

    low, _ = jax.lax.fori_loop(0, 32, halve, (low, high))
    return _renormalised(logp, order >= low[..., None])


def _order(x: jax.Array) -> jax.Array:
    """u32 that stand in the same order as f32."""
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    return jnp.where(bits >> 31, ~bits, bits | jnp.uint32(1 << 31))


def _renormalised(logp: jax.Array, kept: jax.Array) -> jax.Array:
    return jax.nn.log_softmax(jnp.where(kept, logp, -jnp.inf))
