"""What a report says of what the methods cost: its section of the page, its tables, their numbers; it computes nothing."""

import dataclasses
from collections.abc import Callable, Sequence

from w2s_jax import figures
from w2s_jax.costs import Cost, Costs, beside
from w2s_jax.typesetting import csv_text, escape, html_table, markdown_table, percent

VERSION = "1"
TITLE = "Costs"
UNITS = (("EFLOP", 1e18), ("PFLOP", 1e15), ("TFLOP", 1e12), ("GFLOP", 1e9), ("MFLOP", 1e6))
ONE_SEED = "Of one seed, the last; data/costs.csv has all."
NOTE = (
    "Operations of matrix products, two for each multiplication, as though each method were run alone; in a run, what several "
    "need of teacher, evidence and trust is computed once. Answers: the teacher labels the target, and the source where trust "
    "is fitted on it. States: its hidden states, read in a pass of their own. Evidence: what else the trust function or the "
    "relabeller asks the teacher or other models for. Own: what the untaught student does for a relabeller. Left out: padding, "
    "elementwise work, the optimizer, what rematerialisation repeats, gold labels, training from scratch and the test. "
    "A dash: cannot be counted; ≥: at least, all that can be."
)
FORMULA = (
    "The paper's cost (arXiv 2606.01000), C_teacher (|D_l| + |D_u|) + C_NTF (e |D_l| + |D_u|): C_teacher, the teacher's mean "
    "operations for a row as counted; C_NTF, two for each weight of the head; e passes over the source. The count beside it "
    "knows of gradients and of held-back rows, which O() leaves out; both shares are of teacher and trust together."
)
DERIVED = ("total", "complete", "trust_frac", "above_teaching", "per_row", "formula", "formula_frac", "counted_frac")
Table = tuple[list[str], list[list[str]]]


def section(found: Costs, several: bool) -> str:
    """The section of the page; "" where nothing was counted."""
    if not found.rows and not found.notes:
        return ""
    out = [f"<section><h2>{TITLE}</h2>"]
    if several:
        out.append(f'<p class="note">{ONE_SEED}</p>')
    for heading, table, note in parts(last(found)):
        out.append(f'<h3>{escape(heading)}</h3>{html_table(*table)}<p class="note">{escape(note)}</p>')
    out += [f'<p class="note">{escape(said)}</p>' for said in remarks(found)]
    return "".join(out) + "</section>"


def markdown(found: Costs, several: bool) -> list[str]:
    """The same as lines of Markdown."""
    if not found.rows and not found.notes:
        return []
    out = [f"## {TITLE}", "", *[ONE_SEED, ""] * several]
    for heading, table, note in parts(last(found)):
        out += [f"### {heading}", "", *markdown_table(*table), "", note, ""]
    return out + [f"- {said}" for said in remarks(found)] + [""]


def data(found: Costs) -> dict[str, str]:
    """The numbers behind the tables, operations: file name -> CSV."""
    if not found.rows:
        return {}
    fields = [field.name for field in dataclasses.fields(Cost) if field.name != "reasons"]
    lines = [
        [getattr(one, name) for name in (*fields, *DERIVED)] + [beside(one, naive(found.rows, one)), "; ".join(one.reasons)]
        for one in found.rows
    ]
    return {"costs.csv": csv_text([*fields, *DERIVED, "beside_naive", "not_counted"], lines)}


def last(found: Costs) -> list[Cost]:
    """The rows of the last seed."""
    return [one for one in found.rows if one.seed == found.rows[-1].seed]


def naive(rows: Sequence[Cost], one: Cost) -> Cost | None:
    """The naive row beside a method, of its link and seed."""
    link = (one.generation, one.seed)
    return next((row for row in rows if row.method == "naive" and (row.generation, row.seed) == link), None)


def parts(rows: Sequence[Cost]) -> list[tuple[str, Table, str]]:
    """The tables, each with its heading and what it says."""
    if not rows:
        return []
    unit, size = next((known for known in UNITS if max(row.total for row in rows) >= known[1]), UNITS[-1])
    whole: dict[str, Callable[[Cost], str]] = {
        "answers": lambda one: amount(one.answers, size),
        "states": lambda one: amount(one.states, size),
        "evidence": lambda one: amount(one.evidence, size),
        "own": lambda one: amount(one.own, size),
        "trust: fit": lambda one: amount(one.fitting, size),
        "score": lambda one: amount(one.scoring, size),
        "teaching": lambda one: amount(one.teaching, size),
        "total": lambda one: ("" if one.complete else "≥ ") + amount(one.total, size),
        "of naive": lambda one: times(beside(one, naive(rows, one))),
        "of teaching": lambda one: times(one.above_teaching),
        "trust, %": lambda one: percent(one.trust_frac, 2),
    }
    for name in ("evidence", "own"):
        if not any(getattr(one, name) is None or getattr(one, name) for one in rows):
            del whole[name]
    found = [(f"What each method takes, {unit}", table_of(rows, whole), NOTE)]
    if headed := [one for one in rows if one.weights is not None and one.epochs is not None]:
        formula: dict[str, Callable[[Cost], str]] = {
            "|D_l|": lambda one: f"{one.source_rows:,}",
            "|D_u|": lambda one: f"{one.target_rows:,}",
            "weights": lambda one: f"{one.weights:,}",
            "e": lambda one: f"{one.epochs:,}",
            "C_teacher": lambda one: amount(one.per_row, size),
            "formula": lambda one: amount(one.formula, size),
            "counted": lambda one: amount(None if one.teacher is None or one.trust is None else one.teacher + one.trust, size),
            "trust by it, %": lambda one: percent(one.formula_frac, 2),
            "trust counted, %": lambda one: percent(one.counted_frac, 2),
        }
        found.append((f"Beside the paper's formula, {unit}", table_of(headed, formula), FORMULA))
    return found


def table_of(rows: Sequence[Cost], columns: dict[str, Callable[[Cost], str]]) -> Table:
    chained = len({one.generation for one in rows}) > 1
    body = [
        [figures.name(one.method), *[str(one.generation)] * chained, *(cell(one) for cell in columns.values())] for one in rows
    ]
    return ["method", *["generation"] * chained, *columns], body


def amount(value: float | None, size: float) -> str:
    """Operations in a unit, three digits.

    >>> amount(1234567.0, 1e3), amount(0.0, 1e3), amount(1.5, 1e6), amount(None, 1.0)
    ('1,235', '0', '1.5e-06', '–')
    """
    if value is None:
        return "–"
    return f"{value / size:,.0f}" if value >= 1000 * size else f"{value / size:.3g}"


def times(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}×"


def remarks(found: Costs) -> list[str]:
    """What is not counted, and why."""
    why: dict[str, list[str]] = {}
    for one in last(found) if found.rows else ():
        for reason in one.reasons:
            why.setdefault(reason, []).append(figures.name(one.method))
    told = [f"{', '.join(dict.fromkeys(names))}: {reason}." for reason, names in why.items()]
    return told + [f"{note[0].upper()}{note[1:]}." for note in dict.fromkeys(found.notes)]
