"""Chess positions: what counts is legal, every error names its file and line, an engine judges or is done without."""

import functools
import gzip
import json
import os
import pathlib
import subprocess
import sys
import time

import numpy as np
import pytest

from experiments.configs import chess as config
from tests import made_up_engine
from w2s_jax.analysis import better_than_gold, easy_first
from w2s_jax.tasks import chess, chess_engine
from w2s_jax.types import Answers

library = pytest.importorskip("chess")

DATA = pathlib.Path(os.environ.get("W2S_DATA") or pathlib.Path(__file__).parents[2] / "shared" / "data")
needs_data = pytest.mark.skipif(not (DATA / "strategy_games").is_dir(), reason="no shared data: set W2S_DATA")
BACK_RANK = "6k1/5ppp/8/8/8/8/8/R3K3 w Q - 0 1"
SEVERAL_MATES = "7k/5Q2/6K1/8/8/8/8/8 w - - 1 2"
PROMOTION = "8/P6k/8/8/8/8/8/K7 w - - 0 1"
CASTLING = "r3k2r/8/8/3pP3/8/8/8/R3K2R w KQkq d6 0 1"
BLACK = "4k3/8/8/8/3pP3/8/8/4K2R b K e3 0 1"


def row(id, fen=BACK_RANK, best=("a1a8",), **changed):
    return {"id": id, "fen": fen, "best_moves": list(best), "line": [], "rating": 800, "themes": ["mate", "short"]} | changed


ROWS = [
    row("x/0"),
    row("x/1", SEVERAL_MATES, ("f7g7", "f7f8", "f7h7"), rating=None),
    row("x/2", PROMOTION, ("a7a8q",), themes=[]),
    row("x/3", CASTLING, ("e1g1", "e5d6")),
    row("x/4", BLACK, ("d4e3",)),
]


def write(folder, name, rows):
    folder.mkdir(exist_ok=True)
    opener = gzip.open if name.endswith(".gz") else open
    with opener(folder / name, "wt", encoding="utf-8") as file:
        file.writelines(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows)


def make(root, source=(), target=(), test=(), **changed):
    return chess.make(root=str(root), source=source, target=target, test=test, **changed)


@pytest.fixture
def root(tmp_path):
    write(tmp_path / "strategy_games", "x.test.jsonl.gz", ROWS)
    return tmp_path


def test_a_row_becomes_a_question_among_its_legal_moves_and_any_best_move_counts(root):
    task = make(root, test=("x:test",))
    assert task.interface == "choice" and task.files() == (root / "strategy_games" / "x.test.jsonl.gz",)
    questions, gold = task.questions("test"), task.gold("test")
    for question, wanted in zip(questions, ROWS, strict=True):
        board = library.Board(wanted["fen"])
        assert question.options == tuple(sorted(move.uci() for move in board.legal_moves))
        assert set(wanted["best_moves"]) <= set(question.options)
        assert wanted["fen"] in question.prompt
    assert questions[0].meta == {"rating": "800", "themes": "mate short"} and questions[1].meta == {
        "themes": "mate short",
        "level": "2",
    }
    assert {"e1g1", "e1c1", "e5d6"} < set(questions[3].options) and {"a7a8q", "a7a8n"} < set(questions[2].options)
    ids = ("x/1", "x/1", "x/1", "x/1", "x/3", "x/3", "x/0")
    final = ("f7g7", "f7f8", "f7h7", "f7f6", "e5d6", "e1c1", "")
    assert gold.grade(Answers(ids, final, final)).tolist() == [True, True, True, False, True, False, False]
    assert gold.answers().final == ("a1a8", "f7g7", "a7a8q", "e1g1", "d4e3")
    assert "a1a8" not in repr(task) + repr(gold) + questions[0].prompt
    assert not hasattr(task, "value"), "nobody judges where no engine was named"


