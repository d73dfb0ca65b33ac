"""The report's figures, drawn as SVG text; matplotlib is imported by the first figure, not with this module.

Stage in: `Summary` and `Audit` values. Stage out: one `<svg>` element each, as text, with the same bytes for the same values
and the same matplotlib. Colours belong to methods and can be told apart by colour-blind readers (Okabe and Ito); what a colour
says is always written as well.
"""

import contextlib
import html
import io
import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from w2s_jax.analysis.easy_first import EasyFirst
from w2s_jax.analysis.transfer import Cell
from w2s_jax.chain import Point
from w2s_jax.recovery import Summary
from w2s_jax.theory import Figure, Heat
from w2s_jax.types import Audit, Certificate

INK, QUIET, FAINT = "#1b1f24", "#6b7280", "#d5d9df"
FEW = 10  # a bin with fewer rows is drawn hollow
NAMES = {
    "naive": "Naive",
    "naive_all": "Naive, all labels",
    "confidence": "I-Confidence",
    "icl_confidence": "ICL + I-Confidence",
    "reward_model": "Reward model",
    "ntf": "NTF",
    "self_known": "Self where known",
    "smoothed": "Smoothed labels",
    "selective": "Selective",
    "boosted": "Boosted vote",
    "committee_vote": "Committee vote",
    "experts": "Mean of experts",
    "shuffled": "Shuffled control",
    "flipped": "Flipped-label head",
    "same_purity": "Random, same purity",
    "difficulty_matched": "Random, same difficulty",
    "oracle": "Oracle",
    "gold": "Gold labels",
    "gold_all": "Gold, all labels",
    "gold_on_ntf": "Gold on NTF's rows",
}
_COLOURS = {
    "ntf": "#0072b2",
    "confidence": "#d55e00",
    "icl_confidence": "#cc79a7",
    "reward_model": "#009e73",
    "naive": "#8a9099",
    "naive_all": "#b5bac2",
    "self_known": "#999933",
    "smoothed": "#aa4499",
    "selective": "#332288",
    "shuffled": "#56b4e9",
    "flipped": "#882255",
    "same_purity": "#44aa99",
    "difficulty_matched": "#117733",
    "oracle": "#5e4fa2",
    "gold": "#c79a00",
    "gold_all": "#dcb93d",
    "gold_on_ntf": "#a67c00",
}
_OTHERS = ("#5e4fa2", "#117733", "#882255", "#44aa99", "#999933")


def name(method: str) -> str:
    """Returns the name that readers see.

    >>> name("ntf"), name("ntf_early_layer")
    ('NTF', 'NTF early layer')
    """
    if method in NAMES:
        return NAMES[method]
    return ("NTF " + method[4:] if method.startswith("ntf_") else method).replace("_", " ")


def colour(method: str) -> str:
    """Returns the method's own colour, the same in every figure and report.

    >>> colour("ntf")
    '#0072b2'
    """
    return _COLOURS.get(method) or _OTHERS[sum(method.encode()) % len(_OTHERS)]


def recovery(summary: Sequence[Summary], points: Mapping[str, Sequence[float]], *, narrow: bool = False) -> str:
    """Draws accuracies as bars that start at the base student, between guide lines for base, teacher and gold.

    Args:
        summary: the methods of one link.
        points: accuracies of single seeds, by method.
        narrow: for a phone: names stand above the bars.
    """
    shown = [s for s in summary if s.accuracy is not None]
    base, gold, teacher = (next((getattr(s, k) for s in shown if getattr(s, k) is not None), None) for k in _GUIDES)
    step = 0.62 if narrow else 0.46
    size = (3.9 if narrow else 7.6, 0.85 + step * len(shown))
    with _canvas("recovery-narrow" if narrow else "recovery", size, "accuracy of the students by method") as (figure, out):
        left, right = (0.02, 0.98) if narrow else (0.19, 0.76)
        axes = figure.add_axes((left, 0.42 / size[1], right - left, 1 - 0.85 / size[1]))
        known = [v for s in shown for v in (s.accuracy_lo, s.accuracy_hi)] + [v for v in (base, gold, teacher) if v is not None]
        known = 100 * np.array(known)
        room = max(np.ptp(known) * 0.06, 0.5)
        axes.set_xlim(known.min() - room, known.max() + room)
        axes.set_ylim(len(shown) - 0.5, -0.62 if narrow else -0.5)
        guides = [(v, word) for v, word in ((base, "base"), (gold, "gold"), (teacher, "teacher")) if v is not None]
        for value, word in guides:
            axes.axvline(100 * value, color=QUIET, lw=1, ls=(0, (2, 2)) if word == "teacher" else "-", zorder=1)
        _guide_labels(axes, guides)
        for y, s in enumerate(shown):
            _bar(axes, y, s, points.get(s.method, ()), base, narrow)
        axes.set_yticks([])
        axes.set_xlabel("test accuracy, %", color=QUIET, labelpad=3)
        _strip(axes, "bottom")
    return out[0]


