"""Chains: the trained student of one link is the teacher of the next, generation after generation.

    teacher = link(teacher, student)        a fold over `chain.models`; `chain.follow` says which method's student goes on

Generation 1 is taught by `teacher.model`. Beside the chain itself run controls that follow another method's student: `naive`
(weak labels as they come) and `gold` (a ceiling; marked as using gold). All share generation 1, and through the store whatever
else they have in common. Each generation asks a fresh slice of the target, so that no student is taught a question that its
teacher was taught; the trust head is fitted anew for each teacher, whose hidden states are others (or reused: `chain.head`).

The collapse detector reads what is known without the target's gold, and never that:
    accuracy  the new teacher on held-back source questions, beside the best teacher before it on the same questions (paired,
              one-sided; of k teachers before it, the best is any of k: its limit is at 1/k of the generation's share of alpha)
    auc       of its head there: is its upper limit below chance and a little?
    drift     trust in the unlabelled target: do two generations' scores lie far apart (Kolmogorov-Smirnov), and did mean trust
              move further than the held-back accuracy did (by more than chance)? It takes scores for probabilities: a chain
              that follows uncalibrated ones should leave this rule out.
The first is read before anything is taught, the others once the generation is stored: a generation whose head is found
wanting is the last. Held back is a share of the source questions that the chain takes away from all its links. What an NTF
holds back for itself would not do: it has chosen its epoch and its scale there, and other trust functions hold back nothing.

A chain also ends where a teacher is right (or wrong) on the whole source: there is nothing then to fit a head on.

Source: arXiv 2606.01000 (chains; the paper reuses a head or refits it, and leaves open where chains collapse).
Deviations: the slices, the controls and the detector, all of its numbers included, are our proposals.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from scipy import stats

from w2s_jax import comparison, costs, metrics, pipeline
from w2s_jax.looking import ask
from w2s_jax.models import hf_io
from w2s_jax.recovery import Summary, Trial
from w2s_jax.run import Model, Run, find_model
from w2s_jax.settings import Row, check, student_as_teacher
from w2s_jax.tasks.roles import portions
from w2s_jax.types import Question

HEADS = ("retrain", "reuse")
TARGETS = ("fresh", "same")
RULES = ("accuracy", "auc", "drift")


@dataclasses.dataclass(frozen=True)
class Watched:
    """All that the detector reads of one generation; no gold of the target went into it.

    Attributes:
        question, group: R names each: the held-back source questions, a row for each answer, and their clusters.
        correct: bool[R], whether the teacher's answers are right.
        score: f[R] in [0, 1], its head's trust in them; None before there is a head, or where it needs what is not known here.
        trust: f[T] in [0, 1], the head's trust in the target's weak labels; None before there is a head.
    """

    question: tuple[str, ...]
    group: tuple[str, ...]
    correct: np.ndarray
    score: np.ndarray | None = None
    trust: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Signs:
    """The detector's numbers for one generation; None = not known, or undefined for such rows. Limits are one-sided.

    Attributes:
        accuracy: of the teacher on held-back source questions.
        best: generation of the best teacher before it on the same questions, the first of equal ones.
        change, change_hi: its accuracy - that of the best one, and the upper limit of that.
        auc, auc_hi: of its head there, and the upper limit.
        trust: mean score of the target's weak labels.
        distance: between these scores and those of the generation before, in [0, 1].
        drift, drift_least: how much further mean trust moved since then than the held-back accuracy did, and how far at the
            least (towards zero from there, not past it).
    """

    accuracy: float
    best: int | None = None
    change: float | None = None
    change_hi: float | None = None
    auc: float | None = None
    auc_hi: float | None = None
    trust: float | None = None
    distance: float | None = None
    drift: float | None = None
    drift_least: float | None = None


@dataclasses.dataclass(frozen=True)
class Generation:
    """One generation of a chain.

    Attributes:
        chain: the method whose student it hands on.
        number: from 1.
        trial: its link; that of generation 1 is shared by all chains.
        signs: what the detector saw, of the chain that is watched; None of a control.
    """

    chain: str
    number: int
    trial: Trial
    signs: Signs | None = None


@dataclasses.dataclass(frozen=True)
class Chain:
    """What one seed's chain and its controls came to.

    Attributes:
        seed, follow, planned: of the run; how many generations were asked for.
        generations: of the chain first, then of each control.
        stopped: why it ended early, or "".
        refused: the detector's numbers for a teacher that was stopped before it taught anybody; None otherwise.
        spent: what the methods of its own links cost.
    """

    seed: int
    follow: str
    planned: int
    generations: tuple[Generation, ...]
    stopped: str = ""
    refused: Signs | None = None
    spent: costs.Costs = costs.Costs()

    @property
    def trials(self) -> tuple[Trial, ...]:
        """Each link once: those of the chain first."""
        return tuple({id(g.trial): g.trial for g in self.generations}.values())

    @property
    def own(self) -> tuple[Generation, ...]:
        """The generations of the chain itself."""
        return tuple(g for g in self.generations if g.chain == self.follow)


# ---- The chain -------------------------------------------------------------------------------------------------------


def run_chain(run: Run) -> Chain:
    """Runs the chain of a config, and its controls, until its end or until the detector stops it.

    Args:
        run: config (all of it), seed, store.

    Raises:
        ValueError: what `refuse` says, a slice of the target that is too small, or whatever a link refuses.
    """
    section, follow = run.config.chain, run.config.chain.follow
    row = refuse(run.config)
    first = find_model(run, run.config.teacher.model)
    students = [find_model(run, word) for word in section.models]
    if section.head == "reuse":
        refuse_other_widths([first, *students[:-1]])
    word = f"chain, seed {run.seed}, "
    whole = {"whole_groups": section.whole_groups}
    shares = (section.held_back_frac, 1 - section.held_back_frac)
    held_back, source = portions(ask(run.task, "source"), shares, word + "source", **whole)
    targets = slices(ask(run.task, "target"), run.config, word + "target")

    teachers = dict.fromkeys((follow, *section.controls), first)
    saw_gold: set[str] = set()  # the chains whose present teacher did
    watched: list[Watched] = []
    found: list[Generation] = []
    stopped, refused, head, spent = "", None, "", costs.Costs()
    for number, (student, target) in enumerate(zip(students, targets, strict=True), 1):
        teacher = teachers[follow]
        one = run.at(f"gen {number}", own_config(run.config, number, head))
        now = signs([*watched, watch(one, teacher, source, held_back)], section)
        if number > 1 and (stopped := reason(now, row, section) or no_head(one, teacher, source)):
            stopped, refused = f"before generation {number} of {len(students)}: its teacher {stopped}", now
            break
        asked = {"source": source, "target": target}
        link = pipeline.link(one, teacher, student, generation=number, asked=asked)
        spent += costs.count(one, teacher, student, link, generation=number)
        if follow not in link.students:
            raise ValueError(f"chain.follow={follow!r} needs the target's gold, and the target has none: follow another method")
        if number == 1:  # all chains begin with the same link
            links = {method: link for method in teachers if method in link.students}
        else:
            links = {follow: link}
            for method in section.controls:
                if method in teachers:
                    config = control_config(run.config, method, link.trial.n_selected[follow])
                    beside = run.at(f"{method}-chain gen {number}", config)
                    links[method] = pipeline.link(beside, teachers[method], student, generation=number, asked=asked)
        watched.append(watch(one, teacher, source, held_back, row=row, link=link))
        now = signs(watched, section)
        for method, done in links.items():
            trial = done.trial
            if method in saw_gold:
                trial = dataclasses.replace(trial, uses_target_gold=frozenset(trial.trained))
            found.append(Generation(method, number, trial, now if method == follow else None))
        saw_gold |= {method for method, done in links.items() if method in done.trial.uses_target_gold}
        teachers = {method: handed_on(done, student, method) for method, done in links.items()}
        head = head or (str(link.fitted[follow].path / "trust") if section.head == "reuse" else "")
        if number < len(students) and (stopped := reason(now, row, section)):
            stopped = f"after generation {number} of {len(students)}: its teacher {stopped}"
            break
    if stopped:
        run.store.log(f"{run.prefix}chain stopped {stopped}")
    order = list(dict.fromkeys((follow, *section.controls)))
    found.sort(key=lambda generation: order.index(generation.chain))
    return Chain(run.seed, follow, len(students), tuple(found), stopped, refused, spent)


def handed_on(link: pipeline.Linked, student: Model, method: str) -> Model:
    """The student of a method as the next teacher, named after what it was and what taught it."""
    return dataclasses.replace(link.students[method], name=f"{student.name}+{method}")


def own_config(config: ConfigDict, number: int, head: str) -> ConfigDict:
    """The config of a generation: from the second on a student teaches, with the first one's head if that is reused."""
    if number == 1:
        return config.copy_and_resolve_references()
    own = student_as_teacher(config)
    own.trust.from_ = head
    return own


