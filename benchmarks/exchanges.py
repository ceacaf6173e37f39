"""What the devices that run a compiled module communicate: read from the module's text.

A GPU's compiler turns a collective into a start and a done, may wrap it in a computation of its own, combine several
into one of many results or of a concatenation, and unroll loops: so collectives are counted by the arrays that they
exchange, and by how often a run comes to them.
"""

import dataclasses
import math
import re
from collections.abc import Iterator

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")
BYTES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "f16": 2, "bf16": 2, "s32": 4, "u32": 4, "f32": 4}
BYTES |= {"s64": 8, "u64": 8, "f64": 8}

# `%name = (f32[16]{0}, bf16[16,64]{1,0}) custom-call(%operand), attributes`: a type or a tuple of them, the operation.
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.-]+) = (\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\)|\S+) ([\w-]+)\((.*)$")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) .*\{$")
_ARRAY = re.compile(r"\b(pred|[a-z]+[0-9]+[a-z0-9]*)\[([0-9,]*)\]")
_CALLED = re.compile(r"\b(body|condition|calls|to_apply|called_computations|branch_computations|\w+_computation)=")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
# What takes no time, or none that could hide a collective's.
_VIEWS = ("parameter", "constant", "get-tuple-element", "tuple", "bitcast")
_NO_COMPUTE = (*_VIEWS, "after-all", "partition-id", "replica-id")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """A line of a module.

    Attributes:
        results: the type and the number of elements of each array it gives.
        rest: what follows the operation: operands and attributes.
    """

    name: str
    operation: str
    results: tuple[tuple[str, int], ...]
    rest: str


@dataclasses.dataclass(frozen=True)
class Collective:
    """A collective of a module.

    Attributes:
        kind: one of `KINDS`.
        results: the type and the number of elements of each array that it gives a device; of a sum of concatenated
            arrays, of each of these.
        devices: how many communicate.
        times: how often a run of the module comes to it, None where a loop's number of trips is not known.
        meanwhile: what computes between its start and its done, fusions by name; None if it is not asynchronous.
        beside_compute: whether that is work: a matrix product, a kernel, a loop, or an array a quarter as large.
    """

    kind: str
    results: tuple[tuple[str, int], ...]
    devices: int
    times: int | None
    meanwhile: tuple[str, ...] | None
    beside_compute: bool = False

    @property
    def bytes(self) -> int:
        """Of its results."""
        return sum(BYTES[dtype] * size for dtype, size in self.results)

    @property
    def bytes_sent(self) -> float:
        """By each device, each time, as a ring of devices sends them."""
        others = self.devices - 1
        factor = {"all-reduce": 2 * others / self.devices, "reduce-scatter": others, "collective-permute": 1.0}
        return factor.get(self.kind, others / self.devices) * self.bytes


def computations(text: str) -> tuple[dict[str, list[Instruction]], str]:
    """The computations of a module by name, and the name of the first to run."""
    found, entry, now = {}, "", None
    for line in text.splitlines():
        if header := _COMPUTATION.match(line):
            now = found.setdefault(header[2], [])
            entry = header[2] if header[1] else entry
        elif now is not None and (match := _INSTRUCTION.match(line)):
            name, types, operation, rest = match.groups()
            results = tuple(
                (dtype, math.prod(int(d) for d in dims.split(",") if d)) for dtype, dims in _ARRAY.findall(types)
            )
            now.append(Instruction(name, operation, results, rest))
    return found, entry


def of_module(text: str) -> list[Collective]:
    """The collectives of a module that runs on several devices; those of a group of one device are none."""
    found, entry = computations(text)
    partitions = re.search(r"num_partitions=(\d+)", text)
    everyone = int(partitions[1]) if partitions else 1
    times = _times(found, entry)
    collectives = []
    for name, instructions in found.items():
        starts = {instruction.name: place for place, instruction in enumerate(instructions)}
        for place, instruction in enumerate(instructions):
            kind = instruction.operation.removesuffix("-done")
            if kind not in KINDS or name not in times:
                continue
            start, between = instruction, None
            if kind != instruction.operation:
                begun = starts[_operands(instruction)[0]]
                start = instructions[begun]
                between = [i for i in instructions[begun + 1 : place] if _computes(i)]
            devices = _group(start.rest, everyone)
            if devices > 1:
                results = instruction.results
                if kind == "all-reduce" and len(results) == 1:
                    results = _concatenated(start, instructions, found) or results
                meanwhile = None if between is None else tuple(map(_kind, between))
                size = sum(size for _, size in results)
                beside = any(_is_work(i) or 4 * sum(of for _, of in i.results) >= size for i in between or ())
                collectives.append(Collective(kind, results, devices, times[name], meanwhile, beside))
    return collectives


