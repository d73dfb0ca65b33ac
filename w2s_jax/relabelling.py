"""Labels in place of the teacher's own, made before any are selected (stage relabel): a row names one of `RELABELLERS`.

A relabeller's keywords are the config's `relabel` section of its name. It sees gold of the source alone, through `grade`.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from w2s_jax import selective, teachers
from w2s_jax.looking import Labelling
from w2s_jax.run import Model, Run
from w2s_jax.settings import Row
from w2s_jax.store import Ref, Stored
from w2s_jax.tasks.roles import Demonstrations

VERSION = "1"


class Relabeller(Protocol):
    def __call__(
        self,
        run: Run,
        seen: Labelling,
        scores: Stored,
        *,
        teacher: Model,
        student: Model,
        shown: Demonstrations,
        grade: Ref,
        **keywords,
    ) -> Stored:
        """A stored `Relabelled` with a row for each of the target's labels.

        Args:
            run: config, seed, store.
            seen: source and target, as the teacher labels and sees them.
            scores: the trust scores f32[R] of the target's labels.
            teacher, student: the models; the student before it is taught.
            shown: the demonstrations that the student is shown.
            grade: of the source's gold: its value takes `Answers` to source questions and returns bool[R], which are right.
            **keywords: the config's `relabel` section of its name.
        """


RELABELLERS: Mapping[str, Relabeller] = {
    "selective": selective.selective,
    "self_known": selective.self_known,
    "smoothed": selective.smoothed,
    "boosted": teachers.boosted,
    "committee_vote": teachers.committee_vote,
    "experts": teachers.experts,
}
"""Config word -> relabeller."""

CHECKS: Mapping[str, Callable[..., Any]] = {
    **{word: functools.partial(selective.check, word=word) for word in ("selective", "self_known", "smoothed")},
    "boosted": teachers.check_boosted,
    "committee_vote": teachers.check_committee_vote,
    "experts": teachers.check_experts,
}
"""Config word -> what refuses keywords that are not allowed and models that are not there, called with (run, **keywords)."""


def prepare(run: Run, rows: Sequence[Row], relabellers: Mapping[str, Relabeller]) -> None:
    """Finds out, before anything is computed, what rows ask for in vain.

    Raises:
        ValueError: a row names a relabeller that there is not, or one whose check refuses its keywords.
    """
    for row in rows:
        if row.relabel and row.relabel not in relabellers:
            raise ValueError(
                f"method.{row.method}.relabel={row.relabel!r}: allowed are {', '.join(relabellers) or 'none'}; change it "
                "in the config"
            )
        if row.relabel in CHECKS:
            try:
                CHECKS[row.relabel](run, **row.relabel_args)
            except ValueError as error:
                raise ValueError(f"method {row.method!r}: {error}") from None
