"""What theory predicts of a link beside what came of it: the gain of each student over its weak labels, and its predictors.

Measured once the students are stored, on a sample of the target's questions that is the same for all methods (drawn by the
run's seed). Stage in: hidden states of teacher and untaught student at the end of each question, before any answer; what the
teacher, the untaught student and each taught one answer. Stage out: a `Gain` for each method that was taught weak labels, and
the arrays that it was computed from, which studies of theory read.

    predictor           predicts                                                     computed by        gold?
    misfit              the gain in answers, at most (in size)                       `theory.misfit`    no
    misfit_squared      the gain in squared error, at least, of a convex class       `theory.misfit`    no
    misfit_divergence   the gain in nats, likewise                                   `theory.misfit`    no
    overlap             more overlap among the taught, more gain                     `theory.overlap`   no
    probe_gain          the gain in answers of a ridge probe on the student's states `theory.kernels`   to score it
    cka, kernel_norm    more alike, less to learn; larger norm, more missed          `theory.kernels`   no
    kernel_gain         the gain in squared error of probes                          `theory.kernels`   yes
    bound_gain          the gain in answers, at least, by expansion                  `theory.probing`   yes
    rule                whether the student beats itself                             `theory.kernels`   yes

Gains are those of questions that the method did not teach, where there are enough of them: what was taught is partly
remembered. The weak labels of questions that were not chosen count as uncovered points for expansion.

The states are not those that trust functions read: these stand behind the answer, and a probe on them would find there what it
is to predict. An answer is a class where all questions share their options, or are asked by letter; without classes, what
needs them is undefined.

Source: see the modules of theory/. Deviations: 1. which questions, states, probes and ridge: ours.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from w2s_jax import comparison, pipeline
from w2s_jax.looking import answer, observe
from w2s_jax.metrics import Undefined
from w2s_jax.pipeline import Choice, Linked
from w2s_jax.run import Model, Run
from w2s_jax.settings import uses_target_gold
from w2s_jax.theory import kernels, misfit, overlap, probing
from w2s_jax.theory.partition import ABSTAIN
from w2s_jax.types import Answers, Gold, Question

VERSION = "2"
LEAST = 30
"""Questions that were not taught; with fewer, gains are of all that were looked at."""
AT: dict[str, Any] = {"layers": (-1,), "token": "prompt"}  # where a question ends
RESAMPLES, L2 = 20, 0.1  # of the probes that stand beside a student in `probing.promise`
Limits = tuple[float | None, float | None, float | None]


@dataclasses.dataclass(frozen=True)
class Gain:
    """One method: predicted and realised. None = undefined, `reasons` say why. Intervals are 95 %, paired over questions.

    Attributes:
        method, seed: which student.
        n, taught: questions looked at, and how many of these it was taught.
        held_out: whether misfit and gains are of those that it was not taught.
        measured: how many questions they are of: those that have a label.
        weak, untaught, accuracy: share of right answers there: of the weak labels, of the student before, of the student.
        misfit, gain, gain_lo, gain_hi: share of answers unlike the label; accuracy of the student less that of the labels.
        misfit_squared, gain_squared, gain_squared_lo, gain_squared_hi: the same in squared distance of option probabilities.
        misfit_divergence, gain_divergence, gain_divergence_lo, gain_divergence_hi: in nats, beside the teacher's probabilities,
            whatever labels were made of them.
        overlap: overlap density of the questions that it was taught.
        overlap_all: that of all questions looked at.
        probe_gain: of a ridge probe on the untaught student's states, taught the same labels.
        cka, kernel_norm, kernel_gap, kernel_gain: of the representations, for all methods alike, see `kernels`.
        bound, bound_gain: share of wrong answers that expansion allows over all questions looked at, and what the weak labels'
            share is above that.
        gain_all: accuracy of the student less that of the labels over all questions looked at, beside `bound_gain`.
        rule, self_gain, self_gain_lo, self_gain_hi: cos(T,*) - cos(S,*) cos(S,T) of probes; accuracy less that of the untaught
            student.
        test_gain, test_gain_lo, test_gain_hi: accuracy on the test questions less that of the teacher.
        reasons: why something is None.
    """

    method: str
    seed: int
    n: int
    taught: int
    held_out: bool
    measured: int
    weak: float | None = None
    untaught: float | None = None
    accuracy: float | None = None
    misfit: float | None = None
    gain: float | None = None
    gain_lo: float | None = None
    gain_hi: float | None = None
    misfit_squared: float | None = None
    gain_squared: float | None = None
    gain_squared_lo: float | None = None
    gain_squared_hi: float | None = None
    misfit_divergence: float | None = None
    gain_divergence: float | None = None
    gain_divergence_lo: float | None = None
    gain_divergence_hi: float | None = None
    overlap: float | None = None
    overlap_all: float | None = None
    probe_gain: float | None = None
    cka: float | None = None
    kernel_norm: float | None = None
    kernel_gap: float | None = None
    kernel_gain: float | None = None
    bound: float | None = None
    bound_gain: float | None = None
    gain_all: float | None = None
    rule: float | None = None
    self_gain: float | None = None
    self_gain_lo: float | None = None
    self_gain_hi: float | None = None
    test_gain: float | None = None
    test_gain_lo: float | None = None
    test_gain_hi: float | None = None
    reasons: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Gains:
    """What was measured of one link; empty where nothing was.

    Attributes:
        rows: for each method that was taught weak labels.
        arrays: of the N questions, by name: `id`; `teacher` and `student` f32[N, D], their states; `gold`, `untaught` i[N],
            classes (-1 = unknown), `untaught_right`; for each method `weak/m`, `answer/m` i[N], `weak_right/m`, `right/m`,
            `taught/m` bool[N].
        notes: what could not be measured, and why.
    """

    rows: tuple[Gain, ...] = ()
    arrays: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Taught:
    """What one method taught and what its student makes of it, at N questions.

    Attributes:
        weak, says: i[N], the class of the label and of the student's answer, -1 = none.
        weak_right, right, unlike: bool[N]: the label is right, the student is, the two differ.
        labelled, taught: bool[N]: the question has a label, and was taught.
        target, probability: f[N, O], the labels' and the student's probabilities of the options, or None.
    """

    weak: np.ndarray
    says: np.ndarray
    weak_right: np.ndarray
    right: np.ndarray
    unlike: np.ndarray
    labelled: np.ndarray
    taught: np.ndarray
    target: np.ndarray | None = None
    probability: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Asked:
    """What is the same for all methods of a link, at N questions.

    Attributes:
        teacher, student: f[N, D], f[N, E], hidden states.
        gold, untaught: i[N], class of the true answer and of the untaught student's, -1 = none.
        untaught_right: bool[N].
        sure: f[N], the teacher's confidence.
        belief, truth: f[N, O], the teacher's probabilities of the options, and 1 for the right one; or None.
        group: N names; questions of one are drawn together.
        without: why there are no classes, "" = there are.
    """

    teacher: np.ndarray
    student: np.ndarray
    gold: np.ndarray
    untaught: np.ndarray
    untaught_right: np.ndarray
    sure: np.ndarray
    belief: np.ndarray | None
    truth: np.ndarray | None
    group: tuple[str, ...]
    without: str = ""


def prepare(run: Run) -> None:
    """Finds out, before anything is computed, what is asked for in vain.

    Raises:
        ValueError: a number out of range.
    """
    section = run.config.analysis
    for name, allowed, fine in (
        ("gains", "0 or more than 10", section.gains == 0 or section.gains > 10),
        ("ridge", "0 or more", section.ridge >= 0),
        ("neighbours", "1 or more", section.neighbours >= 1),
    ):
        if not fine:
            raise ValueError(f"analysis.{name}={section[name]}: allowed is {allowed}; change it in the config")


def measure(run: Run, teacher: Model, student: Model, linked: Linked) -> Gains:
    """Measures what `analysis.gains` asks for.

    Args:
        run: config, seed, store.
        teacher, student: of the link; the student before it was taught.
        linked: what the link left behind.

    Raises:
        ValueError: a student has not been stored yet.
    """
    choices, wanted = linked.choices, run.config.analysis.gains
    pipeline.refuse_unstored(choices, "gains")
    marked = uses_target_gold([one.row for one in choices.values()])
    methods = [m for m, one in choices.items() if one.row.labels == "weak" and m not in marked]
    if not wanted or not methods:
        return Gains()
    try:
        found = beside(run, teacher, student, linked, methods, wanted)
    except ValueError as error:  # what was taught and scored is told whatever becomes of this
        return Gains(notes=(f"gains were not predicted: {error}",))
    return found


def joined(one: Gains, other: Gains) -> Gains:
    """The rows of two seeds; the arrays of the later one that has any."""
    return Gains(one.rows + other.rows, other.arrays or one.arrays, one.notes + other.notes)


def beside(run: Run, teacher: Model, student: Model, linked: Linked, methods: Sequence[str], wanted: int) -> Gains:
    """Asks everybody, then looks at gold."""
    choices, section = linked.choices, run.config.analysis
    some = choices[methods[0]]
    questions = sample(some.target, wanted, run.seed)
    row_of = {i: r for r, i in reversed([*enumerate(some.offer.unlabelled.answers.question_id)])}
    rows = np.array([row_of[q.id] for q in questions])
    looked = some.offer.unlabelled
    before = answer(run, student, questions, "student", some.shown, "answer target untaught", once=True)
    states = {
        "teacher": observe(run, teacher, looked.answered, "teacher", "observe questions teacher", rows=rows, **AT),
        "student": observe(run, student, before, "student", "observe questions student", **AT),
    }
    said = {
        m: answer(run, linked.students[m], questions, "student", some.shown, f"answer target {m}", once=True) for m in methods
    }
    score = {m: difference_on_test(linked, m) for m in methods}
    how = {"ridge": section.ridge, "neighbours": section.neighbours, "seed": run.seed}

    def fn(work, *, gold: Gold | None, **inputs):
        if gold is None:
            return {"rows": [], "arrays": {}, "notes": ["the target has no gold, so no gain is known"]}
        x = {name: np.load(stored.path / "x.npy", allow_pickle=False)[:, 0] for name, stored in states.items()}
        asked = as_asked(questions, x, gold, before.value, looked, rows, run.config.student.style)
        lessons = {m: as_taught(questions, choices[m], said[m].value, gold, asked, run) for m in methods}
        shared = alike(asked, how["ridge"])
        told = [dataclasses.asdict(of_method(asked, lessons[m], shared, method=m, test=score[m], **how)) for m in methods]
        return {"rows": told, "arrays": kept(questions, asked, lessons), "notes": []}

    stored = pipeline.afterwards(
        run,
        "gains",
        fn,
        choices=choices,
        label="predict gains",
        code=("w2s_jax.analysis.gains",),
        alone=True,
        questions=questions,
        states=states,
        answered=looked.answered,
        before=before,
        said=said,
        offered={m: choices[m].offer.stored for m in methods},
        chosen={m: choices[m].chosen for m in methods},
        order=list(methods),
        test=score,
        soft_labels=run.config.student.soft_labels,
        style=run.config.student.style,
        how=how,
    )
    found = stored.value
    return Gains(tuple(Gain(**fields) for fields in found["rows"]), found["arrays"], tuple(found["notes"]))


def sample(questions: Sequence[Question], wanted: int, seed: int) -> tuple[Question, ...]:
    """So many of them, in their order, drawn by the seed alone."""
    drawn = np.random.default_rng([seed, *b"gains"]).permutation(len(questions))[:wanted]
    return tuple(questions[n] for n in np.sort(drawn))


def difference_on_test(linked: Linked, method: str) -> dict[str, Any] | None:
    """Student less teacher on each test question, with their groups and data sets; None without gold."""
    own, weak = linked.trial.trained[method], linked.trial.weak
    if own is None or weak is None:
        return None
    return {"difference": own.correct.astype(np.float64) - weak.correct, "group": own.group, "test": own.test}


# ---- Arrays ----------------------------------------------------------------------------------------------------------


def classes(questions: Sequence[Question], style: str) -> tuple[list[tuple[str, ...]], str]:
    """The classes that answers to each question are places in, and why there are none, "" = there are."""
    if not all(q.options for q in questions):
        return [()] * len(questions), "free answers are no classes"
    if len({frozenset(q.options) for q in questions}) == 1:
        return [tuple(sorted(questions[0].options))] * len(questions), ""
    if style == "letter":
        return [q.options for q in questions], ""
    return [()] * len(
        questions
    ), f"options differ from question to question, and style {style!r} does not ask for their letters"


def placed(finals: Sequence[str], among: Sequence[tuple[str, ...]]) -> np.ndarray:
    """i64[N]: each answer's place among its question's classes, -1 = none.

    >>> placed(["b", "c"], [("a", "b"), ("a", "b")])
    array([ 1, -1])
    """
    return np.array([one.index(final) if final in one else -1 for final, one in zip(finals, among, strict=True)], np.int64)


def as_asked(
    questions: Sequence[Question],
    x: Mapping[str, np.ndarray],
    gold: Gold,
    before: Mapping[str, Any],
    looked: Any,
    rows: np.ndarray,
    style: str,
) -> Asked:
    among, without = classes(questions, style)
    accepted = dict(zip(gold.question_id, gold.accepted, strict=True))
    true = [accepted[q.id][0] for q in questions]
    belief = truth = None
    sure = np.exp(np.asarray(looked.extra["answer_logp"], np.float64)[rows])
    if "option_logp" in looked.extra:
        belief = np.exp(np.asarray(looked.extra["option_logp"], np.float64)[rows])
        sure = overlap.confidence(belief)
        truth = one_hot(placed(true, [q.options for q in questions]), belief.shape[1])
    return Asked(
        teacher=x["teacher"],
        student=x["student"],
        gold=placed(true, among),
        untaught=placed(before["answers"].final, among),
        untaught_right=gold.grade(before["answers"]),
        sure=sure,
        belief=belief,
        truth=truth,
        group=tuple(q.group or q.id for q in questions),
        without=without,
    )


def as_taught(
    questions: Sequence[Question], one: Choice, said: Mapping[str, Any], gold: Gold, asked: Asked, run: Run
) -> Taught:
    """A question's label is the one that was taught, or else its first."""
    answers, offer, chosen = one.offer.answers, one.offer, set(one.chosen.value.row.tolist())
    row_of: dict[str, int] = {}
    for r, i in enumerate(answers.question_id):
        known = row_of.get(i)
        if known is None or r in chosen or (known not in chosen and not answers.final[known]):
            row_of[i] = r
    rows = np.array([row_of[q.id] for q in questions])
    labels = answers[rows]
    among, _ = classes(questions, run.config.student.style)
    target = probability = None
    if asked.belief is not None:
        num_options = asked.belief.shape[1]
        soft = run.config.student.soft_labels  # what `teaching.soften` made of the lesson
        if soft and offer.relabelled and offer.relabelled.value.target is not None:
            target = np.asarray(offer.relabelled.value.target, np.float64)[rows]
        elif soft and not offer.relabelled:
            target = np.exp(np.asarray(offer.unlabelled.extra["option_logp"], np.float64)[rows])
        else:
            target = one_hot(placed(labels.final, [q.options for q in questions]), num_options)
        probability = np.exp(np.asarray(said["extra"]["option_logp"], np.float64))
    return Taught(
        weak=placed(labels.final, among),
        says=placed(said["answers"].final, among),
        weak_right=gold.grade(labels),
        right=gold.grade(said["answers"]),
        unlike=unlike(labels, said["answers"], getattr(run.task, "agree", None)),
        labelled=np.array([final != "" for final in labels.final]),
        taught=np.array([r in chosen for r in rows.tolist()]),
        target=target,
        probability=probability,
    )


