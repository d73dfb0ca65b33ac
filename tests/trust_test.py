"""Trust functions: probabilities, equivariant, saved and loaded, and honest about what they cannot do."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from w2s_jax import metrics, plugins
from w2s_jax.trust import artefact, confidence, controls, ensemble, heads, neural
from w2s_jax.types import Answers, Evidence, Question

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
        "selected/ntf": rng.random(rows) < 0.3,
        "difficulty": rng.integers(0, 4, rows).astype(np.int32),
    }
    return Evidence(Answers(ids, ids, ids), x, extra | {"correct": correct}), correct


ALL = {
    "neural": ("neural", SMALL),
    "linear": ("neural", SMALL | {"head": "linear"}),
    "ensemble": ("ensemble", SMALL | {"size": 3, "penalty": 0.5}),
    "confidence": ("confidence", {}),
    "random": ("controls", {"kind": "random"}),
    "constant": ("controls", {"kind": "constant"}),
    "shuffled": ("controls", {"kind": "shuffled", "of": "ntf"}),
    "oracle": ("controls", {"kind": "oracle"}),
    "same_purity": ("controls", {"kind": "same_purity", "of": "ntf"}),
    "difficulty_matched": ("controls", {"kind": "difficulty_matched", "of": "ntf"}),
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
            x = np.full((rows if chosen is part[0] else rows // 2, 1, 6), 7.0, np.float32)  # what stands there must not matter
            label, mask = np.ones((2, len(x)), np.float32)
            x[: chosen.sum()], label[: chosen.sum()], mask[chosen.sum() :] = evidence.x[chosen], correct[chosen], 0
            filled += [x, label, mask]
        static = dict(head=heads.Mlp(16, 2, 2), epochs=12, batch_rows=32)
        states.append(neural.train(*filled, hyper, KEY, **static))
    for one, other in zip(*map(jax.tree.leaves, states), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-4, atol=2e-5)


def test_fitting_to_more_rows_of_the_same_power_of_two_compiles_nothing_new():
    neural.make(**SMALL).fit(*world(rows=170), KEY)  # 136 to fit, 34 held back
    before = neural.train_heads._cache_size()
    neural.make(**SMALL).fit(*world(rows=300), KEY)
    assert neural.train_heads._cache_size() == before


def test_a_source_smaller_than_a_batch_is_fitted():
    evidence, correct = world(rows=40)
    head = neural.make(**SMALL | {"batch_rows": 256, "epochs": 60}).fit(evidence, correct, KEY)
    assert metrics.auc(head.score(evidence), correct) > 0.8


def test_shuffled_deals_out_the_same_scores_in_another_order(fitted):
    evidence, _ = world()
    score = fitted["shuffled"].score(evidence)
    assert sorted(score) == sorted(evidence.extra["score/ntf"]) and (score != evidence.extra["score/ntf"]).any()


def test_random_and_shuffled_choose_different_rows_under_one_key(fitted):
    evidence, _ = world()
    order = np.argsort(fitted["random"].score(evidence)), np.argsort(fitted["shuffled"].score(evidence))
    assert (order[0] != order[1]).any()


def test_a_draw_is_uniform_and_each_answers_own():
    evidence, correct = world(rows=2000)
    score = [
        plugins.make("trust", "controls", kind="random").fit(evidence, correct, jax.random.key(k)).score(evidence)
        for k in (0, 1)
    ]
    assert abs(np.sort(score[0]) - np.linspace(0, 1, 2000)).max() < 0.04  # Kolmogorov-Smirnov, p = .003
    assert abs(np.corrcoef(*score)[0, 1]) < 0.1
    drawn = plugins.make("trust", "controls", kind="random").fit(evidence, correct, jax.random.key(1))
    again = plugins.make("trust", "controls", kind="random").restore(drawn.state())
    np.testing.assert_array_equal(again.score(evidence), score[1])
    answers = Answers(("q0", "q0", "q1"), ("yes", "no", "yes"), ("yes", "no", "yes"))
    assert len(set(drawn.score(Evidence(answers, np.zeros((3, 1, 1)))).tolist())) == 3


def test_the_constant_is_the_share_of_right_source_labels_and_the_oracle_is_right(fitted):
    _, correct = world()
    evidence, truth = world(seed=1)
    np.testing.assert_allclose(fitted["constant"].score(evidence), correct.mean(), rtol=1e-6)
    np.testing.assert_array_equal(fitted["oracle"].score(evidence), truth)


def test_a_control_says_what_it_needs():
    kinds = ("random", "shuffled", "oracle", "same_purity", "difficulty_matched")
    assert {kind: plugins.make("trust", "controls", kind=kind, of="other").needs for kind in kinds} == {
        "random": set(),
        "shuffled": {"score/other"},
        "oracle": {"correct"},
        "same_purity": {"selected/other", "correct"},
        "difficulty_matched": {"selected/other", "difficulty"},
    }


@pytest.mark.parametrize("span, name", confidence.SPANS.items())
def test_confidence_is_the_probability_of_the_span_it_is_asked_for(span, name):
    logp = {"answer_logp": np.log([0.5, 0.25]), "completion_logp": np.array([-np.inf, 1e-7])}  # rounding can exceed 0
    trust = plugins.make("trust", "confidence", span=span)
    score = trust.score(Evidence(Answers(*[("a", "b")] * 3), np.zeros((2, 1, 1)), logp))
    assert trust.needs == {name} and name == {"final": "answer_logp", "completion": "completion_logp"}[span]
    np.testing.assert_array_equal(score, {"final": np.float32([0.5, 0.25]), "completion": [0, 1]}[span])


def test_an_unknown_span_is_refused():
    with pytest.raises(ValueError, match="span='answer': allowed are final, completion"):
        confidence.make(span="answer")


@pytest.mark.parametrize(
    "args, message",
    [
        ({"kind": "lucky"}, "allowed are random, constant, oracle, shuffled, same_purity, difficulty_matched"),
        ({"kind": "shuffled"}, "needs of="),
        ({"kind": "same_purity"}, "kind='same_purity' needs of="),
    ],
)
def test_unknown_controls_are_refused(args, message):
    with pytest.raises(ValueError, match=message):
        plugins.make("trust", "controls", **args)


# controls that are matched to a selection


def matched(kind, evidence, key=KEY):
    """The rows that a control takes: as many of its best, one to a question, as the selection that it is matched to has."""
    score = plugins.make("trust", "controls", kind=kind, of="ntf").fit(evidence, np.ones(1, bool), key).score(evidence)
    rows = np.argsort(-score, kind="stable")[: evidence.extra["selected/ntf"].sum()]
    others = np.setdiff1d(np.arange(len(score)), rows)
    assert not len(rows) or not len(others) or score[rows].min() >= 0.5 > score[others].max()
    assert "" not in [evidence.answers.final[row] for row in rows]
    assert len({evidence.answers.question_id[row] for row in rows}) == len(rows)
    return rows


def sampled(seed, questions=60, samples=3, taken=25):
    """Several samples to a question, some without an answer; a selection of the rows most likely right."""
    rng, num = np.random.default_rng(seed), questions * samples
    ids = tuple(f"q{i // samples}" for i in range(num))
    final = tuple("" if u < 0.15 else "x" for u in rng.random(num))
    correct = (rng.random(num) < rng.choice([0.1, 0.4, 0.9], questions).repeat(samples)) & np.array([f != "" for f in final])
    answers = Answers(ids, tuple(map(str, range(num))), final)
    lot = np.where(final == np.array(""), -1, correct + rng.random(num))
    best = [row for row in controls._one_of_each(lot, answers)][:taken]
    extra = {"selected/ntf": np.isin(np.arange(num), best), "correct": correct}
    extra["difficulty"] = rng.integers(0, 4, questions).astype(np.int32).repeat(samples)
    return Evidence(answers, np.zeros((num, 1, 1), np.float32), extra)


@pytest.mark.parametrize("taken", [1, 25, 40, 60])
def test_same_purity_takes_as_many_right_and_wrong_labels_whatever_the_samples(taken):
    for seed in range(8):
        evidence = sampled(seed, taken=taken)
        correct, selected = evidence.extra["correct"], evidence.extra["selected/ntf"]
        assert correct[matched("same_purity", evidence)].sum() == correct[selected].sum()
        assert len(matched("same_purity", evidence)) == selected.sum()


def test_difficulty_matched_takes_as_many_questions_of_each_difficulty():
    for seed in range(8):
        evidence = sampled(seed)
        level, selected = evidence.extra["difficulty"], evidence.extra["selected/ntf"]
        rows = matched("difficulty_matched", evidence)
        np.testing.assert_array_equal(np.sort(level[rows]), np.sort(level[selected]))


@pytest.mark.parametrize("kind", ["same_purity", "difficulty_matched"])
def test_a_matched_subset_is_drawn_at_random_among_those_that_match(kind):
    evidence, _ = world(rows=400)
    stratum = evidence.extra["correct"] if kind == "same_purity" else evidence.extra["difficulty"]
    selected, taken = evidence.extra["selected/ntf"], np.zeros(400)
    for k in range(300):
        taken[matched(kind, evidence, jax.random.key(k))] += 1 / 300
    for one in np.unique(stratum):
        share = selected[stratum == one].mean()  # what every row of the stratum is drawn with, whether NTF took it or not
        np.testing.assert_allclose(taken[stratum == one], share, atol=5 * np.sqrt(share * (1 - share) / 300))
        assert abs(taken[(stratum == one) & selected].mean() - share) < 0.03


def test_difficulty_is_the_level_the_rating_or_else_the_teachers_confidence():
    def asked(task, **meta):
        return [Question(f"{task}{i}", task, "?", (), {k: v[i] for k, v in meta.items()}) for i in range(20)]

    levels, ratings = [str(i % 3) for i in range(20)], [str(1500 + 10 * i) for i in range(20)]
    questions = [
        *asked("levels", level=levels, rating=ratings),
        *asked("ratings", level=["5"] * 20, rating=ratings),
        *asked("neither", level=[""] * 20, rating=["?"] * 20),
    ]
    ids = tuple(q.id for q in questions for _ in range(2))
    logp = np.log(np.r_[np.full(80, 0.5), np.linspace(0.9, 0.1, 20).repeat(2) + np.tile([-0.05, 0.05], 20)])
    found = controls.difficulty(questions, Answers(ids, ids, ids), logp).reshape(60, 2)
    assert found.dtype == np.int32 and (found[:, 0] == found[:, 1]).all(), "the rows of a question are as hard as each other"
    by_level, by_rating, by_confidence = np.split(found[:, 0], 3)
    assert by_level.tolist() == [i % 3 for i in range(20)]
    assert (by_rating - by_rating[0]).tolist() == (by_confidence[0] - by_confidence).tolist() == [i // 2 for i in range(20)]
    assert by_level.max() < by_confidence.min() and by_confidence.max() < by_rating.min(), "no stratum of two data sets"
    same = controls.difficulty(questions[40:], Answers(ids[80:], ids[80:], ids[80:]), np.zeros(40))
    assert set(same.tolist()) == {0}


def test_a_head_fitted_on_flipped_labels_turns_the_order_round():
    evidence, correct = world(rows=600)
    fresh, truth = world(rows=600, seed=4)
    straight, flipped = (neural.make(**SMALL).fit(evidence, label, KEY).score(fresh) for label in (correct, ~correct))
    assert metrics.auc(straight, truth) > 0.9 and metrics.auc(flipped, truth) < 0.1
    order = [np.argsort(np.argsort(score)) for score in (straight, flipped)]
    assert np.corrcoef(*order)[0, 1] < -0.8


# the head


def by_hand(params, x, scales):
    """The head's logits f[R] in plain numpy; `scales` f[blocks, R or 1] multiply the blocks' branches."""

    def normed(h, name):
        return h / np.sqrt((h**2).mean(-1, keepdims=True) + 1e-6) * params[name]["scale"]

    h = x @ params["input"]["kernel"] + params["input"]["bias"]
    for b, scale in enumerate(scales):
        inner = normed(h, f"norm{b}")
        gate = inner @ params[f"gate{b}"]["kernel"]
        inner = gate / (1 + np.exp(-gate)) * (inner @ params[f"up{b}"]["kernel"])
        h = h + np.reshape(scale, (-1, 1)) * (inner @ params[f"down{b}"]["kernel"])
    return (normed(h, "norm") @ params["output"]["kernel"] + params["output"]["bias"])[:, 0]


@pytest.fixture(scope="module")
def deep():
    """A head of three blocks with random parameters (scales too), and its input."""
    head, x = heads.Mlp(width=8, blocks=3, expansion=2), np.random.default_rng(0).normal(size=(400, 5)).astype(np.float32)
    params = head.init(KEY, x)["params"]
    params = jax.tree.map(lambda a: np.random.default_rng(a.size).normal(size=a.shape).astype(np.float32), params)
    return head, params, x


def test_the_head_is_a_residual_swiglu_mlp_with_rms_norms(deep):
    head, params, x = deep
    np.testing.assert_allclose(head.apply({"params": params}, x), by_hand(params, x, np.ones((3, 1))), rtol=1e-4, atol=1e-4)


def test_drop_path_drops_a_rows_whole_branch_more_often_the_deeper_it_is_and_rescales_the_rest(deep):
    head, params, x = deep
    found = np.asarray(head.apply({"params": params}, x, 0.0, 0.8, KEY))
    states = [(1.0, second, third) for second in (0.0, 1 / 0.6) for third in (0.0, 1 / 0.2)]
    logits = np.stack([by_hand(params, x, np.reshape(state, (3, 1))) for state in states])
    assert np.isclose(logits, found, rtol=1e-3, atol=1e-3).any(0).all()
    share = np.bincount(abs(logits - found).argmin(0), minlength=4) / len(x)
    np.testing.assert_allclose(share, [0.4 * 0.8, 0.4 * 0.2, 0.6 * 0.8, 0.6 * 0.2], atol=0.07)  # independent of each other


def test_dropout_drops_units_and_keeps_their_mean(deep):
    head, params, x = deep
    same = np.repeat(x[:1], 400, 0)
    found = np.asarray(head.apply({"params": params}, same, 0.5, 0.0, KEY))
    assert len(set(found.tolist())) > 390
    dropped = np.asarray(heads._drop(jnp.ones((200, 50)), 0.2, KEY, (200, 50)))
    assert set(np.unique(dropped)) == {0, np.float32(1.25)} and abs(dropped.mean() - 1) < 0.02


# its training

SMOOTH = dict(lr=3e-3, weight_decay=0.0, dropout=0.0, drop_path=0.0, class_weight=1.0, label_noise=0.0)
PLAIN = heads.Mlp(width=8, blocks=2, expansion=2)


def train(x, correct, x_val, correct_val, mask=None, epochs=30, batch_rows=1000, num_rows=None, **hyper):
    """`neural.train`; calls with as many rows share one program."""
    hyper = neural.Hyper(**{name: jnp.float32(value) for name, value in (SMOOTH | hyper).items()})
    mask = np.ones(len(x), np.float32) if mask is None else np.float32(mask)
    all_val = np.ones(len(x_val), np.float32)
    x, x_val = (np.float32(rows)[:, None] for rows in (x, x_val))
    arrays = (x, np.float32(correct), mask, x_val, np.float32(correct_val), all_val)
    static = dict(head=PLAIN, epochs=epochs, batch_rows=min(batch_rows, len(x)))
    return neural.train(*arrays, hyper, KEY, num_rows=num_rows, **static)


def probability(state, x):
    return np.asarray(neural._probability(state, np.float32(x)[:, None], head=PLAIN))


def numbers(rows=200, share=0.3, seed=0):
    rng = np.random.default_rng(seed)
    correct = rng.random(rows) < share
    return rng.normal(size=(rows, 4)) + correct[:, None] * [1, 0, 0, 0], correct


def test_a_masked_row_is_as_if_it_were_not_there():
    (x, correct), val = numbers(), numbers(seed=1)
    hidden = np.arange(200) < 80
    other, wrong = np.where(hidden[:, None], 9.0, x), np.where(hidden, True, correct)
    found, again = train(x, correct, *val, mask=~hidden), train(other, wrong, *val, mask=~hidden)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), found, again)


def test_the_loss_is_the_mean_over_the_rows_that_count_with_right_and_wrong_ones_in_balance():
    (x, correct), mask = numbers(), np.arange(200) >= 80
    state, record = train(x, correct, *numbers(seed=1), mask=mask, lr=0.0)
    x, correct = np.float32(x[mask]), np.float32(correct[mask])
    logit = PLAIN.apply({"params": state["params"]}, (x - x.mean(0)) / x.std(0))
    weight = np.where(correct > 0, (1 - correct).sum() / correct.sum(), 1.0)
    expected = (weight * np.asarray(optax.sigmoid_binary_cross_entropy(logit, correct))).mean()
    np.testing.assert_allclose(record["loss"], expected, rtol=1e-4)


def test_every_epoch_deals_the_rows_out_anew():
    """Four of five rows make an epoch's one batch, and one row alone is right: its turn comes, but not every time."""
    x, correct = np.zeros((5, 4)), np.arange(5) == 4
    _, record = train(x, correct, x, correct, batch_rows=4, lr=0.0)
    assert len(set(np.round(record["loss"], 5).tolist())) == 2


