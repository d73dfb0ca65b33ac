"""Expansion: golden numbers, constants against brute force, and bounds that no student exceeds."""

import itertools
from fractions import Fraction

import numpy as np
import pytest

from experiments.configs import theory_expansion
from w2s_jax.theory import Study, bounds, expansion, probing, two_views
from w2s_jax.theory.expanding import by_oracle, every_subset, reach, robust_mistakes, robust_non_mistakes
from w2s_jax.theory.expanding import expansion as measured
from w2s_jax.theory.judging import Population, judge, promised
from w2s_jax.theory.neighbours import alike, ball, caution, flip_rate, joined, nearest, nearest_of, robust
from w2s_jax.theory.partition import ABSTAIN, partition, share


def some_graph(rng, size, edges):
    """A random graph whose points have one group at least."""
    return joined(alike(rng.integers(0, edges, size)), alike(rng.integers(0, edges, size)))


# The formulas


@pytest.mark.parametrize(
    "bound, letters, digits, value",
    [
        (bounds.pseudolabel_correction, {"err": 0.12, "alpha": 0.11, "c": 0.848}, 4, 0.0497),
        (bounds.pseudolabel_correction, {"err": 0.29, "alpha": 0.33, "c": 0.497}, 4, 0.3737),
        (bounds.coverage_expansion, {"err": 0.12, "alpha": 0.11, "c1": 0.16, "c2": 0.98}, 3, 0.353),
        (bounds.coverage_expansion, {"err": 0.29, "alpha": 0.33, "c1": 0.75, "c2": 0.55}, 3, 0.338),
    ],
)
def test_the_golden_numbers_come_out_to_the_digits_given(bound, letters, digits, value):
    assert round(bound(**letters).value, digits) == value


@pytest.mark.parametrize(
    "bound, constants, value",
    [
        (bounds.pseudolabel_correction, {"c": 1}, Fraction(11, 80)),  # (.2 - .1 + 2 x .1 x .05) / .8
        (bounds.pseudolabel_correction_simple, {"c": 1}, Fraction(13, 80)),  # .2 / .8 x .05 + .2 - .1 / 2
        (bounds.coverage_expansion, {"c1": Fraction(1), "c2": Fraction(1)}, Fraction(29, 160)),  # .05 + .1 x .05 / .8 + .1 / .8
        (bounds.coverage_from_good, {"c": 1}, Fraction(49, 180)),  # .05 + .2 / .9
    ],
)
def test_what_is_not_robust_adds_to_each_bound_as_by_hand(bound, constants, value):
    given = {"err": Fraction(1, 5), "alpha": Fraction(1, 10), **constants}
    assert bound(**given, rho=Fraction(1, 20)).value == value > bound(**given).value


def test_co_training_is_coverage_expansion_at_its_best():
    err, alpha = Fraction(1, 5), Fraction(1, 10)
    assert bounds.blum_mitchell(err=err, alpha=alpha).value == (err - alpha) / (1 - 2 * alpha)
    assert bounds.coverage_expansion_simple(err=err, alpha=alpha, c=1).value == bounds.blum_mitchell(err=err, alpha=alpha).value


def test_full_expansion_corrects_as_co_training_does():
    """With c = 1 and a robust student B.1 is (err - alpha) / (1 - 2 alpha) too."""
    found = bounds.pseudolabel_correction(err=Fraction(1, 5), alpha=Fraction(1, 10), c=1).value
    assert found == Fraction(1, 8) < bounds.trivial(err=Fraction(1, 5), alpha=Fraction(1, 10)).value


def test_the_simple_theorem_is_never_below_the_full_one():
    shares = [Fraction(n, 20) for n in range(0, 20, 3)]
    seen = 0
    for err, alpha, c, rho in itertools.product(shares, repeat=4):
        simple = bounds.pseudolabel_correction_simple(err=err, alpha=alpha, c=c, rho=rho)
        full = bounds.pseudolabel_correction(err=err, alpha=alpha, c=c, rho=rho)
        if simple.value is not None and full.value is not None:
            seen += 1
            assert simple.value >= full.value
    assert seen > 20


