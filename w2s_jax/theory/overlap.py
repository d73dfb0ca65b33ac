"""Overlap density: the share of questions that have both a pattern the teacher can use and one that only the student can.

From such a question the student learns the hard pattern by a label that the teacher got right through the easy one; so the more
there are among its questions, the more it should gain. They are found without gold:

    hard       questions of which the teacher is unsure; its confidences, in order, break once
    overlap    others that look like a hard one to the student: largest |cos| of its hidden states to those of hard questions;
               these likenesses, in order, break once too
    easy       the rest

Source: arXiv 2412.03881. Deviations: 1. the break is the exact least-squares one over all places (a scan), where equal values
are never parted. 2. with more than two options confidence is the lead of the best option over the next. 3. the hidden states
are those of the untaught student.
"""

from typing import NamedTuple

import numpy as np

from w2s_jax.metrics import Undefined

VERSION = "2"
ROUNDING = 1e-9  # a difference that is none
HARD, EASY, OVERLAP = 0, 1, 2


class Overlap(NamedTuple):
    """Which questions are of which kind.

    Attributes:
        kind: i64[N], `HARD`, `EASY` or `OVERLAP`.
        sure: confidences below this are hard.
        like: likenesses from this on are overlap.
    """

    kind: np.ndarray
    sure: float
    like: float

    def density(self, rows: np.ndarray | None = None) -> float:
        """The share of overlap among these questions (all).

        Raises:
            Undefined: there are none.
        """
        kind = self.kind if rows is None else self.kind[rows]
        if not len(kind):
            raise Undefined("none of the questions that were looked at was taught")
        return float(np.mean(kind == OVERLAP))


def confidence(probability: np.ndarray) -> np.ndarray:
    """f64[N]: the best option's probability less the next one's; of two options 2 |p - 1/2|.

    Args:
        probability: f[N, O], O >= 2; 0 where a question has no such option.

    >>> confidence(np.array([[0.25, 0.75], [0.5, 0.5]]))
    array([0.5, 0. ])
    """
    best = np.sort(np.asarray(probability, np.float64), axis=1)
    return best[:, -1] - best[:, -2]


def detect(sure: np.ndarray, x: np.ndarray) -> Overlap:
    """Tells hard, easy and overlap questions apart.

    Args:
        sure: f[N], the teacher's confidences.
        x: f[N, D], the student's hidden states.

    Raises:
        Undefined: the teacher is equally sure of all questions, or all that are not hard look equally like hard ones.
    """
    sure, x = np.asarray(sure, np.float64), np.asarray(x, np.float64)
    at = change_point(sure, "the teacher's confidences")
    hard = sure < at
    unit = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    like = np.abs(unit[~hard] @ unit[hard].T).max(axis=1)
    from_there = change_point(like, "likenesses to hard questions")
    kind = np.full(len(sure), HARD)
    kind[~hard] = np.where(like >= from_there, OVERLAP, EASY)
    return Overlap(kind, at, from_there)


def change_point(values: np.ndarray, name: str = "values") -> float:
    """The value from which on the upper part begins: of all ways to part the ordered values in two, that of the smallest sum of
    squared distances from the parts' means.

    Args:
        values: f[N], in any order.
        name: what the reason calls them.

    Raises:
        Undefined: all are equal, but for rounding.

    >>> change_point(np.array([5.0, 1.0, 1.5, 5.5]))
    5.0
    """
    values = np.sort(np.asarray(values, np.float64))
    size = np.arange(1, len(values))
    between = np.diff(values) > ROUNDING
    if not between.any():
        raise Undefined(f"{name} are all equal: they have no break")
    # The sum of squares within both parts falls by what their means explain, so that needs to be largest.
    total = np.cumsum(values - values.mean())
    explained = np.where(between, total[:-1] ** 2 * (1 / size + 1 / (len(values) - size)), -np.inf)
    return float(values[1 + int(np.argmax(explained))])
