"""The measurements as pictures."""

import pathlib

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import matplotlib.ticker

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


def draw_scaling(measurements: list[dict], path: pathlib.Path) -> None:
    """Draws efficiency over the number of devices for each placement, and where a step's time goes on all of them."""
    measured = [m for m in measurements if "ms" in m]
    if not measured:
        return
    placements = list(dict.fromkeys((m["loss"], m["split"]) for m in measured))
    styles = {"jaxloss": ("#1b5faa", "o"), "jaxloss, summed in bfloat16": ("#6aa5e0", "s"), "XLA": ("#e0831a", "^")}
    figure, axes = plt.subplots(2, 3, figsize=(13, 7.5), layout="constrained")
    most = max(m["devices"] for m in measured)
    for axis, placement in zip(axes.flat, placements, strict=False):
        for who, (colour, marker) in styles.items():
            for scaling, line in (("weak", "-"), ("strong", ":")):
                of = [m for m in measured if (m["loss"], m["split"], m["who"]) == (*placement, who)]
                points = sorted((m["devices"], m["efficiency"]) for m in of if m["scaling"] == scaling)
                if points:
                    devices, efficiency = zip((1, 1.0), *points, strict=True)
                    style = {"linestyle": line, "marker": marker, "color": colour, "markersize": 5}
                    axis.plot(devices, efficiency, label=f"{who}, {scaling}", **style)
        axis.axhline(1, color="#888", linewidth=1)
        axis.set_title(f"{placement[0]}, {placement[1]} split", loc="left", fontweight="bold", fontsize=10)
        axis.set_xscale("log", base=2)
        axis.set_xticks(sorted({1, *(m["devices"] for m in measured)}))
        axis.xaxis.set_major_formatter(lambda devices, _: f"{devices:g}")
        axis.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
        axis.set_ylim(0, 1.05 * max(1.05, *(m["efficiency"] for m in measured)))
        axis.set_xlabel("devices")
    for axis in axes[:, 0]:
        axis.set_ylabel("efficiency")
    weak = [m for m in measured if m["devices"] == most and m["scaling"] == "weak"]
    _parts_of_a_step(axes.flat[-1], weak, placements)
    for axis in axes.flat:
        axis.grid(color="#e4e4e4")
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    handles, labels = max((axis.get_legend_handles_labels() for axis in axes.flat[:-1]), key=lambda pair: len(pair[1]))
    figure.legend(handles, labels, frameon=False, loc="outside lower center", ncols=len(labels))
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _parts_of_a_step(axis, measured: list[dict], placements: list[tuple[str, str]]) -> None:
    """Bars of jaxloss: what a device alone takes for its part, and what the others cost it; and of XLA, its time."""
    short = {"cross entropy": "CE", "linear cross entropy": "linear"}
    for place, placement in enumerate(placements):
        of = {m["who"]: m for m in measured if (m["loss"], m["split"]) == placement}
        ours = of.get("jaxloss")
        if ours is None:
            continue
        local = min(1.0, ours["local_ms"] / ours["ms"])
        axis.barh(place - 0.2, local, 0.36, color="#1b5faa", label="alone" if place == 0 else None)
        axis.barh(place - 0.2, 1 - local, 0.36, left=local, color="#a9c8ea", label="exposed" if place == 0 else None)
        if "XLA" in of:
            xla = of["XLA"]["ms"] / ours["ms"]
            axis.barh(place + 0.2, xla, 0.36, color="#e0831a", label="XLA" if place == 0 else None)
            axis.text(xla, place + 0.2, f" {xla:.2f}", va="center", fontsize=8)
    axis.set_yticks(range(len(placements)), [f"{short[loss]}\n{split}" for loss, split in placements], fontsize=8)
    axis.invert_yaxis()
    devices = measured[0]["devices"] if measured else 0
    axis.set_title(f"time on {devices} devices, weak, by jaxloss's", loc="left", fontweight="bold", fontsize=10)
    axis.set_xlabel("time over jaxloss's")
    axis.set_xlim(0, 1.35 * axis.dataLim.x1)
    axis.legend(frameon=False, fontsize=8, loc="upper right")