def test_the_rate_falls_to_nothing_over_all_epochs():
    _, record = train(*numbers(), *numbers(seed=1), lr=1e-2)
    fall = -np.diff(record["loss"])
    assert fall[10] > 0.1 * fall[0] and fall[-1] < 0.02 * fall[0]


@pytest.mark.parametrize("class_weight, logit", [(1.0, 0.0), (0.0, np.log(1 / 7))])
def test_the_class_weight_balances_training_and_is_taken_off_the_probability(class_weight, logit):
    """Nothing can be learnt from zeros but the prior, an eighth; eight held-back rows cannot teach it to Platt's scaling."""
    correct, zeros = np.arange(2048) % 8 == 0, np.zeros((2048, 4))
    state, _ = train(zeros, correct, zeros[:8], correct[:8], epochs=1, batch_rows=64, lr=0.2, class_weight=class_weight)
    assert float(PLAIN.apply({"params": state["params"]}, np.float32(zeros[:1]))[0]) == pytest.approx(logit, abs=0.35)
    assert float(probability(state, zeros[:1])[0]) == pytest.approx(1 / 8, abs=0.04)


def test_an_overfitted_head_is_still_calibrated_and_its_best_epoch_is_kept():
    x_val, correct_val = numbers(seed=1, share=0.2)
    state, record = train(*numbers(share=0.2), x_val, correct_val, mask=np.arange(200) < 60, lr=0.1)
    quality = np.asarray(record["quality"])
    assert quality[-1] < quality.max() - 0.01, "the case is meant to overfit"
    score = probability(state, x_val)
    assert metrics.auc(score, correct_val) == pytest.approx(quality.max(), abs=1e-4)
    assert score.mean() == pytest.approx(correct_val.mean(), abs=0.01)
    assert abs(state["slope"] - 1) > 0.05, "the held-back rows have a say"