def control_config(config: ConfigDict, method: str, num_taught: int) -> ConfigDict:
    """The config of a control's generation: its one method, as many labels as the chain itself took."""
    own = own_config(config, 2, head="")
    own.methods = (method,)
    own.select.update(rule="top_n", n=num_taught)
    return own


# ---- What is refused -------------------------------------------------------------------------------------------------


def refuse(config: ConfigDict) -> Row:
    """Makes sure that a chain can be run as the config says; returns the row of the method that it follows.

    Raises:
        ValueError: a chain of none or one, an unknown word, a number out of range, a method that is not in `methods`.
    """
    section, rows = config.chain, {row.method: row for row in check(config)}
    models = section.models
    if isinstance(models, str) or len(models) < 2 or not all(models):
        raise ValueError(
            f"chain.models={models!r}: a chain has two students or more, each named, such as ('a', 'b'); one student is a "
            "single link: set student.model, and leave chain.models=()"
        )
    for name, allowed in (("head", HEADS), ("target", TARGETS)):
        if section[name] not in allowed:
            raise ValueError(f"chain.{name}={section[name]!r}: allowed are {', '.join(allowed)}; change it in the config")
    if unknown := set(section.stop.rules) - set(RULES):
        raise ValueError(f"chain.stop.rules names {sorted(unknown)}: allowed are {', '.join(RULES)}; change it in the config")
    for name, methods in (("follow", (section.follow,)), ("controls", section.controls)):
        if lost := [method for method in methods if method not in rows]:
            raise ValueError(
                f"chain.{name} names {lost[0]!r}, which is not among methods={config.methods!r}: its student cannot be the "
                f"next teacher; add it to methods, or change chain.{name} in the config"
            )
    if section.follow in section.controls:
        raise ValueError(
            f"chain.controls={section.controls!r} holds chain.follow={section.follow!r}: change one of them in the config"
        )
    if rows[section.follow].shots is not None:
        raise ValueError(
            f"chain.follow={section.follow!r} labels after demonstrations of its own, and the collapse detector reads labels "
            "given as teacher.shots says: set teacher.shots and follow a row without, or another method"
        )
    if section.head == "reuse" and not rows[section.follow].leads:
        raise ValueError(
            f"chain.head='reuse' keeps the head of trust.name, which method {section.follow!r} does not use: set chain.head to "
            "'retrain', or follow a method that does"
        )
    stop = section.stop
    ranges = {"held_back_frac": (section.held_back_frac, 0.01, 0.9), "stop.alpha": (stop.alpha, 1e-9, 0.5)}
    ranges |= {f"stop.{name}": (stop[name], 0, 1) for name in ("accuracy_margin", "auc_margin", "distance", "drift")}
    for name, (value, lo, hi) in ranges.items():
        if not lo <= value <= hi:
            raise ValueError(f"chain.{name}={value}: allowed is {lo} to {hi}; change it in the config")
    return rows[section.follow]


