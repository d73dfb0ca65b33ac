"""Numbers and tables as text, Markdown, CSV and HTML, and the page that all reports stand on; it computes nothing."""

import csv
import html
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

VERSION = "1"
SENTENCE = 40  # characters that no number comes to
DAGGER = "†"
"""Beside what saw gold labels of the target."""


def percent(value: float | None, digits: int = 1, nothing: str = "–") -> str:
    return nothing if value is None else f"{100 * value:.{digits}f}".replace("-", "−")


def points(value: float) -> str:
    return f"{100 * value:+.1f}".replace("-", "−")


def limits_of(lo: float | None, hi: float | None, digits: int = 0) -> str:
    return "" if lo is None or hi is None else f"[{percent(lo, digits)}, {percent(hi, digits)}]"


def number(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def interval(limits: tuple[float, float] | None) -> str:
    return "" if limits is None else f"[{number(limits[0], 3)}, {number(limits[1], 3)}]"


def plain(value: Any) -> Any:
    """Returns numpy's and Python's values as JSON's, floats to 6 places (and no negative zero)."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [plain(v) for v in value]
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, int | np.integer):
        return int(value)
    return round(float(value), 6) + 0.0 if isinstance(value, float | np.floating) else value


def csv_text(head: Sequence[str], lines: Sequence[Sequence[Any]]) -> str:
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


def markdown_table(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *body]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]


def html_table(head: Sequence[str], body: Sequence[Sequence[str]], kind: str = "numbers") -> str:
    """A table of numbers; a column of sentences behind its first one is set as text."""
    said = [at > 0 and any(len(line[at]) > SENTENCE for line in body) for at in range(len(head))]
    style = [' class="said"' if one else "" for one in said]
    top = "".join(f"<th{way}>{escape(cell)}</th>" for way, cell in zip(style, head, strict=True))
    rows = ("".join(f"<td{way}>{_dim(cell)}</td>" for way, cell in zip(style, line, strict=True)) for line in body)
    lines = "".join(f"<tr>{row}</tr>" for row in rows)
    return f'<div class="scroll"><table class="{kind}"><thead><tr>{top}</tr></thead><tbody>{lines}</tbody></table></div>'


def _dim(cell: str) -> str:
    """Escapes a cell; an interval after its number is set in a lighter tone."""
    number, bracket, limits = cell.partition(" [")
    return f'{escape(number)} <span class="ci">[{escape(limits)}</span>' if bracket and limits.endswith("]") else escape(cell)


def unbroken(text: str) -> str:
    """Keeps intervals on one line."""
    return re.sub(r"\[[^]]*\]", lambda found: found[0].replace(" ", "&nbsp;"), text)


def figure(drawing: str, caption: str) -> str:
    return f"<figure>{drawing}<figcaption>{caption}</figcaption></figure>"


def listed(page: epath.Path) -> list[str]:
    """The files of numbers that a page written before names at its foot; other people's files in the folder are none of them.

    Args:
        page: an index.html, which need not be there.
    """
    foot = page.read_text().rpartition("<footer>")[2] if page.exists() else ""
    return re.findall(r'href="((?:data/)?\w+\.(?:csv|json|md))"', foot)


def escape(text: str) -> str:
    return html.escape(str(text))


KINDS = ("wide", "narrow")
"""A drawing is made for both kinds of screen; the page shows one."""


PAGE = """<!doctype html>
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
.said {{ text-align: left; white-space: normal; min-width: 11rem; color: var(--quiet); }}
td.said {{ font-size: .78rem; line-height: 1.3; }}
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
