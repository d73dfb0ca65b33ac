"""The page of a sweep over trust heads: sweep.json, sweep.csv, sweep.md and index.html; it computes nothing."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from w2s_jax import figures
from w2s_jax.grid import Grid
from w2s_jax.typesetting import PAGE, csv_text, escape, figure, html_table, markdown_table, number

VERSION = "1"


def write(folder: str | epath.Path, grid: Grid, *, title: str, command: str) -> None:
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
    (folder / "sweep.csv").write_text(
        csv_text(names, [[v.item() if isinstance(v, np.generic) else v for v in li] for li in lines])
    )
    top, body = table(grid, order)
    note = note_on(grid)
    (folder / "sweep.md").write_text("\n".join([f"# {title}", "", *markdown_table(top, body), "", note, ""]))
    places = np.array([[grid.axes[name].index(one[name]) for name in grid.axes] for one in grid.head])
    measures = {"held-back AUC": grid.quality} | ({} if np.isnan(grid.auc).all() else {"target AUC": grid.auc})
    shown = ({name: [_setting(v) for v in values] for name, values in grid.axes.items()}, places, measures, grid.best)
    drawings = "".join(
        f'<div class="{kind}">{figures.parallel(*shown, narrow=kind == "narrow")}</div>' for kind in ("wide", "narrow")
    )
    caption = "<b>Every head of the sweep</b>, from its settings to what it reaches; the chosen one in orange."
    page = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="lead">{escape(note)}</p>',
        figure(drawings, caption),
        f"<section><h2>Heads</h2>{html_table(top, body)}</section>",
        f"<section><h2>A run with the best head</h2><pre>{escape(command)}</pre></section>",
    ]
    (folder / "index.html").write_text(PAGE.format(title=escape(title), body="\n".join(page)))


def ranked(grid: Grid) -> list[int]:
    """The heads of a sweep, the best first, those that diverged last."""
    return sorted(range(len(grid.head)), key=lambda h: (-np.nan_to_num(grid.quality[h], nan=-np.inf), h))


def table(grid: Grid, order: Sequence[int]) -> tuple[list[str], list[list[str]]]:
    """The heads of a sweep in that order: titles, and a line for each."""
    top = ["head", *(name.replace("_", " ") for name in grid.axes), "held-back AUC", "epoch", "target AUC", "purity"]
    body = []
    for h in order:
        limits = "" if np.isnan(grid.auc_lo[h]) else f" [{grid.auc_lo[h]:.3f}, {grid.auc_hi[h]:.3f}]"
        target = [number(_known(grid.auc[h]), 3) + limits, number(_known(grid.purity[h]), 3)]
        settings = (_setting(grid.head[h][name]) for name in grid.axes)
        body.append([str(h), *settings, number(_known(grid.quality[h]), 3), str(grid.epoch[h]), *target])
    return top, body


def note_on(grid: Grid) -> str:
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