def refuse_other_widths(teachers: Sequence[Model]) -> None:
    """Makes sure that one head can read the hidden states of all teachers.

    Raises:
        ValueError: one has another width or another number of layers than the first.
    """
    sizes = [(found.width, found.num_layers) for found in (hf_io.read_config(model.folder) for model in teachers)]
    for model, (width, layers) in zip(teachers, sizes):
        if (width, layers) != sizes[0]:
            raise ValueError(
                f"chain.head='reuse': the head of {teachers[0].name} reads hidden states of width {sizes[0][0]} after "
                f"{sizes[0][1]} layers, {model.name} has width {width} and {layers} layers; set chain.head='retrain', or chain "
                "models of one size"
            )


def slices(target: Sequence[Question], config: ConfigDict, word: str) -> tuple[tuple[Question, ...], ...]:
    """The target questions of each generation.

    Raises:
        ValueError: one has fewer than `select.n`.
    """
    section = config.chain
    if section.target == "same":
        return (tuple(target),) * len(section.models)
    parts = portions(target, [1] * len(section.models), word, whole_groups=section.whole_groups)
    least = min(map(len, parts))
    if least < (config.select.n if config.select.rule == "top_n" else 1):
        raise ValueError(
            f"chain.target='fresh' cuts the {len(target)} target questions into {len(parts)} slices of {least} to "
            f"{max(map(len, parts))}, but select.n={config.select.n} are taken from each: lower select.n, give more target "
            "questions, shorten chain.models, or set chain.target='same' in the config"
        )
    return parts


# ---- The detector ----------------------------------------------------------------------------------------------------


