"""Selective weak-to-strong: on a planted world its labels beat the weak ones, and on the toy the path holds from end to end."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from tests import tiny, toy
from w2s_jax import metrics, pipeline, relabelling, routing, selective
from w2s_jax.analysis import mechanisms
from w2s_jax.analysis.selective import measure
from w2s_jax.looking import Labelling, Looked
from w2s_jax.models import decoder, hf_io
from w2s_jax.models.tokenizer import word_level
from w2s_jax.run import Run, find_model
from w2s_jax.settings import method_row
from w2s_jax.store import Ref, Store
from w2s_jax.types import LM, Answers, Question

OPTIONS = ("a", "b", "c", "d")
WORDS = ("self_known", "smoothed", "selective")


def a_run(config, root, lines=None):
    return Run(config, 0, Store(root, log=(lines if lines is not None else []).append), lambda *metrics: None)


# ---- A planted world: arrays in place of models ----------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class World:
    """Questions whose embedding tells their answer, and whether the student knows it; the teacher errs here and there.

    The student sees what is alike, but can say the answer of one kind of question alone.
    """

    questions: tuple
    truth: np.ndarray
    x: np.ndarray
    own: np.ndarray
    weak: np.ndarray
    trust: np.ndarray

    def grade(self, answers):
        of = dict(zip((q.id for q in self.questions), self.truth))
        return np.array([OPTIONS[of[i]] == final for i, final in zip(answers.question_id, answers.final)], bool)


def world(role, n=600, seed=0):
    rng = np.random.default_rng((seed, len(role)))
    truth, knows = rng.integers(0, 4, n), rng.random(n) < 0.4
    x = 0.6 * rng.normal(size=(n, 8))
    x[:, :4] += 3 * np.eye(4)[truth]
    x[:, 4] += np.where(knows, 2.0, -2.0)
    own = np.where(rng.random(n) < np.where(knows, 0.95, 0.25), truth, rng.integers(0, 4, n))
    right = rng.random(n) < 0.65
    weak = np.where(right, truth, (truth + rng.integers(1, 4, n)) % 4)
    trust = np.where(right, 0.5 + 0.5 * rng.random(n), 0.8 * rng.random(n)).astype(np.float32)
    questions = tuple(Question(f"{role} {i}", "planted", f"{role} {i}", OPTIONS) for i in range(n))
    return World(questions, truth, x, own, weak, trust)


def looked(run, one, role, said, sure):
    """A model's stored answers, with its probability of them, and the embeddings."""
    option_logp = np.full((len(said), 4), np.log((1 - sure) / 3), np.float32)
    option_logp[np.arange(len(said)), said] = np.log(sure)
    final = tuple(OPTIONS[o] for o in said)
    answers = Answers(tuple(q.id for q in one.questions), final, final)
    value = {"answers": answers, "extra": {"option_logp": option_logp}}
    answered = run.stage("answer", lambda work, **inputs: value, label=f"answer {role}", value=value)

    def fn(work, *, x):
        np.save(work.out / "x.npy", x)

    observed = run.stage("observe", fn, label=f"observe {role}", x=one.x[:, None].astype(np.float32))
    return Looked(answered, observed, one.questions, (), role.split()[0])


def relabel(run, word, monkeypatch, **changes):
    """A relabeller on the planted world; and the target."""
    source, target = world("source"), world("target")
    roles = [looked(run, one, f"{role} student", one.own, 0.9) for one, role in ((source, "source"), (target, "target"))]
    monkeypatch.setattr(selective, "ask_student", lambda *args: tuple(roles))
    weak = [looked(run, one, role, one.weak, 0.7) for one, role in ((source, "source"), (target, "target"))]
    seen = Labelling(weak[0], source.grade(weak[0].answers), weak[1])
    scores = run.stage("trust", lambda work, **inputs: target.trust, label="trust", score=target.trust)
    config = run.config
    keywords = {**method_row(config, word).relabel_args, **changes}
    if "nodes" in keywords:
        keywords["nodes"] = "question"
    models = {"teacher": None, "student": None, "shown": (), "grade": Ref(source.grade, "planted")}
    return relabelling.RELABELLERS[word](run, seen, scores, **models, **keywords), target