def reliability(key: str, audit: Audit) -> str:
    """Draws how often labels are right at each trust score, above how many rows have that score."""
    with _canvas(f"reliability-{key}", (2.35, 3.15), f"reliability and histogram of the trust scores of {name(key)}") as (
        figure,
        out,
    ):
        top = figure.add_axes((0.15, 0.395, 0.82, 0.585))
        low = figure.add_axes((0.15, 0.125, 0.82, 0.165))
        mean, share, rows = audit.reliability[audit.reliability[:, 2] > 0].T
        top.plot([0, 1], [0, 1], color=FAINT, lw=1.2, zorder=1)
        many, size = rows >= FEW, 10 + 90 * rows / rows.sum()
        top.plot(mean[many], share[many], color=colour(key), lw=1.6, zorder=2)
        top.scatter(mean[many], share[many], s=size[many], color=colour(key), edgecolor="white", lw=0.8, zorder=3)
        top.scatter(mean[~many], share[~many], s=9, color="white", edgecolor=colour(key), lw=0.8, zorder=3)
        top.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xticks=[0, 0.5, 1], yticks=[0, 0.5, 1])
        top.set_xticklabels(["0", ".5", "1"])
        top.set_yticklabels(["0", ".5", "1"])
        top.text(0.02, 0.98, "share of labels right", color=QUIET, va="top")
        edge, right, wrong = audit.histogram.T
        width = 1 / len(edge)
        low.bar(edge, right, width * 0.92, align="edge", color=colour(key))
        low.bar(edge, wrong, width * 0.92, align="edge", bottom=right, color=FAINT)
        low.set(xlim=(-0.02, 1.02), xticks=[0, 0.5, 1], yticks=[])
        low.set_xticklabels(["0", ".5", "1"])
        low.set_xlabel("trust score", color=QUIET, labelpad=1)
        for at, tint, word in ((0, colour(key), "right label"), (0.5, FAINT, "wrong label")):
            low.text(at, 1.08, "■", color=tint, transform=low.transAxes)
            low.text(at + 0.075, 1.08, word, color=QUIET, transform=low.transAxes)
        _strip(top, "left", "bottom")
        _strip(low, "bottom")
    return out[0]


def purity(audits: Mapping[str, Audit], *, narrow: bool = False) -> str:
    """Draws the share of right labels among the n most trusted, for every n, with n random rows as the baseline."""
    size = (3.9, 3.5) if narrow else (7.6, 3.7)
    with _canvas("purity-narrow" if narrow else "purity", size, "purity of the n most trusted rows against n") as (figure, out):
        axes = figure.add_axes((0.01, 0.14, 0.86 if narrow else 0.92, 0.8))
        most = max(a.curve[-1, 0] for a in audits.values())
        low = min(a.curve[:, 1:].min() for a in audits.values())
        margin = 0.5 if narrow else 0.24
        random = next(iter(audits.values())).curve
        axes.plot(random[:, 0], 100 * random[:, 2], color=QUIET, lw=1, ls=(0, (2, 2)), zorder=1)
        starts = [(100 * random[0, 2], "n random rows", QUIET, random[0, 0])]
        for key, audit in audits.items():
            n, pure = audit.curve[:, 0], 100 * audit.curve[:, 1]
            axes.plot(n, pure, color=colour(key), lw=2, zorder=2, solid_capstyle="round")
            starts.append((pure[0], name(key), colour(key), n[0]))
        floor = 100 * low - 3
        axes.set(xlim=(-margin * most, most * 1.01), ylim=(floor, 101.5))
        ordered = sorted(starts)
        height = (101.5 - floor) * 0.16 / (size[1] * 0.8)
        for at, (y, label, tint, n) in zip(_apart([s[0] for s in ordered], height, 101 - height / 2), ordered, strict=True):
            end = -0.035 * most
            axes.plot([end, n], [at, y], color=tint, lw=1, zorder=1)
            axes.text(end - 0.012 * most, at, label, ha="right", va="center")
        axes.set_xticks([t for t in axes.get_xticks() if 0 <= t <= most])
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.set_xlabel("n, most trusted rows", color=QUIET, loc="right", labelpad=2)
        axes.yaxis.tick_right()
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0f} %")
        axes.hlines([t for t in axes.get_yticks() if floor < t < 101], 0, most, color=FAINT, lw=0.6, zorder=0)
        _strip(axes)
    return out[0]


