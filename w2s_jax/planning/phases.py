"""The programs of a run, as the run calls them: the same compiled functions and settings, with shapes in place of arrays.

    pretrain   `trainer.train_step`, for each model of the config that is trained from scratch
    answer     `choosing.candidate_logits` (letters) or `choosing.continuation_logp` (texts); where answers are free
               `slots.read` (prompts) and `slots.write`
    observe    `features.gathered`
    gather     what other models than the teacher are asked: members of a committee as in `answer`, a reward model as in
               `observe` or (by likelihood) as in `answer`
    calibrate  `neural.train_heads`, one head on one device
    relabel    the student as in `answer` and `observe`, where a row's relabeller asks it before it is taught
    teach      `trainer.train_step`; where a student learns from what it writes, before it `slots.read`, `slots.write` and
               `online.rescored` (old and reference log-probabilities)
    score      as `answer`, of the student

Of a chain all of these are planned for each generation, from the second on with a student as the teacher. Controls beside it
call the same programs.

What a plan cannot know without data stands in `SOURCE_ROWS` and `NUM_OPTIONS`; neither weighs much. Of a round of answers it
takes the most: prompts as long as fit, and as many micro-batches as answers fill that have a device row each.
"""

import collections
import dataclasses
import functools
import itertools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from w2s_jax import choosing, features, packing, plugins, sampling, selective, slots
from w2s_jax.drawing import Drawing
from w2s_jax.models import decoder, hf_io, peft_io, presets, sharding
from w2s_jax.models.attention import SEES_PREFIXES
from w2s_jax.models.config import DecoderConfig
from w2s_jax.models.tokenizer import word_level
from w2s_jax.packing import Shape
from w2s_jax.settings import Row, check, compute_of, objective_of, student_as_teacher, training_of, writing_of
from w2s_jax.student import Objective, OnPolicy, OverOptions, online, trainer
from w2s_jax.tasks.asking import Asked
from w2s_jax.trust import neural
from w2s_jax.types import Answers, Lesson, Question, Ragged

SOURCE_ROWS = 1 << 14  # labelled rows that the trust head is fitted on, filled up to a power of two
NUM_OPTIONS = 8  # candidates of a question, filled up likewise


@dataclasses.dataclass(frozen=True)
class Phase:
    """A program that a run calls.

    Attributes:
        name: of the stage, and who computes.
        section: dotted path of the config's section that it computes by.
        program: the function, under `jax.jit`.
        arguments: what it takes, `ShapeDtypeStruct`s with their places.
        settings: its static arguments.
        beside: what else lies on the devices meanwhile.
    """

    name: str
    section: str
    program: Callable[..., Any]
    arguments: tuple
    settings: Mapping[str, Any]
    beside: Any = None

    @property
    def stage(self) -> str:
        return self.name.partition(" ")[0]

    @property
    def key(self) -> tuple:
        """Equal for equal programs on equal devices."""
        leaves, tree = jax.tree.flatten((self.arguments, self.beside))
        return self.program, tuple(leaves), tree, tuple(sorted(self.settings.items()))

    def lower(self) -> jax.stages.Lowered:
        """The program for these shapes and places."""
        return self.program.lower(*self.arguments, **self.settings)


def phases(config: ConfigDict, devices: Sequence[Any]) -> list[Phase]:
    """The programs of a run of a config on some devices, in the order in which they are first called.

    Raises:
        ValueError: whatever `settings.check` refuses, an unknown model, rows or dimensions that the mesh does not divide.
    """
    mesh = sharding.make_mesh(**config.mesh, devices=devices)
    rows = check(config, mesh)
    interface = interface_of(config)
    links = links_of(config)
    shapes = {word: shape_of(config, word) for link in links for word in (link.teacher, link.student)}
    found = [
        train(f"pretrain {name}", f"pretrain.{name}", section, plugins.make("objective", "sft"), shapes[word], mesh, "float32")
        for word in shapes
        for kind, _, name in [word.partition(":")]
        if kind == "pretrain"
        for section in [config.pretrain[name]]
    ]
    for link in links:
        taught_by, student = shapes[link.teacher], shapes[link.student]
        mine = answer("answer teacher", "teacher", link.config, taught_by, mesh, interface)
        mine += [observe(link.config, taught_by, mesh), *gather(link.config, rows, mesh, interface)]
        if link.fits_head and any(row.trust == "neural" and not row.reused for row in rows):
            mine.append(calibrate(link.config, taught_by, mesh))
        mine += relabel(link.config, rows, student, mesh, interface)
        mine += teach(link.config, objective_of(config), student, mesh)
        mine += answer("score student", "student", link.config, student, mesh, interface)
        # A student that teaches computes as the student's section says.
        place = {"section": "student"} if link.generation > 1 else {}
        found += [
            dataclasses.replace(phase, name=phase.name + link.suffix, **(place if phase.section == "teacher" else {}))
            for phase in mine
        ]
    return found


