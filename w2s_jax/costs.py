"""What each method of a link costs: the operations that it asks models and its trust function for, as though it were run alone.

    answers    the teacher labels the target, and the source where the trust function is fitted on it
    states     the teacher's hidden states at these labels, where the trust function reads them: a pass of its own
    evidence   what else is asked for: samples, self-assessment, other models (`gathering`, `teachers`)
    own        what a relabeller has the untaught student do (`selective`)
    fitting    of the trust function on the source
    scoring    of the target's labels by it
    teaching   the student's training

In a run the methods share all but the last two: what several need is computed once, so a run costs less than its methods
together. Gold labels are taken as given: a row that is taught them on questions drawn at random needs no teacher. Models that
are trained from scratch, and the answers to test questions, are no method's.

Operations are those of matrix products, two for each multiplication, see `models.flops` for what is counted of a pass. Its
tokens are counted from what the stages stored, and by the tokenizers; nothing is run. A trust function says itself what it
takes (`trust.Operations`); fits of one number to one (Platt) are not counted. None = cannot be counted, `reasons` say why.

    formula = C_teacher (|D_l| + |D_u|) + C_NTF (e |D_l| + |D_u|)

is the paper's cost, with C_teacher the mean operations of the teacher for a row, C_NTF = 2n, |D_l| and |D_u| the rows of source
and target, e the passes over the source. It leaves out what O() does: the gradients, and the rows that are held back.

Source: arXiv 2606.01000 (the formula).
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from w2s_jax import features, gathering, plugins, selective, teachers
from w2s_jax.calibrating import hold_back
from w2s_jax.looking import Looked
from w2s_jax.models import flops, hf_io
from w2s_jax.models.attention import SEES_PREFIXES
from w2s_jax.models.config import DecoderConfig
from w2s_jax.models.flops import Load
from w2s_jax.models.tokenizer import Tokenizer
from w2s_jax.packing import Shape
from w2s_jax.pipeline import Choice, Linked
from w2s_jax.run import Model, Run, find_model
from w2s_jax.settings import Row, compute_of, objective_of, training_of
from w2s_jax.store import Stored
from w2s_jax.student import OnPolicy, OverOptions, online, trainer
from w2s_jax.tasks import assessing
from w2s_jax.tasks.asking import Asking
from w2s_jax.trust import NoProducts, Operations, Untaught, artefact, controls
from w2s_jax.types import Rollout

VERSION = "2"
PARTS = ("answers", "states", "evidence", "own", "fitting", "scoring", "teaching")
LENGTHS = "completion_tokens"  # what is logged of a round: the mean tokens of its answers
UNLOGGED = {  # what becomes of groups whose answers are all worth the same
    "resample": "how many answers were written in place of others is not logged",
    "mask": "which passes were spared the groups whose answers are all worth the same is not logged",
}
Written = Mapping[str, Mapping[str, Sequence[tuple[int, float]]]]
"""Artefact of a student -> name -> (step, value), as logged while it was taught."""


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of one method; operations, None = cannot be counted.

    Attributes:
        method, generation, seed: whose.
        answers, states, evidence, own, fitting, scoring, teaching: see the module.
        source_rows, target_rows: |D_l| and |D_u|, labels of the teacher that this method needs.
        weights, epochs: n and e of a neural head, of all members of an ensemble; None where there is none.
        reasons: what cannot be counted, and why.
    """

    method: str
    generation: int
    seed: int
    answers: float | None = 0.0
    states: float | None = 0.0
    evidence: float | None = 0.0
    own: float | None = 0.0
    fitting: float | None = 0.0
    scoring: float | None = 0.0
    teaching: float | None = 0.0
    source_rows: int = 0
    target_rows: int = 0
    weights: int | None = None
    epochs: int | None = None
    reasons: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether `total` is all; otherwise it is all that can be counted."""
        return not self.reasons

    @property
    def total(self) -> float:
        return sum(getattr(self, part) or 0.0 for part in PARTS)

    @property
    def teacher(self) -> float | None:
        return None if self.answers is None or self.states is None else self.answers + self.states

    @property
    def trust(self) -> float | None:
        return None if self.fitting is None or self.scoring is None else self.fitting + self.scoring

    @property
    def trust_frac(self) -> float | None:
        """Trust's share of the whole."""
        return self.trust / self.total if self.trust is not None and self.complete and self.total else None

    @property
    def above_teaching(self) -> float | None:
        """The whole, in trainings of the student."""
        return self.total / self.teaching if self.teaching and self.complete else None

    @property
    def per_row(self) -> float | None:
        """C_teacher."""
        rows = self.source_rows + self.target_rows
        return self.teacher / rows if self.teacher is not None and rows else None

    @property
    def paper_trust(self) -> float | None:
        """The second term of the formula."""
        if self.weights is None or self.epochs is None:
            return None
        return 2.0 * self.weights * (self.epochs * self.source_rows + self.target_rows)

    @property
    def formula(self) -> float | None:
        return None if self.paper_trust is None or self.teacher is None else self.teacher + self.paper_trust

    @property
    def formula_frac(self) -> float | None:
        """Trust's share by the formula."""
        return self.paper_trust / self.formula if self.formula and self.paper_trust is not None else None

    @property
    def counted_frac(self) -> float | None:
        """Trust's share of what the formula speaks of, as it was counted."""
        if self.teacher is None or self.trust is None or not self.teacher + self.trust:
            return None
        return self.trust / (self.teacher + self.trust)


