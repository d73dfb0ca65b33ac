"""A student on a finite population: its errors, and what each theorem promises about them.

Stage in: weak and true labels, neighbours, the labels that every classifier of a family gives, and the student's own. Stage
out: a `Verdict` for each class and theorem. As all points weigh the same, errors, constants and bounds are `Fraction`s: a
bound is violated or it is not, there is no tolerance.

A theorem holds for every q with which its family expands, so the q that gives the smallest bound is taken.

Source: arXiv 2405.16043.
"""

import dataclasses
from collections.abc import Callable
from fractions import Fraction
from functools import partial

import numpy as np
from scipy import sparse

from w2s_jax.theory import bounds
from w2s_jax.theory.bounds import Bound
from w2s_jax.theory.expanding import Profile, expansion, knots, robust_mistakes, robust_non_mistakes
from w2s_jax.theory.neighbours import robust
from w2s_jax.theory.partition import Part, partition, share

VERSION = "1"

Expand = Callable[[np.ndarray, np.ndarray, np.ndarray], Profile]
"""(family bool[U, N], A bool[N], B bool[N]) -> for which (c, q) the family expands on (A, B)."""


@dataclasses.dataclass(frozen=True)
class Population:
    """N points that weigh the same.

    Attributes:
        gold: i[N], true labels.
        weak: i[N], weak labels, -1 = none.
        graph: neighbours.
        f: i[F, N], the labels that each classifier of the student's family gives.
        student: i[N], the labels that the student gives; it is one of the family.
    """

    gold: np.ndarray
    weak: np.ndarray
    graph: sparse.csr_matrix
    f: np.ndarray
    student: np.ndarray


@dataclasses.dataclass(frozen=True)
class Verdict:
    """One theorem about the student's errors on one class.

    Attributes:
        theorem: such as "B.1".
        label: the class.
        points: of S_i (pseudolabel correction) or T_i (coverage expansion), where the error is.
        alpha, err, rho: as in `bounds`; None where undefined.
        c: the constant (of B.2 the smaller one); q: the one that gave the bound. None where nothing applies.
        bound: on the share of true errors; None = inapplicable, for a `reason`.
        realised: the share of true errors.
        reason: the precondition that failed, at the q that gave the largest c.
    """

    theorem: str
    label: int
    points: int
    alpha: Fraction | None
    err: Fraction | None
    rho: Fraction | None
    c: Fraction | None
    q: Fraction | None
    bound: Fraction | None
    realised: Fraction | None
    reason: str = ""

    @property
    def violated(self) -> bool:
        return self.bound is not None and self.realised > self.bound


CORRECTION = {"B.1": bounds.pseudolabel_correction, "4.1": bounds.pseudolabel_correction_simple}
COVERAGE = {"B.2": bounds.coverage_expansion, "4.2": bounds.coverage_expansion_simple, "B.3": bounds.coverage_from_good}


def judge(population: Population, *, eta: Fraction | float = 0, expand: Expand | None = None) -> tuple[Verdict, ...]:
    """Holds the student's errors against every theorem, class by class.

    Args:
        population: the points.
        eta: share of neighbours that may be labelled otherwise where a classifier counts as robust.
        expand: how expansion is measured; None = exactly, by (c, q, eta)-expansion on the population's graph.

    Raises:
        ValueError: no point has a weak label, or eta is not in [0, 1).
    """
    p = population
    expand = expand or partial(_exactly, graph=p.graph, eta=eta)
    steady, all_steady = robust(p.student, p.graph, eta), robust(p.f, p.graph, eta)
    verdicts = []
    for part in partition(p.weak, p.gold):
        verdicts += _correction(p, part, steady, all_steady, expand) + _coverage(p, part, steady, all_steady, expand)
    return tuple(verdicts)