def test_positions_are_put_as_text_or_as_words(root):
    texts = [q.prompt for q in make(root, test=("x:test",)).questions("test")]
    assert texts[0] == f"Chess position (FEN): {BACK_RANK}\nBest move for White in UCI notation:"
    assert texts[4].endswith("\nBest move for Black in UCI notation:")
    task = make(root, test=("x:test",), layout="words")
    prompts = [q.prompt for q in task.questions("test")]
    assert prompts[3] == "white ra8 ke8 rh8 pd5 Pe5 Ra1 Ke1 Rh1 castle-K castle-Q castle-k castle-q ep-d6 ="
    assert prompts[4] == "black ke8 pd4 Pe4 Ke1 Rh1 castle-K ep-e3 ="
    words = set(task.vocabulary())
    assert len(words) == len(task.vocabulary())
    for question in task.questions("test"):
        assert {*question.prompt.split(), *question.options} <= words
    with pytest.raises(ValueError, match="layout='wrods': allowed are fen, words"):
        make(root, test=("x:test",), layout="wrods")


def test_written_moves_are_asked_for_without_options(root):
    task = make(root, test=("x:test",), legal=False)
    assert task.interface == "free" and all(question.options == () for question in task.questions("test"))
    assert task.gold("test").answers().final[0] == "a1a8"


@pytest.mark.parametrize(
    ("text", "move"),
    [(" a1a8", "a1a8"), ("**e7e8q**!", "e7e8q"), ("First e2e4, then d2d4.", "e2e4"), ("e2e4? The best move is d2d4.", "d2d4"),
     ("h1h2 ... \\boxed{a2a4}", "a2a4"), ("The answer is Nf3, g1f3.", "g1f3"), ("a1a8\nQuestion: b1b2", "a1a8"), ("e2e9", ""),
     ("e7e8k", ""), ("xe2e4", ""), ("e2-e4 Nf3 O-O", ""), ("", ""), ("\0" * 99, ""), ("move: " * 50 + "a1a2", "a1a2")],
)  # fmt: skip
def test_extract_finds_the_move_and_never_raises(text, move):
    assert chess.extract(text) == move


def test_the_vocabulary_has_a_word_for_every_move_of_every_piece():
    words = set(chess.vocabulary())
    for square in library.SQUARES:
        for piece in (library.QUEEN, library.KNIGHT):
            board = library.Board(None)
            board.set_piece_at(square, library.Piece(piece, library.WHITE))
            assert {move.uci() for move in board.pseudo_legal_moves} <= words
    for turn, fen in (
        (library.WHITE, "n1n5/PPPPPPPP/8/8/8/8/8/K1k5 w - - 0 1"),
        (library.BLACK, "K1k5/8/8/8/8/8/pppppppp/N1N5 b - - 0 1"),
    ):
        board = library.Board(fen)
        assert board.turn == turn
        promotions = {move.uci() for move in board.pseudo_legal_moves if move.promotion}
        assert promotions and promotions <= words


def test_corpora_hold_what_no_role_holds_and_the_strong_one_knows_best_moves_in_studies_alone(root):
    def placed(n):
        """A rook that mates on the last rank, and a pawn of no account in another place each time."""
        return f"6k1/5ppp/8/{n % 5 + 1}p{6 - n % 5}/8/8/{'7P' if n < 5 else '6P1'}/R3K3 w Q - 0 1"

    many = [row(f"y/{n}", placed(n)) for n in range(10)]
    write(root, "y.train.jsonl", many)
    sizes = dict(corpus=("y:train",), layout="words", num_weak=2, num_strong=4)
    task = make(root, source=("y:train",), test=("x:test",), max_source=3, **sizes)
    weak, strong = task.corpus("weak"), task.corpus("strong")
    assert (len(weak[0]), len(strong[0])) == (2, 4) and set(weak[1]) == {"a1a8"}
    bare = [[q.prompt.removeprefix("study ") for q in part] for part in (weak[0], strong[0], task.questions("source"))]
    assert len({prompt for part in bare for prompt in part}) == 9, "no position stands in two of them"
    for question, move in zip(*strong, strict=True):
        assert move in question.options and (move == "a1a8" or not question.prompt.startswith("study "))
        assert {*question.prompt.split(), move} <= set(task.vocabulary())
    assert [q.prompt.startswith("study ") for q in strong[0]] == [True, False] * 2
    assert not any(q.prompt.startswith("study ") for q in (*weak[0], *task.questions("test")))
    again = make(root, source=("y:train",), test=("x:test",), max_source=3, **sizes)
    assert again.corpus("strong") == strong and again.corpus("weak") == weak
    too_many = "7 rows that no role holds.*num_strong = 6"
    for changed, said in (
        ({"num_strong": 6}, too_many),
        ({"layout": "fen"}, "layout='fen'"),
        ({"legal": False}, "legal=False"),
    ):
        with pytest.raises(ValueError, match=said):
            make(root, source=("y:train",), test=("x:test",), max_source=3, **sizes | changed)
    with pytest.raises(ValueError, match="corpus 'weak': there is none; name data sets"):
        make(root, test=("x:test",)).corpus("weak")


