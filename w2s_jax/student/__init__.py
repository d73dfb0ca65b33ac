"""Student objectives: what it means to learn from a lesson (stage teach).

One file for each; the config word is the file's name, or the dotted path of a fork's own module. A module ends with
`make(**kw) -> Objective`. There is no model inside a loss: it sees per-token quantities only.

Three kinds: an `Objective` makes its batches of the lesson's answers, one that is `OverOptions` of all options of its questions
and their soft labels, an `OnPolicy` one of what the student itself writes.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np

from w2s_jax.packing import Shape
from w2s_jax.tasks.asking import Asked
from w2s_jax.types import Batch, Lesson, Question

Encode = Callable[[Question, str], tuple[list[int], list[int]]]
"""(question, final answer) -> (prompt tokens, completion tokens) under the student's tokenizer and layout."""
Ask = Callable[[Question], Asked]
"""question -> its prompt and all its options as tokens, under the same."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """A lesson made into batches.

    Attributes:
        num_batches: batches in one pass over the lesson, as a fraction where the last one is shared with the next pass.
        batch: index -> Batch of one fixed shape; pure, so that a resumed run needs the index alone.
        num_tokens: tokens of one pass, without padding.
    """

    num_batches: float
    batch: Callable[[int], Batch]
    num_tokens: int


class Loss(Protocol):
    """What the compiled step needs of an objective; frozen and hashable, because it is a static argument there.

    Attributes:
        needs: what the forward pass must return beside `logp`: "entropy", "option_logp"; and "progress", the share of the
            training that is done, f32[B] in the batch's `extra`, which is 0 at the first step.
        temperature: divides the logits.
        maxima: names of metrics that are largest values, not sums.
    """

    needs: frozenset[str]
    temperature: float
    maxima: frozenset[str]

    def init(self, key: jax.Array) -> Mapping[str, Any]:
        """The objective's own trained parameters, mostly {}."""

    def loss(
        self, out: Mapping[str, jax.Array], own: Mapping[str, Any], batch: Batch
    ) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
        """(sum, denominator, metrics): sums over batches are divided once, by the sum of the denominators.

        Args:
            out: `logp` f32[B, L], log-probability of each token given those before it in its segment, nats; 0 at a
                segment's first token and where the batch's weight is 0; and what `needs` names: `entropy` f32[B, L], 0
                likewise, and `option_logp` f32[K, O], of the K questions of the batch (`models.likelihood.option_logp`).
            own: the objective's own parameters.
            batch: what to learn. Metrics are sums too, and divided by the denominator, but for the `maxima`.
        """


class Objective(Loss, Protocol):
    """Learns from the lesson as it stands."""

    def plan(self, lesson: Lesson, encode: Encode, shape: Shape, key: jax.Array) -> Plan:
        """Makes the lesson into batches; the key settles their order."""


@runtime_checkable
class OverOptions(Loss, Protocol):
    """Learns how probable each option of a question should be (`student.options`).

    Attributes:
        normalise: what options of several tokens are ranked by, a name in `choosing.NORMALISE`.
    """

    normalise: str

    def plan(self, lesson: Lesson, ask: Ask, shape: Shape, key: jax.Array, *, shared: bool) -> Plan:
        """Makes the lesson into batches; `shared`: one copy of a prompt stands before all its options."""


@runtime_checkable
class OnPolicy(Loss, Protocol):
    """Learns from answers that the student writes and a reward judges (`student.online`).

    Attributes:
        questions, group_size: questions of a round, and answers written to each.
        max_new_tokens: the most tokens of an answer.
        inner_steps: optimizer steps on the answers of a round.
        beta: factor of the divergence from the student as it was; 0 = it is not computed.
        zero_variance: what becomes of a group whose rewards are all equal: "keep", "mask" or "resample".
    """

    questions: int
    group_size: int
    max_new_tokens: int
    inner_steps: int
    beta: float
    zero_variance: str

    def reward(self, **about: Any) -> tuple[np.ndarray, dict[str, float]]:
        """Rewards f64[R] of R answers, and the mean of each part; see `student.rewards` for what it may read."""

    def advantage(self, rewards: np.ndarray) -> np.ndarray:
        """Rewards f64[Q, S] to advantages f32[Q, S]."""
