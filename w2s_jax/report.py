"""The report of a run: recovery.json, recovery.md and one self-contained page; it formats and computes nothing.

Stage in: `Recovery` rows, `Summary` objects, `Audit`s, and texts that say what was run. Stage out, in one folder:

    recovery.json   {"schema": 1, "rows": [...], "summary": [...]}, the same bytes for the same values
    recovery.md     the tables, for a pull request
    index.html      the page, with its figures inside; it asks for nothing over the network
    chain.json      of a chain: what its collapse detector saw, and why it stopped
    data/*.csv      the numbers behind each figure

recovery.json holds no path, time or duration; the page also shows the texts it is given, such as the resolved config.
"""

import csv
import dataclasses
import html
import io
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from w2s_jax import figures
from w2s_jax.analysis.transfer import Cell
from w2s_jax.certificate import sentence
from w2s_jax.chain import Point
from w2s_jax.grid import Grid
from w2s_jax.recovery import MEAN, Summary
from w2s_jax.types import Audit, Certificate, Recovery

VERSION = "1"

DAGGER = "†"
CURVES = {
    "reward": "reward, mean over the answers of a round",
    "zero_variance_frac": "share of groups whose answers are all worth the same",
    "completion_tokens": "tokens of an answer, mean",
    "sampler_gap_max": "largest gap between sampler and trainer, nats",
}
ROWS = {  # what a row is for, where its name does not say it
    "naive": "a random n of the weak labels; what is gained above it is owed to trust",
    "naive_all": "all weak labels",
    "shuffled": "the trust scores dealt out at random: same scores, no information",
    "flipped": "the same head, fitted with right and wrong exchanged: it should choose the worst labels",
    "same_purity": "random labels, as many right and wrong ones as NTF chose: what NTF gains above it is owed to which right "
    "labels it chooses, not to how many; it is drawn with the target's gold labels",
    "difficulty_matched": "random labels of questions as easy and as hard as those NTF chose, by level, rating or the "
    "teacher's confidence: what NTF gains above it is owed to more than difficulty",
    "oracle": "right labels only: the most that any choice of labels can reach",
    "gold": "gold labels of the questions of the naive row",
    "gold_on_ntf": "gold labels of the questions NTF chose",
}
SUBSETS = ("same_purity", "difficulty_matched")  # their scores say which rows were drawn, they are no probabilities
CERTIFICATE = ["method", "threshold", "calibration_questions", "calibration_purity", "lower_bound", "target_kept", "coverage"]
LEGEND = f"{DAGGER} its student saw gold labels of the target, or labels chosen by them: a ceiling or a control, not a method"


