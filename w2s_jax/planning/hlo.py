"""What one device does when a compiled program runs: matrix products, memory traffic, what others send it.

XLA's own `cost_analysis()` counts the body of a loop once, so that a scan over forty layers looks forty times cheaper than it
is. Here the text of the compiled program (`compiled.as_text()`) is walked with each loop's number of rounds:

    flops     two for each multiplication in a matrix product or convolution; elementwise work is not counted
    bytes     what instructions read from and write to main memory: a fusion is one instruction, a slice of an array costs the
              slice, on-chip memory (any memory space but 0) costs nothing
    received  what collectives hand to the device, in bytes

Source: the conventions of XLA's HloCostAnalysis, but for loops.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping

ARRAY = re.compile(r"(\w+)\[([\d,]*)\](?:\{([^}]*)\})?")
HEADER = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{$")
INSTRUCTION = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = ")

FREE = frozenset(
    "parameter constant get-tuple-element tuple bitcast after-all partition-id replica-id opt-barrier async-update async-done "
    "domain iota".split()
)
"""Instructions that touch no memory: they name what is there, or are written by whoever reads them."""
FREE_CALLS = ("AllocateBuffer", "ConcatBitcast", "AsyncCollectiveStart", "AsyncCollectiveDone", "AssumeGatherIndicesInBound")
"""Custom calls that touch none either."""

SLICES = ("dynamic-slice", "slice", "gather")
VIEWS = ("bitcast", "convert", "copy", "reshape", "transpose")
COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
CHAIN, CHAIN_END = "chain_id=", '"AsyncCollectiveDone"'
"""A TPU spreads a collective over several fusions, of which each names it again; it counts in the last one."""

Computations = Mapping[str, Mapping[str, "Instruction"]]


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of one run on one device, see the module: operations, bytes, bytes."""

    flops: float = 0.0
    bytes: float = 0.0
    received: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.flops + other.flops, self.bytes + other.bytes, self.received + other.received)

    def __mul__(self, times: float) -> "Cost":
        return Cost(self.flops * times, self.bytes * times, self.received * times)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
        name, shape, opcode: as written.
        given: what stands in the parentheses: operands, a parameter's number, a constant's value.
        attributes: what follows them.
        root: whether it is the computation's result.
    """

    name: str
    shape: str
    opcode: str
    given: str
    attributes: str
    root: bool

    @property
    def operands(self) -> tuple[str, ...]:
        return tuple(re.findall(r"%([\w.\-]+)", self.given))

    def called(self, key: str) -> str:
        """The computation that an attribute such as `body` names, or ""."""
        match = re.search(rf"\b{key}=%?([\w.\-]+)", self.attributes)
        return match.group(1) if match else ""


def cost(text: str) -> Cost:
    """Of a compiled program, on each of the devices that it was compiled for."""
    computations, entry = parse(text)
    return Walk(computations).run(entry)


def num_instructions(text: str) -> int:
    """How much there was to compile: the lines of a program, whatever the rounds of its loops."""
    return sum(map(len, parse(text)[0].values()))


def parse(text: str) -> tuple[Computations, str]:
    """The computations of a program by name, and the name of the one that runs first."""
    computations: dict[str, dict[str, Instruction]] = {}
    entry, current = "", None
    for line in text.splitlines():
        if match := HEADER.match(line):
            current = computations.setdefault(match.group(2), {})
            entry = match.group(2) if match.group(1) else entry
        elif current is not None and (match := INSTRUCTION.match(line)):
            current[match.group(2)] = _instruction(line, match)
    return computations, entry


def _instruction(line: str, match: re.Match) -> Instruction:
    start = match.end()
    end = _closing(line, start) if line[start] == "(" else line.index(" ", start)
    opening = line.index("(", end)
    closing = _closing(line, opening)
    return Instruction(
        name=match.group(2),
        shape=line[start:end],
        opcode=line[end:opening].strip(),
        given=line[opening + 1 : closing - 1],
        attributes=line[closing:],
        root=match.group(1) is not None,
    )


def _closing(line: str, opening: int) -> int:
    """The place behind the parenthesis that closes the one at `opening`."""
    depth = 0
    for match in re.compile(r"[()]").finditer(line, opening):
        depth += 1 if match.group() == "(" else -1
        if not depth:
            return match.end()
    raise AssertionError(line)


def lengths(shape: str) -> tuple[int, ...]:
    """The lengths of the axes of an array, or of the first array of a tuple.

    >>> lengths("bf16[2,256]{1,0:T(8,128)}")
    (2, 256)
    """
    match = ARRAY.search(shape)
    assert match, shape
    return tuple(int(n) for n in match.group(2).split(",") if n)


def size(shape: str) -> int:
    """The bytes that an array, or a tuple of them, takes of main memory.

    >>> size("f32[2,3]{1,0}"), size("(bf16[4]{0:T(4)S(1)}, pred[3])")
    (24, 3)
    """
    return sum(_size(*found) for found in ARRAY.findall(shape))


def _size(kind: str, axes: str, layout: str) -> int:
    bits = re.search(r"\d+", kind)
    if kind in ("token", "opaque") or re.search(r"S\([1-9]", layout):
        return 0
    return math.prod(int(n) for n in axes.split(",") if n) * (int(bits.group()) if bits else 8) // 8


class Walk:
    """The costs of a program's computations."""

    def __init__(self, computations: Computations):
        self.computations = computations
        self.run = functools.cache(self._run)

    def _run(self, name: str) -> Cost:
        return sum((self._of(name, instruction) for instruction in self.computations[name].values()), Cost())

    def _of(self, name: str, instruction: Instruction) -> Cost:
        """The cost of an instruction that stands outside fusions."""
        kind = instruction.opcode
        if kind in FREE or any(f'"{free}"' in instruction.attributes for free in FREE_CALLS):
            return Cost()
        if kind == "while":
            body, condition = self.run(instruction.called("body")), self.run(instruction.called("condition"))
            return (body + condition) * self.rounds(instruction)
        if kind == "conditional":
            return max((self.run(branch) for branch in _branches(instruction)), key=lambda found: (found.flops, found.bytes))
        if kind in ("call", "async-start"):
            return self.run(instruction.called("to_apply") or instruction.called("calls"))
        products, received = zip((0.0, 0.0), *self._inside(name, instruction))
        return Cost(sum(products), self._traffic(name, instruction), sum(received))

    def rounds(self, loop: Instruction) -> int:
        """How often a loop runs, at most: what the compiler says, or else what its condition and its counter's step say.

        A condition compares a counter with a bound, beside other things maybe: a loop that writes tokens may end before its
        last step. A loop that the compiler has unrolled advances its counter by more than one. Where no bound is a constant,
        the loop counts once.
        """
        if match := re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.attributes):
            return int(match.group(1))
        body, found = self.computations[loop.called("body")], []
        for counter, bound in self._bounds(loop.called("condition"), {}):
            match = re.search(r"index=(\d+)", counter.attributes)
            found.append(-(-bound // (_step(body, int(match.group(1))) if match else 1)))
        return max(found, default=1)

    def _bounds(self, name: str, given: Mapping[int, Instruction]) -> Iterator[tuple[Instruction, int]]:
        """What a condition compares with a positive constant, and that constant.

        Args:
            name: of the condition, or of a computation that is fused into it.
            given: what the latter is given, by its parameter's number.
        """
        inside = self.computations[name]

        def origin(operand: str) -> Instruction:
            at = inside[operand]
            while at.opcode in VIEWS:
                at = inside[at.operands[0]]
            return given.get(int(at.given), at) if at.opcode == "parameter" else at

        for instruction in inside.values():
            operands = [origin(operand) for operand in instruction.operands]
            if instruction.opcode in ("fusion", "call"):
                called = instruction.called("calls") or instruction.called("to_apply")
                yield from self._bounds(called, dict(enumerate(operands)))
            elif instruction.opcode == "compare":
                bounds = [int(i.given) for i in operands if i.opcode == "constant" and i.given.isdigit()]
                counters = [i for i in operands if i.opcode == "get-tuple-element"]
                if counters and bounds and bounds[0]:
                    yield counters[0], bounds[0]

    def _inside(self, name: str, instruction: Instruction) -> Iterator[tuple[float, float]]:
        """(operations, bytes received) of an instruction, or of those that are fused into it."""
        kind = instruction.opcode
        if kind == "fusion":
            inside = instruction.called("calls")
            ends = any(CHAIN_END in inner.attributes for inner in self.computations[inside].values())
            for inner in self.computations[inside].values():
                if ends or CHAIN not in inner.attributes:
                    yield from self._inside(inside, inner)
        elif kind == "dot" or (kind == "custom-call" and "gemm" in instruction.attributes):
            yield 2.0 * math.prod(lengths(instruction.shape)) * self._terms(name, instruction), 0.0
        elif kind == "convolution":
            given, kernel = (lengths(self._operand(name, instruction, place).shape) for place in (0, 1))
            yield convolution(instruction.attributes, given, kernel, lengths(instruction.shape)), 0.0
        elif kind.removesuffix("-start") in COLLECTIVES:
            last = list(ARRAY.findall(instruction.shape))
            arrays = [found for found in last if found[0] != "u32"] or last
            # A started collective names what it was given first, then what it will return.
            yield 0.0, float(sum(_size(kind, axes, "") for kind, axes, _ in arrays[-len(instruction.operands) :]))

    def _operand(self, name: str, instruction: Instruction, place: int) -> Instruction:
        return self.computations[name][instruction.operands[place]]

    def _terms(self, name: str, product: Instruction) -> int:
        """The number of terms in each sum of a matrix product."""
        left = lengths(self._operand(name, product, 0).shape)
        written = re.search(r'lhs_contracting_dim(?:s=\{|ensions":\[)([^}\]]*)', product.attributes)
        return math.prod(left[int(axis)] for axis in re.findall(r"\d+", written.group(1))) if written else 1

    def _traffic(self, name: str, instruction: Instruction) -> float:
        """Bytes read and written by an instruction that stands outside fusions."""
        kind = instruction.opcode
        if kind.endswith("-done"):
            return size(instruction.shape)
        if kind in SLICES:
            return 2.0 * size(instruction.shape)
        if kind == "slice-start":
            return size(_returned(instruction.shape))
        if kind in ("dynamic-update-slice", "scatter"):
            return 2.0 * size(self._operand(name, instruction, 1 if kind == "dynamic-update-slice" else -1).shape)
        if kind == "fusion":
            inside = self.computations[instruction.called("calls")]
            numbered = {int(i.given): i.name for i in inside.values() if i.opcode == "parameter"}
            read = sum(
                min(size(self.computations[name][operand].shape), _read(self.computations, inside, numbered[place]))
                for place, operand in enumerate(instruction.operands)
            )
            return read + _written(inside)
        read = sum(size(self.computations[name][operand].shape) for operand in instruction.operands)
        return read if kind.endswith("-start") else read + size(instruction.shape)


def _step(body: Mapping[str, Instruction], place: int) -> int:
    """What a loop's body adds to the counter at a place of its tuple; 1 where that cannot be seen."""
    root = next(i for i in body.values() if i.root)
    if root.opcode != "tuple":
        return 1
    at, step = body[root.operands[place]], 0
    while at.opcode in ("add", *VIEWS):
        operands = [body[operand] for operand in at.operands]
        step += sum(int(i.given) for i in operands if i.opcode == "constant")
        at = next((i for i in operands if i.opcode != "constant"), root)
    return max(step, 1) if at.opcode == "get-tuple-element" else 1


def _branches(instruction: Instruction) -> list[str]:
    listed = re.search(r"branch_computations=\{([^}]*)\}", instruction.attributes)
    if listed:
        return re.findall(r"%([\w.\-]+)", listed.group(1))
    return [instruction.called("true_computation"), instruction.called("false_computation")]


def _returned(shape: str) -> str:
    """The array that a started slice will return: the second of (given, returned, ...)."""
    kind, axes, _ = ARRAY.findall(shape)[1]
    return f"{kind}[{axes}]"


def _read(computations: Computations, inside: Mapping[str, Instruction], name: str) -> float:
    """Bytes of a value inside a fusion that its users look at; all of it unless they slice it."""
    total = 0.0
    for user in (i for i in inside.values() if name in i.operands):
        if user.opcode in SLICES and user.operands[0] == name:
            total += math.prod(lengths(user.shape)) * _width(inside[name].shape)
        elif user.opcode == "dynamic-update-slice" and user.operands[0] == name:
            pass  # updated where it lies
        elif (user.opcode == "tuple" and user.root) or CHAIN in user.attributes or CHAIN_END in user.attributes:
            pass  # handed on
        elif user.opcode in VIEWS and not user.root:
            total += _read(computations, inside, user.name) * _width(inside[name].shape) / _width(user.shape)
        elif user.opcode == "fusion":
            inner = computations[user.called("calls")]
            numbered = {int(i.given): i.name for i in inner.values() if i.opcode == "parameter"}
            total += sum(_read(computations, inner, numbered[k]) for k, operand in enumerate(user.operands) if operand == name)
        else:
            return math.inf
    return total


def _width(shape: str) -> float:
    """Bytes of one element."""
    kind, _, _ = ARRAY.findall(shape)[0]
    return _size(kind, "8", "") / 8


def _written(inside: Mapping[str, Instruction]) -> float:
    """Bytes that a fusion writes: its results, but of an array that it updates in place only the update."""
    root = next(i for i in inside.values() if i.root)
    results = [inside[operand] for operand in root.operands] if root.opcode == "tuple" else [root]
    total = 0.0
    for result in results:
        shape = result.shape
        while result.opcode in VIEWS:
            result = inside[result.operands[0]]
        if result.opcode == "dynamic-update-slice":
            update = inside[result.operands[1]].shape
            total += min(size(shape), math.prod(lengths(update)) * _width(shape))
        elif result.opcode != "parameter" and CHAIN not in result.attributes:
            total += size(shape)
    return total


def convolution(attributes: str, given: tuple[int, ...], kernel: tuple[int, ...], result: tuple[int, ...]) -> float:
    """Operations of a convolution, as which the TPU compiler writes matrix products; what falls on padding costs nothing.

    A batch of four products [8, 16] x [16, 32], which runs over it as over an image of which every other pixel is padding:

    >>> window = "window={size=4 stride=3 lhs_dilate=4}, dim_labels=0bf_0io->0bf"
    >>> convolution(window, (4, 8, 16), (4, 16, 32), (4, 8, 32)) == 4 * 2 * 8 * 16 * 32
    True
    """
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", attributes)
    assert labels, attributes
    of_given, of_kernel, of_result = (
        dict(zip(axes, sizes, strict=True)) for axes, sizes in zip(labels.groups(), (given, kernel, result), strict=True)
    )
    window = dict(re.findall(r"(\w+)=([\dx_\-]+)", attributes.partition("window={")[2].partition("}")[0]))
    flops = 2.0 * of_result["b"] * of_result["f"] * of_kernel["i"]
    for axis in range(len(kernel) - 2):
        stride, wide, deep = (
            int(window[name].split("x")[axis]) if name in window else 1 for name in ("stride", "lhs_dilate", "rhs_dilate")
        )
        low = int(window["pad"].split("x")[axis].partition("_")[0]) if "pad" in window else 0
        places = (
            out * stride + k * deep - low for out in range(of_result[str(axis)]) for k in range(of_kernel[str(axis)])
        )  # in the dilated input
        flops *= sum(0 <= place <= (of_given[str(axis)] - 1) * wide and place % wide == 0 for place in places)
    return flops
