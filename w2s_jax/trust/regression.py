"""Logistic regression, which probes, and which turns raw scores into probabilities (Platt 1999). In float64, by L-BFGS."""

from collections.abc import Sequence

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit

VERSION = "1"
LEAST_SLOPE = 1e-3  # of Platt's map, per standard deviation of the raw score


def logistic(x: np.ndarray, target: np.ndarray, *, l2: float, least: float | None = None) -> tuple[np.ndarray, float]:
    """Weights f64[F] and bias that minimise  mean cross-entropy + l2 / 2 |weights|^2.

    Args:
        x: f[R, F].
        target: f[R] in [0, 1].
        l2: of the weights; the bias is free.
        least: no weight is below it; None = no bound.
    """
    x, target = np.asarray(x, np.float64), np.asarray(target, np.float64)

    def loss(theta: np.ndarray) -> tuple[float, np.ndarray]:
        weight, bias = theta[:-1], theta[-1]
        logit = x @ weight + bias
        off = (expit(logit) - target) / len(x)
        value = np.mean(np.logaddexp(0.0, logit) - target * logit) + l2 / 2 * weight @ weight
        return value, np.append(x.T @ off + l2 * weight, off.sum())

    start = np.zeros(x.shape[1] + 1)
    bounds: Sequence = [(least, None)] * x.shape[1] + [(None, None)]
    options = {"maxiter": 2000, "maxfun": 10_000, "ftol": 1e-14, "gtol": 1e-9}
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options).x
    return found[:-1], float(found[-1])


def platt(raw: np.ndarray, correct: np.ndarray) -> dict[str, np.ndarray]:
    """The map from raw scores to probabilities, sigmoid(slope * raw + shift), that fits best and keeps their order.

    The slope is at least `LEAST_SLOPE` per standard deviation: a raw score that is worse than chance keeps its order too, but
    all its probabilities are about the share of right rows. Targets are Platt's: with m right rows (m + 1) / (m + 2) instead
    of 1, with n wrong ones 1 / (n + 2) instead of 0, so that rows of one kind alone are no trouble.

    Args:
        raw: f[R]; rows at -inf (no answer) do not count.
        correct: bool[R].

    Returns:
        `slope` and `shift`, f64[1] each.
    """
    there = np.isfinite(raw)
    raw, correct = np.asarray(raw, np.float64)[there], np.asarray(correct, bool)[there]
    mean, scale = (raw.mean(), raw.std()) if len(raw) else (0.0, 1.0)
    scale = scale if scale > 1e-9 * max(1.0, abs(mean)) else 1.0
    right, wrong = correct.sum(), (~correct).sum()
    target = np.where(correct, (right + 1) / (right + 2), 1 / (wrong + 2))
    if len(raw):
        (slope,), shift = logistic((raw - mean)[:, None] / scale, target, l2=0.0, least=LEAST_SLOPE)
    else:
        slope, shift = LEAST_SLOPE, 0.0
    return {"slope": np.array([slope / scale]), "shift": np.array([shift - slope * mean / scale])}


def probability(raw: np.ndarray, fitted: dict[str, np.ndarray]) -> np.ndarray:
    """f32[R]: the probabilities of raw scores under a map of `platt`; 0 at -inf."""
    return expit(fitted["slope"] * np.asarray(raw, np.float64) + fitted["shift"]).astype(np.float32)
