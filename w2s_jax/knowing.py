"""P(IK), the probability that I know: does a model know the answer to a question, judged before it answers?

A logistic head on the model's hidden state at the last token of the question learns the share of its samples at temperature 1
that are right (soft targets). Labelled rows are parted in three, and each part has one use:

    fit     the head's weights
    tune    the strength of its penalty; Platt's map from the head's logit to the probability that the model's *own answer*,
            the most probable one, is right (a sample is right less often than it); the threshold gamma
    judge   nothing is fitted: how well calibrated that probability is, and what the mixed labels are worth

`gamma` is where the labels "the model's own where p >= gamma, else the weak one" are right most often.

Source: P(IK) in selective weak-to-strong, arXiv 2511.14166; soft targets, arXiv 2207.05221.
Deviations: 1. the paper's internals are not known to us: head, penalty, parts, Platt's map and ties are ours. 2. where
questions have options, the share of right samples has a limit that is computed instead of drawn (`expected`). 3. a sample is
then an option, drawn by the probability that the model chooses by: with options of several tokens and `normalise="token"` this
is flatter than what it would write token by token, with "none" it is that.
Everything here is pure numpy on the host.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from w2s_jax import metrics
from w2s_jax.trust import hidden, regression

VERSION = "1"
PARTS = ("fit", "tune", "judge")


# ---- What is learnt: how often a sample is right ---------------------------------------------------------------------


def expected(probability: np.ndarray, right: np.ndarray) -> np.ndarray:
    """f64[N]: the probability of a right option, which is the share of right samples in the limit of many.

    Args:
        probability: f[N, O], of each option at temperature 1; 0 beyond a question's own.
        right: bool[N, O].

    >>> expected(np.array([[.5, .3, .2]]), np.array([[True, False, True]])).round(6).tolist()
    [0.7]
    """
    probability = np.asarray(probability, np.float64)
    return np.clip((probability * right).sum(1) / probability.sum(1), 0.0, 1.0)


def drawn(probability: np.ndarray, right: np.ndarray, num_samples: int, seed: np.ndarray) -> np.ndarray:
    """f64[N]: the share of right ones among samples drawn from the options' probabilities.

    Args:
        probability, right: see `expected`.
        num_samples: K, 1 or more.
        seed: u32, words of a random key; consumed.
    """
    return np.random.default_rng(seed).binomial(num_samples, expected(probability, right)) / num_samples


def share(right: np.ndarray, num_samples: int) -> np.ndarray:
    """f64[N]: the share of right ones among the samples that were written, bool[N * K], K consecutive ones to a question.

    >>> share(np.array([True, False, True, True]), 2).tolist()
    [0.5, 1.0]
    """
    return np.asarray(right, np.float64).reshape(-1, num_samples).mean(1)


# ---- The head --------------------------------------------------------------------------------------------------------


def fit(
    x: np.ndarray, ik: np.ndarray, own: np.ndarray, weak: np.ndarray, part: np.ndarray, *, l2: Sequence[float]
) -> dict[str, Any]:
    """Fits P(IK) and its threshold.

    Args:
        x: f[N, F], the model's hidden states at the last token of N labelled questions.
        ik: f[N] in [0, 1], how often a sample is right.
        own: bool[N], whether the model's own answer is right.
        weak: f[N] in [0, 1], whether the weak label is right; the mean, of several.
        part: i[N], 0 fit, 1 tune, 2 judge; see the module.
        l2: strengths of the penalty to choose from.

    Returns:
        `mean`, `scale`, `weight` f64[F], `bias` f64[1], `slope`, `shift` f64[1]: what `probability` reads; `l2`, `gamma`
        (infinite where the weak label is never worse); and of the part `judge` `rows`, `auc`, `ece`, `brier` of the probability
        that the own answer is right, `raw_ece`, `raw_brier` of the same before Platt's map, and the accuracy of the labels
        `own`, `weak`, `mixed`; NaN where undefined.

    Raises:
        ValueError: all targets are equal, a part is empty, or the hidden states are not finite.
    """
    x, ik = np.asarray(x, np.float64), np.asarray(ik, np.float64)
    refuse(x, ik, part)
    fitting, tuning, judging = (np.flatnonzero(part == k) for k in range(len(PARTS)))
    fitted: dict[str, Any] = dict(hidden.moments(x[fitting]))
    z = (x - fitted["mean"]) / fitted["scale"]
    heads = {strength: regression.logistic(z[fitting], ik[fitting], l2=strength) for strength in sorted(l2, reverse=True)}
    # The first of equals is the strongest penalty.
    best = min(heads, key=lambda strength: cross_entropy(z[tuning] @ heads[strength][0] + heads[strength][1], ik[tuning]))
    weight, bias = heads[best]
    raw = z @ weight + bias
    fitted |= {"weight": weight, "bias": np.array([bias]), "l2": float(best)}
    fitted |= regression.platt(raw[tuning], own[tuning])
    p = probability(x, fitted)
    gamma = threshold(p[tuning], own[tuning], weak[tuning])
    uncalibrated = regression.probability(raw, {"slope": np.ones(1), "shift": np.zeros(1)})
    return fitted | {
        "gamma": gamma,
        "rows": len(judging),
        "auc": defined(metrics.auc, p[judging], own[judging]),
        "ece": defined(metrics.ece, p[judging], own[judging]),
        "brier": defined(metrics.brier, p[judging], own[judging]),
        "raw_ece": defined(metrics.ece, uncalibrated[judging], own[judging]),
        "raw_brier": defined(metrics.brier, uncalibrated[judging], own[judging]),
        "own": float(np.mean(own[judging])),
        "weak": float(np.mean(weak[judging])),
        "mixed": float(np.mean(np.where(p >= gamma, own, weak)[judging])),
    }


def probability(x: np.ndarray, fitted: Mapping[str, Any]) -> np.ndarray:
    """f32[R]: how probable it is that the model's own answer is right, from its hidden states f[R, F] at the questions.

    Raises:
        ValueError: it was fitted on hidden states of another width.
    """
    x = np.asarray(x, np.float64)
    if x.shape[1] != len(fitted["mean"]):
        raise ValueError(
            f"the hidden states have {x.shape[1]} features, P(IK) was fitted on {len(fitted['mean'])}: use the model and the "
            "layers that it was fitted with"
        )
    return regression.probability((x - fitted["mean"]) / fitted["scale"] @ fitted["weight"] + fitted["bias"], dict(fitted))


def threshold(p: np.ndarray, own: np.ndarray, weak: np.ndarray) -> float:
    """The gamma at which the labels "own where p >= gamma, else weak" are right most often; the largest, of equals.

    Args:
        p: f[N], P(IK).
        own, weak: f[N], whether (or how often) the own and the weak label are right.

    Returns:
        One of the p, or infinity: never the own label.

    >>> threshold(np.array([.9, .6, .2]), np.array([1, 1, 0]), np.array([0, 0, 1]))
    0.6
    >>> threshold(np.array([.9, .6]), np.array([1, 0]), np.array([1, 1]))
    inf
    """
    order = np.argsort(-np.asarray(p), kind="stable")
    falling = np.asarray(p)[order]
    gain = np.cumsum(np.asarray(own, np.float64)[order] - np.asarray(weak, np.float64)[order])
    last = np.append(falling[1:] != falling[:-1], True)  # equal p fall on one side
    candidates = np.append(np.inf, falling[last])
    worth = np.append(0.0, gain[last]).round(9)  # sums in another order differ by rounding alone
    return float(candidates[np.argmax(worth)])


def cross_entropy(logit: np.ndarray, target: np.ndarray) -> float:
    """Of soft targets in [0, 1]; nats."""
    return float(np.mean(np.logaddexp(0.0, logit) - target * logit))


def defined(measure, *args) -> float:
    """A measure, or NaN where it is undefined."""
    try:
        return measure(*args)
    except metrics.Undefined:
        return float("nan")


def refuse(x: np.ndarray, ik: np.ndarray, part: np.ndarray) -> None:
    """Makes sure that there is something to learn.

    Raises:
        ValueError: see `fit`.
    """
    if not np.isfinite(x).all():
        raise ValueError("the student's hidden states hold NaN or infinity: check its weights, or use student.dtype='float32'")
    counts = {name: int((part == k).sum()) for k, name in enumerate(PARTS)}
    if not all(counts.values()):
        raise ValueError(
            f"P(IK) parts the labelled source in three, and of {len(part)} questions come {counts}: each needs one or more; "
            "give tasks.source more questions, or change `shares` in the relabel section of the config"
        )
    if np.ptp(ik[part == 0]) < 1e-9:
        raise ValueError(
            f"all {counts['fit']} targets of P(IK) are {ik[part == 0][0]:g}: the student knows all questions of the source or "
            "none, so nothing tells which; change tasks.source (more or other questions) or student.model in the config, or "
            "take the methods selective and self_known out of methods (smoothed does not need it)"
        )
