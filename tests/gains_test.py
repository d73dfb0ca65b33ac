"""What theory predicts of a link stands beside what came of it, from the students' own answers; gold is looked at last."""

import csv
import dataclasses
import json
import types

import jax
import numpy as np
import pytest

from tests import tiny, toy
from w2s_jax import features, gain_page, pipeline
from w2s_jax.analysis import gains
from w2s_jax.metrics import Undefined
from w2s_jax.models import decoder, hf_io, sharding
from w2s_jax.models.compute import Compute
from w2s_jax.models.tokenizer import word_level
from w2s_jax.run import Run, find_model
from w2s_jax.store import Store, Stored
from w2s_jax.theory import overlap
from w2s_jax.types import LM, Answers, Batch, Gold, Question

METHODS = ("naive", "ntf", "oracle")


def config(models, arg=None, **analysis):
    c = toy.get_config(arg)
    c.methods = METHODS
    c.teacher.model, c.student.model = (str(models / name) for name in ("weak", "strong"))
    c.student.training.epochs = 1.0
    c.analysis.update(easy_first=False, gains=50, neighbours=3, **analysis)
    return c


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    words = word_level(toy.make(seed=0).vocabulary())
    for seed, (name, width) in enumerate((("weak", 16), ("strong", 24))):
        sizes = dataclasses.replace(tiny.CONFIG, vocab_size=20, width=width)
        hf_io.save(LM(sizes, decoder.init(sizes, jax.random.key(seed)), words), folder / name)
    return folder


def a_run(c, root, lines=None):
    return Run(c, 0, Store(root, log=(lines if lines is not None else []).append), lambda *metrics: None)


@pytest.fixture(scope="module")
def linked(models, tmp_path_factory):
    """The store's folder, the models, the link, and what was measured of it."""
    root = tmp_path_factory.mktemp("linked")
    c = config(models)
    one = a_run(c, root)
    teacher, student = (find_model(one, word) for word in (c.teacher.model, c.student.model))
    link = pipeline.link(one, teacher, student)
    return root, teacher, student, link, gains.measure(one, teacher, student, link)


def sums(ids):
    return np.array([(int(i.split()[1]) + int(i.split()[3])) % 5 for i in ids])


def test_each_method_that_was_taught_weak_labels_has_a_row_that_its_arrays_give(linked):
    found = linked[-1]
    assert [one.method for one in found.rows] == ["naive", "ntf"] and not found.notes
    arrays = found.arrays
    assert (arrays["gold"] == sums(arrays["id"])).all() and len(set(arrays["id"])) == 50
    for one in found.rows:
        choice = linked[3].choices[one.method]
        weak = dict(zip(choice.offer.answers.question_id, choice.offer.answers.final, strict=True))
        assert [weak[i] for i in arrays["id"]] == [str(k) for k in arrays[f"weak/{one.method}"]]
        taught = np.isin(arrays["id"], choice.chosen.value.answers.question_id)
        assert (arrays[f"taught/{one.method}"] == taught).all() and one.taught == taught.sum() < 25
        right, said = arrays[f"weak_right/{one.method}"], arrays[f"answer/{one.method}"]
        assert (right == (arrays[f"weak/{one.method}"] == arrays["gold"])).all()
        assert (arrays["untaught_right"] == (arrays["untaught"] == arrays["gold"])).all()
        assert one.untaught == pytest.approx(arrays["untaught_right"][~taught].mean())
        assert (arrays[f"right/{one.method}"] == (said == arrays["gold"])).all()
        assert one.held_out and one.n == 50
        assert one.misfit == pytest.approx(np.mean(said[~taught] != arrays[f"weak/{one.method}"][~taught]))
        assert one.gain == pytest.approx((said == arrays["gold"])[~taught].mean() - right[~taught].mean())
        assert one.gain_lo <= one.gain <= one.gain_hi and abs(one.gain) <= one.misfit
        assert one.test_gain == pytest.approx(
            linked[3].trial.trained[one.method].correct.mean() - linked[3].trial.weak.correct.mean()
        )
        assert one.self_gain == pytest.approx(one.accuracy - one.untaught) and one.gain == pytest.approx(
            one.accuracy - one.weak
        )
        assert 0 <= one.cka <= 1 and 0 <= one.kernel_norm <= 1 and one.kernel_gain is not None and one.rule is not None
        assert one.misfit_squared > 0 and one.misfit_divergence > 0 and 0 <= one.overlap <= 1


