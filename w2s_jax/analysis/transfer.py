"""The transfer matrix: a trust function fitted on each data set judges the teacher's labels of each.

Each set is split once into halves by a keyed hash of its question ids (questions on one passage stay together): every fit
reads a first half, every evaluation a second one, so that the diagonal is fair, one fit serves a whole row, and all cells of a
column judge the same labels. The teacher answers each set once, through the store, whatever the number of pairs. What a trust
function asks for about a label is found as the label's own set is asked (its task, style and shape), wherever it was fitted.

Tiers, by how far the target is from the source:
    ID          the same benchmark (the other half of the set, or another split)
    OOD_dist    another benchmark of the same `Task.interface`
    OOD_domain  another interface

Source: arXiv 2606.01000 (the tiers).
Deviations: 1. halves: the paper does not say how ID is held out. 2. questions of the target that the source half asks too are
left out of the pair's cell and counted.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from flax import traverse_util
from ml_collections import ConfigDict

from w2s_jax import calibrating, gathering, metrics, pipeline, selection
from w2s_jax.looking import Looked, ask
from w2s_jax.run import Model, Run
from w2s_jax.settings import Row, check, uses_target_gold
from w2s_jax.store import Stored
from w2s_jax.tasks.roles import portions
from w2s_jax.types import Question

TIERS = ("ID", "OOD_dist", "OOD_domain")


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A labelled data set of the matrix.

    Attributes:
        name: what the tables call it, such as "arc_easy:train".
        benchmark: what it is a split of, such as "arc_easy".
        run: a run whose task has it as its source; all runs of a matrix share their store and the model in memory, and their
            configs differ in the tasks and teacher sections alone, see `refuse_other_settings`.
    """

    name: str
    benchmark: str
    run: Run


@dataclasses.dataclass(frozen=True)
class Cell:
    """One trust function, fitted on one set, judging another; fractions, None = undefined with a `reason`. Intervals are 95 %.

    Attributes:
        method, source, target, tier: the row of the config's table, the sets, and how far apart these are.
        num_fitted, num_judged, num_shared: labels fitted on, labels judged, target questions left out for being asked in both.
        right: share of the judged labels that is right.
        auc, auc_lo, auc_hi, ece, brier: of the scores.
        n, purity, purity_lo, purity_hi: the most trusted labels that are kept, and the share of them that is right.
    """

    method: str
    source: str
    target: str
    tier: str
    num_fitted: int
    num_judged: int
    num_shared: int
    right: float | None
    auc: float | None
    auc_lo: float | None
    auc_hi: float | None
    ece: float | None
    brier: float | None
    n: int
    purity: float | None
    purity_lo: float | None
    purity_hi: float | None
    reason: str = ""


@dataclasses.dataclass(frozen=True)
class Half:
    """One half of a set, labelled by the teacher.

    Attributes:
        questions: of the half.
        looked, correct: the teacher's labels and which of them are right, bool[R].
    """

    questions: tuple[Question, ...]
    looked: Looked
    correct: np.ndarray


def matrix(datasets: Sequence[Dataset], teacher: Model, *, keep: float = 0.25) -> tuple[Cell, ...]:
    """Fits and judges every pair with every trust function of the config's methods.

    Methods that teach gold labels, need the target's, are matched to a selection, or label after demonstrations of their own
    have no place here.

    Args:
        datasets: two or more.
        teacher: the model that labels all of them.
        keep: share of the answered target questions whose purity is told.

    Returns:
        The cells: methods in their order, for each the sources, for each the targets.

    Raises:
        ValueError: whatever `prepare` refuses, and a set whose labels cannot be fitted on.
    """
    if not 0 < keep <= 1:
        raise ValueError(f"keep={keep}: allowed is a share above 0, up to 1")
    rows = prepare(datasets)
    fitting, judging = {}, {}
    for one in datasets:
        halves = portions(ask(one.run.task, "source"), (1, 1), f"transfer, seed {one.run.seed}")
        fitting[one.name], judging[one.name] = (
            Half(questions, *pipeline.examine(one.run, teacher, questions, f"half {number}"))
            for number, questions in enumerate(halves, 1)
        )
        if (correct := fitting[one.name].correct).all() or not correct.any():
            raise ValueError(
                f"{one.name}: all {len(correct)} labels of the half to fit on are {'right' if correct.all() else 'wrong'}: a "
                "trust function needs both; take it out of the sets, or ask another teacher"
            )
    found: dict[tuple[str, str, str], Cell] = {}
    for source in datasets:
        half = fitting[source.name]
        fitted = {row.method: calibrating.calibrate(source.run, row, half.looked, half.correct, teacher) for row in rows}
        for target in datasets:
            other = judging[target.name]
            scores: dict[str, Stored] = {}
            for row in rows:
                place = target.run.at(f"from {source.name}", target.run.config)
                scores[row.method] = pipeline.believe(place, row, teacher, fitted[row.method], other.looked, scores)
                about = (row.method, source.name, target.name)
                found[about] = judge(*about, tier(source, target), half, other, scores[row.method].value, keep)
    return tuple(found[row.method, a.name, b.name] for row in rows for a in datasets for b in datasets)


