"""The GRPO family, held to its definition: loops over ragged answers in float64, written here without the module's help."""

import collections
import dataclasses
import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from w2s_jax import plugins
from w2s_jax.student import grpo, sft
from w2s_jax.types import Batch

BOUNDS = {"grpo": (0.2, 0.2), "dr_grpo": (0.2, 0.2), "dapo": (0.2, 0.28), "gspo": (3e-4, 4e-4), "cispo": (1.0, 4.0)}
PER_TOKEN = ("logp", "old", "ref", "sampler", "entropy")
T = 16  # max_new_tokens
B, L = 8, 40  # one shape for all tests, so that all share their compiled programs
GARBAGE = 1e30  # may stand wherever the weight is 0
ALL = pytest.mark.parametrize("loss", BOUNDS)


@dataclasses.dataclass(frozen=True)
class Answer:
    """One answer: what is known of its tokens, f64[n] each, its advantage, its question's trust weight, its prompt's length."""

    logp: np.ndarray
    old: np.ndarray
    ref: np.ndarray
    sampler: np.ndarray
    entropy: np.ndarray
    advantage: float
    weight: float
    prompt: int


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def answers(seed=2, lengths=(5, 3, 7, 1, 6, 4), drift=0.4, on_policy=False):
    draw, found = np.random.default_rng(seed), []
    for i, n in enumerate(lengths):
        old = -draw.exponential(1.0, n)
        logp = old if on_policy else old + drift * draw.normal(size=n)
        ref, sampler = old + 0.5 * draw.normal(size=n), old + 0.5 * draw.normal(size=n)
        weight = float(draw.uniform(0.2, 1.0))
        found.append(Answer(logp, old, ref, sampler, draw.uniform(0, 2, n), float(draw.normal()), weight, 1 + i % 3))
    return found


def laid_out(rows, bins, names=("old", "ref", "sampler"), filler=0.0):
    """(what the forward pass gives, the batch): each bin is a device row; `filler` stands where the weight is 0."""
    entries = {"old": "logp_old", "ref": "logp_ref", "sampler": "logp_sampler"}
    out = {"logp": np.zeros((B, L)), "entropy": np.zeros((B, L))}
    extra = {name: np.full((B, L), filler) for name in ("advantage", "share", *map(entries.get, names))}
    weight, segment = np.zeros((B, L)), np.zeros((B, L), np.int32)
    for b, chosen in enumerate(bins):
        start = 0
        for g, k in enumerate(chosen):
            row = rows[k]
            first = start + row.prompt
            stop = first + len(row.logp)
            segment[b, start:stop] = g + 1
            weight[b, first:stop] = row.weight
            start, here = stop, (b, slice(first, stop))
            if row.weight:
                out["logp"][here], out["entropy"][here] = row.logp, row.entropy
                extra["advantage"][here], extra["share"][here] = row.advantage, 1 / len(row.logp)
                for name in names:
                    extra[entries[name]][here] = getattr(row, name)
    zero = np.zeros((B, L), np.int32)
    return jax.tree.map(jnp.asarray, (out, Batch(zero, segment, zero, weight, extra=extra)))


def by_row(grid, rows, bins):
    """Values [B, L] back to their answers, and the sum of what is left."""
    found, rest = {}, float(np.abs(grid).sum())
    for b, chosen in enumerate(bins):
        start = 0
        for k in chosen:
            start += rows[k].prompt
            found[k] = np.asarray(grid[b, start : start + len(rows[k].logp)])
            rest -= np.abs(found[k]).sum()
            start += len(rows[k].logp)
    return [found[k] for k in sorted(found)], rest


def measured(objective, out, batch):
    """(sum, denominator, metrics), and the gradient of the sum."""

    def total(logp):
        value, denominator, metrics = objective.loss(out | {"logp": logp}, {}, batch)
        return value, (value, denominator, metrics)

    gradient, found = jax.grad(total, has_aux=True)(out["logp"])
    return found, np.asarray(gradient)


