"""Why trust works, measured once a link is whole: easy questions first, labels better than gold, gradients that agree.

    easy_first         each method's trust beside how hard the questions are
    better_than_gold   chosen labels that differ from gold, judged by the task's solver or by a stronger model
    coherence          how well the per-example gradients of each method's lesson agree, and with those of gold labels
    selective          whose labels a selective method took, and how right they are

What is measured, and with what, says the config's `analysis` section. Nothing here reaches a student: every stage goes through
`pipeline.afterwards`, which opens the target's gold only when all students are stored.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from w2s_jax import answering, gathering, judgement, pipeline, teaching
from w2s_jax.analysis import better_than_gold, coherence, easy_first, selective
from w2s_jax.analysis.better_than_gold import BetterThanGold
from w2s_jax.analysis.coherence import Coherence
from w2s_jax.analysis.easy_first import EasyFirst, Learnt
from w2s_jax.analysis.selective import Selective
from w2s_jax.packing import Shape
from w2s_jax.pipeline import Choice
from w2s_jax.run import Model, Run, find_model
from w2s_jax.settings import compute_of, computing_of, objective_of, uses_target_gold
from w2s_jax.student import OverOptions
from w2s_jax.tasks.asking import Asking
from w2s_jax.types import Answers, Gold, Question

VERSION = "1"
GOLD = "gold"  # the row whose lesson the others' gradients are compared with


@dataclasses.dataclass(frozen=True)
class Mechanisms:
    """What was measured of one link; empty where nothing was.

    Attributes:
        easy_first: for each method that trusts, and each difficulty that is known.
        better: for each method that chose weak labels.
        coherence: for each of these and each that was taught gold labels.
        selective: for each method whose labels are not all the teacher's, by route.
        learnt: by method, how its student learnt its lesson, where that was logged.
        notes: what could not be measured, and why.
    """

    easy_first: tuple[EasyFirst, ...] = ()
    better: tuple[BetterThanGold, ...] = ()
    coherence: tuple[Coherence, ...] = ()
    selective: tuple[Selective, ...] = ()
    learnt: Mapping[str, Learnt] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()


def prepare(run: Run) -> None:
    """Finds out, before anything is computed, what the analysis section asks for in vain.

    Raises:
        ValueError: a number out of range, or a judge that is not there or cannot be read.
    """
    section = run.config.analysis
    if not section.judge and (reason := unvalued(run)):
        run.store.log(f"{run.prefix}note: labels that differ from gold will not be judged: {reason}")
    for name, least in (("coherence", 0), ("sketch", 1), ("rank", 1)):
        if section[name] < least:
            raise ValueError(f"analysis.{name}={section[name]}: allowed is {least} or more; change it in the config")
    if section.judge:
        try:
            find_model(run, section.judge)
        except ValueError as error:
            raise ValueError(
                f"{error}\n(this is analysis.judge: name another model there, or '' for the task's own solver)"
            ) from None


def measure(run: Run, choices: Mapping[str, Choice], student: Model) -> Mechanisms:
    """Measures what the analysis section asks for.

    Args:
        run: config, seed, store.
        choices: of all methods of a link, see `pipeline.Linked`.
        student: as it was before it was taught.

    Raises:
        ValueError: a student has not been stored yet.
    """
    pipeline.refuse_unstored(choices, "analysis")
    marked = uses_target_gold([one.row for one in choices.values()])  # chosen by gold, or taught it
    weak = [method for method, one in choices.items() if one.row.labels == "weak" and method not in marked]
    eased: list[EasyFirst] = []
    if run.config.analysis.easy_first:
        for method in weak:
            row = choices[method].row
            if not row.matches and not row.everything:  # whose scores are no trust: they only say which rows were drawn
                eased += compare_difficulty(run, choices, method, student)
    gradients: tuple[Coherence, ...] = ()
    # What was taught and scored is told whatever becomes of these two.
    better, notes = judge_mismatches(run, choices, weak)
    if run.config.analysis.coherence and choices:
        taught = [m for m, one in choices.items() if m in weak or (one.row.labels == "gold" and not one.row.everything)]
        try:
            gradients = compare_gradients(run, choices, taught, student)
            if isinstance(objective_of(run.config), OverOptions):
                word = run.config.student.objective
                notes += (f"the gradients compared are those of sft on the lessons' answers; students learnt by {word}",)
        except ValueError as error:
            notes += (f"the gradients of the lessons were not compared: {error}",)
    routed = tuple(judge_routes(run, choices, method) for method in weak if "route" in found_of(choices[method]))
    return Mechanisms(tuple(eased), better, gradients, routed, notes=notes)


# ---- Easy questions first --------------------------------------------------------------------------------------------


def compare_difficulty(run: Run, choices: Mapping[str, Choice], method: str, student: Model) -> list[EasyFirst]:
    """A method's trust in its labels beside each difficulty of the questions; without labels that were dropped."""
    one = choices[method]
    there = one.offer.there
    known = {difficulty: hard[there] for difficulty, hard in difficulties(run, one, student).items()}
    group = tuple(np.array(groups(one))[there].tolist())

    def fn(work, *, gold: Gold | None, **inputs):
        score, correct = one.offer.score[there], None if gold is None else gold.grade(one.offer.answers[there])
        weight = np.zeros(len(one.offer.answers))
        weight[one.chosen.value.row] = one.chosen.value.weight
        return [
            dataclasses.asdict(easy_first.measure(score, hard, correct, weight[there], group, method=method, name=difficulty))
            for difficulty, hard in known.items()
        ]

    found = pipeline.afterwards(
        run,
        "easy_first",
        fn,
        choices=choices,
        label=f"easy_first {method}",
        code=("w2s_jax.analysis.easy_first",),
        alone=True,
        answered=one.offer.unlabelled.answered,
        scores=one.offer.stored,
        chosen=one.chosen,
        difficulty=known,
        group=group,
        method=method,
    )
    return [EasyFirst(**fields) for fields in found.value]


