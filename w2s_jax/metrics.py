"""How good trust scores are: discrimination, calibration and the purity of what they select.

Stage in: a trust score f[R] in [0, 1] and whether each weak answer is right, bool[R]. Stage out: numbers, and the `Audit`
that is made once the student is stored. Everything here is pure numpy on the host.

A quantity that does not exist for its input (the AUC of labels that are all right) raises `Undefined`, whose message is the
reason that a report prints in its place; no function returns a stand-in number.

Source: arXiv 2606.01000, which reports AUC, ECE, Brier score and purity of trust functions. ECE: arXiv 1706.04599.
Intervals of clustered rows: Obuchowski, Biometrics 53 (1997) 567, for the AUC; Wilson's with the effective number of rows for a
share. Deviations: 1. the paper's number of bins is unknown; 15 bins of equal width here, bins of equal mass on request.
"""

from collections.abc import Sequence

import numpy as np
from scipy.special import expit, logit
from scipy.stats import norm, rankdata

from w2s_jax.types import Audit

VERSION = "2"


class Undefined(ValueError):
    """A quantity that does not exist for the data at hand; the message says why."""


def auc(score: np.ndarray, correct: np.ndarray) -> float:
    """Says how often a right row scores above a wrong one, ties counting one half (midranks).

    Args:
        score: f[R], any finite numbers.
        correct: bool[R].

    Raises:
        Undefined: there are no rows, or all rows are right, or all are wrong.

    >>> auc([.1, .4, .4, .9], [False, False, True, True])
    0.875
    """
    score, correct = _checked(score, correct)
    num_right, num_wrong = int(correct.sum()), int((~correct).sum())
    if not num_right or not num_wrong:
        raise Undefined(f"AUC needs right and wrong rows, there are {num_right} and {num_wrong}")
    above = rankdata(score)[correct].sum() - num_right * (num_right + 1) / 2
    return float(above / (num_right * num_wrong))


def auc_interval(
    score: np.ndarray, correct: np.ndarray, cluster: Sequence[str] | None = None, *, level: float = 0.95
) -> tuple[float, float]:
    """Says how far the AUC of these rows may be from that of all such rows, on the logit scale.

    Args:
        score, correct: as in `auc`.
        cluster: R names; rows of one cluster (samples of a question, questions on a passage) may depend on each other. None =
            every row is its own.
        level: of confidence.

    Raises:
        Undefined: the AUC is, or it is 0 or 1, or there is one cluster only: nothing says then how far off it is.

    >>> lo, hi = auc_interval([.1, .4, .4, .9, .3, .8], [False, False, True, True, True, False])
    >>> round(lo, 2), round(hi, 2)
    (0.16, 0.93)
    """
    area = auc(score, correct)
    score, correct = _checked(score, correct)
    right, wrong = score[correct], score[~correct]
    # What each row says alone: the share of the opposite rows that it is on the right side of.
    alone = np.empty(len(score))
    alone[correct] = _midrank_among(np.sort(wrong), right) / len(wrong)
    alone[~correct] = 1 - _midrank_among(np.sort(right), wrong) / len(right)
    variance = _clustered_variance((alone - area) / np.where(correct, len(right), len(wrong)), cluster)
    if not 0 < area < 1:
        raise Undefined(f"an AUC of {area:g} on these rows has no interval")
    reach = norm.isf((1 - level) / 2) * np.sqrt(variance) / (area * (1 - area))
    return float(expit(logit(area) - reach)), float(expit(logit(area) + reach))


def purity_interval(correct: np.ndarray, cluster: Sequence[str] | None = None, *, level: float = 0.95) -> tuple[float, float]:
    """Says how far the purity of these labels may be from that of all labels chosen like them (Wilson).

    Args:
        correct: bool[K].
        cluster: K names, as in `auc_interval`.
        level: of confidence.

    Raises:
        Undefined: nothing was selected, or there is one cluster only.

    >>> lo, hi = purity_interval([True] * 8 + [False] * 2)
    >>> round(lo, 2), round(hi, 2)
    (0.49, 0.94)
    """
    share, rows = purity(correct), len(correct)
    variance = _clustered_variance((np.asarray(correct, bool) - share) / rows, cluster)
    clusters = rows if cluster is None else len(set(cluster))
    # Rows that would be as much, were they independent.
    size = share * (1 - share) / variance * clusters / (clusters - 1) if variance > 0 else clusters
    z = norm.isf((1 - level) / 2)
    middle, reach = share + z**2 / (2 * size), z * np.sqrt(share * (1 - share) / size + z**2 / (4 * size**2))
    return float((middle - reach) / (1 + z**2 / size)), float((middle + reach) / (1 + z**2 / size))


