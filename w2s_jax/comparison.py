"""Compares two students on the same questions: intervals, tests, ratios, verdicts and the power to reach them.

Stage in: values f[S, N] of S seeds on N questions (a student's correctness, or the difference between two students), NaN where
a seed was not asked a question: seeds may share all questions, some, or none. Stage out: means with intervals. Everything here
is pure numpy and scipy on the host.

Here S counts seeds, N questions, Z quantities measured together. Seeds and questions are crossed: a mean over both moves when
other seeds are drawn and when other questions are, and each part keeps its own quantile,

    half width^2 = z^2 * (variance owed to the questions) + t[S - 1]^2 * (variance of the mean over seeds),

where the questions' part is what two seeds have in common, their covariance over shared questions; noise that belongs to one
seed *and* one question is counted once, with the seeds. With one seed there is no second part:
the interval then speaks of these trained students, not of training. A bootstrap over five seeds covers 83 % where 95 % is asked
for; this interval covers at least 95 %.

Questions count in clusters (a passage, a game); datasets are averaged with equal weights ("macro"), each being a stratum. Two
refinements keep error rates true where students seldom disagree, and vanish elsewhere: the variance is taken as though two
more questions had been asked, one won and one lost (Bonett and Price 2012), and the interval is moved by the first-order
correction for skewness (Johnson 1978; Hall 1992).

Source: the trust-function paper (arXiv 2606.01000) calls results near-lossless or super-recovery by a test it does not name;
all tests here are ours. Equivalence: two one-sided tests (Schuirmann 1987). Ratios: Fieller 1954.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from w2s_jax.metrics import Undefined

VERSION = "1"

SUPER, NEAR, LOSSY, OPEN = VERDICTS = ("super-recovery", "near-lossless", "lossy", "undetermined")


class Interval(NamedTuple):
    """An estimate between its limits."""

    mean: float
    lo: float
    hi: float


@dataclasses.dataclass(frozen=True)
class Spread:
    """Means of Z quantities and what makes them vary.

    Attributes:
        mean: f64[Z], over seeds, and over questions within datasets, datasets weighing the same.
        question: f64[Z, Z], covariance of the means owed to the draw of questions that seeds share (with one seed: of all).
        seed: f64[Z, Z], covariance of the means owed to the draw of seeds, noise included; zero with one seed.
        noise: f64[Z, Z], the part of `seed` that belongs to one seed and one cluster, and shrinks with more questions.
        skew: f64[Z], third moment over second moment of the clusters' influences.
        seeds, clusters: how many of each.
        free: degrees of freedom of `question`, clusters less datasets.
    """

    mean: np.ndarray
    question: np.ndarray
    seed: np.ndarray
    noise: np.ndarray
    skew: np.ndarray
    seeds: int
    clusters: int
    free: int

    def allowance(self, level: float) -> np.ndarray:
        """Returns the squared half widths of a two-sided interval as a quadratic form f64[Z, Z]."""
        tail = (1 + level) / 2
        over_questions = stats.t.ppf(tail, max(self.free, 1)) ** 2 * self.question
        over_seeds = stats.t.ppf(tail, self.seeds - 1) ** 2 * self.seed if self.seeds > 1 else 0.0
        return over_questions + over_seeds


def spread(values: np.ndarray, group: Sequence[str] | None = None, test: Sequence[str] | None = None) -> Spread:
    """Measures means and their variation.

    Args:
        values: f[Z, S, N], NaN where a seed was not asked a question (the same places for all Z).
        group: N cluster names ("" = its own cluster); None = every question is its own.
        test: N dataset names; None = all from one dataset.

    Raises:
        Undefined: there are no questions.

    >>> s = spread(np.array([[[1, 0, 1, 1.]]]))
    >>> s.mean, s.clusters
    (array([0.75]), 4)
    """
    values = np.asarray(values, np.float64)
    _, num_seeds, num_questions = values.shape
    asked = ~np.isnan(values[0])
    if not asked.any(axis=1).all():
        raise Undefined("there are no test questions")
    values = np.where(asked, values, 0)
    tests, test = np.unique(np.zeros(num_questions) if test is None else np.asarray(test), return_inverse=True)
    if group is None:
        cluster, stratum = np.arange(num_questions), test
    else:
        names = [(t, name, -1 if name else at) for at, (t, name) in enumerate(zip(test.tolist(), group, strict=True))]
        place = {name: at for at, name in enumerate(dict.fromkeys(names))}
        cluster, stratum = np.array([place[name] for name in names]), np.array([t for t, _, _ in place])
    num_clusters = len(stratum)

    def by_cluster(x: np.ndarray) -> np.ndarray:
        """Sums f[..., N] over clusters: f[..., clusters]."""
        if num_clusters == num_questions:
            return x
        lines = [np.bincount(cluster, line, num_clusters) for line in x.reshape(-1, num_questions)]
        return np.reshape(lines, (*x.shape[:-1], num_clusters))

    of_test = np.eye(len(tests))[test]
    rows = asked @ of_test
    weight = asked / ((rows > 0).sum(axis=1, keepdims=True) * rows[:, test].clip(1))
    per_seed = (values * weight).sum(axis=2)
    centred = values - (values @ of_test / rows.clip(1))[..., test]

    # Centring a dataset's clusters on their mean costs one degree of freedom.
    seen = ((by_cluster(asked.astype(float)) > 0) @ np.eye(len(tests))[stratum])[:, stratum]
    u = by_cluster(centred * weight) * np.sqrt(seen / (seen - 1).clip(1))

    total = u.mean(axis=1)
    share = by_cluster(weight.mean(axis=0))
    one_won_one_lost = 2 * np.mean(share**2)
    question = total @ total.T
    seed = noise = np.zeros_like(question)
    if num_seeds > 1:
        within = np.einsum("ysg,zsg->yz", u, u) / num_seeds
        size, axis = np.linalg.eigh((num_seeds * question - within) / (num_seeds - 1))
        question = (axis * size.clip(0)) @ axis.T
        seed = np.atleast_2d(np.cov(per_seed)) / num_seeds
        noise = (within - question) / num_seeds
    return Spread(
        mean=per_seed.mean(axis=1),
        question=question + one_won_one_lost * np.eye(len(values)),
        seed=seed,
        noise=noise,
        skew=(total**3).sum(axis=1) / ((total**2).sum(axis=1) + one_won_one_lost),
        seeds=num_seeds,
        clusters=num_clusters,
        free=num_clusters - len(tests),
    )


def interval(
    values: np.ndarray, group: Sequence[str] | None = None, test: Sequence[str] | None = None, *, level: float = 0.95
) -> Interval:
    """Gives the mean of f[S, N] values, with an interval for draws of seeds (where S > 1) and of questions.

    >>> tuple(round(x, 2) for x in interval([[1, 1, 0, 1] * 100]))
    (0.75, 0.71, 0.79)
    """
    return _interval(spread(np.asarray(values, np.float64)[None], group, test), level)


def _interval(s: Spread, level: float) -> Interval:
    z = stats.norm.ppf((1 + level) / 2)
    mean, half = s.mean[0], np.sqrt(s.allowance(level)[0, 0])
    middle = mean + (1 + 2 * z**2) / 6 * s.skew[0]
    return Interval(float(mean), float(min(middle - half, mean)), float(max(middle + half, mean)))


def ratio(
    top: np.ndarray,
    bottom: np.ndarray,
    group: Sequence[str] | None = None,
    test: Sequence[str] | None = None,
    *,
    name: str = "the denominator",
    level: float = 0.95,
) -> Interval:
    """Gives the ratio of two means with Fieller's interval.

    The interval holds every q for which `top - q * bottom` cannot be told from zero. It is bounded exactly when the mean of
    `bottom` is significantly above zero, and only then is a ratio given.

    Args:
        top, bottom: f[S, N], on the same seeds and questions.
        name: what the reason calls the denominator.

    Raises:
        Undefined: the denominator is not significantly above zero at `level`.

    >>> gold_gain, gain = np.array([[0, 1, 1, 0, 1, 0] * 50]), np.array([[0, 1, 1, 0, 0, 0] * 50])
    >>> tuple(round(x, 2) for x in ratio(gain, gold_gain))
    (0.67, 0.59, 0.75)
    """
    s = spread(np.stack([np.asarray(top, np.float64), np.asarray(bottom, np.float64)]), group, test)
    (num, den), allowed = s.mean, s.allowance(level)
    half = np.sqrt(allowed[1, 1])
    if den <= half:
        raise Undefined(f"{name} is {den:.3f} [{den - half:.3f}, {den + half:.3f}]: not above zero")
    a, b, c = den**2 - allowed[1, 1], num * den - allowed[0, 1], num**2 - allowed[0, 0]
    root = np.sqrt(max(b**2 - a * c, 0.0))
    return Interval(float(num / den), float((b - root) / a), float((b + root) / a))


def mcnemar(one: np.ndarray, other: np.ndarray) -> float:
    """Tests, exactly and on both sides, whether two students are right equally often: the p-value.

    Args:
        one, other: bool[N], on the same questions, of one seed (questions of several seeds are not independent).

    >>> mcnemar([1, 1, 1, 1, 1, 0], [0, 0, 0, 0, 0, 0])
    0.0625
    """
    one, other = np.asarray(one, bool), np.asarray(other, bool)
    won, lost = int((one & ~other).sum()), int((other & ~one).sum())
    return float(stats.binomtest(won, won + lost).pvalue) if won + lost else 1.0


def tost(difference: np.ndarray, margin: float = 0.02) -> float:
    """Tests whether a mean difference lies within +-margin: the larger p-value of the two one-sided paired t tests.

    This is the textbook test on one seed, printed beside the verdict; the verdict itself also reckons with clusters, datasets
    and seeds.

    Args:
        difference: f[N], question by question.

    >>> tost(np.tile([1, -1, 0, 0, 0, 0, 0, 0, 0, 0], 400)) < .05
    True
    """
    d = np.asarray(difference, np.float64)
    error = d.std(ddof=1) / np.sqrt(len(d)) if len(d) > 1 else np.inf
    room = margin - abs(d.mean())
    if not error:
        return 0.0 if room > 0 else 1.0
    return float(stats.t.sf(room / error, len(d) - 1)) if np.isfinite(error) else 1.0


def verdict(gap: Interval, narrow: Interval, margin: float = 0.02) -> str:
    """Names what a student recovers of training on gold labels.

    Args:
        gap: student - gold, with its 95 % interval.
        narrow: the same with its 90 % interval; it lies within +-margin exactly when two one-sided 5 % tests pass.
        margin: accuracy (a fraction) that one is ready to lose.

    >>> verdict(Interval(.03, .01, .05), Interval(.03, .013, .047))
    'super-recovery'
    >>> verdict(Interval(-.004, -.014, .006), Interval(-.004, -.012, .004))
    'near-lossless'
    >>> verdict(Interval(-.03, -.05, -.01), Interval(-.03, -.047, -.013))
    'lossy'
    >>> verdict(Interval(-.01, -.05, .03), Interval(-.01, -.043, .023))
    'undetermined'
    """
    if gap.lo > 0:
        return SUPER
    if -margin < narrow.lo and narrow.hi < margin:
        return NEAR
    return LOSSY if gap.hi < 0 else OPEN


def power(question: float, seed: float = 0.0, *, seeds: int = 1, margin: float = 0.02, alpha: float = 0.05) -> float:
    """Gives the chance of the verdict "near-lossless" when there is no difference at all.

    That is the power of the equivalence test, less the chance (at most alpha / 2) that "super-recovery" is said first.

    Args:
        question, seed: variances of the mean, as in `Spread`.
        seeds: how many seeds were run.
        margin: of the equivalence test.
        alpha: level of each of its two sides.

    Two students that differ on one question in ten, 900 and 2,138 questions:

    >>> round(power(.1 / 900), 2), round(power(.1 / 2138), 2)
    (0.2, 0.8)
    """
    # The interval's seed part is itself drawn: average over its chi-squared distribution at evenly spaced quantiles.
    drawn = stats.chi2.ppf((np.arange(400) + 0.5) / 400, seeds - 1) / (seeds - 1) if seeds > 1 else np.ones(1)

    def half_width(tail: float) -> np.ndarray:
        over_seeds = stats.t.ppf(tail, seeds - 1) ** 2 * seed * drawn if seeds > 1 else 0 * drawn
        return np.sqrt(stats.norm.ppf(tail) ** 2 * question + over_seeds)

    lowest = half_width(1 - alpha) - margin
    highest = np.minimum(-lowest, half_width(1 - alpha / 2))
    deviation = np.sqrt(question + seed)
    inside = stats.norm.cdf(highest / deviation) - stats.norm.cdf(lowest / deviation)
    return float(np.mean(inside.clip(0)))


def needed_n(
    num_questions: int,
    question: float,
    seed: float = 0.0,
    noise: float = 0.0,
    *,
    seeds: int = 1,
    margin: float = 0.02,
    alpha: float = 0.05,
    goal: float = 0.8,
) -> int | None:
    """Gives the number of questions at which `power` reaches the goal, with as many seeds; None where no number is enough.

    Args:
        num_questions: at which the variances were measured.
        question, seed, noise: variances of the mean, as in `Spread`; `question` and `noise` shrink as questions are added.

    >>> needed_n(1, .1)
    2141
    """
    shrinking = min(max(noise, 0.0), seed)
    lasting = seed - shrinking

    def enough(n: int) -> bool:
        scale = num_questions / n
        return power(question * scale, lasting + shrinking * scale, seeds=seeds, margin=margin, alpha=alpha) >= goal

    high = 1
    while not enough(high):
        high *= 2
        if high > 10**9:
            return None
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A student beside the one trained on gold labels.

    Attributes:
        gap: student - gold, with its 1 - alpha interval.
        verdict: one of `VERDICTS`.
        power: chance of "near-lossless" if there were no difference.
        needed_n: questions for a power of 0.8; None where none is needed, or no number is enough.
        mcnemar_p, tost_p: textbook tests on each seed alone, without clusters.
    """

    gap: Interval
    verdict: str
    power: float
    needed_n: int | None
    mcnemar_p: tuple[float, ...]
    tost_p: tuple[float, ...]


