"""I-Confidence: the teacher's own probability of its answer. Learns nothing.

Where the teacher chose among options: the probability of the chosen one, normalised over the options. In free generation:
exp of the mean log-probability of the tokens of the final answer, or of the whole completion with `span="completion"`.

Source: arXiv 2606.01000 ("I-Confidence"); Kadavath et al., arXiv 2207.05221.
Deviations: 1. the paper does not say how a multi-token answer's probability is formed; the mean over tokens is ours.
"""

import dataclasses

import numpy as np

from w2s_jax.trust import Untaught
from w2s_jax.types import Evidence

VERSION = "1"
SPANS = {"final": "answer_logp", "completion": "completion_logp"}


@dataclasses.dataclass(frozen=True)
class Confidence(Untaught):
    """See the module. `evidence_name` is the entry of `Evidence.extra` that holds the log-probability, nats."""

    evidence_name: str

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({self.evidence_name})

    def score(self, evidence: Evidence) -> np.ndarray:
        return np.exp(np.minimum(evidence.extra[self.evidence_name], 0.0)).astype(np.float32)


def make(*, span: str = "final") -> Confidence:
    """The trust function; `span` is which tokens count, "final" (the final answer's) or "completion" (all)."""
    if span not in SPANS:
        raise ValueError(f"span={span!r}: allowed are {', '.join(SPANS)}; change the confidence row's args in the config")
    return Confidence(SPANS[span])