@dataclasses.dataclass(frozen=True)
class Costs:
    """Of all methods, links and seeds of a run; `notes` say what could not be counted at all."""

    rows: tuple[Cost, ...] = ()
    notes: tuple[str, ...] = ()

    def __add__(self, other: "Costs") -> "Costs":
        return Costs(self.rows + other.rows, tuple(dict.fromkeys(self.notes + other.notes)))


def beside(one: Cost, other: Cost | None) -> float | None:
    """How many times another method's whole cost one is."""
    return one.total / other.total if other and other.total and other.complete and one.complete else None


def count(
    run: Run, teacher: Model, student: Model, linked: Linked, *, generation: int = 0, written: Written | None = None
) -> Costs:
    """The costs of all methods of a link.

    Args:
        run: config, seed, store.
        teacher, student: the link's models.
        linked: what it left.
        generation: place in a chain.
        written: how long a student's answers were while it learnt from them; where nothing is logged this is not counted.
    """
    if not linked.choices:
        return Costs()
    try:
        return Costs(tuple(_stored(run, teacher, student, linked, generation, written or {})))
    except ValueError as error:  # what was taught and scored is told whatever becomes of this
        return Costs(notes=(f"what the methods cost was not counted: {error}",))


def _stored(run: Run, teacher: Model, student: Model, linked: Linked, generation: int, written: Written) -> list[Cost]:
    choices = linked.choices
    asked = {method: passes(run, teacher, student, one) for method, one in choices.items()}
    curves = {method: list(written.get(one.taught.path.name, {}).get(LENGTHS, ())) for method, one in choices.items()}

    def fn(work, **inputs):
        known: dict[Pass, float] = {}
        found: dict[str, Cost] = {}
        for method, one in choices.items():
            trusted = trusting(run, one, linked.fitted[method])
            begun = Cost(method, generation, run.seed, **trusted)
            for each in asked[method]:
                begun = added(begun, each, known)
            found[method] = taught(run, student, one, begun, curves[method])
        return [dataclasses.asdict(followed(method, found, choices)) for method in choices]

    stored = run.stage(
        "cost",
        fn,
        code=("w2s_jax.costs",),
        label="count costs",
        alone=True,
        teacher=teacher.ref,
        student=student.ref,
        rows=[dataclasses.asdict(one.row) | {"needs": sorted(one.row.needs)} for one in choices.values()],
        fitted={method: linked.fitted[method] for method in choices},
        scores={method: linked.scores[method] for method in choices},
        offered={method: one.offer.stored for method, one in choices.items()},
        observed={method: (one.seen.labelled.observed, one.seen.unlabelled.observed) for method, one in choices.items()},
        taught={method: one.taught for method, one in choices.items()},
        parents={method: [each.answered for each in asked[method]] for method in choices},
        written=curves,
        generation=generation,
        seed=run.seed,
    )
    return [Cost(**fields) for fields in stored.value]