@pytest.mark.parametrize("changed", [{"dropout": 0.5}, {"drop_path": 0.5}, {"weight_decay": 30.0}, {"class_weight": 0.0}])
def test_every_rate_makes_a_difference(changed):
    states = [train(*numbers(), *numbers(seed=1), **kw)[0] for kw in ({}, changed)]
    one, other = (probability(state, numbers(seed=2)[0]) for state in states)
    assert abs(one - other).max() > 1e-3


def test_what_early_stopping_maximises_is_the_auc_or_where_there_is_none_minus_the_loss():
    rng = np.random.default_rng(0)
    logit, correct = np.float32(rng.integers(0, 4, 60)), np.float32(rng.random(60) < 0.4)
    assert float(neural._quality(logit, correct, np.ones(60))) == pytest.approx(metrics.auc(logit, correct > 0), abs=1e-5)
    loss = float(optax.sigmoid_binary_cross_entropy(logit, 0 * correct).mean())
    assert float(neural._quality(logit, 0 * correct, np.ones(60))) == pytest.approx(-loss, rel=1e-5)


def test_platt_scaling_finds_the_rates_stays_near_no_change_with_few_rows_and_never_turns_the_order_round():
    def rates(logit, correct):
        slope, shift = neural._platt(np.float32(logit), np.float32(correct), np.ones(len(correct), np.float32))
        return float(slope), float(shift), 1 / (1 + np.exp(-(slope * np.unique(logit) + shift)))

    correct = np.r_[np.arange(500) % 5 == 0, np.arange(500) % 5 < 3]  # .2 of the low ones, .6 of the high ones
    for size in (1.0, 30.0):  # far too sure of itself: a full Newton step would leave the earth
        np.testing.assert_allclose(rates(np.repeat([-size, size], 500), correct)[2], [0.2, 0.6], atol=0.01)
    slope, shift, _ = rates([-1.0, 1.0], [False, True])
    assert 1 < slope < 1.5 and abs(shift) < 0.1
    slope, _, found = rates(np.repeat([1.0, -1.0], 500), correct)
    assert slope > 0
    np.testing.assert_allclose(found, 0.4, atol=0.01)


