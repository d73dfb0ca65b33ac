"""How hard a task itself says that its questions are, in `Question.meta`: `level` ("Level 3", "high"), `rating` ("1500").

Data set by data set, for scales differ: what one says counts where it says it of all its questions, and not of all the same.
"""

import math
import re
from collections.abc import Iterator, Sequence

import numpy as np

from w2s_jax.types import Question

VERSION = "1"


def by_data_set(questions: Sequence[Question]) -> Iterator[tuple[np.ndarray, list[Question]]]:
    """The questions of each data set and their places among all, i64; data sets in the order of their names."""
    task = np.array([question.task for question in questions])
    for name in np.unique(task) if len(task) else ():
        mine = np.flatnonzero(task == name)
        yield mine, [questions[n] for n in mine]


def words(questions: Sequence[Question], key: str) -> list[str] | None:
    """What a data set says of each of its questions under a key of `meta`; None unless of all, and in two kinds or more.

    >>> words([Question("a", "t", "?", meta={"level": "high"}), Question("b", "t", "?", meta={"level": "low"})], "level")
    ['high', 'low']
    """
    found = [str(question.meta.get(key, "")) for question in questions]
    return found if all(found) and len(set(found)) > 1 else None


def numbers(questions: Sequence[Question], key: str) -> np.ndarray | None:
    """The same as numbers, f64[N]; None unless it says one of all, and two or more."""
    found = np.array([number(word) for word in words(questions, key) or ()])
    return found if np.isfinite(found).all() and len(np.unique(found)) > 1 else None


def number(text: str) -> float:
    """The number that a text is, or else the one number in it; NaN where there is none, or more than one.

    >>> number("Level 3"), number("1e3"), number("-2.5"), number("3 of 5"), number("inf")
    (3.0, 1000.0, -2.5, nan, nan)
    """
    try:
        whole = float(text)
    except ValueError:
        there = re.findall(r"-?\d+(?:\.\d+)?", text)
        return float(there[0]) if len(there) == 1 else math.nan
    return whole if math.isfinite(whole) else math.nan
