"""Chains of toys: links by hand, kills, slices, controls; and the collapse detector on planted teachers."""

import dataclasses
import functools
import json
import pathlib

import numpy as np
import pytest

from experiments import main
from tests import toy
from w2s_jax import chain, comparison, metrics, pipeline, recovery, teaching
from w2s_jax.chain import Watched
from w2s_jax.looking import ask
from w2s_jax.models import hf_io
from w2s_jax.run import Run, find_model
from w2s_jax.settings import method_row
from w2s_jax.store import Store
from w2s_jax.tasks.roles import portions
from w2s_jax.types import Question, Score

STRONG = "pretrain:strong"


def config(arg=None, **section):
    c = toy.get_config(arg)
    c.methods = ("naive", "ntf", "gold")
    c.pretrain.strong.decoder.update(c.pretrain.weak.decoder)  # models of one shape share their programs
    c.student.training.shape = c.teacher.shape
    c.student.training.update(epochs=4.0, lr=1e-2)
    c.chain.update(models=(STRONG, STRONG), **section)
    c.chain.stop.rules = ()
    return c


def start(c, folder, seed=0, lines=None):
    return Run(c, seed, Store(folder / "store", workdir=folder, log=(lines or []).append), lambda *metrics: None)


def report(c, folder):
    where = pathlib.Path(main.run(c, workdir=str(folder), store=str(folder / "store")))
    return {name: (where / name).read_text() for name in ("recovery.json", "chain.json", "recovery.md", "data/snowball.csv")}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    return folder, report(config(), folder)


def labels(folder):
    return json.loads((folder / "runs.json").read_text())


def weights(folder, label):
    return (folder / "store" / labels(folder)[label] / "model" / "model.safetensors").read_bytes()


# ---- The fold --------------------------------------------------------------------------------------------------------


def test_a_chain_of_two_is_two_links_by_hand(finished, tmp_path):
    c = config()
    run = start(c, tmp_path)
    teacher, student = find_model(run, c.teacher.model), find_model(run, STRONG)
    held_back, source = portions(ask(run.task, "source"), (0.2, 0.8), "chain, seed 0, source")
    one, two = portions(ask(run.task, "target"), (1, 1), "chain, seed 0, target")
    first = pipeline.link(run, teacher, student, generation=1, asked={"source": source, "target": one})
    again = pipeline.link(run, first.students["ntf"], student, generation=2, asked={"source": source, "target": two})
    rows = json.loads(finished[1]["recovery.json"])["rows"]
    for number, link in ((1, first), (2, again)):
        for method, model in link.students.items():
            assert (
                weights(finished[0], f"gen {number} teach {method}")
                == pathlib.Path(model.folder, "model.safetensors").read_bytes()
            )
            (row,) = [
                r for r in rows
                if (r["generation"], r["method"], r["test"]) == (number, method, "mean")
                and r["teacher"] == ("weak" if number == 1 else "strong+ntf")
            ]  # fmt: skip
            assert row["accuracy"] == pytest.approx(link.trial.trained[method].correct.mean(), abs=1e-6)
            assert row["purity"] == pytest.approx(link.trial.audits[method].purity, abs=1e-6) and row["n_selected"] == 20
    assert {q.id for q in held_back} & {q.id for q in source} == set()


def test_a_killed_chain_goes_on_to_the_same_bits(finished, tmp_path, monkeypatch):
    calls, teach = 0, teaching.trainer.teach

    def killed(*args, **keywords):
        nonlocal calls
        calls += 1
        if calls == 5:  # in the second generation
            raise KeyboardInterrupt
        return teach(*args, **keywords)

    monkeypatch.setattr(teaching.trainer, "teach", killed)
    with pytest.raises(KeyboardInterrupt):
        main.run(config(), workdir=str(tmp_path), store=str(tmp_path / "store"))
    assert report(config(), tmp_path) == finished[1]
    assert calls > 5