def test_the_units_of_the_hidden_states_do_not_matter_nor_one_that_never_moves(fitted):
    evidence, correct = world()
    other = Evidence(
        evidence.answers, evidence.x * np.float32([1e-2, 1, 100, 1, 1e3, 1]) + np.float32([0, 50, 0, -3, 0, 0]), {}
    )
    again = neural.make(**SMALL).fit(other, correct, KEY).score(other)
    np.testing.assert_allclose(again, fitted["neural"].score(evidence), atol=0.02)
    still = Evidence(evidence.answers, evidence.x * np.float32([1, 1, 1, 1, 1, 0]), {})
    assert metrics.auc(neural.make(**SMALL).fit(still, correct, KEY).score(still), correct) > 0.9


def test_all_probe_points_are_looked_at(fitted):
    evidence, _ = world()
    two = Evidence(evidence.answers, evidence.x.reshape(300, 2, 3))
    _, correct = world()
    again = neural.make(**SMALL).fit(two, correct, KEY)
    np.testing.assert_allclose(again.score(two), fitted["neural"].score(evidence), atol=1e-5)
    with pytest.raises(ValueError, match="have 6 features, this trust head was fitted on 2 x 3: use the teacher"):
        again.score(evidence)


def test_many_rows_are_scored_as_each_would_be_alone(fitted):
    evidence, _ = world(rows=2500)
    score = fitted["neural"].score(evidence)
    for rows in (slice(0, 700), slice(900, 1300), slice(2100, 2500)):
        np.testing.assert_allclose(fitted["neural"].score(evidence[np.arange(2500)[rows]]), score[rows], rtol=1e-5)


