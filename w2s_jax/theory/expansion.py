"""The study of expansion: do the bounds hold, how far are they from the error, and what do they say of real embeddings?

1. On finite populations with two views (`two_views`) every constant is counted, so that each bound is a promise. Draw after
   draw, the student's true errors are held against the theorems; a bound that is ever exceeded is an error in the theorem or
   here. Beside them
   stands a promise that nobody made: Blum and Mitchell's bound without looking whether the views are independent.
2. How bounds and errors change with the views' dependence, beside the trivial bound and that of Fu et al.
3. On embeddings of texts (`probing`), where constants are counted on the points at hand, or estimated by an oracle.

Source: arXiv 2405.16043, sections 4 to 6.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from w2s_jax.theory import Figure, Study, Table, bounds, probing, two_views
from w2s_jax.theory import texts as worded
from w2s_jax.theory.judging import CORRECTION, COVERAGE, Population, Verdict, judge, promised
from w2s_jax.theory.neighbours import exact_eta
from w2s_jax.theory.partition import ABSTAIN, partition, share

KINDS: dict[str, Callable[..., Population]] = {"contents": two_views.contents, "gaussian": two_views.gaussian}
PATIENCE = 20  # draws for each one wanted in which a theorem says something
ALPHA, COVERAGE_RANGE = (0.05, 0.4), (0.3, 0.9)  # what populations are drawn from


@dataclasses.dataclass(frozen=True)
class Trial:
    """One drawn population.

    Attributes:
        verdicts: of all theorems, both classes.
        granted: P(f wrong | T_i) of each class beside Blum and Mitchell's bound, taken for granted.
        error, total, fu: the student's error over all points, the bound on it, and what that of Fu et al. comes to.
        weak_error: share of wrong weak labels.
    """

    verdicts: tuple[Verdict, ...]
    granted: tuple[tuple[Fraction, Fraction], ...]
    error: float
    total: float
    fu: float
    weak_error: float


def study(
    *,
    draws: int,
    size: int,
    etas: Sequence[float],
    dependence: float,
    dependences: Sequence[float],
    draws_each: int,
    seed: int,
    arrays: str,
    run: str,
    run_method: str,
    texts: Mapping[str, Any],
    neighbours: int,
    resamples: int,
    l2: float,
    probe_etas: Sequence[float],
) -> Study:
    """Runs all three parts.

    Args:
        draws: populations of each kind, and for each eta, in which at least one theorem says something; 0 = without part 1.
        size: points of a population.
        etas: share of neighbours that may differ where a classifier counts as robust.
        dependence: the largest of the draws of part 1.
        dependences, draws_each: part 2; 0 draws = without.
        seed: of everything.
        arrays: an .npz of `x` f[R, D], `weak` and `gold` i[R] for part 3; "" = without.
        run, run_method: workdir of a finished run and a method of it for part 3, see `probing.of_run`; "" = without.
        texts: keywords of `texts.embedded` for part 3; `model` "" = without.
        neighbours, resamples, l2, probe_etas: of part 3, see `probing.examine`.

    Raises:
        ValueError: an eta is not in [0, 1), there are too few draws in which a theorem says something, there is nothing to do,
            or the arrays are not as said.
    """
    for eta in (*etas, *probe_etas):
        exact_eta(eta)  # before minutes are spent on the others
    for name, number in (("draws", draws), ("draws_each", draws_each)):
        if number < 0:
            raise ValueError(f"{name}={number}: allowed is 0 (without) and more; change `{name}`")
    for name, correlation in (("dependence", dependence), *(("dependences", one) for one in dependences)):
        if not 0 <= correlation < 1:
            raise ValueError(f"{name}: {correlation} is no correlation from 0 to below 1; change `{name}`")
    embedded = {"embeddings": probing.loaded(arrays)} if arrays else {}
    if not (draws or draws_each or arrays or run or texts["model"]):
        raise ValueError(
            "nothing to study: draws, draws_each, arrays, run and texts.model are all 0 or empty; set one, such as "
            "--config.texts.model=DIR"
        )
    if run:
        embedded["run"] = probing.of_run(run, run_method)
    if texts["model"]:
        embedded["texts"] = worded.embedded(**texts, seed=seed)
    tables = [held(KINDS, draws=draws, size=size, etas=etas, dependence=dependence, seed=seed)] if draws else []
    figures: list[Figure] = []
    for kind, draw in KINDS.items() if draws_each else ():
        figures += along(kind, draw, size=size, dependences=dependences, draws=draws_each, seed=seed)
    for name, (x, weak, gold) in embedded.items():
        for eta in probe_etas:
            found = probing.examine(x, weak, gold, neighbours=neighbours, eta=eta, resamples=resamples, l2=l2, seed=seed)
            tables += found.tables(f"{name}_eta_{eta:g}")
    return Study(
        title="Expansion: what a student must correct",
        lead=(
            "Upper bounds on a student's true errors (arXiv 2405.16043), on populations where each quantity in them is "
            "counted, and on embeddings. A bound below alpha promises that the student corrects its weak teacher."
        ),
        tables=tuple(tables),
        figures=tuple(figures),
    )


def held(
    kinds: dict[str, Callable[..., Population]],
    *,
    draws: int,
    size: int,
    etas: Sequence[float],
    dependence: float,
    seed: int,
) -> Table:
    """Holds every theorem against the student's errors, in `draws` populations of each kind in which one says something."""
    rows = []
    for number, (kind, draw) in enumerate(kinds.items()):
        for place, eta in enumerate(etas):
            rng = np.random.default_rng([seed, number, place])
            trials = applicable(rng, draw, draws=draws, size=size, eta=eta, dependence=dependence)
            for theorem in (*CORRECTION, *COVERAGE):
                rows.append((kind, eta, f"Theorem {theorem}", *_summary(trials, theorem)))
            granted = [pair for trial in trials for pair in trial.granted]
            wrong = sum(realised > bound for bound, realised in granted)
            rows.append(
                (kind, eta, "Blum-Mitchell, unchecked", len(granted), len(granted), wrong, *[None] * 5, *_means(granted), None)
            )
    return Table(
        name="bounds",
        head=(
            "population",
            "eta",
            "bound",
            "classes",
            "applicable",
            "violated",
            "alpha",
            "f != weak",
            "not robust",
            "c",
            "q",
            "bound, mean",
            "error, mean",
            "below alpha",
        ),
        rows=tuple(rows),
        note=(
            f"{draws} populations of {size} points a row in which a theorem gives a bound below 1, two classes each; errors, "
            "constants and bounds are counts, compared without tolerance. Means are over the classes to which the "
            "theorem applies; below alpha: share of these with a bound below the weak labels' own error (on T_i: below 1/2)."
        ),
    )


