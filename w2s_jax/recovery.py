"""What a student recovers of training on gold labels: the rows of recovery.json and their summary over seeds.

Stage in: `Trial`s, each the `Score`s of one link and one seed. Stage out: `Recovery` rows, one for each method and test dataset
(and "mean", their macro average), and one `Summary` for each method over the seeds of a link.

    recovery = (student - base) / (gold student - base)        arXiv 2606.01000; base = the student before training
    pgr      = (student - teacher) / (gold student - teacher)  arXiv 2312.09390

A ratio whose denominator is not significantly above zero is None, and the row's `reason` says so in numbers.

Deviations: 1. that "base" is the untrained student is our reading of the paper. 2. intervals and verdicts are ours, see
`comparison`.
"""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence

import numpy as np

from w2s_jax.comparison import Interval, compare, interval, ratio
from w2s_jax.metrics import Undefined
from w2s_jax.types import Audit, Certificate, Recovery, Score

VERSION = "1"

MEAN = "mean"
REFERENCE = "gold"
NO_GOLD = "no gold: no student was trained on gold labels of the target"
UNSCORED = "no gold: the test questions have no answers, so nothing was scored"
_MEASURED = ("accuracy", "base", "gt", "teacher_accuracy", "recovery", "recovery_lo", "recovery_hi", "pgr")
_AUDITED = ("purity", "auc", "ece", "brier")


@dataclasses.dataclass(frozen=True)
class Trial:
    """What one seed of one link (a teacher, a student, their methods) measured.

    Attributes:
        domain, teacher, student, objective, generation, seed: what was run.
        base: the student before training; None where the test questions have no gold answers.
        weak: the teacher.
        trained: the trained student of each method, by method id; "gold" is the ceiling, absent where the target has no
            answers.
        uses_target_gold: the methods whose student saw gold labels of the target.
        n_selected: rows taught, by method id.
        audits: the audit of each method that has one, by method id.
        certificates: of each method whose selection was certified, by method id.
    """

    domain: str
    teacher: str
    student: str
    objective: str
    generation: int
    seed: int
    base: Score | None
    weak: Score | None
    trained: Mapping[str, Score | None]
    uses_target_gold: frozenset[str] = frozenset()
    n_selected: Mapping[str, int] = dataclasses.field(default_factory=dict)
    audits: Mapping[str, Audit] = dataclasses.field(default_factory=dict)
    certificates: Mapping[str, Certificate] = dataclasses.field(default_factory=dict)

    @property
    def link(self) -> tuple[str, str, str, str, int]:
        """What all seeds of one link have in common."""
        return self.domain, self.teacher, self.student, self.objective, self.generation


@dataclasses.dataclass(frozen=True)
class Summary:
    """One method over the seeds of one link; fractions, None = undefined with a `reason`; intervals are 95 %.

    Attributes:
        method, domain, test, teacher, student, objective, generation, uses_target_gold: as in `Recovery`; `test` is "mean".
        seeds: how many; with one, intervals and verdict speak of these trained students, not of training.
        n_selected: rows taught, median over seeds.
        n_test: questions scored.
        accuracy, accuracy_lo, accuracy_hi: of the trained student, mean over seeds.
        base, gt, teacher_accuracy: means over seeds.
        recovery, recovery_lo, recovery_hi: ratio of the means over seeds, Fieller's interval.
        recovery_median, pgr_median: over those seeds in which they are defined.
        difference, difference_lo, difference_hi: student - gold on the same seeds and questions.
        margin: of the equivalence test.
        verdict: "super-recovery", "near-lossless", "lossy", "undetermined"; None for gold itself and where there is no gold.
        power: chance of "near-lossless" if there were no difference.
        needed_n: questions for a power of 0.8; None where power is not short, or no number is enough.
        mcnemar_p, tost_p: p-values of each seed alone.
        purity, auc, ece, brier: medians over seeds.
        by_test: for each test dataset and "mean": accuracy, lo, hi, base, gt, teacher.
        reason: why something is None, or "".
    """

    method: str
    domain: str
    test: str
    teacher: str
    student: str
    objective: str
    generation: int
    uses_target_gold: bool
    seeds: int
    n_selected: int
    n_test: int
    accuracy: float | None = None
    accuracy_lo: float | None = None
    accuracy_hi: float | None = None
    base: float | None = None
    gt: float | None = None
    teacher_accuracy: float | None = None
    recovery: float | None = None
    recovery_lo: float | None = None
    recovery_hi: float | None = None
    recovery_median: float | None = None
    pgr_median: float | None = None
    difference: float | None = None
    difference_lo: float | None = None
    difference_hi: float | None = None
    margin: float = 0.02
    verdict: str | None = None
    power: float | None = None
    needed_n: int | None = None
    mcnemar_p: tuple[float, ...] = ()
    tost_p: tuple[float, ...] = ()
    purity: float | None = None
    auc: float | None = None
    ece: float | None = None
    brier: float | None = None
    by_test: Mapping[str, Mapping[str, float | None]] = dataclasses.field(default_factory=dict)
    reason: str = ""