# ---- Errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (row("y", "this is no fen"), r"FEN 'this is no fen' is none"),
        (row("y", "8/8/8/8/8/8/8/K7 w - - 0 1", ("a1a2",)), "is no position that can occur.*no black king"),
        (row("y", "6k1/5ppp/8/8/8/8/8/R3K3 b Q - 0 1"), "the move 'a1a8' is not legal in .*; legal are f7f5 f7f6"),
        (row("y", best=("a1a8", "e1g1")), "the move 'e1g1' is not legal"),
        (row("y", best=("Ra8",)), "the move 'Ra8' is not legal"),
        (row("y", best=("0000",)), "the move '0000' is not legal"),
        (row("y", CASTLING, ("e1h1",)), "the move 'e1h1' is not legal in .*; legal are .* e1g1"),
        (row("y", "8/P6k/8/8/8/8/8/K7", ("a7a8q",)), "has 1 fields, needed are pieces, turn"),
        (row("y", "8/P6k/8/8/8/8/8/K7 w -", ("a7a8q",)), "has 3 fields, needed are"),
        (row("y", rating=float("nan")), "rating 'nan', allowed is a number"),
        (row("y", best=()), "best_moves is empty; null where they are not known"),
        (row("y", best_moves="a1a8"), "field 'best_moves' is 'a1a8', allowed is a list of moves"),
        (row("y", rating="high"), "field 'rating' is 'high', allowed is a number"),
        (row("y", themes="mate"), "field 'themes' is 'mate', allowed is a list"),
        (row("y", fen=None), "field 'fen' is None, allowed is text"),
        (row(""), "id '' must not be empty"),
        ("{not json\n", "not a JSON object"),
    ],
)
def test_a_malformed_row_names_file_line_and_value(tmp_path, wrong, said):
    write(tmp_path, "y.train.jsonl", [ROWS[3], "\n", wrong])
    with pytest.raises(ValueError, match=rf"(?s)y\.train\.jsonl:3: .*{said}"):
        make(tmp_path, source=("y:train",))


def test_a_position_with_one_legal_move_asks_nothing(tmp_path, caplog):
    forced = "k7/8/8/8/8/8/1r6/K7 w - - 0 1"
    assert [move.uci() for move in library.Board(forced).legal_moves] == ["a1b2"]
    write(tmp_path, "y.test.jsonl", [ROWS[0], row("y", forced, ("a1b2",))])
    assert [q.id for q in make(tmp_path, test=("y:test",)).questions("test")] == ["x/0"]
    assert "y.test.jsonl:2: dropped, fewer than two moves" in caplog.text


def test_the_same_position_after_another_number_of_moves_is_the_same_question(root):
    later = [row("y/0", BACK_RANK.replace("0 1", "9 40")), row("y/1", BACK_RANK.replace("R3K3 w Q", "R3K3 w -"))]
    write(root, "y.train.jsonl", later)
    task = make(root, target=("y:train",), test=("x:test",))
    assert [q.id for q in task.questions("target")] == ["y/1"]


def test_a_target_without_best_moves_has_no_gold(root):
    write(root, "y.train.jsonl", [row("y/1", BACK_RANK.replace("R3K3 w Q", "R3K3 w -"), best_moves=None)])
    task = make(root, target=("y:train",), test=("x:test",))
    assert len(task.questions("target")) == 1 and task.gold("target") is None


