"""Sweeps: a grid of trust heads, trained in few programs, of which one is chosen; or a table over whole runs.

    python -m experiments.sweep --config=experiments/configs/quickstart.py \
        --axis=lr=1e-4,3e-4,1e-3 --axis=seed=0,1,2,3 --axis=dropout=0,0.1,0.3 --outer=width=64,256

    python -m experiments.sweep --config=experiments/configs/quickstart.py \
        --staged=select.n=100,200,400 --staged=student.training.lr=1e-4,3e-4

An `--axis` is compiled: all its values are trained side by side in one program, on all devices of the mesh. There are seed,
lr, weight_decay, dropout, drop_path, class_weight, label_noise, source_rows (0 = all) and layer (of observe.layers, one each).
An `--outer` axis is a static shape, and each combination of values a program of its own: head, width, blocks, expansion, epochs
and batch_rows. What is not varied stands in config.trust.neural.

The teacher answers source and target once; a run of the same config and store has done so already. <workdir>/sweep then holds
the table (sweep.json, sweep.csv, sweep.md, index.html) and `best`: the best head, which a run uses as it is with
--config.trust.from_=<workdir>/sweep/best, and flags.txt, with which a run fits it again:

    python -m experiments.main $(cat <workdir>/sweep/best/flags.txt)

A `--staged` axis is any key of the config, and each combination of values an ordinary run of all its seeds over one store:
stages that runs have in common are computed once. <workdir>/staged holds the same four files, with what `--method` reached at
each point, and the points' own reports. It reports and chooses nothing, see `experiments/staged.py`.

A killed sweep continues where it stopped: with its chunk of heads, or its run's stage.
"""

import os
import re
import sys

from absl import app, flags
from ml_collections import ConfigDict

from experiments import main as cli
from experiments import staged

AXIS = flags.DEFINE_multi_string("axis", [], "A compiled axis, name=value,value,...; several times for several.")
OUTER = flags.DEFINE_multi_string("outer", [], "An axis of static shapes, name=value,value,...")
MOST = flags.DEFINE_integer("together", 64, "Heads of a program at most; fewer where memory is short.", lower_bound=1)
STAGED = flags.DEFINE_multi_string("staged", [], "A config key and its values, key=value,value,...: a run for each.")
METHOD = flags.DEFINE_string("method", "", "Of a staged sweep: the method that is told; by default the one of trust.name.")
ON_SCREEN = 10  # heads


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"{argv[1]!r} is no flag; settings are written --config.key=value")
    cli.guard(lambda: of_flags(cli.CONFIG.value, AXIS.value, OUTER.value, STAGED.value, METHOD.value))


def of_flags(config: ConfigDict, axes: list[str], outer: list[str], points: list[str], method: str) -> str:
    """The sweep of the kind that the flags are of."""
    refuse_both(axes, outer, points, method)
    cli.refuse_study(config)
    if points:
        return staged.sweep(config, points, method)
    return sweep(config, axes, outer, most=MOST.value, given=config_flags(sys.argv[1:]))


def refuse_both(axes: list[str], outer: list[str], points: list[str], method: str) -> None:
    """Makes sure that the flags are of one kind of sweep.

    Raises:
        ValueError: they are of both.
    """
    if points and (axes or outer):
        flag = f"--axis={axes[0]}" if axes else f"--outer={outer[0]}"
        raise ValueError(
            f"{flag} varies the heads of one run and chooses among them before a student is taught, --staged={points[0]} "
            "varies whole runs and chooses nothing: sweep the heads first, then the runs, with "
            "--config.trust.from_=<workdir>/sweep/best"
        )
    if method and not points:
        raise ValueError(f"--method={method} is for the table of a staged sweep: add --staged=key=value,value, or drop it")


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
        processes.barrier("sweep written")
        return folder
    export(os.path.join(folder, "best"), swept, given)
    command = f"python -m experiments.main $(cat {folder}/best/flags.txt)"
    sweep_page.write_heads(folder, swept, title=f"{config.name}: a sweep of {len(swept.head)} trust heads", command=command)
    top, body = sweep_page.heads_table(swept, sweep_page.ranked(swept)[:ON_SCREEN])
    print("\n".join(typesetting.aligned([top, *body])))
    cli.say(f"{sweep_page.note_on_heads(swept)}\nsweep: {folder}/index.html\nbest head: {command}")
    processes.barrier("sweep written")
    return folder


def export(folder: str, swept, given: list[str]) -> None:
    """Writes the best head: its artefact, and the flags of a run that fits it again, one to a line."""
    from w2s_jax.trust import artefact

    artefact.copy(swept.chosen.path / "trust", folder)
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
