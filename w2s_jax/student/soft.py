"""Learning from soft labels: the cross-entropy of the lesson's probabilities over each question's options.

    loss = - sum_k w_k sum_o y_ko log p_ko / sum_k w_k        (y, p and w: `student.options`)

With hard labels, or none, this is the negative log-likelihood of the taught option among its question's options; unlike `sft`
it lowers the others.

Source: arXiv 2312.09390 (their naive fine-tuning, on soft labels of the weak teacher).
Deviations: 1. options are scored by the language model itself, not by a head of its own; the trust weight w is ours.
"""

import dataclasses

from w2s_jax.student import options

VERSION = "1"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Soft(options.Options):
    """See the module."""

    def loss(self, out, own, batch):
        asked = options.read(out, batch)
        return options.cross_entropy(asked, asked.target)


def make(*, normalise: str = "token") -> Soft:
    """The objective.

    Raises:
        ValueError: an unknown `normalise`.
    """
    return Soft(normalise=normalise)
