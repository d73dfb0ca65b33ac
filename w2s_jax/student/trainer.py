"""Trains a language model on a lesson under an objective (stage teach, and `pretrain` for the embedded models).

One compiled step serves every lesson of the same shape: the learning rate is an argument, the optimizer's settings are
static. Gradients and denominators are summed over micro-batches and divided once. Metrics are fetched one step late, so
that the device never waits for the host. A killed run continues from its last checkpoint and ends with the same bits:
the train state and the step number are all there is to restore.

Source: AdamW, Loshchilov & Hutter, arXiv 1711.05101; LoRA, arXiv 2106.09685.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from etils import epath
from jax.sharding import Mesh

from w2s_jax.models import lora, sharding
from w2s_jax.models.attention import SEES_PREFIXES
from w2s_jax.models.compute import Compute
from w2s_jax.models.config import DecoderConfig
from w2s_jax.models.decoder import Decoder
from w2s_jax.models.likelihood import option_logp, token_logp
from w2s_jax.packing import Shape
from w2s_jax.progress import Progress
from w2s_jax.student import Ask, Encode, Loss, Objective, OverOptions, Plan
from w2s_jax.types import LM, Batch, Lesson

VERSION = "3"


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """AdamW; hashable, so that it can be a static argument.

    Attributes:
        b1, b2, eps, weight_decay: of AdamW; norms and biases are not decayed.
        clip_norm: the gradient is scaled down to this global norm; 0 = never.
    """

    b1: float
    b2: float
    eps: float
    weight_decay: float
    clip_norm: float

    def build(self, lr) -> optax.GradientTransformation:
        adamw = optax.adamw(lr, self.b1, self.b2, self.eps, weight_decay=self.weight_decay, mask=_decayed)
        return optax.chain(optax.clip_by_global_norm(self.clip_norm), adamw) if self.clip_norm else adamw


def _decayed(params):
    """True for every array but the scales of norms and biases."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: jax.tree_util.keystr(path[-1:], simple=True) not in ("scale", "bias"), params
    )


@dataclasses.dataclass(frozen=True)
class Training:
    """How long and how fast.

    Attributes:
        epochs: passes over the lesson; a fraction is allowed.
        accumulation: micro-batches of a step.
        lr, schedule, warmup_frac: see `learning_rate`.
        optimizer: AdamW's settings.
        lora_rank: rank of the adapters, 0 = train all parameters.
        lora_alpha: adapters are scaled by alpha / rank.
        lora_targets: names of the dense layers that get one.
        checkpoint_every: steps between checkpoints.
    """

    epochs: float
    accumulation: int
    lr: float
    schedule: str
    warmup_frac: float
    optimizer: Optimizer
    lora_rank: int
    lora_alpha: float
    lora_targets: tuple[str, ...]
    checkpoint_every: int

    def __post_init__(self):
        for name, least in (("accumulation", 1), ("checkpoint_every", 1), ("lora_rank", 0), ("lr", 0), ("warmup_frac", 0)):
            if getattr(self, name) < least:
                raise ValueError(
                    f"{name}={getattr(self, name)}: allowed is {least} or more; change training.{name} in the config"
                )
        if not self.epochs > 0:
            raise ValueError(f"epochs={self.epochs}: allowed is a number above 0; change training.epochs in the config")
        learning_rate(self.lr, self.schedule, self.warmup_frac, 1)

    def refuse_narrow(self, dtype: str) -> None:
        """Refuses to train parameters in a format in which small steps are rounded away.

        Raises:
            ValueError: all parameters are trained, and `dtype` has less than 32 bits.
        """
        if not self.lora_rank and jnp.dtype(dtype).itemsize < 4:
            raise ValueError(
                f"parameters in {dtype} cannot all be trained: steps are smaller than their rounding; set "
                "student.param_dtype to 'float32' (student.dtype='bfloat16' still computes in it), or lora_rank above 0"
            )

    @property
    def lora_scale(self) -> float:
        """The factor of the adapters, 0 where there are none."""
        return self.lora_alpha / self.lora_rank if self.lora_rank else 0.0


@dataclasses.dataclass(frozen=True)
class Taught:
    """What a training leaves.

    Attributes:
        lm: the model, adapters merged into it.
        adapters: the adapters on their own, or None where all parameters were trained.
    """

    lm: LM
    adapters: lora.Adapters | None


@flax.struct.dataclass
class TrainState:
    """All that changes while training.

    Attributes:
        learnt: `model`, the model's parameters or the LoRA adapters alone; `own`, the objective's parameters.
        moments: the optimizer's state.
    """

    learnt: dict[str, Any]
    moments: Any