def recovery(accuracy: float, base: float, gt: float) -> float:
    """Gives the share of the gain from gold labels that a student reached (arXiv 2606.01000), from accuracies alone.

    Raises:
        Undefined: gold labels gained nothing.

    OLMo2 1B -> 7B on world knowledge, as published (98.9 %):

    >>> round(recovery(.737, base=.651, gt=.738), 3)
    0.989
    """
    if gt <= base:
        raise Undefined(f"gold - base is {gt - base:.3f}: not above zero")
    return (accuracy - base) / (gt - base)


def pgr(accuracy: float, teacher: float, gt: float) -> float:
    """Gives the performance gap recovered (arXiv 2312.09390): as `recovery`, counted from the teacher, not the base student.

    Raises:
        Undefined: the student trained on gold labels is not above the teacher.

    >>> round(pgr(.70, teacher=.60, gt=.80), 3)
    0.5
    """
    if gt <= teacher:
        raise Undefined(f"gold - teacher is {gt - teacher:.3f}: not above zero")
    return (accuracy - teacher) / (gt - teacher)


def recover(trial: Trial) -> tuple[Recovery, ...]:
    """Makes the rows of one trial: methods in their order, for each its test datasets in order of appearance, then "mean".

    Raises:
        ValueError: two models were scored on different questions.
    """
    rows = []
    for method in trial.trained:
        panel = _panel((trial,), method)
        for test in panel.tests:
            known = panel.restrict(test).measure()
            audit = trial.audits.get(method)
            rows.append(
                Recovery(
                    method=method,
                    domain=trial.domain,
                    test=test,
                    teacher=trial.teacher,
                    student=trial.student,
                    objective=trial.objective,
                    generation=trial.generation,
                    seed=trial.seed,
                    uses_target_gold=method in trial.uses_target_gold,
                    **{name: known[name] for name in _MEASURED},
                    reason="; ".join(filter(None, (known["reason"], audit.reason if audit else ""))),
                    n_selected=trial.n_selected.get(method, 0),
                    n_test=known["n_test"],
                    **{name: getattr(audit, name, None) for name in _AUDITED},
                )
            )
    return tuple(rows)


def summarise(trials: Sequence[Trial], *, margin: float = 0.02, alpha: float = 0.05) -> tuple[Summary, ...]:
    """Sums up each method over the seeds of its link, with a verdict; links and methods in order of appearance.

    Args:
        trials: any links and seeds; one seed's models must have been scored on the same questions, seeds may differ in theirs.
        margin: accuracy (a fraction) that counts as no loss.
        alpha: level of the verdict's tests.

    Raises:
        ValueError: models of one seed were scored on different questions, or a seed occurs twice.
    """
    links: dict[tuple, list[Trial]] = {}
    for trial in trials:
        links.setdefault(trial.link, []).append(trial)
    summaries = []
    for link in links.values():
        if len({t.seed for t in link}) < len(link):
            raise ValueError(f"seeds {[t.seed for t in link]} of {link[0].link} must differ; pass each trial once")
        for method in dict.fromkeys(method for trial in link for method in trial.trained):
            summaries.append(_summary([t for t in link if method in t.trained], method, margin, alpha))
    return tuple(summaries)


def _summary(trials: Sequence[Trial], method: str, margin: float, alpha: float) -> Summary:
    panel = _panel(trials, method)
    known = panel.measure()
    audits = [t.audits[method] for t in trials if method in t.audits]
    alone = [_panel((t,), method).measure() for t in trials]
    compared = {}
    if panel.gold is not None and method != REFERENCE:
        found = compare(panel.trained, panel.gold, panel.group, panel.test, margin=margin, alpha=alpha)
        compared = {name: getattr(found, name) for name in ("verdict", "power", "needed_n", "mcnemar_p", "tost_p")}
        compared |= dict(zip(("difference", "difference_lo", "difference_hi"), found.gap, strict=True))
    by_test = {}
    for test in panel.tests:
        part = panel.restrict(test).measure()
        by_test[test] = {
            "accuracy": part["accuracy"],
            "lo": part["accuracy_lo"],
            "hi": part["accuracy_hi"],
            "base": part["base"],
            "gt": part["gt"],
            "teacher": part["teacher_accuracy"],
        }
    reasons = [known["reason"], *(a.reason for a in audits)]
    domain, teacher, student, objective, generation = trials[0].link
    return Summary(
        method=method,
        domain=domain,
        test=MEAN,
        teacher=teacher,
        student=student,
        objective=objective,
        generation=generation,
        uses_target_gold=any(method in t.uses_target_gold for t in trials),
        seeds=len(trials),
        n_selected=int(statistics.median(t.n_selected.get(method, 0) for t in trials)),
        n_test=known["n_test"],
        **{name: known[name] for name in (*_MEASURED[:-1], "accuracy_lo", "accuracy_hi")},
        recovery_median=_median(one["recovery"] for one in alone),
        pgr_median=_median(one["pgr"] for one in alone),
        margin=margin,
        **compared,
        **{name: _median(getattr(a, name) for a in audits) for name in _AUDITED},
        by_test=by_test,
        reason="; ".join(dict.fromkeys(filter(None, reasons))),
    )


