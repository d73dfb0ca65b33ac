"""The student's path under its teacher's labels: thousands of pairs in one compiled program, by `lax.scan`.

`population` follows the mean gradient over all questions, `sample` the gradient on n drawn ones. Explicit Euler steps, which is
gradient descent at that rate. Where all directions of the questions are alike (C = 1) the flow never leaves the plane of
student and teacher, and `Pairs.in_plane` has the same path in two dimensions.

Layout: pairs stand in the last axis of what is computed, so that inner products run over the first one and use whole vectors
of the processor; the outside sees f32[K, d].
"""

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from w2s_jax.theory import gaussian
from w2s_jax.theory.pairs import Pairs

STEEPEST = 0.25  # sigma' is nowhere larger, so the loss's curvature is at most this times C's
MARGIN = 1e-6  # of a cosine; a smaller rise could be rounding


@dataclasses.dataclass(frozen=True)
class Path:
    """How the cosines with the truth went, f32 each.

    Attributes:
        start, best, end: [K], before the first step, at the highest point, after the last step.
        step: i32[K], of the highest point; 0 = the start.
        norm: [K], the student's length at the end.
        student: [K, d], the student at the end.
        curve: [records + 1, K], every so many steps, from the start to the end.
    """

    start: np.ndarray
    best: np.ndarray
    end: np.ndarray
    step: np.ndarray
    norm: np.ndarray
    student: np.ndarray
    curve: np.ndarray

    @property
    def improved(self) -> np.ndarray:
        """Whether the student beats itself somewhere on its path, bool[K]."""
        return self.best > self.start + MARGIN

    @property
    def improved_at_end(self) -> np.ndarray:
        """Whether it does so after the last step, bool[K]."""
        return self.end > self.start + MARGIN


def population(
    pairs: Pairs,
    *,
    labels: Callable[[jax.Array], jax.Array] = gaussian.soft,
    noise: np.ndarray | float = 0.0,
    variance: np.ndarray | float = 1.0,
    rate: float = 0.02,
    steps: int = 3000,
    records: int = 60,
) -> Path:
    """Follows the flow on all questions, x ~ N(0, C).

    One program for each (K, d, steps, records); labels, noise, variances and rate are its inputs.

    Args:
        pairs: in whitened coordinates.
        labels: `gaussian.soft` or `gaussian.hard`: what a teacher pulls to.
        noise: eta, the share of labels that are turned over; a number, or f[K].
        variance: C's eigenvalues, f[d], or f[K, d], or a number for all.
        rate: of a step.
        steps: a multiple of records.
        records: points of the curve.

    Raises:
        ValueError: noise outside [0, 1/2), a rate at which steps overshoot, a variance at or below 0, or steps and records that
            do not fit.
    """
    check(noise, variance, rate, steps, records)
    pull, variance = _inputs(pairs, labels, noise, variance)
    found = _population(pairs.student, pull, pairs.truth, variance, rate, steps=steps, records=records)
    return Path(*map(np.asarray, found))


def velocity(
    pairs: Pairs,
    *,
    labels: Callable[[jax.Array], jax.Array] = gaussian.soft,
    noise: np.ndarray | float = 0.0,
    variance: np.ndarray | float = 1.0,
) -> np.ndarray:
    """d/dt of the student's cosine with the truth at the start of `population`, f32[K]; its sign is a rule for any C."""
    pull, variance = _inputs(pairs, labels, noise, variance)

    def one(student, pull, truth, variance):
        moves = -variance * (gaussian.slope(gaussian.length(student)) * student - pull)
        return jax.jvp(lambda u: _cosine(u, truth), (student,), (moves,))[1]

    return np.asarray(jax.vmap(one)(pairs.student, pull, pairs.truth, variance))


def sample(
    pairs: Pairs,
    *,
    n: int,
    draws: int,
    key: jax.Array,
    says: Callable[[jax.Array], jax.Array] = jax.nn.sigmoid,
    noise: float = 0.0,
    variance: np.ndarray | float = 1.0,
    batch: int | None = None,
    rate: float = 0.02,
    steps: int = 3000,
    records: int = 60,
) -> Path:
    """Follows the gradient on n drawn questions; cosines are with the truth, over all questions.

    Each draw of n questions is shared by K / draws pairs, whose labels are turned over one by one. Minibatches pass over the
    questions in the order in which these were drawn, which is as good as any.

    Args:
        pairs: in whitened coordinates; those of one draw stand together.
        n: questions of a draw.
        draws: a divisor of K.
        key: what questions and turned labels are drawn from.
        says: a teacher's label, from its logits: `jax.nn.sigmoid` for soft ones, `decides` for hard ones.
        noise: eta, the share of labels that are turned over.
        variance: C's eigenvalues, f[d], or a number for all.
        batch: questions of a step, a divisor of n; None = all.
        rate, steps, records: as in `population`.

    Raises:
        ValueError: as in `population` (a rate is held to the largest variance that a batch may show), draws or a batch that do
            not divide what they should.
    """
    number, dimension = pairs.student.shape
    batch = n if batch is None else batch
    for name, part, whole, value in (("batch", batch, "n", n), ("draws", draws, "pairs", number)):
        if not 1 <= part <= value or value % part:
            raise ValueError(f"{name}={part}: allowed are divisors of {whole}={value}; change `{name}`")
    check(noise, np.asarray(variance) * (1 + math.sqrt(dimension / batch)) ** 2, rate, steps, records)
    variance = jnp.broadcast_to(jnp.asarray(variance, jnp.float32), (dimension,))
    grouped = (v.reshape(draws, -1, dimension) for v in (pairs.student, pairs.teacher, pairs.truth))
    keys = jax.random.split(key, draws)
    sizes = {"n": n, "batch": batch, "says": says, "steps": steps, "records": records}
    *each, student, curve = _sample(*grouped, keys, noise, variance, rate, **sizes)
    curve = np.moveaxis(np.asarray(curve), 0, 1).reshape(records + 1, number)
    return Path(*(np.asarray(v).reshape(number) for v in each), np.asarray(student).reshape(number, dimension), curve)


