"""Why trust works, on a link of the toy whose task has a solver: measured after the students, once, and shown.

This file is its own task: the toy, in which an answer that is one too high is as good as gold and one two too high is better.
"""

import dataclasses
import json
import re

import jax
import numpy as np
import pytest

from tests import tiny, toy
from w2s_jax import pipeline, store
from w2s_jax.analysis import easy_first, mechanisms
from w2s_jax.models import decoder, hf_io
from w2s_jax.models.tokenizer import word_level
from w2s_jax.run import Run, find_model
from w2s_jax.store import Ref, Store, Stored
from w2s_jax.types import LM, Answers, Question, Relabelled

VERSION = "1"
METHODS = ("naive", "ntf", "shuffled", "difficulty_matched", "gold")
WEAK = METHODS[:-1]


class Solved(toy.Toy):
    """The toy with levels and a solver, which says nothing of sums that begin with 0."""

    def questions(self, split):
        return tuple(
            Question(q.id, q.task, q.prompt, q.options, {"level": q.prompt.split()[3]}) for q in super().questions(split)
        )

    def value(self, question, answer):
        _, x, _, y, _ = question.prompt.split()
        return None if x == "0" else {0: 0.0, 1: 0.0, 2: 1.5}.get((int(answer) - int(x) - int(y)) % 5, -1.0)


def make(*, seed: int, num_source=60, num_target=60, num_test=40, target_gold="true", interface="choice") -> Solved:
    return Solved(seed, num_source, num_target, num_test, target_gold, interface)


def config(models, task="tests.mechanisms_test", **analysis):
    """Models that were never trained; they know letters, as a judge answers with them."""
    c = toy.get_config()
    c.tasks.name = task
    c.methods = METHODS
    c.teacher.model, c.student.model = (str(models / name) for name in ("weak", "strong"))
    c.select.n, c.student.training.epochs = 30, 2.0
    c.analysis.update(**analysis)
    return c


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    words = word_level((*toy.make(seed=0).vocabulary(), *"ABCDE"))
    sizes = dataclasses.replace(tiny.CONFIG, vocab_size=25)
    for seed, name in enumerate(("weak", "strong", "judge")):
        hf_io.save(LM(sizes, decoder.init(sizes, jax.random.key(seed)), words), folder / name)
    return folder


def a_run(c, root, lines=None):
    return Run(c, 0, Store(root, log=(lines if lines is not None else []).append), lambda *metrics: None)


@pytest.fixture(scope="module")
def linked(models, tmp_path_factory):
    """The store's folder, the choices of a link, and the student before."""
    root = tmp_path_factory.mktemp("linked")
    c = config(models)
    one = a_run(c, root)
    teacher, student = (find_model(one, word) for word in (c.teacher.model, c.student.model))
    return root, pipeline.link(one, teacher, student).choices, student


def measured(models, linked, lines=None, **analysis):
    root, choices, student = linked
    return mechanisms.measure(a_run(config(models, **analysis), root, lines), choices, student)


def test_each_trust_function_is_compared_with_each_difficulty_that_is_known(models, linked):
    found = measured(models, linked).easy_first
    assert [(one.method, one.difficulty) for one in found] == [
        (method, name) for method in ("naive", "ntf", "shuffled") for name in ("task", "teacher")
    ]
    choice = linked[1]["ntf"]
    answers, task = choice.offer.unlabelled.answers, make(seed=0)
    level = np.array([float(i.split()[3]) for i in answers.question_id])
    gold = {q.id: final for q, (_, final) in zip(task.questions("target"), task.rows["target"], strict=True)}
    right = np.array([final == gold[i] for i, final in zip(answers.question_id, answers.final, strict=True)])
    weight = np.isin(np.arange(60), choice.chosen.value.row)
    for name, hard in (("task", level), ("teacher", -choice.offer.unlabelled.extra["answer_logp"])):
        wanted = easy_first.measure(choice.offer.score, hard, right, weight, answers.question_id)
        told = next(one for one in found if (one.method, one.difficulty) == ("ntf", name))
        assert (told.n, told.rho, told.auc) == (60, wanted.rho, wanted.auc)
        assert told.mean_selected == pytest.approx(hard[weight].mean()) != told.mean_all


def test_the_untaught_students_own_difficulty_is_measured_where_it_is_asked_for(models, linked):
    found = [one for one in measured(models, linked, student=True).easy_first if one.method == "ntf"]
    assert [one.difficulty for one in found] == ["task", "teacher", "student"]
    assert found[2].rho != found[1].rho and found[2].mean_all > 0


