"""The laws that every trust function keeps, whoever wrote it; what each makes of evidence that was made up; a planted world."""

import jax
import numpy as np
import pytest

from w2s_jax import metrics, plugins
from w2s_jax.trust import artefact, regression
from w2s_jax.types import Answers, Evidence

KEY = jax.random.key(0)
SMALL = dict(width=16, blocks=2, epochs=12, batch_rows=32, lr=3e-3)
CASES = {  # word -> its keywords, several times where they change what it is; other words are made without any
    "controls": [{"kind": "random"}, {"kind": "constant"}, {"kind": "shuffled", "of": "ntf"}, {"kind": "oracle"}],
    "neural": [SMALL],
    "ensemble": [{"size": 2, **SMALL}],
    "confidence": [{}, {"span": "completion"}],
    "self_assessment": [{"ask": "p_true"}, {"ask": "verbalised"}],
    "committee": [{"models": ("a", "b")}],
    "reward_model": [{"model": "judge"}, {"kind": "likelihood", "model": "judge"}],
    "knn": [{"k": 20}],
}
ALL = [(word, args) for word in plugins.available("trust") for args in CASES.get(word, [{}])]
RAW = (
    "answer_logp", "completion_logp", "p_true", "verbalised", "sample_share", "paraphrase_share", "committee_share", "reward",
    "likelihood",
)  # fmt: skip
"""Evidence of one number a row: more of it is more trust."""
SHARES = ("sample_share", "paraphrase_share", "committee_share")


def world(rows=240, features=6, seed=0, share=0.6):
    """Evidence with all that any trust function may ask for; a bit of everything reveals whether the label is right."""
    rng = np.random.default_rng(seed)
    correct = rng.random(rows) < share
    x = rng.normal(size=(rows, 1, features)).astype(np.float32)
    x[:, 0, 0] += 2.5 * correct
    ids = tuple(f"q{i}" for i in range(rows))
    logits = rng.normal(size=(rows, 4)) + np.outer(correct, [2, 0, 0, 0])
    option_logp = logits - np.logaddexp.reduce(logits, 1, keepdims=True)
    half = 0.5 * correct + 0.5 * rng.random(rows)
    extra = {name: half for name in ("p_true", "verbalised", *SHARES, "score/ntf")}
    extra |= {name: np.log(0.01 + half / 2) for name in ("answer_logp", "completion_logp", "likelihood")}
    extra |= {"reward": 10 * half - 40, "option_logp": option_logp, "correct": correct}
    return Evidence(Answers(ids, ids, ids), x, {name: np.asarray(a, np.float32) for name, a in extra.items()}), correct


def name(case):
    word, args = case
    return "-".join([word, *map(str, args.values())]) if word != "neural" else word


@pytest.fixture(scope="module")
def fitted():
    evidence, correct = world()
    return {name(case): plugins.make("trust", case[0], **case[1]).fit(evidence, correct, KEY) for case in ALL}


@pytest.mark.parametrize("case", ALL, ids=name)
def test_scores_are_finite_probabilities_and_follow_their_rows(case, fitted):
    evidence, _ = world(seed=1)
    score = fitted[name(case)].score(evidence)
    assert score.shape == (240,) and score.dtype == np.float32
    assert np.isfinite(score).all() and score.min() >= 0 and score.max() <= 1
    order = np.random.default_rng(2).permutation(240)
    np.testing.assert_allclose(fitted[name(case)].score(evidence[order]), score[order], rtol=1e-5)


@pytest.mark.parametrize("case", ALL, ids=name)
def test_rows_that_are_alike_are_trusted_alike(case, fitted):
    evidence, _ = world(seed=1)
    score = fitted[name(case)].score(evidence[np.zeros(50, int)])
    assert score.shape == (50,) and len(set(score.tolist())) == 1


@pytest.mark.parametrize("case", ALL, ids=name)
def test_evidence_that_says_nothing_anywhere_can_be_fitted_and_gives_one_score(case):
    evidence, correct = world(rows=120)
    same = Evidence(evidence.answers, np.ones_like(evidence.x), {n: a[np.zeros(120, int)] for n, a in evidence.extra.items()})
    score = plugins.make("trust", case[0], **case[1]).fit(same, correct, KEY).score(same[np.zeros(30, int)])
    assert len(set(score.tolist())) == 1 and 0 <= score[0] <= 1


