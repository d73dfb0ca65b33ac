"""Smooth labels over a graph: points that a model sees as alike should have alike labels.

    W_ij = exp(-d_ij^2 / sigma^2)         where j is among the k nearest of i, or i of j; 0 elsewhere
    P = D^-1 W                            each row a distribution over neighbours
    F <- alpha P F + (1 - alpha) Y        until it rests, at (1 - alpha) (I - alpha P)^-1 Y

A point without neighbours is its own, so that it keeps its label. What is far from everything is such a point: its weights
are 0 in floating point. The rows of P and of Y sum to 1, so those of F do.

Costs: the search is exact, scipy's k-d tree; with hundreds of features it looks at nearly all pairs, so that it is quadratic in
points. All the rest is linear in edges, of which there are at most N k.

Source: arXiv 2511.14166 (weak labels refined by graph smoothing); Zhou et al., NeurIPS 2003, and Zhu and Ghahramani 2002 for
the standard forms. Deviations: 1. the paper's internals are not known to us; row-stochastic P instead of D^-1/2 W D^-1/2, so
that values stay probabilities. 2. points of one group are never neighbours: a question's options would only level each other.
Everything here is pure numpy and scipy on the host.
"""

import dataclasses

import numpy as np
from scipy import sparse
from scipy.sparse import csgraph, linalg
from scipy.spatial import cKDTree

VERSION = "2"
TOLERANCE = 1e-9
"""How far the iteration may stop from where it would come to rest."""
LARGEST_ALPHA = 0.999
"""Nearer to 1 the iteration, which comes nearer to rest by this factor, would take more than tens of thousands of steps."""


@dataclasses.dataclass(frozen=True)
class Graph:
    """Who is beside whom.

    Attributes:
        weight: W, f64[N, N], sparse and symmetric, without loops.
        sigma: the width that weights fall off with, in the unit of the points.
    """

    weight: sparse.csr_matrix
    sigma: float

    @property
    def edges(self) -> int:
        return self.weight.nnz // 2

    @property
    def isolated(self) -> int:
        """Points without neighbours."""
        return int((np.diff(self.weight.indptr) == 0).sum())

    @property
    def components(self) -> int:
        """Pieces that nothing passes between; isolated points are pieces."""
        return int(csgraph.connected_components(self.weight, directed=False)[0])


def graph(x: np.ndarray, k: int, *, sigma: float = 0.0, group: np.ndarray | None = None) -> Graph:
    """The graph of nearest neighbours.

    Args:
        x: f[N, D], points.
        k: neighbours that each point has at least.
        sigma: width of the weights; 0 = the median distance to a neighbour that is not the same point.
        group: i[N], points of one group are no neighbours; None = each point is its own.

    Raises:
        ValueError: k or sigma is out of range, points are not finite, or all are too far apart to be neighbours.
    """
    if not (sigma >= 0 and np.isfinite(sigma)):
        raise ValueError(
            f"sigma={sigma}: allowed is a distance, or 0 for the median one to a neighbour; change `sigma` in the relabel "
            "section of the config"
        )
    index, distance = nearest(x, k, group)
    positive = distance[distance > 0]
    width = sigma or (float(np.median(positive)) if len(positive) else 1.0)
    place = np.repeat(np.arange(len(x)), k)
    value = np.exp(-((distance.ravel() / width) ** 2))
    value[value < np.finfo(np.float64).tiny] = 0.0  # nothing can be divided by sums of such numbers
    directed = sparse.csr_matrix((value, (place, index.ravel())), shape=(len(x),) * 2)
    weight = directed.maximum(directed.T).tocsr()
    weight.eliminate_zeros()
    if not weight.nnz:
        raise ValueError(
            f"no two of {len(x)} points are neighbours: at sigma={width:g} all weights are 0, the nearest two are "
            f"{distance.min():g} apart; raise `sigma` in the relabel section of the config (0 = the median distance)"
        )
    return Graph(weight, width)