def promised(verdicts: tuple[Verdict, ...], population: Population) -> Fraction:
    """A bound on the student's error over all points: the best of each class, the trivial one where no theorem applies.

    It is the sum over classes of P(S_i) times the smallest bound on S_i (err + alpha, or 1, at worst) and P(T_i) times that on
    T_i (1 at worst).
    """
    size, total = len(population.gold), Fraction(0)
    for part in partition(population.weak, population.gold):
        own = [v for v in verdicts if v.label == part.label]
        for theorems, points in ((CORRECTION, part.covered), (COVERAGE, part.uncovered)):
            most = [Fraction(1)] + [v.bound for v in own if v.theorem in theorems and v.bound is not None]
            if theorems is CORRECTION and part.covered.any():
                most.append(share(population.student != population.weak, part.covered) + part.alpha)
            total += Fraction(int(points.sum()), size) * min(most)
    return total


def _exactly(family: np.ndarray, a: np.ndarray, b: np.ndarray, *, graph: sparse.csr_matrix, eta: Fraction | float) -> Profile:
    return expansion(family, graph, a, b, eta)


def _correction(p: Population, part: Part, steady: np.ndarray, all_steady: np.ndarray, expand: Expand) -> list[Verdict]:
    off = p.student != p.weak
    known = {
        "label": part.label,
        "points": int(part.covered.sum()),
        "alpha": part.alpha,
        "err": share(off, part.covered),
        "rho": share(~steady, part.covered),
        "realised": share(p.student != p.gold, part.covered),
    }
    if reason := _missing({"S_i^good": part.good, "S_i^bad": part.bad}, part.label):
        return [_unknown(theorem, reason, known) for theorem in CORRECTION]
    profile = expand(robust_non_mistakes(p.f, p.gold, all_steady, part.good), part.bad, part.good)
    letters = {name: known[name] for name in ("err", "alpha", "rho")} | {"unfit": share(off | ~steady, part.covered)}
    tried = [(q, {"c": profile.at(q)}) for q in knots([profile])]
    return [_tightest(theorem, bound, tried, letters, known) for theorem, bound in CORRECTION.items()]


def _coverage(p: Population, part: Part, steady: np.ndarray, all_steady: np.ndarray, expand: Expand) -> list[Verdict]:
    known = {
        "label": part.label,
        "points": int(part.uncovered.sum()),
        "alpha": part.alpha,
        "err": share(p.student != p.weak, part.covered),
        "rho": share(~steady, part.uncovered),
        "realised": share(p.student != p.gold, part.uncovered),
    }
    if reason := _missing({"S_i^good": part.good, "S_i^bad": part.bad, "T_i": part.uncovered}, part.label):
        return [_unknown(theorem, reason, known) for theorem in COVERAGE]
    to_good = expand(robust_mistakes(p.f, p.gold, all_steady, part.uncovered), part.good, part.uncovered)
    to_bad = expand(robust_non_mistakes(p.f, p.gold, all_steady, part.uncovered), part.bad, part.uncovered)
    letters = {name: known[name] for name in ("err", "alpha", "rho")}
    verdicts = []
    for theorem, bound in COVERAGE.items():
        tried = []
        for q in knots([to_good, to_bad]):
            c1, c2 = to_good.at(q), to_bad.at(q)
            tried.append((q, {"B.2": {"c1": c1, "c2": c2}, "4.2": {"c": min(c1, c2)}, "B.3": {"c": c1}}[theorem]))
        verdicts.append(_tightest(theorem, bound, tried, letters, known))
    return verdicts


def _missing(sets: dict[str, np.ndarray], label: int) -> str:
    empty = [name for name, members in sets.items() if not members.any()]
    return f"{' and '.join(empty)} empty in class {label}" if empty else ""


def _unknown(theorem: str, reason: str, known: dict) -> Verdict:
    return Verdict(theorem, c=None, q=None, bound=None, reason=reason, **known)


def _tightest(theorem: str, bound: Callable[..., Bound], tried: list, letters: dict, known: dict) -> Verdict:
    """The smallest bound over the q that were tried; where there is none, the reason at the largest q (the largest c)."""
    found = [(q, constants, bound(q=q, **constants, **letters)) for q, constants in tried]
    good = [(each.value, q, constants) for q, constants, each in found if each.value is not None]
    if not good:
        q, constants, each = found[-1]
        return Verdict(theorem, c=None, q=None, bound=None, reason=each.reason, **known)
    value, q, constants = min(good, key=lambda entry: entry[:2])
    return Verdict(theorem, c=min(constants.values()), q=q, bound=value, **known)
