"""The weak-label partition: which points a weak teacher labels rightly, wrongly, or not at all, class by class.

A point has a true label y and a weak label, or none. S holds the points with a weak label, T those without; within the points
of true class i, S_i is parted into S_i^good (the weak label is right) and S_i^bad, and T_i is what is left. alpha_i =
P(S_i^bad | S_i).

Every probability of this package is that of a finite population whose points weigh the same: a count over a count, kept as a
`Fraction`. Repeat a point to give it more weight.

Source: arXiv 2405.16043, section 3.
"""

import dataclasses
from fractions import Fraction

import numpy as np

VERSION = "1"

ABSTAIN = -1
"""The weak label of a point that has none."""


@dataclasses.dataclass(frozen=True)
class Part:
    """The points of one true class.

    Attributes:
        label: the class.
        good, bad, uncovered: bool[N], S_i^good, S_i^bad and T_i.
    """

    label: int
    good: np.ndarray
    bad: np.ndarray
    uncovered: np.ndarray

    @property
    def covered(self) -> np.ndarray:
        """bool[N], S_i."""
        return self.good | self.bad

    @property
    def alpha(self) -> Fraction | None:
        """The share of wrong weak labels; None where S_i is empty."""
        return share(self.bad, self.covered)


def share(event: np.ndarray, given: np.ndarray) -> Fraction | None:
    """P(event | given); None where `given` is empty.

    >>> share(np.array([True, False, True]), np.array([True, True, False]))
    Fraction(1, 2)
    """
    total = int(np.count_nonzero(given))
    return Fraction(int(np.count_nonzero(event & given)), total) if total else None


def partition(weak: np.ndarray, gold: np.ndarray) -> tuple[Part, ...]:
    """Parts the points by true class, ascending.

    Args:
        weak: i[N], a class or `ABSTAIN`.
        gold: i[N], a class.

    Raises:
        ValueError: lengths differ, a class is negative, or no point has a weak label.

    >>> one, two = partition(np.array([0, 1, -1, 1]), np.array([0, 0, 0, 1]))
    >>> one.alpha, one.uncovered, two.alpha
    (Fraction(1, 2), array([False, False,  True, False]), Fraction(0, 1))
    """
    weak, gold = np.asarray(weak), np.asarray(gold)
    if weak.shape != gold.shape or weak.ndim != 1:
        raise ValueError(f"weak labels have shape {weak.shape}, true ones {gold.shape}; both must be one number a point")
    for name, label, least in (("weak", weak, ABSTAIN), ("gold", gold, 0)):
        if not np.issubdtype(label.dtype, np.integer) or (len(label) and label.min() < least):
            raise ValueError(
                f"{name} holds {label.dtype} values from {label.min() if len(label) else 'none'}; allowed are whole numbers "
                f"from {least} ({ABSTAIN} = no weak label)"
            )
    if not (weak != ABSTAIN).any():
        raise ValueError(
            f"S is empty: none of {len(weak)} points has a weak label; label some, or move the abstention threshold"
        )
    return tuple(
        Part(int(i), (gold == i) & (weak == i), (gold == i) & (weak != i) & (weak != ABSTAIN), (gold == i) & (weak == ABSTAIN))
        for i in np.unique(gold)
    )
