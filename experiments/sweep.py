"""Trains a grid of trust heads in few compiled programs, and chooses one on held-back source rows.

    python -m experiments.sweep --config=experiments/configs/quickstart.py \
        --axis=lr=1e-4,3e-4,1e-3 --axis=seed=0,1,2,3 --axis=dropout=0,0.1,0.3 --outer=width=64,256

An `--axis` is compiled: all its values are trained side by side in one program, on all devices of the mesh. There are seed,
lr, weight_decay, dropout, drop_path, class_weight, label_noise, source_rows (0 = all) and layer (of observe.layers, one each).
An `--outer` axis is a static shape, and each combination of values a program of its own: head, width, blocks, expansion, epochs
and batch_rows. What is not varied stands in config.trust.neural. Settings of other stages are no axes: run experiments.main
once for each value, over one --store.

The teacher answers source and target once; a run of the same config and store has done so already. <workdir>/sweep then holds
the table (sweep.json, sweep.csv, sweep.md, index.html) and `best`: the best head, which a run uses as it is with
--config.trust.from_=<workdir>/sweep/best, and flags.txt, with which a run fits it again:

    python -m experiments.main $(cat <workdir>/sweep/best/flags.txt)

A killed sweep continues with the chunk of heads where it stopped.
"""

import os
import re
import sys

from absl import app, flags
from ml_collections import ConfigDict

from experiments import main as cli

AXIS = flags.DEFINE_multi_string("axis", [], "A compiled axis, name=value,value,...; several times for several.")
OUTER = flags.DEFINE_multi_string("outer", [], "An axis of static shapes, name=value,value,...")
MOST = flags.DEFINE_integer("together", 64, "Heads of a program at most; fewer where memory is short.", lower_bound=1)
ON_SCREEN = 10  # heads


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"{argv[1]!r} is no flag; settings are written --config.key=value")
    cli.guard(lambda: sweep(cli.CONFIG.value, AXIS.value, OUTER.value, most=MOST.value, given=config_flags(sys.argv[1:])))


def sweep(config: ConfigDict, axes: list[str], outer: list[str], *, most: int, given: list[str]) -> str:
    """Runs a sweep and writes what it found; returns the folder.

    Args:
        config: of the run that the head is for; its first seed is used.
        axes, outer: texts `name=value,value,...`.
        most: heads of a program.
        given: the flags that the config came from, to be told with the best head's own.

    Raises:
        ValueError: whatever is wrong with the axes, the config, its data or its models.
    """
    from w2s_jax import grid, processes, sweep_page, typesetting
    from w2s_jax.run import Run, find_model
    from w2s_jax.settings import check

    found = grid.read(config, axes, outer)
    check(config)
    workdir, store = cli.folders(config)
    run = Run(config, config.seeds[0], cli.open_store(store, workdir), cli.keep_silent)
    for one in grid.combinations(found):
        grid.member(config, one)  # a value out of range is said before the teacher is asked
    swept = grid.sweep(run, find_model(run, config.teacher.model), found, most=most)
    folder = os.path.join(workdir, "sweep")
    if not processes.is_first():
        return folder
    export(os.path.join(folder, "best"), swept, given)
    command = f"python -m experiments.main $(cat {folder}/best/flags.txt)"
    sweep_page.write(folder, swept, title=f"{config.name}: a sweep of {len(swept.head)} trust heads", command=command)
    top, body = sweep_page.table(swept, sweep_page.ranked(swept)[:ON_SCREEN])
    print("\n".join(typesetting.aligned([top, *body])))
    cli.say(f"{sweep_page.note_on(swept)}\nsweep: {folder}/index.html\nbest head: {command}")
    return folder


def export(folder: str, swept, given: list[str]) -> None:
    """Writes the best head: its artefact, and the flags of a run that fits it again, one to a line."""
    from w2s_jax.trust import artefact

    os.makedirs(folder, exist_ok=True)
    for name in artefact.FILES:
        with open(os.path.join(folder, name), "wb") as file:
            file.write((swept.chosen.path / "trust" / name).read_bytes())
    lines = [*given, *(f"--{path}={value}" for path, value in settings(swept.head[swept.best]).items())]
    with open(os.path.join(folder, "flags.txt"), "w", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")


def settings(head) -> dict[str, str]:
    """The config keys of a head of the sweep and their values, as flags have them."""
    layer = {"config.observe.layers": f"({head['layer']!r},)"} if "layer" in head else {}
    return layer | {f"config.trust.neural.{name}": str(value) for name, value in head.items() if name != "layer"}


def config_flags(arguments: list[str]) -> list[str]:
    """The flags that name and change the config, each one word without spaces."""
    words, found = iter(arguments), []
    for word in words:
        if re.match(r"--?config(\.[\w.]+)?(=|$)", word):
            found.append(word if "=" in word else f"{word}={next(words, '')}")
    return [re.sub(r"\s+", "", flag) if "(" in flag else flag for flag in found]


if __name__ == "__main__":
    app.run(main, flags_parser=cli.parse)
