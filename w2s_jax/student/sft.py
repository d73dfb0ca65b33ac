"""Supervised fine-tuning: the negative log-likelihood of the answer's tokens, weighted by trust.

    loss = - sum_k w_k sum_{t in answer k} log p(t)  /  sum_k w_k |answer k|

Prompts cost nothing; the answer costs each of its tokens. The lesson is tokenised and packed once into numbered bins; the
bins' order is a `grain.MapDataset`, so that batch = f(index) and a resumed run needs no iterator state.

Source: arXiv 2606.01000 (LoRA-SFT on trusted weak labels).
Deviations: 1. the paper does not give its normalisation; ours is the weighted mean over answer tokens of the whole step.
"""

import dataclasses

import grain
import jax
import numpy as np

from w2s_jax import packing
from w2s_jax.packing import Shape
from w2s_jax.student import Encode, Plan
from w2s_jax.types import Batch, Lesson, Ragged

VERSION = "1"


def tokens(lesson: Lesson, encode: Encode) -> tuple[Ragged, Ragged]:
    """The lesson's rows: K prompts with their answers, i32, and what each token weighs in the loss, f32.

    Raises:
        ValueError: the lesson is empty, or its labels are soft.
    """
    if not lesson.questions:
        raise ValueError("the lesson is empty: no weak label was selected; change the select section of the config")
    if lesson.target is not None:
        raise ValueError(
            "this objective learns from hard labels only, the lesson carries soft targets: set student.objective to soft, "
            "auxiliary_confidence, adaptive, confidence_weighted or raven, or student.soft_labels to False in the config"
        )
    token, weight = [], []
    for question, final, w in zip(lesson.questions, lesson.answers.final, lesson.weight, strict=True):
        prompt, completion = encode(question, final)
        token.append(prompt + completion)
        weight.append([0.0] * len(prompt) + [float(w)] * len(completion))
    return Ragged.of(token, np.int32), Ragged.of(weight, np.float32)


@dataclasses.dataclass(frozen=True)
class SFT:
    """See the module."""

    needs: frozenset[str] = frozenset()
    temperature: float = 1.0
    maxima: frozenset[str] = frozenset()

    def init(self, key: jax.Array) -> dict:
        return {}

    def plan(self, lesson: Lesson, encode: Encode, shape: Shape, key: jax.Array) -> Plan:
        """Raises ValueError for what `tokens` refuses, or a row longer than the device row."""
        token, weight = tokens(lesson, encode)
        bins = packing.pack(token.length, shape)
        seed = int(jax.random.randint(key, (), 0, np.iinfo(np.int32).max))
        order = grain.MapDataset.range(len(bins)).shuffle(seed=seed).repeat(None)

        def batch(index: int) -> Batch:
            chosen = [bins[int(order[index * shape.batch_rows + b])] for b in range(shape.batch_rows)]
            return packing.lay_out(token, chosen, shape, weight=weight)

        return Plan(len(bins) / shape.batch_rows, batch, int(token.length.sum()))

    def loss(self, out, own, batch):
        nll = -(out["logp"] * batch.weight).sum()
        return nll, batch.weight.sum(), {}


def make() -> SFT:
    """The objective; it has no settings."""
    return SFT()
