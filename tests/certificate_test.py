"""Certified purity: bounds are the textbooks', fail as rarely as promised, and say so where they cannot hold."""

import re

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from scipy import stats

from w2s_jax import certificate, selection
from w2s_jax.certificate import Terms
from w2s_jax.types import Answers, Question

GRID = tuple(i / 10 for i in range(10))
counts = st.integers(1, 300).flatmap(lambda rows: st.tuples(st.integers(0, rows), st.just(rows)))


def terms(**changes) -> Terms:
    usual = dict(purity=0.9, delta=0.05, bound="clopper_pearson", pool="population", grid=GRID, calibration_frac=0.25)
    return Terms(**usual | changes)


@hypothesis.settings(deadline=None)
@hypothesis.given(counts, st.floats(1e-4, 0.5))
def test_clopper_pearson_is_scipys_exact_interval(count, delta):
    right, rows = count
    theirs = stats.binomtest(right, rows, alternative="greater").proportion_ci(1 - delta, method="exact").low
    assert certificate.clopper_pearson([right], [rows], delta)[0] == pytest.approx(theirs, abs=1e-9)


def test_clopper_pearson_is_that_of_statsmodels():
    proportion = pytest.importorskip("statsmodels.stats.proportion")
    right, rows = np.array([0, 3, 50, 95, 100]), np.array([5, 7, 90, 100, 100])
    theirs = proportion.proportion_confint(right, rows, alpha=0.02, method="beta")[0]  # of two sides, each at .01
    assert certificate.clopper_pearson(right, rows, 0.01) == pytest.approx(theirs, abs=1e-9)


@hypothesis.settings(deadline=None)
@hypothesis.given(counts, st.floats(1e-4, 0.5))
def test_hoeffding_is_its_formula_and_never_above_the_exact_bound(count, delta):
    right, rows = count
    found = certificate.hoeffding([right], [rows], delta)[0]
    assert found == pytest.approx(max(right / rows - np.sqrt(np.log(1 / delta) / (2 * rows)), 0), abs=1e-12)
    assert found <= certificate.clopper_pearson([right], [rows], delta)[0] + 1e-12


def test_no_rows_bound_nothing():
    for bound in certificate.BOUNDS.values():
        assert bound([0, 0], [0, 5], 0.05).tolist() == [0, 0]
        assert bound([0, 9], [0, 9], 0.05, pool=[7, 0]).tolist() == [0, 0]


@hypothesis.settings(deadline=None)
@hypothesis.given(counts, st.integers(1, 60))
def test_the_bound_of_a_pool_is_the_hypergeometric_test_turned_round(count, pool):
    (right, rows), delta = count, 0.03
    found = certificate.clopper_pearson([right], [rows], delta, pool=[pool])[0] * pool

    def chance(right_in_pool):
        return stats.hypergeom.sf(right - 1, rows + pool, right + right_in_pool, rows)

    fewest = next(x for x in range(pool + 1) if chance(x) > delta)
    assert found == pytest.approx(fewest)


def test_a_pools_bounds_are_below_the_populations_and_reach_them_in_large_pools():
    right, rows = np.array([45, 95, 190]), np.array([50, 100, 200])
    for bound in certificate.BOUNDS.values():
        of_population = bound(right, rows, 0.01)
        of_pools = [bound(right, rows, 0.01, pool=np.full(3, size)) for size in (30, 300, 100_000)]
        assert (np.diff([*of_pools, of_population], axis=0) > 0).all()
        np.testing.assert_allclose(of_pools[-1], of_population, atol=1e-3)


# A planted world: scores on a fine lattice, and the chance that a label of that score is right.


class World:
    """Draws of questions whose population purity above each threshold is known exactly."""

    def __init__(self, right_at, mass=None):
        self.score = np.linspace(0.005, 0.995, 100).astype(np.float32)
        self.mass = np.ones(100) / 100 if mass is None else mass(self.score) / mass(self.score).sum()
        self.right = np.clip(right_at(self.score.astype(float)), 0, 1)

    def purity(self, threshold) -> float:
        above = self.score >= threshold
        return float((self.mass * self.right)[above].sum() / self.mass[above].sum())

    def draw(self, rng, num):
        at = rng.choice(100, num, p=self.mass)
        return self.score[at], rng.random(num) < self.right[at]


def exactly_at(threshold, purity=0.9):
    """A world whose purity is `purity` at that threshold to the last digit, below it under, above it over."""
    world = World(lambda s: 0.5 + 0.45 * s)
    above = world.score >= threshold
    world.right[above] += purity - world.purity(threshold)
    assert world.purity(threshold) == pytest.approx(purity, abs=1e-12) and world.right.max() <= 1
    assert world.purity(threshold - 0.1) < purity - 0.01
    return world


