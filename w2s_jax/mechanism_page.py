"""What a report says of why trust works: its section of the page, its tables, their numbers; it computes nothing."""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from w2s_jax import figures, routing
from w2s_jax.analysis.better_than_gold import BetterThanGold
from w2s_jax.analysis.coherence import Coherence
from w2s_jax.analysis.easy_first import EasyFirst, Learnt
from w2s_jax.analysis.mechanisms import Mechanisms
from w2s_jax.analysis.selective import Selective
from w2s_jax.recovery import Summary
from w2s_jax.typesetting import (
    KINDS,
    csv_text,
    escape,
    figure,
    html_table,
    interval,
    limits_of,
    markdown_table,
    number,
    percent,
)

VERSION = "1"
TITLE = "Why it works: mechanisms"
ONE_SEED = "Of one seed, the last; the tables above are over all of them."
MATCHED = "difficulty_matched"
DIFFICULTIES = {
    "task": "the task's own",
    "teacher": "−log p of the teacher",
    "student": "−log p of the untaught student",
}
Table = tuple[list[str], list[list[str]]]

EASY = (
    "Spearman's ρ of trust and difficulty: −1 = the easier, the more trusted; 0 = trust does not know. AUC within: how often a"
    " right label is trusted more than a wrong one of the same stratum of difficulty; at 0.5, trust says nothing beyond"
    " difficulty. −log p is in nats for each token of the label; of the teacher it is the confidence that some trust functions"
    " are made of."
)
LEARNT = (
    "Area: mean height of the training curve over its steps (trapezoids). Of a loss, lower means that the lesson was learnt"
    " faster; an area is comparable where lessons have as many steps."
)
BETTER = (
    "Mismatches are chosen labels that differ from gold. Judged are those of which the judge can say which is better; a model"
    " is shown both answers in both orders, and cannot say where its two replies disagree. The gap is the median, over these"
    " labels, of their value less that of gold (of a model: the log-odds that it gives them, nats). Equal: within the margin,"
    " where ± names one behind the judge, in the unit of the gap."
)
COHERENCE = (
    "Gradients of single examples, of the student before it was taught, in the factors of its adapters (sketched). Cosine: mean"
    " over pairs of examples. Signal: |Σg|² / (n Σ|g|²), 1 / n if they have nothing in common and 1 if they are equal. Ranks:"
    " in how many directions they point; signal and ranks compare at equal n only. To gold: cosine of the mean gradient to that"
    " of gold labels."
)

SELECTIVE = (
    "Shares of right labels in the target: the teacher's, the untaught student's own, the smoothed ones, and those given in the"
    " end, beside the teacher's on the same rows. γ: from which P(IK) on the own label is taken. AUC and ECE: of P(IK), for the"
    " own label's being right, on the target and on rows of the labelled source that it was not fitted on. Pieces: of the graph"
    " that labels were smoothed over; none passes from one to another."
)
ROUTES = "Right: of the labels that were given so; weak right: of the teacher's labels on the same rows."
FOUR_WAYS = "P(IK) ≥ γ: the student is said to know. The counts of a method add up to its labels."


def section(found: Mechanisms, summary: Sequence[Summary], several: bool) -> str:
    """The section of the page; "" where nothing was measured."""
    if not _anything(found):
        return ""
    out = [f"<section><h2>{TITLE}</h2>"]
    if several:
        out.append(f'<p class="note">{ONE_SEED}</p>')
    if found.easy_first:
        out.append("<h3>Are easy questions chosen first?</h3>")
        if drawn := _drawn(found.easy_first):
            out.append(_deciles_figure(drawn))
    for heading, table, note in _tables(found, summary):
        if heading:
            out.append(f"<h3>{escape(heading)}</h3>")
        out.append(html_table(*table) + (f'<p class="note">{escape(note)}</p>' if note else ""))
    out += [f'<p class="note">{escape(said)}</p>' for said in _remarks(found)]
    return "".join(out) + "</section>"


def markdown(found: Mechanisms, summary: Sequence[Summary], several: bool) -> list[str]:
    """The same as lines of Markdown, without the figure."""
    if not _anything(found):
        return []
    out = [f"## {TITLE}", "", *[ONE_SEED, ""] * several]
    for heading, table, note in _tables(found, summary):
        out += [*[f"### {heading}", ""] * bool(heading), *markdown_table(*table), "", *[note, ""] * bool(note)]
    return out + [f"- {said}" for said in _remarks(found)] + [""]