@pytest.fixture
def run(tmp_path):
    return a_run(toy.get_config(), tmp_path)


@pytest.mark.parametrize("word", WORDS)
def test_on_a_planted_world_its_labels_are_more_often_right_than_the_weak_ones(word, run, monkeypatch):
    stored, target = relabel(run, word, monkeypatch)
    found = stored.value
    right, weak = target.grade(found.answers), target.weak == target.truth
    kept = np.array([final != "" for final in found.answers.final])
    assert weak.mean() < 0.7
    assert (
        right[kept].mean()
        > max(weak[kept].mean(), weak.mean()) + {"self_known": 0.08, "smoothed": 0.2, "selective": 0.15}[word]
    )
    assert kept.mean() > 0.95
    # The score is a probability of being right, whoever gave the label.
    assert metrics.auc(found.score, right) > 0.6
    for origin, most in (("self", 0.1), ("smoothed", 0.1)):
        rows = kept & (np.array(found.origin) == origin)
        if rows.any():
            assert abs(found.score[rows].mean() - right[rows].mean()) < most


def test_what_the_student_knows_is_better_than_the_weak_labels_and_selective_better_still(run, monkeypatch):
    def share(word):
        stored, target = relabel(run, word, monkeypatch)
        kept = [final != "" for final in stored.value.answers.final]
        return target.grade(stored.value.answers)[kept].mean()

    always_weak = (world("target").weak == world("target").truth).mean()
    assert always_weak + 0.08 < share("self_known") < share("selective") - 0.05


@pytest.mark.parametrize("word", WORDS)
def test_each_row_has_the_label_the_score_and_the_origin_of_its_route(word, run, monkeypatch):
    stored, target = relabel(run, word, monkeypatch, **({"smoothed_threshold": 0.95} if word == "selective" else {}))
    found, known = stored.value, stored.value.found
    route = np.array(routing.ROUTES)[known["route"]]
    weak = [OPTIONS[o] for o in target.weak]
    wanted = {"self": known.get("self"), "weak": weak, "smoothed": known.get("smoothed_label"), "drop": [""] * 600}
    scores = {"self": known.get("p_ik"), "weak": target.trust, "smoothed": known.get("smoothed_sure"), "drop": np.zeros(600)}
    for r in range(600):
        assert found.answers.final[r] == wanted[route[r]][r] and found.score[r] == np.float32(scores[route[r]][r])
        assert found.origin[r] == ("weak" if route[r] == "drop" else route[r])
    assert sum(known[f"num_{name}"] for name in routing.ROUTES) == 600 and found.target is None
    if word != "smoothed":
        np.testing.assert_array_equal(route == "self", known["p_ik"] >= known["gamma"])
    if word == "selective":
        assert set(route) == set(routing.ROUTES)
        assert (known["p_ik"][route == "weak"] < known["gamma"]).all() and (target.trust[route == "weak"] >= 0.5).all()
        assert (target.trust[route == "smoothed"] < 0.5).all() and (known["smoothed_sure"][route == "drop"] < 0.95).all()


def test_soft_labels_are_those_of_the_route_where_they_are_asked_for(tmp_path, monkeypatch):
    config = toy.get_config()
    config.student.soft_labels = True
    stored, target = relabel(a_run(config, tmp_path), "selective", monkeypatch)
    found, route = stored.value, np.array(routing.ROUTES)[stored.value.found["route"]]
    np.testing.assert_allclose(found.target.sum(1), 1, atol=1e-6)
    np.testing.assert_array_equal(found.target[route == "self"], np.eye(4)[target.own[route == "self"]])
    np.testing.assert_allclose(found.target[route == "weak"].max(1), 0.7, atol=1e-6)
    np.testing.assert_array_equal(found.target[route == "smoothed"], found.found["smoothed"][route == "smoothed"])


