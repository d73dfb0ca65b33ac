"""What trust functions ask for: of the right model, about the right answers, once, for source and target, and never of gold."""

import dataclasses
import json
import pathlib
import types

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests import tiny, toy
from w2s_jax import calibrating, choosing, gathering, pipeline, store
from w2s_jax.models import decoder, hf_io
from w2s_jax.models.tokenizer import word_level
from w2s_jax.packing import Shape
from w2s_jax.run import Run, find_model
from w2s_jax.settings import method_row
from w2s_jax.store import Store
from w2s_jax.tasks import assessing
from w2s_jax.tasks.asking import Asking
from w2s_jax.trust import artefact
from w2s_jax.types import LM, Answers, Question

LETTERS = tuple("ABCDE")
WORDINGS = ("4 + {question}", "{question} a =", "b {question} c")
CHOICE = (
    "naive", "entropy", "margin", "icl_confidence", "p_true", "verbalised", "paraphrase", "committee", "reward_model",
    "likelihood", "knn", "logistic", "gold",
)  # fmt: skip
FREE = ("naive", "p_true", "self_consistency", "paraphrase", "committee", "reward_model", "knn", "gold")


def config(models, methods=CHOICE, interface="choice", target_gold="true", **teacher):
    """The toy with all kinds of trust, and with models that were never trained; they know letters, as options are asked by."""
    c = toy.get_config(f"interface={interface},target_gold={target_gold}")
    weak, strong, judge = (str(models / name) for name in ("weak", "strong", "judge"))
    with c.unlocked():
        c.method.likelihood = toy.base.row("reward_model", kind="likelihood", model=strong)
    c.methods = methods
    c.teacher.model, c.student.model = weak, strong
    c.trust.committee.models = (strong, weak)
    c.trust.reward_model.model = judge
    c.trust.self_consistency.update(num_samples=5, temperature=1.0)
    c.trust.paraphrase.wordings = WORDINGS
    c.trust.knn.k = 10
    c.teacher.shape.row_length = 48
    c.teacher.update(**teacher)
    c.select.n, c.student.training.epochs = 8, 1.0
    return c


def model(folder, seed, more_words=LETTERS):
    """A random model that knows the toy's words; all such models share their programs."""
    words = word_level((*toy.make(seed=0).vocabulary(), *more_words))
    sizes = dataclasses.replace(tiny.CONFIG, vocab_size=25)
    hf_io.save(LM(sizes, decoder.init(sizes, jax.random.key(seed)), words), folder)
    return folder


def classifier(folder, num_labels=1):
    """A random sequence classifier that knows the toy's words, as transformers would write it."""
    weights = model(folder, 7) / "model.safetensors"
    head = np.random.default_rng(1).normal(size=(num_labels, tiny.CONFIG.width)).astype(np.float32)
    save_file(load_file(weights) | {"score.weight": head}, weights, metadata={"format": "pt"})
    edit(folder, architectures=["Qwen3ForSequenceClassification"], id2label={str(i): f"L{i}" for i in range(num_labels)})
    return folder


def edit(folder, **fields):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def run(workdir, c, root=None):
    """One link; the run, its trial, and what the store said."""
    lines = []
    one = Run(c, 0, Store(root or workdir / "store", workdir=workdir, log=lines.append), lambda *a: None)
    models = [find_model(one, word) for word in (c.teacher.model, c.student.model)]
    return one, pipeline.link(one, *models).trial, lines


def stored(workdir, label, root=None):
    return store.read((root or workdir / "store") / json.loads((workdir / "runs.json").read_text())[label])


def students(workdir):
    runs = json.loads((workdir / "runs.json").read_text())
    return {
        label: (workdir / "store" / folder / "model" / "model.safetensors").read_bytes()
        for label, folder in runs.items()
        if label.startswith("teach ")
    }


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    model(folder / "weak", 0), model(folder / "strong", 1), classifier(folder / "judge")
    return folder


@pytest.fixture(scope="module")
def chosen(tmp_path_factory, models):
    workdir = tmp_path_factory.mktemp("choice")
    return workdir, *run(workdir, config(models))


@pytest.fixture(scope="module")
def written(tmp_path_factory, models):
    workdir = tmp_path_factory.mktemp("free")
    return workdir, *run(workdir, config(models, FREE, "free", num_samples=2, temperature=1.0))


