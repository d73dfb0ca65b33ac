"""Labels in place of the teacher's own, made before any are selected (stage relabel): a row names one of `RELABELLERS`.

A relabeller takes the run, the labels that there are (`Labels`) and its keywords from the config's `relabel` section of its
name; it returns a stored `types.Relabelled`. It sees gold of the source alone, through `grade`.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from w2s_jax.looking import Looked
from w2s_jax.run import Model, Run
from w2s_jax.settings import Row
from w2s_jax.store import Ref, Stored
from w2s_jax.tasks.roles import Demonstrations

VERSION = "1"


@dataclasses.dataclass(frozen=True)
class Labels:
    """What a relabeller starts from.

    Attributes:
        labelled: the source, as the teacher answers and sees it.
        correct: bool[R], which of its labels are right.
        unlabelled: the target.
        scores: the stored trust scores f32[R] of the target's labels.
    """

    labelled: Looked
    correct: np.ndarray
    unlabelled: Looked
    scores: Stored


class Relabeller(Protocol):
    def __call__(
        self, run: Run, labels: Labels, *, teacher: Model, student: Model, shown: Demonstrations, grade: Ref, **keywords
    ) -> Stored:
        """A stored `Relabelled` with a row for each of the target's labels.

        Args:
            run: config, seed, store.
            labels: what there is.
            teacher, student: the models; the student before it is taught.
            shown: the demonstrations that the student is shown.
            grade: of the source's gold: its value takes `Answers` to source questions and returns bool[R], which are right.
            **keywords: the config's `relabel` section of its name.
        """


RELABELLERS: Mapping[str, Relabeller] = {}
"""Config word -> relabeller."""


def prepare(run: Run, rows: Sequence[Row], relabellers: Mapping[str, Relabeller]) -> None:
    """Finds out, before anything is computed, what rows ask for in vain.

    Raises:
        ValueError: a row names a relabeller that there is not.
    """
    for row in rows:
        if row.relabel and row.relabel not in relabellers:
            raise ValueError(
                f"method.{row.method}.relabel={row.relabel!r}: allowed are {', '.join(relabellers) or 'none'}; change it "
                "in the config"
            )