def decides(logit: jax.Array) -> jax.Array:
    """A hard label, 1 or 0."""
    return (logit > 0).astype(jnp.float32)


def check(noise, variance, rate: float, steps: int, records: int) -> None:
    """Refuses settings of a flow; see `population`."""
    noise, variance = np.asarray(noise, np.float64), np.asarray(variance, np.float64)
    if not ((noise >= 0) & (noise < 0.5)).all():
        raise ValueError(
            f"noise (eta) runs from {noise.min():g} to {noise.max():g}: allowed is 0 to below 0.5, where a label still says "
            "more than a coin; change `noise`"
        )
    if not (np.isfinite(variance) & (variance > 0)).all():
        raise ValueError(f"variance begins at {variance.min():g}: a singular covariance; allowed is what is above 0")
    highest = 2 / (STEEPEST * variance.max())
    if not 0 < rate < highest:
        raise ValueError(
            f"rate={rate:g}: allowed is above 0 and below {highest:g}, where steps along the largest variance "
            f"({variance.max():.3g}) would overshoot for ever; change `rate`"
        )
    if steps < 1 or not 1 <= records <= steps or steps % records:
        raise ValueError(f"steps={steps}, records={records}: allowed are steps that are a multiple of records; change one")


@functools.partial(jax.jit, static_argnames=("steps", "records"))
def _population(student, pull, truth, variance, rate, *, steps: int, records: int):
    def one(u, pull, truth, variance):
        size = gaussian.length(u)
        return jnp.sum(u * truth, axis=0) / size, u - rate * variance * (gaussian.slope(size) * u - pull)

    every_pair = jax.vmap(one, in_axes=-1, out_axes=-1)
    pull, truth, variance = pull.T, truth.T, variance.T
    return _follow(lambda u, _: every_pair(u, pull, truth, variance), lambda u: _cosine(u, truth), student.T, steps, records)


@functools.partial(jax.jit, static_argnames=("n", "batch", "says", "steps", "records"))
def _sample(student, teacher, truth, keys, noise, variance, rate, *, n: int, batch: int, says, steps: int, records: int):
    def one_draw(given):
        student, teacher, truth, key = given
        to_draw, to_turn = jax.random.split(key)
        z = jax.random.normal(to_draw, (n, student.shape[-1]))
        turned = jax.random.bernoulli(to_turn, noise, (n, len(student)))
        label = says(z @ teacher.T)
        label = jnp.where(turned, 1 - label, label)

        def advance(u, at):
            first = at % (n // batch) * batch
            seen, told = (jax.lax.dynamic_slice_in_dim(v, first, batch) for v in (z, label))
            gradient = seen.T @ (jax.nn.sigmoid(seen @ u) - told) / batch
            return _cosine(u, truth.T), u - rate * variance[:, None] * gradient

        return _follow(advance, lambda u: _cosine(u, truth.T), student.T, steps, records)

    return jax.lax.map(one_draw, (student, teacher, truth, keys))  # one after the other: products of matrices use all cores


def _inputs(pairs: Pairs, labels, noise, variance):
    """Pulls and variances, f32[K, d] each."""
    shape = pairs.student.shape
    certain = 1 - 2 * jnp.broadcast_to(jnp.asarray(noise, jnp.float32), shape[:1])
    pull = jax.vmap(labels)(pairs.teacher) * certain[:, None]
    return pull, jnp.broadcast_to(jnp.asarray(variance, jnp.float32), shape)


def _follow(advance, cosine, u, steps: int, records: int):
    """Takes the steps and keeps the highest point and the curve.

    Args:
        advance: (u, step) -> the cosine at u, u after the step.
        cosine: u -> cosine.
        u: f32[d, K].
        steps, records: as in `population`.
    """

    def step(carry, at):
        u, best, when = carry
        now, u = advance(u, at)
        return (u, jnp.maximum(best, now), jnp.where(now > best, at, when)), None

    def record(carry, at):
        carry, _ = jax.lax.scan(step, carry, at)
        return carry, cosine(carry[0])

    start = cosine(u)
    carry = (u, start, jnp.zeros(u.shape[1], jnp.int32))
    (u, best, when), curve = jax.lax.scan(record, carry, jnp.arange(steps).reshape(records, -1))
    end = cosine(u)
    when = jnp.where(end > best, steps, when)
    return start, jnp.maximum(best, end), end, when, gaussian.length(u), u.T, jnp.concatenate([start[None], curve])


def _cosine(u, truth):
    """Of f32[d] or f32[d, K] with a truth of length 1."""
    return jnp.sum(u * truth, axis=0) / gaussian.length(u)