def test_without_python_chess_it_says_what_to_install(root, monkeypatch):
    monkeypatch.setattr(chess.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs python-chess, which is not installed: pip install 'w2s_jax\[chess\]'"):
        make(root, test=("x:test",))


# ---- The Lichess database --------------------------------------------------------------------------------------------

HEAD = "PuzzleId,FEN,Moves,Rating,RatingDeviation,Popularity,NbPlays,Themes,GameUrl,OpeningTags\n"
LINE = "aB1,6k1/5Q2/6K1/8/8/8/8/8 b - - 0 1,g8h8 f7g7,612,80,90,10,mate mateIn1,https://lichess.org/q1W2e3R4/black#2,\n"


def test_a_line_of_the_lichess_csv_is_played_to_the_position_to_solve(tmp_path):
    quiet = "cD2,6k1/5ppp/8/8/8/8/7P/R3K3 b Q - 0 1,h7h6 e1e2 g8h7,900,80,90,10,,https://lichess.org/q1W2e3R4#2,\n"
    write(tmp_path, "lichess_puzzles.train.csv.gz", [HEAD, LINE, quiet])
    task = make(tmp_path, target=("lichess_puzzles:train",))
    mates, still = task.questions("target")
    assert SEVERAL_MATES in mates.prompt and mates.id == "lichess/aB1" and mates.task == "lichess_puzzles"
    assert mates.meta == {"rating": "612", "themes": "mate mateIn1"} and still.meta == {"rating": "900"}
    assert mates.group == still.group == "lichess/q1W2e3R4"
    assert task.gold("target").accepted == (("f7g7", "f7e8", "f7f8", "f7h7"), ("e1e2",)), (
        "each mate counts, and nothing beside a quiet move"
    )


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (LINE.replace("g8h8 f7g7", "g8g7 f7g7"), "are no puzzle: illegal uci: 'g8g7'"),
        (LINE.replace("g8h8 f7g7", "g8h8 f7a1"), "are no puzzle: illegal uci: 'f7a1'"),
        (LINE.replace("g8h8 f7g7", "g8h8"), "are no puzzle: no move follows"),
        (LINE.replace("g8h8 f7g7", "g8h8 0000"), "are no puzzle: '0000' is the move of nothing"),
        (LINE.replace("g8h8 f7g7", "0000 f7g7"), "are no puzzle: '0000' is the move of nothing"),
        (LINE.replace(",612,", ",high,"), "rating 'high', allowed is a number"),
        ('"' + LINE, "is a quotation mark open there"),
        (LINE.replace("6k1/", "6k1k/"), "are no puzzle: "),
        (LINE.replace("g8h8 f7g7", ""), "no Moves; needed are PuzzleId, FEN, Moves"),
    ],
)
def test_a_wrong_line_of_the_csv_is_named(tmp_path, line, said):
    write(tmp_path, "lichess_puzzles.train.csv", [HEAD, LINE, line])
    with pytest.raises(ValueError, match=rf"lichess_puzzles\.train\.csv:3: .*{said}"):
        make(tmp_path, target=("lichess_puzzles:train",))


def test_the_hubs_columns_are_read_whether_themes_are_a_list_or_a_text():
    columns = dict(zip(HEAD.strip().split(","), LINE.strip().split(","), strict=True))
    read = chess.HUB["lichess_puzzles"].columns
    listed = columns | {"Themes": ["mate", "mateIn1"], "Rating": 612, "GameId": "q1W2e3R4", "GameUrl": None}
    assert read(listed, "train/0") == read(columns, "train/0")
    assert read(columns, "train/0").answer[0] == "f7g7" and read(columns, "train/0").fen == SEVERAL_MATES


def test_without_a_rating_the_themes_say_how_hard_a_puzzle_is(tmp_path):
    themes = (["mate", "veryLong"], ["oneMove", "endgame"], ["long"], ["short", "fork"])
    for name, ratings in (("z", [None] * 4), ("r", [900, 800, 700, 600])):
        told = zip(ROWS, themes, ratings)
        rows = [one | {"themes": words, "rating": rating} for one, words, rating in told]
        write(tmp_path / "strategy_games", f"{name}.test.jsonl.gz", rows)
    for name, hard in (("z", [4, 1, 3, 2]), ("r", [900, 800, 700, 600])):
        questions = make(tmp_path, test=(f"{name}:test",)).questions("test")
        assert dict(zip([q.id for q in questions], easy_first.own(questions, [q.id for q in questions]))) == dict(
            zip(("x/0", "x/1", "x/2", "x/3"), hard)
        )


# ---- The engine ------------------------------------------------------------------------------------------------------


@pytest.fixture
def engine(tmp_path):
    return functools.partial(made_up_engine.write, tmp_path / "engine")


