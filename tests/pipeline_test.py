"""The path as a whole, on a toy: gold stays behind its door, nothing runs twice, a kill changes nothing."""

import dataclasses
import itertools
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from experiments import main
from experiments.configs import base
from tests import toy
from w2s_jax import calibrating, pipeline, store, teaching
from w2s_jax.looking import Looked, answer
from w2s_jax.run import Model, Run, find_model
from w2s_jax.settings import check, method_row, uses_target_gold
from w2s_jax.store import Ref, Store
from w2s_jax.trust import artefact, controls, neural
from w2s_jax.types import Answers, Evidence, Gold, Question, Selection

ROOT = pathlib.Path(__file__).parents[1]


def run(workdir, config=None, store=None):
    """One link of the toy; returns its trial, and what the store said."""
    config, lines = config or toy.get_config(), []
    one = Run(config, 0, Store(store or workdir / "store", workdir=workdir, log=lines.append), lambda *a: None)
    models = [find_model(one, word) for word in (config.teacher.model, config.student.model)]
    return pipeline.link(one, *models).trial, lines


def students(workdir, store=None):
    """Label -> bytes of the trained student."""
    runs = json.loads((workdir / "runs.json").read_text())
    return {
        label: ((store or workdir / "store") / folder / "model" / "model.safetensors").read_bytes()
        for label, folder in runs.items()
        if label.startswith("teach ")
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("finished")
    trial, _ = run(workdir)
    return workdir, trial


def test_every_method_of_the_config_is_measured(finished):
    _, trial = finished
    assert tuple(trial.trained) == ("naive", "confidence", "ntf", "shuffled", "gold")
    assert set(trial.n_selected.values()) == {20}
    assert trial.uses_target_gold == {"gold"}
    assert all(score.correct.shape == (40,) for score in trial.trained.values())
    assert trial.audits["gold"].purity == 1.0


def with_controls(arg=None):
    config = toy.get_config(arg)
    config.methods = ("naive", "confidence", "ntf", *base.CONTROLS, "self_known", "smoothed", "selective", "gold")
    config.relabel.selective.smoothed_threshold = 0.0  # nothing is dropped: there are labels enough for all methods
    return config


@pytest.fixture(scope="module")
def controlled(finished, tmp_path_factory):
    workdir, shared = tmp_path_factory.mktemp("controlled"), finished[0] / "store"
    trial, _ = run(workdir, with_controls(), shared)
    return workdir, trial, shared


def test_changing_every_gold_answer_of_the_target_changes_no_student_but_the_marked_ones(controlled, tmp_path):
    workdir, trial, shared = controlled
    run(tmp_path, with_controls("target_gold=wrong"))
    before, after = students(workdir, shared), students(tmp_path)
    assert before.keys() == after.keys() and len(before) == 11
    changed = {label.removeprefix("teach ") for label in before if before[label] != after[label]}
    assert changed == trial.uses_target_gold == {"gold", "same_purity"}


def test_controls_take_as_many_labels_and_match_what_they_say(controlled):
    workdir, trial, shared = controlled

    def stored(label):
        return store.read(shared / json.loads((workdir / "runs.json").read_text())[label]).value

    assert set(trial.n_selected.values()) == {20}
    assert trial.audits["same_purity"].purity == trial.audits["ntf"].purity
    rows = {name: stored(f"select {name}").row.tolist() for name in ("ntf", "same_purity", "difficulty_matched")}
    assert len(set(map(tuple, rows.values()))) == 3
    answered = stored("answer target")
    level = controls.difficulty(toy.make(seed=0).questions("target"), answered["answers"], answered["extra"]["answer_logp"])
    of_ntf, matched = (np.bincount(level[rows[name]]) for name in ("ntf", "difficulty_matched"))
    np.testing.assert_array_equal(of_ntf, matched)
    assert len(set(level.tolist())) > 3
    described = json.loads((shared / artefacts(workdir)["calibrate flipped"] / "trust" / "trust.json").read_text())
    assert described["about"]["flipped"] is True and described["trust"] == "neural"


# Certified purity


def evidence_of(shared, runs, role):
    answered = store.read(shared / runs[f"answer {role}"]).value
    return Evidence(answered["answers"], np.load(shared / runs[f"observe {role}"] / "x.npy"), answered["extra"])


def certified(**terms):
    config = toy.get_config()
    config.methods = ("naive", "confidence", "ntf", "flipped", "gold")
    config.select.update(rule="certified", purity=0.01, delta=0.5, grid=(0.2, 0.3), calibration_frac=0.4, **terms)
    return config


def test_a_certified_run_fits_without_the_rows_that_vouch_for_it_and_leaves_the_other_rows_alone(
    finished, tmp_path, monkeypatch
):
    seen, fit = [], neural.Neural.fit

    def watched(self, evidence, correct, key):
        seen.append((evidence.answers.question_id, evidence.x, correct))
        return fit(self, evidence, correct, key)

    monkeypatch.setattr(neural.Neural, "fit", watched)
    plain = artefacts(finished[0])
    shared = finished[0] / "store"
    trial, lines = run(tmp_path, certified(), shared)
    runs = artefacts(tmp_path)
    for label in ("calibrate naive", "trust naive", "calibrate confidence", "trust confidence", "answer source"):
        assert runs[label] == plain[label], label
    assert runs["calibrate ntf"] != plain["calibrate ntf"]

    (fitted, x, right), (_, same, wrong) = seen  # the row `flipped` is fitted on the same labels, turned round
    np.testing.assert_array_equal(same, x)
    np.testing.assert_array_equal(wrong, ~right)
    source = store.read(shared / runs["answer source"]).value["answers"]
    assert len(fitted) == len(x) == len(right) == 36 and len(source) == 60
    truth = toy.make(seed=0).gold("source").grade(source)
    calibration = [row for row, i in enumerate(source.question_id) if i not in set(fitted)]
    assert len(calibration) == 24
    np.testing.assert_array_equal(right, np.delete(truth, calibration))

    found = trial.certificates["ntf"]
    assert list(trial.certificates) == ["ntf"] and found.caveats == () and found.threshold is not None
    score = artefact.read(shared / runs["calibrate ntf"] / "trust")[0].score(evidence_of(shared, runs, "source"))[calibration]
    reached = score >= 0.2
    assert found.curve[0, [1, 2]].tolist() == [reached.sum(), truth[calibration][reached].mean()]
    score = store.read(shared / runs["trust ntf"]).value
    chosen = store.read(shared / runs["select ntf"]).value.row
    np.testing.assert_array_equal(chosen, np.flatnonzero(score >= found.threshold))
    assert set(trial.n_selected.values()) == {len(chosen)}
    assert any("certified purity of ntf: With confidence 0.5, at least" in line for line in lines)
    _, again = run(tmp_path, certified(), shared)
    assert all("computed" not in line for line in again)


def test_where_nothing_can_be_certified_the_run_says_so_before_a_student_is_taught(finished, tmp_path):
    config = certified(bound="hoeffding")
    config.select.purity = 0.99
    with pytest.raises(ValueError, match=r"at least 0.99 are right with confidence 0.5 \(hoeffding, population\)"):
        run(tmp_path, config, finished[0] / "store")
    runs = artefacts(tmp_path)
    assert not any(label.startswith("teach") for label in runs)
    assert store.read(finished[0] / "store" / runs["certify ntf"]).value.threshold is None


def test_the_calibration_part_keeps_passages_whole_unless_the_target_has_them_too():
    one = Run(certified(), 0, None, lambda *a: None)
    source = tuple(Question(f"s{i}", "a", "?", ("x",), group=f"g{i // 4}") for i in range(40))
    ids = tuple(q.id for q in source for _ in range(2))
    labelled = Looked(Ref({"answers": Answers(ids, ids, ids), "extra": {}}, ""), None)

    def sides(target):
        found = calibrating.hold_back(one, labelled, np.ones(80, bool), source, target)
        assert found.held.sum() == 32
        return [len(set(found.held[8 * g : 8 * g + 8].tolist())) for g in range(10)], found.caveats

    whole, caveats = sides((Question("t", "b", "?", ("x",), group="other"),))
    assert set(whole) == {1} and "not valid out of distribution: calibrated on a, applied to b" in caveats
    parted, caveats = sides((Question("t", "a", "?", ("x",), group="g3"),))
    assert 2 in parted and len(caveats) == 1


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"methods": ("naive", "gold")}, "select.rule='certified' is for the row that uses trust.name.*has none: add 'ntf'"),
        ({"select.delta": 0.0}, "select.delta=0.0: allowed is above 0, at most 0.5"),
        ({"trust.from_": "somewhere"}, "trust.from_='somewhere': select.rule='certified' holds back"),
    ],
)
def test_what_cannot_be_certified_is_refused_before_anything_is_computed(changed, said):
    config = certified()
    config.update_from_flattened_dict(changed)
    with pytest.raises(ValueError, match=said):
        check(config)


