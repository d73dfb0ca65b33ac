"""The neural trust function (NTF): a small head on the teacher's hidden state predicts whether its label is right.

    x standardised -> head (a residual MLP, see `heads`) -> logit -> slope * logit + shift -> sigmoid

Trained with class-reweighted binary cross-entropy and AdamW on the labelled source; the epoch with the best AUC on a
held-back part of it is kept. Reweighting by w = wrong/right moves every logit by log w: that is taken off again, then the
logits are rescaled (Platt) on the held-back part, so that a score is a probability.

The whole training of a head is one pure function of arrays (`train`), a `lax.scan` over epochs; `train_heads` gives it a
leading axis, and `fit_heads` is what one head, an ensemble and a sweep are fitted by. Rows are filled up to powers of two under
a mask, so that it is compiled once for each of these, for each number of features and of heads.

Source: arXiv 2606.01000 (architecture, loss, AdamW); prior shift: Saerens et al. 2002; Platt 1999.
Deviations: 1. the paper gives no width, depth, rates, schedule or epochs: the defaults of `make` are ours.
2. early stopping and Platt scaling on held-back source rows are ours.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

from w2s_jax.trust import Operations
from w2s_jax.trust.heads import HEADS
from w2s_jax.types import Evidence

VERSION = "3"
ROWS_PER_CALL = 1024


@flax.struct.dataclass
class Hyper:
    """What a sweep may vary without compiling again; every field is a scalar (or, under `vmap`, has a leading axis).

    Attributes:
        lr, weight_decay: of AdamW.
        dropout, drop_path: rates.
        class_weight: 1 balances right and wrong rows, 0 leaves them as they are.
        label_noise: share of the training labels that are turned round.
    """

    lr: jax.Array
    weight_decay: jax.Array
    dropout: jax.Array
    drop_path: jax.Array
    class_weight: jax.Array
    label_noise: jax.Array


@functools.partial(jax.jit, static_argnames=("head", "epochs", "batch_rows"))
def train(
    x,
    correct,
    mask,
    x_val,
    correct_val,
    mask_val,
    hyper: Hyper,
    key,
    point=None,
    num_rows=None,
    *,
    head: nn.Module,
    epochs: int,
    batch_rows: int,
):
    """Fits one head; pure, so that a sweep is its `vmap`.

    Args:
        x, correct, mask: f32[R, P, D], f32[R] (1 = right) and f32[R]: the training part of the source. Rows whose mask is 0
            are not there: they fill R up to a size that has been compiled for.
        x_val, correct_val, mask_val: the held-back part, likewise.
        hyper: rates.
        key: consumed.
        point: i32, the one probe point that the head looks at; None = all.
        num_rows: how many rows of the training part, drawn by the key, are trained on; None = all. Fewer are a part of more.
        head, epochs, batch_rows: static; batch_rows is at most R.

    Returns:
        The fitted state (params, input mean and scale f32[P, D], logit slope and shift) and the per-epoch record (loss,
        quality).
    """
    key_init, key_epochs, key_flipped, key_rows = jax.random.split(key, 4)
    everything = mask
    if num_rows is not None:
        mask = _drawn(key_rows, mask, num_rows)
    total = jnp.maximum(mask.sum(), 1.0)
    correct = jnp.where(_drawn(key_flipped, mask, jnp.round(hyper.label_noise * total)) > 0, 1 - correct, correct)

    # Rows stay as they are until a batch has been gathered: heads that differ in their rows, and so in mean and scale, would
    # each need a copy of the source. For the same reason the spread is taken around the mean of all rows.
    points = jnp.arange(x.shape[1]) if point is None else point[None]
    centre = jnp.tensordot(everything, x, 1) / jnp.maximum(everything.sum(), 1.0)
    away = x - centre
    shift = jnp.zeros_like(centre) if num_rows is None else jnp.tensordot(mask, away, 1) / total
    scale = jnp.sqrt(jnp.maximum(jnp.tensordot(mask, away**2, 1) / total - shift**2, 0.0))
    mean, scale = (centre + shift)[points], jnp.where(scale > 1e-6, scale, 1.0)[points]
    x_val = (x_val[:, points] - mean) / scale

    right = mask @ correct
    odds = jnp.maximum(total - right, 1.0) / jnp.maximum(right, 1.0)
    log_weight = hyper.class_weight * jnp.log(odds)
    weight = jnp.where(correct > 0.5, jnp.exp(log_weight), 1.0) * mask

    params = head.init(key_init, x_val[:1])["params"]
    steps = jnp.maximum(total.astype(jnp.int32) // batch_rows, 1)  # of an epoch

    def rate(step):
        return hyper.lr * 0.5 * (1 + jnp.cos(jnp.pi * step / (epochs * steps)))

    optimizer = optax.adamw(rate, weight_decay=hyper.weight_decay)

    def loss_fn(params, row, key):
        seen = (x[row[:, None], points] - mean) / scale
        logit = head.apply({"params": params}, seen, hyper.dropout, hyper.drop_path, key)
        return weight[row] @ optax.sigmoid_binary_cross_entropy(logit, correct[row]) / jnp.maximum(mask[row].sum(), 1.0)

    def epoch(carry, key):
        params, moments, best, best_quality = carry
        key_order, key_noise = jax.random.split(key)
        # A random order of the rows that are there; the others stand behind them and are reached only where a batch is larger
        # than the whole source.
        order = jnp.argsort(jnp.where(mask > 0, jax.random.uniform(key_order, mask.shape), 2.0))

        def step(i, carry):
            params, moments, loss_sum = carry
            row = jax.lax.dynamic_slice_in_dim(order, i * batch_rows, batch_rows)
            loss, grads = jax.value_and_grad(loss_fn)(params, row, jax.random.fold_in(key_noise, i))
            updates, moments = optimizer.update(grads, moments, params)
            return optax.apply_updates(params, updates), moments, loss_sum + loss

        params, moments, loss_sum = jax.lax.fori_loop(0, steps, step, (params, moments, 0.0))
        quality = _quality(head.apply({"params": params}, x_val), correct_val, mask_val)
        better = quality > best_quality
        best = jax.tree.map(lambda new, old: jnp.where(better, new, old), params, best)
        return (params, moments, best, jnp.maximum(quality, best_quality)), (loss_sum / steps, quality)

    start = (params, optimizer.init(params), params, -jnp.inf)
    (_, _, best, _), (loss, quality) = jax.lax.scan(epoch, start, jax.random.split(key_epochs, epochs))
    slope, offset = _platt(head.apply({"params": best}, x_val) - log_weight, correct_val, mask_val)
    state = {"params": best, "mean": mean, "scale": scale, "slope": slope, "shift": offset - slope * log_weight}
    return state, {"loss": loss, "quality": quality}


@functools.partial(jax.jit, static_argnames=("head", "epochs", "batch_rows", "mesh"))
def train_heads(
    source,
    hyper: Hyper,
    key,
    point=None,
    num_rows=None,
    *,
    head: nn.Module,
    epochs: int,
    batch_rows: int,
    mesh: Mesh | None = None,
):
    """Fits E heads in one program: `train`, with a leading axis E in hyper, key, point and num_rows, and in all it returns.

    Args:
        source: the first six arguments of `train`, which all heads share.
        hyper, key, point, num_rows: see `train`.
        head, epochs, batch_rows: static.
        mesh: static; of one axis, over whose devices the heads are split (E is a multiple of them). None = one device.
    """
    static = {"head": head, "epochs": epochs, "batch_rows": batch_rows}

    def fit(source, *varied):
        return jax.vmap(lambda *one: train(*source, *one, **static))(*varied)

    if mesh is not None:
        each = P(*mesh.axis_names)
        fit = jax.shard_map(fit, mesh=mesh, in_specs=(P(), each, each, each, each), out_specs=each, check_vma=False)
    return fit(source, hyper, key, point, num_rows)


def _drawn(key, mask, count):
    """f32[R]: 1 for `count` rows drawn from those whose mask is 1, all of them where there are fewer."""
    lot = jnp.where(mask > 0, jax.random.uniform(key, mask.shape), 2.0)
    place = jnp.argsort(jnp.argsort(lot))
    return jnp.where(place < count, mask, 0.0)


def _quality(logit, correct, mask):
    """What early stopping maximises: the AUC (ties count half), or minus the loss where all held-back labels agree."""
    ordered = jnp.sort(jnp.where(mask > 0, logit, jnp.inf))
    rank = (jnp.searchsorted(ordered, logit, side="left") + jnp.searchsorted(ordered, logit, side="right") + 1) / 2
    right, wrong = mask @ correct, mask @ (1 - correct)
    auc = ((mask * correct) @ rank - right * (right + 1) / 2) / jnp.maximum(right * wrong, 1.0)
    loss = mask @ optax.sigmoid_binary_cross_entropy(logit, correct) / jnp.maximum(mask.sum(), 1.0)
    return jnp.where(right * wrong > 0, auc, -loss)


def _platt(logit, correct, mask, steps: int = 30, ridge: float = 1.0):
    """Slope and shift that fit P(right) = sigmoid(slope * logit + shift), by Newton's method.

    The ridge pulls towards (1, 0), no change: with few held-back rows the logits stay nearly as they are.
    """
    design = jnp.stack([logit, jnp.ones_like(logit)], 1)
    start = jnp.array([1.0, 0.0])

    def newton(theta, _):
        p = jax.nn.sigmoid(design @ theta)
        gradient = design.T @ (mask * (p - correct)) + ridge * (theta - start)
        (a, b), (_, d) = (design * (mask * p * (1 - p))[:, None]).T @ design + ridge * jnp.eye(2)
        move = jnp.stack([d * gradient[0] - b * gradient[1], a * gradient[1] - b * gradient[0]]) / (a * d - b * b)
        return theta - move / jnp.maximum(1.0, jnp.linalg.norm(move)), None  # at most a unit step: no overshoot

    (slope, shift), _ = jax.lax.scan(newton, start, None, length=steps)
    # The order of the rows is the head's, never turned round: a head that is worse than chance says the prior of every row.
    prior = (mask @ correct + 1) / (mask.sum() + 2)
    return jnp.maximum(slope, 1e-3), jnp.where(slope > 1e-3, shift, jnp.log(prior / (1 - prior)))


@functools.partial(jax.jit, static_argnames="head")
def _probability(state, x, *, head: nn.Module):
    logit = head.apply({"params": state["params"]}, (x - state["mean"]) / state["scale"])
    return jax.nn.sigmoid(state["slope"] * logit + state["shift"])


@functools.partial(jax.jit, static_argnames="head")
def _probabilities(states, x, point, *, head: nn.Module):
    def one(state, point):
        return _probability(state, x if point is None else x[:, point[None]], head=head)

    return jax.vmap(one)(states, point)


@dataclasses.dataclass(frozen=True)
class Neural:
    """See the module and `make`.

    `held_back` says how good the kept epoch was on the held-back source rows: `quality` is its AUC (minus the loss where all of
    these rows agree). It is what hyper-parameters may be chosen by.
    """

    head: nn.Module
    hyper: Mapping[str, float]
    epochs: int
    batch_rows: int
    held_back_frac: float
    source_rows: int = 0
    seed: int = 0
    fitted: Mapping | None = None
    held_back: Mapping[str, float] = dataclasses.field(default_factory=dict)
    needs: frozenset[str] = frozenset()

    def fit(self, evidence: Evidence, correct: np.ndarray, key: jax.Array) -> "Neural":
        """Trains on the source.

        Raises:
            ValueError: see `fit_heads`; or the loss is not finite.
        """
        return self.fitted_by(*(jax.tree.map(lambda a: a[0], tree) for tree in fit_heads([self], evidence, correct, key)))

    def fitted_by(self, state: Mapping, record: Mapping[str, np.ndarray]) -> "Neural":
        """This head with what `fit_heads` learnt for it.

        Raises:
            ValueError: its loss is not finite.
        """
        if not np.isfinite(record["loss"]).all():
            raise ValueError(
                f"the trust head's loss is not finite with lr={self.hyper['lr']}: lower trust.neural.lr in the config"
            )
        held_back = {"quality": float(np.max(record["quality"])), "epoch": float(np.argmax(record["quality"]) + 1)}
        return dataclasses.replace(self, fitted=state, held_back=held_back)

    def score(self, evidence: Evidence) -> np.ndarray:
        """P(right), f32[R]; in calls of a fixed number of rows, so that nothing compiles again for another R.

        Raises:
            ValueError: not fitted, or the hidden states have another shape than the head was fitted on.
        """
        if self.fitted is None:
            raise ValueError("this trust head has not been fitted: call fit(evidence, correct, key), or restore(state)")
        x = _features(evidence)
        if x.shape[1:] != self.fitted["mean"].shape:
            now, then = (" x ".join(map(str, shape[shape[0] == 1 :])) for shape in (x.shape[1:], self.fitted["mean"].shape))
            raise ValueError(
                f"the hidden states have {now} features, this trust head was fitted on {then}: "
                "use the teacher and observe.layers that it was fitted with, or fit a new one (trust.from_='')"
            )
        return _in_blocks(x, functools.partial(_probability, self.fitted, head=self.head))

    def operations(self, question_id: Sequence[str], key: jax.Array) -> Operations:
        """n weights take 2n for a row and pass, and 4n more for gradients, but those of the hidden states.

        Rows that are held back are looked at after each epoch and in the end; Platt's map is left out.
        """
        assert self.fitted is not None
        params = self.fitted["params"]
        n, first = (sum(map(np.size, jax.tree.leaves(tree))) for tree in (params, params.get("input", params)))
        watched = int(_held_back(question_id, self.held_back_frac, jax.random.split(key)[0]).sum())
        trained = len(question_id) - watched
        rows = min(self.source_rows or trained, trained)
        learnt = self.epochs * max(rows // self.batch_rows, 1) * min(self.batch_rows, rows)
        fitting = learnt * (6.0 * n - 2.0 * first) + (self.epochs + 1) * watched * 2.0 * n
        return Operations(fitting, 2.0 * n, n, self.epochs)

    def state(self) -> Mapping[str, np.ndarray]:
        return flatten_dict(self.fitted, sep="/")

    def restore(self, state: Mapping[str, np.ndarray]) -> "Neural":
        return dataclasses.replace(self, fitted=unflatten_dict(dict(state), sep="/"))


def fit_heads(
    heads: Sequence[Neural],
    evidence: Evidence,
    correct: np.ndarray,
    key: jax.Array,
    *,
    points: Sequence[int] | None = None,
    devices: Sequence[jax.Device] = (),
) -> tuple[Mapping, Mapping[str, np.ndarray]]:
    """Fits E heads of one architecture in one program, on one split of the source.

    Args:
        heads: they may differ in `hyper`, `source_rows` and `seed`.
        evidence, correct, key: see `Trust.fit`.
        points: the one probe point that each head looks at; None = all see all.
        devices: to split the heads over, a divisor of E; none = JAX's own choice of one.

    Returns:
        States and records (`train`) with a leading axis E, on the host.

    Raises:
        ValueError: all labels are right or all wrong, the hidden states are not finite, there are fewer source rows than a head
            is to be trained on, or too few probe points for this head.
    """
    one = heads[0]
    static = {"head": one.head, "epochs": one.epochs, "batch_rows": one.batch_rows}
    assert all(static == {name: getattr(other, name) for name in static} for other in heads), "one architecture"
    num_points = 1 if points is not None else evidence.x.shape[1]
    if num_points < one.head.least_points:
        raise ValueError(
            f"trust.neural.head='{type(one.head).__name__.lower()}' weighs {one.head.least_points} probe points or more, here "
            f"is {num_points}: name more of observe.layers in the config, such as (0,-1), or take head='mlp'"
        )
    source, num_rows = split_source(one, evidence, correct, key)
    if (most := max(other.source_rows for other in heads)) > num_rows:
        raise ValueError(
            f"trust.neural.source_rows={most}: {num_rows} source rows are left to train on; allowed is 0 (all) to {num_rows}"
        )
    mesh = None
    if len(devices) > 1:
        mesh = jax.make_mesh((len(devices),), ("heads",), axis_types=(AxisType.Auto,), devices=devices)
    state, record = train_heads(
        source,
        *varied(heads, key),
        None if points is None else np.int32(points),
        np.float32([other.source_rows or num_rows for other in heads]) if most else None,
        **static,
        mesh=mesh,
    )
    return jax.tree.map(np.asarray, (state, record))


def split_source(head: Neural, evidence: Evidence, correct: np.ndarray, key: jax.Array) -> tuple[tuple, int]:
    """The first six arguments of `train`, and how many rows there are to train on.

    Raises:
        ValueError: all labels are right or all wrong, or the hidden states are not finite.
    """
    x, correct = _features(evidence), np.asarray(correct, np.float32)
    if correct.min() == correct.max():
        raise ValueError(
            f"all {len(correct)} weak labels of the source are {'right' if correct[0] else 'wrong'}: a trust head needs "
            "both; change tasks.source (more or harder questions) in the config, or the teacher"
        )
    if not np.isfinite(x).all():
        raise ValueError("the teacher's hidden states hold NaN or infinity: check its weights, or use teacher.dtype='float32'")
    held_back = held_back_rows(head, evidence, key)
    fitted_on = _filled_up(x[~held_back], correct[~held_back], least=head.batch_rows)
    return (*fitted_on, *_filled_up(x[held_back], correct[held_back])), int((~held_back).sum())


def varied(heads: Sequence[Neural], key: jax.Array) -> tuple[Hyper, jax.Array]:
    """The rates and the keys of E heads, as `train_heads` takes them."""
    key = jax.random.split(key)[1]
    rates = {name: np.float32([head.hyper[name] for head in heads]) for name in heads[0].hyper}
    return Hyper(**rates), jnp.stack([jax.random.fold_in(key, head.seed) if head.seed else key for head in heads])


def score_heads(
    heads: Sequence[Neural], states: Mapping, evidence: Evidence, points: Sequence[int] | None = None
) -> np.ndarray:
    """The scores f32[E, R] of heads that `fit_heads` fitted."""
    points = None if points is None else np.int32(points)
    x = _features(evidence)
    return _in_blocks(x, lambda block: _probabilities(states, block, points, head=heads[0].head))


def held_back_rows(head: Neural, evidence: Evidence, key: jax.Array) -> np.ndarray:
    """bool[R]: the source rows that `fit` with this key holds back."""
    return _held_back(evidence.answers.question_id, head.held_back_frac, jax.random.split(key)[0])


def _in_blocks(x: np.ndarray, score: Callable[[np.ndarray], jax.Array]) -> np.ndarray:
    """f32[..., R] for rows x, of a function that is only ever called with as many rows."""
    blocks = [x[start : start + ROWS_PER_CALL] for start in range(0, len(x), ROWS_PER_CALL)]
    filled = (np.pad(block, ((0, ROWS_PER_CALL - len(block)), (0, 0), (0, 0))) for block in blocks)
    return np.concatenate([np.asarray(score(all_rows))[..., : len(b)] for all_rows, b in zip(filled, blocks)], -1)


def _features(evidence: Evidence) -> np.ndarray:
    """f32[R, P, D]."""
    return np.asarray(evidence.x, np.float32)


def _filled_up(x: np.ndarray, correct: np.ndarray, least: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows, labels and their mask, filled up to a power of two or to `least` rows: few sizes are ever compiled."""
    rows = max(1 << (len(x) - 1).bit_length(), least)
    fill = rows - len(x)
    return np.pad(x, ((0, fill), (0, 0), (0, 0))), np.pad(correct, (0, fill)), np.pad(np.ones_like(correct), (0, fill))