def applicable(
    rng: np.random.Generator, draw: Callable[..., Population], *, draws: int, size: int, eta: float, dependence: float
) -> list[Trial]:
    """Draws populations until in so many of them a theorem gives a bound that says something, one below 1.

    Raises:
        ValueError: that is too rare.
    """
    trials: list[Trial] = []
    for _ in range(PATIENCE * draws):
        if len(trials) == draws:
            break
        trial = tried(rng, draw, size=size, eta=eta, dependence=rng.uniform(0, dependence))
        if any(verdict.bound is not None and verdict.bound < 1 for verdict in trial.verdicts):
            trials.append(trial)
    if len(trials) < draws:
        raise ValueError(
            f"a bound is below 1 in {len(trials)} of {PATIENCE * draws} populations with eta={eta}, {draws} are wanted; lower "
            "etas or dependence, or raise size in the config"
        )
    return trials


def tried(rng: np.random.Generator, draw: Callable[..., Population], *, size: int, eta: float, dependence: float) -> Trial:
    """Draws one population, its weak labels' quality too, and judges its student."""
    population = draw(rng, size=size, alpha=rng.uniform(*ALPHA), coverage=rng.uniform(*COVERAGE_RANGE), dependence=dependence)
    verdicts = judge(population, eta=eta)
    weak, gold, student = population.weak, population.gold, population.student
    covered = weak != ABSTAIN
    weak_error = share(weak != gold, covered)
    granted = []
    for part in partition(weak, gold):
        realised = share(student != gold, part.uncovered)
        if part.alpha is not None and realised is not None:
            bound = bounds.blum_mitchell(err=share(student != weak, part.covered), alpha=part.alpha).value
            granted += [(bound, realised)] if bound is not None else []
    return Trial(
        verdicts=verdicts,
        granted=tuple(granted),
        error=float(np.mean(student != gold)),
        total=float(promised(verdicts, population)),
        fu=float(bounds.fu(alpha=weak_error, coverage=Fraction(int(covered.sum()), len(weak))).value),
        weak_error=float(weak_error),
    )


