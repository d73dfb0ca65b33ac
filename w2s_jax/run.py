"""What all stages of a run share: its config and seed, its store, its keys, its task and its models.

Models are found by a config word, or trained from scratch (stage pretrain); they are loaded when a stage needs them.
"""

import dataclasses
import functools
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from w2s_jax import files, plugins
from w2s_jax.models import hf_io, hub, lora, peft_io, sharding
from w2s_jax.packing import Shape
from w2s_jax.pretrain import pretrain
from w2s_jax.settings import compute_of, training_of
from w2s_jax.store import Ref, Store, Stored
from w2s_jax.tasks import Task
from w2s_jax.tasks.roles import refuse_overlap
from w2s_jax.types import LM

VERSION = "1"
ROLES = ("source", "target", "test")
Log = Callable[[str, str, int, Mapping[str, float]], None]
"""Takes (stage label, name of the artefact that is being made, step, metrics)."""


@dataclasses.dataclass(frozen=True)
class Model:
    """A language model that has not been loaded.

    Attributes:
        name: what the tables call it.
        folder: its Hugging Face directory.
        key: its content key.
        hub_id: where the folder is the local copy of one.
        adapter: PEFT directory of an adapter that is merged into it on load, or "".
    """

    name: str
    folder: str
    key: str
    hub_id: str = ""
    adapter: str = ""

    @property
    def ref(self) -> Ref:
        return Ref(self, self.key)


@dataclasses.dataclass(frozen=True)
class Run:
    """What all stages of a run share.

    Attributes:
        config: see `experiments/configs/base.py`.
        seed: of this run.
        store: where artefacts go.
        log: receives training metrics.
        prefix: before every label, such as "seed 3 ", where several runs share a workdir.
        loaded: the model in memory, see `load`.
    """

    config: ConfigDict
    seed: int
    store: Store
    log: Log
    prefix: str = ""
    loaded: dict[tuple[Model, str, str], Any] = dataclasses.field(default_factory=dict, compare=False)

    def stage(self, name: str, fn: Callable[..., Any], /, *, label: str, **inputs: Any) -> Stored:
        """`Store.stage` under this run's label."""
        return self.store.stage(name, fn, label=self.prefix + label, **inputs)

    def load(self, model: Model, param_dtype: str, quantise: str = "") -> LM:
        """The model itself, on the mesh, its parameters in that format; the last one stays loaded, two never are."""
        return self._hold((model, param_dtype, quantise), lambda: self._read(model, param_dtype, quantise))

    def load_classifier(self, model: Model, param_dtype: str) -> tuple[LM, np.ndarray]:
        """A sequence classifier's decoder and head, likewise."""

        def read() -> tuple[LM, np.ndarray]:
            return hf_io.load_classifier(model.folder, mesh=self.mesh, dtype=param_dtype, key=model.key)

        return self._hold((model, param_dtype, "classifier"), read)

    def let_go(self, models: Iterable[Model]) -> None:
        """Frees the memory of these models, of those that are loaded."""
        for known in [known for known in self.loaded if known[0] in models]:
            del self.loaded[known]

    def _hold(self, known: tuple[Model, str, str], read: Callable[[], Any]) -> Any:
        if known not in self.loaded:
            self.loaded.clear()
            self.loaded[known] = read()
        return self.loaded[known]

    def _read(self, model: Model, param_dtype: str, quantise: str) -> LM:
        lm = hf_io.load(model.folder, mesh=self.mesh, dtype=param_dtype, quantise=quantise, key=model.key)
        if model.adapter:
            adapters = peft_io.load(model.adapter, lm.config, mesh=self.mesh, base=model.folder)
            lm = dataclasses.replace(lm, params=lora.merge(lm.params, adapters))
        return lm

    def key(self, purpose: str) -> jax.Array:
        """The random key of a purpose; the same in all methods, so that they differ in their lessons alone."""
        return jax.random.fold_in(jax.random.key(self.seed), zlib.crc32(purpose.encode()))

    def at(self, place: str, config: ConfigDict) -> "Run":
        """The same run at a place of its own, with other sections than those of the task and the mesh changed."""
        there = dataclasses.replace(self, config=config, prefix=f"{self.prefix}{place} ")
        there.__dict__.update(task=self.task, mesh=self.mesh)  # where cached properties keep them: not read a second time
        return there

    @functools.cached_property
    def mesh(self) -> jax.sharding.Mesh:
        return sharding.make_mesh(**self.config.mesh)

    @property
    def judged_by(self) -> dict[str, Any]:
        """What a stage that grades answers takes as an input beside the task's code: the packages that its `agree` goes by."""
        versions = self.task.judged_by() if hasattr(self.task, "judged_by") else {}
        return {"judged_by": versions} if versions else {}

    @functools.cached_property
    def task(self) -> Task:
        keywords = dict(self.config.tasks)
        return plugins.make("task", keywords.pop("name"), seed=self.seed, **keywords)


