"""A small board game solved to the end: stones fall into columns, and whoever completes a line wins, or loses.

Two players drop stones in turn; a stone comes to lie on the lowest free square of its column. The game ends with the first
line of `run` stones of one player (across, upright or slanting), or as a draw when the board is full. There are two rules:
under `win` who completes a line has won, under `lose` she has lost. All positions that can occur are found once, from the
empty board on, and valued by both rules from the last stone backwards.

A position is seen by the player to move: her own stones, and all stones, as sets of squares in the bits of a number. Column c,
row r (from 0, upwards) is bit c * (rows + 1) + r; the bit above each column stays empty, so that no line runs from the top of
one column to the foot of the next.

Values, for the player to move, larger = better: `squares + 1 - plies` for a win in that many plies (one ply = one stone), its
negative for a loss, 0 for a draw: a fast win is better than a slow one, a slow loss better than a fast one.

Source: retrograde analysis, Thompson (ICCA Journal 9, 1986); the sets of squares are the usual ones for this kind of game.
"""

import dataclasses
import functools
from collections.abc import Mapping

import numpy as np

VERSION = "1"
RULES = ("win", "lose")
NO_MOVE = -128
"""Stands for the value of a move into a full column."""


@dataclasses.dataclass(frozen=True)
class Board:
    """A board and the length of a line on it.

    Attributes:
        columns, rows: its size; `columns * (rows + 1)` is at most 31.
        run: stones in a line, at least 2.

    Raises:
        ValueError: too large to be solved here, or too small for a line.
    """

    columns: int
    rows: int
    run: int

    def __post_init__(self):
        fits = min(self.columns, self.rows) >= 1 and self.bits <= 31 and 2 <= self.run <= max(self.columns, self.rows)
        if not fits:
            raise ValueError(
                f"a board of {self.columns} columns and {self.rows} rows with lines of {self.run}: columns * (rows + 1) may be "
                "at most 31, and a line at least 2 and at most as long as the board's longer side; change --config.tasks"
            )

    @property
    def squares(self) -> int:
        """How many there are."""
        return self.columns * self.rows

    @property
    def bits(self) -> int:
        """Length of a set of squares in bits, the empty ones above the columns included."""
        return self.columns * (self.rows + 1)

    def square(self, c: int, r: int) -> int:
        """The bit of a square."""
        return 1 << c * (self.rows + 1) + r

    def column(self, c: int) -> int:
        """The squares of a column."""
        return self.square(c, self.rows) - self.square(c, 0)

    def drop(self, stones: np.ndarray, c: int) -> np.ndarray:
        """The square where a stone in column c comes to lie, as one bit; 0 where the column is full."""
        return (stones + self.square(c, 0)) & ~stones & self.column(c)

    def lined(self, own: np.ndarray) -> np.ndarray:
        """bool, whether stones hold a line."""
        found = np.zeros(np.shape(own), bool)
        for step in (1, self.rows, self.rows + 1, self.rows + 2):  # upright, slanting down, across, slanting up
            line = own
            for n in range(1, self.run):
                line = line & (own >> n * step)
            found |= line != 0
        return found

    def mirrored(self, stones: np.ndarray) -> np.ndarray:
        """Stones with left and right exchanged."""
        last = self.columns - 1
        return sum(((stones & self.column(c)) >> self.square(c, 0).bit_length() - 1) << (last - c) * (self.rows + 1)
                   for c in range(self.columns))  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Solved:
    """All N positions from which the game can go on, in a stable order.

    Attributes:
        board: what was solved.
        own, stones: i64[N], the mover's stones and all stones.
        value: rule -> i8[N, columns], the value of each move for the mover, `NO_MOVE` where the column is full.
    """

    board: Board
    own: np.ndarray
    stones: np.ndarray
    value: Mapping[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.own)

    @functools.cached_property
    def key(self) -> np.ndarray:
        """i64[N], ascending: each position as one number."""
        return _key(self.board, self.own, self.stones)

    @functools.cached_property
    def twin(self) -> np.ndarray:
        """i64[N]: where the mirror image of each position stands; its own place where that is the same."""
        mirrored = _key(self.board, self.board.mirrored(self.own), self.board.mirrored(self.stones))
        return np.searchsorted(self.key, mirrored)

    def find(self, own: int, stones: int) -> int | None:
        """Where a position stands, None if it cannot occur or the game is over there."""
        key = _key(self.board, np.int64(own), np.int64(stones))
        at = int(np.searchsorted(self.key, key))
        return at if at < len(self) and self.key[at] == key else None

    def best(self, rule: str) -> np.ndarray:
        """bool[N, columns]: the moves of the greatest value."""
        return self.value[rule] == self.value[rule].max(axis=1, keepdims=True)


@functools.lru_cache(maxsize=4)
def solve(board: Board) -> Solved:
    """Finds and values all positions.

    >>> tiny = solve(Board(2, 2, 2))  # whoever moves second stone of hers makes a line
    >>> tiny.value["win"][tiny.find(0, 0)].tolist()
    [2, 2]
    """
    start: np.ndarray = np.zeros(1, np.int64)
    layers: list[tuple[np.ndarray, np.ndarray]] = [(start, start)]  # (own, stones) after 0, 1, ... stones
    steps = []
    while len(layers[-1][0]):
        moves = [_move(board, *layers[-1], c) for c in range(board.columns)]
        going = [(own[goes], stones[goes]) for own, stones, goes, *_ in moves]
        key = np.unique(np.concatenate([_key(board, *part) for part in going]))
        layers.append((key & (1 << board.bits) - 1, key >> board.bits))
        steps.append([(np.searchsorted(key, _key(board, *to)), goes, ends, legal) for *to, goes, ends, legal in moves])
    values = {rule: _valued(board, steps, 1 if rule == "win" else -1) for rule in RULES}
    own, stones = (np.concatenate(part) for part in zip(*layers[:-1]))
    order = np.argsort(_key(board, own, stones))
    return Solved(board, own[order], stones[order], {rule: np.concatenate(value)[order] for rule, value in values.items()})


def _key(board: Board, own: np.ndarray, stones: np.ndarray) -> np.ndarray:
    return (stones << board.bits) | own


def _move(board: Board, own: np.ndarray, stones: np.ndarray, c: int):
    """A stone in column c: (own, stones) as the next player sees them; where it goes on, where a line ends it, where legal."""
    square = board.drop(stones, c)
    legal = square != 0
    ends = legal & board.lined(own | square)
    full = (stones | square) == sum(map(board.column, range(board.columns)))
    return stones ^ own, stones | square, legal & ~ends & ~full, ends, legal


def _valued(board: Board, steps: list, line: int) -> list[np.ndarray]:
    """The values of all moves, layer by layer from the last one backwards; `line` = 1 if a line wins, -1 if it loses."""
    after: np.ndarray = np.zeros(0, np.int8)
    found = []
    for moves in reversed(steps):
        value: np.ndarray = np.full((len(moves[0][0]), board.columns), NO_MOVE, np.int8)
        for c, (child, goes, ends, legal) in enumerate(moves):
            value[legal, c] = 0  # a draw, if nothing else
            value[ends, c] = line * board.squares
            reply = after[child[goes]]
            value[goes, c] = np.sign(reply) - reply  # what is good for the other is bad for the mover, one ply later
        after = value.max(axis=1)
        found.append(value)
    return found[::-1]
