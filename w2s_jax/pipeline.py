"""One link: one teacher, one student, every method. The story of the project, stage by stage, and its gold door.

    ask -> answer -> observe -> gather -> calibrate -> trust (-> relabel) -> select -> teach -> score -> recover -> audit

This is the only file that calls `Task.gold`. It stands on `looking` (the teacher asked and observed), `gathering` (what else
trust functions ask for), `calibrating` (trust, fitted and asked), `relabelling` (labels in place of the teacher's), `teaching`
(selection, lesson, student) and `run` (what all stages share), which read the config as it does; what they call takes plain
keyword arguments.
Gold answers of the target reach a stage before the student only in rows that say so (`labels="gold"`, the oracle, the
same-purity control); the report marks them. Every stage goes through the store, so that methods share what they have in common.

Source: arXiv 2606.01000.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from w2s_jax import gathering, metrics, plugins, recovery, relabelling, scoring, selection
from w2s_jax.calibrating import (
    calibrate,
    certify,
    checked_scores,
    hold_back,
    known_of_target,
    match,
    note_other_teacher,
    opened,
    trust,
)
from w2s_jax.looking import Labelling, Looked, answer, ask, look, shown_to
from w2s_jax.run import ROLES, Model, Run
from w2s_jax.settings import (
    Row,
    asks_of,
    check,
    refuse_choiceless,
    refuse_missing_evidence,
    refuse_other_features,
    uses_target_gold,
)
from w2s_jax.store import Ref, Stored
from w2s_jax.tasks.roles import Demonstrations, leave_out, refuse_overlap
from w2s_jax.teaching import Offer, compose, select, soften, teach
from w2s_jax.trust import artefact
from w2s_jax.types import Answers, Audit, Gold, Lesson, Question, Score

VERSION = "3"

# ---- The link --------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Linked:
    """What a link leaves behind.

    Attributes:
        trial: what was measured; `recovery.recover` makes rows of it.
        students: the trained student of each method, by method id; a chain's next teacher is one of them.
        fitted: the fitted trust function of each method, a folder `trust`.
        scores: the trust scores f32[R] that each method gave the target's weak labels.
        choices: what each method chose of which labels, and what came of it; for those who ask afterwards why (`afterwards`).
    """

    trial: recovery.Trial
    students: Mapping[str, Model]
    fitted: Mapping[str, Stored]
    scores: Mapping[str, Stored]
    choices: Mapping[str, "Choice"] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Choice:
    """What one method chose.

    Attributes:
        row: of the config's table.
        seen: source and target, as the teacher labels them for this method.
        target: the questions that were to choose from.
        offer: the labels that there were, and the trust in them.
        chosen, taught: the stored selection and student.
        lesson: what the student was taught.
        shown: the demonstrations that students are shown.
    """

    row: Row
    seen: Labelling
    target: tuple[Question, ...]
    offer: Offer
    chosen: Stored
    lesson: Lesson
    taught: Stored
    shown: Demonstrations


def link(
    run: Run,
    teacher: Model,
    student: Model,
    *,
    generation: int = 0,
    asked: Mapping[str, Sequence[Question]] | None = None,
    relabellers: Mapping[str, relabelling.Relabeller] = relabelling.RELABELLERS,
) -> Linked:
    """Runs every stage for every method of the config.

    Args:
        run: config, seed, store.
        teacher, student: the models.
        generation: place in a chain.
        asked: the questions of a role, where these are not all that the task has.
        relabellers: what a row's `relabel` may name.

    Returns:
        What was measured, and what was made for it. Methods that need the target's gold are left out where it has none.

    Raises:
        ValueError: whatever a stage refuses, and roles that are not disjoint.
    """
    rows = check(run.config)
    refuse_choiceless(run.config, run.task.interface)
    gathering.prepare(run, rows)
    relabelling.prepare(run, rows, relabellers)
    if student.adapter and run.config.student.quantise:
        raise ValueError(
            f"{student.adapter} is an adapter, whose base cannot be quantised too: merge it with PEFT (merge_and_unload) and "
            "name the merged directory, or set student.quantise to '' in the config"
        )
    marked = uses_target_gold(rows)
    source, target, test = ((asked or {}).get(role) or ask(run.task, role) for role in ROLES)
    refuse_overlap(source=source, target=target, test=test)
    gold = dict(zip(ROLES, map(run.task.gold, ROLES)))
    teacher_shown = shown_to(run, "teacher", source, gold["source"])
    student_shown = shown_to(run, "student", source, gold["source"])

    if gold["target"] is None:
        rows = [row for row in rows if row.method not in marked]
    different = dict.fromkeys(row.shots for row in rows)
    labellings = {shots: label(run, teacher, source, target, gold["source"], shots) for shots in different}
    parts = {
        shots: hold_back(run, labellings[shots].labelled, labellings[shots].correct, source, target)
        for shots in dict.fromkeys(row.shots for row in rows if row.holds_back)
    }

    fitted: dict[str, Stored] = {}
    scores: dict[str, Stored] = {}
    certified: dict[str, Stored] = {}
    offers: dict[str, Offer] = {}
    chosen: dict[str, Stored] = {}
    lessons: dict[str, Lesson] = {}
    taught: dict[str, Stored] = {}
    matched = [row for row in rows if row.matches]  # to the selection of another row, which is made before
    others = [row for row in rows if not row.matches]

    def believed(row: Row, known: Mapping[str, Any]) -> None:
        """Fits a row's trust function and scores the target with it; `known` is evidence that is there already."""
        seen = labellings[row.shots]
        given = known_of_target(row, seen.unlabelled, gold["target"] if row.method in marked else None, scores, known)
        # For the source too, unless nothing is fitted: a judge is loaded once for both, and `calibrate` finds it stored.
        roles = [seen.unlabelled] if row.reused else [seen.unlabelled, seen.labelled]
        given |= gathering.gather(run, teacher, roles, row.asks)[0] | known
        part = parts.get(row.shots) if row.holds_back else None
        fitted[row.method] = calibrate(run, row, seen.labelled, seen.correct, teacher, part)
        scores[row.method] = trust(run, row, fitted[row.method], seen.unlabelled, given)
        relabelled = None
        if row.relabel:
            relabelled = relabellers[row.relabel](
                run,
                seen,
                scores[row.method],
                teacher=teacher,
                student=student,
                shown=student_shown,
                grade=Ref(gold["source"].grade, digest(gold["source"])),
                **row.relabel_args,
            )
        offers[row.method] = Offer(scores[row.method], seen.unlabelled, relabelled)

    def selected(row: Row, num_taught: int | None) -> Stored:
        return select(run, row, offers[row.method], target, num_taught, certified.get(row.method))

    for row in others:
        believed(row, {})
        if row.holds_back and row.leads:
            certified[row.method] = certify(
                run, row, teacher, fitted[row.method], labellings[row.shots], parts[row.shots], scores[row.method]
            )
    for row in sorted(others, key=lambda row: not row.leads):
        num_taught = next((len(chosen[one.method].value.row) for one in others if one.leads and one.method in chosen), None)
        chosen[row.method] = selected(row, num_taught)
    for row in matched:
        believed(row, match(row, target, labellings[row.shots].unlabelled, chosen))
        chosen[row.method] = selected(row, len(chosen[row.matches].value.row))
    for row in rows:
        lesson = compose(chosen[row.method].value, target, gold["target"] if row.labels == "gold" else None)
        if row.labels == "weak":
            lesson = soften(lesson, chosen[row.method].value, offers[row.method], run.config.student.soft_labels)
        lessons[row.method] = lesson
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
                run,
                row,
                offers[row.method],
                chosen[row.method],
                taught[row.method],
                target,
                gold["target"],
            )
            for row in rows
        },
        certificates={method: stored.value for method, stored in certified.items()},
    )
    if hasattr(run.task, "graded"):
        run.store.log(f"{run.prefix}grading  {run.task.graded()}")
    choices = {
        row.method: Choice(
            row,
            labellings[row.shots],
            tuple(target),
            offers[row.method],
            chosen[row.method],
            lessons[row.method],
            taught[row.method],
            student_shown,
        )
        for row in rows
    }
    return Linked(trial, students, fitted, scores, choices)