SCALAR = [case for case in ALL if plugins.make("trust", case[0], **case[1]).needs in [{raw} for raw in RAW]]


def test_each_raw_signal_is_somebodys():
    assert {raw for word, args in SCALAR for raw in plugins.make("trust", word, **args).needs} == set(RAW)


@pytest.mark.parametrize("case", SCALAR, ids=name)
def test_more_of_a_raw_signal_is_never_less_trust(case, fitted):
    trust = fitted[name(case)]
    (raw,) = trust.needs
    evidence, _ = world(seed=1)
    score = trust.score(evidence)[np.argsort(evidence.extra[raw])]
    assert (np.diff(score) >= 0).all() and len(set(score.tolist())) > 100


@pytest.mark.parametrize("case", ALL, ids=name)
def test_what_is_written_down_scores_as_before_bit_for_bit(case, fitted, tmp_path):
    word, args = case
    artefact.write(fitted[name(case)], tmp_path, word=word, args=args, about={"teacher": "t"})
    again, _ = artefact.read(tmp_path)
    evidence, _ = world(seed=1)
    np.testing.assert_array_equal(again.score(evidence), fitted[name(case)].score(evidence))
    assert again.needs == fitted[name(case)].needs and getattr(again, "asks", {}).keys() <= again.needs


# ---- Each one --------------------------------------------------------------------------------------------------------


def evidence_of(**extra):
    rows = len(next(iter(extra.values())))
    ids = tuple(f"q{i}" for i in range(rows))
    return Evidence(Answers(ids, ids, ids), np.zeros((rows, 1, 2), np.float32), {n: np.asarray(a) for n, a in extra.items()})


def logp(*rows):
    with np.errstate(divide="ignore"):
        return np.log(np.array(rows))


def test_entropy_is_1_where_one_option_has_it_all_and_0_where_all_are_alike_however_many_they_are():
    found = plugins.make("trust", "entropy").score(
        evidence_of(option_logp=logp([1, 0, 0, 0], [0.25] * 4, [0.5, 0.5, 0, 0], [0.8, 0.2, 0, 0], [1, 0, 0, 0]))
    )
    np.testing.assert_allclose(found[[0, 1, 4]], [1, 0, 1], atol=1e-6)
    two = evidence_of(option_logp=np.array([[np.log(0.5), np.log(0.5), -np.inf], [np.log(0.8), np.log(0.2), -np.inf]]))
    by_hand = 1 + (0.8 * np.log(0.8) + 0.2 * np.log(0.2)) / np.log(2)
    np.testing.assert_allclose(plugins.make("trust", "entropy").score(two), [0, by_hand], atol=1e-6)


def test_margin_is_the_lead_of_the_first_option_over_the_second():
    found = plugins.make("trust", "margin").score(evidence_of(option_logp=logp([0.2, 0.7, 0.1], [0.5, 0.5, 0], [0, 1, 0])))
    np.testing.assert_allclose(found, [0.5, 0, 1], atol=1e-6)


def test_a_logistic_probe_is_scikit_learns():
    linear = pytest.importorskip("sklearn.linear_model")
    evidence, correct = world()
    probe = plugins.make("trust", "logistic", l2=0.02).fit(evidence, correct, KEY)
    x = evidence.x[:, 0].astype(np.float64)
    x = (x - x.mean(0)) / x.std(0)
    theirs = linear.LogisticRegression(C=1 / (0.02 * len(x)), tol=1e-12, max_iter=10_000).fit(x, correct)
    np.testing.assert_allclose(probe.fitted["weight"], theirs.coef_[0], rtol=1e-5)
    np.testing.assert_allclose(probe.score(evidence), theirs.predict_proba(x)[:, 1], rtol=1e-5)