def defined(rows, loss, *, beta=0.0, kl="k3", cap=0.0, bounds=None, weighing=None):
    """(sum, denominator, metrics) by the papers' formulas; `weighing`: the answers whose ratios cispo's weights are."""
    low, high = bounds or BOUNDS[loss]
    total, denominator, metrics = 0.0, 0.0, dict.fromkeys(("ratio", "entropy", "low", "high", "kl", "importance", "gap"), 0.0)
    farthest = max(abs(row.old - row.sampler).max() for row in rows)
    for row, fixed in zip(rows, weighing or rows, strict=True):
        n, w = len(row.logp), row.weight
        of_loss, of_mean = {
            "grpo": (w / n, w / n),
            "gspo": (w / n, w / n),
            "dr_grpo": (w / T, w / n),
            "dapo": (w, w),
            "cispo": (w, w),
        }[loss]
        for t in range(n):
            ratio = math.exp(row.logp[t] - row.old[t])
            if loss == "gspo":
                ratio = math.prod(math.exp(row.logp[s] - row.old[s]) for s in range(n)) ** (1 / n)
            if loss == "cispo":
                ratio = math.exp(fixed.logp[t] - row.old[t])
                cost = -min(max(ratio, 1 - low), 1 + high) * row.advantage * row.logp[t]
                is_low, is_high = ratio < 1 - low, ratio > 1 + high
            else:
                cost = -min(ratio * row.advantage, min(max(ratio, 1 - low), 1 + high) * row.advantage)
                is_low = ratio < 1 - low and row.advantage < 0
                is_high = ratio > 1 + high and row.advantage > 0
            importance = math.exp(row.old[t] - row.sampler[t])
            importance = min(importance, cap) if cap else 1.0
            away = row.logp[t] - row.ref[t]
            divergence = {"k1": away, "k2": away * away / 2, "k3": math.exp(-away) - 1 + away}[kl]
            total += of_loss * (importance * cost + (beta * divergence if beta else 0.0))
            denominator += of_mean
            now = (ratio, row.entropy[t], is_low, is_high, divergence, importance, abs(row.old[t] - row.sampler[t]))
            for name, value in zip(metrics, now, strict=True):
                metrics[name] += of_mean * value
    return total, denominator, metrics | {"sampler_gap_max": farthest}


def slope(rows, loss, step=1e-6, **how):
    """Central differences of the defined sum, answer by answer (the sum has no term of two answers)."""
    found = []
    for row in rows:
        found.append(np.zeros(len(row.logp)))
        for t in range(len(row.logp)):
            ends = []
            for sign in (1, -1):
                moved = row.logp.copy()
                moved[t] += sign * step
                ends.append(defined([dataclasses.replace(row, logp=moved)], loss, weighing=[row], **how)[0])
            found[-1][t] = (ends[0] - ends[1]) / (2 * step)
    return found


def close(one, other, tolerance=1e-12):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


REWARDS = np.random.default_rng(1).choice([0.0, 0.5, 1.0], (2, 3))  # six answers: two questions, three answers each
BINS = [[0, 1], [2, 3], [4, 5]]


def by_hand_advantages(word):
    found = []
    for group in REWARDS.tolist():
        for s, reward in enumerate(group):
            others = group[:s] + group[s + 1 :]
            mean = sum(group) / len(group)
            spread = math.sqrt(sum((r - mean) ** 2 for r in group) / (len(group) - 1))
            found.append(
                {
                    "group_std": (reward - mean) / (spread + 1e-4),
                    "group_mean": reward - mean,
                    "leave_one_out": reward - sum(others) / len(others),
                }[word]
            )
    return found


TIGHT = (0.1, 0.15)  # so that some ratios of every loss are clipped on either side and some are not
SETTINGS = [  # beta, kl, importance_cap, clip bounds, advantage
    (0.0, "k3", 0.0, None, "group_std"),
    (0.0, "k3", 0.0, TIGHT, "group_mean"),
    (0.3, "k1", 0.0, TIGHT, "leave_one_out"),
    (0.3, "k2", 0.0, TIGHT, "group_std"),
    (0.3, "k3", 0.0, TIGHT, "group_mean"),
    (0.0, "k3", 1.2, TIGHT, "leave_one_out"),
    (0.3, "k1", 1.2, TIGHT, "group_std"),
    (0.3, "k2", 1.2, TIGHT, "group_mean"),
    (0.3, "k3", 1.2, None, "leave_one_out"),
]


