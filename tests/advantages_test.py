"""Advantages: each by its definition, and exactly 0 where a group says nothing."""

import statistics

import numpy as np
import pytest

from w2s_jax.student import advantages

REWARDS = np.random.default_rng(0).normal(size=(5, 4))
ALL = pytest.mark.parametrize("word", advantages.ADVANTAGES)


@ALL
def test_advantages_are_those_of_the_definition(word):
    def one(group, s):
        others = group[:s] + group[s + 1 :]
        return {
            "group_std": (group[s] - statistics.fmean(group)) / (statistics.stdev(group) + 1e-4),
            "group_mean": group[s] - statistics.fmean(group),
            "leave_one_out": group[s] - statistics.fmean(others),
        }[word]

    found = advantages.ADVANTAGES[word](REWARDS)
    assert found.dtype == np.float32 and found.shape == (5, 4)
    np.testing.assert_allclose(found, [[one(group, s) for s in range(4)] for group in REWARDS.tolist()], rtol=1e-6)


@ALL
def test_a_groups_advantages_add_up_to_0_and_do_not_depend_on_other_groups(word):
    found = advantages.ADVANTAGES[word](REWARDS)
    np.testing.assert_allclose(found.sum(axis=1), 0, atol=1e-6)
    np.testing.assert_array_equal(found[2:3], advantages.ADVANTAGES[word](REWARDS[2:3]))


@ALL
def test_a_constant_added_to_rewards_changes_nothing(word):
    np.testing.assert_allclose(advantages.ADVANTAGES[word](REWARDS + 3), advantages.ADVANTAGES[word](REWARDS), atol=1e-6)


@ALL
def test_equal_rewards_give_exactly_0_whatever_their_mean_rounds_to(word):
    equal = np.full((1, 7), 0.1)
    assert equal.mean() != 0.1 and (equal.sum() - 0.1) / 6 != 0.1, "these were meant to round"
    assert not advantages.ADVANTAGES[word](equal).any()


def test_zero_variance_is_exact():
    rewards = np.array([[0.3, 0.3, 0.3], [0.3, 0.3, np.nextafter(0.3, 1)], [0.0, 0.0, 1.0], [0.0, -0.0, 0.0]])
    assert advantages.zero_variance(rewards).tolist() == [True, False, False, True]
    assert advantages.zero_variance(rewards).mean() == 0.5


def test_a_group_that_differs_by_rounding_alone_is_not_blown_up():
    rewards = np.array([[0.3, 0.3, np.nextafter(0.3, 1)]])
    assert np.abs(advantages.group_std(rewards)).max() < 1e-9
