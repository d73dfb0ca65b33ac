"""Runs a study of theory and writes its page: `python -m experiments.theory --config=experiments/configs/theory_linear.py`.

No store takes part: everything is computed afresh, but for what finished runs left in their reports. A language model takes
part only where texts are embedded (`theory_expansion.py:texts`).
<workdir>/study then holds study.json, study.md, data/*.csv and index.html.
"""

import importlib
import os
import time

from absl import app
from ml_collections import ConfigDict

from experiments import main as cli

STUDIES = {
    "theory_expansion": "w2s_jax.theory.expansion",
    "theory_gains": "w2s_jax.theory.gains",
    "theory_linear": "w2s_jax.theory.linear",
}
"""A config's `name` -> the module whose `study` takes all its other keys."""


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"{argv[1]!r} is no flag; settings are written --config.key=value")
    cli.guard(lambda: run(cli.CONFIG.value))


def run(config: ConfigDict) -> str:
    """Runs the config's study; returns the folder of its page.

    Raises:
        ValueError: a config without a study, or settings that the study refuses.
    """
    from w2s_jax import files, processes, study_page
    from w2s_jax.settings import spelled

    if config.name not in STUDIES:
        raise ValueError(
            f"config {config.name!r} is no study; allowed are --config=experiments/configs/" + ".py, ".join(STUDIES) + ".py"
        )
    workdir, _ = cli.folders(config)
    folder = os.path.join(workdir, "study")
    if not processes.is_first():
        processes.barrier("study written")
        return folder
    files.writable(folder, "--workdir")  # said before anything is computed
    began = time.monotonic()
    keywords = {name: value for name, value in config.to_dict().items() if name != "name"}
    found = importlib.import_module(STUDIES[config.name]).study(**keywords)
    page = study_page.write(folder, found, context={"config": spelled(config)})
    print(study_page.terminal_tables(found))
    cli.say(f"study: {page} ({time.monotonic() - began:.0f} s)")
    processes.barrier("study written")
    return folder


if __name__ == "__main__":
    app.run(main, flags_parser=cli.parse)