def examine(
    run: Run, teacher: Model, questions: Sequence[Question], label: str, *, source: Sequence[Question] = ()
) -> tuple[Looked, np.ndarray]:
    """The teacher looks at labelled questions of the source, outside a link.

    Args:
        run: config, seed, store.
        teacher: the model.
        questions: of the source role.
        label: what the log calls them.
        source: the questions that demonstrations are drawn from, where the teacher is shown some.

    Returns:
        What it answered and what was observed, and which of its answers are right, bool[R].
    """
    gold = run.task.gold("source")
    shown = shown_to(run, "teacher", source or questions, gold)
    looked = look(run, teacher, leave_out(questions, shown), shown, label)
    graded = run.stage(
        "grade",
        lambda work, **inputs: gold.grade(looked.answers),
        code=plugins.source_words("task", run.config.tasks.name),  # whose `agree` grades
        label=f"grade {label}",
        answered=looked.answered,
        gold=Ref(gold, digest(gold)),
        **run.judged_by,
    )
    return looked, graded.value


def believe(
    run: Run, row: Row, teacher: Model, fitted: Stored, looked: Looked, scores: Mapping[str, Stored] | None = None
) -> Stored:
    """The trust scores f32[R] of labels outside a link; `scores` are those of the rows before, on the same labels."""
    given = known_of_target(row, looked, None, scores or {}) | gathering.gather(run, teacher, [looked], row.asks)[0]
    return trust(run, row, fitted, looked, given)


