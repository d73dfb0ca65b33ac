"""The roles of a task's questions, source, target and test: what must hold between them."""

import collections
import hashlib
from collections.abc import Sequence

import jax
import numpy as np

from w2s_jax.types import Answers, Question

VERSION = "2"

Demonstrations = tuple[tuple[Question, str], ...]
"""Answered questions that are shown before each question: (question, the text of its answer)."""


def refuse_overlap(**roles: Sequence[Question]) -> None:
    """Makes sure that no question, by id or by text, stands in two roles.

    Raises:
        ValueError: one does.
    """
    for of, what in ((lambda q: q.id, "id"), (lambda q: (q.prompt, frozenset(q.options)), "text")):
        seen: dict = {}
        for role, questions in roles.items():
            for question in questions:
                if seen.setdefault(of(question), role) != role:
                    raise ValueError(
                        f"question {question.id!r} stands in {seen[of(question)]} and in {role} (the same {what}): a student "
                        "would be graded on what it, or its teacher, was shown; take it out of one of them"
                    )


def refuse_repeats(role: str, questions: Sequence[Question]) -> None:
    """Makes sure that ids are unique: answers find their questions by them.

    Raises:
        ValueError: two questions of the role have the same id.
    """
    seen: set[str] = set()
    for question in questions:
        if question.id in seen:
            raise ValueError(
                f"the {role} role has two questions with the id {question.id!r}: ids must be unique; mend the task"
            )
        seen.add(question.id)


def demonstrate(source: Sequence[Question], answers: Answers, *, shots: int, key: jax.Array) -> Demonstrations:
    """Draws the answered questions that are shown before each question.

    Args:
        source: the labelled questions.
        answers: their true answers; their texts are shown.
        shots: how many to show.
        key: consumed.

    Raises:
        ValueError: there are not that many, with one left to ask.
    """
    if not 0 <= shots < len(source):
        raise ValueError(
            f"shots={shots}: the source has {len(source)} questions, allowed is 0..{len(source) - 1}; "
            "change teacher.shots, student.shots or a method's shots in the config"
        )
    text = dict(zip(answers.question_id, answers.text, strict=True))
    chosen = np.random.default_rng(np.asarray(jax.random.key_data(key))).permutation(len(source))[:shots]
    return tuple((source[i], text[source[i].id]) for i in chosen)


def leave_out(questions: Sequence[Question], shown: Demonstrations) -> tuple[Question, ...]:
    """The questions that are not among the demonstrations."""
    ids = {question.id for question, _ in shown}
    return tuple(q for q in questions if q.id not in ids)


def portions(
    questions: Sequence[Question], shares: Sequence[float], word: str, *, whole_groups: bool = True
) -> tuple[tuple[Question, ...], ...]:
    """Splits questions into disjoint portions that hold all of them, by a keyed hash of their ids; each keeps their order.

    Args:
        questions: to split; the order in which they come does not matter.
        shares: how large the portions are, beside each other.
        word: key of the hash; another word gives another split.
        whole_groups: questions of one group (a passage, a game) stay together, and portions are as equal as that allows.

    >>> [len(part) for part in portions([Question(str(i), "t", "?") for i in range(10)], (1, 4), "a word")]
    [2, 8]
    """
    units = [q.group or q.id if whole_groups else q.id for q in questions]
    size = collections.Counter(units)
    ends = np.cumsum(shares) / np.sum(shares) * len(questions)
    portion, before = {}, 0
    for unit in sorted(size, key=lambda unit: (hashlib.sha256(f"{word}\0{unit}".encode()).digest(), unit)):
        middle = before + size[unit] / 2
        portion[unit] = min(int(np.searchsorted(ends, middle)), len(shares) - 1)
        before += size[unit]
    return tuple(tuple(q for q, unit in zip(questions, units) if portion[unit] == part) for part in range(len(shares)))
