"""Gradient coherence: per-example gradients are those of training, sketches keep inner products, figures are what they say."""

import dataclasses
import functools
import json
import os
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from tests import tiny
from tests.trainer_test import LORA, lesson
from w2s_jax import packing
from w2s_jax.analysis import coherence
from w2s_jax.models import lora, sharding
from w2s_jax.models.compute import Compute
from w2s_jax.packing import Shape
from w2s_jax.student import sft, trainer
from w2s_jax.tasks.asking import Asking
from w2s_jax.types import Answers, Lesson, Question

ROOT = pathlib.Path(__file__).parents[1]
SHAPE = Shape(row_length=24, batch_rows=4, max_segments=4)
EXACT = 1024  # more than the adapters below have coordinates


@pytest.fixture(scope="module")
def lm():
    return tiny.lm()


def encode(lm):
    return Asking(lm.tokenizer, "direct", False, 64).answer


def varied(n=10, seed=0):
    """A lesson of questions and answers of several lengths, with weights, one of them zero."""
    rng = np.random.default_rng(seed)
    words = [" ".join(rng.choice(list(tiny.WORDS), 2 + i % 4)) for i in range(n)]
    finals = tuple(" ".join(rng.choice(list(tiny.WORDS), 1 + i % 3)) for i in range(n))
    questions = tuple(Question(f"q{seed} {i}", "t", text, (final, "b")) for i, (text, final) in enumerate(zip(words, finals)))
    weight = np.linspace(0, 1, n, dtype=np.float32)
    return Lesson(questions, Answers(tuple(q.id for q in questions), finals, finals), weight)


def adapters(lm, moved=False, rank=3):
    """Fresh adapters, or ones whose `b` is not zero any more, so that `a` has a gradient too."""
    tree = lora.init(lm.params, jax.random.key(5), rank, ("q", "v", "down"))
    if moved:
        leaves, form = jax.tree.flatten(tree)
        keys = jax.random.split(jax.random.key(6), len(leaves))
        tree = form.unflatten([x + 0.1 * jax.random.normal(key, x.shape) for x, key in zip(leaves, keys)])
    return lora.Adapters(tree, rank, 2.0 * rank)


def gradients(lm, lesson, at, sketch=EXACT, key=0, shape=SHAPE, compute=None):
    return coherence.gradients(
        lm,
        lesson,
        at,
        encode=encode(lm),
        sketch=sketch,
        key=jax.random.key(key),
        shape=shape,
        compute=compute or tiny.compute(),
    )


def measure(lm, lessons, n=8, sketch=512, seed=0, key=0, shape=SHAPE, gold="gold"):
    return coherence.measure(
        lm, lessons, gold=gold, n=n, sketch=sketch, seed=seed, rank=4, targets=("q", "v"), encode=encode(lm), shape=shape,
        compute=tiny.compute(), key=jax.random.key(key),
    )  # fmt: skip


@functools.partial(jax.jit, static_argnames="model")
def trainers_own(tree, frozen, batch, *, model):
    """Gradient of the trainer's summed loss of a batch, flat, and its denominator."""
    loss_fn = functools.partial(trainer.batch_loss, frozen=frozen, model=model, objective=sft.make(), adapters=True)
    gradient, (denominator, _) = jax.grad(loss_fn, has_aux=True)({"model": tree, "own": {}}, batch)
    return ravel_pytree(gradient)[0], denominator


def inner(rows):
    return np.asarray(rows, np.float64) @ np.asarray(rows, np.float64).T


def statistics(gradient, gold=None, twin=None, seed=0, method="m"):
    gold = gradient if gold is None else gold
    return coherence.statistics(method, gradient, gold, np.arange(len(gradient)) if twin is None else twin, seed=seed)


def close(a, b, tolerance):
    assert np.abs(np.asarray(a) - np.asarray(b)).max() <= tolerance * np.abs(np.asarray(b)).max()


