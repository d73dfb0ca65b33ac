"""Training metrics as they come: `metrics.jsonl` for programs, TensorBoard events for people."""

import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath

from w2s_jax import files


class Writer:
    """Appends one line for each step of each training; `writer(stage, artefact, step, metrics)`.

    A line is its artefact's: with other settings a stage of the same label makes another artefact, whose lines stand beside
    the first one's. An artefact whose training starts again, from a checkpoint or anew, first loses its lines at and behind
    that step, so that a killed and resumed run leaves the same lines as one that was not. For the same reason metrics named
    `speed/...`, which come from a clock, are among the events only.

    Args:
        folder: the workdir, made if need be.
        tensorboard: whether to write events too, under `tensorboard/<stage>`.
        wandb: a started Weights & Biases run, or None.
    """

    def __init__(self, folder, *, tensorboard: bool = True, wandb: Any = None):
        self.folder = epath.Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.path = self.folder / "metrics.jsonl"
        self.tensorboard, self.wandb = tensorboard, wandb
        self.events: dict[str, Any] = {}
        self.started: set[str] = set()

    def __call__(self, stage: str, artefact: str, step: int, metrics: Mapping[str, float]) -> None:
        if artefact not in self.started:
            self._start(stage, artefact, step)
        lasting = {name: round(value, 8) for name, value in sorted(metrics.items()) if not name.startswith("speed/")}
        line = json.dumps({"stage": stage, "artefact": artefact, "step": step, **lasting})
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(line + "\n")
        for name, value in metrics.items():
            if self.tensorboard:
                self.events[stage].add_scalar(name, value, step)
        if self.wandb is not None:
            self.wandb.log({f"{stage}/{name}": value for name, value in metrics.items()} | {f"{stage}/step": step})

    def close(self) -> None:
        for events in self.events.values():
            events.close()

    def _start(self, stage: str, artefact: str, step: int) -> None:
        self.started.add(artefact)
        if self.path.exists():
            kept = [line for line, read in whole_lines(self.path) if read.get("artefact") != artefact or read["step"] < step]
            if len(kept) < len(self.path.read_text().splitlines()):
                temporary = files.beside(self.path, ".tmp")  # a kill while it is written must not cost other stages' lines
                temporary.write_text("".join(line + "\n" for line in kept))
                os.replace(temporary, self.path)
        if self.tensorboard:
            from tensorboardX import SummaryWriter

            if stage in self.events:
                self.events[stage].close()
            self.events[stage] = SummaryWriter(str(self.folder / "tensorboard" / stage.replace(" ", "_")), purge_step=step)


def whole_lines(path: epath.Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The lines of a `metrics.jsonl` and what they say, without the half line that a kill can leave."""
    for line in path.read_text().splitlines():
        try:
            yield line, json.loads(line)
        except ValueError:
            continue