# ---- What models are asked for ---------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Pass:
    """Something that a model is asked for.

    Attributes:
        part: of the cost.
        about: what it is, in words; passes of one model that are about the same are the same.
        model: who is asked.
        answered: the stored answers that it is counted from, or that it is about.
        load: what the model has to do, from its shape and its tokenizer; None = that is not stored.
        reason: why something is not counted, "" = all is.
        classifier: whether it is a sequence classifier.
    """

    part: str
    about: str
    model: Model
    answered: Stored
    load: Callable[[DecoderConfig, Tokenizer], Load] | None = dataclasses.field(compare=False)
    reason: str = dataclasses.field(default="", compare=False)
    classifier: bool = False


def added(cost: Cost, one: Pass, known: dict[Pass, float]) -> Cost:
    """A cost with a pass more; `known` remembers those that methods share."""
    if one.reason:
        cost = dataclasses.replace(cost, reasons=tuple(dict.fromkeys((*cost.reasons, one.reason))))
    before = getattr(cost, one.part)
    if one.load is None:
        return dataclasses.replace(cost, **{one.part: None})
    if one not in known:
        config = hf_io.read_classifier_config(one.model.folder) if one.classifier else hf_io.read_config(one.model.folder)
        known[one] = flops.forward(config, one.load(config, tokenizer_of(one.model, config)))
    return cost if before is None else dataclasses.replace(cost, **{one.part: before + known[one]})


def tokenizer_of(model: Model, config: DecoderConfig) -> Tokenizer:
    return hf_io.read_tokenizer(epath.Path(model.folder), config)


def passes(run: Run, teacher: Model, student: Model, one: Choice) -> list[Pass]:
    """All that a method asks models for before its student is taught, but for what it takes from another method."""
    row, seen = one.row, one.seen
    source, states = reads(row)
    if needs_no_teacher(row):
        return []
    judged = [seen.unlabelled, seen.labelled] if source else [seen.unlabelled]
    labelled = [seen.unlabelled, seen.labelled] if source or row.relabel else [seen.unlabelled]
    found = [own_answer(run, teacher, looked) for looked in labelled]
    if states:
        found += [observation("states", teacher, looked.answered, run.config.observe.token) for looked in judged]
    for name, keywords in row.asks.items():
        if name in EVIDENCE:
            found += [each for looked in judged for each in EVIDENCE[name](run, teacher, looked, **keywords)]
        elif name in gathering.PROVIDERS:
            reason = f"what the evidence {name!r} asks models for is not known here"
            found.append(Pass("evidence", name, teacher, seen.unlabelled.answered, None, reason))
    if row.relabel in RELABELLED:
        found += RELABELLED[row.relabel](run, teacher, student, one)
    elif row.relabel:
        reason = f"what the relabeller {row.relabel!r} asks models for is not known here"
        found.append(Pass("evidence", "relabel", teacher, seen.unlabelled.answered, None, reason))
    return found


def reads(row: Row) -> tuple[bool, bool]:
    """Whether a row's trust function is given the source too, and whether it reads hidden states; a fork's own does both.

    A constant orders nothing, whatever the source says: it counts as one that is not fitted.
    """
    function = plugins.make("trust", row.trust, **row.args)
    untaught = isinstance(function, Untaught | controls.Random | controls.Constant | controls.Oracle)
    fitted = not (untaught or row.reused)
    return fitted or row.holds_back, not isinstance(function, NoProducts)


def needs_no_teacher(row: Row) -> bool:
    """Gold labels of questions that are drawn at random."""
    return row.labels == "gold" and not row.asks and not any(reads(row))


def own_answer(run: Run, teacher: Model, looked: Looked) -> Pass:
    """The teacher's labels of a role."""
    section = run.config.teacher
    if run.task.interface == "free" and section.label == "majority" and section.num_samples > 1:
        reason = "of the samples that a majority was made of only one is stored, so the teacher's answers are not counted"
        return Pass("answers", "answers", teacher, looked.answered, None, reason)
    return answering(run, "answers", teacher, looked, looked.answered, "teacher")


def answering(run: Run, part: str, model: Model, looked: Looked, answered: Stored, who: str) -> Pass:
    """Answers to the questions of a role; `who` is the config section that says how it was asked."""
    if run.task.interface == "free":
        return Pass(part, "answers", model, answered, lambda *_: wrote(answered.value["rollout"], len(looked.questions)))

    def load(config: DecoderConfig, tokenizer: Tokenizer) -> Load:
        options = asking(run, who, config, tokenizer, looked).option_lengths(looked.questions)
        return chose(answered.value["rollout"].prompt.length, options)

    return Pass(part, "answers", model, answered, load)


