"""Predictors of gain, where their formulas are exact or promise something: planted worlds, brute force, known values."""

import json

import numpy as np
import pytest

from experiments import theory
from experiments.configs import theory_expansion, theory_gains
from w2s_jax.metrics import Undefined
from w2s_jax.theory import expansion, gains, kernels, misfit, overlap, planted, probing


def rng(*seed):
    return np.random.default_rng(seed)


# ---- Misfit ----------------------------------------------------------------------------------------------------------


def test_the_gain_of_a_projection_is_its_misfit_where_the_truth_is_in_the_span():
    for draw in range(20):
        r = rng(1, draw)
        x, weak = r.normal(size=(60, 5)), r.normal(size=60)
        truth = x @ r.normal(size=5)
        student = x @ np.linalg.lstsq(x, weak, rcond=None)[0]
        missed, gain = misfit.squared(student, weak, truth)
        assert missed.shape == (60,) and gain.mean() == pytest.approx(missed.mean(), rel=1e-9) and missed.mean() > 0.1


def test_the_gain_of_the_nearest_point_of_a_convex_class_is_at_least_its_misfit():
    strict = 0
    for draw in range(200):
        r = rng(2, draw)
        weak, truth = r.normal(size=40), np.clip(r.normal(size=40), -0.5, 0.5)
        student = np.clip(weak, -0.5, 0.5)  # the nearest point of a cube, to which the truth belongs
        missed, gain = misfit.squared(student, weak, truth)
        assert gain.mean() >= missed.mean() - 1e-12
        strict += gain.mean() > missed.mean() + 1e-3
    assert strict > 150


def test_outside_the_class_the_promise_fails():
    weak, truth = np.ones(10), np.full(10, 2.0)
    missed, gain = misfit.squared(np.zeros(10), weak, truth)
    assert gain.mean() < 0 < missed.mean()


def test_the_gain_in_nats_is_at_least_the_misfit_of_the_nearest_of_a_convex_class():
    for draw in range(200):
        r = rng(3, draw)
        one, other = r.dirichlet(np.ones(4), 2)
        weak = r.dirichlet(np.ones(4))[None]
        truth = (lambda t: t * one + (1 - t) * other)(r.uniform())[None]
        along = np.linspace(0, 1, 20001)[:, None]
        student_of = along * one + (1 - along) * other
        distance = misfit.divergence(student_of, np.repeat(weak, len(along), 0), np.repeat(truth, len(along), 0))[0]
        student = student_of[[int(distance.argmin())]]
        missed, gain = misfit.divergence(student, weak, truth)
        assert missed.sum() == distance.min() and gain.sum() >= missed.sum() - 1e-4  # the grid's step


def test_no_gain_in_answers_is_larger_than_the_misfit():
    r = rng(4)
    for _ in range(200):
        weak, student, truth = r.integers(0, 3, (3, 30))
        missed, gain = misfit.answers(weak != student, weak == truth, student == truth)
        assert abs(gain.mean()) <= missed.mean() and set(gain) <= {-1, 0, 1}


def test_shapes_must_be_the_same():
    with pytest.raises(ValueError, match=r"\(3,\), \(2,\), \(3,\)"):
        misfit.squared(np.zeros(3), np.zeros(2), np.zeros(3))


# ---- Overlap ---------------------------------------------------------------------------------------------------------


def brute_force(values):
    """The first value of the upper part, over all places at which two different values part."""
    values = np.sort(values)
    cost = {
        k: ((values[:k] - values[:k].mean()) ** 2).sum() + ((values[k:] - values[k:].mean()) ** 2).sum()
        for k in range(1, len(values))
        if values[k - 1] < values[k]
    }
    return values[min(cost, key=cost.get)]