def test_the_bound_of_fu_corrects_nothing_below_three_quarters():
    for alpha in (0.05, 0.3, 0.7):
        assert bounds.fu(alpha=alpha, coverage=1).value > alpha
    assert bounds.fu(alpha=0.1, coverage=0).value == 1


@pytest.mark.parametrize(
    "bound, letters, said",
    [
        (bounds.pseudolabel_correction, {"err": 0.1, "alpha": 0.5, "c": 1}, "alpha < 1/2"),
        (bounds.pseudolabel_correction, {"err": 0.1, "alpha": 0.1, "c": 0}, "c > 0"),
        (bounds.pseudolabel_correction, {"err": 0.1, "alpha": 0.1, "c": 1, "q": 0.85}, "1 - q - alpha"),
        (bounds.pseudolabel_correction_simple, {"err": 0.1, "alpha": 0.4, "c": 1, "q": 0.2}, "3/4 (1 - 2 alpha)"),
        (bounds.pseudolabel_correction_simple, {"err": 0.5, "alpha": 0.1, "c": 1}, "(1 - alpha + 3 c alpha) / 4"),
        (bounds.coverage_expansion, {"err": 0.1, "alpha": 0.6, "c1": 1, "c2": 1}, "alpha < 1/2"),
        (bounds.coverage_expansion, {"err": 0.1, "alpha": 0.1, "c1": 0.1, "c2": 1}, "c1 (1 - q - alpha)"),
        (bounds.coverage_expansion, {"err": 0.01, "alpha": 0.4, "c1": 0.2, "c2": 1}, "c1 - (c1 + c2) alpha"),
        (
            bounds.coverage_expansion,
            {"err": 0.1, "alpha": 0.11, "c1": 0.16, "c2": 0.98, "rho": 0.01},
            "c_min / c_max - 2 alpha",
        ),
        (bounds.coverage_from_good, {"err": 0.1, "alpha": 0.1, "c": 0}, "c > 0"),
    ],
)
def test_a_failed_precondition_is_named(bound, letters, said):
    found = bound(**letters)
    assert found.value is None
    assert said in found.reason


@pytest.mark.parametrize("letters", [{"err": 1.2}, {"alpha": -0.1}, {"rho": 2}, {"q": 1}, {"q": -0.1}])
def test_what_is_no_probability_is_refused(letters):
    with pytest.raises(ValueError, match=f"{next(iter(letters))}=.*allowed"):
        bounds.coverage_expansion(**{"err": 0.1, "alpha": 0.1, "c1": 1, "c2": 1, **letters})


@pytest.mark.parametrize("eta", [-0.1, 1, 2])
def test_an_eta_out_of_range_is_refused(eta):
    graph, one = alike(np.zeros(3, int)), np.zeros(3, int)
    for refused in (
        lambda: robust(one, graph, eta),
        lambda: reach(np.ones((1, 3), bool), graph, np.ones(3, bool), eta),
        lambda: bounds.unrobust_at_most(gamma=0.1, eta=eta),
    ):
        with pytest.raises(ValueError, match="eta=.*allowed"):
            refused()


# The partition and the graph


def test_the_parts_hold_every_point_once():
    rng = np.random.default_rng(0)
    gold, weak = rng.integers(0, 3, 200), rng.integers(-1, 3, 200)
    parts = partition(weak, gold)
    held = sum(part.good.astype(int) + part.bad + part.uncovered for part in parts)
    assert held.tolist() == [1] * 200
    for part in parts:
        assert (weak[part.good] == part.label).all() and (weak[part.uncovered] == ABSTAIN).all()
        assert part.alpha == Fraction(int(part.bad.sum()), int(part.bad.sum() + part.good.sum()))


