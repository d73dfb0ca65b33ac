"""How coherent the gradients of a lesson are: do its examples pull the student the same way, and in how many directions.

In: the student before training and lessons of several methods. Out: one `Coherence` for each. What is compared are the
gradients g_i of the SFT loss of single examples in the factors of LoRA adapters, at the adapters that training starts from.
There `b` = 0, so that `a` has no gradient and all of g_i stands in `b`: the full gradient of each adapted map, seen through its
random `a` of r columns. Another key of the adapters is another look at the same full gradients; their factor (alpha / rank)
scales every g_i alike and leaves all figures as they are. A student of which all parameters are trained is looked at in the
same way.

g_i is the gradient of the example's *sum* over answer tokens, times its weight in the lesson, just as it enters a step of SFT
before the common division: long answers and trusted labels count for more in `signal`, the ranks and `to_gold`; `cosine` looks
at directions alone. Examples of weight 0 teach nothing and are left out.

No g_i is kept: each is sketched to m numbers. Its P coordinates get random signs and are cut into blocks of m; each block is
turned by a random number of places, and the blocks are added up (a count sketch whose buckets are turns of a block). With
m >= P nothing is lost. Otherwise <Su, Sv> is <u, v> in the mean over sketches, with a variance of at most

    (|u|^2 |v|^2 + <u, v>^2 - 2 sum_i u_i^2 v_i^2) / m,

which is that of independent buckets; pairs of coordinates within a block never meet, which only lowers it. Means over pairs
hardly feel it. The ranks do, because noise looks like further directions, until m is some hundred times n: of n unrelated
gradients, the largest singular value squared comes out larger by a share of up to about 2 sqrt(n / m).

Intervals are bootstraps over examples from the Gram matrix. A replicate draws some examples twice, and a pair of an example
with itself is no pair of two: so these keep the share that they have in the sample, and only the rest is reweighted. Without
that, `signal` would be too large by about 1 / n in the mean of all replicates. An example that stands in both lessons is drawn
for both.

Source: arXiv 2606.01000 (gradients of trusted lessons are said to be more coherent and of lower rank; no measure is given).
Effective rank: Roy and Vetterli, EUSIPCO 2007. Count sketch: Charikar, Chen and Farach-Colton, TCS 312 (2004) 3.
Deviations: 1. all measures are ours, and so is the effective rank's entropy of *squared* singular values. 2. Questions of one
group (a passage) are taken for independent in the intervals.
"""

import dataclasses
import functools
import hashlib
import zlib
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from w2s_jax import packing, processes
from w2s_jax.metrics import Undefined
from w2s_jax.models import lora
from w2s_jax.models.compute import Compute
from w2s_jax.models.decoder import Decoder
from w2s_jax.packing import Shape
from w2s_jax.progress import Progress
from w2s_jax.student import Encode, sft, trainer
from w2s_jax.types import LM, Batch, Lesson

VERSION = "1"

REPLICATES = 2000
LEAST = 10
"""Fewer examples than this get no interval: replicates would repeat each other."""


@dataclasses.dataclass(frozen=True)
class Coherence:
    """Of the gradients of one lesson's examples; None = undefined, `reason` says why. Intervals are 95 %.

    `signal` and the ranks depend on n, so compare lessons of equal n. Of unrelated gradients of equal length, signal is 1 / n
    and both ranks are n; of equal ones all three are 1.

    Attributes:
        method: the lesson's name.
        n: examples looked at.
        cosine: mean over all pairs of two examples.
        signal: |sum g|^2 / (n sum |g|^2), in [0, 1].
        stable_rank: |G|_F^2 / |G|_2^2 of the matrix G of all gradients.
        effective_rank: exp of the entropy of G's squared singular values, as shares of their sum.
        to_gold: cosine of the mean gradient to the gold lesson's mean gradient, both of the examples looked at.
        cosine_lo, cosine_hi, signal_lo, signal_hi, to_gold_lo, to_gold_hi: intervals over examples.
        reason: why something is None, or of fewer examples than were asked for.
    """

    method: str
    n: int
    cosine: float | None = None
    cosine_lo: float | None = None
    cosine_hi: float | None = None
    signal: float | None = None
    signal_lo: float | None = None
    signal_hi: float | None = None
    stable_rank: float | None = None
    effective_rank: float | None = None
    to_gold: float | None = None
    to_gold_lo: float | None = None
    to_gold_hi: float | None = None
    reason: str = ""