def test_a_control_that_is_matched_to_a_row_that_is_not_there_is_refused():
    config = toy.get_config()
    config.methods = ("naive", "difficulty_matched")
    with pytest.raises(ValueError, match="'difficulty_matched' is matched to the selection of 'ntf': allowed are naive; add"):
        check(config)
    config.methods = ("difficulty_matched", "ntf")  # the order does not matter
    assert [row.matches for row in check(config)] == ["ntf", ""]


def test_every_row_of_a_balanced_run_takes_as_many_labels_of_each_class(tmp_path):
    config = toy.get_config()
    config.select.update(rule="balanced", n=12)
    config.methods = ("naive", "ntf", "difficulty_matched")
    one = Run(config, 0, Store(tmp_path, log=lambda line: None), lambda *a: None)
    questions, rng = one.task.questions("target"), np.random.default_rng(0)
    final = tuple(rng.choice(list("012"), 60, p=[0.6, 0.3, 0.1]).tolist())
    answers = Answers(tuple(q.id for q in questions), final, final)
    for row in check(config):
        seen = Looked(Ref({"answers": answers, "extra": {}}, "answered"), None)
        offer = teaching.Offer(Ref(rng.random(60).astype(np.float32), row.method), seen)
        found = teaching.select(one, row, offer, questions, 12).value
        counts = [found.answers.final.count(digit) for digit in "012"]
        assert sum(counts) == 12 and (counts == [4, 4, 4]) == (row.method != "difficulty_matched"), row.method