def test_drawn_samples_come_near_the_exact_targets_and_are_the_same_each_time(run, monkeypatch, tmp_path):
    exact, drawn = (relabel(run, "self_known", monkeypatch, num_samples=k)[0].value.found["p_ik"] for k in (0, 3))
    assert 0 < abs(exact - drawn).max() and np.corrcoef(exact, drawn)[0, 1] > 0.95
    again = relabel(a_run(run.config, tmp_path / "again"), "self_known", monkeypatch, num_samples=3)[0].value.found["p_ik"]
    np.testing.assert_array_equal(drawn, again)


def test_a_killed_relabelling_goes_on_from_what_is_stored_and_ends_with_the_same_bits(run, monkeypatch, tmp_path):
    whole, _ = relabel(a_run(run.config, tmp_path / "whole"), "selective", monkeypatch)

    def killed(*args, **keywords):
        raise KeyboardInterrupt

    with monkeypatch.context() as until:
        until.setattr(routing, "route", killed)
        with pytest.raises(KeyboardInterrupt):
            relabel(run, "selective", monkeypatch)
    lines = []
    resumed, _ = relabel(a_run(run.config, tmp_path, lines), "selective", monkeypatch)
    computed = [line.split("  ")[0] for line in lines if "computed in" in line]
    assert computed == ["relabel selective"] and sum("cached" in line for line in lines) == 13
    assert resumed.key == whole.key
    np.testing.assert_array_equal(resumed.value.score, whole.value.score)
    assert resumed.value.answers == whole.value.answers
    lines.clear()
    relabel(a_run(run.config, tmp_path, lines), "selective", monkeypatch)
    assert not [line for line in lines if "computed in" in line]
    assert any("labels of selective: " in line and " self, " in line for line in lines)


def test_a_graph_in_pieces_is_told_of(run, monkeypatch):
    lines = []
    relabel(a_run(run.config, run.store.root, lines), "smoothed", monkeypatch, neighbours=1)
    stored, _ = relabel(run, "smoothed", monkeypatch, neighbours=1)
    pieces = stored.value.found["components"]
    assert pieces > 10
    assert any(
        "graph of the target: 600 points, " in line and f" {pieces} component(s): labels do not pass" in line for line in lines
    )


# ---- The path, with models that were never trained -------------------------------------------------------------------


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    words = word_level(toy.make(seed=0).vocabulary())
    sizes = dataclasses.replace(tiny.CONFIG, vocab_size=20)
    for seed, name in enumerate(("weak", "strong")):
        hf_io.save(LM(sizes, decoder.init(sizes, jax.random.key(seed)), words), folder / name)
    return folder


def config(models, arg=None, methods=("smoothed", "selective")):
    c = toy.get_config(arg)
    c.methods = methods
    c.teacher.model, c.student.model = (str(models / name) for name in ("weak", "strong"))
    c.student.training.epochs = 1.0
    c.relabel.selective.update(trust_threshold=0.0)
    return c


def linked(c, root, lines=None):
    one = a_run(c, root, lines)
    student = find_model(one, c.student.model)
    return one, pipeline.link(one, find_model(one, c.teacher.model), student), student


@pytest.fixture(scope="module")
def whole(models, tmp_path_factory):
    return linked(config(models), tmp_path_factory.mktemp("whole"))


def test_options_are_points_of_their_own_and_their_values_are_each_questions_probabilities(whole):
    run, found, _ = whole
    assert set(found.trial.n_selected.values()) == {20}
    known = found.choices["smoothed"].offer.relabelled.value.found
    assert known["nodes"] == 60 * 5 and known["smoothed"].shape == (60, 5)
    np.testing.assert_allclose(known["smoothed"].sum(1), 1, atol=1e-6)
    weak = np.exp(found.choices["smoothed"].offer.unlabelled.extra["option_logp"])
    assert abs(known["smoothed"] - weak).max() > 0.01
    assert found.choices["smoothed"].chosen.value.origin == ("smoothed",) * 20