def test_held_back_rows_are_not_trained_on_and_say_how_good_the_head_is(monkeypatch):
    evidence, correct = world()
    seen, real = [], neural.train_heads

    def watched(source, *args, **kw):
        state, record = real(source, *args, **kw)
        seen.extend((*source, record["quality"][0]))
        return state, record

    monkeypatch.setattr(neural, "train_heads", watched)
    head = neural.make(**SMALL).fit(evidence, correct, KEY)
    x, right, mask, x_val, right_val, mask_val, quality = map(np.asarray, seen)
    (x, right), (x_val, right_val) = ((a[m > 0], b[m > 0]) for a, b, m in ((x, right, mask), (x_val, right_val, mask_val)))
    assert len(x) == len(right) == 240 and len(x_val) == len(right_val) == 60
    x, x_val = x[:, 0], x_val[:, 0]
    rows = {tuple(row): bool(c) for row, c in zip(evidence.x[:, 0].tolist(), correct, strict=True)}
    assert not {tuple(row) for row in x.tolist()} & {tuple(row) for row in x_val.tolist()}
    for row, c in zip((*x.tolist(), *x_val.tolist()), (*right, *right_val), strict=True):
        assert rows[tuple(row)] == c
    held = Evidence(Answers(*[tuple(map(str, range(60)))] * 3), x_val[:, None])
    assert head.held_back["quality"] == pytest.approx(metrics.auc(head.score(held), right_val > 0), abs=1e-6)
    assert quality[int(head.held_back["epoch"]) - 1] == quality.max() == np.float32(head.held_back["quality"])


