"""The teacher looks at a role: questions are asked, answered, and the hidden states at the answers kept (stages 1 to 3).

Students and ceilings are asked in the same way when they are scored, and when a relabeller asks what a student knows.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from w2s_jax import answering, features, plugins
from w2s_jax.drawing import Drawing
from w2s_jax.packing import Shape
from w2s_jax.run import Model, Run
from w2s_jax.settings import compute_of, computing_of, writing_of
from w2s_jax.store import Stored
from w2s_jax.tasks import Task
from w2s_jax.tasks.asking import Asking
from w2s_jax.tasks.roles import Demonstrations, demonstrate, refuse_repeats
from w2s_jax.types import Answers, Evidence, Gold, Question

VERSION = "1"


@dataclasses.dataclass(frozen=True)
class Looked:
    """A model's answers to a role and its hidden states at them; the stages after it read both as `Evidence`.

    Attributes:
        answered, observed: the answers, and the hidden states.
        questions, shown: what was asked after which demonstrations, for whoever asks more about it.
        role: what labels call it.
    """

    answered: Stored
    observed: Stored
    questions: tuple[Question, ...] = ()
    shown: Demonstrations = ()
    role: str = ""

    @property
    def answers(self) -> Answers:
        return self.answered.value["answers"]

    @property
    def extra(self) -> Mapping[str, np.ndarray]:
        return self.answered.value["extra"]

    def evidence(self, given: Mapping[str, np.ndarray] | None = None) -> Evidence:
        x = np.load(self.observed.path / "x.npy", mmap_mode="r", allow_pickle=False)
        return Evidence(self.answers, x, {**self.extra, **(given or {})})


@dataclasses.dataclass(frozen=True)
class Labelling:
    """What a row is fitted and judged on: source and target as the teacher labels them after some number of demonstrations.

    Attributes:
        labelled: the source without its demonstrations.
        correct: bool[R], which of its labels are right.
        unlabelled: the target.
    """

    labelled: Looked
    correct: np.ndarray
    unlabelled: Looked


def ask(task: Task, role: str) -> tuple[Question, ...]:
    """The questions of a role."""
    questions = task.questions(role)
    if not questions:
        raise ValueError(f"the {role} role has no questions; change the tasks section of the config")
    refuse_repeats(role, questions)
    return questions


def shown_to(run: Run, who: str, source: Sequence[Question], gold: Gold | None, shots: int | None = None) -> Demonstrations:
    """The demonstrations that the teacher or the student is shown, from the labelled source: its section's, or `shots`."""
    if gold is None:
        raise ValueError(
            "the source has no answers: a trust function is calibrated on labelled questions; change tasks.source in the config"
        )
    shots = run.config[who].shots if shots is None else shots
    return demonstrate(source, gold.answers(), shots=shots, key=run.key("demonstrations"))


def look(run: Run, teacher: Model, questions: Sequence[Question], shown: Demonstrations, role: str) -> Looked:
    """The teacher answers a role, and its hidden states at its answers are kept."""
    answered = answer(run, teacher, questions, "teacher", shown, f"answer {role}")
    observing = run.config.observe
    observed = observe(
        run, teacher, answered, "teacher", f"observe {role}", layers=tuple(observing.layers), token=observing.token
    )
    return Looked(answered, observed, tuple(questions), shown, role)


def observe(
    run: Run,
    model: Model,
    answered: Stored,
    who: str,
    label: str,
    *,
    layers: tuple[int | str, ...],
    token: str,
    rows: np.ndarray | None = None,
) -> Stored:
    """A model's hidden states at what it answered, a file `x.npy`; `who` is the config section that says how it computes.

    `rows`: at these answers alone.
    """
    section = run.config[who]
    asked_for = {"layers": layers, "token": token}

    def fn(work, **inputs):
        rollout = answered.value["rollout"]
        features.observe(
            run.load(model, section.param_dtype),
            rollout if rows is None else rollout[rows],
            **asked_for,
            shape=Shape(**section.shape),
            compute=compute_of(run.mesh, section),
            out=work.out,
            partial=work.partial,
        )

    return run.stage(
        "observe",
        fn,
        code=("w2s_jax.features", "w2s_jax.models.peft_io"),
        label=label,
        teacher=model.ref,  # whoever is looked at
        answered=answered,
        **asked_for,
        **({} if rows is None else {"rows": rows}),
        computing=computing_of(run.config, section),
        shape=section.shape.to_dict(),
    )


def answer(
    run: Run,
    model: Model,
    questions: Sequence[Question],
    who: str,
    shown: Demonstrations,
    label: str,
    *,
    once: bool = False,
    further: Mapping[str, Any] | None = None,
) -> Stored:
    """A model's answers; `who` is the config section that says how it is asked, "teacher" or "student".

    `once`: one greedy answer to each question, whatever the section says; for scoring. Otherwise a teacher whose `label` says
    so gives one answer to a question, the majority of its samples.

    `further`: free answers beside those that the section gives, drawn with a key of their own; they are written as the section
    says, but for what stands here.
    """
    section = run.config[who]
    asking = {"style": section.style, "chat": section.chat}
    if run.task.interface == "choice":
        how = {"normalise": section.normalise}
    else:
        how = writing_of(section, **({"num_samples": 1, "temperature": 0.0} if once else further or {}))
    vote = run.task.interface == "free" and not once and not further and section.get("label") == "majority"
    purpose = "further samples" if further else "sampling"

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
            written=getattr(run.task, "written", None),
            num_samples=how["num_samples"],
            drawing=Drawing(**how["drawing"]),
            max_new_tokens=how["max_new_tokens"],
            stop_texts=how["stop_texts"],
            num_slots=how["num_slots"],
            row_length=section.shape.row_length,
            compute=compute_of(run.mesh, section, dtype=how["decode_dtype"]),
            key=run.key(purpose),
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
        how={**how, "vote": vote, **({"purpose": purpose} if further else {})},
        seed=run.seed if how.get("drawing", {}).get("temperature") else 0,
        computing=computing_of(run.config, section),
        shape=section.shape.to_dict(),
    )