# ---- The whole path --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fixture, methods", [("chosen", CHOICE), ("written", FREE)])
def test_every_row_is_measured_on_as_many_labels(fixture, methods, request):
    _, _, trial, _ = request.getfixturevalue(fixture)
    assert tuple(trial.trained) == methods and set(trial.n_selected.values()) == {8}
    assert trial.uses_target_gold == {"gold"}
    assert all(audit.auc is not None for audit in trial.audits.values())


@pytest.mark.parametrize("fixture", ["chosen", "written"])
def test_a_second_run_computes_nothing(fixture, request):
    workdir, one, _, _ = request.getfixturevalue(fixture)
    _, _, lines = run(workdir, one.config)
    assert lines and all(line.endswith("cached") for line in lines)


@pytest.mark.parametrize("fixture", ["chosen", "written"])
def test_changing_every_gold_answer_of_the_target_changes_the_gold_student_alone(fixture, request, tmp_path):
    workdir, one, trial, _ = request.getfixturevalue(fixture)
    c = one.config.copy_and_resolve_references()
    c.tasks.target_gold = "wrong"
    run(tmp_path, c)
    before, after = students(workdir), students(tmp_path)
    assert before.keys() == after.keys() and len(before) == len(trial.trained)
    assert {label for label in before if before[label] != after[label]} == {"teach gold"}


def test_evidence_is_gathered_for_the_source_to_calibrate_on_and_for_the_target(chosen):
    workdir, one, _, _ = chosen
    for name in ("p_true", "verbalised", "paraphrase_share", "committee_share", "reward", "likelihood"):
        for role in ("source", "target"):
            value = stored(workdir, f"{name} {role}").value
            assert value.shape == (60,) and value.dtype == np.float32 and np.isfinite(value).all() and len(set(value)) > 1
    fitted, _ = artefact.read(stored(workdir, "calibrate reward_model").path / "trust")
    again = method_row(one.config, "reward_model")
    source, target = stored(workdir, "answer source").value["answers"], stored(workdir, "reward target").value
    correct = one.task.gold("source").grade(source)
    fresh = calibrating.plugins.make("trust", again.trust, **again.args)
    evidence = gathering.Looked(stored(workdir, "answer source"), None)
    evidence = dataclasses.replace(evidence_of(evidence), extra={"reward": stored(workdir, "reward source").value})
    assert fresh.fit(evidence, correct, None).fitted == fitted.fitted
    np.testing.assert_array_equal(
        stored(workdir, "trust reward_model").value, fitted.score(dataclasses.replace(evidence, extra={"reward": target}))
    )


def evidence_of(looked):
    from w2s_jax.types import Evidence

    return Evidence(looked.answers, np.zeros((len(looked.answers), 1, 1), np.float32))


def test_models_are_taken_up_again_by_their_stored_answers(chosen):
    """A committee member that is the teacher itself is not asked again what the teacher has answered."""
    workdir, _, _, _ = chosen
    runs = json.loads((workdir / "runs.json").read_text())
    assert runs["answer target weak"] == runs["answer target"] and runs["answer target strong"] != runs["answer target"]


# ---- A row of its own demonstrations ---------------------------------------------------------------------------------


def test_a_row_with_shots_is_labelled_fitted_chosen_and_audited_by_the_shown_teacher(chosen):
    workdir, one, trial, _ = chosen
    plain, shown = (stored(workdir, label).value for label in ("answer target", "answer target after 4 shots"))
    assert shown["answers"] != plain["answers"] and (shown["extra"]["answer_logp"] != plain["extra"]["answer_logp"]).any()
    np.testing.assert_array_equal(stored(workdir, "trust icl_confidence").value, np.exp(shown["extra"]["answer_logp"]))
    selection = stored(workdir, "select icl_confidence").value
    assert selection.answers == shown["answers"][selection.row]
    right = one.task.gold("target").grade(selection.answers)
    assert trial.audits["icl_confidence"].purity == pytest.approx(right.mean())
    about = artefact.describe(stored(workdir, "calibrate icl_confidence").path / "trust")["about"]
    assert about["shots"] == 4 and artefact.describe(stored(workdir, "calibrate knn").path / "trust")["about"]["shots"] == 0


