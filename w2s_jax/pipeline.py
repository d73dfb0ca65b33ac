"""One link: one teacher, one student, every method. The story of the project, stage by stage, and its gold door.

    ask -> answer -> observe -> calibrate -> trust -> select -> teach -> score -> recover -> audit

This is the only file that calls `Task.gold`; it and `settings` are the only ones that read a config: what they call takes plain
keyword arguments.
Gold answers of the target reach a stage before the student only in rows that say so (`labels="gold"`, or the oracle); the
report marks them. Every stage goes through the store, so that methods share what they have in common.

Source: arXiv 2606.01000.
"""

import dataclasses
import functools
import hashlib
import inspect
import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from w2s_jax import answering, features, files, metrics, plugins, processes, recovery, scoring, selection
from w2s_jax.drawing import Drawing
from w2s_jax.models import hf_io, hub, lora, peft_io, sharding
from w2s_jax.packing import Shape
from w2s_jax.pretrain import pretrain
from w2s_jax.settings import (
    Row,
    check,
    compute_of,
    computing_of,
    keywords_of,
    refuse_other_features,
    training_of,
    uses_target_gold,
    writing_of,
)
from w2s_jax.store import Ref, Store, Stored
from w2s_jax.student import OnPolicy, online, rewards, trainer
from w2s_jax.tasks import Task
from w2s_jax.tasks.asking import Asking
from w2s_jax.tasks.roles import Demonstrations, demonstrate, leave_out, refuse_overlap, refuse_repeats
from w2s_jax.trust import artefact
from w2s_jax.types import LM, Answers, Audit, Evidence, Gold, Lesson, Question, Score, Selection

VERSION = "2"
ROLES = ("source", "target", "test")
COMPLETIONS = "completions.json"  # beside a student that learnt from what it wrote
Log = Callable[[str, int, Mapping[str, float]], None]
"""Takes (stage label, step, metrics)."""


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
    loaded: dict[tuple[Model, str, str], LM] = dataclasses.field(default_factory=dict, compare=False)

    def stage(self, name: str, fn: Callable[..., Any], /, *, label: str, **inputs: Any) -> Stored:
        """`Store.stage` under this run's label."""
        return self.store.stage(name, fn, label=self.prefix + label, **inputs)

    def load(self, model: Model, param_dtype: str, quantise: str = "") -> LM:
        """The model itself, on the mesh, its parameters in that format; the last one stays loaded, two never are."""
        if (model, param_dtype, quantise) not in self.loaded:
            self.loaded.clear()
            lm = hf_io.load(model.folder, mesh=self.mesh, dtype=param_dtype, quantise=quantise, key=model.key)
            if model.adapter:
                adapters = peft_io.load(model.adapter, lm.config, mesh=self.mesh, base=model.folder)
                lm = dataclasses.replace(lm, params=lora.merge(lm.params, adapters))
            self.loaded[model, param_dtype, quantise] = lm
        return self.loaded[model, param_dtype, quantise]

    def key(self, purpose: str) -> jax.Array:
        """The random key of a purpose; the same in all methods, so that they differ in their lessons alone."""
        return jax.random.fold_in(jax.random.key(self.seed), zlib.crc32(purpose.encode()))

    @functools.cached_property
    def mesh(self) -> jax.sharding.Mesh:
        return sharding.make_mesh(**self.config.mesh)

    @functools.cached_property
    def task(self) -> Task:
        keywords = dict(self.config.tasks)
        return plugins.make("task", keywords.pop("name"), seed=self.seed, **keywords)


@dataclasses.dataclass(frozen=True)
class Looked:
    """A teacher's answers to a role and its hidden states at them; the stages after it read both as `Evidence`."""

    answered: Stored
    observed: Stored

    @property
    def answers(self) -> Answers:
        return self.answered.value["answers"]

    @property
    def extra(self) -> Mapping[str, np.ndarray]:
        return self.answered.value["extra"]

    def evidence(self, given: Mapping[str, np.ndarray] | None = None) -> Evidence:
        x = np.load(self.observed.path / "x.npy", mmap_mode="r", allow_pickle=False)
        return Evidence(self.answers, x, {**self.extra, **(given or {})})


