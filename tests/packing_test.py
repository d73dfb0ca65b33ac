"""Packing: every token arrives once, in its own segment, and results return to their rows."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from w2s_jax import packing
from w2s_jax.packing import Shape
from w2s_jax.types import Ragged

LENGTHS = st.lists(st.integers(1, 20), min_size=1, max_size=40)


@given(LENGTHS, st.integers(1, 6))
@settings(max_examples=50, deadline=None)
def test_every_row_stands_in_one_bin_that_holds_it(length, max_segments):
    length = np.array(length)
    bins = packing.pack(length, Shape(row_length=20, batch_rows=2, max_segments=max_segments))
    assert sorted(np.concatenate(list(bins)).tolist()) == list(range(len(length)))
    assert all(length[b].sum() <= 20 and len(b) <= max_segments for b in bins)


def test_short_rows_share_a_device_row_and_equal_ones_keep_their_order():
    bins = packing.pack(np.full(8, 5), Shape(row_length=20, batch_rows=2, max_segments=8))
    assert [b.tolist() for b in bins] == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_a_row_goes_where_the_least_room_is_left():
    bins = packing.pack(np.array([3, 7, 6, 2]), Shape(row_length=10, batch_rows=2, max_segments=8))
    assert [b.tolist() for b in bins] == [[0, 1], [2, 3]]


@pytest.mark.parametrize("name", ["row_length", "batch_rows", "max_segments"])
def test_a_shape_without_room_is_refused(name):
    with pytest.raises(ValueError, match=f"{name}=0: allowed is 1 or more; change the shape section"):
        Shape(**{"row_length": 8, "batch_rows": 1, "max_segments": 4} | {name: 0})


def test_a_row_longer_than_the_device_row_is_refused_with_the_line_to_change():
    with pytest.raises(ValueError, match="row 1 has 9 tokens, allowed are 8.*shape.row_length"):
        packing.pack(np.array([3, 9]), Shape(8, 1, 4))


def test_branches_are_segments_of_their_own_that_go_on_from_their_stem():
    token = Ragged.of([[5, 6, 7, 8, 9], [1, 2]], np.int32)
    branch = Ragged.of([[0, 0, 1, 1, 2], [0, 1]], np.int32)
    batch = packing.lay_out(token, [np.array([0, 1])], Shape(8, 1, 2), branch=branch)
    assert batch.segment.tolist() == [[1, 1, 2, 2, 3, 4, 5, 0]]
    assert batch.prefix.tolist() == [[0, 0, 1, 1, 1, 0, 4, 0]]
    assert batch.position.tolist() == [[0, 1, 2, 3, 2, 0, 1, 0]]


def test_layout_has_segments_positions_weights_and_probes():
    token = Ragged.of([[5, 6, 7], [1], [8, 9]], np.int32)
    batch = packing.lay_out(
        token,
        [np.array([0, 2])],
        Shape(6, 2, 3),
        probe=np.array([2, 0, 0]),
        weight=Ragged.of([[0, 1, 1], [7], [0, 0.5]], np.float32),
        extra={"e": np.array([[10], [99], [11]], np.int32)},
    )
    assert batch.token.tolist() == [[5, 6, 7, 8, 9, 0], [0] * 6]
    assert batch.segment.tolist() == [[1, 1, 1, 2, 2, 0], [0] * 6]
    assert batch.position.tolist() == [[0, 1, 2, 0, 1, 0], [0] * 6]
    assert batch.weight[0].tolist() == [0, 1, 1, 0, 0.5, 0]
    assert batch.probe.tolist() == [[2, 3, 0], [0, 0, 0]]
    assert batch.extra["e"][0, :, 0].tolist() == [10, 11, 0]


@given(LENGTHS, st.integers(0, 2))
@settings(max_examples=30, deadline=None)
def test_sweep_returns_each_rows_own_result(length, start):
    rng = np.random.default_rng(0)
    token = Ragged.of([rng.integers(1, 99, n) for n in length], np.int32)
    shape = Shape(row_length=20, batch_rows=2, max_segments=4)
    seen = set()
    for rows, values, tokens in packing.sweep(lambda batch: batch.token * 2, token, shape, start=start):
        assert tokens == sum(len(token[r]) for r in rows)
        for row, value in zip(rows, values, strict=True):
            np.testing.assert_array_equal(value, token[row] * 2)
            seen.add(int(row))
    done = [bins for batch in packing.batches(len(packing.pack(token.length, shape)), shape)[:start] for bins in batch]
    skipped = {int(r) for z in done for r in packing.pack(token.length, shape)[z]}
    assert seen == set(range(len(length))) - skipped


def test_sweep_with_probe_gathers_one_result_for_each_row():
    token = Ragged.of([[1, 2], [3], [4, 5, 6]], np.int32)

    def program(batch):
        return np.take_along_axis(batch.token, batch.probe, axis=1) + batch.extra["more"]

    found, more = {}, np.array([100, 200, 300])
    for rows, values, _ in packing.sweep(program, token, Shape(4, 1, 3), probe=token.length - 1, extra={"more": more}):
        found |= dict(zip(rows.tolist(), values, strict=True))
    assert found == {0: 102, 1: 203, 2: 306}