def test_the_labels_are_looked_at_afterwards_and_shown(whole, models, tmp_path):
    run, found, student = whole
    told = {one.method: one for one in mechanisms.measure(run, found.choices, student).selective}
    assert tuple(told) == ("smoothed", "selective")
    gold = run.task.gold("target")
    for word, one in told.items():
        offer = found.choices[word].offer
        weak, given = gold.grade(offer.unlabelled.answers), gold.grade(offer.answers)
        assert (one.n, one.weak, one.route[:, 0].sum()) == (60, weak.mean(), 60)
        assert one.kept == 60 and one.given == given.mean()
        known = offer.relabelled.value.found
        if "p_ik" in known:
            own = gold.grade(Answers(offer.answers.question_id, *[tuple(known["self"].tolist())] * 2))
            assert one.table.sum() == 60 and one.table[1].sum() == (known["p_ik"] >= known["gamma"]).sum()
            assert one.table[:, 1].sum() == weak.sum() and one.table[:, :, 1].sum() == own.sum()
            assert one.auc == metrics.auc(known["p_ik"], own) and one.source_rows == known["held_rows"]
        else:
            assert not len(one.table) and one.own is None and one.smoothed == one.given

    from experiments import main

    c = config(models)
    folder = main.run(c, workdir=str(tmp_path), store=str(run.store.root), tell=lambda line: None)
    page = (tmp_path / "report" / "index.html").read_text()
    assert "Whose labels are taught?" in page and "Does P(IK) know where the teacher is wrong?" in page
    files = {path.name: path.read_text() for path in tmp_path.rglob("selective*.csv")}
    assert set(files) == {"selective.csv", "selective_routes.csv", "selective_four_ways.csv"} and folder
    assert len(files["selective.csv"].splitlines()) == 3
    assert json.loads((tmp_path / "report" / "recovery.json").read_text())["rows"]


def test_without_gold_of_the_target_it_runs_and_says_so(models, whole):
    run, found, _ = whole
    one, blind, student = linked(config(models, "target_gold=none", ("selective",)), run.store.root)
    np.testing.assert_array_equal(
        blind.choices["selective"].offer.relabelled.value.score, found.choices["selective"].offer.relabelled.value.score
    )
    (told,) = mechanisms.measure(one, blind.choices, student).selective
    assert told.given is None and not len(told.table) and told.reason.startswith("no gold") and told.route[:, 0].sum() == 60


def test_a_row_that_drops_more_than_is_taught_says_so_by_name(models, tmp_path):
    c = config(models, None, ("naive", "selective"))
    c.select.n = 50
    c.relabel.selective.update(trust_threshold=1.0, smoothed_threshold=1.0)
    with pytest.raises(
        ValueError, match=r"method 'selective' keeps the labels of \d+ of 60 target questions .* all methods teach 50"
    ):
        linked(c, tmp_path, [])


@pytest.mark.slow
def test_free_answers_are_known_by_samples_that_are_written(models, tmp_path):
    c = config(models, "interface=free", ("self_known",))
    c.relabel.self_known.num_samples = 6
    c.teacher.update(num_samples=2, temperature=1.0, max_new_tokens=6)
    c.student.max_new_tokens = 6
    lines = []
    _, found, _ = linked(c, tmp_path, lines)
    offer = found.choices["self_known"].offer
    assert len(offer.answers) == 120 and any(line.startswith("answer source student again") for line in lines)
    p = offer.relabelled.value.found["p_ik"]
    np.testing.assert_array_equal(p[::2], p[1::2])  # both answers to a question
    assert set(offer.origin) <= {"self", "weak"} and len(set(p.tolist())) > 10