def batch_loss(learnt: Mapping[str, Any], batch: Batch, frozen, *, model: Decoder, objective: Loss, adapters: bool):
    """What a step differentiates, for one micro-batch.

    Args:
        learnt: see `TrainState`.
        batch: rows to learn.
        frozen, model, objective, adapters: see `train_step`.

    Returns:
        The summed loss, a f32 scalar, and (denominator, metrics); see `student.Loss.loss`.
    """
    # Answers are short, so wide chunks are mostly wasted; but the gradient of a trained output map is added up once a chunk.
    chunk = 32 if adapters else 128
    variables = {"params": frozen, "lora": learnt["model"]} if adapters else {"params": learnt["model"]}
    hidden = model.apply(variables, batch.token, batch.segment, batch.position, prefix=batch.prefix).hidden
    asked = "entropy" in objective.needs
    wanted = None if batch.weight is None else batch.weight != 0
    logp, entropy = token_logp(
        model,
        variables["params"],
        hidden,
        batch.token,
        batch.segment,
        wanted=wanted,
        temperature=objective.temperature,
        entropy=asked,
        chunk=chunk,
    )
    out = {"logp": logp, "entropy": entropy}
    if "option_logp" in objective.needs:
        out["option_logp"] = option_logp(logp, batch.segment, batch.extra["scale"])
    total, denominator, metrics = objective.loss(out, learnt["own"], batch)
    return total, (denominator, metrics | {"loss": total})


@functools.partial(jax.jit, static_argnames=("model", "objective", "optimizer", "adapters"), donate_argnames="state")
def train_step(
    state: TrainState, frozen, batches: Batch, lr, *, model: Decoder, objective: Loss, optimizer: Optimizer, adapters: bool
):
    """One optimizer step over A micro-batches; one in which nothing has a weight costs nothing.

    Args:
        state: donated.
        frozen: the model's parameters where only adapters are trained, else {}.
        batches: a `Batch` whose arrays have a leading axis A.
        lr: f32 scalar.
        model, objective, optimizer, adapters: static.

    Returns:
        The new state, and metrics as f32 scalars: loss, grad_norm, and the objective's own.
    """

    loss_fn = functools.partial(batch_loss, frozen=frozen, model=model, objective=objective, adapters=adapters)

    def add(carry, batch):
        (_, aux), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.learnt, batch)
        total = jax.tree.map(jnp.add, carry, (grads, *aux))
        return *total[:2], total[2] | {name: jnp.maximum(carry[2][name], aux[1][name]) for name in objective.maxima}

    def accumulate(carry, batch):
        if batches.token.shape[0] == 1 or batch.weight is None:
            return add(carry, batch), None
        return jax.lax.cond(jnp.any(batch.weight != 0), add, lambda carry, _: carry, carry, batch), None

    first = jax.tree.map(lambda x: x[0], batches)
    (_, aux), grads = jax.eval_shape(jax.value_and_grad(loss_fn, has_aux=True), state.learnt, first)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), (grads, *aux))
    (grads, denominator, metrics), _ = jax.lax.scan(accumulate, zeros, batches)
    share = 1.0 / jnp.maximum(denominator, 1e-8)
    grads = jax.tree.map(lambda x: x * share, sharding.constrain_params(grads, model.mesh))
    metrics = {name: value if name in objective.maxima else value * share for name, value in metrics.items()}
    updates, moments = optimizer.build(lr).update(grads, state.moments, state.learnt)
    new = TrainState(optax.apply_updates(state.learnt, updates), moments)
    return sharding.constrain_params(new, model.mesh), metrics | {"grad_norm": optax.global_norm(grads)}


@functools.partial(jax.jit, static_argnames=("optimizer", "mesh"))
def moments(learnt, *, optimizer: Optimizer, mesh: Mesh | None):
    """The optimizer's state before the first step, born where it will stay."""
    return sharding.constrain_params(optimizer.build(0.0).init(learnt), mesh)


def fresh(params, key_lora: jax.Array, key_own: jax.Array, *, objective: Loss, training: Training) -> dict[str, Any]:
    """What is learnt, before the first step: adapters, or a copy of the parameters, and the objective's own parameters."""
    if training.lora_rank:
        trained = lora.init(params, key_lora, training.lora_rank, training.lora_targets)
    else:
        trained = jax.tree.map(jnp.copy, params)
    return {"model": trained, "own": objective.init(key_own)}


def statics(compute: Compute, config: DecoderConfig, objective: Loss, training: Training) -> dict[str, Any]:
    """The static arguments of `train_step`."""
    return {
        "model": compute.model(config, lora_scale=training.lora_scale),
        "objective": objective,
        "optimizer": training.optimizer,
        "adapters": training.lora_rank > 0,
    }


