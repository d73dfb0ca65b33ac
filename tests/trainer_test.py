"""Training: exact resume, accumulation, weights, adapters, refusals."""

import dataclasses
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests import tiny
from w2s_jax.packing import Shape
from w2s_jax.student import sft, trainer
from w2s_jax.tasks.asking import Asking
from w2s_jax.types import Answers, Batch, Lesson, Question

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


def test_adapters_change_their_targets_and_nothing_else(lm, tmp_path):
    taught, paths = teach(lm, lesson(), tmp_path, LORA), jax.tree_util.tree_leaves_with_path(lm.params)
    names = {jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in paths}
    changed = {
        jax.tree_util.keystr(path, simple=True, separator="/")
        for (path, a), b in zip(paths, leaves(taught), strict=True)
        if not np.array_equal(a, b)
    }
    assert changed == {name for name in names if {"q", "v"} & set(name.split("/"))} != set()


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


def test_accumulation_gives_the_loss_and_the_gradients_of_one_large_batch(lm, tmp_path):
    weighted = lesson(weight=np.linspace(0.1, 1, 48, dtype=np.float32))

    def run(A):
        told, training = [], dataclasses.replace(FULL, accumulation=A)
        student = teach(
            lm, weighted, tmp_path / str(A), training, Shape(16, 8 // A, 4),
            log=lambda step, metrics: told.append((step, metrics["loss"], metrics["grad_norm"])),
        )  # fmt: skip
        return leaves(student), told

    whole, told = run(1)
    for A in (2, 4):
        student, found = run(A)
        np.testing.assert_allclose(found, told, rtol=1e-3)
        for a, b in zip(whole, student, strict=True):
            assert abs(a - b).max() <= 1e-4 * abs(a).max()


def test_a_row_of_weight_zero_is_as_if_it_were_not_there(lm, tmp_path):
    half = lesson()
    wrong = Answers(half.answers.question_id, *2 * (tuple("b" if i % 2 else "a" for i in range(48)),))
    weight = np.array([1.0, 0.0] * 24, np.float32)
    one = teach(lm, dataclasses.replace(half, weight=weight), tmp_path / "one")
    other = teach(lm, dataclasses.replace(half, weight=weight, answers=wrong), tmp_path / "other")
    assert all(abs(a - b).max() < 1e-5 for a, b in zip(leaves(one), leaves(other), strict=True))


def test_a_lesson_without_any_weight_teaches_nothing(lm, tmp_path):
    taught = teach(lm, lesson(weight=np.zeros(48, np.float32)), tmp_path)
    np.testing.assert_array_equal(taught.params["norm"]["scale"], lm.params["norm"]["scale"])  # the rest has its decay


@dataclasses.dataclass(frozen=True)
class Curious(sft.SFT):
    """Supervised fine-tuning that also wants to know how sure the student is."""

    needs: frozenset[str] = frozenset({"entropy"})

    def loss(self, out, own, batch):
        total, denominator, _ = super().loss(out, own, batch)
        return total, denominator, {"entropy": (out["entropy"] * batch.weight).sum()}


def test_an_objective_is_given_the_entropy_it_needs_and_its_metrics_are_means(lm, tmp_path):
    found = []
    trainer.teach(
        lm,
        lesson(n=6, weight=np.full(6, 0.5, np.float32)),
        Curious(),
        encode=Asking(lm.tokenizer, "direct", False, 64).answer,
        training=dataclasses.replace(FULL, epochs=0.01),
        shape=SHAPE,
        compute=tiny.compute(),
        key=jax.random.key(0),
        partial=tmp_path,
        log=lambda step, metrics: found.append(metrics["entropy"]),
    )
    assert len(found) == 1 and 0.1 < found[0] <= np.log(lm.config.vocab_size)


def test_the_loss_is_the_weighted_mean_over_answer_tokens():
    logp = jnp.log(jnp.array([[0.5, 0.25, 0.1]]))
    batch = sft.Batch(*[jnp.zeros((1, 3), jnp.int32)] * 3, weight=jnp.array([[0.0, 1.0, 0.5]]))
    total, denominator, _ = sft.make().loss({"logp": logp}, {}, batch)
    assert float(total / denominator) == pytest.approx(-(np.log(0.25) + 0.5 * np.log(0.1)) / 1.5, rel=1e-6)


def test_a_training_equals_adamw_on_the_plain_loss_step_by_step(lm, tmp_path):
    """The compiled step against a direct computation: unpacked rows, one gradient, AdamW's moments, the rate of each step."""
    weight, losses = np.array([1.0, 0.5, 1.0, 0.25, 1.0, 0.0], np.float32), []
    few = lesson(n=6, weight=weight)
    # A large eps, or Adam's first steps are the gradient's sign: noise where the gradient is nothing but rounding.
    adamw = trainer.Optimizer(b1=0.8, b2=0.9, eps=1e-2, weight_decay=0.5, clip_norm=0.5)
    training = dataclasses.replace(FULL, epochs=4.0, schedule="linear", warmup_frac=0.5, optimizer=adamw, lr=0.1)
    shape = Shape(16, 2, 4)
    taught = teach(
        lm, few, tmp_path, training, shape, log=lambda step, metrics: losses.append((step, metrics["loss"], metrics["lr"]))
    )
    encode, model = Asking(lm.tokenizer, "direct", False, 64).answer, tiny.compute().model(lm.config)
    rows = [encode(question, final) for question, final in zip(few.questions, few.answers.final, strict=True)]
    tokens = np.array([[*prompt, *completion] for prompt, completion in rows])

    def loss(params):
        position = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        hidden = model.apply({"params": params}, jnp.array(tokens), jnp.ones_like(position), position).hidden
        logp = jax.nn.log_softmax(hidden @ params["embed"]["weight"].T)
        return -(weight * logp[jnp.arange(6), -2, tokens[:, -1]]).sum() / weight.sum()

    decayed = jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key != "scale", lm.params)
    optimizer = optax.chain(
        optax.clip_by_global_norm(0.5),
        optax.scale_by_adam(b1=0.8, b2=0.9, eps=1e-2),
        optax.add_decayed_weights(0.5, decayed),
    )
    params, moments, expected, step = lm.params, optimizer.init(lm.params), [], jax.jit(jax.value_and_grad(loss))
    for n, rate in enumerate([0.05, 0.1, 0.1, 0.05]):
        value, grads = step(params)
        updates, moments = optimizer.update(grads, moments, params)
        params = jax.tree.map(lambda p, u, rate=rate: p - rate * u, params, updates)
        expected.append((n, float(value), rate))
    np.testing.assert_allclose(losses, expected, rtol=1e-4)
    for start, a, b in zip(leaves(lm), jax.tree.leaves(params), leaves(taught), strict=True):
        assert abs(a - b).max() < 1e-3 * abs(a - start).max()


