"""The page of a transfer matrix: transfer.json, transfer.md, data/transfer.csv and index.html; it computes nothing."""

import dataclasses
import json
from collections.abc import Mapping, Sequence

from etils import epath

from w2s_jax import figures
from w2s_jax.analysis.transfer import Cell
from w2s_jax.typesetting import PAGE, aligned, csv_text, escape, figure, html_table, interval, markdown_table, number, plain

VERSION = "1"
Tiers = Mapping[tuple[str, str], tuple[float | None, float | None, int]]
"""(method, tier) -> mean AUC, mean purity, cells; from `transfer.by_tier`."""


def write(
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
    whole = {"schema": 1, "cells": plain([dataclasses.asdict(cell) for cell in cells])}
    (folder / "transfer.json").write_text(
        json.dumps(whole, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    )
    fields = [field.name for field in dataclasses.fields(Cell)]
    (folder / "data" / "transfer.csv").write_text(
        csv_text(fields, [[getattr(cell, name) for name in fields] for cell in cells])
    )
    tables = [markdown_table(*_by_tier(tiers)), markdown_table(*_cells(cells))]
    (folder / "transfer.md").write_text("\n".join(["# Transfer matrix", "", *tables[0], "", *tables[1]]) + "\n")
    body = [
        "<header><h1>Transfer matrix</h1></header>",
        "<section><h2>By distance</h2>" + html_table(*_by_tier(tiers)) + "</section>",
    ]
    for method in dict.fromkeys(cell.method for cell in cells):
        own = _drawn([cell for cell in cells if cell.method == method])
        drawn = (
            f"<div><h4>{word}</h4>{figures.heat(own, field, chance=field == 'auc')}</div>"
            for word, field in (("AUC", "auc"), ("Purity of the most trusted", "purity"))
        )
        caption = (
            "Fitted on the set at the left, judging the set above. Blue is above the baseline (0.5 for the AUC, the share of"
            " right labels among all for purity), orange below; a dot: the 95 % interval, written beneath, excludes it. On the"
            " diagonal the two halves of one set. What judges alike wherever it was fitted has one row."
        )
        grid = f'<div style="display: grid; gap: 1.5rem">{"".join(drawn)}</div>'
        body.append(f"<section><h2>{escape(figures.name(method))}</h2>{figure(grid, caption)}</section>")
    body.append("<section><h2>All cells</h2>" + html_table(*_cells(cells)) + "</section>")
    for heading, text in (context or {}).items():
        body.append(f"<details><summary>{escape(heading)}</summary><pre>{escape(text)}</pre></details>")
    links = (f'<a href="{file}">{file}</a>' for file in ("transfer.json", "transfer.md", "data/transfer.csv"))
    body.append("<footer>Numbers: " + " · ".join(links) + "</footer>")
    page = folder / "index.html"
    page.write_text(PAGE.format(title="Transfer matrix", body="\n".join(body)))
    return page


def terminal_table(cells: Sequence[Cell], tiers: Tiers) -> str:
    """Returns the matrix as plain aligned text, one line for each cell, below the means of each tier."""
    return "\n\n".join("\n".join(aligned([head, *body])) for head, body in (_by_tier(tiers), _cells(cells))) + "\n"


def _by_tier(tiers: Tiers) -> tuple[list[str], list[list[str]]]:
    body = [
        [figures.name(method), tier, number(auc, 3), number(pure, 3), str(count)]
        for (method, tier), (auc, pure, count) in tiers.items()
    ]
    return ["trust function", "tier", "AUC, mean", "purity, mean", "cells"], body


def _drawn(own: Sequence[Cell]) -> Sequence[Cell]:
    """The cells of one trust function that are drawn: of one that judges alike wherever it was fitted, a single row."""
    told = {(c.target, c.auc, c.auc_lo, c.auc_hi, c.purity, c.purity_lo, c.purity_hi) for c in own}
    if len(told) > len({c.target for c in own}):
        return own
    return [dataclasses.replace(c, source="any") for c in own if c.source == own[0].source]


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
        area = f"{number(c.auc, 3)} {interval(None if c.auc_lo is None else (c.auc_lo, c.auc_hi))}".strip()
        pure = f"{number(c.purity, 3)} {interval(None if c.purity_lo is None else (c.purity_lo, c.purity_hi))}".strip()
        cells_of = [figures.name(c.method), c.source, c.target, c.tier, f"{c.num_fitted:,}", f"{c.num_judged:,}"]
        body.append([*cells_of, number(c.right, 3), area, number(c.ece, 3), f"{c.n:,}", pure])
    return head, body
