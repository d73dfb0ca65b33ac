"""Boosting weighs teachers by what they add, and votes go by equal answers, whatever the order of teachers or options."""

import itertools

import numpy as np
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.ensemble import AdaBoostClassifier

from w2s_jax import voting

ERRORS = (0.3, 0.35, 0.4, 0.45, 0.5)


def equal(found, wanted):
    return np.array([a == b for a, b in zip(found, wanted, strict=True)])


def world(rng, errors, num_rows, num_options):
    """Planted teachers whose errors are independent: truth i[R], what they say i[T, R]."""
    truth = rng.integers(num_options, size=num_rows)
    wrong = rng.random((len(errors), num_rows)) < np.array(errors)[:, None]
    return truth, np.where(wrong, (truth + rng.integers(1, num_options, size=wrong.shape)) % num_options, truth)


def heard(answers):
    return [[str(one) for one in row] for row in answers]


@pytest.mark.parametrize(("num_options", "errors"), [(2, ERRORS), (4, (0.5, 0.55, 0.6, 0.7, 0.75))])
def test_a_boosted_vote_beats_the_best_teacher_and_equal_votes(num_options, errors):
    rng = np.random.default_rng(0)
    truth, said = world(rng, errors, 4000, num_options)
    boosted = voting.boost(said == truth, 1 / num_options)
    alone = [0.5 * np.log((1 - error) / error * (num_options - 1)) for error in errors]
    np.testing.assert_allclose(boosted.weight, alone, atol=0.05)  # errors are independent; the last guesses
    truth, said = world(rng, errors, 10000, num_options)

    def accuracy(weight):
        elected = voting.vote(heard(said), weight, equal)
        return (said[elected.teacher, np.arange(len(truth))] == truth).mean()

    assert accuracy(boosted.weight) > accuracy(np.ones(5)) + 0.005
    assert accuracy(boosted.weight) > (said == truth).mean(1).max() + 0.01


def test_an_answers_part_of_the_votes_says_how_likely_it_is_right():
    rng = np.random.default_rng(1)
    truth, said = world(rng, ERRORS, 20000, 3)
    elected = voting.vote(heard(said), voting.boost(said == truth, 1 / 3).weight, equal)
    right = said[elected.teacher, np.arange(len(truth))] == truth
    for measure in (elected.share, elected.agreement):
        low, high = (right[measure <= np.quantile(measure, 0.3)], right[measure >= np.quantile(measure, 0.7)])
        assert high.mean() > low.mean() + 0.2


class Preset(ClassifierMixin, BaseEstimator):
    """A base learner of scikit-learn's that learns nothing: each fit takes the next of the given answers."""

    def __init__(self, turns=None):
        self.turns = turns

    def __sklearn_clone__(self):
        return Preset(self.turns)

    def fit(self, X, y, sample_weight=None):
        self.classes_, self.said_ = np.unique(y), next(self.turns)
        return self

    def predict(self, X):
        return self.said_[X[:, 0].astype(int)]


@pytest.mark.parametrize("num_options", [2, 5])
def test_weights_in_the_given_order_are_half_of_those_of_samme(num_options):
    rng = np.random.default_rng(2)
    truth, said = world(rng, (0.35, 0.2, 0.4, 0.3), 50000, num_options)
    said[2, :20000] = said[0, :20000]  # what the third teacher says it says after the first: weights depend on the order
    theirs = AdaBoostClassifier(Preset(iter(said)), n_estimators=4).fit(np.arange(len(truth))[:, None], truth)
    ours = voting.boost(said == truth, 1 / num_options, voting.as_given)
    np.testing.assert_allclose(2 * ours.weight, theirs.estimator_weights_, rtol=1e-3, atol=1e-4)  # the pseudo-row
    np.testing.assert_allclose(ours.error, theirs.estimator_errors_, rtol=1e-3)
    assert ours.order.tolist() == [0, 1, 2, 3]
    alone = voting.boost(said[2:3] == truth, 1 / num_options)
    assert abs(alone.weight[0] - ours.weight[2]) > 0.05  # what the first had said already counts for less


def test_rounds_are_those_of_a_loop_written_out():
    right = np.random.default_rng(3).random((3, 7)) < 0.6
    chance, rows, alpha = 1 / 3, list(range(7)), {}
    item, left = [1 / 7] * 7, [0, 1, 2]
    while left:
        error = {t: (7 * sum(item[r] for r in rows if not right[t, r]) + 2 / 3) / 8 for t in left}
        t = min(left, key=error.__getitem__)
        left.remove(t)
        odds = (1 - error[t]) / error[t] * 2  # log(O - 1) = log 2
        alpha[t] = np.log(odds) / 2 if odds > 1 else 0.0
        item = [item[r] * np.exp(-alpha[t] if right[t, r] else alpha[t]) for r in rows]
        item = [one / sum(item) for one in item]
    boosted = voting.boost(right, chance)
    np.testing.assert_allclose(boosted.weight, [alpha[t] for t in range(3)], rtol=1e-9)
    assert boosted.order.tolist() == list(alpha)