def brier(score: np.ndarray, correct: np.ndarray) -> float:
    """Averages the squared distance between the score and the outcome (0 or 1).

    Raises:
        Undefined: there are no rows.
        ValueError: a score is outside [0, 1].

    >>> round(brier([.9, .2], [True, False]), 3)
    0.025
    """
    score, correct = _checked(score, correct, unit=True)
    return float(np.mean((score - correct) ** 2))


def reliability(score: np.ndarray, correct: np.ndarray, bins: int = 15, equal_mass: bool = False) -> np.ndarray:
    """Compares score and outcome bin by bin.

    Bins are open below and closed above, as in arXiv 1706.04599; 0 belongs to the first. Equal-mass bins are cut at quantiles,
    so that tied scores share a bin and the order of rows does not matter (there may then be fewer bins than asked for).

    Returns:
        f64[bins, 3]: mean score, share of right rows (both NaN in an empty bin), number of rows.

    Raises:
        Undefined: there are no rows.
        ValueError: a score is outside [0, 1].

    >>> reliability([.2, .4, .9], [False, True, True], bins=2)
    array([[0.3, 0.5, 2. ],
           [0.9, 1. , 1. ]])
    """
    score, correct = _checked(score, correct, unit=True)
    cut = np.linspace(0, 1, bins + 1)[1:-1]
    if equal_mass:
        cut = np.unique(np.quantile(score, cut))
        cut = cut[cut < score.max()]  # nothing is above that one
    place = np.searchsorted(cut, score, side="left")
    num_bins = len(cut) + 1
    rows = np.bincount(place, minlength=num_bins)
    with np.errstate(invalid="ignore"):
        mean_score = np.bincount(place, score, num_bins) / rows
        share_right = np.bincount(place, correct, num_bins) / rows
    return np.stack([mean_score, share_right, rows], axis=1)


def ece(score: np.ndarray, correct: np.ndarray, bins: int = 15, equal_mass: bool = False) -> float:
    """Averages the distance between mean score and share of right rows over bins, weighted by rows (arXiv 1706.04599).

    Raises:
        Undefined: there are no rows.
        ValueError: a score is outside [0, 1].

    >>> round(ece([.2, .4, .9], [False, True, True], bins=2), 3)
    0.167
    """
    mean_score, share_right, rows = reliability(score, correct, bins, equal_mass).T
    some = rows > 0
    return float(np.sum(np.abs(mean_score - share_right)[some] * rows[some]) / rows.sum())


def purity(correct: np.ndarray) -> float:
    """Says what share of the selected labels is right.

    Raises:
        Undefined: nothing was selected.

    >>> purity([True, True, False, True])
    0.75
    """
    correct = np.asarray(correct, bool)
    if not len(correct):
        raise Undefined("purity needs selected rows, there are none")
    return float(correct.mean())


def purity_curve(score: np.ndarray, correct: np.ndarray, points: int = 50) -> np.ndarray:
    """Gives the purity of the n most trusted rows, and of n random ones, for up to `points` values of n.

    Where n cuts through tied scores the rows among them are taken at random, and the expected purity is given: the order of
    rows does not matter.

    Returns:
        f64[points, 3]: n, purity of the n most trusted rows, expected purity of n random rows.

    Raises:
        Undefined: there are no rows.

    >>> purity_curve([.9, .5, .5, .1], [True, True, False, False]).round(2)
    array([[1.  , 1.  , 0.5 ],
           [2.  , 0.75, 0.5 ],
           [3.  , 0.67, 0.5 ],
           [4.  , 0.5 , 0.5 ]])
    """
    score, correct = _checked(score, correct)
    _, tie, rows = np.unique(-score, return_inverse=True, return_counts=True)
    share = np.bincount(tie, correct) / rows
    right = np.concatenate([[0], np.cumsum(np.repeat(share, rows))])
    n = np.unique(np.linspace(0, len(score), min(points, len(score)) + 1).round().astype(int))[1:]
    return np.stack([n, right[n] / n, np.full(len(n), correct.mean())], axis=1)


