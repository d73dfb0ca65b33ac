"""What a decoder block is made of. `Block` is the one block, in training, feature extraction, prefill and decode alike.

Parameters keep their own dtype (float32 masters, say) and are cast to `dtype` where they are used.
"""

import functools
from collections.abc import Callable, Mapping

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from w2s_jax.models import attention, quantised
from w2s_jax.models.config import DecoderConfig
from w2s_jax.models.rope import rotate

VERSION = "4"

ACTIVATIONS: Mapping[str, Callable[[jax.Array], jax.Array]] = {
    "silu": nn.silu,
    "gelu_tanh": functools.partial(nn.gelu, approximate=True),
}
NORMS_BEFORE, NORMS_AFTER = ("pre", "sandwich"), ("post", "sandwich")


@flax.struct.dataclass
class View:
    """What all blocks of one kind share in a call.

    Attributes:
        cos, sin: f32[B, T, C // 2], the rotation of each new token.
        sight: what it may see.
        slot: i32[B, T] or None: where new keys and values go in the cache; S = nowhere.
    """

    cos: jax.Array
    sin: jax.Array
    sight: attention.Sight
    slot: jax.Array | None = None


class RMSNorm(nn.Module):
    """Divides by the root mean square over the last axis and scales, all in float32 at least. Source: arXiv 1910.07467.

    Deviations: 1. some families round before they scale; rounding once, at the end, is for all of them.

    Attributes:
        eps: added to the mean square.
        offset: added to the stored scale, which starts at 1 - offset.
    """

    eps: float
    offset: float = 0.0

    @classmethod
    def of(cls, config: DecoderConfig, **kw) -> "RMSNorm":
        """The norm as this decoder has it."""
        return cls(config.norm_eps, config.norm_offset, **kw)

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.constant(1.0 - self.offset), (x.shape[-1],), jnp.float32)

        def norm(x: jax.Array, scale: jax.Array) -> jax.Array:
            wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
            wide *= jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + self.eps)
            return (wide * (self.offset + scale.astype(wide.dtype))).astype(x.dtype)

        return jax.checkpoint(norm, prevent_cse=False)(x, scale)  # only x is kept for the backward pass


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
            y += low_rank(x, a, b, self.lora_scale)
        return y


@functools.partial(jax.checkpoint, prevent_cse=False, static_argnums=3)
def low_rank(x: jax.Array, a: jax.Array, b: jax.Array, scale: float) -> jax.Array:
    """Maps x [..., in] by `scale * (x @ a @ b)`, with a [in, r] and b [r, out].

    Rows are laid end to end, and the factor is applied to the r numbers in between: so the gradients of `a` and `b` are plain
    products, for which the compiler need not turn anything as wide as `x` or the result. Nothing but the arguments is kept for
    the backward pass, so that maps of one `x` keep it once.
    """
    flat = x.reshape(-1, x.shape[-1])
    return (((flat @ a) * scale) @ b).reshape(*x.shape[:-1], -1)


class Attention(nn.Module):
    """Rotary grouped-query attention, with or without a cache of earlier keys and values."""

    config: DecoderConfig
    dtype: jnp.dtype
    attend: Callable[..., jax.Array]
    lora_scale: float

    @nn.compact
    def __call__(self, x, view: View, cache):
        config = self.config

        def project(name: str, num_heads: int) -> jax.Array:
            width = num_heads * config.head_dim
            return Dense(width, config.qkv_bias, config.init_std, self.dtype, self.lora_scale, name=name)(x)

        def heads(y: jax.Array) -> jax.Array:
            return y.reshape(*y.shape[:2], -1, config.head_dim)

        def normed_heads(name: str, y: jax.Array) -> jax.Array:
            if not config.qk_norm:
                return heads(y)
            norm = RMSNorm.of(config, name=f"{name}_norm")
            return heads(norm(y)) if config.qk_norm_joint else norm(heads(y))

        q, k = (normed_heads(name, project(name, n)) for name, n in (("q", config.num_heads), ("k", config.num_kv_heads)))
        v = heads(project("v", config.num_kv_heads))
        q, k = rotate(q, view.cos, view.sin), rotate(k, view.cos, view.sin)
        if cache is None:
            out, cache = self.attend(q, k, v, view.sight, config.score_scale), (k, v)
        else:
            row = jnp.arange(x.shape[0])[:, None]
            # Padding goes to slot S, which does not exist: the write is dropped.
            keys, values = cache
            keys = keys.at[row, :, :, view.slot].set(k.astype(keys.dtype), mode="drop", unique_indices=True)
            values = values.at[row, :, view.slot].set(v.astype(values.dtype), mode="drop", unique_indices=True)
            out, cache = attention.over_cache(q, keys, values, view.sight, config.score_scale), (keys, values)
        out = out.reshape(*x.shape[:2], -1)
        return Dense(config.width, config.out_bias, config.init_std, self.dtype, self.lora_scale, name="o")(out), cache


class MLP(nn.Module):
    """The gated MLP down(activation(gate(x)) * up(x)). Source: arXiv 2002.05202, SwiGLU and GEGLU."""

    config: DecoderConfig
    dtype: jnp.dtype
    lora_scale: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        def dense(name: str, width: int) -> Dense:
            return Dense(width, self.config.mlp_bias, self.config.init_std, self.dtype, self.lora_scale, name=name)

        def gated_down(self, gate: jax.Array, up: jax.Array) -> jax.Array:
            return dense("down", self.config.width)(ACTIVATIONS[self.config.activation](gate) * up)

        inner = self.config.mlp_width
        # Kept for the backward pass are the two factors alone: making their product again costs less than writing it down.
        return nn.remat(gated_down, prevent_cse=False)(self, dense("gate", inner)(x), dense("up", inner)(x))


class Block(nn.Module):
    """One decoder block: attention, then the MLP, each added to its input, with norms before or after as the config says.

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
        """Maps x [B,T,D], and the layer's cache (keys [B,J,C,S], values [B,J,S,C]), to the same two.

        Without a cache the second is what one would hold of these tokens: keys and values, each [B,T,J,C].
        """

        def norm(name: str, places: tuple[str, ...], x: jax.Array) -> jax.Array:
            return RMSNorm.of(self.config, name=name)(x) if self.config.norm_place in places else x

        attend = Attention(self.config, self.dtype, self.attend, self.lora_scale, name="attn")
        y, cache = attend(norm("attn_norm", NORMS_BEFORE, x), view, cache)
        x = x + norm("attn_out_norm", NORMS_AFTER, y)
        y = MLP(self.config, self.dtype, self.lora_scale, name="mlp")(norm("mlp_norm", NORMS_BEFORE, x))
        return x + norm("mlp_out_norm", NORMS_AFTER, y), cache
