"""Trust functions: probabilities, equivariant, saved and loaded, and honest about what they cannot do."""

import jax
import numpy as np
import pytest

from w2s_jax import metrics, plugins
from w2s_jax.trust import artefact, neural
from w2s_jax.types import Answers, Evidence

KEY = jax.random.key(0)
SMALL = dict(width=16, blocks=2, epochs=12, batch_rows=32, lr=3e-3)


def world(rows=300, features=6, seed=0, share=0.6):
    """Evidence whose first feature reveals, with noise, whether the label is right."""
    rng = np.random.default_rng(seed)
    correct = rng.random(rows) < share
    x = rng.normal(size=(rows, 1, features)).astype(np.float32)
    x[:, 0, 0] += 2.5 * correct
    ids = tuple(f"q{i}" for i in range(rows))
    extra = {
        "answer_logp": np.log(rng.uniform(0.2, 1, rows)).astype(np.float32),
        "score/ntf": rng.random(rows).astype(np.float32),
    }
    return Evidence(Answers(ids, ids, ids), x, extra | {"correct": correct}), correct


ALL = {
    "neural": ("neural", SMALL),
    "confidence": ("confidence", {}),
    "random": ("controls", {"kind": "random"}),
    "constant": ("controls", {"kind": "constant"}),
    "shuffled": ("controls", {"kind": "shuffled", "of": "ntf"}),
    "oracle": ("controls", {"kind": "oracle"}),
}


@pytest.fixture(scope="module")
def fitted():
    evidence, correct = world()
    return {name: plugins.make("trust", word, **args).fit(evidence, correct, KEY) for name, (word, args) in ALL.items()}


@pytest.mark.parametrize("name", ALL)
def test_scores_are_probabilities_and_permuting_rows_permutes_them(name, fitted):
    evidence, _ = world(seed=1)
    score = fitted[name].score(evidence)
    assert score.shape == (300,) and np.isfinite(score).all() and score.min() >= 0 and score.max() <= 1
    order = np.random.default_rng(2).permutation(300)
    np.testing.assert_allclose(fitted[name].score(evidence[order]), score[order], rtol=1e-6)


@pytest.mark.parametrize("name", ALL)
def test_a_fitted_trust_function_outlives_its_run(name, fitted, tmp_path):
    word, args = ALL[name]
    artefact.write(fitted[name], tmp_path, word=word, args=args, about={"teacher": "t"})
    again, described = artefact.read(tmp_path)
    assert described["about"] == {"teacher": "t"}
    evidence, _ = world(seed=1)
    np.testing.assert_array_equal(again.score(evidence), fitted[name].score(evidence))


def test_reading_a_folder_without_a_trust_function_says_so(tmp_path):
    with pytest.raises(ValueError, match="no trust.json here"):
        artefact.read(tmp_path)


def test_the_head_finds_what_the_features_reveal_on_fresh_rows(fitted):
    evidence, correct = world(seed=1)
    assert metrics.auc(fitted["neural"].score(evidence), correct) > 0.9  # the planted signal allows .961


def test_shuffled_labels_teach_the_head_nothing():
    evidence, correct = world(rows=600)
    shuffled = np.random.default_rng(3).permutation(correct)
    head = neural.make(**SMALL).fit(evidence, shuffled, KEY)
    fresh, truth = world(rows=2000, seed=4)
    assert abs(metrics.auc(head.score(fresh), truth) - 0.5) < 0.2


@pytest.mark.parametrize("share", [0.15, 0.85])
def test_probabilities_are_right_although_training_reweights_the_classes(share):
    head = neural.make(**SMALL).fit(*world(rows=1500, share=share), KEY)
    fresh, correct = world(rows=3000, seed=5, share=share)
    score = head.score(fresh)
    assert abs(score.mean() - correct.mean()) < 0.04
    assert metrics.ece(score, correct) < 0.06


def test_the_same_key_gives_the_same_bits_and_another_key_does_not():
    evidence, correct = world()
    one, two, three = (neural.make(**SMALL).fit(evidence, correct, jax.random.key(k)).score(evidence) for k in (1, 1, 2))
    np.testing.assert_array_equal(one, two)
    assert (one != three).any()