def asking(run: Run, who: str, config: DecoderConfig, tokenizer: Tokenizer, looked: Looked) -> Asking:
    section = run.config[who]
    return Asking(tokenizer, style=section.style, chat=section.chat, context=config.max_position, demonstrations=looked.shown)


def chose(prompt: Sequence[int] | np.ndarray, options: Sequence[Sequence[int]]) -> Load:
    """Options are chosen among as `choosing.choose` does; tokens of each question's prompt, and of its candidates.

    >>> chose([3], [[1, 1]]), chose([3], [[1, 2]])
    (Load(tokens=3, pairs=9, logits=1), Load(tokens=9, pairs=41, logits=3))
    """
    if all(length == 1 for lengths in options for length in lengths):
        return flops.reading(np.asarray(prompt), logits=len(options))
    whole = [before + length for before, lengths in zip(prompt, options, strict=True) for length in lengths]
    return flops.reading(np.array(whole), logits=sum(map(sum, options)))


def wrote(rollout: Rollout, num_questions: int) -> Load:
    """Free answers are written as `sampling.generate` does: each prompt is read once for all samples of it."""
    prompt, completion = rollout.prompt.length, rollout.completion.length
    each = len(prompt) // max(num_questions, 1)
    return flops.reading(prompt[::each]) + flops.writing(prompt, completion)


def observation(part: str, model: Model, answered: Stored, token: str) -> Pass:
    """Hidden states at what a model answered."""

    def load(config: DecoderConfig, tokenizer: Tokenizer) -> Load:
        return flops.reading(features.sequences(answered.value["rollout"], token, tokenizer.stop_ids)[0].length)

    return Pass(part, f"states at {token}", model, answered, load)


# ---- Further evidence, by the name that trust functions ask for ----------------------------------------------------------


def assessed(name: str, wording: Callable) -> Callable[..., list[Pass]]:
    """The teacher about its own answers."""

    def asked(run: Run, teacher: Model, looked: Looked) -> list[Pass]:
        def load(config: DecoderConfig, tokenizer: Tokenizer) -> Load:
            ask = Asking(tokenizer, style="letter", chat=run.config.teacher.chat, context=config.max_position).ask
            asked = [ask(question) for question in gathering.questions_about(looked, wording).values()]
            return chose([len(one.prompt) for one in asked], [list(map(len, one.candidates)) for one in asked])

        return [Pass("evidence", name, teacher, looked.answered, load)]

    return asked


def sampled(run: Run, teacher: Model, looked: Looked, **writing: Any) -> list[Pass]:
    drawn = gathering.sample(run, teacher, looked, **writing)
    return [answering(run, "evidence", teacher, looked, drawn, "teacher")]


def reworded(run: Run, teacher: Model, looked: Looked, **asked: Any) -> list[Pass]:
    said = gathering.in_wordings(run, teacher, looked, **asked)
    return [answering(run, "evidence", teacher, looked, one, "teacher") for one in said]


def agreed(run: Run, teacher: Model, looked: Looked, *, models: Sequence[str]) -> list[Pass]:
    members = gathering.committee(run, models=models)
    return [
        answering(run, "evidence", member, looked, gathering.ask_member(run, member, looked), "teacher") for member in members
    ]


def judged(name: str) -> Callable[..., list[Pass]]:
    """Another model reads the answers: a classifier their last token, any other the probabilities of their tokens."""

    def asked(run: Run, teacher: Model, looked: Looked, *, model: str, style: str, chat: bool) -> list[Pass]:
        judge = gathering.find_classifier(run, model=model) if name == "reward" else find_model(run, model)

        def load(config: DecoderConfig, tokenizer: Tokenizer) -> Load:
            reading = Asking(tokenizer, style=style or run.config.teacher.style, chat=chat, context=config.max_position)
            replies = gathering.replies_of(looked, reading)
            length = np.array([len(prompt) + len(answer) for prompt, answer in replies], np.int64)
            return flops.reading(length, logits=0 if name == "reward" else sum(len(answer) for _, answer in replies))

        about = f"{name} {style} {chat}"
        return [Pass("evidence", about, judge, looked.answered, load, classifier=name == "reward")]

    return asked


