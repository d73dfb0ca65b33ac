"""Ragged rows on the host become a few fixed shapes on the device, and results find their way back to their rows.

Several short rows share one device row: each is a *segment* that attends to itself only. The shape of every batch is
`Shape`, whatever the data, so that the number of compiled programs does not grow with it.

Source: best-fit-decreasing bin packing as used for sequence packing by Krell et al., arXiv 2107.02027.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import numpy as np

from w2s_jax import processes
from w2s_jax.types import Batch, Ragged

VERSION = "1"


@dataclasses.dataclass(frozen=True)
class Shape:
    """The device shape of a pass.

    Attributes:
        row_length: L, tokens of a device row; a few times the mean length of the data, not the model's context.
        batch_rows: B, device rows of a batch; on a mesh a multiple of data * fsdp.
        max_segments: G, the most segments that one device row may hold.
    """

    row_length: int
    batch_rows: int
    max_segments: int

    def __post_init__(self):
        for name, value in dataclasses.asdict(self).items():
            if value < 1:
                raise ValueError(f"{name}={value}: allowed is 1 or more; change the shape section in the config")


def pack(length: np.ndarray, shape: Shape) -> Ragged:
    """Sorts rows into bins: best fit, longest first; ties keep the rows' order, so that the result is deterministic.

    Args:
        length: i64[R], tokens of each row, each at least 1.
        shape: the device shape.

    Returns:
        i32 row numbers, one ragged row for each bin, ascending in a bin; at most `max_segments` of them and `row_length`
        tokens in all.

    Raises:
        ValueError: a row is longer than `row_length`.

    >>> [b.tolist() for b in pack(np.array([3, 5, 2, 4]), Shape(row_length=8, batch_rows=1, max_segments=2))]
    [[0, 1], [2, 3]]
    """
    if len(length) and length.max() > shape.row_length:
        raise ValueError(
            f"row {int(length.argmax())} has {int(length.max())} tokens, allowed are {shape.row_length}: "
            "raise shape.row_length of this model in the config, or shorten the prompt (fewer shots)"
        )
    bins: list[list[int]] = []
    by_room: list[list[int]] = [[] for _ in range(shape.row_length + 1)]  # free tokens -> open bins, the oldest first
    for row in np.argsort(-length, kind="stable"):
        need = int(length[row])
        room = next((room for room in range(need, shape.row_length + 1) if by_room[room]), None)
        if room is None:
            bins.append([])
            room, z = shape.row_length, len(bins) - 1
        else:
            z = by_room[room].pop(0)
        bins[z].append(int(row))
        if len(bins[z]) < shape.max_segments:
            by_room[room - need].append(z)
    return Ragged.of([sorted(b) for b in bins], np.int32)


def lay_out(
    token: Ragged,
    rows_of: Sequence[np.ndarray],
    shape: Shape,
    *,
    probe: np.ndarray | None = None,
    weight: Ragged | None = None,
    extra: Mapping[str, np.ndarray] | None = None,
    along: Mapping[str, Ragged] | None = None,
    branch: Ragged | None = None,
) -> Batch:
    """Writes the rows of some bins into one batch; missing bins are all padding.

    Args:
        token: the R rows' tokens.
        rows_of: at most B bins, each the numbers of its rows.
        shape: the device shape.
        probe: i64[R], the place in each row whose hidden state is wanted, or None.
        weight: f32 loss weight of each token, as long as `token`, or None.
        extra: named [R, ...] arrays that become [B, G, ...], one entry a segment.
        along: named f32 arrays, each as long as `token`, that become [B, L], one entry a token.
        branch: i32, as long as `token`, ascending: a row is a stem (0) and its branches (1, 2, ...), each a segment of its own
            that continues the stem and sees it beside itself. None = each row is one segment.
    """
    B, L, G = shape.batch_rows, shape.row_length, shape.max_segments
    out = Batch(
        token=np.zeros((B, L), np.int32),
        segment=np.zeros((B, L), np.int32),
        position=np.zeros((B, L), np.int32),
        weight=None if weight is None else np.zeros((B, L), np.float32),
        probe=None if probe is None else np.zeros((B, G), np.int32),
        prefix=None if branch is None else np.zeros((B, L), np.int32),
        extra={name: np.zeros((B, G, *value.shape[1:]), value.dtype) for name, value in (extra or {}).items()}
        | {name: np.zeros((B, L), np.float32) for name in along or {}},
    )
    for b, rows in enumerate(rows_of):
        start, before = 0, 0
        for g, row in enumerate(rows):
            stop = start + len(token[row])
            out.token[b, start:stop] = token[row]
            part = np.zeros(stop - start, np.int32) if branch is None else branch[row]
            out.segment[b, start:stop] = before + 1 + part
            out.position[b, start:stop] = _positions(part)
            if branch is not None:
                out.prefix[b, start:stop] = np.where(part > 0, before + 1, 0)
            before += 1 + int(part.max(initial=0))
            if weight is not None:
                out.weight[b, start:stop] = weight[row]
            for name, value in (along or {}).items():
                out.extra[name][b, start:stop] = value[row]
            if probe is not None:
                out.probe[b, g] = start + probe[row]
            start = stop
        for name, value in (extra or {}).items():
            out.extra[name][b, : len(rows)] = value[rows]
    return out


def _positions(branch: np.ndarray) -> np.ndarray:
    """Places of the tokens of a row; each branch goes on where the stem ends.

    >>> _positions(np.array([0, 0, 1, 1, 2])).tolist()
    [0, 1, 2, 3, 2]
    """
    place, first = np.arange(len(branch)), np.searchsorted(branch, branch)
    return place - first + np.where(branch > 0, np.count_nonzero(branch == 0), 0)


def few(number: int, least: int = 1) -> int:
    """A number rounded up to a power of two or three quarters of one, so that there are few shapes.

    >>> [few(n, 16) for n in (5, 16, 17, 33, 70, 100)]
    [16, 16, 24, 48, 96, 128]
    """
    whole = 1 << (number - 1).bit_length()
    return max(least, whole * 3 // 4 if number <= whole * 3 // 4 else whole)


def batches(num_bins: int, shape: Shape) -> list[range]:
    """The bins of each batch: consecutive, the last one short."""
    return [range(z, min(z + shape.batch_rows, num_bins)) for z in range(0, num_bins, shape.batch_rows)]


def sweep(
    program: Callable[[Batch], jax.Array],
    token: Ragged,
    shape: Shape,
    *,
    probe: np.ndarray | None = None,
    weight: Ragged | None = None,
    extra: Mapping[str, np.ndarray] | None = None,
    start: int = 0,
) -> Iterator[tuple[np.ndarray, list[np.ndarray], int]]:
    """Runs a program over all rows and hands each batch's results back by row, while the next batch is computing.

    Args:
        program: a compiled function of a batch; returns [B, G, ...] when `probe` is given (one result a segment), else
            [B, L, ...] (one result a token).
        token: the R rows' tokens.
        shape: the device shape.
        probe, weight, extra: see `lay_out`.
        start: number of leading batches to leave out (they are done already).

    Yields:
        rows: i32[r], the numbers of the rows of this batch.
        values: r arrays, [...] with `probe`, else [tokens of the row, ...].
        tokens: real tokens in this batch.
    """
    bins = pack(token.length, shape)
    waiting = None
    for zs in batches(len(bins), shape)[start:]:
        rows_of = [bins[z] for z in zs]
        result = program(lay_out(token, rows_of, shape, probe=probe, weight=weight, extra=extra))
        if waiting is not None:
            yield _by_row(*waiting, token, probe is not None)
        waiting = rows_of, result
    if waiting is not None:
        yield _by_row(*waiting, token, probe is not None)


def _by_row(rows_of, result, token, one_each):
    result = processes.fetch(result)
    rows, values, tokens = [], [], 0
    for b, bin_rows in enumerate(rows_of):
        start = 0
        for g, row in enumerate(bin_rows):
            stop = start + len(token[row])
            rows.append(row)
            values.append(result[b, g] if one_each else result[b, start:stop])
            start = stop
        tokens += start
    return np.array(rows, np.int32), values, tokens