def certificate(key: str, one: Certificate) -> str:
    """Draws measured purity and its lower bound at each threshold against coverage, with what was wanted and what was taken."""
    with _canvas(f"certificate-{key}", (3.9, 2.9), f"certified purity of {name(key)} against coverage") as (figure, out):
        axes = figure.add_axes((0.12, 0.15, 0.85, 0.76))
        threshold, _, share, bound, _, coverage = one.curve.T
        known = bound > 0
        axes.axhline(100 * one.purity, color=QUIET, lw=1, ls=(0, (2, 2)), zorder=1)
        axes.text(102, 100 * one.purity + 0.5, f"wanted {100 * one.purity:g} %", color=QUIET, ha="right", va="bottom")
        axes.plot(100 * coverage[known], 100 * share[known], color=FAINT, lw=2, marker="o", ms=3, zorder=2)
        axes.plot(100 * coverage[known], 100 * bound[known], color=colour(key), lw=2, marker="o", ms=3, zorder=3)
        for at, tint, word in ((0, colour(key), "lower bound"), (0.32, FAINT, "calibration questions")):
            axes.text(at, 1.04, "■", color=tint, transform=axes.transAxes)
            axes.text(at + 0.045, 1.04, word, color=QUIET, transform=axes.transAxes)
        if one.threshold is not None:
            (taken,) = np.flatnonzero(threshold == one.threshold)
            place = (100 * coverage[taken], 100 * bound[taken])
            axes.scatter(*place, s=60, facecolor="none", edgecolor=INK, lw=1.2, zorder=4)
            box = {"facecolor": "white", "edgecolor": "none", "pad": 1}
            axes.annotate(f"score ≥ {one.threshold:g}", place, (9, 6), textcoords="offset points", bbox=box, zorder=5)
        low = min([100 * one.purity, *(100 * bound[known])])
        axes.set(xlim=(0, 103), ylim=(max(low - 8, 0), 101.5))
        axes.set_xlabel("coverage: target questions kept, %", color=QUIET, labelpad=2)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0f} %")
        axes.grid(axis="y", color=FAINT, lw=0.6)
        axes.set_axisbelow(True)
        _strip(axes, "bottom")
    return out[0]


def curve(key: str, lines: Mapping[str, Sequence[tuple[int, float]]]) -> str:
    """Draws a quantity of training against the step, one line for each method."""
    with _canvas(f"curve-{key}", (2.35, 1.75), f"{key} by step of {', '.join(map(name, lines))}") as (figure, out):
        axes = figure.add_axes((0.2, 0.2, 0.77, 0.75))
        for method, points in lines.items():
            step, value = np.array(points, float).T
            axes.plot(step, value, color=colour(method), lw=1.6, solid_capstyle="round")
            axes.scatter(step[-1:], value[-1:], s=10, color=colour(method), zorder=3)
        axes.margins(x=0.02, y=0.1)
        axes.locator_params(nbins=4)
        axes.set_xlabel("step", color=QUIET, labelpad=1)
        axes.grid(axis="y", color=FAINT, lw=0.6)
        axes.set_axisbelow(True)
        _strip(axes, "bottom")
    return out[0]


