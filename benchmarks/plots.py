"""The sweep of cross entropy as pictures: how near the memory's limit, over the number of classes."""

import pathlib

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from benchmarks import record

COLOURS = {"jaxloss": "#1b5faa", "xla": "#e0831a"}


def draw(measurements: list[dict], directory: str | None) -> None:
    """Draws `cross_entropy_sweep.png`, share of the limit at constant bytes, and `losses_by_bytes.png`."""
    path = pathlib.Path(directory or record.RESULTS)
    _sweep([m for m in measurements if m["loss"] == "categorical" and m["target"] == "labels"], path)
    _by_bytes(measurements, path)


def _sweep(measurements: list[dict], directory: pathlib.Path) -> None:
    figure, axes = plt.subplots(2, 2, figsize=(12, 7), sharex=True, sharey="row", layout="constrained")
    largest = max(m["bytes"] for m in measurements) / 4
    for column, dtype in enumerate(("bfloat16", "float32")):
        chosen = sorted((m["shape"][1], m) for m in measurements if m["dtype"] == dtype and m["bytes"] > largest)
        for row, what in enumerate(("value", "value_and_grad")):
            axis = axes[row, column]
            for who, colour in COLOURS.items():
                ratio = [m["ms"]["limit"][what] / m["ms"][who][what] for _, m in chosen]
                axis.plot([classes for classes, _ in chosen], ratio, "o-", color=colour, label=who, markersize=4)
            axis.axhline(1, color="#888", linewidth=1)
            axis.set_xscale("log", base=2)
            axis.set_ylim(0, 1.15)
            axis.grid(color="#e4e4e4")
            axis.set_title(f"{what.replace('_', ' ')}, {dtype}", loc="left", fontweight="bold")
            axis.spines[["top", "right"]].set_visible(False)
    axes[0, 0].legend(frameon=False, loc="lower right")
    for axis in axes[:, 0]:
        axis.set_ylabel("share of the memory's limit")
    for axis in axes[1]:
        axis.set_xlabel("classes")
    figure.savefig(directory / "cross_entropy_sweep.png", dpi=110)


def _by_bytes(measurements: list[dict], directory: pathlib.Path) -> None:
    figure, axis = plt.subplots(figsize=(7, 5), layout="constrained")
    for who, colour in COLOURS.items():
        points = [(m["bytes"], m["ms"][who]["value_and_grad"]) for m in measurements]
        axis.scatter(*zip(*points, strict=True), s=14, color=colour, label=who)
    limit = sorted((m["bytes"], m["ms"]["limit"]["value_and_grad"]) for m in measurements if m["target"] == "labels")
    axis.plot(*zip(*limit, strict=True), color="#888", linewidth=1, label="limit, with labels")
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xlabel("bytes of the prediction")
    axis.set_ylabel("value and gradient, ms")
    axis.grid(color="#e4e4e4")
    axis.legend(frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(directory / "losses_by_bytes.png", dpi=110)


def draw_linear(measurements: list[dict], path: pathlib.Path) -> None:
    """Draws time and memory of linear cross entropy over the number of tokens."""
    figure, axes = plt.subplots(1, 2, figsize=(12, 4.5), layout="constrained")
    colours = ("#1b5faa", "#6aa5e0", "#e0831a", "#7a7a7a")
    names = list(dict.fromkeys(m["who"] for m in measurements))
    for who, colour in zip(names, colours, strict=False):
        of = [m for m in measurements if m["who"] == who]
        for axis, key, scale in ((axes[0], "ms", 1.0), (axes[1], "temporary_bytes", 1e-9)):
            points = [(m["tokens"], m[key] * scale) for m in of if key in m]
            if points:
                axis.plot(*zip(*points, strict=True), "o-", color=colour, label=who, markersize=4)
    first = measurements[0]
    for axis, title in zip(axes, ("value and gradients, ms", "temporaries, GB"), strict=True):
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_xlabel("tokens")
        axis.set_title(title, loc="left", fontweight="bold")
        axis.grid(color="#e4e4e4")
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"linear cross entropy, {first['dtype']}, D = {first['width']}, V = {first['classes']}")
    axes[0].legend(frameon=False)
    figure.savefig(path, dpi=110)