def test_the_held_back_split_is_the_keys_and_leaves_a_question_on_each_side():
    ids = tuple(f"q{i}" for i in range(2000))
    held = neural._held_back(ids, 0.2, KEY)
    np.testing.assert_array_equal(neural._held_back(ids[::-1], 0.2, KEY), held[::-1])
    assert (neural._held_back(ids, 0.2, jax.random.key(1)) != held).any()
    assert neural._held_back(("a", "b"), 0.9, KEY).sum() == neural._held_back(("a", "b"), 0.01, KEY).sum() == 1


def test_what_cannot_be_fitted_or_scored_is_refused():
    evidence, correct = world()
    with pytest.raises(ValueError, match="has not been fitted: call fit"):
        neural.make(**SMALL).score(evidence)
    with pytest.raises(ValueError, match="the trust head's loss is not finite with lr=inf: lower trust.neural.lr"):
        neural.make(**SMALL | {"lr": float("inf")}).fit(evidence, correct, KEY)
    evidence.x[7, 0, 2] = np.nan
    with pytest.raises(ValueError, match="hidden states hold NaN or infinity"):
        neural.make(**SMALL).fit(evidence, correct, KEY)


@pytest.mark.parametrize("name, value", [("dropout", 1.0), ("held_back_frac", 0.0), ("epochs", 0), ("class_weight", -0.1)])
def test_settings_out_of_range_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name}={value}: allowed is .*change trust.neural.{name}"):
        neural.make(**{name: value})


