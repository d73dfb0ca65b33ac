"""Scores a new pool with a fitted trust function: how likely is each of the teacher's answers to be right?

    python -m experiments.score --trust=DIR [--config=...] [--teacher=MODEL] [--task=WORD] [--role=target] [--out=FILE]

DIR holds `trust.json`: a run leaves one at <workdir>/trust/<method>. The config says how the teacher is asked: take that run's.
One JSON line comes out for each answer: id, answer, score. No gold answers are read, but for demonstrations where the config
asks for shots.
"""

import json
import sys

from absl import app, flags
from ml_collections import ConfigDict

from experiments import main as cli
from experiments.configs import base

FLAGS = flags.FLAGS
TRUST = flags.DEFINE_string("trust", None, "Folder of the fitted trust function.", required=True)
TEACHER = flags.DEFINE_string("teacher", None, "Model that answers; by default the config's.")
TASK = flags.DEFINE_string("task", None, "Task's word; by default the config's.")
ROLE = flags.DEFINE_enum("role", "target", ["source", "target", "test"], "Role to score.")
OUT = flags.DEFINE_string("out", None, "File for the JSON lines; by default standard output.")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"{argv[1]!r} is no flag; settings are written --config.key=value")
    config = cli.CONFIG.value
    config.teacher.model = TEACHER.value or config.teacher.model
    if TASK.value and TASK.value != config.tasks.name:
        config.tasks = ConfigDict({"name": TASK.value, **base.keywords("task", TASK.value)})
    cli.guard(lambda: score(config))


def score(config) -> None:
    """Writes one JSON line for each answer.

    Raises:
        ValueError: whatever the trust function, the task or the teacher is refused for.
    """
    from w2s_jax import pipeline, processes
    from w2s_jax.run import Run, find_model

    workdir, store = cli.folders(config)
    run = Run(config, config.seeds[0], cli.open_store(store, workdir), lambda *metrics: None)
    answers, scores = pipeline.judge(run, find_model(run, config.teacher.model), TRUST.value, role=ROLE.value)
    if not processes.is_first():
        processes.barrier("scores written")
        return
    lines = (
        json.dumps({"id": i, "answer": final, "score": round(float(s), 6)}, ensure_ascii=False) + "\n"
        for i, final, s in zip(answers.question_id, answers.final, scores, strict=True)
    )
    if OUT.value:
        with open(OUT.value, "w", encoding="utf-8") as file:
            file.writelines(lines)
    else:
        sys.stdout.writelines(lines)
    processes.barrier("scores written")


if __name__ == "__main__":
    app.run(main, flags_parser=cli.parse)