WORLDS = {
    "easy": World(lambda s: np.where(s >= 0.3, 0.985, 0.8)),
    "a cliff": World(lambda s: np.where(s >= 0.5, 0.97, 0.7)),
    "purity exactly that wanted at a threshold": exactly_at(0.6),
    "just below what is wanted, everywhere": World(lambda s: np.full_like(s, 0.899)),
    "below, and few questions are trusted": World(
        lambda s: np.full_like(s, 0.895), mass=lambda s: np.exp(-4 * s.astype(float))
    ),
    "trust turned round": World(lambda s: 0.95 - 0.3 * s),
}


def most_failures(draws: int, delta: float) -> int:
    return int(stats.binom.ppf(0.999, draws, delta))


@pytest.mark.parametrize("name", WORLDS)
def test_population_purity_is_below_what_is_certified_in_few_of_a_thousand_draws(name):
    world, rng, draws, delta = WORLDS[name], np.random.default_rng(3), 1000, 0.05
    failed, certified = dict.fromkeys(certificate.BOUNDS, 0), dict.fromkeys(certificate.BOUNDS, 0)
    for _ in range(draws):
        drawn = world.draw(rng, 1500 if name in ("easy", "a cliff") else 600)
        for bound in certificate.BOUNDS:
            found = certificate.certify(*drawn, terms(bound=bound, delta=delta), target_score=world.score)
            certified[bound] += found.threshold is not None
            failed[bound] += found.threshold is not None and world.purity(found.threshold) < 0.9
    assert max(failed.values()) <= most_failures(draws, delta)
    if name in ("easy", "a cliff"):
        assert min(certified.values()) > 0.9 * draws, "it is no certificate that is never given"
    if name == "just below what is wanted, everywhere":
        assert certified == failed and failed["clopper_pearson"] > 0


def test_without_the_union_over_the_grid_it_would_fail_too_often():
    """The simulation can tell: the same world, each bound at level delta instead of delta / K."""
    world, rng, draws, delta = WORLDS["just below what is wanted, everywhere"], np.random.default_rng(3), 1000, 0.05
    loose = terms(delta=delta * len(GRID))  # which divides it by K again
    found = [certificate.certify(*world.draw(rng, 600), loose, target_score=world.score) for _ in range(draws)]
    assert sum(one.threshold is not None for one in found) > most_failures(draws, delta)


@pytest.mark.parametrize("bound", certificate.BOUNDS)
def test_a_pools_own_purity_is_below_what_is_certified_in_few_draws(bound):
    def simulate(right_at, num, num_target, pool):
        world, rng, failed, certified = World(right_at), np.random.default_rng(4), 0, 0
        agreed = terms(bound=bound, pool=pool, grid=(0.0, 0.3, 0.6))
        for _ in range(draws):
            target_score, truth = world.draw(rng, num_target)
            found = certificate.certify(*world.draw(rng, num), agreed, target_score=target_score)
            certified += found.threshold is not None
            failed += found.threshold is not None and truth[target_score >= found.threshold].mean() < agreed.purity
        return failed, certified

    draws = 300
    small = {"right_at": lambda s: 0.88 + 0.08 * s, "num": 2500, "num_target": 60}
    assert simulate(**small, pool="finite")[0] <= most_failures(draws, 0.05)
    if bound == "clopper_pearson":
        assert simulate(**small, pool="population")[0] > most_failures(draws, 0.05), "a pool this small needs the correction"
        failed, certified = simulate(lambda s: np.full_like(s, 0.93), 600, 400, "finite")
        assert failed <= most_failures(draws, 0.05) and certified > 0
    failed, certified = simulate(lambda s: np.full_like(s, 0.99), 1500, 400, "finite")
    assert failed == 0 and certified > 0.9 * draws


def test_the_smallest_threshold_that_is_good_enough_is_taken_and_the_curve_says_what_is_known():
    score = np.float32([0.15] * 100 + [0.55] * 100 + [0.95] * 100)
    correct = np.arange(300) % 100 < np.repeat([50, 96, 99], 100)
    found = certificate.certify(score, correct, terms(grid=(0.0, 0.5, 0.9)), target_score=np.float32([0.2, 0.6, 0.7, 0.95]))
    assert found.threshold == 0.5 and found.caveats == ()
    for line, (right, rows, kept) in zip(found.curve, [(245, 300, 4), (195, 200, 3), (99, 100, 1)], strict=True):
        low = stats.binomtest(right, rows, alternative="greater").proportion_ci(1 - 0.05 / 3, method="exact").low
        np.testing.assert_allclose(line[1:], [rows, right / rows, low, kept, kept / 4], atol=1e-9)
    assert certificate.sentence(found).startswith("With confidence 0.95, at least 0.9")
    assert "0.975 of 200 calibration questions are right, and 3 target questions are kept (coverage 75.0%)" in (
        certificate.sentence(found)
    )


def test_a_threshold_that_keeps_no_target_question_is_not_taken():
    score, correct = np.float32([0.3] * 100 + [0.9] * 100), np.arange(200) >= 40
    found = certificate.certify(score, correct, terms(grid=(0.0, 0.5)), target_score=np.float32([0.1, 0.2]))
    assert found.threshold is None and found.curve[1, 3] > 0.9