# ---- per-example gradients


def one_by_one(lm, lesson, at):
    """The same gradients without `vmap`: each example in a batch of its own, unpadded but for the row."""
    token, weight = sft.tokens(lesson, encode(lm))
    model = tiny.compute().model(lm.config, lora_scale=at.scale)
    rows = []
    for row in range(len(token)):
        batch = packing.lay_out(token, [np.array([row])], Shape(32, 1, 1), weight=weight)
        rows.append(trainers_own(at.tree, lm.params, batch, model=model)[0])
    return np.stack(rows)


@pytest.mark.parametrize("moved", [False, True], ids=["at the start", "later"])
def test_gradients_are_those_of_the_trainers_loss_one_by_one(lm, moved):
    at, many = adapters(lm, moved), varied()
    wanted = one_by_one(lm, many, at)
    assert wanted.shape[1] <= EXACT and (np.abs(wanted).max(axis=1) > 0).sum() == 9  # one has no weight
    close(inner(gradients(lm, many, at)), inner(wanted), 1e-5)


def test_gradients_add_up_to_that_of_packed_training_batches(lm):
    at, many, key = adapters(lm, moved=True), varied(), jax.random.key(0)
    plan = sft.make().plan(many, encode(lm), Shape(48, 1, 8), key)
    batches = [plan.batch(index) for index in range(int(plan.num_batches))]
    assert max(batch.segment.max() for batch in batches) > 2  # several examples in a row
    model = tiny.compute().model(lm.config, lora_scale=at.scale)
    parts, denominators = zip(*(trainers_own(at.tree, lm.params, batch, model=model) for batch in batches))
    step = sum(parts) / sum(denominators)  # what the optimizer gets of an epoch in one step
    assert sum(denominators) == pytest.approx(sft.tokens(many, encode(lm))[1].flat.sum())
    close(gradients(lm, many, at).sum(axis=0), sum(denominators) * coherence.project(step, key, EXACT), 1e-5)


def test_weights_scale_gradients_and_nothing_else(lm):
    many = varied()
    full = gradients(lm, dataclasses.replace(many, weight=np.ones(10, np.float32)), adapters(lm))
    close(gradients(lm, many, adapters(lm)), full * many.weight[:, None], 1e-5)


def test_at_the_start_only_b_has_a_gradient_and_the_factor_does_not_matter(lm):
    at = adapters(lm)
    token, weight = sft.tokens(varied(), encode(lm))
    batch = packing.lay_out(token, list(np.arange(10)[:, None]), Shape(24, 10, 1), weight=weight)
    loss_fn = functools.partial(
        trainer.batch_loss, frozen=lm.params, model=tiny.compute().model(lm.config, 1.0), objective=sft.make(), adapters=True
    )
    found, _ = jax.grad(loss_fn, has_aux=True)({"model": at.tree, "own": {}}, batch)
    sizes = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(found["model"]):
        sizes.setdefault(jax.tree_util.keystr(path[-1:], simple=True), []).append(float(jnp.abs(leaf).max()))
    assert max(sizes["a"]) == 0 and min(sizes["b"]) > 0
    one, other = (gradients(lm, varied(), dataclasses.replace(at, alpha=alpha))[1:] for alpha in (6.0, 24.0))
    close(other, 4 * one, 1e-5)
    one, other = (statistics(rows) for rows in (one, other))
    for name in ("cosine", "signal", "stable_rank", "effective_rank"):
        assert getattr(other, name) == pytest.approx(getattr(one, name), rel=1e-5)


def test_the_number_at_once_the_row_length_and_the_order_do_not_matter(lm):
    at, many, sketch = adapters(lm), varied(), 64
    wanted = gradients(lm, many, at, sketch)
    for batch_rows, row_length in ((1, 24), (16, 40)):
        close(gradients(lm, many, at, sketch, shape=Shape(row_length, batch_rows, 1)), wanted, 1e-5)
    back = np.arange(10)[::-1]
    turned = Lesson(many.questions[::-1], many.answers[back], many.weight[back])
    close(gradients(lm, turned, at, sketch), wanted[back], 1e-5)