def difficulties(run: Run, one: Choice, student: Model) -> dict[str, np.ndarray]:
    """How hard the questions are, f[R] each, larger = harder: the task's own word for it where it has one, and -log p.

    -log p is a model's, nats for each token of the label: of the teacher, who gave it, and (with `analysis.student`) of the
    student before it was taught.
    """
    looked = one.offer.unlabelled
    found = {"task": easy_first.own(one.target, looked.answers.question_id)}
    if not np.isfinite(found["task"]).any():
        found = {}
    found["teacher"] = -np.asarray(looked.extra["answer_logp"], np.float64)
    if run.config.analysis.student:
        section = run.config.student

        def load():
            return run.load(student, run.config.teacher.param_dtype), judgement.likelihoods

        asking = {"style": section.style, "chat": section.chat, "shown": one.shown}
        found["student"] = -np.asarray(gathering.judged(run, looked, "likelihood", student, load, **asking).value, np.float64)
    return found


def groups(one: Choice) -> tuple[str, ...]:
    of = {q.id: q.group or q.id for q in one.target}
    return tuple(of[i] for i in one.offer.answers.question_id)


# ---- Whose labels ----------------------------------------------------------------------------------------------------


def found_of(one: Choice) -> Mapping[str, Any]:
    """What came up when the labels of a method were made, where they are not the teacher's."""
    return one.offer.relabelled.value.found if one.offer.relabelled else {}


