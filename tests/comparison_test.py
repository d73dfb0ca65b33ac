"""Intervals cover, verdicts err as rarely as promised, tests are scipy's."""

from collections import Counter

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from scipy import stats

from w2s_jax import comparison
from w2s_jax.comparison import Interval
from w2s_jax.metrics import Undefined


def _students(rng, seeds: int, num: int, lost: float, won: float):
    """Draws two students that differ where one alone is right: `lost` by the first, `won` by it."""
    u = rng.random((seeds, num))
    return np.where(u < lost, 0, 1), np.where((u >= lost) & (u < lost + won), 0, 1)


def _verdicts(rounds: int, seeds: int, num: int, lost: float, won: float) -> Counter:
    rng = np.random.default_rng(7)
    drawn = (_students(rng, seeds, num, lost, won) for _ in range(rounds))
    return Counter(comparison.decide(student - gold)[2] for student, gold in drawn)


def _beyond(rate: float, rounds: int, sigmas: float = 3) -> float:
    return sigmas * np.sqrt(rate * (1 - rate) / rounds)


def _at_most(rate: float, rounds: int) -> int:
    """The number of errors that a test of that rate stays below in all but one of a thousand simulations."""
    return int(stats.binom.ppf(0.999, rounds, rate))


def _check_error_rates(rounds: int, seeds: int, num: int):
    at_margin = _verdicts(rounds, seeds, num, 0.06, 0.04)
    assert at_margin["near-lossless"] <= _at_most(0.05, rounds)
    at_zero = _verdicts(rounds, seeds, num, 0.05, 0.05)
    for wrong in ("lossy", "super-recovery"):
        assert at_zero[wrong] <= _at_most(0.025, rounds)
    # The students of this simulation have nothing in common from seed to seed: all variation is noise.
    variance = 0.1 / num / seeds
    if seeds == 1:
        predicted = comparison.power(variance + 2 / num**2)
    else:
        predicted = comparison.power(2 / num**2, variance, seeds=seeds)
    assert at_zero["near-lossless"] / rounds == pytest.approx(predicted, abs=_beyond(predicted, rounds))


@pytest.mark.parametrize("seeds, num", [(1, 2138), (5, 1000)])
def test_verdicts_err_no_more_often_than_promised(seeds, num):
    _check_error_rates(1000, seeds, num)


def _crossed(rng, seeds: int, num: int, difference: float, *, shared: float, of_seed: float):
    """Draws differences f[S, N] of which seeds, questions and single answers each have their part.

    `shared` is how often a seed answers as all seeds do on that question; seeds scatter about `difference` by `of_seed`.
    """
    shift = difference + of_seed * rng.normal(size=(seeds, 1))
    u = np.where(rng.random((seeds, num)) < shared, rng.random(num), rng.random((seeds, num)))
    return np.where(u < 0.05 - shift / 2, -1, np.where(u > 1 - 0.05 - shift / 2, 1, 0))


@pytest.mark.parametrize("shared, of_seed", [(0.8, 0.0), (0.5, 0.004)])
def test_verdicts_over_five_seeds_err_no_more_often_than_promised_where_questions_and_seeds_have_their_own_part(
    shared, of_seed
):
    rng, rounds, seeds, num, said = np.random.default_rng(11), 1000, 5, 1200, {}
    for difference in (-0.02, 0.0):
        worlds = (_crossed(rng, seeds, num, difference, shared=shared, of_seed=of_seed) for _ in range(rounds))
        said[difference] = Counter(comparison.decide(world)[2] for world in worlds)
    assert said[-0.02]["near-lossless"] <= _at_most(0.05, rounds)
    assert max(said[0.0]["lossy"], said[0.0]["super-recovery"]) <= _at_most(0.025, rounds)
    of_question = shared**2 * 0.1 / num + 2 / num**2
    predicted = comparison.power(of_question, (1 - shared**2) * 0.1 / num / seeds + of_seed**2 / seeds, seeds=seeds)
    assert said[0.0]["near-lossless"] / rounds == pytest.approx(predicted, abs=_beyond(predicted, rounds))
    assert 0.2 < predicted < 0.99, "a case that tells something"


@pytest.mark.slow
@pytest.mark.parametrize("seeds, num", [(1, 900), (1, 2138), (1, 9000), (2, 2138), (3, 2138), (5, 900)])
def test_verdicts_err_no_more_often_than_promised_in_long_runs(seeds, num):
    _check_error_rates(2000, seeds, num)


