"""Training: exact resume, accumulation, weights, adapters, refusals."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests import tiny
from w2s_jax.packing import Shape
from w2s_jax.student import sft, trainer
from w2s_jax.tasks.asking import Asking
from w2s_jax.types import Answers, Lesson, Question

SHAPE = Shape(row_length=16, batch_rows=2, max_segments=4)
ADAMW = trainer.Optimizer(b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.01, clip_norm=1.0)
FULL = trainer.Training(
    epochs=2.0, accumulation=1, lr=1e-2, schedule="cosine", warmup_frac=0.1, optimizer=ADAMW, lora_rank=0, lora_alpha=8.0,
    lora_targets=("q", "v"), checkpoint_every=5,
)  # fmt: skip
LORA = dataclasses.replace(FULL, lora_rank=4)


@pytest.fixture(scope="module")
def lm():
    return tiny.lm()


def lesson(n=48, weight=None, final="a"):
    rng = np.random.default_rng(0)
    questions = tuple(Question(f"q{i}", "t", " ".join(rng.choice(list(tiny.WORDS), 3)), ("a", "b")) for i in range(n))
    finals = (final,) * n
    return Lesson(
        questions, Answers(tuple(q.id for q in questions), finals, finals), np.ones(n, np.float32) if weight is None else weight
    )


def teach(lm, lesson, folder, training=FULL, shape=SHAPE, log=lambda step, metrics: None, key=0):
    return taught(lm, lesson, folder, training, shape, log, key).lm


def taught(lm, lesson, folder, training=FULL, shape=SHAPE, log=lambda step, metrics: None, key=0):
    return trainer.teach(
        lm, lesson, sft.make(), encode=Asking(lm.tokenizer, "direct", False, 64).answer, training=training, shape=shape,
        compute=tiny.compute(),         key=jax.random.key(key), partial=pathlib.Path(folder), log=log,
    )  # fmt: skip


def leaves(lm):
    return [np.asarray(x) for x in jax.tree.leaves(lm.params)]


def same(one, other):
    return all(np.array_equal(a, b) for a, b in zip(leaves(one), leaves(other), strict=True))


@pytest.mark.parametrize("training", [FULL, LORA], ids=["full", "lora"])
def test_the_loss_falls_and_the_start_is_left_alone(lm, tmp_path, training):
    before, losses = leaves(lm), []
    taught = teach(lm, lesson(), tmp_path, training, log=lambda step, metrics: losses.append(metrics["loss"]))
    assert losses[-1] < 0.5 * losses[0]
    assert all(np.array_equal(a, b) for a, b in zip(before, leaves(lm), strict=True)) and not same(lm, taught)


def test_adapters_leave_embeddings_and_norms_as_they_were(lm, tmp_path):
    taught = teach(lm, lesson(), tmp_path, LORA)
    np.testing.assert_array_equal(lm.params["embed"]["weight"], taught.params["embed"]["weight"])
    np.testing.assert_array_equal(lm.params["norm"]["scale"], taught.params["norm"]["scale"])


@pytest.mark.parametrize("training", [FULL, LORA], ids=["full", "lora"])
def test_a_killed_training_resumes_to_the_same_bits(lm, tmp_path, training):
    whole, steps = teach(lm, lesson(), tmp_path / "whole", training), []

    def dying(step, metrics):
        steps.append(step)
        if step == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        teach(lm, lesson(), tmp_path / "killed", training, log=dying)
    resumed = []
    taught = teach(lm, lesson(), tmp_path / "killed", training, log=lambda step, metrics: resumed.append(step))
    assert resumed[0] == 5 and same(whole, taught)


def test_checkpoints_work_in_a_relative_folder(lm, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    teach(lm, lesson(), "here")
    assert (tmp_path / "here" / "checkpoints" / "5").exists()


def test_accumulation_gives_the_gradients_of_one_large_batch(lm, tmp_path):
    students = [
        teach(lm, lesson(), tmp_path / str(A), dataclasses.replace(FULL, accumulation=A), Shape(16, 8 // A, 4))
        for A in (1, 2, 4)
    ]
    for other in students[1:]:
        for a, b in zip(leaves(students[0]), leaves(other), strict=True):
            assert abs(a - b).max() <= 1e-4 * abs(a).max()


def test_a_row_of_weight_zero_is_as_if_it_were_not_there(lm, tmp_path):
    half = lesson()
    wrong = Answers(half.answers.question_id, *2 * (tuple("b" if i % 2 else "a" for i in range(48)),))
    weight = np.array([1.0, 0.0] * 24, np.float32)
    one = teach(lm, dataclasses.replace(half, weight=weight), tmp_path / "one")
    other = teach(lm, dataclasses.replace(half, weight=weight, answers=wrong), tmp_path / "other")
    assert all(abs(a - b).max() < 1e-5 for a, b in zip(leaves(one), leaves(other), strict=True))


def test_the_loss_is_the_weighted_mean_over_answer_tokens():
    logp = jnp.log(jnp.array([[0.5, 0.25, 0.1]]))
    batch = sft.Batch(*[jnp.zeros((1, 3), jnp.int32)] * 3, weight=jnp.array([[0.0, 1.0, 0.5]]))
    total, denominator, _ = sft.make().loss({"logp": logp}, {}, batch)
    assert float(total / denominator) == pytest.approx(-(np.log(0.25) + 0.5 * np.log(0.1)) / 1.5, rel=1e-6)


def test_one_step_equals_optax_on_the_plain_loss(lm, tmp_path):
    """The compiled step against a direct computation: unpacked rows, one gradient, one AdamW update."""
    few = lesson(n=6)
    training = dataclasses.replace(FULL, epochs=1.0, schedule="constant", warmup_frac=0.0)
    taught = teach(lm, few, tmp_path, training, Shape(16, 2, 4))
    encode, model = Asking(lm.tokenizer, "direct", False, 64).answer, tiny.compute().model(lm.config)

    def loss(params):
        total, count = 0.0, 0
        for question, final in zip(few.questions, few.answers.final, strict=True):
            prompt, completion = encode(question, final)
            token = jnp.array([[*prompt, *completion]])
            hidden = model.apply({"params": params}, token, jnp.ones_like(token), jnp.arange(token.shape[1])[None]).hidden
            logits = hidden @ params["embed"]["weight"].T
            total -= jax.nn.log_softmax(logits)[0, len(prompt) - 1, completion[0]]
            count += 1
        return total / count

    grads = jax.jit(jax.grad(loss))(lm.params)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-2, weight_decay=0.01, mask=trainer._decayed))
    updates, _ = optimizer.update(grads, optimizer.init(lm.params), lm.params)
    for a, b, g in zip(
        jax.tree.leaves(optax.apply_updates(lm.params, updates)), leaves(taught), jax.tree.leaves(grads), strict=True
    ):
        sure = abs(g) > 1e-5  # Adam's first step is the gradient's sign: noise where the gradient is nothing but rounding
        np.testing.assert_allclose(np.where(sure, a, 0), np.where(sure, b, 0), atol=1e-4)


def test_lessons_of_the_same_shape_share_one_program(lm, tmp_path):
    teach(lm, lesson(), tmp_path / "one")
    before = trainer.train_step._cache_size()
    teach(lm, lesson(n=90, final="b"), tmp_path / "two", dataclasses.replace(FULL, epochs=1.0, lr=1e-3))
    assert trainer.train_step._cache_size() == before


def test_a_loss_that_is_not_a_number_names_step_and_rate(lm, tmp_path):
    broken = dataclasses.replace(lm, params=jax.tree.map(lambda x: x * jnp.nan, lm.params))
    with pytest.raises(ValueError, match="the loss is nan .* at step 0 with lr=0.01: lower lr"):
        teach(broken, lesson(), tmp_path)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"questions": (), "answers": Answers((), (), ()), "weight": np.zeros(0, np.float32)}, "the lesson is empty"),
        ({"target": np.zeros((48, 2), np.float32)}, "hard labels only"),
    ],
)
def test_bad_lessons_are_refused(lm, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        teach(lm, dataclasses.replace(lesson(), **change), tmp_path)


def test_all_parameters_are_trained_in_float32_only(lm, tmp_path):
    halves = dataclasses.replace(lm, params=jax.tree.map(lambda x: x.astype(jnp.bfloat16), lm.params))
    with pytest.raises(ValueError, match="parameters in bfloat16 cannot all be trained"):
        teach(halves, lesson(), tmp_path)
    learnt = taught(halves, lesson(), tmp_path, LORA)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(learnt.adapters.tree)} == {"float32"}
    assert {leaf.dtype.name for leaf in jax.tree.leaves(learnt.lm.params)} == {"bfloat16"}


def test_an_unknown_schedule_is_refused(lm, tmp_path):
    with pytest.raises(ValueError, match="schedule='step': allowed are cosine, linear, constant"):
        teach(lm, lesson(), tmp_path, dataclasses.replace(FULL, schedule="step"))
