"""Many logistic students and teachers at once, each at a wanted cosine from the truth."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Pairs:
    """K students and teachers in whitened coordinates; see `gaussian`.

    Attributes:
        student, teacher: f32[K, d].
        truth: f32[K, d], of length 1 (see `in_plane`).
    """

    student: np.ndarray
    teacher: np.ndarray
    truth: np.ndarray

    def cosines(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """cos(S,*), cos(T,*), cos(S,T), f64[K] each."""
        return cosine(self.student, self.truth), cosine(self.teacher, self.truth), cosine(self.student, self.teacher)

    def in_plane(self) -> "Pairs":
        """The same pairs in the plane of student and teacher, d = 2; of the truth its projection, no longer of length 1.

        A model of the plane has the same cosine with the truth in both.
        """
        student, teacher, truth = (v.astype(np.float64) for v in (self.student, self.teacher, self.truth))
        first = _unit(student)
        second = _unit(_across(teacher, first))
        flat = (np.stack([np.sum(v * first, -1), np.sum(v * second, -1)], -1) for v in (student, teacher, truth))
        return Pairs(*(v.astype(np.float32) for v in flat))


def draw(
    rng: np.random.Generator,
    dimension: int,
    *,
    cos_s: np.ndarray,
    cos_t: np.ndarray,
    norm_s: np.ndarray,
    norm_t: np.ndarray,
    orthogonal: bool = False,
) -> Pairs:
    """Draws pairs whose errors, the parts across the truth, point anywhere.

    Args:
        rng: what is drawn from.
        dimension: d.
        cos_s, cos_t: f[K], cosines with the truth.
        norm_s, norm_t: f[K], lengths in whitened coordinates: how sure a model is.
        orthogonal: whether a pair's two errors are made orthogonal, as independent ones nearly are in many dimensions.

    Raises:
        ValueError: a cosine outside [-1, 1], a norm at or below 0, or too few dimensions.
    """
    least = 3 if orthogonal else 2
    if dimension < least:
        raise ValueError(
            f"dimension={dimension}: allowed are {least} and more{' where errors are orthogonal' * orthogonal}; "
            "change `dimension`"
        )
    for name, value in (("cos_s", cos_s), ("cos_t", cos_t)):
        if not (np.abs(value) <= 1).all():
            raise ValueError(
                f"{name} runs from {np.min(value):g} to {np.max(value):g}: a cosine lies in [-1, 1]; change `{name}`"
            )
    for name, value in (("norm_s", norm_s), ("norm_t", norm_t)):
        if not (np.asarray(value) > 0).all():
            raise ValueError(f"{name} begins at {np.min(value):g}: allowed is what is above 0; change `{name}`")
    truth, error_s, error_t = (rng.standard_normal((len(cos_s), dimension)) for _ in range(3))
    truth = _unit(truth)
    error_s = _unit(_across(error_s, truth))
    error_t = _across(error_t, truth)
    error_t = _unit(_across(error_t, error_s) if orthogonal else error_t)
    student, teacher = (
        np.asarray(norm)[:, None] * (c[:, None] * truth + np.sqrt(1 - c[:, None] ** 2) * error)
        for norm, c, error in ((norm_s, np.asarray(cos_s), error_s), (norm_t, np.asarray(cos_t), error_t))
    )
    return Pairs(*(v.astype(np.float32) for v in (student, teacher, truth)))


def weak_and_strong(
    rng: np.random.Generator,
    number: int,
    dimension: int,
    *,
    strong: tuple[float, float] = (0.5, 0.95),
    weak: float = 0.05,
    norms: tuple[float, float] = (0.5, 4.0),
) -> Pairs:
    """Draws pairs in which no teacher is better than its student.

    Args:
        rng, dimension: as in `draw`.
        number: K.
        strong: cos(S,*) is uniform between these.
        weak: cos(T,*) is uniform between this and cos(S,*).
        norms: both lengths are uniform between these.
    """
    cos_s = rng.uniform(*strong, number)
    cos_t = rng.uniform(weak, cos_s)
    norm_s, norm_t = rng.uniform(*norms, (2, number))
    return draw(rng, dimension, cos_s=cos_s, cos_t=cos_t, norm_s=norm_s, norm_t=norm_t)


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """f[K, d], f[K, d] -> f64[K]."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return np.sum(a * b, -1) / np.sqrt(np.sum(a * a, -1) * np.sum(b * b, -1))


def _unit(v: np.ndarray) -> np.ndarray:
    return v / np.linalg.norm(v, axis=-1, keepdims=True)


def _across(v: np.ndarray, unit: np.ndarray) -> np.ndarray:
    return v - np.sum(v * unit, -1, keepdims=True) * unit
