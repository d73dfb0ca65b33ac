"""Chess: puzzles of Lichess and suites of test positions; a position in FEN goes in, a move in UCI notation comes out.

Stage 1 of the path, out: `Question`s of three roles, see `rows` for how they are loaded and kept apart (by position: the
counters of moves do not make another question). Any move of a row's `best_moves` counts; the first is the reference.

Interface: a choice among all legal moves (`legal=True`). Then every answer is a legal move, trust functions see the probability
of each move, and models whose tokenizer has a token for every move (those from scratch) answer in one pass over the position.
For pretrained models it costs a pass for each legal move (about 35); `legal=False` lets them write instead, and what they
write is a move or it is not: whether it is legal cannot be told from a text alone, so an illegal move is a wrong answer.

Local files: `<root>/<dataset>.<split>.jsonl[.gz]`, or the same under `<root>/strategy_games/`, one object a line: `{"id",
"fen", "best_moves": [uci] or null, "rating": number or null, "themes": [text]}`, where `fen` is the position to solve. Or the
CSV of the Lichess puzzle database under such a name (`lichess_puzzles.train.csv`), or `lichess_puzzles` from the hub,
Lichess/chess-puzzles, which has one split: `lichess_puzzles:train[:20000]` takes a slice. In these two, `FEN` is the position
one move earlier: the first of `Moves` is played before the question, the second is the answer, and if it mates at once, so
does every other mate count.

How a position is put (`layout`):
    fen      Chess position (FEN): 8/8/8/8/8/5k2/6q1/7K w - - 0 1
             Best move for White in UCI notation:
    words    white kf3 qg2 Kh1 =            each piece with its square, lower case = Black; for models from scratch

With `fen` the prompt is complete in itself (style `direct`, also after shots); a chat model is asked in style `cloze` or
`boxed`.

Models from scratch (`corpus` names the data sets, `layout="words"`) read positions that no role holds:
    weak: positions as they are asked, each with its best move.
    strong: half of them with the word `study` before them and the best move after them, half as they are asked, with any legal
        move, as somebody who only knows the rules would play. A model of it knows how, but not what is asked.

Meta: `rating` and `themes` where they are known; where there is no rating and the themes say how many moves are to be found,
that is the `level`. Questions of one game (Lichess names it) form a group.

Needs: pip install 'w2s_jax[chess]' (python-chess): every position and every accepted move is checked when it is read.
"""

import dataclasses
import functools
import importlib.util
import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from w2s_jax.tasks import rows
from w2s_jax.tasks.chess_engine import MATE, Engine, NoEngine
from w2s_jax.tasks.rows import Hub
from w2s_jax.types import Gold, Question

VERSION = "2"
FILES, RANKS = "abcdefgh", "12345678"
SQUARES = tuple(file + rank for file in FILES for rank in RANKS)
PIECES = "KQRBNPkqrbnp"
FIELDS = 4  # of a FEN, at least: those of an EPD, without the counters of moves
STUDY = "study"
LENGTHS = {"oneMove": 1, "short": 2, "long": 3, "veryLong": 4}
"""Lichess's themes that say how many moves are to be found (veryLong: four or more): a difficulty where nobody rates."""
Corpus = tuple[tuple[Question, ...], tuple[str, ...]]


class Row(NamedTuple):
    """One row of a data set, whatever its origin.

    Attributes:
        id: its own.
        fen: the position, the player to move has to solve it.
        answer: accepted moves, the reference first; None where they are not public.
        rating: difficulty, "" where it is not known.
        themes: words, separated by spaces.
        group: the game it comes from, "" where it is not known.
        fault: what is wrong with it, found when it was read.
    """

    id: str
    fen: str
    answer: tuple[str, ...] | None
    rating: str = ""
    themes: str = ""
    group: str = ""
    fault: str = ""


# ---- Reading ---------------------------------------------------------------------------------------------------------