def watch(
    run: Run,
    teacher: Model,
    source: Sequence[Question],
    held_back: Sequence[Question],
    *,
    row: Row | None = None,
    link: pipeline.Linked | None = None,
) -> Watched:
    """What the detector may read of a teacher, and (with `link`, once there is one) of the head of the row that is followed."""
    looked, correct = pipeline.examine(run, teacher, held_back, "held-back", source=source)
    group = {q.id: q.group or q.id for q in held_back}
    question = looked.answers.question_id
    score = trusted = None
    if link is not None:
        trusted = link.scores[row.method].value
        if not any(need == "correct" or "/" in need for need in row.needs):  # gold, other rows: known of the target alone
            place = run.at("held-back", run.config)
            score = pipeline.believe(place, row, teacher, link.fitted[row.method], looked).value
    return Watched(question, tuple(group[i] for i in question), correct, score, trusted)


def no_head(run: Run, teacher: Model, source: Sequence[Question]) -> str:
    """Why no trust head can be fitted for a teacher, or ""."""
    _, correct = pipeline.examine(run, teacher, source, "source")
    if correct.all():
        return f"is right on all {len(correct)} source labels: no head can learn from it what a wrong label looks like"
    return "" if correct.any() else f"is wrong on all {len(correct)} source labels: it has nothing to teach"


def signs(watched: Sequence[Watched], section: ConfigDict) -> Signs:
    """The detector's numbers for the last of some generations.

    Args:
        watched: the generations so far, the first one first.
        section: `config.chain`. Each limit is at `stop.alpha` shared by the generations planned; that of the change again by
            the teachers before it, so that looking for the best of them costs no more false stops than looking at each.
    """
    *before, now = watched
    alpha = section.stop.alpha / len(section.models)
    level = 1 - 2 * alpha
    found: dict[str, Any] = {"accuracy": _accuracy(now)}
    if before:
        best = max(range(len(before)), key=lambda number: _accuracy(before[number]))
        change = _change(before[best], now, 1 - 2 * alpha / len(before))
        found |= {"best": best + 1, "change": change.mean, "change_hi": change.hi}
    if now.score is not None and min(now.correct.sum(), (~now.correct).sum()) >= max(section.stop.least, 1):
        found["auc"] = metrics.auc(now.score, now.correct)
        try:
            found["auc_hi"] = metrics.auc_interval(now.score, now.correct, now.group, level=level)[1]
        except metrics.Undefined:
            found["auc_hi"] = found["auc"]  # 0 or 1: all there is to say
    if now.trust is not None:
        found["trust"] = float(np.mean(now.trust))
        if before:
            then = before[-1].trust
            found["distance"] = float(stats.ks_2samp(then, now.trust).statistic)
            explained = _change(before[-1], now, level)
            drift = found["trust"] - float(np.mean(then)) - explained.mean
            error = stats.norm.ppf((1 + level) / 2) ** 2 * (np.var(then) / len(then) + np.var(now.trust) / len(now.trust))
            reach = float(np.hypot((explained.hi - explained.lo) / 2, np.sqrt(error)))
            found |= {"drift": drift, "drift_least": float(np.sign(drift)) * max(abs(drift) - reach, 0.0)}
    return Signs(**found)


def reason(now: Signs, row: Row, section: ConfigDict) -> str:
    """Why the chain must stop, "" if it need not.

    A control has no head that could be blind: the rule `auc` does not hold for a chain that follows one.
    """
    stop, said = section.stop, []
    if "accuracy" in stop.rules and now.change_hi is not None and now.change_hi < -stop.accuracy_margin:
        said.append(
            f"is right on {100 * now.accuracy:.1f} % of the held-back source, {100 * now.change:+.1f} points beside the "
            f"teacher of generation {now.best} (upper limit {100 * now.change_hi:+.1f}, stop below "
            f"{0 - 100 * stop.accuracy_margin:+.1f})"
        )
    if "auc" in stop.rules and row.trust != "controls" and now.auc_hi is not None and now.auc_hi < 0.5 + stop.auc_margin:
        said.append(
            f"has a head of AUC {now.auc:.3f} on the held-back source (upper limit {now.auc_hi:.3f}, stop below "
            f"{0.5 + stop.auc_margin:.3f})"
        )
    moved = now.drift is not None and now.distance > stop.distance and abs(now.drift_least) > stop.drift
    if "drift" in stop.rules and moved:
        said.append(
            f"is trusted otherwise on the target: mean trust {now.trust:.3f} moved by {now.drift:+.3f} beyond its held-back "
            f"accuracy (at the least {now.drift_least:+.3f}, allowed {stop.drift:.3f}), distance between the generations' "
            f"scores {now.distance:.3f} (allowed {stop.distance:.3f})"
        )
    return "; it ".join(said)