def test_examples_that_do_not_fit_are_refused_by_name(lm):
    length = sft.tokens(varied(), encode(lm))[0].length
    limit = int(np.median(length))
    long = np.flatnonzero(length > limit)
    assert 1 < len(long) < 5
    said = ", ".join(f"'q0 {row}' ({length[row]} tokens)" for row in long)
    with pytest.raises(
        ValueError, match=re.escape(f"{len(long)} of 10 examples are longer than a row of {limit} tokens: {said}; ")
    ):
        gradients(lm, varied(), adapters(lm), shape=Shape(limit, 4, 1))


def test_a_gradient_that_is_not_finite_is_refused_by_name(lm):
    broken = dataclasses.replace(varied(), weight=np.array([1.0] * 7 + [np.inf] + [1.0] * 2, np.float32))
    with pytest.raises(ValueError, match="1 of 10 examples are not finite.*'q0 7'"):
        gradients(lm, broken, adapters(lm))


# ---- sketches


def pair(size, seed=0):
    rng = np.random.default_rng(seed)
    u = rng.standard_normal(size) * (rng.random(size) < 0.2)
    return np.float32(u), np.float32(0.5 * u + rng.standard_normal(size))


def test_a_sketch_is_unbiased_and_its_variance_is_at_most_the_stated_one():
    u, v = pair(1000)
    m, times = 64, 4000
    keys = jax.random.split(jax.random.key(0), times)
    sketched = jax.jit(jax.vmap(lambda key: jnp.vdot(coherence.project(u, key, m), coherence.project(v, key, m))))(keys)
    stated = (u @ u * (v @ v) + (u @ v) ** 2 - 2 * (u**2 @ v**2)) / m
    assert abs(np.mean(sketched) - u @ v) < 4 * np.sqrt(stated / times)
    # Sixteen blocks: pairs within a block never meet, one pair in sixteen.
    assert 0.85 * stated < np.var(sketched) < 1.05 * stated


@pytest.mark.parametrize("m", [1000, 1001, 5000])
def test_a_sketch_as_long_as_the_vector_loses_nothing(m):
    u, v = pair(1000)
    sketched = [coherence.project(x, jax.random.key(3), m) for x in (u, v)]
    assert sketched[0].shape == (m,)
    close(jnp.vdot(*sketched), u @ v, 1e-5)
    close(np.sort(np.abs(sketched[1]))[m - 1000 :], np.sort(np.abs(v)), 1e-6)


def test_sketched_gradients_have_the_inner_products_of_exact_ones_within_the_variance(lm):
    at, many = adapters(lm, moved=True), varied(n=16)
    exact, m = one_by_one(lm, many, at).astype(np.float64), 64
    product, squares = exact @ exact.T, exact**2 @ (exact**2).T
    assert exact.shape[1] > 5 * m
    std = np.sqrt((np.outer(np.diag(product), np.diag(product)) + product**2 - 2 * squares).clip(0) / m)
    off = np.stack([inner(gradients(lm, many, at, m, key)) for key in range(20)]) - product
    off, std = off[:, 1:, 1:], std[1:, 1:]  # the first has no weight
    assert np.abs(off / std).max() < 6 and 0.5 < np.sqrt(np.mean((off / std) ** 2)) < 1.1


def test_one_seed_gives_one_sketch_and_another_gives_another(lm):
    found = [gradients(lm, varied(), adapters(lm), 64, key) for key in (0, 0, 1)]
    assert np.array_equal(found[0], found[1]) and not np.allclose(found[0], found[2])


# ---- figures


