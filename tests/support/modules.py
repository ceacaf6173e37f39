"""What a compiled module holds: custom calls, operations, collectives."""

import collections as containers
import re

from benchmarks import exchanges


def custom_call_targets(compiled) -> list[str]:
    """Those of jaxloss, without the number of the calling convention; XLA has some of its own."""
    return re.findall(r'custom_call_target="(jaxloss_[^"]+)_v\d+"', compiled.as_text())


def operations(compiled) -> list[tuple[str, list[int]]]:
    """Every operation that is not inside a fusion, with the sizes of its results."""
    return [(each.operation, [size for _, size in each.results]) for each in _instructions(compiled)]


def _instructions(compiled) -> list[exchanges.Instruction]:
    return [
        instruction
        for name, instructions in exchanges.computations(compiled.as_text())[0].items()
        if not name.startswith(("fused", "wrapped"))
        for instruction in instructions
    ]


def of_size(compiled, size: int) -> list[str]:
    """The operations that write an array of at least that size; what cuBLAS works in is bytes, and is none."""
    views = ("parameter", "get-tuple-element", "tuple", "bitcast", "call")
    return [
        instruction.operation
        for instruction in _instructions(compiled)
        if instruction.operation not in views
        and any(count >= size for of_type, count in instruction.results if of_type != "s8")
    ]


def temporary_bytes(compiled) -> int:
    """What its arrays take that are neither operands nor results, but for what cuBLAS works in: that is as its timing of
    algorithms, which another process may disturb, turns out."""
    workspaces = [
        count for instruction in _instructions(compiled) for of_type, count in instruction.results if of_type == "s8"
    ]
    return compiled.memory_analysis().temp_size_in_bytes - max(workspaces, default=0)


def collectives(compiled) -> list[tuple[str, int]]:
    """The collectives, with the size of the largest result of each."""
    return [(found.kind, max(size for _, size in found.results)) for found in exchanges.of_module(compiled.as_text())]


def exchanged(compiled) -> containers.Counter[tuple[str, int]]:
    """How often a run exchanges an array, by kind of collective and size; without scalars.

    One collective may exchange several arrays: a compiler combines those that it can.
    """
    found = containers.Counter()
    for collective in exchanges.of_module(compiled.as_text()):
        for _, size in collective.results:
            if size > 1:
                assert collective.times is not None, f"{collective.kind} of {size} numbers, nobody knows how often"
                found[collective.kind, size] += collective.times
    return found
