"""What share of other teachers agree with the weak label. Learns nothing.

Each member answers every question once, greedily, asked as the teacher is (style, chat, demonstrations). The teacher itself is
no member: its own vote would be the same for every one of its labels.

Source: arXiv 2606.01000 names agreement of several models among the signals of trust; query by committee, Seung et al. 1992.
Deviations: 1. members count alike and answers count whole, not by their probabilities.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from w2s_jax.trust import Untaught
from w2s_jax.types import Evidence

VERSION = "1"


@dataclasses.dataclass(frozen=True)
class Committee(Untaught):
    """See the module and `make`."""

    models: tuple[str, ...]
    needs: frozenset[str] = frozenset({"committee_share"})

    @property
    def asks(self) -> Mapping[str, Mapping[str, Any]]:
        return {"committee_share": {"models": self.models}}

    def score(self, evidence: Evidence) -> np.ndarray:
        return np.clip(evidence.extra["committee_share"], 0.0, 1.0).astype(np.float32)


def make(*, models: tuple[str, ...] = ()) -> Committee:
    """The trust function; `models` are its members, as a model is named elsewhere in the config."""
    if isinstance(models, str) or not models or len(set(models)) < len(models):
        raise ValueError(
            f"models={models!r}: allowed is a tuple of one or more models, each once; set "
            "--config.trust.committee.models=\"('first', 'second')\""
        )
    return Committee(tuple(models))
