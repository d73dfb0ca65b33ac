"""Scores keep each question's own outcome, and take one answer to each."""

import numpy as np
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


def test_answers_that_the_task_says_are_the_same_are_right():
    def agree(found, wanted):
        return np.array([a != "" and float(a) == float(b) for a, b in zip(found, wanted, strict=True)])

    gold = Gold(("q0", "q1"), (("1.0", "2"), ("3",)), agree=agree)
    rows = Answers(("q1", "q0", "q0", "q0", "q1", "q0"), ("",) * 6, ("3.00", "2.0", "3", "", "1", "1"))
    assert gold.grade(rows).tolist() == [True, True, False, False, False, True]
    assert gold == Gold(gold.question_id, gold.accepted) and "agree" not in repr(gold)
    assert gold.grade(rows[[]]).shape == (0,)


def test_reference_answers_carry_the_texts_that_lead_to_them():
    assert Gold(("q",), (("7", "7.0"),), text=("3 + 4 is 7.",)).answers() == Answers(("q",), ("3 + 4 is 7.",), ("7",))
    assert Gold(("q",), (("7",),)).answers() == Answers(("q",), ("7",), ("7",))
