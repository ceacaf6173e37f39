"""What `benchmarks.losses` measures: the rows of its tables and sweeps, and the goal of each number."""

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


class Goal(NamedTuple):
    """The most that a time may be, as a ratio to the memory's limit, XLA's time and that of each program of torch.

    None where that is no goal.
    """

    of_limit: float | None = None
    of_xla: float | None = None
    of_torch: float | None = None


NEVER_BEHIND = 1.03  # of XLA's time: two medians of one program differ by as much
SHARE_OF_PORTABLE = 1 / 0.85
SHARE_OF_WIDE, SHARE_OF_NARROW, WIDE = 1 / 0.92, 1 / 0.85, 256  # from that many classes on
SWEPT_BYTES_JUDGED = 2**28  # below it, launches are part of the time
REGISTERS_OF_A_WARP = 8192  # longer rows of logits with labels are not held in registers (cross_entropy_registers.cuh)


@dataclasses.dataclass(frozen=True)
class Work:
    """A row: a loss, the kind of its target, type and shape of its prediction, and a goal for each time.

    `value`, `grad` and `value_and_grad` are what they say; `rows_vjp` is the losses of the rows, and then the gradient
    for a cotangent of each; `call` is a single small call of value and gradient; `step` is one of 16 gradient steps in
    one program.
    """

    loss: str
    target: str
    dtype: str
    shape: tuple[int, int]
    goals: dict[str, Goal] = dataclasses.field(hash=False)
    part: str = "table"

    def __str__(self) -> str:
        return f"{self.loss} {self.target} {self.dtype} {list(self.shape)}"

    @property
    def prediction_bytes(self) -> int:
        return self.shape[0] * self.shape[1] * ITEM_BYTES[self.dtype]

    @property
    def numeric_operands(self) -> int:
        """Operands of the prediction's size and type: itself, and a target that is no labels."""
        return 1 if self.target == "labels" else 2

    @property
    def read_bytes(self) -> int:
        """Of prediction and target."""
        return self.prediction_bytes + (4 * self.shape[0] if self.target == "labels" else self.prediction_bytes)


def memory_row(loss: str, target: str, dtype: str, shape, value, value_and_grad, rows_vjp=None, part="table") -> Work:
    """A row whose times are compared with the memory's limit, and never behind XLA."""
    goals = {"value": Goal(value, NEVER_BEHIND), "value_and_grad": Goal(value_and_grad, NEVER_BEHIND)}
    if loss == "categorical" and target == "labels" and part == "table":
        goals["rows_vjp"] = Goal(rows_vjp, NEVER_BEHIND)
    return Work(loss, target, dtype, shape, goals, part)


def launch_row(loss: str, target: str, dtype: str, shape) -> Work:
    """A row so small that what counts is the time to get it started."""
    return Work(loss, target, dtype, shape, dict.fromkeys(("call", "step"), Goal(None, NEVER_BEHIND)), "launch")


BIG = (8192, 32768)
GPU_TABLE = [
    memory_row("mse", "numbers", "float32", BIG, 1.02, 1.03),
    memory_row("mse", "numbers", "bfloat16", BIG, 1.04, 1.05),
    memory_row("binary", "numbers", "float32", BIG, 1.03, 1.04),
    memory_row("binary", "numbers", "bfloat16", BIG, 1.04, 1.05),
    memory_row("categorical", "numbers", "float32", BIG, 1.03, 1.04),
    memory_row("categorical", "numbers", "bfloat16", BIG, 1.04, 1.05),
    memory_row("categorical", "labels", "bfloat16", (8192, 128256), 1.02, 1.02, 1.04),
    memory_row("categorical", "labels", "bfloat16", (4096, 262144), SHARE_OF_WIDE, SHARE_OF_WIDE),
    memory_row("categorical", "labels", "float32", BIG, 1.01, 1.03),
    memory_row("categorical", "labels", "bfloat16", (16384, 32000), 1.01, 1.03),
    memory_row("categorical", "labels", "bfloat16", (20000, 50257), SHARE_OF_WIDE, SHARE_OF_WIDE),
    memory_row("categorical", "labels", "bfloat16", (20000, 50264), SHARE_OF_WIDE, SHARE_OF_WIDE),
    memory_row("categorical", "labels", "bfloat16", (32768, 16384), SHARE_OF_WIDE, SHARE_OF_WIDE),
    memory_row("categorical", "labels", "bfloat16", (32768, 4096), SHARE_OF_WIDE, SHARE_OF_WIDE),
    memory_row("categorical", "labels", "bfloat16", (131072, 1024), SHARE_OF_WIDE, SHARE_OF_WIDE),
    memory_row("categorical", "labels", "float32", (65536, 1024), 1.04, 1.04),
]
LAUNCHES = [
    launch_row("categorical", "labels", "float32", (128, 10)),
    launch_row("categorical", "labels", "float32", (128, 16)),
    launch_row("categorical", "labels", "float32", (4096, 1000)),
    launch_row("categorical", "labels", "float32", (1, 32768)),
    launch_row("categorical", "labels", "bfloat16", (1, 128256)),
    launch_row("categorical", "numbers", "float32", (128, 10)),
    launch_row("mse", "numbers", "float32", (128, 16)),
    launch_row("binary", "numbers", "float32", (128, 16)),
]


