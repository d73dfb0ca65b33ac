"""The transfer matrix on toys: each set is asked once, the diagonal is held out, and a planted head transfers as it should."""

import json

import numpy as np
import pytest

from experiments import transfer as command
from experiments.configs import base
from tests import toy
from w2s_jax import looking, store, transfer_page
from w2s_jax.analysis import transfer
from w2s_jax.looking import Looked
from w2s_jax.run import Run, find_model
from w2s_jax.types import Answers, Question

SETS = ("first:train", "second:train", "second:test")


def write(root, name, rows):
    lines = [
        {"id": f"{name}/{i}", "question": prompt, "choices": list(toy.DIGITS), "answer": int(final)}
        for i, (prompt, final) in enumerate(rows)
    ]
    (root / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """Three local sets in the toy's words, and a teacher of them."""
    folder = tmp_path_factory.mktemp("sets")
    rows = [row for part in toy.make(seed=0).rows.values() for row in part]
    write(folder, "first.train", rows[:60])
    write(folder, "second.train", rows[60:110])
    write(folder, "second.test", rows[100:150])  # ten of them are in second.train too
    c = toy.get_config()
    c.pretrain.weak.training.epochs = 30.0
    run = Run(c, 0, store.Store(folder / "store", log=lambda line: None), lambda *metrics: None)
    c.teacher.model = find_model(run, "pretrain:weak").folder
    c.tasks = base.ConfigDict({"name": "choice", **base.keywords("task", "choice"), "root": str(folder)})
    c.methods = ("naive", "confidence", "ntf", "shuffled", "gold", "oracle")
    return c


@pytest.fixture(scope="module")
def measured(config, tmp_path_factory):
    workdir, lines = tmp_path_factory.mktemp("run"), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command.cli, "folders", lambda config: (str(workdir), str(workdir / "store")))
        patch.setattr(command.cli, "say", lines.append)
        passes = []
        answer = looking.answering.by_choice
        patch.setattr(
            looking.answering,
            "by_choice",
            lambda lm, questions, *a, **k: passes.append(questions) or answer(lm, questions, *a, **k),
        )
        command.run(config, SETS)
        first = list(passes)
        command.run(config, SETS)
    return workdir, first, passes


def cells_of(measured):
    return json.loads((measured[0] / "transfer" / "transfer.json").read_text())["cells"]


def test_the_teacher_answers_each_question_once_whatever_the_pairs(measured):
    _, first, after_second_run = measured
    asked = [q.id for questions in first for q in questions]
    assert len(asked) == len(set(asked)) == 60 + 50 + 50
    assert len(first) == 2 * len(SETS) and after_second_run == first


def test_every_pair_and_every_function_that_fits_on_a_source_has_a_cell(measured):
    cells = cells_of(measured)
    pairs = [(c["method"], c["source"], c["target"]) for c in cells]
    assert pairs == [(m, a, b) for m in ("naive", "confidence", "ntf", "shuffled") for a in SETS for b in SETS]
    tiers = {(c["source"], c["target"]): c["tier"] for c in cells}
    assert tiers["first:train", "first:train"] == tiers["second:train", "second:test"] == "ID"
    assert tiers["first:train", "second:train"] == "OOD_dist"


def test_the_cells_judge_what_was_not_fitted_on(measured):
    cells = {(c["source"], c["target"]): c for c in cells_of(measured) if c["method"] == "ntf"}
    assert all(
        c["num_fitted"] + c["num_judged"] == n
        for n, c in ((60, cells["first:train", "first:train"]), (50, cells["second:test", "second:test"]))
    )
    shared = cells["second:train", "second:test"]
    assert (
        shared["num_shared"] > 0
        and shared["num_judged"] + shared["num_shared"] == cells["second:test", "second:test"]["num_judged"]
    )
    assert cells["first:train", "second:test"]["num_shared"] == 0
    assert all(c["n"] == max(1, round(0.25 * c["num_judged"])) for c in cells.values())


def test_confidence_does_not_depend_on_its_source_and_ntf_does(measured):
    columns = {}
    for c in cells_of(measured):
        if c["target"] == "first:train":
            columns.setdefault(c["method"], []).append(c["auc"])
    assert len(set(columns["confidence"])) == 1 and len(set(columns["ntf"])) > 1


def test_the_report_has_heat_maps_and_their_numbers(measured):
    folder = measured[0] / "transfer"
    page = (folder / "index.html").read_text()
    assert page.count("<svg") == 2 * 4 and str(measured[0]) not in (folder / "transfer.json").read_text()
    table = (folder / "data" / "transfer.csv").read_text().splitlines()
    assert len(table) == 1 + len(cells_of(measured)) and table[0].startswith("method,source,target,tier")
    assert "| NTF | OOD_dist |" in (folder / "transfer.md").read_text()


