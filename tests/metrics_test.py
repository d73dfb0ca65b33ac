"""Trust metrics agree with scikit-learn, do not depend on the order of rows, and say why where they are undefined."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn import calibration
from sklearn import metrics as sklearn_metrics

from w2s_jax import metrics


def _rows(seed: int, num: int = 400, ties: bool = False):
    rng = np.random.default_rng(seed)
    score = rng.random(num)
    correct = rng.random(num) < score
    return (score.round(1) if ties else score), correct


some_rows = st.lists(st.tuples(st.integers(0, 20).map(lambda i: i / 20), st.booleans()), min_size=2, max_size=60)


@pytest.mark.parametrize("ties", [False, True])
def test_auc_and_brier_are_scikit_learns(ties):
    score, correct = _rows(0, ties=ties)
    assert metrics.auc(score, correct) == pytest.approx(sklearn_metrics.roc_auc_score(correct, score), abs=1e-9)
    assert metrics.brier(score, correct) == pytest.approx(sklearn_metrics.brier_score_loss(correct, score), abs=1e-9)


@pytest.mark.parametrize("ties", [False, True])
def test_reliability_and_ece_are_scikit_learns(ties):
    score, correct = _rows(1, ties=ties)
    share, mean = calibration.calibration_curve(correct, score, n_bins=15, strategy="uniform")
    bins = metrics.reliability(score, correct)
    some = bins[bins[:, 2] > 0]
    np.testing.assert_allclose(some[:, :2], np.stack([mean, share], 1), atol=1e-9)
    assert some[:, 2].sum() == len(score)
    assert metrics.ece(score, correct) == pytest.approx(np.abs(share - mean) @ some[:, 2] / len(score), abs=1e-9)


@pytest.mark.parametrize(
    "score, right, rows, wanted",
    [
        ([0.1] * 15 + [0.9] * 15, [1] * 15 + [0] * 15, [15, 15], 0.9),
        ([0.1] * 3 + [0.9], [1, 0, 0, 0], [3, 1], 0.75 * (1 / 3 - 0.1) + 0.25 * 0.9),
        ([0.3] * 4, [1, 0, 0, 0], [4], 0.05),
        ([0.1, 0.9, 0.9, 0.9], [0, 1, 1, 1], [1, 3], 0.1),
    ],
)
def test_equal_mass_bins_keep_tied_scores_together_and_apart_from_others(score, right, rows, wanted):
    found = metrics.reliability(score, right, bins=15, equal_mass=True)[:, 2]
    assert found[found > 0].tolist() == rows
    assert metrics.ece(score, right, bins=15, equal_mass=True) == pytest.approx(wanted)


def test_equal_mass_ece_is_scikit_learns_with_quantile_bins():
    score, correct = _rows(2, num=450)
    share, mean = calibration.calibration_curve(correct, score, n_bins=15, strategy="quantile")
    bins = metrics.reliability(score, correct, equal_mass=True)
    assert set(bins[:, 2]) == {30}
    assert metrics.ece(score, correct, equal_mass=True) == pytest.approx(np.abs(share - mean).mean(), abs=1e-9)


def test_a_score_on_an_edge_belongs_to_the_bin_below():
    assert metrics.reliability([0.0, 0.5, 1.0], [True] * 3, bins=2)[:, 2].tolist() == [2, 1]


@hypothesis.given(some_rows, st.randoms())
def test_the_order_of_rows_does_not_matter(rows, random):
    shuffled = random.sample(rows, len(rows))
    one, other = (tuple(map(np.array, zip(*r, strict=True))) for r in (rows, shuffled))
    for measure in (metrics.ece, metrics.brier, metrics.purity_curve, metrics.histogram, metrics.reliability):
        np.testing.assert_allclose(measure(*one), measure(*other), atol=1e-12)
    np.testing.assert_allclose(metrics.ece(*one, equal_mass=True), metrics.ece(*other, equal_mass=True), atol=1e-12)


@hypothesis.given(some_rows)
def test_auc_of_reversed_trust_is_the_complement(rows):
    score, correct = map(np.array, zip(*rows, strict=True))
    hypothesis.assume(0 < correct.sum() < len(correct))
    assert metrics.auc(score, correct) + metrics.auc(-score, correct) == pytest.approx(1)
    assert metrics.auc(score, correct) == pytest.approx(metrics.auc(score**3 * 7 - 2, correct))


@hypothesis.given(some_rows)
def test_purity_curve_ends_at_the_share_of_right_rows_and_matches_a_sort_where_nothing_ties(rows):
    score, correct = map(np.array, zip(*rows, strict=True))
    curve = metrics.purity_curve(score, correct, points=1000)
    assert curve[-1] == pytest.approx([len(score), correct.mean(), correct.mean()])
    distinct = np.arange(len(score)) / 100
    curve = metrics.purity_curve(distinct, correct, points=1000)
    np.testing.assert_allclose(curve[:, 1], np.cumsum(correct[::-1]) / np.arange(1, len(score) + 1))


def test_undefined_quantities_say_why_and_the_audit_passes_it_on():
    with pytest.raises(metrics.Undefined, match="3 and 0"):
        metrics.auc([0.1, 0.2, 0.3], [True] * 3)
    with pytest.raises(metrics.Undefined, match="there are none"):
        metrics.purity([])
    audit = metrics.audit(np.array([0.1, 0.2]), np.array([True, True]), np.array([], int))
    assert audit.auc is None and audit.purity is None and audit.ece == pytest.approx(0.85)
    assert "2 and 0" in audit.reason and "none" in audit.reason


def test_audit_without_gold_is_empty_and_with_replaced_answers_judges_those():
    score, correct = _rows(3)
    assert metrics.audit(score, None, np.arange(3)).reason.startswith("no gold")
    assert metrics.audit(score, correct, np.arange(20), taught=np.ones(20, bool)).purity == 1.0
    assert metrics.audit(score, correct, np.arange(20)).purity == correct[:20].mean()
    with pytest.raises(ValueError, match="taught has 3 rows"):
        metrics.audit(score, correct, np.arange(20), taught=np.ones(3, bool))


@pytest.mark.parametrize("bad", [1.5, -0.1, np.nan])
def test_a_score_that_is_no_probability_is_refused_with_its_row(bad):
    with pytest.raises(ValueError, match=r"of row 1 must be a probability"):
        metrics.brier([0.5, bad], [True, False])


def test_the_purity_interval_of_independent_labels_is_wilsons():
    correct = np.arange(60) < 41
    theirs = binomtest(41, 60).proportion_ci(method="wilson")
    assert metrics.purity_interval(correct) == pytest.approx((theirs.low, theirs.high), abs=1e-9)
    assert metrics.purity_interval(np.ones(30, bool))[0] == pytest.approx(binomtest(30, 30).proportion_ci(method="wilson").low)


def test_intervals_cover_what_they_should_where_questions_share_a_passage():
    """Each of 60 passages moves the scores of its 5 rows, and whether they are right, together."""
    rng = np.random.default_rng(0)
    names = np.repeat(np.arange(60), 5)

    def draw(passages):
        shift = rng.normal(size=(passages, 1))
        correct = rng.random((passages, 5)) < 1 / (1 + np.exp(-1.5 * shift - 0.5))
        return (rng.normal(size=(passages, 5)) + shift + correct).ravel(), correct.ravel()

    truth = dict(zip(("auc", "purity"), (lambda s, c: (metrics.auc(s, c), c.mean()))(*draw(400_000)), strict=True))
    covered = {"auc": [], "purity": [], "purity, rows taken as independent": []}
    for _ in range(400):
        score, correct = draw(60)
        for name, limits in (
            ("auc", metrics.auc_interval(score, correct, names)),
            ("purity", metrics.purity_interval(correct, names)),
            ("purity, rows taken as independent", metrics.purity_interval(correct)),
        ):
            covered[name].append(limits[0] <= truth[name.split(",")[0]] <= limits[1])
    share = {name: np.mean(found) for name, found in covered.items()}
    assert 0.92 < share["auc"] < 0.98 and 0.92 < share["purity"] < 0.98
    assert share["purity, rows taken as independent"] < 0.88


def test_one_cluster_or_a_perfect_auc_has_no_interval():
    score, correct = np.array([0.1, 0.2, 0.8]), np.array([False, False, True])
    with pytest.raises(metrics.Undefined, match="AUC of 1"):
        metrics.auc_interval(score, correct)
    with pytest.raises(metrics.Undefined, match="two clusters"):
        metrics.purity_interval(correct, ["a", "a", "a"])
    audit = metrics.audit(score, correct, np.arange(3))
    assert audit.auc == 1 and audit.auc_interval is None and audit.purity_interval is not None and audit.reason == ""
