"""What a task says of how hard its questions are is read once, for the controls and for those who ask why trust works."""

import numpy as np
import pytest

from w2s_jax.analysis import easy_first
from w2s_jax.tasks import difficulty
from w2s_jax.trust import controls
from w2s_jax.types import Answers, Question


def asked(*metas, task="t"):
    return [Question(f"{task}{n}", task, "?", meta=meta) for n, meta in enumerate(metas)]


def levels(*texts):
    return asked(*({"level": text} for text in texts))


@pytest.mark.parametrize(
    ("questions", "words", "numbers"),
    [
        (levels("Level 2", "Level 5", "Level 2"), ["Level 2", "Level 5", "Level 2"], [2, 5, 2]),
        (levels("4.5", "1e1"), ["4.5", "1e1"], [4.5, 10]),
        (levels("high", "low"), ["high", "low"], None),
        (levels("grade 3 of 5", "grade 4 of 5"), ["grade 3 of 5", "grade 4 of 5"], None),
        (levels("3", "3.0"), ["3", "3.0"], None),
        (levels("3", "3"), None, None),
        (levels("3", ""), None, None),
        (asked({"level": "3"}, {}), None, None),
        (levels("3", "nan"), ["3", "nan"], None),
    ],
)
def test_what_is_said_of_all_questions_of_a_data_set_in_two_kinds_counts(questions, words, numbers):
    assert difficulty.words(questions, "level") == words
    found = difficulty.numbers(questions, "level")
    assert (found is None) == (numbers is None) and (found is None or found.tolist() == numbers)


def test_data_sets_are_parted_by_name_and_keep_their_places():
    questions = [*asked({}, {}, task="b"), *asked({}, task="a"), *asked({}, task="b")]
    parts = [(mine.tolist(), [q.task for q in some]) for mine, some in difficulty.by_data_set(questions)]
    assert parts == [([2], ["a"]), ([0, 1, 3], ["b", "b", "b"])]
    assert list(difficulty.by_data_set([])) == []


def test_strata_of_the_control_are_ordered_as_the_tasks_own_difficulty_is():
    """Where both read numbers, equally hard questions share a stratum, and harder ones of a rating are in no lower one."""
    rng = np.random.default_rng(0)
    for key, values in (("level", rng.integers(1, 6, 200)), ("rating", rng.integers(600, 2400, 200))):
        questions = asked(*({key: str(value)} for value in values))
        ids = tuple(q.id for q in questions)
        stratum = controls.difficulty(questions, Answers(ids, ids, ids), rng.random(200))
        own = easy_first.own(questions, ids)
        np.testing.assert_array_equal(own, values)
        order = np.argsort(own, kind="stable")
        assert (np.diff(stratum[order]) >= 0).all()
        for value in np.unique(own):
            assert len(set(stratum[own == value].tolist())) == 1
        assert len(set(stratum.tolist())) == (5 if key == "level" else 10)
