"""What another model thinks of the answer: the reward of a reward model, or the answer's likelihood.

    classifier    a Hugging Face sequence-classification checkpoint reads question and answer; its reward at the last token
                  (with two labels: the log-odds of the second)
    likelihood    the mean log-probability per token of the answer under any language model

Raw rewards have no scale: `regression.platt` fits the one that turns them into probabilities on the source. It is monotone, so
that the reward alone decides who is trusted more.

Source: arXiv 2606.01000 ("Reward Model"); reward models as classifiers, arXiv 2009.01325; Platt 1999.
Deviations: 1. the paper does not say how rewards become scores: the map is ours. 2. its slope is at least a thousandth per
    standard deviation, see `regression.platt`. 3. the judge sees no demonstrations.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from w2s_jax.tasks import prompts
from w2s_jax.trust import NoProducts, regression
from w2s_jax.types import Evidence

VERSION = "1"
KINDS = {"classifier": "reward", "likelihood": "likelihood"}


@dataclasses.dataclass(frozen=True)
class RewardModel(NoProducts):
    """See the module and `make`. `name` is the entry of `Evidence.extra` that holds the raw reward; -inf = no answer."""

    name: str
    asked: Mapping[str, Any]
    fitted: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({self.name})

    @property
    def asks(self) -> Mapping[str, Mapping[str, Any]]:
        return {self.name: self.asked}

    def fit(self, evidence: Evidence, correct: np.ndarray, key: jax.Array) -> "RewardModel":
        return dataclasses.replace(self, fitted=regression.platt(evidence.extra[self.name], correct))

    def score(self, evidence: Evidence) -> np.ndarray:
        return regression.probability(evidence.extra[self.name], self.fitted)

    def state(self) -> Mapping[str, np.ndarray]:
        return self.fitted

    def restore(self, state: Mapping[str, np.ndarray]) -> "RewardModel":
        return dataclasses.replace(self, fitted=dict(state))


def make(*, kind: str = "classifier", model: str = "", style: str = "", chat: bool = False) -> RewardModel:
    """The trust function.

    Args:
        kind: "classifier" or "likelihood", see the module.
        model: the judge: a directory or hub id; for "likelihood" any word that names a model in the config.
        style: layout of the questions that it reads, a name in `prompts.STYLES`; "" = the teacher's.
        chat: lay its chat template around them (what most released reward models were trained on).
    """
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r}: allowed are {', '.join(KINDS)}; change trust.reward_model.kind in the config")
    if not model:
        raise ValueError(
            "model='': a reward model is needed, a directory or hub id; set --config.trust.reward_model.model=MODEL, or take "
            "the row out of methods"
        )
    if style:
        prompts.find_style(style)
    return RewardModel(KINDS[kind], {"model": model, "style": style, "chat": chat})