def test_demonstrations_of_a_row_are_left_out_of_its_source_and_its_teacher_is_scored_without(chosen, monkeypatch):
    workdir, one, trial, _ = chosen
    seen, stage = {}, Run.stage

    def recorded(self, name, fn, /, *, label, **inputs):
        seen[label] = inputs
        return stage(self, name, fn, label=label, **inputs)

    monkeypatch.setattr(Run, "stage", recorded)
    run(workdir, one.config)
    asked, shown = (seen["answer source after 4 shots"][name] for name in ("questions", "shown"))
    assert len(shown) == 4 and len(asked) == 56 and not {q.id for q in asked} & {q.id for q, _ in shown}
    truth = one.task.gold("source")
    assert all(dict(zip(truth.question_id, truth.accepted, strict=True))[q.id] == (final,) for q, final in shown)
    assert (
        len(seen["answer target after 4 shots"]["questions"]) == 60 and len(seen["answer target after 4 shots"]["shown"]) == 4
    )
    assert seen["answer test teacher"]["shown"] == seen["answer target"]["shown"] == ()
    assert len(seen["answer source"]["questions"]) == 60


def test_as_many_shots_as_the_teachers_section_says_are_the_same_answers(chosen, tmp_path):
    workdir, one, _, _ = chosen
    c = one.config.copy_and_resolve_references()
    c.teacher.shots, c.methods = 4, ("naive", "icl_confidence")
    run(tmp_path, c, root=workdir / "store")
    runs = json.loads((tmp_path / "runs.json").read_text())
    assert runs["answer target"] == runs["answer target after 4 shots"]
    assert runs["answer target"] == json.loads((workdir / "runs.json").read_text())["answer target after 4 shots"]


def test_fewer_shots_than_none_are_refused(models):
    c = config(models)
    c.method.icl_confidence.shots = -2
    with pytest.raises(ValueError, match="method.icl_confidence.shots=-2: allowed are 0 or more, and -1 for teacher.shots"):
        method_row(c, "icl_confidence")


# ---- Self-assessment -------------------------------------------------------------------------------------------------


def test_the_teacher_is_asked_about_each_answer_of_its_own(chosen):
    workdir, one, _, _ = chosen
    answers = stored(workdir, "answer target").value["answers"]
    lm = one.load(find_model(one, one.config.teacher.model), "float32")
    of = {q.id: q for q in one.task.questions("target")}
    asking = Asking(lm.tokenizer, style="letter", chat=False, context=lm.config.max_position)
    shape = Shape(row_length=48, batch_rows=4, max_segments=1)
    rows = [0, 7, 33]
    for name, wording, worth in (
        ("p_true", assessing.is_true, [1, 0]),
        ("verbalised", assessing.how_sure, [0, 0.25, 0.5, 0.75, 1]),
    ):
        asked = [asking.ask(wording(of[answers.question_id[r]], answers.final[r])) for r in rows]
        found = choosing.choose(lm, asked, normalise="none", shape=shape, compute=tiny.compute())
        np.testing.assert_allclose(stored(workdir, f"{name} target").value[rows], np.exp(found.option_logp) @ worth, rtol=1e-4)


def test_a_row_without_an_answer_is_not_asked_about_and_has_0(written):
    workdir, one, _, _ = written
    finals = np.array(stored(workdir, "answer target").value["answers"].final)
    for name in ("p_true", "sample_share", "paraphrase_share", "committee_share"):
        assert not stored(workdir, f"{name} target").value[finals == ""].any()
    assert np.isneginf(stored(workdir, "reward target").value[finals == ""]).all()
    assert (stored(workdir, "p_true target").value[finals != ""] > 0).all() and (finals == "").any() and (finals != "").any()


def test_a_teacher_that_does_not_know_the_letters_is_refused_with_a_way_out(models, tmp_path):
    c = config(models, ("p_true",))
    c.teacher.model = str(model(tmp_path / "mute", 0, more_words=()))
    with pytest.raises(ValueError, match=r"about its own answers, and 'mute' could not be asked: .*' A' has no tokens"):
        run(tmp_path, c)


def test_what_the_teacher_is_asked_shows_question_options_and_answer():
    question = Question("q", "demo", "What melts?", ("ice", "iron"))
    for wording, options in ((assessing.is_true, 2), (assessing.how_sure, 5)):
        asked = wording(question, "iron")
        assert asked.prompt.startswith("What melts?\nPossible answers: ice; iron\nProposed answer: iron\n")
        assert len(asked.options) == options and asked.id != wording(question, "ice").id
    assert "Possible" not in assessing.is_true(Question("q", "demo", "What melts?"), "ice").prompt