@pytest.mark.slow
@pytest.mark.parametrize("num, lost, won", [(1000, 0.02, 0), (2138, 0.02, 0), (2138, 0.025, 0.005), (4000, 0.022, 0.002)])
def test_near_lossless_is_rare_at_the_margin_even_where_students_seldom_disagree(num, lost, won):
    # Where all that differs is lost, only whole questions count, and the rate swings about its mean by up to a point.
    rounds = 2000
    assert _verdicts(rounds, 1, num, lost, won)["near-lossless"] / rounds <= 0.05 + _beyond(0.05, rounds) + 0.01


@pytest.mark.parametrize("of_seed, of_question, noise", [(0, 0.3, 0), (0, 0, 0.3), (0.01, 0.2, 0.2), (0.03, 0.2, 0.2)])
@pytest.mark.parametrize("shared", [True, False])
def test_intervals_cover_draws_of_seeds_and_questions(of_seed, of_question, noise, shared):
    rng, hit, rounds, seeds, num = np.random.default_rng(0), 0, 300, 5, 100
    for _ in range(rounds):
        question = rng.normal(0, of_question, (1, num if shared else num * seeds))
        values = rng.normal(0, of_seed, (seeds, 1)) + question + rng.normal(0, noise, (seeds, question.size))
        if not shared:
            values[np.arange(seeds)[:, None] != np.arange(question.size) // num] = np.nan
        found = comparison.interval(values)
        hit += found.lo <= 0 <= found.hi
    assert hit / rounds >= 0.95 - _beyond(0.95, rounds)


def test_interval_of_one_seed_is_the_t_interval_of_scipy_but_for_small_corrections():
    d = np.random.default_rng(0).choice([-1.0, 0, 1], 4000, p=[0.05, 0.9, 0.05])
    theirs = stats.ttest_1samp(d, 0).confidence_interval(0.95)
    assert comparison.interval(d[None]) == pytest.approx((d.mean(), *theirs), abs=5e-5)


def test_a_dataset_mean_weighs_datasets_not_questions():
    values = np.array([[1.0] * 30 + [0.0] * 10])
    found = comparison.interval(values, test=["a"] * 30 + ["b"] * 10)
    assert found.mean == 0.5


def test_questions_that_share_a_passage_widen_the_interval():
    rng = np.random.default_rng(0)
    values = np.repeat(rng.integers(0, 2, 100), 5)[None]
    alone = comparison.interval(values)
    together = comparison.interval(values, [f"passage {i // 5}" for i in range(500)])
    widths = [i.hi - i.lo for i in (alone, together)]
    assert widths[1] / widths[0] == pytest.approx(np.sqrt(5), rel=0.05)


def test_copies_of_one_seed_say_no_more_than_that_seed():
    values = np.random.default_rng(0).integers(0, 2, (1, 2000))
    once, five = comparison.interval(values), comparison.interval(np.repeat(values, 5, axis=0))
    assert five == pytest.approx(once, abs=1e-3)


@hypothesis.given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=80))
def test_mcnemar_is_the_exact_binomial_test(pairs):
    one, other = map(np.array, zip(*pairs, strict=True))
    won, lost = int((one & ~other).sum()), int((other & ~one).sum())
    expected = min(1.0, 2 * stats.binom.cdf(min(won, lost), won + lost, 0.5)) if won + lost else 1.0
    assert comparison.mcnemar(one, other) == pytest.approx(expected, abs=1e-9)
    assert comparison.mcnemar(one, other) == comparison.mcnemar(other, one)


@pytest.mark.parametrize("probability", [(0.05, 0.05), (0.06, 0.04), (0.2, 0.1), (0, 0.01)])
def test_tost_is_two_one_sided_t_tests_of_scipy(probability):
    lost, won = probability
    d = np.random.default_rng(3).choice([-1.0, 0, 1], 1500, p=[lost, 1 - lost - won, won])
    expected = max(
        stats.ttest_1samp(d, -0.02, alternative="greater").pvalue, stats.ttest_1samp(d, 0.02, alternative="less").pvalue
    )
    assert comparison.tost(d) == pytest.approx(expected, abs=1e-9)


