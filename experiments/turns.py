"""What the benches share: contestants take turns, and the result is one JSON object."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from typing import Any

from experiments import main as cli

PACKAGES = ("jax", "flax", "torch", "transformers", "peft", "trl")


def take_turns(contestants: Mapping[str, Callable[[], Any]], repeats: int) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Seconds of each contestant's counted turns, and what its last one returned."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    results = {}
    for turn in range(repeats + 1):
        for name, contestant in contestants.items():
            time.sleep(0.5)  # the threads of the one before spin a while in wait of more work
            began = time.perf_counter()
            results[name] = contestant()
            took = time.perf_counter() - began
            cli.say(f"turn {turn} {name}: {took:.2f} s" + (" (does not count)" if not turn else ""))
            if turn:
                seconds[name].append(took)
    return seconds, results


def summary(
    bench: str,
    case: str,
    seconds: Mapping[str, Sequence[float]],
    tokens: int,
    *,
    unfair: Sequence[str] = (),
    versions: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The JSON object; ratios are of medians.

    Args:
        bench, case: what was measured.
        seconds: from `take_turns`; one contestant is "ours".
        tokens: of a turn.
        unfair: peers that know what no user knows; they are told and given a ratio of their own.
        versions: of packages beside those installed here.
    """
    import jax

    speed = {name: [tokens / s for s in each] for name, each in seconds.items()}
    median = {name: statistics.median(each) for name, each in speed.items()}
    fair = [value for name, value in median.items() if name != "ours" and name not in unfair]
    found = {
        "bench": bench,
        "case": case,
        "ours": {"tokens_per_s": [round(v, 1) for v in speed["ours"]]},
        "peers": {name: [round(v, 1) for v in each] for name, each in speed.items() if name != "ours"},
        "ratio_best_peer": round(median["ours"] / max(fair), 3),
        "versions": {name: metadata.version(name) for name in PACKAGES} | dict(versions or {}),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {jax.device_count()} x {jax.devices()[0].device_kind}",
    }
    if unfair:
        found["ratio_best_unfair_peer"] = round(median["ours"] / max(median[name] for name in unfair), 3)
    return found