def label(
    run: Run, teacher: Model, source: Sequence[Question], target: Sequence[Question], gold: Gold | None, shots: int | None
) -> Labelling:
    """The teacher labels both roles; `shots` None = as its section says."""
    shown = shown_to(run, "teacher", source, gold, shots)
    after = "" if shots is None else f" after {shots} shots"
    labelled = look(run, teacher, leave_out(source, shown), shown, f"source{after}")
    return Labelling(labelled, gold.grade(labelled.answers), look(run, teacher, target, shown, f"target{after}"))


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
    asks = asks_of(fitted)
    refuse_missing_evidence(f"trust {described['trust']!r}", fitted.needs, run.task.interface)
    shown: Demonstrations = ()
    if shots := described["about"].get("shots", run.config.teacher.shots):
        shown = shown_to(run, "teacher", ask(run.task, "source"), run.task.gold("source"), shots)
    looked = look(run, teacher, leave_out(ask(run.task, role), shown), shown, role)
    (given,) = gathering.gather(run, teacher, [looked], asks)
    if missing := fitted.needs - set(looked.extra) - set(given):
        raise ValueError(
            f"trust {described['trust']!r} needs {', '.join(sorted(missing))}, which scoring a new pool cannot give; "
            "choose another trust function"
        )
    note_other_teacher(run, described, teacher)
    evidence = looked.evidence(opened(given))
    return looked.answers, checked_scores(fitted.score(evidence), len(looked.answers), described["trust"])


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
        **run.judged_by,
    ).value


def audit(
    run: Run,
    row: Row,
    offer: Offer,
    chosen: Stored,
    taught: Stored | None,
    questions: Sequence[Question],
    gold: Gold | None,
) -> Audit:
    """How good trust and selection really were, after the fact; of relabelled rows, those that were not dropped.

    Raises:
        ValueError: the student has not been stored yet.
    """
    if taught is None or not (taught.path / "manifest.json").exists():
        raise ValueError(
            f"audit {row.method}: the student has not been stored, so looking at the target's gold could still change it; "
            "run teach first"
        )

    group = {q.id: q.group or q.id for q in questions}
    there = offer.there
    cluster = tuple(group[offer.answers.question_id[r]] for r in there)

    def fn(work, **inputs):
        selected, score = chosen.value, offer.score[there]
        rows = np.searchsorted(there, selected.row)
        if gold is None:
            return metrics.audit(score, None, rows)
        right = np.ones(len(rows), bool) if row.labels == "gold" else gold.grade(selected.answers)
        return metrics.audit(score, gold.grade(offer.answers[there]), rows, taught=right, cluster=cluster)

    return run.stage(
        "audit",
        fn,
        code=("w2s_jax.metrics", *plugins.source_words("task", run.config.tasks.name)),
        label=f"audit {row.method}",
        scores=offer.stored,
        chosen=chosen,
        taught=taught,
        answered=offer.unlabelled.answered,
        cluster=cluster,
        labels=row.labels,
        gold=Ref(gold, digest(gold)),
        **run.judged_by,
    ).value


