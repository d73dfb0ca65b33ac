"""Rows and summaries say what was scored, and why a ratio is missing."""

import dataclasses

import numpy as np
import pytest

from w2s_jax import recovery
from w2s_jax.metrics import Undefined
from w2s_jax.recovery import Trial
from w2s_jax.types import Audit, Score

TESTS = ("arc_easy", "sciq")


def _score(rng, accuracy: float, num: int = 2000, prefix: str = "q", ease=None) -> Score:
    """Draws a score; models with a common `ease` find the same questions hard."""
    ease = rng.random(num) if ease is None else ease
    mix = np.where(rng.random(num) < 0.7, ease, rng.random(num))
    names = tuple(f"{prefix}{i}" for i in range(num))
    return Score(names, ("",) * num, tuple(TESTS[i % 2] for i in range(num)), mix < accuracy)


def _trial(seed: int = 0, accuracies=None, base=0.6, weak=0.55, prefix="q", **changes) -> Trial:
    rng = np.random.default_rng(seed)
    ease = np.random.default_rng(99).random(2000)
    accuracies = accuracies or {"naive": 0.7, "ntf": 0.8, "gold": 0.8}
    trial = Trial(
        domain="world_knowledge",
        teacher="small",
        student="large",
        objective="sft",
        generation=0,
        seed=seed,
        base=_score(rng, base, prefix=prefix, ease=ease),
        weak=_score(rng, weak, prefix=prefix, ease=ease),
        trained={m: _score(rng, a, prefix=prefix, ease=ease) for m, a in accuracies.items()},
        uses_target_gold=frozenset({"gold"}),
        n_selected=dict.fromkeys(accuracies, 500),
    )
    return dataclasses.replace(trial, **changes)


def _shuffled(score: Score) -> Score:
    order = np.random.default_rng(5).permutation(len(score.question_id))
    columns = (tuple(column[i] for i in order) for column in (score.question_id, score.group, score.test))
    return Score(*columns, score.correct[order])


def test_published_recoveries_come_out():
    assert round(recovery.recovery(0.737, base=0.651, gt=0.738), 3) == 0.989
    assert round(recovery.recovery(0.750, base=0.691, gt=0.748), 3) == 1.035
    with pytest.raises(Undefined, match="not above zero"):
        recovery.recovery(0.7, base=0.7, gt=0.7)
    with pytest.raises(Undefined, match="gold - teacher is 0.000: not above zero"):
        recovery.pgr(0.7, teacher=0.7, gt=0.7)


def test_rows_are_methods_by_test_sets_and_their_mean():
    trial = _trial()
    rows = recovery.recover(trial)
    assert [(r.method, r.test) for r in rows] == [(m, t) for m in ("naive", "ntf", "gold") for t in (*TESTS, "mean")]
    ntf = {r.test: r for r in rows if r.method == "ntf"}
    assert ntf["mean"].accuracy == pytest.approx((ntf["arc_easy"].accuracy + ntf["sciq"].accuracy) / 2)
    for name, score in {"accuracy": trial.trained["ntf"], "base": trial.base, "teacher_accuracy": trial.weak}.items():
        for test in TESTS:
            right = [c for c, t in zip(score.correct, score.test, strict=True) if t == test]
            assert getattr(ntf[test], name) == pytest.approx(np.mean(right)) and ntf[test].n_test == 1000
    for row in ntf.values():
        assert row.recovery == pytest.approx(recovery.recovery(row.accuracy, row.base, row.gt))
        assert row.pgr == pytest.approx(recovery.pgr(row.accuracy, row.teacher_accuracy, row.gt))
        assert row.recovery_lo < row.recovery < row.recovery_hi and row.reason == ""
    assert [r.uses_target_gold for r in rows] == [False] * 6 + [True] * 3
    gold = [r for r in rows if r.method == "gold"]
    assert {(r.recovery, r.recovery_lo, r.recovery_hi) for r in gold} == {(1.0, 1.0, 1.0)}


