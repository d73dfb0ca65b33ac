"""Teachers in numbers: what they say together is taught, weighed on the source alone, each model asked once."""

import dataclasses
import json
import pathlib

import jax
import numpy as np
import pytest

from tests import tiny, toy
from w2s_jax import gathering, pipeline, store, teachers
from w2s_jax.looking import Looked
from w2s_jax.models import decoder, hf_io
from w2s_jax.models.tokenizer import word_level
from w2s_jax.run import Model, Run, find_model
from w2s_jax.store import Ref, Store
from w2s_jax.student import trainer
from w2s_jax.types import LM, Answers, Question

METHODS = ("naive", "boosted", "committee_vote", "experts", "gold")


def save(folder, seed):
    """A random model that knows the toy's words; all such models share their programs."""
    sizes = dataclasses.replace(tiny.CONFIG, vocab_size=20)
    hf_io.save(LM(sizes, decoder.init(sizes, jax.random.key(seed)), word_level(toy.make(seed=0).vocabulary())), folder)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("weak", "second", "third", "strong")):
        save(folder / name, seed)
    return folder


def config(models, methods=METHODS, interface="choice", target_gold="true", **teacher):
    c = toy.get_config(f"interface={interface},target_gold={target_gold}")
    c.methods = methods
    c.teacher.model, c.student.model = (str(models / name) for name in ("weak", "strong"))
    c.teacher.update(**teacher)
    for word in ("boosted", "committee_vote", "experts"):
        c.relabel[word].models = tuple(str(models / name) for name in ("second", "third"))
    c.relabel.boosted.free_options = 1000  # models of random weights are seldom right
    c.select.n, c.student.training.epochs = 8, 1.0
    return c


def run(workdir, c):
    lines = []
    one = Run(c, 0, Store(workdir / "store", workdir=workdir, log=lines.append), lambda *a: None)
    return pipeline.link(one, *(find_model(one, word) for word in (c.teacher.model, c.student.model))).trial, lines


def stored(workdir, label):
    return store.read(workdir / "store" / json.loads((workdir / "runs.json").read_text())[label]).value


def students(workdir):
    runs = json.loads((workdir / "runs.json").read_text())
    return {
        label: (workdir / "store" / runs[label] / "model" / "model.safetensors").read_bytes()
        for label in runs
        if "teach " in label
    }


@pytest.fixture(scope="module")
def chosen(tmp_path_factory, models):
    workdir = tmp_path_factory.mktemp("choice")
    return workdir, *run(workdir, config(models))


def said(workdir, role, name=""):
    return stored(workdir, f"answer {role}{name and ' '}{name}")


# ---- The whole path --------------------------------------------------------------------------------------------------


def test_rows_of_several_teachers_are_taught_measured_and_told_of(chosen):
    workdir, trial, lines = chosen
    assert tuple(trial.trained) == METHODS and set(trial.n_selected.values()) == {8}
    assert trial.uses_target_gold == {"gold"}
    (line,) = [line for line in lines if line.startswith("boosted: weights weak ")]
    found = stored(workdir, "relabel boosted").found
    for name in ("second", "third"):
        assert f"{name} {next(v for k, v in found.items() if k.startswith('weight') and k.endswith(name)):.3f}" in line


def test_a_second_run_computes_nothing_and_says_the_weights_again(chosen, models):
    workdir, _, lines = chosen
    _, again = run(workdir, config(models))
    weights = [line for line in lines if "weights" in line]
    assert [line for line in again if not line.endswith("cached")] == weights and len(weights) == 1


def test_raven_is_taught_the_labels_of_each_teacher_on_the_rows_that_were_chosen(chosen, models, tmp_path, monkeypatch):
    lessons, teach = [], trainer.teach

    def watched(lm, lesson, *args, **keywords):
        lessons.append(lesson)
        return teach(lm, lesson, *args, **keywords)

    monkeypatch.setattr(trainer, "teach", watched)
    c = config(models, methods=("experts",))
    c.student.objective, c.student.raven.teachers = "raven", 3
    run(tmp_path, c)
    (lesson,) = lessons
    offered, rows = stored(tmp_path, "relabel experts"), stored(tmp_path, "select experts").row
    assert len(rows) == 8 and not np.array_equal(rows, np.arange(8))
    np.testing.assert_array_equal(lesson.experts, offered.experts[rows])
    assert lesson.answers == offered.answers[rows] and lesson.experts.shape[1] == 3


