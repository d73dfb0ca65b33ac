"""The page of a study of theory: study.json, study.md, data/*.csv and index.html; it computes nothing."""

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from w2s_jax import figures
from w2s_jax.theory import Figure, Heat, Study, Table
from w2s_jax.typesetting import KINDS, PAGE, aligned, csv_text, escape, figure, html_table, listed, markdown_table, plain

VERSION = "1"


def write(folder: str | epath.Path, study: Study, context: Mapping[str, str] | None = None) -> epath.Path:
    """Writes study.json, study.md, the data and the page; returns the page's path.

    Args:
        folder: where to, made if it is missing; what an earlier study wrote there is replaced or removed.
        study: what was found.
        context: what was run, heading -> text.

    Raises:
        ValueError: two tables or figures of one name, which would be one file, or a row that its head does not fit.
    """
    parts = (*study.tables, *study.figures)
    names = [part.name for part in parts]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"{twice[0]!r} names two tables or figures of the study; change one `name`")
    for table in study.tables:
        for row in table.rows:
            if len(row) != len(table.head):
                raise ValueError(
                    f"table {table.name!r}: a row of {len(row)} cells under {len(table.head)} titles; change `head`"
                )
    folder = epath.Path(folder)
    page = folder / "index.html"
    (folder / "data").mkdir(parents=True, exist_ok=True)
    for name in listed(page):
        (folder / name).unlink(missing_ok=True)
    lines = {part.name: _lines(part) for part in parts}
    for name, (head, rows) in lines.items():
        (folder / "data" / f"{name}.csv").write_text(csv_text(head, rows))
    whole = {"schema": 1, "title": study.title, "lead": study.lead}
    whole["tables"] = [{"name": t.name, "note": t.note, "head": list(t.head), "rows": list(t.rows)} for t in study.tables]
    whole["figures"] = [_data(drawn) for drawn in study.figures]
    (folder / "study.json").write_text(json.dumps(_known(plain(whole)), indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    told = [f"# {study.title}", "", study.lead, ""]
    for table in study.tables:
        told += [
            f"## {heading(table)}",
            "",
            *markdown_table(table.head, _cells(table)),
            "",
            *([table.note, ""] if table.note else []),
        ]
    (folder / "study.md").write_text("\n".join(told))
    page.write_text(PAGE.format(title=escape(study.title), body="\n".join(_body(study, context or {}, names))))
    return page


def terminal_tables(study: Study) -> str:
    """The tables as plain aligned text."""
    return (
        "\n\n".join("\n".join([heading(table), *aligned([list(table.head), *_cells(table)])]) for table in study.tables) + "\n"
    )


def heading(part: Table | Figure | Heat) -> str:
    """A figure's title; a table's name with a capital.

    >>> heading(Table("best_points", ("a",), ()))
    'Best points'
    """
    title = getattr(part, "title", part.name.replace("_", " "))
    return title[:1].upper() + title[1:]


def _body(study: Study, context: Mapping[str, str], names: list[str]) -> list[str]:
    body = [f"<header><h1>{escape(study.title)}</h1>", f'<p class="lead">{escape(study.lead)}</p></header>']
    heats = [drawn for drawn in study.figures if isinstance(drawn, Heat)]
    if heats:
        shown = (figure(figures.plane(heat), _caption(heat)) for heat in heats)
        columns = "grid-template-columns: repeat(auto-fit, minmax(18rem, 1fr))"
        body.append(f'<section style="display: grid; gap: 1.5rem; {columns}">{"".join(shown)}</section>')
    for drawn in study.figures:
        if isinstance(drawn, Figure):
            kinds = (f'<div class="{kind}">{figures.lines(drawn, narrow=kind == "narrow")}</div>' for kind in KINDS)
            body.append(f"<section>{figure(''.join(kinds), _caption(drawn))}</section>")
    for table in study.tables:
        note = f'<p class="note">{escape(table.note)}</p>' if table.note else ""
        body.append(f"<section><h2>{escape(heading(table))}</h2>{html_table(table.head, _cells(table))}{note}</section>")
    for title, text in context.items():
        body.append(f"<details><summary>{escape(title)}</summary><pre>{escape(text)}</pre></details>")
    links = (f'<a href="{file}">{file}</a>' for file in ("study.json", "study.md", *(f"data/{name}.csv" for name in names)))
    body.append("<footer>Numbers: " + " · ".join(links) + "</footer>")
    return body


def _caption(drawn: Figure | Heat) -> str:
    return f"<b>{escape(heading(drawn))}.</b> {escape(drawn.caption)}".strip()


def _cells(table: Table) -> list[list[str]]:
    return [[_cell(value) for value in row] for row in table.rows]


def _cell(value: Any) -> str:
    """
    >>> _cell(None), _cell(1234), _cell(0.82371), _cell(-2.0), _cell("soft")
    ('–', '1,234', '0.8237', '−2', 'soft')
    """
    if value is None or (isinstance(value, float | np.floating) and math.isnan(value)):
        return "–"
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, int | np.integer):
        return f"{value:,}".replace("-", "−")
    return f"{value:.4g}".replace("-", "−") if isinstance(value, float | np.floating) else str(value)


def _lines(part: Table | Figure | Heat) -> tuple[tuple[str, ...], list[tuple]]:
    """Head and rows of a part's CSV file."""
    if isinstance(part, Table):
        return part.head, list(part.rows)
    if isinstance(part, Figure):
        return ("series", part.x_label, part.y_label), [(name, *point) for name, line in part.series.items() for point in line]
    cells = [(x, y, float(part.value[j, i])) for j, y in enumerate(part.y) for i, x in enumerate(part.x)]
    return (part.x_label, part.y_label, part.title), cells


def _data(drawn: Figure | Heat) -> dict[str, Any]:
    texts = {name: getattr(drawn, name) for name in ("name", "title", "x_label", "y_label", "caption")}
    if isinstance(drawn, Figure):
        return texts | {"series": drawn.series}
    return texts | {"x": drawn.x, "y": drawn.y, "value": drawn.value}


def _known(value: Any) -> Any:
    """JSON has no word for what is not a number."""
    if isinstance(value, dict):
        return {name: _known(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_known(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