def decide(
    difference: np.ndarray,
    group: Sequence[str] | None = None,
    test: Sequence[str] | None = None,
    *,
    margin: float = 0.02,
    alpha: float = 0.05,
) -> tuple[Spread, Interval, str]:
    """Gives the verdict on a difference f[S, N], with its spread and its 1 - alpha interval; arguments as in `compare`."""
    s = spread(np.asarray(difference, np.float64)[None], group, test)
    gap, narrow = _interval(s, 1 - alpha), _interval(s, 1 - 2 * alpha)
    if (1 - margin) ** s.clusters > alpha:
        # Even if no question at all is lost, so few questions do not exclude a loss of `margin`.
        narrow = Interval(narrow.mean, -np.inf, np.inf)
    return s, gap, verdict(gap, narrow, margin)


def compare(
    student: np.ndarray,
    gold: np.ndarray,
    group: Sequence[str] | None = None,
    test: Sequence[str] | None = None,
    *,
    margin: float = 0.02,
    alpha: float = 0.05,
) -> Comparison:
    """Compares a student with the one trained on gold labels, seed by seed and question by question.

    Args:
        student, gold: f[S, N], correctness (1 or 0) on the same seeds and questions, NaN where not asked.
        margin: accuracy (a fraction) that counts as no loss; two accuracy points by default.

    >>> right = np.tile([True, True, False], (1, 1000))
    >>> compare(right, right).verdict
    'near-lossless'
    """
    student, gold = np.asarray(student, np.float64), np.asarray(gold, np.float64)
    difference = student - gold
    asked = ~np.isnan(difference)
    s, gap, said = decide(difference, group, test, margin=margin, alpha=alpha)
    question, seed, noise = s.question[0, 0], s.seed[0, 0], s.noise[0, 0]
    rules = {"seeds": s.seeds, "margin": margin, "alpha": alpha}
    reached = power(question, seed, **rules)
    return Comparison(
        gap=gap,
        verdict=said,
        power=reached,
        needed_n=needed_n(round(asked.sum(axis=1).mean()), question, seed, noise, **rules) if reached < 0.8 else None,
        mcnemar_p=tuple(mcnemar(one[on], other[on]) for one, other, on in zip(student, gold, asked, strict=True)),
        tost_p=tuple(tost(row[on], margin) for row, on in zip(difference, asked, strict=True)),
    )