EVIDENCE: Mapping[str, Callable[..., list[Pass]]] = {
    "p_true": assessed("p_true", assessing.is_true),
    "verbalised": assessed("verbalised", assessing.how_sure),
    "sample_share": sampled,
    "paraphrase_share": reworded,
    "committee_share": agreed,
    "reward": judged("reward"),
    "likelihood": judged("likelihood"),
}
"""Name of the evidence, as in `gathering.PROVIDERS` -> (run, teacher, role, **keywords) -> the passes that it takes."""


# ---- Relabellers -----------------------------------------------------------------------------------------------------


def by_student(run: Run, teacher: Model, student: Model, one: Choice) -> list[Pass]:
    """What the untaught student does for the selective ones."""
    how = one.row.relabel_args
    roles = selective.ask_student(run, one.seen, student, one.shown, how["layers"])
    found = [answering(run, "own", student, looked, looked.answered, "student") for looked in roles]
    found += [observation("own", student, looked.answered, "prompt") for looked in roles]
    if run.task.interface == "free" and how.get("num_samples"):
        drawn = selective.sample(run, student, roles[0], how["num_samples"])
        found.append(answering(run, "own", student, roles[0], drawn, "student"))
    if how.get("nodes") == "option":
        found += [options(run, student, looked) for looked in roles]
    reason = "regressions and graphs of the relabeller are not counted, only the student's passes"
    return [*found, Pass("own", "on the host", student, roles[0].answered, lambda *_: Load(), reason)]


def options(run: Run, student: Model, looked: Looked) -> Pass:
    """The student's hidden states behind each option."""

    def load(config: DecoderConfig, tokenizer: Tokenizer) -> Load:
        rollout = selective.with_options(looked.questions, asking(run, "student", config, tokenizer, looked))
        return flops.reading(features.sequences(rollout, "content", tokenizer.stop_ids)[0].length)

    return Pass("own", "states at options", student, looked.answered, load)


def by_teachers(run: Run, teacher: Model, student: Model, one: Choice) -> list[Pass]:
    """What further teachers are asked, and the teacher itself where it had given several answers."""
    models = one.row.relabel_args["models"]
    first, *others = teachers.hear(run, teacher, one.seen, models)
    voices = list(zip(gathering.committee(run, models=models), others, strict=True))
    if first.target.key != one.seen.unlabelled.answered.key:
        voices.append((teacher, first))
    return [
        answering(run, "evidence", model, looked, answered, "teacher")
        for model, voice in voices
        for looked, answered in ((one.seen.labelled, voice.source), (one.seen.unlabelled, voice.target))
    ]


RELABELLED: Mapping[str, Callable[..., list[Pass]]] = {
    **dict.fromkeys(("self_known", "smoothed", "selective"), by_student),
    **dict.fromkeys(("boosted", "committee_vote", "experts"), by_teachers),
}
"""Config word, as in `relabelling.RELABELLERS` -> (run, teacher, student, choice) -> the passes that it takes."""


# ---- Trust -----------------------------------------------------------------------------------------------------------


def trusting(run: Run, one: Choice, fitted: Stored) -> dict[str, Any]:
    """The fields of a cost that a method's trust function settles: rows, fitting, scoring, its head."""
    row, seen = one.row, one.seen
    if needs_no_teacher(row):
        return {}
    function, _ = artefact.read(fitted.path / "trust")
    num_target, num_source = len(seen.unlabelled.answers), len(seen.labelled.answers)
    rows = {"target_rows": num_target, "source_rows": num_source if reads(row)[0] or row.relabel else 0}
    held = np.zeros(num_source, bool)
    if row.holds_back:
        held = hold_back(run, seen.labelled, seen.correct, seen.labelled.questions, one.target).held
    scored = num_target + int(held.sum())  # a certificate is made on the rows held back
    told = Operations(None, None, reason=f"what the trust function {row.trust!r} computes is not known here")
    if hasattr(function, "operations"):
        fitted_on = [i for i, left_out in zip(seen.labelled.answers.question_id, held, strict=True) if not left_out]
        told = function.operations(fitted_on, run.key("calibrate"))
    if row.reused:
        said = "its trust function was fitted in another run"
        told = dataclasses.replace(told, fitting=None, epochs=None, reason="; ".join(filter(None, (told.reason, said))))
    scoring = None if told.scoring is None else told.scoring * scored
    reasons = (told.reason,) if told.reason else ()
    return rows | {
        "fitting": told.fitting,
        "scoring": scoring,
        "weights": told.weights,
        "epochs": told.epochs,
        "reasons": reasons,
    }