# other heads, and several of them


def test_the_linear_head_is_logistic_regression():
    x = np.random.default_rng(0).normal(size=(5, 2, 3)).astype(np.float32)
    head = heads.HEADS["linear"](width=9, blocks=2, expansion=2)
    params = head.init(KEY, x)["params"]
    expected = x.reshape(5, 6) @ params["output"]["kernel"] + params["output"]["bias"]
    np.testing.assert_allclose(head.apply({"params": params}, x), expected[:, 0], rtol=1e-5)
    assert list(params) == ["output"]
    dropped = np.asarray(head.apply({"params": params}, np.repeat(x[:1], 400, 0), 0.5, 0.0, KEY))
    assert 10 < len(set(np.round(dropped, 5).tolist())) <= 64  # 6 inputs, each there or not


def test_attention_over_layers_weighs_the_probe_points_and_says_the_rest_as_the_mlp_does():
    x = np.random.default_rng(0).normal(size=(7, 3, 5)).astype(np.float32)
    head = heads.Layers(width=8, blocks=2, expansion=2)
    params = head.init(KEY, x)["params"]
    params = jax.tree.map(lambda a: np.random.default_rng(a.size).normal(size=a.shape).astype(np.float32), params)
    h = np.einsum("rpd,pdw->rpw", x, params["input"]) + params["bias"]
    normed = h / np.sqrt((h**2).mean(-1, keepdims=True) + 1e-6) * params["point_norm"]["scale"]
    weight = np.exp(normed @ params["query"]["kernel"])
    pooled = (h * weight / weight.sum(1, keepdims=True)).sum(1)
    stream = params | {"input": {"kernel": np.eye(8, dtype=np.float32), "bias": np.zeros(8, np.float32)}}
    expected = by_hand(stream, pooled, np.ones((2, 1)))
    np.testing.assert_allclose(head.apply({"params": params}, x), expected, rtol=1e-3, atol=1e-3)


