"""The heads of the neural trust function: flax modules from hidden states f32[R, P, D] to logits f32[R].

    mlp      probe points end to end -> Linear(P * D, W) -> residual blocks -> RMSNorm -> Linear
    linear   probe points end to end -> Linear: logistic regression
    layers   each probe point -> a Linear of its own to W, then a mean over the points with learnt weights (softmax of a score
             that the point's state decides) -> residual blocks as in mlp

A residual block is  h + DropPath(Dropout(SwiGLU(RMSNorm(h)))). All take rates that may be traced, and a key; without a key
nothing is dropped.

Source: arXiv 2606.01000 (mlp). Deviations: 1. `linear` and `layers` are ours, for comparison. 2. DropPath drops a row's whole
residual branch; its rate grows linearly over the blocks from 0.
"""

from collections.abc import Callable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

VERSION = "1"


class Mlp(nn.Module):
    """The residual MLP.

    Attributes:
        width: W, size of the residual stream.
        blocks: number of residual blocks.
        expansion: inner size of SwiGLU over W.
    """

    width: int
    blocks: int
    expansion: int
    least_points = 1

    @nn.compact
    def __call__(self, x, dropout=0.0, drop_path=0.0, key=None):
        h = nn.Dense(self.width, name="input")(x.reshape(len(x), -1))
        return _residual(self, h, dropout, drop_path, key)


class Linear(nn.Module):
    """Logistic regression; `dropout` drops its inputs, there is no path to drop."""

    least_points = 1

    @nn.compact
    def __call__(self, x, dropout=0.0, drop_path=0.0, key=None):
        x = x.reshape(len(x), -1)
        if key is not None:
            x = _drop(x, dropout, key, x.shape)
        return nn.Dense(1, name="output")(x)[:, 0]


class Layers(nn.Module):
    """Attention over the probe points, then the residual MLP; attributes as `Mlp` has them."""

    width: int
    blocks: int
    expansion: int
    least_points = 2

    @nn.compact
    def __call__(self, x, dropout=0.0, drop_path=0.0, key=None):
        # Layers have bases of their own, so each point has a map of its own into the common width.
        start = nn.initializers.lecun_normal(batch_axis=0)
        kernel = self.param("input", start, (x.shape[1], x.shape[2], self.width))
        h = jnp.einsum("rpd,pdw->rpw", x, kernel) + self.param("bias", nn.initializers.zeros, (x.shape[1], self.width))
        asked = nn.Dense(1, use_bias=False, name="query")(nn.RMSNorm(name="point_norm")(h))
        h = (jax.nn.softmax(asked, axis=1) * h).sum(1)
        return _residual(self, h, dropout, drop_path, key)


def _residual(head: Mlp | Layers, h, dropout, drop_path, key):
    """From the stream f32[R, W] to the logits f32[R]; called within a head's `__call__`, whose parameters these are."""
    inside = head.expansion * head.width
    for b in range(head.blocks):
        inner = nn.RMSNorm(name=f"norm{b}")(h)
        gate = nn.silu(nn.Dense(inside, use_bias=False, name=f"gate{b}")(inner))
        inner = gate * nn.Dense(inside, use_bias=False, name=f"up{b}")(inner)
        inner = nn.Dense(head.width, use_bias=False, name=f"down{b}")(inner)
        if key is not None:
            key_unit, key_path = jax.random.split(jax.random.fold_in(key, b))
            inner = _drop(inner, dropout, key_unit, inner.shape)
            inner = _drop(inner, drop_path * b / max(head.blocks - 1, 1), key_path, (len(inner), 1))
        h = h + inner
    return nn.Dense(1, name="output")(nn.RMSNorm(name="norm")(h))[:, 0]


def _drop(x, rate, key, shape):
    """Inverted dropout with a traced rate; `shape` says what is dropped together."""
    kept = jax.random.bernoulli(key, 1.0 - rate, shape)
    return jnp.where(kept, x / (1.0 - rate), 0.0)


HEADS: Mapping[str, Callable[..., nn.Module]] = {
    "mlp": Mlp,
    "linear": lambda width, blocks, expansion: Linear(),
    "layers": Layers,
}
"""Config word -> (width, blocks, expansion) -> head."""