def by_the_book(G, H):
    """The figures from their definitions, on dense matrices."""
    n = len(G)
    turned = G / np.linalg.norm(G, axis=1, keepdims=True)
    pairs = [turned[i] @ turned[j] for i in range(n) for j in range(n) if i != j]
    values = np.linalg.svd(G, compute_uv=False) ** 2
    share = values / values.sum()
    share = share[share > 0]
    return {
        "cosine": np.mean(pairs),
        "signal": np.linalg.norm(G.sum(axis=0)) ** 2 / (n * (G**2).sum()),
        "stable_rank": np.linalg.norm(G, "fro") ** 2 / np.linalg.norm(G, 2) ** 2,
        "effective_rank": np.exp(-(share * np.log(share)).sum()),
        "to_gold": G.mean(0) @ H.mean(0) / np.linalg.norm(G.mean(0)) / np.linalg.norm(H.mean(0)),
    }


@pytest.mark.parametrize("n, width", [(2, 7), (12, 30), (30, 12)])
def test_figures_follow_their_definitions(n, width):
    rng = np.random.default_rng(n)
    G, H = rng.standard_normal((n, width)) + 0.5, rng.standard_normal((n + 3, width)) + 0.5
    found = statistics(G, H, np.full(n, -1))
    assert found.n == n
    for name, value in by_the_book(G, H).items():
        assert getattr(found, name) == pytest.approx(value, rel=1e-6), name


def test_orthogonal_and_equal_gradients_are_the_two_ends():
    apart = statistics(np.eye(16)[:12] * 3.0)
    figures = (apart.cosine, apart.signal, apart.stable_rank, apart.effective_rank, apart.to_gold)
    assert figures == pytest.approx((0.0, 1 / 12, 12.0, 12.0, 1.0))
    equal = statistics(np.tile(np.random.default_rng(0).standard_normal(16), (12, 1)))
    assert [equal.cosine, equal.signal, equal.stable_rank, equal.effective_rank, equal.to_gold] == pytest.approx([1.0] * 5)
    assert equal.cosine_lo == pytest.approx(1) and equal.signal_lo == pytest.approx(1) and equal.to_gold_lo == pytest.approx(1)
    # Unrelated gradients say with certainty that they are unrelated: an example drawn twice is no pair.
    assert (apart.signal_lo, apart.signal_hi) == pytest.approx((1 / 12, 1 / 12))
    assert (apart.cosine_lo, apart.cosine_hi) == pytest.approx((0, 0))


@pytest.mark.slow
def test_intervals_hold_the_truth_as_often_as_they_say():
    # Of n gradients of mean mu and covariance I: E|mean|^2 = |mu|^2 + width / n; as a share of E|g|^2 = |mu|^2 + width.
    n, width, mu = 40, 20, 0.5
    power = width * mu**2
    truth = {"signal": (power + width / n) / (power + width), "to_gold": power / (power + width / n)}
    rng, inside = np.random.default_rng(0), {"signal": 0, "to_gold": 0, "cosine": 0}
    draws = [rng.standard_normal((2, n, width)) + mu for _ in range(100)]
    found = [statistics(G, H, np.full(n, -1), seed=i) for i, (G, H) in enumerate(draws)]
    truth["cosine"] = np.mean([one.cosine for one in found])
    for name, value in truth.items():
        inside[name] = sum(getattr(one, f"{name}_lo") <= value <= getattr(one, f"{name}_hi") for one in found) / len(found)
        assert all(getattr(one, f"{name}_lo") < getattr(one, f"{name}_hi") for one in found)
    assert all(0.87 <= share <= 1.0 for share in inside.values()), inside


def test_the_gold_lesson_agrees_with_itself_in_every_replicate():
    G = np.random.default_rng(0).standard_normal((20, 8)) + 0.4
    found = statistics(G)
    assert (found.to_gold, found.to_gold_lo, found.to_gold_hi) == pytest.approx((1, 1, 1))
    # Taken for other questions, the same figures leave room for chance.
    assert statistics(G, G, np.full(20, -1)).to_gold_lo < 0.98
    # Rows of the gold lesson in another order, with their twins told, are still the same examples.
    order = np.random.default_rng(1).permutation(20)
    assert statistics(G, G[order], np.argsort(order)).to_gold_lo == pytest.approx(1)