def judge_routes(run: Run, choices: Mapping[str, Choice], method: str) -> Selective:
    """The labels of one selective method, by who gave them."""
    one = choices[method]
    offer, found, group = one.offer, found_of(one), groups(one)
    names = {"source_auc": "held_auc", "source_ece": "held_ece", "source_rows": "held_rows"}
    names |= {name: name for name in ("components", "isolated")}
    known = {name: found[there] for name, there in names.items() if there in found}
    known = {name: None if np.isnan(value) else value for name, value in known.items()}

    def fn(work, *, gold: Gold | None, **inputs):
        def right(final) -> np.ndarray | None:
            if gold is None or final is None:
                return None
            final = tuple(map(str, final))
            return gold.grade(Answers(offer.answers.question_id, final, final))

        measured = selective.measure(
            found["route"],
            right(offer.unlabelled.answers.final),
            right(offer.answers.final),
            own=right(found.get("self")),
            smoothed=right(found.get("smoothed_label")),
            p_ik=found.get("p_ik"),
            gamma=found.get("gamma"),
            cluster=group,
            method=method,
            **known,
        )
        return dataclasses.asdict(measured)

    stored = pipeline.afterwards(
        run,
        "selective",
        fn,
        choices=choices,
        label=f"selective {method}",
        code=("w2s_jax.analysis.selective",),
        alone=True,
        answered=offer.unlabelled.answered,
        relabelled=offer.relabelled,
        group=group,
        method=method,
    )
    return Selective(**stored.value)


# ---- Better than gold ------------------------------------------------------------------------------------------------


def judge_mismatches(
    run: Run, choices: Mapping[str, Choice], methods: Iterable[str]
) -> tuple[tuple[BetterThanGold, ...], tuple[str, ...]]:
    """The chosen labels of each method that differ from gold, judged; and why not, where nothing can judge them.

    What was judged before a judge failed is kept.
    """
    found, failed = [], {}
    if run.config.analysis.judge or hasattr(run.task, "value"):
        for method in methods:
            try:
                found.append(judged(run, choices, method))
            except ValueError as error:
                failed[method] = str(error)
        reasons = dict.fromkeys(one.reason for one in found if not one.n)
    else:
        task = run.config.tasks.name
        none = f"the task {task!r} has no solver of its own; set analysis.judge to a model stronger than the teacher"
        reasons = {unvalued(run) or none: None}
    notes = [f"labels that differ from gold were not judged: {reason}" for reason in reasons]
    if failed:
        first = next(iter(failed.values()))
        notes.append(f"labels that differ from gold were not judged, those of {', '.join(failed)}: {first}")
    return tuple(one for one in found if one.n), tuple(notes)


def unvalued(run: Run) -> str:
    """Why a task that was to have a judge of its own has none, "" = it was not to, or has one."""
    return getattr(run.task, "unvalued", "")


def judged(run: Run, choices: Mapping[str, Choice], method: str) -> BetterThanGold:
    """The labels that one method chose, beside gold."""
    one, word, section = choices[method], run.config.analysis.judge, run.config.teacher
    of = {q.id: q for q in one.target}
    if word:
        model = find_model(run, word)
        name, chat = model.name, run.config.analysis.judge_chat
        judge = better_than_gold.by_model(lambda asked: ask_judge(run, model, asked, chat, f"judge {method}"))
        reading: dict[str, Any] = {"judge": model.ref, "chat": chat, "shape": section.shape.to_dict()}
        reading |= {"computing": computing_of(run.config, section)}
        margin = 0.0
    else:
        name, judge = getattr(run.task, "valuer", "solver"), better_than_gold.by_solver(run.task.value)
        margin = float(getattr(run.task, "value_margin", 0.0))
        reading = {"judge": name, "valued_by": run.task.valued_by() if hasattr(run.task, "valued_by") else {}}

    def fn(work, *, gold: Gold | None, **inputs):
        answers = one.chosen.value.answers
        if gold is None:
            none = better_than_gold.measure((), (), (), np.zeros(0, bool), None, method=method, reason="no gold to differ from")
            return dataclasses.asdict(none)
        reference = {i: accepted[0] for i, accepted in zip(gold.question_id, gold.accepted, strict=True)}
        questions, wanted = zip(*((of[i], reference[i]) for i in answers.question_id), strict=True)
        found = better_than_gold.measure(
            questions, answers.final, wanted, ~gold.grade(answers), judge, margin=margin, method=method, name=name
        )
        return dataclasses.asdict(found)

    stored = pipeline.afterwards(
        run,
        "better_than_gold",
        fn,
        choices=choices,
        label=f"better_than_gold {method}",
        code=("w2s_jax.analysis.better_than_gold", "w2s_jax.answering", *gathering.READS),
        alone=not word,
        chosen=one.chosen,
        questions=one.target,
        method=method,
        margin=margin,
        **reading,
    )
    return BetterThanGold(**stored.value)


