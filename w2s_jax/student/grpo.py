r"""Group-relative policy optimisation: the loss, and the settings of a round. Several answers to a question are compared.

A round samples `group_size` answers to each of `questions` questions, rewards them (`rewards.py`), turns rewards into
advantages A_i (`advantages.py`) and takes `inner_steps` optimizer steps. With r = exp(logp - logp_old), the loss of answer i's
token t is

    l_it = c_it f(rho_it, A_i) + beta kl_it        c_it = min(exp(logp_old - logp_sampler), importance_cap), or 1

and a loss is settled by its ratio rho, by what clipping does (f), and by its normaliser; w_i is the question's trust weight:

| loss    | ratio rho_it           | f                        | clip_low, clip_high | normaliser                      |
|---------|------------------------|--------------------------|---------------------|---------------------------------|
| grpo    | r_it                   | -min(rho A, clip(rho) A) | 0.2, 0.2            | sum_i w_i mean_t l / sum_i w_i  |
| dr_grpo | r_it                   | -min(rho A, clip(rho) A) | 0.2, 0.2            | sum_it w_i l / (T sum_i w_i)    |
| dapo    | r_it                   | -min(rho A, clip(rho) A) | 0.2, 0.28           | sum_it w_i l / sum_it w_i       |
| gspo    | exp(mean_t log r_it)   | -min(rho A, clip(rho) A) | 3e-4, 4e-4          | sum_i w_i mean_t l / sum_i w_i  |
| cispo   | r_it, without gradient | -clip(rho) A logp_it     | 1, 4                | sum_it w_i l / sum_it w_i       |

clip(rho) is rho held in [1 - clip_low, 1 + clip_high]; T is `max_new_tokens`. With d = logp - logp_ref, the estimators

    k1 = d        k2 = d^2 / 2        k3 = exp(-d) + d - 1

of KL(policy, reference) are differentiated as they stand, as trainers usually do. On policy the mean gradient of k2 is that of
KL(policy, reference), that of k3 is that of KL(reference, policy), and that of k1 is 0: it measures and does not restrain.

Sums and denominators are added over micro-batches and processes and divided once, so that neither accumulation nor packing
changes a step. On policy (logp = logp_old) with the advantages of a group adding up to 0, grpo's loss is 0 although its
gradient is not: look at the reward, not at the loss.

Source: GRPO, arXiv 2402.03300; Dr. GRPO, 2503.20783; DAPO, 2503.14476; GSPO, 2507.18071; CISPO, 2506.13585; k1, k2, k3:
Schulman, "Approximating KL Divergence", 2020; truncated importance sampling: Ionides 2008.
Deviations: 1. the trust weight w_i is ours; as a factor of the reward it would cancel within the group. 2. loss and advantage
are two words: Dr. GRPO is loss="dr_grpo" with advantage="group_mean". 3. DAPO is loss="dapo", zero_variance="resample" and the
reward "overlong", not the loss alone. 4. CISPO's paper has no lower bound and gives no number for the upper one; ours holds the
weight at 5 or below, after arXiv 2510.13786. 5. log-ratios are held in [-20, 20], with no gradient beyond: the exponential of
more would become infinity times zero. 6. importance weights multiply f, not the divergence, and are each token's own under
gspo too.
"""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from w2s_jax.student import rewards as reward_functions
from w2s_jax.student.advantages import ADVANTAGES
from w2s_jax.types import Batch

VERSION = "1"
BOUND = 20.0


def each_token(log_ratio: jax.Array, share: jax.Array, segment: jax.Array) -> jax.Array:
    """The ratio of each token: log-ratios [B, L] as they are."""
    return log_ratio


def each_sequence(log_ratio: jax.Array, share: jax.Array, segment: jax.Array) -> jax.Array:
    """The ratio of each sequence: the mean log-ratio of its completion, at all of its tokens, [B, L]."""
    places = segment.shape[1] + 1  # a row of L tokens has at most L segments, and 0 is padding

    def row(part, number):
        return jax.ops.segment_sum(part, number, num_segments=places)[number]

    return jax.vmap(row)(log_ratio * share, segment)


