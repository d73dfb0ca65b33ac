"""A sweep over neural trust heads: a grid of settings, fitted in few programs, the best one chosen on held-back source rows.

Axes are of two kinds. A compiled one is an array in the program, so that all its values are trained side by side; an outer one
is a static shape, and each combination of outer values is a program of its own. A program's heads go through it in chunks that
fit the devices' memory; a chunk is a stage, so a killed sweep goes on where it stopped.

All heads see one split of the source: they are compared, and the best is chosen, by the AUC on the same held-back rows. That of
the best of many is too high an estimate of it. How the heads do on the target is looked up once the choice is stored.

Stage in: the teacher's evidence. Stage out: `Grid`; `chosen` is a folder as stage calibrate leaves it.

Source: arXiv 2606.01000 (whose ablations name layer and size of the source). Deviations: 1. axes and values are the user's.
"""

import dataclasses
import difflib
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from w2s_jax import calibrating, pipeline, plugins
from w2s_jax.looking import Looked
from w2s_jax.run import Model, Run
from w2s_jax.settings import keywords_of
from w2s_jax.store import Stored
from w2s_jax.trust import artefact, neural

VERSION = "1"
COMPILED = ("seed", "lr", "weight_decay", "dropout", "drop_path", "class_weight", "label_noise", "source_rows", "layer")
OUTER = ("head", "width", "blocks", "expansion", "epochs", "batch_rows")
LEAST = 10  # right and wrong held-back labels; with fewer the choice among heads is a lottery
HOST_BYTES = 2 << 30  # for a chunk, where a device does not say what it has
Axes = Mapping[str, tuple]


@dataclasses.dataclass(frozen=True)
class Grid:
    """A finished sweep over H heads.

    Attributes:
        axes: what was varied, in the order of the table.
        head: H settings, one value for each axis.
        quality: f64[H], AUC on the held-back source rows, NaN where training diverged.
        epoch: i32[H], the epoch that was kept.
        auc, auc_lo, auc_hi, purity: f64[H], on the target; NaN where undefined, as without gold answers.
        taught: how many labels the purity is of.
        best: the head of the highest quality, the first of several.
        chosen: the artefact that holds it, in `trust`.
    """

    axes: Axes
    head: tuple[Mapping[str, Any], ...]
    quality: np.ndarray
    epoch: np.ndarray
    auc: np.ndarray
    auc_lo: np.ndarray
    auc_hi: np.ndarray
    purity: np.ndarray
    taught: int
    best: int
    chosen: Stored


def sweep(run: Run, teacher: Model, axes: Axes, *, most: int) -> Grid:
    """Fits every head of a grid, chooses one, and looks how all do on the target.

    Args:
        run: config (teacher, observe, trust.neural, select and tasks sections), seed, store.
        teacher: the model that answers.
        axes: from `read`.
        most: heads of a chunk, fewer where these do not fit.

    Raises:
        ValueError: a setting is out of range, too few labels are held back, or every head diverged.
    """
    settings = tuple(combinations(axes))
    members = [member(run.config, one) for one in settings]
    labelled, correct, unlabelled = pipeline.source_and_target(run, teacher)
    refuse_few(members[0], labelled.evidence(), correct, run)
    devices = [d for d in run.mesh.devices.flat if d.process_index == jax.process_index()]
    chunks = []
    for _, rows in itertools.groupby(range(len(settings)), key=lambda h: [settings[h].get(name) for name in OUTER]):
        group = list(rows)
        size = chunk_size(len(group), members[group[0]], labelled.evidence().x.shape, most, devices)
        for start in range(0, len(group), size):
            part = slice(group[start], group[min(start + size, len(group)) - 1] + 1)
            label = f"sweep heads {part.start + 1} to {part.stop}"
            chunks.append(fit(run, teacher, settings[part], size, labelled, correct, unlabelled, devices, label))
    quality = np.concatenate([chunk.value["quality"] for chunk in chunks])
    chosen, best = choose(run, chunks, quality)
    found = [pipeline.appraise(run, chosen, chunk, unlabelled).value for chunk in chunks]
    return Grid(
        axes=axes,
        head=settings,
        quality=quality,
        epoch=np.concatenate([chunk.value["epoch"] for chunk in chunks]),
        **{name: np.concatenate([part[name] for part in found]) for name in ("auc", "auc_lo", "auc_hi", "purity")},
        taught=found[0]["taught"],
        best=best,
        chosen=chosen,
    )


# ---- Axes ------------------------------------------------------------------------------------------------------------