def planned(
    objective: Objective | OverOptions, lesson: Lesson, encode: Encode | Ask, shape: Shape, key: jax.Array, model: Decoder
) -> Plan:
    """The lesson as batches; options share their prompt where the attention of `model` can."""
    if isinstance(objective, OverOptions):
        return objective.plan(lesson, encode, shape, key, shared=model.attention in SEES_PREFIXES)
    return objective.plan(lesson, encode, shape, key)


def steps_of(plan: Plan, training: Training) -> int:
    """The optimizer steps of a training on a lesson."""
    return max(1, round(training.epochs * plan.num_batches / training.accumulation))


def dated(objective: Loss, batch: Batch, progress: float) -> Batch:
    """A host batch that knows which share of the training is done, where the objective needs that."""
    if "progress" not in objective.needs:
        return batch
    return batch.replace(extra={**batch.extra, "progress": np.full(len(batch.token), progress, np.float32)})


def teach(
    lm: LM,
    lesson: Lesson,
    objective: Objective | OverOptions,
    *,
    encode: Encode | Ask,
    training: Training,
    shape: Shape,
    compute: Compute,
    key: jax.Array,
    partial,
    log: Callable[[int, Mapping[str, float]], None],
    label: str = "teach",
) -> Taught:
    """Trains a copy of `lm` on the lesson as it stands; adapters are merged into it at the end.

    Args:
        lm: where to start; its arrays are left as they are.
        lesson: what to learn.
        objective: the loss and its batches.
        encode: the student's layout and tokenizer: an `Ask` where the objective is `OverOptions`.
        training: how long and how fast.
        shape: device shape of a micro-batch.
        compute: how the model computes; parameters and moments stay as they are stored.
        key: consumed.
        partial: durable folder of this run; checkpoints live there.
        log: takes (step, metrics).
        label: what the progress bar says.

    Raises:
        ValueError: the loss is NaN or infinite; an unknown schedule; see `Training.refuse_narrow`.
    """
    *keys, key_plan = jax.random.split(key, 3)
    plan = planned(objective, lesson, encode, shape, key_plan, compute.model(lm.config))
    A = training.accumulation
    num_steps = steps_of(plan, training)
    tokens_per_step = int(plan.num_tokens / plan.num_batches * A)

    def make(step: int, learnt) -> Made:
        parts = [dated(objective, plan.batch(step * A + a), step / num_steps) for a in range(A)]
        return Made(jax.tree.map(lambda *x: np.stack(x), *parts), tokens_per_step, {})

    return optimise(
        lm,
        objective,
        make,
        num_steps=num_steps,
        boundary=1,
        num_tokens=int(training.epochs * plan.num_tokens),
        training=training,
        compute=compute,
        keys=keys,
        partial=partial,
        log=log,
        label=label,
    )


@dataclasses.dataclass(frozen=True)
class Made:
    """The batches of one optimizer step.

    Attributes:
        batches: a `Batch` whose host arrays have a leading axis, of micro-batches.
        num_tokens: in them, without padding.
        metrics: what is to be logged with the step's own.
    """

    batches: Batch
    num_tokens: int
    metrics: Mapping[str, float]


