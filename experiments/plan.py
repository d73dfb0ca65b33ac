"""Plans a run: compiles all of its programs for a topology on shapes alone, and says what they need and whether they fit.

    python -m experiments.plan --config=... --topology=v5e:4x4 | v5p:2x2x1 | gpu:h200x8 | cpu:2 [--json=FILE]

Nothing is downloaded and no weights are read: a model is known by its hub id, its `config.json`, or its pretrain section. TPU
topologies need libtpu (`pip install 'w2s_jax[plan]'`) and no TPU. Where something does not fit, the smallest change of the
config with which it does is sought (--nosearch leaves that out).
"""

import dataclasses
import sys

from absl import app, flags

from experiments import main as cli
from experiments import result

FLAGS = flags.FLAGS
TOPOLOGY = flags.DEFINE_string("topology", None, "Devices: v5e:4x4, v5p:2x2x1, v6e:2x2, gpu:h200x8, cpu:2.", required=True)
STAGES = flags.DEFINE_list("stages", [], "Plan these stages only: pretrain, answer, observe, gather, calibrate, teach, score.")
SEARCH = flags.DEFINE_bool("search", True, "Where something does not fit, seek the smallest change of the config that does.")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"{argv[1]!r} is no flag; settings are written --config.key=value")
    try:
        found = plan(cli.CONFIG.value, TOPOLOGY.value, stages=STAGES.value, search=SEARCH.value)
    except (ValueError, OSError) as error:
        if cli.TRACEBACK.value:
            raise
        sys.exit(f"error: {error}\n(--traceback shows where)")
    print(report(found))
    result.keep(found)
    sys.exit(0 if found["fits"] or found["change"] else 1)


def plan(config, word: str, *, stages=(), search: bool = True) -> dict:
    """The plan of a config for a topology, as JSON has it.

    Raises:
        ValueError: no such topology, stage or model, or a mesh that does not divide.
    """
    cli.quiet_libraries()
    from w2s_jax.models import sharding
    from w2s_jax.planning import search as seeking
    from w2s_jax.planning import topology
    from w2s_jax.planning.phases import judges, links_of, phases
    from w2s_jax.settings import check

    devices = topology.find(word)
    planner = seeking.Planner(devices, cli.say)
    programs = phases(config, devices.devices)
    rows = check(config, sharding.make_mesh(**config.mesh, devices=devices.devices))
    known = dict.fromkeys(phase.stage for phase in programs)
    if unknown := [stage for stage in stages if stage not in known]:
        raise ValueError(f"--stages={','.join(unknown)}: this run has {', '.join(known)}")
    programs = [phase for phase in programs if not stages or phase.stage in stages]
    budgets = [planner.budget(phase) for phase in programs]
    unfit = [phase for phase, found in zip(programs, budgets) if not found.fits]
    change, after = None, []
    if unfit and search:
        change = seeking.smallest_change(config, planner, unfit)
    if change:
        after = [planner.budget(phase) for phase in phases(seeking.changed(config, change), devices.devices)]
    import jax

    return {
        "config": config.name,
        "models": [config.teacher.model, *(link.student for link in links_of(config))],
        "judges": {name: word for name, (_, word) in judges(rows).items()},
        "mesh": config.mesh.to_dict(),
        "topology": word,
        "num_devices": len(devices.devices),
        "device": dataclasses.asdict(devices.chip),
        "exact": devices.exact,
        "versions": {"jax": jax.__version__, "compiler": devices.compiler},
        "phases": [dataclasses.asdict(found) | {"fits": found.fits} for found in budgets],
        "fits": not unfit,
        "searched": bool(unfit and search),
        "change": change,
        "phases_after": [dataclasses.asdict(found) | {"fits": found.fits} for found in after],
    }


# ---- The table -------------------------------------------------------------------------------------------------------


def report(found: dict) -> str:
    """The plan in words, at most 120 columns wide."""
    mesh = ", ".join(f"{axis}={size}" for axis, size in found["mesh"].items())
    each = size(found["device"]["memory"])
    lines = [
        f"{found['config']}: {' -> '.join(found['models'])}",
        f"{found['topology']}: {found['num_devices']} x {found['device']['kind']} with {each} each; mesh {mesh}",
        f"jax {found['versions']['jax']}, {found['versions']['compiler']}" + ("" if found["exact"] else "; " + ESTIMATE),
        "",
        *(f"{name}: {word}" for name, word in found["judges"].items()),
        *([""] if found["judges"] else []),
        *table(found["phases"]),
    ]
    if any(phase["output"] is not None and phase["flops"] is None for phase in found["phases"]):
        unread = f"this jaxlib cannot read what {found['versions']['compiler']} writes"
        lines += ["", f"no FLOPs where {unread}: pip install 'w2s_jax[plan]' installs the version that belongs to it"]
    if found["fits"]:
        lines += ["", "everything fits"]
    elif found["change"]:
        flags_to_add = " ".join(f"--config.{key}={value}" for key, value in found["change"].items())
        lines += ["", "does not fit; the smallest change that does:", f"  {flags_to_add}", "", *table(found["phases_after"])]
    elif found["searched"]:
        lines += ["", "does not fit, and nothing that was tried does: take more or larger devices, or a shorter row_length"]
    else:
        lines += ["", "does not fit"]
    return "\n".join(lines)


ESTIMATE = "an ESTIMATE: the CPU's compiler stands in, rates are the data sheet's"
COLUMNS = "phase arguments temporary output beside needs of fits FLOPs moved roofline compiled".split()


def table(phases: list[dict]) -> list[str]:
    """A line for each program; figures are of one device and one call."""
    rows = [tuple(COLUMNS)] + [
        (
            phase["phase"],
            *(size(phase[name]) for name in ("arguments", "temporaries", "output", "beside", "needs", "memory")),
            "yes" if phase["fits"] else "NO",
            scaled(phase["flops"], "", ("", "k", "M", "G", "T", "P"), 1000),
            size(phase["moved"]),
            scaled(phase["roofline_s"] and phase["roofline_s"] * 1e9, " ", ("ns", "µs", "ms", "s"), 1000),
            f"{phase['wall_s']:.0f} s",
        )
        for phase in phases
    ]
    widths = [max(len(row[k]) for row in rows) for k in range(len(COLUMNS))]
    return [
        "  ".join(cell.ljust(width) if k == 0 else cell.rjust(width) for k, (cell, width) in enumerate(zip(row, widths)))
        for row in rows
    ]


def size(num_bytes: float | None) -> str:
    return scaled(num_bytes, " ", ("B", "KiB", "MiB", "GiB", "TiB"), 1024)


def scaled(value: float | None, space: str, units: tuple[str, ...], step: int) -> str:
    """A number with three digits and its unit, "-" where it is not known.

    >>> scaled(2.5e9, "", ("", "k", "M", "G"), 1000), scaled(None, " ", ("s",), 1)
    ('2.50G', '-')
    """
    if value is None:
        return "-"
    power = 0
    while value >= step and power < len(units) - 1:
        value, power = value / step, power + 1
    digits = 0 if value >= 100 or (value == int(value) and not power) else 1 if value >= 10 else 2
    return f"{value:.{digits}f}{space}{units[power]}".rstrip()


if __name__ == "__main__":
    app.run(main, flags_parser=cli.parse)
