"""Does trust choose the easy questions first? Trust beside how hard the questions are, and how fast each lesson is learnt.

Difficulty is whatever a caller has of it, one number for each weak label, larger = harder: the task's own (`own`: levels or
ratings), or how unsure a model is of the label (-log p). From trust, difficulty and (where there is gold) right or wrong:

    rho       Spearman's rank correlation of trust and difficulty: -1 = trust is easiness
    deciles   mean difficulty and share of right labels of each tenth of the labels, by trust
    within    how often a right label is trusted more than a wrong one *as hard as itself*, ties one half: 0.5 = once difficulty
              is known, trust says nothing more
    strata    for each stratum of difficulty: how often the teacher is right there, and how much of it is chosen

Intervals: 95 % bootstrap over question groups; resampled rows are ranked anew.

Source: arXiv 2606.01000 (an implicit easy-first curriculum; the paper gives no formula, and these measures are ours).
Everything here is pure numpy on the host, and the order of rows does not matter.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from scipy import stats

from w2s_jax import metrics
from w2s_jax.tasks import difficulty as difficulties
from w2s_jax.types import Question

VERSION = "2"
DECILES, STRATA = 10, 5
MOST_KINDS = 10
"""Difficulties of no more kinds than these are strata as they are; others are cut at quantiles into `STRATA`."""
DRAWS = 1000
LEAST_SHARE = 0.9
"""Of the draws in which a quantity is defined: with fewer, its interval would be one of the lucky draws alone."""


@dataclasses.dataclass(frozen=True)
class EasyFirst:
    """Trust of one method beside one difficulty; None = undefined, or no gold, with a `reason`. Intervals are 95 %.

    Attributes:
        method, difficulty: whose trust scores, and which difficulty.
        n: labels whose difficulty is known.
        rho, rho_lo, rho_hi: Spearman's correlation of trust and difficulty.
        auc: of trust over these labels, whatever their difficulty.
        within, within_lo, within_hi: the same among labels of one stratum of difficulty.
        mean_all, mean_selected: mean difficulty of all these labels and of those taught, in the difficulty's own unit.
        decile: f64[up to 10, 4]: mean trust, mean difficulty, share right (NaN without gold), labels; least trusted first.
        stratum: f64[strata, 4]: mean difficulty, share of the teacher's labels that is right (NaN without gold), labels, share
            chosen; easiest first.
    """

    method: str
    difficulty: str
    n: int
    rho: float | None
    rho_lo: float | None
    rho_hi: float | None
    auc: float | None
    within: float | None
    within_lo: float | None
    within_hi: float | None
    mean_all: float | None
    mean_selected: float | None
    decile: np.ndarray
    stratum: np.ndarray
    reason: str = ""


def measure(
    score: np.ndarray,
    difficulty: np.ndarray,
    correct: np.ndarray | None,
    weight: np.ndarray,
    group: Sequence[str],
    *,
    method: str = "",
    name: str = "",
    draws: int = DRAWS,
) -> EasyFirst:
    """Measures trust scores beside a difficulty.

    Args:
        score: f[R], the trust score of every weak label.
        difficulty: f[R], larger = harder; rows where it is not finite are left out.
        correct: bool[R], which labels are right; None where the target has no gold.
        weight: f[R], with what weight each label is taught, 0 = not chosen.
        group: R names; rows of one group are drawn together.
        method, name: what the result calls the scores and the difficulty.
        draws: of the bootstrap.

    >>> rows = [str(r) for r in range(4)]
    >>> found = measure(np.array([.9, .8, .3, .1]), np.array([1, 2, 3, 4]), None, np.array([1, 1, 0, 0]), rows)
    >>> found.rho, found.mean_all, found.mean_selected, found.within, found.reason
    (-1.0, 2.5, 1.5, None, 'no gold: which labels are right is not known')
    """
    known = np.isfinite(difficulty)
    score, hard, weight = (np.asarray(v, np.float64)[known] for v in (score, difficulty, weight))
    right = None if correct is None else np.asarray(correct, bool)[known]
    cluster = np.unique(np.asarray(group, str)[known], return_inverse=True)[1]
    if not len(score):
        none = np.zeros((0, 4))
        empty = dict.fromkeys(("rho", "auc", "within"), (None, None, None))
        return _told(method, name, 0, empty, None, None, none, none, "the difficulty of no question is known")
    place = strata(hard)
    reasons, found = [], {}
    for key, measured in (
        ("rho", lambda rows: spearman(score, hard, rows)),
        ("auc", lambda rows: concordance(score, right, np.zeros(len(score), int), rows)),
        ("within", lambda rows: concordance(score, right, place, rows)),
    ):
        if key != "rho" and right is None:
            found[key] = (None, None, None)
            continue
        try:
            limits = (None, None) if key == "auc" else _interval(measured, cluster, draws)
            found[key] = (float(measured(np.ones((1, len(score))))[0]), *limits)
        except metrics.Undefined as reason:
            found[key] = (None, None, None)
            reasons.append(str(reason))
    if right is None:
        reasons.append("no gold: which labels are right is not known")
    chosen = float(np.average(hard, weights=weight)) if weight.any() else None
    return _told(
        method,
        name,
        len(score),
        found,
        float(hard.mean()),
        chosen,
        deciles(score, hard, right),
        by_stratum(hard, right, weight, place),
        "; ".join(dict.fromkeys(reasons)),
    )


def _told(method, name, n, found, mean_all, mean_selected, decile, stratum, reason) -> EasyFirst:
    (rho, rho_lo, rho_hi), (auc, _, _), (within, within_lo, within_hi) = (found[key] for key in ("rho", "auc", "within"))
    measured = (rho, rho_lo, rho_hi, auc, within, within_lo, within_hi)
    return EasyFirst(method, name, n, *measured, mean_all, mean_selected, decile, stratum, reason)


# ---- How hard a question is ------------------------------------------------------------------------------------------


def own(questions: Sequence[Question], question_id: Sequence[str]) -> np.ndarray:
    """f64[R]: how hard the task itself says that each row's question is, larger = harder, NaN where it does not say.

    Data set by data set, the first of these that all its questions have, in two kinds or more: the number in `meta["level"]`
    ("Level 3" is 3), `meta["rating"]`. Of one data set the number itself is given; several have scales of their own, and the
    share of a data set's questions that are easier is given instead (those as hard count one half).

    >>> one, two = Question("1", "t", "?", meta={"level": "Level 2"}), Question("2", "t", "?", meta={"level": "Level 5"})
    >>> own([one, two], ["2", "1", "2"])
    array([5., 2., 5.])
    """
    found, sets = np.full(len(questions), np.nan), list(difficulties.by_data_set(questions))
    for mine, asked in sets:
        told = (difficulties.numbers(asked, key) for key in ("level", "rating"))
        if (value := next((one for one in told if one is not None), None)) is not None:
            found[mine] = value if len(sets) == 1 else (stats.rankdata(value) - 0.5) / len(value)
    at = {q.id: n for n, q in enumerate(questions)}
    return found[np.array([at[i] for i in question_id], int)]


def strata(difficulty: np.ndarray) -> np.ndarray:
    """i[R]: the stratum of each row, the easiest 0; rows of one difficulty share one.

    >>> strata(np.array([3.0, 1.0, 3.0, 2.0])).tolist()
    [2, 0, 2, 1]
    """
    kinds, place = np.unique(difficulty, return_inverse=True)
    if len(kinds) <= MOST_KINDS:
        return place
    edges = np.unique(np.quantile(difficulty, np.arange(1, STRATA) / STRATA))
    return np.searchsorted(edges, difficulty, side="left")


# ---- What is measured ------------------------------------------------------------------------------------------------


def spearman(one: np.ndarray, other: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Spearman's rank correlation (midranks) of rows that are there `weight` times each.

    Args:
        one, other: f[R].
        weight: f[B, R], B weightings at once.

    Returns:
        f64[B], NaN where a weighting leaves one of them constant.

    Raises:
        metrics.Undefined: one of them is constant in all rows.

    >>> float(spearman(np.array([1, 2, 3]), np.array([9, 8, 8.5]), np.ones((1, 3)))[0])
    -0.5
    """
    for values, said in ((one, "trust"), (other, "the difficulty")):
        if len(np.unique(values)) < 2:
            raise metrics.Undefined(f"{said} is the same for all {len(values)} labels, so nothing can go up or down with it")
    x, y = _ranks(one, weight), _ranks(other, weight)
    total = weight.sum(1, keepdims=True)
    x, y = (v - (weight * v).sum(1, keepdims=True) / total for v in (x, y))
    spread = (weight * x * x).sum(1) * (weight * y * y).sum(1)
    return _divided((weight * x * y).sum(1), np.sqrt(spread))