# ---- Agreement -------------------------------------------------------------------------------------------------------


def equal(found, wanted):
    return np.array([a == b != "" for a, b in zip(found, wanted, strict=True)])


def answers(*rows):
    ids, finals = zip(*rows, strict=True)
    return Answers(ids, finals, finals)


def test_a_share_is_of_all_that_others_said_to_the_same_question():
    ours = answers(("q", "1"), ("p", "2"), ("q", "3"), ("p", ""))
    others = [answers(("p", "2"), ("p", ""), ("q", "1")), answers(("q", "1"), ("q", "4"), ("q", "3"))]
    np.testing.assert_allclose(gathering.share(ours, others, equal), [2 / 4, 1 / 2, 1 / 4, 0])
    numbers = lambda found, wanted: np.array([a != "" != b and float(a) == float(b) for a, b in zip(found, wanted)])  # noqa: E731
    np.testing.assert_allclose(gathering.share(answers(("q", "0.50")), [answers(("q", ".5"), ("q", ""))], numbers), [0.5])


def test_a_share_of_nobody_is_refused():
    with pytest.raises(ValueError, match="nobody else was asked 1 of the questions, such as 'r'"):
        gathering.share(answers(("q", "1"), ("r", "1")), [answers(("q", "1"))], equal)


def test_further_samples_are_others_than_the_labels_and_their_share_is_that_of_the_label(written):
    workdir, one, _, _ = written
    labels, again = (stored(workdir, f"answer target{more}").value["answers"] for more in ("", " again"))
    assert len(labels) == 120 and len(again) == 300
    share = stored(workdir, "sample_share target").value
    for r in range(120):
        said = again.final[5 * (r // 2) : 5 * (r // 2) + 5]
        assert share[r] == pytest.approx(said.count(labels.final[r]) / 5 if labels.final[r] else 0)
    first = [again.text[5 * n] for n in range(60)]
    assert sum(a != b for a, b in zip(first, labels.text[::2], strict=True)) > 10  # the same draws would be the same texts


def test_members_vote_once_each_and_greedily(written, chosen):
    workdir, _, _, _ = written
    member = stored(workdir, "answer target strong").value["answers"]
    assert len(member) == 60
    workdir, _, _, _ = chosen
    ours, strong, weak = (stored(workdir, f"answer target{who}").value["answers"].final for who in ("", " strong", " weak"))
    votes = [(a == b) / 2 + (a == c) / 2 for a, b, c in zip(ours, strong, weak, strict=True)]
    np.testing.assert_allclose(stored(workdir, "committee_share target").value, votes)


def test_a_paraphrase_share_is_of_the_greedy_answers_in_other_wordings(chosen, written):
    for (workdir, one, _, _), rows in ((chosen, 60), (written, 120)):
        labels = stored(workdir, "answer target").value["answers"]
        again = [stored(workdir, f"answer target in wording {k}").value["answers"] for k in (1, 2, 3)]
        assert all(said.question_id == tuple(q.id for q in one.task.questions("target")) for said in again)
        share = stored(workdir, "paraphrase_share target").value
        for r in range(rows):
            said = [other.final[r * 60 // rows] for other in again]
            assert share[r] == pytest.approx(said.count(labels.final[r]) / 3 if labels.final[r] else 0)
        assert 0 < share.mean() < 1 and len({other.final for other in again}) == 3


@pytest.mark.parametrize("style", ["direct", "letter"])
def test_the_teacher_reads_each_wording_with_its_options_moved_on_and_its_answers_are_options(style, models, tmp_path):
    c = config(models, ("paraphrase",))
    c.teacher.style = style
    one = Run(c, 0, Store(tmp_path / "store", workdir=tmp_path, log=lambda line: None), lambda *a: None)
    teacher = find_model(one, c.teacher.model)
    asked = one.task.questions("target")
    unlabelled = gathering.Looked(gathering.answer(one, teacher, asked, "teacher", (), "answer"), None, asked, (), "target")
    gathering.gather(one, teacher, [unlabelled], method_row(c, "paraphrase").asks)
    lm = one.load(teacher, "float32")
    asking = Asking(lm.tokenizer, style=style, chat=False, context=lm.config.max_position)
    shape = Shape(row_length=48, batch_rows=4, max_segments=1)
    for k, (before, after, options) in enumerate((("4 + ", "", "12340"), ("", " a =", "23401"), ("b ", " c", "34012")), 1):
        moved = [dataclasses.replace(q, prompt=f"{before}{q.prompt}{after}", options=tuple(options)) for q in asked]
        place = choosing.choose(
            lm, [asking.ask(q) for q in moved], normalise="none", shape=shape, compute=tiny.compute()
        ).option
        said = stored(tmp_path, f"answer target in wording {k}").value["answers"].final
        assert said == tuple(options[o] for o in place) and len(set(said)) > 1


def test_options_stay_where_they_are_unless_they_are_to_be_moved(models, tmp_path, monkeypatch):
    c = config(models, ("paraphrase",))
    c.trust.paraphrase.reorder = False
    one = Run(c, 0, Store(tmp_path), lambda *a: None)
    seen = []
    monkeypatch.setattr(gathering, "answer", lambda run, teacher, questions, *a, **kw: seen.extend(questions))
    monkeypatch.setattr(gathering, "agreement", lambda *a: None)
    looked = types.SimpleNamespace(questions=one.task.questions("target"), role="target", shown=())
    gathering.gather(one, None, [looked], method_row(c, "paraphrase").asks)
    assert len(seen) == 180 and {q.options for q in seen} == {tuple("01234")}


def test_a_wording_that_makes_a_question_too_long_is_named(models, tmp_path):
    c = config(models, ("naive", "paraphrase"))
    c.trust.paraphrase.wordings = ("{question} a", "{question}" + " a" * 43)
    with pytest.raises(ValueError, match="asks the teacher again in the wording '.question. a a a.*raise shape.row_length"):
        run(tmp_path, c)


def test_a_wording_without_its_question_is_refused_before_anything_is_asked(models, tmp_path):
    c = config(models, ("naive", "paraphrase"))
    c.trust.paraphrase.wordings = ("{question} a", "the same")
    with pytest.raises(
        ValueError, match="method 'paraphrase': wordings: 'the same' has no {question}.*config.trust.paraphrase"
    ):
        refused(tmp_path, c)


def test_another_model_is_loaded_once_for_source_and_target_and_then_let_go(models, tmp_path, monkeypatch):
    c = config(models)
    one = Run(c, 0, Store(tmp_path, log=lambda line: None), lambda *a: None)
    teacher = find_model(one, c.teacher.model)
    labelled, _, unlabelled = pipeline.source_and_target(one, teacher)
    loads = []
    for name in ("load", "load_classifier"):
        real = getattr(hf_io, name)

        def recorded(folder, *, real=real, **kw):
            assert not one.loaded  # two models are never in memory
            loads.append(pathlib.Path(folder).name)
            return real(folder, **kw)

        monkeypatch.setattr(hf_io, name, recorded)
    for method in ("committee", "reward_model", "likelihood"):
        found = gathering.gather(one, teacher, [unlabelled, labelled], method_row(c, method).asks)
        assert [len(value.value) for evidence in found for value in evidence.values()] == [60, 60]
        assert not one.loaded
    assert loads == ["strong", "judge", "strong"]  # the teacher, a member too, has given its greedy answers already


def test_a_link_asks_another_model_about_the_source_right_after_the_target(chosen):
    computed = [line.split("  ")[0] for line in chosen[3] if "computed in" in line]
    for target in ("answer target strong", "reward target", "likelihood target"):
        assert computed[computed.index(target) + 1] == target.replace("target", "source")


def test_answers_are_compared_anew_where_the_task_goes_by_another_version_of_a_package(tmp_path, monkeypatch):
    one = Run(toy.get_config(), 0, Store(tmp_path, log=lambda line: None), lambda *a: None)
    said = types.SimpleNamespace(answers=Answers(("q",), ("1",), ("1",)), role="target")
    other = one.stage("answer", lambda work: {"answers": said.answers}, label="answer")
    keys = []
    for versions in (None, {"judge": "1"}, {"judge": "2"}, {"judge": "1"}):
        if versions:
            monkeypatch.setattr(toy.Toy, "judged_by", lambda task, versions=versions: versions, raising=False)
        keys.append(gathering.agreement(one, said, "sample_share", [other]).key)
    assert len(set(keys)) == 3 and keys[1] == keys[3]


# ---- Refusals before anything is computed ----------------------------------------------------------------------------


class Empty(Store):
    """A store that refuses to compute anything."""

    def stage(self, name, fn, /, *, label, **inputs):
        raise AssertionError(f"{label} came before the refusal")


def refused(workdir, c):
    one = Run(c, 0, Empty(workdir, log=lambda line: None), lambda *a: None)
    pipeline.link(one, *(find_model(one, word) for word in (c.teacher.model, c.student.model)))


@pytest.mark.parametrize(
    ("method", "interface", "said"),
    [
        (
            "entropy",
            "free",
            "'entropy': .*'option_logp': .*free answers have no options.*use confidence, self_consistency or paraphrase",
        ),
        ("margin", "free", "method 'margin': trust 'margin' needs 'option_logp'"),
        ("self_consistency", "choice", "'sample_share': further samples, and options are chosen in one pass.*use entropy"),
    ],
)
def test_evidence_that_the_task_cannot_give_is_refused_first(method, interface, said, models, tmp_path):
    with pytest.raises(ValueError, match=said):
        refused(tmp_path, config(models, ("naive", method), interface))


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("committee.models", (), r"method 'committee': models=\(\): allowed is a tuple"),
        ("committee.models", ("/nowhere",), "method 'committee': .*'/nowhere' is no directory here"),
        ("reward_model.model", "", "method 'reward_model': model='': a reward model is needed"),
        ("reward_model.model", "/nowhere", "method 'reward_model': .*'/nowhere' is no directory here"),
    ],
)
def test_a_model_that_is_not_there_is_refused_first(key, value, said, models, tmp_path):
    c = config(models, (key.split(".")[0],))
    c.update_from_flattened_dict({f"trust.{key}": value})
    with pytest.raises(ValueError, match=said):
        refused(tmp_path, c)


# ---- Reward models ---------------------------------------------------------------------------------------------------


def test_a_language_model_is_no_classifier_and_a_classifier_no_language_model(models):
    with pytest.raises(ValueError, match=r"\['Qwen3ForCausalLM'\] is no sequence classifier.*kind='likelihood'"):
        hf_io.check_classifier(models / "strong")
    with pytest.raises(ValueError, match="architectures = .'Qwen3ForSequenceClassification'. is not supported"):
        hf_io.check(models / "judge")


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        (None, "score.weight is not there; allowed is"),
        ((3, 16), r"score.weight has shape \(3, 16\); allowed is \(1, 16\), a reward, or \(2, 16\)"),
        ((1, 8), r"score.weight has shape \(1, 8\)"),
        ((2, 16), "id2label = {'0': 'L0'}, but score.weight has shape"),
    ],
)
def test_a_head_that_is_none_is_refused(shape, said, tmp_path):
    file = classifier(tmp_path) / "model.safetensors"
    weights = load_file(file)
    del weights["score.weight"]
    save_file(weights | ({} if shape is None else {"score.weight": np.zeros(shape, np.float32)}), file)
    with pytest.raises(ValueError, match=said):
        hf_io.check_classifier(tmp_path)