def test_rows_and_summary_speak_of_each_generation_and_links_name_it(finished):
    found = json.loads(finished[1]["recovery.json"])
    places = {(s["generation"], s["teacher"], s["method"]) for s in found["summary"]}
    own = {(1, "weak", m) for m in ("naive", "ntf", "gold")} | {(2, "strong+ntf", m) for m in ("naive", "ntf", "gold")}
    assert places == own | {(2, "strong+naive", "naive"), (2, "strong+gold", "gold")}
    students = {path.name for path in (finished[0] / "student").iterdir()}
    assert {"gen1_ntf", "gen2_ntf", "naive-chain_gen2_naive", "gold-chain_gen2_gold"} <= students
    for row in found["rows"]:
        assert row["uses_target_gold"] == (row["method"] == "gold")
        assert all(row[name] is not None for name in ("accuracy", "purity", "ece"))


def test_the_controls_follow_their_own_students(finished):
    teachers = {name: weights(finished[0], f"gen 1 teach {name}") for name in ("naive", "ntf", "gold")}
    assert len(set(teachers.values())) == 3
    answered = {labels(finished[0])[f"{place}gen 2 answer source"] for place in ("", "naive-chain ", "gold-chain ")}
    assert len(answered) == 3
    points = finished[1]["data/snowball.csv"].splitlines()
    assert [line.split(",")[:2] for line in points[1:]] == [[m, g] for m in ("ntf", "naive", "gold") for g in "12"]


def test_what_the_target_answers_changes_neither_students_nor_the_detector(finished):
    folder, before = finished
    wrong = config("target_gold=wrong")
    students = {label: artefact for label, artefact in labels(folder).items() if " teach " in label}
    try:
        after = report(wrong, folder)
        now = labels(folder)
        same = {label for label, artefact in students.items() if now[label] == artefact}
        assert same == {label for label in students if not label.endswith("gold")}
        assert after["chain.json"] == before["chain.json"] and after["recovery.json"] != before["recovery.json"]
    finally:
        report(config(), folder)


def test_a_chain_that_follows_gold_is_marked_in_all_that_its_teachers_taught(finished):
    c = config(follow="gold", controls=())
    told = chain.run_chain(start(c, finished[0]))
    assert [g.trial.uses_target_gold for g in told.own] == [{"gold"}, {"naive", "ntf", "gold"}]


def test_a_student_that_teaches_is_asked_as_students_are():
    c = config()
    c.student.style, c.student.shape.batch_rows, c.teacher.num_samples = "letter", 7, 3
    first, second = (chain.own_config(c, number, "") for number in (1, 2))
    assert (first.teacher.style, first.teacher.shape.batch_rows) == (c.teacher.style, 4)
    assert (second.teacher.style, second.teacher.shape.batch_rows, second.teacher.num_samples) == ("letter", 7, 3)
    assert c.teacher.style == "direct"


def test_a_reused_head_is_the_first_one(finished):
    c = config(head="reuse", controls=())
    chain.run_chain(start(c, finished[0]))
    states = [
        (
            finished[0] / "store" / labels(finished[0])[f"gen {number} calibrate ntf"] / "trust" / "state.safetensors"
        ).read_bytes()
        for number in (1, 2)
    ]
    assert states[0] == states[1]
    assert labels(finished[0])["gen 1 calibrate ntf"] != labels(finished[0])["gen 2 calibrate ntf"]


# ---- Portions of a role ----------------------------------------------------------------------------------------------