def concordance(score: np.ndarray, correct: np.ndarray, stratum: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """How often a right row scores above a wrong one of its stratum, ties one half: a mean over strata, weighted by pairs.

    With one stratum it is the AUC.

    Args:
        score, correct, stratum: f[R], bool[R], i[R].
        weight: f[B, R], how often each row is there, B weightings at once.

    Returns:
        f64[B], NaN where a weighting leaves no pair.

    Raises:
        metrics.Undefined: no stratum has both right and wrong rows.

    >>> score, correct = np.array([.1, .4, .4, .9]), np.array([False, False, True, True])
    >>> float(concordance(score, correct, np.zeros(4, int), np.ones((1, 4)))[0])
    0.875
    """
    correct = np.asarray(correct, bool)
    if not set(stratum[correct].tolist()) & set(stratum[~correct].tolist()):
        raise metrics.Undefined("an AUC needs right and wrong labels of one difficulty, there are none")
    ties, place = np.unique(np.stack([stratum, score]), axis=1, return_inverse=True)
    right, wrong = (_summed(weight * rows, place.ravel(), ties.shape[1]) for rows in (correct, ~correct))
    below = np.cumsum(wrong, 1) - wrong / 2  # over all strata before as well, which is taken off again
    starts = np.searchsorted(ties[0], ties[0], side="left")
    below -= np.pad(np.cumsum(wrong, 1), ((0, 0), (1, 0)))[:, starts]
    of = np.unique(ties[0], return_inverse=True)[1].ravel()
    pairs = (_summed(right, of, of.max() + 1) * _summed(wrong, of, of.max() + 1)).sum(1)
    return _divided((right * below).sum(1), pairs)


def deciles(score: np.ndarray, difficulty: np.ndarray, correct: np.ndarray | None) -> np.ndarray:
    """f64[up to 10, 4]: mean trust, mean difficulty, share right, rows of each tenth by trust; equal scores stay together."""
    edges = np.unique(np.quantile(score, np.arange(1, DECILES) / DECILES))
    place = np.unique(np.searchsorted(edges, score, side="left"), return_inverse=True)[1]
    right = np.full(len(score), np.nan) if correct is None else correct.astype(np.float64)
    return _means(place, score, difficulty, right)


def by_stratum(difficulty: np.ndarray, correct: np.ndarray | None, weight: np.ndarray, place: np.ndarray) -> np.ndarray:
    """f64[strata, 4]: mean difficulty, share of labels that is right, rows, share chosen (by any weight)."""
    right = np.full(len(difficulty), np.nan) if correct is None else correct.astype(np.float64)
    place = np.unique(place, return_inverse=True)[1]
    hard, share, chosen, rows = _means(place, difficulty, right, (weight > 0).astype(np.float64)).T
    return np.stack([hard, share, rows, chosen], 1)


def area(steps: Sequence[float], values: Sequence[float]) -> float | None:
    """The area under a curve of training, by trapezoids, over the steps it spans: its mean height; None of a single step.

    >>> area([0, 1, 3], [2.0, 1.0, 0.0])
    0.8333333333333334
    """
    steps, values = np.asarray(steps, np.float64), np.asarray(values, np.float64)
    order = np.argsort(steps, kind="stable")
    steps, values = steps[order], values[order]
    if len(steps) < 2 or steps[-1] == steps[0]:
        return None
    return float(np.sum(np.diff(steps) * (values[1:] + values[:-1]) / 2) / (steps[-1] - steps[0]))


@dataclasses.dataclass(frozen=True)
class Learnt:
    """How a student learnt its lesson.

    Attributes:
        curve: what was followed, "loss" or "reward".
        steps: how many were logged.
        area: the normalised area under the curve, see `area`; None of a single step.
    """

    curve: str
    steps: int
    area: float | None


def learnt(curves: Mapping[str, Sequence[tuple[int, float]]]) -> Learnt | None:
    """The area under what says best how learning went: the reward where there is one, else the loss; None without either."""
    for name in ("reward", "loss"):
        if points := curves.get(name, ()):
            return Learnt(name, len(points), area(*zip(*points, strict=True)))
    return None


# ---- Ranks and sums under many weightings ----------------------------------------------------------------------------


def _interval(measured: Callable[[np.ndarray], np.ndarray], cluster: np.ndarray, draws: int) -> tuple[float | None, ...]:
    """The 2.5 % and 97.5 % points over draws of clusters; None, None where too few draws have a value."""
    values = np.concatenate([measured(weight) for weight in _draw(cluster, draws)])
    there = values[np.isfinite(values)]
    if cluster.max() == 0 or len(there) < LEAST_SHARE * draws:
        return None, None
    lo, hi = np.quantile(there, [0.025, 0.975])
    return float(lo), float(hi)


def _draw(cluster: np.ndarray, draws: int) -> Iterator[np.ndarray]:
    """f64[B, R] part by part: how often each row is drawn, where whole clusters are drawn as often as there are clusters."""
    num, rng = int(cluster.max()) + 1, np.random.default_rng(0)
    part = max(1, (1 << 21) // len(cluster))  # 16 MiB an array
    for start in range(0, draws, part):
        count = rng.multinomial(num, np.full(num, 1 / num), size=min(part, draws - start))
        yield count[:, cluster].astype(np.float64)


def _ranks(values: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """f64[B, R]: midranks, where row r is there weight[b, r] times."""
    place = np.unique(values, return_inverse=True)[1]
    there = _summed(weight, place, place.max() + 1)
    return (np.cumsum(there, 1) - there / 2)[:, place]


def _summed(weight: np.ndarray, place: np.ndarray, num: int) -> np.ndarray:
    """f64[B, num]: the columns of f[B, R] added up by `place`, i[R]; every place has a column."""
    order = np.argsort(place, kind="stable")
    return np.add.reduceat(weight[:, order], np.searchsorted(place[order], np.arange(num)), axis=1)


def _means(place: np.ndarray, *columns: np.ndarray) -> np.ndarray:
    """f64[places, columns + 1]: the mean of each column at each place, and the rows there."""
    rows = np.bincount(place)
    return np.stack([*(np.bincount(place, column) / rows for column in columns), rows], 1).astype(np.float64)


def _divided(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.divide(above, below, out=np.full(len(below), np.nan), where=below > 0)