@ALL
def test_sum_denominator_metrics_and_gradient_are_those_of_the_definition(loss):
    for beta, kl, cap, bounds, advantage in SETTINGS:
        low, high = bounds or (None, None)
        objective = grpo.make(
            loss=loss, advantage=advantage, beta=beta, kl=kl, importance_cap=cap, clip_low=low, clip_high=high, max_new_tokens=T
        )
        given = objective.advantage(REWARDS).ravel().astype(np.float64)
        np.testing.assert_allclose(given, by_hand_advantages(advantage), rtol=1e-6)  # advantages are float32
        rows = [dataclasses.replace(row, advantage=a) for row, a in zip(answers(), given, strict=True)]
        how = {"beta": beta, "kl": kl, "cap": cap, "bounds": bounds}
        names = ("old", "sampler", *(("ref",) if beta else ()))
        (total, denominator, metrics), gradient = measured(objective, *laid_out(rows, BINS, names=names))
        wanted, wanted_denominator, wanted_metrics = defined(rows, loss, **how)
        close((total, denominator), (wanted, wanted_denominator))
        renamed = {"low": "clip_low_frac", "high": "clip_high_frac", "gap": "sampler_gap"}
        unused = {*(() if beta else ("kl",)), *(() if cap else ("importance",))}
        wanted_metrics = {renamed.get(name, name): x for name, x in wanted_metrics.items() if name not in unused}
        assert metrics.keys() == wanted_metrics.keys()
        close(dict(metrics), wanted_metrics)
        if bounds:
            assert 0 < metrics["clip_low_frac"] < denominator and 0 < metrics["clip_high_frac"] < denominator
        found, rest = by_row(gradient, rows, BINS)
        close(found, slope(rows, loss, **how), 1e-8)
        assert abs(rest) < 1e-12, "a token without weight has a gradient"


@ALL
def test_on_policy_with_advantage_1_the_step_is_that_of_weighted_fine_tuning(loss):
    rows = [dataclasses.replace(row, advantage=1.0) for row in answers(on_policy=True)]
    out, batch = laid_out(rows, BINS)
    (_, denominator, _), gradient = measured(grpo.make(loss=loss, max_new_tokens=T), out, batch)
    share = jnp.where(batch.weight != 0, batch.extra["share"], 0.0)
    weight = {"grpo": batch.weight * share, "gspo": batch.weight * share}.get(loss, batch.weight)
    (_, tokens, _), wanted = measured(sft.make(), out, batch.replace(weight=weight))
    if loss == "dr_grpo":  # its denominator is answers times the greatest length, not tokens
        tokens = T * sum(row.weight for row in rows)
    assert np.abs(gradient).max() > 0
    close(gradient / denominator, wanted / tokens)


@ALL
@pytest.mark.parametrize("beta, cap", [(0.0, 0.0), (0.3, 1.2)])
def test_left_out_the_old_log_probabilities_are_the_current_ones_without_their_gradient(loss, beta, cap):
    rows, objective = answers(on_policy=True), grpo.make(loss=loss, beta=beta, importance_cap=cap, max_new_tokens=T)
    assert all(row.logp is row.old for row in rows)
    given = measured(objective, *laid_out(rows, BINS))
    found = measured(objective, *laid_out(rows, BINS, names=("ref", "sampler")))
    assert np.abs(found[1]).max() > 0 and found[0][2]["sampler_gap_max"] > 0
    close(found, given)


