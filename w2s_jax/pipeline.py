"""One link: one teacher, one student, every method. The story of the project, stage by stage, and its gold door.

    ask -> answer -> observe -> gather -> calibrate -> trust (-> relabel) -> select -> teach -> score -> recover -> audit

This is the only file that calls `Task.gold`. It stands on `looking` (the teacher asked and observed), `gathering` (what else
trust functions ask for), `relabelling` (labels in place of the teacher's) and `run` (what all stages share), which read the
config as it does; what they call takes plain keyword arguments.
Gold answers of the target reach a stage before the student only in rows that say so (`labels="gold"`, the oracle, the
same-purity control); the report marks them. Every stage goes through the store, so that methods share what they have in common.

Source: arXiv 2606.01000.
"""

import dataclasses
import functools
import hashlib
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from w2s_jax import certificate, gathering, metrics, plugins, processes, recovery, relabelling, scoring, selection
from w2s_jax.looking import Labelling, Looked, answer, ask, look, shown_to
from w2s_jax.models import hf_io, peft_io
from w2s_jax.packing import Shape
from w2s_jax.run import ROLES, Model, Run
from w2s_jax.settings import (
    Row,
    asks_of,
    check,
    compute_of,
    computing_of,
    keywords_of,
    refuse_choiceless,
    refuse_missing_evidence,
    refuse_other_features,
    terms_of,
    training_of,
    uses_target_gold,
    writing_of,
)
from w2s_jax.store import Ref, Stored
from w2s_jax.student import OnPolicy, OverOptions, online, rewards, trainer
from w2s_jax.tasks.asking import Asking
from w2s_jax.tasks.roles import Demonstrations, leave_out, refuse_overlap
from w2s_jax.trust import artefact, controls
from w2s_jax.types import Answers, Audit, Gold, Lesson, Question, Score, Selection

VERSION = "3"
COMPLETIONS = "completions.json"  # beside a student that learnt from what it wrote

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
class Offer:
    """The labels of the target that a method chooses from, R rows.

    Attributes:
        scores: the stored trust scores of the teacher's own labels.
        unlabelled: these labels, as the teacher gave them to this method.
        relabelled: the stored `Relabelled` that takes their place, or None.
    """

    scores: Stored
    unlabelled: Looked
    relabelled: Stored | None = None

    @property
    def stored(self) -> Stored:
        """Where the scores that the selection goes by come from."""
        return self.relabelled or self.scores

    @property
    def answers(self) -> Answers:
        return self.relabelled.value.answers if self.relabelled else self.unlabelled.answers

    @property
    def score(self) -> np.ndarray:
        """f32[R]."""
        return self.relabelled.value.score if self.relabelled else self.scores.value

    @property
    def origin(self) -> tuple[str, ...]:
        """R words, see `types.Selection`."""
        return self.relabelled.value.origin if self.relabelled else ("weak",) * len(self.answers)


@dataclasses.dataclass(frozen=True)
class Choice:
    """What one method chose.

    Attributes:
        row: of the config's table.
        target: the questions that were to choose from.
        offer: the labels that there were, and the trust in them.
        chosen, taught: the stored selection and student.
        shown: the demonstrations that students are shown.
    """

    row: Row
    target: tuple[Question, ...]
    offer: "Offer"
    chosen: Stored
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
    taught: dict[str, Stored] = {}
    matched = [row for row in rows if row.matches]  # to the selection of another row, which is made before
    others = [row for row in rows if not row.matches]

    def believed(row: Row, known: Mapping[str, Any]) -> None:
        """Fits a row's trust function and scores the target with it; `known` is evidence that is there already."""
        seen = labellings[row.shots]
        given = gather(row, seen.unlabelled, gold["target"] if row.method in marked else None, scores, known)
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
            tuple(target),
            offers[row.method],
            chosen[row.method],
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
    given = gather(row, looked, None, scores or {}) | gathering.gather(run, teacher, [looked], row.asks)[0]
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


def note_other_teacher(run: Run, described: Mapping[str, Any], teacher: Model) -> None:
    if described["about"]["teacher_key"] != teacher.key:
        known = described["about"]["teacher"]
        run.store.log(
            f"note: this trust function was fitted on the teacher {known!r}, another model than this {teacher.name!r}"
        )


# ---- 4 calibrate, 5 trust, 6 select ----------------------------------------------------------------------------------