def test_a_bias_or_an_unknown_field_of_a_classifier_is_refused(tmp_path):
    file = classifier(tmp_path) / "model.safetensors"
    save_file(load_file(file) | {"score.bias": np.zeros(1, np.float32)}, file)
    with pytest.raises(ValueError, match="unexpected  score.bias"):
        hf_io.check_classifier(tmp_path)
    edit(tmp_path, classifier_dropout=0.1)
    with pytest.raises(ValueError, match="nothing reads classifier_dropout"):
        hf_io.check_classifier(tmp_path)


@pytest.mark.parametrize("num_labels", [1, 2])
@pytest.mark.parametrize("family", ["Llama", "Qwen3"])
def test_rewards_are_those_of_transformers(num_labels, family, tmp_path):
    torch = pytest.importorskip("torch")
    import transformers

    torch.manual_seed(0)
    words = word_level(tuple("abcdefgh"))
    sizes = dict(vocab_size=words.vocab_size, hidden_size=16, num_hidden_layers=2, num_attention_heads=2)
    sizes |= dict(num_key_value_heads=1, intermediate_size=24, head_dim=8, initializer_range=0.5, num_labels=num_labels)
    written = getattr(transformers, f"{family}Config")(**sizes, tie_word_embeddings=False)
    theirs = getattr(transformers, f"{family}ForSequenceClassification")(written).eval()
    theirs.save_pretrained(tmp_path)
    words.save(tmp_path)
    lm, head = hf_io.load_classifier(tmp_path)
    rng = np.random.default_rng(0)
    replies = [(rng.integers(2, 10, n).tolist(), rng.integers(2, 10, 1 + n % 3).tolist()) for n in range(1, 12)]
    shape = Shape(row_length=24, batch_rows=2, max_segments=4)
    ours = gathering.judgement.rewards(lm, replies, head=head, shape=shape, compute=tiny.compute(), label="reward")
    with torch.no_grad():
        wanted = np.stack([theirs(torch.tensor([[*p, *a]])).logits[0].numpy() for p, a in replies])
    wanted = wanted[:, 0] if num_labels == 1 else wanted[:, 1] - wanted[:, 0]
    np.testing.assert_allclose(ours, wanted, rtol=0, atol=2e-5 * np.abs(wanted).max())
    assert np.ptp(wanted) > 0.1


