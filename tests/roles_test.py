"""Roles do not overlap, and demonstrations are the source's own, with their own answers."""

import jax
import pytest

from w2s_jax.tasks import roles
from w2s_jax.types import Answers, Question

SOURCE = tuple(Question(f"q{i}", "t", f"What is {i}?", ("a", "b")) for i in range(8))
IDS = tuple(q.id for q in SOURCE)
TRUE = Answers(IDS[::-1], tuple(f"answer {i}" for i in IDS[::-1]), ("",) * 8)


def shown(shots=3, seed=0):
    return roles.demonstrate(SOURCE, TRUE, shots=shots, key=jax.random.key(seed))


def test_demonstrations_carry_their_own_answers_and_are_the_keys():
    found = shown()
    assert len({q.id for q, _ in found}) == 3
    assert all(final == f"answer {q.id}" for q, final in found)
    assert shown() == found and len({tuple(q.id for q, _ in shown(seed=seed)) for seed in range(8)}) > 4


def test_the_shown_are_left_out_of_the_asked():
    found = shown(7)
    (left,) = roles.leave_out(SOURCE, found)
    assert {left.id, *(q.id for q, _ in found)} == set(IDS)
    assert roles.leave_out(SOURCE, ()) == SOURCE and shown(0) == ()


@pytest.mark.parametrize("shots", [-1, 8])
def test_one_question_must_be_left_to_ask(shots):
    with pytest.raises(ValueError, match=rf"shots={shots}: the source has 8 questions, allowed is 0..7; change teacher.shots"):
        shown(shots)


def test_repeated_ids_are_refused():
    one = Question("1", "t", "What?", ("a", "b"))
    with pytest.raises(ValueError, match="the test role has two questions with the id '1'"):
        roles.refuse_repeats("test", (one, one))


@pytest.mark.parametrize("same", ["id", "text"])
def test_overlapping_roles_are_refused(same):
    one = Question("1", "t", "What?", ("a", "b"))
    other = Question("1" if same == "id" else "2", "t", "Why?" if same == "id" else "What?", ("b", "a"))
    with pytest.raises(ValueError, match=f"stands in source and in test .the same {same}."):
        roles.refuse_overlap(source=(one,), test=(other,))


def test_one_text_with_other_options_is_another_question_and_a_role_may_repeat_its_own():
    which = Question("1", "t", "Which is true?", ("a", "b"))
    other, again = Question("2", "t", "Which is true?", ("a", "c")), Question("3", "t", "Which is true?", ("a", "b"))
    roles.refuse_overlap(source=(which, again), test=(other,))
