"""Which weak labels the student is taught (stage select): trust scores in, a `Selection` out.

Every rule first sets aside rows without an answer, then keeps the best-scored row of each question; n, fractions and
thresholds count what is left. Ties are settled by a hash of the question id, so that the order of data sets in a file is no
hidden criterion.

Source: arXiv 2606.01000 (top-n and threshold; equal n for all methods).
Deviations: 1. the classes of `balanced` are ours: which option was answered, or a word of what is known about the question.
2. how `certified` finds its threshold: see `certificate`.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence

import numpy as np

from w2s_jax.types import Answers, Certificate, Question, Selection

VERSION = "1"


def top_n(score: np.ndarray, answers: Answers, *, n: int) -> Selection:
    """The n most trusted questions, each with weight 1.

    Raises:
        ValueError: n is below 1 or above the number of answered questions.
    """
    pool = best_rows(score, answers)
    _refuse_n(n, pool)
    return _selection(pool[:n], np.ones(n), score, answers)


def fraction(score: np.ndarray, answers: Answers, *, fraction: float) -> Selection:
    """The most trusted share of the answered questions, at least one.

    Raises:
        ValueError: the share is not in (0, 1].
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"select.fraction={fraction}: allowed is (0, 1]; change select.fraction in the config")
    return top_n(score, answers, n=max(1, round(fraction * len(best_rows(score, answers)))))


def threshold(score: np.ndarray, answers: Answers, *, threshold: float) -> Selection:
    """All questions whose score is at least the threshold.

    Raises:
        ValueError: no score reaches it.
    """
    pool = best_rows(score, answers)
    kept = pool[score[pool] >= threshold]
    if not len(kept):
        best = f"{score[pool].max():.3f}" if len(pool) else "none: no question was answered"
        raise ValueError(
            f"select.threshold={threshold}: no row reaches it (the best score is {best}); lower select.threshold in the config"
        )
    return _selection(kept, np.ones(len(kept)), score, answers)


def weights(score: np.ndarray, answers: Answers) -> Selection:
    """Every answered question, weighted by its score."""
    pool = best_rows(score, answers)
    return _selection(pool, score[pool], score, answers)


def balanced(score: np.ndarray, answers: Answers, *, n: int, classes: Sequence[str]) -> Selection:
    """n questions in all, as many of each class as of any other, the most trusted of each; each with weight 1.

    A class that has fewer than its share gives all it has, and the others share the rest: their numbers differ by one at most
    (the odd ones go where the next label is trusted most).

    Args:
        score, answers: R rows.
        n: labels in all.
        classes: R names, see `classes`.

    Raises:
        ValueError: n is below 1 or above the number of answered questions.
    """
    pool = best_rows(score, answers)
    _refuse_n(n, pool)
    taken: Counter[str] = Counter()
    turn = np.empty(len(pool), int)  # a row's place within its class, by trust
    for place, row in enumerate(pool):
        turn[place] = taken[classes[row]]
        taken[classes[row]] += 1
    return _selection(pool[np.argsort(turn, kind="stable")[:n]], np.ones(n), score, answers)


def classes(questions: Sequence[Question], answers: Answers, by: str) -> tuple[str, ...]:
    """The class of each of R rows, for `balanced`.

    Args:
        questions: all that the answers belong to.
        answers: R rows.
        by: "answer" = the place of the answered option among the question's options (what its letter would be), which is what
            a classifier's balanced classes are; or a key of `Question.meta`, such as "subject".

    Raises:
        ValueError: the questions have no options, or one of them no such key.

    >>> one = Question("q", "t", "?", ("no", "yes"), {"level": "3"})
    >>> rows = Answers(("q", "q"), ("yes", "no"), ("yes", "no"))
    >>> classes([one], rows, "answer"), classes([one], rows, "level")
    (('1', '0'), ('3', '3'))
    """
    known = ", ".join(sorted(set.intersection(*(set(q.meta) for q in questions)))) if questions else ""
    remedy = f"allowed are 'answer' where questions have options, and here: {known or 'nothing else'}; change select.balance"
    of = {q.id: q for q in questions}
    if by == "answer":
        if plain := [q.id for q in questions if not q.options]:
            raise ValueError(f"select.balance='answer': {plain[0]!r} has no options to balance; {remedy} in the config")
        rows = zip(answers.question_id, answers.final, strict=True)
        return tuple(str(of[i].options.index(final)) if final in of[i].options else "" for i, final in rows)
    if lacking := [q.id for q in questions if by not in q.meta]:
        raise ValueError(
            f"select.balance={by!r}: {len(lacking)} questions do not have it, such as {lacking[0]!r}; {remedy} in the config"
        )
    return tuple(str(of[i].meta[by]) for i in answers.question_id)


def certified(score: np.ndarray, answers: Answers, *, certificate: Certificate) -> Selection:
    """All questions whose score reaches the certified threshold.

    Raises:
        ValueError: nothing is certified; the message says what could be, and at which coverage.
    """
    if certificate.threshold is None:
        raise ValueError(_abstention(certificate))
    return threshold(score, answers, threshold=certificate.threshold)


def _abstention(certificate: Certificate) -> str:
    at, rows, share, bound, kept, coverage = max(certificate.curve.tolist(), key=lambda line: (line[3], line[0]))
    said = (
        f"select.rule='certified': no threshold keeps labels of which at least {certificate.purity:g} are right with "
        f"confidence {1 - certificate.delta:g} ({certificate.bound}, {certificate.pool}). "
    )
    if bound > 0:
        said += (
            f"The best attainable bound is {bound:.3f}, at threshold {at:g}: there {share:.3f} of {rows:.0f} calibration "
            f"questions are right, and {kept:.0f} target questions are kept (coverage {coverage:.1%}). Set select.purity to at "
            f"most {int(1000 * bound) / 1000:g}, "
        )
    else:
        said += f"No bound is above 0, from {certificate.curve[:, 1].max():.0f} calibration questions. Lower select.purity, "
    tighter = "set select.bound='clopper_pearson', " if certificate.bound != "clopper_pearson" else ""
    return said + f"{tighter}raise select.calibration_frac or select.delta, or give tasks.source more questions, in the config"


RULES = {
    "top_n": top_n,
    "fraction": fraction,
    "threshold": threshold,
    "weights": weights,
    "balanced": balanced,
    "certified": certified,
}


def _refuse_n(n: int, pool: np.ndarray) -> None:
    if not 1 <= n <= len(pool):
        raise ValueError(
            f"select.n={n}: the target has {len(pool)} answered questions; allowed is 1..{len(pool)}, "
            "change select.n in the config"
        )


def best_rows(score: np.ndarray, answers: Answers) -> np.ndarray:
    """The rows that a selection counts, i32, the most trusted first: the best answered row of each question."""
    best, seen = [], set()
    lot = [hashlib.sha256(i.encode()).digest() for i in answers.question_id]
    for row in sorted(range(len(answers)), key=lambda row: (-score[row], lot[row], row)):
        question = answers.question_id[row]
        if answers.final[row] != "" and question not in seen:
            seen.add(question)
            best.append(row)
    return np.array(best, np.int32)


def _selection(rows, weight, score, answers: Answers) -> Selection:
    order = np.argsort(rows)
    rows = rows[order]
    return Selection(
        row=rows,
        weight=np.asarray(weight, np.float32)[order],
        score=np.asarray(score, np.float32),
        answers=answers[rows],
        origin=("weak",) * len(rows),
    )