def test_a_score_on_a_threshold_counts_for_the_certificate_and_for_the_selection_alike():
    score = np.full(80, 0.95, np.float32)  # below .95 as a double
    found = certificate.certify(score, np.ones(80, bool), terms(grid=(0.95,)), target_score=score[:5])
    ids = tuple("abcde")
    chosen = selection.certified(score[:5], Answers(ids, ids, ids), certificate=found)
    assert found.curve[0, [1, 4]].tolist() == [80, 5] == [80, len(chosen.row)]


def test_where_nothing_can_be_certified_the_best_attainable_is_told_and_what_to_change():
    rng, ids = np.random.default_rng(0), tuple("abcd")
    answers, score = Answers(ids, ids, ids), np.float32([0.1, 0.4, 0.8, 0.9])
    drawn = WORLDS["just below what is wanted, everywhere"].draw(rng, 300)
    found = certificate.certify(*drawn, terms(purity=0.97, bound="hoeffding"), target_score=score)
    best = found.curve[np.argmax(found.curve[:, 3])]
    with pytest.raises(ValueError) as error:
        selection.certified(score, answers, certificate=found)
    for said in (
        "at least 0.97 are right with confidence 0.95 (hoeffding, population)",
        f"The best attainable bound is {best[3]:.3f}, at threshold {best[0]:g}: there {best[2]:.3f} of {best[1]:.0f} calib",
        f"{best[4]:.0f} target questions are kept (coverage {best[5]:.1%})",
        "set select.bound='clopper_pearson', raise select.calibration_frac or select.delta",
    ):
        assert said in str(error.value)
    advised = float(re.search(r"Set select.purity to at most ([\d.]+),", str(error.value))[1])
    assert certificate.certify(*drawn, terms(purity=advised, bound="hoeffding"), target_score=score).threshold == best[0]
    nothing = certificate.certify(np.float32([0.5]), [False], terms(), target_score=score)
    with pytest.raises(ValueError, match="No bound is above 0, from 1 calibration questions. Lower select.purity, raise"):
        selection.certified(score, answers, certificate=nothing)
    assert certificate.sentence(nothing) == "Nothing is certified: no bound of the purity reaches 0.9."


@pytest.mark.parametrize(
    ("changed", "allowed"),
    [
        ({"purity": 1.0}, "above 0 and below 1"),
        ({"delta": 0.0}, "above 0, at most 0.5"),
        ({"bound": "wilson"}, "hoeffding, clopper_pearson"),
        ({"pool": "target"}, "population, finite"),
        ({"calibration_frac": 1.0}, "above 0, at most 0.9"),
        ({"grid": ()}, "one or more thresholds"),
        ({"grid": (0.5, 0.5)}, "ascending"),
        ({"grid": (0.5, 1.5)}, r"in \[0, 1\]"),
    ],
)
def test_terms_out_of_range_are_refused(changed, allowed):
    (name,) = changed
    with pytest.raises(ValueError, match=rf"select.{name}=.*allowed is .*{allowed}.*change select.{name} in the config"):
        terms(**changed)


# The part that is held back


def questions(num, groups=0, task="a", options=("x", "y")):
    return [Question(f"{task}{i}", task, "?", options, group=f"g{i % groups}" if groups else "") for i in range(num)]


def test_a_share_of_the_questions_is_held_back_and_the_key_alone_says_which():
    asked, seed = questions(200), np.uint32([1, 2])
    held = certificate.hold_back(asked, 0.25, True, seed)
    assert len(held) == 50 and held == certificate.hold_back(asked[::-1], 0.25, True, seed)
    assert held != certificate.hold_back(asked, 0.25, True, np.uint32([1, 3]))
    assert (
        len(certificate.hold_back(asked[:2], 0.9, True, seed)) == len(certificate.hold_back(asked[:2], 0.01, True, seed)) == 1
    )
    with pytest.raises(ValueError, match="parts the source in two, and it has 1 question"):
        certificate.hold_back(asked[:1], 0.25, True, seed)


def test_questions_of_a_passage_are_held_back_together_or_one_by_one_as_asked():
    asked, seed = questions(200, groups=40), np.uint32([1, 2])
    for together in (True, False):
        held = certificate.hold_back(asked, 0.25, together, seed)
        sides = {q.group: {other.id in held for other in asked if other.group == q.group} for q in asked}
        assert len(held) == 50 and (max(map(len, sides.values())) == 1) == together


def test_caveats_name_another_distribution_another_interface_and_shared_passages():
    one = questions(4)
    assert certificate.caveats(one, questions(9)) == ()
    (said,) = certificate.caveats(one, questions(2) + questions(2, task="b"))
    assert said == "not valid out of distribution: calibrated on a, applied to a, b"
    (said,) = certificate.caveats(one, questions(2, options=()))
    assert said == "not valid out of distribution: calibrated on answers of the interface choice, applied to free"
    (said,) = certificate.caveats(questions(5, groups=3), one)
    assert said.startswith("4 of 5 calibration questions share a passage or a game with another")