@pytest.mark.parametrize("clip_norm, moved", [(0.0, 1.0), (0.5, 0.1)])
def test_norms_and_biases_are_not_decayed_and_a_clip_norm_of_zero_clips_nothing(clip_norm, moved):
    params = {name: jnp.ones(4) for name in ("kernel", "scale", "bias")}
    optimizer = dataclasses.replace(ADAMW, clip_norm=clip_norm, weight_decay=0.5, eps=1.0).build(1.0)
    grads = jax.tree.map(lambda p: 1e6 * p, params)
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    assert float(updates["kernel"][0]) == pytest.approx(float(updates["scale"][0]) - 0.5, abs=1e-5)
    np.testing.assert_array_equal(updates["bias"], updates["scale"])
    assert -float(updates["scale"][0]) == pytest.approx(moved, abs=0.03)


def test_merged_adapters_compute_what_the_trained_ones_did(lm, tmp_path):
    """The loss of step 3, before it moves anything, against that of the merged student after three steps."""
    training = dataclasses.replace(LORA, schedule="constant", warmup_frac=0.0, lora_alpha=12.0, lr=0.05)
    few, losses = lesson(n=6), []
    teach(
        lm,
        few,
        tmp_path / "four",
        dataclasses.replace(training, epochs=4.0),
        log=lambda step, metrics: losses.append(metrics["loss"]),
    )
    merged = teach(lm, few, tmp_path / "three", dataclasses.replace(training, epochs=3.0))
    teach(
        merged,
        few,
        tmp_path / "still",
        dataclasses.replace(FULL, epochs=1.0, lr=0.0),
        log=lambda step, metrics: losses.append(metrics["loss"]),
    )
    assert len(losses) == 5 and losses[3] < 0.9 * losses[0]
    assert losses[4] == pytest.approx(losses[3], rel=1e-5)


