"""Trust functions: how likely is it that a weak label is right? (stages calibrate and trust)

One file for each; the config word is the file's name, or the dotted path of a fork's own module. A module ends with
`make(**kw) -> Trust`.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Protocol, Self

import jax
import numpy as np

from w2s_jax.types import Evidence


@dataclasses.dataclass(frozen=True)
class Operations:
    """What a fitted trust function takes: operations of matrix products, two for each multiplication; None = cannot be counted.

    Attributes:
        fitting: of its fit.
        scoring: of the score of one row.
        weights, epochs: numbers that a head learnt (all members of an ensemble together) and its passes over the source; None
            where there is no head.
        reason: why something cannot be counted, "" = all can.
    """

    fitting: float | None = 0.0
    scoring: float | None = 0.0
    weights: int | None = None
    epochs: int | None = None
    reason: str = ""


class Trust(Protocol):
    """What a trust function is. Immutable: `fit` and `restore` return a new one.

    Attributes:
        needs: the names of `Evidence.extra` that must be there beside the answers and the hidden states.

    A function whose evidence is computed in one way or another also has `asks`, a mapping from names in `needs` to the keywords
    of their provider in `gathering.py`, such as `{"sample_share": {"num_samples": 8, "temperature": 0.7}}`.

    One that says what it costs also has `operations(question_id, key) -> Operations`, asked when it is fitted, with the
    question of each row that it was fitted on and the key; of others the report says that this is not known.
    """

    needs: frozenset[str]

    def fit(self, evidence: Evidence, correct: np.ndarray, key: jax.Array) -> "Trust":
        """Calibrates on the labelled source: `correct` bool[R] says which weak labels were right."""

    def score(self, evidence: Evidence) -> np.ndarray:
        """f32[R] in [0, 1]: the probability that each weak label is right."""

    def state(self) -> Mapping[str, np.ndarray]:
        """What `fit` learnt, as named arrays ({} where nothing is learnt)."""

    def restore(self, state: Mapping[str, np.ndarray]) -> "Trust":
        """The fitted trust function again, from what `state` returned."""


class NoProducts:
    """The part of a trust function that takes no matrix products."""

    def operations(self, question_id: Sequence[str], key: jax.Array) -> Operations:
        return Operations()


class Untaught(NoProducts):
    """The half of a trust function that learns nothing."""

    def fit(self, evidence: Evidence, correct: np.ndarray, key: jax.Array) -> Self:
        return self

    def state(self) -> Mapping[str, np.ndarray]:
        return {}

    def restore(self, state: Mapping[str, np.ndarray]) -> Self:
        return self
