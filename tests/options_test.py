"""Objectives over options: what is learnt is what will be asked, whatever the layout; what makes no sense is refused."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny, toy
from w2s_jax import choosing, pipeline, settings
from w2s_jax.models import decoder, hf_io
from w2s_jax.models.likelihood import option_logp, token_logp
from w2s_jax.models.tokenizer import word_level
from w2s_jax.packing import Shape
from w2s_jax.run import Run, find_model
from w2s_jax.store import Store
from w2s_jax.student import OverOptions, auxiliary_confidence, confidence_weighted, grpo, options, raven, sft, soft, trainer
from w2s_jax.tasks.asking import Asking
from w2s_jax.types import LM, Answers, Lesson, Question

SHAPE = Shape(row_length=32, batch_rows=1, max_segments=4)  # a pass ends with a batch
ADAMW = trainer.Optimizer(b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.01, clip_norm=1.0)
FULL = trainer.Training(
    epochs=2.0, accumulation=1, lr=1e-2, schedule="cosine", warmup_frac=0.1, optimizer=ADAMW, lora_rank=0, lora_alpha=8.0,
    lora_targets=("q", "v"), checkpoint_every=4,
)  # fmt: skip
AUXILIARY = auxiliary_confidence.make(beta=0.4, warm=0.5)


@pytest.fixture(scope="module")
def lm():
    return tiny.lm()


def some_lesson(n=11, seed=0, several=True, target=True):
    """Questions with two to four options, of one to three tokens where they are to have `several`."""
    rng = np.random.default_rng(seed)

    def words(least, most):
        return " ".join(rng.choice(list(tiny.WORDS), rng.integers(least, most + 1)))

    questions, labels = [], np.zeros((n, 4), np.float32)
    for k in range(n):
        num_options = 2 + k % 3
        choices = (
            [words(1, 3) for _ in range(num_options)] if several else list(rng.choice(list(tiny.WORDS), num_options, False))
        )
        questions.append(Question(f"q{k}", "t", words(1, 4), tuple(choices)))
        labels[k, :num_options] = rng.dirichlet(np.ones(num_options))
    final = tuple(q.options[i] for q, i in zip(questions, labels.argmax(1), strict=True))
    answers = Answers(tuple(q.id for q in questions), final, final)
    return Lesson(tuple(questions), answers, np.linspace(0.2, 1, n, dtype=np.float32), labels if target else None)


def ask(lm):
    return Asking(lm.tokenizer, "direct", False, 64).ask


def batches(lm, objective, lesson, shape=SHAPE, key=0, shared=True):
    """All batches of one pass."""
    plan = objective.plan(lesson, ask(lm), shape, jax.random.key(key), shared=shared)
    return [trainer.dated(objective, plan.batch(i), 0.5) for i in range(int(plan.num_batches))]


@functools.partial(jax.jit, static_argnames=("model", "objective"))
def one_batch(learnt, batch, *, model, objective):
    def loss(learnt):
        return trainer.batch_loss(learnt, batch, {}, model=model, objective=objective, adapters=False)

    return jax.value_and_grad(loss, has_aux=True)(learnt)


def passed(lm, objective, found):
    """Sum, denominator and gradients of a pass."""
    learnt = {"model": lm.params, "own": objective.init(jax.random.key(0))}
    parts = [one_batch(learnt, batch, model=tiny.compute().model(lm.config), objective=objective) for batch in found]
    total = sum(float(value) for (value, _), _ in parts)
    denominator = sum(float(aux[0]) for (_, aux), _ in parts)
    return total, denominator, jax.tree.map(lambda *x: np.sum(x, axis=0), *(gradient["model"] for _, gradient in parts))


def alike(one, other, tolerance=1e-5):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert np.abs(np.asarray(a) - b).max() <= tolerance * max(np.abs(np.asarray(b)).max(), 1e-3)


@functools.partial(jax.jit, static_argnames="model")
def whole_logits(params, token, *, model):
    """[N, L, V] of N sequences that begin at position 0."""
    place = jnp.broadcast_to(jnp.arange(token.shape[1]), token.shape)
    return decoder.logits(model, params, model.apply({"params": params}, token, jnp.ones_like(token), place).hidden)


@functools.partial(jax.jit, static_argnames="model")
def ranked(params, batch, *, model):
    """What a step sees of the options of a batch."""
    hidden = model.apply({"params": params}, batch.token, batch.segment, batch.position, prefix=batch.prefix).hidden
    logp, _ = token_logp(model, params, hidden, batch.token, batch.segment, wanted=batch.weight != 0)
    return option_logp(logp, batch.segment, batch.extra["scale"])


def dense(lm, lesson, factor):
    """The loss of a pass from whole logits: each prompt with each option alone in a row; `factor` of (tokens, bytes)."""
    asked = [ask(lm)(question) for question in lesson.questions]
    rows = [(k, o, [*a.prompt, *c], len(a.prompt)) for k, a in enumerate(asked) for o, c in enumerate(a.candidates)]
    L, O = max(len(row[2]) for row in rows), lesson.target.shape[1]
    token = np.array([[*row[2], *[0] * (L - len(row[2]))] for row in rows])
    answer = np.array([[start <= t < len(tokens) for t in range(L)] for _, _, tokens, start in rows])
    scale = np.array([factor(len(asked[k].candidates[o]), asked[k].num_bytes[o]) for k, o, _, _ in rows])
    place = np.array([k * O + o for k, o, _, _ in rows])
    model = tiny.compute().model(lm.config)

    def loss(params):
        logp = jax.nn.log_softmax(whole_logits(params, token, model=model))
        each = jnp.take_along_axis(logp[:, :-1], token[:, 1:, None], axis=-1)[..., 0]
        score = (each * answer[:, 1:]).sum(1) * scale
        table = jnp.full(len(asked) * O, -jnp.inf).at[place].set(score).reshape(-1, O)
        table = jnp.where(lesson.target > 0, jax.nn.log_softmax(table), 0.0)
        return -(lesson.weight[:, None] * lesson.target * table).sum()

    return jax.jit(jax.value_and_grad(loss))(lm.params)


# ---- What is learnt is what will be asked ------------------------------------------------------------------------------


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "repeated"])
@pytest.mark.parametrize("normalise, several", [("none", True), ("token", True), ("byte", True), ("byte", False)])
def test_options_are_ranked_in_training_as_in_answering(lm, normalise, several, shared):
    lesson = some_lesson(several=several)
    asked = [ask(lm)(question) for question in lesson.questions]
    answered = choosing.choose(lm, asked, normalise=normalise, shape=Shape(32, 4, 4), compute=tiny.compute())
    columns = {"weight": lesson.weight, "target": options.labels(lesson), "row": np.arange(1, 12, dtype=np.float32)}
    shape = Shape(64, 1, 3)
    plan = options.plan(lesson, columns, ask(lm), shape, jax.random.key(0), normalise=normalise, shared=shared)
    model, seen = tiny.compute().model(lm.config), set()
    for index in range(int(plan.num_batches)):
        batch = plan.batch(index)
        assert (batch.prefix is None) == (not shared)
        found = np.asarray(ranked(lm.params, batch, model=model))
        for row, given in zip(np.asarray(options.column(batch, "row")).astype(int) - 1, found, strict=True):
            wanted = np.zeros(4) if row < 0 else answered.option_logp[row]
            np.testing.assert_allclose(given, np.where(np.isfinite(wanted), wanted, 0.0), atol=2e-5)
            seen.add(row)
    assert seen >= set(range(len(asked)))


def test_loss_and_gradients_are_those_of_whole_logits(lm):
    lesson, objective = some_lesson(8), soft.make(normalise="byte")
    total, denominator, gradient = passed(lm, objective, batches(lm, objective, lesson))
    wanted, wanted_gradient = dense(lm, lesson, lambda num_tokens, num_bytes: 1 / num_bytes)
    assert total == pytest.approx(float(wanted), rel=1e-5) and denominator == pytest.approx(lesson.weight.sum())
    alike(gradient, wanted_gradient)


def test_a_hard_label_on_words_is_a_softmax_over_these_words_at_the_prompts_end(lm):
    lesson = some_lesson(8, several=False, target=False)
    total, denominator, _ = passed(lm, soft.make(), batches(lm, soft.make(), lesson))
    asked = [ask(lm)(question) for question in lesson.questions]
    token = np.array([[*a.prompt, *[0] * (4 - len(a.prompt))] for a in asked])
    logit = np.asarray(whole_logits(lm.params, token, model=tiny.compute().model(lm.config)), np.float64)
    wanted = 0.0
    for k, (question, final) in enumerate(zip(lesson.questions, lesson.answers.final, strict=True)):
        words = logit[k, len(asked[k].prompt) - 1, [word for (word,) in asked[k].candidates]]
        wanted -= lesson.weight[k] * (words - np.log(np.exp(words).sum()))[question.options.index(final)]
    assert total == pytest.approx(wanted, rel=1e-5) and denominator == pytest.approx(lesson.weight.sum())


@pytest.mark.parametrize("shape, key, shared", [(Shape(48, 1, 1), 2, False), (Shape(64, 2, 2), 3, True)])
def test_neither_order_nor_packing_nor_padding_changes_loss_or_gradients(lm, shape, key, shared):
    objective, lesson = soft.make(), some_lesson(8)  # four rows of two, in the last case
    reference, found = (passed(lm, objective, batches(lm, objective, lesson, *how)) for how in ((SHAPE,), (shape, key, shared)))
    assert found[:2] == pytest.approx(reference[:2], rel=1e-5)
    alike(found[2], reference[2])


def test_a_question_of_weight_zero_teaches_nothing_whatever_its_label(lm):
    lesson = some_lesson(8)
    silent = dataclasses.replace(lesson, weight=np.array([1, 0, 1, 1, 0, 1, 1, 1], np.float32))
    target = lesson.target.copy()
    target[[1, 4]] = np.eye(4)[0]
    one, other = (
        passed(lm, soft.make(), batches(lm, soft.make(), x)) for x in (silent, dataclasses.replace(silent, target=target))
    )
    assert one[:2] == other[:2] == pytest.approx((one[0], 6.0))
    alike(one[2], other[2], 0)


# ---- Training ----------------------------------------------------------------------------------------------------------


def teach(lm, lesson, objective, folder, training=FULL, log=lambda step, metrics: None, shape=SHAPE):
    return trainer.teach(
        lm, lesson, objective, encode=ask(lm), training=training, shape=shape, compute=tiny.compute(), key=jax.random.key(0),
        partial=folder, log=log,
    ).lm  # fmt: skip


def test_a_training_compiles_its_step_once_for_all_lessons_and_is_told_its_progress(lm, tmp_path):
    before, told = trainer.train_step._cache_size(), []
    for n in (16, 24):
        told.clear()
        teach(lm, some_lesson(n, seed=n), AUXILIARY, tmp_path / str(n), log=lambda step, metrics: told.append(metrics))
    assert trainer.train_step._cache_size() == before + 1
    wanted = [0.4 * min(1.0, step / len(told) / 0.5) for step in range(len(told))]
    assert wanted[0] == 0 and [metrics["own_share"] for metrics in told] == pytest.approx(wanted, abs=1e-6)
    assert all(0 <= metrics["agreement"] <= 1 for metrics in told)


def test_the_student_comes_to_believe_the_labels(lm, tmp_path):
    lesson, losses = some_lesson(8, several=False), []
    sharp = dataclasses.replace(lesson, target=options.hard(lesson))
    training = dataclasses.replace(FULL, epochs=12.0)
    teach(lm, sharp, AUXILIARY, tmp_path, training, lambda step, metrics: losses.append(metrics["loss"]))
    assert losses[-1] < 0.3 * losses[0]


def test_a_run_teaches_the_teachers_probabilities_by_one_word_and_its_gold_row_hard_labels(tmp_path, monkeypatch):
    words = word_level(toy.make(seed=0).vocabulary())
    sizes = dataclasses.replace(tiny.CONFIG, vocab_size=words.vocab_size)
    config = toy.get_config("objective=auxiliary_confidence")
    config.methods, config.student.soft_labels = ("naive", "gold"), True
    for seed, section in enumerate((config.teacher, config.student)):
        section.model = str(tmp_path / f"model {seed}")  # untrained, to save the time
        hf_io.save(LM(sizes, decoder.init(sizes, jax.random.key(seed)), words), tmp_path / f"model {seed}")
    lessons, told, original = [], [], trainer.teach
    monkeypatch.setattr(
        trainer, "teach", lambda lm, lesson, *a, **k: (lessons.append(lesson), original(lm, lesson, *a, **k))[1]
    )
    run = Run(config, 0, Store(tmp_path / "store"), lambda *metrics: told.append(metrics[-1]))
    trial = pipeline.link(run, *(find_model(run, section.model) for section in (config.teacher, config.student))).trial
    naive, gold = lessons
    assert naive.target.shape == (20, 5) and np.allclose(naive.target.sum(1), 1, atol=1e-5) and naive.target.max() < 1
    assert gold.target is None and set(trial.trained) == {"naive", "gold"} and trial.objective == "auxiliary_confidence"
    share = [metrics["own_share"] for metrics in told]
    assert min(share) == 0 and max(share) == pytest.approx(0.5)


# ---- Refusals ----------------------------------------------------------------------------------------------------------


def changed(**change):
    return dataclasses.replace(some_lesson(4), **change)


def with_target(k, row):
    target = some_lesson(4).target.copy()
    target[k] = row
    return changed(target=target)


BAD = [
    (lambda: changed(questions=()), "lesson is empty.*select"),
    (lambda: changed(questions=(Question("free", "t", "a"),)), "'free' has 0 options.*sft or grpo"),
    (lambda: changed(target=np.ones((4, 3), np.float32)), r"shape \(4, 3\).*4 columns"),
    (lambda: changed(target=np.ones((3, 4), np.float32)), r"shape \(3, 4\).*4 rows"),
    (lambda: with_target(1, [0.5, 0.4, 0.0, 0]), r"target of question 'q1'.*add up to 1.*soft_labels"),
    (lambda: with_target(1, [1.2, -0.2, 0.0, 0]), r"target of question 'q1'.*0 or more"),
    (lambda: with_target(0, [0.5, 0.4, 0.1, 0]), r"target of question 'q0'.*its 2 options"),
    (lambda: with_target(1, [np.nan, 0.5, 0.5, 0]), r"target of question 'q1'.*nan"),
    (lambda: changed(target=None, answers=Answers(("q0",) * 4, ("no",) * 4, ("no",) * 4)), "'no' to question 'q0' is none"),
]  # fmt: skip


@pytest.mark.parametrize("lesson, said", BAD, ids=[said for _, said in BAD])
def test_a_lesson_that_says_nothing_about_options_is_refused_in_words(lm, lesson, said):
    with pytest.raises(ValueError, match=f"(?s){said}"):
        batches(lm, soft.make(), lesson())


@pytest.mark.parametrize("shared, said", [(True, "prompt once"), (False, "splash.*xla")])
def test_a_question_whose_options_do_not_fit_a_row_is_refused_by_name(lm, shared, said):
    question = Question("long", "t", "a b c d", ("a b c", "d e f"))
    lesson = Lesson((question,), Answers(("long",), ("a b c",), ("a b c",)), np.ones(1, np.float32))
    with pytest.raises(ValueError, match=f"'long' has .* tokens.*{said}.*allowed are 10.*student.training.shape.row_length"):
        batches(lm, soft.make(), lesson, Shape(10, 1, 1), shared=shared)


@pytest.mark.parametrize(
    "make, said",
    [
        (lambda: soft.make(normalise="word"), "normalise='word'.*none, token, byte.*student.soft.normalise"),
        (lambda: auxiliary_confidence.make(beta=1.5), "beta=1.5.*0 to 1.*student.auxiliary_confidence.beta"),
        (lambda: auxiliary_confidence.make(warm=-0.1), "warm=-0.1.*0 to 1.*student.auxiliary_confidence.warm"),
        (lambda: confidence_weighted.make(labels="both"), "labels='both'.*hard, soft.*student.confidence_weighted.labels"),
        (lambda: raven.make(teachers=0), "teachers=0.*1 or more.*student.raven.teachers"),
        (lambda: raven.make(init="best"), "init='best'.*uniform, entropy.*student.raven.init"),
        (lambda: raven.make(pace=0.0), "pace=0.0.*above 0.*student.raven.pace"),
    ],
)
def test_a_setting_out_of_range_is_refused_with_its_line(make, said):
    with pytest.raises(ValueError, match=said):
        make()


def test_soft_labels_are_refused_by_objectives_that_cannot_read_them_with_those_that_can(lm):
    with pytest.raises(ValueError, match="hard labels only.*soft, auxiliary_confidence"):
        sft.tokens(some_lesson(4), lambda question, final: ([0], [0]))
    for word in ("sft", "grpo"):
        config = toy.get_config(f"objective={word}")
        config.student.soft_labels = True
        with pytest.raises(ValueError, match=f"soft_labels=True.*{word}.*soft, auxiliary_confidence"):
            settings.check(config)


def test_free_answers_are_refused_before_anything_is_computed():
    config = toy.get_config("objective=soft")
    settings.refuse_choiceless(config, "choice")
    with pytest.raises(ValueError, match="student.objective='soft'.*'free'.*sft or grpo"):
        settings.refuse_choiceless(config, "free")
    config.student.objective = "sft"
    settings.refuse_choiceless(config, "free")


def test_each_of_them_is_known_by_one_word_and_ranks_as_the_student_section_says():
    from experiments.configs import base

    for word in base.OVER_OPTIONS:
        config = toy.get_config(f"objective={word}")
        config.student.normalise = "byte"
        (made,) = (settings.objective_of(config),)
        assert isinstance(made, OverOptions) and made.normalise == "byte"
        assert re.search(rf"student\.{word}\b", type(made).__module__)
    assert not isinstance(sft.make(), OverOptions) and not isinstance(grpo.make(), OverOptions)