def test_a_target_without_answers_runs_to_the_student(tmp_path, finished):
    trial, _ = run(tmp_path, toy.get_config("target_gold=none"))
    assert tuple(trial.trained) == ("naive", "confidence", "ntf", "shuffled")
    assert "no gold" in trial.audits["ntf"].reason
    assert students(tmp_path)["teach ntf"] == students(finished[0])["teach ntf"]


def test_naive_and_gold_teach_the_same_questions(finished):
    workdir, _ = finished
    runs = json.loads((workdir / "runs.json").read_text())
    assert runs["select naive"] == runs["select gold"] != runs["select shuffled"]


def test_a_second_run_computes_nothing(finished):
    _, lines = run(finished[0])
    assert lines and all(line.endswith("cached") for line in lines)


def test_a_changed_setting_reruns_only_what_depends_on_it_and_says_so(finished):
    workdir, _ = finished
    config = toy.get_config()
    config.select.n = 10
    _, lines = run(workdir, config)
    computed = {line.split("  ")[0] for line in lines if "computed" in line}
    assert {"select ntf", "teach ntf", "score ntf", "audit ntf"} <= computed
    assert not any(label.startswith(("pretrain", "observe", "calibrate", "trust")) for label in computed)
    assert any("select ntf" in line and "amounts.n (20 -> 10)" in line for line in lines)


class NotStored(Exception):
    """A stage that would have to run."""


class Served(Store):
    """A store that serves what it has and refuses to compute."""

    def stage(self, name, fn, /, *, label, **inputs):
        self.asked = label
        return super().stage(name, fn, label=label, **inputs)

    def _compute(self, *args):
        raise NotStored(self.asked)


def first_to_run(workdir, config, seed=0):
    """The label of the first stage of a run that the store has not, None if it has them all."""
    one = Run(config, seed, Served(workdir / "store", log=lambda line: None), lambda *a: None)
    of_seed_0 = dataclasses.replace(one, seed=0)
    try:
        models = [find_model(of_seed_0, word) for word in (config.teacher.model, config.student.model)]
        pipeline.link(one, *models)
    except NotStored as missing:
        return str(missing)
    return None