def test_labels_that_were_dropped_have_no_part_in_trust_and_difficulty(models, linked):
    root, choices, student = linked
    one = choices["ntf"]
    answers, kept = one.offer.answers, np.arange(60) % 3 > 0
    final = tuple(text if there else "" for text, there in zip(answers.final, kept, strict=True))
    made = Relabelled(Answers(answers.question_id, final, final), ("weak",) * 60, np.where(kept, one.offer.score, 0))
    mended = dataclasses.replace(one, offer=dataclasses.replace(one.offer, relabelled=Ref(made, "a third dropped")))
    run = a_run(config(models), root)
    whole, *_ = mechanisms.compare_difficulty(run, choices, "ntf", student)
    found, *_ = mechanisms.compare_difficulty(run, choices | {"ntf": mended}, "ntf", student)
    right = run.task.gold("target").grade(answers)
    hard = np.array([float(i.split()[3]) for i in answers.question_id])
    weight = np.isin(np.arange(60), one.chosen.value.row)
    wanted = easy_first.measure(
        one.offer.score[kept], hard[kept], right[kept], weight[kept], np.array(answers.question_id)[kept]
    )
    assert (found.n, found.rho, found.auc) == (40, wanted.rho, wanted.auc) and found.auc != whole.auc


def test_the_solver_judges_the_chosen_mismatches_of_each_method(models, linked):
    found = measured(models, linked).better
    assert [one.method for one in found] == list(WEAK)
    for one in found:
        said = {"better": 0, "equal": 0, "worse": 0, "": 0}
        chosen = linked[1][one.method].chosen.value.answers
        for prompt, final in zip(chosen.question_id, chosen.final, strict=True):
            _, x, _, y, _ = prompt.split()
            if off := (int(final) - int(x) - int(y)) % 5:
                said["" if x == "0" else {1: "equal", 2: "better"}.get(off, "worse")] += 1
        assert one.judge == "solver" and one.n == 30 and one.mismatches == sum(said.values())
        assert {name: getattr(one, name) for name in ("better", "equal", "worse")} == {k: v for k, v in said.items() if k}
        assert one.judged == one.mismatches - said[""] < one.mismatches


def test_a_model_judges_where_one_is_named_and_both_orders_count(models, linked, monkeypatch):
    found = measured(models, linked, judge=str(models / "judge")).better
    assert [one.judge for one in found] == ["judge"] * len(WEAK)
    assert all(one.mismatches > 0 and one.equal == 0 for one in found)

    def always_first(lm, questions, *args, **kw):
        return {"extra": {"option_logp": np.log(np.tile([0.9, 0.1], (len(questions), 1)))}}

    monkeypatch.setattr(mechanisms.answering, "by_choice", always_first)
    habit = measured(models, linked, judge=str(models / "strong")).better
    assert [one.judged for one in habit] == [0] * len(WEAK) and "cannot say" in habit[0].reason
    assert [one.mismatches for one in habit] == [one.mismatches for one in found]


def test_gradients_are_compared_of_the_chosen_lessons_and_with_gold(models, linked, monkeypatch):
    lessons = {}
    original = mechanisms.coherence.measure

    def watched(student, given, **kw):
        lessons.update(given)
        return original(student, given, **kw)

    monkeypatch.setattr(mechanisms.coherence, "measure", watched)
    found = measured(models, linked, coherence=12, sketch=256).coherence
    assert [one.method for one in found] == list(METHODS) == list(lessons)
    assert all(one.n == 12 and one.cosine is not None and one.stable_rank >= 1 for one in found)
    assert found[-1].to_gold == pytest.approx(1) and all(one.to_gold < 0.999 for one in found[:-1])
    assert lessons["ntf"].answers == linked[1]["ntf"].chosen.value.answers
    right = {i: str((int(i.split()[1]) + int(i.split()[3])) % 5) for i in lessons["gold"].answers.question_id}
    assert list(right.values()) == list(lessons["gold"].answers.final)


def test_without_a_gold_row_the_gold_lesson_is_made_and_not_shown(models, linked):
    root, choices, student = linked
    some = {method: choices[method] for method in ("naive", "ntf")}
    one = a_run(config(models, coherence=12, sketch=256), root)
    found = mechanisms.measure(one, some, student).coherence
    assert [c.method for c in found] == ["naive", "ntf"] and all(abs(c.to_gold) < 0.999 for c in found)
    blind = a_run(config(models, coherence=12, sketch=256), root)
    blind.config.tasks.target_gold = "none"
    found = mechanisms.measure(blind, some, student)
    assert all(c.to_gold is None and "no gold to compare with" in c.reason and c.cosine is not None for c in found.coherence)
    assert all(e.auc is None and e.rho is not None and "no gold" in e.reason for e in found.easy_first)
    assert not found.better and found.notes == ("labels that differ from gold were not judged: no gold to differ from",)


