"""Learning from soft labels and, more and more, from one's own prediction: the auxiliary confidence loss.

    c        = beta min(1, share of the training that is done / warm)          beta at once where warm is 0
    target_k = (1 - c) y_k + c onehot(hardened p_k)                            without gradient

For a question with two options the prediction is hardened at a balanced threshold, so that the student cannot come to say one
option throughout: among the batch's questions of this kind the first option is taken where

    p_k0 >= the quantile of p_0 at the mean of y_1

with the trust weights as weights of quantile and mean; so the second one is taken as often as the labels expect. The quantile
between two questions is interpolated. For more options, the most probable one is taken. (y, p, w: `student.options`.)

Source: arXiv 2312.09390, appendix A.4.
Deviations: 1. the paper has two classes: taking the argmax of more is ours. 2. a lone two-option question is hardened at 1/2,
as the quantile of one number is that number. 3. c is a share of the training's steps and goes up without a jump. 4. the batch
of the threshold is a micro-batch, on a mesh all of its rows. 5. options of a question in place of the classes of a head.
"""

import dataclasses

import jax
import jax.numpy as jnp

from w2s_jax.student import options

VERSION = "1"


@dataclasses.dataclass(frozen=True, kw_only=True)
class AuxiliaryConfidence(options.Options):
    """See the module.

    Attributes:
        beta: the share of the student's own prediction in what it learns, once warmed up.
        warm: share of the training in which it gets there.
    """

    beta: float
    warm: float
    needs: frozenset[str] = frozenset({"option_logp", "progress"})

    def __post_init__(self):
        super().__post_init__()
        for name in ("beta", "warm"):
            self.refuse(not 0 <= getattr(self, name) <= 1, name, getattr(self, name), "a number from 0 to 1")

    def loss(self, out, own, batch):
        asked = options.read(out, batch)
        c = coefficient(batch.extra["progress"][0], self.beta, self.warm)
        target = (1 - c) * asked.target + c * hardened(asked.p, asked.target, asked.weight, asked.real)
        total, denominator, metrics = options.cross_entropy(asked, target)
        return total, denominator, metrics | {"own_share": c * denominator}


def coefficient(progress: jax.Array, beta: float, warm: float) -> jax.Array:
    """The share of the own prediction when so much of the training is done.

    >>> [round(float(coefficient(jnp.float32(done), 0.5, 0.1)), 3) for done in (0.0, 0.05, 0.1, 0.9)]
    [0.0, 0.25, 0.5, 0.5]
    """
    return beta * jnp.minimum(1.0, progress / warm) if warm else jnp.full_like(progress, beta)


def hardened(p: jax.Array, label: jax.Array, weight: jax.Array, real: jax.Array) -> jax.Array:
    """Predictions f32[K, O] as one of their options each: see the module.

    Args:
        p: f32[K, O], predictions.
        label: f32[K, O], soft labels.
        weight: f32[K], 0 at places that count for nothing.
        real: bool[K, O], where there are options.
    """
    pair = real.sum(axis=-1) == 2
    counted = jnp.where(pair, weight, 0.0)
    expected = (counted * label[:, 1]).sum() / jnp.maximum(counted.sum(), 1e-8)
    lone = (counted > 0).sum() < 2
    threshold = jnp.where(lone, 0.5, quantile(p[:, 0], counted, expected))
    first = p[:, 0] >= threshold
    balanced = jnp.zeros_like(p).at[:, 0].set(first).at[:, 1].set(~first)
    return jnp.where(pair[:, None], balanced, options.one_hot(p))


def quantile(x: jax.Array, weight: jax.Array, share: jax.Array) -> jax.Array:
    """The weighted quantile of x f32[K], interpolated; that of `jnp.quantile` where all weights above 0 are equal.

    >>> float(quantile(jnp.array([3.0, 1.0, 9.0, 2.0]), jnp.array([1.0, 1.0, 0.0, 1.0]), jnp.float32(0.25)))
    1.5
    """
    counted = weight > 0
    order = jnp.argsort(jnp.where(counted, x, jnp.inf))
    x, weight, last = x[order], weight[order], jnp.maximum(counted.sum() - 1, 0)
    middle = jnp.cumsum(weight) - weight / 2
    place = (middle - middle[0]) / jnp.maximum(middle[last] - middle[0], 1e-8)
    # What does not count stands behind all others and is never reached.
    behind = jnp.arange(len(x)) > last
    return jnp.interp(share, jnp.where(behind, 2.0, place), jnp.where(behind, x[last], x))


def make(*, beta: float = 0.5, warm: float = 0.1, normalise: str = "token") -> AuxiliaryConfidence:
    """The objective.

    Raises:
        ValueError: a number is not between 0 and 1, or an unknown `normalise`.
    """
    return AuxiliaryConfidence(beta=beta, warm=warm, normalise=normalise)