@pytest.mark.parametrize(
    ("key", "value", "first"),
    [
        ("recover.margin", 0.1, None),
        ("pretrain.weak.training.lr", 0.02, "pretrain weak"),
        ("pretrain.strong.decoder.width", 48, "pretrain strong"),
        ("teacher.style", "cloze", "answer source"),
        ("teacher.chat", True, "answer source"),
        ("teacher.shots", 1, "answer source"),
        ("teacher.normalise", "byte", "answer source"),
        ("teacher.dtype", "bfloat16", "answer source"),
        ("teacher.shape.row_length", 48, "answer source"),
        ("observe.layers", (0,), "observe source"),
        ("observe.token", "eos", "observe source"),
        ("trust.neural.lr", 0.01, "calibrate ntf"),
        ("trust.confidence.span", "completion", "calibrate confidence"),
        ("select.n", 11, "select ntf"),
        ("select.rule", "fraction", "select ntf"),
        ("select.rule", "balanced", "select ntf"),
        ("select.rule", "certified", "calibrate ntf"),
        ("select.purity", 0.5, None),
        ("select.calibration_frac", 0.5, None),
        ("select.grid", (0.5,), None),
        ("select.balance", "level", None),
        ("student.training.lr", 2e-3, "teach naive"),
        ("student.training.accumulation", 2, "teach naive"),
        ("student.training.shape.row_length", 48, "teach naive"),
        ("student.training.optimizer.b1", 0.5, "teach naive"),
        ("student.style", "cloze", "teach naive"),
        ("student.shots", 1, "teach naive"),
        ("student.dtype", "bfloat16", "teach naive"),
        ("student.shape.row_length", 48, "answer test base"),
        ("student.normalise", "byte", "answer test base"),
    ],
)
def test_whatever_a_stage_depends_on_makes_it_run_again_and_nothing_before_it(finished, key, value, first):
    config = toy.get_config()
    config.update_from_flattened_dict({key: value})
    assert first_to_run(finished[0], config) == first


def test_another_seed_calibrates_and_teaches_anew_on_the_same_greedy_answers(finished):
    assert first_to_run(finished[0], toy.get_config(), seed=1) == "calibrate naive"


def test_purposes_and_seeds_have_random_keys_of_their_own():
    one, other = (Run(toy.get_config(), seed, None, lambda *a: None) for seed in (0, 1))
    keys = [one.key("teach"), one.key("sampling"), other.key("teach")]
    assert len({jax.random.key_data(key).tobytes() for key in keys}) == 3
    assert jax.random.key_data(one.key("teach")).tobytes() == jax.random.key_data(keys[0]).tobytes()


@pytest.mark.parametrize("role", ["source", "target"])
def test_a_link_whose_test_questions_stand_in_another_role_is_refused(role):
    one = Run(toy.get_config(), 0, None, lambda *a: None)
    one.task.rows["test"] = one.task.rows[role][:5]
    with pytest.raises(ValueError, match=f"stands in {role} and in test"):
        pipeline.link(one, *[Model("m", "", "")] * 2)


def artefacts(workdir):
    """Label -> artefact of the last run in this folder."""
    return json.loads((workdir / "runs.json").read_text())


def test_demonstrations_are_each_models_own_and_never_asked(finished, monkeypatch):
    seen, stage = {}, Run.stage

    def recorded(self, name, fn, /, *, label, **inputs):
        seen[label] = inputs
        return stage(self, name, fn, label=label, **inputs)

    monkeypatch.setattr(Run, "stage", recorded)
    config = toy.get_config()
    config.methods, config.teacher.shots, config.student.shots = ("naive",), 2, 1
    plain = artefacts(finished[0])
    run(finished[0], config)
    for label in ("answer target", "observe target", "answer test teacher", "answer test base", "teach naive"):
        assert artefacts(finished[0])[label] != plain[label], label
    source = toy.make(seed=0).gold("source")
    answer_of = {i: final for i, (final, *_) in zip(source.question_id, source.accepted, strict=True)}
    for label, shots in {
        "answer source": 2, "answer target": 2, "answer test teacher": 2,
        "answer test base": 1, "answer test naive": 1, "teach naive": 1,
    }.items():  # fmt: skip
        assert len(seen[label]["shown"]) == shots, label
        assert all(answer_of[question.id] == final for question, final in seen[label]["shown"])
    asked, shown = seen["answer source"]["questions"], seen["answer source"]["shown"]
    assert len(asked) == 58 and not {q.id for q in asked} & {q.id for q, _ in shown}
    run(finished[0])


