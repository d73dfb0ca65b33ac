"""Trust beside difficulty: what is planted is found, the order of rows is none of it, and what is undefined says why."""

import dataclasses

import numpy as np
import pytest
from scipy import stats

from w2s_jax import metrics
from w2s_jax.analysis import easy_first
from w2s_jax.types import Question


def planted(rows=600, seed=0):
    """Five levels of difficulty; the harder, the more labels are wrong; three rows to a group."""
    rng = np.random.default_rng(seed)
    level = rng.integers(1, 6, rows).astype(float)
    correct = rng.random(rows) < 1.05 - level / 6
    return level, correct, [f"g{r // 3}" for r in range(rows)]


def measure(score, hard, correct, group, weight=None, **more):
    weight = np.zeros(len(score)) if weight is None else weight
    return easy_first.measure(score, hard, correct, weight, group, **{"draws": 200, **more})


def test_trust_that_is_easiness_says_nothing_beyond_difficulty():
    level, correct, group = planted()
    found = measure(-level, level, correct, group)
    assert found.rho == found.rho_lo == found.rho_hi == pytest.approx(-1)
    assert found.within == found.within_lo == found.within_hi == 0.5
    assert found.auc == pytest.approx(metrics.auc(-level, correct)) and found.auc > 0.65


def test_trust_that_knows_right_from_wrong_among_equally_hard_questions_is_told_apart_from_easiness():
    level, correct, group = planted()
    knows = np.random.default_rng(1).random(len(level)) < np.where(correct, 0.8, 0.2)
    found = measure(0.5 * knows - level, level, correct, group)
    assert found.rho < -0.9 and found.within_lo > 0.7 and found.within == pytest.approx(0.8, abs=0.05)
    blind = measure(np.random.default_rng(2).random(len(level)), level, correct, group)
    assert blind.rho_lo < 0 < blind.rho_hi and blind.within_lo < 0.5 < blind.within_hi


def test_the_order_of_rows_does_not_matter():
    level, correct, group = planted(200)
    score, weight = np.round(np.random.default_rng(3).random(200), 1), np.arange(200) % 3 / 2
    one = measure(score, level, correct, group, weight)
    turn = np.random.default_rng(4).permutation(200)
    other = measure(score[turn], level[turn], correct[turn], [group[r] for r in turn], weight[turn])
    for a, b in zip(dataclasses.astuple(one)[2:-1], dataclasses.astuple(other)[2:-1], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9)


def test_ranks_are_those_of_scipy_also_where_rows_are_there_several_times():
    rng = np.random.default_rng(5)
    one, other, times = rng.integers(0, 8, 90), rng.integers(0, 5, 90), rng.integers(0, 4, (3, 90))
    found = easy_first.spearman(one, other, times.astype(float))
    wanted = [stats.spearmanr(np.repeat(one, t), np.repeat(other, t)).statistic for t in times]
    np.testing.assert_allclose(found, wanted, rtol=1e-9)
    assert np.ptp(wanted) > 0.01


def test_the_area_within_strata_is_the_mean_of_their_areas_by_pairs():
    rng = np.random.default_rng(6)
    score, correct, place = rng.integers(0, 6, 200) / 6, rng.random(200) < 0.6, rng.integers(0, 3, 200)
    place[:4], correct[:4] = 3, True  # a stratum without a pair has no say
    times = rng.integers(0, 3, (2, 200)).astype(float)
    for t, found in zip(times, easy_first.concordance(score, correct, place, times), strict=True):
        parts = [np.repeat(np.arange(200)[place == k], t[place == k].astype(int)) for k in range(3)]
        pairs = [correct[rows].sum() * (~correct[rows]).sum() for rows in parts]
        wanted = np.average([metrics.auc(score[rows], correct[rows]) for rows in parts], weights=pairs)
        assert found == pytest.approx(wanted, rel=1e-9)
    whole = easy_first.concordance(score, correct, np.zeros(200, int), np.ones((1, 200)))
    assert whole[0] == pytest.approx(metrics.auc(score, correct), rel=1e-12)


def test_rows_of_one_question_do_not_make_an_interval_narrower():
    level, correct, _ = planted(120)
    score, four = np.random.default_rng(7).random(120) - 0.1 * level, np.repeat(np.arange(120), 4)
    names = [f"{r:03d}" for r in range(120)]
    alone = measure(score, level, correct, names)
    together = measure(score[four], level[four], correct[four], [names[r] for r in four])
    apart = measure(score[four], level[four], correct[four], [str(r) for r in range(480)])
    for name in ("rho", "within"):
        (lo, hi), (lo_4, hi_4), (lo_480, hi_480) = (
            (getattr(one, f"{name}_lo"), getattr(one, f"{name}_hi")) for one in (alone, together, apart)
        )
        assert (lo_4, hi_4) == pytest.approx((lo, hi)) and hi_480 - lo_480 < 0.7 * (hi - lo)
    one_group = measure(score, level, correct, ["same"] * 120)
    assert one_group.rho == alone.rho and one_group.rho_lo is None and one_group.within_hi is None


