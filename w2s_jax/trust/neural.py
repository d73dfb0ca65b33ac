"""The neural trust function (NTF): a small residual MLP on the teacher's hidden state predicts whether its label is right.

    x standardised -> Linear(F, W) -> blocks of  h + DropPath(Dropout(SwiGLU(RMSNorm(h))))  -> RMSNorm -> Linear -> logit

Trained with class-reweighted binary cross-entropy and AdamW on the labelled source; the epoch with the best AUC on a
held-back part of it is kept. Reweighting by w = wrong/right moves every logit by log w: that is taken off again, then the
logits are rescaled (Platt) on the held-back part, so that a score is a probability.

The whole training is one pure function of arrays (`train`), a `lax.scan` over epochs: a sweep gives it a leading axis. Rows are
filled up to powers of two under a mask, so that it is compiled once for each of these and for each number of features.

Source: arXiv 2606.01000 (architecture, loss, AdamW); prior shift: Saerens et al. 2002; Platt 1999.
Deviations: 1. the paper gives no width, depth, rates, schedule or epochs: the defaults of `make` are ours.
2. early stopping and Platt scaling on held-back source rows are ours. 3. DropPath drops a row's whole residual branch.
"""

import dataclasses
import functools
from collections.abc import Mapping

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

from w2s_jax.types import Evidence

VERSION = "2"
ROWS_PER_CALL = 1024


@flax.struct.dataclass
class Hyper:
    """What a sweep may vary without compiling again; every field is a scalar (or, under `vmap`, has a leading axis)."""

    lr: jax.Array
    weight_decay: jax.Array
    dropout: jax.Array
    drop_path: jax.Array
    class_weight: jax.Array


class Head(nn.Module):
    """The residual MLP. Returns logits f32[R] of inputs f32[R, F].

    Attributes:
        width: W, size of the residual stream.
        blocks: number of residual blocks; the drop-path rate grows linearly over them from 0.
        expansion: inner size of SwiGLU over W.
    """

    width: int
    blocks: int
    expansion: int

    @nn.compact
    def __call__(self, x, dropout=0.0, drop_path=0.0, key=None):
        h = nn.Dense(self.width, name="input")(x)
        for b in range(self.blocks):
            inner = nn.RMSNorm(name=f"norm{b}")(h)
            gate = nn.silu(nn.Dense(self.expansion * self.width, use_bias=False, name=f"gate{b}")(inner))
            inner = gate * nn.Dense(self.expansion * self.width, use_bias=False, name=f"up{b}")(inner)
            inner = nn.Dense(self.width, use_bias=False, name=f"down{b}")(inner)
            if key is not None:
                key_unit, key_path = jax.random.split(jax.random.fold_in(key, b))
                inner = _drop(inner, dropout, key_unit, inner.shape)
                inner = _drop(inner, drop_path * b / max(self.blocks - 1, 1), key_path, (len(inner), 1))
            h = h + inner
        return nn.Dense(1, name="output")(nn.RMSNorm(name="norm")(h))[:, 0]


def _drop(x, rate, key, shape):
    """Inverted dropout with a traced rate; `shape` says what is dropped together."""
    kept = jax.random.bernoulli(key, 1.0 - rate, shape)
    return jnp.where(kept, x / (1.0 - rate), 0.0)