def parallel(
    axes: Mapping[str, Sequence[str]],
    head: np.ndarray,
    measures: Mapping[str, np.ndarray],
    best: int | None,
    *,
    narrow: bool = False,
) -> str:
    """Draws each head (or run) of a sweep as a line through its settings to what was measured; the chosen one stands out.

    Heads of one value pass it side by side, the better ones higher, so that all lines can be told apart.

    Args:
        axes: the values of each setting that was varied.
        head: i[H, axes], the place of each head's value among them.
        measures: f[H] each, NaN where unknown; the first one tints the lines, and heads without it are left out.
        best: the chosen head, None where none was chosen.
        narrow: for a phone.
    """
    names = [*axes, *measures]
    size = (3.9, 3.6) if narrow else (7.6, 3.6)
    with _canvas("parallel-narrow" if narrow else "parallel", size, "settings of a sweep and what they reach") as (
        figure,
        out,
    ):
        drawn = figure.add_axes((0.05, 0.04, 0.86, 0.8))
        drawn.set(xlim=(-0.15, len(names) - 0.85), ylim=(-0.03, 1.03))
        ends = {key: (np.nanmin(values), np.nanmax(values)) for key, values in measures.items()}
        scaled = {key: (values - ends[key][0]) / max(np.ptp(ends[key]), 1e-9) for key, values in measures.items()}
        tint = next(iter(scaled.values()))
        band = [(head[:, at] + 0.2 + 0.6 * tint) / len(values) for at, values in enumerate(axes.values())]
        line = np.stack([*band, *scaled.values()], 1)
        for h in sorted(np.flatnonzero(np.isfinite(tint)), key=lambda h: (h == best, tint[h])):
            style = {"color": "#0072b2", "lw": 0.9, "alpha": 0.15 + 0.6 * tint[h]}
            if h == best:
                style = {"color": "#d55e00", "lw": 2.2}
            drawn.plot(range(len(names)), line[h], solid_capstyle="round", **style)
        for at, key in enumerate(names):
            weight = "bold" if key in measures else "normal"
            drawn.text(at, 1.06, key.replace("_", "\n").replace(" ", "\n"), ha="center", va="bottom", weight=weight)
        plate = {"facecolor": "white", "edgecolor": "none", "pad": 1, "alpha": 0.85}
        for at, values in enumerate(axes.values()):
            for place, value in enumerate(values):
                low, high = ((place + edge) / len(values) for edge in (0.12, 0.88))
                drawn.plot([at, at], [low, high], color=INK, lw=2.4, zorder=0)
                drawn.text(at + 0.05, (low + high) / 2, value, va="center", zorder=9, bbox=plate)
        for at, key in enumerate(measures, len(axes)):
            drawn.plot([at, at], [0, 1], color=FAINT, lw=1, zorder=0)
            for y, value in enumerate(ends[key]):
                drawn.text(at + 0.05, y, f"{value:.3f}", va="center", zorder=9, bbox=plate)
        drawn.set_xticks([])
        drawn.set_yticks([])
        _strip(drawn)
    return out[0]


_GUIDES = ("base", "gt", "teacher_accuracy")


def setting(key: str, values: Sequence[str], method: str, measured: Mapping[str, np.ndarray], *, narrow: bool = False) -> str:
    """Draws the accuracy of a method's student at each value of one setting, beside the gold student, base and teacher.

    Args:
        key: the setting.
        values: V of them, drawn at equal distances.
        method: the method.
        measured: f[V] each, NaN where unknown: accuracy, accuracy_lo, accuracy_hi, gt, base, teacher_accuracy.
        narrow: for a phone.
    """
    size = (3.9, 3.3) if narrow else (7.6, 3.5)
    with _canvas("setting-narrow" if narrow else "setting", size, f"accuracy of {name(method)} by {key}") as (figure, out):
        axes = figure.add_axes((0.1, 0.16, 0.66 if narrow else 0.76, 0.74))
        x, y = np.arange(len(values)), {field: 100 * column for field, column in measured.items()}
        others = {
            "gt": ("gold", colour("gold"), "-"),
            "base": ("base", QUIET, (0, (4, 3))),
            "teacher_accuracy": ("teacher", QUIET, (0, (1, 2))),
        }
        for field, (_, tint, dash) in others.items():
            axes.plot(x, y[field], color=tint, lw=1.2, ls=dash, zorder=2)
        axes.plot(x, y["accuracy"], color=colour(method), lw=2, marker="o", ms=4, zorder=4)
        axes.vlines(x, y["accuracy_lo"], y["accuracy_hi"], color=colour(method), lw=1, zorder=3)
        axes.set_xlim(-0.15, len(values) - 0.85)
        axes.margins(y=0.1)
        named = {"accuracy": (name(method), colour(method), "-"), **(others if method != "gold" else {"base": others["base"]})}
        ends = sorted((y[field][-1], *named[field][:2]) for field in named if np.isfinite(y[field][-1]))
        low, high = axes.get_ylim()
        for place, (_, word, tint) in zip(_apart([e[0] for e in ends], (high - low) / 14, high), ends, strict=True):
            axes.annotate(word, (x[-1], place), (7, 0), textcoords="offset points", color=tint, va="center")
        axes.set_ylim(low, high)
        axes.set_xticks(x, values)
        axes.grid(axis="y", color=FAINT, lw=0.6)
        axes.set_axisbelow(True)
        axes.text(0, 1.03, "test accuracy, %", transform=axes.transAxes, color=QUIET, va="bottom")
        axes.set_xlabel(key, color=QUIET, labelpad=3)
        _strip(axes, "bottom")
    return out[0]