def test_what_the_target_answers_changes_no_student_but_that_of_gold(chosen, models, tmp_path):
    workdir, _, _ = chosen
    run(tmp_path, config(models, target_gold="wrong"))
    before, after = students(workdir), students(tmp_path)
    assert {label for label in before if before[label] != after[label]} == {"teach gold"}


def test_another_model_is_loaded_once_for_all_rows_and_both_roles(models, tmp_path, monkeypatch):
    loads, real = [], hf_io.load

    def recorded(folder, **kw):
        loads.append(pathlib.Path(folder).name)
        return real(folder, **kw)

    held, hear = [], teachers.hear

    def heard(run, *rest):
        voices = hear(run, *rest)
        held.append(list(run.loaded))
        return voices

    monkeypatch.setattr(hf_io, "load", recorded)
    monkeypatch.setattr(teachers, "hear", heard)
    run(tmp_path, config(models, ("boosted", "committee_vote", "experts")))
    assert [loads.count(name) for name in ("second", "third")] == [1, 1]
    assert held == [[], [], []]  # each is let go when it has answered


def test_a_committee_elects_the_answer_of_most_teachers(chosen):
    workdir, _, _ = chosen
    each = [said(workdir, "target", name)["answers"].final for name in ("", "second", "third")]
    made = stored(workdir, "relabel committee_vote")
    for r, votes in enumerate(zip(*each, strict=True)):
        count = max(votes.count(one) for one in votes)
        assert votes.count(made.answers.final[r]) == count
        assert made.score[r] == pytest.approx(count / 3) == made.found["agreement"][r]
    assert len(set(made.score.tolist())) == 3  # all kinds of agreement occur


def test_experts_have_each_teachers_probabilities_and_their_mean_is_the_label(chosen, models):
    workdir, trial, _ = chosen
    each = np.exp([said(workdir, "target", name)["extra"]["option_logp"] for name in ("", "second", "third")])
    made = stored(workdir, "relabel experts")
    np.testing.assert_allclose(made.experts, each.swapaxes(0, 1), rtol=1e-5)
    np.testing.assert_allclose(made.experts.sum(2), 1, rtol=1e-5)
    assert made.target is None  # the student is taught hard labels
    assert made.answers.final == tuple(toy.DIGITS[o] for o in each.mean(0).argmax(1))
    np.testing.assert_allclose(made.score, each.mean(0).max(1), rtol=1e-5)
    c = config(models)
    c.student.soft_labels = True
    one, teacher, seen = labelling(c, workdir / "store")
    soft = teachers.experts(one, seen, None, teacher=teacher, models=c.relabel.experts.models).value
    np.testing.assert_allclose(soft.target, each.mean(0), rtol=1e-5)
    assert soft.answers == made.answers


def test_a_student_is_taught_what_was_elected(chosen):
    workdir, _, _ = chosen
    for method in ("boosted", "committee_vote", "experts"):
        made, picked = stored(workdir, f"relabel {method}"), stored(workdir, f"select {method}")
        assert picked.answers.final == tuple(made.answers.final[r] for r in picked.row)
        assert set(picked.origin) == {"weak"}
        taken = set(picked.row.tolist())
        assert min(made.score[list(taken)]) >= max(made.score[r] for r in range(60) if r not in taken)
    assert stored(workdir, "relabel boosted").answers.final != said(workdir, "target")["answers"].final


# ---- Boosting --------------------------------------------------------------------------------------------------------


def labelling(c, workdir):
    one = Run(c, 0, Store(workdir, log=lambda line: None), lambda *a: None)
    teacher = find_model(one, c.teacher.model)
    labelled, correct, unlabelled = pipeline.source_and_target(one, teacher)
    return one, teacher, pipeline.Labelling(labelled, correct, unlabelled)


def boosted(one, teacher, seen, grade, key, **keywords):
    keywords = {**one.config.relabel.boosted.to_dict(), **keywords}
    return teachers.boosted(one, seen, None, teacher=teacher, grade=Ref(grade, key), **keywords).value


