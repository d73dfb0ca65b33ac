"""What a report says of what theory predicted: its section of the page, its table, their numbers; it computes nothing."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from etils import epath

from w2s_jax import figures
from w2s_jax.analysis.gains import Gain, Gains
from w2s_jax.typesetting import csv_text, escape, html_table, limits_of, markdown_table, number, percent, plain

VERSION = "1"
TITLE = "What theory predicted"
NUMBERS, ARRAYS = "gains.json", "gains.npz"
ONE_SEED = "Of one seed, the last; data/gains.csv has all."
NOTE = (
    "Gains are of the student over the labels of its own questions, of those that it was not taught where there are enough "
    "that have a label. Misfit: share of answers unlike the label; no gain in answers can be larger (triangle inequality), "
    "and theory's guess is that it is as large. In squared distance, and in nats beside the teacher's probabilities, the "
    "gain is at least the misfit if the student is the one of a convex class that is nearest to its labels (arXiv "
    "2405.15116, 2501.19105); of a language model that is a prediction, no promise. Overlap: share of the taught questions "
    "that look like hard ones although the teacher is sure of them (arXiv 2412.03881): the more, the more gain. Probe: what "
    "a ridge probe on the untaught student's hidden states gains from the same labels. Kernel: the gain in squared error of "
    "such probes, of truth and of the teacher's own states (arXiv 2502.00620). Expansion: the least gain over all questions "
    "that it allows, with constants counted on these questions (arXiv 2405.16043). Sign rule: above 0, the student should "
    "beat itself as it was (after arXiv 2605.05742). Kernel, expansion and sign rule use gold, after the fact."
)
Table = tuple[list[str], list[list[str]]]


def section(found: Gains, several: bool) -> str:
    """The section of the page; "" where nothing was measured."""
    if not found.rows and not found.notes:
        return ""
    out = [f"<section><h2>{TITLE}</h2>"]
    if several:
        out.append(f'<p class="note">{ONE_SEED}</p>')
    if found.rows:
        for name, table in tables(last(found)).items():
            out += [f"<h3>{name}</h3>", html_table(*table)]
        out.append(f'<p class="note">{escape(NOTE)}</p>')
    out += [f'<p class="note">{escape(said)}</p>' for said in remarks(found)]
    return "".join(out) + "</section>"


def markdown(found: Gains, several: bool) -> list[str]:
    """The same as lines of Markdown."""
    if not found.rows and not found.notes:
        return []
    out = [f"## {TITLE}", "", *[ONE_SEED, ""] * several]
    if found.rows:
        for name, table in tables(last(found)).items():
            out += [f"### {name}", "", *markdown_table(*table), ""]
        out += [NOTE, ""]
    return out + [f"- {said}" for said in remarks(found)] + [""]


def terminal_lines(found: Gains) -> list[str]:
    """Says the main numbers of the row `ntf` in a line."""
    return [
        f"{one.method}: misfit {percent(one.misfit)} %, gain over its labels {percent(one.gain)} %"
        f" {limits_of(one.gain_lo, one.gain_hi, 1)} ({'not taught' if one.held_out else 'all'} questions)"
        for one in last(found)
        if one.method == "ntf" and one.gain is not None
    ]


def data(found: Gains) -> dict[str, str]:
    """The numbers behind the table: file name -> CSV."""
    if not found.rows:
        return {}
    fields = [field.name for field in dataclasses.fields(Gain) if field.name != "reasons"]
    return {"gains.csv": csv_text(fields, [[getattr(one, name) for name in fields] for one in found.rows])}


def write(folder: str | epath.Path, found: Gains, about: Mapping[str, str]) -> None:
    """Writes the numbers and the arrays for studies of theory: gains.json of all seeds, gains.npz of the last; an earlier run's
    are removed.

    Args:
        folder: of the report.
        found: what was measured.
        about: the link: domain, teacher, student.
    """
    folder = epath.Path(folder)
    for name in (NUMBERS, ARRAYS):
        (folder / name).unlink(missing_ok=True)
    if not found.rows:
        return
    whole = {"schema": 1, **about, "rows": [plain(dataclasses.asdict(one)) for one in found.rows], "notes": list(found.notes)}
    (folder / NUMBERS).write_text(json.dumps(whole, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    with (folder / ARRAYS).open("wb") as file:
        np.savez(file, **found.arrays)


def last(found: Gains) -> list[Gain]:
    """The rows of the last seed."""
    return [one for one in found.rows if one.seed == found.rows[-1].seed]


def tables(rows: Sequence[Gain]) -> dict[str, Table]:
    """What each theory says, by name."""

    def one_table(**columns: Callable[[Gain], str]) -> Table:
        body = [[figures.name(one.method), *(cell(one) for cell in columns.values())] for one in rows]
        return ["method", *columns], [[cell.replace("-", "−") if cell[:1] == "-" else cell for cell in line] for line in body]

    misfit: dict[str, Callable[[Gain], str]] = {
        "questions": lambda one: f"{one.measured:,} of {one.n:,}",
        "misfit, %": lambda one: percent(one.misfit),
        "gain, % [95 %]": lambda one: _share(one, "gain"),
        "misfit²": lambda one: number(one.misfit_squared),
        "gain² [95 %]": lambda one: _number(one, "gain_squared"),
        "misfit, nats": lambda one: number(one.misfit_divergence),
        "gain, nats [95 %]": lambda one: _number(one, "gain_divergence"),
    }
    seen: dict[str, Callable[[Gain], str]] = {
        "overlap, %": lambda one: percent(one.overlap),
        "probe's gain, %": lambda one: percent(one.probe_gain),
        "kernel gain²": lambda one: number(one.kernel_gain, 3),
        "kernel norm": lambda one: number(one.kernel_norm),
        "CKA": lambda one: number(one.cka),
        "gain on test, % [95 %]": lambda one: _share(one, "test_gain"),
    }
    proved: dict[str, Callable[[Gain], str]] = {
        "expansion, %": lambda one: percent(one.bound_gain, nothing="inapplicable"),
        "gain, all questions, %": lambda one: percent(one.gain_all),
        "sign rule": lambda one: number(one.rule, 3),
        "beats itself by, % [95 %]": lambda one: _share(one, "self_gain"),
    }
    return {
        "How far students are from their labels": one_table(**misfit),
        "How students see the questions": one_table(**seen),
        "Expansion, and the sign rule": one_table(**proved),
    }


def remarks(found: Gains) -> list[str]:
    """What is undefined, and why."""
    undefined: dict[str, list[str]] = {}
    for one in last(found) if found.rows else ():
        for reason in one.reasons:
            undefined.setdefault(reason, []).append(figures.name(one.method))
    told = [f"{', '.join(dict.fromkeys(names))}: {reason}." for reason, names in undefined.items()]
    return told + [f"{note[0].upper()}{note[1:]}." for note in dict.fromkeys(found.notes)]


def _share(one: Gain, name: str) -> str:
    return f"{percent(getattr(one, name))} {limits_of(getattr(one, name + '_lo'), getattr(one, name + '_hi'), 1)}".strip()


def _number(one: Gain, name: str) -> str:
    lo, hi = getattr(one, name + "_lo"), getattr(one, name + "_hi")
    limits = "" if lo is None else f"[{number(lo)}, {number(hi)}]"
    return f"{number(getattr(one, name))} {limits}".strip().replace("-", "−")
