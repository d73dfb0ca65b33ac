"""Learning more from labels that are sure: cross-entropy, weighted by how far the label is from knowing nothing.

    C_k  = (max_o y_ko - 1 / O_k) / (1 - 1 / O_k)                       0 = all options alike, 1 = one has all
    loss = - sum_k w_k C_k sum_o t_ko log p_ko / sum_k w_k C_k

for question k with O_k options; t is 1 at the taught answer (`labels="hard"`), or y (`labels="soft"`). If no label of the
lesson says anything (all w C are 0), C is left out: the plain mean. (y, p, w: `student.options`.)

Source: confidence weights, arXiv 2603.04968: C = 2 (sigmoid(margin of the two) - 1/2) on pairs, which C_k is for two options.
Deviations: 1. theirs weights a preference loss, ours the cross-entropy over options. 2. more than two options are ours. 3.
the sum of weights is that of an optimizer step, and the plain mean is taken for a lesson that says nothing, not for such a
batch.
"""

import dataclasses

import numpy as np

from w2s_jax.student import options
from w2s_jax.types import Lesson

VERSION = "2"
ROUNDING = 1e-6  # of probabilities in float32: what 1/3 is off by says nothing
LABELS = {"hard": options.hard, "soft": options.labels}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConfidenceWeighted(options.Options):
    """See the module.

    Attributes:
        labels: what is learnt, a name in `LABELS`.
    """

    labels: str

    def __post_init__(self):
        super().__post_init__()
        self.refuse(self.labels not in LABELS, "labels", self.labels, f"one of {', '.join(LABELS)}")

    def columns(self, lesson: Lesson) -> dict[str, np.ndarray]:
        weight = np.asarray(lesson.weight, np.float32)
        sure = weight * confidence(options.labels(lesson), np.array([len(question.options) for question in lesson.questions]))
        return {"weight": sure if sure.any() else weight, "target": LABELS[self.labels](lesson)}

    def loss(self, out, own, batch):
        asked = options.read(out, batch)
        return options.cross_entropy(asked, asked.target)


def confidence(label: np.ndarray, num_options: np.ndarray) -> np.ndarray:
    """C f32[K] in [0, 1] of soft labels f32[K, O] over `num_options` i[K] options each, two or more.

    >>> confidence(np.array([[0.75, 0.25, 0.0], [1 / 3, 1 / 3, 1 / 3], [0.0, 1.0, 0.0]]), np.array([2, 3, 3])).tolist()
    [0.5, 0.0, 1.0]
    """
    least = 1 / num_options
    found = np.clip((label.max(axis=-1) - least) / (1 - least), 0.0, 1.0)
    return np.where(found > ROUNDING, found, 0.0).astype(np.float32)


def make(*, labels: str = "hard", normalise: str = "token") -> ConfidenceWeighted:
    """The objective.

    Raises:
        ValueError: an unknown `labels` or `normalise`.
    """
    return ConfidenceWeighted(labels=labels, normalise=normalise)
