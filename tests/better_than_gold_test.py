"""Labels that differ from gold: counted exactly, judged by who can, and left out where nobody can say."""

import numpy as np
import pytest
from scipy import stats

from w2s_jax.analysis import better_than_gold
from w2s_jax.types import Question

QUESTIONS = tuple(Question(f"q{n}", "t", f"What is {n}?", ("a", "b", "c")) for n in range(6))
WEAK, GOLD = tuple("abcabc"), tuple("aaaaaa")
WORTH = {"a": 2.0, "b": 2.0, "c": 5.0}


def measure(judge, mismatch=None, **more):
    mismatch = np.array([a != b for a, b in zip(WEAK, GOLD, strict=True)]) if mismatch is None else mismatch
    return better_than_gold.measure(QUESTIONS, WEAK, GOLD, mismatch, judge, method="ntf", name="solver", **more)


def test_a_solver_counts_exactly_and_sees_mismatches_alone():
    asked = []

    def value(question, answer):
        asked.append((question.id, answer))
        return None if question.id == "q5" else WORTH[answer] - 4 * (question.id == "q4" and answer == "b")

    found = measure(better_than_gold.by_solver(value))
    assert {i for i, _ in asked} == {"q1", "q2", "q4", "q5"}, "q0 and q3 agree with gold"
    counts = (found.n, found.mismatches, found.judged, found.better, found.equal, found.worse)
    assert counts == (6, 4, 3, 1, 1, 1) and found.reason == ""
    assert found.gap == 0.0 and found.share == pytest.approx(2 / 3)
    lo, hi = stats.beta.ppf(0.025, 2, 2), stats.beta.ppf(0.975, 3, 1)  # Clopper and Pearson, of 2 in 3
    assert (found.share_lo, found.share_hi) == pytest.approx((lo, hi))


@pytest.mark.parametrize(
    ("margin", "better", "equal", "worse"), [(0.0, 2, 1, 3), (0.5, 2, 1, 3), (10.0, 1, 4, 1), (10.5, 0, 5, 1), (99.0, 0, 6, 0)]
)
def test_values_within_the_margin_are_equal_and_what_lies_beyond_is_not(margin, better, equal, worse):
    apart = np.array([10.5, 3.0, 0.0, -2.0, -10.0, -11.0])
    found = measure(lambda *asked: apart, np.ones(6, bool), margin=margin)
    assert (found.better, found.equal, found.worse, found.judged, found.margin) == (better, equal, worse, 6, margin)
    assert found.share == pytest.approx((better + equal) / 6) and found.gap == pytest.approx(np.median(apart))


@pytest.mark.parametrize("margin", [0.0, 10.0])
def test_rounding_makes_nothing_better_or_worse(margin):
    around = np.array([0.1 + 0.2 - 0.3, 0.3 - 0.1 - 0.2, 1e-6, -1e-6, 0.0, 0.0])
    assert measure(lambda *asked: around + margin, np.ones(6, bool), margin=margin).better == 1
    assert measure(lambda *asked: around - margin, np.ones(6, bool), margin=margin).worse == 1


@pytest.mark.parametrize("margin", [-1.0, float("nan"), float("inf")])
def test_a_margin_that_is_none_is_refused(margin):
    with pytest.raises(ValueError, match=f"margin={margin}: allowed is a number, 0 or more; change the task's value_margin"):
        measure(lambda *asked: pytest.fail("nothing is to be judged"), margin=margin)


def test_a_solver_that_cannot_say_of_either_answer_says_nothing():
    of = {"a": None, "b": 1.0, "c": 1.0}
    found = measure(better_than_gold.by_solver(lambda question, answer: of[answer]))
    assert (found.mismatches, found.judged, found.share, found.gap) == (4, 0, None, None)
    assert found.reason == "the judge cannot say of any of the 4 mismatches"


def test_nobody_to_judge_and_nothing_to_judge_are_told_apart():
    nobody = measure(None, reason="no solver here")
    assert (nobody.judge, nobody.mismatches, nobody.share, nobody.reason) == ("", 4, None, "no solver here")
    nothing = measure(lambda *asked: pytest.fail("nothing is to be judged"), np.zeros(6, bool))
    assert (nothing.judge, nothing.mismatches, nothing.reason) == ("solver", 0, "no chosen label differs from gold")


@pytest.mark.parametrize("value", [np.zeros(3), np.full(4, np.inf)])
def test_a_judge_that_returns_something_else_is_refused(value):
    with pytest.raises(ValueError, match="the judge 'solver' returned"):
        measure(lambda *asked: value)


def test_order_alone_decides_nothing():
    """A model that always says A, one that prefers by content, and one whose preference is smaller than its habit."""

    def odds(of):
        def choose(asked):
            margin = np.array([of(q.options) for q in asked])
            return np.stack([-np.logaddexp(0, -margin), -np.logaddexp(0, margin)], 1)

        return better_than_gold.by_model(choose)(QUESTIONS, WEAK, GOLD)

    worth = {"a": 0.0, "b": 1.0, "c": -3.0}
    assert np.isnan(odds(lambda options: 2.0)).all()
    content = odds(lambda options: worth[options[0]] - worth[options[1]])
    np.testing.assert_allclose(content, [np.nan, 1, -3, np.nan, 1, -3])  # two equal answers are a tie
    habit = odds(lambda options: 2.0 + worth[options[0]] - worth[options[1]])
    np.testing.assert_allclose(habit, [np.nan, np.nan, -3, np.nan, np.nan, -3])


def test_a_model_is_shown_the_question_its_options_and_both_answers_in_both_orders():
    seen = []

    def choose(asked):
        seen.extend(asked)
        return np.zeros((len(asked), 2))

    better_than_gold.by_model(choose)(QUESTIONS[1:3], WEAK[1:3], GOLD[1:3])
    assert [q.options for q in seen] == [("b", "a"), ("c", "a"), ("a", "b"), ("a", "c")]
    assert seen[0].prompt == "What is 1?\nPossible answers: a; b; c\nWhich of these two answers is right?"
    assert len({q.id for q in seen}) == 4
