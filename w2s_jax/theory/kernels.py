"""Representations: how alike teacher and student see the questions, and what ridge probes on what they see would gain.

A representation x f[N, D] of N questions stands for its kernel K = X X' / N, rows centred and scaled so that K has trace 1.
With a ridge r,

    P = K (K + r I)^-1                  what a ridge probe on x gives back of the labels it was fitted to; r = 0: the projection
                                        on the span of X
    ceiling   P_s y                     a probe on the student's states, taught the truth
    weak      P_w y                     the teacher: a probe on its own states, taught the truth
    student   P_s P_w y                 a probe on the student's states, taught the teacher's answers

so that student and ceiling are P_s (I - P_w) y apart: what the student could learn and the teacher could not. Its length is
`gap`; |P_s (I - P_w)|, the largest it can get, needs no labels at all. With r = 0 errors add up exactly:
|y - P_s P_w y|^2 = |y - P_s y|^2 + |P_s (I - P_w) y|^2.

`cka` compares the two kernels themselves; `turning` holds the sign rule of logistic students (`gaussian.helps`) against probes
on the student's states.

Source: arXiv 2502.00620 (P, gap and norm), arXiv 1905.00414 (linear CKA), arXiv 2605.05742 (setting of the sign rule).
Deviations: 1. the kernel is that of all components under one ridge relative to its trace; the paper keeps the principal ones
and adds a second constant for the rest. 2. `gain`, the weak error less the student's in these terms, follows from the formulas
and is ours, as is holding the sign rule against ridge probes, whose cosines are correlations of what they say of questions that
they were not fitted to.
"""

from typing import NamedTuple

import numpy as np

from w2s_jax.metrics import Undefined

VERSION = "1"
FOLDS = 5


class Shaped(NamedTuple):
    """What two representations say of a student that learns from a teacher; squared errors are means over questions.

    Attributes:
        norm: |P_s (I - P_w)|, the largest singular value, in [0, 1]; larger = more that the student may miss.
        gap: |P_s (I - P_w) y|^2 / N; NaN without labels.
        gain: squared error of the teacher less that of the student; NaN without labels.
    """

    norm: float
    gap: float = np.nan
    gain: float = np.nan


class Turning(NamedTuple):
    """The sign rule of probes: cos(T,*) - cos(S,*) cos(S,T) > 0 says that the student beats itself at first."""

    cos_s: float
    cos_t: float
    cos_st: float

    @property
    def rule(self) -> float:
        return self.cos_t - self.cos_s * self.cos_st


def cka(x: np.ndarray, z: np.ndarray) -> float:
    """Linear CKA of two representations f[N, D], f[N, E] of the same questions: 1 = alike up to rotation and scale, 0 = nothing
    in common.

    Raises:
        Undefined: one of them is the same for all questions.
        ValueError: they are not of the same number of questions.

    >>> round(cka(np.array([[1.0], [0.0], [-1.0]]), np.array([[2.0], [0.0], [-2.0]])), 6)
    1.0
    """
    one, other = kernel(x), kernel(z)
    if len(one) != len(other):
        raise ValueError(f"representations of {len(one)} and of {len(other)} questions; they must be of the same ones")
    return float((one * other).sum() / np.sqrt((one * one).sum() * (other * other).sum()))


def kernel(x: np.ndarray) -> np.ndarray:
    """K f64[N, N] of centred rows, of trace 1.

    Raises:
        Undefined: all rows are equal.
        ValueError: not [N, D], or not finite.
    """
    x = np.asarray(x, np.float64)
    if x.ndim != 2 or not np.isfinite(x).all():
        raise ValueError(f"a representation of shape {x.shape} with {int((~np.isfinite(x)).sum())} values that are no numbers")
    x = x - x.mean(axis=0)
    size = (x * x).sum()
    if size <= 1e-20:
        raise Undefined("the hidden states are the same for all questions")
    return x @ x.T / size


def projection(x: np.ndarray, ridge: float) -> np.ndarray:
    """P f64[N, N]; see the module.

    Raises:
        Undefined, ValueError: see `kernel`; or a ridge below 0.
    """
    if not ridge >= 0:
        raise ValueError(f"ridge={ridge!r}: allowed is 0 or more, relative to the kernel's trace; change ridge in the config")
    size, axis = np.linalg.eigh(kernel(x))
    size = np.where(size > 1e-12, size, 0)
    return (axis * np.where(size > 0, size / np.maximum(size + ridge, 1e-300), 0)) @ axis.T


def shape(weak: np.ndarray, student: np.ndarray, y: np.ndarray | None, *, ridge: float) -> Shaped:
    """What the representations of teacher f[N, D] and student f[N, E] say, with labels y f[N, C] or without.

    Raises:
        Undefined, ValueError: see `projection`.
    """
    p_w, p_s = projection(weak, ridge), projection(student, ridge)
    lost = p_s - p_s @ p_w
    norm = float(np.linalg.norm(lost, 2))
    if y is None:
        return Shaped(norm)
    y = np.asarray(y, np.float64).reshape(len(p_w), -1)
    y = y - y.mean(axis=0)
    taught = p_w @ y
    error_w, error_s = ((y - said) for said in (taught, p_s @ taught))
    return Shaped(norm, float(((lost @ y) ** 2).sum() / len(y)), float(((error_w**2).sum() - (error_s**2).sum()) / len(y)))


def ridge_probe(x: np.ndarray, y: np.ndarray, at: np.ndarray, *, ridge: float) -> np.ndarray:
    """What a ridge probe, fitted to x f[N, D] and y f[N, C], says f64[Q, C] at f[Q, D]; the bias is free.

    Raises:
        Undefined: all rows of x are equal.
    """
    x, y, at = (np.asarray(v, np.float64) for v in (x, y, at))
    centre, mean = x.mean(axis=0), y.mean(axis=0)
    x = x - centre
    size = (x * x).sum()
    if size <= 1e-20:
        raise Undefined("the hidden states are the same for all questions that were taught")
    penalty = max(ridge, 1e-12) * size
    if x.shape[1] < len(x):  # the same weights either way, from the smaller system
        weight = np.linalg.solve(x.T @ x + penalty * np.eye(x.shape[1]), x.T @ (y - mean))
    else:
        weight = x.T @ np.linalg.solve(x @ x.T + penalty * np.eye(len(x)), y - mean)
    return (at - centre) @ weight + mean


def turning(x: np.ndarray, student: np.ndarray, teacher: np.ndarray, truth: np.ndarray, *, ridge: float, seed: int) -> Turning:
    """The three cosines of probes on x f[N, D] that are taught what student, teacher and truth say, f[N, C] each.

    A cosine is the correlation of what two probes say, as that of u'v in whitened coordinates is; classes count together.
    Probes say it of questions of a fold that they were not fitted to, or with few questions all of them would agree with
    themselves.

    Raises:
        Undefined: a probe says the same of all questions.
    """
    fold = np.random.default_rng(seed).permutation(len(x)) % FOLDS
    said = []
    for y in (student, teacher, truth):
        out = np.zeros(np.shape(y))
        for number in range(FOLDS):
            held = fold == number
            out[held] = ridge_probe(x[~held], y[~held], x[held], ridge=ridge)
            out[held] -= out[held].mean(axis=0)  # folds have means of their own, which no probe can know
        said.append(out.ravel())
    lengths = [np.linalg.norm(one) for one in said]
    if min(lengths) <= 1e-12:
        raise Undefined("a probe says the same of all questions")
    s, t, w = (one / length for one, length in zip(said, lengths, strict=True))
    return Turning(float(s @ w), float(t @ w), float(s @ t))
