"""Weights of several teachers, learnt with the student: they wait for the warm start, find the good one, add up to 1."""

import dataclasses

import jax
import numpy as np
import pytest

from tests import tiny
from tests.soft_labels_test import FOURS, is_that_of, parts, probability, world
from tests.trainer_test import same
from w2s_jax.packing import Shape
from w2s_jax.student import raven, trainer
from w2s_jax.tasks.asking import Asking
from w2s_jax.types import Answers, Lesson, Question

TRAINING = trainer.Training(
    epochs=6.0, accumulation=1, lr=1e-2, schedule="constant", warmup_frac=0.0,
    optimizer=trainer.Optimizer(b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.1, clip_norm=1.0), lora_rank=0, lora_alpha=8.0,
    lora_targets=("q", "v"), checkpoint_every=20,
)  # fmt: skip
OBJECTIVE = raven.make(teachers=3, warm=0.25, pace=5.0)


@pytest.fixture(scope="module")
def lm():
    return tiny.lm()


def planted(n=128, right=(0.95, 0.5, 0.5), seed=0):
    """A word of the first eight wants "a", one of the others "b"; each teacher is right so often, and a little unsure."""
    rng = np.random.default_rng(seed)
    word = rng.integers(0, 16, n)
    truth = (word >= 8).astype(int)
    says = np.where(rng.uniform(size=(n, 3)) < right, truth[:, None], 1 - truth[:, None])
    experts = np.where(np.arange(2) == says[..., None], 0.9, 0.1).astype(np.float32)
    questions = tuple(Question(f"q{k}", "t", tiny.WORDS[w], ("a", "b")) for k, w in enumerate(word))
    final = tuple("ab"[i] for i in experts.mean(axis=1).argmax(1))
    answers = Answers(tuple(q.id for q in questions), final, final)
    return Lesson(questions, answers, np.ones(n, np.float32), experts.mean(axis=1), experts)


def teach(lm, folder, lesson, log=lambda step, metrics: None, objective=OBJECTIVE, **change):
    return trainer.teach(
        lm, lesson, objective, encode=Asking(lm.tokenizer, "direct", False, 64).ask,
        training=dataclasses.replace(TRAINING, **change), shape=Shape(32, 2, 6), compute=tiny.compute(), key=jax.random.key(0),
        partial=folder, log=log,
    ).lm  # fmt: skip


@pytest.fixture(scope="module")
def taught(lm, tmp_path_factory):
    told = []
    student = teach(lm, tmp_path_factory.mktemp("whole"), planted(), lambda step, metrics: told.append(metrics))
    return student, told


def test_weights_wait_for_the_warm_start_then_move_to_the_teacher_that_is_right_and_stay_on_the_simplex(taught):
    _, told = taught
    weights = np.array([[metrics[f"w_{t}"] for t in range(3)] for metrics in told])
    assert len(weights) > 40 and np.allclose(weights.sum(1), 1, atol=1e-5) and (weights > 0).all()
    frozen = [step / len(told) < 0.25 for step in range(len(told))]
    first = frozen.index(False)  # the first step that moves them; what it made of them is seen one later
    assert (weights[: first + 1] == weights[0]).all() and np.allclose(weights[0], 1 / 3)
    assert (weights[first + 1] != weights[0]).any()
    assert weights[-1, 0] > 0.6 and weights[-1, 0] > 2 * weights[-1, 1:].max()


def test_a_killed_training_resumes_to_the_same_bits_with_its_weights(lm, taught, tmp_path):
    whole, told = taught

    def dying(step, metrics):
        if step == 30:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        teach(lm, tmp_path, planted(), dying)
    resumed = {}
    student = teach(lm, tmp_path, planted(), resumed.__setitem__)
    assert min(resumed) == 20 < first_moved(told) + 20 and same(whole, student)
    assert all(resumed[step][f"w_{t}"] == told[step][f"w_{t}"] for step in resumed for t in range(3))


def first_moved(told):
    return next(step for step, metrics in enumerate(told) if metrics["w_0"] != told[0]["w_0"])


# ---- The loss is its formula -------------------------------------------------------------------------------------------


