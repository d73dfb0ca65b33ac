"""Learning with as much trust in oneself as one finds the label probable: an adaptive mixture of label and own prediction.

    a_k      = e^CE(p, argmax p) / (e^CE(p, argmax p) + e^CE(p, argmax y)) = p_k[argmax y] / (p_k[argmax y] + max p_k)
    target_k = (1 - a_k) y_k + a_k onehot(argmax p_k)

without gradient through a or the target. As CE(p, j) = -log p_j, a is 1/2 where student and label agree and falls to 0 where
the student finds the label improbable: it then learns from the label alone. (y, p: `student.options`.)

Source: adaptive confidence distillation, arXiv 2402.03749, as in the code that goes with arXiv 2510.21332.
Deviations: 1. options of a question in place of classes; the trust weight is ours.
"""

import dataclasses

import jax.numpy as jnp

from w2s_jax.student import options

VERSION = "1"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adaptive(options.Options):
    """See the module."""

    def loss(self, out, own, batch):
        asked = options.read(out, batch)
        label = (asked.p * options.one_hot(asked.target)).sum(axis=-1)
        largest = asked.p.max(axis=-1)
        # Both are 0 at empty places alone.
        share = label / jnp.where(largest > 0, label + largest, 1.0)
        target = (1 - share)[:, None] * asked.target + share[:, None] * asked.hardened
        total, denominator, metrics = options.cross_entropy(asked, target)
        return total, denominator, metrics | {"own_share": (asked.weight * share).sum()}


def make(*, normalise: str = "token") -> Adaptive:
    """The objective.

    Raises:
        ValueError: an unknown `normalise`.
    """
    return Adaptive(normalise=normalise)