def test_states_are_those_of_the_question_before_any_answer(linked, models):
    found = linked[-1]
    arrays = found.arrays
    assert arrays["teacher"].shape == (50, 16) and arrays["student"].shape == (50, 24)
    lm = hf_io.load(str(models / "strong"))
    token = np.array([lm.tokenizer.encode(str(arrays["id"][7]), bos=True)])
    batch = Batch(token, np.ones_like(token), np.arange(token.shape[1])[None], probe=np.array([[token.shape[1] - 1]]))
    compute = Compute(sharding.make_mesh(data=1, fsdp=1, tensor=1))
    out = features.gathered(lm.params, batch, model=compute.model(lm.config), layers=(-1,))
    assert np.abs(np.asarray(out)[0, 0, 0] - arrays["student"][7]).max() < 1e-5
    other = [i for i in range(50) if arrays["id"][i].split()[1:] != arrays["id"][7].split()[1:]]
    assert np.abs(arrays["student"][other] - arrays["student"][7]).max(axis=1).min() > 1e-3


def test_expansion_bounds_every_students_errors_on_the_questions_looked_at(linked):
    arrays = linked[-1].arrays
    for one in linked[-1].rows:
        if one.bound is None:
            assert any("inapplicable" in reason for reason in one.reasons)
        else:
            assert one.bound >= np.mean(~arrays[f"right/{one.method}"]) and one.gain_all >= one.bound_gain


def test_a_second_measurement_is_served_and_another_gold_is_another(linked, models):
    root, teacher, student, link, found = linked
    lines = []
    again = gains.measure(a_run(config(models), root, lines), teacher, student, link)
    assert again.rows == found.rows and lines and all(line.endswith("cached") for line in lines)
    wrong = a_run(config(models, "target_gold=wrong"), root, lines)
    other = gains.measure(wrong, teacher, student, link)
    assert (other.arrays["gold"] == (found.arrays["gold"] + 1) % 5).all()
    assert [one.misfit for one in other.rows] == [one.misfit for one in found.rows]
    assert [one.weak for one in other.rows] != [one.weak for one in found.rows]
    blind = gains.measure(a_run(config(models, "target_gold=none"), root), teacher, student, link)
    assert blind.rows == () and blind.notes == ("the target has no gold, so no gain is known",)


def test_gold_stays_shut_until_every_student_is_stored(linked, models, monkeypatch, tmp_path):
    root, teacher, student, link, _ = linked
    one, opened = a_run(config(models), root), []
    monkeypatch.setattr(one.task, "gold", lambda split: opened.append(split))
    lost = dataclasses.replace(link.choices["naive"], taught=Stored("0", tmp_path))
    broken = dataclasses.replace(link, choices={**link.choices, "naive": lost})
    with pytest.raises(ValueError, match="the student of 'naive' has not been stored"):
        gains.measure(one, teacher, student, broken)
    assert opened == []


@pytest.mark.parametrize(
    "analysis, said",
    [
        ({"gains": -1}, "analysis.gains=-1: allowed is 0 or more than 10"),
        ({"gains": 5}, "analysis.gains=5"),
        ({"ridge": -0.1}, "analysis.ridge=-0.1: allowed is 0 or more"),
        ({"neighbours": 0}, "analysis.neighbours=0: allowed is 1 or more"),
    ],
)
def test_what_is_asked_for_in_vain_is_said_before_anything_is_computed(analysis, said, models, tmp_path):
    c = config(models)
    c.analysis.update(**analysis)
    with pytest.raises(ValueError, match=said):
        gains.prepare(a_run(c, tmp_path))


