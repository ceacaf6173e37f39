"""The four pictures, for light and dark pages: losses, predicted against true, digits with their class, ROC curve."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import matplotlib.image
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, PercentFormatter
from sklearn import metrics

from demo import models
from demo.data import Data
from demo.tasks import BREAST_CANCER, DIABETES, DIGITS
from demo.training import Run

BLUE, ORANGE, RED, INK, GREY = "#2563a8", "#e08214", "#c8372d", "#22272e", "#8a929c"

STYLE: dict[Any, Any] = {
    "figure.dpi": 150,
    "figure.facecolor": "white",
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlepad": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#e6e8eb",
    "grid.linewidth": 0.8,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "ytick.minor.size": 0,
    "lines.linewidth": 2,
    "lines.solid_capstyle": "round",
    "legend.edgecolor": "none",
    "legend.framealpha": 1.0,
}


class Result(NamedTuple):
    """A trained model with the data it was trained on."""

    data: Data
    run: Run


def draw(results: Mapping[str, Result], directory: Path) -> list[Path]:
    """Draw all four into the directory, each for light and for dark pages, and return where they are."""
    directory.mkdir(parents=True, exist_ok=True)
    paths = []
    with matplotlib.rc_context(STYLE):
        for name, figure in (
            ("loss_curves", loss_curves(results)),
            ("predicted_against_true", predicted_against_true(results[DIABETES.name])),
            ("digits", predicted_digits(results[DIGITS.name])),
            ("roc", roc_curve(results[BREAST_CANCER.name])),
        ):
            canvas = FigureCanvasAgg(figure)
            canvas.draw()
            light = np.asarray(canvas.buffer_rgba())[..., :3] / 255
            for theme, pixels in ((name, light), (f"{name}_dark", on_dark(light))):
                paths.append(directory / f"{theme}.png")
                matplotlib.image.imsave(paths[-1], pixels, pil_kwargs={"optimize": True})
    return paths


def on_dark(pixels: np.ndarray) -> np.ndarray:
    """A picture with its lightness turned round and its hues kept, so that white becomes the dark of a page."""
    inverted = 1 - pixels
    hues_kept = 2 * (inverted @ (0.213, 0.715, 0.072))[..., None] - inverted
    return np.clip(hues_kept, (0.051, 0.067, 0.090), 1)


def loss_curves(results: Mapping[str, Result]) -> Figure:
    figure = Figure(figsize=(11, 3.7), layout="constrained")
    for axes, task in zip(figure.subplots(1, 3), (DIABETES, DIGITS, BREAST_CANCER), strict=True):
        run = results[task.name].run
        axes.plot(run.train_loss, color=BLUE, label="training")
        axes.plot(run.test_loss, color=ORANGE, label="test")
        axes.set(
            title=f"{task.name.capitalize()}: {task.loss_name}",
            xlabel="epoch",
            yscale="log",
            xlim=(0, len(run.train_loss)),
        )
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.legend()
    figure.get_axes()[0].set_ylabel("loss (logarithmic)")
    return figure


def predicted_against_true(result: Result) -> Figure:
    data, run = result
    figure = Figure(figsize=(5.6, 5.4), layout="constrained")
    axes = figure.subplots()
    limits = (0, 360)
    axes.plot(limits, limits, color=GREY, linewidth=1, linestyle=(0, (4, 3)))
    axes.text(336, 347, "predicted = true", color=GREY, rotation=45, ha="right", va="bottom", rotation_mode="anchor")
    for split, name, style in (
        (data.train, "training", {"s": 14, "color": GREY, "alpha": 0.45}),
        (data.test, "test", {"s": 30, "color": BLUE, "alpha": 0.85, "edgecolor": "white"}),
    ):
        prediction = np.asarray(models.apply(run.params, split.x))
        label = f"{len(split.y)} {name} patients, R² {metrics.r2_score(split.y, prediction):.2f}"
        true, predicted = (y * data.target_scale + data.target_mean for y in (split.y, prediction))
        axes.scatter(true, predicted, linewidth=0.5, label=label, **style)
    axes.set(
        title="Diabetes: progression after one year",
        xlabel="true",
        ylabel="predicted",
        xlim=limits,
        ylim=limits,
        aspect="equal",
    )
    axes.legend(loc="upper left", handletextpad=0.2)
    return figure


def predicted_digits(result: Result, columns: int = 12, rows: int = 5) -> Figure:
    """All test digits that were read wrong, as far as they fit, among others that were read right."""
    data, run = result
    test, shown = data.test, columns * rows
    predicted = np.asarray(models.apply(run.params, test.x)).argmax(axis=1)
    wrong, right = np.flatnonzero(predicted != test.y), np.flatnonzero(predicted == test.y)
    some_right = right[np.linspace(0, len(right) - 1, max(0, shown - len(wrong)), dtype=int)]
    chosen = np.sort(np.concatenate([wrong[:shown], some_right]))

    figure = Figure(figsize=(columns * 0.75, rows * 0.95 + 0.55))
    figure.subplots_adjust(left=0.012, right=0.988, bottom=0.015, top=0.885, wspace=0.12, hspace=0.3)
    for axes, i in zip(figure.subplots(rows, columns).flat, chosen, strict=True):
        _digit(axes, test.x[i].reshape(8, 8), int(predicted[i]), int(test.y[i]))
    title = f"Digits: {len(right)} of {len(test.y)} test digits read right, wrong ones in red"
    figure.text(0.012, 0.985, title, fontsize=11, fontweight="bold", va="top")
    return figure


def _digit(axes: Axes, image: np.ndarray, predicted: int, true: int) -> None:
    wrong = predicted != true
    axes.imshow(image, cmap="Greys", interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.grid(False)
    axes.spines[:].set(visible=True, color=RED if wrong else "#d5d9de", linewidth=2 if wrong else 0.8)
    text, weight = (f"{predicted} for {true}", "bold") if wrong else (str(predicted), "normal")
    axes.set_title(text, loc="center", pad=3, fontsize=9, fontweight=weight, color=RED if wrong else INK)


def roc_curve(result: Result) -> Figure:
    """The curve, and beside it its upper left corner enlarged."""
    data, run = result
    logits = np.asarray(models.apply(run.params, data.test.x))
    false_alarms, found, thresholds = metrics.roc_curve(data.test.y, logits, drop_intermediate=False)
    at_half = int(np.flatnonzero(thresholds > 0)[-1])  # the last point that calls only logits above 0 malignant
    point = false_alarms[at_half], found[at_half]

    figure = Figure(figsize=(9.4, 4.7), layout="constrained")
    whole, corner = figure.subplots(1, 2)
    for axes in (whole, corner):
        axes.step(false_alarms, found, where="post", color=BLUE, clip_on=axes is corner)
        axes.plot(*point, "o", color=ORANGE, markersize=9, markeredgecolor="white", zorder=3, clip_on=False)
        axes.set(xlabel="benign tumours called malignant", box_aspect=1)
    whole.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=(0, (4, 3)))
    whole.text(0.52, 0.49, "guessing", color=GREY, ha="left", va="top")
    whole.set(
        title=f"Breast cancer: ROC curve, area {metrics.auc(false_alarms, found):.3f}",
        ylabel="malignant tumours found",
        xlim=(0, 1),
        ylim=(0, 1.01),
    )
    corner.annotate(
        f"probability ½:\n{point[1]:.1%} of the malignant found,\n{point[0]:.1%} false alarms",
        point,
        xytext=(30, -12),
        textcoords="offset points",
        va="top",
        arrowprops={"arrowstyle": "-", "color": GREY, "shrinkB": 5},
    )
    width = max(0.12, 1.5 * point[0], 1.5 * (1 - point[1]))
    corner.set(title="The corner enlarged", xlim=(-0.01 * width, width), ylim=(1 - width, 1 + 0.01 * width))
    for axis in (whole.xaxis, whole.yaxis, corner.xaxis, corner.yaxis):
        axis.set_major_formatter(PercentFormatter(1, decimals=0))
    return figure
