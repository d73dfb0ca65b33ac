"""What a decoder block is made of. `Block` is the one block, in training, feature extraction, prefill and decode alike.

Parameters keep their own dtype (float32 masters, say) and are cast to `dtype` where they are used.
"""

from collections.abc import Callable

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from w2s_jax.models import attention, quantised
from w2s_jax.models.config import DecoderConfig

VERSION = "1"


@flax.struct.dataclass
class View:
    """What all blocks of one kind share in a call: the rotation of each new token, and what it may see.

    Attributes:
        cos, sin: f32[B, T, C // 2].
        mask: bool[B, T, S]; S = T without a cache.
        slot: i32[B, T] or None: where new keys and values go in the cache; S = nowhere.
    """

    cos: jax.Array
    sin: jax.Array
    mask: jax.Array
    slot: jax.Array | None = None


def rotation(position: jax.Array, head_dim: int, theta: float) -> tuple[jax.Array, jax.Array]:
    """Computes the cosine and sine of the rotary embedding.

    Args:
        position: i32[B, T].

    Returns:
        cos and sin, f32[B, T, C // 2].

    Source: arXiv 2104.09864, eq. 15; the pairing of dimension c with c + C/2 is that of the Hugging Face checkpoints.
    """
    # The frequencies are rounded to float32 once, on the host: an error in them grows with the position.
    frequency = (theta ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)).astype(np.float32)
    angle = position[..., None].astype(jnp.float32) * frequency
    return jnp.cos(angle), jnp.sin(angle)


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotates heads [B, T, H, C] by their tokens' angles."""
    low, high = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos[:, :, None], sin[:, :, None]
    return jnp.concatenate([low * cos - high * sin, high * cos + low * sin], axis=-1).astype(x.dtype)


class RMSNorm(nn.Module):
    """Divides by the root mean square over the last axis and scales; statistics in float32. Source: arXiv 1910.07467."""

    eps: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), jnp.float32)
        wide = x.astype(jnp.float32)
        wide *= jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + self.eps)
        return wide.astype(x.dtype) * scale.astype(x.dtype)


class Dense(nn.Module):
    """A linear map, plus a low-rank one where the collection "lora" holds `a` and `b` for it (arXiv 2106.09685, eq. 3).

    Attributes:
        width: of the output.
        bias: whether to add one.
        init_std: of a fresh kernel.
        dtype: of the computation.
        lora_scale: factor of the low-rank map.
    """

    width: int
    bias: bool
    init_std: float
    dtype: jnp.dtype
    lora_scale: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", nn.initializers.normal(self.init_std), (x.shape[-1], self.width), jnp.float32)
        y = quantised.product(x, kernel, self.dtype)
        if self.bias:
            y += self.param("bias", nn.initializers.zeros, (self.width,), jnp.float32).astype(self.dtype)
        if self.has_variable("lora", "a"):
            a: jax.Array = self.get_variable("lora", "a").astype(self.dtype)
            b: jax.Array = self.get_variable("lora", "b").astype(self.dtype)
            y += (x @ a @ b) * self.lora_scale
        return y


class Attention(nn.Module):
    """Rotary grouped-query attention, with or without a cache of earlier keys and values."""

    config: DecoderConfig
    dtype: jnp.dtype
    attend: Callable[..., jax.Array]
    lora_scale: float

    @nn.compact
    def __call__(self, x, view: View, cache):
        config = self.config

        def heads(name: str, count: int) -> jax.Array:
            dense = Dense(count * config.head_dim, config.qkv_bias, config.init_std, self.dtype, self.lora_scale, name=name)
            return dense(x).reshape(*x.shape[:2], count, config.head_dim)

        q, k, v = heads("q", config.num_heads), heads("k", config.num_kv_heads), heads("v", config.num_kv_heads)
        if config.qk_norm:
            q, k = RMSNorm(config.norm_eps, name="q_norm")(q), RMSNorm(config.norm_eps, name="k_norm")(k)
        q, k = rotate(q, view.cos, view.sin), rotate(k, view.cos, view.sin)
        if cache is not None:
            row = jnp.arange(x.shape[0])[:, None]
            # Padding goes to slot S, which does not exist: the write is dropped.
            cache = tuple(
                old.at[row, view.slot].set(new.astype(old.dtype), mode="drop", unique_indices=True)
                for old, new in zip(cache, (k, v), strict=True)
            )
            k, v = (part.astype(self.dtype) for part in cache)
        out = self.attend(q, k, v, view.mask).reshape(*x.shape[:2], -1)
        return Dense(config.width, config.out_bias, config.init_std, self.dtype, self.lora_scale, name="o")(out), cache


class MLP(nn.Module):
    """The gated MLP down(silu(gate(x)) * up(x)). Source: arXiv 2002.05202, SwiGLU."""

    config: DecoderConfig
    dtype: jnp.dtype
    lora_scale: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        def dense(name: str, width: int) -> Dense:
            return Dense(width, self.config.mlp_bias, self.config.init_std, self.dtype, self.lora_scale, name=name)

        inner = self.config.mlp_width
        return dense("down", self.config.width)(nn.silu(dense("gate", inner)(x)) * dense("up", inner)(x))


class Block(nn.Module):
    """One pre-norm decoder block.

    Attributes:
        config: the decoder's.
        dtype: of the computation.
        attend: an attention back end.
        lora_scale: factor of the adapters, where there are any.
    """

    config: DecoderConfig
    dtype: jnp.dtype
    attend: Callable[..., jax.Array] = attention.xla
    lora_scale: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array, view: View, cache: tuple[jax.Array, jax.Array] | None = None):
        """Maps x [B,T,D], and the layer's cache (k and v, each [B,S,J,C]) or None, to the same two."""
        eps = self.config.norm_eps
        y, cache = Attention(self.config, self.dtype, self.attend, self.lora_scale, name="attn")(
            RMSNorm(eps, name="attn_norm")(x), view, cache
        )
        x = x + y
        return x + MLP(self.config, self.dtype, self.lora_scale, name="mlp")(RMSNorm(eps, name="mlp_norm")(x)), cache
