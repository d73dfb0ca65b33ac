"""Weights of several teachers, learnt with the student: they stay on the simplex, wait for the warm start, find the good one."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from tests import tiny
from tests.soft_labels_test import FOURS, is_that_of, lesson_of, parts, probability, world
from tests.trainer_test import leaves, same
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


def given(seed=0):
    """A world with the soft labels of three teachers, and what a batch says of them."""
    score, _, weight, real = world(FOURS, seed)
    experts = np.stack([world(FOURS, seed + t)[1] for t in (1, 2, 3)], axis=1)
    choice = experts.argmax(-1)
    agreed = (choice == choice[:, :1]).all(1) & (weight > 0)
    return score, weight, real, experts, agreed.astype(float)


def at(objective, progress, u=None, prior=(0.5, 0.25, 0.25)):
    """The parts of a step's loss, and the gradient in u."""
    score, weight, real, experts, agreed = given()
    u = np.zeros(3, np.float32) if u is None else np.asarray(u, np.float32)
    found = {}

    def total(u):
        held = dataclasses.replace(objective)
        object.__setattr__(held, "init", lambda key: {"teachers": {"bias": u}})
        found["parts"] = parts_of(held, score, weight, real, experts, agreed, prior, progress)
        return found["parts"]

    return total(u), (score, weight, real, experts, agreed)


def parts_of(objective, score, weight, real, experts, agreed, prior, progress):
    more = {"experts": experts, "agreed": agreed, "prior": np.array(prior)}
    return parts(objective, score, np.zeros_like(score), weight, real, progress, **more)