def clipped_step(ratio, logp, advantage, low, high):
    """Tokens beyond the bounds, on the side where more would be better, lose their gradient.

    Returns:
        the loss, and what is clipped below and above, each [B, L].
    """
    below, above = (advantage < 0) & (ratio < 1 - low), (advantage > 0) & (ratio > 1 + high)
    held = jnp.where(below, 1 - low, jnp.where(above, 1 + high, ratio))
    return -held * advantage, below, above


def clipped_weight(ratio, logp, advantage, low, high):
    """All tokens keep a gradient; the weight it gets is held within the bounds. Returns as `clipped_step`."""
    ratio = jax.lax.stop_gradient(ratio)
    return -jnp.clip(ratio, 1 - low, 1 + high) * advantage * logp, ratio < 1 - low, ratio > 1 + high


def mean_of_sequences(weight, share, max_new_tokens):
    """Each answer counts the same: the tokens' weights in the loss, and in its denominator, each [B, L]."""
    return weight * share, weight * share


def mean_of_tokens(weight, share, max_new_tokens):
    """Each token counts the same."""
    return weight, weight


def constant_length(weight, share, max_new_tokens):
    """Each token counts the same, and the denominator counts answers as if all were of the greatest length."""
    return weight / max_new_tokens, weight * share


def k1(log_ratio):
    return log_ratio


def k2(log_ratio):
    return log_ratio**2 / 2


def k3(log_ratio):
    return jnp.expm1(-log_ratio) + log_ratio


@dataclasses.dataclass(frozen=True)
class Loss:
    """A line of the module's table; the functions above, and the bounds of its paper."""

    ratio: Callable
    surrogate: Callable
    normalise: Callable
    clip_low: float
    clip_high: float


LOSSES = {
    "grpo": Loss(each_token, clipped_step, mean_of_sequences, 0.2, 0.2),
    "dr_grpo": Loss(each_token, clipped_step, constant_length, 0.2, 0.2),
    "dapo": Loss(each_token, clipped_step, mean_of_tokens, 0.2, 0.28),
    "gspo": Loss(each_sequence, clipped_step, mean_of_sequences, 3e-4, 4e-4),
    "cispo": Loss(each_token, clipped_weight, mean_of_tokens, 1.0, 4.0),
}
DIVERGENCES = {"k1": k1, "k2": k2, "k3": k3}
ZERO_VARIANCE = ("keep", "mask", "resample")


