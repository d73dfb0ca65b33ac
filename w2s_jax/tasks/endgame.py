"""Four in a row on four by four squares: an embedded, exactly solved game, on which labels can be as good as gold, or better.

    ann keld xa1 oa2 xb1 oc1 =        ->        d        (the column to play)

A name, a club, the stones on the board, x the mover's and o the other's, each with its square (columns a to d, rows 1 to 4):
the answer is the column in which the mover drops her next stone, and the options are all columns that are not full. The
questions (`source`, `target`, `test`) are all asked in the club of Keld, where a line of four wins. `game_tree` knows every
position and the value of every move. So gold can be what it is in real games, incomplete, and what it leaves out is known all
the same:

    gold of source and target: one of the best moves, the leftmost
    gold of the test: all of them, that one first (`complete` says of which roles)
    `value`: how good any move is, as `game_tree` counts; a label that differs from gold can be as good

`gold="outcome"` makes gold worse: then the leftmost move that does not change who wins counts as best, however long it takes,
and a label can be better than gold. `value` still counts the stones.

Two corpora to pretrain on, and what each leaves out:
    weak: Keld only, played by people who look one stone ahead: complete a line if you can, else stop the other's, else play
        near the middle. Such moves are good until one must look further. A model of it knows what is asked, and plays blindly.
    strong: all clubs, every move one of the best (a fair draw among them). In two clubs a line wins, in two it loses; in the
        others, Keld among them, people play by the rule that they are used to, most by the one that a line loses. A model of
        it knows how to play either game, but not which one is asked.

Two positions that are mirror images are one class; no class stands in two roles, or in a role and a corpus, or twice in a role.
Roles hold positions with at least `LEAST_OPEN` open columns, not all equally good. A question's `group` is its class.
Meta: `kind` is "line" (one can be completed at once), "stop" (the other threatens to), or "deep"; `level` is the number of
stones until the end if both play on as well as they can.

Source: the set-up is ours, after arXiv 2312.09390 (a weak supervisor elicits what a strong model knows), and arXiv 2606.01000
    for labels that are better than incomplete gold.
"""

import dataclasses
import re
from collections.abc import Sequence
from typing import Literal

import numpy as np

from w2s_jax.tasks import Split, game_tree
from w2s_jax.types import Gold, Question

VERSION = "1"
TEST_SEED = 2606  # every seed of a run is scored on the same test positions, so that seeds and questions are crossed
LEAST_OPEN = 3
HOME = "keld"
CLEAR = {"arden": "win", "brill": "win", "corby": "lose", "dover": "lose"}  # the rule in clubs where all play by one
MIXED = ("elgin", "flint", "goole", "hythe", HOME)  # in the strong corpus everyone keeps her own rule here
NAMES = tuple(
    "ann ben cleo dan eva finn gus hana ivo jan kim leo mia ned olga pia quin rosa sam tess uma vic wanda zoe".split()
)
KINDS = ("line", "stop", "deep")
OPTIMAL = {"fastest": np.positive, "outcome": np.sign}  # word -> what of a move's value counts; the greatest is best
ROLES = ("source", "target", "test")
_STONE = re.compile(r"([xo])([a-z])([0-9]+)")


@dataclasses.dataclass(frozen=True)
class Rows:
    """N rows of a role or a corpus, as index arrays i64[N].

    Attributes:
        position: into the solved game.
        name, club: into `NAMES` and `CLUBS`.
    """

    position: np.ndarray
    name: np.ndarray
    club: np.ndarray


CLUBS = (*CLEAR, *MIXED)