@pytest.mark.parametrize(
    "arg, method, changed, said",
    [
        (None, "smoothed", {"alpha": 1.0}, "alpha=1.0: allowed is 0"),
        (None, "selective", {"alpha": -0.5}, "alpha=-0.5: allowed is 0"),
        (None, "smoothed", {"neighbours": 0}, "relabel.smoothed.neighbours=0: allowed is 1 or more"),
        (None, "smoothed", {"sigma": -1.0}, "relabel.smoothed.sigma=-1.0: allowed is a distance"),
        (None, "smoothed", {"nodes": "words"}, "relabel.smoothed.nodes='words': allowed are 'question', 'option'"),
        (None, "self_known", {"num_samples": -1}, "relabel.self_known.num_samples=-1: allowed are 0"),
        (None, "self_known", {"l2": (0.0,)}, "relabel.self_known.l2=\\(0.0,\\): allowed are"),
        (None, "self_known", {"shares": (0.5, 0.5)}, "relabel.self_known.shares=\\(0.5, 0.5\\): allowed are three"),
        (None, "self_known", {"layers": ()}, "relabel.self_known.layers=\\(\\): allowed is at least one"),
        (None, "selective", {"trust_threshold": 1.5}, "trust_threshold=1.5: allowed is a probability"),
        (None, "selective", {"smoothed_threshold": -0.5}, "smoothed_threshold=-0.5: allowed is a probability"),
        ("interface=free", "self_known", {}, "relabel.self_known.num_samples=0: allowed is 1 or more here: free answers"),
        ("interface=free", "smoothed", {}, "method 'smoothed': relabel='smoothed' smooths .* use relabel='self_known'"),
        ("interface=free", "selective", {"num_samples": 4}, "method 'selective': relabel='selective' smooths"),
    ],
)
def test_what_will_not_do_is_refused_before_anything_is_computed(arg, method, changed, said, models, tmp_path):
    c, lines = config(models, arg, (method,)), []
    c.relabel[method].update(changed)
    with pytest.raises(ValueError, match=said):
        linked(c, tmp_path, lines)
    assert not lines


def test_questions_with_other_options_are_no_points_of_one_graph():
    one, other = Question("1", "t", "?", ("a", "b")), Question("2", "t", "?", ("a", "c"))
    with pytest.raises(ValueError, match="'1' and '2' of the source have other options; set nodes='option'"):
        selective.refuse_other_options([one, other], "source")
    selective.refuse_other_options([one, one], "source")


def test_more_neighbours_than_points_are_told_with_their_number(models, whole):
    c = config(models, methods=("smoothed",))
    c.relabel.smoothed.neighbours = 296
    with pytest.raises(ValueError, match="neighbours=296 of 300 points: allowed is 1..295"):
        linked(c, whole[0].store.root)


def test_measures_of_no_rows_and_of_one_kind_are_undefined_with_a_reason():
    right = np.array([True, True, False])
    found = measure(
        np.array([0, 0, 3]), right, np.array([True, True, False]), own=np.ones(3, bool), p_ik=np.full(3, 0.5), gamma=0.5
    )
    assert found.auc is None and "AUC needs right and wrong rows" in found.reason and found.table[1].sum() == 3
    assert found.kept == 2 and np.isnan(found.route[1, 2:]).all() and np.isnan(found.route[3, 2])


@pytest.mark.slow
def test_the_planted_config_runs_and_its_labels_beat_the_weak_ones(tmp_path):
    from experiments import main
    from experiments.configs.selective import get_config

    c = get_config("first=100")
    main.run(c, workdir=str(tmp_path), store=str(tmp_path / "store"), tell=lambda line: None)
    lines = (next(tmp_path.rglob("selective.csv"))).read_text().splitlines()
    rows = [dict(zip(lines[0].split(","), line.split(","))) for line in lines[1:]]
    assert [row["method"] for row in rows] == list(WORDS)
    for row in rows:
        assert float(row["given"]) > float(row["weak_kept"]) + 0.02
