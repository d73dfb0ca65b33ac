"""Trust fitted on the labelled source, and asked about the target: the stages calibrate, trust and certify.

Which labels of the source are right is given by `pipeline`, which holds the gold door; of the target only the rows that are
marked for it (`labels="gold"`, the oracle, the same-purity control) are given any.

Source: arXiv 2606.01000; certificates: see `certificate`.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from w2s_jax import certificate, gathering, plugins, selection
from w2s_jax.looking import Labelling, Looked
from w2s_jax.run import Model, Run
from w2s_jax.settings import Row, terms_of
from w2s_jax.store import Ref, Stored
from w2s_jax.trust import artefact, controls
from w2s_jax.types import Gold, Question

VERSION = "1"


def known_of_target(
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


def match(row: Row, questions: Sequence[Question], unlabelled: Looked, chosen: Mapping[str, Stored]) -> dict[str, np.ndarray]:
    """What a row that is matched to another's selection is given: that selection, and how hard the questions are; no gold."""
    selected = np.isin(np.arange(len(unlabelled.answers)), chosen[row.matches].value.row)
    found = {f"selected/{row.matches}": selected}
    if "difficulty" in row.needs:
        found["difficulty"] = controls.difficulty(questions, unlabelled.answers, unlabelled.extra["answer_logp"])
    return found


def opened(given: Mapping[str, Any]) -> dict[str, Any]:
    """The values of gathered evidence."""
    return {name: value.value if isinstance(value, Stored) else value for name, value in given.items()}


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


def note_other_teacher(run: Run, described: Mapping[str, Any], teacher: Model) -> None:
    if described["about"]["teacher_key"] != teacher.key:
        known = described["about"]["teacher"]
        run.store.log(
            f"note: this trust function was fitted on the teacher {known!r}, another model than this {teacher.name!r}"
        )
