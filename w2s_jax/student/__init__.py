"""Student objectives: what it means to learn from a lesson (stage teach).

One file for each; the config word is the file's name, or the dotted path of a fork's own module. A module ends with
`make(**kw) -> Objective`. There is no model inside a loss: it sees per-token quantities only.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax

from w2s_jax.packing import Shape
from w2s_jax.types import Batch, Lesson, Question

Encode = Callable[[Question, str], tuple[list[int], list[int]]]
"""(question, final answer) -> (prompt tokens, completion tokens) under the student's tokenizer and layout."""


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


class Objective(Protocol):
    """What an objective is: frozen and hashable (it is a static argument of the compiled step).

    Attributes:
        needs: what the forward pass must return beside `logp`: "entropy".
    """

    needs: frozenset[str]

    def init(self, key: jax.Array) -> Mapping[str, Any]:
        """The objective's own trained parameters, mostly {}."""

    def plan(self, lesson: Lesson, encode: Encode, shape: Shape, key: jax.Array) -> Plan:
        """Makes the lesson into batches; the key settles their order."""

    def loss(
        self, out: Mapping[str, jax.Array], own: Mapping[str, Any], batch: Batch
    ) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
        """(sum, denominator, metrics): sums over batches are divided once, by the sum of the denominators.

        Args:
            out: `logp` f32[B, L], log-probability of each token given those before it in its segment, nats; 0 at a
                segment's first token and where the batch's weight is 0; and what `needs` names, each f32[B, L] and 0 likewise.
            own: the objective's own parameters.
            batch: as the plan gave it. Metrics are sums too; they are divided by the denominator.
        """