@dataclasses.dataclass(frozen=True)
class Learning:
    """How a student learnt from what it wrote.

    Attributes:
        curves: by name (those of `CURVES` are shown), step and value of each round; empty where they were logged elsewhere.
        rounds: groups of answers in order, as `student.online.completions` gives them.
    """

    curves: Mapping[str, Sequence[tuple[int, float]]]
    rounds: Sequence[Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class Snowball:
    """What came of a chain.

    Attributes:
        points: generation by generation, from `chain.snowball`.
        chains: for each seed what its detector saw and why it stopped, from `chain.plain`.
    """

    points: Sequence[Point]
    chains: Sequence[Mapping[str, Any]]


def write(
    folder: str | epath.Path,
    *,
    rows: Sequence[Recovery],
    summary: Sequence[Summary],
    audits: Mapping[str, Audit],
    learning: Mapping[str, Learning] | None = None,
    snowball: Snowball | None = None,
    certificates: Mapping[str, Certificate] | None = None,
    context: Mapping[str, str] | None = None,
    title: str = "Weak-to-strong recovery",
) -> epath.Path:
    """Writes the report and returns the page's path.

    Args:
        folder: where to, made if it is missing; files of an earlier report are replaced.
        rows, summary: from `recovery.recover` and `recovery.summarise`.
        audits: by method, of one seed; the trust figures show those of methods that saw no gold labels.
        learning: by method, of one seed, where students learnt from what they wrote.
        snowball: where a chain was run.
        certificates: by method, of one seed, where the purity of the selection was certified.
        context: what was run, heading -> text, such as the resolved config.
        title: of the page.
    """
    folder = epath.Path(folder)
    (folder / "data").mkdir(parents=True, exist_ok=True)
    (folder / "recovery.json").write_text(to_json(rows, summary))
    certificates = certificates or {}
    (folder / "recovery.md").write_text(to_markdown(summary, audits, title, certificates, snowball))
    if snowball:
        whole = {"schema": 1, "chains": _plain(snowball.chains)}
        (folder / "chain.json").write_text(json.dumps(whole, sort_keys=True, indent=1, allow_nan=False) + "\n")
    for name, text in _data(summary, audits, learning or {}, certificates, snowball).items():
        (folder / "data" / name).write_text(text)
    page = folder / "index.html"
    page.write_text(to_html(rows, summary, audits, learning or {}, certificates, context or {}, title, snowball))
    return page


def write_sweep(folder: str | epath.Path, grid: Grid, *, title: str, command: str) -> None:
    """Writes a sweep's table as sweep.json, sweep.csv, sweep.md and index.html, the best head first.

    Args:
        folder: made if need be.
        grid: the sweep.
        title: what was swept.
        command: that runs an experiment with the best head.
    """
    folder = epath.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    order = ranked(grid)
    measured = ("auc", "auc_lo", "auc_hi", "purity")
    heads = [
        {
            "head": h,
            "settings": dict(grid.head[h]),
            "held_back_auc": _known(grid.quality[h]),
            "epoch": int(grid.epoch[h]),
            "target": {name: _known(getattr(grid, name)[h]) for name in measured},
        }
        for h in order
    ]
    found = {"schema": 1, "axes": {name: list(values) for name, values in grid.axes.items()}, "best": grid.best}
    (folder / "sweep.json").write_text(json.dumps(found | {"taught": grid.taught, "heads": heads}, indent=1) + "\n")
    names = ["head", *grid.axes, "held_back_auc", "epoch", *(f"target_{name}" for name in measured)]
    lines = [
        [
            h,
            *(grid.head[h][name] for name in grid.axes),
            grid.quality[h],
            grid.epoch[h],
            *(getattr(grid, m)[h] for m in measured),
        ]
        for h in order
    ]
    (folder / "sweep.csv").write_text(_csv(names, [[v.item() if isinstance(v, np.generic) else v for v in li] for li in lines]))
    top, body = sweep_table(grid, order)
    note = sweep_note(grid)
    (folder / "sweep.md").write_text("\n".join([f"# {title}", "", *_markdown_table(top, body), "", note, ""]))
    places = np.array([[grid.axes[name].index(one[name]) for name in grid.axes] for one in grid.head])
    measures = {"held-back AUC": grid.quality} | ({} if np.isnan(grid.auc).all() else {"target AUC": grid.auc})
    shown = ({name: [_setting(v) for v in values] for name, values in grid.axes.items()}, places, measures, grid.best)
    drawings = "".join(
        f'<div class="{kind}">{figures.parallel(*shown, narrow=kind == "narrow")}</div>' for kind in ("wide", "narrow")
    )
    caption = "<b>Every head of the sweep</b>, from its settings to what it reaches; the chosen one in orange."
    page = [
        f"<h1>{_e(title)}</h1>",
        f'<p class="lead">{_e(note)}</p>',
        _figure(drawings, caption),
        f"<section><h2>Heads</h2>{_table(top, body)}</section>",
        f"<section><h2>A run with the best head</h2><pre>{_e(command)}</pre></section>",
    ]
    (folder / "index.html").write_text(_PAGE.format(title=_e(title), body="\n".join(page)))


def ranked(grid: Grid) -> list[int]:
    """The heads of a sweep, the best first, those that diverged last."""
    return sorted(range(len(grid.head)), key=lambda h: (-np.nan_to_num(grid.quality[h], nan=-np.inf), h))


def sweep_table(grid: Grid, order: Sequence[int]) -> tuple[list[str], list[list[str]]]:
    """The heads of a sweep in that order: titles, and a line for each."""
    top = ["head", *(name.replace("_", " ") for name in grid.axes), "held-back AUC", "epoch", "target AUC", "purity"]
    body = []
    for h in order:
        limits = "" if np.isnan(grid.auc_lo[h]) else f" [{grid.auc_lo[h]:.3f}, {grid.auc_hi[h]:.3f}]"
        target = [_number(_known(grid.auc[h]), 3) + limits, _number(_known(grid.purity[h]), 3)]
        settings = (_setting(grid.head[h][name]) for name in grid.axes)
        body.append([str(h), *settings, _number(_known(grid.quality[h]), 3), str(grid.epoch[h]), *target])
    return top, body


def sweep_note(grid: Grid) -> str:
    """What the numbers of a sweep are, and what they are not."""
    lost = int(np.isnan(grid.quality).sum())
    return (
        f"Head {grid.best} of {len(grid.head)} was chosen by its AUC on held-back source rows alone; the best of many is too "
        "high an estimate of that AUC. The target was looked at afterwards, for this report; purity is of its "
        f"{grid.taught:,} most trusted labels." + (f" {lost} heads diverged." if lost else "")
    )


def _setting(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def to_json(rows: Sequence[Recovery], summary: Sequence[Summary]) -> str:
    """Returns recovery.json: keys sorted, floats to 6 places.

    >>> to_json([], [])
    '{\\n "rows": [],\\n "schema": 1,\\n "summary": []\\n}\\n'
    """
    whole = {"schema": 1, "rows": [dataclasses.asdict(r) for r in rows], "summary": [dataclasses.asdict(s) for s in summary]}
    return json.dumps(_plain(whole), sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def terminal_table(rows: Sequence[Recovery], summary: Sequence[Summary]) -> str:
    """Returns the recovery table as plain aligned text, with one recovery per seed where there are several."""
    lines: list[str] = []
    for link, part in _links(summary):
        by_seed = {s.method: _seeds(rows, s, "recovery") for s in part}
        many = any(len(values) > 1 for values in by_seed.values())
        head = ["method", "n", "purity", "AUC", "accuracy", "95 %", "recovery", "95 %", "PGR", "verdict"] + ["by seed"] * many
        table = [head]
        for s in part:
            cells = [
                s.method + (DAGGER if s.uses_target_gold else ""),
                f"{s.n_selected:,}",
                _number(s.purity),
                _number(s.auc),
                _percent(s.accuracy),
                _limits(s.accuracy_lo, s.accuracy_hi, 1),
                _percent(s.recovery, 0, _nothing(s)),
                _limits(s.recovery_lo, s.recovery_hi) if s.recovery_lo != s.recovery_hi else "",
                _percent(s.pgr_median, 0),
                s.verdict or ("reference" if s.gt is not None else "no gold"),
            ]
            table.append(cells + [" ".join(_percent(v, 0) for v in by_seed[s.method])] * many)
        lines += [_heading(link, part), _guides(part), "", *aligned(table), ""]
        if any(s.uses_target_gold for s in part):
            lines.append(LEGEND)
        lines += [f"{', '.join(methods)}: {reason}" for reason, methods in _reasons(part).items()]
        lines.append("")
    return "\n".join(line.rstrip() for line in lines).rstrip() + "\n" if lines else "no results\n"


def to_markdown(
    summary: Sequence[Summary],
    audits: Mapping[str, Audit],
    title: str,
    certificates: Mapping[str, Certificate] | None = None,
    snowball: Snowball | None = None,
) -> str:
    """Returns the tables as Markdown."""
    out = [f"# {title}", ""]
    if snowball:
        out += ["## The chain, generation by generation", "", *(f"- {line}" for line in _endings(snowball)), ""]
        out += [*_markdown_table(*_generations(snowball)), "", *_markdown_table(*_detected(snowball)), ""]
    for link, part in _links(summary):
        out += [f"## {_heading(link, part)}", "", _guides(part), ""]
        out += [f"- **{figures.name(s.method)}**: {_sentence(s)}" for s in part] + [""]
        out += _markdown_table(*_recovery_table(part)) + [""]
        out += _markdown_table(*_accuracy_table(part)) + [""]
        if any(s.uses_target_gold for s in part):
            out += [LEGEND + ".", ""]
        out += [f"- not defined ({', '.join(methods)}): {reason}" for reason, methods in _reasons(part).items()]
        out += ["", "What the rows are for:", ""] if _explained(part) else []
        out += [f"- **{figures.name(method)}**: {said}" for method, said in _explained(part).items()]
        out.append("")
    if shown := _shown(summary, audits):
        out += ["## How good were the trust scores?", "", *_markdown_table(*_trust_table(shown)), ""]
    if certificates:
        out += ["## What purity is certified?", ""]
        for key, one in certificates.items():
            out += [f"- **{figures.name(key)}**: {' '.join((sentence(one), *(f'Note: {c}.' for c in one.caveats)))}"]
    return "\n".join(out).rstrip() + "\n"


def to_html(
    rows: Sequence[Recovery],
    summary: Sequence[Summary],
    audits: Mapping[str, Audit],
    learning: Mapping[str, Learning],
    certificates: Mapping[str, Certificate],
    context: Mapping[str, str],
    title: str,
    snowball: Snowball | None = None,
) -> str:
    """Returns the page. Of a chain's controls it shows what the chain's own section says."""
    body = [f"<header><h1>{_e(title)}</h1>{_lead(summary, snowball)}</header>"]
    links = _links(summary)
    if snowball:
        body.append(_snowball_section(snowball))
        own = {(p.generation, p.teacher) for p in snowball.points if p.chain == snowball.points[0].chain}
        links = [(link, part) for link, part in links if (link[-1], link[1]) in own]
    for link, part in links:
        heading = _heading(link, part) if len(links) > 1 else "What was recovered"
        body.append(_link_section(heading, part, rows))
    body.append(_trust_section(summary, audits))
    body.append(_certificate_section(certificates, several=any(s.seeds > 1 for s in summary)))
    body.append(_learning_section(learning, several=any(s.seeds > 1 for s in summary)))
    if context:
        parts = "".join(f"<details><summary>{_e(k)}</summary><pre>{_e(v)}</pre></details>" for k, v in context.items())
        body.append(f"<section><h2>What was run</h2>{parts}</section>")
    body.append(_READING)
    files = ["recovery.json", "recovery.md", *["chain.json"] * bool(snowball)]
    files += [f"data/{name}" for name in _data(summary, audits, learning, certificates, snowball)]
    body.append("<footer>Numbers: " + " · ".join(f'<a href="{f}">{f}</a>' for f in files) + "</footer>")
    return _PAGE.format(title=_e(title), body="\n".join(body))


def chain_table(snowball: Snowball) -> str:
    """Returns a chain and its controls as plain aligned text, one line for each generation, and why it stopped."""
    tables = ["\n".join(aligned([head, *body])) for head, body in (_generations(snowball), _detected(snowball))]
    return "\n\n".join([*tables, "\n".join(_endings(snowball))]) + "\n"


# Sections of the page


def _lead(summary: Sequence[Summary], snowball: Snowball | None) -> str:
    links = _links(summary)
    if snowball:
        chains = len({p.chain for p in snowball.points}) - 1
        last = max(p.generation for p in snowball.points)
        beside = f", with {chains} control chain{'s' * (chains > 1)} beside it" if chains else ""
        return f'<p class="lead">A chain of {last} generations of teacher and student{beside}; a section for each below.</p>'
    if not links:
        return '<p class="lead">No results.</p>'
    if len(links) > 1:
        return f'<p class="lead">{len(links)} links of teacher and student, one section each.</p>'
    (link, part) = links[0]
    return f'<p class="lead">{_e(_heading(link, part))}. {_e(_guides(part))}</p>'


def _link_section(heading: str, part: Sequence[Summary], rows: Sequence[Recovery]) -> str:
    points = {s.method: _seeds(rows, s, "accuracy") for s in part}
    items = []
    for s in part:
        badge = s.verdict or ("reference" if s.gt is not None else "no gold")
        items.append(
            f'<li><span class="dot" style="background:{figures.colour(s.method)}"></span>'
            f"<div><b>{_e(figures.name(s.method))}</b>{DAGGER if s.uses_target_gold else ''} "
            f'<span class="badge {badge.split()[0]}">{badge}</span><p>{_unbroken(_e(_sentence(s)))}</p></div></li>'
        )
    out = [f'<section><h2>{_e(heading)}</h2><ul class="verdicts">{"".join(items)}</ul>']
    if any(s.accuracy is not None for s in part):
        seeds = " White dots are single seeds." if any(len(v) > 1 for v in points.values()) else ""
        out.append(
            _figure(
                f'<div class="wide">{figures.recovery(part, points)}</div>'
                f'<div class="narrow">{figures.recovery(part, points, narrow=True)}</div>',
                "<b>Recovery.</b> Bars begin at the base student (before training) and end at the accuracy reached; the black"
                f" line is the 95 % interval.{seeds} The share of the way from <i>base</i> to <i>gold</i> is the recovery"
                " (arXiv&nbsp;2606.01000), written at the side with its 95 % interval (Fieller).",
            )
        )
    out.append("<h3>Recovery</h3>" + _table(*_recovery_table(part)))
    head, body = _accuracy_table(part)
    out.append("<h3>Accuracy</h3>" + _table(head, body, "numbers stacked" if len(head) > 3 else "numbers"))
    if any(s.uses_target_gold for s in part):
        out.append(f'<p class="note">{LEGEND}.</p>')
    if reasons := _reasons(part):
        told = "".join(
            f"<li><b>{_e(', '.join(figures.name(m) for m in methods))}</b>: {_e(reason)}</li>"
            for reason, methods in reasons.items()
        )
        out.append(f'<h3>Not defined, and why</h3><ul class="plain">{told}</ul>')
    if explained := _explained(part):
        told = "".join(f"<li><b>{_e(figures.name(method))}</b>: {_e(said)}</li>" for method, said in explained.items())
        out.append(f'<h3>What the rows are for</h3><ul class="plain">{told}</ul>')
    return "".join(out) + "</section>"


def _explained(part: Sequence[Summary]) -> dict[str, str]:
    return {s.method: ROWS[s.method] for s in part if s.method in ROWS}


def _trust_section(summary: Sequence[Summary], audits: Mapping[str, Audit]) -> str:
    shown = _shown(summary, audits)
    untold: dict[str, list[str]] = {}
    for key, a in audits.items():
        if a.reason:
            untold.setdefault(a.reason, []).append(figures.name(key))
    if not shown and not untold:
        return ""
    out = ["<section><h2>How good were the trust scores?</h2>"]
    if shown:
        if any(s.seeds > 1 for s in summary):
            out.append('<p class="note">Of one seed, the last; the tables above are over all of them.</p>')
        out.append(_table(*_trust_table(shown)))
        cards = "".join(f"<div><h4>{_e(figures.name(k))}</h4>{figures.reliability(k, a)}</div>" for k, a in shown.items())
        out.append(
            _figure(
                f'<div class="cards">{cards}</div>',
                "<b>Reliability.</b> Rows are put into bins of equal width by trust score; a point shows what share of a bin's"
                f" labels is right (larger: more rows; hollow: fewer than {figures.FEW}). On the diagonal a score of 0.8 means"
                " right four times in five; the mean distance from it is the ECE (arXiv&nbsp;1706.04599). Below: how many rows"
                " have each score.",
            )
        )
        out.append(
            _figure(
                f'<div class="wide">{figures.purity(shown)}</div>'
                f'<div class="narrow">{figures.purity(shown, narrow=True)}</div>',
                "<b>Purity.</b> Share of right labels among the n rows trusted most. A useful score starts high and falls to"
                " the share of right labels among all rows; a useless one stays on the dashed line of n random rows.",
            )
        )
    out += [f'<p class="note"><b>{_e(", ".join(names))}</b>: {_e(reason)}.</p>' for reason, names in untold.items()]
    return "".join(out) + "</section>"


def _certificate_section(certificates: Mapping[str, Certificate], several: bool) -> str:
    if not certificates:
        return ""
    out = ["<section><h2>What purity is certified?</h2>"]
    if several:
        out.append('<p class="note">Of one seed, the last.</p>')
    for key, one in certificates.items():
        out.append(f"<p><b>{_e(figures.name(key))}</b>: {_e(sentence(one))}</p>")
        out += [f'<p class="note"><b>Note</b>: {_e(caveat)}.</p>' for caveat in one.caveats]
    drawn = [
        f'<div style="max-width: 32rem"><h4>{_e(figures.name(key))}</h4>{figures.certificate(key, one)}</div>'
        for key, one in certificates.items()
    ]
    out.append(
        _figure(
            "".join(drawn),
            "<b>Certified purity.</b> Each point is a threshold of a grid fixed beforehand: the share of right labels among the"
            " source questions held back for this that reach it, and a lower bound of the purity that holds for all thresholds"
            " at once. Taken is the smallest threshold whose bound reaches the wanted purity. Calibration and target questions"
            " must come from one population, and be independent of each other.",
        )
    )
    return "".join(out) + "</section>"


def _learning_section(learning: Mapping[str, Learning], several: bool) -> str:
    if not learning:
        return ""
    out = ["<section><h2>What the students wrote while they learnt</h2>"]
    if several:
        out.append('<p class="note">Of one seed, the last.</p>')
    drawn = {name: {key: one.curves[name] for key, one in learning.items() if one.curves.get(name)} for name in CURVES}
    cards = "".join(
        f"<div><h4>{_e(CURVES[name])}</h4>{figures.curve(name, lines)}</div>" for name, lines in drawn.items() if lines
    )
    if cards:
        keys = " ".join(
            f'<span class="dot" style="background:{figures.colour(key)}"></span>&nbsp;{_e(figures.name(key))}'
            for key in dict.fromkeys(key for lines in drawn.values() for key in lines)
        )
        out.append(
            _figure(
                f'<div class="cards">{cards}</div>',
                "<b>Learning by reward.</b> In a round the student writes a group of answers to each of some questions; the"
                " reward says which agree with the label that is taught. A group whose answers are all worth the same teaches"
                f" nothing. {keys}",
            )
        )
    if away := [figures.name(key) for key, one in learning.items() if not one.curves]:
        out.append(f'<p class="note">No curves of {_e(", ".join(away))}: the student was taught in another workdir.</p>')
    for key, one in learning.items():
        ends = [one.rounds[0], one.rounds[-1]][: len(one.rounds)]
        told = "".join(
            f"<h4>Round {_e(group['round'])}</h4><p>Asked: {_e(group['question'])}<br>Taught: <b>{_e(group['wanted'])}</b></p>"
            + _table(["what it wrote", "read as", "reward"], [_written(answer) for answer in group["answers"]], "numbers texts")
            for group in ends
        )
        if told:
            out.append(f"<details><summary>{_e(figures.name(key))}: its first and last rounds</summary>{told}</details>")
    return "".join(out) + "</section>"


def _written(answer: Mapping[str, Any]) -> list[str]:
    return [answer["text"], answer["final"] or "–", f"{answer['reward']:.3g}".replace("-", "−")]


def _trust_table(shown: Mapping[str, Audit]) -> tuple[list[str], list[list[str]]]:
    body = [
        [
            figures.name(key),
            f"{_number(a.auc, 3)} {_range(a.auc_interval)}".strip(),
            _number(a.ece, 3),
            _number(a.brier, 3),
            f"{_number(a.purity, 3)} {_range(a.purity_interval)}".strip(),
        ]
        for key, a in shown.items()
    ]
    return ["trust function", "AUC [95 %]", "ECE", "Brier", "purity [95 %]"], body


def _shown(summary: Sequence[Summary], audits: Mapping[str, Audit]) -> dict[str, Audit]:
    """Leaves out rows that were not chosen by a trust function of their own: of students that saw gold labels, and subsets."""
    left_out = {*SUBSETS, *(s.method for s in summary if s.uses_target_gold)}
    return {key: a for key, a in audits.items() if key not in left_out and len(a.curve)}


def _recovery_table(part: Sequence[Summary]) -> tuple[list[str], list[list[str]]]:
    head = ["method", "n taught", "purity", "recovery, % [95 %]", "PGR, %", "student − gold, points [95 %]", "verdict"]
    body = []
    for s in part:
        recovered = _percent(s.recovery, 0, _nothing(s))
        if s.recovery is not None and s.recovery_lo != s.recovery_hi:
            recovered += f" {_limits(s.recovery_lo, s.recovery_hi)}"
        gap = f"{_points(s.difference)} {_limits(s.difference_lo, s.difference_hi, 1)}" if s.difference is not None else "–"
        body.append(
            [
                figures.name(s.method) + (f" {DAGGER}" if s.uses_target_gold else ""),
                f"{s.n_selected:,}",
                _number(s.purity),
                recovered,
                _percent(s.pgr_median, 0),
                gap,
                s.verdict or ("reference" if s.gt is not None else "no gold"),
            ]
        )
    return head, body


def _accuracy_table(part: Sequence[Summary]) -> tuple[list[str], list[list[str]]]:
    tests = list(dict.fromkeys(test for s in part for test in s.by_test))
    tests = tests[:1] if len(tests) == 2 else sorted(tests, key=MEAN.__ne__)
    body = []
    for who, key in (("Teacher", "teacher"), ("Student before training", "base")):
        known = {t: next((s.by_test[t][key] for s in part if s.by_test.get(t, {}).get(key) is not None), None) for t in tests}
        if any(v is not None for v in known.values()):
            body.append([who, *(_percent(known[t]) for t in tests)])
    for s in part:
        cells = [s.by_test.get(t, {}) for t in tests]
        told = [f"{_percent(c.get('accuracy'))} {_limits(c.get('lo'), c.get('hi'), 1)}".strip() for c in cells]
        body.append([figures.name(s.method) + (f" {DAGGER}" if s.uses_target_gold else ""), *told])
    return ["accuracy, % [95 %]", *tests], body


# Words


def _sentence(s: Summary) -> str:
    """Says in one or two sentences what came of a method."""
    why = s.reason.split("; ")[0].removeprefix("no gold: ")
    if s.accuracy is None:
        return f"Not scored: {why}."
    if s.gt is None:
        return f"Accuracy {_percent(s.accuracy)} % {_limits(s.accuracy_lo, s.accuracy_hi, 1)}; {why}."
    if s.verdict is None:
        return f"The reference: the same student, trained on the gold labels of {s.n_selected:,} questions."
    gap = f"{_points(s.difference)} {_limits(s.difference_lo, s.difference_hi, 1)}"
    margin = f"{100 * s.margin:g} points"
    said = {
        "super-recovery": f"Beats training on gold labels: {gap} points.",
        "near-lossless": f"Equals training on gold labels to within {margin}: {gap}.",
        "lossy": f"Falls short of training on gold labels: {gap} points.",
        "undetermined": f"Neither told apart from gold labels nor shown equal to within {margin}: {gap}.",
    }[s.verdict]
    if s.recovery is not None:
        said += f" It recovers {_percent(s.recovery, 0)} % {_limits(s.recovery_lo, s.recovery_hi)} of their gain."
    else:
        said += f" No ratio is given: {why}."
    if s.verdict == "undetermined" and s.power is not None and s.power < 0.8:
        enough = (
            f"about {float(f'{s.needed_n:.2g}'):,.0f} would give 0.8"
            if s.needed_n
            else "no number would give 0.8 with so few seeds"
        )
        said += f" {s.n_test:,} questions show equality with power {s.power:.2f} only; {enough}."
    return said


def _heading(link: tuple, part: Sequence[Summary]) -> str:
    domain, teacher, student, objective, generation = link
    place = f", generation {generation}" if generation else ""
    seeds = max(s.seeds for s in part)
    told = "1 seed (intervals cover questions, not training)" if seeds == 1 else f"{seeds} seeds"
    num_test = max(s.n_test for s in part)
    return f"{domain}: {teacher} → {student}, {objective}{place}; {told}, {num_test:,} test questions"


def _guides(part: Sequence[Summary]) -> str:
    known = {
        k: next((getattr(s, k) for s in part if getattr(s, k) is not None), None) for k in ("teacher_accuracy", "base", "gt")
    }
    told = [
        f"{who} {_percent(v)} %" if v is not None else f"{who}: no gold"
        for who, v in zip(("teacher", "student before training", "student on gold labels"), known.values(), strict=True)
    ]
    return f"Accuracy: {', '.join(told)}."


def _links(summary: Sequence[Summary]) -> list[tuple[tuple, list[Summary]]]:
    links: dict[tuple, list[Summary]] = {}
    for s in summary:
        links.setdefault((s.domain, s.teacher, s.student, s.objective, s.generation), []).append(s)
    return list(links.items())


def _seeds(rows: Sequence[Recovery], s: Summary, field: str) -> list[float]:
    """Picks one number for each seed of a summary's method."""
    keys = ("method", "domain", "test", "teacher", "student", "objective", "generation")
    own = [r for r in rows if all(getattr(r, k) == getattr(s, k) for k in keys)]
    return [getattr(r, field) for r in own if getattr(r, field) is not None]


def _reasons(part: Sequence[Summary]) -> dict[str, list[str]]:
    reasons: dict[str, list[str]] = {}
    for s in part:
        if s.reason:
            reasons.setdefault(s.reason, []).append(s.method)
    return reasons


def _nothing(s: Summary) -> str:
    return "no gold" if s.gt is None else "no ratio"


def _percent(value: float | None, digits: int = 1, nothing: str = "–") -> str:
    return nothing if value is None else f"{100 * value:.{digits}f}".replace("-", "−")


def _points(value: float) -> str:
    return f"{100 * value:+.1f}".replace("-", "−")


def _limits(lo: float | None, hi: float | None, digits: int = 0) -> str:
    return "" if lo is None or hi is None else f"[{_percent(lo, digits)}, {_percent(hi, digits)}]"


def _number(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _range(limits: tuple[float, float] | None) -> str:
    return "" if limits is None else f"[{_number(limits[0], 3)}, {_number(limits[1], 3)}]"


# Formats


def _plain(value: Any) -> Any:
    """Returns numpy's and Python's values as JSON's, floats to 6 places (and no negative zero)."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [_plain(v) for v in value]
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, int | np.integer):
        return int(value)
    return round(float(value), 6) + 0.0 if isinstance(value, float | np.floating) else value


def _data(
    summary: Sequence[Summary],
    audits: Mapping[str, Audit],
    learning: Mapping[str, Learning],
    certificates: Mapping[str, Certificate],
    snowball: Snowball | None = None,
) -> dict[str, str]:
    """Returns the figures' numbers: file name -> CSV."""
    link = ["domain", "teacher", "student", "objective", "generation", "method"]
    drawn = [
        "accuracy",
        "accuracy_lo",
        "accuracy_hi",
        "base",
        "gt",
        "teacher_accuracy",
        "recovery",
        "recovery_lo",
        "recovery_hi",
    ]
    files = {"recovery.csv": _csv([*link, *drawn], [[getattr(s, f) for f in (*link, *drawn)] for s in summary])}
    shown = _shown(summary, audits)
    for name, field, head in (
        ("reliability.csv", "reliability", ["mean_score", "share_right", "rows"]),
        ("trust.csv", "histogram", ["left_edge", "right", "wrong"]),
        ("purity.csv", "curve", ["n", "most_trusted", "random"]),
    ):
        lines = [[key, *line] for key, a in shown.items() for line in getattr(a, field).tolist()]
        if lines:
            files[name] = _csv(["method", *head], lines)
    steps = [
        [key, name, step, float(value)]
        for key, one in learning.items()
        for name in CURVES
        for step, value in one.curves.get(name, ())
    ]
    if steps:
        files["learning.csv"] = _csv(["method", "curve", "step", "value"], steps)
    if snowball:
        fields = [field.name for field in dataclasses.fields(Point)]
        files["snowball.csv"] = _csv(fields, [[getattr(p, name) for name in fields] for p in snowball.points])
    if certificates:
        lines = [[key, *line] for key, one in certificates.items() for line in one.curve.tolist()]
        files["certificate.csv"] = _csv(CERTIFICATE, lines)
    return files


def _csv(head: Sequence[str], lines: Sequence[Sequence[Any]]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(head)
    for line in lines:
        writer.writerow(["" if v is None or v != v else f"{round(v, 6) + 0.0:g}" if isinstance(v, float) else v for v in line])
    return out.getvalue()


def aligned(table: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table whose columns stand below each other."""
    widths = [max(len(line[at]) for line in table) for at in range(len(table[0]))]
    words = {0, *(at for at, name in enumerate(table[0]) if name in ("verdict", "by seed"))}
    return [
        "  ".join(
            cell.ljust(w) if at in words else cell.rjust(w) for at, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in table
    ]


def _markdown_table(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *body]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]


def _table(head: Sequence[str], body: Sequence[Sequence[str]], kind: str = "numbers") -> str:
    top = "".join(f"<th>{_e(cell)}</th>" for cell in head)
    lines = "".join("<tr>" + "".join(f"<td>{_dim(cell)}</td>" for cell in line) + "</tr>" for line in body)
    return f'<div class="scroll"><table class="{kind}"><thead><tr>{top}</tr></thead><tbody>{lines}</tbody></table></div>'


def _dim(cell: str) -> str:
    """Escapes a cell; an interval after its number is set in a lighter tone."""
    number, bracket, limits = cell.partition(" [")
    return f'{_e(number)} <span class="ci">[{_e(limits)}</span>' if bracket and limits.endswith("]") else _e(cell)


def _unbroken(text: str) -> str:
    """Keeps intervals on one line."""
    return re.sub(r"\[[^]]*\]", lambda found: found[0].replace(" ", "&nbsp;"), text)


def _figure(drawing: str, caption: str) -> str:
    return f"<figure>{drawing}<figcaption>{caption}</figcaption></figure>"


def _e(text: str) -> str:
    return html.escape(str(text))


# Chains


def _snowball_section(snowball: Snowball) -> str:
    out = ["<section><h2>The chain, generation by generation</h2>"]
    out.append('<ul class="plain">' + "".join(f"<li>{_e(line)}</li>" for line in _endings(snowball)) + "</ul>")
    keys = " ".join(
        f'<span class="dot" style="background:{figures.colour(chain)}; display:inline-block"></span>&nbsp;{_e(name)}'
        for chain, name in dict.fromkeys((p.chain, _chain_name(snowball, p.chain)) for p in snowball.points)
    )
    drawings = (f'<div class="{kind}">{figures.snowball(snowball.points, narrow=kind == "narrow")}</div>' for kind in _KINDS)
    out.append(
        _figure(
            "".join(drawings),
            "<b>Snowball.</b> In each chain the trained student of a generation teaches the next one; the dotted line is the"
            f" first teacher. Vertical lines are 95 % intervals. {keys}",
        )
    )
    out.append(_table(*_generations(snowball)))
    out.append("<h3>What the collapse detector saw</h3>" + _table(*_detected(snowball)))
    out.append(
        "<p class=\"note\">It reads the teacher's answers to held-back source questions, its head's AUC there, and the trust"
        " scores of the unlabelled target; neither the target's gold nor the test. Change is counted from the first teacher,"
        " drift and distance from the generation before; means over seeds. Its rules and their numbers are our proposals.</p>"
    )
    return "".join(out) + "</section>"


_KINDS = ("wide", "narrow")


def _generations(snowball: Snowball) -> tuple[list[str], list[list[str]]]:
    head = ["chain", "generation", "teacher, %", "student, % [95 %]", "n taught", "purity [95 %]", "AUC", "ECE"]
    body = []
    for p in snowball.points:
        accuracy = f"{_percent(p.accuracy)} {_limits(p.accuracy_lo, p.accuracy_hi, 1)}".strip()
        pure = f"{_number(p.purity, 3)} {_range(None if p.purity_lo is None else (p.purity_lo, p.purity_hi))}".strip()
        cells = [_chain_name(snowball, p.chain), str(p.generation), _percent(p.teacher_accuracy), accuracy]
        body.append([*cells, f"{p.n_selected:,}", pure, _number(p.auc, 3), _number(p.ece, 3)])
    return head, body


def _detected(snowball: Snowball) -> tuple[list[str], list[list[str]]]:
    head = ["generation", "held-back source, %", "AUC there", "mean trust in the target", "distance", "drift"]
    own = [p for p in snowball.points if p.chain == snowball.points[0].chain]
    body = [
        [
            str(p.generation),
            _percent(p.held_back),
            _number(p.held_back_auc, 3),
            _number(p.trust, 3),
            _number(p.distance, 3),
            "–" if p.drift is None else f"{p.drift:+.3f}".replace("-", "−"),
        ]
        for p in own
    ]
    return head, body


def _endings(snowball: Snowball) -> list[str]:
    """Says of each seed's chain how it ended."""
    lines = []
    for chain in snowball.chains:
        seed = f"Seed {chain['seed']}: " if len(snowball.chains) > 1 else ""
        ended = f"stopped {chain['stopped']}" if chain["stopped"] else f"ran all {chain['planned']} generations"
        lines.append(f"{seed}the chain {ended}.")
    return lines


def _chain_name(snowball: Snowball, chain: str) -> str:
    """A chain's name; one whose teachers saw gold labels of the target is marked."""
    return figures.name(chain) + (f" {DAGGER}" if any(p.uses_target_gold for p in snowball.points if p.chain == chain) else "")


# The transfer matrix

Tiers = Mapping[tuple[str, str], tuple[float | None, float | None, int]]
"""(method, tier) -> mean AUC, mean purity, cells; from `transfer.by_tier`."""


def write_transfer(
    folder: str | epath.Path, cells: Sequence[Cell], tiers: Tiers, context: Mapping[str, str] | None = None
) -> epath.Path:
    """Writes transfer.json, transfer.md, data/transfer.csv and the page; returns the page's path.

    Args:
        folder: where to, made if it is missing.
        cells: from `transfer.matrix`.
        tiers: from `transfer.by_tier`.
        context: what was run, heading -> text.
    """
    folder = epath.Path(folder)
    (folder / "data").mkdir(parents=True, exist_ok=True)
    whole = {"schema": 1, "cells": _plain([dataclasses.asdict(cell) for cell in cells])}
    (folder / "transfer.json").write_text(
        json.dumps(whole, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    )
    fields = [field.name for field in dataclasses.fields(Cell)]
    (folder / "data" / "transfer.csv").write_text(_csv(fields, [[getattr(cell, name) for name in fields] for cell in cells]))
    tables = [_markdown_table(*_by_tier(tiers)), _markdown_table(*_cells(cells))]
    (folder / "transfer.md").write_text("\n".join(["# Transfer matrix", "", *tables[0], "", *tables[1]]) + "\n")
    body = [
        "<header><h1>Transfer matrix</h1></header>",
        "<section><h2>By distance</h2>" + _table(*_by_tier(tiers)) + "</section>",
    ]
    for method in dict.fromkeys(cell.method for cell in cells):
        own = [cell for cell in cells if cell.method == method]
        drawn = (
            f"<div><h4>{word}</h4>{figures.heat(own, field, chance=field == 'auc')}</div>"
            for word, field in (("AUC", "auc"), ("Purity of the most trusted", "purity"))
        )
        caption = (
            "Fitted on the set at the left, judging the set above. Blue is above the baseline (0.5 for the AUC, the share of"
            " right labels among all for purity), orange below; a dot: the 95 % interval, written beneath, excludes it. On the"
            " diagonal the two halves of one set."
        )
        grid = f'<div style="display: grid; gap: 1.5rem">{"".join(drawn)}</div>'
        body.append(f"<section><h2>{_e(figures.name(method))}</h2>{_figure(grid, caption)}</section>")
    body.append("<section><h2>All cells</h2>" + _table(*_cells(cells)) + "</section>")
    for heading, text in (context or {}).items():
        body.append(f"<details><summary>{_e(heading)}</summary><pre>{_e(text)}</pre></details>")
    links = (f'<a href="{file}">{file}</a>' for file in ("transfer.json", "transfer.md", "data/transfer.csv"))
    body.append("<footer>Numbers: " + " · ".join(links) + "</footer>")
    page = folder / "index.html"
    page.write_text(_PAGE.format(title="Transfer matrix", body="\n".join(body)))
    return page


def transfer_table(cells: Sequence[Cell], tiers: Tiers) -> str:
    """Returns the matrix as plain aligned text, one line for each cell, below the means of each tier."""
    return "\n\n".join("\n".join(aligned([head, *body])) for head, body in (_by_tier(tiers), _cells(cells))) + "\n"


def _by_tier(tiers: Tiers) -> tuple[list[str], list[list[str]]]:
    body = [
        [figures.name(method), tier, _number(auc, 3), _number(pure, 3), str(count)]
        for (method, tier), (auc, pure, count) in tiers.items()
    ]
    return ["trust function", "tier", "AUC, mean", "purity, mean", "cells"], body


def _cells(cells: Sequence[Cell]) -> tuple[list[str], list[list[str]]]:
    head = [
        "trust function",
        "source",
        "target",
        "tier",
        "fitted on",
        "judged",
        "right",
        "AUC [95 %]",
        "ECE",
        "n",
        "purity [95 %]",
    ]
    body = []
    for c in cells:
        area = f"{_number(c.auc, 3)} {_range(None if c.auc_lo is None else (c.auc_lo, c.auc_hi))}".strip()
        pure = f"{_number(c.purity, 3)} {_range(None if c.purity_lo is None else (c.purity_lo, c.purity_hi))}".strip()
        cells_of = [figures.name(c.method), c.source, c.target, c.tier, f"{c.num_fitted:,}", f"{c.num_judged:,}"]
        body.append([*cells_of, _number(c.right, 3), area, _number(c.ece, 3), f"{c.n:,}", pure])
    return head, body


_READING = """<section><h2>How the numbers are defined</h2><dl>
<dt>Recovery</dt><dd>(student − base) / (gold − base): the share of the gain from gold labels that was reached without them
(arXiv 2606.01000). It can exceed 100 %. It is given only where gold − base is significantly above zero.</dd>
<dt>PGR</dt><dd>(student − teacher) / (gold − teacher), performance gap recovered (arXiv 2312.09390); median over seeds.</dd>
<dt>Verdict</dt><dd>From student − gold on the same questions. <i>Super-recovery</i>: the 95 % interval is above zero.
<i>Near-lossless</i>: two one-sided tests at 5 % exclude a gap as large as the margin. <i>Lossy</i>: the 95 % interval is below
zero. <i>Undetermined</i>: none of these; not a finding of equality.</dd>
<dt>Intervals</dt><dd>95 %. Over several seeds they cover the draw of seeds and of questions; over one seed, questions only.
Test sets weigh the same in a mean.</dd>
<dt>Certified purity</dt><dd>A lower bound of the purity of what is chosen, from labelled source questions that the trust
function was not fitted on; with probability 1 − delta over their draw it is not above the truth, whichever threshold is taken.
It is not valid where the target comes from another distribution.</dd>
<dt>Purity, AUC, ECE, Brier</dt><dd>Share of right labels among those taught; chance that a right label is trusted more than a
wrong one; mean distance of trust from the share that is right (arXiv 1706.04599); mean squared error of trust.</dd>
</dl></section>"""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ --ink: #1b1f24; --quiet: #5b6470; --line: #e3e6ea; --wash: #f6f7f9; }}
* {{ box-sizing: border-box; }}
body {{ margin: 0 auto; max-width: 56rem; padding: 2.5rem 1.25rem 4rem; background: #fff; color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, "Noto Sans", sans-serif; }}
h1 {{ font-size: 2rem; line-height: 1.15; letter-spacing: -.02em; margin: 0 0 .6rem; }}
h2 {{ font-size: 1.2rem; line-height: 1.3; letter-spacing: -.01em; margin: 3rem 0 1rem;
  padding-top: 1.2rem; border-top: 1px solid var(--line); }}
h3 {{ font-size: 1rem; margin: 2rem 0 .5rem; }}
h4 {{ font-size: .9rem; margin: 0 0 .2rem; }}
.lead {{ font-size: 1.05rem; color: var(--quiet); margin: 0; }}
.verdicts, .plain {{ list-style: none; padding: 0; margin: 0; }}
.verdicts li {{ display: flex; gap: .8rem; padding: .55rem 0; }}
.verdicts p {{ margin: .1rem 0 0; color: var(--quiet); }}
.dot {{ flex: none; width: .75rem; height: .75rem; border-radius: 50%; margin-top: .42rem; }}
.badge {{ display: inline-block; font-size: .75rem; line-height: 1.4; padding: .08rem .5rem; margin-left: .35rem;
  border-radius: 1rem; background: var(--wash); border: 1px solid var(--line); color: var(--quiet); white-space: nowrap;
  vertical-align: .08em; }}
.badge.near-lossless, .badge.super-recovery {{ background: #e8f3fb; border-color: #b5d6ec; color: #004f7d; }}
.badge.lossy {{ background: #fdf0e9; border-color: #f2c9b0; color: #8f3a00; }}
figure {{ margin: 1.8rem 0; }}
figcaption, .note {{ font-size: .87rem; line-height: 1.5; color: var(--quiet); max-width: 46rem; margin-top: .5rem; }}
figcaption b {{ color: var(--ink); }}
svg {{ display: block; width: 100%; height: auto; }}
svg text {{ font-family: inherit !important; font-variant-numeric: tabular-nums; }}
.narrow {{ display: none; }}
.cards {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(10.5rem, 1fr)); gap: 1.5rem 1.5rem; }}
.scroll {{ overflow-x: auto; }}
table {{ border-collapse: collapse; width: 100%; font-size: .87rem; font-variant-numeric: tabular-nums; }}
th {{ text-align: right; font-weight: 600; color: var(--quiet); vertical-align: bottom; line-height: 1.3;
  border-bottom: 1px solid var(--ink); }}
th, td {{ padding: .4rem 0 .4rem 1rem; }}
td {{ text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }}
th:first-child, td:first-child {{ text-align: left; padding-left: 0; position: sticky; left: 0; background: #fff; }}
.ci {{ color: var(--quiet); }}
.stacked .ci {{ display: block; font-size: .78rem; line-height: 1.25; }}
.stacked td {{ vertical-align: top; }}
.texts td:first-child {{ white-space: pre-wrap; overflow-wrap: anywhere; min-width: 12rem; }}
.plain li {{ margin: .3rem 0; }}
dt {{ font-weight: 600; margin-top: .8rem; }}
dd {{ margin: .1rem 0 0; color: var(--quiet); }}
details {{ border-bottom: 1px solid var(--line); padding: .5rem 0; }}
summary {{ cursor: pointer; font-weight: 600; }}
pre {{ overflow-x: auto; background: var(--wash); padding: 1rem; border-radius: .4rem; font-size: .82rem; line-height: 1.45; }}
footer {{ margin-top: 3rem; padding-top: 1rem; border-top: 1px solid var(--line); font-size: .87rem; color: var(--quiet); }}
a {{ color: #004f7d; }}
@media (max-width: 40rem) {{
  body {{ padding: 1.5rem 1rem 3rem; }}
  h1 {{ font-size: 1.6rem; }}
  .wide {{ display: none; }}
  .narrow {{ display: block; }}
}}
@media print {{ details > pre {{ white-space: pre-wrap; }} }}
</style>
</head>
<body>
{body}
</body>
</html>
"""
