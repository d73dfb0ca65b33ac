"""Where gold is not the only right answer: of the chosen labels that differ from gold, how many are at least as good?

A judge says how much better the weak label is than the gold one, label by label:

    by_solver   a task's own exact solver (`Task.value`): value of the weak answer - value of the gold one
    by_model    a stronger model, asked which of the two is right, in both orders: log-odds of the weak one, averaged over the
                orders; where the orders disagree on which is right (or one is a tie), it cannot say

A judge may not be able to say: NaN. Such labels are counted and left out of the share.

A judge's values may have noise: then labels whose values differ by no more than its margin are as good as each other, in the
unit of its values (`Task.value_margin`). An exact solver needs none, and a model none beyond its two orders.

Source: arXiv 2606.01000 (labels better than incomplete gold). The measure is ours: share of judged mismatches whose value is at
least gold's less the margin, with its Clopper-Pearson interval (1934); mismatches of one group (a passage, a game) count as
independent there.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from scipy import stats

from w2s_jax.tasks import assessing
from w2s_jax.types import Question

VERSION = "3"
EQUAL = 1e-9
"""What rounding may do to a difference of values: it belongs to any margin."""
LEVEL = 0.95

Judge = Callable[[Sequence[Question], Sequence[str], Sequence[str]], np.ndarray]
"""(questions, weak finals, gold finals), R each -> f[R], value of the weak answer - that of the gold one; NaN = cannot say."""


@dataclasses.dataclass(frozen=True)
class BetterThanGold:
    """The labels that one method chose and that gold calls wrong; None = nothing was judged, with a `reason`.

    Attributes:
        method, judge: whose selection; who judged, "" = nobody.
        n: labels chosen.
        mismatches: those that differ from gold.
        judged: mismatches of which the judge can say something: better + equal + worse.
        better, equal, worse: than gold, by more than the margin or within it.
        share, share_lo, share_hi: of the judged ones, those at least as good, and its 95 % interval.
        gap: median of the judged weak labels' values - those of their gold answers, in the judge's unit (a model's: nats). No
            mean: one missed mate would outweigh all other moves.
        margin: up to what difference values count as equal, in that unit.
    """

    method: str
    judge: str
    n: int
    mismatches: int
    judged: int
    better: int
    equal: int
    worse: int
    share: float | None
    share_lo: float | None
    share_hi: float | None
    gap: float | None
    reason: str = ""
    margin: float = 0.0


def measure(
    questions: Sequence[Question],
    weak: Sequence[str],
    gold: Sequence[str],
    mismatch: np.ndarray,
    judge: Judge | None,
    *,
    margin: float = 0.0,
    method: str = "",
    name: str = "",
    reason: str = "",
) -> BetterThanGold:
    """Has a judge compare the chosen labels that differ from gold with their gold answers.

    Args:
        questions, weak, gold: K chosen questions, their weak finals and their reference answers.
        mismatch: bool[K], whether the weak label differs from every accepted answer.
        judge: see `Judge`; None = there is none, and `reason` says why.
        margin: values that differ by no more are equal.
        method, name: what the result calls the selection and the judge.

    Raises:
        ValueError: the judge returns something else than R numbers; a margin that is none.

    >>> two = [Question(i, "t", "?") for i in "12"]
    >>> found = measure(two, "ab", "cc", np.array([True, True]), lambda q, weak, gold: np.array([1.0, -3.0]))
    >>> found.share, found.gap, found.better, found.worse
    (0.5, -1.0, 1, 1)
    """
    if not 0 <= margin < np.inf:
        raise ValueError(f"margin={margin}: allowed is a number, 0 or more; change the task's value_margin")
    at = np.flatnonzero(mismatch)
    n, none = len(questions), (0, 0, 0, 0, None, None, None, None)
    if judge is None:
        return BetterThanGold(method, "", n, len(at), *none, reason, margin)
    if not len(at):
        return BetterThanGold(method, name, n, 0, *none, "no chosen label differs from gold", margin)
    value = np.asarray(judge([questions[k] for k in at], [weak[k] for k in at], [gold[k] for k in at]), np.float64)
    if value.shape != (len(at),) or np.isinf(value).any():
        raise ValueError(
            f"the judge {name!r} returned values of shape {value.shape} for {len(at)} pairs: mend what it computes"
        )
    value = value[~np.isnan(value)]
    better, worse = int((value > margin + EQUAL).sum()), int((value < -margin - EQUAL).sum())
    if not len(value):
        reason = f"the judge cannot say of any of the {len(at)} mismatches"
        return BetterThanGold(method, name, n, len(at), *none, reason, margin)
    good = len(value) - worse
    limits = stats.binomtest(good, len(value)).proportion_ci(LEVEL, "exact")
    return BetterThanGold(
        method, name, n, len(at), len(value), better, good - better, worse, good / len(value), *map(float, limits),
        float(np.median(value)), margin=margin,
    )  # fmt: skip


def by_solver(value: Callable[[Question, str], float | None]) -> Judge:
    """The judge that asks a task's solver; it cannot say where the solver gives None for one of the answers."""

    def judge(questions: Sequence[Question], weak: Sequence[str], gold: Sequence[str]) -> np.ndarray:
        pairs = [(value(q, a), value(q, b)) for q, a, b in zip(questions, weak, gold, strict=True)]
        return np.array([np.nan if a is None or b is None else a - b for a, b in pairs], np.float64)

    return judge


def by_model(choose: Callable[[Sequence[Question]], np.ndarray]) -> Judge:
    """The judge that asks a model which of the two answers is right, in both orders.

    Args:
        choose: N questions of two options each -> f[N, 2], log-probability of each option, nats.
    """

    def judge(questions: Sequence[Question], weak: Sequence[str], gold: Sequence[str]) -> np.ndarray:
        pairs = list(zip(questions, weak, gold, strict=True))
        asked = [assessing.which(q, a, b) for q, a, b in pairs] + [assessing.which(q, b, a) for q, a, b in pairs]
        logp = np.asarray(choose(asked), np.float64)
        odds = logp[:, 0] - logp[:, 1]
        first, second = odds[: len(pairs)], -odds[len(pairs) :]
        return np.where(np.sign(first) * np.sign(second) > 0, (first + second) / 2, np.nan)

    return judge