def _read(found: Mapping[str, Any], where: str) -> Row:
    """Reads an object of a local file; types are checked here, contents in `_problem`."""
    moves, rating = found.get("best_moves"), found.get("rating")
    if moves is not None and not (isinstance(moves, list) and all(isinstance(move, str) for move in moves)):
        raise ValueError(f"{where}: field 'best_moves' is {moves!r}, allowed is a list of moves in UCI notation, or null")
    if isinstance(rating, bool) or not isinstance(rating, int | float | None):
        raise ValueError(f"{where}: field 'rating' is {rating!r}, allowed is a number, or null")
    themes = found.get("themes", [])
    if not isinstance(themes, list) or not all(isinstance(theme, str) for theme in themes):
        raise ValueError(f"{where}: field 'themes' is {themes!r}, allowed is a list of words")
    id, fen = rows.text_field(found, "id", where), rows.text_field(found, "fen", where)
    group = rows.text_field(found, "group", where, "")
    return Row(id, fen, None if moves is None else tuple(moves), "" if rating is None else str(rating), " ".join(themes), group)


def _lichess(columns: Mapping[str, Any], where: str) -> Row:
    """Reads a line of the Lichess puzzle database: plays the move that leads to the position to solve.

    Raises:
        ValueError: a column is missing.
    """
    if missing := [name for name in ("PuzzleId", "FEN", "Moves", "Rating") if not columns.get(name)]:
        raise ValueError(f"{where}: no {', '.join(missing)}; needed are PuzzleId, FEN, Moves, Rating, Themes, GameUrl")
    import chess

    themes = columns.get("Themes") or ""
    game = columns.get("GameId") or re.sub(r".*lichess\.org/([^/#]+).*", r"\1", columns.get("GameUrl") or "")
    row = Row(
        id=f"lichess/{columns['PuzzleId']}",
        fen=columns["FEN"],
        answer=(),
        rating=str(columns["Rating"]),
        themes=themes if isinstance(themes, str) else " ".join(themes),
        group=f"lichess/{game}" if game else "",
    )
    first, *line = columns["Moves"].split()
    try:
        board = chess.Board(row.fen)
        board.push(_move(board, first))
        if not line:
            raise ValueError("no move follows the first one")
        best = _move(board, line[0])
    except ValueError as error:
        return row._replace(fault=f"FEN {row.fen!r} and Moves {columns['Moves']!r} are no puzzle: {error}")
    return row._replace(fen=board.fen(), answer=_accepted(board, best))


def _move(board, text: str):
    """A legal move.

    Raises:
        ValueError: it is none, or not written in UCI notation.
    """
    if not (move := board.parse_uci(text)):
        raise ValueError(f"{text!r} is the move of nothing")
    return move


def _accepted(board, best) -> tuple[str, ...]:
    """The moves that count: the best one, and, where it mates, all that mate."""

    def mates(move) -> bool:
        board.push(move)
        try:
            return board.is_checkmate()
        finally:
            board.pop()

    others = [move for move in board.legal_moves if move != best and mates(move)] if mates(best) else []
    return (best.uci(), *sorted(move.uci() for move in others))


def _tidy(dataset: str, row: Row) -> Row:
    """Makes spaces of FEN and moves canonical."""
    answer = None if row.answer is None else tuple(move.strip() for move in row.answer)
    return row._replace(fen=" ".join(row.fen.split()), answer=answer)


def _problem(row: Row) -> str:
    """Says why a row cannot be asked, "" if it can."""
    if row.fault:
        return row.fault
    if not row.id:
        return f"id {row.id!r} must not be empty"
    if row.rating and not _finite(row.rating):
        return f"rating {row.rating!r}, allowed is a number, or none"
    if len(row.fen.split()) < FIELDS:  # python-chess would fill up the others
        return f"FEN {row.fen!r} has {len(row.fen.split())} fields, needed are pieces, turn, castling and en passant"
    import chess

    try:
        board = chess.Board(row.fen)
    except ValueError as error:
        return f"FEN {row.fen!r} is none: {error}"
    if not board.is_valid():
        reasons = ", ".join(flaw.name.lower().replace("_", " ") for flaw in board.status())
        return f"FEN {row.fen!r} is no position that can occur: {reasons}"
    if row.answer == ():
        return "best_moves is empty; null where they are not known"
    for move in row.answer or ():  # as text: what is no option as it stands could not be answered
        if move not in legal_moves(row.fen):
            return f"the move {move!r} is not legal in {row.fen!r}; legal are {' '.join(legal_moves(row.fen))}"
    return ""


