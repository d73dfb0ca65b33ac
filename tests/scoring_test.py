"""Scores keep each question's own outcome, and take one answer to each."""

import pytest

from w2s_jax import scoring
from w2s_jax.types import Answers, Gold, Question

QUESTIONS = tuple(Question(f"q{i}", f"test{i % 2}", "?", group=f"g{i // 2}") for i in range(4))
GOLD = Gold(("q3", "q2", "q1", "q0"), (("c",), ("b", "bee"), ("a",), ("",)))


def answers(ids=("q0", "q1", "q2", "q3"), final=("", "a", "bee", "d")):
    return Answers(ids, ("text",) * len(ids), final)


def test_a_score_says_of_each_question_whether_it_was_right():
    found = scoring.score(QUESTIONS, GOLD, answers())
    assert found.correct.tolist() == [False, True, True, False]  # no answer is wrong, whatever is accepted
    assert found.question_id == ("q0", "q1", "q2", "q3")
    assert found.test == ("test0", "test1", "test0", "test1") and found.group == ("g0", "g0", "g1", "g1")


@pytest.mark.parametrize("ids", [("q0", "q1", "q2"), ("q0", "q0", "q1", "q1", "q2"), ("q1", "q0", "q2", "q3")])
def test_rows_that_are_not_one_to_a_question_in_order_are_refused(ids):
    with pytest.raises(ValueError, match=f"{len(ids)} answers to 4 questions: one to each is scored"):
        scoring.score(QUESTIONS, GOLD, answers(ids, ("a",) * len(ids)))
