"""The transfer matrix on toys: each set is asked once, the diagonal is held out, and a planted head transfers as it should."""

import dataclasses
import json
import types

import numpy as np
import pytest

from experiments import transfer as command
from experiments.configs import base
from tests import toy
from w2s_jax import calibrating, gathering, looking, pipeline, store, transfer_page
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


def test_a_cell_of_nothing_has_no_share_of_right_labels_and_is_drawn(tmp_path):
    known = half([True, False], ["a", "b"])
    judged = transfer.judge("ntf", "a", "b", "ID", known, half([True], ["c"]), np.array([0.5]), 0.5)
    cell = transfer.judge("ntf", "a", "a", "ID", known, known, np.array([0.1, 0.2]), 0.5)
    assert (cell.num_judged, cell.num_shared, cell.right, cell.auc, cell.purity) == (0, 2, None, None, None)
    transfer_page.write(tmp_path, [cell, judged], transfer.by_tier([cell, judged]))
    assert [c["right"] for c in json.loads((tmp_path / "transfer.json").read_text())["cells"]] == [None, 1.0]
    fields, empty, _ = (line.split(",") for line in (tmp_path / "data" / "transfer.csv").read_text().splitlines())
    assert dict(zip(fields, empty, strict=True))["right"] == "" and "| 0 | – |" in (tmp_path / "transfer.md").read_text()
    assert (tmp_path / "index.html").read_text().count("<svg") == 2


def sets_of(config, *names):
    log = store.Store(config.tasks.root + "/store", log=lambda line: None)
    own = {name: command.of_set(config, name)[0] for name in names}
    return [transfer.Dataset(n, n, Run(c, 0, log, lambda *m: None, f"{n} ")) for n, c in own.items()]


def test_a_label_is_asked_about_as_its_own_set_is_wherever_the_trust_function_was_fitted(config, monkeypatch):
    """Without a model: what the stages are called with."""
    own = config.copy_and_resolve_references()
    own.methods = ("naive", "p_true")
    datasets = sets_of(own, "tests.toy|source,tasks.interface=free,teacher.max_new_tokens=2", "first:train")
    fitted_at, asked, labels = [], [], []

    def examine(run, teacher, questions, label):
        correct = np.arange(len(questions)) % 2 == 0
        names = tuple(q.id for q in questions)
        looked = types.SimpleNamespace(answers=Answers(names, names, names), questions=tuple(questions), extra={}, run=run)
        return looked, correct

    def gather(run, teacher, roles, asks):
        asked.extend((run, looked.run) for looked in roles)
        return [{name: None for name in asks} for _ in roles]

    def trust(run, row, fitted, unlabelled, given):
        labels.append(f"{run.prefix}trust {row.method} of {fitted}")
        return types.SimpleNamespace(value=np.linspace(0, 1, len(unlabelled.answers)))

    monkeypatch.setattr(pipeline, "examine", examine)
    monkeypatch.setattr(calibrating, "calibrate", lambda run, row, *rest: fitted_at.append(run) or run.prefix.strip())
    monkeypatch.setattr(gathering, "gather", gather)
    monkeypatch.setattr(pipeline, "trust", trust)
    cells = transfer.matrix(datasets, None)
    assert len(cells) == len(asked) == len(labels) == 8 and len(set(labels)) == 8
    assert all(run.config is of.config and run.task is of.task for run, of in asked)
    assert {run.task.interface for run, _ in asked} == {"free", "choice"}
    assert fitted_at == [one.run for one in datasets for _ in range(2)]
    free, choice = (one.name for one in datasets)
    assert f"{choice} from {free} trust p_true of {free}" in labels


@pytest.mark.parametrize(
    "method, said",
    [
        ("self_consistency", "^first:train: method 'self_consistency'.*needs 'sample_share'.*interface is 'choice'"),
        ("committee", "method 'committee': .*/nowhere"),
    ],
)
def test_what_a_set_cannot_give_is_said_before_a_teacher_is_found_or_asked(method, said, config, tmp_path, monkeypatch):
    own = config.copy_and_resolve_references()
    own.methods, own.trust.committee.models, own.teacher.model = (method,), ("/nowhere",), "pretrain:weak"
    names = ("tests.toy|source,tasks.interface=free", "first:train")
    monkeypatch.setattr(command.cli, "folders", lambda config: (str(tmp_path), str(tmp_path / "store")))
    with pytest.raises(ValueError, match=said):
        command.run(own, names)
    monkeypatch.setattr(pipeline, "examine", lambda *a, **k: pytest.fail("the teacher was asked"))
    with pytest.raises(ValueError, match=said):
        transfer.matrix(sets_of(own, *names), None)


def test_sets_may_differ_in_how_the_teacher_is_asked(config):
    rows = transfer.prepare(sets_of(config, "first:train", "second:test,teacher.style=letter,teacher.normalise=none"))
    assert [row.method for row in rows] == ["naive", "confidence", "ntf", "shuffled"]


def test_another_interface_is_another_domain(config):
    own, name, benchmark = command.of_set(config, "tests.toy|source,tasks.interface=free")
    assert (own.tasks.interface, name, benchmark) == ("free", "tests.toy|source,tasks.interface=free", "tests.toy")
    free, choice = (dataclasses.replace(one, benchmark="tests.toy") for one in sets_of(config, name, "tests.toy|source"))
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
        (("first:train", "second:test,observe.layers=[0]"), r"observe.layers=\(0,\) for 'second:test.*that it was fitted on"),
        (("first:train", "second:test,observe.token=eos"), "observe.token='eos' .*but 'content' for 'first:train'"),
        (("first:train", "second:test,teacher.model=other"), "teacher.model='other' for .*one teacher labels all"),
        (("first:train", "second:test,trust.knn.k=3"), "trust.knn.k=3 for .*settled once"),
        (("first:train", "second:test,teacher.shots=2"), "teacher.shots=2: demonstrations would"),
        (("first:train", "second:test,teacher.label=majority"), "^second:test,.*: teacher.label='majority' counts"),
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