def test_the_teacher_that_is_right_on_the_source_is_heard_on_the_target(chosen, models):
    one, teacher, seen = labelling(config(models), chosen[0] / "store")
    of = {name: teachers.hear(one, teacher, seen, one.config.relabel.boosted.models)[t] for t, name in enumerate("abc")}
    finals = {name: voice.source.value["answers"].final for name, voice in of.items()}

    def as_one_says(name):
        return lambda given: np.array([a == b for a, b in zip(given.final, finals[name], strict=True)])

    for name in "abc":
        made = boosted(one, teacher, seen, as_one_says(name), name)
        assert made.answers.final == of[name].target.value["answers"].final
        weights = [value for key, value in made.found.items() if key.startswith("weight")]
        assert np.argmax(weights) == "abc".index(name)
    other = boosted(one, teacher, seen, lambda given: np.arange(60) % 2 == 0, "half", order="given")
    assert [v for k, v in other.found.items() if k.startswith("error")][0] == pytest.approx((30 + 0.8) / 61)


def test_teachers_of_whom_none_is_better_than_chance_are_refused(chosen, models):
    one, teacher, seen = labelling(config(models), chosen[0] / "store")
    with pytest.raises(ValueError, match=r"none of the teachers weak, .*second, .*third is right .* chance \(0.200"):
        boosted(one, teacher, seen, lambda given: np.arange(len(given)) % 5 == 0, "fifth")