def test_a_lesson_pairs_each_question_with_its_answer_and_weight():
    questions = tuple(Question(f"q{i}", "t", f"What is {i}?") for i in range(4))
    taught = Answers(("q3", "q1"), ("it is c", "it is a"), ("c", "a"))
    chosen = Selection(np.array([3, 1]), np.float32([0.5, 0.25]), np.zeros(4, np.float32), taught, ("weak",) * 2)
    lesson = teaching.compose(chosen, questions, None)
    assert lesson.questions == (questions[3], questions[1]) and lesson.answers == taught
    assert lesson.weight.tolist() == [0.5, 0.25]
    gold = Gold(("q0", "q1", "q2", "q3"), (("w",), ("x", "also x"), ("y",), ("z",)))
    assert teaching.compose(chosen, questions, gold).answers == Answers(("q3", "q1"), ("z", "x"), ("z", "x"))


def test_only_the_oracle_is_given_gold_and_only_where_there_is_some():
    config = toy.get_config()
    config.methods = ("oracle", "ntf", "shuffled")
    oracle, ntf, shuffled = check(config)
    answers = Answers(("q0", "q1"), ("a", "b"), ("a", "b"))
    looked = Looked(Ref({"answers": answers, "extra": {}}, ""), None)
    gold = Gold(("q0", "q1"), (("a",), ("a",)))
    assert calibrating.known_of_target(oracle, looked, gold, {})["correct"].tolist() == [True, False]
    assert calibrating.known_of_target(ntf, looked, gold, {}) == {}
    assert calibrating.known_of_target(shuffled, looked, gold, {"ntf": "its scores", "other": "?"}) == {
        "score/ntf": "its scores"
    }
    with pytest.raises(ValueError, match="method 'oracle': trust 'controls' needs 'correct'"):
        calibrating.known_of_target(oracle, looked, None, {})
    with pytest.raises(ValueError, match="needs 'score/ntf', but there is only .*score/other"):
        calibrating.known_of_target(shuffled, looked, gold, {"other": "?"})


def test_more_rows_compile_no_new_program(finished, tmp_path):
    count = 0

    def listen(event, duration, **_):
        nonlocal count
        count += event == "/jax/core/compile/backend_compile_duration"

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        config = toy.get_config()
        config.tasks.num_source, config.tasks.num_target, config.tasks.num_test = 75, 110, 60
        run(tmp_path, config)
    finally:
        jax.monitoring.clear_event_listeners()
    assert count == 0


def test_audit_refuses_to_look_before_the_student_is_stored(finished, tmp_path):
    one = Run(toy.get_config(), 0, Store(tmp_path, log=lambda line: None), lambda *a: None)
    with pytest.raises(ValueError, match="audit ntf: the student has not been stored"):
        pipeline.audit(one, method_row(one.config, "ntf"), None, None, None, (), None)


def free(**teacher):
    config = toy.get_config("interface=free")
    config.teacher.update(num_samples=2, temperature=1.0, **teacher)
    return config


@pytest.fixture(scope="module")
def finished_free(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("free")
    return workdir, run(workdir, free())[0]


def test_free_answers_run_with_several_samples_of_a_question(finished_free):
    tmp_path, trial = finished_free
    assert tuple(trial.trained) == ("naive", "confidence", "ntf", "shuffled", "gold")
    chosen = read(tmp_path, "select ntf")
    assert len(chosen.score) == 120 and len(set(chosen.answers.question_id)) == len(chosen.row) == 20
    assert trial.weak.correct.shape == (40,)


def answered(workdir, config, **how):
    """The teacher's answers to the target, their entry of the store, and what the store said."""
    lines = []
    one = Run(config, 0, Store(workdir / "store", log=lines.append), lambda *a: None)
    teacher = find_model(one, config.teacher.model)
    return answer(one, teacher, one.task.questions("target"), "teacher", (), "answer target", **how), lines


def test_a_teachers_majority_is_one_answer_to_a_question_unless_it_is_scored(finished_free):
    each, said = answered(finished_free[0], free())
    assert "cached" in said[-1]
    majority, said = answered(finished_free[0], free(label="majority"))
    assert "computed" in said[-1] and majority.key != each.key
    all, kept = each.value["answers"], majority.value["answers"]
    assert len(all) == 120 and kept.question_id == all.question_id[::2] and "vote_share" not in each.value["extra"]
    share = majority.value["extra"]["vote_share"]
    for n, (final, votes) in enumerate(zip(kept.final, share, strict=True)):
        two = all.final[2 * n : 2 * n + 2]
        assert final in two and votes == (two.count(final) / 2 if final else 0.0)
        assert final != "" or two == ("", "")
    assert len(majority.value["rollout"].logp) == 60 and len(set(share.tolist())) > 1
    once = [answered(finished_free[0], config, once=True) for config in (free(), free(label="majority"))]
    assert once[0][0].key == once[1][0].key and "vote_share" not in once[0][0].value["extra"]


def test_what_other_questions_and_their_gold_are_does_not_make_free_answers_stale(finished_free):
    config = free()
    config.tasks.target_gold = "wrong"
    assert "cached" in answered(finished_free[0], config)[1][-1]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"label": "most"}, "teacher.label='most': allowed are each, majority"),
        ({"label": "majority"}, "teacher.num_samples=1 at teacher.temperature=0.0: set num_samples above 1"),
        ({"label": "majority", "num_samples": 8}, "temperature above 0"),
        ({"label": "majority", "temperature": 0.7}, "num_samples above 1"),
    ],
)
def test_a_majority_of_one_is_refused(changed, said):
    config = toy.get_config("interface=free")
    config.teacher.update(changed)
    with pytest.raises(ValueError, match=said):
        check(config)