@pytest.mark.parametrize(
    "change, undefined, said",
    [
        ({"hard": np.full(6, 2.0)}, {"rho"}, "the difficulty is the same for all 6 labels"),
        ({"score": np.full(6, 0.5)}, {"rho"}, "trust is the same for all 6 labels"),
        ({"correct": None}, {"auc", "within"}, "no gold: which labels are right is not known"),
        ({"correct": np.ones(6, bool)}, {"auc", "within"}, "an AUC needs right and wrong labels of one difficulty"),
        ({"correct": np.arange(6) < 2}, {"within"}, "an AUC needs right and wrong labels of one difficulty"),
        ({"hard": np.full(6, np.nan)}, {"rho", "auc", "within", "mean_all"}, "the difficulty of no question is known"),
    ],
)
def test_what_is_undefined_is_none_and_says_why(change, undefined, said):
    usual = {"score": np.arange(6) / 6, "hard": np.array([1.0, 1, 2, 2, 3, 3]), "correct": np.arange(6) % 2 == 0}
    found = measure(**{**usual, **change}, group=list("abcdef"), weight=np.ones(6))
    assert said in found.reason
    assert {name for name in ("rho", "auc", "within", "mean_all") if getattr(found, name) is None} == undefined


def test_labels_whose_difficulty_is_not_known_are_left_out():
    level, correct, group = planted(60)
    score = np.random.default_rng(8).random(60)
    known = np.arange(60) >= 15
    whole = measure(score, np.where(known, level, np.inf), correct, group)
    part = measure(score[known], level[known], correct[known], group[15:])
    assert whole.n == 45
    assert whole.rho == part.rho and whole.within == part.within and whole.rho_lo == part.rho_lo


def test_deciles_and_strata_count_what_they_say():
    score = np.array([0.1, 0.1, 0.1, 0.5, 0.9, 0.9])
    hard, correct = np.array([3.0, 2, 1, 2, 1, 1]), np.array([False, False, True, True, True, False])
    found = measure(score, hard, correct, list("abcdef"), weight=np.array([0, 0, 0, 0.5, 0, 1.0]))
    np.testing.assert_allclose(found.decile, [[0.1, 2, 1 / 3, 3], [0.5, 2, 1, 1], [0.9, 1, 0.5, 2]])
    np.testing.assert_allclose(found.stratum, [[1, 2 / 3, 3, 1 / 3], [2, 0.5, 2, 0.5], [3, 0, 1, 0]])
    assert found.mean_all == pytest.approx(10 / 6) and found.mean_selected == pytest.approx((2 * 0.5 + 1) / 1.5)
    many = easy_first.strata(np.random.default_rng(9).random(1000))
    np.testing.assert_array_equal(np.bincount(many), [200] * 5)


def question(i, task="t", **meta):
    return Question(i, task, "?", meta=meta)


def test_a_tasks_own_difficulty_is_its_number_and_of_several_data_sets_a_rank():
    levels = [question("a", level="Level 1"), question("b", level="Level 5"), question("c", level="Level 1", rating="9")]
    np.testing.assert_array_equal(easy_first.own(levels, ["b", "a", "b", "c"]), [5, 1, 5, 1])
    both = [question("f", level="2", rating="8"), question("g", level="3", rating="7")]
    np.testing.assert_array_equal(easy_first.own(both, ["f", "g"]), [2, 3])
    rated = [question("d", "u", rating="1500"), question("e", "u", rating="900.5", level="")]
    np.testing.assert_array_equal(easy_first.own(rated, ["d", "e"]), [1500, 900.5])
    both = easy_first.own([*levels, *rated], ["a", "b", "c", "d", "e"])
    np.testing.assert_allclose(both, [1 / 3, 2.5 / 3, 1 / 3, 0.75, 0.25])


@pytest.mark.parametrize(
    "meta", [[{"level": "easy"}, {"level": "hard"}], [{"level": "3"}, {}], [{"level": "3"}, {"level": "3"}]]
)
def test_a_task_without_numbers_for_all_its_questions_or_with_one_number_has_no_difficulty_of_its_own(meta):
    questions = [question(str(n), **one) for n, one in enumerate(meta)]
    assert np.isnan(easy_first.own(questions, ["0", "1"])).all()


def test_the_area_is_the_mean_height_whatever_the_spacing_of_steps():
    assert easy_first.area([0, 1, 2, 3], [4, 4, 4, 4]) == easy_first.area([5, 90], [4, 4]) == 4
    assert easy_first.area([0, 10], [1, 0]) == pytest.approx(0.5)
    assert easy_first.area([0, 1, 10], [1, 0.9, 0]) == pytest.approx(0.5) == easy_first.area([10, 0, 1], [0, 1, 0.9])
    assert easy_first.area([3], [1.0]) is None


def test_learning_is_followed_by_the_reward_where_there_is_one():
    loss, reward = [(0, 2.0), (1, 1.0)], [(0, 0.0), (1, 0.5), (2, 1.0)]
    assert easy_first.learnt({"loss": loss}) == easy_first.Learnt("loss", 2, 1.5)
    assert easy_first.learnt({"loss": loss, "reward": reward}) == easy_first.Learnt("reward", 3, 0.5)
    assert easy_first.learnt({"lr": loss}) is None and easy_first.learnt({"loss": loss[:1]}).area is None