def followed(method: str, found: Mapping[str, Cost], choices: Mapping[str, Choice]) -> Cost:
    """A method's cost with that of the one whose scores or selection it is given, but for its teaching."""
    cost = found[method]
    for need in sorted(choices[method].row.needs):
        kind, _, other = need.partition("/")
        if kind in ("score", "selected") and other in found:
            given = followed(other, found, choices)
            reasons = tuple(dict.fromkeys((*given.reasons, *cost.reasons)))
            return dataclasses.replace(given, method=method, teaching=cost.teaching, reasons=reasons)
    return cost


# ---- Teaching --------------------------------------------------------------------------------------------------------


def taught(run: Run, student: Model, one: Choice, cost: Cost, curve: Sequence[tuple[int, float]]) -> Cost:
    """A cost with the student's training."""
    section = run.config.student
    training, objective = training_of(section.training), objective_of(run.config)
    config = hf_io.read_config(student.folder)
    asked = Asking(
        tokenizer_of(student, config),
        style=section.style,
        chat=section.chat,
        context=config.max_position,
        demonstrations=one.shown,
    )
    model = compute_of(run.mesh, section).model(config)
    adapters: dict[str, Any] = {"rank": training.lora_rank, "targets": training.lora_targets}
    if not isinstance(objective, OnPolicy):
        encode = asked.ask if isinstance(objective, OverOptions) else asked.answer
        key = jax.random.split(run.key("teach"), 3)[2]
        plan = trainer.planned(objective, one.lesson, encode, Shape(**section.training.shape), key, model)
        num_batches = trainer.steps_of(plan, training) * training.accumulation
        load = sum((flops.learning(plan.batch(index)) for index in range(num_batches)), Load())
        return dataclasses.replace(cost, teaching=flops.training(config, load, **adapters))

    def unknown(reason: str) -> Cost:
        return dataclasses.replace(cost, teaching=None, reasons=(*cost.reasons, reason))

    asked_of = np.flatnonzero(np.asarray(one.lesson.weight) > 0)
    num_asked, num_rounds = online.rounds_of(objective, training, len(asked_of))
    if objective.zero_variance in UNLOGGED:
        return unknown(UNLOGGED[objective.zero_variance])
    if len(curve) != num_rounds:
        return unknown("how long the student's answers were while it learnt is not logged in this workdir")
    prompt = np.array([len(asked.ask(one.lesson.questions[k]).prompt) for k in asked_of], np.float64)
    total = 0.0
    for _, mean in curve:
        write, learn = round_of(prompt, mean, num_asked, objective.group_size, shared=model.attention in SEES_PREFIXES)
        total += flops.forward(config, write, **adapters)
        total += objective.inner_steps * flops.training(config, learn, **adapters)
        if objective.inner_steps > 1:
            total += flops.forward(config, learn, **adapters)  # log-probabilities before the round's steps
        if objective.beta:
            total += flops.forward(config, learn)  # and under the reference
    return dataclasses.replace(cost, teaching=total)


def round_of(prompt: np.ndarray, answer: float, num_asked: int, group_size: int, *, shared: bool) -> tuple[Load, Load]:
    """What is written and what is learnt from in a round, at the mean over the questions and the mean length of the answers.

    Args:
        prompt: f64[K], tokens of the lesson's prompts, of which a round asks `num_asked` at random.
        answer: mean tokens of an answer.
        num_asked, group_size: questions of a round, answers to each.
        shared: whether answers share one copy of their prompt; a group that a device row cuts reads it more often, which is
            left out.
    """
    share, length = num_asked / len(prompt), np.full(len(prompt), answer)
    write = (flops.writing(prompt, length) * group_size + Load(prompt.sum(), (prompt**2).sum())) * share
    if shared:  # a prompt's last token opens each answer
        stem, branch = prompt - 1, length + 1
        learn = Load(stem.sum(), (stem**2).sum())
        learn += Load(branch.sum(), (branch * (stem + branch)).sum(), length.sum()) * group_size
    else:
        whole = prompt + length
        learn = Load(whole.sum(), (whole**2).sum(), length.sum()) * group_size
    return write, learn * share