def gather(
    row: Row, unlabelled: Looked, gold: Gold | None, scores: Mapping[str, Stored], known: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """What a row's trust function asks for on the target alone: other rows' scores, or (the oracle) gold.

    Args:
        row, unlabelled, gold, scores: of the row, the target, its gold (for rows that may see it), the rows before it.
        known: what is there already, see `match`.

    Raises:
        ValueError: it asks for something that this run cannot give.
    """
    found: dict[str, Any] = {}
    for name in sorted(row.needs - set(unlabelled.extra) - set(gathering.PROVIDERS) - set(known or {})):
        kind, _, method = name.partition("/")
        if name == "correct" and gold is not None:
            found[name] = gold.grade(unlabelled.answers)
        elif kind == "score" and method in scores:
            found[name] = scores[method]
        else:
            there = [*sorted({*unlabelled.extra, *gathering.PROVIDERS}), *(f"score/{m}" for m in scores)]
            raise ValueError(
                f"method {row.method!r}: trust {row.trust!r} needs {name!r}, but there is only {', '.join(there)} (scores of "
                "the methods before it); reorder or change methods in the config"
            )
    return found


def opened(given: Mapping[str, Any]) -> dict[str, Any]:
    """The values of gathered evidence."""
    return {name: value.value if isinstance(value, Stored) else value for name, value in given.items()}


def match(row: Row, questions: Sequence[Question], unlabelled: Looked, chosen: Mapping[str, Stored]) -> dict[str, np.ndarray]:
    """What a row that is matched to another's selection is given: that selection, and how hard the questions are; no gold."""
    selected = np.isin(np.arange(len(unlabelled.answers)), chosen[row.matches].value.row)
    found = {f"selected/{row.matches}": selected}
    if "difficulty" in row.needs:
        found["difficulty"] = controls.difficulty(questions, unlabelled.answers, unlabelled.extra["answer_logp"])
    return found


@dataclasses.dataclass(frozen=True)
class Calibration:
    """The source rows that a certificate is made on.

    Attributes:
        held: bool[R], the rows that no trust function which is certified was fitted on.
        correct: bool[R], whether each row of the source is right.
        caveats: why a certificate made on them may not hold for the target.
    """

    held: np.ndarray
    correct: np.ndarray
    caveats: tuple[str, ...]


def hold_back(
    run: Run, labelled: Looked, correct: np.ndarray, source: Sequence[Question], target: Sequence[Question]
) -> Calibration:
    """Parts the source, before anything is fitted.

    Questions of a group stay on one side, so that calibration questions are as new to the head as those of the target are;
    where the target has questions of the source's groups it is not new to them either, and questions are drawn one by one.
    """
    asked = set(labelled.answers.question_id)
    source = [q for q in source if q.id in asked]
    together = not {q.group for q in source if q.group} & {q.group for q in target}
    seed = np.asarray(jax.random.key_data(run.key("hold back")))
    ids = certificate.hold_back(source, terms_of(run.config.select).calibration_frac, together, seed)
    held = np.array([i in ids for i in labelled.answers.question_id], bool)
    return Calibration(held, correct, certificate.caveats([q for q in source if q.id in ids], target))


def calibrate(
    run: Run, row: Row, labelled: Looked, correct: np.ndarray, teacher: Model, calibration: Calibration | None = None
) -> Stored:
    """A fitted trust function, as a folder `trust`; it outlives its run. A row that holds back has not seen `calibration`."""
    fitted_on = about(run, teacher, labelled)
    part = {"held": calibration.held} if calibration and row.holds_back else {}
    if row.flipped:
        correct, fitted_on = ~correct, {**fitted_on, "flipped": True}

    def fit(work, **inputs):
        evidence, right = labelled.evidence(opened(given)), correct
        if part:
            fitting = np.flatnonzero(~part["held"])
            evidence, right = evidence[fitting], right[fitting]
        fitted = plugins.make("trust", row.trust, **row.args).fit(evidence, right, run.key("calibrate"))
        artefact.write(fitted, work.out / "trust", word=row.trust, args=row.args, about=fitted_on)

    def copy(work, **inputs):
        artefact.copy(row.reused, work.out / "trust")

    label = f"calibrate {row.method}"
    if row.reused:
        note_other_teacher(run, artefact.describe(row.reused), teacher)
        reused = Ref(None, run.store.content_key(row.reused))
        return run.stage("calibrate", copy, code=("w2s_jax.trust.artefact",), label=label, alone=True, reused=reused)
    (given,) = gathering.gather(run, teacher, [labelled], row.asks)
    return run.stage(
        "calibrate",
        fit,
        code=("w2s_jax.trust.artefact", *plugins.source_words("trust", row.trust)),
        label=label,
        alone=True,
        trust=row.trust,
        args=row.args,
        about=fitted_on,
        answered=labelled.answered,
        observed=labelled.observed,
        given=given,
        correct=correct,
        seed=run.seed,
        **part,
    )


def about(run: Run, teacher: Model, labelled: Looked) -> dict[str, Any]:
    """What a trust function is fitted on, for those who reuse it."""
    observing, asking = run.config.observe, run.config.teacher
    return {
        "teacher": teacher.name,
        "teacher_key": teacher.key,
        "domain": run.config.domain,
        "style": asking.style,
        "layers": list(observing.layers),
        "token": observing.token,
        "shots": len(labelled.shown),
    }


def trust(run: Run, row: Row, fitted: Stored, unlabelled: Looked, given: Mapping[str, Any]) -> Stored:
    """The trust scores f32[R] of the target's weak labels."""

    def fn(work, **inputs):
        function, _ = artefact.read(fitted.path / "trust")
        return checked_scores(function.score(unlabelled.evidence(opened(given))), len(unlabelled.answers), row.trust)

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


def certify(
    run: Run, row: Row, teacher: Model, fitted: Stored, seen: Labelling, calibration: Calibration, scores: Stored
) -> Stored:
    """How pure what the thresholds of a fitted trust function keep is at least, from the source rows that were held back.

    Raises:
        ValueError: the trust function asks for something that there is of the target alone.
    """
    terms, rows = terms_of(run.config.select), np.flatnonzero(calibration.held)
    labelled, unlabelled = seen.labelled, seen.unlabelled
    (given,) = gathering.gather(run, teacher, [labelled], row.asks)
    if missing := row.needs - set(labelled.extra) - set(given):
        raise ValueError(
            f"method {row.method!r}: trust {row.trust!r} needs {', '.join(sorted(missing))}, which there is of the target "
            "alone, so nothing can be certified on the source; choose another trust.name or select.rule in the config"
        )

    def fn(work, **inputs):
        function, _ = artefact.read(fitted.path / "trust")
        part = labelled.evidence(opened(given))[rows]
        score = checked_scores(function.score(part), len(rows), row.trust)
        best, kept = selection.best_rows(score, part.answers), selection.best_rows(scores.value, unlabelled.answers)
        right = calibration.correct[rows][best]
        return certificate.certify(score[best], right, terms, target_score=scores.value[kept], caveats=calibration.caveats)

    found = run.stage(
        "certify",
        fn,
        code=("w2s_jax.certificate", "w2s_jax.selection", "w2s_jax.trust.artefact", *plugins.source_words("trust", row.trust)),
        label=f"certify {row.method}",
        fitted=fitted,
        answered=labelled.answered,
        observed=labelled.observed,
        given=given,
        held=calibration.held,
        correct=calibration.correct,
        scores=scores,
        target=unlabelled.answered,
        terms=dataclasses.asdict(terms),
        caveats=calibration.caveats,
    )
    for said in (certificate.sentence(found.value), *calibration.caveats):
        run.store.log(f"{run.prefix}certified purity of {row.method}: {said}")
    return found


def select(
    run: Run,
    row: Row,
    offer: Offer,
    questions: Sequence[Question],
    num_taught: int | None,
    certified: Stored | None = None,
) -> Stored:
    """The rows that the student will be taught; `num_taught` of them where another row has settled the number.

    Equal numbers are what makes methods comparable, whatever the rule; equal classes too, under a rule that makes them.
    """
    section = run.config.select
    rule = selection.RULES[section.rule]
    wanted = inspect.signature(rule).parameters
    if row.everything:
        rule, amounts = selection.fraction, {"fraction": 1.0}
    elif row.matches or (num_taught is not None and not row.leads and "n" not in wanted):
        rule, amounts = selection.top_n, {"n": num_taught}
    else:
        amounts = {name: section[name] for name in wanted if name in section}
        if "classes" in wanted:
            amounts["classes"] = selection.classes(questions, offer.answers, section.balance)
        if "certificate" in wanted:
            amounts["certificate"] = certified.value

    def fn(work, **inputs):
        chosen = rule(offer.score, offer.answers, **amounts)
        return dataclasses.replace(chosen, origin=tuple(offer.origin[r] for r in chosen.row))

    return run.stage(
        "select",
        fn,
        code=("w2s_jax.selection",),
        label=f"select {row.method}",
        scores=offer.stored,
        answers=offer.answers,
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


def soften(lesson: Lesson, chosen: Selection, offer: Offer, soft_labels: bool) -> Lesson:
    """A lesson of weak labels with what else is known of them: each teacher's own labels where a relabeller asked several, and
    (`soft_labels`) soft ones, a relabeller's or the teacher's.

    Raises:
        ValueError: the teacher's probabilities are asked for, and its answers are free.
    """
    target = experts = None
    if offer.relabelled:
        experts = offer.relabelled.value.experts
        target = offer.relabelled.value.target if soft_labels else None
    elif soft_labels:
        if "option_logp" not in offer.unlabelled.extra:
            raise ValueError(
                "student.soft_labels=True: soft labels are probabilities of options, and these questions have none; set it to "
                "False in the config"
            )
        target = np.exp(offer.unlabelled.extra["option_logp"])
    row = chosen.row
    return dataclasses.replace(
        lesson,
        target=None if target is None else target[row],
        experts=None if experts is None else experts[row],
    )


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
            encode = asked.ask if isinstance(objective, OverOptions) else asked.answer
            learn = functools.partial(trainer.teach, encode=encode)
        taught = learn(
            lm,
            lesson,
            objective,
            training=training_of(section.training),
            shape=Shape(**section.training.shape),
            compute=compute_of(run.mesh, section),
            key=run.key("teach"),
            partial=work.partial,
            log=functools.partial(run.log, f"{run.prefix}teach {method}", work.out.name),
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
        reading = {"writing": writing_of(section), "shape": section.shape.to_dict()}
        reading |= run.judged_by
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
    there = np.arange(len(offer.answers))
    if offer.relabelled:
        there = np.flatnonzero([final != "" for final in offer.answers.final])
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