def test_the_change_point_is_that_of_all_places_tried():
    for draw in range(300):
        r = rng(5, draw)
        values = r.choice([0.0, 0.25, 0.5, 0.9, 1.0], 12) if draw % 3 == 0 else r.normal(size=r.integers(2, 40)) ** 3
        if np.ptp(values):
            assert overlap.change_point(values) == brute_force(values)


def test_a_far_away_pair_of_levels_is_parted_between_them_and_order_does_not_matter():
    values = np.concatenate([np.linspace(1e6, 1e6 + 1, 7), np.linspace(1e6 + 50, 1e6 + 51, 5)])
    assert overlap.change_point(rng(6).permutation(values)) == 1e6 + 50


def test_equal_values_have_no_break():
    with pytest.raises(Undefined, match="confidences are all equal"):
        overlap.detect(np.ones(5), np.eye(5))
    with pytest.raises(Undefined, match="likenesses to hard questions are all equal"):
        overlap.detect(np.array([0.0, 1, 1, 1]), np.ones((4, 2)))
    one = rng(19).normal(size=64).astype(np.float32)
    for x in (np.tile(one, (4, 1)), np.outer([1, 3, 7, 11], one)):  # likenesses of 1, but for rounding
        with pytest.raises(Undefined):
            overlap.detect(np.array([0.1, 0.9, 0.9, 0.9]), x)


def test_planted_clusters_are_told_apart():
    r = rng(7)
    kind = r.choice(3, 300, p=[0.3, 0.3, 0.4])
    easy, hard = np.zeros((2, 300, 6))
    easy[kind != overlap.HARD, 0] = 2
    hard[kind == overlap.HARD, 1], hard[kind == overlap.OVERLAP, 1] = 2, -2  # the sign of a pattern does not matter
    x = easy + hard + 0.1 * r.normal(size=(300, 6))
    found = overlap.detect(np.where(kind == overlap.HARD, 0.1, 0.8) + 0.05 * r.random(300), x)
    assert (found.kind == kind).all() and found.density() == np.mean(kind == overlap.OVERLAP)
    assert found.density(np.flatnonzero(kind != overlap.EASY)) == np.mean(kind[kind != overlap.EASY] == overlap.OVERLAP)
    with pytest.raises(Undefined, match="none of the questions"):
        found.density(np.zeros(0, int))


# ---- Kernels ---------------------------------------------------------------------------------------------------------


def turn(r, width):
    return np.linalg.qr(r.normal(size=(width, width)))[0]


def test_cka_knows_no_rotation_scale_or_shift_and_tells_other_maps_apart():
    r = rng(8)
    x, z = r.normal(size=(50, 7)), r.normal(size=(50, 4))
    same = kernels.cka(x, z)
    assert 0 < same < 1
    assert kernels.cka(3 * x @ turn(r, 7) + 5, 0.1 * z @ turn(r, 4) - 2) == pytest.approx(same, rel=1e-9)
    assert kernels.cka(x, x @ turn(r, 7)) == pytest.approx(1)
    assert kernels.cka(x @ np.diag([9, 1, 1, 1, 1, 1, 1]), x) < 0.9
    assert kernels.cka(x, z) == pytest.approx(kernels.cka(z, x))


def test_cka_has_its_known_values():
    side = np.array([[1.0, 0], [-1, 0], [0, 1], [0, -1]])
    assert kernels.cka(side[:, :1], side[:, 1:]) == pytest.approx(0, abs=1e-12)  # orthogonal directions
    assert kernels.cka(side, side[:, :1]) == pytest.approx(1 / np.sqrt(2))  # one of two equal components
    x, z = rng(9).normal(size=(2, 30, 3))
    x, z = x - x.mean(0), z - z.mean(0)
    wanted = np.linalg.norm(x.T @ z) ** 2 / (np.linalg.norm(x.T @ x) * np.linalg.norm(z.T @ z))
    assert kernels.cka(x, z) == pytest.approx(wanted)


