"""What a config says, as plain values, checked before anything is computed.

Config stops here, at the other files of this level, and at those just above it (WORKSPACE.md); what these call takes plain
keyword arguments.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from w2s_jax import certificate, plugins, selection
from w2s_jax.models import quantised, sharding
from w2s_jax.models.compute import DTYPES, Compute
from w2s_jax.packing import Shape
from w2s_jax.student import Objective, OnPolicy, OverOptions, online, sft, trainer
from w2s_jax.tasks import prompts
from w2s_jax.trust import Trust, artefact

VERSION = "1"
DRAWING = ("num_samples", "temperature", "top_k", "top_p", "min_p")  # how many answers a label takes is the teacher's affair
LABELS = ("each", "majority")  # every sample of the teacher is a label, or their majority is one


@dataclasses.dataclass(frozen=True)
class Row:
    """A method of the config, with its trust function's word and all its keywords filled in.

    Attributes:
        method: its id.
        trust, args: the trust function.
        labels: whose answers are taught, "weak" or "gold".
        everything: teach all answered questions, whatever the select section says.
        reused: folder of a fitted trust function to use instead of fitting one, or "".
        leads: whether the select section is for this row: the others then take as many labels as it does.
        flipped: fit it on the source's labels turned round, right for wrong: a control whose order should be the reverse.
        holds_back: whether it is fitted without the source questions that a certificate is made on.
        shots: demonstrations that the teacher is shown when it labels for this row; None = as its section says.
        relabel, relabel_args: what replaces the teacher's labels before any are selected ("" = nothing), and its keywords.
    """

    method: str
    trust: str
    args: Mapping[str, Any]
    labels: str
    everything: bool
    reused: str
    leads: bool
    flipped: bool = False
    holds_back: bool = False
    shots: int | None = None
    relabel: str = ""
    relabel_args: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset(self.asks)

    @property
    def asks(self) -> dict[str, dict[str, Any]]:
        return asks_of(plugins.make("trust", self.trust, **self.args))

    @property
    def matches(self) -> str:
        """The method whose selection this row's is matched to, or ""."""
        return next((name.removeprefix("selected/") for name in self.needs if name.startswith("selected/")), "")


def asks_of(trust: Trust) -> dict[str, dict[str, Any]]:
    """The evidence that a trust function needs, each with the keywords of its provider."""
    asks = getattr(trust, "asks", {})
    return {name: dict(asks.get(name, {})) for name in sorted(trust.needs)}


CHOICE_ONLY = {
    "option_logp": (
        "the probability of each option, and free answers have no options",
        "confidence, self_consistency or paraphrase",
    ),
}
FREE_ONLY = {
    "sample_share": (
        "further samples, and options are chosen in one pass that knows their probabilities",
        "entropy, margin or paraphrase",
    ),
    "vote_share": ("votes among samples, and options are chosen in one pass", "entropy, margin or paraphrase"),
}
"""Evidence that tasks of one interface alone can give: (what it is and why the other cannot, what to use there instead)."""


def refuse_rows(rows: Sequence[Row], interface: str) -> None:
    """Makes sure, before anything is computed, that a task can give what the rows' trust functions need.

    Raises:
        ValueError: see `refuse_missing_evidence`.
    """
    for row in rows:
        refuse_missing_evidence(f"method {row.method!r}: trust {row.trust!r}", row.needs, interface)


def refuse_missing_evidence(who: str, needs: Iterable[str], interface: str) -> None:
    """Makes sure that a task can give what a trust function needs.

    Raises:
        ValueError: it needs what tasks of this interface have not.
    """
    missing = FREE_ONLY if interface == "choice" else CHOICE_ONLY
    for name in sorted(set(needs) & set(missing)):
        why, instead = missing[name]
        raise ValueError(
            f"{who} needs {name!r}: {why}. This task's interface is {interface!r}; use {instead} instead, or take the method "
            "out of methods in the config"
        )


def refuse_choiceless(config: ConfigDict, interface: str) -> None:
    """Makes sure that there are options where the student's objective learns from them.

    Raises:
        ValueError: the task's answers are free.
    """
    if interface != "choice" and isinstance(objective_of(config), OverOptions):
        raise ValueError(
            f"student.objective={config.student.objective!r} learns from the options of a question, and this task's interface "
            f"is {interface!r}: set it to sft or grpo in the config"
        )


def objective_of(config: ConfigDict) -> Objective | OverOptions | OnPolicy:
    """How the student learns."""
    word = config.student.objective
    return plugins.make("objective", word, **keywords_of(config.student, word))


