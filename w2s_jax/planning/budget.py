"""What a program needs on each device, found by compiling it, against what is there."""

import dataclasses
import math
import re
import time
from typing import Any

import jax

from w2s_jax.planning import hlo
from w2s_jax.planning.phases import Phase
from w2s_jax.planning.topology import GIB, Chip


@dataclasses.dataclass(frozen=True)
class Budget:
    """Of one program, on each device; bytes where nothing else is said.

    Attributes:
        phase: its name.
        arguments: parameters, state, batches.
        temporaries: intermediate results at their peak, and the program itself; None where it does not compile.
        output: results that do not take an argument's place; None likewise.
        beside: what else of the run lies on the device meanwhile.
        needs: all of these together; where it does not compile, what the compiler says that it would need.
        memory: what there is, None = unknown.
        flops: operations of matrix products and convolutions (not those inside Pallas kernels), None where it does not compile
            or cannot be read.
        moved: bytes read from and written to main memory, None likewise.
        received: bytes from other devices, None likewise; their time is in no other figure.
        roofline_s: max(flops / peak, moved / bandwidth): no run is faster. None = unknown.
        instructions: length of the compiled program, None likewise.
        wall_s, cpu_s: what compiling took.
    """

    phase: str
    arguments: int
    temporaries: int | None
    output: int | None
    beside: int
    needs: int
    memory: int | None
    flops: float | None
    moved: float | None
    received: float | None
    roofline_s: float | None
    instructions: int | None
    wall_s: float
    cpu_s: float

    @property
    def fits(self) -> bool:
        return self.memory is None or (self.temporaries is not None and self.needs <= self.memory)


def device_bytes(tree: Any) -> int:
    """What arrays of these shapes and places take on one device."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape) if leaf.sharding else leaf.shape) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def budget(phase: Phase, chip: Chip) -> Budget:
    """Compiles a program, of which nothing is run."""
    wall, cpu = time.perf_counter(), time.process_time()
    arguments, beside = device_bytes(phase.arguments), device_bytes(phase.beside)
    known = {"phase": phase.name, "arguments": arguments, "beside": beside, "memory": chip.memory}
    try:
        compiled = phase.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        unknown = dict.fromkeys(("temporaries", "output", "flops", "moved", "received", "roofline_s", "instructions"))
        spent = {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}
        return Budget(**known, **unknown, **spent, needs=beside + max(arguments, wanted(str(error))))
    stats, text = compiled.memory_analysis(), readable(compiled)
    cost = hlo.cost(text) if text else None
    temporaries = stats.temp_size_in_bytes + stats.generated_code_size_in_bytes
    output = stats.output_size_in_bytes - stats.alias_size_in_bytes
    rated = cost and chip.flops and chip.bandwidth
    return Budget(
        **known,
        temporaries=temporaries,
        output=output,
        needs=arguments + temporaries + output + beside,
        flops=cost and cost.flops,
        moved=cost and cost.bytes,
        received=cost and cost.received,
        roofline_s=max(cost.flops / chip.flops, cost.bytes / chip.bandwidth) if rated else None,
        instructions=hlo.num_instructions(text) if text else None,
        wall_s=time.perf_counter() - wall,
        cpu_s=time.process_time() - cpu,
    )


def readable(compiled: jax.stages.Compiled) -> str:
    """The text of a compiled program; "" where this jaxlib cannot read what another version's libtpu has written."""
    try:
        return compiled.as_text() or ""
    except jax.errors.JaxRuntimeError:
        return ""


def wanted(message: str) -> int:
    """The bytes that the TPU compiler says it would have needed; 0 if it does not say.

    >>> wanted("the total memory required for HLO temporaries (20.50G) exceeds available HBM (15.75G)") / 2**30
    20.5
    """
    match = re.search(r"\(([\d.]+)([KMG])\) exceeds available", message) or re.search(r"[Uu]sed ([\d.]+)([KMG]) of", message)
    return int(float(match[1]) * {"K": 2**10, "M": 2**20, "G": GIB}[match[2]]) if match else 0