def along(
    kind: str, draw: Callable[..., Population], *, size: int, dependences: Sequence[float], draws: int, seed: int
) -> tuple[Figure, Figure]:
    """What happens as the views come to depend on each other: expansion and errors; bounds over all points."""
    lines: dict[str, list] = {}
    wholes: dict[str, list] = {}
    for dependence in dependences:
        # A draw's alpha and coverage are the same all along the line.
        rngs = [np.random.default_rng([seed, number, *kind.encode()]) for number in range(draws)]
        trials = [tried(rng, draw, size=size, eta=0, dependence=dependence) for rng in rngs]
        first = [v for trial in trials for v in trial.verdicts if v.theorem == "B.1" and v.alpha is not None and v.points]
        known = [v for v in first if v.bound is not None]
        for name, values in (
            ("alpha: weak labels wrong", [v.alpha for v in first]),
            ("student wrong", [v.realised for v in first]),
            ("bound B.1, err + alpha where it does not apply", [min(v.bound or 1, v.err + v.alpha) for v in first]),
            ("expansion c, where B.1 applies", [v.c for v in known]),
            ("share of classes that B.1 applies to", [v.bound is not None for v in first]),
        ):
            if values:
                lines.setdefault(name, []).append((float(dependence), float(np.mean([float(v) for v in values]))))
        for name, values in (
            ("student wrong", [t.error for t in trials]),
            ("bound by expansion", [t.total for t in trials]),
            ("Fu et al., at its best", [t.fu for t in trials]),
        ):
            wholes.setdefault(name, []).append((float(dependence), float(np.mean(values))))
    caption = f"Means over {draws} populations of {size} points, eta = 0."
    return (
        Figure(f"dependence_{kind}", f"Covered points, {kind}", "dependence of the views", "share", lines, caption),
        Figure(f"whole_{kind}", f"All points, {kind}", "dependence of the views", "error", wholes, caption),
    )


def _summary(trials: Sequence[Trial], theorem: str) -> tuple:
    verdicts = [v for trial in trials for v in trial.verdicts if v.theorem == theorem]
    known = [v for v in verdicts if v.bound is not None]
    means = [_mean([getattr(v, name) for v in known]) for name in ("alpha", "err", "rho", "c", "q", "bound", "realised")]
    below = _mean([v.bound < (v.alpha if theorem in CORRECTION else Fraction(1, 2)) for v in known])
    return (len(verdicts), len(known), sum(v.violated for v in known), *means, below)


def _means(pairs: Sequence[tuple[Fraction, Fraction]]) -> tuple[float | None, float | None]:
    return _mean([one for one, _ in pairs]), _mean([other for _, other in pairs])


def _mean(values: Sequence) -> float | None:
    return float(np.mean([float(value) for value in values])) if values else None