def test_a_projection_gives_back_what_a_ridge_regression_fits():
    r = rng(10)
    x, y = r.normal(size=(40, 6)), r.normal(size=(40, 2))
    wide = x @ r.normal(size=(6, 60))
    said = kernels.projection(wide, 0.1) @ (y - y.mean(0)) + y.mean(0)
    assert np.allclose(kernels.ridge_probe(wide, y, wide, ridge=0.1), said)
    for ridge in (0.003, 0.2):
        centred = x - x.mean(0)
        weight = np.linalg.solve(centred.T @ centred + ridge * (centred**2).sum() * np.eye(6), centred.T @ (y - y.mean(0)))
        wanted = centred @ weight
        assert np.allclose(kernels.projection(x, ridge) @ (y - y.mean(0)), wanted)
        assert np.allclose(kernels.ridge_probe(x, y, x, ridge=ridge), wanted + y.mean(0))
    onto = kernels.projection(x, 0.0)
    assert np.allclose(onto @ onto, onto) and np.trace(onto) == pytest.approx(6)


def test_without_ridge_errors_add_up_and_gap_and_gain_are_those_of_least_squares():
    r = rng(11)
    x = r.normal(size=(80, 10))
    x -= x.mean(0)
    weak, strong, y = x[:, :5] @ turn(r, 5), x[:, 3:] @ turn(r, 7), x @ r.normal(size=10) + r.normal(size=80)
    y -= y.mean()
    said_w = weak @ np.linalg.lstsq(weak, y, rcond=None)[0]
    said_s = strong @ np.linalg.lstsq(strong, said_w, rcond=None)[0]
    ceiling = strong @ np.linalg.lstsq(strong, y, rcond=None)[0]
    found = kernels.shape(weak, strong, y, ridge=0.0)
    assert found.gap == pytest.approx(np.mean((ceiling - said_s) ** 2))
    assert found.gain == pytest.approx(np.mean((y - said_w) ** 2) - np.mean((y - said_s) ** 2))
    assert np.mean((y - said_s) ** 2) == pytest.approx(np.mean((y - ceiling) ** 2) + found.gap)
    assert found.gap <= found.norm**2 * np.mean(y**2) and kernels.shape(weak, strong, None, ridge=0.0).norm == found.norm


def test_a_student_that_sees_no_more_than_its_teacher_misses_nothing_and_gains_nothing():
    x, y = rng(12).normal(size=(50, 6)), rng(13).normal(size=50)
    found = kernels.shape(x, x[:, :6], y, ridge=0.0)
    assert found.norm == pytest.approx(0, abs=1e-6) and found.gain == pytest.approx(0, abs=1e-9)


def test_representations_that_say_nothing_are_undefined():
    with pytest.raises(Undefined, match="the same for all questions"):
        kernels.cka(np.ones((5, 2)), np.eye(5))
    with pytest.raises(ValueError, match="ridge=-1"):
        kernels.projection(np.eye(5), -1)
    with pytest.raises(ValueError, match="of 5 and of 4 questions"):
        kernels.cka(np.eye(5), np.eye(4))


def test_cosines_of_probes_are_those_of_the_directions_that_were_planted():
    r = rng(14)
    x = r.normal(size=(3000, 5))
    true, student, teacher = np.eye(5)[0], np.array([0.8, 0.6, 0, 0, 0]), np.array([0.5, 0, np.sqrt(0.75), 0, 0])
    said = ((x @ w > 0)[:, None].astype(float) for w in (student, teacher, true))
    found = kernels.turning(x, *said, ridge=1e-6, seed=0)
    assert (found.cos_s, found.cos_t, found.cos_st) == pytest.approx((0.8, 0.5, 0.4), abs=0.03)
    assert found.rule == pytest.approx(0.5 - 0.32, abs=0.03)


