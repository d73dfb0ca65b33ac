"""Expansion: how many points of A a set of B's points has as neighbours, at least.

A family of sets U in B expands by (c, q, eta) on (A, B) when every U of it with P(U | B) > q has

    P_{1-eta}(U, A) >= c P(U | B),   P_{1-eta}(U, A) = min {P(V | A) : w(V, U) >= (1 - eta) w(N(U), U)}

where w counts edges; eta = 0 gives P(N(U) | A). On a finite population with a finite family the largest such c is found by
going through the family, for every q at once (`Profile`). Which sets count depends on the student's hypothesis class F:

    robust_mistakes       {x in B: f(x) != y(x)} and R_eta(f), for f in F
    robust_non_mistakes   {x in B: f(x)  = y(x)} and R_eta(f), for f in F
    every_subset          all of B's subsets: expansion for whatever F (to decide it in general is coNP-complete)

From a sample alone, P(N(U) | A) is estimated from below by an oracle n: A -> B with n(x) in N(x): P(n(x) in U | A)
(`by_oracle`).

Source: arXiv 2405.16043, definitions 3 to 7, section 5. Deviations: 1. >= in place of >, see `bounds`. 2. c is at most 1, as
in the proofs; a family without a set above q expands by 1.
"""

import bisect
import dataclasses
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from scipy import sparse

from w2s_jax.theory.neighbours import beside, exact_eta

VERSION = "1"

LARGEST = 16  # points whose subsets are all gone through


@dataclasses.dataclass(frozen=True)
class Profile:
    """For which (c, q) a family expands on (A, B).

    Attributes:
        q: ascending, from 0: where the largest c changes.
        c: ascending, in [0, 1]: what holds from this q up to the next.
        worst: for each of them the row of the family that allows no more, -1 where none falls short of 1.
    """

    q: tuple[Fraction, ...]
    c: tuple[Fraction, ...]
    worst: tuple[int, ...]

    def at(self, q: Fraction | float) -> Fraction:
        """The largest c that holds with this q.

        Raises:
            ValueError: q is not in [0, 1).
        """
        if not 0 <= q < 1:
            raise ValueError(f"q={q!r}: allowed is a share in [0, 1)")
        return self.c[bisect.bisect_right(self.q, q) - 1]


def expansion(family: np.ndarray, graph: sparse.csr_matrix, a: np.ndarray, b: np.ndarray, eta: Fraction | float = 0) -> Profile:
    """Finds for which (c, q, eta) a family expands on (A, B), exactly.

    Args:
        family: bool[U, N], subsets of B.
        graph: neighbours.
        a, b: bool[N].
        eta: share of the edges that may be cut.

    Raises:
        ValueError: A or B is empty, a set reaches out of B, or eta is not in [0, 1).

    >>> from w2s_jax.theory.neighbours import alike
    >>> a, b = np.arange(5) >= 3, np.arange(5) < 3
    >>> found = expansion(every_subset(b), alike(np.array([0, 0, 1, 0, 1])), a, b)
    >>> found.at(0), found.at(0.4)
    (Fraction(3, 4), Fraction(3, 4))
    """
    _check(family, a, b)
    return _profile(reach(family, graph, a, eta), family, a, b)


def by_oracle(family: np.ndarray, oracle: np.ndarray, a: np.ndarray, b: np.ndarray) -> Profile:
    """The same, estimated from below on a sample: P(N(U) | A) is replaced by the share of A whose oracle's answer is in U.

    Args:
        family: bool[U, N], subsets of B.
        oracle: i[A], for each point of A, in order, a neighbour in B.
        a, b: bool[N].

    Raises:
        ValueError: A or B is empty, or a set reaches out of B.
    """
    _check(family, a, b)
    return _profile(family[:, oracle].sum(axis=1), family, a, b)


def reach(family: np.ndarray, graph: sparse.csr_matrix, a: np.ndarray, eta: Fraction | float = 0) -> np.ndarray:
    """|A| P_{1-eta}(U, A), i64[U].

    The cheapest V keeps everything outside A, and of A the points with the most edges into U: as all points weigh the same,
    points are dropped from the fewest edges on while no more than eta of all edges are cut.

    Raises:
        ValueError: eta is not in [0, 1).
    """
    eta = exact_eta(eta)
    edges = beside(family, graph)
    budget = edges.sum(axis=-1) * eta.numerator // eta.denominator
    inside = np.sort(edges[:, a], axis=-1)
    reached = (inside > 0).sum(axis=-1)
    dropped = ((inside > 0) & (np.cumsum(inside, axis=-1) <= budget[:, None])).sum(axis=-1)
    return reached - dropped


def robust_mistakes(f: np.ndarray, gold: np.ndarray, robust: np.ndarray, b: np.ndarray) -> np.ndarray:
    """M_eta(B, F), bool[F, N].

    Args:
        f: i[F, N], the labels that the classifiers give.
        gold: i[N].
        robust: bool[F, N], `neighbours.robust` of them.
        b: bool[N].
    """
    return robust & b & (f != gold)


def robust_non_mistakes(f: np.ndarray, gold: np.ndarray, robust: np.ndarray, b: np.ndarray) -> np.ndarray:
    """M'_eta(B, F), bool[F, N]; arguments as in `robust_mistakes`."""
    return robust & b & (f == gold)


def every_subset(b: np.ndarray) -> np.ndarray:
    """All subsets of B, bool[2^|B|, N].

    Raises:
        ValueError: B has too many points.
    """
    place = np.flatnonzero(b)
    if len(place) > LARGEST:
        raise ValueError(f"B has {len(place)} points and 2^{len(place)} subsets; at most {LARGEST} points can be gone through")
    family = np.zeros((2 ** len(place), len(b)), bool)
    family[:, place] = np.arange(2 ** len(place))[:, None] >> np.arange(len(place)) & 1
    return family


def knots(profiles: Sequence[Profile]) -> tuple[Fraction, ...]:
    """The q at which a constant of any of the profiles changes, ascending."""
    return tuple(sorted({q for profile in profiles for q in profile.q if q < 1}))


def _profile(reached: np.ndarray, family: np.ndarray, a: np.ndarray, b: np.ndarray) -> Profile:
    """The smallest ratio among the sets above q, for every size q of a set."""
    size, num_a, num_b = family.sum(axis=1), int(a.sum()), int(b.sum())
    # One set for each size: that which reaches least.
    order = np.lexsort((reached, size))
    order = order[size[order] > 0]
    first = order[np.unique(size[order], return_index=True)[1]]
    entries, least, row = [], Fraction(1), -1
    for u in first[::-1]:  # from the largest sets down: what q below a set's size has to hold for
        ratio = Fraction(int(reached[u]) * num_b, num_a * int(size[u]))
        if ratio < least:
            entries.append((Fraction(int(size[u]), num_b), least, row))
            least, row = ratio, int(u)
    entries.append((Fraction(0), least, row))
    return Profile(*(tuple(column) for column in zip(*entries[::-1])))


def _check(family: np.ndarray, a: np.ndarray, b: np.ndarray) -> None:
    for name, part in (("A", a), ("B", b)):
        if not part.any():
            raise ValueError(f"{name} is empty, so nothing expands on (A, B): choose classes with points of both kinds")
    if (family & ~b).any():
        raise ValueError("a set of the family reaches out of B; intersect it with B")