@dataclasses.dataclass(frozen=True)
class GRPO:
    """The objective and the settings of a round; hashable, equal where `make` was called with equal words.

    Attributes:
        form: the loss's ratio, surrogate, normaliser and clip bounds.
        advantage: rewards f64[Q, S] -> advantages f32[Q, S].
        kl: the estimator of the divergence from the reference, of logp - logp_ref.
        beta: its factor; 0 = no reference is needed.
        importance_cap: the most that exp(logp_old - logp_sampler) may weigh; 0 = no such weight.
        inner_steps: optimizer steps of a round.
        group_size: S, answers to a question.
        questions: Q, questions of a round.
        temperature: divides the logits, in sampling and in the loss.
        max_new_tokens: the most tokens of an answer.
        zero_variance: what becomes of a group whose rewards are all equal: "keep" (its answers count in the denominator and
            its divergence in the sum), "mask" (weight 0), "resample" (another question takes its place).
        rewards, reward_weights: functions of `rewards.py` or a user's own, and their weights.
        overlong_buffer: see `rewards.overlong`.
        needs: what the forward pass must return beside `logp`.
        maxima: metrics that are no means.
    """

    form: Loss
    advantage: Callable[[np.ndarray], np.ndarray]
    kl: Callable[[jax.Array], jax.Array]
    beta: float
    importance_cap: float
    inner_steps: int
    group_size: int
    questions: int
    temperature: float
    max_new_tokens: int
    zero_variance: str
    rewards: tuple[reward_functions.Reward, ...]
    reward_weights: tuple[float, ...]
    overlong_buffer: int
    needs: frozenset[str] = frozenset({"entropy"})
    maxima: frozenset[str] = frozenset({"sampler_gap_max"})

    def init(self, key: jax.Array) -> dict:
        return {}

    def reward(self, **about) -> tuple[np.ndarray, dict[str, float]]:
        """Rewards of R completions, and each function's mean: `rewards.total` with this objective's functions and lengths."""
        lengths = {"max_new_tokens": self.max_new_tokens, "overlong_buffer": self.overlong_buffer}
        return reward_functions.total(self.rewards, self.reward_weights, **about, **lengths)

    def loss(self, out, own, batch: Batch):
        """The module's table.

        Args:
            out: `logp` and `entropy`, f32[B, L], at this objective's temperature.
            own: nothing.
            batch: `weight` f32[B, L] is the question's trust weight on an answer's tokens, else 0. `extra`, each f32[B, L]:
                `advantage`, `logp_sampler`, `share` (1 / tokens of the answer), `logp_old` (left out where the student is still
                as it was: then it is `logp` itself, without gradient), `logp_ref` where beta is above 0. What stands where the
                weight is 0 is never read.

        Returns:
            The sum, the denominator and the metrics' sums. Divided by the denominator, metrics are means over tokens (dapo,
            cispo) or over answers of means over their tokens (the others): ratio, entropy, clip_low_frac and clip_high_frac
            (what is clipped), kl, importance and sampler_gap (|logp_old - logp_sampler|, whose maximum is sampler_gap_max).
        """
        real = batch.weight != 0

        def read(x):
            return jnp.where(real, x, 0.0)

        logp, share = read(out["logp"]), read(batch.extra["share"])
        old = read(batch.extra.get("logp_old", jax.lax.stop_gradient(logp)))
        gap = old - read(batch.extra["logp_sampler"])
        in_loss, in_mean = self.form.normalise(batch.weight, share, self.max_new_tokens)
        ratio = jnp.exp(_bounded(self.form.ratio(logp - old, share, batch.segment)))
        advantage = read(batch.extra["advantage"])
        cost, below, above = self.form.surrogate(ratio, logp, advantage, self.form.clip_low, self.form.clip_high)
        means = {"ratio": ratio, "entropy": read(out["entropy"]), "clip_low_frac": below, "clip_high_frac": above}
        means["sampler_gap"] = jnp.abs(gap)
        if self.importance_cap:
            importance = jnp.minimum(jnp.exp(_bounded(gap)), self.importance_cap)
            cost = cost * importance
            means["importance"] = importance
        if self.beta:
            kl = self.kl(_bounded(logp - read(batch.extra["logp_ref"])))
            cost = cost + self.beta * kl
            means["kl"] = kl
        metrics = {name: (in_mean * x).sum() for name, x in means.items()} | {"sampler_gap_max": jnp.abs(gap).max()}
        return (in_loss * cost).sum(), in_mean.sum(), metrics


def _bounded(log_ratio: jax.Array) -> jax.Array:
    return jnp.clip(log_ratio, -BOUND, BOUND)