@ALL
def test_packing_changes_nothing(loss):
    rows, objective = answers(drift=0.1), grpo.make(loss=loss, beta=0.1, importance_cap=2.0, max_new_tokens=T)
    found = []
    for bins in (BINS, [[5, 0, 3], [2, 1], [4]], [[k] for k in range(6)], [[0, 1, 2, 3, 4, 5]]):
        values, gradient = measured(objective, *laid_out(rows, bins))
        found.append((values, by_row(gradient, rows, bins)[0]))
    for other in found[1:]:
        close(found[0], other)


@ALL
def test_micro_batches_add_up_to_the_batch(loss):
    rows, objective = answers(lengths=(5, 3, 7, 1, 6, 4, 2, 8)), grpo.make(loss=loss, beta=0.1, max_new_tokens=T)
    whole = measured(objective, *laid_out(rows, [[k] for k in range(8)]))
    for parts in (2, 4):
        pieces = [[[k] for k in chunk] for chunk in np.array_split(np.arange(8), parts)]
        found = [measured(objective, *laid_out(rows, bins)) for bins in pieces]
        total, denominator, metrics = jax.tree.map(lambda *x: sum(x), *(values for values, _ in found))
        metrics |= {name: max(values[2][name] for values, _ in found) for name in objective.maxima}
        close(whole[0], (total, denominator, metrics))
        close(whole[1][whole[1] != 0], np.concatenate([gradient[gradient != 0] for _, gradient in found]))


@ALL
def test_a_trust_weight_counts_answers(loss):
    """Weight 1 twice is weight 2, and weight 0 is no answer at all."""
    rows, objective = answers(drift=0.1), grpo.make(loss=loss, beta=0.1, importance_cap=2.0, max_new_tokens=T)
    one = [dataclasses.replace(row, weight=1.0) for row in rows]
    twice = [*one, one[2]]
    double = [*one[:2], dataclasses.replace(one[2], weight=2.0), *one[3:]]
    nothing = [*double, dataclasses.replace(one[4], weight=0.0)]
    found = [
        measured(objective, *laid_out(rows, bins))[0]
        for rows, bins in (
            (twice, [[0, 1, 2], [3, 4, 5, 6]]),
            (double, [[0, 1, 2], [3, 4, 5]]),
            (nothing, [[0, 6, 1, 2], [3, 4, 5]]),
        )
    ]
    close(found[0], found[1])
    close(found[0], found[2])


@ALL
def test_what_stands_where_the_weight_is_0_is_never_read(loss):
    rows = answers()
    rows[2] = dataclasses.replace(rows[2], weight=0.0)
    objective = grpo.make(loss=loss, beta=0.1, importance_cap=2.0, max_new_tokens=T)
    clean = measured(objective, *laid_out(rows, BINS))
    for filler in (GARBAGE, -GARBAGE, np.nan):
        found = measured(objective, *laid_out(rows, BINS, filler=filler))
        assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(clean), jax.tree.leaves(found), strict=True))
    (out, batch) = laid_out(rows, BINS, filler=np.nan)
    out = {name: jnp.where(batch.weight != 0, x, GARBAGE) for name, x in out.items()}
    close(clean, measured(objective, out, batch))


@ALL
def test_a_batch_without_weight_is_0_and_finite(loss):
    rows = [dataclasses.replace(row, weight=0.0) for row in answers()]
    found = measured(grpo.make(loss=loss, beta=0.1, importance_cap=2.0), *laid_out(rows, BINS, filler=GARBAGE))
    assert all(not np.any(x) for x in jax.tree.leaves(found))


@ALL
def test_ratios_beyond_floating_point_stay_finite(loss):
    for far, kl in ((300.0, "k1"), (-300.0, "k2"), (300.0, "k3"), (-300.0, "k3")):
        rows = answers()
        rows[0] = dataclasses.replace(rows[0], old=rows[0].logp + far, ref=rows[0].logp - far, sampler=rows[0].logp - far)
        out, batch = jax.tree.map(lambda x: x.astype(jnp.float32) if x.dtype == jnp.float64 else x, laid_out(rows, BINS))
        objective = grpo.make(loss=loss, kl=kl, beta=0.1, importance_cap=2.0, max_new_tokens=T)
        for advantage in (1.0, -1.0):
            given = batch.replace(extra=batch.extra | {"advantage": jnp.full_like(batch.weight, advantage)})
            assert all(np.isfinite(x).all() for x in jax.tree.leaves(measured(objective, out, given)))


