"""Compiled modules: options, and what one holds: custom calls, operations, what its devices tell each other."""

import collections as containers
import functools
import re

import jax

from benchmarks import exchanges


def _known(options: dict) -> dict:
    """Those that this version of the compiler knows."""

    def is_known(name):
        try:
            jax.jit(lambda: 0, compiler_options={name: options[name]})()
        except jax.errors.JaxRuntimeError:
            return False
        return True

    return {name: value for name, value in options.items() if is_known(name)}


QUICKLY = _known({"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False})
"""Options to compile what runs a few times only: the emitters of fusions take three times as long as what was before."""

jit_quickly = functools.partial(jax.jit, compiler_options=QUICKLY)
"""For tests of rules, placements and modules. The module is the same to the letter, but LLVM takes less care of the code that
XLA makes itself, in a third of the time. Tests of how near numbers are take `jax.jit`."""


def custom_call_targets(compiled) -> list[str]:
    """Those of jaxloss, without the number of the calling convention; XLA has some of its own."""
    return re.findall(r'custom_call_target="(jaxloss_[^"]+)_v\d+"', compiled.as_text())


def operations(compiled) -> list[tuple[str, list[int]]]:
    """Every operation that is not inside a fusion, with the sizes of its results."""
    return [
        (instruction.operation, [size for _, size in instruction.results])
        for name, instructions in exchanges.computations(compiled.as_text())[0].items()
        if not name.startswith(("fused", "wrapped"))
        for instruction in instructions
    ]


def of_size(compiled, size: int) -> list[str]:
    """The operations that write an array of at least that size."""
    views = ("parameter", "get-tuple-element", "tuple", "bitcast", "call")
    return [name for name, sizes in operations(compiled) if name not in views and max(sizes, default=0) >= size]


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