def test_an_empty_s_is_refused_and_an_empty_t_makes_coverage_inapplicable():
    gold = np.array([0, 0, 0, 1, 1, 1])
    with pytest.raises(ValueError, match="S is empty"):
        partition(np.full(6, ABSTAIN), gold)
    with pytest.raises(ValueError, match="gold holds"):
        partition(gold, gold - 1)
    weak = np.array([0, 1, 0, 1, 1, 1])
    verdicts = judge(Population(gold, weak, alike(gold), gold[None], gold))
    assert {v.reason for v in verdicts if v.theorem == "B.2"} == {"T_i empty in class 0", "S_i^bad and T_i empty in class 1"}
    assert {v.reason for v in verdicts if v.theorem == "B.1" and v.label == 1} == {"S_i^bad empty in class 1"}


def test_expansion_on_an_empty_set_or_out_of_range_is_refused():
    graph, none, all_ = alike(np.zeros(3, int)), np.zeros(3, bool), np.ones(3, bool)
    for a, b in ((none, all_), (all_, none)):
        with pytest.raises(ValueError, match="is empty"):
            measured(np.zeros((1, 3), bool), graph, a, b)
    with pytest.raises(ValueError, match="reaches out of B"):
        measured(all_[None], graph, all_, np.array([True, False, False]))
    with pytest.raises(ValueError, match="q=1"):
        measured(all_[None], graph, all_, all_).at(1)
    with pytest.raises(ValueError, match="2\\^17 subsets"):
        every_subset(np.ones(17, bool))


def test_neighbours_are_those_of_the_definition():
    x = np.random.default_rng(1).normal(size=(30, 2))
    apart = np.linalg.norm(x[:, None] - x[None], axis=2)
    np.fill_diagonal(apart, np.inf)
    assert (ball(x, 0.7).toarray() == (apart <= 0.7)).all()
    among = np.argsort(np.argsort(apart, axis=1), axis=1) < 4
    assert (nearest(x, 4).toarray() == (among | among.T)).all()
    a, b = np.arange(30) < 10, np.arange(30) >= 20
    assert nearest_of(x, a, b).tolist() == (20 + apart[:10, 20:].argmin(axis=1)).tolist()


def test_equal_points_are_neighbours_and_none_is_its_own():
    graph = nearest(np.zeros((6, 2)), 3)
    assert graph.diagonal().sum() == 0
    assert np.diff(graph.indptr).min() >= 3
    for k in (0, 6):
        with pytest.raises(ValueError, match="allowed is 1..5"):
            nearest(np.zeros((6, 2)), k)
    with pytest.raises(ValueError, match="radius"):
        ball(np.zeros((6, 2)), 0.0)


def test_a_graph_that_is_not_connected_is_said():
    assert caution(alike(np.zeros(4, int))) == ""
    assert "2 pieces" in caution(alike(np.array([0, 0, 1, 1])))


def test_flip_rates_are_counts_over_neighbours_and_few_flips_make_few_unrobust_points():
    rng = np.random.default_rng(2)
    graph = some_graph(rng, 40, 6)
    dense = graph.toarray().astype(bool)
    for f in rng.integers(0, 3, (5, 40)):
        rate = flip_rate(f, graph)
        assert rate.tolist() == [np.mean(f[row] != f[i]) if row.any() else 0 for i, row in enumerate(dense)]
        for eta in (0.1, 0.25, 0.5):
            steady = robust(f, graph, eta)
            assert (steady == (rate <= eta + 1e-12)).all()
            assert np.mean(~steady) <= bounds.unrobust_at_most(gamma=rate.mean(), eta=eta).value


# Constants


def brute_reach(u, dense, a, eta):
    """|A| P_{1-eta}(U, A) by trying every V in A: what is outside costs nothing and is kept."""
    edges = (dense & u).sum(axis=1)
    total, place = edges.sum(), np.flatnonzero(a)
    outside = edges[~a].sum()
    least = len(place)
    for kept in itertools.product((False, True), repeat=len(place)):
        v = place[list(kept)]
        if outside + edges[v].sum() >= (1 - eta) * total:
            least = min(least, len(v))
    return least