def prepare(datasets: Sequence[Dataset]) -> list[Row]:
    """The rows of the matrix, once all that can be refused before the teacher is asked anything has been.

    Raises:
        ValueError: fewer than two sets, settings in which they may not differ, demonstrations, or a set that cannot give what a
            row's trust function needs.
    """
    if len(datasets) < 2 or len({d.name for d in datasets}) < len(datasets):
        raise ValueError(f"a transfer matrix has two sets or more, each once, here are {[d.name for d in datasets]}")
    refuse_other_settings(datasets)
    for one in datasets:
        if one.run.config.teacher.shots:
            raise ValueError(
                f"teacher.shots={one.run.config.teacher.shots}: demonstrations would come from one set of the matrix, and each "
                "is asked once for all pairs; set teacher.shots=0"
            )
    rows = [row for row in check(datasets[0].run.config) if row.labels == "weak" and not row.matches and row.shots is None]
    rows = [row for row in rows if row.method not in uses_target_gold(rows)]
    for one in datasets:
        try:
            check(one.run.config)  # its own teacher section
            gathering.prepare(one.run, rows)
        except ValueError as error:
            raise ValueError(f"{one.name}: {error}") from None
    return rows


def refuse_other_settings(datasets: Sequence[Dataset]) -> None:
    """Makes sure that the configs of the sets differ only in what is a set's own: its task, and how the teacher is asked.

    Raises:
        ValueError: they differ in something that is settled once for the whole matrix.
    """
    first, *others = datasets
    known = _settings(first.run.config)
    for one in others:
        own = _settings(one.run.config)
        for key in sorted(known.keys() | own.keys()):
            if (then := known.get(key)) == (now := own.get(key)):
                continue
            if key == "teacher.model":
                why = "one teacher labels all sets of a matrix"
            elif key.startswith("observe."):
                why = "a trust function can only judge the hidden states that it was fitted on, and each judges every set"
            else:
                why = "it is settled once for the whole matrix; a set has sections tasks and teacher (not its model) of its own"
            raise ValueError(
                f"{key}={now!r} for {one.name!r}, but {then!r} for {first.name!r}: {why}; give {key} in the config, for all "
                "sets, and not for one of them"
            )


def _settings(config: ConfigDict) -> dict[str, object]:
    """What all sets of a matrix must have in common, dotted key -> value."""
    flat = traverse_util.flatten_dict(config.to_dict(), sep=".")
    return {k: v for k, v in flat.items() if k == "teacher.model" or k.partition(".")[0] not in ("tasks", "teacher")}


def tier(source: Dataset, target: Dataset) -> str:
    """How far the target is from the source."""
    if source.run.task.interface != target.run.task.interface:
        return "OOD_domain"
    return "ID" if source.benchmark == target.benchmark else "OOD_dist"


def judge(method: str, source: str, target: str, tier: str, fitted: Half, judged: Half, score: np.ndarray, keep: float) -> Cell:
    """Measures one cell."""
    taken = {_asks(question) for question in fitted.questions}
    fresh = {q.id: q.group or q.id for q in judged.questions if _asks(q) not in taken}
    row = np.array([r for r, i in enumerate(judged.looked.answers.question_id) if i in fresh], int)
    score, correct, answers = score[row], judged.correct[row], judged.looked.answers[row]
    pool = {i for i, final in zip(answers.question_id, answers.final, strict=True) if final != ""}
    kept = np.zeros(0, int)
    if pool:
        kept = selection.top_n(score, answers, n=max(1, round(keep * len(pool)))).row
    found = metrics.audit(score, correct, kept, cluster=[fresh[i] for i in answers.question_id])
    auc_lo, auc_hi = found.auc_interval or (None, None)
    purity_lo, purity_hi = found.purity_interval or (None, None)
    return Cell(
        method=method,
        source=source,
        target=target,
        tier=tier,
        num_fitted=len(fitted.correct),
        num_judged=len(row),
        num_shared=len(judged.questions) - len(fresh),
        right=float(correct.mean()) if len(row) else None,
        auc=found.auc,
        auc_lo=auc_lo,
        auc_hi=auc_hi,
        ece=found.ece,
        brier=found.brier,
        n=len(kept),
        purity=found.purity,
        purity_lo=purity_lo,
        purity_hi=purity_hi,
        reason=found.reason,
    )


def by_tier(cells: Sequence[Cell]) -> Mapping[tuple[str, str], tuple[float | None, float | None, int]]:
    """Mean AUC and purity over the cells of each (method, tier) that has any, and how many these are."""
    found = {}
    for method in dict.fromkeys(cell.method for cell in cells):
        for name in TIERS:
            own = [cell for cell in cells if (cell.method, cell.tier) == (method, name)]
            known = [[v for c in own if (v := getattr(c, field)) is not None] for field in ("auc", "purity")]
            if own:
                found[method, name] = (*(float(np.mean(values)) if values else None for values in known), len(own))
    return found


def _asks(question: Question) -> tuple[str, frozenset[str]]:
    """What a question asks, whatever its id, its case and its spaces."""
    plain = [" ".join(text.casefold().split()) for text in (question.prompt, *question.options)]
    return plain[0], frozenset(plain[1:])