def terminal_lines(found: Mechanisms) -> list[str]:
    """Says the main numbers in a line or two."""
    lines = []
    if leading := _leading(found.easy_first):
        one = leading[0]
        said = f"{one.method}: trust and difficulty ({DIFFICULTIES[one.difficulty]}): Spearman {_signed(one.rho)}"
        lines.append(f"{said} {_limits(one.rho_lo, one.rho_hi)}; AUC {number(one.auc)}, within difficulty {number(one.within)}")
    if leading := _leading([one for one in found.better if one.judged]):
        one = leading[0]
        share = f"{percent(one.share, 0)} % {limits_of(one.share_lo, one.share_hi)}"
        lines.append(f"{one.method}: of {one.judged} judged labels that differ from gold, {share} are at least as good")
    for one in found.selective:
        if one.given is not None:
            share = f"{percent(one.given)} % of {one.kept:,} labels are right"
            lines.append(f"{one.method}: {share}, {percent(one.weak_kept)} % of the teacher's own on these rows")
    return lines


def data(found: Mechanisms) -> dict[str, str]:
    """The numbers behind the figure and the tables: file name -> CSV."""
    files = {}
    if found.easy_first:
        plain = [f.name for f in dataclasses.fields(EasyFirst) if f.name not in ("decile", "stratum")]
        files["easy_first.csv"] = csv_text(plain, [[getattr(one, name) for name in plain] for one in found.easy_first])
        for file, field, head in (
            ("easy_first_deciles.csv", "decile", ["mean_trust", "mean_difficulty", "share_right", "labels"]),
            ("easy_first_strata.csv", "stratum", ["mean_difficulty", "share_right", "labels", "share_chosen"]),
        ):
            lines = [[one.method, one.difficulty, *line] for one in found.easy_first for line in getattr(one, field).tolist()]
            files[file] = csv_text(["method", "difficulty", *head], lines)
    if found.learnt:
        lines = [[method, *dataclasses.astuple(one)] for method, one in found.learnt.items()]
        files["learning_area.csv"] = csv_text(["method", *(f.name for f in dataclasses.fields(Learnt))], lines)
    if found.better:
        fields = [f.name for f in dataclasses.fields(BetterThanGold)]
        files["better_than_gold.csv"] = csv_text(fields, [[getattr(one, name) for name in fields] for one in found.better])
    if found.coherence:
        fields = [f.name for f in dataclasses.fields(Coherence)]
        files["coherence.csv"] = csv_text(fields, [[getattr(one, name) for name in fields] for one in found.coherence])
    if found.selective:
        fields = [f.name for f in dataclasses.fields(Selective) if f.name not in ("route", "table")]
        files["selective.csv"] = csv_text(fields, [[getattr(one, name) for name in fields] for one in found.selective])
        lines = [[one.method, *line] for one in found.selective for line in _routes(one)]
        files["selective_routes.csv"] = csv_text(["method", "route", "labels", "share", "right", "weak_right"], lines)
        lines = [[one.method, *line] for one in found.selective for line in _four_ways(one)]
        files["selective_four_ways.csv"] = csv_text(["method", "known", "weak_right", "labels", "own_right"], lines)
    return files


# ---- Tables ----------------------------------------------------------------------------------------------------------


def _tables(found: Mechanisms, summary: Sequence[Summary]) -> Iterator[tuple[str, Table, str]]:
    """Heading, table and note of each thing that was measured."""
    if found.easy_first:
        yield "", easy_table(found.easy_first), " ".join([EASY, *matched(summary)])
        for difficulty, table in strata_tables(found.easy_first):
            yield f"By difficulty: {DIFFICULTIES[difficulty]}", table, ""
    if found.learnt:
        yield "How fast is each lesson learnt?", learnt_table(found.learnt), LEARNT
    if found.better:
        yield "Are chosen labels that differ from gold as good as gold?", better_table(found.better), BETTER
    if found.coherence:
        yield "Do the gradients of a lesson agree?", coherence_table(found.coherence), COHERENCE
    if found.selective:
        yield "Whose labels are taught?", selective_table(found.selective), SELECTIVE
        yield "", routes_table(found.selective), ROUTES
        if any(len(one.table) for one in found.selective):
            yield "Does P(IK) know where the teacher is wrong?", four_ways_table(found.selective), FOUR_WAYS