def test_a_tests_interval_is_clustered_by_that_tests_groups():
    """One set's questions are groups of their own, the other's come in fifties that are all right or all wrong."""
    ease = np.repeat(np.random.default_rng(0).random(20), 50)
    score = Score(
        tuple(f"q{i}" for i in range(2000)),
        (*("",) * 1000, *(f"g{i // 50}" for i in range(1000))),
        ("single",) * 1000 + ("clustered",) * 1000,
        np.r_[np.random.default_rng(1).random(1000), ease] < 0.6,
    )
    (found,) = recovery.summarise([dataclasses.replace(_trial(), trained={"ntf": score}, base=score, weak=score)])
    width = {test: part["hi"] - part["lo"] for test, part in found.by_test.items()}
    assert width["clustered"] > 4 * width["single"]


def _audit(value: float, reason: str = "") -> Audit:
    none = np.zeros((0, 3))
    return Audit(value, value / 2, value / 4, value / 8, None, None, none, none, none, reason)


def test_a_row_carries_its_own_methods_audit_count_and_mark():
    trial = _trial(
        n_selected={"naive": 10, "ntf": 20, "gold": 30},
        audits={"naive": _audit(0.5), "ntf": _audit(0.9, "no AUC today")},
        uses_target_gold=frozenset({"ntf"}),
    )
    rows = {r.method: r for r in recovery.recover(trial) if r.test == "mean"}
    found = {m: (r.n_selected, r.auc, r.ece, r.brier, r.purity, r.uses_target_gold, r.reason) for m, r in rows.items()}
    assert found == {
        "naive": (10, 0.5, 0.25, 0.125, 0.0625, False, ""),
        "ntf": (20, 0.9, 0.45, 0.225, 0.1125, True, "no AUC today"),
        "gold": (30, None, None, None, None, False, ""),
    }


def test_a_summary_takes_medians_over_the_seeds_that_have_the_method_and_says_every_reason():
    trials = [
        _trial(seed, n_selected={"ntf": n}, audits={"ntf": _audit(auc, reason)}, accuracies={"ntf": accuracy, "gold": 0.8})
        for seed, n, auc, reason, accuracy in ((0, 10, 0.1, "one", 0.64), (1, 20, 0.2, "two", 0.7), (2, 90, 0.9, "two", 0.72))
    ]
    marked = dataclasses.replace(_trial(3, accuracies={"gold": 0.8}), n_selected={}, audits={})
    trials[1] = dataclasses.replace(trials[1], uses_target_gold=frozenset({"ntf", "gold"}))
    ntf, gold = recovery.summarise([*trials, marked])
    assert (ntf.method, ntf.seeds, gold.method, gold.seeds) == ("ntf", 3, "gold", 4)
    assert (ntf.n_selected, ntf.auc, ntf.uses_target_gold, ntf.reason) == (20, 0.2, True, "one; two")
    alone = [recovery.summarise([trial])[0] for trial in trials]
    assert ntf.recovery_median == sorted(one.recovery for one in alone)[1] != ntf.recovery
    assert ntf.pgr_median == sorted(one.pgr_median for one in alone)[1]


def test_a_seed_that_was_not_scored_leaves_its_method_without_a_number():
    summary = {s.method: s for s in recovery.summarise([_trial(0), _trial(1, trained={"ntf": None})])}
    assert summary["ntf"].accuracy is None and summary["ntf"].seeds == 2 and summary["naive"].accuracy is not None


def test_a_model_that_was_not_scored_is_named_where_its_ratio_would_stand():
    unscored = dataclasses.replace(_trial(), base=None)
    (row,) = (r for r in recovery.recover(unscored) if r.method == "ntf" and r.test == "mean")
    assert row.recovery is None and row.pgr is not None and row.reason == "the base was not scored"


def test_an_interval_of_an_accuracy_stays_within_its_bounds():
    sure = Score(("a", "b", "c"), ("",) * 3, ("t",) * 3, np.array([True, True, False]))
    (found,) = recovery.summarise([dataclasses.replace(_trial(), trained={"ntf": sure}, base=sure, weak=sure)])
    assert found.accuracy_lo == 0 and found.accuracy_hi == 1


def test_questions_are_paired_by_id_not_by_place():
    trial = _trial()
    other = dataclasses.replace(trial, trained={m: _shuffled(s) for m, s in trial.trained.items()}, base=_shuffled(trial.base))
    theirs = {(r.method, r.test): dataclasses.astuple(r)[9:18] for r in recovery.recover(other)}
    for row in recovery.recover(trial):
        assert dataclasses.astuple(row)[9:18] == pytest.approx(theirs[row.method, row.test])