def test_probes_are_asked_each_question_once_and_were_fitted_to_others(monkeypatch):
    fitted, original = [], kernels.ridge_probe

    def watched(x, y, at, *, ridge):
        assert not set(x[:, 0]) & set(at[:, 0]) and len(x) + len(at) == 60
        fitted.append(at[:, 0])
        return original(x, y, at, ridge=ridge)

    monkeypatch.setattr(kernels, "ridge_probe", watched)
    x, said = rng(15).normal(size=(60, 20)), rng(16).normal(size=(3, 60, 1))
    kernels.turning(x, *said, ridge=0.1, seed=0)
    assert sorted(np.concatenate(fitted)) == sorted(np.tile(x[:, 0], 3))


# ---- Expansion of a student that is there ----------------------------------------------------------------------------


def test_a_promise_holds_of_the_student_and_says_why_there_is_none():
    kept = 0
    for draw in range(12):
        r = rng(16, draw)
        gold = r.integers(0, 2, 120)
        x = np.where(gold[:, None] == 1, 3.0, -3.0) + r.normal(size=(120, 2))
        weak = np.where(r.random(120) < 0.15, 1 - gold, gold)
        weak = np.where(r.random(120) < 0.3, -1, weak)
        student = np.where(r.random(120) < 0.02, 1 - gold, gold)
        found = probing.promise(x, weak, gold, student, neighbours=5, resamples=3, l2=0.1, seed=0)
        assert not any(verdict.violated for verdict in found.verdicts)
        if found.error is not None:
            kept += 1
            assert found.error >= np.mean(student != gold)
    assert kept > 6
    useless = probing.promise(x, np.where(gold == 0, 1, 0), gold, gold, neighbours=5, resamples=1, l2=0.1, seed=0)
    assert useless.error is None and useless.reason


# ---- The study -------------------------------------------------------------------------------------------------------


def test_on_the_bench_predictors_order_the_gains_as_theory_says():
    def order(world, plant, name, draws=20, **how):
        cases = [c for c in gains.planting(world, lambda r: plant(r, **how), draws, 0) if c.predictor == name]
        predicted, realised = (np.array([getattr(c, end) for c in cases]) for end in ("predicted", "realised"))
        return gains.spearman(predicted, realised, np.arange(draws), draws=50, seed=0)[0], predicted, realised

    rho, predicted, realised = order("r", planted.regressions, "misfit_squared", blind=False)
    assert rho > 0.8 and np.abs(predicted - realised).mean() < 0.5 * predicted.mean()
    assert order("r", planted.regressions, "kernel_gain", blind=True)[0] > 0.7
    assert order("p", planted.patterns, "overlap")[0] > 0.6


def test_logistic_students_gain_what_the_arc_says():
    cases = list(gains.logistic(24, 50, 0))
    arc = [c for c in cases if c.predictor == "arc_gain"]
    assert len(cases) == 48 and max(abs(c.predicted - c.realised) for c in arc) < 5e-3
    rule = [c for c in cases if c.predictor == "rule"]
    assert np.mean([(c.predicted > 0) == (c.realised > 0) for c in rule]) > 0.9


def test_expansion_never_promises_more_than_was_gained():
    cases = list(gains.expanding(6, 80, 0))
    assert cases and all(c.realised >= c.predicted for c in cases)


def test_correlations_have_intervals_only_where_there_are_runs_enough():
    one, other = np.arange(12.0), np.arange(12.0) ** 2
    assert gains.spearman(one, other, np.repeat(np.arange(4), 3), draws=50, seed=0) == (1.0, None, None)
    assert gains.spearman(one, other, np.repeat(np.arange(6), 2), draws=50, seed=0) == pytest.approx((1, 1, 1))
    assert gains.spearman(one, np.ones(12), np.arange(12), draws=50, seed=0) == (None, None, None)
    r = rng(17)
    one, other = r.normal(size=(2, 200))
    rho, lo, hi = gains.spearman(one, other, np.arange(200), draws=200, seed=0)
    assert lo < rho < hi and 0.15 < hi - lo < 0.4


