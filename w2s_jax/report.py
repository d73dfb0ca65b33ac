"""The report of a run: recovery.json, recovery.md and one self-contained page; it formats and computes nothing.

Stage in: `Recovery` rows, `Summary` objects, `Audit`s, and texts that say what was run. Stage out, in one folder:

    recovery.json   {"schema": 1, "rows": [...], "summary": [...]}, the same bytes for the same values
    recovery.md     the tables, for a pull request
    index.html      the page, with its figures inside; it asks for nothing over the network
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
from w2s_jax.grid import Grid
from w2s_jax.recovery import MEAN, Summary
from w2s_jax.types import Audit, Recovery

VERSION = "1"

DAGGER = "†"
CURVES = {
    "reward": "reward, mean over the answers of a round",
    "zero_variance_frac": "share of groups whose answers are all worth the same",
    "completion_tokens": "tokens of an answer, mean",
    "sampler_gap_max": "largest gap between sampler and trainer, nats",
}
LEGEND = f"{DAGGER} its student saw gold labels of the target: a ceiling or a control, not a method"


@dataclasses.dataclass(frozen=True)
class Learning:
    """How a student learnt from what it wrote.

    Attributes:
        curves: by name (those of `CURVES` are shown), step and value of each round; empty where they were logged elsewhere.
        rounds: groups of answers in order, as `student.online.completions` gives them.
    """

    curves: Mapping[str, Sequence[tuple[int, float]]]
    rounds: Sequence[Mapping[str, Any]]


def write(
    folder: str | epath.Path,
    *,
    rows: Sequence[Recovery],
    summary: Sequence[Summary],
    audits: Mapping[str, Audit],
    learning: Mapping[str, Learning] | None = None,
    context: Mapping[str, str] | None = None,
    title: str = "Weak-to-strong recovery",
) -> epath.Path:
    """Writes the report and returns the page's path.

    Args:
        folder: where to, made if it is missing; files of an earlier report are replaced.
        rows, summary: from `recovery.recover` and `recovery.summarise`.
        audits: by method, of one seed; the trust figures show those of methods that saw no gold labels.
        learning: by method, of one seed, where students learnt from what they wrote.
        context: what was run, heading -> text, such as the resolved config.
        title: of the page.
    """
    folder = epath.Path(folder)
    (folder / "data").mkdir(parents=True, exist_ok=True)
    (folder / "recovery.json").write_text(to_json(rows, summary))
    (folder / "recovery.md").write_text(to_markdown(summary, audits, title))
    for name, text in _data(summary, audits, learning or {}).items():
        (folder / "data" / name).write_text(text)
    page = folder / "index.html"
    page.write_text(to_html(rows, summary, audits, learning or {}, context or {}, title))
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


def to_markdown(summary: Sequence[Summary], audits: Mapping[str, Audit], title: str) -> str:
    """Returns the tables as Markdown."""
    out = [f"# {title}", ""]
    for link, part in _links(summary):
        out += [f"## {_heading(link, part)}", "", _guides(part), ""]
        out += [f"- **{figures.name(s.method)}**: {_sentence(s)}" for s in part] + [""]
        out += _markdown_table(*_recovery_table(part)) + [""]
        out += _markdown_table(*_accuracy_table(part)) + [""]
        if any(s.uses_target_gold for s in part):
            out += [LEGEND + ".", ""]
        out += [f"- not defined ({', '.join(methods)}): {reason}" for reason, methods in _reasons(part).items()]
        out.append("")
    if shown := _shown(summary, audits):
        out += ["## How good were the trust scores?", "", *_markdown_table(*_trust_table(shown)), ""]
    return "\n".join(out).rstrip() + "\n"


def to_html(
    rows: Sequence[Recovery],
    summary: Sequence[Summary],
    audits: Mapping[str, Audit],
    learning: Mapping[str, Learning],
    context: Mapping[str, str],
    title: str,
) -> str:
    """Returns the page."""
    body = [f"<header><h1>{_e(title)}</h1>{_lead(summary)}</header>"]
    links = _links(summary)
    for link, part in links:
        heading = _heading(link, part) if len(links) > 1 else "What was recovered"
        body.append(_link_section(heading, part, rows))
    body.append(_trust_section(summary, audits))
    body.append(_learning_section(learning, several=any(s.seeds > 1 for s in summary)))
    if context:
        parts = "".join(f"<details><summary>{_e(k)}</summary><pre>{_e(v)}</pre></details>" for k, v in context.items())
        body.append(f"<section><h2>What was run</h2>{parts}</section>")
    body.append(_READING)
    files = ["recovery.json", "recovery.md", *(f"data/{name}" for name in _data(summary, audits, learning))]
    body.append("<footer>Numbers: " + " · ".join(f'<a href="{f}">{f}</a>' for f in files) + "</footer>")
    return _PAGE.format(title=_e(title), body="\n".join(body))


# Sections of the page


def _lead(summary: Sequence[Summary]) -> str:
    links = _links(summary)
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
    return "".join(out) + "</section>"


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
    """Leaves out students that saw gold labels: their rows were not chosen by a trust function of their own."""
    gold = {s.method for s in summary if s.uses_target_gold}
    return {key: a for key, a in audits.items() if key not in gold and len(a.curve)}


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


def _data(summary: Sequence[Summary], audits: Mapping[str, Audit], learning: Mapping[str, Learning]) -> dict[str, str]:
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


_READING = """<section><h2>How the numbers are defined</h2><dl>
<dt>Recovery</dt><dd>(student − base) / (gold − base): the share of the gain from gold labels that was reached without them
(arXiv 2606.01000). It can exceed 100 %. It is given only where gold − base is significantly above zero.</dd>
<dt>PGR</dt><dd>(student − teacher) / (gold − teacher), performance gap recovered (arXiv 2312.09390); median over seeds.</dd>
<dt>Verdict</dt><dd>From student − gold on the same questions. <i>Super-recovery</i>: the 95 % interval is above zero.
<i>Near-lossless</i>: two one-sided tests at 5 % exclude a gap as large as the margin. <i>Lossy</i>: the 95 % interval is below
zero. <i>Undetermined</i>: none of these; not a finding of equality.</dd>
<dt>Intervals</dt><dd>95 %. Over several seeds they cover the draw of seeds and of questions; over one seed, questions only.
Test sets weigh the same in a mean.</dd>
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