def planted(tmp_path, monkeypatch, own, others, options=(), **student):
    """A labelling of three questions to each role; the teacher gives `own` rows, the others (texts, finals) of one row each."""
    c = toy.get_config(f"interface={'choice' if options else 'free'}")
    c.student.update(student)
    one = Run(c, 0, Store(tmp_path, log=lambda line: None), lambda *a: None)
    asked = []

    def keep(finals, ids):
        answers = Answers(tuple(np.repeat(ids, len(finals) // 3)), tuple(f"so {one}" for one in finals), tuple(finals))
        logp = np.log(np.tile([0.4, 0.3, 0.3], (len(answers), 1)))
        give = {"answers": answers, "extra": {"option_logp": logp}}
        return one.store.stage("planted", lambda work, answers, logp: give, answers=answers, logp=logp)

    def look(role):
        questions = tuple(Question(f"{role} {n}", "toy", "?", options) for n in range(3))
        return Looked(keep(own, [q.id for q in questions]), None, questions, (), role)

    def answer(run, model, questions, who, shown, label, *, once):
        assert once and who == "teacher"
        asked.append(label)
        return keep(others[model.name], [q.id for q in questions])

    monkeypatch.setattr(gathering, "answer", answer)
    names = [name for name in others if name != "first"]
    monkeypatch.setattr(gathering, "find_model", lambda run, word: Model(word, "", word))
    seen = pipeline.Labelling(look("source"), np.zeros(len(own), bool), look("target"))
    give = {"teacher": Model("first", "", "first"), "models": names, "grade": Ref(lambda a: np.array(a.final) == "2", "two")}
    return one, seen, give, asked


def test_with_several_answers_to_a_question_each_teacher_has_one_voice(tmp_path, monkeypatch):
    others = {"first": ("1", "", ""), "second": ("2", "", ""), "third": ("", "2", "")}
    one, seen, give, asked = planted(tmp_path, monkeypatch, tuple("111111"), others)
    made = teachers.boosted(one, seen, None, **give, order="given", free_options=10).value
    assert asked == [f"answer {role} {name}" for name in ("first", "second", "third") for role in ("source", "target")]
    assert made.answers.question_id == seen.unlabelled.answers.question_id and made.target is None
    assert made.answers.final == ("2", "2", "2", "2", "", "") and made.answers.text[0] == "so 2"
    weight = {name: made.found[f"weight of {name}"] for name in others}
    assert weight["third"] > weight["second"] > 0 == weight["first"]  # the third is right where the second was wrong
    share = [weight[name] / (weight["second"] + weight["third"]) for name in ("second", "third")]
    np.testing.assert_allclose(made.score, np.repeat([*share, 0], 2), rtol=1e-6)
    np.testing.assert_allclose(made.found["agreement"], np.repeat([1 / 3, 1 / 3, 0], 2), rtol=1e-6)


def test_whatever_a_weighed_vote_depends_on_makes_it_anew(tmp_path, monkeypatch):
    def key(said="221", grade="two", soft=False, options=("1", "2", "2"), **keywords):
        one, seen, give, _ = planted(tmp_path, monkeypatch, tuple("121"), {"second": tuple(said)}, options, soft_labels=soft)
        give["grade"] = Ref(give["grade"].value, grade)
        return teachers.boosted(one, seen, None, **give, **{"order": "given", "free_options": 10, **keywords}).key

    changed = [{"said": "222"}, {"grade": "three"}, {"soft": True}, {"options": ("1", "2")}, {"order": "least_error"}]
    assert len({key(), *(key(**one) for one in changed)}) == 6
    assert key(options=()) != key(options=(), free_options=9) and key() == key(free_options=9)


def test_experts_take_options_that_read_alike_for_one_answer(tmp_path, monkeypatch):
    one, seen, give, _ = planted(tmp_path, monkeypatch, tuple("121"), {"second": tuple("121")}, ("1", "2", "2"))
    made = teachers.experts(one, seen, None, **give).value
    assert made.answers.final == ("2", "2", "2") and made.found["agreement"].tolist() == [0, 1, 0]
    np.testing.assert_allclose(made.score, 0.6, rtol=1e-6)
    assert made.experts.shape == (3, 2, 3)


def test_a_teacher_that_gives_one_answer_to_a_question_is_not_asked_again(tmp_path, monkeypatch):
    one, seen, give, asked = planted(tmp_path, monkeypatch, tuple("121"), {"second": tuple("221")})
    made = teachers.committee_vote(one, seen, None, **give).value
    assert asked == ["answer source second", "answer target second"]
    assert made.answers.final == ("1", "2", "1") and made.score.tolist() == [0.5, 1, 1]  # a tie goes to the teacher


def test_parts_of_the_votes_are_soft_labels_where_the_student_is_taught_such(tmp_path, monkeypatch):
    given = tuple("121"), {"second": tuple("221")}, ("1", "2", "2")
    made = []
    for soft in (True, False):
        one, seen, give, _ = planted(tmp_path, monkeypatch, *given, soft_labels=soft)
        made.append(teachers.committee_vote(one, seen, None, **give).value)
    assert made[0].target.tolist() == [[0.5, 0.25, 0.25], [0, 0.5, 0.5], [1, 0, 0]]  # options that read alike share
    assert made[1].target is None and made[0].answers == made[1].answers
    one, seen, give, _ = planted(tmp_path, monkeypatch, *given[:2], soft_labels=True)
    with pytest.raises(ValueError, match="student.soft_labels=True: soft labels are probabilities of options"):
        teachers.committee_vote(one, seen, None, **give)


# ---- Refusals before anything is computed ----------------------------------------------------------------------------


class Empty(Store):
    """A store that refuses to compute anything."""

    def stage(self, name, fn, /, *, label, **inputs):
        raise AssertionError(f"{label} came before the refusal")


@pytest.mark.parametrize(
    ("method", "changed", "said"),
    [
        ("boosted", {"models": ()}, r"method 'boosted': relabel.boosted.models=\(\): allowed is a tuple of one or more"),
        ("committee_vote", {"models": ("/nowhere",)}, "method 'committee_vote': .*'/nowhere' is no directory here"),
        ("experts", {"models": ("a", "a")}, r"relabel.experts.models=\('a', 'a'\): allowed .*each once; set --config.relabel"),
        ("experts", {"models": ("itself",)}, "relabel.experts.models=.* names teacher.model, which votes already"),
        ("boosted", {"order": "random"}, "relabel.boosted.order='random': allowed are least_error, given"),
        ("boosted", {"free_options": 1}, "relabel.boosted.free_options=1: allowed are 2 and more"),
        ("experts", {"interface": "free"}, "method 'experts': .*this task's interface is 'free'.*committee_vote or boosted"),
    ],
)
def test_what_cannot_be_asked_is_refused_first(method, changed, said, models, tmp_path):
    interface = changed.pop("interface", "choice")
    c = config(models, (method,), interface)
    if changed.get("models") == ("itself",):
        changed = {"models": (c.teacher.model,)}
    c.relabel[method].update(changed)
    one = Run(c, 0, Empty(tmp_path, log=lambda line: None), lambda *a: None)
    with pytest.raises(ValueError, match=said):
        pipeline.link(one, *(find_model(one, word) for word in (c.teacher.model, c.student.model)))
