"""Compiled modules: options, and what one holds: custom calls, operations, what its devices tell each other."""

import re

import numpy as np

QUICKLY = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
"""Options to compile what runs a few times only: the emitters of fusions take three times as long as what was before."""

# A result's type, or a tuple of them, then the operation: `%name = (f32[16]{0}, bf16[16,64]{1,0}) custom-call(`.
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?[\w.-]+ = (\((?:[^()]|\([^()]*\))*\)|\S+) ([\w-]+)\(")
_SHAPE = re.compile(r"\b[a-z]+[0-9]+[a-z0-9]*\[([0-9,]*)\]")
_COLLECTIVE = re.compile(r"^(all-gather|all-to-all|collective-permute|reduce-scatter|all-reduce)(-start)?$")


def custom_call_targets(compiled) -> list[str]:
    """Those of jaxloss; XLA has some of its own."""
    return re.findall(r'custom_call_target="(jaxloss_[^"]+)"', compiled.as_text())


def operations(compiled) -> list[tuple[str, list[int]]]:
    """Every operation that is not inside a fusion, with the sizes of its results."""
    found, fused = [], False
    for line in compiled.as_text().splitlines():
        if line.startswith(("%", "ENTRY")) and line.endswith("{"):
            fused = line.startswith(("%fused", "%wrapped"))
        elif not fused and (instruction := _INSTRUCTION.match(line)):
            results, operation = instruction.groups()
            sizes = [int(np.prod([int(d) for d in dims.split(",") if d])) for dims in _SHAPE.findall(results)]
            found.append((operation, sizes))
    return found


def of_size(compiled, size: int) -> list[str]:
    """The operations that write an array of at least that size."""
    views = ("parameter", "get-tuple-element", "tuple", "bitcast", "call")
    return [name for name, sizes in operations(compiled) if name not in views and max(sizes, default=0) >= size]


def collectives(compiled) -> list[tuple[str, int]]:
    """The collectives, with the size of the largest result of each."""
    return [(match.group(1), max(sizes)) for name, sizes in operations(compiled) if (match := _COLLECTIVE.match(name))]