def _concatenated(start: Instruction, instructions: list[Instruction], found) -> tuple[tuple[str, int], ...]:
    """The arrays that were made one for a collective, if they were."""
    by_name = {instruction.name: instruction for instruction in instructions}
    operand = by_name.get(_operands(start)[0])
    while operand is not None and operand.operation in ("bitcast", "copy"):
        operand = by_name.get(_operands(operand)[0])
    if operand is not None and operand.operation == "fusion":
        for called, _ in _callees(operand, found):
            by_name = {instruction.name: instruction for instruction in found[called]}
            operand = found[called][-1]
    if operand is None or operand.operation != "concatenate":
        return ()
    return tuple(result for part in _operands(operand) for result in by_name[part].results)


def _computes(instruction: Instruction) -> bool:
    operation = instruction.operation.removesuffix("-start").removesuffix("-done")
    return operation not in (*_NO_COMPUTE, *KINDS, "async", "copy")


def _kind(instruction: Instruction) -> str:
    """What kind of operation it is: fusions are named by what is in them."""
    return instruction.name.rstrip(".0123456789") if instruction.operation == "fusion" else instruction.operation


def _is_work(instruction: Instruction) -> bool:
    return re.search("gemm|dot|convolution|custom-call|while", _kind(instruction)) is not None


def _operands(instruction: Instruction) -> list[str]:
    return [
        re.findall(r"[\w.-]+", operand)[-1]
        for operand in re.sub(r"/\*.*?\*/|\[[\d,]*\]|\{.*?\}", "", instruction.rest.partition(")")[0]).split(",")
        if operand.strip()
    ]


def _group(rest: str, everyone: int) -> int:
    """How many devices are in a group, in any of the notations."""
    if (match := re.search(r"source_target_pairs=\{(.*?)\}\}", rest)) is not None:
        pairs = re.findall(r"\{?(\d+),(\d+)", match[1])
        return 2 if any(source != target for source, target in pairs) else 1
    if match := re.search(r"replica_groups=\{\{([\d,]*)\}", rest):
        return len(match[1].split(","))
    if match := re.search(r"replica_groups=\[(\d+),(\d+)\]", rest):
        return int(match[2])
    if match := re.search(r"replica_groups=(?:@?\w*mesh\w*)\[(.*?)\]\s*(?:\([^)]*\)\s*)?\{(.*?)\}", rest):
        sizes = dict(re.findall(r"'?(\w+)'?=(\d+)", match[1]))
        axes = re.findall(r"'?([A-Za-z_]\w*)'?(?::\(\d+\)(\d+))?", match[2])
        return math.prod(int(part or sizes[axis]) for axis, part in axes)
    return everyone


def _callees(instruction: Instruction, names) -> Iterator[tuple[str, int | None]]:
    """The computations that an instruction runs, and how often; a `-done` runs nothing anew."""
    if instruction.operation.endswith(("-done", "-update")):
        return
    attributes = instruction.rest
    trips = _TRIPS.search(attributes)
    for match in _CALLED.finditer(attributes):
        value = attributes[match.end() :]
        value = value[: value.index("}")] if value.startswith("{") else value.partition(",")[0]
        for name in re.findall(r"%?([\w.-]+)", value):
            if name in names:
                looped = match[1] in ("body", "condition")
                yield name, (int(trips[1]) if trips else None) if looped else 1


def _times(found: dict[str, list[Instruction]], entry: str) -> dict[str, int | None]:
    """How often a run comes to each computation; a branch counts as taken. Those that are not reached are not named."""
    times: dict[str, int | None] = {}

    def visit(name: str, more: int | None):
        before = times.get(name, 0)
        times[name] = None if before is None or more is None else before + more
        for instruction in found[name]:
            for callee, trips in _callees(instruction, found):
                visit(callee, None if more is None or trips is None else more * trips)

    visit(entry, 1)
    return times