def test_the_digest_of_gold_is_of_its_ids_and_accepted_answers_alone():
    gold = Gold(("q",), (("a", "b"),))
    assert pipeline.digest(gold) == pipeline.digest(Gold(("q",), (("a", "b"),), ("it is a",), lambda found, wanted: None))
    others = [None, Gold(("p",), (("a", "b"),)), Gold(("q",), (("a",),)), Gold(("q",), (("b", "a"),))]
    assert len({pipeline.digest(other) for other in [gold, *others]}) == 5


def read(workdir, label):
    folder = json.loads((workdir / "runs.json").read_text())[label]
    return store.read(workdir / "store" / folder).value


@pytest.mark.parametrize("rule", ["threshold", "weights"])
def test_all_methods_teach_as_many_labels_as_ntf_whatever_the_rule(rule, finished):
    config = toy.get_config()
    config.select.rule, config.select.threshold = rule, float(np.median(read(finished[0], "trust ntf")))
    trial, _ = run(finished[0], config)
    assert len(set(trial.n_selected.values())) == 1
    run(finished[0])


def test_gold_that_arrives_through_another_methods_scores_is_marked_too():
    config = toy.get_config()
    config.methods = ("naive", "oracle", "shuffled")
    config.method.shuffled.args.of = "oracle"
    assert uses_target_gold(check(config)) == {"oracle", "shuffled"}
    config.methods = ("naive", "oracle", "difficulty_matched", "same_purity")
    config.method.difficulty_matched.args.of, config.method.same_purity.args.of = "oracle", "naive"
    assert uses_target_gold(check(config)) == {"oracle", "difficulty_matched", "same_purity"}


def write_fork(folder):
    """A trust head in a file of its own, `my_fork.norm`."""
    (folder / "my_fork").mkdir()
    (folder / "my_fork" / "norm.py").write_text(
        "import dataclasses\nimport numpy as np\n\n@dataclasses.dataclass(frozen=True)\nclass Norm:\n"
        "    needs = frozenset()\n    def fit(self, evidence, correct, key): return self\n"
        "    def score(self, evidence):\n        return 1 / (1 + np.abs(evidence.x[:, 0, 0]))\n"
        "    def state(self): return {}\n    def restore(self, state): return self\n\ndef make(): return Norm()\n"
    )