def test_a_likelihood_is_the_mean_log_probability_of_the_answers_tokens():
    lm = tiny.lm()
    replies = [([2, 3, 4], [5, 6]), ([7], [8]), ([3, 3, 3, 3, 9], [2, 4, 6, 8])]
    shape = Shape(row_length=16, batch_rows=1, max_segments=4)
    found = gathering.judgement.likelihoods(lm, replies, shape=shape, compute=tiny.compute(), label="likelihood")
    model = tiny.compute().model(lm.config)
    for (prompt, answer), ours in zip(replies, found, strict=True):
        token = np.array([[*prompt, *answer]], np.int32)
        hidden = model.apply({"params": lm.params}, token, np.ones_like(token), np.arange(token.size)[None]).hidden
        logp = np.asarray(jax.nn.log_softmax(decoder.logits(model, lm.params, hidden)))[0]
        places = range(len(prompt) - 1, token.size - 1)
        assert ours == pytest.approx(np.mean([logp[t, token[0, t + 1]] for t in places]), rel=1e-4)


class Spoken:
    """A tokenizer of a token for each character, with a chat template."""

    stop_ids = (0,)

    def chat(self, messages):
        return "".join(f"<{m['role']}>{m['content']}" for m in messages) + "<assistant>"

    def encode(self, text, bos):
        return [1] * bos + [ord(c) for c in text]