def histogram(score: np.ndarray, correct: np.ndarray, bins: int = 20) -> np.ndarray:
    """Counts right and wrong rows by score.

    Returns:
        f64[bins, 3]: left edge of the bin, right rows, wrong rows.

    Raises:
        Undefined: there are no rows.
        ValueError: a score is outside [0, 1].

    >>> histogram([.1, .2, .9], [False, True, True], bins=2)
    array([[0. , 1. , 1. ],
           [0.5, 1. , 0. ]])
    """
    score, correct = _checked(score, correct, unit=True)
    count = [np.histogram(score[rows], bins, (0, 1))[0] for rows in (correct, ~correct)]
    return np.stack([np.linspace(0, 1, bins + 1)[:-1], *count], axis=1)


def audit(
    score: np.ndarray,
    correct: np.ndarray | None,
    row: np.ndarray,
    *,
    taught: np.ndarray | None = None,
    cluster: Sequence[str] | None = None,
    bins: int = 15,
) -> Audit:
    """Measures trust scores and the selection made with them; only after the student is stored.

    Args:
        score: f[R] in [0, 1], the trust score of every weak answer.
        correct: bool[R], whether each weak answer is right; None where the target has no gold answers.
        row: i[K], the selected rows.
        taught: bool[K], whether each answer that was taught is right, where a relabeller or gold labels replaced the weak
            answers; None = the weak answers themselves were taught.
        cluster: R names, for the intervals; see `auc_interval`.
        bins: bins of the ECE and the reliability diagram.

    Raises:
        ValueError: a score is outside [0, 1] or not finite, or lengths differ.

    >>> a = audit(np.array([.9, .8, .1]), np.array([True, True, False]), np.array([0, 1]))
    >>> a.auc, a.purity, a.reason
    (1.0, 1.0, '')
    >>> audit(np.array([.9, .8]), None, np.array([0])).reason
    'no gold: the target has no answers to compare with'
    """
    if correct is None or not len(score):
        none = np.zeros((0, 3))
        reason = "no gold: the target has no answers to compare with" if correct is None else "there are no rows to measure"
        return Audit(None, None, None, None, None, None, none, none, none, reason)
    taught = np.asarray(correct, bool)[row] if taught is None else np.asarray(taught, bool)
    if len(taught) != len(row):
        raise ValueError(f"taught has {len(taught)} rows, the selection has {len(row)}; pass one outcome for each selected row")
    names = None if cluster is None else np.asarray(cluster)
    reasons = []

    def value(measure, *args, told=True):
        try:
            return measure(*args)
        except Undefined as reason:
            if told:
                reasons.append(str(reason))
            return None

    return Audit(
        auc=value(auc, score, correct),
        auc_interval=value(auc_interval, score, correct, names, told=False),
        ece=value(ece, score, correct, bins),
        brier=value(brier, score, correct),
        purity=value(purity, taught),
        purity_interval=value(purity_interval, taught, None if names is None else names[row], told=False),
        reliability=reliability(score, correct, bins),
        histogram=histogram(score, correct),
        curve=purity_curve(score, correct),
        reason="; ".join(reasons),
    )


def _midrank_among(ordered: np.ndarray, values: np.ndarray) -> np.ndarray:
    """How many of the ordered numbers are below each value, those equal to it counting one half."""
    return (np.searchsorted(ordered, values, "left") + np.searchsorted(ordered, values, "right")) / 2


def _clustered_variance(influence: np.ndarray, cluster: Sequence[str] | None) -> float:
    """The variance of a statistic from what each row adds to it, f64[R], summed within clusters first."""
    place = np.arange(len(influence)) if cluster is None else np.unique(np.asarray(cluster), return_inverse=True)[1]
    sums = np.bincount(place, influence)
    if len(sums) < 2:
        raise Undefined("an interval needs two clusters of rows or more, there is one")
    return float(len(sums) / (len(sums) - 1) * np.sum(sums**2))


def _checked(score, correct, unit: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Returns scores as f64[R] and outcomes as bool[R], or refuses them."""
    score, outcome = np.asarray(score, np.float64), np.asarray(correct)
    correct = outcome.astype(bool)
    if score.ndim != 1 or score.shape != correct.shape:
        raise ValueError(f"scores have shape {score.shape}, outcomes {correct.shape}; both must be one row per weak answer")
    if not np.array_equal(correct, outcome):
        raise ValueError(f"outcomes must be true or false (1 or 0), the first others are {outcome[correct != outcome][:3]}")
    if not len(score):
        raise Undefined("there are no rows to measure")
    bad = ~np.isfinite(score) | (unit & ((score < 0) | (score > 1)))
    if bad.any():
        row = int(np.argmax(bad))
        allowed = "a probability in [0, 1]" if unit else "a finite number"
        raise ValueError(f"score {score[row]} of row {row} must be {allowed}; see what `score` of the trust function returns")
    return score, correct