def test_a_trust_head_in_a_forks_own_file_works_with_one_config_word(finished, tmp_path, monkeypatch):
    write_fork(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    config = toy.get_config()
    config.trust.name = "my_fork.norm"
    _, lines = run(finished[0], config)
    computed = {line.split("  ")[0] for line in lines if "computed" in line}
    assert {"calibrate ntf", "trust ntf"} <= computed and "pretrain weak" not in computed


@pytest.mark.slow
def test_the_quickstart_runs_with_a_forks_trust_head(tmp_path):
    write_fork(tmp_path)
    workdir = tmp_path / "workdir"
    flags = ("--config.trust.name=my_fork.norm", "--config.methods=('naive', 'ntf')")
    command = [sys.executable, "-m", "experiments.main", f"--workdir={workdir}", *flags]
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    x = np.load(next(workdir.glob("store/observe*/x.npy")), mmap_mode="r")
    fitted = json.loads((workdir / "trust" / "ntf" / "trust.json").read_text())
    assert fitted["trust"] == "my_fork.norm" and x.ndim == 3
    score = read(workdir, "trust ntf")
    (target,) = (path for path in workdir.glob("store/observe*/x.npy") if len(np.load(path, mmap_mode="r")) == len(score))
    np.testing.assert_allclose(score, 1 / (1 + np.abs(np.load(target)[:, 0, 0])), rtol=1e-6)
    rows = {row["method"]: row for row in json.loads((workdir / "report" / "recovery.json").read_text())["rows"]}
    assert set(rows) == {"naive", "ntf"} and rows["ntf"]["accuracy"] > rows["ntf"]["base"]


def test_a_fitted_head_is_used_again(finished, tmp_path):
    workdir, _ = finished

    def folder(label):
        return workdir / "store" / json.loads((workdir / "runs.json").read_text())[label]

    run(workdir)
    fitted, scores = folder("calibrate ntf"), np.load(folder("trust ntf") / "value.0.npy")
    config = toy.get_config()
    config.trust.from_ = str(fitted / "trust")
    config.trust.neural.epochs = 99  # another head, if it were fitted
    run(workdir, config)
    assert folder("calibrate ntf") != fitted
    np.testing.assert_array_equal(np.load(folder("trust ntf") / "value.0.npy"), scores)


def test_what_is_graded_is_graded_anew_by_another_version_of_the_judge_and_nothing_else_is_computed(finished, monkeypatch):
    monkeypatch.setattr(toy.Toy, "judged_by", lambda task: {"math-verify": "1000"}, raising=False)
    _, lines = run(finished[0])
    computed = {line.split("  ")[0] for line in lines if "computed in" in line}
    methods = toy.get_config().methods
    assert computed == {*(f"score {m}" for m in (*methods, "base", "teacher")), *(f"audit {m}" for m in methods)}


def test_adapters_stand_beside_their_student_and_are_a_model_word_of_their_own(finished, tmp_path):
    config, store = toy.get_config(), finished[0] / "store"
    config.methods = ("naive",)
    config.student.training.lora_rank = 2
    main.run(config, workdir=str(tmp_path), store=str(store))
    one = Run(config, 0, Store(store, log=lambda line: None), lambda *a: None)
    base, merged, adapted = (
        find_model(one, str(word))
        for word in ("pretrain:strong", tmp_path / "student" / "naive", tmp_path / "adapter" / "naive")
    )
    assert (adapted.name, adapted.folder, len({base.key, merged.key, adapted.key})) == ("naive", base.folder, 3)
    want, start, got = (one.load(model, "float32").params for model in (merged, base, adapted))
    same = jax.tree.map(np.array_equal, got, want)
    assert all(jax.tree.leaves(same)) and not all(jax.tree.leaves(jax.tree.map(np.array_equal, start, want)))

    other = shutil.copytree(tmp_path / "adapter" / "naive", tmp_path / "other")
    file = other / "adapter_config.json"
    text = file.read_text()
    file.write_text(text.replace('"lora_alpha": 32', '"lora_alpha": 16'))
    assert find_model(one, str(other)).key != adapted.key
    for word, said in ((adapted.adapter, "is an adapter itself"), ("/nowhere", "'/nowhere' is no directory here")):
        file.write_text(text.replace(base.folder, word))
        with pytest.raises(ValueError, match=f"{said}(.|\n)*base_model_name_or_path of {file}: correct it there"):
            find_model(one, str(other))


@pytest.mark.slow
def test_a_base_held_in_bfloat16_is_taught_through_float32_adapters(finished, monkeypatch):
    config, formats = toy.get_config(), []
    config.methods, config.student.param_dtype, config.student.training.lora_rank = ("naive",), "bfloat16", 2
    teach = teaching.trainer.teach

    def watched(lm, *args, **keywords):
        taught = teach(lm, *args, **keywords)
        trees = (lm.params, taught.lm.params, taught.adapters.tree)
        formats.append([{leaf.dtype.name for leaf in jax.tree.leaves(tree)} for tree in trees])
        return taught

    monkeypatch.setattr(teaching.trainer, "teach", watched)
    run(finished[0], config)
    assert formats == [[{"bfloat16"}, {"bfloat16"}, {"float32"}]]
    run(finished[0])


@pytest.mark.slow
def test_a_quantised_base_is_taught_and_leaves_a_plain_model(finished, tmp_path):
    pytest.importorskip("qwix")
    config, store = toy.get_config(), Store(finished[0] / "store", log=lambda line: None)
    config.methods, config.student.quantise, config.student.training.lora_rank = ("naive",), "int8", 2
    main.run(config, workdir=str(tmp_path), store=str(store.root))
    one = Run(config, 0, store, lambda *a: None)
    merged, adapted, base = (
        one.load(find_model(one, str(word)), "float32").params["layers"]["block_0"]["mlp"]["up"]["kernel"]
        for word in (tmp_path / "student" / "naive", tmp_path / "adapter" / "naive", "pretrain:strong")
    )
    # The student is the widened base and its adapter; the adapter alone goes on the base as it was.
    rounded = np.abs(merged - adapted).max(1) / np.abs(base).max(1)
    assert 0 < rounded.max() <= 0.5 / 127.5 * 1.001
    config.student.model = str(tmp_path / "adapter" / "naive")
    with pytest.raises(ValueError, match="is an adapter, whose base cannot be quantised too"):
        main.run(config, workdir=str(tmp_path), store=str(store.root))


def test_the_report_is_the_same_bytes_from_another_store(finished, tmp_path):
    one = pathlib.Path(main.run(toy.get_config(), workdir=str(finished[0]), store=str(finished[0] / "store"))) / "recovery.json"
    two = pathlib.Path(main.run(toy.get_config(), workdir=str(tmp_path), store=str(tmp_path / "store"))) / "recovery.json"
    assert one.read_bytes() == two.read_bytes()


def test_the_reports_verdicts_are_made_as_the_config_says(finished):
    config = toy.get_config()
    config.recover.margin = 0.25
    folder = main.run(config, workdir=str(finished[0]), store=str(finished[0] / "store"))
    summary = json.loads(pathlib.Path(folder, "recovery.json").read_text())["summary"]
    assert {row["margin"] for row in summary} == {0.25}


def start(workdir, cache, *flags, stderr=subprocess.PIPE, **variables):
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(cache), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    environment |= variables
    command = [sys.executable, "-m", "experiments.main", "--config=tests/toy.py", f"--workdir={workdir}", *flags]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=stderr, text=True)


