"""What expansion promises: upper bounds on a student's error on true labels, from its error on weak ones.

Letters of one class i: `err` = P(f != weak label | S_i), `alpha` = P(weak label wrong | S_i), `q` and `c` the expansion that
holds, `rho` = P(f not eta-robust | S_i), or | T_i where the bound is on T_i. A bound is a value, or inapplicable with the
precondition that failed; out of range (q = 2) is an error. Any numbers do: floats, or `Fraction`s, with which the bounds are
exact.

    pseudolabel_correction         Theorem B.1    of P(f wrong | S_i)
    pseudolabel_correction_simple  Theorem 4.1    the same, from B.1 with Delta = 3/4
    coverage_expansion             Theorem B.2    of P(f wrong | T_i)
    coverage_expansion_simple      Theorem 4.2    the same with c1 = c2
    coverage_from_good             Theorem B.3    the same, without expansion to S_i^bad
    blum_mitchell                  co-training: Theorem 4.2 with c = 1, q = 0, rho = 0
    unrobust_at_most               Lemma B.1      of rho
    trivial                        the triangle inequality
    fu                             what the bound of Fu et al. comes to at its best, for comparison

Source: arXiv 2405.16043. Deviations: 1. expansion is read with >= in place of >: the proofs use no more, and a set of measure
one could not expand by c = 1 otherwise. 2. c above 1 counts as 1, which it includes; the proofs assume c <= 1. 3. where rho =
0 its factor in B.2 is not looked at, though c_min / c_max <= 2 alpha.
"""

import dataclasses
from fractions import Fraction

VERSION = "1"

Number = float | Fraction


@dataclasses.dataclass(frozen=True)
class Bound:
    """A bound's value, or None and the precondition that failed."""

    value: Number | None
    reason: str = ""


def trivial(*, err: Number, alpha: Number) -> Bound:
    """err + alpha, of P(f wrong | S_i)."""
    _check(err=err, alpha=alpha)
    return Bound(err + alpha)


def pseudolabel_correction(
    *, err: Number, alpha: Number, c: Number, q: Number = 0, rho: Number = 0, unfit: Number | None = None
) -> Bound:
    """Theorem B.1, of P(f wrong | S_i): f is right where S_i^good expands to, so it cannot repeat all errors of the weak
    labels.

    Args:
        err, alpha, rho: see the module.
        c, q: the robust non-mistakes of the family in S_i^good expand by (c, q) on (S_i^bad, S_i^good).
        unfit: P(f != weak label or f not robust | S_i); None = err + rho, its largest value.

    Raises:
        ValueError: a probability is not in [0, 1], or q is not in [0, 1).

    >>> round(pseudolabel_correction(err=0.12, alpha=0.11, c=0.848).value, 4)
    0.0497
    >>> pseudolabel_correction(err=0.1, alpha=0.5, c=1).reason
    'alpha = 0.5, needed is alpha < 1/2'
    """
    unfit = min(err + rho, 1) if unfit is None else unfit
    _check(err=err, alpha=alpha, rho=rho, unfit=unfit, q=q)
    c = min(c, 1)
    if reason := _not_weak(alpha) or _no_expansion(c):
        return Bound(None, reason)
    if unfit > 1 - q - alpha:
        return Bound(
            None, f"P(f != weak or not robust | S_i) = {_short(unfit)}, needed is <= 1 - q - alpha = {_short(1 - q - alpha)}"
        )
    inner = c / (1 - alpha + c * alpha)
    return Bound((err - alpha * (2 * inner - 1) + 2 * inner * alpha * rho) / (1 - 2 * inner * alpha))


def pseudolabel_correction_simple(
    *, err: Number, alpha: Number, c: Number, q: Number = 0, rho: Number = 0, unfit: Number | None = None
) -> Bound:
    """Theorem 4.1, of P(f wrong | S_i); arguments and errors as in `pseudolabel_correction`.

    >>> round(pseudolabel_correction_simple(err=0.12, alpha=0.11, c=0.848).value, 4)
    0.0901
    """
    unfit = min(err + rho, 1) if unfit is None else unfit
    _check(err=err, alpha=alpha, rho=rho, unfit=unfit, q=q)
    c = min(c, 1)
    if reason := _not_weak(alpha) or _no_expansion(c):
        return Bound(None, reason)
    if not 4 * q < 3 * (1 - 2 * alpha):
        return Bound(None, f"q = {_short(q)}, needed is q < 3/4 (1 - 2 alpha) = {_short(3 * (1 - 2 * alpha) / 4)}")
    if 4 * unfit > 1 - alpha + 3 * c * alpha:
        most = (1 - alpha + 3 * c * alpha) / 4
        return Bound(
            None,
            f"P(f != weak or not robust | S_i) = {_short(unfit)}, needed is <= (1 - alpha + 3 c alpha) / 4 = {_short(most)}",
        )
    return Bound(2 * alpha / (1 - 2 * alpha) * rho + err + alpha * (2 - 3 * c) / 2)