def ask_judge(run: Run, judge: Model, asked: Sequence[Question], chat: bool, label: str) -> np.ndarray:
    """f32[N, 2]: the log-probability of each of two options under the judge, which computes as the teacher does.

    Raises:
        ValueError: the judge cannot be asked such questions.
    """
    section = run.config.teacher
    lm = run.load(judge, section.param_dtype)
    asking = Asking(lm.tokenizer, style="letter", chat=chat, context=lm.config.max_position)
    passing = {"shape": Shape(**section.shape), "compute": compute_of(run.mesh, section)}
    try:
        return answering.by_choice(lm, asked, asking, normalise="none", **passing, label=label)["extra"]["option_logp"]
    except ValueError as error:
        raise ValueError(
            f"analysis.judge={run.config.analysis.judge!r} could not be asked which of two answers is right: {error}\n(name "
            "another model there, or '' for the task's own solver; what is stored stays)"
        ) from None


# ---- Gradients that agree --------------------------------------------------------------------------------------------


def compare_gradients(run: Run, choices: Mapping[str, Choice], methods: Sequence[str], student: Model) -> tuple[Coherence, ...]:
    """How coherent the gradients of each method's lesson are, at the student as it was, and beside those of gold labels.

    Where no row was taught the gold labels of random questions (`gold`), the gold lesson is made of the questions of the naive
    row, or else of the first.
    """
    config, section = run.config.student, run.config.analysis
    some = next(iter(choices.values()))
    beside = next((method for method in (GOLD, "naive") if method in choices), next(iter(choices)))
    asking = {"style": config.style, "chat": config.chat}
    training = config.training
    how = {"n": section.coherence, "sketch": section.sketch, "seed": run.seed, "targets": tuple(training.lora_targets)}
    how["rank"] = training.lora_rank or section.rank

    def fn(work, *, gold: Gold | None, **inputs):
        def lesson(method: str, labels: str):
            return teaching.compose(choices[method].chosen.value, choices[method].target, gold if labels == "gold" else None)

        lessons = {method: lesson(method, choices[method].row.labels) for method in methods}
        told = list(lessons)
        if gold is not None and GOLD not in lessons:
            lessons[GOLD] = lesson(beside, "gold")
        lm = run.load(student, config.param_dtype, config.quantise)
        asked = Asking(lm.tokenizer, **asking, context=lm.config.max_position, demonstrations=some.shown)
        found = coherence.measure(
            lm,
            lessons,
            gold=GOLD if GOLD in lessons else told[0],
            encode=asked.answer,
            shape=Shape(**training.shape),
            compute=compute_of(run.mesh, config),
            key=run.key("teach"),
            **how,
        )
        if gold is None:
            nothing = {"to_gold": None, "to_gold_lo": None, "to_gold_hi": None}
            found = [
                dataclasses.replace(one, **nothing, reason=_joined(one.reason, "no gold to compare with")) for one in found
            ]
        return [dataclasses.asdict(one) for one in found if one.method in told]

    stored = pipeline.afterwards(
        run,
        "coherence",
        fn,
        choices=choices,
        label="coherence of lessons",
        code=("w2s_jax.analysis.coherence", "w2s_jax.models.peft_io", "w2s_jax.tasks.asking"),
        chosen={method: choices[method].chosen for method in methods},
        labels=[(method, choices[method].row.labels) for method in methods],  # in their order, which is that of the result
        beside=choices[beside].chosen,
        questions=some.target,
        student=student.ref,
        shown=some.shown,
        asking=asking,
        how=how,
        shape=training.shape.to_dict(),
        computing=computing_of(run.config, config),
        quantise=config.quantise,
    )
    return tuple(Coherence(**fields) for fields in stored.value)


def _joined(*reasons: str) -> str:
    return "; ".join(filter(None, reasons))
