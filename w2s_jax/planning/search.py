"""The smallest change of a config with which everything fits; every step of the search is really compiled.

Knobs, in the order in which they are turned: those that leave results as they are come first.

    mesh         split the models over all devices: fsdp as wide as it goes, then tensor 2, 4, 8, ...
    remat        keep less for the backward pass: dots, full (trainings only; slower)
    rows         half the rows of a batch, again and again; in a training twice the micro-batches, so that a step stays as it is
    param_dtype  bfloat16 parameters where they are not trained themselves (rounds them)

One knob is tried before two, two before three; what cannot fit by its arguments alone is not compiled.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from w2s_jax.planning.budget import Budget, budget, device_bytes
from w2s_jax.planning.phases import Phase, objective_of, phases
from w2s_jax.planning.topology import Topology
from w2s_jax.student import OnPolicy

MAX_COMPILED = 40  # programs that a search compiles before it gives up
Change = Mapping[str, Any]
"""Dotted keys of the config -> values."""


@dataclasses.dataclass
class Planner:
    """Compiles programs for a topology, each once.

    Attributes:
        topology: the devices.
        log: hears what is being compiled.
        known: what has been compiled.
        num_compiled: how many programs that were.
    """

    topology: Topology
    log: Callable[[str], None]
    known: dict[tuple, Budget] = dataclasses.field(default_factory=dict)
    num_compiled: int = 0

    def budget(self, phase: Phase) -> Budget:
        if phase.key not in self.known:
            self.log(f"compiling {phase.name} for {self.topology.word}")
            self.known[phase.key] = budget(phase, self.topology.chip)
            self.num_compiled += 1
        return dataclasses.replace(self.known[phase.key], phase=phase.name)

    def fits(self, phase: Phase) -> bool:
        """Whether a program fits; one whose arguments are too large already is not compiled."""
        memory = self.topology.chip.memory
        if memory is not None and device_bytes((phase.arguments, phase.beside)) > memory:
            return False
        return self.budget(phase).fits


def smallest_change(config: ConfigDict, planner: Planner, unfit: Sequence[Phase]) -> Change | None:
    """The first change in the order of the module with which all programs of a config fit; None if none was found.

    Args:
        config: the config.
        planner: what compiles.
        unfit: its programs that do not fit.
    """
    names = {phase.name for phase in unfit}
    for change in changes(config, unfit, len(planner.topology.devices)):
        try:
            found = phases(changed(config, change), planner.topology.devices)
        except ValueError:
            continue  # rows or dimensions that this mesh does not divide
        # The programs that are known not to fit first: mostly they settle it.
        if all(planner.fits(phase) for phase in sorted(found, key=lambda phase: phase.name not in names)):
            return change
        if planner.num_compiled >= MAX_COMPILED:
            return None
    return None


def changed(config: ConfigDict, change: Change) -> ConfigDict:
    """A copy of a config with some keys set."""
    new = config.copy_and_resolve_references()
    new.update_from_flattened_dict(dict(change))
    return new


def changes(config: ConfigDict, unfit: Sequence[Phase], num_devices: int) -> Iterator[Change]:
    """The changes to try, those that turn few knobs first."""
    knobs = [meshes(config, num_devices)]
    sections = {phase.section: phase.stage for phase in unfit}
    trained = {phase.section for phase in unfit if phase.stage in ("teach", "pretrain")}
    passes = {phase.section for phase in unfit if phase.stage in ("answer", "observe", "gather", "relabel", "score")}
    for section in sections:
        if section in trained:
            knobs += [remats(config, section), micro_batches(config, section)]
        if section in passes:
            knobs.append(fewer_rows(config, section))
        if section in ("teacher", "student") and not (section == "student" and not config.student.training.lora_rank):
            knobs.append(narrow(config, section))
    for num_turned in range(1, len(knobs) + 1):
        for turned in itertools.combinations(knobs, num_turned):
            for steps in itertools.product(*turned):
                yield {key: value for step in steps for key, value in step.items()}


def meshes(config: ConfigDict, num_devices: int) -> list[Change]:
    """All devices, the widest fsdp first."""
    tensors = [1 << k for k in range(num_devices.bit_length()) if num_devices % (1 << k) == 0]
    found = [{"mesh.data": 1, "mesh.fsdp": num_devices // tensor, "mesh.tensor": tensor} for tensor in tensors]
    now = {f"mesh.{axis}": size for axis, size in config.mesh.items()}
    return [mesh for mesh in found if mesh != now]


def remats(config: ConfigDict, section: str) -> list[Change]:
    policies = ("none", "dots", "full")
    return [{f"{section}.remat": word} for word in policies[policies.index(at(config, section).remat) + 1 :]]


def micro_batches(config: ConfigDict, section: str) -> list[Change]:
    """Smaller ones, and more of them to a step; a round of answers fills as many as it needs."""
    training = at(config, section).training
    if section == "student" and isinstance(objective_of(config), OnPolicy):
        return [{f"{section}.training.shape.batch_rows": rows} for rows in halves(training.shape.batch_rows)]
    return [
        {
            f"{section}.training.shape.batch_rows": rows,
            f"{section}.training.accumulation": training.accumulation * training.shape.batch_rows // rows,
        }
        for rows in halves(training.shape.batch_rows)
    ]


def fewer_rows(config: ConfigDict, section: str) -> list[Change]:
    return [{f"{section}.shape.batch_rows": rows} for rows in halves(at(config, section).shape.batch_rows)]


def narrow(config: ConfigDict, section: str) -> list[Change]:
    return [{f"{section}.param_dtype": "bfloat16"}] if at(config, section).param_dtype == "float32" else []


def halves(rows: int) -> list[int]:
    """
    >>> halves(12)
    [6, 3]
    """
    return [rows >> k for k in range(1, rows.bit_length()) if rows % (1 << k) == 0]


def at(config: ConfigDict, path: str) -> ConfigDict:
    for name in path.split("."):
        config = config[name]
    return config