def _guide_labels(axes, guides: list[tuple[float, str]]) -> None:
    """Writes the guide lines' names above them, outer ones turned outwards, so that close lines stay readable."""
    guides = sorted(guides)
    # Two close neighbours turn away from each other; the middle one of three goes to the side with more room.
    for at, (value, label) in enumerate(guides):
        side = "right" if at == 0 else "left"
        if at == 1 and len(guides) == 3:
            side = "right" if guides[1][0] - guides[0][0] > guides[2][0] - guides[1][0] else "left"
        low, high = axes.get_xlim()
        near = (100 * value - low) / (high - low)
        side = "left" if near < 0.15 else "right" if near > 0.85 else side
        axes.annotate(
            f"{label} {100 * value:.1f}",
            (100 * value, axes.get_ylim()[1]),
            (-3 if side == "right" else 3, 3),
            textcoords="offset points",
            ha=side,
            va="bottom",
            color=QUIET,
        )


def _bar(axes, y: int, s: Summary, seeds: Sequence[float], base: float | None, narrow: bool) -> None:
    """Draws one method: bar from base, interval, single seeds, name and recovery."""
    low, _ = axes.get_xlim()
    start = low if base is None else 100 * base
    axes.barh(y, 100 * s.accuracy - start, 0.34 if narrow else 0.5, left=start, color=colour(s.method), zorder=2)
    axes.plot([100 * s.accuracy_lo, 100 * s.accuracy_hi], [y, y], color=INK, lw=1.2, zorder=4)
    if len(seeds) > 1:
        axes.scatter(100 * np.array(seeds), [y] * len(seeds), s=9, color="white", edgecolor=INK, lw=0.7, zorder=5)
    label = name(s.method) + (" †" if s.uses_target_gold else "")
    if s.recovery is None:
        recovered, limits = "no gold" if s.gt is None else "no ratio", ""
    elif s.recovery_lo == s.recovery_hi:
        recovered, limits = f"{100 * s.recovery:.0f} %", "by definition"
    else:
        recovered, limits = f"{100 * s.recovery:.0f} %", f"[{100 * s.recovery_lo:.0f}, {100 * s.recovery_hi:.0f}]"
    place = {"transform": axes.get_yaxis_transform(), "color": INK, "zorder": 6}
    if narrow:
        place["bbox"] = {"facecolor": "white", "edgecolor": "none", "pad": 1}
        axes.text(0, y - 0.24, label, va="bottom", weight="bold", **place)
        axes.text(1, y - 0.24, f"{recovered} {limits}", ha="right", va="bottom", **place)
    else:
        axes.text(-0.19 / 0.57, y, label, va="center", **place)
        axes.text(1.12, y, recovered, ha="right", va="center", weight="bold", **place)
        axes.text(1.14, y, limits, va="center", **place | {"color": QUIET})


def _apart(wanted: Sequence[float], gap: float, highest: float) -> list[float]:
    """Moves ascending positions as little as needed to be `gap` apart and not above `highest`.

    >>> _apart([1, 1.5, 9.9], 1, 10)
    [1, 2, 9.9]
    """
    placed: list[float] = []
    for y in wanted:
        placed.append(y if not placed else max(y, placed[-1] + gap))
    for at in range(len(placed) - 1, -1, -1):
        placed[at] = min(placed[at], highest)
        highest = placed[at] - gap
    return placed


def _strip(axes, *keep: str) -> None:
    """Removes all but the named axis lines, and the tick marks."""
    for side, line in axes.spines.items():
        line.set_visible(side in keep)
        line.set_color(FAINT)
    axes.tick_params(length=0, colors=QUIET, labelcolor=QUIET, pad=4)