class Endgame:
    """See the module and `make`. The best moves stay inside: only `gold`, `value` and the corpora tell them."""

    interface = "choice"

    def __init__(
        self, seed: int, board: game_tree.Board, sizes: dict[str, int], contrary_frac: float, gold: str, complete: Sequence[str]
    ):
        self._game = game_tree.solve(board)
        self._gold, self._complete = gold, tuple(complete)
        rng = np.random.default_rng(seed)
        self._contrary = rng.permutation(len(NAMES)) < round(contrary_frac * len(NAMES))  # bool[names]: for them a line loses
        self._rows = _draw(self._game, rng, sizes, gold)
        self._fair = rng.random((len(self._rows["strong"].position), board.columns))  # draws among equally good moves

    def __repr__(self) -> str:
        return f"Endgame({', '.join(f'{len(rows.position)} {part}' for part, rows in self._rows.items())})"

    @property
    def board(self) -> game_tree.Board:
        """What is played on."""
        return self._game.board

    def questions(self, split: Split) -> tuple[Question, ...]:
        """The questions of a role, in a stable order."""
        return self._questions(_known(split, ROLES, "role"))

    def gold(self, split: Split) -> Gold:
        """The best moves of a role: one of each position, or all."""
        position = self._rows[_known(split, ROLES, "role")].position
        accepted = (tuple(map(_letter, np.flatnonzero(row))) for row in _best(self._game, position, self._gold))
        ids = tuple(question.id for question in self.questions(split))
        return Gold(ids, tuple(moves if split in self._complete else moves[:1] for moves in accepted))

    def value(self, question: Question, answer: str) -> float | None:
        """How good a move is for the mover where a line wins, larger = better (see `game_tree`); None = no legal move.

        Args:
            question: of any role.
            answer: a column's letter.
        """
        at = self._find(question.prompt)
        column = ord(answer) - ord("a") if len(answer) == 1 else -1
        if at is None or not 0 <= column < self.board.columns:
            return None
        found = int(self._game.value["win"][at, column])
        return None if found == game_tree.NO_MOVE else float(found)

    def valued_by(self) -> dict[str, int]:
        """What values depend on beside the code."""
        return dataclasses.asdict(self.board)

    def corpus(self, name: Literal["weak", "strong"]) -> tuple[tuple[Question, ...], tuple[str, ...]]:
        """The rows that a model is pretrained on: questions, and the moves that were played."""
        rows = self._rows[_known(name, ("weak", "strong"), "corpus")]
        if name == "weak":
            column = glance(self._game, rows.position)
        else:
            home = np.array([club in MIXED for club in CLUBS])
            loses = np.where(home, False, [CLEAR.get(club) == "lose" for club in CLUBS])[rows.club]
            loses |= home[rows.club] & self._contrary[rows.name]
            best = np.where(loses[:, None], self._game.best("lose")[rows.position], self._game.best("win")[rows.position])
            column = np.where(best, self._fair, -1.0).argmax(axis=1)
        return self._questions(name), tuple(map(_letter, column))

    def vocabulary(self) -> tuple[str, ...]:
        """All words of prompts and answers, for a tokenizer that splits at white space; it adds its own special tokens."""
        letters = [_letter(c) for c in range(self.board.columns)]
        stones = [f"{whose}{letter}{row + 1}" for whose in "xo" for letter in letters for row in range(self.board.rows)]
        return ("=", *NAMES, *CLUBS, *letters, *stones)

    def extract(self, text: str) -> str:
        """See `extract`."""
        return extract(text)

    def _questions(self, part: str) -> tuple[Question, ...]:
        game, rows = self._game, self._rows[part]
        open_mask = game.value["win"] != game_tree.NO_MOVE
        kind, level = kinds(game, rows.position), levels(game, rows.position)
        first = np.minimum(rows.position, game.twin[rows.position])
        return tuple(
            Question(
                id=f"endgame/{part}/{i}",
                task="endgame",
                prompt=" ".join((NAMES[name], CLUBS[club], *self._stones(position), "=")),
                options=tuple(_letter(c) for c in np.flatnonzero(open_mask[position])),
                meta={"kind": KINDS[kind[i]], "level": str(level[i])},
                group=" ".join(self._stones(first[i])),
            )
            for i, (position, name, club) in enumerate(zip(rows.position, rows.name, rows.club))
        )

    def _stones(self, position: int) -> list[str]:
        """The stones on the board as words, column by column from below."""
        board, own, stones = self.board, int(self._game.own[position]), int(self._game.stones[position])
        squares = [(c, r) for c in range(board.columns) for r in range(board.rows) if stones & board.square(c, r)]
        return [f"{'x' if own & board.square(c, r) else 'o'}{_letter(c)}{r + 1}" for c, r in squares]

    def _find(self, prompt: str) -> int | None:
        """Where the position of a prompt stands in the solved game."""
        own = stones = 0
        for whose, letter, row in (found.groups() for found in map(_STONE.fullmatch, prompt.split()) if found):
            square = self.board.square(ord(letter) - ord("a"), int(row) - 1)
            own, stones = own | (square if whose == "x" else 0), stones | square
        return self._game.find(own, stones)


