"""The page of a sweep, over trust heads or whole runs: sweep.json, sweep.csv, sweep.md and index.html; it computes nothing."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from w2s_jax import figures
from w2s_jax.grid import Grid
from w2s_jax.recovery import REFERENCE
from w2s_jax.typesetting import (
    KINDS,
    PAGE,
    csv_text,
    escape,
    figure,
    html_table,
    limits_of,
    markdown_table,
    number,
    percent,
    plain,
)

VERSION = "1"
Table = tuple[list[str], list[list[str]]]
"""Titles, and a line for each head or run."""


@dataclasses.dataclass(frozen=True)
class Staged:
    """A finished staged sweep over P runs.

    Attributes:
        axes: dotted config key -> values.
        settings: P of them, one value for each axis, the last axis varying fastest.
        method: whose numbers are told.
        summary: P lines of recovery.json, that method's.
        report: P folders with the runs' own reports, seen from the sweep's folder.
    """

    axes: Mapping[str, tuple]
    settings: tuple[Mapping[str, Any], ...]
    method: str
    summary: tuple[Mapping[str, Any], ...]
    report: tuple[str, ...]


def write_heads(folder: str | epath.Path, grid: Grid, *, title: str, command: str) -> None:
    """Writes a sweep over trust heads, the best head first.

    Args:
        folder: made if need be.
        grid: the sweep.
        title: what was swept.
        command: that runs an experiment with the best head.
    """
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
    measures = {"held-back AUC": grid.quality} | ({} if np.isnan(grid.auc).all() else {"target AUC": grid.auc})
    drawn = _drawn(grid.axes, grid.head, measures, list(grid.axes), best=grid.best)
    caption = "<b>Every head of the sweep</b>, from its settings to what it reaches; the chosen one in orange."
    table = heads_table(grid, order)
    sections = [
        f"<section><h2>Heads</h2>{html_table(*table)}</section>",
        f"<section><h2>A run with the best head</h2><pre>{escape(command)}</pre></section>",
    ]
    _write(
        folder,
        title=title,
        found=found | {"taught": grid.taught, "heads": heads},
        numbers=csv_text(names, [[v.item() if isinstance(v, np.generic) else v for v in line] for line in lines]),
        table=table,
        note=note_on_heads(grid),
        sections=[_figure(drawn, caption), *sections],
    )


def write_points(folder: str | epath.Path, staged: Staged, *, title: str) -> None:
    """Writes a staged sweep, its runs in the order of the axes.

    Args:
        folder: made if need be.
        staged: the sweep.
        title: what was swept.
    """
    measured = ("n_selected", "accuracy", "accuracy_lo", "accuracy_hi", "base", "gt", "teacher_accuracy", "recovery")
    measured += ("recovery_lo", "recovery_hi", "purity", "auc", "verdict", "reason")
    told = list(zip(staged.settings, staged.summary, staged.report, strict=True))
    points = [
        {"point": p, "settings": dict(one), "report": report, "seeds": line["seeds"]} | {name: line[name] for name in measured}
        for p, (one, line, report) in enumerate(told)
    ]
    found = {"schema": 1, "axes": {key: list(values) for key, values in staged.axes.items()}, "method": staged.method}
    lines = [[p, *one.values(), *(line[name] for name in measured)] for p, (one, line, _) in enumerate(told)]
    table = points_table(staged)
    links = "".join(
        f'<li><a href="{escape(report)}/index.html">Run {p}</a>: {escape(_words(one))}</li>'
        for p, (one, _, report) in enumerate(told)
    )
    sections = [
        f"<section><h2>{escape(figures.name(staged.method))} in each run</h2>{html_table(*table)}</section>",
        f'<section><h2>The runs</h2><ul class="plain">{links}</ul></section>',
    ]
    _write(
        folder,
        title=title,
        found=plain(found | {"points": points}),
        numbers=csv_text(["point", *staged.axes, *measured], lines),
        table=table,
        note=note_on_points(staged),
        sections=[*_points_figure(staged), *sections],
    )


def _write(
    folder: str | epath.Path,
    *,
    title: str,
    found: Mapping[str, Any],
    numbers: str,
    table: Table,
    note: str,
    sections: Sequence[str],
) -> None:
    """Writes the four files of a sweep of either kind.

    Args:
        folder: made if need be.
        title, note: what was swept; what the numbers are, and what they are not.
        found: of sweep.json.
        numbers: of sweep.csv.
        table: of sweep.md.
        sections: of the page, in HTML.
    """
    folder = epath.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sweep.json").write_text(json.dumps(found, indent=1) + "\n")
    (folder / "sweep.csv").write_text(numbers)
    (folder / "sweep.md").write_text("\n".join([f"# {title}", "", *markdown_table(*table), "", note, ""]))
    page = [f"<h1>{escape(title)}</h1>", f'<p class="lead">{escape(note)}</p>', *sections]
    (folder / "index.html").write_text(PAGE.format(title=escape(title), body="\n".join(page)))


# ---- Heads -----------------------------------------------------------------------------------------------------------


def ranked(grid: Grid) -> list[int]:
    """The heads of a sweep, the best first, those that diverged last."""
    return sorted(range(len(grid.head)), key=lambda h: (-np.nan_to_num(grid.quality[h], nan=-np.inf), h))


def heads_table(grid: Grid, order: Sequence[int]) -> Table:
    """The heads of a sweep in that order: titles, and a line for each."""
    top = ["head", *(name.replace("_", " ") for name in grid.axes), "held-back AUC", "epoch", "target AUC", "purity"]
    body = []
    for h in order:
        limits = "" if np.isnan(grid.auc_lo[h]) else f" [{grid.auc_lo[h]:.3f}, {grid.auc_hi[h]:.3f}]"
        target = [number(_known(grid.auc[h]), 3) + limits, number(_known(grid.purity[h]), 3)]
        settings = (_setting(grid.head[h][name]) for name in grid.axes)
        body.append([str(h), *settings, number(_known(grid.quality[h]), 3), str(grid.epoch[h]), *target])
    return top, body


def note_on_heads(grid: Grid) -> str:
    """What the numbers of a sweep are, and what they are not."""
    lost = int(np.isnan(grid.quality).sum())
    return (
        f"Head {grid.best} of {len(grid.head)} was chosen by its AUC on held-back source rows alone; the best of many is too "
        "high an estimate of that AUC. The target was looked at afterwards, for this report; purity is of its "
        f"{grid.taught:,} most trusted labels." + (f" {lost} heads diverged." if lost else "")
    )


# ---- Runs ------------------------------------------------------------------------------------------------------------


def points_table(staged: Staged) -> Table:
    """What a method reached in each run: titles, and a line for each."""
    top = [
        "run",
        *short(list(staged.axes)),
        "n taught",
        "accuracy, % [95 %]",
        "gold, %",
        "recovery, % [95 %]",
        "purity",
        "AUC",
        "verdict",
    ]
    body = []
    for p, (one, line) in enumerate(zip(staged.settings, staged.summary, strict=True)):
        accuracy = f"{percent(line['accuracy'])} {limits_of(line['accuracy_lo'], line['accuracy_hi'], 1)}".strip()
        recovered = f"{percent(line['recovery'], 0)} {limits_of(line['recovery_lo'], line['recovery_hi'])}".strip()
        untold = "reference" if staged.method == REFERENCE else "no gold"
        measured = [accuracy, percent(line["gt"]), recovered, number(line["purity"], 3), number(line["auc"], 3)]
        body.append([str(p), *map(_setting, one.values()), f"{line['n_selected']:,}", *measured, line["verdict"] or untold])
    return top, body


def note_on_points(staged: Staged) -> str:
    """What the numbers of a staged sweep are, and what they are not."""
    seeds = max(line["seeds"] for line in staged.summary)
    return (
        f"Each of these {len(staged.summary)} runs is a whole one of {seeds} seed{'s' if seeds > 1 else ''}; told is the "
        f"method {figures.name(staged.method)}. The table reports and chooses nothing: all it compares is measured with gold "
        "answers, accuracy and recovery with those of the test questions, so the best of these runs is too high an estimate of "
        "itself, and none is exported as the best. Fix settings beforehand, or choose them on seeds and questions of their own."
    )


def _points_figure(staged: Staged) -> list[str]:
    """Accuracy against the values of one axis, or every run as a line through several; nothing where nothing was scored."""
    measures = {"accuracy": "accuracy", "recovery": "recovery", "purity": "purity", "auc": "AUC"}
    known = {title: _column(staged, name) for name, title in measures.items()}
    if np.isnan(known["accuracy"]).all():
        return []
    if len(staged.axes) > 1:
        known = {title: column for title, column in known.items() if not np.isnan(column).all()}
        lines = _drawn(staged.axes, staged.settings, known, short(list(staged.axes)), best=None)
        return [
            _figure(
                lines, "<b>Every run of the sweep</b>, from its settings to what it reaches; the darker, the more accurate."
            )
        ]
    ((key, values),) = staged.axes.items()
    names = ("accuracy", "accuracy_lo", "accuracy_hi", "gt", "base", "teacher_accuracy")
    measured = {name: _column(staged, name) for name in names}

    def drawn(narrow: bool) -> str:
        return figures.setting(key, list(map(_setting, values)), staged.method, measured, narrow=narrow)

    return [_figure(drawn, f"<b>Test accuracy</b> at each value of {escape(key)}, with 95 % intervals.")]


def _column(staged: Staged, name: str) -> np.ndarray:
    return np.array([np.nan if line[name] is None else line[name] for line in staged.summary], float)


def short(keys: Sequence[str]) -> list[str]:
    """As few of the last words of dotted keys as tell them apart.

    >>> short(["select.n", "student.training.lr"]), short(["teacher.shape.row_length", "student.shape.row_length"])
    (['n', 'lr'], ['teacher shape row length', 'student shape row length'])
    """
    words = [key.split(".") for key in keys]
    for depth in range(1, max(map(len, words)) + 1):
        names = [" ".join(word[-depth:]).replace("_", " ") for word in words]
        if len(set(names)) == len(names):
            return names
    raise AssertionError(keys)


def _words(one: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} = {_setting(value)}" for key, value in one.items())


# ---- Both ------------------------------------------------------------------------------------------------------------


def _drawn(
    axes: Mapping[str, tuple],
    settings: Sequence[Mapping[str, Any]],
    measures: Mapping[str, np.ndarray],
    names: Sequence[str],
    *,
    best: int | None,
) -> Callable[[bool], str]:
    """Draws all settings of a sweep, for the wide or the narrow screen."""
    places = np.array([[axes[name].index(one[name]) for name in axes] for one in settings])
    values = {name: list(map(_setting, values)) for name, values in zip(names, axes.values(), strict=True)}
    return lambda narrow: figures.parallel(values, places, measures, best, narrow=narrow)


def _figure(drawn: Callable[[bool], str], caption: str) -> str:
    return figure("".join(f'<div class="{kind}">{drawn(kind == "narrow")}</div>' for kind in KINDS), caption)


def _setting(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