# ---- The link --------------------------------------------------------------------------------------------------------


def link(run: Run, teacher: Model, student: Model, *, generation: int = 0) -> recovery.Trial:
    """Runs every stage for every method of the config.

    Args:
        run: config, seed, store.
        teacher, student: the models.
        generation: place in a chain.

    Returns:
        What was measured; `recovery.recover` makes rows of it. Methods that need the target's gold are left out where it has
        none.

    Raises:
        ValueError: whatever a stage refuses, and roles that are not disjoint.
    """
    rows = check(run.config)
    if student.adapter and run.config.student.quantise:
        raise ValueError(
            f"{student.adapter} is an adapter, whose base cannot be quantised too: merge it with PEFT (merge_and_unload) and "
            "name the merged directory, or set student.quantise to '' in the config"
        )
    marked = uses_target_gold(rows)
    source, target, test = (ask(run.task, role) for role in ROLES)
    refuse_overlap(source=source, target=target, test=test)
    gold = dict(zip(ROLES, map(run.task.gold, ROLES)))
    teacher_shown = shown_to(run, "teacher", source, gold["source"])
    student_shown = shown_to(run, "student", source, gold["source"])

    labelled = look(run, teacher, leave_out(source, teacher_shown), teacher_shown, "source")
    unlabelled = look(run, teacher, target, teacher_shown, "target")
    correct = gold["source"].grade(labelled.answers)

    scores: dict[str, Stored] = {}
    chosen: dict[str, Stored] = {}
    taught: dict[str, Stored] = {}
    if gold["target"] is None:
        rows = [row for row in rows if row.method not in marked]
    for row in rows:
        given = gather(row, unlabelled, gold["target"] if row.method in marked else None, scores)
        fitted = calibrate(run, row, labelled, correct, teacher)
        scores[row.method] = trust(run, row, fitted, unlabelled, given)
    for row in sorted(rows, key=lambda row: not row.leads):
        num_taught = next(
            (len(chosen[other.method].value.row) for other in rows if other.leads and other.method in chosen), None
        )
        chosen[row.method] = select(run, row, scores[row.method], unlabelled.answers, num_taught)
    for row in rows:
        lesson = compose(chosen[row.method].value, target, gold["target"] if row.labels == "gold" else None)
        taught[row.method] = teach(run, row.method, student, lesson, student_shown)

    graded = functools.partial(score, run, test, gold["test"])
    students = {m: Model(student.name, str(stored.path / "model"), stored.key) for m, stored in taught.items()}
    trial = recovery.Trial(
        domain=run.config.domain,
        teacher=teacher.name,
        student=student.name,
        objective=run.config.student.objective,
        generation=generation,
        seed=run.seed,
        base=graded(student, "student", student_shown, "base"),
        weak=graded(teacher, "teacher", teacher_shown, "teacher"),
        trained={m: graded(model, "student", student_shown, m) for m, model in students.items()},
        uses_target_gold=marked & set(taught),
        n_selected={m: len(selected.value.row) for m, selected in chosen.items()},
        audits={
            row.method: audit(
                run, row, scores[row.method], chosen[row.method], taught[row.method], unlabelled, target, gold["target"]
            )
            for row in rows
        },
    )
    if hasattr(run.task, "graded"):
        run.store.log(f"{run.prefix}grading  {run.task.graded()}")
    return trial