def glance(game: game_tree.Solved, position: np.ndarray) -> np.ndarray:
    """The move of who looks one stone ahead: complete a line, else stop the other's, else near the middle; i64[N] columns."""
    lines, stops, open_mask = _tactics(game, position)
    columns = range(game.board.columns)
    liked = np.array([-abs(2 * c - columns[-1]) for c in columns])  # of two as near to the middle argmax takes the left one
    allowed = np.where(lines.any(1)[:, None], lines, np.where(stops.any(1)[:, None], stops, open_mask))
    return np.where(allowed, liked, -game.board.squares).argmax(axis=1)


def kinds(game: game_tree.Solved, position: np.ndarray) -> np.ndarray:
    """i64[N], into `KINDS`: can a line be completed at once, does the other threaten to, or neither."""
    lines, stops, _ = _tactics(game, position)
    return np.where(lines.any(1), 0, np.where(stops.any(1), 1, 2))


def levels(game: game_tree.Solved, position: np.ndarray) -> np.ndarray:
    """i64[N], how many more stones are dropped where a line wins and both play as well as they can."""
    value = np.abs(game.value["win"][position].max(axis=1).astype(np.int64))
    left = game.board.squares - np.array([bin(stones).count("1") for stones in game.stones[position]], np.int64)
    return np.where(value > 0, game.board.squares + 1 - value, left)


def extract(text: str) -> str:
    """The first letter that stands alone in a text, "" if there is none.

    >>> extract(" d ="), extract("ann plays b"), extract("xa1")
    ('d', 'b', '')
    """
    return next((word for word in text.split() if len(word) == 1 and "a" <= word <= "z"), "")


