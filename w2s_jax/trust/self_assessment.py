"""The teacher judges its own answer, in a question of its own. Learns nothing.

    p_true        "Is the proposed answer: A. True  B. False": the probability of True, of the two
    verbalised    "How sure are you that the proposed answer is right?": the expected percentage over a fixed grid

`tasks/assessing.py` words the questions, `gathering.py` asks them; a row without an answer has 0.

Source: P(True), Kadavath et al., arXiv 2207.05221; verbalised confidence, Lin et al., arXiv 2205.14334, Tian et al.,
    arXiv 2305.14975.
Deviations: 1. no brainstormed answers are shown, and no demonstrations. 2. True and False stand behind letters, as options do
    everywhere in this project. 3. the percentage is chosen among options and its expectation taken, instead of being written
    freely: no text to parse, and no ties. 4. of a free answer the final answer alone is judged, without its working.
"""

import dataclasses

import numpy as np

from w2s_jax.trust import Untaught
from w2s_jax.types import Evidence

VERSION = "1"
ASKS = ("p_true", "verbalised")


@dataclasses.dataclass(frozen=True)
class SelfAssessment(Untaught):
    """See the module. `ask` is the entry of `Evidence.extra` that holds the teacher's judgement, in [0, 1]."""

    ask: str

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({self.ask})

    def score(self, evidence: Evidence) -> np.ndarray:
        return np.clip(evidence.extra[self.ask], 0.0, 1.0).astype(np.float32)


def make(*, ask: str = "p_true") -> SelfAssessment:
    """The trust function; `ask` is what the teacher is asked, see the module."""
    if ask not in ASKS:
        raise ValueError(f"ask={ask!r}: allowed are {', '.join(ASKS)}; change trust.self_assessment.ask or the row's args")
    return SelfAssessment(ask)
