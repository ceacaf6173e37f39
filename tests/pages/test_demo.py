"""What the demo prints fits a terminal of a hundred columns, and its picture says which axes are logarithmic."""

import numpy as np
import pytest

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

from demo import pictures, report, tasks
from demo.training import Run

TASKS = (tasks.DIABETES, tasks.DIGITS, tasks.BREAST_CANCER)
COLUMNS = 100


def test_table_fits():
    rows = []
    for task in TASKS:
        data = task.load()
        outputs = np.eye(10)[data.test.y] if task is tasks.DIGITS else np.asarray(data.test.y, float)
        measured = ", ".join(f"{name} {value:.3f}" for name, value in task.metrics(outputs, data.test.y).items())
        rows.append((task.name, task.loss_name, "0.0000", "0.0000", measured, "9999 µs", "100%"))
    table = report.table(rows)
    assert all(name in table for name in report.HEADINGS)
    assert max(len(line) for line in f"{table}\n{report.NOTE}".splitlines()) <= COLUMNS


def test_logarithmic_axes_say_so():
    curve = np.array([2.0, 1.0, 0.5])  # stands for all that is an entry an epoch
    run = Run(None, curve, curve, curve, 2, 1e-4)
    figure = pictures.loss_curves({task.name: pictures.Result(None, run) for task in TASKS})
    axes = figure.get_axes()
    assert all(of.get_yscale() == "log" for of in axes)
    assert "logarithmic" in axes[0].get_ylabel()