def measure(
    student: LM,
    lessons: Mapping[str, Lesson],
    *,
    gold: str,
    n: int,
    sketch: int,
    seed: int,
    rank: int,
    targets: Sequence[str],
    encode: Encode,
    shape: Shape,
    compute: Compute,
    key: jax.Array,
) -> tuple[Coherence, ...]:
    """Measures the lessons of several methods, in their order.

    Args:
        student: the model before training.
        lessons: by method; labels are hard.
        gold: the method whose mean gradient the others' are compared to.
        n: examples of each lesson, by a keyed hash of question ids: a question of several lessons is looked at in all or none
            of them, as far as their sizes allow. A smaller lesson is looked at whole.
        sketch: m, numbers kept of each gradient; some hundred times n for fair ranks, see the module.
        seed: of the examples, the sketch and the intervals.
        rank, targets: of the adapters, as in `lora.init`.
        encode: the student's layout and tokenizer.
        shape: `row_length`, which each example must fit into, and `batch_rows`, examples on the devices at once;
            `max_segments` is not used.
        compute: how the model computes; see `gradients`.
        key: of the training that the gradients begin: adapters are those that `trainer.teach` makes of it.

    Raises:
        ValueError: there is no gold lesson, a number is below 1, or what `gradients` refuses.
    """
    if gold not in lessons:
        raise ValueError(f"gold={gold!r}: allowed are the lessons {', '.join(lessons)}; teach that method too, or name another")
    for name, value in (("n", n), ("sketch", sketch)):
        if value < 1:
            raise ValueError(f"{name}={value}: allowed is 1 or more; change the gradients asked for in the config")
    adapters = lora.Adapters(lora.init(student.params, jax.random.split(key, 3)[0], rank, targets), rank, alpha=rank)
    key_sketch = jax.random.fold_in(key, zlib.crc32(f"sketch {seed}".encode()))
    ids, rows = {}, {}
    for method, lesson in lessons.items():
        taken = draw(lesson, n, seed)
        ids[method] = [question.id for question in taken.questions]
        rows[method] = np.zeros((0, sketch), np.float32)
        if taken.questions:
            rows[method] = gradients(
                student, taken, adapters, encode=encode, sketch=sketch, key=key_sketch, shape=shape, compute=compute
            )
    place = {i: row for row, i in enumerate(ids[gold])}
    found = []
    for method in lessons:
        twin = np.array([place.get(i, -1) for i in ids[method]], int)
        one = statistics(method, rows[method], rows[gold], twin, seed=seed)
        if one.n < n:
            note = f"{one.n} examples instead of {n}: signal and ranks of other numbers do not compare"
            one = dataclasses.replace(one, reason="; ".join(filter(None, (one.reason, note))))
        found.append(one)
    return tuple(found)


def draw(lesson: Lesson, n: int, seed: int) -> Lesson:
    """The examples that are looked at, in the lesson's order: n of those with a weight, by a keyed hash of question ids."""

    def rank(row: int) -> bytes:
        return hashlib.sha256(f"coherence, seed {seed}\0{lesson.questions[row].id}".encode()).digest()

    rows = sorted(sorted(np.flatnonzero(lesson.weight > 0).tolist(), key=rank)[:n])
    return Lesson(
        tuple(lesson.questions[row] for row in rows),
        lesson.answers[rows],
        lesson.weight[rows],
        None if lesson.target is None else lesson.target[rows],
    )


def gradients(
    lm: LM,
    lesson: Lesson,
    adapters: lora.Adapters,
    *,
    encode: Encode,
    sketch: int,
    key: jax.Array,
    shape: Shape,
    compute: Compute,
) -> np.ndarray:
    """Sketches the gradient of the SFT loss of each example in the adapters.

    One program serves all lessons: `shape.batch_rows` examples at a time, each in a row of its own. It needs about three
    times their gradients in memory at once; kept is what it returns.

    Args:
        lm: the model under the adapters.
        lesson: K examples with hard labels.
        adapters: where the gradients are taken.
        encode: the model's layout and tokenizer.
        sketch: m, numbers kept of each gradient; see the module.
        key: of the sketch; only gradients sketched with one key and one m compare.
        shape: see `measure`.
        compute: its number format, rematerialisation and mesh are used; attention is always `xla`, which is exact in its
            backward pass and takes any row length and any device.

    Returns:
        f32[K, m], rows as in the lesson.

    Raises:
        ValueError: an example is longer than a row, or its gradient is not finite; and what `sft.tokens` refuses.
    """
    token, weight = sft.tokens(lesson, encode)
    if len(long := np.flatnonzero(token.length > shape.row_length)):
        said = ", ".join(f"{lesson.questions[row].id!r} ({token.length[row]} tokens)" for row in long[:5])
        raise ValueError(
            f"{len(long)} of {len(token)} examples are longer than a row of {shape.row_length} tokens: {said}"
            f"{', ...' if len(long) > 5 else ''}; raise shape.row_length of the student's training in the config"
        )
    # Left to the compiler: inside one example there are no rows to pin to a mesh.
    model = dataclasses.replace(compute, attention="xla").model(lm.config, lora_scale=adapters.scale).clone(mesh=None)
    single = Shape(shape.row_length, shape.batch_rows, max_segments=1)
    tree = compute.place_params(adapters.tree)
    found = np.zeros((len(token), sketch), np.float32)
    with Progress("gradients", len(token)) as progress:
        for rows in packing.batches(len(token), single):
            batch = packing.lay_out(token, [np.array([row]) for row in rows], single, weight=weight)
            part = _sketched(tree, lm.params, compute.place_rows(batch), key, model=model, sketch=sketch)
            found[list(rows)] = processes.fetch(part)[: len(rows)]
            progress.add(len(rows))
    if len(lost := np.flatnonzero(~np.isfinite(found).all(axis=1))):
        raise ValueError(
            f"the gradients of {len(lost)} of {len(token)} examples are not finite, the first is that of "
            f"{lesson.questions[lost[0]].id!r}: compute in float32 (student.dtype in the config)"
        )
    return found