@functools.partial(jax.jit, static_argnames=("head", "epochs", "batch_rows"))
def train(x, correct, mask, x_val, correct_val, mask_val, hyper: Hyper, key, *, head: Head, epochs: int, batch_rows: int):
    """Fits one head; pure, so that a sweep is its `vmap`.

    Args:
        x, correct, mask: f32[R, F], f32[R] (1 = right) and f32[R]: the training part of the source. Rows whose mask is 0
            are not there: they fill R up to a size that has been compiled for, or leave out rows of a sweep over |source|.
        x_val, correct_val, mask_val: the held-back part, likewise.
        hyper: rates.
        key: consumed.
        head, epochs, batch_rows: static; batch_rows is at most R.

    Returns:
        The fitted state (params, input mean and scale, logit slope and shift) and the per-epoch record (loss, quality).
    """
    key_init, key_epochs = jax.random.split(key)
    total = jnp.maximum(mask.sum(), 1.0)
    mean = mask @ x / total
    scale = jnp.sqrt(mask @ (x - mean) ** 2 / total)
    scale = jnp.where(scale > 1e-6, scale, 1.0)
    x, x_val = (x - mean) / scale, (x_val - mean) / scale
    right = mask @ correct
    odds = jnp.maximum(total - right, 1.0) / jnp.maximum(right, 1.0)
    log_weight = hyper.class_weight * jnp.log(odds)  # class_weight 1 balances the classes, 0 leaves them as they are
    weight = jnp.where(correct > 0.5, jnp.exp(log_weight), 1.0) * mask

    params = head.init(key_init, x[:1])["params"]
    steps = jnp.maximum(total.astype(jnp.int32) // batch_rows, 1)  # of an epoch

    def rate(step):
        return hyper.lr * 0.5 * (1 + jnp.cos(jnp.pi * step / (epochs * steps)))

    optimizer = optax.adamw(rate, weight_decay=hyper.weight_decay)

    def loss_fn(params, row, key):
        logit = head.apply({"params": params}, x[row], hyper.dropout, hyper.drop_path, key)
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
    slope, shift = _platt(head.apply({"params": best}, x_val) - log_weight, correct_val, mask_val)
    state = {"params": best, "mean": mean, "scale": scale, "slope": slope, "shift": shift - slope * log_weight}
    return state, {"loss": loss, "quality": quality}


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
        hessian = (design * (mask * p * (1 - p))[:, None]).T @ design + ridge * jnp.eye(2)
        move = jnp.linalg.solve(hessian, gradient)
        return theta - move / jnp.maximum(1.0, jnp.linalg.norm(move)), None  # at most a unit step: no overshoot

    (slope, shift), _ = jax.lax.scan(newton, start, None, length=steps)
    # The order of the rows is the head's, never turned round: a head that is worse than chance says the prior of every row.
    prior = (mask @ correct + 1) / (mask.sum() + 2)
    return jnp.maximum(slope, 1e-3), jnp.where(slope > 1e-3, shift, jnp.log(prior / (1 - prior)))


@functools.partial(jax.jit, static_argnames="head")
def _probability(state, x, *, head: Head):
    logit = head.apply({"params": state["params"]}, (x - state["mean"]) / state["scale"])
    return jax.nn.sigmoid(state["slope"] * logit + state["shift"])


@dataclasses.dataclass(frozen=True)
class Neural:
    """See the module and `make`.

    `held_back` says how good the kept epoch was on the held-back source rows: `quality` is its AUC (minus the loss where all of
    these rows agree). It is what hyper-parameters may be chosen by.
    """

    head: Head
    hyper: Mapping[str, float]
    epochs: int
    batch_rows: int
    held_back_frac: float
    fitted: Mapping | None = None
    held_back: Mapping[str, float] = dataclasses.field(default_factory=dict)
    needs: frozenset[str] = frozenset()

    def fit(self, evidence: Evidence, correct: np.ndarray, key: jax.Array) -> "Neural":
        """Trains on the source.

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
            raise ValueError(
                "the teacher's hidden states hold NaN or infinity: check its weights, or use teacher.dtype='float32'"
            )
        key_split, key_train = jax.random.split(key)
        held_back = _held_back(evidence.answers.question_id, self.held_back_frac, key_split)
        hyper = Hyper(**{name: jnp.float32(value) for name, value in self.hyper.items()})
        state, record = train(
            *_filled_up(x[~held_back], correct[~held_back], least=self.batch_rows),
            *_filled_up(x[held_back], correct[held_back]),
            hyper,
            key_train,
            head=self.head,
            epochs=self.epochs,
            batch_rows=self.batch_rows,
        )
        if not np.isfinite(record["loss"]).all():
            raise ValueError(
                f"the trust head's loss is not finite with lr={self.hyper['lr']}: lower trust.neural.lr in the config"
            )
        held_back = {"quality": float(np.max(record["quality"])), "epoch": float(np.argmax(record["quality"]) + 1)}
        return dataclasses.replace(self, fitted=jax.tree.map(np.asarray, state), held_back=held_back)

    def score(self, evidence: Evidence) -> np.ndarray:
        """P(right), f32[R]; in calls of a fixed number of rows, so that nothing compiles again for another R.

        Raises:
            ValueError: not fitted, or the hidden states have another width than the head was fitted on.
        """
        if self.fitted is None:
            raise ValueError("this trust head has not been fitted: call fit(evidence, correct, key), or restore(state)")
        x = _features(evidence)
        if x.shape[1] != len(self.fitted["mean"]):
            raise ValueError(
                f"the hidden states have {x.shape[1]} features, this trust head was fitted on {len(self.fitted['mean'])}: "
                "use the teacher and observe.layers that it was fitted with, or fit a new one (trust.from_='')"
            )
        out = np.empty(len(x), np.float32)
        for start in range(0, len(x), ROWS_PER_CALL):
            part = x[start : start + ROWS_PER_CALL]
            padded = np.pad(part, ((0, ROWS_PER_CALL - len(part)), (0, 0)))
            out[start : start + len(part)] = np.asarray(_probability(self.fitted, padded, head=self.head))[: len(part)]
        return out

    def state(self) -> Mapping[str, np.ndarray]:
        return flatten_dict(self.fitted, sep="/")

    def restore(self, state: Mapping[str, np.ndarray]) -> "Neural":
        return dataclasses.replace(self, fitted=unflatten_dict(dict(state), sep="/"))


def _features(evidence: Evidence) -> np.ndarray:
    """f32[R, F]: the probe points end to end."""
    return np.asarray(evidence.x, np.float32).reshape(len(evidence.x), -1)


def _filled_up(x: np.ndarray, correct: np.ndarray, least: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows, labels and their mask, filled up to a power of two or to `least` rows: few sizes are ever compiled."""
    rows = max(1 << (len(x) - 1).bit_length(), least)
    fill = rows - len(x)
    return np.pad(x, ((0, fill), (0, 0))), np.pad(correct, (0, fill)), np.pad(np.ones_like(correct), (0, fill))


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
) -> Neural:
    """The NTF. The paper leaves all of these open: they are our proposed defaults.

    Args:
        width, blocks, expansion: see `Head`.
        dropout, drop_path: rates; drop-path grows linearly over the blocks from 0 to this.
        lr, weight_decay: of AdamW; lr falls to 0 along a cosine.
        class_weight: 1 = right and wrong rows weigh the same in all, 0 = every row weighs the same.
        epochs, batch_rows: passes over the training part, rows of a step.
        held_back_frac: share of the source questions for early stopping and calibration.
    """
    for name, value, lo, hi in (
        ("dropout", dropout, 0, 0.99), ("drop_path", drop_path, 0, 0.99), ("class_weight", class_weight, 0, 1),
        ("held_back_frac", held_back_frac, 0.01, 0.9), ("epochs", epochs, 1, 10**6), ("batch_rows", batch_rows, 1, 10**9),
        ("width", width, 1, 10**6), ("blocks", blocks, 0, 1000), ("expansion", expansion, 1, 1000),
    ):  # fmt: skip
        if not lo <= value <= hi:
            raise ValueError(f"{name}={value}: allowed is {lo} to {hi}; change trust.neural.{name} in the config")
    hyper = dict(lr=lr, weight_decay=weight_decay, dropout=dropout, drop_path=drop_path, class_weight=class_weight)
    return Neural(Head(width, blocks, expansion), hyper, epochs, batch_rows, held_back_frac)