def coverage_expansion(*, err: Number, alpha: Number, c1: Number, c2: Number, q: Number = 0, rho: Number = 0) -> Bound:
    """Theorem B.2, of P(f wrong | T_i): mistakes on T_i show as disagreement with right weak labels.

    Args:
        err, alpha: see the module.
        c1: the family's robust mistakes in T_i expand by (c1, q) on (S_i^good, T_i).
        c2: its robust non-mistakes in T_i expand by (c2, q) on (S_i^bad, T_i).
        rho: P(f not robust | T_i).

    Raises:
        ValueError: a probability is not in [0, 1], or q is not in [0, 1).

    >>> round(coverage_expansion(err=0.29, alpha=0.33, c1=0.75, c2=0.55).value, 3)
    0.338
    """
    _check(err=err, alpha=alpha, rho=rho, q=q)
    c1, c2 = min(c1, 1), min(c2, 1)
    if reason := _not_weak(alpha) or _no_expansion(c1) or _no_expansion(c2):
        return Bound(None, reason)
    if reason := _too_unfit(err, alpha, c1, q, rho):
        return Bound(None, reason)
    below = c1 - (c1 + c2) * alpha
    if below <= 0:
        return Bound(None, f"c1 - (c1 + c2) alpha = {_short(below)}, needed is > 0")
    factor = min(c1, c2) / max(c1, c2) - 2 * alpha
    if rho > 0 and factor <= 0:
        return Bound(None, f"c_min / c_max - 2 alpha = {_short(factor)}, needed is > 0 where rho > 0")
    unrobust = rho + alpha * rho / factor if rho > 0 else 0
    return Bound(unrobust + max(q, (err - c2 * alpha) / below))


def coverage_expansion_simple(*, err: Number, alpha: Number, c: Number, q: Number = 0, rho: Number = 0) -> Bound:
    """Theorem 4.2: B.2 with one constant for both expansions; arguments and errors as there.

    >>> round(coverage_expansion_simple(err=0.29, alpha=0.33, c=0.55).value, 3)
    0.58
    """
    return coverage_expansion(err=err, alpha=alpha, c1=c, c2=c, q=q, rho=rho)


def coverage_from_good(*, err: Number, alpha: Number, c: Number, q: Number = 0, rho: Number = 0) -> Bound:
    """Theorem B.3, of P(f wrong | T_i), for T_i that expands to S_i^good alone; arguments as in `coverage_expansion`, c = c1.

    >>> round(coverage_from_good(err=0.29, alpha=0.33, c=0.75).value, 3)
    0.577
    """
    _check(err=err, alpha=alpha, rho=rho, q=q)
    c = min(c, 1)
    if reason := _not_weak(alpha) or _no_expansion(c):
        return Bound(None, reason)
    return Bound(rho + max(q, err / (c * (1 - alpha))))


def unrobust_at_most(*, gamma: Number, eta: Number) -> Bound:
    """gamma / eta, of rho: few points can flip often where few neighbours flip on average (Markov; Lemma B.1).

    Args:
        gamma: E r(f, x), the mean flip rate over the points that rho is a share of.
        eta: rate above which a point counts as not robust.

    Raises:
        ValueError: gamma is not in [0, 1], or eta not in (0, 1).

    >>> unrobust_at_most(gamma=0.125, eta=0.5).value
    0.25
    """
    _check(gamma=gamma)
    if not 0 < eta < 1:
        raise ValueError(f"eta={eta!r}: allowed is a flip rate in (0, 1)")
    return Bound(min(gamma / eta, 1))


def blum_mitchell(*, err: Number, alpha: Number) -> Bound:
    """Co-training with views that are independent given the class, of P(f wrong | T_i).

    >>> round(blum_mitchell(err=0.2, alpha=0.1).value, 6)
    0.125
    """
    return coverage_expansion(err=err, alpha=alpha, c1=1, c2=1)


def fu(*, alpha: Number, coverage: Number) -> Bound:
    """P(S) 4 alpha (1 - alpha) + P(T): what the bound of Fu et al. (arXiv 2002.11955) on the error over S and T is at least.

    It is for two classes of one size, with equal alpha and coverage; its term for the student's own error is taken as 0
    (Proposition 3.1). It is no promise about a given student: it stands beside the bounds for comparison.

    >>> round(fu(alpha=0.1, coverage=0.5).value, 6)
    0.68
    """
    _check(alpha=alpha, coverage=coverage)
    return Bound(coverage * 4 * alpha * (1 - alpha) + 1 - coverage)


def _short(value: Number) -> str:
    return f"{float(value):.3g}"


def _check(**given: Number) -> None:
    for name, value in given.items():
        if not 0 <= value <= 1 or (name == "q" and value == 1):
            allowed = "[0, 1)" if name == "q" else "[0, 1]"
            raise ValueError(
                f"{name}={value!r}: allowed is {allowed}; it is a probability of the population that the bound is for"
            )


def _not_weak(alpha: Number) -> str:
    return "" if 2 * alpha < 1 else f"alpha = {_short(alpha)}, needed is alpha < 1/2"


def _no_expansion(c: Number) -> str:
    return "" if c > 0 else f"c = {_short(c)}, needed is c > 0: a set of the family has no neighbours where it should"


def _too_unfit(err: Number, alpha: Number, c1: Number, q: Number, rho: Number) -> str:
    most = c1 * (1 - q - alpha)
    return "" if err + rho < most else f"err + rho = {_short(err + rho)}, needed is < c1 (1 - q - alpha) = {_short(most)}"
