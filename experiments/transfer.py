"""The transfer matrix: a trust function fitted on each data set judges the teacher's labels of each.

    python -m experiments.transfer --config=... --sources="('mmlu:validation','arc_easy:train')" [--keep=0.25]

Sets are named as in the tasks section, `dataset:split`, of the config's task; `math|gsm8k:test` is one of another task, and the
labelled questions of a task without data sets are `arithmetic|source`. After a comma, config keys of that set alone, of its
sections tasks and teacher (but `teacher.model`, one for all): `math|gsm8k:test,teacher.style=boxed`.
`--config.tasks.max_source=500` takes at most so many questions of each. The trust functions are those of `methods`; the matrix
is of the first seed. The report is in <workdir>/transfer.
"""

import ast
import time

from absl import app, flags
from ml_collections import ConfigDict

from experiments import main as cli
from experiments.configs import base

SOURCES = flags.DEFINE_string(
    "sources", None, "Tuple of data sets, such as ('mmlu:validation','arc_easy:train').", required=True
)
KEEP = flags.DEFINE_float("keep", 0.25, "Share of a set's questions, the most trusted, whose purity is told.")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"{argv[1]!r} is no flag; settings are written --config.key=value")
    cli.guard(lambda: run(cli.CONFIG.value, entries(SOURCES.value), KEEP.value))


def entries(text: str) -> tuple[str, ...]:
    """The sets that the flag names.

    >>> entries("('mmlu:validation', 'arc_easy:train')")
    ('mmlu:validation', 'arc_easy:train')

    Raises:
        ValueError: it is no tuple of texts.
    """
    try:
        found = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        found = None
    if not isinstance(found, tuple) or not all(isinstance(entry, str) for entry in found):
        raise ValueError(f"--sources={text}: write a tuple of sets, such as ('mmlu:validation','arc_easy:train')")
    return found


def run(config: ConfigDict, sets: tuple[str, ...], keep: float = 0.25) -> str:
    """Measures the matrix and writes its report; returns the report's folder.

    Raises:
        ValueError: whatever is wrong with the config, a set or the teacher.
    """
    from w2s_jax import processes, transfer_page
    from w2s_jax.analysis import transfer
    from w2s_jax.run import Run, find_model
    from w2s_jax.settings import spelled

    cli.refuse_study(config)
    began = time.monotonic()
    workdir, store = cli.folders(config)
    one = Run(config, config.seeds[0], cli.open_store(store, workdir), cli.keep_silent)
    datasets = []
    for entry in sets:
        own, name, benchmark = of_set(config, entry)
        datasets.append(transfer.Dataset(name, benchmark, Run(own, one.seed, one.store, one.log, f"{name} ", one.loaded)))
    transfer.prepare(datasets)  # before a teacher is fetched or trained
    cells = transfer.matrix(datasets, find_model(one, datasets[0].run.config.teacher.model), keep=keep)
    folder = f"{workdir}/transfer"
    if processes.is_first():
        transfer_page.write(folder, cells, transfer.by_tier(cells), context={"config": spelled(config)})
        print(transfer_page.terminal_table(cells, transfer.by_tier(cells)))
        cli.say(f"report: {folder}/index.html ({time.monotonic() - began:.0f} s)")
    processes.barrier("transfer written")
    return folder


def of_set(config: ConfigDict, entry: str) -> tuple[ConfigDict, str, str]:
    """The config of a set, whose source it is; its name, and the benchmark that it is a part of.

    Raises:
        ValueError: a key that the config does not have, a value of another type, or a role that cannot be one's source.
    """
    named, *changes = entry.split(",")
    before, bar, after = named.partition("|")
    word, place = (before, after) if bar else (config.tasks.name, before)
    own = config.copy_and_resolve_references()
    if word != config.tasks.name:
        own.tasks = ConfigDict({"name": word, **base.keywords("task", word)})
        own.tasks.update({k: config.tasks[k] for k in ("root", "max_source") if k in config.tasks and k in own.tasks})
    if "source" in own.tasks:
        own.tasks.update(source=(place,), target=(), test=())
        benchmark = f"{word}|{place.partition(':')[0]}"
    else:
        benchmark = word
        if place != "source":
            raise ValueError(
                f"--sources names {entry!r}: the task {word!r} has no data sets to name, its labelled questions are its "
                f"source: write '{word}|source'"
            )
    for change in changes:
        key, _, value = change.partition("=")
        try:
            cli.set_key(own, key, value)
        except ValueError as error:
            raise ValueError(f"--sources names {entry!r}: {error}") from None
    return own, entry.removeprefix(f"{config.tasks.name}|"), benchmark


if __name__ == "__main__":
    app.run(main, flags_parser=cli.parse)