def test_models_of_one_seed_must_answer_the_same_questions():
    trial = _trial()
    with pytest.raises(ValueError, match="the teacher was scored on 2000 questions.*not the same ones"):
        recovery.recover(dataclasses.replace(trial, weak=_trial(prefix="other").weak))


def test_without_a_gold_student_rows_say_no_gold_and_keep_their_accuracy():
    trial = _trial(accuracies={"naive": 0.7, "ntf": 0.8})
    for row in (*recovery.recover(trial), *recovery.summarise([trial])):
        assert row.accuracy is not None and row.recovery is None and row.gt is None
        assert row.reason.startswith("no gold")
    assert {s.verdict for s in recovery.summarise([trial])} == {None}


def test_without_test_answers_there_is_one_empty_row_for_each_method():
    trial = _trial(base=0.6, trained={"ntf": None, "gold": None})
    trial = dataclasses.replace(trial, base=None, weak=None)
    rows = recovery.recover(trial)
    assert [(r.method, r.test, r.accuracy, r.n_test) for r in rows] == [("ntf", "mean", None, 0), ("gold", "mean", None, 0)]
    assert all(r.reason.startswith("no gold") for r in rows)
    assert [s.accuracy for s in recovery.summarise([trial])] == [None, None]


def test_a_gold_student_no_better_than_the_base_gives_no_ratio_but_the_numbers():
    trial = _trial(accuracies={"ntf": 0.61, "gold": 0.605}, weak=0.3)
    row = [r for r in recovery.recover(trial) if r.method == "ntf" and r.test == "mean"][0]
    assert row.recovery is None and row.recovery_lo is None and row.pgr is not None
    assert row.reason.startswith("gold - base is ") and row.reason.endswith("not above zero")


def test_verdicts_tell_gold_quality_from_naive():
    summary = {s.method: s for s in recovery.summarise([_trial(seed) for seed in range(5)])}
    assert summary["naive"].verdict == "lossy" and summary["ntf"].verdict in ("near-lossless", "undetermined")
    assert summary["gold"].verdict is None and summary["gold"].recovery == 1
    ntf = summary["ntf"]
    assert ntf.seeds == 5 and len(ntf.mcnemar_p) == len(ntf.tost_p) == 5
    assert ntf.difference == pytest.approx(ntf.accuracy - ntf.gt)
    assert ntf.difference_lo < ntf.difference < ntf.difference_hi
    assert ntf.recovery == pytest.approx((ntf.accuracy - ntf.base) / (ntf.gt - ntf.base))
    assert ntf.by_test["mean"]["accuracy"] == ntf.accuracy and list(ntf.by_test) == [*TESTS, "mean"]


def test_margin_and_level_are_the_callers():
    trials = [_trial(seed) for seed in range(3)]
    usual, lenient, strict = (
        {s.method: s for s in recovery.summarise(trials, **kw)}["naive"] for kw in ({}, {"margin": 0.3}, {"alpha": 1e-9})
    )
    assert (usual.verdict, lenient.verdict, strict.verdict) == ("lossy", "near-lossless", "undetermined")
    assert (usual.margin, lenient.margin) == (0.02, 0.3)


def test_one_seed_is_summed_up_by_its_own_row():
    trial = _trial()
    rows = {r.method: r for r in recovery.recover(trial) if r.test == "mean"}
    for s in recovery.summarise([trial]):
        row = rows[s.method]
        assert s.seeds == 1
        assert (s.accuracy, s.recovery, s.recovery_lo, s.recovery_hi) == (
            row.accuracy,
            row.recovery,
            row.recovery_lo,
            row.recovery_hi,
        )
        assert (s.recovery_median, s.pgr_median) == (row.recovery, row.pgr)


def test_seeds_may_have_test_questions_of_their_own():
    shared = recovery.summarise([_trial(seed) for seed in range(3)])[0]
    fresh = recovery.summarise([_trial(seed, prefix=f"seed{seed}-") for seed in range(3)])[0]
    assert (shared.n_test, fresh.n_test) == (2000, 6000)
    assert fresh.accuracy == pytest.approx(shared.accuracy)


def test_links_are_summed_up_apart_and_seeds_must_differ():
    second = dataclasses.replace(_trial(1), generation=1)
    assert [s.generation for s in recovery.summarise([_trial(0), second])] == [0] * 3 + [1] * 3
    with pytest.raises(ValueError, match="must differ"):
        recovery.summarise([_trial(0), _trial(0)])
