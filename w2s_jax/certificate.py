"""Certified purity (stage select, rule `certified`): labelled questions that nothing was fitted on vouch for a threshold.

Stage in: trust scores of calibration questions and whether their labels are right; the trust scores of the target. Stage out:
a `Certificate`. Of K thresholds that the config fixes before any score is seen, threshold t keeps n calibration questions, a
share p of them right. A lower bound of its purity, each at level delta / K:

    hoeffding         p - sqrt(log(K / delta) / (2 n))
    clopper_pearson   the delta / K quantile of Beta(n p, n - n p + 1), the exact binomial test turned round; never below the
                      other

With probability 1 - delta over the draw of the calibration questions all K bounds hold at once, so the smallest threshold whose
bound reaches the wanted purity may be taken as if it had been chosen beforehand. Where none reaches it, nothing is certified.

What is bounded, a choice of `pool`:

    population   the chance that the label of a new question is right, given that its score reaches t
    finite       the share of right labels among those m that the target at hand keeps, which scatters about that chance. The
                 two bounds become p - sqrt(log(K / delta) (1 / n + 1 / m) / 2), and the smallest number of right labels among
                 m that the hypergeometric test of n against m does not refuse; both tend to the population's as m grows.

Counted is what a selection counts: answered questions, each by its most trusted row.

Assumed: 1. calibration and target questions are draws from one population: a certificate is not valid out of distribution, and
`caveats` says so where the data sets or the interfaces differ by name (other shares of the same data sets it does not see).
2. Questions are independent of each other. Those that share a passage or a game are kept together when the calibration part is
cut off, but the bounds take each as one more draw; where labels within a group are right or wrong together, they are too high.

Source: Hoeffding 1963; Clopper and Pearson 1934; prediction from a hypergeometric test, Thatcher 1964. arXiv 2606.01000 picks
its threshold by "a Hoeffding upper bound" and gives no formula: grid, union bound, both pools and all defaults are ours.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from scipy import special, stats

from w2s_jax.types import Certificate, Question

VERSION = "1"
OUT_OF_DISTRIBUTION = "not valid out of distribution"
POOLS = ("population", "finite")


def hoeffding(right: np.ndarray, rows: np.ndarray, delta: float, pool: np.ndarray | None = None) -> np.ndarray:
    """Lower bounds of purity by Hoeffding's inequality.

    Args:
        right, rows: i[K], right labels and all labels at each threshold.
        delta: chance in (0, 1) that one bound fails.
        pool: i[K], labels that the target at hand keeps; None = the population's purity is bounded.

    Returns:
        f64[K] in [0, 1], 0 where there are no rows.

    >>> hoeffding(np.array([95]), np.array([100]), 0.05).round(3)
    array([0.828])
    """
    right, rows = np.asarray(right, np.float64), np.asarray(rows, np.float64)
    known = rows > 0
    scatter = 1 / np.where(known, rows, 1)
    if pool is not None:
        known = known & (np.asarray(pool) > 0)
        scatter = scatter + 1 / np.maximum(pool, 1)
    bound = right / np.maximum(rows, 1) - np.sqrt(np.log(1 / delta) * scatter / 2)
    return np.where(known, np.maximum(bound, 0.0), 0.0)


def clopper_pearson(right: np.ndarray, rows: np.ndarray, delta: float, pool: np.ndarray | None = None) -> np.ndarray:
    """Lower bounds of purity by the exact test; arguments and result as in `hoeffding`.

    >>> clopper_pearson(np.array([95]), np.array([100]), 0.05).round(3)
    array([0.898])
    """
    right, rows = np.asarray(right, np.int64), np.asarray(rows, np.int64)
    if pool is None:
        return np.where(right > 0, special.betaincinv(np.maximum(right, 1), rows - right + 1, delta), 0.0)
    pool = np.asarray(pool, np.int64)
    low, high = np.zeros_like(pool), pool.copy()  # the number of right labels in the pool that is refused last lies between
    while (open_ := low < high).any():
        middle = (low + high) // 2
        chance = stats.hypergeom.sf(right - 1, rows + pool, right + middle, rows)
        refused = chance <= delta
        low, high = np.where(open_ & refused, middle + 1, low), np.where(open_ & ~refused, middle, high)
    return low / np.maximum(pool, 1)


BOUNDS: Mapping[str, Callable[..., np.ndarray]] = {"hoeffding": hoeffding, "clopper_pearson": clopper_pearson}


@dataclasses.dataclass(frozen=True)
class Terms:
    """What is to be certified, and how.

    Attributes:
        purity: wanted share of right labels among those taught, in (0, 1).
        delta: chance that a certificate is wrong, in (0, 0.5].
        bound: of `BOUNDS`.
        pool: of `POOLS`.
        grid: the thresholds, ascending, in [0, 1].
        calibration_frac: share of the source questions that is held back for it, in (0, 0.9].

    Raises:
        ValueError: one of them is out of range.
    """

    purity: float
    delta: float
    bound: str
    pool: str
    grid: tuple[float, ...]
    calibration_frac: float

    def __post_init__(self):
        for name, allowed, fine in (
            ("purity", "above 0 and below 1", 0 < self.purity < 1),
            ("delta", "above 0, at most 0.5", 0 < self.delta <= 0.5),
            ("bound", ", ".join(BOUNDS), self.bound in BOUNDS),
            ("pool", ", ".join(POOLS), self.pool in POOLS),
            ("calibration_frac", "above 0, at most 0.9", 0 < self.calibration_frac <= 0.9),
            (
                "grid",
                "one or more thresholds in [0, 1], ascending",
                len(self.grid) > 0
                and 0 <= self.grid[0]
                and self.grid[-1] <= 1
                and all(a < b for a, b in zip(self.grid, self.grid[1:])),
            ),
        ):
            if not fine:
                raise ValueError(
                    f"select.{name}={getattr(self, name)!r}: allowed is {allowed}; change select.{name} in the config"
                )


def certify(
    score: np.ndarray, correct: np.ndarray, terms: Terms, *, target_score: np.ndarray, caveats: Sequence[str] = ()
) -> Certificate:
    """Finds the smallest threshold whose purity is certified.

    Args:
        score: f32[N], trust of each calibration question (of its most trusted answered row).
        correct: bool[N], whether that row is right.
        terms: what is to be certified.
        target_score: f32 of each target question, likewise; says how many labels a threshold keeps.
        caveats: why the certificate may not hold, for those who read it.

    >>> terms = Terms(0.9, 0.05, "clopper_pearson", "population", (0.0, 0.5), 0.25)
    >>> score, correct = np.float32([0.2] * 60 + [0.8] * 90), np.arange(150) >= 50
    >>> certify(score, correct, terms, target_score=score).threshold
    0.5
    """
    score, correct, target_score = np.asarray(score), np.asarray(correct, bool), np.asarray(target_score)
    # One threshold at a time: a plain number is compared in the scores' own format, as `selection` does it.
    reached = np.array([score >= t for t in terms.grid])
    rows, right = reached.sum(axis=1), (reached & correct).sum(axis=1)
    kept = np.array([(target_score >= t).sum() for t in terms.grid])
    pool = kept if terms.pool == "finite" else None
    bound = BOUNDS[terms.bound](right, rows, terms.delta / len(terms.grid), pool)
    with np.errstate(invalid="ignore"):
        curve = np.stack([terms.grid, rows, right / rows, bound, kept, kept / max(len(target_score), 1)], axis=1)
    good = (bound >= terms.purity) & (kept > 0)
    return Certificate(
        purity=terms.purity,
        delta=terms.delta,
        bound=terms.bound,
        pool=terms.pool,
        threshold=float(terms.grid[int(np.argmax(good))]) if good.any() else None,
        curve=curve.astype(np.float64),
        caveats=tuple(caveats),
    )


def hold_back(questions: Sequence[Question], frac: float, together: bool, seed: np.ndarray) -> frozenset[str]:
    """Draws the questions that are held back for calibration: their ids.

    Args:
        questions: of the source, in any order.
        frac: share of them (of the groups, where these are kept together).
        together: keep questions of a group (a passage, a game) on one side.
        seed: u32, words of a random key.

    Raises:
        ValueError: there are not two questions, or groups, to part.
    """
    unit = {q.id: (q.group or q.id) if together else q.id for q in questions}
    names = sorted(set(unit.values()))
    if len(names) < 2:
        raise ValueError(
            f"select.rule='certified' parts the source in two, and it has {len(names)} question or group; change tasks.source "
            "in the config"
        )
    count = min(max(round(frac * len(names)), 1), len(names) - 1)
    drawn = {names[i] for i in np.random.default_rng(seed).permutation(len(names))[:count]}
    return frozenset(i for i, name in unit.items() if name in drawn)


def sentence(certificate: Certificate) -> str:
    """What is certified, in words."""
    if certificate.threshold is None:
        return f"Nothing is certified: no bound of the purity reaches {certificate.purity:g}."
    (line,) = certificate.curve[certificate.curve[:, 0] == certificate.threshold]
    _, rows, share, bound, kept, coverage = line
    whose = {"population": "labels like those taught", "finite": "labels taught"}[certificate.pool]
    return (
        f"With confidence {1 - certificate.delta:g}, at least {bound:.3f} of the {whose} are right (wanted: "
        f"{certificate.purity:g}; bound: {certificate.bound}). At threshold {certificate.threshold:g}, {share:.3f} of "
        f"{rows:,.0f} calibration questions are right, and {kept:,.0f} target questions are kept (coverage {coverage:.1%})."
    )


def caveats(calibration: Sequence[Question], target: Sequence[Question]) -> tuple[str, ...]:
    """Says why a certificate from these questions may not hold for those, () if nothing speaks against it."""
    found = []
    kinds = [{"choice" if q.options else "free" for q in questions} for questions in (calibration, target)]
    names = [sorted({q.task for q in questions}) for questions in (calibration, target)]
    if kinds[0] != kinds[1]:
        one, other = (" and ".join(sorted(kind)) for kind in kinds)
        found.append(f"{OUT_OF_DISTRIBUTION}: calibrated on answers of the interface {one}, applied to {other}")
    elif names[0] != names[1]:
        found.append(f"{OUT_OF_DISTRIBUTION}: calibrated on {', '.join(names[0])}, applied to {', '.join(names[1])}")
    sizes = Counter(q.group for q in calibration if q.group)
    shared = sum(size for size in sizes.values() if size > 1)
    if shared:
        found.append(
            f"{shared} of {len(calibration)} calibration questions share a passage or a game with another: they are taken as "
            "independent, which makes the bound too high where their labels are right or wrong together"
        )
    return tuple(found)