def test_the_engine_values_moves_for_the_player_who_makes_them(root, engine):
    path = engine(a1a8="mate 1", a1a2="cp 35", d4e3="cp -120", e8d8="mate -3")
    task = make(root, test=("x:test",), engine=path, engine_nodes=50)
    white, *_, black = task.questions("test")
    assert task.value(white, "a1a8") == chess_engine.MATE - 1 and task.value(white, "a1a2") == 35.0
    assert task.value(black, "d4e3") == -120.0 and task.value(black, "e8d8") == 3 - chess_engine.MATE
    assert [task.value(white, wrong) for wrong in ("a1b2", "", "Ra8", "d4e3")] == [-2 * chess_engine.MATE] * 4


def test_a_written_move_that_is_illegal_is_worse_than_gold(root, engine):
    task = make(root, test=("x:test",), engine=engine(a1a8="cp 10", a1a2="cp 5"), engine_nodes=5, legal=False)
    asked = [task.questions("test")[0]] * 3
    judge = better_than_gold.by_solver(task.value)
    found = better_than_gold.measure(
        asked, ("a1a2", "a1h1", "e2e4"), ("a1a8",) * 3, np.ones(3, bool), judge, margin=task.value_margin
    )
    assert (found.judged, found.equal, found.worse) == (3, 1, 2) and np.isfinite(found.gap)