def test_twenty_right_labels_are_enough_to_fit():
    evidence, _ = world(rows=200)
    correct = np.arange(200) % 10 == 0
    evidence.x[:, 0, 0] += 3 * correct
    assert metrics.auc(neural.make(**SMALL).fit(evidence, correct, KEY).score(evidence), correct) > 0.7


@pytest.mark.parametrize("value", [True, False])
def test_all_right_or_all_wrong_is_refused(value):
    evidence, correct = world()
    with pytest.raises(ValueError, match="all 300 weak labels of the source are.*tasks"):
        neural.make(**SMALL).fit(evidence, np.full_like(correct, value), KEY)


def test_hidden_states_of_another_width_are_refused(fitted):
    with pytest.raises(ValueError, match="have 7 features, this trust head was fitted on 6"):
        fitted["neural"].score(world(features=7)[0])


def test_all_samples_of_a_question_are_on_the_same_side_of_the_held_back_split():
    ids = tuple(f"q{i // 4}" for i in range(80))
    held = neural._held_back(ids, 0.25, KEY)
    assert held.sum() == 20 and all(len(set(held[i : i + 4])) == 1 for i in range(0, 80, 4))


def test_scoring_more_rows_compiles_nothing_new(fitted):
    fitted["neural"].score(world(rows=50)[0])
    before = neural._probability._cache_size()
    fitted["neural"].score(world(rows=2500)[0])
    assert neural._probability._cache_size() == before


def test_rows_that_fill_up_a_size_change_nothing():
    evidence, correct = world(rows=90)
    part = (np.arange(90) < 60, np.arange(90) >= 60)
    hyper = neural.Hyper(**{name: np.float32(value) for name, value in neural.make(**SMALL).hyper.items()})
    states = []
    for rows in (60, 128):
        filled = []
        for chosen in part:
            x = np.full((rows if chosen is part[0] else rows // 2, 6), 7.0, np.float32)  # what stands there must not matter
            label, mask = np.ones((2, len(x)), np.float32)
            x[: chosen.sum()], label[: chosen.sum()], mask[chosen.sum() :] = evidence.x[chosen, 0], correct[chosen], 0
            filled += [x, label, mask]
        static = dict(head=neural.Head(16, 2, 2), epochs=12, batch_rows=32)
        states.append(neural.train(*filled, hyper, KEY, **static))
    for one, other in zip(*map(jax.tree.leaves, states), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-4, atol=2e-5)


def test_fitting_to_more_rows_of_the_same_power_of_two_compiles_nothing_new():
    neural.make(**SMALL).fit(*world(rows=170), KEY)  # 136 to fit, 34 held back
    before = neural.train._cache_size()
    neural.make(**SMALL).fit(*world(rows=300), KEY)
    assert neural.train._cache_size() == before


def test_a_source_smaller_than_a_batch_is_fitted():
    evidence, correct = world(rows=40)
    head = neural.make(**SMALL | {"batch_rows": 256, "epochs": 60}).fit(evidence, correct, KEY)
    assert metrics.auc(head.score(evidence), correct) > 0.8


def test_confidence_is_the_probability_of_the_answer():
    evidence, _ = world()
    np.testing.assert_allclose(
        plugins.make("trust", "confidence").score(evidence), np.exp(evidence.extra["answer_logp"]), rtol=1e-6
    )


def test_shuffled_deals_out_the_same_scores_in_another_order(fitted):
    evidence, _ = world()
    score = fitted["shuffled"].score(evidence)
    assert sorted(score) == sorted(evidence.extra["score/ntf"]) and (score != evidence.extra["score/ntf"]).any()


def test_random_and_shuffled_choose_different_rows_under_one_key(fitted):
    evidence, _ = world()
    order = np.argsort(fitted["random"].score(evidence)), np.argsort(fitted["shuffled"].score(evidence))
    assert (order[0] != order[1]).any()


@pytest.mark.parametrize("args, message", [({"kind": "lucky"}, "allowed are random"), ({"kind": "shuffled"}, "needs of=")])
def test_unknown_controls_are_refused(args, message):
    with pytest.raises(ValueError, match=message):
        plugins.make("trust", "controls", **args)
