"""The strategy games end to end, from their own configs made small: two models, their table, labels better than gold."""

import csv
import json
import random

import pytest

from experiments import main
from experiments.configs import chess, endgame
from tests import made_up_engine

library = pytest.importorskip("chess")
METHODS = ("naive", "ntf", "gold")


@pytest.fixture
def puzzles(tmp_path):
    """Positions of random games, whose best move is the first one in the alphabet; and an engine of its own opinion."""
    draw, seen = random.Random(0), {}
    while len(seen) < 420:
        board = library.Board()
        for _ in range(draw.randint(4, 24)):
            board.push(draw.choice(list(board.legal_moves)))
            if board.is_game_over():
                break
        if moves := sorted(move.uci() for move in board.legal_moves):
            seen[board.fen()] = moves
    rows = [
        {"id": f"own/{k}", "fen": fen, "best_moves": moves[:1], "line": [], "rating": 600 + k, "themes": []}
        for k, (fen, moves) in enumerate(seen.items())
    ]
    for split, part in (("train", rows[:240]), ("validation", rows[240:360]), ("test", rows[360:])):
        (tmp_path / f"lichess_puzzles.{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    made_up_engine.write(tmp_path / "engine")
    return tmp_path


def made_small(c, **lengths):
    for section in c.pretrain.values():
        section.decoder.update(width=16, num_layers=1, head_dim=8, mlp_width=32)
        section.training.epochs = 2.0
    for section in (*c.pretrain.values(), c.student):
        section.training.shape.update(lengths, batch_rows=2)
    for who in ("teacher", "student"):
        c[who].shape.update(lengths, batch_rows=2)
    c.student.training.epochs = 1.0
    c.trust.neural.update(width=16, blocks=1, epochs=3)
    c.select.n = 40
    c.methods = METHODS
    return c


def said(folder):
    """The rows of the table, and of labels beside gold, by method."""
    report = folder / "report"
    table = {row["method"]: row for row in json.loads((report / "recovery.json").read_text())["rows"] if row["test"] == "mean"}
    return table, {row["method"]: row for row in csv.DictReader((report / "data" / "better_than_gold.csv").open())}


def adds_up(table, beside):
    """Every chosen label that differs from gold is judged, which only a legal move can be."""
    assert list(table) == list(METHODS) and list(beside) == ["naive", "ntf"]
    for method, row in beside.items():
        mismatches, judged, *each = (int(row[name]) for name in ("mismatches", "judged", "better", "equal", "worse"))
        assert table[method]["n_selected"] == int(row["n"]) == 40
        assert mismatches == judged == sum(each) == round(40 * (1 - table[method]["purity"])) > 0
    assert table["gold"]["purity"] == 1


@pytest.mark.slow
def test_chess_from_scratch(puzzles, tmp_path):
    c = made_small(chess.get_config("scratch"), row_length=256)
    c.tasks.update(root=str(puzzles), max_target=100, num_weak=60, num_strong=80)
    c.tasks.update(engine=str(puzzles / "engine"), engine_nodes=1)
    main.run(c, workdir=str(tmp_path / "run"), store=str(tmp_path / "run" / "store"))
    table, beside = said(tmp_path / "run")
    adds_up(table, beside)
    assert sum(int(row["better"]) for row in beside.values()) > 0 < sum(int(row["worse"]) for row in beside.values())
    assert beside["ntf"]["judge"] == "engine" and beside["ntf"]["margin"] == "10"


@pytest.mark.slow
def test_endgame(tmp_path):
    c = made_small(endgame.get_config(), row_length=128)
    c.tasks.update(num_source=120, num_target=160, num_weak=200, num_test=80)
    main.run(c, workdir=str(tmp_path / "run"), store=str(tmp_path / "run" / "store"))
    table, beside = said(tmp_path / "run")
    adds_up(table, beside)
    assert all((row["judge"], row["better"]) == ("solver", "0") for row in beside.values())  # gold is a fastest move