@dataclasses.dataclass(frozen=True)
class Link:
    """One generation of a run.

    Attributes:
        generation: from 1; of a run without a chain 0.
        teacher, student: config words.
        config: of the generation.
        fits_head: whether a trust head is fitted for this teacher.
    """

    generation: int
    teacher: str
    student: str
    config: ConfigDict
    fits_head: bool = True

    @property
    def suffix(self) -> str:
        return f" gen {self.generation}" if self.generation else ""


def links_of(config: ConfigDict) -> list[Link]:
    """The generations of a run, one where it is no chain."""
    students = tuple(config.chain.models)
    if not students:
        return [Link(0, config.teacher.model, config.student.model, config)]
    later, fits = student_as_teacher(config), config.chain.head != "reuse"
    first = Link(1, config.teacher.model, students[0], config)
    return [first, *(Link(n, a, b, later, fits) for n, (a, b) in enumerate(itertools.pairwise(students), 2))]


def judges(rows: Sequence[Row]) -> dict[str, tuple[str, str]]:
    """The models that are asked beside the teacher: name of the phase -> kind of the evidence, config word of the model."""
    found: dict[tuple[str, str], None] = {}
    for row in rows:
        for kind, keywords in row.asks.items():
            if kind == "committee_share":
                found |= dict.fromkeys((kind, word) for word in keywords["models"])
            elif kind in ("reward", "likelihood"):
                found[kind, keywords["model"]] = None
        found |= dict.fromkeys(("committee_share", word) for word in row.relabel_args.get("models", ()))  # teachers in numbers
    words = {"committee_share": "member", "reward": "reward", "likelihood": "likelihood"}
    count: collections.Counter[str] = collections.Counter()
    named = {}
    for kind, word in found:
        count[kind] += 1
        named[f"gather {words[kind]} {count[kind]}"] = kind, word
    return named


def interface_of(config: ConfigDict) -> str:
    """How the task's questions are answered, "choice" or "free"; a task that reads data is not made to find out."""
    module = plugins.resolve("task", config.tasks.name)
    classes = [value for value in vars(module).values() if isinstance(value, type) and value.__module__ == module.__name__]
    said = {cls.interface for cls in classes if isinstance(getattr(cls, "interface", None), str)}
    return said.pop() if len(said) == 1 else task_of(config).interface


def task_of(config: ConfigDict):
    keywords = config.tasks.to_dict()
    return plugins.make("task", keywords.pop("name"), seed=config.seeds[0], **keywords)


def shape_of(config: ConfigDict, word: str) -> DecoderConfig:
    """The shape of the model that a config word names: of its section, its `config.json`, or by hub id; no weights are read.

    Raises:
        ValueError: there is no such section, directory or preset.
    """
    kind, _, name = word.partition(":")
    if kind == "pretrain":
        if name not in config.pretrain:
            known = ", ".join(config.pretrain) or "none"
            raise ValueError(f"model {word!r}: the config's pretrain sections are {known}; name one of them")
        vocabulary = word_level(task_of(config).vocabulary())
        return DecoderConfig(vocab_size=vocabulary.vocab_size, **config.pretrain[name].decoder.to_dict())
    if pathlib.Path(word).is_dir():
        return shape_of(config, peft_io.base_of(word)) if peft_io.is_adapter(word) else hf_io.read_config(word)
    return known_by_hub_id(word)


def known_by_hub_id(word: str) -> DecoderConfig:
    """The shape of a preset.

    Raises:
        ValueError: there is none of that hub id.
    """
    try:
        return presets.preset(word)
    except ValueError as error:
        raise ValueError(
            f"model {word!r} is neither a directory here nor known by its hub id: {error}; a directory with its config.json "
            "alone is enough to plan"
        ) from None


def classifier_shape(word: str) -> DecoderConfig:
    """The decoder of the sequence classifier that a config word names; a preset's, less its head."""
    return hf_io.read_classifier_config(word) if pathlib.Path(word).is_dir() else known_by_hub_id(word)


# ---- Phases ----------------------------------------------------------------------------------------------------------


