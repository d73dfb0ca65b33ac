"""Training metrics as they come: `metrics.jsonl` for programs, TensorBoard events for people."""

import json
from collections.abc import Mapping
from typing import Any

from etils import epath


class Writer:
    """Appends one line for each step of each stage; `writer(stage, step, metrics)`.

    A stage that starts again from a checkpoint first takes back its lines at and behind that step, so that a killed and
    resumed run leaves the same lines as one that was not. For the same reason metrics named `speed/...`, which come from a
    clock, are among the events only.

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

    def __call__(self, stage: str, step: int, metrics: Mapping[str, float]) -> None:
        if stage not in self.started:
            self._start(stage, step)
        lasting = {name: round(value, 8) for name, value in sorted(metrics.items()) if not name.startswith("speed/")}
        line = json.dumps({"stage": stage, "step": step, **lasting})
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

    def _start(self, stage: str, step: int) -> None:
        self.started.add(stage)
        if self.path.exists():
            lines = self.path.read_text().splitlines()
            kept = [
                line
                for line in lines
                if _whole(line) and not (json.loads(line)["stage"] == stage and json.loads(line)["step"] >= step)
            ]
            if len(kept) < len(lines):
                self.path.write_text("".join(line + "\n" for line in kept))
        if self.tensorboard:
            from tensorboardX import SummaryWriter

            self.events[stage] = SummaryWriter(str(self.folder / "tensorboard" / stage.replace(" ", "_")), purge_step=step)


def _whole(line: str) -> bool:
    """A kill can leave half a line."""
    try:
        return bool(json.loads(line))
    except ValueError:
        return False