def test_what_is_undefined_is_none_and_says_why():
    noise = np.random.default_rng(0).standard_normal((12, 5))
    G = noise + 1
    figures = ("cosine", "signal", "stable_rank", "effective_rank", "to_gold", "cosine_lo", "signal_hi", "to_gold_lo")

    def told(found):
        return {name for name in figures if getattr(found, name) is not None}, found.reason

    assert told(statistics(G)) == (set(figures), "")
    for few in (G[:0], G[:1]):
        assert told(statistics(few, G, np.full(len(few), -1))) == (set(), f"coherence needs two examples, there are {len(few)}")
    assert told(statistics(0 * G)) == (set(), "all gradients are zero")
    points, why = told(statistics(G[:9]))
    assert points == {name for name in figures if name[-3:] not in ("_lo", "_hi")} and "fewer than 10" in why
    one_dead = np.concatenate([G, np.zeros((1, 5))])
    assert told(statistics(one_dead)) == (set(figures) - {"cosine", "cosine_lo"}, "no cosine: 1 of 13 gradients are zero")
    no_gold = statistics(G, G[:0], np.full(12, -1))
    assert told(no_gold) == (set(figures) - {"to_gold", "to_gold_lo"}, "no to_gold: the gold lesson has no examples")
    for cancelled in (statistics(np.concatenate([G, -G])), statistics(G, np.concatenate([G, -G]))):
        points, why = told(cancelled)
        assert "to_gold" not in points and "signal" in points and "no to_gold: a mean gradient is zero" in why
    lost = statistics(noise)
    assert lost.to_gold == pytest.approx(1) and lost.to_gold_lo is None and lost.signal_lo is not None
    assert lost.reason == "no interval of to_gold: a mean gradient is lost in its noise"


# ---- lessons


def labelled(n, finals, prefix="q"):
    """One question, asked n times in other words, with the given answers."""
    rng = np.random.default_rng(0)
    questions = tuple(
        Question(f"{prefix}{i}", "t", " ".join(["a", "b", *rng.choice(list("cd"), 1)]), ("e", "f")) for i in range(n)
    )
    return Lesson(questions, Answers(tuple(q.id for q in questions), finals, finals), np.ones(n, np.float32))


def test_contradicting_labels_have_a_lower_signal_than_agreeing_ones(lm):
    n = 24
    agreeing, other = labelled(n, ("e",) * n), labelled(n, tuple("ef"[i % 2] for i in range(n)))
    gold, against = measure(lm, {"gold": agreeing, "noisy": other}, n=n)
    assert (gold.method, against.method, gold.n, against.n) == ("gold", "noisy", n, n)
    assert against.signal_hi < gold.signal_lo and against.cosine_hi < gold.cosine_lo
    assert gold.to_gold == pytest.approx(1) and against.to_gold < 0.99


def test_the_probe_stands_where_training_starts(lm, tmp_path, monkeypatch):
    still, seen = dataclasses.replace(LORA, lr=0.0, epochs=0.1), []
    key = jax.random.key(7)
    taught = trainer.teach(
        lm, lesson(), sft.make(), encode=encode(lm), training=still, shape=SHAPE, compute=tiny.compute(), key=key,
        partial=tmp_path, log=lambda step, metrics: None,
    )  # fmt: skip
    monkeypatch.setattr(coherence, "gradients", lambda lm, one, at, **kw: seen.append(at) or np.ones((4, 64)))
    coherence.measure(
        lm, {"gold": lesson()}, gold="gold", n=4, sketch=64, seed=0, rank=still.lora_rank, targets=still.lora_targets,
        encode=encode(lm), shape=SHAPE, compute=tiny.compute(), key=key,
    )  # fmt: skip
    a, b = ravel_pytree(seen[0].tree)[0], ravel_pytree(taught.adapters.tree)[0]
    assert np.array_equal(a, b) and np.abs(a).max() > 0