def test_attention_over_layers_finds_the_layer_that_knows():
    (evidence, correct), (fresh, truth) = world(rows=600), world(rows=1000, seed=1)

    def layered(evidence):
        blind = np.random.default_rng(9).normal(size=(2, *evidence.x[:, 0].shape)).astype(np.float32)
        return Evidence(evidence.answers, np.stack([blind[0], evidence.x[:, 0], blind[1]], 1))

    head = neural.make(**SMALL | {"head": "layers"}).fit(layered(evidence), correct, KEY)
    assert metrics.auc(head.score(layered(fresh)), truth) > 0.85


def test_attention_over_one_layer_is_refused():
    with pytest.raises(ValueError, match="head='layers' weighs 2 probe points or more, here is 1: name more of observe.layers"):
        neural.make(**SMALL | {"head": "layers"}).fit(*world(), KEY)


def test_an_unknown_head_is_refused():
    with pytest.raises(ValueError, match="head='mpl': allowed are mlp, linear, layers; change trust.neural.head"):
        neural.make(head="mpl")


def test_each_member_of_an_ensemble_is_the_head_that_its_seed_gives_alone(fitted):
    evidence, correct = world()
    assert len(fitted["ensemble"].members) == 3
    for seed, member in enumerate(fitted["ensemble"].members):
        single = neural.make(**SMALL, seed=seed).fit(evidence, correct, KEY)
        np.testing.assert_allclose(member.score(evidence), single.score(evidence), atol=1e-5)
        assert single.held_back == pytest.approx(member.held_back, abs=1e-5)
    scores = np.stack([member.score(evidence) for member in fitted["ensemble"].members])
    assert abs(scores[0] - scores[1]).max() > 1e-2
    np.testing.assert_allclose(fitted["ensemble"].score(evidence), (scores.mean(0) + scores.min(0)) / 2, atol=1e-6)


def test_an_ensembles_score_rises_with_each_member_and_falls_with_the_penalty():
    rng = np.random.default_rng(0)
    each = rng.random((4, 500)).astype(np.float32)
    each[:, 0], each[:, 1], each[:, 2] = 0, 1, 0.5  # agreement
    for penalty in (0.0, 0.3, 1.0):
        score = ensemble.combined(each, penalty)
        assert score.min() >= 0 and score.max() <= 1 and (score >= each.min(0) - 1e-6).all()
        for member in range(4):
            surer = each.copy()
            surer[member] += (1 - surer[member]) * rng.random(500).astype(np.float32)
            assert (ensemble.combined(surer, penalty) >= score - 1e-6).all()
    loose, strict = (ensemble.combined(each, penalty) for penalty in (0.2, 0.8))
    assert (strict <= loose).all() and (strict < loose).any()
    np.testing.assert_allclose(ensemble.combined(each, 0.0), each.mean(0), atol=1e-6)
    np.testing.assert_allclose(ensemble.combined(each, 1.0), each.min(0), atol=1e-6)


@pytest.mark.parametrize(
    "args, said",
    [
        ({"size": 0}, "size=0: allowed is 1 to 1000; change trust.ensemble.size"),
        ({"penalty": 1.5}, "penalty=1.5: allowed is 0 to 1"),
        ({"widht": 3}, "knows no 'widht'.*did you mean 'width'"),
    ],
)
def test_an_ensemble_that_cannot_be_is_refused(args, said):
    with pytest.raises(ValueError, match=said):
        plugins.make("trust", "ensemble", **args)


@pytest.mark.parametrize("name", ["neural", "linear", "ensemble"])
def test_constant_evidence_gets_constant_scores(name, fitted):
    evidence, _ = world(rows=40)
    still = Evidence(evidence.answers, np.broadcast_to(evidence.x[:1], evidence.x.shape))
    assert np.ptp(fitted[name].score(still)) < 1e-6
