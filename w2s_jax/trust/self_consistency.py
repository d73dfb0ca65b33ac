"""What share of further samples of the teacher agree with its answer. Learns nothing. For free answers only.

Agreement is the task's own (equal mathematics, say) or equality. A sample without an answer agrees with nothing.

Source: self-consistency, arXiv 2203.11171; agreement of samples as a confidence, arXiv 2207.05221, arXiv 2303.08896.
Deviations: 1. the judged answer is none of the samples that are counted. 2. options are chosen in one pass that already knows
    their probabilities, so that samples would only blur these: refused there (`entropy`).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from w2s_jax.trust import Untaught
from w2s_jax.types import Evidence

VERSION = "1"


@dataclasses.dataclass(frozen=True)
class SelfConsistency(Untaught):
    """See the module and `make`."""

    num_samples: int
    temperature: float
    needs: frozenset[str] = frozenset({"sample_share"})

    @property
    def asks(self) -> Mapping[str, Mapping[str, Any]]:
        return {"sample_share": {"num_samples": self.num_samples, "temperature": self.temperature}}

    def score(self, evidence: Evidence) -> np.ndarray:
        return np.clip(evidence.extra["sample_share"], 0.0, 1.0).astype(np.float32)


def make(*, num_samples: int = 8, temperature: float = 0.7) -> SelfConsistency:
    """The trust function.

    Args:
        num_samples: S, further samples of each question.
        temperature: that they are drawn at.
    """
    if num_samples < 1 or temperature <= 0:
        raise ValueError(
            f"num_samples={num_samples}, temperature={temperature}: allowed are 1 or more samples at a temperature above 0 "
            "(greedy ones are all alike); change trust.self_consistency in the config"
        )
    return SelfConsistency(num_samples, temperature)
