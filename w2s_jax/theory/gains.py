"""The study of gains: what theory predicts of a student beside what came of it, in runs of language models and on the bench.

1. Every finished run that was looked at with `analysis.gains` left its numbers in <workdir>/report/gains.json.
2. The bench plants worlds in which the same predictors can be computed: linear ones and patterns (`planted`), logistic students
   (`pairs`, `flow`) by the sign rule and the best point between student and teacher, and populations with two views
   (`two_views`) by expansion.
3. One table sets all predictions beside the gains; another says how far each predictor orders the gains as they came, by
   Spearman's rank correlation, and how often what it promises is kept.

Intervals are a bootstrap over runs and seeds, whose methods are drawn together; on the bench over draws. With few of them there
is none: methods of one run share teacher, student and questions, and say little about other runs.

Source: see the modules; which predictor is held against which gain, and the bench's sizes, are ours.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import numpy as np
from etils import epath
from scipy import stats

from w2s_jax.theory import Figure, Study, Table, expansion, flow, gaussian, planted, two_views
from w2s_jax.theory.pairs import weak_and_strong

NUMBERS = "report/gains.json"
LEAST_CLUSTERS = 5
"""Runs and seeds, or draws; with fewer, a correlation has no interval."""
TENTHS = 10
RATE, STEPS, RECORDS = 0.05, 600, 60  # of the flow of logistic students


@dataclasses.dataclass(frozen=True)
class Predictor:
    """What a number predicts.

    Attributes:
        realised: the field of a run's row that it is held against.
        means: what is said of that gain: "at least", "at most" (in size), "as much", "sign", "more" or "less" of it.
    """

    realised: str
    means: str


PREDICTORS: Mapping[str, Predictor] = {
    "misfit": Predictor("gain", "at most"),
    "misfit_squared": Predictor("gain_squared", "at least"),
    "misfit_divergence": Predictor("gain_divergence", "at least"),
    "overlap": Predictor("gain", "more"),
    "overlap_planted": Predictor("gain", "more"),
    "probe_gain": Predictor("gain", "as much"),
    "cka": Predictor("gain_squared", "less"),
    "kernel_norm": Predictor("gain_squared", "less"),
    "kernel_gain": Predictor("gain_squared", "as much"),
    "bound_gain": Predictor("gain_all", "at least"),
    "rule": Predictor("self_gain", "sign"),
    "arc_gain": Predictor("self_gain", "as much"),
}
KEEPS: Mapping[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "at least": lambda predicted, realised: realised >= predicted - 1e-12,
    "at most": lambda predicted, realised: np.abs(realised) <= predicted + 1e-12,
    "sign": lambda predicted, realised: (predicted > 0) == (realised > 0),
}
"""Whether a promise was kept; other predictors promise nothing that a single gain could break."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One prediction and what came of it.

    Attributes:
        world: the run's folder, or the bench's world.
        case: the method and seed, or the draw.
        cluster: cases of one are drawn together.
        predictor: a word of `PREDICTORS`.
        predicted, realised: the numbers.
        lo, hi: of the realised one, or None.
    """

    world: str
    case: str
    cluster: str
    predictor: str
    predicted: float
    realised: float
    lo: float | None = None
    hi: float | None = None


def study(*, runs: Sequence[str], seed: int, worlds: int, pairs: int, dimension: int, size: int, draws: int) -> Study:
    """Gathers the runs, computes the bench and compares.

    Args:
        runs: workdirs of finished runs; () = the bench alone.
        seed: of everything that is drawn.
        worlds: planted worlds of each kind, and populations.
        pairs: logistic students and teachers.
        dimension: of these.
        size: points of a population.
        draws: of the bootstrap.

    Raises:
        ValueError: a run has no gains, or a number is out of range.
    """
    for name, value, least in (("worlds", worlds, 1), ("pairs", pairs, 1), ("dimension", dimension, 2), ("draws", draws, 1)):
        if value < least:
            raise ValueError(f"{name}={value}: allowed is {least} or more; change {name} in the config")
    from_runs = [case for run in dict.fromkeys(runs) for case in read(run)]
    bench = [
        *planting("regressions", partial(planted.regressions, blind=False), worlds, seed),
        *planting("regressions, blind", partial(planted.regressions, blind=True), worlds, seed),
        *planting("patterns", planted.patterns, worlds, seed),
        *logistic(pairs, dimension, seed),
        *expanding(worlds, size, seed),
    ]
    several = len({case.world for case in from_runs}) > 1
    note = f"{len(set(runs))} runs, {worlds} worlds of each kind, {pairs} logistic pairs."
    return Study(
        title="Gains: predicted and realised",
        lead=(
            "What theory predicts that a student gains over its weak teacher, or over itself, beside what it gained: language "
            "models that were run, and worlds planted on the bench."
        ),
        tables=(
            agreement([*bench, *from_runs], draws=draws, seed=seed, together=several),
            Table("predictions", HEAD, (*(row(case) for case in from_runs), *tenths(bench)), f"{note} {READING}"),
        ),
        figures=tuple(drawn(bench)),
    )


HEAD = ("world", "case", "predictor", "says of the gain", "of", "predicted", "gain", "from", "to", "kept")
READING = (
    "A row is a method of a run, or a tenth of the bench's draws in order of what was predicted (means; kept: share). Gains: "
    "`gain` in answers right over the weak labels; `gain_squared` in squared error, `gain_divergence` in nats; `gain_all` in "
    "answers, over all questions; `self_gain` in answers right over the student as it was. Cka and kernel norm are said to go "
    "with less gain, overlap with more."
)


# ---- Runs ------------------------------------------------------------------------------------------------------------


def read(run: str) -> list[Case]:
    """The predictions of a finished run, from the folder that its --workdir named.

    Raises:
        ValueError: it has none.
    """
    path = epath.Path(run) / NUMBERS
    if not path.exists():
        raise ValueError(
            f"runs names {run!r}, where there is no {NUMBERS}: run it with --config.analysis.gains=500 (its students are in "
            "the store), or take it out of runs"
        )
    found = json.loads(path.read_text())
    cases = []
    for one in found["rows"]:
        for name, predictor in PREDICTORS.items():
            predicted, realised = one.get(name), one.get(predictor.realised)
            if predicted is None or realised is None:
                continue
            limits = (one.get(f"{predictor.realised}_{end}") for end in ("lo", "hi"))
            case = f"{one['method']}, seed {one['seed']}"
            cases.append(Case(run, case, f"{run} {one['seed']}", name, predicted, realised, *limits))
    return cases


# ---- Bench -----------------------------------------------------------------------------------------------------------


def planting(world: str, plant: Callable[..., planted.Predicted], number: int, seed: int) -> Iterable[Case]:
    """A planted world, drawn again and again."""
    for draw in range(number):
        for name, (predicted, realised) in plant(np.random.default_rng([seed, draw, *world.encode()])).items():
            yield Case(world, f"draw {draw}", f"{world} {draw}", name, predicted, realised)


def logistic(number: int, dimension: int, seed: int) -> Iterable[Case]:
    """Logistic students: the sign rule, and the accuracy at the best point of the arc from student to teacher."""
    some = weak_and_strong(np.random.default_rng([seed, *b"logistic"]), number, dimension)
    path = flow.population(some, rate=RATE, steps=STEPS, records=RECORDS)
    cos_s, cos_t, cos_st = some.cosines()
    start = gaussian.accuracy(path.start)
    gain = np.where(path.improved, gaussian.accuracy(path.best) - start, 0.0)
    arc = gaussian.accuracy(gaussian.best_in_plane(cos_s, cos_t, cos_st)) - gaussian.accuracy(cos_s)
    for k in range(number):
        for name, predicted in (("rule", cos_t[k] - cos_s[k] * cos_st[k]), ("arc_gain", arc[k])):
            yield Case("logistic", f"pair {k}", f"logistic {k}", name, float(predicted), float(gain[k]))


def expanding(number: int, size: int, seed: int) -> Iterable[Case]:
    """Populations of two views: Theorem B.1 on the covered points of each class to which it applies."""
    for kind, draw in (("contents", two_views.contents), ("gaussian", two_views.gaussian)):
        rng = np.random.default_rng([seed, *kind.encode()])
        for k in range(number):
            trial = expansion.tried(rng, draw, size=size, eta=0, dependence=rng.uniform(0, 0.6))
            for one in trial.verdicts:
                if one.theorem == "B.1" and one.bound is not None and one.bound < 1:
                    predicted, realised = float(one.alpha - one.bound), float(one.alpha - one.realised)
                    world = f"expansion, {kind}"
                    yield Case(world, f"draw {k}, class {one.label}", f"{kind} {k}", "bound_gain", predicted, realised)


# ---- Comparison ------------------------------------------------------------------------------------------------------


def agreement(cases: Sequence[Case], *, draws: int, seed: int, together: bool) -> Table:
    """How far each predictor orders the gains, world by world, and (`together`) over all runs.

    Args:
        cases: of all worlds.
        draws, seed: of the bootstrap.
        together: whether there are several runs.
    """
    own: dict[tuple[str, str], list[Case]] = {}
    for case in cases:
        own.setdefault((case.world, case.predictor), []).append(case)
        if together and case.world not in BENCH:
            own.setdefault(("all runs", case.predictor), []).append(case)
    rows = []
    for (world, name), some in own.items():
        predicted, realised = (np.array([getattr(case, end) for case in some]) for end in ("predicted", "realised"))
        clusters = np.unique([case.cluster for case in some], return_inverse=True)[1]
        rho, lo, hi = spearman(predicted, realised, clusters, draws=draws, seed=seed)
        keeps = KEEPS.get(PREDICTORS[name].means)
        kept = float(np.mean(keeps(predicted, realised))) if keeps else None
        means = (float(predicted.mean()), float(realised.mean()))
        told = (world, name, PREDICTORS[name].means, len(some), int(clusters.max()) + 1, rho, lo, hi, kept, *means)
        rows.append(told)
    head = (
        "world",
        "predictor",
        "says of the gain",
        "cases",
        "runs or draws",
        "Spearman",
        "from",
        "to",
        "kept",
        "predicted, mean",
    )
    note = (
        "Spearman's rank correlation of prediction and gain; 95 % by bootstrap over runs and seeds (bench: draws), none with "
        f"fewer than {LEAST_CLUSTERS}; – where all predictions or all gains are equal. Kept: share of cases in which what is "
        "promised (at least, at most, sign) came true. On the bench's linear worlds misfit and kernels are those of the "
        "student's questions, gains of new ones, so that what the student fits badly for want of questions comes off."
    )
    return Table("agreement", (*head, "gain, mean"), tuple(rows), note)


BENCH = ("regressions", "regressions, blind", "patterns", "logistic", "expansion, contents", "expansion, gaussian")


def spearman(
    one: np.ndarray, other: np.ndarray, cluster: np.ndarray, *, draws: int, seed: int
) -> tuple[float | None, float | None, float | None]:
    """Spearman's rank correlation (midranks) f[K], f[K] with its 95 % bootstrap interval over clusters i[K]; None = undefined.

    >>> spearman(np.array([1.0, 2, 3]), np.array([1.0, 2, 9]), np.arange(3), draws=10, seed=0)
    (1.0, None, None)
    """
    whole = _rank_correlation(one, other)
    number = int(cluster.max()) + 1
    if whole is None or number < LEAST_CLUSTERS:
        return whole, None, None
    members = [np.flatnonzero(cluster == c) for c in range(number)]
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(draws):
        rows = np.concatenate([members[c] for c in rng.integers(0, number, number)])
        value = _rank_correlation(one[rows], other[rows])
        found += [] if value is None else [value]
    if len(found) < 0.9 * draws:  # its interval would be one of the lucky draws alone
        return whole, None, None
    lo, hi = np.quantile(found, (0.025, 0.975))
    return whole, float(lo), float(hi)


def _rank_correlation(one: np.ndarray, other: np.ndarray) -> float | None:
    if len(one) < 3 or np.ptp(one) == 0 or np.ptp(other) == 0:
        return None
    return float(np.corrcoef(stats.rankdata(one), stats.rankdata(other))[0, 1])


def row(case: Case) -> tuple:
    """A line of the table."""
    predictor = PREDICTORS[case.predictor]
    keeps = KEEPS.get(predictor.means)
    kept = bool(keeps(np.float64(case.predicted), np.float64(case.realised))) if keeps else None
    said = (case.world, case.case, case.predictor, predictor.means, predictor.realised)
    return (*said, case.predicted, case.realised, case.lo, case.hi, kept)


def tenths(cases: Sequence[Case]) -> Iterable[tuple]:
    """Lines of the table: the cases of each world and predictor in order of what was predicted, a tenth at a time."""
    for (world, name), some in _by_predictor(cases).items():
        predictor = PREDICTORS[name]
        keeps = KEEPS.get(predictor.means)
        for number, (predicted, realised) in enumerate(_tenths(some), 1):
            kept = float(np.mean(keeps(predicted, realised))) if keeps else None
            said = (world, f"tenth {number}, {len(predicted)} cases", name, predictor.means, predictor.realised)
            yield (*said, float(predicted.mean()), float(realised.mean()), None, None, kept)


def drawn(cases: Sequence[Case]) -> Iterable[Figure]:
    """Each predictor of the bench: mean gain of each tenth over what was predicted, world by world."""
    lines: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for (world, name), some in _by_predictor(cases).items():
        points = [(float(predicted.mean()), float(realised.mean())) for predicted, realised in _tenths(some)]
        if all(math.isfinite(x + y) for x, y in points):
            lines.setdefault(name, {})[world] = points
    for name, series in lines.items():
        word = name.replace("_", " ")
        caption = f"Tenths of the draws in order of {word}, which says {PREDICTORS[name].means} of the gain."
        yield Figure(f"gain_by_{name}", f"Gain by {word}", word, "mean gain", series, caption)


def _by_predictor(cases: Sequence[Case]) -> dict[tuple[str, str], list[Case]]:
    found: dict[tuple[str, str], list[Case]] = {}
    for case in cases:
        found.setdefault((case.world, case.predictor), []).append(case)
    return found


def _tenths(cases: Sequence[Case]) -> Iterable[tuple[np.ndarray, np.ndarray]]:
    ordered = sorted(cases, key=lambda case: case.predicted)
    for part in np.array_split(np.arange(len(ordered)), min(TENTHS, len(ordered))):
        yield tuple(np.array([getattr(ordered[k], end) for k in part]) for end in ("predicted", "realised"))