def judge(run: Run, teacher: Model, folder: str, *, role: str) -> tuple[Answers, np.ndarray]:
    """The teacher's answers to a role of the task, and the scores f32[R] that a stored trust function gives them.

    Args:
        run: config (teacher, observe and tasks sections), seed, store.
        teacher: the model that answers; the one that the trust function was fitted on.
        folder: of a trust function, see `trust.artefact`.
        role: which questions to score.

    Raises:
        ValueError: the folder holds no trust function, or one for other features or with other needs.
    """
    fitted, described = artefact.read(folder)
    refuse_other_features(described, run.config, folder)
    shown: Demonstrations = ()
    if run.config.teacher.shots:
        shown = shown_to(run, "teacher", ask(run.task, "source"), run.task.gold("source"))
    looked = look(run, teacher, leave_out(ask(run.task, role), shown), shown, role)
    if missing := fitted.needs - set(looked.extra):
        raise ValueError(
            f"trust {described['trust']!r} needs {', '.join(sorted(missing))}, which scoring a new pool cannot give; "
            "choose another trust function"
        )
    note_other_teacher(run, described, teacher)
    return looked.answers, checked_scores(fitted.score(looked.evidence()), len(looked.answers), described["trust"])


def note_other_teacher(run: Run, described: Mapping[str, Any], teacher: Model) -> None:
    if described["about"]["teacher_key"] != teacher.key:
        known = described["about"]["teacher"]
        run.store.log(
            f"note: this trust function was fitted on the teacher {known!r}, another model than this {teacher.name!r}"
        )


# ---- 0 pretrain ------------------------------------------------------------------------------------------------------


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
            log=functools.partial(run.log, run.prefix + label),
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


# ---- 1 ask -----------------------------------------------------------------------------------------------------------


def ask(task: Task, role: str) -> tuple[Question, ...]:
    """The questions of a role."""
    questions = task.questions(role)
    if not questions:
        raise ValueError(f"the {role} role has no questions; change the tasks section of the config")
    refuse_repeats(role, questions)
    return questions


def shown_to(run: Run, who: str, source: Sequence[Question], gold: Gold | None) -> Demonstrations:
    """The demonstrations that the teacher or the student is shown, from the labelled source."""
    if gold is None:
        raise ValueError(
            "the source has no answers: a trust function is calibrated on labelled questions; change tasks.source in the config"
        )
    return demonstrate(source, gold.answers(), shots=run.config[who].shots, key=run.key("demonstrations"))


# ---- 2 answer, 3 observe ---------------------------------------------------------------------------------------------


def look(run: Run, teacher: Model, questions: Sequence[Question], shown: Demonstrations, role: str) -> Looked:
    """The teacher answers a role, and its hidden states at its answers are kept."""
    section = run.config.teacher
    asked_for = {"layers": tuple(run.config.observe.layers), "token": run.config.observe.token}
    answered = answer(run, teacher, questions, "teacher", shown, f"answer {role}")

    def fn(work, **inputs):
        features.observe(
            run.load(teacher, section.param_dtype),
            answered.value["rollout"],
            **asked_for,
            shape=Shape(**section.shape),
            compute=compute_of(run.mesh, section),
            out=work.out,
            partial=work.partial,
        )

    observed = run.stage(
        "observe",
        fn,
        code=("w2s_jax.features", "w2s_jax.models.peft_io"),
        label=f"observe {role}",
        teacher=teacher.ref,
        answered=answered,
        **asked_for,
        computing=computing_of(run.config, section),
        shape=section.shape.to_dict(),
    )
    return Looked(answered, observed)


