"""How peaked the teacher's choice is: 1 minus the entropy over the options, as a share of the largest possible. Learns nothing.

    score = 1 - H(p) / log(number of options);   1 = all probability on one option, 0 = all options alike

It looks at all options where confidence looks at the chosen one alone. Free answers have no options: there it is refused.

Source: arXiv 2606.01000 names entropy among the signals of confidence; it gives no formula.
Deviations: 1. divided by its maximum, so that questions with few and with many options share one scale.
"""

import dataclasses

import numpy as np

from w2s_jax.trust import Untaught
from w2s_jax.types import Evidence

VERSION = "1"


@dataclasses.dataclass(frozen=True)
class Entropy(Untaught):
    """See the module."""

    needs: frozenset[str] = frozenset({"option_logp"})

    def score(self, evidence: Evidence) -> np.ndarray:
        logp = np.asarray(evidence.extra["option_logp"], np.float64)
        there = np.isfinite(logp)
        nats = -np.where(there, np.exp(logp) * np.where(there, logp, 0.0), 0.0).sum(1)
        most = np.log(np.maximum(there.sum(1), 2))  # an only option leaves no doubt: 0 of anything
        return np.clip(1.0 - nats / most, 0.0, 1.0).astype(np.float32)


def make() -> Entropy:
    """The trust function."""
    return Entropy()
