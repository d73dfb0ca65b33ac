"""Smoothing over a graph: the iteration ends where the closed form is, and what has no neighbours keeps its label."""

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from w2s_jax import smoothing


def points(n=120, d=20, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)), rng.dirichlet(np.ones(3), n)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.9, 0.99])
def test_the_iteration_comes_to_the_closed_form(alpha):
    x, y = points()
    step = smoothing.walk(smoothing.graph(x, 5).weight)
    found, _ = smoothing.smooth(step, y, alpha=alpha)
    wanted = smoothing.at_rest(step, y, alpha=alpha)
    assert abs(found - wanted).max() < 1e-6
    dense = (1 - alpha) * np.linalg.inv(np.eye(len(x)) - alpha * step.toarray()) @ y
    assert abs(wanted - dense).max() < 1e-9
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-12)
    assert (alpha == 0) == np.array_equal(found, y)


@pytest.mark.parametrize("k", [1, 4, 119])
def test_neighbours_are_those_of_an_exhaustive_search(k):
    x, _ = points()
    x += 1000.0  # far from the origin
    distance, index = NearestNeighbors(n_neighbors=k + 1, algorithm="brute").fit(x - 1000.0).kneighbors(x - 1000.0)
    found, far = smoothing.nearest(x, k)
    np.testing.assert_array_equal(found, index[:, 1:])
    np.testing.assert_allclose(far, distance[:, 1:], rtol=1e-6)


@pytest.mark.parametrize("k", [1, 5])
def test_neighbours_of_other_groups_are_those_of_an_exhaustive_search(k):
    x, _ = points()
    group = np.sort(np.random.default_rng(0).integers(0, 20, len(x)))  # of unequal sizes
    far = np.linalg.norm(x[:, None] - x[None], axis=-1)
    far[group[:, None] == group] = np.inf
    wanted = np.argsort(far, axis=1)[:, :k]
    index, distance = smoothing.nearest(x, k, group)
    np.testing.assert_array_equal(index, wanted)
    np.testing.assert_allclose(distance, np.take_along_axis(far, wanted, 1), rtol=1e-9)


def test_of_points_at_one_place_none_is_its_own_neighbour():
    x = np.zeros((9, 3))
    index, distance = smoothing.nearest(x, 4)
    assert not (index == np.arange(9)[:, None]).any() and not distance.any()


def test_points_of_one_group_are_never_neighbours():
    x, _ = points(60, d=2)
    x[30:] = x[:30] + 1e-3  # each beside its twin
    group = np.arange(60) % 30
    alone, _ = smoothing.nearest(x, 3)
    apart, _ = smoothing.nearest(x, 3, group)
    assert (alone[:, 0] % 30 == group).all() and not (apart % 30 == group[:, None]).any()


def test_weights_are_symmetric_and_fall_off_with_the_median_distance():
    x, _ = points()
    graph = smoothing.graph(x, 4)
    index, distance = smoothing.nearest(x, 4)
    assert graph.sigma == np.median(distance)
    weight = graph.weight.toarray()
    np.testing.assert_array_equal(weight, weight.T)
    i, j = 7, index[7, 2]
    assert weight[i, j] == pytest.approx(np.exp(-((np.linalg.norm(x[i] - x[j]) / graph.sigma) ** 2)))
    assert (np.diff(graph.weight.indptr) >= 4).all() and (np.diag(weight) == 0).all()
    assert smoothing.graph(x, 4, sigma=2.5).sigma == 2.5


def test_rows_of_the_walk_sum_to_one_and_a_point_without_neighbours_keeps_its_label():
    x, y = points()
    x[-1] = 1e4  # its weights are zero in floating point
    graph = smoothing.graph(x, 4)
    assert graph.isolated == 1 and graph.components == 2
    step = smoothing.walk(graph.weight)
    np.testing.assert_allclose(np.asarray(step.sum(1)).ravel(), 1, atol=1e-12)
    found, _ = smoothing.smooth(step, y, alpha=0.9)
    np.testing.assert_allclose(found[-1], y[-1], atol=1e-12)
    assert abs(found[:-1] - y[:-1]).max() > 0.1