def test_a_judge_reads_question_and_answer_and_the_end_of_a_turn_under_a_chat_template():
    def read(question, text, **kw):
        prompt, answer = Asking(Spoken(), context=500, **kw).reply(question, text)
        return "".join(chr(t) if t > 1 else f"[{t}]" for t in [*prompt, *answer])

    chosen, free = Question("q", "t", "What melts?", ("ice", "iron")), Question("q", "t", "Add 3 and 4.")
    assert read(chosen, "iron", style="cloze", chat=False) == "[1]Question: What melts?\nAnswer: iron"
    assert read(chosen, "ice", style="cloze", chat=True) == "<user>Question: What melts?\nAnswer:<assistant>ice[0]"
    assert read(free, "It is 7: \\boxed{7}", style="worked", chat=False).endswith("\nAnswer: It is 7: \\boxed{7}")
    assert read(free, "7", style="direct", chat=True) == "<user>Add 3 and 4.<assistant>7[0]"


# ---- A new pool ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["p_true", "paraphrase", "committee", "reward_model", "knn", "icl_confidence"])
def test_a_stored_trust_function_is_given_what_it_asks_for_on_a_new_pool_too(method, chosen):
    workdir, one, _, _ = chosen
    folder = stored(workdir, f"calibrate {method}").path / "trust"
    answers, scores = pipeline.judge(one, find_model(one, one.config.teacher.model), folder, role="target")
    after = " after 4 shots" if method == "icl_confidence" else ""
    assert answers == stored(workdir, f"answer target{after}").value["answers"]
    np.testing.assert_array_equal(scores, stored(workdir, f"trust {method}").value)


def test_a_stored_trust_function_is_refused_where_the_new_pool_cannot_give_what_it_asks_for(chosen, written):
    workdir, one, _, _ = chosen
    folder = stored(workdir, "calibrate entropy").path / "trust"
    with pytest.raises(
        ValueError, match="trust 'entropy' needs 'option_logp'.*'free'; use confidence, self_consistency or paraphrase"
    ):
        pipeline.judge(written[1], find_model(written[1], written[1].config.teacher.model), folder, role="target")