def easy_table(found: Sequence[EasyFirst]) -> Table:
    head = ["method", "difficulty", "labels", "Spearman's ρ [95 %]", "AUC", "AUC within [95 %]", "mean, all", "mean, chosen"]
    body = [
        [
            figures.name(one.method),
            DIFFICULTIES[one.difficulty],
            f"{one.n:,}",
            f"{_signed(one.rho)} {_limits(one.rho_lo, one.rho_hi)}".strip(),
            number(one.auc, 3),
            f"{number(one.within, 3)} {interval(None if one.within_lo is None else (one.within_lo, one.within_hi))}".strip(),
            number(one.mean_all),
            number(one.mean_selected),
        ]
        for one in found
    ]
    return head, body


def strata_tables(found: Sequence[EasyFirst]) -> Iterator[tuple[str, Table]]:
    """For each difficulty how often the teacher is right in each stratum, and how much of it each method chose.

    Methods whose labels the teacher gave otherwise (after demonstrations of their own) have other strata and are left out.
    """
    for difficulty in dict.fromkeys(one.difficulty for one in found):
        own = [one for one in found if one.difficulty == difficulty and len(one.stratum)]
        if not own:
            continue
        first = own[0].stratum[:, :3]
        same = [one for one in own if one.stratum.shape[0] == len(first) and _equal(one.stratum[:, :3], first)]
        head = ["mean difficulty", "labels", "teacher right, %", *(f"{figures.name(one.method)}, % chosen" for one in same)]
        body = [
            [number(hard), f"{rows:,.0f}", percent(_known(right)), *(percent(one.stratum[k, 3]) for one in same)]
            for k, (hard, right, rows) in enumerate(first.tolist())
        ]
        yield difficulty, (head, body)


def learnt_table(found: Mapping[str, Learnt]) -> Table:
    body = [[figures.name(method), one.curve, f"{one.steps:,}", number(one.area, 4)] for method, one in found.items()]
    return ["method", "curve", "steps", "area"], body


def better_table(found: Sequence[BetterThanGold]) -> Table:
    head = ["method", "judge", "chosen", "mismatches", "judged", "better", "equal", "worse", "as good, % [95 %]", "gap"]
    body = []
    for one in found:
        counts = (one.n, one.mismatches, one.judged, one.better, one.equal, one.worse)
        share = f"{percent(one.share, 0)} {limits_of(one.share_lo, one.share_hi)}".strip()
        judge = f"{one.judge} ± {one.margin:g}" if one.judge and one.margin else one.judge
        body.append([figures.name(one.method), judge, *(f"{k:,}" for k in counts), share, _signed(one.gap)])
    return head, body


def coherence_table(found: Sequence[Coherence]) -> Table:
    head = ["method", "examples", "cosine [95 %]", "signal [95 %]", "stable rank", "effective rank", "to gold [95 %]"]
    body = []
    for one in found:
        cosine, signal, to_gold = (
            f"{_signed(getattr(one, name), 3)} {_limits(getattr(one, name + '_lo'), getattr(one, name + '_hi'), 3)}".strip()
            for name in ("cosine", "signal", "to_gold")
        )
        ranks = (number(one.stable_rank), number(one.effective_rank))
        body.append([figures.name(one.method), f"{one.n:,}", cosine, signal.replace("+", ""), *ranks, to_gold])
    return head, body


def selective_table(found: Sequence[Selective]) -> Table:
    head = [
        "method",
        "labels",
        "weak, %",
        "own, %",
        "smoothed, %",
        "kept",
        "given, %",
        "weak there, %",
        "γ",
        "AUC [95 %]",
        "ECE",
    ]
    head += ["source AUC", "source ECE", "pieces"]
    body = []
    for one in found:
        limits = None if one.auc_lo is None else (one.auc_lo, one.auc_hi)
        gamma = "never" if one.gamma == np.inf else number(one.gamma)
        body.append(
            [
                figures.name(one.method),
                f"{one.n:,}",
                *(percent(share) for share in (one.weak, one.own, one.smoothed)),
                f"{one.kept:,}",
                *(percent(share) for share in (one.given, one.weak_kept)),
                gamma,
                f"{number(one.auc, 3)} {interval(limits)}".strip(),
                *(number(value, 3) for value in (one.ece, one.source_auc, one.source_ece)),
                "–" if one.components is None else f"{one.components:,}",
            ]
        )
    return head, body


def routes_table(found: Sequence[Selective]) -> Table:
    body = [
        [figures.name(one.method), word, f"{rows:,.0f}", percent(share), percent(right), percent(weak)]
        for one in found
        for word, rows, share, right, weak in _routes(one)
    ]
    return ["method", "label", "rows", "rows, %", "right, %", "weak right, %"], body