def test_nothing_is_asked_where_it_is_not_wanted(linked, models):
    root, teacher, student, link, _ = linked
    lines, c = [], config(models)
    c.analysis.gains = 0
    assert gains.measure(a_run(c, root, lines), teacher, student, link) == gains.Gains() and lines == []


def planted(size=200, **changes):
    """Questions whose states show the true class; a teacher wrong on a quarter of them, a student on a tenth."""
    rng = np.random.default_rng(0)
    gold = rng.integers(0, 3, size)
    states = rng.normal(size=(size, 6)) + 6 * np.eye(3, 6)[gold]
    weak = np.where(np.arange(size) % 4 == 0, (gold + 1) % 3, gold)
    says = np.where(np.arange(size) % 10 == 0, (gold + 1) % 3, gold)
    asked = gains.Asked(
        teacher=rng.normal(size=(size, 5)),
        student=states,
        gold=gold,
        untaught=(gold + (np.arange(size) % 2)) % 3,
        untaught_right=np.arange(size) % 2 == 0,
        sure=np.where(np.arange(size) % 4 == 0, 0.1, 0.9),
        belief=0.1 + 0.7 * np.eye(3)[weak],
        truth=np.eye(3)[gold],
        group=tuple(map(str, range(size))),
    )
    one = gains.Taught(
        weak=weak,
        says=says,
        weak_right=weak == gold,
        right=says == gold,
        unlike=weak != says,
        labelled=np.ones(size, bool),
        taught=np.arange(size) < 100,
        target=np.eye(3)[weak],
        probability=0.1 + 0.7 * np.eye(3)[says],
    )
    return dataclasses.replace(asked, **changes), one


def of(asked, one, **changes):
    shared = gains.alike(asked, 0.01)
    return gains.of_method(
        asked, dataclasses.replace(one, **changes), shared, method="m", test=None, ridge=0.01, neighbours=5, seed=0
    )


def test_planted_gains_come_out():
    found = of(*planted())
    assert found.held_out and (found.n, found.taught) == (200, 100)
    assert (found.weak, found.accuracy) == pytest.approx((0.75, 0.9)) and found.gain == pytest.approx(0.15)
    assert found.self_gain == pytest.approx(0.4)
    unlike = np.mean([(k % 4 == 0) != (k % 10 == 0) for k in range(100, 200)])
    assert found.misfit == pytest.approx(unlike)
    assert found.probe_gain == pytest.approx(0.2, abs=0.06)  # a probe sees the class, and hardly learns what is random
    assert found.rule > 0 and found.overlap is not None and found.bound is not None
    assert found.gain_all >= found.bound_gain and found.kernel_gain > 0


def test_distances_are_of_the_options_probabilities_and_nats_are_beside_the_teachers():
    """The student gives its answer .8 and two others .1 each, so does the teacher its own; labels and truth have all of it."""
    asked, one = planted()
    found = of(asked, one)
    unlike = np.mean([(k % 4 == 0) != (k % 10 == 0) for k in range(100, 200)])  # who is wrong is so in the same way
    same, other = 0.2**2 + 2 * 0.1**2, 0.8**2 + 0.9**2 + 0.1**2
    assert found.misfit_squared == pytest.approx((1 - unlike) * same + unlike * other)
    assert found.gain_squared == pytest.approx(0.25 * 2 - 0.9 * same - 0.1 * other)
    assert found.misfit_divergence == pytest.approx(unlike * 0.7 * np.log(8))
    assert found.gain_divergence == pytest.approx((0.25 - 0.1) * np.log(8))
    some = (np.arange(200) % 4 > 0)[:, None]  # none of the wrong labels: 5 of 75 students' answers are wrong
    for holed in (of(dataclasses.replace(asked, truth=asked.truth * some), one), of(asked, one, target=one.target * some)):
        assert holed.gain_squared == pytest.approx(-(70 * same + 5 * other) / 75)
        assert holed.gain == found.gain, "answers are known without options"