def test_clipping_takes_the_gradient_on_one_side_only_and_cispo_takes_none():
    up, down = np.array([math.log(1.5)]), np.array([math.log(0.5)])
    row = answers(lengths=(1,))[0]
    rows = [
        dataclasses.replace(row, old=row.logp - change, advantage=advantage, weight=1.0)
        for change, advantage in ((up, 1.0), (up, -1.0), (down, 1.0), (down, -1.0))
    ]
    bins = [[k] for k in range(4)]
    moves = {
        loss: np.array(by_row(measured(grpo.make(loss=loss), *laid_out(rows, bins))[1], rows, bins)[0]).ravel()
        for loss in ("dapo", "gspo", "cispo")
    }
    close(moves["dapo"], np.array([0.0, 1.5, -0.5, 0.0]))
    close(moves["gspo"], np.array([0.0, 1.5, -0.5, 0.0]))
    close(moves["cispo"], np.array([-1.5, 1.5, -0.5, 0.5]))


def test_on_policy_the_loss_of_a_group_is_0_and_its_gradient_is_not():
    rows = [dataclasses.replace(row, weight=1.0) for row in answers(on_policy=True)]
    rows = [dataclasses.replace(row, advantage=a) for row, a in zip(rows, (1.0, -1.0, 0.5, -0.5, 2.0, -2.0), strict=True)]
    (total, denominator, metrics), gradient = measured(grpo.make(), *laid_out(rows, BINS))
    assert abs(total) < 1e-12 and np.abs(gradient).max() > 0.1
    assert metrics["ratio"] == pytest.approx(denominator) and metrics["clip_low_frac"] == metrics["clip_high_frac"] == 0


def test_without_beta_no_reference_is_asked_for():
    out, batch = laid_out(answers(), BINS, names=("old", "sampler"))
    grpo.make(importance_cap=2.0).loss(out, {}, batch)
    with pytest.raises(KeyError, match="logp_ref"):
        grpo.make(beta=0.1).loss(out, {}, batch)


def test_the_largest_gap_to_the_sampler_is_of_tokens_with_a_weight_alone():
    rows = answers()
    rows[3] = dataclasses.replace(rows[3], sampler=rows[3].old - 7.0)
    (_, denominator, metrics), _ = measured(grpo.make(), *laid_out(rows, BINS))
    assert float(metrics["sampler_gap_max"]) == pytest.approx(7.0) and 0 < metrics["sampler_gap"] < 7.0 * denominator
    rows[3] = dataclasses.replace(rows[3], weight=0.0)
    (_, _, metrics), _ = measured(grpo.make(), *laid_out(rows, BINS))
    assert 0 < metrics["sampler_gap_max"] < 7.0 and {"sampler_gap_max"} == grpo.make().maxima


def test_near_the_reference_k3_keeps_its_digits_in_float32():
    d = np.array([1e-3, -1e-3, 1e-4], np.float32)
    np.testing.assert_allclose(grpo.k3(jnp.asarray(d)), d.astype(np.float64) ** 2 / 2, rtol=2e-3)


def test_equal_words_make_one_objective_and_one_program():
    traced = []

    def step(objective, logp, batch):
        traced.append(objective)
        return objective.loss({"logp": logp, "entropy": logp}, {}, batch)[0]

    out, batch = laid_out(answers(), BINS)
    run = jax.jit(step, static_argnums=0)
    for loss in ("dapo", "dapo", "cispo"):
        run(grpo.make(loss=loss, rewards=("agreement", "answered"), reward_weights=(1.0, 0.1)), out["logp"], batch)
    assert len(traced) == 2


@ALL
def test_a_clip_bound_of_none_is_the_losss_own(loss):
    own = grpo.make(loss=loss).form
    assert (own.clip_low, own.clip_high) == BOUNDS[loss]
    given = grpo.make(loss=loss, clip_low=0.0, clip_high=0.5).form
    assert (given.clip_low, given.clip_high) == (0.0, 0.5)