def test_a_student_of_another_loss_is_told_whose_gradients_were_compared(models, linked, monkeypatch):
    root, choices, student = linked
    monkeypatch.setattr(mechanisms, "compare_gradients", lambda *given: ())
    for word, notes in (("sft", 0), ("adaptive", 1)):
        c = config(models, coherence=12, easy_first=False)
        c.student.objective = word
        found = [note for note in mechanisms.measure(a_run(c, root), choices, student).notes if "gradients" in note]
        assert len(found) == notes and all("those of sft" in note and "adaptive" in note for note in found)


def test_a_second_measurement_computes_nothing(models, linked):
    first, again = [], []
    one, other = (measured(models, linked, lines, coherence=12, sketch=256) for lines in (first, again))
    assert len(again) == 3 + len(WEAK) + 1 and all(line.endswith("cached") for line in again)
    assert json.dumps([dataclasses.asdict(c) for c in one.coherence]) == json.dumps(
        [dataclasses.asdict(c) for c in other.coherence]
    )
    assert one.better == other.better


def test_the_tasks_margin_is_the_judges_and_another_one_is_another_measurement(models, linked, monkeypatch):
    exact, again = measured(models, linked).better, []
    monkeypatch.setattr(Solved, "value_margin", 1.0, raising=False)
    found = measured(models, linked, again).better
    for one, other in zip(exact, found, strict=True):
        assert (one.margin, other.margin) == (0.0, 1.0)
        assert (other.better, other.equal, other.worse) == (one.better, one.equal + one.worse, 0)
        assert (other.n, other.mismatches, other.judged, other.gap) == (one.n, one.mismatches, one.judged, one.gap)
    judged = [line for line in again if line.startswith("better_than_gold")]
    assert any(one.worse for one in exact) and len(judged) == len(WEAK) and not any("cached" in line for line in judged)
    by_model = measured(models, linked, judge=str(models / "judge")).better
    assert {one.margin for one in by_model} == {0.0}, "the margin is in the solver's unit, and a model judges in nats"


def test_other_gold_answers_make_another_measurement(models, linked):
    root, choices, student = linked
    before = measured(models, linked)
    wrong = a_run(config(models), root)
    wrong.config.tasks.target_gold = "wrong"
    after = mechanisms.measure(wrong, choices, student)
    assert all(b.auc != a.auc and b.rho == a.rho for b, a in zip(before.easy_first, after.easy_first, strict=True))
    assert [b.mismatches for b in before.better] != [a.mismatches for a in after.better]


def test_lessons_in_another_order_are_told_in_that_order(models, linked):
    root, choices, student = linked
    one = a_run(config(models, coherence=12, sketch=64), root)
    for methods in (("ntf", "naive"), ("naive", "ntf")):
        assert tuple(c.method for c in mechanisms.compare_gradients(one, choices, methods, student)) == methods


def test_another_version_of_what_grades_is_another_measurement(models, linked, monkeypatch):
    measured(models, linked)
    lines = []
    measured(models, linked, lines)
    assert not [line for line in lines if "computed" in line]
    monkeypatch.setattr(Run, "judged_by", property(lambda self: {"judged_by": {"grader": "2"}}))
    measured(models, linked, lines)
    again = {line.split()[0] for line in lines if "computed" in line}
    assert {"easy_first", "better_than_gold"} <= again


def test_nothing_is_measured_before_every_student_is_stored(models, linked, monkeypatch, tmp_path):
    root, choices, student = linked
    opened = []
    one = a_run(config(models, coherence=12, judge=str(models / "judge")), root)
    monkeypatch.setattr(one.task, "gold", lambda split: opened.append(split))
    lost = dataclasses.replace(choices["naive"], taught=Stored("0", tmp_path))
    for part in ("easy_first", "judge", "coherence"):
        one.config.analysis.easy_first = part == "easy_first"
        one.config.analysis.coherence = 12 * (part == "coherence")
        with pytest.raises(ValueError, match="the student of 'naive' has not been stored.*run teach first"):
            if part == "judge":
                mechanisms.judged(one, {**choices, "naive": lost}, "ntf")
            elif part == "coherence":
                mechanisms.compare_gradients(one, {**choices, "naive": lost}, ["ntf"], student)
            else:
                mechanisms.measure(one, {**choices, "naive": lost}, student)
    assert opened == []


def test_a_task_without_a_solver_says_what_to_set(models, linked):
    root, choices, student = linked
    found = mechanisms.measure(a_run(config(models, task="tests.toy", easy_first=False), root), choices, student)
    assert found.better == () and found.easy_first == () and found.coherence == ()
    assert "the task 'tests.toy' has no solver of its own; set analysis.judge" in found.notes[0]