def answer(
    run: Run, model: Model, questions: Sequence[Question], who: str, shown: Demonstrations, label: str, *, once: bool = False
) -> Stored:
    """A model's answers; `who` is the config section that says how it is asked, "teacher" or "student".

    `once`: one greedy answer to each question, whatever the section says; for scoring. Otherwise a teacher whose `label` says
    so gives one answer to a question, the majority of its samples.
    """
    section = run.config[who]
    asking = {"style": section.style, "chat": section.chat}
    if run.task.interface == "choice":
        how = {"normalise": section.normalise}
    else:
        how = writing_of(section, **({"num_samples": 1, "temperature": 0.0} if once else {}))
    vote = run.task.interface == "free" and not once and section.get("label") == "majority"

    def fn(work, **inputs):
        lm = run.load(model, section.param_dtype)
        asked = Asking(lm.tokenizer, **asking, context=lm.config.max_position, demonstrations=shown)
        if run.task.interface == "choice":
            settings = {"shape": Shape(**section.shape), "compute": compute_of(run.mesh, section), "label": label}
            return answering.by_choice(lm, questions, asked, **how, **settings)
        answered = answering.by_writing(
            lm,
            questions,
            asked,
            run.task.extract,
            num_samples=how["num_samples"],
            drawing=Drawing(**how["drawing"]),
            max_new_tokens=how["max_new_tokens"],
            stop_texts=how["stop_texts"],
            num_slots=how["num_slots"],
            row_length=section.shape.row_length,
            compute=compute_of(run.mesh, section, dtype=how["decode_dtype"]),
            key=run.key("sampling"),
            partial=work.partial,
            label=label,
        )
        return answering.majority(answered, how["num_samples"]) if vote else answered

    return run.stage(
        "answer",
        fn,
        code=("w2s_jax.answering", "w2s_jax.models.peft_io", *plugins.source_words("task", run.config.tasks.name)),
        label=label,
        model=model.ref,
        questions=tuple(questions),
        shown=shown,
        asking=asking,
        how={**how, "vote": vote},
        seed=run.seed if how.get("drawing", {}).get("temperature") else 0,
        computing=computing_of(run.config, section),
        shape=section.shape.to_dict(),
    )


# ---- 4 calibrate, 5 trust, 6 select ----------------------------------------------------------------------------------


def gather(row: Row, unlabelled: Looked, gold: Gold | None, scores: Mapping[str, Stored]) -> dict[str, Any]:
    """What a row's trust function asks for beyond the teacher's own evidence: other rows' scores, or (the oracle) gold.

    Raises:
        ValueError: it asks for something that this run cannot give.
    """
    found: dict[str, Any] = {}
    for name in sorted(row.needs - set(unlabelled.extra)):
        kind, _, method = name.partition("/")
        if name == "correct" and gold is not None:
            found[name] = gold.grade(unlabelled.answers)
        elif kind == "score" and method in scores:
            found[name] = scores[method]
        else:
            there = [*sorted(unlabelled.extra), *(f"score/{m}" for m in scores)]
            raise ValueError(
                f"method {row.method!r}: trust {row.trust!r} needs {name!r}, but there is only {', '.join(there)} (scores of "
                "the methods before it); reorder or change methods in the config"
            )
    return found


def calibrate(run: Run, row: Row, labelled: Looked, correct: np.ndarray, teacher: Model) -> Stored:
    """A fitted trust function, as a folder `trust`; it outlives its run."""
    observing, asking = run.config.observe, run.config.teacher
    about = {"teacher": teacher.name, "teacher_key": teacher.key, "domain": run.config.domain, "style": asking.style}
    about |= {"layers": list(observing.layers), "token": observing.token}

    def fit(work, **inputs):
        fitted = plugins.make("trust", row.trust, **row.args).fit(labelled.evidence(), correct, run.key("calibrate"))
        artefact.write(fitted, work.out / "trust", word=row.trust, args=row.args, about=about)

    def copy(work, **inputs):
        (work.out / "trust").mkdir()
        for name in artefact.FILES:
            (work.out / "trust" / name).write_bytes((epath.Path(row.reused) / name).read_bytes())

    label = f"calibrate {row.method}"
    if row.reused:
        note_other_teacher(run, artefact.describe(row.reused), teacher)
        reused = Ref(None, run.store.content_key(row.reused))
        return run.stage("calibrate", copy, code=("w2s_jax.trust.artefact",), label=label, alone=True, reused=reused)
    return run.stage(
        "calibrate",
        fit,
        code=("w2s_jax.trust.artefact", *plugins.source_words("trust", row.trust)),
        label=label,
        alone=True,
        trust=row.trust,
        args=row.args,
        about=about,
        answered=labelled.answered,
        observed=labelled.observed,
        correct=correct,
        seed=run.seed,
    )