def test_overlap_is_of_the_taught_and_beside_it_of_all():
    asked, one = planted()
    kinds = overlap.detect(asked.sure, asked.student).kind == overlap.OVERLAP
    taught = np.arange(200) % 3 == 0
    found = gains.overlapping(asked, dataclasses.replace(one, taught=taught))
    assert found == pytest.approx({"overlap": kinds[taught].mean(), "overlap_all": kinds.mean()})
    assert 0 < found["overlap"] != found["overlap_all"]


def test_a_probe_learns_the_taught_labels_and_is_judged_on_other_questions_alone():
    asked, one = planted()
    late = np.arange(200) >= 100

    def gain(asked=asked, **changes):
        return gains.probed(asked, dataclasses.replace(one, **changes), 0.01)["probe_gain"]

    other = dataclasses.replace(asked, gold=np.where(late, asked.gold, (asked.gold + 1) % 3))
    assert gain(other, weak_right=late & one.weak_right) == gain(), "what is true of the taught is not asked"
    assert gain(weak=np.where(late, one.weak, asked.gold)) == pytest.approx(0.25), "labels that are right teach all classes"
    for changes in ({"weak": np.where(late, one.weak, 0)}, {"labelled": ~late}, {"taught": np.zeros(200, bool)}):
        with pytest.raises(Undefined, match="a probe needs two classes among the taught and questions that were not"):
            gain(**changes)


def test_expansion_speaks_of_all_questions_and_the_sign_rule_of_who_is_who():
    asked, one = planted()
    found = of(asked, one)
    assert found.gain_all == pytest.approx(0.9 - 0.75) and found.bound_gain == pytest.approx(1 - 0.75 - found.bound)
    wise = gains.turned(dataclasses.replace(asked, untaught=asked.gold), one, 0.01, 0)
    assert wise["rule"] == pytest.approx(0, abs=1e-9) and found.rule > 0.1, "who knows the truth does not beat itself"


def test_the_sample_is_the_seeds_and_keeps_its_order():
    questions = [Question(f"q{k}", "t", "?") for k in range(200)]
    drawn = [gains.sample(questions, 50, seed) for seed in (3, 3, 4)]
    assert drawn[0] == drawn[1] != drawn[2] and len({q.id for q in drawn[0]}) == 50
    places = [[questions.index(q) for q in part] for part in drawn]
    assert all(part == sorted(part) and part[-1] > 150 for part in places)
    assert gains.sample(questions, 500, 3) == tuple(questions)


def test_two_seeds_keep_all_rows_and_the_later_arrays_that_are_there():
    first, later = ({"id": np.array([k])} for k in (0, 1))
    rows = [gains.Gain("ntf", seed, 50, 20, True, 30) for seed in (0, 1)]
    one, other = gains.Gains((rows[0],), first, ("a",)), gains.Gains((rows[1],), later, ("b",))
    whole = gains.joined(one, other)
    assert whole.rows == tuple(rows) and whole.arrays is later and whole.notes == ("a", "b")
    assert gains.joined(one, gains.Gains(notes=("b",))).arrays is first


def test_an_answer_unlike_the_label_is_so_to_the_task_and_no_answer_is_unlike_all():
    def answers(*finals):
        return Answers(tuple(map(str, range(len(finals)))), finals, finals)

    labels, said = answers("1", "1", "", "0.5"), answers("1", "2", "", ".5")
    assert gains.unlike(labels, said, None).tolist() == [False, True, True, True]

    def agree(found, wanted):
        return np.array([a != "" != b and float(a) == float(b) for a, b in zip(found, wanted, strict=True)])

    assert gains.unlike(labels, said, agree).tolist() == [False, True, True, False]


