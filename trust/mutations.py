"""Calls of handlers as they should be, of random sizes and types, and what is wrong with them after a mutation."""

import dataclasses

import ml_dtypes
import numpy as np

import handler_calls
from trust.hosted import TYPES

SIZES = (0, 1, 2, 3, 5, 7, 8, 9, 16, 17, 33, 64, 65, 130)
STORED = (
    ("float32", "float32"),
    ("bfloat16", "bfloat16"),
    ("float16", "float16"),
    ("float64", "float64"),
    ("bfloat16", "float32"),
    ("float16", "float32"),
)
"""Types of a prediction and a target that there is a kernel for."""

INTEGERS = ("second_label", "num_classes", "predicted", "rank")
CONSTANTS = {
    "label_smoothing": 0.125,
    "z_loss": 0.0625,
    "softcap": 4.0,
    "margin": 0.75,
    "temperature": 1.5,
    "scale": 0.75,
    "beta": 0.25,
    "mix": 0.75,
    "target_sum": 1.0,
}
"""What numbers of rows are, by name: one for all rows, as the oracles have them."""

OF_FOCAL = (1.5, 0.75, 0.125, 1.5, 0.25, 0.75)
"""The parameters of the focal loss and of the weighted one, in their order: for 1, for 0, smoothing, γ, α and 1 − α."""


@dataclasses.dataclass
class Hosted:
    """A call: the target, buffers as `(name, shape, type)`, and attributes. A name says what the array holds."""

    target: str
    operands: list[tuple[str, tuple[int, ...], str]]
    results: list[tuple[str, tuple[int, ...], str]]
    attributes: dict

    def __str__(self) -> str:
        def listed(buffers):
            return ", ".join(f"{name} {dtype}{list(shape)}" for name, shape, dtype in buffers)

        return f"{self.target}({listed(self.operands)}) -> {listed(self.results)} {self.attributes}"


def valid(rng: np.random.Generator) -> Hosted:
    """A call of the table, with other sizes and types."""
    call = handler_calls.CALLS[rng.integers(len(handler_calls.CALLS))]
    sizes = {4: int(rng.choice(SIZES[:9])), 3: int(rng.choice(SIZES[:5])), 5: int(rng.choice(SIZES))}
    prediction, target = STORED[rng.integers(len(STORED))]
    real = "float64" if prediction == "float64" else "float32"
    parts = int(rng.choice([1, 1, 2, 7]))
    buffers = []
    for name, (shape, dtype) in call.buffers.items():
        made = tuple(sizes.get(size, size) for size in shape)
        if name in ("prediction", "logits", "gradient"):
            dtype = prediction
        elif name == "target":
            dtype = dtype if dtype == "int32" else target
        elif name not in INTEGERS:
            dtype = real
        if name == "loss" and "prediction" in call.buffers:
            made = (*made[:-1], parts)
        buffers.append((name, made, dtype))
    attributes = dict(call.attributes)
    if "smoothed_classes" in attributes:
        attributes["smoothed_classes"] = np.int64(sizes[5])
    first = len(call.operands)
    return Hosted(call.name, buffers[:first], buffers[first:], attributes)


def mutated(call: Hosted, rng: np.random.Generator) -> Hosted:
    """The same but for one thing."""
    call = dataclasses.replace(call, operands=[*call.operands], results=[*call.results], attributes={**call.attributes})
    if call.attributes and rng.random() < 0.25:
        _mutate_attributes(call.attributes, rng)
        return call
    which = call.operands if rng.random() < 0.75 else call.results
    if not which:
        return call
    place = int(rng.integers(len(which)))
    name, shape, dtype = which[place]
    match rng.integers(8):
        case 0:
            which[place] = name, shape, str(rng.choice(list(TYPES)))
        case 1 | 2 if shape:
            axis = int(rng.integers(len(shape)))
            size = int(rng.choice([shape[axis] + 1, max(0, shape[axis] - 1), 2 * shape[axis], 0, 1]))
            which[place] = name, (*shape[:axis], size, *shape[axis + 1 :]), dtype
        case 3 if shape:
            axis = int(rng.integers(len(shape)))
            which[place] = name, (*shape[:axis], *shape[axis + 1 :]), dtype
        case 4:
            axis = int(rng.integers(len(shape) + 1))
            which[place] = name, (*shape[:axis], int(rng.choice([0, 1, 2])), *shape[axis:]), dtype
        case 5:
            del which[place]
        case 6:
            which.insert(place, which[int(rng.integers(len(which)))])
        case _:
            other = int(rng.integers(len(which)))
            which[place], which[other] = which[other], which[place]
    return call


def _mutate_attributes(attributes: dict, rng: np.random.Generator) -> None:
    name = str(rng.choice(list(attributes)))
    value = attributes[name]
    match rng.integers(5):
        case 0:
            del attributes[name]
        case 1:
            others = (
                np.float32(1),
                "text",
                np.zeros(3),
                np.int32(1),
                np.int64(1),
                np.float64(0.5),
                np.zeros(0),
                np.array([1, 2]),
            )
            attributes[name] = others[rng.integers(len(others))]
        case 2:
            attributes["another"] = np.float64(1)
        case _ if isinstance(value, np.int64):
            numbers = (value ^ (1 << int(rng.integers(63))), -1, 0, 2**62, -(2**63), value + 1, value - 1)
            attributes[name] = np.int64(numbers[rng.integers(len(numbers))])
        case _ if isinstance(value, np.float64):
            attributes[name] = np.float64(rng.choice([np.nan, -1.0, 1.0, np.inf, -np.inf, -0.0, 0.0, 1e-300, 0.5, 2.0]))
        case _:
            attributes[name] = np.zeros(int(rng.integers(4)))


def arrays_of(call: Hosted, rng: np.random.Generator) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Operands, and results that hold what no kernel writes."""
    results = [np.empty(shape, _dtype(dtype)) for _, shape, dtype in call.results]
    for result in results:
        result.reshape(-1).view(np.uint8)[...] = 0xFF
    return [_filled(rng, *buffer) for buffer in call.operands], results


def _dtype(name: str):
    return ml_dtypes.bfloat16 if name == "bfloat16" else np.dtype(name)


def _filled(rng: np.random.Generator, name: str, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    if name in ("target", "second_label", "num_classes") and dtype == "int32":
        return rng.integers(-1, 8, shape, np.int32)
    if name.startswith("parameter "):
        x = np.full(shape, OF_FOCAL[int(name.removeprefix("parameter "))])
    elif name in CONSTANTS:
        x = np.full(shape, CONSTANTS[name])
    elif name == "row_weight":
        x = rng.choice([1.0, -2.0, 0.5, -0.0], shape)
    elif name in ("target", "class_weights"):
        x = rng.integers(0, 9, shape) / 8
    else:
        x = 3 * rng.standard_normal(shape)
    with np.errstate(all="ignore"):
        return np.asarray(x).astype(_dtype(dtype))
