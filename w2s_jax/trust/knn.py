"""The nearest source rows: what share of the weak labels with similar hidden states was right.

    score = (right ones among the neighbours + prior) / (neighbours + 1),   prior = share of right labels in the source

which is one more neighbour that is as right as the source. Neighbours are the k nearest in Euclidean distance of standardised
hidden states, and all that are as near as the last of them, so that the order of the source does not matter.

Source: deep k-nearest neighbours, arXiv 1803.04765.
Deviations: 1. one distance over all observed layers, not a vote of each. 2. the smoothing is ours. 3. exact search, in chunks.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from w2s_jax.trust import Operations, hidden
from w2s_jax.types import Evidence

VERSION = "1"
ROWS_PER_CHUNK = 512


@dataclasses.dataclass(frozen=True)
class Neighbours:
    """See the module and `make`."""

    k: int
    fitted: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    needs: frozenset[str] = frozenset()

    def fit(self, evidence: Evidence, correct: np.ndarray, key: jax.Array) -> "Neighbours":
        """Keeps the source rows.

        Raises:
            ValueError: the source has no more than k rows, or its hidden states are not finite.
        """
        x = hidden.table(evidence)
        if len(x) <= self.k:
            raise ValueError(
                f"k={self.k} neighbours, but the source has {len(x)} rows: allowed is 1..{len(x) - 1}; change trust.knn.k in "
                "the config, or give the source more questions"
            )
        known = hidden.moments(x)
        rows = ((x - known["mean"]) / known["scale"]).astype(np.float32)
        return dataclasses.replace(self, fitted=known | {"rows": rows, "right": np.asarray(correct, np.float32)})

    def score(self, evidence: Evidence) -> np.ndarray:
        x = hidden.table(evidence, len(self.fitted["mean"]))
        rows, right = (np.asarray(self.fitted[name], np.float64) for name in ("rows", "right"))
        length = (rows**2).sum(1)
        out = np.empty(len(x), np.float32)
        for start in range(0, len(x), ROWS_PER_CHUNK):
            asked = (x[start : start + ROWS_PER_CHUNK] - self.fitted["mean"]) / self.fitted["scale"]
            own = (asked**2).sum(1, keepdims=True)
            distance = own + length - 2 * asked @ rows.T
            last = np.partition(distance, self.k - 1, axis=1)[:, self.k - 1 : self.k]
            near = distance <= last + 1e-9 * (own + length.max())  # what rounding may part is equally near
            out[start : start + len(asked)] = (near @ right + right.mean()) / (near.sum(1) + 1)
        return out

    def operations(self, question_id: Sequence[str], key: jax.Array) -> Operations:
        num_rows, width = self.fitted["rows"].shape
        return Operations(scoring=2.0 * num_rows * (width + 1))  # distances, and the right ones among the near

    def state(self) -> Mapping[str, np.ndarray]:
        return self.fitted

    def restore(self, state: Mapping[str, np.ndarray]) -> "Neighbours":
        return dataclasses.replace(self, fitted=dict(state))


def make(*, k: int = 50) -> Neighbours:
    """The trust function; `k` is how many neighbours count."""
    if k < 1:
        raise ValueError(f"k={k}: allowed is 1 or more; change trust.knn.k in the config")
    return Neighbours(k)