def test_every_keyword_has_a_default_that_a_config_can_show():
    found = plugins.defaults("objective", "grpo")
    own = {name: None for name, value in found.items() if isinstance(value, type)}
    assert own == {"clip_low": None, "clip_high": None}, "a number that may be left out is shown as its type"
    assert grpo.make(**found | own) == grpo.make() == plugins.make("objective", "grpo")
    assert found["loss"] == "grpo" and found["rewards"] == ("agreement",) and len(found) == 18


@pytest.mark.parametrize(
    "given, said",
    [
        ({"loss": "ppo"}, r"loss='ppo': allowed is grpo, dr_grpo, dapo, gspo, cispo; change student\.grpo\.loss in the config"),
        ({"advantage": "batch"}, "advantage='batch': allowed is group_std, group_mean, leave_one_out"),
        ({"kl": "k4"}, "kl='k4': allowed is k1, k2, k3"),
        ({"zero_variance": "drop"}, "zero_variance='drop': allowed is keep, mask, resample"),
        ({"group_size": 1}, "group_size=1: allowed is 2 or more: advantage 'group_std' compares"),
        ({"group_size": 1, "advantage": "group_mean"}, "advantage 'group_mean' compares"),
        ({"group_size": 1, "advantage": "leave_one_out"}, "advantage 'leave_one_out' compares"),
        ({"group_size": 2.5}, "group_size=2.5: allowed is 2 or more"),
        ({"top_p": 0.9}, r"top_p=0\.9: allowed is 1\.0 only: .* another support"),
        ({"top_k": 40}, r"top_k=40: allowed is 0 \(all tokens\) only: .* another support"),
        ({"temperature": 0.0}, r"temperature=0\.0: allowed is a number above 0"),
        ({"clip_low": -0.1}, "clip_low=-0.1: allowed is 0 to 1"),
        ({"clip_low": 1.5}, "clip_low=1.5: allowed is 0 to 1"),
        ({"clip_high": -0.1}, "clip_high=-0.1: allowed is 0 or more"),
        ({"clip_high": math.nan}, "clip_high=nan: allowed is 0 or more"),
        ({"beta": -0.1}, "beta=-0.1: allowed is 0 or more"),
        ({"beta": math.inf}, "beta=inf: allowed is 0 or more"),
        ({"importance_cap": -1.0}, "importance_cap=-1.0: allowed is 0 "),
        ({"importance_cap": 0.5}, "importance_cap=0.5: allowed is 0 .*, or 1 or more"),
        ({"inner_steps": 0}, "inner_steps=0: allowed is a whole number, 1 or more"),
        ({"inner_steps": 1.5}, "inner_steps=1.5: allowed is a whole number"),
        ({"questions": 0}, "questions=0: allowed is a whole number, 1 or more"),
        ({"max_new_tokens": 0}, "max_new_tokens=0: allowed is a whole number, 1 or more"),
        ({"rewards": ()}, r"rewards=\(\): allowed is a tuple"),
        ({"rewards": "agreement"}, "rewards='agreement': allowed is a tuple"),
        ({"rewards": ("agreement", "answered")}, r"reward_weights=\(1\.0,\): allowed is one number for each"),
        ({"reward_weights": (-1.0,)}, r"reward_weights=\(-1\.0,\): allowed is numbers of 0 or more"),
        ({"reward_weights": (0.0,)}, "not all 0"),
        ({"rewards": ("agreement",) * 2, "reward_weights": (1.0, 1.0)}, "allowed is each reward once"),
        ({"rewards": ("agree",)}, "reward 'agree': there is no such function; allowed are agreement, "),
        ({"overlong_buffer": 16}, "overlong_buffer=16: allowed is 0, or 'overlong' among the rewards"),
        ({"rewards": ("overlong",)}, "overlong_buffer=0: allowed is 1 to max_new_tokens=256"),
        ({"rewards": ("overlong",), "overlong_buffer": 257}, "overlong_buffer=257: allowed is 1 to max_new_tokens=256"),
    ],
)
def test_settings_that_make_no_sense_are_refused(given, said):
    with pytest.raises(ValueError, match=said) as refusal:
        grpo.make(**given)
    assert "change student.grpo." in str(refusal.value)