def test_the_neighbours_are_scikit_learns_and_one_more_that_is_as_right_as_the_source():
    neighbors = pytest.importorskip("sklearn.neighbors")
    (evidence, correct), (fresh, _) = world(), world(rows=1300, seed=1)
    found = plugins.make("trust", "knn", k=7).fit(evidence, correct, KEY).score(fresh)
    x, y = (e.x[:, 0].astype(np.float64) for e in (evidence, fresh))
    mean, scale = x.mean(0), x.std(0)
    near = neighbors.NearestNeighbors(n_neighbors=7).fit((x - mean) / scale).kneighbors((y - mean) / scale)[1]
    np.testing.assert_allclose(found, (correct[near].sum(1) + correct.mean()) / 8, rtol=1e-6)


def test_all_that_are_as_near_as_the_last_neighbour_count():
    x = np.float32([0, 0, 0, 0, 5, 5]).reshape(-1, 1, 1)
    ids = tuple("abcdef")
    evidence, right = Evidence(Answers(ids, ids, ids), x), np.array([True, False, False, False, True, True])
    found = plugins.make("trust", "knn", k=2).fit(evidence, right, KEY).score(evidence)
    np.testing.assert_allclose(found, [(1 + 0.5) / 5] * 4 + [(2 + 0.5) / 3] * 2, rtol=1e-6)


def test_rewards_become_probabilities_that_fit_the_source():
    (evidence, correct), (fresh, truth) = world(rows=2000), world(rows=4000, seed=1)
    trust = plugins.make("trust", "reward_model", model="judge").fit(evidence, correct, KEY)
    score = trust.score(fresh)
    assert abs(score.mean() - truth.mean()) < 0.03 and metrics.ece(score, truth) < 0.15
    assert metrics.auc(score, truth) == pytest.approx(metrics.auc(fresh.extra["reward"], truth), abs=1e-6)


def test_a_row_without_an_answer_has_no_reward_no_trust_and_no_say():
    evidence, correct = world()
    holed = evidence.extra["reward"].copy()
    holed[::3] = -np.inf
    there = np.arange(240) % 3 > 0
    trust = plugins.make("trust", "reward_model", model="judge")
    score = trust.fit(evidence_of(reward=holed), correct, KEY).score(evidence_of(reward=holed))
    alone = trust.fit(evidence_of(reward=holed[there]), correct[there], KEY).score(evidence_of(reward=holed[there]))
    assert (score[::3] == 0).all()
    np.testing.assert_allclose(score[there], alone, rtol=1e-6)
    nobody = evidence_of(reward=np.full(5, -np.inf))
    assert trust.fit(nobody, np.ones(5, bool), KEY).score(nobody).tolist() == [0.0] * 5


def test_a_reward_worse_than_chance_keeps_its_order_and_says_about_the_prior():
    evidence, correct = world(rows=1000)
    turned = evidence_of(reward=-evidence.extra["reward"])
    score = plugins.make("trust", "reward_model", model="judge").fit(turned, correct, KEY).score(turned)
    order = np.argsort(turned.extra["reward"])
    assert (np.diff(score[order]) >= 0).all() and score.max() > score.min()
    np.testing.assert_allclose(score, correct.mean(), atol=0.01)


@pytest.mark.parametrize("right", [0, 40])
def test_labels_of_one_kind_alone_give_a_probability_short_of_certainty(right):
    """Platt's targets: of 40 labels that are all right, 41 / 42 are expected to be."""
    correct = np.arange(40) < right
    fitted = regression.platt(np.linspace(-1, 1, 40), correct)
    assert regression.probability(np.zeros(1), fitted)[0] == pytest.approx(41 / 42 if right else 1 / 42, abs=1e-3)


def test_the_units_of_a_reward_do_not_matter():
    evidence, correct = world()
    trust = plugins.make("trust", "reward_model", model="judge")
    other = evidence_of(reward=1e4 * evidence.extra["reward"].astype(np.float64) - 1e6)
    one, two = (trust.fit(e, correct, KEY).score(e) for e in (evidence, other))
    np.testing.assert_allclose(one, two, atol=1e-4)
    assert np.ptp(one) > 0.3