def test_portions_are_disjoint_whole_even_and_keep_groups_together():
    rng = np.random.default_rng(0)
    questions = tuple(Question(f"q{i}", "t", "?", group=f"g{rng.integers(100)}" if i % 2 else "") for i in range(1000))
    parts = portions(questions, [1] * 5, "key")
    assert sorted(q.id for part in parts for q in part) == sorted(q.id for q in questions)
    groups = [{q.group for q in part if q.group} for part in parts]
    assert sum(map(len, groups)) == len(set().union(*groups))
    assert max(abs(len(part) - 200) for part in parts) <= 10
    place = {q.id: i for i, q in enumerate(questions)}
    assert all([place[q.id] for q in part] == sorted(place[q.id] for q in part) for part in parts)
    shuffled = portions(questions[::-1], [1] * 5, "key")
    assert [set(q.id for q in part) for part in shuffled] == [set(q.id for q in part) for part in parts]
    assert portions(questions, [1] * 5, "other") != parts
    alone = portions(questions, [1] * 5, "key", whole_groups=False)
    assert [len(part) for part in alone] == [200] * 5


# ---- What is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "section, said",
    [
        ({"models": (STRONG,)}, "a chain has two students or more"),
        ({"models": (STRONG, "")}, "each named"),
        ({"models": STRONG}, "a chain has two students or more"),
        ({"follow": "confidence"}, "chain.follow names 'confidence', which is not among methods"),
        ({"controls": ("naive", "oracle")}, "chain.controls names 'oracle'"),
        ({"controls": ("ntf",)}, "change one of them in the config"),
        ({"head": "keep"}, "chain.head='keep': allowed are retrain, reuse"),
        ({"target": "new"}, "chain.target='new': allowed are fresh, same"),
        ({"follow": "naive", "controls": (), "head": "reuse"}, "method 'naive' does not use"),
        ({"held_back_frac": 0.0}, "chain.held_back_frac=0.0"),
        ({"stop": {"rules": ("auc", "luck")}}, r"names \['luck'\]: allowed are accuracy, auc, drift"),
        ({"stop": {"alpha": 0.7}}, "chain.stop.alpha=0.7"),
    ],
)
def test_a_chain_that_cannot_be_is_refused_before_anything_runs(section, said, tmp_path):
    c = config()
    models = section.pop("models", c.chain.models)
    with c.chain.ignore_type():
        c.chain.models = models
    c.chain.update(section)
    with pytest.raises(ValueError, match=said):
        main.run(c, workdir=str(tmp_path), store=str(tmp_path / "store"))
    assert not list((tmp_path / "store").glob("pretrain-*"))


def test_a_chain_does_not_follow_a_row_with_demonstrations_of_its_own():
    c = config(follow="icl_confidence")
    c.methods += ("icl_confidence",)
    with pytest.raises(ValueError, match="chain.follow='icl_confidence' labels after demonstrations of its own"):
        chain.refuse(c)


def test_slices_that_are_too_small_are_named_with_their_sizes():
    questions = tuple(Question(f"q{i}", "t", "?") for i in range(60))
    c = config()
    assert [len(part) for part in chain.slices(questions, c, "key")] == [30, 30]
    c.chain.models = (STRONG,) * 4
    with pytest.raises(ValueError, match="cuts the 60 target questions into 4 slices of 15 to 15, but select.n=20"):
        chain.slices(questions, c, "key")
    c.chain.target = "same"
    assert chain.slices(questions, c, "key") == (questions,) * 4


def test_a_head_is_not_reused_on_another_width(finished, monkeypatch):
    c = config(head="reuse")
    c.chain.models = ("pretrain:wide", STRONG)
    c.pretrain.wide = c.pretrain.strong.copy_and_resolve_references()
    c.pretrain.wide.decoder.width = 24
    with pytest.raises(ValueError, match="reads hidden states of width 16 after 1 layers, wide has width 24 and 1 layers"):
        chain.run_chain(start(c, finished[0]))


# ---- The detector ----------------------------------------------------------------------------------------------------

NUM = 400