def test_mcnemar_and_tost_are_those_of_statsmodels():
    tables = pytest.importorskip("statsmodels.stats.contingency_tables")
    weightstats = pytest.importorskip("statsmodels.stats.weightstats")
    rng = np.random.default_rng(5)
    for num, lost, won in ((40, 0.2, 0.1), (900, 0.05, 0.05), (2000, 0.02, 0.06)):
        u = rng.random(num)
        one, other = u >= lost, (u < lost) | (u >= lost + won)
        table = [[(a & b).sum() for b in (other, ~other)] for a in (one, ~one)]
        assert comparison.mcnemar(one, other) == pytest.approx(tables.mcnemar(table, exact=True).pvalue, abs=1e-9)
        difference = one.astype(float) - other
        theirs = weightstats.DescrStatsW(difference).ttost_mean(-0.02, 0.02)[0]
        assert comparison.tost(difference) == pytest.approx(theirs, abs=1e-9)


@pytest.mark.parametrize(
    "gap, narrow, expected",
    [
        ((0.01, 0.001, 0.019), (0.01, 0.002, 0.018), "super-recovery"),
        ((0.0, -0.015, 0.015), (0.0, -0.01, 0.01), "near-lossless"),
        ((-0.01, -0.018, -0.002), (-0.01, -0.017, -0.003), "near-lossless"),
        ((-0.03, -0.05, -0.01), (-0.03, -0.045, -0.015), "lossy"),
        ((0.0, -0.025, 0.025), (0.0, -0.02, 0.02), "undetermined"),
    ],
)
def test_verdicts_are_asked_in_their_order(gap, narrow, expected):
    assert comparison.verdict(Interval(*gap), Interval(*narrow), 0.02) == expected


def test_too_few_questions_never_show_equality():
    right = np.ones((1, 148))
    assert comparison.compare(right, right).verdict == "undetermined"
    right = np.ones((1, 1000))
    assert comparison.compare(right, right).verdict == "near-lossless"


def test_power_and_needed_questions_are_those_of_the_decision():
    assert comparison.power(0.1 / 900) == pytest.approx(0.2, abs=0.005)
    assert comparison.power(0.1 / 2138) == pytest.approx(0.8, abs=0.005)
    needed = comparison.needed_n(900, 0.1 / 900)
    assert needed == pytest.approx(2138, abs=5)
    assert comparison.power(0.1 / needed) >= 0.8 > comparison.power(0.1 / (needed - 1))
    assert comparison.needed_n(900, 0.1 / 900, seed=1e-3, seeds=3) is None


def test_the_needed_number_is_told_where_power_is_short():
    rng = np.random.default_rng(0)
    short = comparison.compare(*_students(rng, 1, 900, 0.05, 0.05))
    assert short.power < 0.8 and short.needed_n > 900
    assert comparison.compare(*_students(rng, 1, 9000, 0.05, 0.05)).needed_n is None


def test_fieller_covers_the_true_ratio():
    rng, hit, rounds = np.random.default_rng(0), 0, 400
    for _ in range(rounds):
        bottom = rng.normal(0.1, 0.5, (1, 800))
        top = 0.6 * bottom + rng.normal(0, 0.3, bottom.shape)
        found = comparison.ratio(top, bottom)
        hit += found.lo <= 0.6 <= found.hi
        assert found.lo <= found.mean <= found.hi
    assert hit / rounds == pytest.approx(0.95, abs=_beyond(0.95, rounds))


def test_fieller_holds_exactly_the_ratios_that_cannot_be_told_from_the_truth():
    rng = np.random.default_rng(1)
    top, bottom = rng.normal(0.1, 0.5, (1, 500)), rng.normal(0.2, 0.5, (1, 500))
    found = comparison.ratio(top, bottom)
    for edge in (found.lo, found.hi):
        s = comparison.spread(np.stack([top, bottom]))
        along = np.array([1, -edge])
        assert (along @ s.mean) ** 2 == pytest.approx(along @ s.allowance(0.95) @ along, rel=1e-6)


def test_no_ratio_is_given_over_a_denominator_that_may_be_zero():
    rng = np.random.default_rng(0)
    with pytest.raises(Undefined, match=r"^gold - base is -?0\.\d{3} \[-0\.\d{3}, 0\.\d{3}\]: not above zero$"):
        comparison.ratio(rng.normal(size=(1, 100)), rng.choice([-1, 0, 1], (1, 100)) * 0.1, name="gold - base")
