"""What a report says of a chain: its section of the page, its tables, how it ended; it computes nothing."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from w2s_jax import figures
from w2s_jax.chain import Point
from w2s_jax.typesetting import DAGGER, KINDS, aligned, escape, figure, html_table, interval, limits_of, number, percent

VERSION = "1"


@dataclasses.dataclass(frozen=True)
class Snowball:
    """What came of a chain.

    Attributes:
        points: generation by generation, from `chain.snowball`.
        chains: for each seed what its detector saw and why it stopped, from `chain.plain`.
    """

    points: Sequence[Point]
    chains: Sequence[Mapping[str, Any]]


def terminal_table(snowball: Snowball) -> str:
    """Returns a chain and its controls as plain aligned text, one line for each generation, and why it stopped."""
    tables = ["\n".join(aligned([head, *body])) for head, body in (generations(snowball), detected(snowball))]
    return "\n\n".join([*tables, "\n".join(endings(snowball))]) + "\n"


def section(snowball: Snowball) -> str:
    out = ["<section><h2>The chain, generation by generation</h2>"]
    out.append('<ul class="plain">' + "".join(f"<li>{escape(line)}</li>" for line in endings(snowball)) + "</ul>")
    keys = " ".join(
        f'<span class="dot" style="background:{figures.colour(chain)}; display:inline-block"></span>&nbsp;{escape(name)}'
        for chain, name in dict.fromkeys((p.chain, _chain_name(snowball, p.chain)) for p in snowball.points)
    )
    drawings = (f'<div class="{kind}">{figures.snowball(snowball.points, narrow=kind == "narrow")}</div>' for kind in KINDS)
    out.append(
        figure(
            "".join(drawings),
            "<b>Snowball.</b> In each chain the trained student of a generation teaches the next one; the dotted line is the"
            f" first teacher. Vertical lines are 95 % intervals. {keys}",
        )
    )
    out.append(html_table(*generations(snowball)))
    out.append("<h3>What the collapse detector saw</h3>" + html_table(*detected(snowball)))
    out.append(
        "<p class=\"note\">It reads the teacher's answers to held-back source questions, its head's AUC there, and the trust"
        " scores of the unlabelled target; neither the target's gold nor the test. A change is counted from the best teacher"
        " before, drift and distance from the generation before; means over seeds. Its rules and their numbers are our"
        " proposals.</p>"
    )
    return "".join(out) + "</section>"


def generations(snowball: Snowball) -> tuple[list[str], list[list[str]]]:
    head = ["chain", "generation", "teacher, %", "student, % [95 %]", "n taught", "purity [95 %]", "AUC", "ECE"]
    body = []
    for p in snowball.points:
        accuracy = f"{percent(p.accuracy)} {limits_of(p.accuracy_lo, p.accuracy_hi, 1)}".strip()
        pure = f"{number(p.purity, 3)} {interval(None if p.purity_lo is None else (p.purity_lo, p.purity_hi))}".strip()
        cells = [_chain_name(snowball, p.chain), str(p.generation), percent(p.teacher_accuracy), accuracy]
        body.append([*cells, f"{p.n_selected:,}", pure, number(p.auc, 3), number(p.ece, 3)])
    return head, body


def detected(snowball: Snowball) -> tuple[list[str], list[list[str]]]:
    head = ["generation", "held-back source, %", "AUC there", "mean trust in the target", "distance", "drift"]
    own = [p for p in snowball.points if p.chain == snowball.points[0].chain]
    body = [
        [
            str(p.generation),
            percent(p.held_back),
            number(p.held_back_auc, 3),
            number(p.trust, 3),
            number(p.distance, 3),
            "–" if p.drift is None else f"{p.drift:+.3f}".replace("-", "−"),
        ]
        for p in own
    ]
    return head, body


def endings(snowball: Snowball) -> list[str]:
    """Says of each seed's chain how it ended."""
    lines = []
    for chain in snowball.chains:
        seed = f"Seed {chain['seed']}: " if len(snowball.chains) > 1 else ""
        ended = f"stopped {chain['stopped']}" if chain["stopped"] else f"ran all {chain['planned']} generations"
        lines.append(f"{seed}the chain {ended}.")
    return lines


def _chain_name(snowball: Snowball, chain: str) -> str:
    """A chain's name; one whose teachers saw gold labels of the target is marked."""
    return figures.name(chain) + (f" {DAGGER}" if any(p.uses_target_gold for p in snowball.points if p.chain == chain) else "")
