"""A linear probe: L2-regularised logistic regression on the teacher's standardised hidden states.

The score is the probability that it gives. Classes are not reweighted: nothing has to be taken off again.

Source: linear probes, Alain & Bengio, arXiv 1610.01644; of a model's own truthfulness, Azaria & Mitchell, arXiv 2304.13734.
Deviations: 1. all observed layers end to end; the strength of the penalty is ours.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from scipy.special import expit

from w2s_jax.trust import Operations, hidden, regression
from w2s_jax.types import Evidence

VERSION = "1"


@dataclasses.dataclass(frozen=True)
class Logistic:
    """See the module and `make`."""

    l2: float
    fitted: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    needs: frozenset[str] = frozenset()

    def fit(self, evidence: Evidence, correct: np.ndarray, key: jax.Array) -> "Logistic":
        """Fits the probe.

        Raises:
            ValueError: all labels are right or all wrong, or the hidden states are not finite.
        """
        x, correct = hidden.table(evidence), np.asarray(correct, bool)
        hidden.refuse_one_kind(correct)
        known = hidden.moments(x)
        weight, bias = regression.logistic((x - known["mean"]) / known["scale"], correct, l2=self.l2)
        return dataclasses.replace(self, fitted=known | {"weight": weight, "bias": np.array([bias])})

    def score(self, evidence: Evidence) -> np.ndarray:
        x = hidden.table(evidence, len(self.fitted["mean"]))
        logit = (x - self.fitted["mean"]) / self.fitted["scale"] @ self.fitted["weight"] + self.fitted["bias"]
        return expit(logit).astype(np.float32)

    def operations(self, question_id: Sequence[str], key: jax.Array) -> Operations:
        return Operations(None, 2.0 * self.fitted["weight"].size, reason="how often L-BFGS evaluated its loss is not stored")

    def state(self) -> Mapping[str, np.ndarray]:
        return self.fitted

    def restore(self, state: Mapping[str, np.ndarray]) -> "Logistic":
        return dataclasses.replace(self, fitted=dict(state))


def make(*, l2: float = 1e-3) -> Logistic:
    """The probe; `l2` weighs half the squared weights against the mean cross-entropy."""
    if not l2 > 0:
        raise ValueError(f"l2={l2}: allowed is a number above 0; change trust.logistic.l2 in the config")
    return Logistic(l2)
