"""Attention back ends: who attends to whom is a mask, how it is computed is a function chosen by name.

A back end maps `(q [B,T,H,C], k [B,S,J,C], v [B,S,J,C], mask bool[B,T,S], scale)` to `[B,T,H,C]` in the dtype of `q`; `scale`
multiplies the scores. Query head h reads key-value head h // (H // J), and no back end repeats keys or values in memory. The
softmax is float32.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

VERSION = "2"


def segment_mask(segment: jax.Array, window: int = 0) -> jax.Array:
    """Says which tokens see each other in packed rows: the earlier ones of the same segment, and oneself.

    Padding (segment 0) counts as a segment of its own: nothing real sees it, and no row of the mask is empty, so that no
    back end meets a softmax over nothing.

    Args:
        segment: i32[B, L]; the tokens of a segment stand side by side, in order.
        window: how many tokens are seen at most, oneself included; 0 = no limit.

    Returns:
        bool[B, L, L], [b, t, s] = token t sees token s.

    >>> segment_mask(jnp.array([[1, 1, 2]])).astype(int)[0].tolist()
    [[1, 0, 0], [1, 1, 0], [0, 0, 1]]
    """
    place = jnp.arange(segment.shape[1])
    return (segment[:, :, None] == segment[:, None, :]) & within(place[:, None], place[None, :], window)


def cache_mask(position: jax.Array, num_slots: int, window: int = 0) -> jax.Array:
    """Says which cache slots new tokens see: slot s holds the token at position s, so those up to their own.

    Args:
        position: i32[B, T].
        num_slots: S.
        window: see `segment_mask`.

    Returns:
        bool[B, T, S].
    """
    return within(position[:, :, None], jnp.arange(num_slots), window)


def within(here: jax.Array, there: jax.Array, window: int) -> jax.Array:
    """Says whether place `there` is `here` or before it, and fewer than `window` places away (0 = any number)."""
    near = here >= there
    return near & (here - there < window) if window else near


def xla(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array, scale: float) -> jax.Array:
    """Attends by two einsums; the scores [B,J,H/J,T,S] exist in memory."""
    B, T, H, C = q.shape
    J = k.shape[2]
    grouped = q.reshape(B, T, J, H // J, C)
    score = jnp.einsum("btjgc,bsjc->bjgts", grouped, k, preferred_element_type=jnp.float32) * scale
    score = jnp.where(mask[:, None, None], score, jnp.finfo(score.dtype).min)
    share = jax.nn.softmax(score, axis=-1).astype(v.dtype)
    return jnp.einsum("bjgts,bsjc->btjgc", share, v).reshape(B, T, H, C)


def fused(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array, scale: float) -> jax.Array:
    """Attends by `jax.nn.dot_product_attention`, which picks the kernel."""
    return jax.nn.dot_product_attention(q, k, v, mask=mask[:, None], scale=scale)


BACK_ENDS: Mapping[str, Callable[..., jax.Array]] = {"xla": xla, "jax": fused}


def back_end(name: str) -> Callable[..., jax.Array]:
    """Finds a back end by name.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in BACK_ENDS:
        raise ValueError(f"attention={name!r}; choose one of {sorted(BACK_ENDS)}")
    return BACK_ENDS[name]