def test_adapters_are_scaled_by_alpha_over_rank(lm, tmp_path, monkeypatch):
    scales, merge = [], trainer.lora.merge
    monkeypatch.setattr(
        trainer.lora, "merge", lambda params, adapters: (scales.append(adapters.scale), merge(params, adapters))[1]
    )
    teach(lm, lesson(n=6), tmp_path, dataclasses.replace(LORA, epochs=1.0))
    assert scales == [8.0 / 4]


def test_the_key_settles_the_student(lm, tmp_path):
    one, again, other = (teach(lm, lesson(), tmp_path / name, key=key) for name, key in (("1", 1), ("again", 1), ("2", 2)))
    assert same(one, again) and not same(one, other)


def test_every_step_is_logged_once_and_a_short_training_keeps_no_checkpoint(lm, tmp_path):
    steps = []
    taught = teach(
        lm, lesson(n=6), tmp_path, dataclasses.replace(FULL, epochs=5.0), log=lambda step, metrics: steps.append(step)
    )
    assert steps == [0, 1, 2, 3, 4] and not (tmp_path / "checkpoints").exists()
    assert taught.key == "", "a taught model is another one than it was"
    teach(lm, lesson(n=6), tmp_path, dataclasses.replace(FULL, epochs=0.01), log=lambda step, metrics: steps.append(step))
    assert steps[5:] == [0], "however short, a training has a step"


def test_lessons_of_the_same_shape_share_one_program(lm, tmp_path):
    teach(lm, lesson(), tmp_path / "one")
    before = trainer.train_step._cache_size()
    teach(lm, lesson(n=90, final="b"), tmp_path / "two", dataclasses.replace(FULL, epochs=1.0, lr=1e-3))
    assert trainer.train_step._cache_size() == before


@pytest.mark.parametrize("training", [FULL, LORA], ids=["full", "lora"])
def test_a_training_compiles_its_step_once(lm, tmp_path, training):
    before = trainer.train_step._cache_size()
    shape = dataclasses.replace(SHAPE, row_length=19)  # of no other test
    teach(lm, lesson(), tmp_path, training, shape)
    assert trainer.train_step._cache_size() == before + 1


@pytest.mark.parametrize("training, columns", [(LORA, 32), (FULL, 128)], ids=["lora", "full"])
def test_a_step_makes_logits_of_few_columns_at_once_where_the_output_map_is_frozen(lm, training, columns):
    shape = Shape(row_length=200, batch_rows=2, max_segments=4)
    static = trainer.statics(tiny.compute(), lm.config, sft.make(), training)
    keys = jax.random.split(jax.random.key(0))
    learnt = trainer.fresh(lm.params, *keys, objective=sft.make(), training=training)
    state = trainer.TrainState(learnt, trainer.moments(learnt, optimizer=training.optimizer, mesh=None))
    zeros = np.zeros((1, shape.batch_rows, shape.row_length), np.int32)
    batch = Batch(token=zeros, segment=zeros + 1, position=zeros, weight=zeros.astype(np.float32))
    frozen = lm.params if training.lora_rank else {}
    text = trainer.train_step.lower(state, frozen, batch, np.float32(0), **static).as_text()
    assert {int(found) for found in re.findall(rf"tensor<2x(\d+)x{lm.config.vocab_size}xf32>", text)} == {columns}


def test_a_loss_that_is_not_a_number_names_step_and_rate(lm, tmp_path):
    broken = dataclasses.replace(lm, params=jax.tree.map(lambda x: x * jnp.nan, lm.params))
    with pytest.raises(ValueError, match="the loss is nan .* at step 0 with lr=0.01: lower lr"):
        teach(broken, lesson(), tmp_path)
    with pytest.raises(ValueError, match="the loss is nan .* at step 0 with lr=inf: lower lr"):
        teach(lm, lesson(n=6), tmp_path, dataclasses.replace(FULL, epochs=0.01, lr=float("inf")))  # not even the last step