def test_a_teacher_at_chance_or_below_counts_for_nothing_and_changes_nobody_elses_weight():
    right = np.zeros((3, 100), bool)
    right[0, :60], right[1, ::4], right[2, :10] = True, True, True  # 60 %, 25 %, 10 %
    boosted = voting.boost(right, 0.25)
    assert boosted.weight[0] > 0 and boosted.weight[1:].tolist() == [0, 0]
    assert voting.boost(right[:1], 0.25).weight[0] == boosted.weight[0]
    assert voting.boost(right[[1, 0]], 0.25, voting.as_given).weight[1] == boosted.weight[0]
    assert voting.boost(right[1:2], 1 / 4).weight[0] == voting.boost(right[2:], 0.1).weight[0] == 0  # chance itself
    assert voting.boost(right[2:], 0.05).weight[0] > 0  # of twenty options 10 % right is more than chance


def test_a_teacher_that_is_always_right_or_never_has_a_finite_weight():
    boosted = voting.boost(np.array([[True] * 5, [False] * 5]), 0.5)
    assert np.isfinite(boosted.weight).all() and boosted.weight[0] > 1 and boosted.weight[1] == 0


def test_a_twin_adds_next_to_nothing():
    rng = np.random.default_rng(4)
    truth, said = world(rng, (0.2, 0.3), 2000, 2)
    alone = voting.boost(said == truth, 0.5).weight
    twice = voting.boost(said[[0, 0, 1]] == truth, 0.5).weight
    assert max(twice[0], twice[1]) == pytest.approx(alone[0]) and min(twice[0], twice[1]) < 0.01
    assert twice[2] == pytest.approx(alone[1], abs=0.01)


def test_the_order_of_teachers_does_not_matter_and_ties_go_to_the_first():
    rng = np.random.default_rng(5)
    truth, said = world(rng, ERRORS, 301, 3)
    right, answers = said == truth, heard(said)
    boosted = voting.boost(right, 1 / 3)
    elected = voting.vote(answers, boosted.weight, equal)
    for order in itertools.islice(itertools.permutations(range(5)), 1, 120, 17):
        again = voting.boost(right[list(order)], 1 / 3)
        np.testing.assert_allclose(again.weight, boosted.weight[list(order)], rtol=1e-9)
        other = voting.vote([answers[t] for t in order], again.weight, equal)
        assert [answers[order[t]][n] for n, t in enumerate(other.teacher)] == [
            answers[t][n] for n, t in enumerate(elected.teacher)
        ]
        np.testing.assert_allclose(other.share, elected.share)
    tied = voting.boost(np.array([[True, True, False], [True, True, False]]), 0.5)
    assert tied.order.tolist() == [0, 1]
    assert voting.vote([["a"], ["b"], ["b"], ["a"]], np.ones(4), equal).teacher.tolist() == [0]
    assert voting.vote([["a"], ["b"], ["c"]], np.array([1.0, 1.0, 2.0]), equal).teacher.tolist() == [2]
    assert voting.vote([["a"], ["b"], ["c"]], np.array([1.0, 1.0, 1.0]), equal).teacher.tolist() == [0]
    heavy = voting.vote([["a"], ["b"], ["b"]], np.array([0.3, 0.1, 0.2]), equal)
    assert heavy.teacher.tolist() in ([0], [2]) and heavy.share[0] == pytest.approx(0.5)


def test_answers_are_the_same_where_the_task_says_so_and_its_heaviest_voter_stands_for_them():
    def numbers(found, wanted):
        assert all(a != b for a, b in zip(found, wanted, strict=True))  # equal strings are not asked about
        return np.array([float(a) == float(b) for a, b in zip(found, wanted, strict=True)])

    elected = voting.vote([["0.50"], ["7"], ["0.5"], [".5"]], np.array([1.0, 2.5, 1.2, 1.1]), numbers)
    assert elected.teacher.tolist() == [2] and elected.agreement[0] == 0.75
    assert elected.share[0] == pytest.approx(3.3 / 5.8)


def test_no_answer_agrees_with_nothing_and_takes_its_weight_from_the_elected():
    elected = voting.vote([["", "", "1"], ["2", "", "2"], ["", "", ""]], np.array([3.0, 1.0, 0.0]), equal)
    assert elected.teacher.tolist() == [1, -1, 0]
    np.testing.assert_allclose(elected.share, [0.25, 0, 0.75])
    np.testing.assert_allclose(elected.agreement, [1 / 3, 0, 1 / 3])
    unheard = voting.vote([["1"], [""]], np.array([0.0, 1.0]), equal)  # the only answer is one of no weight
    assert unheard.teacher.tolist() == [-1] and unheard.share.tolist() == [0]


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: voting.boost(np.zeros((0, 3), bool), 0.5), "one of each or more"),
        (lambda: voting.boost(np.zeros((2, 0), bool), 0.5), "one of each or more"),
        (lambda: voting.boost(np.ones((1, 2), bool), 1.0), "chance=1.0: allowed is a share"),
        (lambda: voting.vote([["a"], ["b", "c"]], np.ones(2), equal), r"lengths \[1, 2\]"),
        (lambda: voting.vote([["a"]], np.ones(2), equal), "2 weights"),
        (lambda: voting.vote([["a"]], np.zeros(1), equal), "one of them at least more"),
        (lambda: voting.vote([["a"], ["b"]], np.array([2.0, -1.0]), equal), "allowed are 0 and more"),
    ],
)
def test_what_cannot_be_weighed_is_refused(call, said):
    with pytest.raises(ValueError, match=said):
        call()