@pytest.mark.parametrize("word", ["logistic", "neural"])
@pytest.mark.parametrize("value", [True, False])
def test_a_probe_needs_right_and_wrong_labels(word, value):
    evidence, correct = world()
    with pytest.raises(
        ValueError, match=f"all 240 weak labels of the source are {'right' if value else 'wrong'}.*tasks.source"
    ):
        plugins.make("trust", word).fit(evidence, np.full_like(correct, value), KEY)


@pytest.mark.parametrize("word", ["knn", "logistic"])
def test_a_probe_refuses_hidden_states_that_are_of_another_width_or_no_numbers(word, fitted):
    trust = fitted[next(n for n in fitted if n.startswith(word))]
    with pytest.raises(ValueError, match="have 7 features, this probe was fitted on 6"):
        trust.score(world(features=7)[0])
    evidence, correct = world()
    evidence.x[3, 0, 2] = np.nan
    with pytest.raises(ValueError, match="NaN or infinity: check its weights"):
        trust.fit(evidence, correct, KEY)


def test_more_neighbours_than_the_source_has_are_refused():
    evidence, correct = world(rows=50)
    with pytest.raises(ValueError, match=r"k=50 neighbours, but the source has 50 rows: allowed is 1..49; change trust.knn.k"):
        plugins.make("trust", "knn").fit(evidence, correct, KEY)


@pytest.mark.parametrize(
    ("word", "args", "said"),
    [
        ("knn", {"k": 0}, "k=0: allowed is 1 or more"),
        ("logistic", {"l2": 0.0}, "l2=0.0: allowed is a number above 0"),
        ("self_assessment", {"ask": "guess"}, "ask='guess': allowed are p_true, verbalised"),
        ("self_consistency", {"temperature": 0.0}, "temperature=0.0: allowed are 1 or more samples at a temperature above 0"),
        ("self_consistency", {"num_samples": 0}, "num_samples=0.*change trust.self_consistency"),
        ("paraphrase", {"wordings": ()}, r"wordings=\(\): allowed is a tuple of one or more texts; change --config.trust.para"),
        ("paraphrase", {"wordings": "So: {question}"}, "wordings='So: .question.': allowed is a tuple"),
        ("paraphrase", {"wordings": (3,)}, r"wordings=\(3,\): allowed is a tuple"),
        ("paraphrase", {"wordings": ("So: {question}", "Now {q}")}, "'Now {q}' has no {question}, which must stand where"),
        ("paraphrase", {"wordings": ("{question}",) * 2, "reorder": False}, "allowed is each once where reorder=False"),
        ("committee", {}, r"models=\(\): allowed is a tuple of one or more models, each once; set --config.trust.committee"),
        ("committee", {"models": ("a", "a")}, r"models=\('a', 'a'\): allowed"),
        ("committee", {"models": "ab"}, "models='ab': allowed is a tuple"),
        ("reward_model", {}, "a reward model is needed, a directory or hub id; set --config.trust.reward_model.model"),
        ("reward_model", {"kind": "rank", "model": "m"}, "kind='rank': allowed are classifier, likelihood"),
        ("reward_model", {"model": "m", "style": "leter"}, "unknown prompt style 'leter'.*did you mean 'letter'"),
    ],
)
def test_keywords_that_mean_nothing_are_refused(word, args, said):
    with pytest.raises(ValueError, match=said):
        plugins.make("trust", word, **args)


def test_a_wording_may_come_twice_where_the_options_are_moved_and_braces_of_its_own_stay():
    twice = plugins.make("trust", "paraphrase", wordings=["{question}", "{question}"])
    assert twice.asks == {"paraphrase_share": {"wordings": ("{question}", "{question}"), "reorder": True}}
    own = ("{question} In \\boxed{}.", "{a}: {question}")
    once = plugins.make("trust", "paraphrase", wordings=own, reorder=False)
    assert once.asks["paraphrase_share"] == {"wordings": own, "reorder": False}


# ---- A planted world -------------------------------------------------------------------------------------------------