def _finite(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _spared(row: Row) -> str:
    import chess

    several = any(itertools.islice(chess.Board(row.fen).legal_moves, 1, None))
    return "" if several else f"fewer than two moves are legal in {row.fen!r}"


def _asks(row: Row) -> tuple[str, frozenset[str]]:
    return " ".join(row.fen.split()[:4]), frozenset()


def _parts(dataset: str, split: str) -> tuple[Hub, ...]:
    return (HUB[dataset],)


HUB = {"lichess_puzzles": Hub("Lichess/chess-puzzles", None, _lichess)}
DOMAIN = rows.Domain(
    module=__name__,
    folder="strategy_games",
    hub={name: functools.partial(_parts, name) for name in HUB},
    fields=("id", "fen", "best_moves", "rating", "themes"),
    read=_read,
    tidy=_tidy,
    problem=_problem,
    spared=_spared,
    asks=_asks,
    table=_lichess,
)


# ---- Asking ----------------------------------------------------------------------------------------------------------


def legal_moves(fen: str) -> tuple[str, ...]:
    """All legal moves in UCI notation, in alphabetical order."""
    import chess

    return tuple(sorted(move.uci() for move in chess.Board(fen).legal_moves))


def fen_prompt(fen: str) -> str:
    """The position as text, for models that have read about chess.

    >>> print(fen_prompt("8/8/8/8/8/5k2/6q1/7K w - - 0 1"))
    Chess position (FEN): 8/8/8/8/8/5k2/6q1/7K w - - 0 1
    Best move for White in UCI notation:
    """
    return f"Chess position (FEN): {fen}\nBest move for {'White' if fen.split()[1] == 'w' else 'Black'} in UCI notation:"


def word_prompt(fen: str) -> str:
    """The position as words, a piece and its square each; for models whose tokens are words.

    >>> word_prompt("4k3/8/8/8/3pP3/8/8/4K2R b K e3 0 1")
    'black ke8 pd4 Pe4 Ke1 Rh1 castle-K ep-e3 ='
    """
    placed, turn, castling, passing, *_ = fen.split()
    words = ["white" if turn == "w" else "black"]
    for rank, row in zip(reversed(RANKS), placed.split("/"), strict=True):
        squares = itertools.chain.from_iterable(" " * int(sign) if sign.isdigit() else sign for sign in row)
        words += [f"{piece}{file}{rank}" for file, piece in zip(FILES, squares, strict=True) if piece != " "]
    words += [f"castle-{side}" for side in castling if side != "-"]
    words += [f"ep-{passing}"] if passing != "-" else []
    return " ".join((*words, "="))


LAYOUTS: Mapping[str, Callable[[str], str]] = {"fen": fen_prompt, "words": word_prompt}


def vocabulary() -> tuple[str, ...]:
    """All words of `word_prompt` and all moves that a piece can make on some board, once each.

    >>> len(moves := [word for word in vocabulary() if len(word) in (4, 5) and word[0] in FILES and word[1] in RANKS])
    1968
    """
    passing = tuple(f"ep-{file}{rank}" for file in FILES for rank in "36")
    placed = tuple(piece + square for piece in PIECES for square in SQUARES)
    return ("=", STUDY, "white", "black", *(f"castle-{side}" for side in "KQkq"), *passing, *placed, *_moves())


def _moves() -> list[str]:
    found = []
    for start, end in itertools.permutations(SQUARES, 2):
        across, up = (abs(ord(a) - ord(b)) for a, b in zip(start, end))
        if 0 in (across, up) or across == up or {across, up} == {1, 2}:
            found.append(start + end)
            if across < 2 and (start[1], end[1]) in (("7", "8"), ("2", "1")):
                found += [start + end + piece for piece in "qrbn"]
    return found


_MOVE = re.compile(r"(?<![A-Za-z0-9])[a-h][1-8][a-h][1-8][qrbn]?(?![A-Za-z0-9])")
_SAID = re.compile(r"(?i)\\boxed\s*\{|(?:answer|move)(?:\s+is|\s*:)")


def extract(text: str) -> str:
    """The move in a text, in UCI notation, "" if there is none; total, never raises.

    The first after the last "answer is", "best move:" or box; where nothing of the kind is said, the first of all. A text ends
    where a model that was shown examples goes on to a position of its own.

    >>> extract(" e2e4"), extract("Not d2d4. The best move is **e7e8q**, mate."), extract("Nf3")
    ('e2e4', 'e7e8q', '')
    """
    if not isinstance(text, str):
        return ""
    text = re.split(r"\n[ \t]*(?:Question:|Chess position)", text, maxsplit=1)[0]
    said = [found.end() for found in _SAID.finditer(text)]
    for start in (*said[-1:], 0):
        if found := _MOVE.search(text, start):
            return found[0]
    return ""


class Chess(rows.Roles):
    """A task of chess positions; see `make`.

    Attributes:
        unvalued: why the engine that was to judge moves cannot; "" = none was named, or it can.
    """

    def __init__(self, questions, gold, files, legal: bool, corpora: Mapping[str, Corpus], unvalued: str = ""):
        super().__init__(questions, gold, files)
        self.unvalued = unvalued
        self.interface = "choice" if legal else "free"
        self._corpora = corpora

    def extract(self, text: str) -> str:
        """See `extract`."""
        return extract(text)

    def vocabulary(self) -> tuple[str, ...]:
        """See `vocabulary`."""
        return vocabulary()

    def corpus(self, name: Literal["weak", "strong"]) -> Corpus:
        """The rows that a model is pretrained on: questions, and the moves that were played.

        Raises:
            ValueError: there is no such corpus.
        """
        if name not in self._corpora:
            raise ValueError(
                f"corpus {name!r}: there is {', '.join(self._corpora) or 'none'}; name data sets for models from scratch in "
                "--config.tasks.corpus, such as ('lichess_puzzles:train',)"
            )
        return self._corpora[name]


class JudgedChess(Chess):
    """The same with an engine that can be asked how good any move is.

    Attributes:
        value_margin: centipawns up to which two moves are as good: an engine that looks a little further says a little else.
    """

    def __init__(self, *made, fen: Mapping[str, str], judge: Engine, margin: float):
        super().__init__(*made)
        self._fen, self._judge, self.value_margin = fen, judge, margin

    def value(self, question: Question, answer: str) -> float:
        """How good a move is for the player who makes it, in centipawns; what is no legal move loses, worse than by any mate.

        Raises:
            ValueError: the engine failed.
        """
        fen = self._fen[question.id]
        return self._judge.centipawns(fen, answer) if answer in legal_moves(fen) else -2.0 * MATE

    @property
    def valuer(self) -> str:
        return Path(self._judge.path).stem

    def valued_by(self) -> dict[str, Any]:
        """What values depend on beside the code."""
        return {"engine": self._judge.digest, "nodes": self._judge.nodes}


def make(
    *,
    root: str = "",
    source: Sequence[str] = ("lichess_puzzles:train[:20000]",),
    target: Sequence[str] = ("lichess_puzzles:train[20000:40000]",),
    test: Sequence[str] = ("lichess_puzzles:train[40000:44000]",),
    max_source: int | None = None,
    max_target: int | None = None,
    max_test: int | None = None,
    legal: bool = True,
    layout: str = "fen",
    engine: str = "",
    engine_nodes: int = 100_000,
    engine_margin: float = 10.0,
    corpus: Sequence[str] = (),
    num_weak: int = 8000,
    num_strong: int = 60_000,
    seed: int = 0,
) -> Chess:
    """Reads the questions of all three roles.

    Args:
        root: folder with local files, "" = the hub.
        source, target, test: "dataset:split" entries of each role; a role may be empty.
        max_source, max_target, max_test: keep at most this many questions of a role, see `rows.load`.
        legal: choose among the legal moves; False = write a move.
        layout: how a position is put, "fen" or "words".
        engine: path of a UCI engine that judges moves, such as Stockfish; "auto" = `stockfish` as installed; "" = none.
            Where there is no such program the task does without, and says so: see `Chess.unvalued`.
        engine_nodes: how far it looks at each move.
        engine_margin: centipawns up to which it calls two moves as good; a tenth of a pawn is our proposal. Mates count by
            their moves, so two that are at most ten moves apart are as good too.
        corpus: "dataset:split" entries that models from scratch may read, but for what is in a role; () = none.
        num_weak, num_strong: rows of the two corpora, which share none.
        seed: key of the subsets and corpora; it does not change the order of questions or options.

    Raises:
        ValueError: python-chess is not installed; no nodes; a margin that is none; an unknown layout; or what
            `rows.load` refuses, such as a position or a move that is not legal (with file and line).
    """
    if importlib.util.find_spec("chess") is None:
        raise ValueError("task 'chess' needs python-chess, which is not installed: pip install 'w2s_jax[chess]'")
    if layout not in LAYOUTS:
        raise ValueError(f"layout={layout!r}: allowed are {', '.join(LAYOUTS)}; change --config.tasks.layout")
    if not 0 <= engine_margin < np.inf:
        raise ValueError(
            f"engine_margin={engine_margin}: allowed are centipawns, 0 or more; change --config.tasks.engine_margin"
        )
    judge, unvalued = None, ""
    if engine:
        try:
            judge = Engine.found(engine, engine_nodes)
        except NoEngine as error:
            unvalued = str(error)
    entries = {"test": test, "source": source, "target": target}
    caps = {"test": max_test, "source": max_source, "target": max_target}
    loaded, files = rows.load(DOMAIN, entries, root, caps, seed)
    questions, gold = {}, {}
    for role, items in loaded.items():
        questions[role] = tuple(_question(row, dataset, legal, layout) for dataset, row, _ in items)
        gold[role] = _gold([row for _, row, _ in items]) if rows.labelled(items) else None
    corpora = {}
    if corpus:
        if layout != "words" or not legal:
            raise ValueError(
                f"layout={layout!r}, legal={legal}: models from scratch read words and choose among legal moves; set "
                "--config.tasks.layout=words and legal=True, or corpus to ()"
            )
        asked = {_asks(row) for items in loaded.values() for _, row, _ in items}
        spare, others = rows.load(DOMAIN, {"test": (), "source": (), "target": corpus}, root, dict.fromkeys(caps), seed)
        corpora = _corpora([item for item in spare["target"] if _asks(item[1]) not in asked], num_weak, num_strong, seed)
        files = tuple(dict.fromkeys((*files, *others)))
    made = (questions, gold, files, legal, corpora)
    if judge is None:
        return Chess(*made, unvalued)
    fen = {row.id: row.fen for items in loaded.values() for _, row, _ in items}
    return JudgedChess(*made, fen=fen, judge=judge, margin=engine_margin)


def _corpora(items: Sequence[rows.Item], num_weak: int, num_strong: int, seed: int) -> dict[str, Corpus]:
    """The two corpora, see the module.

    Raises:
        ValueError: there are not that many rows, or not all have answers.
    """
    if min(num_weak, num_strong) < 1 or num_weak + num_strong > len(items) or not rows.labelled(items):
        raise ValueError(
            f"--config.tasks.corpus has {len(items)} rows that no role holds (all must have best_moves); num_weak = {num_weak} "
            f"and num_strong = {num_strong} must be at least 1, and no more together"
        )
    mixed = sorted(items, key=lambda item: rows.digest(str(seed), item[1].id))
    weak, strong = mixed[:num_weak], mixed[num_weak : num_weak + num_strong]
    rng = np.random.default_rng(seed)

    def questions(part, headings):
        plain = [_question(row, dataset, True, "words") for dataset, row, _ in part]
        return tuple(
            dataclasses.replace(question, id=f"corpus/{question.id}", prompt=heading + question.prompt)
            for question, heading in zip(plain, headings, strict=True)
        )

    studied = np.arange(len(strong)) % 2 == 0
    read = questions(strong, np.where(studied, f"{STUDY} ", "").tolist())
    chance = [str(rng.choice(question.options)) for question in read]
    played = tuple(row.answer[0] if best else move for (_, row, _), best, move in zip(strong, studied, chance, strict=True))
    return {"weak": (questions(weak, [""] * len(weak)), tuple(row.answer[0] for _, row, _ in weak)), "strong": (read, played)}


def _gold(found: Sequence[Row]) -> Gold:
    return Gold(tuple(row.id for row in found), tuple(row.answer for row in found))


def _question(row: Row, dataset: str, legal: bool, layout: str) -> Question:
    about = {name: value for name, value in (("rating", row.rating), ("themes", row.themes)) if value}
    lengths = [number for theme, number in LENGTHS.items() if theme in row.themes.split()]
    if lengths and not row.rating:
        about["level"] = str(lengths[0])
    return Question(row.id, dataset, LAYOUTS[layout](row.fen), legal_moves(row.fen) if legal else (), about, row.group)
