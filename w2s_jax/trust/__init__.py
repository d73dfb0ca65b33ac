"""Trust functions: how likely is it that a weak label is right? (stages calibrate and trust)

One file for each; the config word is the file's name, or the dotted path of a fork's own module. A module ends with
`make(**kw) -> Trust`.
"""

from collections.abc import Mapping
from typing import Protocol, Self

import jax
import numpy as np

from w2s_jax.types import Evidence


class Trust(Protocol):
    """What a trust function is. Immutable: `fit` and `restore` return a new one.

    Attributes:
        needs: the names of `Evidence.extra` that must be there beside the answers and the hidden states.

    A function whose evidence is computed in one way or another also has `asks`, a mapping from names in `needs` to the keywords
    of their provider in `gathering.py`, such as `{"sample_share": {"num_samples": 8, "temperature": 0.7}}`.
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


class Untaught:
    """The half of a trust function that learns nothing."""

    def fit(self, evidence: Evidence, correct: np.ndarray, key: jax.Array) -> Self:
        return self

    def state(self) -> Mapping[str, np.ndarray]:
        return {}

    def restore(self, state: Mapping[str, np.ndarray]) -> Self:
        return self
