"""Neighbourhoods: which points a strong model can be expected to treat alike, as a graph; and how robust a classifier is on it.

N(x) is a symmetric relation, here a sparse graph without loops: points with an equal view (`alike`), within a radius (`ball`),
or among each other's k nearest (`nearest`, either way round). All points weigh the same, so the weight of an edge set is the
number of its edges.

    r(f, x) = P(f(x') != f(x) | x' in N(x))      flip rate; 0 for a point without neighbours
    R_eta(f) = {x: r(f, x) <= eta}                the eta-robust points
    rho = P(not in R_eta(f) | A) <= E r(f, x) / eta   (Markov; Lemma B.1)

Source: arXiv 2405.16043, definitions 1, 2 and 5. Deviations: 1. a point is not its own neighbour, which changes neither N(U)
outside U nor any theorem.
"""

from fractions import Fraction

import numpy as np
from scipy import sparse
from scipy.sparse import csgraph
from scipy.spatial import cKDTree

VERSION = "1"


def alike(view: np.ndarray) -> sparse.csr_matrix:
    """Points with an equal view are neighbours.

    Args:
        view: i[N].

    >>> alike(np.array([7, 8, 7])).toarray().astype(int)
    array([[0, 0, 1],
           [0, 0, 0],
           [1, 0, 0]])
    """
    view = np.unique(np.asarray(view), return_inverse=True)[1]
    member = sparse.csr_matrix((np.ones(len(view), np.int64), (np.arange(len(view)), view)))
    return _simple(member @ member.T)


def ball(x: np.ndarray, radius: float) -> sparse.csr_matrix:
    """Points no farther apart than `radius` (Euclidean) are neighbours.

    Args:
        x: f[N, D].

    Raises:
        ValueError: the radius is not positive.
    """
    if not radius > 0:
        raise ValueError(f"radius={radius!r}: allowed is a positive distance; change it where the graph is made")
    pair = cKDTree(np.asarray(x, np.float64)).query_pairs(radius, output_type="ndarray")
    return _of_pairs(len(x), pair[:, 0], pair[:, 1])


def nearest(x: np.ndarray, k: int) -> sparse.csr_matrix:
    """Each point and its k nearest others (Euclidean) are neighbours, so that a point may have more than k.

    Args:
        x: f[N, D]; give rows of length one for cosine.

    Raises:
        ValueError: k is not in 1..N-1.

    >>> nearest(np.array([[0.0], [1.0], [3.0]]), 1).toarray().astype(int)
    array([[0, 1, 0],
           [1, 0, 1],
           [0, 1, 0]])
    """
    x = np.asarray(x, np.float64)
    if not 1 <= k < len(x):
        raise ValueError(f"k={k} neighbours of {len(x)} points: allowed is 1..{len(x) - 1}; change neighbours in the config")
    found = cKDTree(x).query(x, k + 1)[1]
    # Equal points come in any order, so a point need not be its own first neighbour.
    others = np.array([row[row != i][:k] for i, row in enumerate(found)])
    return _of_pairs(len(x), np.repeat(np.arange(len(x)), k), others.ravel())


def nearest_of(x: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The neighbourhood oracle n: A -> B by embeddings: i[A], for each point of A the nearest one of B.

    Args:
        x: f[N, D].
        a, b: bool[N].

    Raises:
        ValueError: B is empty.
    """
    if not b.any():
        raise ValueError(f"no oracle from {a.sum()} points to none: B is empty")
    place = np.flatnonzero(b)
    if not a.any():
        return place[:0]
    return place[cKDTree(np.asarray(x[b], np.float64)).query(np.asarray(x[a], np.float64))[1]]


def joined(one: sparse.csr_matrix, other: sparse.csr_matrix) -> sparse.csr_matrix:
    """The edges of both."""
    return _simple(one + other)


def caution(graph: sparse.csr_matrix) -> str:
    """What is to be said of a graph that is not connected; "" of one that is.

    Expansion holds between what is connected alone: a set U cannot reach another piece, and a point without neighbours is never
    reached and counts as robust.

    >>> caution(alike(np.array([0, 0, 1, 1, 2])))
    'the graph is not connected: 3 pieces, the largest has 2 of 5 points, 1 points have no neighbour'
    """
    pieces, piece = csgraph.connected_components(graph, directed=False)
    if pieces <= 1:
        return ""
    alone = int((np.diff(graph.indptr) == 0).sum())
    return (
        f"the graph is not connected: {pieces} pieces, the largest has {np.bincount(piece).max()} of {graph.shape[0]} points, "
        f"{alone} points have no neighbour"
    )


def flip_rate(f: np.ndarray, graph: sparse.csr_matrix) -> np.ndarray:
    """r(f, x), f64[..., N], of one classifier or of many.

    Args:
        f: i[..., N], labels.

    >>> flip_rate(np.array([0, 0, 1]), alike(np.array([0, 0, 0])))
    array([0.5, 0.5, 1. ])
    """
    flips, degree = _flips(f, graph)
    return flips / np.maximum(degree, 1)


def robust(f: np.ndarray, graph: sparse.csr_matrix, eta: Fraction | float) -> np.ndarray:
    """R_eta(f), bool[..., N], of one classifier or of many.

    Raises:
        ValueError: eta is not in [0, 1).

    >>> robust(np.array([0, 0, 1]), alike(np.array([0, 0, 0])), 0.5)
    array([ True,  True, False])
    """
    flips, degree = _flips(f, graph)
    eta = exact_eta(eta)
    return flips * eta.denominator <= degree * eta.numerator


def exact_eta(eta: Fraction | float) -> Fraction:
    """The eta that is meant: 0.1 is one tenth, so that a rate of 1 in 10 is within it.

    Raises:
        ValueError: eta is not in [0, 1).
    """
    if not 0 <= eta < 1:
        raise ValueError(f"eta={eta!r}: allowed is a flip rate in [0, 1); change etas or probe_etas in the config")
    return Fraction(eta).limit_denominator(10**6)


def _flips(f: np.ndarray, graph: sparse.csr_matrix) -> tuple[np.ndarray, np.ndarray]:
    """How many neighbours of each point are labelled otherwise, i64[..., N], and how many it has, i64[N]."""
    f = np.asarray(f)
    degree = np.diff(graph.indptr).astype(np.int64)
    agree = np.zeros(f.shape, np.int64)
    for label in np.unique(f):
        is_it = f == label
        agree += is_it * beside(is_it, graph)
    return degree - agree, degree


def beside(members: np.ndarray, graph: sparse.csr_matrix) -> np.ndarray:
    """How many neighbours each point has in each set: i64[..., N] of bool[..., N]."""
    return (graph @ members.astype(np.int64).T).T  # the graph is symmetric


def _of_pairs(size: int, one: np.ndarray, other: np.ndarray) -> sparse.csr_matrix:
    edges = sparse.csr_matrix((np.ones(len(one), np.int64), (one, other)), shape=(size, size))
    return _simple(edges + edges.T)


def _simple(edges: sparse.csr_matrix) -> sparse.csr_matrix:
    """Each edge once, no loops."""
    edges = sparse.csr_matrix(edges)
    edges.setdiag(0)
    edges.eliminate_zeros()
    edges.data[:] = 1
    return edges