def answer(
    name: str, section: str, config: ConfigDict, shape: DecoderConfig, mesh: Mesh, interface: str, **instead: Any
) -> list[Phase]:
    """A model answers questions: it chooses, or writes (as its section says, or as `instead` does)."""
    settings = config[section]
    if interface != "choice":
        how = writing_of(settings, **instead)
        amounts = {"num_samples": how["num_samples"], "max_new_tokens": how["max_new_tokens"]}
        params, row_length = params_of(shape, mesh, settings.param_dtype), settings.shape.row_length
        return writing(
            name, section, settings, shape, params, mesh, Drawing(**how["drawing"]), row_length=row_length, **amounts
        )
    if settings.style != "letter":
        return [continued(name, section, config, shape, mesh)]
    device = device_shape(f"{section}.shape", settings.shape, mesh)
    extra = {"candidate": np.zeros((0, NUM_OPTIONS), np.int32)}
    batch = packing.lay_out(Ragged.of([], np.int32), [], device, probe=np.zeros(0, np.int64), extra=extra)
    arguments = (params_of(shape, mesh, settings.param_dtype), split_rows(batch, mesh))
    return [Phase(name, section, choosing.candidate_logits, arguments, {"model": compute_of(mesh, settings).model(shape)})]


def continued(name: str, section: str, config: ConfigDict, shape: DecoderConfig, mesh: Mesh) -> Phase:
    """How probable a model finds texts."""
    settings = config[section]
    device = device_shape(f"{section}.shape", settings.shape, mesh)
    batch = packing.lay_out(Ragged.of([], np.int32), [], device, weight=Ragged.of([], np.float32))
    arguments = (params_of(shape, mesh, settings.param_dtype), split_rows(batch, mesh))
    return Phase(name, section, choosing.continuation_logp, arguments, {"model": compute_of(mesh, settings).model(shape)})


def writing(
    name: str,
    section: str,
    settings: ConfigDict,
    shape: DecoderConfig,
    params: Any,
    mesh: Mesh,
    drawing: Drawing,
    *,
    num_samples: int,
    max_new_tokens: int,
    row_length: int,
    adapters: Any = None,
    lora_scale: float = 0.0,
    beside: Any = (),
) -> list[Phase]:
    """A model writes: the longest prompts that fit are read, and tokens are written at the full length of the cache.

    `beside`: what else lies on the devices meanwhile.
    """
    compute = compute_of(mesh, settings, dtype=settings.decode_dtype)
    model = compute.model(shape, lora_scale=lora_scale)
    refuse_uneven(f"{section}.num_slots", settings.num_slots, mesh)
    longest = sampling.longest_prompt(shape, row_length, max_new_tokens)
    num_read = sampling.read_together(settings.num_slots, num_samples, compute)

    def unstacked(tree):
        flat = jax.eval_shape(functools.partial(decoder.unstack, shape, dtype=model.dtype), tree)
        return None if tree is None else placed(flat, mesh, whole_over=("fsdp",))

    weights = (unstacked(params), unstacked(adapters))
    prompts = split_rows((shaped((num_read, sampling.room(longest)), jnp.int32), shaped((num_read,), jnp.int32)), mesh)
    num_cached = sampling.room(longest + max_new_tokens)
    sizes = {"config": shape, "num_rows": settings.num_slots, "num_slots": num_cached, "dtype": model.dtype, "mesh": None}
    state = jax.eval_shape(functools.partial(slots.empty, **sizes))
    place = sharding.cache_sharding(shape.num_kv_heads, mesh)
    cache = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), state.cache)
    state = split_rows(state.replace(cache=None), mesh).replace(cache=cache)
    halted = split_rows(shaped((settings.num_slots,), jnp.bool_), mesh)
    drawn = (shaped((), jnp.int32), shaped((1,), jnp.int32), jax.eval_shape(jax.random.key, 0))
    static = {"model": model, "drawing": drawing, "num_steps": sampling.STEPS}
    reading = Phase(f"{name} (read)", section, slots.read, (*weights, *prompts), {"model": model}, (params, beside, state))
    return [
        reading,
        Phase(f"{name} (write)", section, slots.write, (*weights, state, halted, *drawn), static, (params, beside)),
    ]