def nearest(x: np.ndarray, k: int, group: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest others of each point, nearest first, and how far they are: i64[N, k], f64[N, k].

    Which of several equally far points are taken may depend on their order.

    Args:
        x: f[N, D].
        k: how many.
        group: i[N], points of one group are passed over; None = each point is its own.

    Raises:
        ValueError: k is out of range, or points are not finite.

    >>> nearest(np.array([[0.0], [1.0], [3.0]]), 1)[0].ravel().tolist()
    [1, 0, 1]
    """
    x = np.asarray(x, np.float64)
    group = np.arange(len(x)) if group is None else np.unique(group, return_inverse=True)[1].ravel()
    most = len(x) - int(np.bincount(group).max(initial=0))
    if not 1 <= k <= most:
        raise ValueError(
            f"neighbours={k} of {len(x)} points: allowed is 1..{most}; change `neighbours` in the relabel section of the config"
        )
    if not np.isfinite(x).all():
        raise ValueError("the student's embeddings hold NaN or infinity: check its weights, or use student.dtype='float32'")
    # Of as many as the largest group has members, itself among them, and k more, at least k are of other groups.
    distance, index = cKDTree(x).query(x, k + len(x) - most, workers=-1)
    others = np.argsort(group[index] == group[:, None], axis=1, kind="stable")[:, :k]
    return np.take_along_axis(index, others, 1), np.take_along_axis(distance, others, 1)


def walk(weight: sparse.csr_matrix) -> sparse.csr_matrix:
    """P = D^-1 W; a point without neighbours stays where it is.

    >>> walk(sparse.csr_matrix([[0, 2, 0], [2, 0, 0], [0, 0, 0]])).toarray().tolist()
    [[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]
    """
    degree = np.asarray(weight.sum(1), np.float64).ravel()
    alone = sparse.diags((degree == 0).astype(np.float64))
    return (sparse.diags(1 / np.where(degree > 0, degree, 1.0)) @ weight + alone).tocsr()


def smooth(step: sparse.csr_matrix, y: np.ndarray, *, alpha: float, tolerance: float = TOLERANCE) -> tuple[np.ndarray, int]:
    """F f64[N, C] to `tolerance`, and in how many steps; each is one product with the graph.

    A step shrinks the distance to the rest by alpha or more, whatever the graph, so their number depends on alpha alone.

    Args:
        step: P, see `walk`.
        y: f[N, C].
        alpha: how much neighbours count, from 0 to `LARGEST_ALPHA`.
        tolerance: largest distance of any number from where it would come to rest.

    Raises:
        ValueError: alpha is out of range.
    """
    refuse_alpha(alpha)
    y = np.asarray(y, np.float64)
    found, steps = y, 0
    while alpha > 0:
        further = alpha * (step @ found) + (1 - alpha) * y
        moved, found, steps = np.abs(further - found).max(initial=0.0), further, steps + 1
        if moved * alpha / (1 - alpha) <= tolerance:
            break
    return found, steps


def at_rest(step: sparse.csr_matrix, y: np.ndarray, *, alpha: float) -> np.ndarray:
    """(1 - alpha) (I - alpha P)^-1 Y, f64[N, C], by a sparse factorisation: what `smooth` comes to, for graphs of few edges.

    Raises:
        ValueError: alpha is out of range.
    """
    refuse_alpha(alpha)
    system = (sparse.identity(step.shape[0]) - alpha * step).tocsc()
    return (1 - alpha) * linalg.splu(system).solve(np.asarray(y, np.float64))


def refuse_alpha(alpha: float) -> None:
    """Makes sure that the iteration comes to rest.

    Raises:
        ValueError: alpha is out of range.
    """
    if not 0 <= alpha <= LARGEST_ALPHA:
        raise ValueError(
            f"alpha={alpha}: allowed is 0 (labels stay) to {LARGEST_ALPHA} (at 1 neighbours alone would count, and no label); "
            "change `alpha` in the relabel section of the config"
        )