def unlike(labels: Answers, said: Answers, agree: Any) -> np.ndarray:
    """bool[N]: whether a student's answer is another one than the label; no answer is unlike all."""
    if agree is None:
        return np.array([a != b or not a for a, b in zip(labels.final, said.final, strict=True)])
    return ~np.asarray(agree(said.final, labels.final), bool)


def one_hot(place: np.ndarray, size: int) -> np.ndarray:
    """f64[N, size]; a row of zeros where the place is -1."""
    return np.where(place[:, None] == np.arange(size), 1.0, 0.0)


def kept(questions: Sequence[Question], asked: Asked, lessons: Mapping[str, Taught]) -> dict[str, np.ndarray]:
    """What `Gains.arrays` says."""
    found = {"id": np.array([q.id for q in questions]), "teacher": asked.teacher, "student": asked.student}
    found |= {"gold": asked.gold, "untaught": asked.untaught, "untaught_right": asked.untaught_right}
    for method, one in lessons.items():
        found |= {f"weak/{method}": one.weak, f"answer/{method}": one.says, f"weak_right/{method}": one.weak_right}
        found |= {f"right/{method}": one.right, f"taught/{method}": one.taught}
    return found


# ---- Predicted and realised ------------------------------------------------------------------------------------------


def alike(asked: Asked, ridge: float) -> dict[str, Any]:
    """What the representations alone say, for all methods: fields of `Gain`, and `reasons`."""
    found: dict[str, Any] = {"reasons": []}
    try:
        found["cka"] = kernels.cka(asked.teacher, asked.student)
        there = asked.gold >= 0
        truth = one_hot(asked.gold[there], asked.gold.max() + 1) if not asked.without and there.any() else None
        rows = there if truth is not None else np.ones(len(asked.sure), bool)
        shaped = kernels.shape(asked.teacher[rows], asked.student[rows], truth, ridge=ridge)
        found["kernel_norm"] = shaped.norm
        if truth is not None:
            found |= {"kernel_gap": shaped.gap, "kernel_gain": shaped.gain}
        else:
            found["reasons"].append(f"kernel_gap, kernel_gain, probe_gain, bound, rule: {asked.without or 'no class is known'}")
    except Undefined as reason:
        found["reasons"].append(f"cka and kernels: {reason}")
    return found