def _change(before: Watched, now: Watched, level: float) -> comparison.Interval:
    """The accuracy of one teacher - that of another, on the same held-back questions."""
    then, today = _by_question(before), _by_question(now)
    group = dict(zip(before.question, before.group, strict=True))
    return comparison.interval(np.array([[today[q] - then[q] for q in then]]), [group[q] for q in then], level=level)


def _accuracy(watched: Watched) -> float:
    return float(np.mean(list(_by_question(watched).values())))


def _by_question(watched: Watched) -> dict[str, float]:
    """The share of right answers to each question."""
    found: dict[str, list[bool]] = {}
    for question, right in zip(watched.question, watched.correct, strict=True):
        found.setdefault(question, []).append(bool(right))
    return {question: sum(rights) / len(rights) for question, rights in found.items()}


# ---- What is drawn ---------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Point:
    """One generation of one chain, over the seeds that reached it; fractions, None = undefined. Intervals are 95 %.

    Attributes:
        chain: the method followed.
        generation, teacher, student, uses_target_gold, seeds, n_selected: as in `Summary`.
        teacher_accuracy, base, accuracy, accuracy_lo, accuracy_hi: on the test questions.
        purity, purity_lo, purity_hi: of what was taught; mean over seeds. The interval is over questions where there is one
            seed, and over seeds otherwise.
        auc, ece: of the trust scores on the target, medians over seeds.
        held_back, held_back_auc, trust, distance, drift: what the detector read, means over seeds; None for controls.
    """

    chain: str
    generation: int
    teacher: str
    student: str
    uses_target_gold: bool
    seeds: int
    n_selected: int
    teacher_accuracy: float | None
    base: float | None
    accuracy: float | None
    accuracy_lo: float | None
    accuracy_hi: float | None
    purity: float | None
    purity_lo: float | None
    purity_hi: float | None
    auc: float | None
    ece: float | None
    held_back: float | None
    held_back_auc: float | None
    trust: float | None
    distance: float | None
    drift: float | None


SUMMED = (
    *("teacher", "student", "uses_target_gold", "seeds", "n_selected", "teacher_accuracy", "base"),
    *("accuracy", "accuracy_lo", "accuracy_hi", "auc", "ece"),
)


def snowball(chains: Sequence[Chain], summary: Sequence[Summary]) -> tuple[Point, ...]:
    """Makes the points of the snowball plot: chains in their order, generations ascending.

    Args:
        chains: one for each seed.
        summary: of all their trials, from `recovery.summarise`.
    """
    summed = {(s.method, s.domain, s.teacher, s.student, s.objective, s.generation): s for s in summary}
    gathered: dict[tuple[str, int], list[Generation]] = {}
    for chain in chains:
        for generation in chain.generations:
            gathered.setdefault((generation.chain, generation.number), []).append(generation)
    order = list(dict.fromkeys(chain for chain, _ in gathered))
    points = []
    for (chain, number), found in sorted(gathered.items(), key=lambda item: (order.index(item[0][0]), item[0][1])):
        s = summed[(chain, *found[0].trial.link)]
        purity = _purity([g.trial for g in found], chain)
        signs = [g.signs for g in found if g.signs]
        read = {"held_back": "accuracy", "held_back_auc": "auc", "trust": "trust", "distance": "distance", "drift": "drift"}
        points.append(
            Point(
                chain=chain,
                generation=number,
                **{name: getattr(s, name) for name in SUMMED},
                **dict(zip(("purity", "purity_lo", "purity_hi"), purity, strict=True)),
                **{name: _mean([getattr(one, sign) for one in signs]) for name, sign in read.items()},
            )
        )
    return tuple(points)


def _purity(trials: Sequence[Trial], method: str) -> tuple[float | None, float | None, float | None]:
    audits = [trial.audits[method] for trial in trials]
    values = [audit.purity for audit in audits if audit.purity is not None]
    if len(values) < 2:
        return (_mean(values), *((audits[0].purity_interval if values else None) or (None, None)))
    mean, error = np.mean(values), np.std(values, ddof=1) / np.sqrt(len(values))
    reach = stats.t.ppf(0.975, len(values) - 1) * error
    return float(mean), float(max(mean - reach, 0)), float(min(mean + reach, 1))


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def plain(chains: Sequence[Chain]) -> list[dict]:
    """What chain.json says: for each seed what the detector saw, generation by generation, and why the chain stopped."""
    return [
        {
            "seed": chain.seed,
            "follow": chain.follow,
            "planned": chain.planned,
            "stopped": chain.stopped,
            "watched": [{"generation": g.number, **dataclasses.asdict(g.signs)} for g in chain.own],
            "refused": dataclasses.asdict(chain.refused) if chain.refused else None,
        }
        for chain in chains
    ]
