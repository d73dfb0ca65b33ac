"""The solved game: every position found, every value that of a search which knows nothing of bits, layers or mirrors."""

import functools

import numpy as np
import pytest

from w2s_jax.tasks import game_tree
from w2s_jax.tasks.game_tree import Board

BOARDS = [Board(3, 3, 3), Board(4, 3, 3), Board(2, 4, 3), Board(3, 3, 2), Board(4, 2, 3)]


class Search:
    """Plain minimax on columns of "x" and "o", forwards, from the rules alone."""

    def __init__(self, board: Board, line_wins: bool):
        self.board, self.line_wins = board, line_wins
        self.best = functools.cache(self._best)

    def moves(self, columns, who):
        """Column -> (how the game stands after the move, "line", "full" or "on"; the columns then)."""
        for c, stones in enumerate(columns):
            if len(stones) < self.board.rows:
                after = (*columns[:c], stones + who, *columns[c + 1 :])
                ended = "line" if self.has_line(after, who) else "full" if all(map(self.is_full, after)) else "on"
                yield c, ended, after

    def is_full(self, stones):
        return len(stones) == self.board.rows

    def has_line(self, columns, who):
        mine = {(c, r) for c, stones in enumerate(columns) for r, stone in enumerate(stones) if stone == who}
        return any(
            all((c + n * dc, r + n * dr) in mine for n in range(self.board.run))
            for c, r in mine
            for dc, dr in ((1, 0), (0, 1), (1, 1), (1, -1))
        )

    def outcome(self, ended, after, who):
        """(who wins: 1 the mover, -1 the other, 0 nobody; plies from before the move)."""
        if ended != "on":
            return (0 if ended == "full" else 1 if self.line_wins else -1), 1
        won, plies = self.best(after, "o" if who == "x" else "x")
        return -won, plies + 1

    def _best(self, columns, who):
        found = [self.outcome(ended, after, who) for _, ended, after in self.moves(columns, who)]
        return max(found, key=lambda outcome: self.worth(*outcome))

    def worth(self, won, plies):
        """A quick win before a slow one, a draw, a slow loss before a quick one."""
        return won * (1000 - plies)

    def reachable(self):
        start = ("",) * self.board.columns
        seen, todo = {start}, [(start, "x")]
        while todo:
            columns, who = todo.pop()
            for _, ended, after in self.moves(columns, who):
                if ended == "on" and after not in seen:
                    seen.add(after)
                    todo.append((after, "o" if who == "x" else "x"))
        return seen


def bits(board, columns, who):
    """The mover's stones and all stones as `game_tree` writes them."""
    squares = [(stone, c * (board.rows + 1) + r) for c, stones in enumerate(columns) for r, stone in enumerate(stones)]
    return sum(1 << at for stone, at in squares if stone == who), sum(1 << at for _, at in squares)


def to_move(columns):
    return "xo"[sum(map(len, columns)) % 2]


@pytest.mark.parametrize("board", BOARDS, ids=str)
@pytest.mark.parametrize("rule", game_tree.RULES)
def test_every_position_and_every_move_is_valued_as_exhaustive_search_does(board, rule):
    search, game = Search(board, rule == "win"), game_tree.solve(board)
    positions = search.reachable()
    assert len(game) == len(positions)
    for columns in positions:
        check(game, search, rule, columns)


@pytest.mark.parametrize("rule", game_tree.RULES)
def test_late_positions_of_the_whole_board_too(rule):
    board = Board(4, 4, 4)
    search, game, rng = Search(board, rule == "win"), game_tree.solve(board), np.random.default_rng(7)
    checked = 0
    while checked < 60:
        columns = ("",) * 4
        for _ in range(int(rng.integers(9, 14))):
            going = [after for _, ended, after in search.moves(columns, to_move(columns)) if ended == "on"]
            if not going:
                break
            columns = going[rng.integers(len(going))]
        if sum(map(len, columns)) >= 8:
            check(game, search, rule, columns)
            checked += 1


def check(game, search, rule, columns):
    """The value of each move is the search's, and the best moves are those that its outcome allows."""
    who = to_move(columns)
    at = game.find(*bits(game.board, columns, who))
    assert at is not None, columns
    expected = {c: search.outcome(ended, after, who) for c, ended, after in search.moves(columns, who)}
    for c, value in enumerate(game.value[rule][at].tolist()):
        if c not in expected:
            assert value == game_tree.NO_MOVE
        else:
            won, plies = expected[c]
            assert value == won * (game.board.squares + 1 - plies), (columns, c)
    most = max(search.worth(*outcome) for outcome in expected.values())
    best = {c for c, outcome in expected.items() if search.worth(*outcome) == most}
    assert set(np.flatnonzero(game.best(rule)[at])) == best


def test_the_mirror_image_of_a_position_has_its_values_mirrored():
    game = game_tree.solve(Board(4, 3, 3))
    assert (game.twin[game.twin] == np.arange(len(game))).all() and (game.twin != np.arange(len(game))).mean() > 0.9
    for rule in game_tree.RULES:
        assert (game.value[rule][game.twin] == game.value[rule][:, ::-1]).all()
    shown = [(own >> c * 4 + r & 1) for own in game.own for c in (0, 3) for r in range(3)]
    mirrored = [(own >> c * 4 + r & 1) for own in game.own[game.twin] for c in (3, 0) for r in range(3)]
    assert shown == mirrored


def test_what_cannot_occur_is_not_found():
    game = game_tree.solve(Board(3, 3, 3))
    column = sum(1 << r for r in range(3))
    for own, stones in ((0, 1 << 1), (1, 0), (1, 1), (column, column), (0, column | 1 << 4 | 1 << 8 | 1 << 3)):
        assert game.find(own, stones) is None  # in the air; not on the board; out of turn; over; above a column
    assert game.find(0, 0) is not None


@pytest.mark.parametrize("size", [(7, 6, 4), (0, 4, 4), (4, 4, 5), (4, 4, 1), (8, 4, 4)])
def test_a_board_that_cannot_be_solved_here_is_refused(size):
    with pytest.raises(ValueError, match=rf"{size[0]} columns and {size[1]} rows with lines of {size[2]}.*at most 31"):
        Board(*size)
