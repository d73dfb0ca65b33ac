"""The report of a run: recovery.json, recovery.md and one self-contained page; it formats and computes nothing.

Stage in: `Recovery` rows, `Summary` objects, `Audit`s, and texts that say what was run. Stage out, in one folder:

    recovery.json   {"schema": 1, "rows": [...], "summary": [...]}, the same bytes for the same values
    recovery.md     the tables, for a pull request
    index.html      the page, with its figures inside; it asks for nothing over the network
    chain.json      of a chain: what its collapse detector saw, and why it stopped
    data/*.csv      the numbers behind each figure

recovery.json holds no path, time or duration; the page also shows the texts it is given, such as the resolved config.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from w2s_jax import chain_page, cost_page, figures, gain_page, mechanism_page
from w2s_jax.analysis.gains import Gains
from w2s_jax.analysis.mechanisms import Mechanisms
from w2s_jax.certificate import sentence
from w2s_jax.chain import Point
from w2s_jax.chain_page import Snowball
from w2s_jax.costs import Costs
from w2s_jax.recovery import MEAN, Summary
from w2s_jax.types import Audit, Certificate, Recovery
from w2s_jax.typesetting import (
    DAGGER,
    PAGE,
    aligned,
    csv_text,
    escape,
    figure,
    html_table,
    interval,
    limits_of,
    listed,
    markdown_table,
    number,
    percent,
    plain,
    points,
    unbroken,
)

VERSION = "1"

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


def write(
    folder: str | epath.Path,
    *,
    rows: Sequence[Recovery],
    summary: Sequence[Summary],
    audits: Mapping[str, Audit],
    learning: Mapping[str, Learning] | None = None,
    snowball: Snowball | None = None,
    certificates: Mapping[str, Certificate] | None = None,
    mechanisms: Mechanisms | None = None,
    gains: Gains | None = None,
    costs: Costs | None = None,
    context: Mapping[str, str] | None = None,
    title: str = "Weak-to-strong recovery",
) -> epath.Path:
    """Writes the report and returns the page's path.

    Args:
        folder: where to, made if it is missing; what an earlier report wrote there is replaced or removed.
        rows, summary: from `recovery.recover` and `recovery.summarise`.
        audits: by method, of one seed; the trust figures show those of methods that saw no gold labels.
        learning: by method, of one seed, where students learnt from what they wrote.
        snowball: where a chain was run.
        certificates: by method, of one seed, where the purity of the selection was certified.
        mechanisms: of one seed, where it was measured why trust works.
        gains: of all seeds, where it was measured what theory predicts of them.
        costs: of all seeds and links, what each method took.
        context: what was run, heading -> text, such as the resolved config.
        title: of the page.
    """
    folder = epath.Path(folder)
    page, learning = folder / "index.html", learning or {}
    (folder / "data").mkdir(parents=True, exist_ok=True)
    for name in listed(page):
        (folder / name).unlink(missing_ok=True)
    (folder / "recovery.json").write_text(to_json(rows, summary))
    certificates, mechanisms, gains, costs = certificates or {}, mechanisms or Mechanisms(), gains or Gains(), costs or Costs()
    (folder / "recovery.md").write_text(to_markdown(summary, audits, title, certificates, snowball, mechanisms, gains, costs))
    if snowball:
        whole = {"schema": 1, "chains": plain(snowball.chains)}
        (folder / "chain.json").write_text(json.dumps(whole, sort_keys=True, indent=1, allow_nan=False) + "\n")
    for name, text in _data(summary, audits, learning, certificates, snowball, mechanisms, gains, costs).items():
        (folder / "data" / name).write_text(text)
    page.write_text(
        to_html(rows, summary, audits, learning, certificates, context or {}, title, snowball, mechanisms, gains, costs)
    )
    return page


def to_json(rows: Sequence[Recovery], summary: Sequence[Summary]) -> str:
    """Returns recovery.json: keys sorted, floats to 6 places.

    >>> to_json([], [])
    '{\\n "rows": [],\\n "schema": 1,\\n "summary": []\\n}\\n'
    """
    whole = {"schema": 1, "rows": [dataclasses.asdict(r) for r in rows], "summary": [dataclasses.asdict(s) for s in summary]}
    return json.dumps(plain(whole), sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


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
                number(s.purity),
                number(s.auc),
                percent(s.accuracy),
                limits_of(s.accuracy_lo, s.accuracy_hi, 1),
                percent(s.recovery, 0, _nothing(s)),
                limits_of(s.recovery_lo, s.recovery_hi) if s.recovery_lo != s.recovery_hi else "",
                percent(s.pgr_median, 0),
                s.verdict or ("reference" if s.gt is not None else "no gold"),
            ]
            table.append(cells + [" ".join(percent(v, 0) for v in by_seed[s.method])] * many)
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
    mechanisms: Mechanisms | None = None,
    gains: Gains | None = None,
    costs: Costs | None = None,
) -> str:
    """Returns the tables as Markdown."""
    out = [f"# {title}", ""]
    if snowball:
        out += ["## The chain, generation by generation", "", *(f"- {line}" for line in chain_page.endings(snowball)), ""]
        out += [
            *markdown_table(*chain_page.generations(snowball)),
            "",
            *markdown_table(*chain_page.detected(snowball)),
            "",
        ]
    for link, part in _links(summary):
        out += [f"## {_heading(link, part)}", "", _guides(part), ""]
        out += [f"- **{figures.name(s.method)}**: {_sentence(s)}" for s in part] + [""]
        out += markdown_table(*_recovery_table(part)) + [""]
        out += markdown_table(*_accuracy_table(part)) + [""]
        if any(s.uses_target_gold for s in part):
            out += [LEGEND + ".", ""]
        out += [f"- not defined ({', '.join(methods)}): {reason}" for reason, methods in _reasons(part).items()]
        out += ["", "What the rows are for:", ""] if _explained(part) else []
        out += [f"- **{figures.name(method)}**: {said}" for method, said in _explained(part).items()]
        out.append("")
    if shown := _shown(summary, audits):
        out += ["## How good were the trust scores?", "", *markdown_table(*_trust_table(shown)), ""]
    if mechanisms:
        out += mechanism_page.markdown(mechanisms, summary, several=any(s.seeds > 1 for s in summary))
    if gains:
        out += gain_page.markdown(gains, several=any(s.seeds > 1 for s in summary))
    if costs:
        out += cost_page.markdown(costs, several=any(s.seeds > 1 for s in summary))
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
    mechanisms: Mechanisms | None = None,
    gains: Gains | None = None,
    costs: Costs | None = None,
) -> str:
    """Returns the page. Of a chain's controls it shows what the chain's own section says."""
    body = [f"<header><h1>{escape(title)}</h1>{_lead(summary, snowball)}</header>"]
    links = _links(summary)
    if snowball:
        body.append(chain_page.section(snowball))
        own = {(p.generation, p.teacher) for p in snowball.points if p.chain == snowball.points[0].chain}
        links = [(link, part) for link, part in links if (link[-1], link[1]) in own]
    for link, part in links:
        heading = _heading(link, part) if len(links) > 1 else "What was recovered"
        body.append(_link_section(heading, part, rows))
    body.append(_trust_section(summary, audits))
    mechanisms, gains, costs = mechanisms or Mechanisms(), gains or Gains(), costs or Costs()
    body.append(mechanism_page.section(mechanisms, summary, several=any(s.seeds > 1 for s in summary)))
    body.append(gain_page.section(gains, several=any(s.seeds > 1 for s in summary)))
    body.append(_certificate_section(certificates, several=any(s.seeds > 1 for s in summary)))
    body.append(_learning_section(learning, several=any(s.seeds > 1 for s in summary)))
    body.append(cost_page.section(costs, several=any(s.seeds > 1 for s in summary)))
    if context:
        parts = "".join(f"<details><summary>{escape(k)}</summary><pre>{escape(v)}</pre></details>" for k, v in context.items())
        body.append(f"<section><h2>What was run</h2>{parts}</section>")
    body.append(_READING)
    files = ["recovery.json", "recovery.md", *["chain.json"] * bool(snowball)]
    files += [f"data/{name}" for name in _data(summary, audits, learning, certificates, snowball, mechanisms, gains, costs)]
    body.append("<footer>Numbers: " + " · ".join(f'<a href="{f}">{f}</a>' for f in files) + "</footer>")
    return PAGE.format(title=escape(title), body="\n".join(body))


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
    return f'<p class="lead">{escape(_heading(link, part))}. {escape(_guides(part))}</p>'


def _link_section(heading: str, part: Sequence[Summary], rows: Sequence[Recovery]) -> str:
    by_seed = {s.method: _seeds(rows, s, "accuracy") for s in part}
    items = []
    for s in part:
        badge = s.verdict or ("reference" if s.gt is not None else "no gold")
        items.append(
            f'<li><span class="dot" style="background:{figures.colour(s.method)}"></span>'
            f"<div><b>{escape(figures.name(s.method))}</b>{DAGGER if s.uses_target_gold else ''} "
            f'<span class="badge {badge.split()[0]}">{badge}</span><p>{unbroken(escape(_sentence(s)))}</p></div></li>'
        )
    out = [f'<section><h2>{escape(heading)}</h2><ul class="verdicts">{"".join(items)}</ul>']
    if any(s.accuracy is not None for s in part):
        seeds = " White dots are single seeds." if any(len(v) > 1 for v in by_seed.values()) else ""
        out.append(
            figure(
                f'<div class="wide">{figures.recovery(part, by_seed)}</div>'
                f'<div class="narrow">{figures.recovery(part, by_seed, narrow=True)}</div>',
                "<b>Recovery.</b> Bars begin at the base student (before training) and end at the accuracy reached; the black"
                f" line is the 95 % interval.{seeds} The share of the way from <i>base</i> to <i>gold</i> is the recovery"
                " (arXiv&nbsp;2606.01000), written at the side with its 95 % interval (Fieller).",
            )
        )
    out.append("<h3>Recovery</h3>" + html_table(*_recovery_table(part)))
    head, body = _accuracy_table(part)
    out.append("<h3>Accuracy</h3>" + html_table(head, body, "numbers stacked" if len(head) > 3 else "numbers"))
    if any(s.uses_target_gold for s in part):
        out.append(f'<p class="note">{LEGEND}.</p>')
    if reasons := _reasons(part):
        told = "".join(
            f"<li><b>{escape(', '.join(figures.name(m) for m in methods))}</b>: {escape(reason)}</li>"
            for reason, methods in reasons.items()
        )
        out.append(f'<h3>Not defined, and why</h3><ul class="plain">{told}</ul>')
    if explained := _explained(part):
        told = "".join(f"<li><b>{escape(figures.name(method))}</b>: {escape(said)}</li>" for method, said in explained.items())
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
        out.append(html_table(*_trust_table(shown)))
        cards = "".join(f"<div><h4>{escape(figures.name(k))}</h4>{figures.reliability(k, a)}</div>" for k, a in shown.items())
        out.append(
            figure(
                f'<div class="cards">{cards}</div>',
                "<b>Reliability.</b> Rows are put into bins of equal width by trust score; a point shows what share of a bin's"
                f" labels is right (larger: more rows; hollow: fewer than {figures.FEW}). On the diagonal a score of 0.8 means"
                " right four times in five; the mean distance from it is the ECE (arXiv&nbsp;1706.04599). Below: how many rows"
                " have each score.",
            )
        )
        out.append(
            figure(
                f'<div class="wide">{figures.purity(shown)}</div>'
                f'<div class="narrow">{figures.purity(shown, narrow=True)}</div>',
                "<b>Purity.</b> Share of right labels among the n rows trusted most. A useful score starts high and falls to"
                " the share of right labels among all rows; a useless one stays on the dashed line of n random rows.",
            )
        )
    out += [f'<p class="note"><b>{escape(", ".join(names))}</b>: {escape(reason)}.</p>' for reason, names in untold.items()]
    return "".join(out) + "</section>"


def _certificate_section(certificates: Mapping[str, Certificate], several: bool) -> str:
    if not certificates:
        return ""
    out = ["<section><h2>What purity is certified?</h2>"]
    if several:
        out.append('<p class="note">Of one seed, the last.</p>')
    for key, one in certificates.items():
        out.append(f"<p><b>{escape(figures.name(key))}</b>: {escape(sentence(one))}</p>")
        out += [f'<p class="note"><b>Note</b>: {escape(caveat)}.</p>' for caveat in one.caveats]
    drawn = [
        f'<div style="max-width: 32rem"><h4>{escape(figures.name(key))}</h4>{figures.certificate(key, one)}</div>'
        for key, one in certificates.items()
    ]
    out.append(
        figure(
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
        f"<div><h4>{escape(CURVES[name])}</h4>{figures.curve(name, lines)}</div>" for name, lines in drawn.items() if lines
    )
    if cards:
        keys = " ".join(
            f'<span class="dot" style="background:{figures.colour(key)}"></span>&nbsp;{escape(figures.name(key))}'
            for key in dict.fromkeys(key for lines in drawn.values() for key in lines)
        )
        out.append(
            figure(
                f'<div class="cards">{cards}</div>',
                "<b>Learning by reward.</b> In a round the student writes a group of answers to each of some questions; the"
                " reward says which agree with the label that is taught. A group whose answers are all worth the same teaches"
                f" nothing. {keys}",
            )
        )
    if away := [figures.name(key) for key, one in learning.items() if not one.curves]:
        out.append(f'<p class="note">No curves of {escape(", ".join(away))}: the student was taught in another workdir.</p>')
    for key, one in learning.items():
        if told := "".join(map(_round, [one.rounds[0], one.rounds[-1]][: len(one.rounds)])):
            heading = f"{escape(figures.name(key))}: its first and last rounds"
            out.append(f"<details><summary>{heading}</summary>{told}</details>")
    return "".join(out) + "</section>"


def _round(group: Mapping[str, Any]) -> str:
    asked = f"<p>Asked: {escape(group['question'])}<br>Taught: <b>{escape(group['wanted'])}</b></p>"
    answers = [_written(answer) for answer in group["answers"]]
    return f"<h4>Round {group['round']}</h4>{asked}" + html_table(
        ["what it wrote", "read as", "reward"], answers, "numbers texts"
    )


def _written(answer: Mapping[str, Any]) -> list[str]:
    return [answer["text"], answer["final"] or "–", f"{answer['reward']:.3g}".replace("-", "−")]


def _trust_table(shown: Mapping[str, Audit]) -> tuple[list[str], list[list[str]]]:
    body = [
        [
            figures.name(key),
            f"{number(a.auc, 3)} {interval(a.auc_interval)}".strip(),
            number(a.ece, 3),
            number(a.brier, 3),
            f"{number(a.purity, 3)} {interval(a.purity_interval)}".strip(),
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
        recovered = percent(s.recovery, 0, _nothing(s))
        if s.recovery is not None and s.recovery_lo != s.recovery_hi:
            recovered += f" {limits_of(s.recovery_lo, s.recovery_hi)}"
        gap = f"{points(s.difference)} {limits_of(s.difference_lo, s.difference_hi, 1)}" if s.difference is not None else "–"
        body.append(
            [
                figures.name(s.method) + (f" {DAGGER}" if s.uses_target_gold else ""),
                f"{s.n_selected:,}",
                number(s.purity),
                recovered,
                percent(s.pgr_median, 0),
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
            body.append([who, *(percent(known[t]) for t in tests)])
    for s in part:
        cells = [s.by_test.get(t, {}) for t in tests]
        told = [f"{percent(c.get('accuracy'))} {limits_of(c.get('lo'), c.get('hi'), 1)}".strip() for c in cells]
        body.append([figures.name(s.method) + (f" {DAGGER}" if s.uses_target_gold else ""), *told])
    return ["accuracy, % [95 %]", *tests], body


# Words


def _sentence(s: Summary) -> str:
    """Says in one or two sentences what came of a method."""
    why = s.reason.split("; ")[0].removeprefix("no gold: ")
    if s.accuracy is None:
        return f"Not scored: {why}."
    if s.gt is None:
        return f"Accuracy {percent(s.accuracy)} % {limits_of(s.accuracy_lo, s.accuracy_hi, 1)}; {why}."
    if s.verdict is None:
        return f"The reference: the same student, trained on the gold labels of {s.n_selected:,} questions."
    gap = f"{points(s.difference)} {limits_of(s.difference_lo, s.difference_hi, 1)}"
    margin = f"{100 * s.margin:g} points"
    said = {
        "super-recovery": f"Beats training on gold labels: {gap} points.",
        "near-lossless": f"Equals training on gold labels to within {margin}: {gap}.",
        "lossy": f"Falls short of training on gold labels: {gap} points.",
        "undetermined": f"Neither told apart from gold labels nor shown equal to within {margin}: {gap}.",
    }[s.verdict]
    if s.recovery is not None:
        said += f" It recovers {percent(s.recovery, 0)} % {limits_of(s.recovery_lo, s.recovery_hi)} of their gain."
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
        f"{who} {percent(v)} %" if v is not None else f"{who}: no gold"
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


def _data(
    summary: Sequence[Summary],
    audits: Mapping[str, Audit],
    learning: Mapping[str, Learning],
    certificates: Mapping[str, Certificate],
    snowball: Snowball | None,
    mechanisms: Mechanisms,
    gains: Gains,
    costs: Costs,
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
    files = {"recovery.csv": csv_text([*link, *drawn], [[getattr(s, f) for f in (*link, *drawn)] for s in summary])}
    shown = _shown(summary, audits)
    for name, field, head in (
        ("reliability.csv", "reliability", ["mean_score", "share_right", "rows"]),
        ("trust.csv", "histogram", ["left_edge", "right", "wrong"]),
        ("purity.csv", "curve", ["n", "most_trusted", "random"]),
    ):
        lines = [[key, *line] for key, a in shown.items() for line in getattr(a, field).tolist()]
        if lines:
            files[name] = csv_text(["method", *head], lines)
    steps = [
        [key, name, step, float(value)]
        for key, one in learning.items()
        for name in CURVES
        for step, value in one.curves.get(name, ())
    ]
    if steps:
        files["learning.csv"] = csv_text(["method", "curve", "step", "value"], steps)
    if snowball:
        fields = [field.name for field in dataclasses.fields(Point)]
        files["snowball.csv"] = csv_text(fields, [[getattr(p, name) for name in fields] for p in snowball.points])
    if certificates:
        lines = [[key, *line] for key, one in certificates.items() for line in one.curve.tolist()]
        files["certificate.csv"] = csv_text(CERTIFICATE, lines)
    return files | mechanism_page.data(mechanisms) | gain_page.data(gains) | cost_page.data(costs)


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