def check(config: ConfigDict, mesh: jax.sharding.Mesh | None = None) -> list[Row]:
    """The rows of the config's methods, once all that can be judged without data and weights has been.

    Args:
        config: of the run.
        mesh: the devices to run on, if not those that are here.

    Raises:
        ValueError: an unknown method, plug-in, keyword, rule or back end, or a number out of range.
    """
    if config.select.rule not in selection.RULES:
        raise ValueError(
            f"select.rule={config.select.rule!r}: allowed are {', '.join(selection.RULES)}; change it in the config"
        )
    if config.select.rule == "certified":
        terms_of(config.select)
    for name in ("seeds", "methods"):
        if not config[name] or len(set(config[name])) < len(config[name]):
            raise ValueError(
                f"{name}={config[name]!r}: allowed is a tuple of one or more, each once; change {name} in the config"
            )
    if not config.observe.layers:
        raise ValueError(
            "observe.layers=(): a trust function needs at least one layer; -1 is the last, change it in the config"
        )
    if config.teacher.label not in LABELS:
        raise ValueError(f"teacher.label={config.teacher.label!r}: allowed are {', '.join(LABELS)}; change it in the config")
    if config.teacher.label == "majority" and not (config.teacher.num_samples > 1 and config.teacher.temperature > 0):
        raise ValueError(
            f"teacher.label='majority' counts the answers of several samples, here are teacher.num_samples="
            f"{config.teacher.num_samples} at teacher.temperature={config.teacher.temperature}: set num_samples above 1 (40 "
            "is usual) and temperature above 0 (0.7), or label to 'each' in the config"
        )
    if not (0 < config.recover.alpha < 0.5 and config.recover.margin > 0):
        raise ValueError(
            f"recover.alpha={config.recover.alpha}, recover.margin={config.recover.margin}: allowed are an alpha between 0 and "
            "0.5 and a margin above 0; change them in the config"
        )
    objective = objective_of(config)
    if isinstance(objective, OnPolicy):
        online.refuse(training_of(config.student.training))
    if config.student.soft_labels and isinstance(objective, OnPolicy | sft.SFT):
        raise ValueError(
            f"student.soft_labels=True: objective {config.student.objective!r} learns from hard labels only; set "
            "student.objective to soft, auxiliary_confidence, adaptive, confidence_weighted or raven, or soft_labels to False"
        )
    plugins.resolve("task", config.tasks.name)
    mesh = mesh or sharding.make_mesh(**config.mesh)
    for section in (config.teacher, config.student, *config.pretrain.values()):
        compute_of(mesh, section)
        prompts.find_style(section.style)
    for who, section in (("teacher", config.teacher), ("student", config.student)):
        Shape(**section.shape)
        if section.param_dtype not in DTYPES:
            raise ValueError(
                f"{who}.param_dtype={section.param_dtype!r}: allowed are {', '.join(DTYPES)}; change it in the config"
            )
    training_of(config.student.training).refuse_narrow(config.student.param_dtype)
    if config.student.quantise:
        quantised.require(config.student.quantise)
        if not config.student.training.lora_rank:
            raise ValueError(
                f"student.quantise={config.student.quantise!r} is for a frozen base: set student.training.lora_rank above 0, "
                "or student.quantise to '' in the config"
            )
    for section in (config.student, *config.pretrain.values()):
        training_of(section.training)
        Shape(**section.training.shape)
    rows = [method_row(config, method) for method in config.methods]
    made = [row.method for row in rows if not row.matches]
    if lost := [row for row in rows if row.matches and row.matches not in made]:
        row = lost[0]
        raise ValueError(
            f"method {row.method!r} is matched to the selection of {row.matches!r}: allowed are {', '.join(made) or 'none'}; "
            f"add {row.matches!r} to methods, take {row.method!r} out, or change method.{row.method}.args.of in the config"
        )
    relabelled = {row.method for row in rows if row.relabel}
    if lost := [row for row in rows if row.matches in relabelled or (row.relabel and row.matches)]:
        raise ValueError(
            f"method {lost[0].method!r} is matched to the selection of {lost[0].matches!r}: allowed are rows whose labels are "
            f"the teacher's own (relabelled are {', '.join(sorted(relabelled))}); take it out of methods in the config"
        )
    if config.select.rule == "certified" and not any(row.leads for row in rows):
        raise ValueError(
            f"select.rule='certified' is for the row that uses trust.name, and methods={config.methods!r} has none: add 'ntf' "
            "to methods, or change select.rule in the config"
        )
    return rows