def cpu_row(loss: str, target: str, dtype: str, shape, part="table") -> Work:
    """A row for the CPU, where XLA is what a goal is measured by."""
    row = memory_row(loss, target, dtype, shape, None, None, part=part)
    if loss == "categorical" and target == "labels" and shape[1] >= 1024:
        row.goals["value_and_grad"] = Goal(None, 1 / 2.5)
    return row


CPU_TABLE = [
    *(
        cpu_row(loss, "numbers", dtype, shape)
        for loss in ("mse", "binary")
        for dtype, shape in (("float32", (1024, 8192)), ("float32", (65536, 10)), ("bfloat16", (1024, 8192)))
    ),
    cpu_row("categorical", "labels", "float32", (1024, 32768)),
    cpu_row("categorical", "labels", "float32", (8192, 1024)),
    cpu_row("categorical", "labels", "float32", (65536, 128)),
    cpu_row("categorical", "labels", "float32", (65536, 10)),
    cpu_row("categorical", "labels", "bfloat16", (8192, 1024)),
    cpu_row("categorical", "labels", "bfloat16", (128, 128256)),
    cpu_row("categorical", "numbers", "float32", (8192, 1024)),
    cpu_row("categorical", "numbers", "bfloat16", (8192, 1024)),
]


def table(platform: str) -> list[Work]:
    """The rows that have goals of their own, and the small ones."""
    return [*(CPU_TABLE if platform == "cpu" else GPU_TABLE), *LAUNCHES]


def portable_table() -> list[Work]:
    """Rows that a GPU without clusters gives to another kernel than Hopper does, and that kernel's goal."""
    goals = {"value_and_grad": Goal(SHARE_OF_PORTABLE, None)}
    return [
        dataclasses.replace(work, goals=goals, part="portable")
        for work in GPU_TABLE
        if work.target == "labels" and work.shape[1] * ITEM_BYTES[work.dtype] > REGISTERS_OF_A_WARP
    ]


# ---- options -------------------------------------------------------------------------------------------------------

OF_TORCH = 1 / 1.7  # of value and gradient

# The goals of value and gradient by option: of 16 bits, of float32, and of rows of so few classes that lanes hold them.
OF_OPTIONS = {
    "z_loss": (1.05, 1.03, 1.10),
    "temperature": (1.05, 1.03, 1.10),
    "label_smoothing": (1.05, 1.03, 1.10),
    "class_weights": (1.05, 1.03, 1.10),
    "softcap": (1.10, 1.05, 1.20),
    "all": (1.25, 1.25, 1.25),
    "statistics": (1.15, 1.15, 1.15),
}


def option_row(option: str, dtype: str, shape, value: Goal, value_and_grad: Goal) -> Work:
    """Cross entropy with one option, with all, or with statistics, whose value is then theirs alone."""
    goals = {"value": value, "value_and_grad": value_and_grad}
    return Work(f"categorical with {option}", "labels", dtype, shape, goals)


def _gpu_options(option: str, dtype: str, shape) -> Work:
    place = 2 if shape[1] == 1000 else dtype == "float32"
    value = Goal(1.10 if option == "statistics" else None, 1 / 1.9)
    return option_row(option, dtype, shape, value, Goal(OF_OPTIONS[option][place], 1 / 1.9, OF_TORCH))


def _cpu_options(option: str, dtype: str, shape) -> Work:
    goal = Goal(None, 1 / 2 if shape[1] >= 1000 else NEVER_BEHIND)
    return option_row(option, dtype, shape, goal, goal)


OPTIONS_TABLE = {
    "gpu": [
        _gpu_options(option, dtype, shape)
        for dtype, shape in (
            ("bfloat16", (7000, 151936)),
            ("bfloat16", (16384, 32000)),
            ("float32", BIG),
            ("bfloat16", (60000, 1000)),
        )
        for option in OF_OPTIONS
    ],
    "cpu": [
        _cpu_options(option, dtype, shape)
        for dtype, shape in (
            ("float32", (1024, 4096)),
            ("bfloat16", (1024, 4096)),
            ("float32", (256, 2048)),
            ("float32", (8192, 1000)),
            ("float32", (65536, 10)),
        )
        for option in OF_OPTIONS
    ],
}


# ---- divergences -----------------------------------------------------------------------------------------------------


def _entropy(dtype: str, shape, faster: float) -> Work:
    goals = {"value": Goal(None, 1 / faster), "grad": Goal(1.10 if faster > 1 else None, 1 / faster, OF_TORCH)}
    return Work("entropy", "labels", dtype, shape, goals)


