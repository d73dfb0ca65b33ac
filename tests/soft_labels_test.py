"""The losses over options, each against its formula in numpy, on probabilities that are given."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from w2s_jax.student import adaptive, auxiliary_confidence, confidence_weighted, options, soft
from w2s_jax.types import Answers, Batch, Lesson, Question

PAIRS, FOURS = [2] * 12, [2, 3, 4, 3, 2, 4, 4, 2, 3, 2]


def world(num_options, seed=0, empty=3):
    """Scores f64[K, O], labels, weights of questions with so many options each, and `empty` places behind them."""
    rng = np.random.default_rng(seed)
    K, O = len(num_options) + empty, 4
    score, label, weight = rng.normal(0, 1.5, (K, O)), np.zeros((K, O)), np.zeros(K)
    for k, n in enumerate(num_options):
        label[k, :n], weight[k] = rng.dirichlet(np.ones(n)), rng.uniform(0.1, 1)
    real = np.arange(O) < np.array([*num_options, *[0] * empty])[:, None]
    return score, label, weight, real


def probability(score, real):
    top = np.where(real, np.exp(score), 0.0)
    return top / np.maximum(top.sum(1, keepdims=True), 1e-300)


def parts(objective, score, label, weight, real, progress=0.5, own=None, **more):
    """Sum, denominator, metrics and the gradients in scores and own parameters, as a step computes them."""
    own = objective.init(jax.random.key(0)) if own is None else own
    extra = {"target": label, "weight": weight, "scale": real, **more}
    extra = {name: jnp.asarray(np.asarray(value, np.float32)[None]) for name, value in extra.items()}
    token = jnp.zeros((1, 4), jnp.int32)
    batch = Batch(token, token, token, extra=extra | {"progress": jnp.full(1, progress, jnp.float32)})

    def total(score, own):
        logp = jnp.where(real, jax.nn.log_softmax(jnp.where(real, score, -1e30)), 0.0)
        found = objective.loss({"option_logp": logp}, own, batch)
        return found[0], found

    (_, found), gradients = jax.value_and_grad(total, (0, 1), has_aux=True)(jnp.asarray(score, jnp.float32), own)
    metrics = {name: float(value) for name, value in found[2].items()}
    return float(found[0]), float(found[1]), metrics, np.asarray(gradients[0]), gradients[1]


def is_that_of(found, target, weight, score, real):
    """Whether sum, denominator and gradient are those of cross-entropy with a target that is held fixed."""
    total, denominator, _, gradient, _ = found
    p = probability(score, real)
    assert total == pytest.approx(-(weight * (target * np.log(np.where(real, p, 1.0))).sum(1)).sum(), rel=1e-4)
    assert denominator == pytest.approx(weight.sum(), rel=1e-5)
    np.testing.assert_allclose(gradient, weight[:, None] * (p - target) * real, atol=2e-6)


def one_hot(x):
    return np.eye(x.shape[1])[x.argmax(1)]


# ---- Each loss is its formula ------------------------------------------------------------------------------------------


def test_soft_is_the_weighted_cross_entropy_and_its_gradient_the_difference():
    score, label, weight, real = world(FOURS)
    found = parts(soft.make(), score, label, weight, real)
    is_that_of(found, label, weight, score, real)
    agree = (np.where(real, score, -9).argmax(1) == label.argmax(1)) * weight
    assert found[2]["agreement"] == pytest.approx(agree.sum())


def test_adaptive_mixes_by_the_exponentials_of_both_cross_entropies_and_they_have_no_gradient():
    score, label, weight, real = world(FOURS)
    p = probability(score, real)
    to_own, to_label = (-np.log(np.where(p > 0, p, 1)[np.arange(len(p)), choice.argmax(1)]) for choice in (p, label))
    a = np.exp(to_own) / (np.exp(to_own) + np.exp(to_label))
    target = (1 - a)[:, None] * label + a[:, None] * one_hot(p)
    found = parts(adaptive.make(), score, label, weight, real)
    is_that_of(found, target, weight, score, real)
    assert found[2]["own_share"] == pytest.approx((weight * a).sum(), rel=1e-5)
    agree = (p.argmax(1) == label.argmax(1)) & (weight > 0)
    assert np.allclose(a[agree], 0.5) and (a[~agree & (weight > 0)] < 0.5).all() and 0 < agree.sum() < 10


@pytest.mark.parametrize("labels", ["hard", "soft"])
def test_confidence_weighted_is_cross_entropy_with_weights_from_nothing_known_to_all_known(labels):
    score, label, weight, real = world(FOURS, empty=0)
    label[2] = [0.25, 0.25, 0.25, 0.25]  # says nothing
    label[1] = [0, 1, 0, 0]
    lesson = lesson_of(FOURS, label, weight)
    columns = confidence_weighted.make(labels=labels).columns(lesson)
    n = np.array(FOURS)
    sure = (label.max(1) - 1 / n) / (1 - 1 / n)
    assert sure[2] == 0 and sure[1] == 1
    target = one_hot(label) if labels == "hard" else label
    found = parts(confidence_weighted.make(), score, columns["target"], columns["weight"], real)
    is_that_of(found, target, weight * sure, score, real)


def test_on_two_options_confidence_is_that_of_the_margin_between_them():
    margin = np.linspace(-4, 4, 9)
    first = 1 / (1 + np.exp(-margin))
    found = confidence_weighted.confidence(np.stack([first, 1 - first], 1), np.full(9, 2))
    np.testing.assert_allclose(found, 2 * (1 / (1 + np.exp(-abs(margin))) - 0.5), atol=1e-6)


def test_labels_that_all_say_nothing_count_alike_and_hard_ones_count_whole():
    weight, flat = np.array([0.5, 1.0]), np.array([[0.5, 0.5], [0.5, 0.5]])
    objective = confidence_weighted.make()
    assert objective.columns(lesson_of([2, 2], flat, weight))["weight"].tolist() == [0.5, 1.0]
    alike = np.array([[1 / 2, 1 / 2, 0], [1 / 3, 1 / 3, 1 / 3]])  # thirds are not exact in float32
    assert objective.columns(lesson_of([2, 3], alike, weight))["weight"].tolist() == [0.5, 1.0]
    one = objective.columns(lesson_of([2, 2], np.array([[0.5, 0.5], [0.75, 0.25]]), weight))
    assert one["weight"].tolist() == [0.0, 0.5]
    assert objective.columns(lesson_of([2, 2], None, weight))["weight"].tolist() == [0.5, 1.0]


def lesson_of(num_options, label, weight):
    questions = tuple(Question(f"q{k}", "t", "", tuple("abcd"[:n])) for k, n in enumerate(num_options))
    final = tuple("a" if label is None else "abcd"[i] for i in ([0] * len(questions) if label is None else label.argmax(1)))
    answers = Answers(tuple(q.id for q in questions), final, final)
    return Lesson(questions, answers, np.asarray(weight, np.float32), None if label is None else np.asarray(label, np.float32))


# ---- The auxiliary confidence loss -------------------------------------------------------------------------------------


def balanced(p, label, weight, real):
    """Hardened predictions where all weights are equal: numpy's quantile for pairs, the largest for others."""
    pair = (real.sum(1) == 2) & (weight > 0)
    threshold = np.quantile(p[pair, 0], label[pair, 1].mean())
    first = np.where(pair, p[:, 0] >= threshold, p.argmax(1) == 0)
    found = one_hot(p)
    found[pair] = np.eye(p.shape[1])[np.where(first[pair], 0, 1)]
    return found