def test_an_engine_that_hangs_is_ended(root, engine, monkeypatch):
    monkeypatch.setattr(chess_engine, "PATIENCE_S", 2.0)
    path, told = pathlib.Path(engine()), root / "pid"
    hangs = f"import os, pathlib, time; pathlib.Path({str(told)!r}).write_text(str(os.getpid())); time.sleep(600)"
    path.write_text(path.read_text().replace('elif word == "go":', f'elif word == "go":\n        {hangs}'))
    task = make(root, test=("x:test",), engine=str(path), engine_nodes=5)
    with pytest.raises(ValueError, match="failed at a1a8 .*TimeoutError"):
        task.value(task.questions("test")[0], "a1a8")
    until = time.monotonic() + 20
    while time.monotonic() < until:
        try:
            os.kill(int(told.read_text()), 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    pytest.fail("the engine still runs")


def test_an_engine_that_dies_is_told_of_with_the_move_and_what_it_said_before_stands(root, engine):
    task = make(root, test=("x:test",), engine=engine(lasts=1, a1a8="cp 1", a1a2="cp 2", a1a3="cp 3"))
    question = task.questions("test")[0]
    assert task.value(question, "a1a8") == 1.0
    with pytest.raises(ValueError, match="failed at a1a2 in .*; mend it, name another one in --config.tasks.engine"):
        task.value(question, "a1a2")
    assert task.value(question, "a1a8") == 1.0
    assert task.value(question, "a1a3") == 3.0, "another engine is started for who asks again"


def test_another_engine_or_another_number_of_nodes_is_another_judge(root, engine):
    def judge(nodes, **worth):
        return make(root, test=("x:test",), engine=engine(**worth), engine_nodes=nodes).valued_by()

    assert judge(5, a1a8="cp 1") == judge(5, a1a8="cp 1")
    assert judge(5, a1a8="cp 1") != judge(6, a1a8="cp 1") and judge(5, a1a8="cp 1") != judge(5, a1a8="cp 2")


def test_moves_are_as_good_within_a_tenth_of_a_pawn_or_what_the_config_says(root, engine):
    path = engine(a1a8="cp 45", a1a2="cp 35", a1a3="cp 34")
    for margin, counts in ((None, (0, 1, 1)), (0.0, (0, 0, 2)), (11.0, (0, 2, 0))):
        more = {} if margin is None else {"engine_margin": margin}
        task = make(root, test=("x:test",), engine=path, engine_nodes=50, **more)
        asked = [task.questions("test")[0]] * 2
        found = better_than_gold.measure(
            asked,
            ("a1a2", "a1a3"),
            ("a1a8", "a1a8"),
            np.ones(2, bool),
            better_than_gold.by_solver(task.value),
            margin=task.value_margin,
        )
        assert (found.better, found.equal, found.worse) == counts
    assert not hasattr(make(root, test=("x:test",)), "value_margin")


@pytest.mark.parametrize("margin", [-1.0, float("nan"), float("inf")])
def test_a_margin_of_no_centipawns_is_refused(margin, root):
    with pytest.raises(ValueError, match=f"engine_margin={margin}: allowed are centipawns, 0 or more; change --config.tasks"):
        make(root, test=("x:test",), engine_margin=margin)


def test_a_program_that_asked_an_engine_ends(engine):
    start = "rnbqkbnr/pppppppp/8/8/8/8/PPPPPPPP/RNBQKBNR w KQkq - 0 1"
    asks = "from w2s_jax.tasks.chess_engine import Engine; "
    asks += f"print(Engine({engine(e2e4='cp 7')!r}, 5).centipawns({start!r}, 'e2e4'))"
    done = subprocess.run([sys.executable, "-c", asks], capture_output=True, text=True, timeout=60)
    assert done.stdout == "7.0\n", done.stderr


def test_a_program_that_is_no_engine_is_told_of(root, tmp_path):
    (tmp_path / "no_engine").write_text("#!/bin/sh\nexit 0\n")
    (tmp_path / "no_engine").chmod(0o755)
    task = make(root, test=("x:test",), engine=str(tmp_path / "no_engine"))
    with pytest.raises(ValueError, match="no_engine failed at a1a8"):
        task.value(task.questions("test")[0], "a1a8")


def test_without_the_engine_that_was_named_the_task_does_without_and_says_why(root):
    task = make(root, test=("x:test",), engine="/no/where")
    assert not hasattr(task, "value") and task.questions("test") == make(root, test=("x:test",)).questions("test")
    assert task.unvalued.startswith("--config.tasks.engine=/no/where: there is no program at /no/where; install a UCI")
    assert make(root, test=("x:test",)).unvalued == ""


def test_an_engine_that_is_gone_when_it_is_asked_who_it_is_is_told_of(root, engine):
    task = make(root, test=("x:test",), engine=engine(a1a8="cp 1"))
    pathlib.Path(task._judge.path).unlink()
    with pytest.raises(ValueError, match="cannot be read .*; put it back, or name another one in --config.tasks.engine"):
        task.valued_by()


def test_an_engine_that_is_not_there_is_no_engine(monkeypatch):
    monkeypatch.setattr(chess_engine, "PLACES", ())
    monkeypatch.setattr(chess_engine.shutil, "which", lambda name: None)
    with pytest.raises(chess_engine.NoEngine, match="engine=auto: there is no program at stockfish; install .* .apt install"):
        chess_engine.Engine.found("auto", 5)
    with pytest.raises(ValueError, match="engine_nodes is 0, allowed is 1 or more"):
        chess_engine.Engine.found("auto", 0)


@pytest.mark.parametrize("pair", config.PAIRS)
def test_the_config_names_a_pair_and_what_its_models_can_read(pair):
    c = config.get_config(pair)
    scratch = pair == "scratch"
    assert (c.teacher.model, c.student.model) == config.PAIRS[pair] and c.tasks.legal
    assert (c.tasks.layout, bool(c.tasks.corpus), {*c.pretrain}) == (
        ("words", True, {"weak", "strong"}) if scratch else ("fen", False, set())
    )
    with pytest.raises(ValueError, match="pair 'qwen': allowed are scratch, qwen3_0.6b_14b"):
        config.get_config("qwen")


# ---- Real rows -------------------------------------------------------------------------------------------------------


def every_accepted_move_is_legal(role_entries, cap):
    task = make(DATA, test=role_entries, max_test=cap, layout="words")
    words = set(task.vocabulary())
    for question, accepted in zip(task.questions("test"), task.gold("test").accepted, strict=True):
        assert set(accepted) <= set(question.options) and {*question.prompt.split(), *question.options} <= words
    return len(task.questions("test"))


@needs_data
def test_every_accepted_move_of_the_test_suites_is_legal():
    assert every_accepted_move_is_legal(("epd_suites:test",), None) > 2000


@needs_data
@pytest.mark.slow
def test_every_accepted_move_of_all_puzzles_is_legal():
    parts = tuple(f"lichess_puzzles:{split}" for split in ("train", "validation", "test"))
    assert every_accepted_move_is_legal(parts, None) > 100_000
