"""Tasks: where questions come from, and the only place that knows their answers.

A task is one file here that ends with `make(**keywords)`, chosen by one config word (`tasks.name`); a fork's own file is
chosen by its dotted path. Stage 1 of the path: a task gives the questions of three roles, disjoint by id and by text:
`source` (labelled, calibrates trust), `target` (asked of the teacher, taught to the student) and `test`.
`prompts` lays questions out for a model.
"""

from typing import Literal, Protocol

from w2s_jax.types import Gold, Question

Split = Literal["source", "target", "test"]


class Task(Protocol):
    """What a task offers. One that reads local files also has `files()`, their paths, which go into the store's keys.

    Attributes:
        interface: "choice" if every question has options to choose from, "free" if answers are written out. A change of
            data within one interface is a shift of distribution (OOD_dist), a change of interface one of domain.
    """

    interface: Literal["choice", "free"]

    def questions(self, split: Split) -> tuple[Question, ...]:
        """The questions of a role, in a stable order."""
        ...

    def gold(self, split: Split) -> Gold | None:
        """The true answers of a role, None where it has none. Called in `pipeline.py` only."""
        ...

    def extract(self, text: str) -> str:
        """The canonical final answer in a text, "" if there is none; total, never raises. It depends on the text alone."""
        ...

    # A task whose answers are not written as `extract` gives them offers `written(text) -> (start, end)`, where in the text the
    # answer is, None where it is nowhere; without it, the place is looked for where the answer itself stands last.
    # A task whose answers can be the same without being equal strings gives `Gold.agree`, and offers it as
    # `agree(found, wanted) -> bool[R]` itself; without it, equality of strings is meant. If that may fail on some answers, its
    # `graded() -> str` says how often it did; the pipeline logs it. Where it goes by other packages, `judged_by() -> {name:
    # version}` names them: they enter the keys of the stages that grade.

    # A task that can tell how good any answer is, right or not (by an exact solver of games, say), offers
    # `value(question, answer) -> float | None`: larger = better, None = it cannot say. It is asked about labels that differ
    # from gold, once all students are stored (`analysis/better_than_gold.py`); a ValueError of it is told in the report. Where
    # values depend on more than question, answer and code, `valued_by() -> {name: value}` names it: it enters the stage's key.
    # Where no solver gives them, `valuer: str` says who does, in the words of the report.
    # Where they have noise, `value_margin: float` says up to what difference two answers are as good; without it, 0.
    # A task that was to offer it and cannot, as its judge is not there, says why in `unvalued: str`; the run goes on.
