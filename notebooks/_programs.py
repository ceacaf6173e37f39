"""How the notebooks read what JAX traces and XLA compiles: equations, instructions, and the bytes they move."""

import dataclasses
import math
import re
from collections.abc import Callable, Iterator

import jax

_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8}
_NOTHING_MOVES = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast")


def equations(jaxpr) -> Iterator:
    """All equations of a jaxpr, with those of the functions that it calls."""
    for equation in jaxpr.eqns:
        yield equation
        for parameter in equation.params.values():
            for inner in parameter if isinstance(parameter, (list, tuple)) else (parameter,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from equations(inner)


def in_one_line(equation) -> str:
    """An equation's results, name and operands, with their types."""
    results, operands = (
        ", ".join(str(v.aval.str_short(short_dtypes=True)) for v in values)
        for values in (equation.outvars, equation.invars)
    )
    name = equation.params.get("target_name", equation.primitive.name)
    return f"{results:42} = {name}({operands})"


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One instruction of a compiled program's main computation, which writes its result to memory.

    Attributes:
        name: as XLA calls it.
        opcode: what it is: `fusion`, `custom-call`, ….
        text: its line, without what only debuggers read.
        bytes: of its operands and its results. A gather or scatter is counted without the array that it picks from.
    """

    name: str
    opcode: str
    text: str
    bytes: int


def without_details(text: str) -> str:
    """A program's text without where in Python its lines come from, and without the backend's own settings."""
    text = re.sub(r", metadata=\{[^}]*\}|, backend_config=\{.*\}$", "", text, flags=re.MULTILINE)
    return re.sub(r", operand_layout_constraints=\{.*?\}(?=, \w+=|$)", "", text, flags=re.MULTILINE)


def instructions(compiled: jax.stages.Compiled) -> list[Instruction]:
    """The instructions of its main computation that move something, in order."""
    text = without_details(compiled.as_text())
    bodies = dict(re.findall(r"^(?:ENTRY )?(%[\w.\-]+) \(.*?\{\n(.*?)^\}", text, re.MULTILINE | re.DOTALL))
    main = re.search(r"^ENTRY .*?\{\n(.*?)^\}", text, re.MULTILINE | re.DOTALL)
    assert main is not None
    sizes, found = {}, []
    for line in main[1].splitlines():
        match = re.match(r"\s*(?:ROOT )?(%[\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*?)\)", line)
        assert match, line
        name, shape, opcode, operands = match.groups()
        sizes[name] = _bytes_of(shape)
        if opcode in _NOTHING_MOVES:
            continue
        called = re.search(r"calls=(%[\w.\-]+)", line)
        inside = bodies.get(called[1], "") if called else ""
        read = [sizes.get(operand, 0) for operand in re.findall(r"%[\w.\-]+", operands)]
        if " scatter(" in inside:
            moved = 2 * min(read)
        elif " gather(" in inside:
            moved = sizes[name] + sum(read) - max(read)
        else:
            moved = sizes[name] + sum(read)
        found.append(Instruction(name.lstrip("%"), opcode, line.strip(), moved))
    return found


def _bytes_of(shape: str) -> int:
    arrays = re.findall(r"(\w+)\[([\d,]*)\]", shape)
    return sum(_BYTES[dtype] * math.prod(int(size) for size in sizes.split(",") if size) for dtype, sizes in arrays)


def temporary_bytes(function: Callable, *operands: jax.ShapeDtypeStruct) -> int:
    """What value and gradients of the first two operands take beside operands and results; nothing is run."""
    compiled = jax.jit(jax.value_and_grad(function, (0, 1))).lower(*operands).compile()
    return compiled.memory_analysis().temp_size_in_bytes