def at(objective, progress, u=(0.3, -0.2, 0.1), prior=(0.5, 0.25, 0.25)):
    """What a step computes of a batch with three teachers, and all that it depends on."""
    score, _, weight, real = world(FOURS)
    experts = np.stack([world(FOURS, seed)[1] for seed in (1, 2, 3)], axis=1)
    choice = experts.argmax(-1)
    agreed = ((choice == choice[:, :1]).all(1) & (weight > 0)).astype(float)
    own = {"teachers": {"bias": np.asarray(u, np.float32)}}
    more = {"experts": experts, "agreed": agreed, "prior": np.array(prior)}
    found = parts(objective, score, np.zeros_like(score), weight, real, progress, own, **more)
    return found, np.asarray(found[4]["teachers"]["bias"]), (score, weight, real, experts, agreed)


def mixture(u, prior, pace):
    v = np.array(prior) * np.exp(pace * np.array(u))
    return v / v.sum()


def test_the_loss_is_cross_entropy_with_the_weighted_mixture_of_the_teachers():
    found, gradient, (score, weight, real, experts, _) = at(raven.make(teachers=3, warm=0.1, pace=4.0), 0.5)
    v = mixture((0.3, -0.2, 0.1), (0.5, 0.25, 0.25), 4.0)
    target = np.einsum("t,kto->ko", v, experts)
    is_that_of(found, target, weight, score, real)
    assert [found[2][f"w_{t}"] for t in range(3)] == pytest.approx(v, rel=1e-5)
    cost = -(weight[:, None, None] * experts * np.log(np.where(real, probability(score, real), 1))[:, None]).sum((0, 2))
    np.testing.assert_allclose(gradient, v * (cost - (v * cost).sum()), rtol=1e-4)  # that of log-weights, whatever the pace


def test_in_the_warm_start_weights_have_no_gradient_and_disputed_questions_do_not_count():
    objective = raven.make(teachers=3, warm=0.5, pace=4.0)
    found, gradient, (score, weight, real, experts, agreed) = at(objective, 0.49)
    assert 0 < agreed.sum() < (weight > 0).sum() and (gradient == 0).all()
    target = np.einsum("t,kto->ko", mixture((0.3, -0.2, 0.1), (0.5, 0.25, 0.25), 4.0), experts)
    is_that_of(found, target, weight * agreed, score, real)
    assert (at(objective, 0.5)[1] != 0).all()


def test_unsure_teachers_begin_with_less_weight_if_asked_for():
    lesson = planted(8)
    experts = lesson.experts.copy()
    experts[:, 1] = 0.5
    sure = -(0.9 * np.log(0.9) + 0.1 * np.log(0.1))
    wanted = np.array([1 / sure, 1 / np.log(2), 1 / sure])
    for init, share in (("entropy", wanted / wanted.sum()), ("uniform", np.full(3, 1 / 3))):
        plan = raven.make(teachers=3, init=init).plan(
            dataclasses.replace(lesson, experts=experts), asked, Shape(32, 2, 6), jax.random.key(0), shared=True
        )
        np.testing.assert_allclose(plan.batch(0).extra["prior"], np.tile(share, (2, 1)), rtol=1e-5)
    certain = np.eye(2)[np.zeros((8, 3), int)]
    assert np.isfinite(raven.by_entropy(certain)).all()


def asked(question):
    return Asking(tiny.lm().tokenizer, "direct", False, 64).ask(question)


def test_teachers_without_labels_of_their_own_say_what_the_lesson_says():
    lesson = dataclasses.replace(planted(8), experts=None)
    columns = raven.make(teachers=3).columns(lesson)
    assert columns["experts"].shape == (8, 3, 4) and (columns["experts"] == columns["target"][:, None]).all()
    assert (columns["agreed"] == 1).all()


@pytest.mark.parametrize(
    "teachers, change, said",
    [
        (2, {}, r"shape \(8, 3, 2\).*student.raven.teachers=2"),
        (3, {"experts": np.full((8, 3, 2), 0.4, np.float32)}, "experts of question 'q0'.*add up to 1"),
        (3, {"experts": np.tile(np.eye(2, dtype=np.float32)[[0, 1, 1]], (8, 1, 1))}, "warm=0.1.*3 teachers agree on none of 8"),
    ],
)
def test_labels_of_other_teachers_or_of_none_that_agree_are_refused(teachers, change, said):
    with pytest.raises(ValueError, match=said):
        raven.make(teachers=teachers).columns(dataclasses.replace(planted(8), **change))