def read(config: ConfigDict, compiled: Sequence[str], outer: Sequence[str] = ()) -> Axes:
    """The axes of texts `name=value,value,...`, outer ones first, each kind in the order of the table above.

    Raises:
        ValueError: an axis is unknown, of the other kind, given twice or empty, or a value is of another type.
    """
    found: dict[str, tuple] = {}
    for flag, texts, known in (("outer", outer, OUTER), ("axis", compiled, COMPILED)):
        for text in texts:
            name, _, values = text.partition("=")
            refuse_name(config, flag, name, known, values)
            if name in found:
                raise ValueError(f"--{flag}={text}: {name} is given twice; give all its values at once")
            found[name] = tuple(read_value(config, name, word, f"--{flag}={text}") for word in values.split(",") if word)
            if not found[name] or len(set(found[name])) < len(found[name]):
                raise ValueError(f"--{flag}={text}: allowed are one or more values, each once, such as --{flag}={name}=a,b")
    if not found:
        raise ValueError(f"a sweep needs an axis, such as --axis=lr=1e-4,3e-4; compiled axes are {', '.join(COMPILED)}")
    return {name: found[name] for name in (*OUTER, *COMPILED) if name in found}


def refuse_name(config: ConfigDict, flag: str, name: str, known: Sequence[str], values: str) -> None:
    """Makes sure that an axis is one of this flag's, or says whose it is."""
    if name in known:
        return
    if name in OUTER:
        raise ValueError(
            f"--{flag}={name}: {name} is a static shape, which no compiled axis can vary: it is an outer axis, compiled once "
            f"for each value; write --outer={name}={values or '...'}"
        )
    if name in COMPILED:
        raise ValueError(f"--{flag}={name}: {name} is a compiled axis; write --axis={name}={values or '...'}")
    if name in config.trust.neural:
        raise ValueError(
            f"--{flag}={name}: heads of a sweep are compared on one split of the source, so {name} is no axis of it; set it "
            f"for all with --config.trust.neural.{name}=..."
        )
    node: Any = config
    for word in name.split("."):
        node = node[word] if isinstance(node, ConfigDict) and word in node else None
    if node is not None:
        raise ValueError(
            f"--{flag}={name}: {name} is a setting of other stages than the head's, a staged axis, whose values are whole "
            f"runs: write --staged={name}={values or '...'} in a sweep of its own"
        )
    near = difflib.get_close_matches(name, (*COMPILED, *OUTER), 1)
    raise ValueError(
        f"--{flag}={name}: there is no such axis{f', did you mean {near[0]!r}?' if near else '.'} Compiled axes are "
        f"{', '.join(COMPILED)}; outer axes are {', '.join(OUTER)}"
    )


def read_value(config: ConfigDict, name: str, word: str, where: str) -> Any:
    """One value of an axis, of the type that its setting has; a layer as it stands in observe.layers."""
    if name == "layer":
        layers = {str(layer): layer for layer in config.observe.layers}
        if word not in layers:
            raise ValueError(
                f"{where}: layer {word!r} is not looked at; observe.layers has {', '.join(layers)}: add it with "
                "--config.observe.layers=..."
            )
        return layers[word]
    kind = type(config.trust.neural[name])
    try:
        return kind(word)
    except ValueError:
        raise ValueError(f"{where}: {word!r} is no {kind.__name__}; correct the value") from None


def combinations(axes: Axes) -> Iterator[dict[str, Any]]:
    """Every head of the grid, the last axis varying fastest.

    >>> list(combinations({"lr": (0.1, 0.2), "seed": (0,)}))
    [{'lr': 0.1, 'seed': 0}, {'lr': 0.2, 'seed': 0}]
    """
    return (dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values()))


def keywords(config: ConfigDict, one: Mapping[str, Any]) -> dict[str, Any]:
    """All keywords of a head of the grid; which layer it looks at is none of them."""
    return {**keywords_of(config.trust, "neural"), **{name: value for name, value in one.items() if name != "layer"}}


def member(config: ConfigDict, one: Mapping[str, Any]) -> neural.Neural:
    """A head of the grid, not fitted."""
    return plugins.make("trust", "neural", **keywords(config, one))


# ---- Stages ----------------------------------------------------------------------------------------------------------