@pytest.mark.parametrize("num_options, progress", [(PAIRS, 0.5), (PAIRS, 0.05), (FOURS, 0.5), (PAIRS, 0.0)])
def test_auxiliary_confidence_learns_the_label_and_the_hardened_prediction(num_options, progress):
    score, label, weight, real = world(num_options)
    weight = np.where(weight > 0, 0.7, 0.0)
    p, c = probability(score, real), 0.5 * min(1, progress / 0.1)
    target = (1 - c) * label + c * balanced(p, label, weight, real)
    found = parts(auxiliary_confidence.make(beta=0.5, warm=0.1), score, label, weight, real, progress)
    is_that_of(found, target, weight, score, real)
    assert found[2]["own_share"] == pytest.approx(c * weight.sum(), rel=1e-5)


def test_the_own_prediction_comes_in_without_a_jump():
    given = world(PAIRS)
    objective = auxiliary_confidence.make(beta=0.5, warm=0.25)

    def at(progress):
        return parts(objective, *given, progress)[0]

    assert at(0.0) == pytest.approx(parts(soft.make(), *given)[0], rel=1e-6)
    assert at(0.25 - 1e-5) == pytest.approx(at(0.25), rel=1e-4) == pytest.approx(at(0.25 + 1e-5), rel=1e-4)
    assert at(0.25) == at(1.0) != pytest.approx(at(0.2), rel=1e-3)
    share = [parts(objective, *given, p)[2]["own_share"] for p in np.linspace(0, 1, 21)]
    assert np.diff(share).min() >= 0 and np.diff(share).max() == pytest.approx(share[-1] / 5, rel=1e-3)
    at_once = auxiliary_confidence.make(beta=0.5, warm=0.0)
    assert parts(at_once, *given, 0.0)[0] == pytest.approx(at(1.0), rel=1e-6)