def find_model(run: Run, word: str) -> Model:
    """The model of a config word: "pretrain:<section>", a local directory, or a hub id; of a model, or of a PEFT adapter.

    Raises:
        ValueError: no such section or directory, the hub cannot be reached, or the directory holds no model that is read.
    """
    kind, _, name = word.partition(":")
    if kind == "pretrain":
        return pretrained(run, name)
    folder = hub.local_folder(word)
    name = word.rstrip("/").rpartition("/")[2]
    if peft_io.is_adapter(folder):
        return adapted(run, name, folder)
    hf_io.check(folder)  # a student is loaded hours later: what is wrong with it is said now
    return Model(name, folder, run.store.content_key(folder), hub_id="" if folder == word else word)


def adapted(run: Run, name: str, folder: str) -> Model:
    """The model of an adapter directory: the base model that it names, and the adapter."""
    try:
        base = find_model(run, peft_io.base_of(folder))
        if base.adapter:
            raise ValueError(f"{base.adapter} is an adapter itself; merge the two with PEFT (merge_and_unload)")
    except ValueError as error:
        file = epath.Path(folder) / peft_io.CONFIG
        raise ValueError(f"{error}\n(this is the base_model_name_or_path of {file}: correct it there)") from None
    peft_io.check(folder, hf_io.read_config(base.folder), base.folder)
    parts = [run.store.content_key(epath.Path(folder) / file) for file in (peft_io.CONFIG, peft_io.WEIGHTS)]
    return Model(name, base.folder, files.digest([base.key, *parts]), adapter=folder)


def pretrained(run: Run, name: str) -> Model:
    """Trains a model of one's own from the task's corpus that its section names."""
    if name not in run.config.pretrain:
        known = ", ".join(run.config.pretrain) or "none"
        raise ValueError(f"model 'pretrain:{name}': the config's pretrain sections are {known}; name one of them")
    section = run.config.pretrain[name]
    if not hasattr(run.task, "corpus"):
        raise ValueError(
            f"task {run.config.tasks.name!r} has no corpus to pretrain on: set teacher.model and student.model to local "
            "directories or hub ids in the config"
        )
    questions, finals = run.task.corpus(section.corpus)
    for role in ROLES:
        refuse_overlap(**{f"corpus {section.corpus!r}": questions, role: run.task.questions(role)})
    label = f"pretrain {name}"

    def fn(work, **inputs):
        lm = pretrain(
            questions,
            finals,
            run.task.vocabulary(),
            plugins.make("objective", "sft"),
            decoder_kw=section.decoder.to_dict(),
            style=section.style,
            training=training_of(section.training),
            shape=Shape(**section.training.shape),
            compute=compute_of(run.mesh, section),
            key=run.key(label),
            partial=work.partial,
            log=functools.partial(run.log, run.prefix + label, work.out.name),
            label=label,
        )
        hf_io.save(lm, work.out / "model")

    stored = run.stage(
        "pretrain",
        fn,
        code=("w2s_jax.pretrain", "w2s_jax.models.hf_io", *plugins.source_words("objective", "sft")),
        label=label,
        section=section.to_dict(),
        mesh=run.config.mesh.to_dict(),
        seed=run.seed,
        name=name,
        questions=questions,
        finals=finals,
        vocabulary=run.task.vocabulary(),
    )
    return Model(name, str(stored.path / "model"), stored.key)
