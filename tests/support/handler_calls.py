"""Every custom call target with buffers that it takes: the table that handlers are tested and tried with."""

import dataclasses

import jax
import numpy as np

from jaxloss._ffi import library
from jaxloss._spec import OPTIONS
from losses import ELEMENTWISE

Buffer = tuple[tuple[int, ...], str]  # shape and type
F32, S32 = "float32", "int32"
X: Buffer = ((4, 3, 5), F32)
ROWS: Buffer = ((4, 3), F32)
ONE: Buffer = ((1,), F32)  # a parameter of all rows
FEATURES: Buffer = ((5,), F32)  # a parameter for each index of the last axis


@dataclasses.dataclass(frozen=True)
class Call:
    """A custom call: its buffers by name, of which the last ones are results, and its attributes.

    Its target is named without the number of the calling convention.
    """

    target: str
    buffers: dict[str, Buffer]
    results: int
    attributes: dict

    @property
    def name(self) -> str:
        """As JAX knows the target."""
        return f"{self.target}_v{library.CALLING_CONVENTION}"

    @property
    def operands(self) -> list[Buffer]:
        return list(self.buffers.values())[: len(self.buffers) - self.results]

    def staged(self, *operands) -> list[jax.Array]:
        """Its results, within a program, which keeps it even if no result is read."""
        specs = list(self.buffers.values())[len(self.operands) :]
        results = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in specs]
        return jax.ffi.ffi_call(self.name, results, has_side_effect=True)(*operands, **self.attributes)

    def __call__(self) -> list[np.ndarray]:
        operands = [np.zeros(shape, dtype) for shape, dtype in self.operands]
        return [np.asarray(result) for result in jax.jit(self.staged)(*operands)]

    def but(self, **changes) -> "Call":
        return dataclasses.replace(self, **changes)

    def with_attributes(self, **attributes) -> "Call":
        return self.but(attributes=self.attributes | attributes)


def elementwise(name: str, constants: tuple[float, ...] = (), parameters: tuple[Buffer, ...] = ()) -> list[Call]:
    operands = {"prediction": X, "target": X, "row_weight": ((4,), F32)}
    operands |= {f"parameter {i}": parameter for i, parameter in enumerate(parameters)}
    operands |= {"loss": ((4, 1), F32)}
    attributes = {"constants": np.array(constants, np.float64)}
    return [
        Call(f"jaxloss_{name}_value", operands, 1, attributes),
        Call(f"jaxloss_{name}_value_and_grad", {**operands, "gradient": X}, 2, attributes),
    ]


def cross_entropy(target: Buffer) -> list[Call]:
    operands = {"logits": X, "target": target, "row_weight": ROWS}
    clip = {"clip": np.float64(1e-7)}
    name = "jaxloss_cross_entropy"
    stats = {"max": ROWS, "log_sum": ROWS}
    return [
        Call(f"{name}_value", {**operands, "loss": ROWS}, 1, clip),
        Call(f"{name}_value_and_stats", {**operands, "loss": ROWS, **stats}, 3, clip),
        Call(f"{name}_value_and_grad", {**operands, "loss": ROWS, "gradient": X}, 2, clip),
        Call(f"{name}_grad", {**operands, **stats, "target_sum": ROWS, "gradient": X}, 1, {}),
    ]


def sums_of_rows() -> list[Call]:
    operands = {"logits": X, "target": ((4, 3), S32), "row_weight": ROWS, "sums": ((7,), F32)}
    name, clip = "jaxloss_cross_entropy_sums", {"clip": np.float64(1e-7)}
    sums = {"sums": operands.pop("sums")}
    with_options, options = "jaxloss_cross_entropy_with_options_sums", {"z_loss": ((), F32)}
    numbers = {"given": 1 << list(OPTIONS).index("z_loss"), "smoothed_classes": 5}

    def attributes(wanted):
        return {key: np.int64(number) for key, number in {**numbers, "wanted": wanted}.items()} | clip

    return [
        Call(f"{name}_value", {**operands, **sums}, 1, clip),
        Call(f"{name}_value_and_grad", {**operands, **sums, "gradient": X}, 2, clip),
        Call(f"{with_options}_value", {**operands, **options, **sums}, 1, attributes(1 << 8)),
        Call(
            f"{with_options}_value_and_grad", {**operands, **options, "gradient": X, **sums}, 2, attributes(0b11 << 7)
        ),
    ]