@pytest.mark.parametrize("eta", [Fraction(0), Fraction(1, 10), Fraction(1, 3)])
def test_the_robust_neighbourhood_is_the_smallest_of_all_subsets(eta):
    rng = np.random.default_rng(3)
    for _ in range(4):
        graph, a = some_graph(rng, 16, 5), np.arange(16) < 8
        family = every_subset(np.arange(16) >= 12)[1:]
        assert reach(family, graph, a, eta).tolist() == [brute_reach(u, graph.toarray() > 0, a, eta) for u in family]


def test_the_constant_is_the_smallest_ratio_among_all_sets_above_q():
    rng = np.random.default_rng(4)
    for _ in range(10):
        graph, a, b = some_graph(rng, 16, 5), np.arange(16) < 8, np.arange(16) >= 10
        family, dense = every_subset(b), graph.toarray().astype(bool)
        found = measured(family, graph, a, b)
        for q in (Fraction(0), Fraction(1, 6), Fraction(1, 3), Fraction(2, 3), Fraction(9, 10)):
            ratios = [share(dense[u].any(axis=0), a) / share(u, b) if u.any() else None for u in family if share(u, b) > q]
            assert found.at(q) == min([Fraction(1), *ratios])


def test_the_constant_of_unions_is_that_of_the_worst_one():
    """All functions of the content, no stray edges, eta = 0: known in closed form."""
    seen = set()
    for seed in range(20):
        p = two_views.contents(np.random.default_rng(seed), stray=0.0, dependence=0.3)
        part = partition(p.weak, p.gold)[0]
        piece = np.unique(p.graph.toarray() + np.eye(len(p.gold)), axis=0) > 0  # a row for each content
        good, bad = (piece & part.good).sum(axis=1), (piece & part.bad).sum(axis=1)
        family = robust_non_mistakes(p.f, p.gold, robust(p.f, p.graph, 0), part.good)
        found = measured(family, p.graph, part.bad, part.good).at(0)
        assert found == two_views.known_constant(good, bad)
        seen.add(found)
    assert len(seen) > 5


def test_who_can_fit_the_weak_labels_exactly_does_not_expand():
    """Proposition 4.1: with the weak labels in the family, the good points without bad neighbours are a set of it."""
    gold, weak = np.zeros(7, int), np.array([0, 0, 0, 1, 1, 0, 0])
    graph = alike(np.array([0, 0, 0, 0, 0, 1, 1]))
    good, bad = weak == 0, weak == 1
    without, with_it = (
        measured(robust_non_mistakes(f, gold, robust(f, graph, 0), good), graph, bad, good)
        for f in (np.zeros((1, 7), int), np.stack([gold, weak]))
    )
    assert without.at(0) == 1
    assert with_it.at(0) == 0
    assert with_it.at(Fraction(2, 5)) == 1  # two of five good points are no larger share


def test_the_oracle_never_estimates_more_than_there_is():
    rng = np.random.default_rng(6)
    for _ in range(10):
        x = rng.normal(size=(60, 2))
        a, b = np.arange(60) < 25, np.arange(60) >= 30
        oracle = nearest_of(x, a, b)
        family = rng.random((50, 60)) < rng.random((50, 1))
        family &= b
        edges = np.zeros((60, 60), int)
        edges[np.flatnonzero(a), oracle] = 1
        graph = joined(alike(np.arange(60)), type(alike(np.arange(60)))(edges + edges.T))
        exact, estimated = measured(family, graph, a, b), by_oracle(family, oracle, a, b)
        assert all(estimated.at(q) <= exact.at(q) for q in (0, Fraction(1, 10), Fraction(1, 2)))
        assert estimated.at(0) == min(
            [Fraction(1)] + [Fraction(int(u[oracle].sum()), 25) / share(u, b) for u in family if u.any()]
        )


# The theorems