def trust(run: Run, row: Row, fitted: Stored, unlabelled: Looked, given: Mapping[str, Any]) -> Stored:
    """The trust scores f32[R] of the target's weak labels."""

    def fn(work, **inputs):
        function, _ = artefact.read(fitted.path / "trust")
        values = {name: value.value if isinstance(value, Stored) else value for name, value in given.items()}
        return checked_scores(function.score(unlabelled.evidence(values)), len(unlabelled.answers), row.trust)

    return run.stage(
        "trust",
        fn,
        code=("w2s_jax.trust.artefact", *plugins.source_words("trust", row.trust)),
        label=f"trust {row.method}",
        fitted=fitted,
        answered=unlabelled.answered,
        observed=unlabelled.observed,
        given=dict(given),
    )


def checked_scores(score: np.ndarray, num_rows: int, word: str) -> np.ndarray:
    """Refuses what is no trust score; a fork's own trust function may return anything."""
    score = np.asarray(score, np.float32)
    if score.shape != (num_rows,) or not np.isfinite(score).all() or score.min() < 0 or score.max() > 1:
        raise ValueError(
            f"trust {word!r} returned scores of shape {score.shape} from {score.min()} to {score.max()}; allowed are "
            f"{num_rows} finite numbers in [0, 1]: mend its score()"
        )
    return score


def select(run: Run, row: Row, scores: Stored, answers: Answers, num_taught: int | None) -> Stored:
    """The rows that the student will be taught; `num_taught` of them where a leading row has settled the number.

    Equal numbers are what makes methods comparable, whatever the rule.
    """
    section = run.config.select
    rule = selection.RULES[section.rule]
    amounts = {name: section[name] for name in inspect.signature(rule).parameters if name in section}
    if row.everything:
        rule, amounts = selection.fraction, {"fraction": 1.0}
    elif num_taught is not None and not row.leads:
        rule, amounts = selection.top_n, {"n": num_taught}
    return run.stage(
        "select",
        lambda work, **inputs: rule(scores.value, answers, **amounts),
        code=("w2s_jax.selection",),
        label=f"select {row.method}",
        scores=scores,
        answers=answers,
        rule=rule.__name__,
        amounts=amounts,
    )


def compose(chosen: Selection, questions: Sequence[Question], gold: Gold | None) -> Lesson:
    """The lesson of a selection; with `gold`, the gold answers to the same questions (rows marked `uses_target_gold`)."""
    of, answers = {q.id: q for q in questions}, chosen.answers
    if gold is not None:
        true = gold.answers()
        final = dict(zip(true.question_id, true.final, strict=True))
        texts = tuple(final[i] for i in answers.question_id)
        answers = Answers(answers.question_id, texts, texts)
    return Lesson(tuple(of[i] for i in answers.question_id), answers, chosen.weight)


# ---- 7 teach ---------------------------------------------------------------------------------------------------------


def teach(run: Run, method: str, student: Model, lesson: Lesson, shown: Demonstrations) -> Stored:
    """The student after the lesson, a Hugging Face directory `model`; adapters also on their own, as a PEFT one, `adapter`."""
    section = run.config.student
    word, asking = section.objective, {"style": section.style, "chat": section.chat}
    args = keywords_of(section, word)
    objective = plugins.make("objective", word, **args)

    def fn(work, **inputs):
        lm = run.load(student, section.param_dtype, section.quantise)
        asked = Asking(lm.tokenizer, **asking, context=lm.config.max_position, demonstrations=shown)
        if isinstance(objective, OnPolicy):
            learn = functools.partial(online.teach, dialogue=dialogue_of(run, section, asked))
        else:
            learn = functools.partial(trainer.teach, encode=asked.answer)
        taught = learn(
            lm,
            lesson,
            objective,
            training=training_of(section.training),
            shape=Shape(**section.training.shape),
            compute=compute_of(run.mesh, section),
            key=run.key("teach"),
            partial=work.partial,
            log=functools.partial(run.log, f"{run.prefix}teach {method}"),
            label=f"teach {method}",
        )
        hf_io.save(taught.lm, work.out / "model")
        if taught.adapters and not student.adapter:  # on a base with an adapter of its own it would say nothing alone
            peft_io.save(taught.adapters, lm.config, work.out / "adapter", base=student.hub_id or student.folder)
        if processes.is_first() and (written := online.completions(work.partial)):
            (work.out / COMPLETIONS).write_text(json.dumps(written, ensure_ascii=False, indent=1))

    code = ("student.trainer", "models.hf_io", "models.peft_io", "tasks.asking")
    code = (*(f"w2s_jax.{module}" for module in code), *plugins.source_words("objective", word))
    reading = {}
    if isinstance(objective, OnPolicy):  # the task reads the answers, and a reward may be a user's own
        reading = {"task": run.config.tasks.to_dict(), "writing": writing_of(section), "shape": section.shape.to_dict()}
        code += ("w2s_jax.student.online", *plugins.source_words("task", run.config.tasks.name))
        code += rewards.source_words(objective.rewards)
    return run.stage(
        "teach",
        fn,
        code=code,
        label=f"teach {method}",
        student=student.ref,
        lesson=lesson,
        objective=word,
        args=args,
        training=section.training.to_dict(),
        asking=asking,
        shown=shown,
        computing=computing_of(run.config, section),
        quantise=section.quantise,
        seed=run.seed,
        **reading,
    )