def test_what_judges_alike_wherever_it_was_fitted_is_drawn_once(tmp_path):
    def cell(method, source, target, auc):
        counts = {"num_fitted": 9, "num_judged": 9, "num_shared": 0, "right": 0.5, "n": 2}
        measured = {"auc": auc, "auc_lo": 0.4, "auc_hi": 0.9, "ece": 0.1, "brier": 0.2}
        return transfer.Cell(method, source, target, "OOD_dist", **counts, **measured, purity=0.5, purity_lo=0.2, purity_hi=0.8)

    pairs = [(source, target) for source in "ab" for target in "ab"]
    cells = [cell("confidence", *pair, 0.6 if pair[1] == "a" else 0.7) for pair in pairs]
    cells += [cell("ntf", *pair, 0.6 if pair == ("a", "a") else 0.7) for pair in pairs]
    transfer_page.write(tmp_path, cells, transfer.by_tier(cells))
    of_confidence, of_ntf = (tmp_path / "index.html").read_text().split("<h2>NTF</h2>")
    assert of_confidence.count(">any</text>") == 2 and ">any</text>" not in of_ntf


def half(correct, names, groups=None):
    questions = tuple(Question(name, "t", f"what is {name}?", ("x", "y")) for name in names)

    class Seen(Looked):
        answers = Answers(tuple(names), ("x",) * len(names), ("x",) * len(names))

    return transfer.Half(questions, Seen(None, None), np.asarray(correct))


def test_a_cell_measures_a_planted_score():
    rng = np.random.default_rng(0)
    correct = rng.random(400) < 0.5
    fitted, judged = half(correct[:10], [f"a{i}" for i in range(10)]), half(correct, [f"b{i}" for i in range(400)])
    score = np.clip(0.5 + 0.3 * (correct - 0.5) + 0.2 * rng.normal(size=400), 0, 1)
    cell = transfer.judge("ntf", "a", "b", "OOD_dist", fitted, judged, score, 0.25)
    order = np.argsort(-score)[:100]
    assert cell.n == 100 and cell.purity == pytest.approx(correct[order].mean(), abs=0.03)
    assert cell.auc_lo < cell.auc < cell.auc_hi and cell.auc_lo > 0.5 and cell.right == correct.mean()
    chance = transfer.judge("ntf", "a", "b", "OOD_dist", fitted, judged, rng.random(400), 0.25)
    assert chance.auc_lo < 0.5 < chance.auc_hi


def test_questions_that_were_fitted_on_are_left_out_whatever_their_id_and_case():
    fitted, judged = half([True, False], ["a", "b"]), half([True, False, True], ["a", "c", "d"])
    loud = tuple(Question(f"other {q.id}", "t", q.prompt.upper() + " ", q.options[::-1]) for q in fitted.questions)
    fitted = transfer.Half(loud, fitted.looked, fitted.correct)
    cell = transfer.judge("ntf", "a", "b", "ID", fitted, judged, np.array([0.1, 0.2, 0.9]), 0.5)
    assert (cell.num_judged, cell.num_shared, cell.n, cell.purity) == (2, 1, 1, 1.0)


def test_another_interface_is_another_domain(config):
    own, name, benchmark = command.of_set(config, "tests.toy|source,tasks.interface=free")
    assert (own.tasks.interface, name, benchmark) == ("free", "tests.toy|source,tasks.interface=free", "tests.toy")
    log = store.Store(config.tasks.root + "/store", log=lambda line: None)
    free, choice = (
        transfer.Dataset(n, "tests.toy", Run(command.of_set(config, n)[0], 0, log, lambda *m: None))
        for n in (name, "tests.toy|source")
    )
    assert transfer.tier(free, choice) == "OOD_domain" and transfer.tier(choice, choice) == "ID"


@pytest.mark.parametrize(
    "sets, said",
    [
        (("first:train",), "two sets or more"),
        (("first:train", "first:train"), "each once"),
        (("first:train", "frist:train"), "unknown data set 'frist'.*did you mean 'first'"),
        (("first:train", "arithmetic|target"), "write 'arithmetic|source'"),
        (("first:train", "second:test,teacher.stile=direct"), "did you mean 'style'"),
        (("first:train", "second:test,observe.layers=none"), "observe.layers=none"),
    ],
)
def test_a_matrix_that_cannot_be_is_refused(sets, said, config, tmp_path, monkeypatch):
    monkeypatch.setattr(command.cli, "folders", lambda config: (str(tmp_path), str(tmp_path / "store")))
    with pytest.raises(ValueError, match=said):
        command.run(config, sets)


def test_demonstrations_and_shares_out_of_range_are_refused(config, tmp_path, monkeypatch):
    monkeypatch.setattr(command.cli, "folders", lambda config: (str(tmp_path), str(tmp_path / "store")))
    with pytest.raises(ValueError, match="keep=0"):
        command.run(config, SETS, keep=0.0)
    shown = config.copy_and_resolve_references()
    shown.teacher.shots = 2
    with pytest.raises(ValueError, match="teacher.shots=2: demonstrations would come from one set"):
        command.run(shown, SETS)
    for text in ("first:train", "('first:train'", "(1, 2)", "first"):
        with pytest.raises(ValueError, match="write a tuple of sets"):
            command.entries(text)
