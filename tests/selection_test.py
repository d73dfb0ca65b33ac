"""Selection: n counts answered questions, one row to a question, ties are settled by the question."""

from collections import Counter

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from w2s_jax import selection
from w2s_jax.types import Answers, Question


def answers(ids="abcd", final=None):
    final = tuple(final or ids)
    return Answers(tuple(ids), final, final)


def test_top_n_takes_the_most_trusted_and_keeps_the_order_of_rows():
    found = selection.top_n(np.array([0.1, 0.9, 0.5, 0.8]), answers(), n=2)
    assert found.row.tolist() == [1, 3]
    assert found.answers.question_id == ("b", "d")
    assert found.weight.tolist() == [1, 1]
    assert found.score.tolist() == pytest.approx([0.1, 0.9, 0.5, 0.8])  # of all rows, for the audit
    assert found.origin == ("weak", "weak")


def test_ties_are_settled_by_the_question_and_not_by_its_place():
    one, other = answers("abcdefgh"), answers("hgfedcba")
    chosen = [set(selection.top_n(np.full(8, 0.5), a, n=4).answers.question_id) for a in (one, other)]
    assert chosen[0] == chosen[1] != set("abcd")


def test_a_question_gives_its_best_row_only():
    found = selection.fraction(np.array([0.2, 0.9, 0.5]), answers("aab"), fraction=1.0)
    assert found.row.tolist() == [1, 2]


@pytest.mark.parametrize(("share", "n"), [(0.01, 1), (0.5, 4), (0.68, 5), (1.0, 7)])
def test_a_fraction_is_rounded_and_gives_one_question_at_least(share, n):
    assert len(selection.fraction(np.ones(7), answers("abcdefg"), fraction=share).row) == n


@pytest.mark.parametrize("share", [0.0, -0.5, 1.01])
def test_a_fraction_outside_the_pool_is_refused(share):
    with pytest.raises(ValueError, match=rf"select.fraction={share}: allowed is \(0, 1\]; change select.fraction"):
        selection.fraction(np.ones(4), answers(), fraction=share)


def test_a_row_without_an_answer_is_never_selected_and_never_counted():
    unanswered = answers("abcd", ["x", "", "x", "x"])
    assert 1 not in selection.fraction(np.array([0.1, 0.9, 0.5, 0.8]), unanswered, fraction=1.0).row
    with pytest.raises(ValueError, match="select.n=4: the target has 3 answered questions"):
        selection.top_n(np.ones(4), unanswered, n=4)


def test_what_was_written_is_no_answer_and_an_unanswered_sample_leaves_its_question_to_the_others():
    found = Answers(tuple("aab"), ("well", "x", "y"), ("", "x", "y"))
    assert selection.top_n(np.array([0.9, 0.2, 0.5]), found, n=2).row.tolist() == [1, 2]


@pytest.mark.parametrize("n", [0, -1, 5])
def test_n_outside_the_pool_is_refused(n):
    with pytest.raises(ValueError, match=f"select.n={n}.*1..4.*change select.n"):
        selection.top_n(np.ones(4), answers(), n=n)


def test_threshold_keeps_all_at_or_above_it_and_refuses_an_empty_choice():
    score = np.array([0.1, 0.9, 0.5, 0.8])
    found = selection.threshold(score, answers(), threshold=0.8)
    assert found.row.tolist() == [1, 3] and found.weight.tolist() == [1, 1]
    with pytest.raises(ValueError, match="no row reaches it .the best score is 0.900."):
        selection.threshold(score, answers(), threshold=0.95)


def test_weights_are_the_scores():
    found = selection.weights(np.array([0.25, 1.0, 0.5, 0.0], np.float32), answers())
    assert found.weight.tolist() == [0.25, 1.0, 0.5, 0.0]


def test_a_rules_word_is_the_name_of_its_function():
    assert {word: rule.__name__ for word, rule in selection.RULES.items()} == {word: word for word in selection.RULES}


# Balanced classes


@hypothesis.settings(deadline=None)
@hypothesis.given(st.lists(st.tuples(st.sampled_from("xyz"), st.floats(0, 1)), min_size=1, max_size=40), st.data())
def test_classes_are_taken_in_equal_numbers_as_far_as_they_go_each_ones_most_trusted(rows, data):
    classes, score = (np.array(column) for column in zip(*rows, strict=True))
    ids = tuple(f"q{i}" for i in range(len(rows)))
    n = data.draw(st.integers(1, len(rows)))
    found = selection.balanced(score, Answers(ids, ids, ids), n=n, classes=classes.tolist())
    taken, there = Counter(classes[found.row].tolist()), Counter(classes.tolist())
    assert len(found.row) == n and set(found.weight.tolist()) == {1.0}
    most = max(taken.values())
    for one in there:
        assert taken[one] in (most, most - 1) or taken[one] == there[one], "short only where a class runs out"
        left = set(np.flatnonzero(classes == one)) - set(found.row.tolist())
        assert all(score[row] <= score[found.row[classes[found.row] == one]].min() for row in left if taken[one])


def test_the_odd_label_goes_where_the_next_is_trusted_most():
    score = np.array([0.9, 0.5, 0.8, 0.7, 0.6, 0.1])
    found = selection.balanced(score, answers("abcdef"), n=3, classes=list("xxyyzz"))
    assert found.row.tolist() == [0, 2, 4]
    assert selection.balanced(score, answers("abcdef"), n=4, classes=list("xxyyzz")).row.tolist() == [0, 2, 3, 4]


def test_balanced_counts_answered_questions_by_their_best_row():
    found = Answers(tuple("aabc"), tuple("1234"), ("x", "y", "", "y"))
    assert selection.balanced(np.array([0.2, 0.9, 1.0, 0.5]), found, n=2, classes=["x", "y", "", "y"]).row.tolist() == [1, 3]
    with pytest.raises(ValueError, match="select.n=3: the target has 2 answered questions"):
        selection.balanced(np.ones(4), found, n=3, classes=["x", "y", "", "y"])


def test_a_class_is_the_place_of_the_answered_option_or_a_word_of_the_question():
    first = Question("a", "t", "?", ("no", "yes"), {"subject": "law", "level": "1"})
    second = Question("b", "t", "?", ("yes", "no", "perhaps"), {"subject": "art"})
    rows = Answers(tuple("abb"), ("yes", "yes", ""), ("yes", "yes", ""))
    assert selection.classes((first, second), rows, "answer") == ("1", "0", "")
    assert selection.classes((first, second), rows, "subject") == ("law", "art", "art")
    with pytest.raises(ValueError, match="select.balance='level': 1 questions do not have it, such as 'b'; .*here: subject;"):
        selection.classes((first, second), rows, "level")
    plain = Question("c", "t", "?")
    with pytest.raises(ValueError, match="select.balance='answer': 'c' has no options to balance; .*nothing else; change"):
        selection.classes((first, plain), rows, "answer")
