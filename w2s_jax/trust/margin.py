"""How far the teacher's choice is ahead: the probability of the most probable option minus that of the next. Learns nothing.

Free answers have no options: there it is refused.

Source: arXiv 2606.01000 (confidence signals); margin sampling, Scheffer et al. 2001.
Deviations: none known.
"""

import dataclasses

import numpy as np

from w2s_jax.trust import Untaught
from w2s_jax.types import Evidence

VERSION = "1"


@dataclasses.dataclass(frozen=True)
class Margin(Untaught):
    """See the module."""

    needs: frozenset[str] = frozenset({"option_logp"})

    def score(self, evidence: Evidence) -> np.ndarray:
        p = np.sort(np.exp(np.asarray(evidence.extra["option_logp"], np.float64)), 1)
        second = p[:, -2] if p.shape[1] > 1 else 0.0
        return np.clip(p[:, -1] - second, 0.0, 1.0).astype(np.float32)


def make() -> Margin:
    """The trust function."""
    return Margin()