def test_rewards_know_the_lengths_of_their_objective():
    objective = grpo.make(rewards=("agreement", "overlong"), reward_weights=(1.0, 0.5), max_new_tokens=100, overlong_buffer=20)
    found, means = objective.reward(
        texts=["a", "b"],
        finals=["1", "2"],
        wanted=["1", "1"],
        agree=lambda a, b: np.array(a) == np.array(b),
        num_tokens=[90, 10],
    )
    assert found.tolist() == [0.75, 0.0] and means == {"agreement": 0.5, "overlong": -0.25}


@pytest.mark.slow  # it imports a trainer and all it stands on
@pytest.mark.parametrize("beta, cap", [(0.0, 0.0), (0.3, 0.0), (0.3, 1.2)])
@ALL
def test_value_and_gradient_are_trls(loss, beta, cap):
    """All trust weights are 1, which is all that TRL knows; its own loss is called on tensors in place of a model."""
    torch = pytest.importorskip("torch")
    trainer = pytest.importorskip("trl.trainer.grpo_trainer")
    rows = [dataclasses.replace(row, weight=1.0) for row in answers(drift=0.2)]
    low, high = (0.05, 0.07) if loss == "gspo" else BOUNDS[loss]
    objective = grpo.make(loss=loss, beta=beta, importance_cap=cap, clip_low=low, clip_high=high, max_new_tokens=T)
    (total, denominator, _), gradient = measured(objective, *laid_out(rows, BINS))

    width = max(len(row.logp) for row in rows)

    def padded(name):
        return torch.tensor(np.stack([np.pad(getattr(row, name), (0, width - len(row.logp))) for row in rows]))

    mask = torch.tensor([[float(t < len(row.logp)) for t in range(width)] for row in rows], dtype=torch.float64)
    logp = padded("logp").requires_grad_()
    settings = SimpleNamespace(use_bias_correction_kl=False, delta=None, steps_per_generation=1)
    accelerator = SimpleNamespace(num_processes=1, gather=lambda x: x, reduce=lambda x, reduction: x)
    theirs = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *args, **kw: (logp, padded("entropy"), None),
        loss_type="grpo" if loss == "gspo" else loss,
        importance_sampling_level="sequence" if loss == "gspo" else "token",
        epsilon_low=low,
        epsilon_high=1 + high if loss == "cispo" else high,  # TRL's is the cap itself
        beta=beta,
        max_completion_length=T,
        use_vllm=bool(cap),
        vllm_importance_sampling_correction=True,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        aux_loss_enabled=False,
        _entropy_bonus_enabled=False,
        current_gradient_accumulation_steps=1,
        model=SimpleNamespace(training=True),
        args=settings,
        accelerator=accelerator,
        _metrics={"train": collections.defaultdict(list)},
    )
    inputs = {
        "prompt_ids": mask,
        "prompt_mask": mask,
        "completion_ids": mask,
        "completion_mask": mask,
        "advantages": torch.tensor([row.advantage for row in rows], dtype=torch.float64),
        "old_per_token_logps": padded("old"),
        "ref_per_token_logps": padded("ref"),
        "importance_sampling_ratio": torch.exp(padded("old") - padded("sampler")).clamp(max=cap) if cap else None,
        "num_items_in_batch": mask.sum(),
    }
    value = trainer.GRPOTrainer._compute_loss(theirs, None, inputs)
    value.backward()
    close(total / denominator, value.item())
    wanted = [logp.grad[k, : len(row.logp)].numpy() for k, row in enumerate(rows)]
    assert np.abs(wanted[0]).max() > 0
    close([row / denominator for row in by_row(gradient, rows, BINS)[0]], wanted)