def gather(config: ConfigDict, rows: Sequence[Row], mesh: Mesh, interface: str) -> list[Phase]:
    """Other models than the teacher are asked for evidence; each is alone in memory."""
    found = []
    for name, (kind, word) in judges(rows).items():
        if kind == "committee_share":
            once = {"num_samples": 1, "temperature": 0.0}
            found += answer(name, "teacher", config, shape_of(config, word), mesh, interface, **once)
        elif kind == "reward":
            found.append(probed(name, "teacher", config, classifier_shape(word), mesh, layers=(-1,)))
        else:
            found.append(continued(name, "teacher", config, shape_of(config, word), mesh))
    return found


def observe(config: ConfigDict, shape: DecoderConfig, mesh: Mesh) -> Phase:
    """The teacher's hidden states at its answers."""
    return probed("observe teacher", "teacher", config, shape, mesh, layers=tuple(config.observe.layers))


def probed(name: str, section: str, config: ConfigDict, shape: DecoderConfig, mesh: Mesh, *, layers: tuple) -> Phase:
    """Hidden states at one token of each text, in the device shape of a section."""
    settings = config[section]
    device = device_shape(f"{section}.shape", settings.shape, mesh)
    batch = packing.lay_out(Ragged.of([], np.int32), [], device, probe=np.zeros(0, np.int64))
    arguments = (params_of(shape, mesh, settings.param_dtype), split_rows(batch, mesh))
    static = {"model": compute_of(mesh, settings).model(shape), "layers": layers}
    return Phase(name, section, features.gathered, arguments, static)


def calibrate(config: ConfigDict, shape: DecoderConfig, mesh: Mesh) -> Phase:
    """The trust head is fitted, on one device."""
    function = plugins.make("trust", "neural", **config.trust.neural.to_dict())
    place = NamedSharding(Mesh(mesh.devices.flat[:1], "one"), PartitionSpec())
    seen = (len(config.observe.layers), shape.width)
    source = tuple(
        shaped(lengths, jnp.float32)
        for num_rows in (max(SOURCE_ROWS, function.batch_rows), SOURCE_ROWS // 4)
        for lengths in ((num_rows, *seen), (num_rows,), (num_rows,))
    )
    hyper = neural.Hyper(**dict.fromkeys(function.hyper, shaped((1,), jnp.float32)))
    key = jax.eval_shape(lambda: jax.random.key(0)[None])
    num_rows = shaped((1,), jnp.float32) if function.source_rows else None
    varied = (hyper, key, None, num_rows)
    arguments = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), (source, *varied))
    static = {"head": function.head, "epochs": function.epochs, "batch_rows": function.batch_rows, "mesh": None}
    return Phase("calibrate head", "trust.neural", neural.train_heads, arguments, static)


def relabel(config: ConfigDict, rows: Sequence[Row], shape: DecoderConfig, mesh: Mesh, interface: str) -> list[Phase]:
    """The student, not yet taught, answers the questions and is observed at them, where relabellers ask for that."""
    asking = [row.relabel_args for row in rows if "layers" in row.relabel_args]
    if not asking:
        return []
    found = answer("relabel student", "student", config, shape, mesh, interface, num_samples=1, temperature=0.0)
    num_samples = max(asked.get("num_samples", 0) for asked in asking)
    if num_samples and interface != "choice":
        further = {"num_samples": num_samples, **selective.PLAIN}
        found += answer("relabel student again", "student", config, shape, mesh, interface, **further)
    for number, layers in enumerate(dict.fromkeys(tuple(asked["layers"]) for asked in asking), 1):
        found.append(probed(f"relabel student (observe {number})", "student", config, shape, mesh, layers=layers))
    return found


def teach(config: ConfigDict, objective: Objective | OverOptions | OnPolicy, shape: DecoderConfig, mesh: Mesh) -> list[Phase]:
    """The student learns: from the lesson, or from what it writes itself."""
    settings = config.student
    step = train("teach student", "student", settings, objective, shape, mesh, settings.param_dtype)
    if not isinstance(objective, OnPolicy):
        return [step]
    training, (state, _, batches, _) = training_of(settings.training), step.arguments
    if training.lora_rank:
        params, adapters, beside = params_of(shape, mesh, settings.param_dtype), state.learnt["model"], state
    else:  # what training started from stays loaded
        params, adapters, beside = state.learnt["model"], None, (state.moments, step.beside)
    writes = writing(
        step.name,
        "student",
        settings,
        shape,
        params,
        mesh,
        Drawing(objective.temperature),
        num_samples=objective.group_size,
        max_new_tokens=objective.max_new_tokens,
        row_length=min(settings.shape.row_length, settings.training.shape.row_length),
        adapters=adapters,
        lora_scale=training.lora_scale,
        beside=beside,
    )
    if objective.inner_steps == 1 and not objective.beta:
        return [*writes, step]
    # The reference has no adapters; what came before the round's updates has, and weighs more.
    batch = jax.tree.map(lambda x: shaped(x.shape[1:], x.dtype), batches.replace(extra={}))
    arguments = (params, adapters if objective.inner_steps > 1 else None, split_rows(batch, mesh))
    static = {"model": step.settings["model"], "temperature": objective.temperature}
    return [*writes, Phase(f"{step.name} (rescore)", "student", online.rescored, arguments, static, beside), step]


