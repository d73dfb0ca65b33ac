"""Several teachers, one label: how much each one's voice counts, and what they say together (stage relabel).

    right bool[T, R] on the labelled source  ->  boost  ->  weight f64[T]
    what T teachers say of N questions, weight f[T]  ->  vote  ->  whose answer is taught, and its part of the votes

`boost` is AdaBoost over teachers that are there already: each round takes one of them, weighs it by how much better than
chance it is on the questions that weigh most, and gives more weight to the questions that it gets wrong.

Source: EnsemW2S, arXiv 2410.04571 (AdaBoost over weak language models); AdaBoost, Freund and Schapire 1997; the term for more
than two options is that of SAMME, Zhu et al. 2009.
Deviations: 1. EnsemW2S trains each weak model on questions drawn by the weights of its round; here the teachers are given.
    2. weights are half of SAMME's throughout, which changes no vote and gives AdaBoost's where there are two options.
    3. an error is smoothed by one pseudo-row that is right as often as chance, so that every weight is finite and its sign is
       that of (1 - error) - chance.
    4. a teacher no better than chance has weight 0 (and leaves the questions' weights alone) instead of ending the rounds.
    5. source and target are what the task says: the paper's split of questions into easy and hard ones is a choice of sets.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

VERSION = "1"


@dataclasses.dataclass(frozen=True)
class Boosted:
    """What boosting makes of T teachers.

    Attributes:
        weight: f64[T], at least 0; 0 = no better than chance when its turn came.
        error: f64[T], its smoothed error on the questions as they weighed then.
        order: i64[T], the teachers in the order of their turns.
    """

    weight: np.ndarray
    error: np.ndarray
    order: np.ndarray


def least_error(error: np.ndarray, left: Sequence[int]) -> int:
    """The teacher with the least weighted error; of equal ones the first."""
    return min(left, key=lambda t: (error[t], t))


def as_given(error: np.ndarray, left: Sequence[int]) -> int:
    """The next one in the order that the teachers came in."""
    return left[0]


ORDERS: Mapping[str, Callable[[np.ndarray, Sequence[int]], int]] = {"least_error": least_error, "given": as_given}
"""Whose turn it is: (weighted errors f64[T], those left, ascending) -> one of them."""


def boost(right: np.ndarray, chance: float, turn: Callable[[np.ndarray, Sequence[int]], int] = least_error) -> Boosted:
    """Weighs teachers by AdaBoost: half the log-odds of being right beyond those of chance.

    Args:
        right: bool[T, R], which of each teacher's answers to R labelled questions are right.
        chance: the share of right answers that guessing gives, 1/O where questions have O options.
        turn: whose turn it is, see `ORDERS`.

    Raises:
        ValueError: there is no teacher or no question, or `chance` is not in (0, 1).

    The second of these guesses, but it is right where the first is wrong:

    >>> boost(np.array([[True, True, True, False], [False, False, True, True]]), 0.5).weight.round(3)
    array([0.424, 0.203])
    """
    right = np.asarray(right, bool)
    if right.ndim != 2 or not right.size:
        raise ValueError(f"right has shape {right.shape}: allowed is (teachers, questions), one of each or more")
    if not 0 < chance < 1:
        raise ValueError(f"chance={chance}: allowed is a share between 0 and 1, 1/O for questions of O options")
    num_teachers, num_rows = right.shape
    item = np.full(num_rows, 1 / num_rows)
    weight, error, order = np.zeros(num_teachers), np.zeros(num_teachers), []
    left = list(range(num_teachers))
    while left:
        # To 12 places: errors that are equal but for the order of a sum are equal.
        now = ((num_rows * (~right @ item) + 1 - chance) / (num_rows + 1)).round(12)
        t = turn(now, left)
        left.remove(t)
        order.append(t)
        error[t] = now[t]
        if now[t] < round(1 - chance, 12):
            weight[t] = 0.5 * (math.log((1 - now[t]) / now[t]) - math.log(chance / (1 - chance)))
        item *= np.exp(np.where(right[t], -weight[t], weight[t]))
        item /= item.sum()
    return Boosted(weight, error, np.array(order))


@dataclasses.dataclass(frozen=True)
class Vote:
    """What T teachers say together of N questions.

    Attributes:
        teacher: i64[N], whose answer stands for the elected one: the heaviest of its voters, of equal ones the first; -1 where
            no teacher that counts gave an answer.
        share: f64[N], the elected answer's part of all weight, of teachers without an answer too; 0 where none is elected.
        agreement: f64[N], the share of all teachers, counted alike, that gave it.
    """

    teacher: np.ndarray
    share: np.ndarray
    agreement: np.ndarray


def vote(
    said: Sequence[Sequence[str]],
    weight: np.ndarray,
    agree: Callable[[Sequence[str], Sequence[str]], np.ndarray],
) -> Vote:
    """Elects the answer of the largest weight to each question.

    Teachers are gone through from the heaviest to the lightest (equal ones in the order given); an answer goes to the first
    one before it that it agrees with, or stands for itself. Of answers with equal weight the one of the heaviest voter wins,
    and the first of equal ones. "" is no answer and agrees with nothing.

    Args:
        said: T teachers' N final answers.
        weight: f[T], at least 0.
        agree: (answers, answers) -> bool: which are the same; equal strings are, and are not asked about.

    Raises:
        ValueError: teachers answered different numbers of questions, there are not as many weights, or none is above 0.

    >>> equal = lambda a, b: [x == y for x, y in zip(a, b)]
    >>> elected = vote([["4"], ["5"], ["5"]], np.array([2.0, 1.0, 0.5]), equal)
    >>> elected.teacher[0].item(), round(elected.share[0].item(), 3), round(elected.agreement[0].item(), 3)
    (0, 0.571, 0.333)
    """
    weight = np.asarray(weight, float)
    if len(weight) != len(said) or len({len(answers) for answers in said}) != 1:
        raise ValueError(f"{len(weight)} weights for answers of lengths {[len(answers) for answers in said]}: give one to each")
    if weight.min() < 0 or not weight.sum() > 0:
        raise ValueError(f"weights {weight.tolist()}: allowed are 0 and more, one of them at least more")
    turns = sorted(range(len(said)), key=lambda t: (-weight[t], t))
    rows = list(zip(*said, strict=True))
    different = list(dict.fromkeys(pair for row in rows for pair in _pairs(row, turns)))  # mathematics is slow to compare
    same = dict(zip(different, agree(*zip(*different, strict=True)), strict=True)) if different else {}
    found = [_elect(row, turns, weight, same) for row in rows]
    teacher, share, agreement = zip(*found, strict=True) if found else ((), (), ())
    return Vote(np.array(teacher, int), np.array(share, float), np.array(agreement, float))


def _pairs(row: Sequence[str], turns: Sequence[int]) -> list[tuple[str, str]]:
    """All that may have to be compared of one question: a later answer with an earlier one."""
    given = list(dict.fromkeys(row[t] for t in turns if row[t] != ""))
    return [(later, earlier) for i, later in enumerate(given) for earlier in given[:i]]


def _elect(row: Sequence[str], turns: Sequence[int], weight: np.ndarray, same: Mapping[tuple[str, str], bool]):
    voters: dict[int, list[int]] = {}  # who stands for an answer -> all who gave it
    for t in turns:
        if row[t] != "":
            first = next((f for f in voters if row[f] == row[t] or same[row[t], row[f]]), t)
            voters.setdefault(first, []).append(t)
    # Exact sums, so that equal weights tie whatever their order; `max` keeps the first, who is the heaviest.
    share = {first: math.fsum(weight[t] for t in those) / math.fsum(weight) for first, those in voters.items()}
    elected = max(share, key=lambda first: share[first], default=-1)
    if elected < 0 or not share[elected] > 0:
        return -1, 0.0, 0.0
    return elected, share[elected], len(voters[elected]) / len(row)
