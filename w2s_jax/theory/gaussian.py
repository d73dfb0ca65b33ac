"""Logistic regression on Gaussian questions: mean slope, labels' pull, curvature, and what follows from the cosines alone.

A question x ~ N(0, C) in R^d has a true answer, the sign of w*.x. Everything is written in whitened coordinates u = C^(1/2) w,
turned into C's own axes, where w.x = u.z with z ~ N(0, 1): a model is right with probability 1 - arccos(cos(u, u*)) / pi, and

    gradient flow     du/dt = -L (a(|u|) u - pull),      L = diag(C's eigenvalues),  a(s) = E sigma'(s z)
    soft labels       pull = a(|u_T|) u_T                of sigma(w_T.x)
    hard labels       pull = u_T / (|u_T| sqrt(2 pi))    of 1[w_T.x > 0]; |u| then grows without end
    label noise       pull (1 - 2 eta)                   labels turned over with probability eta

so that a path costs O(d) a step whatever C is.

Source: arXiv 2605.05742 (the setting: a student that beats itself with nothing but a teacher's feedback); the formulas are our
own derivation, by Stein's identity E[f(s z) z] = s E f'(s z).
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

NODES = 32  # of the quadrature; 1e-6 of a(s) at any s
SPREAD = 4.0  # s^2 / SPREAD is how much narrower than z's the quadrature's Gaussian is


def slope(norm: jax.Array) -> jax.Array:
    """a(s) = E sigma'(s z), z ~ N(0, 1): 1/4 at s = 0, 1 / (s sqrt(2 pi)) for large s.

    >>> round(float(slope(0.0)), 6)
    0.25
    """
    return _moment(norm, 0)


def along(norm: jax.Array) -> jax.Array:
    """E[sigma'(s z) z^2], the loss's curvature along the model itself; `slope` is the one across it.

    >>> round(float(along(0.0)), 5)
    0.25
    """
    return _moment(norm, 2)


def soft(teacher: jax.Array) -> jax.Array:
    """The pull of the teacher's probabilities; teacher f32[d], whitened."""
    return slope(length(teacher)) * teacher


def hard(teacher: jax.Array) -> jax.Array:
    """The pull of the teacher's decisions; teacher f32[d], whitened."""
    return teacher / (length(teacher) * math.sqrt(2 * math.pi))


def length(u: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.sum(u * u, axis=0))


def _moment(norm: jax.Array, power: int) -> jax.Array:
    """E[sigma'(s z) z^power] by Gauss-Hermite quadrature.

    sigma'(s z) gets as narrow as 1/s, so that fixed nodes would miss it; these are drawn together in step with it.
    """
    node, weight = np.polynomial.hermite_e.hermegauss(NODES)
    node, weight = node[NODES // 2 :], 2 * weight[NODES // 2 :] / weight.sum()  # the integrand is even
    norm = jnp.asarray(norm, jnp.float32)
    node, weight = (v.astype(np.float32).reshape(-1, *(1,) * norm.ndim) for v in (node, weight))
    shrunk = 1 / jnp.sqrt(1 + norm * norm / SPREAD)
    z = node * shrunk
    u = norm * z
    value = z**power * jnp.exp(u * u / (2 * SPREAD) - u) / (1 + jnp.exp(-u)) ** 2
    return jnp.sum(weight * value, 0) * shrunk


# ---- Covariance ------------------------------------------------------------------------------------------------------


def principal(covariance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues f64[d] and eigenvectors f64[d, d] (in columns) of a covariance.

    Args:
        covariance: f[d] variances along the coordinates, or f[d, d].

    Raises:
        ValueError: fewer than two dimensions, not square, not symmetric, not finite, or singular.
    """
    covariance = np.asarray(covariance, np.float64)
    if covariance.ndim not in (1, 2) or covariance.shape[0] != covariance.shape[-1] or len(covariance) < 2:
        raise ValueError(f"covariance of shape {covariance.shape}: allowed are [d] and [d, d] with d >= 2; change `covariance`")
    if not np.isfinite(covariance).all():
        raise ValueError("covariance holds values that are not finite; change `covariance`")
    if covariance.ndim == 1:
        variance, axes = covariance, np.eye(len(covariance))
    else:
        if (apart := np.abs(covariance - covariance.T).max()) > 1e-8 * np.abs(covariance).max():
            raise ValueError(f"covariance is not symmetric: entries differ by {apart:.3g}; change `covariance`")
        variance, axes = np.linalg.eigh(covariance)
    if variance.min() <= 1e-7 * variance.max():  # beyond that float32 knows no difference
        raise ValueError(
            f"covariance is singular: its eigenvalues run from {variance.min():.3g} to {variance.max():.3g}, allowed is a "
            "ratio above 1e-7 and none at or below 0; drop the dead directions or add a ridge to `covariance`"
        )
    return variance, axes


def whiten(w: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """u = C^(1/2) w in C's axes: f[..., d] -> f[..., d]; `principal` says what it refuses."""
    variance, axes = principal(covariance)
    return np.asarray(w) @ axes * np.sqrt(variance)


def unwhiten(u: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """The model of whitened coordinates: the inverse of `whiten`."""
    variance, axes = principal(covariance)
    return np.asarray(u) / np.sqrt(variance) @ axes.T


def spectrum(dimension: int, condition: float) -> np.ndarray:
    """Variances f64[d] in even ratios from the largest to the smallest, `condition` times smaller; their mean is 1.

    >>> spectrum(3, 4.0).round(3).tolist()
    [1.714, 0.857, 0.429]

    Raises:
        ValueError: a condition number below 1, or fewer than two dimensions.
    """
    if not 1 <= condition < 1e7:
        raise ValueError(f"condition={condition}: allowed is a ratio of variances from 1 to 1e7; change `condition`")
    if dimension < 2:
        raise ValueError(f"dimension={dimension}: allowed are 2 and more; change `dimension`")
    found = condition ** -np.linspace(0, 1, dimension)
    return found / found.mean()


def hessian(w: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """The Hessian f64[d, d] of the loss at w, whatever the labels.

    C^(1/2) [across (I - v v') + along v v'] C^(1/2), v = u / |u|. For C = 1 its eigenvalues are `slope` of |w|, d - 1 times,
    and `along`.
    """
    variance, axes = principal(covariance)
    u = whiten(w, covariance)
    size = np.linalg.norm(u)
    v = u / size
    across, own = float(slope(size)), float(along(size))
    root = axes * np.sqrt(variance)
    return root @ (across * np.eye(len(u)) + (own - across) * np.outer(v, v)) @ root.T


# ---- What follows from the cosines -----------------------------------------------------------------------------------


def accuracy(cosine: np.ndarray) -> np.ndarray:
    """Share of questions that a model at this cosine from the truth answers rightly.

    >>> float(accuracy(0.0)), float(accuracy(1.0))
    (0.5, 1.0)
    """
    return 1 - np.arccos(np.clip(cosine, -1, 1)) / np.pi


def helps(cos_s: np.ndarray, cos_t: np.ndarray, cos_st: np.ndarray) -> np.ndarray:
    """The sign rule: whether the student's cosine rises at first, cos(T,*) > cos(S,*) cos(S,T).

    For C = 1: d/dt cos(u, u*) at 0 = |pull| / |u| (cos(T,*) - cos(S,*) cos(S,T)).

    Raises:
        ValueError: a cosine outside [-1, 1].
    """
    cos_s, cos_t, cos_st = (_cosine(name, v) for name, v in (("cos_s", cos_s), ("cos_t", cos_t), ("cos_st", cos_st)))
    return cos_t > cos_s * cos_st


def best_in_plane(cos_s: np.ndarray, cos_t: np.ndarray, cos_st: np.ndarray) -> np.ndarray:
    """The highest cosine with the truth on the arc from student to teacher, where the flow runs if C = 1.

    It is that of the truth's projection on their plane, if this lies between them, else the better end's.

    Raises:
        ValueError: a cosine outside [-1, 1], or student and teacher on one line.
    """
    cos_s, cos_t, cos_st = (_cosine(name, v) for name, v in (("cos_s", cos_s), ("cos_t", cos_t), ("cos_st", cos_st)))
    if (np.abs(cos_st) >= 1).any():
        raise ValueError("cos_st=1 or -1: student and teacher lie on one line and span no plane; change `cos_st`")
    inside = (cos_t > cos_s * cos_st) & (cos_s > cos_t * cos_st)
    square = (cos_s**2 + cos_t**2 - 2 * cos_s * cos_t * cos_st) / (1 - cos_st**2)
    return np.where(inside, np.sqrt(np.clip(square, 0, 1)), np.maximum(cos_s, cos_t))


def best_of_independent(cos_s: np.ndarray, cos_t: np.ndarray) -> np.ndarray:
    """`best_in_plane` where the two models' errors are orthogonal: r^2 = r_S^2 + r_T^2 with r = c / sqrt(1 - c^2).

    >>> round(float(best_of_independent(0.8, 0.5)), 4)
    0.8238

    Raises:
        ValueError: a cosine outside [0, 1): a model that is no better than chance, or is the truth.
    """
    cos_s, cos_t = (_cosine(name, v) for name, v in (("cos_s", cos_s), ("cos_t", cos_t)))
    for name, value in (("cos_s", cos_s), ("cos_t", cos_t)):
        if (value < 0).any() or (value >= 1).any():
            raise ValueError(f"{name}={value}: allowed here are 0 to below 1; change `{name}`")
    square = sum(c**2 / (1 - c**2) for c in (cos_s, cos_t))
    return np.sqrt(square / (1 + square))


def _cosine(name: str, value: np.ndarray) -> np.ndarray:
    value = np.asarray(value, np.float64)
    if not (np.abs(value) <= 1).all():
        wrong = value[~(np.abs(value) <= 1)].ravel()[0]
        raise ValueError(f"{name}={wrong:g}: a cosine lies in [-1, 1]; change `{name}`")
    return value