def planted(rows, seed, features=256, signal=2.0):
    """Labels of which .6 are right. Hidden states tell right from wrong by `signal` standard deviations, confidence by .6."""
    rng = np.random.default_rng(seed)
    correct = rng.random(rows) < 0.6
    x = rng.normal(size=(rows, 1, features)).astype(np.float32)
    x[:, 0, 0] += signal * correct
    doubt = np.exp(-0.5 * rng.normal(size=rows) - 0.3 * correct)
    ids = tuple(f"q{i}" for i in range(rows))
    return Evidence(Answers(ids, ids, ids), x, {"answer_logp": np.float32(-doubt), "correct": correct}), correct


def test_in_a_planted_world_the_oracle_is_above_ntf_above_confidence_above_random():
    (source, known), (target, truth) = planted(1200, 0, features=16), planted(3000, 1, features=16)
    rows = {
        "oracle": ("controls", {"kind": "oracle"}),
        "ntf": ("neural", SMALL),
        "confidence": ("confidence", {}),
        "random": ("controls", {"kind": "random"}),
    }
    auc = {
        row: metrics.auc(plugins.make("trust", word, **args).fit(source, known, KEY).score(target), truth)
        for row, (word, args) in rows.items()
    }
    worst = {row: a * (1 - a) / min(truth.sum(), (~truth).sum()) for row, a in auc.items()}  # no AUC varies more than this
    for better, worse in (("oracle", "ntf"), ("ntf", "confidence"), ("confidence", "random")):
        assert auc[better] - auc[worse] > 3 * np.sqrt(worst[better] + worst[worse]), auc
    assert auc["oracle"] == 1.0
    assert abs(auc["random"] - 0.5) < 3 * np.sqrt(1 / (12 * min(truth.sum(), (~truth).sum())) * 2)


def test_under_shuffled_labels_ntf_is_at_chance():
    """Of 20 heads, each taught dealt-out labels, at least 14 have an AUC whose 95 % interval on 150 fresh rows holds .5.

    The interval knows of the rows' chance (a standard error of .048), not of the head's: it looks in some direction of 256, by
    chance a little along the signal, which adds .035. So one head's interval holds .5 with probability .89, and fewer than 14
    of 20 with .002. A head that saw through the labels has an AUC of .85 and more, and its interval never holds it.
    """
    inside, found = 0, []
    for seed in range(20):
        source, known = planted(300, 100 + seed)
        target, truth = planted(150, 200 + seed)
        dealt = np.random.default_rng(seed).permutation(known)
        score = plugins.make("trust", "neural", **SMALL).fit(source, dealt, jax.random.key(seed)).score(target)
        low, high = metrics.auc_interval(score, truth)
        inside += low <= 0.5 <= high
        found.append(metrics.auc(score, truth))
    assert inside >= 14, found
    assert abs(np.mean(found) - 0.5) < 3 * 0.06 / np.sqrt(20)
    honest = plugins.make("trust", "neural", **SMALL).fit(source, known, jax.random.key(0)).score(target)
    low, high = metrics.auc_interval(honest, truth)
    assert low > 0.5, "the same rows would teach it, if they were labelled"


# ---- What they cost --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ALL, ids=name)
def test_each_says_what_it_takes_and_a_function_of_no_matrix_is_free(case, fitted):
    told = fitted[name(case)].operations(world()[0].answers.question_id, KEY)
    learns = case[0] in ("neural", "ensemble", "knn", "logistic")
    assert (told.scoring > 0) == learns and (told.weights is not None) == (case[0] in ("neural", "ensemble"))
    assert (told.fitting is None) == bool(told.reason) == (case[0] == "logistic")


def test_an_ensemble_takes_what_its_members_take():
    evidence, correct = world()
    ids = evidence.answers.question_id
    both = plugins.make("trust", "ensemble", size=2, **SMALL).fit(evidence, correct, KEY).operations(ids, KEY)
    one = plugins.make("trust", "neural", **SMALL).fit(evidence, correct, KEY).operations(ids, KEY)
    assert (both.fitting, both.scoring, both.weights) == (2 * one.fitting, 2 * one.scoring, 2 * one.weights)
    assert both.epochs == one.epochs == SMALL["epochs"]