def of_method(
    asked: Asked,
    one: Taught,
    shared: Mapping[str, Any],
    *,
    method: str,
    test: Mapping[str, Any] | None,
    ridge: float,
    neighbours: int,
    seed: int,
) -> Gain:
    """All predictors of one method, and what they predict.

    Args:
        asked, one: the arrays.
        shared: from `alike`.
        method: its name.
        test: see `difference_on_test`.
        ridge, neighbours: of the config.
        seed: the run's.
    """
    reasons = list(shared["reasons"])
    found: dict[str, Any] = {name: value for name, value in shared.items() if name != "reasons"}
    held_out = int((one.labelled & ~one.taught).sum()) >= LEAST
    rows = one.labelled & ~one.taught if held_out else one.labelled
    group = [name for name, there in zip(asked.group, rows, strict=True) if there]
    if rows.any():
        found |= {
            "weak": float(one.weak_right[rows].mean()),
            "untaught": float(asked.untaught_right[rows].mean()),
            "accuracy": float(one.right[rows].mean()),
        }
        pair = misfit.answers(one.unlike[rows], one.weak_right[rows], one.right[rows])
        found |= _pair("", pair, group)
        itself = one.right[rows].astype(np.float64) - asked.untaught_right[rows]
        found |= _named("self_gain", itself, group)
        if one.target is not None and asked.truth is not None:
            known = rows & (asked.truth.sum(axis=1) > 0) & (one.target.sum(axis=1) > 0)
            if known.any():
                clusters = [name for name, there in zip(asked.group, known, strict=True) if there]
                given = one.probability[known], one.target[known], asked.truth[known]
                found |= _pair("_squared", misfit.squared(*given), clusters)
                given = one.probability[known], asked.belief[known], asked.truth[known]
                found |= _pair("_divergence", misfit.divergence(*given), clusters)
        else:
            reasons.append("misfit_squared, misfit_divergence: free answers have no probabilities of options")
    else:
        reasons.append("misfit and gains: no question that was looked at has a label")
    if test is not None:
        limits = comparison.interval(np.asarray(test["difference"])[None], test["group"], test["test"])
        found |= dict(zip(("test_gain", "test_gain_lo", "test_gain_hi"), limits, strict=True))
    for name, predict in (
        ("overlap", lambda: overlapping(asked, one)),
        ("probe_gain", lambda: probed(asked, one, ridge) if not asked.without else {}),
        ("bound", lambda: bounded(asked, one, neighbours, seed) if not asked.without else {}),
        ("rule", lambda: turned(asked, one, ridge, seed) if not asked.without else {}),
    ):
        try:
            found |= predict()
        except ValueError as reason:
            reasons.append(f"{name}: {reason}")
    return Gain(
        method=method,
        seed=seed,
        n=len(asked.sure),
        taught=int(one.taught.sum()),
        held_out=held_out,
        measured=int(rows.sum()),
        reasons=tuple(reasons),
        **found,
    )