def lesson(soft_labels=False, target=None):
    """Two questions with two labels each: of the first, the second was taught; the second was not, and its first is none."""
    options = ("no", "yes")
    questions = [Question(i, "t", "?", options) for i in "ab"]
    labels = Answers(tuple("aabb"), ("no", "yes", "", "yes"), ("no", "yes", "", "yes"))
    logp = np.log([[0.9, 0.1], [0.4, 0.6], [0.8, 0.2], [0.3, 0.7]])
    relabelled = None if target is None else types.SimpleNamespace(value=types.SimpleNamespace(target=target))
    offer = types.SimpleNamespace(
        answers=labels, relabelled=relabelled, unlabelled=types.SimpleNamespace(extra={"option_logp": logp})
    )
    one = types.SimpleNamespace(offer=offer, chosen=types.SimpleNamespace(value=types.SimpleNamespace(row=np.array([1]))))
    said = {
        "answers": Answers(("a", "b"), ("yes", "no"), ("yes", "no")),
        "extra": {"option_logp": np.log([[0.2, 0.8], [0.6, 0.4]])},
    }
    gold = Gold(("a", "b"), (("yes",), ("no",)))
    student = types.SimpleNamespace(style="direct", soft_labels=soft_labels)
    run = types.SimpleNamespace(task=None, config=types.SimpleNamespace(student=student))
    return gains.as_taught(questions, one, said, gold, types.SimpleNamespace(belief=np.full((2, 2), 0.5)), run)


def test_a_questions_label_is_the_one_that_was_taught_or_else_its_first_answer():
    found = lesson()
    assert found.weak.tolist() == [1, 1] and found.taught.tolist() == [True, False] and found.labelled.all()
    assert found.weak_right.tolist() == [True, False] and found.right.tolist() == [True, True]
    assert found.says.tolist() == [1, 0] and found.unlike.tolist() == [False, True]
    assert found.target.tolist() == [[0, 1], [0, 1]]
    np.testing.assert_allclose(found.probability, [[0.2, 0.8], [0.6, 0.4]])


def test_what_is_taught_softly_is_the_teachers_probabilities_or_the_relabellers():
    np.testing.assert_allclose(lesson(True).target, [[0.4, 0.6], [0.3, 0.7]])
    given = np.array([[1.0, 0.0], [0.25, 0.75], [1.0, 0.0], [0.125, 0.875]])
    assert lesson(True, given).target.tolist() == [[0.25, 0.75], [0.125, 0.875]]
    assert lesson(False, given).target.tolist() == [[0, 1], [0, 1]]


def test_a_teacher_is_as_sure_as_its_best_option_leads_and_of_free_answers_as_its_answer_is_probable():
    questions = [Question(i, "t", "?", ("no", "yes"), group=group) for i, group in (("a", ""), ("b", "g"))]
    gold = Gold(("b", "a"), (("no", "yes"), ("yes",)))
    before = {"answers": Answers(("a", "b"), ("no", "yes"), ("no", "yes"))}
    x = {"teacher": np.zeros((2, 1)), "student": np.ones((2, 1))}
    extra = {"answer_logp": np.log([0.6, 0.5, 0.75]), "option_logp": np.log([[0.4, 0.6], [0.5, 0.5], [0.75, 0.25]])}
    rows = np.array([2, 0])
    found = gains.as_asked(questions, x, gold, before, types.SimpleNamespace(extra=extra), rows, "direct")
    np.testing.assert_allclose(found.sure, [0.5, 0.2])
    np.testing.assert_allclose(found.belief, [[0.75, 0.25], [0.4, 0.6]])
    assert found.truth.tolist() == [[0, 1], [1, 0]] and found.gold.tolist() == [1, 0] and found.group == ("a", "g")
    assert found.untaught.tolist() == [0, 1] and found.untaught_right.tolist() == [False, True]
    del extra["option_logp"]
    free = gains.as_asked(questions, x, gold, before, types.SimpleNamespace(extra=extra), rows, "direct")
    np.testing.assert_allclose(free.sure, [0.75, 0.6])
    assert free.belief is None and free.truth is None