def a_run(folder, shift):
    rows = [
        {"method": m, "seed": 0, "misfit": 0.1 * k + shift, "gain": 0.05 * k, "gain_lo": 0.0, "gain_hi": 0.5, "rule": None}
        for k, m in enumerate(("naive", "ntf", "knn"))
    ]
    (folder / "report").mkdir(parents=True)
    (folder / "report" / "gains.json").write_text(json.dumps({"schema": 1, "rows": rows, "notes": []}))
    return str(folder)


def test_one_table_holds_runs_and_bench_and_is_written(tmp_path, monkeypatch):
    runs = tuple(a_run(tmp_path / name, shift) for name, shift in (("one", 0.0), ("two", 0.05)))
    config = theory_gains.get_config("quick")
    config.update(runs=runs, worlds=3, pairs=8, dimension=10, size=60, draws=20)
    monkeypatch.setattr(theory.cli, "folders", lambda config: (str(tmp_path / "out"), ""))
    folder = theory.run(config)
    kept = json.loads((tmp_path / "out" / "study" / "study.json").read_text())
    assert folder == str(tmp_path / "out" / "study")
    agreement, predictions = kept["tables"]
    assert [table["name"] for table in kept["tables"]] == ["agreement", "predictions"]
    of_runs = [row for row in predictions["rows"] if row[0] in runs]
    assert [row[1:5] for row in of_runs[:3]] == [[f"{m}, seed 0", "misfit", "at most", "gain"] for m in ("naive", "ntf", "knn")]
    assert of_runs[1][5:10] == [0.1, 0.05, 0.0, 0.5, True] and len(of_runs) == 6
    worlds = {row[0] for row in predictions["rows"]}
    assert worlds >= {"regressions", "regressions, blind", "patterns", "logistic"}
    row = next(row for row in agreement["rows"] if row[:2] == ["all runs", "misfit"])
    assert row[3:5] == [6, 2] and 0.8 < row[5] <= 1 and row[6:8] == [None, None]
    assert not any(row[0] == "all runs" and row[1] == "arc_gain" for row in agreement["rows"])


def test_what_is_asked_for_in_vain_is_said(tmp_path):
    given = {"seed": 0, "worlds": 1, "pairs": 2, "dimension": 5, "size": 40, "draws": 5}
    with pytest.raises(ValueError, match="runs names '.*nowhere'.*analysis.gains=500"):
        gains.study(runs=(str(tmp_path / "nowhere"),), **given)
    with pytest.raises(ValueError, match="worlds=0: allowed is 1 or more"):
        gains.study(runs=(), **{**given, "worlds": 0})
    with pytest.raises(ValueError, match="theory_gains:quik"):
        theory_gains.get_config("quik")


def test_the_study_of_expansion_takes_a_finished_runs_arrays(tmp_path):
    r = rng(18)
    gold = r.integers(0, 2, 120)
    arrays = {"student": r.normal(size=(120, 4)) + 3 * gold[:, None], "gold": np.where(np.arange(120) < 100, gold, -1)}
    weak, taught = np.where(r.random(120) < 0.1, 1 - gold, gold), r.random(120) < 0.6
    (tmp_path / "report").mkdir()
    np.savez(tmp_path / "report" / "gains.npz", **arrays, **{"weak/ntf": weak, "taught/ntf": taught})
    config = theory_expansion.get_config("quick")
    config.update(draws=2, size=50, draws_each=2, dependences=(0.0,), resamples=2, run=str(tmp_path))
    found = expansion.study(**{name: value for name, value in config.to_dict().items() if name != "name"})
    table = found.tables[-3]
    assert table.name == "run_eta_0_counted" and "50 points that no probe was fitted on" in table.note
    x, weak, gold = probing.of_run(str(tmp_path), "ntf")
    assert len(x) == 100 and ((weak == -1) == ~taught[:100]).all() and (gold >= 0).all()
