"""Misfit: how far a trained student is from its weak labels, and the gain over their maker that this promises.

Stage in: what the student answers, what it was taught, what is true, on the same N questions. Stage out: for each question its
misfit and its gain, (misfit f64[N], gain f64[N]) with gain = error of the weak label - error of the student; means are over
questions, and both stay paired for intervals.

    squared     mean gain >= mean misfit where the student is, of a convex class that the truth belongs to, the one nearest to
                the weak labels in squared distance (a projection: Pythagoras); with equality where the class is an affine space
    divergence  the same of Kullback-Leibler: error KL(truth | .), misfit KL(student | weak), for a convex class of
                probabilities and the student of it with the smallest misfit
    answers     of answers that are right or wrong: |mean gain| <= mean misfit, whatever the student is (the triangle
                inequality); that the gain equals the misfit is a guess

A student that is trained by cross-entropy minimises KL(weak | student) over no convex class, so for language models the first
two are predictions and no promises.

Source: arXiv 2405.15116 (squared loss), arXiv 2501.19105 (divergences). Deviations: 1. the answers' version is ours.
2. probabilities below `LEAST` count as that, for a weak model that rules out what the student holds possible.
"""

import numpy as np

VERSION = "1"
LEAST = 1e-6


def squared(student: np.ndarray, weak: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Misfit and gain in squared distance.

    Args:
        student, weak, truth: f[N, O], numbers or probabilities of options; f[N] counts as one number each.

    Raises:
        ValueError: shapes differ.

    >>> squared(np.array([0.0]), np.array([1.0]), np.array([0.0]))
    (array([1.]), array([1.]))
    """
    student, weak, truth = _alike(student, weak, truth)
    return _distance(student, weak), _distance(weak, truth) - _distance(student, truth)


def divergence(student: np.ndarray, weak: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Misfit and gain in nats.

    Args:
        student, weak, truth: f[N, O], probabilities that sum to 1; 0 throughout where a question has no such option.

    Raises:
        ValueError: shapes differ.

    >>> misfit, gain = divergence(np.array([[0.5, 0.5]]), np.array([[0.25, 0.75]]), np.array([[1.0, 0.0]]))
    >>> misfit.round(4), gain.round(4)
    (array([0.1438]), array([0.6931]))
    """
    student, weak, truth = _alike(student, weak, truth)
    return _divergence(student, weak), _divergence(truth, weak) - _divergence(truth, student)


def answers(unlike: np.ndarray, weak_right: np.ndarray, student_right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Misfit and gain in answers.

    Args:
        unlike: bool[N], whether the student answers otherwise than its label says.
        weak_right, student_right: bool[N].

    >>> answers(np.array([True, False]), np.array([False, True]), np.array([True, True]))
    (array([1., 0.]), array([1., 0.]))
    """
    unlike, weak_right, student_right = (np.asarray(v, np.float64) for v in (unlike, weak_right, student_right))
    return unlike, student_right - weak_right


def _alike(*values: np.ndarray) -> list[np.ndarray]:
    found = [np.asarray(value, np.float64) for value in values]
    if len({value.shape for value in found}) > 1:
        raise ValueError(f"student, weak, truth have shapes {', '.join(str(v.shape) for v in found)}; they must be the same")
    return [value.reshape(len(value), -1) for value in found]


def _distance(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return ((one - other) ** 2).sum(axis=1)


def _divergence(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    known = p > 0
    return np.where(known, p * np.log(np.where(known, p, 1) / np.maximum(q, LEAST)), 0).sum(axis=1)