def method_row(config: ConfigDict, method: str) -> Row:
    """The row of a method; keywords of its own win over those of the trust function's section.

    Raises:
        ValueError: there is no such method, its trust function is unknown, or the one to reuse looks at other hidden states.
    """
    if method not in config.method:
        raise ValueError(
            f"method {method!r} is not in the config: allowed are {', '.join(config.method)}; change methods, or add a section "
            "under method"
        )
    section = config.method[method]
    if section.labels not in ("weak", "gold"):
        raise ValueError(f"method.{method}.labels={section.labels!r}: allowed are 'weak' and 'gold'; change it in the config")
    if section.relabel and section.labels == "gold":
        raise ValueError(
            f"method.{method}.relabel={section.relabel!r}: it replaces weak labels, and method.{method}.labels is 'gold'; set "
            "one of the two to its default in the config"
        )
    if section.shots < -1:
        raise ValueError(
            f"method.{method}.shots={section.shots}: allowed are 0 or more, and -1 for teacher.shots; change it in the config"
        )
    word = section.trust or config.trust.name
    args = {**keywords_of(config.trust, word), **section.args.to_dict()}
    reused = "" if section.trust else config.trust.from_
    if reused and config.select.rule == "certified":
        raise ValueError(
            f"trust.from_={reused!r}: select.rule='certified' holds back source questions before a trust function is fitted, "
            "and this one may have been fitted on them; set trust.from_='' or another select.rule in the config"
        )
    if reused:
        described = artefact.describe(reused)
        word, args = described["trust"], described["args"]
        refuse_other_features(described, config, reused)
    try:
        plugins.make("trust", word, **args)
    except ValueError as error:
        raise ValueError(f"method {method!r}: {error}") from None
    return Row(
        method,
        word,
        args,
        section.labels,
        section.everything,
        reused="" if section.flipped else reused,
        leads=not (section.trust or section.labels != "weak" or section.flipped or section.relabel),
        flipped=section.flipped,
        holds_back=not section.trust and config.select.rule == "certified",
        shots=None if section.shots < 0 else section.shots,
        relabel=section.relabel,
        relabel_args=keywords_of(config.relabel, section.relabel),
    )


def refuse_other_features(described: Mapping[str, Any], config: ConfigDict, folder: str) -> None:
    """A fitted trust function can only judge the hidden states that it was fitted on."""
    for name, now in (("layers", list(config.observe.layers)), ("token", config.observe.token)):
        if (then := described["about"][name]) != now:
            raise ValueError(f"{folder} was fitted with observe.{name}={then!r}, this config has {now!r}; set it to the former")


def spelled(config: ConfigDict, under: str = "") -> str:
    """Every key and its value, a line each, as a flag would set it.

    >>> print(spelled(ConfigDict({"name": "a", "select": {"n": 3}})))
    name='a'
    select.n=3
    """
    said = []
    for name in config:
        value = config[name]
        said.append(spelled(value, f"{under}{name}.") if isinstance(value, ConfigDict) else f"{under}{name}={value!r}")
    return "\n".join(filter(None, said))


def keywords_of(section: ConfigDict, word: str) -> dict[str, Any]:
    """A plug-in's keywords: the section of its own name, where there is one (a fork's own file has none)."""
    return section[word].to_dict() if word in section else {}


def terms_of(section: ConfigDict) -> certificate.Terms:
    """What the rule `certified` is to certify, from the select section."""
    return certificate.Terms(**{field.name: section[field.name] for field in dataclasses.fields(certificate.Terms)})


def student_as_teacher(config: ConfigDict) -> ConfigDict:
    """The config of a chain's later generations: a student teaches, and is asked and computed with as students are."""
    own = config.copy_and_resolve_references()
    for name in set(own.teacher) & set(own.student) - {"model", *DRAWING}:
        own.teacher[name] = own.student[name]
    return own


def uses_target_gold(rows: Sequence[Row]) -> frozenset[str]:
    """The methods whose student depends on the target's gold answers, also through another method's scores or selection."""
    marked = {row.method for row in rows if row.labels == "gold" or "correct" in row.needs}
    while True:
        given = {f"{of}/{method}" for of in ("score", "selected") for method in marked}
        more = {row.method for row in rows if given & row.needs} - marked
        if not more:
            return frozenset(marked)
        marked |= more


def compute_of(mesh: jax.sharding.Mesh, section: ConfigDict, dtype: str = "") -> Compute:
    """How the model of a section computes; in another format than the section's, if one is given."""
    return Compute(mesh, dtype or section.dtype, section.attention, section.remat)


def writing_of(section: ConfigDict, **instead: Any) -> dict[str, Any]:
    """How a model writes, as the section says, or as `instead` says."""
    given = {**section.to_dict(), **instead}
    drawing = {name: given[name] for name in ("temperature", "top_k", "top_p", "min_p")}
    names = ("num_samples", "max_new_tokens", "stop_texts", "num_slots", "decode_dtype")
    return {name: given[name] for name in names} | {"drawing": drawing}


def computing_of(config: ConfigDict, section: ConfigDict) -> dict[str, Any]:
    """What a store key must hold of how a model computes."""
    names = ("dtype", "param_dtype", "attention", "remat")
    return {**{name: section[name] for name in names}, "mesh": config.mesh.to_dict()}


def training_of(section: ConfigDict) -> trainer.Training:
    keywords = section.to_dict()
    keywords.pop("shape")
    return trainer.Training(**{**keywords, "optimizer": trainer.Optimizer(**keywords["optimizer"])})