def fit(
    run: Run,
    teacher: Model,
    settings: Sequence[Mapping[str, Any]],
    size: int,
    labelled: Looked,
    correct: np.ndarray,
    unlabelled: Looked,
    devices: Sequence[jax.Device],
    label: str,
) -> Stored:
    """A chunk of heads: their quality f64[E], epoch i32[E] and scores f32[E, R] of the target; the best of them as `trust`.

    Args:
        settings: of E heads of one architecture.
        size: heads of the program; the last ones are fitted again to fill it up.
        devices: to split the heads over.
    """
    layers, about = list(run.config.observe.layers), calibrating.about(run, teacher, labelled)
    fixed = keywords(run.config, {})

    def compute(work, **inputs):
        filled = [*settings, *[settings[-1]] * (size - len(settings))]
        heads, evidence = [member(run.config, one) for one in filled], labelled.evidence()
        if "source_rows" in settings[0]:  # a number in all chunks, so that they are one program
            held_back = neural.held_back_rows(heads[0], evidence, run.key("calibrate"))
            heads = [dataclasses.replace(h, source_rows=h.source_rows or int((~held_back).sum())) for h in heads]
        points = [layers.index(one["layer"]) for one in filled] if "layer" in settings[0] else None
        key = run.key("calibrate")
        states, records = neural.fit_heads(heads, evidence, correct, key, points=points, devices=devices)
        scores = neural.score_heads(heads, states, unlabelled.evidence(), points)[: len(settings)]
        states, records = (jax.tree.map(lambda a: a[: len(settings)], tree) for tree in (states, records))
        sound = np.isfinite(records["loss"]).all(1) & np.isfinite(scores).all(1)
        quality = np.where(sound, records["quality"].max(1).astype(np.float64), np.nan)
        if sound.any():
            best = int(np.nanargmax(quality))
            mine = jax.tree.map(lambda a: a[best], (states, records))
            layer = {"layers": [settings[best]["layer"]]} if points else {}
            described = {"word": "neural", "args": keywords(run.config, settings[best]), "about": about | layer}
            artefact.write(heads[best].fitted_by(*mine), work.out / "trust", **described)
        return {
            "quality": quality,
            "epoch": (records["quality"].argmax(1) + 1).astype(np.int32),
            "score": np.where(sound[:, None], scores, np.float32(0)),
        }

    return run.stage(
        "sweep",
        compute,
        code=("w2s_jax.trust.artefact", "w2s_jax.trust.neural"),
        label=label,
        alone=True,
        settings=list(settings),
        fixed={name: value for name, value in fixed.items() if name not in settings[0]},
        about=about,
        source=[labelled.answered, labelled.observed],
        target=[unlabelled.answered, unlabelled.observed],
        correct=correct,
        seed=run.seed,
    )


def choose(run: Run, chunks: Sequence[Stored], quality: np.ndarray) -> tuple[Stored, int]:
    """The best head as an artefact of its own, and its number.

    Raises:
        ValueError: every head diverged.
    """
    if np.isnan(quality).all():
        raise ValueError("the loss of every head of the sweep is not finite: lower the values of lr")
    best = int(np.nanargmax(quality))
    ends = np.cumsum([len(chunk.value["quality"]) for chunk in chunks])
    chunk = chunks[int(np.searchsorted(ends, best, "right"))]

    def copy(work, **inputs):
        artefact.copy(chunk.path / "trust", work.out / "trust")

    return run.stage("choose", copy, label="sweep choice", alone=True, chunks=list(chunks), best=best), best


def refuse_few(head: neural.Neural, evidence, correct: np.ndarray, run: Run) -> None:
    """Makes sure that enough right and wrong labels are held back to choose by."""
    held_back = neural.held_back_rows(head, evidence, run.key("calibrate"))
    right, wrong = int(correct[held_back].sum()), int((~correct[held_back]).sum())
    if min(right, wrong) < LEAST:
        raise ValueError(
            f"{right} right and {wrong} wrong labels of the source are held back: too few to choose a head by, at least "
            f"{LEAST} of each are needed; raise trust.neural.held_back_frac={head.held_back_frac}, or give more questions in "
            "tasks.source"
        )


def chunk_size(num_heads: int, head: neural.Neural, shape: Sequence[int], most: int, devices: Sequence[jax.Device]) -> int:
    """How many heads of a group are trained together: chunks of one size, as few as fit, a multiple of the devices.

    Args:
        num_heads: of the group.
        head: one of them.
        shape: of the source's hidden states, (R, P, D).
        most: heads of a chunk.
        devices: which train them.
    """
    stats = devices[0].memory_stats() or {}
    room = stats["bytes_limit"] // 2 if "bytes_limit" in stats else HOST_BYTES // len(devices)
    fitting = max(room // bytes_of(head, shape), 1) * len(devices)
    chunks = math.ceil(num_heads / min(most, fitting))
    return math.ceil(math.ceil(num_heads / chunks) / len(devices)) * len(devices)


def bytes_of(head: neural.Neural, shape: Sequence[int]) -> int:
    """About what one head takes on a device: parameters, moments, gradients, and rows of hidden states and activations."""
    params = jax.eval_shape(head.head.init, jax.random.key(0), jax.ShapeDtypeStruct((1, *shape[1:]), np.float32))
    weights = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    features = math.prod(shape[1:])
    inside = sum(leaf.shape[-1] for leaf in jax.tree.leaves(params) if len(leaf.shape) > 1)
    rows = math.ceil(shape[0] * head.held_back_frac) + 3 * head.batch_rows + neural.ROWS_PER_CALL
    return 4 * (6 * weights + rows * (features + 2 * inside))