PARAMETERS_OF_ROWS = {
    "second_label": ((4, 3), S32),
    "num_classes": ((4,), S32),
    "label_smoothing": ((4,), F32),
    "z_loss": ((4,), F32),
}
"""Those that are no floating-point numbers, and some that have fewer axes than the rows."""


def cross_entropy_with_options(target: Buffer) -> list[Call]:
    """With every parameter, some of which have fewer axes than the rows."""
    operands = {"logits": X, "target": target, "row_weight": ROWS}
    given = {
        name: PARAMETERS_OF_ROWS.get(name, ((4, 5), F32) if option.per_class else ROWS)
        for name, option in OPTIONS.items()
        if target[1] == S32 or option.is_argument
    }
    known = {"maximum": ROWS, "log_sum": ROWS, "total": ROWS}
    of_stats = {"of_lse": ROWS, "of_entropy": ROWS}
    stats = {"max": ROWS, "max_log_sum": ROWS}
    details = {"nll": ROWS, "entropy": ROWS, "predicted": ((4, 3), S32), "rank": ((4, 3), S32)}
    name = "jaxloss_cross_entropy_with_options"

    def attributes(wanted, besides=0):
        bits = sum(1 << place for place, name in enumerate(OPTIONS) if name in given) | besides << len(OPTIONS)
        numbers = {"given": bits, "wanted": wanted, "smoothed_classes": 5}
        return {key: np.int64(number) for key, number in numbers.items()} | {"clip": np.float64(1e-7)}

    loss, gradient = {"loss": ROWS}, {"gradient": X}
    with_stats = Call(
        f"{name}_stats_grad", {**operands, **given, **of_stats, **gradient}, 1, attributes(0b10000000, 0b11000)
    )
    return [
        with_stats,
        Call(f"{name}_value", {**operands, **given, **loss}, 1, attributes(0b1)),
        Call(f"{name}_value_and_stats", {**operands, **given, **loss, **stats, **details}, 7, attributes(0b1111111)),
        Call(f"{name}_value_and_grad", {**operands, **given, **loss, **gradient}, 2, attributes(0b10000001)),
        Call(f"{name}_grad", {**operands, **given, **known, **gradient}, 1, attributes(0b10000000, 0b111)),
    ]


def divergence(name: str, parameters: dict[str, Buffer], of_teacher: dict[str, Buffer]) -> list[Call]:
    operands = {"logits": X, "target": X, "row_weight": ROWS, "scale": ROWS, **parameters, "loss": ROWS}
    stats = {"max": ROWS, "log_sum": ROWS, **of_teacher, "total": ROWS}
    return [
        Call(f"jaxloss_{name}_value", {**operands, **stats}, 1 + len(stats), {}),
        Call(f"jaxloss_{name}_value_and_grad", {**operands, "gradient": X, **stats}, 2 + len(stats), {}),
    ]


OF_ELEMENTS = (FEATURES, ((4, 1), F32))
BETA, TEACHER_STATS = {"beta": ROWS}, {"teacher_max": ROWS, "teacher_log_sum": ROWS}
CALLS = [
    *(call for loss in ELEMENTWISE for call in elementwise(loss.name, (), OF_ELEMENTS[: len(loss.parameters)])),
    *elementwise("binary_cross_entropy", (1e-7,)),
    *elementwise("weighted_binary_cross_entropy", (1e-7,), (FEATURES, ONE, ((4, 5), F32))),
    *elementwise("focal_binary_cross_entropy", (1e-7,), (FEATURES, ONE, ((4, 1), F32), ONE, ONE, FEATURES)),
    *cross_entropy(((4, 3), S32)),
    *cross_entropy(X),
    *cross_entropy_with_options(((4, 3), S32)),
    *cross_entropy_with_options(X),
    *divergence("kl_divergence_of_logits", {}, TEACHER_STATS),
    *divergence("kl_divergence_of_probabilities", {}, {}),
    *divergence("jensen_shannon_of_logits", BETA, TEACHER_STATS),
    *divergence("jensen_shannon_of_probabilities", BETA, {}),
]
ON_A_GPU_ALONE = sums_of_rows()
if jax.default_backend() == "gpu":
    CALLS += ON_A_GPU_ALONE