def test_one_program_serves_all_lessons_whatever_their_sizes(lm):
    lessons = {"gold": varied(12), "one": varied(9, seed=1), "two": varied(3, seed=2), "none": dataclasses.replace(varied(4))}
    lessons["none"] = dataclasses.replace(lessons["none"], weight=np.zeros(4, np.float32))
    before = coherence._sketched._cache_size()
    found = measure(lm, lessons, n=10, sketch=96)
    assert coherence._sketched._cache_size() == before + 1
    assert [one.n for one in found] == [10, 8, 2, 0]  # one example of each has no weight
    assert found[0].reason == "" and "8 examples instead of 10" in found[1].reason
    assert found[2].signal is not None and found[3].signal is None and "there are 0" in found[3].reason


def test_one_seed_gives_one_measurement(lm):
    lessons = {"gold": varied(12), "one": varied(12, seed=1)}
    one, same, other = (measure(lm, lessons, n=6, seed=seed) for seed in (0, 0, 1))
    assert one == same and one[1].signal != other[1].signal


def test_examples_are_drawn_by_their_ids_whatever_the_order(lm):
    many = varied(30)
    taken = coherence.draw(many, 7, seed=0)
    ids = {q.id for q in taken.questions}
    assert len(ids) == 7 and "q0 0" not in {q.id for q in coherence.draw(many, 29, seed=0).questions}  # no weight
    back = np.arange(30)[::-1]
    turned = Lesson(many.questions[::-1], many.answers[back], many.weight[back])
    assert {q.id for q in coherence.draw(turned, 7, seed=0).questions} == ids
    assert {q.id for q in coherence.draw(many, 7, seed=1).questions} != ids
    of = dict(zip(many.answers.question_id, zip(many.answers.final, many.weight)))
    assert all(of[i] == pair for i, pair in zip(taken.answers.question_id, zip(taken.answers.final, taken.weight)))
    assert [q.id for q in taken.questions] == list(taken.answers.question_id) == [q.id for q in many.questions if q.id in ids]


@pytest.mark.parametrize(
    "wrong, said", [({"gold": "truth"}, "gold='truth'.*gold"), ({"n": 0}, "n=0"), ({"sketch": 0}, "sketch=0")]
)
def test_wrong_arguments_are_refused(lm, wrong, said):
    with pytest.raises(ValueError, match=said):
        measure(lm, {"gold": varied()}, **wrong)


def test_soft_labels_are_refused(lm):
    soft = dataclasses.replace(varied(), target=np.full((10, 2), 0.5, np.float32))
    with pytest.raises(ValueError, match="hard labels only"):
        measure(lm, {"gold": soft})


def main():
    assert jax.device_count() == 4
    found = {}
    for name, mesh in {"1": (1, 1, 1), "4": (1, 2, 2)}.items():
        compute, lm = Compute(sharding.make_mesh(*mesh)), tiny.lm()
        lm = dataclasses.replace(lm, params=compute.place_params(lm.params))
        tree = lora.init(lm.params, jax.random.key(5), 4, ("q", "down"))
        found[name] = gradients(lm, varied(), lora.Adapters(tree, 4, 4.0), sketch=64, compute=compute)
    gap = np.abs(found["4"] - found["1"]).max() / np.abs(found["1"]).max()
    print(json.dumps({"gap": float(gap), "size": float(np.abs(found["1"]).max())}))


@pytest.mark.slow
def test_a_mesh_of_devices_gives_the_same_sketches():
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.coherence_test"], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["gap"] < 1e-5 and told["size"] > 0


if __name__ == "__main__":
    main()