@pytest.mark.parametrize("draws", [80, pytest.param(1000, marks=pytest.mark.slow)])
def test_no_bound_is_exceeded_in_any_draw_in_which_its_preconditions_hold(draws):
    """Every theorem, both classes; what the theorems do not promise is broken in the same draws."""
    broken, applied, granted = 0, 0, 0
    for number, draw in enumerate(expansion.KINDS.values()):
        for place, eta in enumerate((0.0, 0.03)):
            rng = np.random.default_rng([7, number, place])
            trials = expansion.applicable(rng, draw, draws=draws // 4, size=80, eta=eta, dependence=0.6)
            verdicts = [v for trial in trials for v in trial.verdicts]
            assert sum(v.bound is not None for v in verdicts) > draws / 4
            applied += sum(any(v.bound is not None and v.bound < 1 for v in trial.verdicts) for trial in trials)
            broken += sum(v.violated for v in verdicts)
            granted += sum(realised > bound for trial in trials for bound, realised in trial.granted)
    assert (applied, broken) == (draws, 0)
    assert granted > draws / 20


def test_the_bounds_hold_for_every_classifier_of_the_family_not_only_the_fitted_one():
    rng = np.random.default_rng(8)
    applied = 0
    for draw in expansion.KINDS.values():
        for _ in range(6):
            p = draw(rng, size=60, alpha=rng.uniform(0.05, 0.4), dependence=rng.uniform(0, 0.5))
            for f in p.f[rng.choice(len(p.f), 12, replace=False)]:
                verdicts = judge(Population(p.gold, p.weak, p.graph, p.f, f), eta=0.03)
                applied += sum(v.bound is not None for v in verdicts)
                assert not any(v.violated for v in verdicts)
    assert applied > 50


def test_the_bounds_hold_for_any_classifier_where_all_subsets_expand():
    """The strongest form: U ranges over all subsets, f over all labellings of a small graph."""
    rng = np.random.default_rng(9)
    applied = 0
    for _ in range(12):
        size = 15
        weak = np.where(np.arange(size) < 7, 0, np.where(np.arange(size) < 10, 1, ABSTAIN))
        graph = joined(alike(rng.integers(0, 3, size)), alike(rng.integers(0, 4, size)))
        part = partition(weak, np.zeros(size, int))[0]
        to_bad = measured(every_subset(part.good), graph, part.bad, part.good)
        to_bad_from_t = measured(every_subset(part.uncovered), graph, part.bad, part.uncovered)
        to_good = measured(every_subset(part.uncovered), graph, part.good, part.uncovered)
        for f in (rng.random((100, size)) < 0.1).astype(int):
            steady, off = robust(f, graph, 0), f != weak
            letters = {"err": share(off, part.covered), "alpha": part.alpha}
            for q in (Fraction(0), Fraction(1, 4), Fraction(1, 2)):
                on_s = bounds.pseudolabel_correction(
                    **letters, c=to_bad.at(q), q=q, rho=share(~steady, part.covered), unfit=share(off | ~steady, part.covered)
                )
                on_t = bounds.coverage_expansion(
                    **letters, c1=to_good.at(q), c2=to_bad_from_t.at(q), q=q, rho=share(~steady, part.uncovered)
                )
                for bound, points in ((on_s, part.covered), (on_t, part.uncovered)):
                    if bound.value is not None:
                        applied += 1
                        assert share(f != 0, points) <= bound.value
    assert applied > 100


def test_of_all_q_that_a_theorem_holds_for_the_best_is_taken():
    rng = np.random.default_rng(16)
    choices = 0
    for _ in range(16):
        p = two_views.gaussian(rng, size=80, alpha=0.3, dependence=0.5)
        part = partition(p.weak, p.gold)[1]
        steady = robust(p.f, p.graph, 0)
        c1 = measured(robust_mistakes(p.f, p.gold, steady, part.uncovered), p.graph, part.good, part.uncovered)
        letters = {
            "err": share(p.student != p.weak, part.covered),
            "alpha": part.alpha,
            "rho": share(~robust(p.student, p.graph, 0), part.uncovered),
        }
        tried = [bounds.coverage_from_good(c=c1.at(q), q=q, **letters).value for q in (Fraction(n, 200) for n in range(200))]
        values = {value for value in tried if value is not None}
        (found,) = (v for v in judge(p) if v.theorem == "B.3" and v.label == 1)
        if not values:
            assert found.bound is None
            continue
        assert found.bound <= min(values)
        assert found.bound == bounds.coverage_from_good(c=c1.at(found.q), q=found.q, **letters).value
        choices += len(values) > 2
    assert choices > 3


def test_the_promise_over_all_points_is_kept_and_beats_the_trivial_one_with_independent_views():
    rng = np.random.default_rng(10)
    better = 0
    for _ in range(20):
        p = two_views.contents(rng, alpha=0.2, size=200)
        total = promised(judge(p), p)
        assert Fraction(int((p.student != p.gold).sum()), 200) <= total <= 1
        better += total < bounds.fu(alpha=Fraction(1, 5), coverage=Fraction(3, 5)).value
    assert better > 10


# Embeddings and the study


def embedded(rng, num_classes=2, size=240):
    """Two-view embeddings: the first number made the weak label, the others say the class."""
    gold = rng.integers(0, num_classes, size)
    centre = rng.normal(size=(num_classes, 6)) * 2
    x = centre[gold] + rng.normal(size=(size, 6))
    weak = np.where(rng.random(size) < 0.25, rng.integers(0, num_classes, size), gold)
    return x, np.where(rng.random(size) < 0.6, weak, ABSTAIN), gold


@pytest.mark.parametrize("num_classes", [2, 3])
def test_on_embeddings_the_counted_bounds_are_kept_and_the_student_beats_its_labels(num_classes):
    x, weak, gold = embedded(np.random.default_rng(11), num_classes)
    found = probing.examine(x, weak, gold, neighbours=5, eta=0.0, resamples=8, l2=0.1, seed=0)
    assert found.points == 120
    assert not any(v.violated for v in found.counted)
    assert any(v.bound is not None for v in found.counted)
    assert found.accuracy > found.weak_accuracy
    assert len(found.counted) == len(found.oracle) == len(found.granted) == 5 * num_classes
    assert {v.rho for v in found.granted} == {0}
    assert num_classes == 2 or max(v.rho for v in found.counted) > 0
    tables = found.tables("e")
    assert [table.name for table in tables] == ["e_counted", "e_oracle", "e_granted"]
    assert all(len(row) == len(table.head) for table in tables for row in table.rows)
    bounds_of = [[row[tables[0].head.index("bound")] for row in table.rows] for table in tables]
    for numbers, verdicts in zip(bounds_of, (found.counted, found.oracle, found.granted), strict=True):
        assert numbers == [None if v.bound is None else float(v.bound) for v in verdicts]


def test_the_table_says_that_a_graph_is_not_connected():
    rng = np.random.default_rng(3)
    gold = rng.integers(0, 2, 120)
    x = rng.normal(size=(120, 3)) * 0.01 + gold[:, None] * np.array([5.0, -5.0, 5.0])  # two heaps, far apart
    how = {"eta": 0.0, "resamples": 2, "l2": 0.1, "seed": 0}
    assert "the graph is not connected" in probing.examine(x, gold, gold, neighbours=3, **how).tables("e")[0].note
    assert "connected" not in probing.examine(x, gold, gold, neighbours=40, **how).tables("e")[0].note


@pytest.mark.parametrize(
    "change",
    [
        {"etas": (0.0, 2.0)},
        {"probe_etas": (1.0,)},
        {"arrays": "/no/where.npz"},
        {"dependence": 3.0},
        {"dependences": (0.0, 1.0)},
        {"draws": -2},
        {"draws_each": -1},
    ],
)
def test_what_is_wrong_with_a_study_is_said_before_anything_is_drawn(change, monkeypatch):
    monkeypatch.setattr(expansion, "held", lambda *args, **keywords: pytest.fail("a table was made first"))
    given = theory_expansion.get_config("quick").to_dict() | change
    del given["name"]
    with pytest.raises(ValueError, match="allowed is a flip rate|no/where|no correlation|=-[12]: allowed is 0"):
        expansion.study(**given)


def test_the_probe_separates_what_can_be_separated():
    rng = np.random.default_rng(12)
    x = rng.normal(size=(90, 2)) + 6 * np.eye(3)[np.arange(90) % 3][:, :2]
    label = 5 + np.arange(90) % 3
    assert np.mean(probing.taught(x, label, x, l2=1e-3) == label) > 0.95
    assert (probing.taught(x, np.full(90, 4), x, l2=1e-3) == 4).all()


@pytest.mark.parametrize(
    "change, said",
    [
        ({"x": np.zeros((3, 2, 2))}, "needed are"),
        ({"weak": np.zeros(4, int)}, "needed are"),
        ({"x": np.full((240, 6), np.nan)}, "no numbers"),
        ({"weak": np.zeros(240, int)}, "needed are two"),
        ({"eta": 1.5}, "eta=1.5"),
        ({"neighbours": 500}, "k=500"),
    ],
)
def test_wrong_embeddings_are_told_apart(change, said):
    x, weak, gold = embedded(np.random.default_rng(13))
    given = {"x": x, "weak": weak, "gold": gold, "neighbours": 5, "eta": 0.0, "resamples": 1, "l2": 0.1, "seed": 0, **change}
    with pytest.raises(ValueError, match=said):
        probing.examine(**given)


def test_arrays_are_read_and_what_is_missing_is_named(tmp_path):
    x, weak, gold = embedded(np.random.default_rng(14))
    np.savez(tmp_path / "whole.npz", x=x, weak=weak, gold=gold)
    assert (probing.loaded(str(tmp_path / "whole.npz"))[0] == x).all()
    np.savez(tmp_path / "part.npz", x=x)
    with pytest.raises(ValueError, match="gold"):
        probing.loaded(str(tmp_path / "part.npz"))
    with pytest.raises(ValueError, match="no such file"):
        probing.loaded(str(tmp_path / "none.npz"))


def test_the_study_of_the_config_tells_all_three_parts(tmp_path):
    x, weak, gold = embedded(np.random.default_rng(15))
    np.savez(tmp_path / "arrays.npz", x=x, weak=weak, gold=gold)
    config = theory_expansion.get_config("quick")
    config.update(draws=3, size=50, draws_each=2, dependences=(0.0, 0.5), resamples=2, arrays=str(tmp_path / "arrays.npz"))
    given = config.to_dict()
    assert given.pop("name") == "theory_expansion"
    found = expansion.study(**given)
    assert isinstance(found, Study)
    assert [table.name for table in found.tables] == [
        "bounds",
        *(f"embeddings_eta_0_{way}" for way in ("counted", "oracle", "granted")),
    ]
    assert all(len(row) == len(table.head) for table in found.tables for row in table.rows)
    assert [figure.name for figure in found.figures] == [
        "dependence_contents", "whole_contents", "dependence_gaussian", "whole_gaussian"
    ]  # fmt: skip
    violated = found.tables[0].head.index("violated")
    assert {row[violated] for row in found.tables[0].rows if "Theorem" in row[2]} == {0}
    with pytest.raises(ValueError, match="quick"):
        theory_expansion.get_config("quik")


def test_with_nothing_to_study_it_says_so():
    given = theory_expansion.get_config("texts").to_dict()
    del given["name"]
    with pytest.raises(ValueError, match="nothing to study.*texts.model=DIR"):
        expansion.study(**given)


def test_too_few_draws_in_which_a_theorem_applies_are_an_error():
    with pytest.raises(ValueError, match="a bound is below 1 in 0 of"):
        expansion.applicable(
            np.random.default_rng(0), lambda rng, **_: unhelpful(rng), draws=2, size=20, eta=0.0, dependence=0.1
        )


def unhelpful(rng):
    """Weak labels that are mostly wrong."""
    gold = rng.integers(0, 2, 20)
    return Population(gold, 1 - gold, alike(gold), gold[None], gold)