@pytest.mark.parametrize(
    "analysis, said",
    [
        ({"judge": "/nowhere"}, r"(?s)/nowhere.*this is analysis.judge: name another model"),
        ({"judge": "pretrain:nobody"}, r"(?s)pretrain:nobody.*this is analysis.judge"),
        ({"coherence": -1}, "analysis.coherence=-1: allowed is 0 or more"),
        ({"sketch": 0}, "analysis.sketch=0: allowed is 1 or more"),
        ({"rank": 0}, "analysis.rank=0: allowed is 1 or more"),
    ],
)
def test_what_is_asked_for_in_vain_is_said_before_anything_is_computed(analysis, said, models, tmp_path):
    from experiments import main

    c = config(models, **analysis)
    with pytest.raises(ValueError, match=said):
        main.run(c, workdir=str(tmp_path), store=str(tmp_path / "store"))
    assert not list((tmp_path / "store").glob("answer-*"))


def test_what_a_judge_said_before_it_failed_is_kept_and_its_failure_is_told(models, linked, monkeypatch):
    root, choices, student = linked
    value, failing = Solved.value, iter([False, True])

    def judged(run, choices, method, judge=mechanisms.judged):
        if next(failing, False):
            monkeypatch.setattr(Solved, "value", crash)
            monkeypatch.setattr(Solved, "value_margin", 0.5, raising=False)  # not what is stored
        else:
            monkeypatch.setattr(Solved, "value", value)
        return judge(run, choices, method)

    def crash(*asked):
        raise ValueError("the engine failed at a1a2")

    monkeypatch.setattr(mechanisms, "judged", judged)
    found = mechanisms.measure(a_run(config(models), root), choices, student)
    assert found.notes == (f"labels that differ from gold were not judged, those of {WEAK[1]}: the engine failed at a1a2",)
    assert [one.method for one in found.better] == [WEAK[0], *WEAK[2:]] and found.easy_first


def test_a_judge_that_was_named_and_is_not_there_is_told_of_at_the_start_and_in_the_end(models, linked, monkeypatch):
    root, choices, student = linked
    lines = []
    one = a_run(config(models), root, lines)
    monkeypatch.delattr(Solved, "value")
    monkeypatch.setattr(Solved, "unvalued", "there is no program at /no/where", raising=False)
    mechanisms.prepare(one)
    assert lines == ["note: labels that differ from gold will not be judged: there is no program at /no/where"]
    found = mechanisms.measure(one, choices, student)
    assert found.notes == ("labels that differ from gold were not judged: there is no program at /no/where",)
    assert not found.better and found.easy_first


def test_a_judge_that_knows_no_letters_is_told_of_with_what_to_do_and_the_rest_is_measured(models, linked, tmp_path):
    sizes = dataclasses.replace(tiny.CONFIG, vocab_size=20)
    hf_io.save(LM(sizes, decoder.init(sizes, jax.random.key(0)), word_level(toy.make(seed=0).vocabulary())), tmp_path / "dumb")
    found = measured(models, linked, judge=str(tmp_path / "dumb"))
    (note,) = found.notes
    assert re.search(
        r"(?s)not judged, those of naive, ntf.*: analysis.judge='.*dumb' could not be asked.*' A' has no tokens",
        note,
    )
    assert found.easy_first and not found.better


def test_a_run_shows_what_was_measured_of_its_last_seed(models, linked, tmp_path, capsys):
    from experiments import main

    c = config(models, coherence=12, sketch=256)
    c.seeds = (0, 1)
    folder = tmp_path / "run"
    main.run(c, workdir=str(folder), store=str(linked[0]))
    said = capsys.readouterr().out
    page, text = ((folder / "report" / name).read_text() for name in ("index.html", "recovery.md"))
    for told in (page, text):
        assert "Why it works: mechanisms" in told and "Of one seed, the last" in told
    names = {path.name for path in (folder / "report" / "data").iterdir()}
    assert names >= {
        "easy_first.csv",
        "easy_first_deciles.csv",
        "easy_first_strata.csv",
        "learning_area.csv",
        "better_than_gold.csv",
        "coherence.csv",
    }
    runs = json.loads((folder / "runs.json").read_text())
    assert "seed 1 coherence of lessons" in runs and not [label for label in runs if label.startswith("seed 0 easy_first")]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    area = easy_first.area(*zip(*((line["step"], line["loss"]) for line in lines if line["stage"] == "seed 1 teach ntf")))
    areas = (folder / "report" / "data" / "learning_area.csv").read_text().splitlines()
    assert f"ntf,loss,3,{round(area, 6):g}" in areas and len(areas) == 1 + len(METHODS)
    rows = [store.read(linked[0] / runs[label]).value["share"] for label in runs if label.startswith("seed 1 better_than_gold")]
    table = (folder / "report" / "data" / "better_than_gold.csv").read_text().splitlines()[1:]
    assert [line.split(",")[8] for line in table] == [f"{round(share, 6):g}" for share in rows]
    assert "ntf: trust and difficulty (the task's own): Spearman" in said and "at least as good" in said
