"""The table at the end."""

import numpy as np

from demo import models
from demo.agreement import Agreement
from demo.data import Data
from demo.tasks import Task
from demo.training import Run

HEADINGS = ("data", "loss", "train", "test", "on the test data", "a step", "apart")
NOTE = """apart: the largest difference of any parameter, after any epoch, from a run whose step is the plain
formula and jax.grad of it, from the same initial parameters on the same batches, as a share of what
float32 rounding may grow to."""


def row(task: Task, data: Data, run: Run, agreement: Agreement) -> tuple[str, ...]:
    outputs = np.asarray(models.apply(run.params, data.test.x))
    metrics = ", ".join(f"{name} {value:.3f}" for name, value in task.metrics(outputs, data.test.y).items())
    return (
        task.name,
        task.loss_name,
        f"{run.train_loss[-1]:.4f}",
        f"{run.test_loss[-1]:.4f}",
        metrics,
        f"{run.seconds_a_step * 1e6:.0f} µs",
        f"{agreement.parameters / agreement.parameters_allowed:.0%}",
    )


def table(rows: list[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(HEADINGS, *rows, strict=True)]
    rule = tuple("─" * width for width in widths)
    lines = (zip(line, widths, strict=True) for line in (HEADINGS, rule, *rows))
    return "\n".join("  ".join(cell.ljust(width) for cell, width in line).rstrip() for line in lines)