@pytest.mark.slow
def test_a_run_killed_again_and_again_ends_with_the_same_bits(tmp_path):
    whole = start(tmp_path / "whole", tmp_path / "cache")
    out, err = whole.communicate()
    assert whole.returncode == 0, err
    rng, kills = np.random.default_rng(0), 0
    for _ in range(40):
        process = start(tmp_path / "killed", tmp_path / "cache", PYTHONUNBUFFERED="1", stderr=subprocess.STDOUT)
        # So many stages and a little of the next one: however slow the machine, every start gets somewhere.
        computed = (line for line in process.stdout if "computed in" in line)
        if len(list(itertools.islice(computed, rng.integers(3, 9)))) < 3:
            break
        time.sleep(2 * rng.random())
        kills += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.communicate()
    process.communicate()
    assert process.returncode == 0 and kills > 2
    for name in ("report/recovery.json", "metrics.jsonl"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


@pytest.mark.slow
def test_eight_devices_give_the_table_of_one(tmp_path):
    eight = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    mesh = ("--config.mesh.data=2", "--config.mesh.fsdp=2")
    tables = []
    for name, flags, variables in (("one", (), {}), ("eight", mesh, eight)):
        process = start(tmp_path / name, tmp_path / "cache", *flags, **variables)
        _, err = process.communicate()
        assert process.returncode == 0, err
        tables.append(json.loads((tmp_path / name / "report" / "recovery.json").read_text())["rows"])
    for one, other in zip(*tables, strict=True):
        assert one.keys() == other.keys()
        for field, value in one.items():
            if isinstance(value, float):
                assert abs(value - other[field]) <= (1e-3 if field in ("auc", "ece", "brier") else 1e-9), field
            elif field != "reason":
                assert value == other[field], field