def test_what_was_taught_is_looked_at_only_where_nothing_else_is_left():
    asked, one = planted()
    nearly = of(asked, one, taught=np.arange(200) >= gains.LEAST - 1)
    assert not nearly.held_out and nearly.gain == pytest.approx(0.15)
    rest = of(asked, one, taught=np.arange(200) >= gains.LEAST)
    assert (nearly.measured, rest.measured) == (200, gains.LEAST)
    fewer = of(asked, one, taught=np.arange(200) >= 150, labelled=np.arange(200) >= 20)
    assert fewer.held_out and fewer.measured == 130
    assert rest.held_out and rest.weak == pytest.approx(np.mean([k % 4 != 0 for k in range(gains.LEAST)]))


def test_without_classes_or_probabilities_it_is_said_what_is_undefined():
    asked, one = planted(belief=None, truth=None, without="free answers are no classes", gold=np.full(200, -1))
    found = of(asked, one, target=None, probability=None)
    assert found.gain == pytest.approx(0.15) and found.cka is not None and found.kernel_norm is not None
    nothing = ("misfit_squared", "gain_divergence", "kernel_gain", "probe_gain", "bound", "rule")
    assert all(getattr(found, name) is None for name in nothing)
    assert [reason.partition(":")[2].strip() for reason in found.reasons] == [
        "free answers are no classes", "free answers have no probabilities of options"
    ]  # fmt: skip


@pytest.mark.parametrize(
    "options, style, wanted",
    [
        ([("a", "b"), ("b", "a")], "direct", [0, 0]),
        ([("a", "b"), ("c", "a")], "letter", [0, 1]),
        ([("a", "b"), ("c", "a")], "direct", None),
        ([(), ()], "boxed", None),
    ],
)
def test_an_answer_is_a_class_where_it_means_the_same_in_all_questions(options, style, wanted):
    questions = [Question(str(k), "t", "?", of) for k, of in enumerate(options)]
    among, without = gains.classes(questions, style)
    assert bool(without) == (wanted is None)
    assert gains.placed(["a", "a"], among).tolist() == (wanted or [-1, -1])


def test_a_run_writes_table_numbers_and_arrays_that_studies_read(linked, models, tmp_path, capsys):
    from experiments import main
    from w2s_jax.theory import gains as study
    from w2s_jax.theory import probing

    c = config(models)
    folder = tmp_path / "run"
    main.run(c, workdir=str(folder), store=str(linked[0]))
    assert "ntf: misfit" in capsys.readouterr().out
    report = folder / "report"
    for name in ("index.html", "recovery.md"):
        assert gain_page.TITLE in (report / name).read_text()
    assert 'href="data/gains.csv"' in (report / "index.html").read_text()
    lines = list(csv.DictReader((report / "data" / "gains.csv").open()))
    assert [line["method"] for line in lines] == ["naive", "ntf"]
    assert float(lines[1]["misfit"]) == pytest.approx(linked[-1].rows[1].misfit, abs=1e-5)
    kept = json.loads((report / "gains.json").read_text())
    assert kept["rows"][0]["gain"] == pytest.approx(linked[-1].rows[0].gain, abs=1e-5) and kept["teacher"] == "weak"
    cases = study.read(str(folder))
    assert {case.case for case in cases} == {"naive, seed 0", "ntf, seed 0"}
    assert {"misfit", "misfit_squared", "misfit_divergence", "probe_gain"} <= {case.predictor for case in cases}
    x, weak, gold = probing.of_run(str(folder), "ntf")
    arrays = linked[-1].arrays
    assert (x == arrays["student"]).all() and (gold == arrays["gold"]).all()
    assert (weak == np.where(arrays["taught/ntf"], arrays["weak/ntf"], -1)).all()
    with pytest.raises(ValueError, match="run_method='nobody': .* has naive, ntf"):
        probing.of_run(str(folder), "nobody")
    c.analysis.gains = 0
    main.run(c, workdir=str(folder), store=str(linked[0]))
    assert not (report / "gains.json").exists() and not (report / "data" / "gains.csv").exists()
    for read, said in ((lambda: probing.of_run(str(folder), "ntf"), "run="), (lambda: study.read(str(folder)), "runs names")):
        with pytest.raises(ValueError, match=f"{said}.*analysis.gains=500"):
            read()