def _tactics(game: game_tree.Solved, position: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """bool[N, columns] each: moves that complete a line, squares where the other could, columns that are not full."""
    board, own, stones = game.board, game.own[position], game.stones[position]
    squares = [board.drop(stones, c) for c in range(board.columns)]
    found = [(board.lined(own | square), board.lined(stones ^ own | square), square != 0) for square in squares]
    lines, stops, open_mask = (np.stack(column, axis=1) for column in zip(*found))
    return lines & open_mask, stops & open_mask, open_mask


def _best(game: game_tree.Solved, position: np.ndarray, gold: str) -> np.ndarray:
    """bool[N, columns], the moves that count as best where a line wins."""
    value = game.value["win"][position]
    counted = np.where(value == game_tree.NO_MOVE, value, OPTIMAL[gold](value))
    return counted == counted.max(axis=1, keepdims=True)


def _draw(game: game_tree.Solved, rng: np.random.Generator, sizes: dict[str, int], gold: str) -> dict[str, Rows]:
    """Draws the positions of all roles and corpora, class by class, and who plays them where.

    Raises:
        ValueError: the game has fewer classes than are asked for.
    """
    everything = np.arange(len(game))
    first = everything[everything <= game.twin]  # one position of each class
    open_mask = game.value["win"][first] != game_tree.NO_MOVE
    differ = {rule: (game.best(rule)[first] != open_mask).any(axis=1) for rule in game_tree.RULES}
    askable = (open_mask.sum(axis=1) >= LEAST_OPEN) & (_best(game, first, gold) != open_mask).any(axis=1)
    teaching = differ["win"] | differ["lose"]

    asked = sizes["source"] + sizes["target"]
    if sizes["test"] + asked > askable.sum():
        raise ValueError(
            f"task 'endgame' has {askable.sum()} classes of positions to ask, fewer than num_source + num_target + num_test = "
            f"{sizes['test'] + asked}; lower them in --config.tasks"
        )
    fixed = np.random.default_rng(TEST_SEED)
    test = fixed.choice(first[askable], sizes["test"], replace=False)
    roles = rng.choice(np.setdiff1d(first[askable], test), asked, replace=False)
    rest = np.setdiff1d(first[teaching], np.concatenate([test, roles]))
    if sizes["weak"] >= len(rest):
        raise ValueError(
            f"task 'endgame' has {len(rest)} classes of positions left for both corpora, num_weak = {sizes['weak']} leaves "
            "none for the strong one; lower it, or the sizes of the roles, in --config.tasks"
        )
    rest = rng.permutation(rest)
    position = {
        "source": roles[: sizes["source"]],
        "target": roles[sizes["source"] :],
        "weak": rest[: sizes["weak"]],
        "strong": np.resize(rest[sizes["weak"] :], sizes["strong"]),  # again and again, by other people in other clubs
    }
    home = CLUBS.index(HOME)
    rows = {"test": _played(game, fixed, test, np.full(len(test), home))}
    for part, chosen in position.items():
        club = rng.integers(len(CLUBS), size=len(chosen)) if part == "strong" else np.full(len(chosen), home)
        rows[part] = _played(game, rng, chosen, club)
    return rows


def _played(game: game_tree.Solved, rng: np.random.Generator, position: np.ndarray, club: np.ndarray) -> Rows:
    """Draws a name for each position, and whether it or its mirror image is played."""
    mirror = rng.random(len(position)) < 0.5
    return Rows(np.where(mirror, game.twin[position], position), rng.integers(len(NAMES), size=len(position)), club)


def _letter(c: int) -> str:
    return chr(ord("a") + c)


def _known(name: str, allowed: Sequence[str], what: str) -> str:
    if name not in allowed:
        raise ValueError(f"unknown {what} {name!r} of task 'endgame'; allowed are {', '.join(allowed)}")
    return name


def make(
    *,
    seed: int = 0,
    num_source: int = 2000,
    num_target: int = 4000,
    num_test: int = 4000,
    num_weak: int = 6000,
    num_strong: int = 40000,
    columns: int = 4,
    rows: int = 4,
    run: int = 4,
    contrary_frac: float = 0.75,
    gold: str = "fastest",
    complete: Sequence[str] = ("test",),
) -> Endgame:
    """Makes the task.

    Args:
        seed: of the positions, the names and their rules; another seed is another experiment.
        num_source, num_target, num_test: questions of each role.
        num_weak, num_strong: rows of the two corpora.
        columns, rows, run: the board, and the stones of a line; at most 26 columns.
        contrary_frac: share of names that play by the rule that a line loses where everyone keeps her own, from 0 to 1.
        gold: what counts as best: "fastest" = the moves of the greatest value; "outcome" = all that do not change who wins.
        complete: roles whose gold holds all best moves; of the others it holds the leftmost alone.

    Raises:
        ValueError: a size below 1 or more than there are positions; a board that is too large or too small for a line, a share
            out of range, an unknown word.
    """
    sizes = {"source": num_source, "target": num_target, "test": num_test, "weak": num_weak, "strong": num_strong}
    if min(sizes.values()) < 1:
        raise ValueError(f"task 'endgame' has sizes {sizes}: each must be at least 1; change --config.tasks")
    if not 0 <= contrary_frac <= 1:
        raise ValueError(f"contrary_frac is {contrary_frac}: it must lie from 0 to 1; change --config.tasks.contrary_frac")
    if isinstance(complete, str):
        raise ValueError(f"complete is the string {complete!r}; write a tuple of roles, such as ({complete!r},)")
    for role in complete:
        _known(role, ROLES, "role in complete")
    _known(gold, tuple(OPTIMAL), "gold")
    return Endgame(seed, game_tree.Board(columns, rows, run), sizes, contrary_frac, gold, complete)
