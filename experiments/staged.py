"""Staged sweeps: ordinary runs over one store, one for each combination of config values.

What the points of such a sweep have in common, as a rule all of the teacher's stages, is computed once. A killed sweep that is
run again computes what is missing. Each point is `experiments.main.run` under a workdir of its own,
<workdir>/staged/points/<settings>, with its whole report; <workdir>/staged holds the table over all of them.

Such a sweep reports and does not choose: what its table compares is measured with the gold answers of the test questions.
"""

import itertools
import json
import os
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from experiments import main as cli

MAX_NAME = 80  # characters of a folder's name


def sweep(config: ConfigDict, texts: Sequence[str], method: str) -> str:
    """Runs every point of a staged sweep and writes the table; returns its folder.

    Args:
        config: what all points start from.
        texts: axes, `key=value,value,...`.
        method: whose numbers are told, "" = the row that uses `trust.name`.

    Raises:
        ValueError: whatever is wrong with an axis, or with a point's config, data or models.
    """
    from w2s_jax import processes, sweep_page, typesetting

    began = time.monotonic()
    axes = read(config, texts)
    settings = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    configs = [changed(config, one) for one in settings]
    method = method_of(settings, configs, method)  # which checks all points before the first of them runs
    workdir, store = cli.folders(config)
    folder = os.path.join(workdir, "staged")
    reports = []
    for number, (one, own) in enumerate(zip(settings, configs, strict=True)):
        place = os.path.join(folder, "points", folder_name(one))
        if processes.is_first():
            cli.say(f"point {number} of {len(settings)}: {told(one)}")
        try:
            reports.append(cli.run(own, workdir=place, store=store, tell=cli.keep_silent))
        except ValueError as error:
            raise ValueError(f"at {told(one)}: {error}") from error
    if not processes.is_first():
        processes.barrier("sweep written")
        return folder
    summary = tuple(summary_of(report, method) for report in reports)
    found = sweep_page.Staged(axes, tuple(settings), method, summary, tuple(os.path.relpath(r, folder) for r in reports))
    sweep_page.write_points(folder, found, title=f"{config.name}: a staged sweep of {len(settings)} runs")
    top, body = sweep_page.points_table(found)
    print("\n".join(typesetting.aligned([top, *body])))
    cli.say(f"{sweep_page.note_on_points(found)}\nsweep: {folder}/index.html ({time.monotonic() - began:.0f} s)")
    processes.barrier("sweep written")
    return folder


# ---- Axes ------------------------------------------------------------------------------------------------------------


def read(config: ConfigDict, texts: Sequence[str]) -> dict[str, tuple]:
    """The axes of texts `key=value,value,...`: dotted key -> values.

    Raises:
        ValueError: a key that the config does not have, or that is given twice; fewer than two values, a value twice, or one
            of another type.
    """
    found: dict[str, tuple] = {}
    for text in texts:
        key, _, given = text.partition("=")
        key, words, flag = key.removeprefix("config."), split(given), f"--staged={text}"
        if problem := cli.wrong_key(config, key):
            raise ValueError(f"{flag}: {problem}")
        if key in found:
            raise ValueError(f"{flag}: {key} is given twice; give all its values at once")
        if len(words) < 2:
            raise ValueError(
                f"{flag}: an axis has two values or more, such as --staged={key}=a,b; one value for all points is set with "
                f"--config.{key}={given or '...'}"
            )
        try:
            found[key] = tuple(read_value(config, key, word) for word in words)
        except ValueError as error:
            raise ValueError(f"{flag}: {error}") from None
        if len(set(found[key])) < len(words):
            raise ValueError(f"{flag}: a value is there twice; give each once")
    return found


def split(text: str) -> list[str]:
    """The values of an axis; commas within parentheses or quotes part none.

    >>> split("1e-4,3e-4"), split("(-1,),(0, -1)"), split("")
    (['1e-4', '3e-4'], ['(-1,)', '(0, -1)'], [])
    """
    words = re.findall(r"""(?:\([^()]*(?:\([^()]*\)[^()]*)*\)|'[^']*'|"[^"]*"|[^,])+""", text)
    return [word.strip() for word in words if word.strip()]


def read_value(config: ConfigDict, key: str, text: str) -> Any:
    """The value of a key that a text says, of the type that it has in the config."""
    own: Any = config.copy_and_resolve_references()
    cli.set_key(own, key, text)
    for word in key.split("."):
        own = own[word]
    return own


def changed(config: ConfigDict, one: Mapping[str, Any]) -> ConfigDict:
    """The config of a point."""
    own = config.copy_and_resolve_references()
    own.update_from_flattened_dict(dict(one))
    return own


# ---- Points ----------------------------------------------------------------------------------------------------------


def method_of(settings: Sequence[Mapping[str, Any]], configs: Sequence[ConfigDict], method: str) -> str:
    """The method whose numbers are told, once every point's config has been found sound.

    Raises:
        ValueError: a point's config is wrong, or has no such method; a chain of students is no point.
    """
    from w2s_jax.settings import check

    for one, own in zip(settings, configs, strict=True):
        try:
            rows = check(own)
        except ValueError as error:
            raise ValueError(f"at {told(one)}: {error}") from None
        if own.chain.models:
            raise ValueError(
                f"at {told(one)}: chain.models={own.chain.models!r}: a staged sweep is of one student; set it to ()"
            )
        there = [row.method for row in rows]
        method = method or next((row.method for row in rows if row.leads), "")
        if method not in there:
            raise ValueError(
                f"at {told(one)}: there is no method {method!r} to tell of; name one with --method: {', '.join(there)}"
            )
    return method


def told(one: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in one.items())


def folder_name(one: Mapping[str, Any]) -> str:
    """The name of a point's folder: the same for the same settings, whatever the other points are.

    >>> folder_name({"select.n": 100, "student.training.lr": 1e-4})
    'select.n=100,student.training.lr=0.0001'
    """
    from w2s_jax import files

    plain = ",".join(f"{key}={value}" for key, value in one.items())
    name = re.sub(r"[^\w.=,+-]+", "-", plain)[:MAX_NAME]
    return name if name == plain else f"{name}-{files.digest(plain)[:8]}"


def summary_of(report: str, method: str) -> dict[str, Any]:
    """A method's line of a run's recovery.json.

    Raises:
        ValueError: the run has none, as where a method needs gold answers that the target does not have.
    """
    with open(os.path.join(report, "recovery.json"), encoding="utf-8") as file:
        summary = json.load(file)["summary"]
    lines = {line["method"]: line for line in summary}
    if method not in lines:
        raise ValueError(f"{report} has no method {method!r}; name one that it has with --method: {', '.join(lines)}")
    return lines[method]