@functools.partial(jax.jit, static_argnames=("model", "sketch"))
def _sketched(adapters, frozen, batch: Batch, key: jax.Array, *, model: Decoder, sketch: int) -> jax.Array:
    """f32[B, m] of the B rows of a batch, one example each."""
    loss_fn = functools.partial(trainer.batch_loss, frozen=frozen, model=model, objective=sft.make(), adapters=True)

    def one(row: Batch) -> jax.Array:
        alone = jax.tree.map(lambda x: x[None], row)
        gradient, _ = jax.grad(loss_fn, has_aux=True)({"model": adapters, "own": {}}, alone)
        return project(ravel_pytree(gradient)[0], key, sketch)

    return jax.vmap(one)(batch)


def project(vector: jax.Array, key: jax.Array, sketch: int) -> jax.Array:
    """Sketches a vector f32[P] to f32[m]; the same key for all that are to be compared. See the module."""
    blocks = -(-vector.size // sketch)
    key_sign, key_turn = jax.random.split(key)
    sign = jax.random.rademacher(key_sign, (blocks, sketch), vector.dtype)
    turn = jax.random.randint(key_turn, (blocks, 1), 0, sketch)
    laid = jnp.pad(vector, (0, blocks * sketch - vector.size)).reshape(blocks, sketch) * sign
    return jnp.take_along_axis(laid, (jnp.arange(sketch) + turn) % sketch, axis=1).sum(axis=0)


def statistics(method: str, gradient: np.ndarray, gold: np.ndarray, twin: np.ndarray, *, seed: int) -> Coherence:
    """Says how coherent gradients are, from their inner products alone.

    Args:
        method: the lesson's name.
        gradient: f[n, m] of the lesson's examples, sketched or not.
        gold: f[n', m] of the gold lesson's, sketched alike.
        twin: i[n], the gold lesson's row of the same question, -1 = it has none.
        seed: of the intervals.

    >>> one = statistics("orthogonal", np.eye(4), np.eye(4), np.arange(4), seed=0)
    >>> one.cosine, one.signal, one.stable_rank, round(one.effective_rank, 6), one.to_gold
    (0.0, 0.25, 4.0, 4.0, 1.0)
    """
    n = len(gradient)
    if n < 2:
        return Coherence(method, n, reason=f"coherence needs two examples, there are {n}")
    gradient, gold = (np.asarray(x, np.float64) for x in (gradient, gold))
    product, across, theirs = gradient @ gradient.T, gradient @ gold.T, gold @ gold.T
    if not np.diag(product).any():
        return Coherence(method, n, reason="all gradients are zero")
    rng = np.random.default_rng(seed)
    times = rng.multinomial(n, np.full(n, 1 / n), size=REPLICATES).astype(float)
    measures: dict[str, tuple[Callable[[], tuple[float, np.ndarray]], float]] = {
        "cosine": (lambda: _cosine(product, times), -1.0),
        "signal": (lambda: _signal(product, times), 0.0),
        "to_gold": (lambda: _to_gold(product, across, theirs, twin, rng), -1.0),
    }
    reasons = [] if n >= LEAST else [f"no intervals from fewer than {LEAST} examples"]
    figures: dict[str, float] = {}
    for name, (measured, least) in measures.items():
        try:
            value, replicates = measured()
        except Undefined as why:
            reasons.append(f"no {name}: {why}")
            continue
        figures[name] = float(np.clip(value, least, 1.0))
        known = replicates[np.isfinite(replicates)]
        if n >= LEAST and len(known) < 0.95 * REPLICATES:
            reasons.append(f"no interval of {name}: a mean gradient is lost in its noise")
        elif n >= LEAST:
            ends = np.clip(np.quantile(known, (0.025, 0.975)), least, 1.0)
            figures[f"{name}_lo"], figures[f"{name}_hi"] = map(float, ends)
    stable_rank, effective_rank = ranks(product)
    return Coherence(method, n, **figures, stable_rank=stable_rank, effective_rank=effective_rank, reason="; ".join(reasons))


def ranks(product: np.ndarray) -> tuple[float, float]:
    """Stable and effective rank of a matrix, from the inner products f64[n, n] of its rows, not all of them zero."""
    share = np.clip(np.linalg.eigvalsh(product), 0.0, None)
    share /= share.sum()
    entropy = -(share * np.log(share, where=share > 0, out=np.zeros_like(share))).sum()
    return float(1 / share.max()), float(np.exp(entropy))


def _cosine(product: np.ndarray, times: np.ndarray) -> tuple[float, np.ndarray]:
    """Mean cosine of two different examples, and its replicates."""
    n, length = len(product), np.sqrt(np.diag(product))
    if not length.all():
        raise Undefined(f"{(length == 0).sum()} of {n} gradients are zero")
    turned = product / np.outer(length, length)
    # Out of a mean over all pairs are taken those of an example with itself, which are 1.
    whole, replicates = turned.mean(), _resampled(turned, np.eye(n, dtype=bool), times, times)
    return (n * whole - 1) / (n - 1), (n * replicates - 1) / (n - 1)


def _signal(product: np.ndarray, times: np.ndarray) -> tuple[float, np.ndarray]:
    """|sum g|^2 / (n sum |g|^2), and its replicates."""
    power = np.diag(product)
    replicates = _resampled(product, np.eye(len(product), dtype=bool), times, times)
    return product.mean() / power.mean(), replicates / (times @ power / times.sum(axis=1))


def _to_gold(product: np.ndarray, across: np.ndarray, theirs: np.ndarray, twin: np.ndarray, rng) -> tuple[float, np.ndarray]:
    """Cosine of two mean gradients, and its replicates, NaN where nothing is left of a mean but noise."""
    n, num_gold = across.shape
    if not num_gold:
        raise Undefined("the gold lesson has no examples")
    # Examples that cancel leave their rounding errors.
    if min(p.mean() / max(np.diag(p).mean(), np.finfo(float).tiny) for p in (product, theirs)) < 1e-12:
        raise Undefined("a mean gradient is zero")
    times, gold_times, same = _drawn_together(n, num_gold, twin, rng)
    ours = _resampled(product, np.eye(n, dtype=bool), times, times)
    gold = _resampled(theirs, np.eye(num_gold, dtype=bool), gold_times, gold_times)
    there = (ours > 0) & (gold > 0)
    replicates = np.full(REPLICATES, np.nan)
    replicates[there] = _resampled(across, same, times, gold_times)[there] / np.sqrt(ours[there] * gold[there])
    return across.mean() / np.sqrt(product.mean() * theirs.mean()), replicates


def _drawn_together(n: int, num_gold: int, twin: np.ndarray, rng) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How often the examples of two lessons are drawn, f[replicates, n] and f[replicates, n']; which are one, bool[n, n']."""
    same = twin[:, None] == np.arange(num_gold)
    lone = np.flatnonzero(~same.any(axis=0))
    unit = np.zeros(num_gold, int)
    unit[twin[twin >= 0]] = np.flatnonzero(twin >= 0)
    unit[lone] = n + np.arange(len(lone))
    units = n + len(lone)
    times = rng.multinomial(units, np.full(units, 1 / units), size=REPLICATES).astype(float)
    return times[:, :n], times[:, unit], same


def _resampled(product: np.ndarray, same: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Means f[replicates] of a matrix of inner products, were its rows and columns drawn so often.

    Pairs of an example with itself keep the share that they have in the matrix (see the module).

    Args:
        product: f[n, n'].
        same: bool[n, n'], where a row and a column are one example.
        left, right: f[replicates, n] and f[replicates, n'], how often each is drawn; an example that is a row and a column is
            drawn as often as either.
    """
    only, share = np.where(same, product, 0.0), same.mean()
    drawn = left @ same
    apart = (
        ((left @ (product - only)) * right).sum(axis=1),
        left.sum(axis=1) * right.sum(axis=1) - (drawn * right).sum(axis=1),
    )
    own = only.sum() / max(same.sum(), 1)  # stands in where a replicate has none
    own = np.divide((left @ only).sum(axis=1), drawn.sum(axis=1), out=np.full(len(left), own), where=drawn.sum(axis=1) > 0)
    rest = np.divide(*apart, out=np.full(len(left), np.nan), where=apart[1] > 0)
    return share * own + (1 - share) * rest