def make(
    *,
    loss: str = "grpo",
    advantage: str = "group_std",
    clip_low: float | None = None,
    clip_high: float | None = None,
    beta: float = 0.0,
    kl: str = "k3",
    inner_steps: int = 1,
    group_size: int = 8,
    questions: int = 16,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    max_new_tokens: int = 256,
    zero_variance: str = "keep",
    importance_cap: float = 0.0,
    rewards: tuple[str, ...] = ("agreement",),
    reward_weights: tuple[float, ...] = (1.0,),
    overlong_buffer: int = 0,
) -> GRPO:
    """The objective; see `GRPO` and the module. A clip bound of None is the loss's own.

    Raises:
        ValueError: a word is unknown, a number is out of its range, or two settings do not go together.
    """
    form = _chosen("loss", loss, LOSSES)
    compare, divergence = _chosen("advantage", advantage, ADVANTAGES), _chosen("kl", kl, DIVERGENCES)
    _chosen("zero_variance", zero_variance, dict.fromkeys(ZERO_VARIANCE))
    form = dataclasses.replace(
        form,
        clip_low=form.clip_low if clip_low is None else clip_low,
        clip_high=form.clip_high if clip_high is None else clip_high,
    )
    _refuse(not 0 <= form.clip_low <= 1, "clip_low", clip_low, "0 to 1 (1 - clip_low is the least ratio)")
    _refuse(not 0 <= form.clip_high < math.inf, "clip_high", clip_high, "0 or more")
    _refuse(not 0 <= beta < math.inf, "beta", beta, "0 or more")
    _refuse(
        not (importance_cap == 0 or 1 <= importance_cap < math.inf),
        "importance_cap",
        importance_cap,
        "0 (no importance weight), or 1 or more (below 1 it would weigh down tokens on which sampler and trainer agree)",
    )
    _refuse(not 0 < temperature < math.inf, "temperature", temperature, "a number above 0")
    counts = {"inner_steps": inner_steps, "questions": questions, "max_new_tokens": max_new_tokens}
    for name, value in counts.items():
        _refuse(not isinstance(value, int) or value < 1, name, value, "a whole number, 1 or more")
    _refuse(
        not isinstance(group_size, int) or group_size < 2,
        "group_size",
        group_size,
        f"2 or more: advantage {advantage!r} compares the answers to one question with each other",
    )
    support = (
        "tokens outside of it have probability 0 in sampling and not in the loss, so the ratio would be over another support"
    )
    _refuse(top_p != 1, "top_p", top_p, f"1.0 only: {support}")
    _refuse(top_k != 0, "top_k", top_k, f"0 (all tokens) only: {support}")
    return GRPO(
        form=form,
        advantage=compare,
        kl=divergence,
        beta=beta,
        importance_cap=importance_cap,
        inner_steps=inner_steps,
        group_size=group_size,
        questions=questions,
        temperature=temperature,
        max_new_tokens=max_new_tokens,
        zero_variance=zero_variance,
        rewards=_rewards(rewards, reward_weights, overlong_buffer, max_new_tokens),
        reward_weights=tuple(reward_weights),
        overlong_buffer=overlong_buffer,
    )


def _rewards(words, weights, buffer, max_new_tokens) -> tuple[reward_functions.Reward, ...]:
    _refuse(isinstance(words, str) or not words, "rewards", words, "a tuple of one word or more, such as ('agreement',)")
    _refuse(len(words) != len(weights), "reward_weights", weights, f"one number for each of the rewards {tuple(words)}")
    _refuse(
        not all(0 <= weight < math.inf for weight in weights) or not any(weights),
        "reward_weights",
        weights,
        "numbers of 0 or more, not all 0; a punishment is a function that returns negative numbers",
    )
    functions = tuple(map(reward_functions.resolve, words))
    _refuse(len(set(functions)) < len(functions), "rewards", words, "each reward once")
    if reward_functions.overlong in functions:
        allowed = f"1 to max_new_tokens={max_new_tokens}, as rewards has 'overlong'"
        _refuse(not isinstance(buffer, int) or not 1 <= buffer <= max_new_tokens, "overlong_buffer", buffer, allowed)
    else:
        _refuse(buffer != 0, "overlong_buffer", buffer, "0, or 'overlong' among the rewards, which alone reads it")
    return functions


def _chosen(name, word, table):
    _refuse(word not in table, name, word, ", ".join(table))
    return table[word]


def _refuse(wrong: bool, name: str, value, allowed: str) -> None:
    if wrong:
        raise ValueError(f"{name}={value!r}: allowed is {allowed}; change student.grpo.{name} in the config")