@contextlib.contextmanager
def _canvas(salt: str, size: tuple[float, float], says: str) -> Iterator[tuple]:
    """Yields an empty figure and a list that afterwards holds its SVG text; `says` is for screen readers."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    style = {
        "svg.hashsalt": salt,
        "svg.fonttype": "none",
        "font.family": "DejaVu Sans",
        "font.size": 8.5,
        "text.color": INK,
        "axes.linewidth": 0.8,
        "figure.facecolor": "none",
        "axes.facecolor": "none",
        "text.parse_math": False,
    }
    out: list[str] = []
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(style)
        figure = Figure(figsize=size)
        FigureCanvasSVG(figure)
        yield figure, out
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg")
    out.append(_inline(buffer.getvalue(), says))


def _inline(text: str, says: str) -> str:
    """Makes matplotlib's SVG file an element of a page: as wide as its place, in the page's typeface, without a date."""
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    # Names that nothing refers to, and that would be the same in every figure of a page.
    text = re.sub(
        r'\sid="(?:figure|axes|patch|line2d|text|matplotlib\.axis|xtick|ytick|PathCollection|LineCollection)_\d+"', "", text
    )
    opening = re.match(r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', text)
    return f'<svg viewBox="{opening[1]}" role="img" aria-label="{html.escape(says)}">' + text[opening.end() :]


def snowball(points: Sequence[Point], *, narrow: bool = False) -> str:
    """Draws accuracy and purity of each chain against the generation, with their intervals; the first teacher is a dotted line.

    Args:
        points: from `chain.snowball`, the chain itself first.
        narrow: for a phone: one panel above the other.
    """
    chains = list(dict.fromkeys(p.chain for p in points))
    last = max(p.generation for p in points)
    size = (3.9, 6.0) if narrow else (7.6, 3.5)
    places = (
        ((0.13, 0.58, 0.84, 0.37), (0.13, 0.08, 0.84, 0.37)) if narrow else ((0.06, 0.14, 0.4, 0.76), (0.57, 0.14, 0.4, 0.76))
    )
    with _canvas("snowball-narrow" if narrow else "snowball", size, "accuracy and purity by generation") as (figure, out):
        panels = zip(places, (("accuracy", "test accuracy, %"), ("purity", "purity of what is taught, %")), strict=True)
        for place, (field, title) in panels:
            axes = figure.add_axes(place)
            if field == "accuracy" and points[0].teacher_accuracy is not None:
                axes.axhline(100 * points[0].teacher_accuracy, color=QUIET, lw=1, ls=(0, (2, 2)), zorder=1)
            for at, chain in reversed(list(enumerate(chains))):  # the chain itself on top
                known = [p for p in points if p.chain == chain and getattr(p, field) is not None]
                aside = 0.12 * (at - (len(chains) - 1) / 2)
                x = np.array([p.generation + aside for p in known])
                y = [100 * getattr(p, field) for p in known]
                axes.plot(x, y, color=colour(chain), lw=2 if not at else 1.4, zorder=3, marker="o", ms=4 if not at else 3)
                for where, p in zip(x, known, strict=True):
                    if (lo := getattr(p, field + "_lo")) is not None:
                        hi = getattr(p, field + "_hi")
                        axes.plot([where, where], [100 * lo, 100 * hi], color=colour(chain), lw=1, zorder=2)
            axes.set_xlim(0.6, last + 0.4)
            axes.set_xticks(range(1, last + 1))
            axes.margins(y=0.08)
            axes.grid(axis="y", color=FAINT, lw=0.6)
            axes.set_axisbelow(True)
            axes.text(0, 1.02, title, transform=axes.transAxes, color=QUIET, va="bottom")
            axes.set_xlabel("generation", color=QUIET, labelpad=2)
            _strip(axes, "bottom")
    return out[0]


def deciles(found: Sequence[EasyFirst], *, narrow: bool = False) -> str:
    """Draws how hard and how often right the labels are, tenth by tenth in order of trust; one line for each method.

    Args:
        found: of one difficulty; without gold there is one panel, of difficulty.
        narrow: for a phone: one panel above the other.
    """
    graded = any(np.isfinite(one.decile[:, 2]).any() for one in found)
    panels = [(1, 1.0, "mean difficulty"), (2, 100.0, "right labels, %")][: 1 + graded]
    size = (3.9, 2.9 * len(panels)) if narrow else (7.6, 3.2)
    places = (
        ((0.13, 0.585, 0.84, 0.365), (0.13, 0.085, 0.84, 0.365))
        if narrow
        else ((0.06, 0.15, 0.4, 0.74), (0.57, 0.15, 0.4, 0.74))
    )
    if len(panels) == 1:
        places = ((0.13, 0.15, 0.84, 0.74),) if narrow else ((0.06, 0.15, 0.62, 0.74),)
    with _canvas("deciles-narrow" if narrow else "deciles", size, "difficulty and share of right labels by trust") as (
        figure,
        out,
    ):
        for place, (column, scale, title) in zip(places, panels, strict=True):
            axes = figure.add_axes(place)
            for one in found:
                rows = one.decile[:, 3]
                x = 100 * (np.cumsum(rows) - rows / 2) / rows.sum()
                axes.plot(x, scale * one.decile[:, column], color=colour(one.method), lw=1.8, marker="o", ms=3)
            axes.set_xlim(0, 100)
            axes.margins(y=0.08)
            axes.grid(axis="y", color=FAINT, lw=0.6)
            axes.set_axisbelow(True)
            axes.text(0, 1.03, title, transform=axes.transAxes, color=QUIET, va="bottom")
            axes.set_xlabel("labels by trust, least to most, %", color=QUIET, labelpad=2)
            _strip(axes, "bottom")
    return out[0]


def heat(cells: Sequence[Cell], field: str, *, chance: bool) -> str:
    """Draws one trust function's matrix: sources down, targets across; a dot marks cells whose interval excludes the baseline.

    Args:
        cells: of one method.
        field: "auc" or "purity".
        chance: whether the baseline is 0.5 (an AUC), or the share of right labels among all (a purity).
    """
    sources, targets = (list(dict.fromkeys(getattr(c, side) for c in cells)) for side in ("source", "target"))
    letter, slope = 0.068, np.radians(35)  # inches that a letter takes, and how names of targets climb
    left, right = 0.15 + letter * max(map(len, sources)), max(0.1, letter * len(targets[-1]) * np.cos(slope) - 0.4)
    top = 0.25 + letter * max(map(len, targets)) * np.sin(slope)
    width, height = 0.95 * len(targets), 0.55 * len(sources)
    size = (left + width + right, top + height + 0.1)
    says = f"{field} of {name(cells[0].method)} by source and target"
    with _canvas(f"heat-{field}-{cells[0].method}", size, says) as (figure, out):
        axes = figure.add_axes((left / size[0], 0.1 / size[1], width / size[0], height / size[1]))
        for c in cells:
            x, y, value = targets.index(c.target), sources.index(c.source), getattr(c, field)
            baseline, lo, hi = (0.5 if chance else c.right), getattr(c, field + "_lo"), getattr(c, field + "_hi")
            tint = (1.0, 1.0, 1.0) if value is None else _diverging(value - baseline)
            axes.fill([x - 0.49, x + 0.49, x + 0.49, x - 0.49], [y - 0.48, y - 0.48, y + 0.48, y + 0.48], color=tint, lw=0)
            sure = lo is not None and not lo <= baseline <= hi
            axes.text(
                x, y - 0.1, "–" if value is None else f"{value:.2f}" + " •" * sure, ha="center", va="center", weight="bold"
            )
            if lo is not None:
                axes.text(x, y + 0.24, f"[{lo:.2f}, {hi:.2f}]", ha="center", va="center", size=6.5)
        axes.set(xlim=(-0.5, len(targets) - 0.5), ylim=(len(sources) - 0.5, -0.5))
        axes.set_yticks(range(len(sources)), sources)
        axes.set_xticks(range(len(targets)), targets, rotation=35, ha="left")
        axes.xaxis.tick_top()
        _strip(axes)
    return out[0]


def _diverging(above: float) -> tuple[float, float, float]:
    """Blue above the baseline, orange below it, white at it; full at a distance of 0.5.

    >>> _diverging(0.0)
    (1.0, 1.0, 1.0)
    """
    full = (0.0, 0.447, 0.698) if above > 0 else (0.835, 0.369, 0.0)
    strength = min(abs(above) / 0.5, 1.0) * 0.85
    return tuple(1.0 - strength * (1.0 - c) for c in full)


WIDE_RANGE = 30  # of x, from which on a logarithmic axis shows more


def lines(drawn: Figure, *, narrow: bool = False) -> str:
    """Draws lines, their names at their right ends; x is logarithmic where it is above 0 and spans more than `WIDE_RANGE`.

    Args:
        drawn: what to draw.
        narrow: for a phone: names stand above the drawing.
    """
    size = (3.9, 3.3) if narrow else (7.6, 3.5)
    tints = dict(zip(drawn.series, (_SERIES * (1 + len(drawn.series) // len(_SERIES))), strict=False))
    wide = 0.25 + 0.068 * max(map(len, drawn.series), default=0)  # inches that the longest name takes
    with _canvas(f"{drawn.name}-narrow" if narrow else drawn.name, size, drawn.title) as (figure, out):
        columns = 2 if wide < 0.42 * size[0] else 1
        rows = -(-len(tints) // columns) if narrow else 0
        top = 0.92 - 0.055 * rows
        axes = figure.add_axes((0.13, 0.15, 0.84, top - 0.15) if narrow else (0.075, 0.14, 0.92 - wide / size[0], 0.78))
        ends = []
        for word, points in drawn.series.items():
            if not points:
                continue
            x, y = np.array(points, float).T
            axes.plot(x, y, color=tints[word], lw=1.8, marker="o" if len(x) <= 12 else "", ms=3.5, solid_capstyle="round")
            known = np.flatnonzero(np.isfinite(y))
            if len(known):
                ends.append((y[known[-1]], word))
        every = np.array([x for points in drawn.series.values() for x, _ in points])
        if every.size and every.min() > 0 and every.max() > WIDE_RANGE * every.min():
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.minorticks_off()
        axes.margins(x=0.02, y=0.06)
        axes.grid(axis="y", color=FAINT, lw=0.6)
        axes.set_axisbelow(True)
        axes.set_xlabel(drawn.x_label, color=QUIET, labelpad=2)
        axes.text(0, 1.02, drawn.y_label, transform=axes.transAxes, color=QUIET, va="bottom")
        if narrow:
            for at, word in enumerate(tints):
                x, y = 0.5 * (at % columns), 1.12 + 0.055 * (rows - 1 - at // columns) / (top - 0.15)
                axes.text(x, y, "■", color=tints[word], transform=axes.transAxes)
                axes.text(x + 0.04, y, word, transform=axes.transAxes)
        else:
            low, high = axes.get_ylim()
            height = (high - low) * 0.16 / (size[1] * 0.78)
            ordered = sorted(ends)
            for at, (y, word) in zip(_apart([y for y, _ in ordered], height, high), ordered, strict=True):
                right = axes.get_yaxis_transform()
                axes.plot([0.985, 1.03], [y, at], color=tints[word], lw=1, transform=right, clip_on=False)
                axes.text(1.04, at, word, va="center", transform=right)
            axes.set_ylim(low, high)
        _strip(axes, "bottom")
    return out[0]


def plane(drawn: Heat) -> str:
    """Draws a quantity over two others: blue above zero, orange below it, full at the largest distance from zero."""
    size = (3.9, 3.7)
    with _canvas(drawn.name, size, drawn.title) as (figure, out):
        axes = figure.add_axes((0.15, 0.13, 0.66, 0.8))
        known = drawn.value[np.isfinite(drawn.value)]
        full = max(float(np.abs(known).max()), 1e-12) if known.size else 1.0
        across, up = _edges(drawn.x), _edges(drawn.y)
        for j, i in np.argwhere(np.isfinite(drawn.value)):
            corners = [across[i], across[i + 1], across[i + 1], across[i]], [up[j], up[j], up[j + 1], up[j + 1]]
            axes.fill(*corners, color=_diverging(drawn.value[j, i] / full / 2), lw=0)
        axes.set(xlim=(across[0], across[-1]), ylim=(up[0], up[-1]))
        axes.set_xlabel(drawn.x_label, color=QUIET, labelpad=2)
        axes.text(0, 1.02, drawn.y_label, transform=axes.transAxes, color=QUIET, va="bottom")
        _strip(axes)
        scale = figure.add_axes((0.85, 0.13, 0.035, 0.8))
        low = min(float(known.min()), 0.0) if known.size else 0.0
        high = max(float(known.max()), 0.0) if known.size else 1.0
        step = np.linspace(low, high, 25)
        for a, b in zip(step[:-1], step[1:], strict=True):
            scale.fill([0, 1, 1, 0], [a, a, b, b], color=_diverging((a + b) / 4 / full), lw=0)
        scale.set(xlim=(0, 1), ylim=(low, high if high > low else low + 1), xticks=[])
        scale.yaxis.tick_right()
        _strip(scale)
    return out[0]


_SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#c79a00", "#1b1f24")


def _edges(centre: Sequence[float]) -> np.ndarray:
    """Borders of cells around ascending centres.

    >>> _edges([1, 3, 4]).tolist()
    [0.0, 2.0, 3.5, 4.5]
    """
    centre = np.asarray(centre, float)
    if len(centre) == 1:
        return centre[0] + np.array([-0.5, 0.5])
    between = (centre[1:] + centre[:-1]) / 2
    return np.array([2 * centre[0] - between[0], *between, 2 * centre[-1] - between[-1]])
