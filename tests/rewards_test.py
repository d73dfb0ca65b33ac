"""Rewards: what each counts, how they add up, and that a wrong one is named."""

import sys
import types

import numpy as np
import pytest

from w2s_jax.student import rewards


@pytest.fixture
def own(monkeypatch):
    """A user's module with one reward, by a dotted path."""

    def put(function):
        module = types.ModuleType("own_rewards")
        function.__module__, module.score = "own_rewards", function
        monkeypatch.setitem(sys.modules, "own_rewards", module)
        return rewards.resolve("own_rewards.score")

    return put


def test_agreement_is_the_tasks_own_and_no_answer_agrees_with_nothing():
    def as_numbers(found, wanted):
        return [float(a or 0) == float(b or 0) for a, b in zip(found, wanted, strict=True)]

    found = rewards.agreement(finals=["1/2", "0.50", "", ""], wanted=["0.5", "0.5", "0", ""], agree=rewards.equal)
    assert found.tolist() == [0, 0, 0, 0]
    found = rewards.agreement(finals=["1", "0.50", "", ""], wanted=["0.5", "0.5", "0", ""], agree=as_numbers)
    assert found.tolist() == [0, 1, 0, 0]


def test_without_an_agreement_of_its_own_a_tasks_answers_agree_as_strings():
    assert rewards.equal(["a", "b", ""], ["a", "a", ""]).tolist() == [True, False, False]


@pytest.mark.parametrize(
    "text, counts",
    [
        (r"so \boxed{7}.", True),
        (r"\boxed{\frac{1}{2}}", True),
        (r"\boxed{\{1, 2\}}", True),
        (r"\boxed{} no, \boxed{3}", True),
        (r"\boxed{\boxed{3}", True),
        (r"\boxed{7", False),
        (r"\boxed{\frac{1}{2}", False),
        (r"\boxed{7\}", False),
        (r"\boxed{ }", False),
        ("boxed 7", False),
        ("", False),
        ("\\boxed{\\", False),
    ],
)
def test_the_box_must_be_closed_and_hold_something(text, counts):
    assert rewards.boxed_format(texts=[text]).tolist() == [counts]


def test_an_answer_was_found_or_not():
    assert rewards.answered(finals=["7", ""]).tolist() == [1, 0]


def test_overlong_falls_along_a_line_within_the_buffer():
    found = rewards.overlong(num_tokens=[1, 80, 81, 85, 99, 100, 101], max_new_tokens=100, overlong_buffer=20)
    np.testing.assert_allclose(found, [0, 0, -0.05, -0.25, -0.95, -1, -1])


def test_rewards_add_up_by_their_weights_and_report_their_own_means():
    found, means = rewards.total(
        [rewards.agreement, rewards.answered, rewards.overlong], [1.0, 0.5, 2.0],
        texts=["x", "y", "z"], finals=["1", "2", ""], wanted=["1", "1", "1"], agree=rewards.equal, num_tokens=[5, 10, 10],
        max_new_tokens=10, overlong_buffer=5, cut=[False, True, True], questions=[None] * 3,
    )  # fmt: skip
    assert found.dtype == np.float64 and found.tolist() == [1.5, -1.5, -2.0]
    assert means == {"agreement": pytest.approx(1 / 3), "answered": pytest.approx(2 / 3), "overlong": pytest.approx(-2 / 3)}


def test_no_completions_have_no_rewards():
    found, means = rewards.total([rewards.answered], [1.0], texts=[], finals=[])
    assert found.shape == (0,) and means == {"answered": 0.0}


def test_a_users_reward_is_found_by_its_path_and_named_by_it(own):
    def score(*, texts, **about):
        return [float(len(text)) for text in texts]

    function = own(score)
    found, means = rewards.total([function], [2.0], texts=["ab", "c"], finals=["", ""])
    assert found.tolist() == [4.0, 2.0] and list(means.values()) == [1.5]
    assert next(iter(means)).startswith("own_rewards.")
    assert rewards.source_words([function, rewards.agreement]) == ("own_rewards", "w2s_jax.student.rewards")


@pytest.mark.parametrize(
    "word", ["agreemnt", "own.nowhere", "w2s_jax.student.rewards.nothing", "w2s_jax.student.rewards.VERSION"]
)
def test_an_unknown_reward_is_refused_with_what_exists(word):
    with pytest.raises(
        ValueError, match=rf"reward '{word}': .* agreement, answered, boxed_format, overlong, or .* student\.grpo"
    ):
        rewards.resolve(word)


def test_what_a_users_module_fails_to_import_is_said_as_it_is(tmp_path, monkeypatch):
    (tmp_path / "half_a_reward.py").write_text("import not_installed_anywhere\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="not_installed_anywhere"):
        rewards.resolve("half_a_reward.score")


@pytest.mark.parametrize(
    "returned, said",
    [
        ([1.0], r"own_rewards\..*score returned an array of shape \(1,\): allowed is \(2,\)"),
        (1.0, r"own_rewards\..*score returned an array of shape \(\): allowed is \(2,\)"),
        ([[1.0], [2.0]], r"own_rewards\..*score returned an array of shape \(2, 1\)"),
        ([1.0, float("nan")], r"own_rewards\..*score returned nan for row 1"),
        ([float("-inf"), 0.0], r"own_rewards\..*score returned -inf for row 0"),
        ([None, 1.0], r"own_rewards\..*score returned nan for row 0"),
        (["a", "b"], r"own_rewards\..*score returned what is no sequence of numbers"),
    ],
)
def test_a_reward_that_returns_nonsense_is_named(returned, said, own):
    def score(**about):
        return returned

    with pytest.raises(ValueError, match=said):
        rewards.total([rewards.answered, own(score)], [1.0, 1.0], texts=["a", "b"], finals=["", ""])