def test_labels_do_not_pass_between_components():
    x, y = points(100)
    x[50:] += 100
    graph = smoothing.graph(x, 5)
    assert graph.components == 2
    step = smoothing.walk(graph.weight)
    other = np.where(np.arange(100)[:, None] < 50, y, y[::-1])
    one, two = (smoothing.smooth(step, labels, alpha=0.9)[0] for labels in (y, other))
    np.testing.assert_allclose(one[:50], two[:50], atol=2 * smoothing.TOLERANCE)
    assert abs(one[50:] - two[50:]).max() > 0.01


def test_the_order_of_points_does_not_matter():
    x, y = points()
    order = np.random.default_rng(1).permutation(len(x))
    found = [
        smoothing.smooth(smoothing.walk(smoothing.graph(a, 5).weight), b, alpha=0.8)[0]
        for a, b in ((x, y), (x[order], y[order]))
    ]
    np.testing.assert_allclose(found[1], found[0][order], atol=1e-9)


class Counted:
    """A graph that counts what products with it cost: an operation for each edge and column."""

    def __init__(self, step):
        self.step, self.operations = step, 0

    def __matmul__(self, f):
        self.operations += self.step.nnz * f.shape[1]
        return self.step @ f


def test_the_cost_of_smoothing_is_linear_in_edges_and_edges_in_points():
    cost, edges = {}, {}
    for n in (100, 400, 1600):
        x, y = points(n, d=8)
        graph = smoothing.graph(x, 5)
        counted = Counted(smoothing.walk(graph.weight))
        _, steps = smoothing.smooth(counted, y, alpha=0.5)
        edges[n], cost[n] = graph.edges, counted.operations
        assert graph.edges <= 5 * n
        # The bound on steps is of alpha and the tolerance alone.
        assert counted.operations == steps * counted.step.nnz * 3 and steps <= np.log(smoothing.TOLERANCE / 2) / np.log(0.5) + 2
    for few, many in ((100, 400), (400, 1600)):
        assert cost[many] / cost[few] < 1.1 * edges[many] / edges[few] < 1.2 * many / few


def test_smoothing_mends_labels_where_neighbours_have_the_same_truth():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, 600)
    x = rng.normal(size=(600, 10)) * 0.7 + 2 * np.eye(10)[truth]
    said = np.where(rng.random(600) < 0.65, truth, rng.integers(0, 3, 600))
    y = np.eye(3)[said]
    found, _ = smoothing.smooth(smoothing.walk(smoothing.graph(x, 10).weight), y, alpha=0.9)
    assert (said == truth).mean() < 0.8 and (found.argmax(1) == truth).mean() > 0.95


def test_equal_points_are_neighbours_at_no_distance():
    graph = smoothing.graph(np.zeros((6, 2)), 2)
    assert graph.sigma == 1 and set(graph.weight.data) == {1.0}


@pytest.mark.parametrize(
    "keywords, said",
    [
        ({"k": 0}, "neighbours=0 of 20 points: allowed is 1..19"),
        ({"k": 20}, "neighbours=20 of 20 points: allowed is 1..19"),
        ({"k": 16, "group": np.arange(20) // 5}, "neighbours=16 of 20 points: allowed is 1..15"),
        ({"k": 3, "sigma": -1.0}, "sigma=-1.0: allowed is a distance"),
        ({"k": 3, "sigma": 1e-9}, "no two of 20 points are neighbours: at sigma=1e-09 all weights are 0"),
    ],
)
def test_a_graph_that_cannot_be_is_refused(keywords, said):
    with pytest.raises(ValueError, match=said):
        smoothing.graph(points(20)[0], keywords.pop("k"), **keywords)


@pytest.mark.parametrize("alpha", [-0.1, 0.9995, 1.0, np.nan])
def test_an_alpha_that_never_comes_to_rest_is_refused(alpha):
    x, y = points(20)
    step = smoothing.walk(smoothing.graph(x, 3).weight)
    for find in (smoothing.smooth, smoothing.at_rest):
        with pytest.raises(ValueError, match=f"alpha={alpha}: allowed is 0"):
            find(step, y, alpha=alpha)


def test_embeddings_that_are_no_numbers_are_refused():
    x, _ = points(20)
    x[3, 3] = np.inf
    with pytest.raises(ValueError, match="embeddings hold NaN or infinity"):
        smoothing.graph(x, 3)
