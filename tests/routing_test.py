"""Each label has one route, the first that is good enough, and the four-way table loses no row."""

import itertools

import numpy as np
import pytest

from w2s_jax import routing


def rows(n=500, seed=0):
    return np.random.default_rng(seed).random((3, n))


def test_routes_part_the_rows_in_their_order():
    p, trust, smoothed = rows()
    found = routing.route(p, trust, smoothed, gamma=0.7, trust_threshold=0.6, smoothed_threshold=0.5)
    for r, place in enumerate(found):
        wanted = "self" if p[r] >= 0.7 else "weak" if trust[r] >= 0.6 else "smoothed" if smoothed[r] >= 0.5 else "drop"
        assert routing.ROUTES[place] == wanted
    counts = routing.counts(found)
    assert sum(counts.values()) == 500 and all(counts.values()) and tuple(counts) == routing.ROUTES


def test_a_label_that_is_not_there_is_no_route():
    p, trust, smoothed = rows()
    there = {"own": p < 0.9, "weak": trust < 0.9}
    found = routing.route(p, trust, smoothed, gamma=0.7, trust_threshold=0.6, smoothed_threshold=0.5, **there)
    whole = routing.route(p, trust, smoothed, gamma=0.7, trust_threshold=0.6, smoothed_threshold=0.5)
    assert not (found[~there["own"]] == 0).any() and not (found[~there["weak"]] == 1).any()
    both = there["own"] & there["weak"]
    np.testing.assert_array_equal(found[both], whole[both])


def test_thresholds_of_nothing_and_of_all():
    p, trust, smoothed = rows()
    no = routing.route(p, trust, smoothed, gamma=np.inf, trust_threshold=1.0, smoothed_threshold=1.0)
    assert set(no) == {3}
    assert set(routing.route(p, trust, smoothed, gamma=0.0, trust_threshold=1.0, smoothed_threshold=1.0)) == {0}


def test_the_four_way_table_adds_up_and_counts_what_it_says():
    p, trust, smoothed = rows()
    knows, weak, own = p > 0.3, trust > 0.6, smoothed > 0.5
    table = routing.table(knows, weak, own)
    assert table.sum() == 500
    for a, b, c in itertools.product((0, 1), repeat=3):
        assert table[a, b, c] == ((knows == a) & (weak == b) & (own == c)).sum()


@pytest.mark.parametrize("value", [-0.01, 1.01, np.nan])
def test_a_threshold_that_is_no_probability_is_refused(value):
    with pytest.raises(ValueError, match=f"trust_threshold={value}: allowed is a probability"):
        routing.refuse_thresholds(trust_threshold=value, smoothed_threshold=0.5)
