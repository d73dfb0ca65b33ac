"""An ensemble of neural trust heads that differ in their seed, trained in one program.

    score = mean - penalty * (mean - lowest)    over the members' probabilities

The penalty lowers the score where members disagree: 0 gives their mean, 1 the most doubtful member's. Either way the score lies
between the lowest and the mean, so in [0, 1], and rises with each member's probability: a penalty by the standard deviation
would not (one member that grows surer than the others would lower it).

Source: arXiv 2606.01000 (the heads); ensembles by seed: arXiv 1612.01474. Deviations: 1. ensemble and penalty are ours.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from w2s_jax import plugins
from w2s_jax.trust import Operations, neural
from w2s_jax.types import Evidence

VERSION = "1"


@dataclasses.dataclass(frozen=True)
class Ensemble:
    """See the module and `make`; `held_back` is the mean over the members."""

    members: tuple[neural.Neural, ...]
    penalty: float
    held_back: Mapping[str, float] = dataclasses.field(default_factory=dict)
    needs: frozenset[str] = frozenset()

    def fit(self, evidence: Evidence, correct: np.ndarray, key: jax.Array) -> "Ensemble":
        """Trains all members on one split of the source; each is what it would be if it were fitted alone with this key.

        Raises:
            ValueError: see `neural.fit_heads`; or a loss is not finite.
        """
        states, records = neural.fit_heads(self.members, evidence, correct, key)
        members = tuple(
            member.fitted_by(*jax.tree.map(lambda a, e=e: a[e], (states, records))) for e, member in enumerate(self.members)
        )
        held_back = {name: float(np.mean([member.held_back[name] for member in members])) for name in members[0].held_back}
        return dataclasses.replace(self, members=members, held_back=held_back)

    def score(self, evidence: Evidence) -> np.ndarray:
        """f32[R], see the module.

        Raises:
            ValueError: not fitted, or the hidden states have another shape than the heads were fitted on.
        """
        each = np.stack([member.score(evidence) for member in self.members])
        return combined(each, self.penalty)

    def operations(self, question_id: Sequence[str], key: jax.Array) -> Operations:
        each = [member.operations(question_id, key) for member in self.members]
        fitting, scoring, weights = (sum(getattr(one, name) for one in each) for name in ("fitting", "scoring", "weights"))
        return Operations(fitting, scoring, weights, each[0].epochs)

    def state(self) -> Mapping[str, np.ndarray]:
        """The members' states, stacked along a leading axis."""
        return flatten_dict(jax.tree.map(lambda *each: np.stack(each), *(m.fitted for m in self.members)), sep="/")

    def restore(self, state: Mapping[str, np.ndarray]) -> "Ensemble":
        stacked = unflatten_dict(dict(state), sep="/")
        members = (
            dataclasses.replace(member, fitted=jax.tree.map(lambda a, e=e: a[e], stacked))
            for e, member in enumerate(self.members)
        )
        return dataclasses.replace(self, members=tuple(members))


def combined(each: np.ndarray, penalty: float) -> np.ndarray:
    """One score f32[R] of the members' probabilities f32[E, R].

    >>> combined(np.float32([[0.9, 0.5], [0.5, 0.5]]), penalty=0.5)
    array([0.6, 0.5], dtype=float32)
    """
    mean, lowest = each.mean(0), each.min(0)
    return np.float32(np.clip(mean - penalty * np.maximum(mean - lowest, 0), 0, 1))  # a mean may be rounded below the lowest


def make(*, size: int = 5, penalty: float = 0.0, **member) -> Ensemble:
    """The ensemble.

    Args:
        size: E, members.
        penalty: of disagreement, see the module.
        member: keywords of `neural.make`, the same for all; seeds count up from the one given.
    """
    for name, value, lo, hi in (("size", size, 1, 1000), ("penalty", penalty, 0, 1)):
        if not lo <= value <= hi:
            raise ValueError(f"{name}={value}: allowed is {lo} to {hi}; change trust.ensemble.{name} in the config")
    first = member.pop("seed", 0)
    members = tuple(plugins.make("trust", "neural", **member, seed=first + e) for e in range(size))
    return Ensemble(members, penalty)