def four_ways_table(found: Sequence[Selective]) -> Table:
    body = [
        [
            figures.name(one.method),
            "knows" if known else "does not",
            "right" if weak else "wrong",
            f"{rows:,}",
            f"{own:,}",
            percent(own / rows if rows else None),
        ]
        for one in found
        for known, weak, rows, own in _four_ways(one)
    ]
    return ["method", "P(IK) says it", "weak label", "labels", "own right", "own right, %"], body


def _routes(one: Selective) -> Iterator[tuple]:
    """Route, rows, share, share right, share of weak labels right."""
    for word, line in zip(routing.ROUTES, one.route.tolist(), strict=True):
        if line[0]:
            yield word, int(line[0]), *map(_known, line[1:])


def _four_ways(one: Selective) -> Iterator[tuple[int, int, int, int]]:
    """Known, weak right, rows, rows whose own label is right."""
    for known, weak in itertools.product((1, 0), (1, 0)) if len(one.table) else ():
        wrong, right = one.table[known, weak].tolist()
        yield known, weak, wrong + right, right


# ---- Words and figures -----------------------------------------------------------------------------------------------


def matched(summary: Sequence[Summary]) -> list[str]:
    """What the control of equal difficulty showed, link by link, where the table has it."""
    said = []
    for s in summary:
        link = (s.domain, s.teacher, s.student, s.objective, s.generation)
        own = {o.method: o for o in summary if (o.domain, o.teacher, o.student, o.objective, o.generation) == link}
        if s.method != MATCHED or s.accuracy is None or "ntf" not in own or own["ntf"].accuracy is None:
            continue
        told = [
            f"{figures.name(method)} {percent(own[method].accuracy)} %"
            f" {limits_of(own[method].accuracy_lo, own[method].accuracy_hi, 1)}".strip()
            for method in ("naive", MATCHED, "ntf")
            if method in own and own[method].accuracy is not None
        ]
        said.append(
            f"The control of equal difficulty: accuracy of the students taught by {', '.join(told)}. What lies between"
            f" {figures.name(MATCHED)} and {figures.name('ntf')} is owed to more than difficulty."
        )
    return said


def _deciles_figure(drawn: Sequence[EasyFirst]) -> str:
    keys = " ".join(
        f'<span class="dot" style="background:{figures.colour(one.method)}; display:inline-block"></span>'
        f"&nbsp;{escape(figures.name(one.method))}"
        for one in drawn
    )
    drawings = (f'<div class="{kind}">{figures.deciles(drawn, narrow=kind == "narrow")}</div>' for kind in KINDS)
    return figure(
        "".join(drawings),
        "<b>Trust and difficulty.</b> The labels in order of trust, a tenth at each point (equal scores stay together): how"
        f" hard their questions are ({escape(DIFFICULTIES[drawn[0].difficulty])}), and how many are right. A curve of"
        f" difficulty that falls to the right is a choice of easy questions first. {keys}",
    )


def _drawn(found: Sequence[EasyFirst]) -> list[EasyFirst]:
    """What the figure shows: the first known difficulty of each method, where its trust varies."""
    first = [one for one in found if one.difficulty == found[0].difficulty]
    return [one for one in first if len(one.decile) > 1]


def _leading(found: Sequence[EasyFirst] | Sequence[BetterThanGold]) -> Sequence:
    """NTF's alone: what the other rows are for differs."""
    return [one for one in found if one.method == "ntf"]


def _remarks(found: Mechanisms) -> list[str]:
    """What is undefined or was not measured, and why."""
    undefined: dict[str, list[str]] = {}
    for one in itertools.chain(found.easy_first, found.better, found.coherence, found.selective):
        if one.reason:
            undefined.setdefault(one.reason, []).append(figures.name(one.method))
    told = [f"{', '.join(dict.fromkeys(names))}: {reason}." for reason, names in undefined.items()]
    return told + [f"{note[0].upper()}{note[1:]}." for note in found.notes]


def _anything(found: Mechanisms) -> bool:
    return bool(found.easy_first or found.better or found.coherence or found.selective or found.learnt)


def _signed(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:+.{digits}f}".replace("-", "−")


def _limits(lo: float | None, hi: float | None, digits: int = 2) -> str:
    return "" if lo is None or hi is None else f"[{_signed(lo, digits)}, {_signed(hi, digits)}]"


def _known(value: float) -> float | None:
    return None if np.isnan(value) else value


def _equal(one: np.ndarray, other: np.ndarray) -> bool:
    return bool(np.allclose(one, other, equal_nan=True))