@pytest.mark.parametrize("expected", [0.1, 0.5, 0.8])
def test_the_balanced_threshold_takes_the_second_option_as_often_as_labels_expect_it(expected):
    rng = np.random.default_rng(1)
    first = rng.uniform(0.6, 1.0, 200)  # left to the argmax, all would be the first
    p, label = np.stack([first, 1 - first], 1), np.tile([1 - expected, expected], (200, 1))
    weight = rng.uniform(0.1, 1, 200)
    found = np.asarray(auxiliary_confidence.hardened(*map(jnp.asarray, (p, label, weight, p >= 0))))
    assert np.allclose(found.sum(1), 1) and (weight * found[:, 1]).sum() / weight.sum() == pytest.approx(expected, abs=0.01)
    assert p[found[:, 1] == 1, 0].max() < p[found[:, 0] == 1, 0].min()


def test_questions_without_weight_and_empty_places_do_not_move_the_threshold():
    score, label, weight, real = world(PAIRS, empty=0)
    p = probability(score, real)
    alone = auxiliary_confidence.hardened(*map(jnp.asarray, (p, label, weight, real)))
    more = [np.concatenate([x, y]) for x, y in zip((p, label, weight, real), world(PAIRS, seed=5, empty=4), strict=True)]
    more[2][12:] = 0.0
    more[0][12:] = np.where(more[3][12:], 1e-3, 0)
    np.testing.assert_array_equal(auxiliary_confidence.hardened(*map(jnp.asarray, more))[:12], alone)


def test_a_lone_question_with_two_options_is_hardened_at_one_half():
    for first in (0.3, 0.7):
        p, label = np.array([[first, 1 - first]]), np.array([[0.5, 0.5]])
        found = auxiliary_confidence.hardened(*map(jnp.asarray, (p, label, np.ones(1), p >= 0)))
        np.testing.assert_array_equal(found, one_hot(p))


def test_the_weighted_quantile_is_the_plain_one_where_weights_are_equal_and_counts_heavy_ones_more():
    x = np.random.default_rng(0).normal(size=9).astype(np.float32)
    for share in (0.0, 0.2, 0.51, 1.0):
        found = auxiliary_confidence.quantile(jnp.asarray(x), jnp.full(9, 0.3), jnp.float32(share))
        assert float(found) == pytest.approx(np.quantile(x, share), abs=1e-5)
    heavy = np.where(x == x.max(), 20.0, 1.0)
    found, turned = (
        float(auxiliary_confidence.quantile(jnp.asarray(side), jnp.asarray(heavy), jnp.float32(share)))
        for side, share in ((x, 0.7), (-x, 0.3))
    )
    assert found > np.quantile(x, 0.7) and turned == pytest.approx(-found, rel=1e-5)


def test_a_lesson_of_hard_labels_is_one_at_the_taught_answer():
    label = options.labels(dataclasses.replace(lesson_of([2, 3], None, np.ones(2)), target=None))
    assert label.tolist() == [[1, 0, 0, 0], [1, 0, 0, 0]]