def teacher(rng, accuracy, *, auc_shift=1.5, trust=None, num=NUM):
    """A planted teacher: right on a share of held-back questions, its head knows by a normal shift which."""
    correct = rng.random(num) < accuracy

    def believed(right):
        log_odds = auc_shift * rng.normal(size=len(right)) + auc_shift**2 * (right - 0.5) + np.log(accuracy / (1 - accuracy))
        return 1 / (1 + np.exp(-log_odds))

    target = believed(rng.random(1000) < (accuracy if trust is None else trust)) if auc_shift else np.full(1000, accuracy)
    if trust is not None:
        target = np.full(1000, trust) + 0.01 * rng.normal(size=1000)
    score = believed(correct) if auc_shift else np.full(num, accuracy)
    names = tuple(f"q{i}" for i in range(num))
    return Watched(names, names, correct, score, target)


@functools.cache
def watcher(rules, planned, **stop):
    c = config()
    c.chain.models = (STRONG,) * planned
    c.chain.stop.update(rules=rules, **stop)
    return method_row(c, "ntf"), c.chain


def told(*teachers, rules=chain.RULES, planned=10, **stop):
    row, section = watcher(rules, planned, **stop)
    return chain.reason(chain.signs(teachers, section), row, section)


def test_a_healthy_chain_is_not_stopped():
    rng = np.random.default_rng(0)
    levels = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98, 0.99, 0.995)
    for _ in range(5):
        teachers = [teacher(rng, level) for level in levels]
        assert [told(*teachers[: k + 1]) for k in range(10)] == [""] * 10


def test_a_teacher_that_forgot_the_source_stops_the_chain():
    rng = np.random.default_rng(1)
    said = told(teacher(rng, 0.7), teacher(rng, 0.72), teacher(rng, 0.5))
    assert "% of the held-back source, -" in said and "stop below +0.0" in said and "AUC" not in said
    slowly = [teacher(rng, level) for level in (0.8, 0.76, 0.72, 0.69, 0.66)]
    assert told(*slowly[-2:]) == "" and told(*slowly) != ""  # beside the best, not beside the one before
    assert told(teacher(rng, 0.7), teacher(rng, 0.5), rules=("auc", "drift")) == ""
    assert told(teacher(rng, 0.7), teacher(rng, 0.5), accuracy_margin=0.4) == ""


def known(rng, accuracy, num):
    names = tuple(f"q{i}" for i in range(num))
    return Watched(names, names, rng.random(num) < accuracy)


def test_a_chain_that_rises_and_falls_is_stopped_before_it_is_worse_than_its_first_teacher():
    rng, stopped = np.random.default_rng(7), {"best": [], "first": []}
    for _ in range(10):
        teachers = [known(rng, accuracy, 300) for accuracy in (0.6, 0.7, 0.8, 0.72, 0.62, 0.5)]
        for beside in stopped:
            seen = [teachers[: k + 1] if beside == "best" else (teachers[0], teachers[k]) for k in range(1, 6)]
            said = [told(*some, rules=("accuracy",), planned=6) != "" for some in seen]
            stopped[beside].append(said.index(True) + 2 if True in said else 7)
    assert max(stopped["best"]) <= 5 and min(stopped["first"]) >= 6
    said = told(known(rng, 0.6, 300), known(rng, 0.9, 300), known(rng, 0.6, 300), rules=("accuracy",))
    assert "points beside the teacher of generation 2 (upper limit -" in said


def test_looking_for_the_best_of_many_teachers_costs_no_more_false_stops_than_alpha():
    rng, chains = np.random.default_rng(8), 60
    stops = 0
    for _ in range(chains):
        teachers = [known(rng, 0.7, 60) for _ in range(10)]
        stops += any(told(*teachers[: k + 1], rules=("accuracy",)) for k in range(1, 10))
    assert 0 < stops <= 0.05 * chains  # without the share of each teacher before, it is three times as often
    _, section = watcher(("accuracy",), 10)
    seen = [known(rng, accuracy, 60) for accuracy in (0.5, 0.9, 0.9, 0.7)]
    now = chain.signs(seen, section)
    level = 1 - 2 * section.stop.alpha / (10 * 3)
    paired = seen[3].correct.astype(float) - seen[now.best - 1].correct
    assert now.change_hi == comparison.interval(paired[None], list(seen[3].group), level=level).hi
    assert chain.signs(seen[:1], section).best is None
    tied = dataclasses.replace(seen[0], correct=np.arange(60) < 30), dataclasses.replace(seen[0], correct=np.arange(60) >= 30)
    assert chain.signs([*tied, seen[3]], section).best == 1