def overlapping(asked: Asked, one: Taught) -> dict[str, float]:
    found = overlap.detect(asked.sure, asked.student)
    return {"overlap_all": found.density(), "overlap": found.density(np.flatnonzero(one.taught))}


def probed(asked: Asked, one: Taught, ridge: float) -> dict[str, float]:
    """The gain in answers of a ridge probe that is taught what the student was, on questions that it was not.

    Raises:
        Undefined: fewer than two classes were taught, or nothing was left out.
    """
    learnt = one.taught & (one.weak >= 0)
    asked_of = one.labelled & ~one.taught & (asked.gold >= 0)
    if len(np.unique(one.weak[learnt])) < 2 or not asked_of.any():
        raise Undefined(
            f"a probe needs two classes among the taught and questions that were not; here are "
            f"{len(np.unique(one.weak[learnt]))} classes and {int(asked_of.sum())} such questions"
        )
    y = one_hot(one.weak[learnt], max(asked.gold.max(), one.weak.max()) + 1)
    said = kernels.ridge_probe(asked.student[learnt], y, asked.student[asked_of], ridge=ridge).argmax(axis=1)
    right = float(np.mean(said == asked.gold[asked_of]))
    return {"probe_gain": right - float(one.weak_right[asked_of].mean())}


def bounded(asked: Asked, one: Taught, neighbours: int, seed: int) -> dict[str, float]:
    """What expansion promises of the student over all questions whose true class is known.

    Raises:
        ValueError: no theorem applies; the first precondition that failed.
    """
    known = (asked.gold >= 0) & one.labelled
    weak = np.where(one.taught & (one.weak >= 0), one.weak, ABSTAIN)[known]
    says = np.where(one.says >= 0, one.says, asked.gold.max() + 1)[known]  # an answer of no class is another class
    found = probing.promise(
        asked.student[known], weak, asked.gold[known], says, neighbours=neighbours, resamples=RESAMPLES, l2=L2, seed=seed
    )
    if found.error is None:
        raise Undefined(f"inapplicable: {found.reason}")
    labels = 1 - float(one.weak_right[known].mean())
    gain = labels - 1 + float(one.right[known].mean())
    return {"bound": found.error, "bound_gain": labels - found.error, "gain_all": gain}


def turned(asked: Asked, one: Taught, ridge: float, seed: int) -> dict[str, float]:
    known = (asked.gold >= 0) & (one.weak >= 0) & (asked.untaught >= 0)
    size = max(asked.gold.max(), one.weak.max(), asked.untaught.max()) + 1
    if int(known.sum()) < 2 * kernels.FOLDS:
        raise Undefined(f"{int(known.sum())} questions have a class by truth, label and untaught student; too few for probes")
    said = (one_hot(place[known], size) for place in (asked.untaught, one.weak, asked.gold))
    return {"rule": kernels.turning(asked.student[known], *said, ridge=ridge, seed=seed).rule}


def _pair(kind: str, pair: tuple[np.ndarray, np.ndarray], group: Sequence[str]) -> dict[str, float]:
    return {f"misfit{kind}": float(pair[0].mean())} | _named(f"gain{kind}", pair[1], group)


def _named(name: str, values: np.ndarray, group: Sequence[str]) -> dict[str, float]:
    """Mean and limits of f[N]."""
    return dict(zip((name, f"{name}_lo", f"{name}_hi"), comparison.interval(values[None], group), strict=True))