@dataclasses.dataclass(frozen=True)
class _Panel:
    """One method's students beside their counterparts: correctness f64[S, N].

    NaN where a seed was not asked a question, None in place of all where somebody was not scored.
    """

    method: str
    group: tuple[str, ...]
    test: np.ndarray
    tests: tuple[str, ...]
    trained: np.ndarray | None = None
    base: np.ndarray | None = None
    weak: np.ndarray | None = None
    gold: np.ndarray | None = None

    def restrict(self, test: str) -> "_Panel":
        """Keeps one dataset's questions, or all of them for "mean"."""
        if test == MEAN:
            return self
        keep = np.flatnonzero(self.test == test)
        kept = {name: getattr(self, name) for name in ("trained", "base", "weak", "gold")}
        kept = {name: None if value is None else value[:, keep] for name, value in kept.items()}
        return _Panel(self.method, tuple(self.group[q] for q in keep), self.test[keep], (test,), **kept)

    def measure(self) -> dict:
        """Returns accuracies, ratios and the reason why some are None."""
        known = dict.fromkeys((*_MEASURED, "accuracy_lo", "accuracy_hi")) | {"n_test": 0, "reason": UNSCORED}
        if self.trained is None:
            return known
        for name, value in (
            ("accuracy", self.trained),
            ("base", self.base),
            ("gt", self.gold),
            ("teacher_accuracy", self.weak),
        ):
            if value is not None:
                found = interval(value, self.group, self.test)
                known[name] = found.mean
                if name == "accuracy":
                    known["accuracy_lo"], known["accuracy_hi"] = max(found.lo, 0.0), min(found.hi, 1.0)
        known["n_test"] = self.trained.shape[1]
        recovered, why_not = self._ratio(self.base, "base")
        if recovered:
            known["recovery"], known["recovery_lo"], known["recovery_hi"] = recovered
        gap, why_no_gap = self._ratio(self.weak, "teacher")
        known["pgr"] = gap.mean if gap else None
        known["reason"] = why_not if why_not == why_no_gap else "; ".join(filter(None, (why_not, why_no_gap)))
        return known

    def _ratio(self, floor: np.ndarray | None, name: str) -> tuple[Interval | None, str]:
        if self.gold is None:
            return None, NO_GOLD
        if floor is None:
            return None, f"the {name} was not scored"
        try:
            found = ratio(self.trained - floor, self.gold - floor, self.group, self.test, name=f"gold - {name}")
        except Undefined as reason:
            return None, str(reason)
        # The ceiling recovers all of itself, whatever the sample.
        return (Interval(1.0, 1.0, 1.0) if self.method == REFERENCE else found), ""


def _panel(trials: Sequence[Trial], method: str) -> _Panel:
    scores = [t.trained[method] for t in trials]
    if any(score is None for score in scores):
        return _Panel(method, (), np.zeros(0, str), (MEAN,))
    about = {i: (g, t) for s in scores for i, g, t in zip(s.question_id, s.group, s.test, strict=True)}
    group, test = zip(*about.values(), strict=True)
    place = {question: at for at, question in enumerate(about)}

    def stack(others: Sequence[Score | None], who: str) -> np.ndarray | None:
        if any(other is None for other in others):
            return None
        out = np.full((len(trials), len(place)), np.nan)
        for line, score, other in zip(out, scores, others, strict=True):
            if set(other.question_id) != set(score.question_id) or len(other.question_id) != len(score.question_id):
                odd = sorted(set(other.question_id) ^ set(score.question_id))[:3]
                raise ValueError(
                    f"{who} was scored on {len(other.question_id)} questions, the student of {method!r} on "
                    f"{len(score.question_id)}, not the same ones (such as {odd}); score all models of a seed on one test set"
                )
            line[[place[i] for i in other.question_id]] = other.correct
        return out

    return _Panel(
        method,
        group,
        np.asarray(test),
        (*dict.fromkeys(test), MEAN),
        trained=stack(scores, "it"),
        base=stack([t.base for t in trials], "the student before training"),
        weak=stack([t.weak for t in trials], "the teacher"),
        gold=stack([t.trained.get(REFERENCE) for t in trials], "the student trained on gold labels"),
    )


def _median(values) -> float | None:
    values = [v for v in values if v is not None]
    return float(statistics.median(values)) if values else None