def _held_back(question_id, frac: float, key: jax.Array) -> np.ndarray:
    """bool[R]: the rows of a random share of the questions (all samples of a question on the same side)."""
    ids = sorted(set(question_id))
    count = min(max(round(frac * len(ids)), 1), len(ids) - 1)
    order = np.random.default_rng(np.asarray(jax.random.key_data(key))).permutation(
        len(ids)
    )  # on the host: no program for each size
    chosen = {ids[i] for i in order[:count]}
    return np.array([i in chosen for i in question_id], bool)


def make(
    *,
    head: str = "mlp",
    width: int = 256,
    blocks: int = 3,
    expansion: int = 2,
    dropout: float = 0.1,
    drop_path: float = 0.1,
    lr: float = 3e-4,
    weight_decay: float = 0.01,
    class_weight: float = 1.0,
    epochs: int = 50,
    batch_rows: int = 256,
    held_back_frac: float = 0.2,
    label_noise: float = 0.0,
    source_rows: int = 0,
    seed: int = 0,
) -> Neural:
    """The NTF. The paper leaves all of these open: they are our proposed defaults.

    Args:
        head: mlp, linear, layers; see `heads`.
        width, blocks, expansion: of the head.
        dropout, drop_path: rates; drop-path grows linearly over the blocks from 0 to this.
        lr, weight_decay: of AdamW; lr falls to 0 along a cosine.
        class_weight: 1 = right and wrong rows weigh the same in all, 0 = every row weighs the same.
        epochs, batch_rows: passes over the training part, rows of a step.
        held_back_frac: share of the source questions for early stopping and calibration.
        label_noise: share of the training labels that are turned round, to see what wrong labels do; never of held-back ones.
        source_rows: training rows to draw, to see what a smaller source does; 0 = all.
        seed: another one is another start, order and noise of the same head on the same split.
    """
    if head not in HEADS:
        raise ValueError(f"head={head!r}: allowed are {', '.join(HEADS)}; change trust.neural.head in the config")
    for name, value, lo, hi in (
        ("dropout", dropout, 0, 0.99), ("drop_path", drop_path, 0, 0.99), ("class_weight", class_weight, 0, 1),
        ("held_back_frac", held_back_frac, 0.01, 0.9), ("epochs", epochs, 1, 10**6), ("batch_rows", batch_rows, 1, 10**9),
        ("width", width, 1, 10**6), ("blocks", blocks, 0, 1000), ("expansion", expansion, 1, 1000),
        ("label_noise", label_noise, 0, 1), ("source_rows", source_rows, 0, 10**9), ("seed", seed, 0, 2**31 - 1),
    ):  # fmt: skip
        if not lo <= value <= hi:
            raise ValueError(f"{name}={value}: allowed is {lo} to {hi}; change trust.neural.{name} in the config")
    hyper = {"lr": lr, "weight_decay": weight_decay, "dropout": dropout, "drop_path": drop_path}
    hyper |= {"class_weight": class_weight, "label_noise": label_noise}
    built = HEADS[head](width, blocks, expansion)
    return Neural(built, hyper, epochs, batch_rows, held_back_frac, source_rows, seed)