def _policy(dtype: str, shape, faster: float) -> Work:
    """A read for the value, and a read and a write for the gradient, whose cotangents are known only then."""
    return Work(
        "policy", "labels", dtype, shape, {"value_and_grad": Goal(1.65 if faster > 1 else None, 1 / faster, OF_TORCH)}
    )


def _divergence(loss: str, dtype: str, shape, of_limit: float | None, faster: float) -> Work:
    goals = {"value": Goal(None, 1 / faster), "value_and_grad": Goal(of_limit, 1 / faster, OF_TORCH)}
    return Work(loss, "teacher", dtype, shape, goals)


_GPU_LOGITS = (
    ("bfloat16", (7000, 151936)),
    ("bfloat16", (16384, 32000)),
    ("float32", BIG),
    ("bfloat16", (60000, 1000)),
)
_GPU_PAIRS = (("bfloat16", (7000, 100352)), ("float32", (8192, 32000)), ("bfloat16", (60000, 1000)))
_CPU_ROWS = (("float32", (1024, 4096)), ("bfloat16", (1024, 4096)), ("float32", (65536, 10)))

DIVERGENCES_TABLE = {
    "gpu": [
        *(
            _divergence(loss, dtype, shape, of_limit, 1.9)
            for loss, of_limit in (("KL", 1.08), ("Jensen-Shannon", 1.15))
            for dtype, shape in _GPU_PAIRS
        ),
        *(_entropy(dtype, shape, 1.9) for dtype, shape in _GPU_LOGITS),
        *(_policy(dtype, shape, 1.9) for dtype, shape in _GPU_LOGITS),
    ],
    "cpu": [
        *(
            _divergence(loss, dtype, shape, None, 1 / NEVER_BEHIND)
            for loss in ("KL", "Jensen-Shannon")
            for dtype, shape in _CPU_ROWS
        ),
        *(_entropy(dtype, shape, 1 / NEVER_BEHIND) for dtype, shape in _CPU_ROWS),
        *(_policy(dtype, shape, 1 / NEVER_BEHIND) for dtype, shape in _CPU_ROWS),
    ],
}


# ---- sweeps ----------------------------------------------------------------------------------------------------------

CLASSES = (2, 3, 4, 8, 10, 16, 31, 32, 64, 100, 128, 256, 257, 512, 1000, 1024, 2048, 4096, 8192, 16384, 32000, 32001)
CLASSES += (50257, 65536, 100003, 128256, 151936, 262144)
FEW_ROWS = (1, 8, 64, 512)
SWEPT_BYTES = {"gpu": 2**30, "cpu": 2**25}


def sweep(platform: str) -> Iterator[Work]:
    """Cross entropy at constant bytes over classes ("classes"), and of two widths over bytes ("bytes")."""
    of_all = SWEPT_BYTES[platform]
    for dtype in ("bfloat16", "float32"):
        elements = of_all // ITEM_BYTES[dtype]
        for classes in CLASSES:
            yield _swept(platform, dtype, (elements // classes, classes), "classes")
        for rows in FEW_ROWS:  # of millions of classes
            yield _swept(platform, dtype, (rows, elements // rows), "classes")
    for dtype, classes, all_rows in (
        ("bfloat16", 32768, (1, 8, 64, 512, 4096, 32768)),
        ("float32", 1024, (1, 10, 100, 1000, 10_000, 100_000, 1_000_000)),
    ):
        for rows in all_rows:
            if rows * classes * ITEM_BYTES[dtype] <= 4 * of_all:
                yield _swept(platform, dtype, (rows, classes), "bytes")


def options_sweep(platform: str) -> Iterator[Work]:
    """The same of cross entropy with a z-loss, over classes."""
    for dtype in ("bfloat16", "float32"):
        for classes in CLASSES:
            shape = SWEPT_BYTES[platform] // ITEM_BYTES[dtype] // classes, classes
            goal = Goal(1.12 if platform == "gpu" else None, NEVER_BEHIND)
            goals = {"value": Goal(None, NEVER_BEHIND), "value_and_grad": goal}
            yield Work("categorical with z_loss", "labels", dtype, shape, goals, "classes")


def _swept(platform: str, dtype: str, shape: tuple[int, int], part: str) -> Work:
    if platform == "cpu":
        return cpu_row("categorical", "labels", dtype, shape, part)
    share = SHARE_OF_WIDE if shape[1] >= WIDE else SHARE_OF_NARROW
    if shape[0] * shape[1] * ITEM_BYTES[dtype] < SWEPT_BYTES_JUDGED:
        share = None
    return memory_row("categorical", "labels", dtype, shape, share, share, part=part)


def smaller(work: Work) -> Work:
    """A sixty-fourth of the rows, to try a script out; goals are for whole ones."""
    rows = max(1, work.shape[0] // 64)
    return dataclasses.replace(work, shape=(rows, work.shape[1]), goals=dict.fromkeys(work.goals, Goal()))
