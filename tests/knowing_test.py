"""P(IK): soft targets are what they say, it is calibrated where it was not fitted, and gamma is the best threshold there is."""

import numpy as np
import pytest
from scipy.special import expit

from w2s_jax import knowing, metrics
from w2s_jax.trust import regression

L2 = (1e-3, 1e-2, 1e-1, 1.0)


def world(n, seed=0, num_features=6, sharp=1.0):
    """Hidden states, how probable a right sample is, whether the own answer and the weak label are right, and the weights."""
    rng = np.random.default_rng(seed)
    x, weight = rng.normal(size=(n, num_features)), rng.normal(size=num_features)
    chance = expit(sharp * (x @ weight) + 0.3)
    own = rng.random(n) < expit(2 * sharp * (x @ weight) + 0.6)  # the most probable answer is right more often than a sample
    return x, chance, own, (rng.random(n) < 0.6).astype(float), weight


def thirds(n):
    return np.arange(n) % 3


def test_the_exact_target_is_the_limit_of_many_samples():
    rng = np.random.default_rng(0)
    probability, right = rng.dirichlet(np.ones(4), 200), rng.random((200, 4)) < 0.4
    exact = knowing.expected(probability, right)
    many = knowing.drawn(probability, right, 20_000, np.array([1, 2], np.uint32))
    np.testing.assert_allclose(many, exact, atol=5 * 0.5 / np.sqrt(20_000))
    few = knowing.drawn(probability, right, 4, np.array([1, 2], np.uint32))
    assert set(np.unique(few)) <= {0, 0.25, 0.5, 0.75, 1} and abs(few - exact).max() > 0.2
    np.testing.assert_array_equal(few, knowing.drawn(probability, right, 4, np.array([1, 2], np.uint32)))
    assert (few != knowing.drawn(probability, right, 4, np.array([1, 3], np.uint32))).any()


def test_soft_targets_find_the_planted_weights_with_less_spread_than_single_answers():
    def spread(target):
        off = []
        for seed in range(20):
            x, chance, _, _, weight = world(300, seed=seed)
            drawn = target(chance, np.random.default_rng(seed + 1000))
            off.append(regression.logistic(x, drawn, l2=1e-6)[0] - weight)
        return np.sqrt(np.mean(np.square(off)))

    soft, bit = spread(lambda chance, rng: rng.binomial(16, chance) / 16), spread(lambda chance, rng: rng.random(300) < chance)
    assert soft < 0.15 and soft < bit / 2


def test_it_is_calibrated_on_rows_that_nothing_was_fitted_on():
    x, chance, own, weak, _ = world(6000)
    part = thirds(6000)
    fitted = knowing.fit(x, chance, own, weak, part, l2=L2)
    p = knowing.probability(x, fitted)[part == 2]
    right = own[part == 2]
    assert fitted["ece"] == metrics.ece(p, right) and fitted["rows"] == 2000
    # What ECE a perfectly calibrated score of this kind has on so many rows: 99.9 % of draws are below.
    rng = np.random.default_rng(5)
    perfect = [metrics.ece(p, rng.random(len(p)) < p) for _ in range(1000)]
    assert fitted["ece"] < np.quantile(perfect, 0.999) < 0.06
    # Samples are right less often than the own answer, so without Platt's map it is not.
    assert fitted["raw_ece"] > 2 * fitted["ece"] and fitted["raw_brier"] > fitted["brier"]
    assert fitted["auc"] == metrics.auc(p, right) > 0.8


def test_the_three_parts_have_one_use_each():
    x, chance, own, weak, _ = world(900)
    part, rng = thirds(900), np.random.default_rng(1)
    one = knowing.fit(x, chance, own, weak, part, l2=(1e-2,))
    learnt = ("mean", "scale", "weight", "bias", "slope", "shift", "l2", "gamma")

    def changed(k):
        """What moves when the labels and targets of one part are others."""
        rows = part == k
        other = [np.where(rows, values, was) for values, was in zip((rng.random(900), rng.random(900) < 0.5), (chance, own))]
        found = knowing.fit(x, *other, weak, part, l2=(1e-2,))
        return {name for name in learnt if not np.array_equal(found[name], one[name])}

    assert {"weight", "bias"} <= changed(0)
    assert changed(1) == {"slope", "shift", "gamma"}
    assert changed(2) == set()


def test_the_penalty_is_the_one_that_does_best_on_the_tuning_part():
    x, chance, own, weak, _ = world(150, num_features=30, sharp=0.2)
    part = thirds(150)
    chance = (np.random.default_rng(2).random(150) < chance).astype(float)  # one sample each: much to overfit
    found = knowing.fit(x, chance, own, weak, part, l2=L2)
    loss = {}
    for l2 in L2:
        one = knowing.fit(x, chance, own, weak, part, l2=(l2,))
        raw = (x - one["mean"]) / one["scale"] @ one["weight"] + one["bias"]
        loss[l2] = knowing.cross_entropy(raw[part == 1], chance[part == 1])
    assert found["l2"] == min(loss, key=loss.get) and L2[0] < found["l2"]


@pytest.mark.parametrize("seed", range(20))
def test_gamma_is_the_threshold_whose_mixed_labels_are_right_most_often_and_the_largest_of_these(seed):
    rng = np.random.default_rng(seed)
    p = rng.integers(0, 8, 40) / 8 if seed % 2 else rng.random(40)
    own, weak = rng.random(40) < p, (rng.random(40) < 0.5).astype(float)

    def worth(gamma):
        return np.where(p >= gamma, own, weak).sum()

    tried = [np.inf, *sorted(set(p.tolist()), reverse=True)]
    best = max(map(worth, tried))
    assert knowing.threshold(p, own, weak) == next(gamma for gamma in tried if worth(gamma) == best)
    assert best == max(map(worth, [*np.linspace(-0.1, 1.1, 500), *tried]))


def test_where_the_weak_label_is_never_worse_the_own_one_is_never_taken():
    assert knowing.threshold(np.array([1.0, 0.5]), np.array([True, False]), np.ones(2)) == np.inf


def test_the_held_back_accuracies_are_of_the_judged_rows_alone():
    x, chance, own, weak, _ = world(900)
    part = thirds(900)
    found = knowing.fit(x, chance, own, weak, part, l2=L2)
    knows = knowing.probability(x, found) >= found["gamma"]
    assert found["mixed"] == np.where(knows, own, weak)[part == 2].mean() > max(found["own"], found["weak"])
    assert found["weak"] == weak[part == 2].mean()


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda x, ik, part: (x, np.full(90, 0.25), part), "all 30 targets of P\\(IK\\) are 0.25: the student knows all"),
        (lambda x, ik, part: (x, ik, np.minimum(part, 1)), "come {'fit': 30, 'tune': 60, 'judge': 0}: each needs one or more"),
        (lambda x, ik, part: (np.where(x > 2, np.nan, x), ik, part), "the student's hidden states hold NaN or infinity"),
    ],
)
def test_what_cannot_be_learnt_is_refused(change, said):
    x, chance, own, weak, _ = world(90)
    x, ik, part = change(x, chance, thirds(90))
    with pytest.raises(ValueError, match=said):
        knowing.fit(x, ik, own, weak, part, l2=L2)


def test_hidden_states_of_another_width_are_refused():
    x, chance, own, weak, _ = world(90)
    fitted = knowing.fit(x, chance, own, weak, thirds(90), l2=L2)
    with pytest.raises(ValueError, match="have 5 features, P\\(IK\\) was fitted on 6"):
        knowing.probability(x[:, :5], fitted)
