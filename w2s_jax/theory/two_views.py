"""Finite populations with two views, in which neighbourhoods, hypothesis class and so the expansion are known exactly.

The weak teacher sees the first view, the student the second; neighbours are points whose second views are alike. Two kinds:

    contents   the second view is one of a few contents; each point's content is its class's, drawn at random. Neighbours share
               a content; a few stray edges lead elsewhere. F = all functions of the content.
    gaussian   both views are numbers, normal around +-`separation` / 2 by class, correlated within a class. Neighbours lie
               within a radius. The weak label is the sign of the first view, none where it is too small. F = all thresholds,
               both ways round.

`dependence` in [0, 1) says how much the views have to do with each other within a class: with none, the errors of the weak
labels are spread over the second view like all other points (co-training); with much, the student can learn them.

The student is that of F which disagrees with the fewest weak labels; among several it is drawn.

Source: Blum and Mitchell 1998, the two views; the populations are ours.
"""

import itertools
from fractions import Fraction

import numpy as np
from scipy import sparse

from w2s_jax.theory.judging import Population
from w2s_jax.theory.neighbours import alike, ball, joined
from w2s_jax.theory.partition import ABSTAIN


def contents(
    rng: np.random.Generator,
    *,
    size: int = 120,
    num_contents: int = 4,
    alpha: float = 0.2,
    coverage: float = 0.6,
    dependence: float = 0.0,
    stray: float = 0.02,
) -> Population:
    """Draws a population of contents.

    Args:
        rng: of the draw.
        size: points.
        num_contents: of each class.
        alpha: about what share of the weak labels is wrong.
        coverage: about what share of the points has one.
        dependence: how far alpha and coverage differ between contents.
        stray: stray edges for each point.
    """
    gold = rng.integers(0, 2, size)
    content = gold * num_contents + rng.integers(0, num_contents, size)
    wrong = np.clip(alpha * (1 + dependence * rng.normal(size=2 * num_contents)), 0, 1)
    covered = np.clip(coverage * (1 + dependence * rng.normal(size=2 * num_contents) / 2), 0, 1)
    weak = np.where(rng.random(size) < wrong[content], 1 - gold, gold)
    weak = np.where(rng.random(size) < covered[content], weak, ABSTAIN)
    f = np.array(list(itertools.product((0, 1), repeat=2 * num_contents)))[:, content]
    one, other = rng.integers(0, size, (2, rng.poisson(stray * size)))
    strays = sparse.csr_matrix((np.ones(len(one), np.int64), (one, other)), shape=(size, size))
    graph = joined(alike(content), strays + strays.T)
    return Population(gold, weak, graph, f, fitted(rng, f, weak))


def gaussian(
    rng: np.random.Generator,
    *,
    size: int = 120,
    separation: float = 3.0,
    alpha: float = 0.2,
    coverage: float = 0.6,
    dependence: float = 0.0,
    radius: float = 0.25,
) -> Population:
    """Draws a population of numbers.

    Args:
        rng: of the draw.
        size, alpha, coverage: as in `contents`.
        separation: of the classes' means in the second view, in standard deviations.
        dependence: the correlation of both views within a class.
        radius: of the neighbourhood.
    """
    gold = rng.integers(0, 2, size)
    side = 2 * gold - 1
    noise, second = rng.normal(size=(2, size))
    first = dependence * second + np.sqrt(1 - dependence**2) * noise
    # The first view's band without a label, and its mean, are such that alpha and coverage come out in a large population.
    rank = np.argsort(np.argsort(side * first)) / size
    weak = np.where(rank < alpha * coverage, 1 - gold, np.where(rank >= 1 - coverage * (1 - alpha), gold, ABSTAIN))
    view = second + side * separation / 2
    cut = np.concatenate([[-np.inf], np.sort(view)])
    above = (view[None, :] > cut[:, None]).astype(int)
    f = np.concatenate([above, 1 - above])
    return Population(gold, weak, ball(view[:, None], radius), f, fitted(rng, f, weak))


def fitted(rng: np.random.Generator, f: np.ndarray, weak: np.ndarray) -> np.ndarray:
    """i[N], the labels of one of the classifiers that disagree with the fewest weak labels, drawn at random.

    Args:
        f: i[F, N].
        weak: i[N].
    """
    off = ((f != weak) & (weak != ABSTAIN)).sum(axis=1)
    return f[rng.choice(np.flatnonzero(off == off.min()))]


def known_constant(good: np.ndarray, bad: np.ndarray) -> Fraction:
    """The expansion of unions of contents on (bad, good) at q = 0, in closed form: that of the worst single content.

    Args:
        good, bad: i[K], points of each content.

    >>> known_constant(np.array([2, 2]), np.array([3, 1]))
    Fraction(1, 2)
    """
    total_good, total_bad = int(good.sum()), int(bad.sum())
    ratios = (Fraction(int(b) * total_good, total_bad * int(g)) for g, b in zip(good, bad) if g)
    return min([Fraction(1), *ratios])
