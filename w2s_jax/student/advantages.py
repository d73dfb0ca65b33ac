"""How much better an answer was than the others to the same question. Host side, float64 inside; pure.

    group_std      A_s = (r_s - mean r) / (std r + 1e-4), std over S - 1
    group_mean     A_s = r_s - mean r
    leave_one_out  A_s = r_s - mean of the other S - 1

A group whose rewards are all equal says nothing: its advantages are exactly 0, whatever rounding would make of the mean.

Source: group_std, arXiv 2402.03300; group_mean, arXiv 2503.20783; leave_one_out, arXiv 2402.14740.
Deviations: 1. the sample's standard deviation (S - 1) and the 1e-4 are not in 2402.03300; published trainers divide like this.
"""

import numpy as np

VERSION = "1"
FLOOR = 1e-4


def group_std(rewards: np.ndarray) -> np.ndarray:
    """Distance from the group's mean in its standard deviations: f64[Q, S] -> f32[Q, S].

    >>> group_std(np.array([[2.0, 1.0, 0.0], [0.1, 0.1, 0.1]])).round(3).tolist()
    [[1.0, 0.0, -1.0], [0.0, 0.0, 0.0]]
    """
    return _settled(rewards, _centred(rewards) / (np.std(rewards, axis=1, ddof=1, keepdims=True) + FLOOR))


def group_mean(rewards: np.ndarray) -> np.ndarray:
    """Distance from the group's mean: f64[Q, S] -> f32[Q, S].

    >>> group_mean(np.array([[1.0, 0.0, 0.0, 1.0]])).tolist()
    [[0.5, -0.5, -0.5, 0.5]]
    """
    return _settled(rewards, _centred(rewards))


def leave_one_out(rewards: np.ndarray) -> np.ndarray:
    """Distance from the mean of the others: f64[Q, S] -> f32[Q, S].

    >>> leave_one_out(np.array([[3.0, 0.0, 0.0]])).tolist()
    [[3.0, -1.5, -1.5]]
    """
    others = rewards.sum(axis=1, keepdims=True) - rewards
    return _settled(rewards, rewards - others / (rewards.shape[1] - 1))


ADVANTAGES = {"group_std": group_std, "group_mean": group_mean, "leave_one_out": leave_one_out}


def zero_variance(rewards: np.ndarray) -> np.ndarray:
    """Says which groups have all rewards equal, to the last bit: f64[Q, S] -> bool[Q]; their mean is the share of such groups.

    >>> zero_variance(np.array([[1.0, 1.0], [1.0, 0.0]])).tolist()
    [True, False]
    """
    return rewards.max(axis=1) == rewards.min(axis=1)


def _centred(rewards):
    return rewards - rewards.mean(axis=1, keepdims=True)


def _settled(rewards, advantage):
    return np.where(zero_variance(rewards)[:, None], 0.0, advantage).astype(np.float32)