def test_no_state_behind_a_loss_that_is_not_a_number_is_saved(lm, tmp_path):
    with pytest.raises(ValueError, match="the loss is nan"):
        teach(lm, lesson(), tmp_path, dataclasses.replace(FULL, lr=float("inf"), warmup_frac=0.0, checkpoint_every=2))
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize("loss, norm", [(np.nan, 1.0), (1.0, np.inf)])
def test_a_gradient_that_is_not_a_number_is_as_bad_as_a_loss(loss, norm):
    with pytest.raises(ValueError, match=f"the loss is {loss} and the gradient's norm {norm} at step 3 with lr=0.5"):
        trainer._refuse_nan(3, {"loss": loss, "grad_norm": norm}, 0.5)


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


@pytest.mark.parametrize(
    "change, message",
    [
        ({"schedule": "step"}, "schedule='step': allowed are cosine, linear, constant"),
        ({"lora_rank": -1}, "lora_rank=-1: allowed is 0 or more; change training.lora_rank"),
        ({"accumulation": 0}, "accumulation=0: allowed is 1 or more"),
        ({"warmup_frac": -0.1}, "warmup_frac=-0.1"),
        ({"epochs": 0.0}, "epochs=0.0: allowed is a number above 0"),
        ({"epochs": float("nan")}, "epochs=nan"),
    ],
)
def test_a_training_that_cannot_be_is_refused_before_it_starts(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(FULL, **change)


@pytest.mark.parametrize(
    "schedule, expected",
    [
        ("constant", [1, 2, 2, 2, 2, 2]),
        ("linear", [1, 2, 2, 1.5, 1, 0.5]),
        ("cosine", [1, 2, 2, 1 + 0.5**0.5, 1, 1 - 0.5**0.5]),
    ],
)
def test_the_rate_warms_up_and_falls_to_nothing_behind_the_last_step(schedule, expected):
    rate = trainer.learning_rate(2.0, schedule, 1 / 3, 6)
    np.testing.assert_allclose([rate(step) for step in range(6)], expected, rtol=1e-12)


# sft


def plan(n=7, key=0, **changes):
    """A plan over rows of two prompt and three answer tokens that name their question; two rows fit a device row."""

    def encode(question, final):
        return [10, 11], [20 + int(question.id[1:]), *map(ord, final), 1]

    rows = dataclasses.replace(lesson(n=n, final="z"), **changes)
    return sft.make().plan(rows, encode, Shape(10, 2, 2), jax.random.key(key))


def test_every_answer_token_weighs_what_its_label_is_trusted_and_prompts_nothing():
    found = plan(weight=np.arange(7, dtype=np.float32) / 8, answers=Answers(tuple("abcdefg"), ("text",) * 7, ("z",) * 7))
    batches = [found.batch(index) for index in range(2)]
    seen = {}
    for batch in batches:
        for token, segment, weight in zip(batch.token, batch.segment, batch.weight, strict=True):
            for s in range(1, segment.max() + 1):
                seen[int(token[segment == s][2]) - 20] = token[segment == s].tolist(), weight[segment == s].tolist()
            assert not weight[segment == 0].any()
    assert seen == {k: ([10, 11, 20 + k, ord("z"), 1], [0, 0] + [k / 8] * 3) for k in range(7)}
    assert found.num_batches == 2 and found.num_tokens == 35


def test_every_pass_has_each_row_once_in_an_order_of_its_own():
    def order(plan, num_passes=4):
        rows = [plan.batch(index).token[b, 2] for index in range(3 * num_passes) for b in range(2)]
        return np.reshape(rows, (num_passes, -1)).tolist()

    passes = order(plan(n=12))  # six bins, three batches
    assert all(sorted(one) == sorted(passes[0]) and len(set(one)) == 6 for one in passes)
    assert len({tuple(one) for one in passes}) > 1 and order(plan(n=12, key=1)) != passes == order(plan(n=12))
    assert plan(n=10).num_batches == 2.5, "the last batch is shared with the next pass"