def train(
    name: str,
    section: str,
    settings: ConfigDict,
    objective: Objective | OverOptions | OnPolicy,
    shape: DecoderConfig,
    mesh: Mesh,
    param_dtype: str,
) -> Phase:
    """One step of a training."""
    training = training_of(settings.training)
    device = device_shape(f"{section}.training.shape", settings.training.shape, mesh)
    params = params_of(shape, mesh, param_dtype)
    static = trainer.statics(compute_of(mesh, settings), shape, objective, training)
    learnt = jax.eval_shape(
        functools.partial(trainer.fresh, objective=objective, training=training), params, jax.random.key(0), jax.random.key(0)
    )
    state = trainer.TrainState(
        learnt, jax.eval_shape(functools.partial(trainer.moments, optimizer=training.optimizer, mesh=None), learnt)
    )
    if isinstance(objective, OnPolicy):
        shared = static["model"].attention in SEES_PREFIXES
        one, num_batches = online.vacant(objective, device, shared=shared), online.most_batches(objective, device)
    else:
        encode = (lambda question: ASKED) if isinstance(objective, OverOptions) else (lambda question, final: ([0], [0]))
        lesson_plan = trainer.planned(objective, LESSON, encode, device, jax.random.key(0), static["model"])
        one, num_batches = trainer.dated(objective, lesson_plan.batch(0), 0.0), training.accumulation
    batches = jax.tree.map(lambda x: np.broadcast_to(x, (num_batches, *x.shape)), one)
    arguments = (
        trainer.TrainState(placed(state.learnt, mesh), placed(state.moments, mesh)),
        params if static["adapters"] else {},
        split_rows(batches, mesh, axis=1),
        shaped((), jnp.float32),
    )
    # All parameters are trained in a copy: the model that training starts from stays loaded for the next method.
    return Phase(name, section, trainer.train_step, arguments, static, beside=None if static["adapters"] else params)


LESSON = Lesson((Question("q", "", "", ("",) * NUM_OPTIONS),), Answers(("q",), ("",), ("",)), np.ones(1, np.float32))
ASKED = Asked("q", [0], [[0]] * NUM_OPTIONS, [1] * NUM_OPTIONS)
"""Batches have one shape, whatever the lesson; over options, up to that many of them."""


# ---- Shapes and places -----------------------------------------------------------------------------------------------


def device_shape(path: str, section: ConfigDict, mesh: Mesh) -> Shape:
    """The device shape of a section.

    Raises:
        ValueError: its rows cannot be split over the mesh.
    """
    refuse_uneven(f"{path}.batch_rows", section.batch_rows, mesh)
    return Shape(**section)


def refuse_uneven(path: str, num_rows: int, mesh: Mesh) -> None:
    """Makes sure that rows can be split over the mesh."""
    if num_rows % (split := mesh.shape["data"] * mesh.shape["fsdp"]):
        raise ValueError(
            f"{path}={num_rows}: these rows cannot be split over data * fsdp = {split} devices; use a multiple of {split}, or "
            "another mesh"
        )


def params_of(shape: DecoderConfig, mesh: Mesh, dtype: str) -> Any:
    """A model's parameters, where the rules want them."""
    return placed(jax.tree.map(lambda x: shaped(x.shape, jnp.dtype(dtype)), decoder.shapes(shape)), mesh)


def placed(tree: Any, mesh: Mesh, whole_over: Sequence[str] = ()) -> Any:
    """Parameters, adapters or moments where the rules want them."""
    places = sharding.param_shardings(tree, mesh, whole_over)
    return jax.tree.map(lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), tree, places)


def split_rows(tree: Any, mesh: Mesh, axis: int = 0) -> Any:
    """Rows (along `axis`) split over the data and fsdp axes."""
    place = NamedSharding(mesh, PartitionSpec(*[None] * axis, *sharding.ROWS))
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), tree)


def shaped(lengths: tuple[int, ...], dtype) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(lengths, dtype)
