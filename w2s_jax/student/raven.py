"""Learning from several teachers at once, and how much to trust each: their mixture's weights are learnt with the student.

    y_ko = sum_t v_t e_kto        v = softmax(log v0 + pace u)
    loss = - sum_k w_k sum_o y_ko log p_ko / sum_k w_k

e are the soft labels of T teachers (`Lesson.experts`); u f32[T] starts at 0 and is trained by the student's optimizer, at its
rate, `pace` times as fast as parameters are. v0 is uniform, or falls with each teacher's mean entropy over the lesson
(`init="entropy"`: 1 / entropy, divided by their sum). For the first `warm` share of the training v is frozen, and only
questions on which the most probable options of all teachers are one count. Where a lesson has no experts, all teachers say
what it says. The weights stand in the metrics as `w_0`, `w_1`, ...: largest values over micro-batches, which all have the
same. (p, w: `student.options`.)

Source: arXiv 2510.21332 and the code that goes with it.
Deviations: 1. the weights are a softmax of what is learnt, so that they stay on the simplex by themselves; theirs are steps
of SGD that are cut off at 1e-6 and divided by their sum. `pace` takes the place of their own rate. 2. the warm start is a
share of the training's steps, not a number of epochs. 3. entropies below `LEAST` nats count as that much. 4. weights of each
question's own are left out: they would have to be learnt for as many questions as a lesson happens to have.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from w2s_jax.packing import Shape
from w2s_jax.student import Ask, Plan, options
from w2s_jax.types import Batch, Lesson

VERSION = "1"
LEAST = 0.01


@dataclasses.dataclass(frozen=True, kw_only=True)
class Raven(options.Options):
    """See the module.

    Attributes:
        teachers: T.
        warm: share of the training in which the weights are frozen.
        prior: experts f32[K, T, O] -> v0 f32[T].
        pace: how many times as fast as parameters u is trained.
    """

    teachers: int
    warm: float
    prior: str
    pace: float
    needs: frozenset[str] = frozenset({"option_logp", "progress"})

    def __post_init__(self):
        super().__post_init__()
        self.refuse(self.teachers < 1, "teachers", self.teachers, "a whole number, 1 or more")
        self.refuse(not 0 <= self.warm <= 1, "warm", self.warm, "a number from 0 to 1")
        self.refuse(self.prior not in PRIORS, "init", self.prior, f"one of {', '.join(PRIORS)}")
        self.refuse(not 0 < self.pace < float("inf"), "pace", self.pace, "a number above 0")

    def init(self, key: jax.Array) -> dict:
        # A bias, which has no weight decay: that would draw the weights back to where they began.
        return {"teachers": {"bias": jnp.zeros(self.teachers, jnp.float32)}}

    def columns(self, lesson: Lesson) -> dict[str, np.ndarray]:
        experts = experts_of(lesson, self.teachers)
        choice = experts.argmax(axis=-1)
        agreed = (choice == choice[:, :1]).all(axis=-1) & (lesson.weight > 0)
        if self.warm and not agreed.any():
            raise ValueError(
                f"warm={self.warm}: allowed is 0 here, as the {self.teachers} teachers agree on none of {len(choice)} "
                "questions; change student.raven.warm in the config"
            )
        return {**super().columns(lesson), "experts": experts, "agreed": agreed.astype(np.float32)}

    def plan(self, lesson: Lesson, ask: Ask, shape: Shape, key: jax.Array, *, shared: bool) -> Plan:
        laid = super().plan(lesson, ask, shape, key, shared=shared)
        prior = np.tile(PRIORS[self.prior](experts_of(lesson, self.teachers)), (shape.batch_rows, 1))

        def batch(index: int) -> Batch:
            one = laid.batch(index)
            return one.replace(extra={**one.extra, "prior": prior})

        return dataclasses.replace(laid, batch=batch)

    def loss(self, out, own, batch):
        asked = options.read(out, batch)
        warming = batch.extra["progress"][0] < self.warm
        v = weights(own["teachers"]["bias"], batch.extra["prior"][0], self.pace)
        v = jnp.where(warming, jax.lax.stop_gradient(v), v)
        mixed = jnp.einsum("t,kto->ko", v, options.column(batch, "experts"))
        weight = jnp.where(warming, asked.weight * options.column(batch, "agreed"), asked.weight)
        mixed_label = dataclasses.replace(asked, target=jax.lax.stop_gradient(mixed))
        total, denominator, metrics = options.cross_entropy(mixed_label, mixed, weight)
        return total, denominator, metrics | {f"w_{t}": v[t] for t in range(self.teachers)}


def weights(u: jax.Array, prior: jax.Array, pace: float) -> jax.Array:
    """v f32[T], see the module.

    The gradient in u is that of the logarithms of the weights, whatever `pace` is: AdamW's steps do not depend on its size, and
    the norm that all gradients are clipped by should not either.
    """
    return jax.nn.softmax(jnp.log(prior) + u + jax.lax.stop_gradient((pace - 1) * u))


def experts_of(lesson: Lesson, num_teachers: int) -> np.ndarray:
    """f32[K, T, O]: the teachers' soft labels; the lesson's own for each of them where it has none of theirs.

    Raises:
        ValueError: they are those of another number of teachers, or no probabilities over each question's options.
    """
    if lesson.experts is None:
        return np.repeat(options.labels(lesson)[:, None], num_teachers, axis=1)
    if lesson.experts.ndim != 3 or lesson.experts.shape[1] != num_teachers:
        raise ValueError(
            f"the lesson's experts have the shape {lesson.experts.shape} (questions, teachers, options), and "
            f"student.raven.teachers={num_teachers}: set it to the number of teachers in the config"
        )
    return options.checked("experts", lesson.experts, lesson)


def uniform(experts: np.ndarray) -> np.ndarray:
    """All teachers alike: f32[T]."""
    return np.full(experts.shape[1], 1 / experts.shape[1], np.float32)


def by_entropy(experts: np.ndarray) -> np.ndarray:
    """1 / mean entropy of each teacher's labels f32[K, T, O], divided by their sum: f32[T].

    >>> [round(float(v), 3) for v in by_entropy(np.array([[[0.5, 0.5], [1.0, 0.0]], [[0.5, 0.5], [0.5, 0.5]]]))]
    [0.333, 0.667]
    """
    entropy = -(experts * np.log(np.where(experts > 0, experts, 1.0))).sum(axis=-1).mean(axis=0)
    sure = 1 / np.maximum(entropy, LEAST)
    return (sure / sure.sum()).astype(np.float32)


PRIORS = {"uniform": uniform, "entropy": by_entropy}


def make(
    *, teachers: int = 1, warm: float = 0.1, init: str = "uniform", pace: float = 100.0, normalise: str = "token"
) -> Raven:
    """The objective.

    Raises:
        ValueError: a number is out of its range, an unknown `init` or `normalise`.
    """
    return Raven(
        teachers=teachers,
        warm=warm,
        prior=init,
        pace=pace,
        normalise=normalise,
        maxima=frozenset(f"w_{t}" for t in range(teachers)),
    )