def optimise(
    lm: LM,
    objective: Loss,
    make: Callable[[int, Any], Made],
    *,
    num_steps: int,
    boundary: int,
    num_tokens: int,
    training: Training,
    compute: Compute,
    keys: Sequence[jax.Array],
    partial,
    log: Callable[[int, Mapping[str, float]], None],
    label: str,
) -> Taught:
    """The loop of optimizer steps, with its checkpoints.

    Args:
        make: from the step's number and what is learnt so far (`TrainState.learnt`) to its batches.
        num_steps: of the whole training.
        boundary: a killed run may continue at every so-manieth step, because `make` depends on nothing before it.
        num_tokens: expected in all, for the progress bar.
        keys: of the adapters and of the objective's own parameters; consumed.
        lm, objective, training, compute, partial, log, label: see `teach`.
    """
    for dtype in {leaf.dtype.name for leaf in jax.tree.leaves(lm.params)}:
        training.refuse_narrow(dtype)
    static = statics(compute, lm.config, objective, training)
    adapters = static["adapters"]
    rate = learning_rate(training.lr, training.schedule, training.warmup_frac, num_steps)

    learnt = compute.place_params(fresh(lm.params, *keys, objective=objective, training=training))
    born = moments(learnt, optimizer=training.optimizer, mesh=static["model"].mesh)
    # Placed as a step will return them: otherwise the second step would be compiled anew.
    state = TrainState(learnt, compute.place_params(born))
    frozen = lm.params if adapters else {}

    every = -(-training.checkpoint_every // boundary) * boundary
    with Checkpoints(partial, every=every, num_steps=num_steps) as checkpoints:
        state, first_step = checkpoints.latest(state)
        late: list[tuple[int, Made, dict]] = []  # at most one step whose metrics are still on the device
        with Progress(label, num_tokens, unit="tok") as progress:

            def report():
                step, made, metrics = late.pop()
                metrics = {name: float(value) for name, value in metrics.items()} | {"lr": rate(step), **made.metrics}
                _refuse_nan(step, metrics, training.lr)
                progress.add(made.num_tokens, loss=metrics["loss"])
                log(step, metrics)

            progress.add(int(first_step * num_tokens / num_steps))
            for step in range(first_step, num_steps):
                made = make(step, state.learnt)
                batches = compute.place_rows(made.batches, axis=1)
                state, metrics = train_step(state, frozen, batches, np.float32(rate(step)), **static)
                if late:
                    report()
                late.append((step, dataclasses.replace(made, batches=None), metrics))
                if checkpoints.due(step + 1):
                    report()  # so that no state behind a NaN is ever saved
                    checkpoints.save(step + 1, state)
            if late:
                report()
    if not all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(state.learnt)):
        _refuse_nan(num_steps - 1, {"loss": float("nan"), "grad_norm": float("nan")}, training.lr)
    if not adapters:
        return Taught(dataclasses.replace(lm, params=state.learnt["model"], key=""), None)
    kept = lora.Adapters(state.learnt["model"], training.lora_rank, training.lora_alpha)
    return Taught(dataclasses.replace(lm, params=lora.merge(lm.params, kept), key=""), kept)


def learning_rate(lr: float, schedule: str, warmup_frac: float, num_steps: int) -> Callable[[int], float]:
    """Step -> rate: linear warm-up to `lr`, then down to 0 along a cosine or a line, or constant.

    >>> rate = learning_rate(1.0, "linear", 0.5, 4)
    >>> [round(float(rate(s)), 2) for s in range(4)]
    [0.5, 1.0, 1.0, 0.5]
    """
    warmup = round(warmup_frac * num_steps)
    falls = {
        "cosine": lambda s: 0.5 * (1 + np.cos(np.pi * s)),
        "linear": lambda s: 1 - s,
        "constant": lambda s: 1.0,
    }
    if schedule not in falls:
        raise ValueError(f"schedule={schedule!r}: allowed are {', '.join(falls)}; change it in the config")

    def rate(step: int) -> float:
        if step < warmup:
            return lr * (step + 1) / warmup
        return float(lr * falls[schedule]((step - warmup) / max(num_steps - warmup, 1)))

    return rate


def _refuse_nan(step: int, metrics: Mapping[str, float], lr: float) -> None:
    if not np.isfinite(metrics["loss"] + metrics["grad_norm"]):
        raise ValueError(
            f"the loss is {metrics['loss']} and the gradient's norm {metrics['grad_norm']} at step {step} with lr={lr}: "
            "lower lr (student.training.lr, or pretrain.*.training.lr) in the config, or compute in float32; "
            "earlier checkpoints are kept"
        )


class Checkpoints:
    """Train states on disk, through orbax; nothing is made before the first save, so short runs cost nothing."""

    def __init__(self, folder, *, every: int, num_steps: int):
        # Orbax wants an absolute path, the default workdir is a relative one.
        self.folder, self.every, self.num_steps = epath.Path(folder).resolve() / "checkpoints", every, num_steps
        self.manager = None

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exc) -> None:
        if self.manager is not None:
            self.manager.close()

    def latest(self, state: TrainState) -> tuple[TrainState, int]:
        """The last saved state and its step, or the given state and 0; placed as the given one is."""
        if not self.folder.exists() or (step := self._open().latest_step()) is None:
            return state, 0
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
        return self._open().restore(step, args=ocp.args.StandardRestore(abstract)), step

    def due(self, step: int) -> bool:
        """Every `every`-th step but the last, whose result is the artefact itself."""
        return step % self.every == 0 and step < self.num_steps

    def save(self, step: int, state: TrainState) -> None:
        """Saves in the background the state after `step` steps."""
        self._open().save(step, args=ocp.args.StandardSave(state))

    def _open(self) -> ocp.CheckpointManager:
        if self.manager is None:
            self.manager = ocp.CheckpointManager(self.folder, options=ocp.CheckpointManagerOptions(max_to_keep=2, create=True))
        return self.manager