def source_and_target(run: Run, teacher: Model) -> tuple[Looked, np.ndarray, Looked]:
    """What a sweep fits trust functions on and has them judge: the source, which of its labels are right, and the target.

    Raises:
        ValueError: whatever asking the teacher is refused for.
    """
    source, target = (ask(run.task, role) for role in ("source", "target"))
    refuse_overlap(source=source, target=target)
    seen = label(run, teacher, source, target, run.task.gold("source"), None)
    return seen.labelled, seen.correct, seen.unlabelled


def appraise(run: Run, chosen: Stored, scores: Stored, unlabelled: Looked) -> Stored:
    """How good the scores of a sweep's heads are on the target, after the fact.

    Args:
        chosen: the stored choice of a head.
        scores: whose value has `score` f32[E, R], of E heads.
        unlabelled: the target, which was scored.

    Returns:
        `auc`, `auc_lo`, `auc_hi`, `purity`, f64[E], NaN where undefined; the purity is of the `taught` most trusted labels.

    Raises:
        ValueError: no head has been chosen yet.
    """
    if not (chosen.path / "manifest.json").exists():
        raise ValueError("no head has been chosen, so looking at the target's gold could still change the choice; choose first")
    gold, section = run.task.gold("target"), run.config.select
    answers = unlabelled.answers
    group = {q.id: q.group or q.id for q in ask(run.task, "target")}
    cluster = tuple(group[i] for i in answers.question_id)
    answered = len({i for i, final in zip(answers.question_id, answers.final, strict=True) if final != ""})
    wanted = round(section.fraction * answered) if section.rule == "fraction" else section.n
    taught = min(max(wanted, 1), answered)

    def fn(work, **inputs):
        each = scores.value["score"]
        if gold is None:
            return {name: np.full(len(each), np.nan) for name in ("auc", "auc_lo", "auc_hi", "purity")} | {"taught": taught}
        correct, found = gold.grade(answers), []
        for score in each:
            row = selection.top_n(score, answers, n=taught).row
            a = metrics.audit(score, correct, row, cluster=cluster)
            found.append([np.nan if v is None else v for v in (a.auc, *(a.auc_interval or (None, None)), a.purity)])
        return dict(zip(("auc", "auc_lo", "auc_hi", "purity"), np.float64(found).T)) | {"taught": taught}

    return run.stage(
        "appraise",
        fn,
        code=("w2s_jax.metrics", "w2s_jax.selection", *plugins.source_words("task", run.config.tasks.name)),
        label="appraise heads",
        chosen=chosen,
        scores=scores,
        answered=unlabelled.answered,
        cluster=cluster,
        taught=taught,
        gold=Ref(gold, digest(gold)),
        **run.judged_by,
    )


def afterwards(
    run: Run,
    name: str,
    fn: Callable[..., Any],
    /,
    *,
    choices: Mapping[str, Choice],
    label: str,
    code: Sequence[str] = (),
    alone: bool = False,
    **inputs: Any,
) -> Stored:
    """A stage that looks at the target's gold once every student is stored: why the methods came to what they came to.

    Args:
        run: config, seed, store.
        name, label, code, alone, inputs: see `Store.stage`; the task's own code is added.
        fn: called as `fn(work, gold=..., **inputs)`; `gold` is None where the target has none.
        choices: of all methods; that their students are there is checked, and is not part of the key.

    Raises:
        ValueError: a student has not been stored yet.
    """
    refuse_unstored(choices, label)
    gold = run.task.gold("target")
    task = plugins.source_words("task", run.config.tasks.name)
    inputs |= {"gold": Ref(gold, digest(gold)), **run.judged_by}
    return run.stage(name, fn, code=(*code, *task), label=label, alone=alone, **inputs)


def refuse_unstored(choices: Mapping[str, Choice], label: str) -> None:
    """Makes sure that nothing can change any more once the target's gold is looked at.

    Raises:
        ValueError: a student has not been stored yet.
    """
    if missing := [method for method, one in choices.items() if not (one.taught.path / "manifest.json").exists()]:
        raise ValueError(
            f"{label}: the student of {missing[0]!r} has not been stored, so looking at the target's gold could still change "
            "it; run teach first"
        )


def digest(gold: Gold | None) -> str:
    """The content key of gold answers: they enter a store key only through it, never a file."""
    return hashlib.sha256(repr(gold and (gold.question_id, gold.accepted)).encode()).hexdigest()