def test_a_blind_head_stops_the_chain_but_not_one_that_follows_a_control():
    rng = np.random.default_rng(2)
    blind = teacher(rng, 0.7, auc_shift=0.0)
    assert "has a head of AUC 0.500 on the held-back source" in told(blind)
    assert told(dataclasses.replace(blind, score=rng.random(NUM))) != ""
    few = teacher(rng, 0.6, num=12)
    assert told(dataclasses.replace(few, score=np.full(12, 0.5))) == ""  # too few to say
    c = config(follow="naive", controls=())
    c.chain.stop.rules = chain.RULES
    assert chain.reason(chain.signs([blind], c.chain), method_row(c, "naive"), c.chain) == ""


@pytest.mark.parametrize("mean_trust", [0.2, 0.99])
def test_trust_in_the_target_that_moves_without_the_source_stops_the_chain(mean_trust):
    rng = np.random.default_rng(3)
    said = told(teacher(rng, 0.6), teacher(rng, 0.62, trust=mean_trust))
    assert "is trusted otherwise on the target" in said and "distance between the generations' scores" in said
    assert told(teacher(rng, 0.6), teacher(rng, 0.95)) == ""  # trust rises as it should
    few = teacher(rng, 0.6, num=20), teacher(rng, 0.62, trust=mean_trust, num=20)
    assert told(*few, rules=("drift",)) == ""  # 20 questions say too little


def test_trust_that_moves_a_little_way_for_many_or_far_for_few_does_not_stop_the_chain():
    before = teacher(np.random.default_rng(6), 0.7)
    before = dataclasses.replace(before, trust=np.repeat([0.0, 1.0], [300, 700]))
    few_far = dataclasses.replace(before, trust=np.repeat([0.0, 1.0], [40, 960]))  # distance 0.26, drift 0.26
    many_near = dataclasses.replace(before, trust=np.repeat([0.1, 0.9], [300, 700]))  # distance 0.7, drift -0.02
    far = dataclasses.replace(before, trust=np.repeat([0.1, 1.0], [40, 960]))  # distance 0.3 and more
    assert [told(before, now, rules=("drift",)) != "" for now in (few_far, many_near)] == [False, False]
    assert told(before, far, rules=("drift",), distance=0.25) != ""


def test_a_chain_whose_teachers_stay_as_they_are_is_seldom_stopped():
    """No more often than alpha for each of the two rules that are tests, over all looks."""
    rng, stops, chains = np.random.default_rng(4), 0, 100
    for _ in range(chains):
        teachers = [teacher(rng, 0.7, num=150) for _ in range(5)]
        stops += any(told(*teachers[: k + 1], rules=("accuracy", "auc"), planned=5) for k in range(5))
    assert stops / chains <= 0.1 + 3 * np.sqrt(0.1 * 0.9 / chains)
    assert stops > 0  # it is a test, not a rule that never speaks


def test_several_answers_to_a_question_count_as_one():
    rng = np.random.default_rng(5)
    one, two = teacher(rng, 0.7), teacher(rng, 0.6)
    thrice = [
        Watched(*(tuple(np.repeat(names, 3)) for names in (w.question, w.group)), np.repeat(w.correct, 3)) for w in (one, two)
    ]
    c = config().chain
    mixed = Watched(("a", "a", "a", "b"), ("a", "a", "a", "b"), np.array([True, True, False, True]))
    assert chain.signs([mixed], c).accuracy == pytest.approx(5 / 6)
    assert chain.signs(thrice, c) == chain.signs([dataclasses.replace(w, score=None, trust=None) for w in (one, two)], c)