def dialogue_of(run: Run, section: ConfigDict, asking: Asking) -> online.Dialogue:
    """How a student writes and is read while it learns."""
    return online.Dialogue(
        asking=asking,
        extract=run.task.extract,
        agree=getattr(run.task, "agree", rewards.equal),
        stop_texts=tuple(section.stop_texts),
        num_slots=section.num_slots,
        row_length=min(section.shape.row_length, section.training.shape.row_length),
        compute=compute_of(run.mesh, section, dtype=section.decode_dtype),
    )


# ---- 8 score, 10 audit -----------------------------------------------------------------------------------------------


def score(
    run: Run, questions: Sequence[Question], gold: Gold | None, model: Model, who: str, shown: Demonstrations, label: str
) -> Score | None:
    """A model's score on the test questions; None where these have no gold answers."""
    if gold is None:
        return None
    answered = answer(run, model, questions, who, shown, f"answer test {label}", once=True)
    return run.stage(
        "score",
        lambda work, **inputs: scoring.score(questions, gold, answered.value["answers"]),
        code=("w2s_jax.scoring", *plugins.source_words("task", run.config.tasks.name)),  # whose `agree` grades
        label=f"score {label}",
        answered=answered,
        questions=tuple(questions),
        gold=Ref(gold, digest(gold)),
    ).value


def audit(
    run: Run,
    row: Row,
    scores: Stored,
    chosen: Stored,
    taught: Stored | None,
    unlabelled: Looked,
    questions: Sequence[Question],
    gold: Gold | None,
) -> Audit:
    """How good trust and selection really were, after the fact.

    Raises:
        ValueError: the student has not been stored yet.
    """
    if taught is None or not (taught.path / "manifest.json").exists():
        raise ValueError(
            f"audit {row.method}: the student has not been stored, so looking at the target's gold could still change it; "
            "run teach first"
        )

    group = {q.id: q.group or q.id for q in questions}
    cluster = tuple(group[i] for i in unlabelled.answers.question_id)

    def fn(work, **inputs):
        selected = chosen.value
        if gold is None:
            return metrics.audit(scores.value, None, selected.row)
        right = np.ones(len(selected.row), bool) if row.labels == "gold" else gold.grade(selected.answers)
        return metrics.audit(scores.value, gold.grade(unlabelled.answers), selected.row, taught=right, cluster=cluster)

    return run.stage(
        "audit",
        fn,
        code=("w2s_jax.metrics", *plugins.source_words("task", run.config.tasks.name)),
        label=f"audit {row.method}",
        scores=scores,
        chosen=chosen,
        taught=taught,
        answered=unlabelled.answered,
        cluster=cluster,
        labels=row.labels,
        gold=Ref(gold, digest(gold)),
    ).value


def digest(gold: Gold | None) -> str:
    """The content key of gold answers: they enter a store key only through it, never a file."""
    return hashlib.sha256(repr(gold and (gold.question_id, gold.accepted)).encode()).hexdigest()