def test_a_stopped_chain_says_why_and_keeps_what_it_has(finished, tmp_path, monkeypatch):
    folder, before = finished
    watch = chain.watch

    def planted(run, teacher, source, held_back, **rest):
        seen = watch(run, teacher, source, held_back, **rest)
        return dataclasses.replace(seen, correct=np.full(len(seen.correct), teacher.name == "weak"))

    monkeypatch.setattr(chain, "watch", planted)
    c = config()
    c.chain.stop.rules = ("accuracy",)
    try:
        after = report(c, folder)
    finally:
        monkeypatch.undo()
        report(config(), folder)
    assert {s["generation"] for s in json.loads(after["recovery.json"])["summary"]} == {1}
    (told,) = json.loads(after["chain.json"])["chains"]
    assert told["stopped"].startswith("before generation 2 of 2: its teacher is right on 0.0 % of the held-back source")
    assert len(told["watched"]) == 1 and told["refused"]["change"] == -1.0
    assert "the chain stopped before generation 2 of 2" in after["recovery.md"]


def test_a_teacher_that_is_always_right_ends_the_chain_in_words(finished, monkeypatch):
    examine = pipeline.examine

    def perfect(run, teacher, questions, label, **rest):
        looked, correct = examine(run, teacher, questions, label, **rest)
        return looked, correct | (teacher.name == "strong+ntf")

    monkeypatch.setattr(pipeline, "examine", perfect)
    told = chain.run_chain(start(config(), finished[0]))
    assert "is right on all 48 source labels: no head can learn from it" in told.stopped and len(told.own) == 1


# ---- What is drawn ---------------------------------------------------------------------------------------------------


def trial(seed, generation, method, accuracy, purity):
    names, rng = tuple(f"q{i}" for i in range(500)), np.random.default_rng((seed, generation))
    score = Score(names, ("",) * 500, ("t",) * 500, rng.random(500) < accuracy)
    audit = metrics.audit(rng.random(100), np.arange(100) < 100 * purity, np.arange(100))
    teacher = "weak" if generation == 1 else f"strong+{method}"
    return recovery.Trial(
        "d", teacher, "strong", "sft", generation, seed, score, score, {method: score}, audits={method: audit}
    )


def test_the_snowball_sums_up_each_generation_over_the_seeds_that_reached_it():
    chains = []
    for seed, last in ((0, 3), (1, 2)):
        own = [
            chain.Generation("ntf", g, trial(seed, g, "ntf", 0.5 + g / 10, 0.6 + g / 10 + seed / 50))
            for g in range(1, last + 1)
        ]
        own = [dataclasses.replace(g, signs=chain.Signs(accuracy=0.5 + seed / 10)) for g in own]
        chains.append(chain.Chain(seed, "ntf", 3, tuple(own), stopped="early" if seed else ""))
    summary = recovery.summarise([t for one in chains for t in one.trials])
    points = chain.snowball(chains, summary)
    assert [(p.generation, p.seeds) for p in points] == [(1, 2), (2, 2), (3, 1)]
    assert [p.purity for p in points] == pytest.approx([0.71, 0.81, 0.9])
    assert points[0].held_back == pytest.approx(0.55) and points[2].held_back == pytest.approx(0.5)
    assert (points[0].purity_lo, points[0].purity_hi) == pytest.approx((0.71 - 0.127, 0.71 + 0.127), abs=1e-3)  # t, two seeds
    assert points[2].purity_lo < 0.9 < points[2].purity_hi
    assert points[1].accuracy == pytest.approx(
        np.mean([t.trained["ntf"].correct.mean() for c in chains for t in c.trials[1:2]])
    )
    assert [one["stopped"] for one in chain.plain(chains)] == ["", "early"]


def test_widths_are_read_from_the_models_themselves(finished):
    run = start(config(), finished[0])
    models = [find_model(run, word) for word in ("pretrain:weak", STRONG)]
    assert {hf_io.read_config(m.folder).width for m in models} == {16}
    chain.refuse_other_widths(models)
