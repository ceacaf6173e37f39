"""The sweeps as pictures: of cross entropy over classes and over bytes, and of linear cross entropy over tokens.

python -m benchmarks.plots     draws those of results/ again; the benchmarks themselves draw what they have measured
"""

import json
import pathlib

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator

from benchmarks.record import RESULTS

COLOURS = {"jaxloss": "#1b5faa", "xla": "#e0831a"}
NAMES = {"jaxloss": "jaxloss", "xla": "XLA"}
WIDTH = 8.4
"""Inches of a whole picture: a page shows about as many, so that letters keep their size."""
WHAT = {"value": "value", "value_and_grad": "value and gradient"}


def draw(file: pathlib.Path) -> list[pathlib.Path]:
    """Draws what `losses --sweep` wrote, beside it as NAME_by_classes.png and NAME_by_bytes.png, and returns where."""
    written = json.loads(file.read_text())
    rows = [row for row in written["measurements"] if "error" not in row]
    device = written["device"]
    drawn = []
    for part, picture in (("classes", _by_classes), ("bytes", _by_bytes)):
        if chosen := [row for row in rows if row["part"] == part]:
            figure = picture(chosen, device)
            drawn.append(file.with_name(f"{file.stem}_by_{part}.png"))
            figure.savefig(drawn[-1], dpi=110)
            plt.close(figure)
    return drawn


def _plain(axis: Axes) -> None:
    axis.grid(color="#e4e4e4")
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)


def _short(number: float) -> str:
    for power, unit in ((30, "G"), (20, "M"), (10, "K")):
        if number >= 2**power:
            return f"{number / 2**power:.3g} {unit}"
    return f"{number:g}"


def _of_type(rows: list[dict], dtype: str, size) -> list[dict]:
    return sorted((row for row in rows if row["dtype"] == dtype), key=size)


def _by_classes(rows: list[dict], device: str):
    """Fraction of the memory bandwidth, with the goal as a step where there is one."""
    dtypes = list(dict.fromkeys(row["dtype"] for row in rows))
    figure, axes = plt.subplots(
        2, len(dtypes), figsize=(WIDTH, 6.4), sharex=True, sharey=True, layout="constrained", squeeze=False
    )
    highest, most = 1.1, max(row["shape"][1] for row in rows)
    for column, dtype in enumerate(dtypes):
        chosen = _of_type(rows, dtype, lambda row: row["shape"][1])
        classes = [row["shape"][1] for row in chosen]
        for axis, what in zip(axes[:, column], WHAT, strict=True):
            for who in ("xla", "jaxloss"):
                share = [row["ms"]["limit"][what] / row["ms"][who][what] for row in chosen]
                highest = max(highest, 1.05 * max(share))
                axis.plot(classes, share, "o-", color=COLOURS[who], label=NAMES[who], markersize=4, linewidth=1.6)
            axis.axhline(1, color="#888", linewidth=1)
            goals = [row["goals"][what]["of_limit"] for row in chosen]
            if all(goals):
                shares = [1 / goal for goal in goals]
                axis.step(classes, shares, where="post", color="#888", linewidth=1, linestyle=":", label="goal")
            axis.set_title(f"{WHAT[what]}, {dtype}", loc="left", fontweight="bold", fontsize=10)
            axis.set_xscale("log", base=2)
            ticks = [2**power for power in range(1, 31, 4) if 2**power <= 2 * most]
            axis.set_xticks(ticks, [_short(tick).replace(" ", "") for tick in ticks])
            axis.minorticks_off()
            _plain(axis)
    for axis in axes[:, 0]:
        axis.set_ylabel("fraction of memory bandwidth")
    for axis in axes[-1]:
        axis.set_xlabel("classes (logarithmic)")
    axes[0, 0].set_ylim(0, highest)
    lines = {label: line for axis in axes.flat for line, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend([*lines.values()][::-1], [*lines][::-1], loc="outside lower center", ncols=len(lines), frameon=False)
    size = _short(max(row["bytes"] for row in rows))
    loss = rows[0]["loss"].replace("categorical", "Cross entropy").replace("_", "-")
    figure.suptitle(f"{loss} of {size}B of logits with labels, {device}", x=0.01, ha="left")
    return figure


def _by_bytes(rows: list[dict], device: str):
    """Time of value and gradient, with the time that memory alone takes."""
    dtypes = list(dict.fromkeys(row["dtype"] for row in rows))
    figure, axes = plt.subplots(1, len(dtypes), figsize=(WIDTH, 4), sharey=True, layout="constrained", squeeze=False)
    for axis, dtype in zip(axes[0], dtypes, strict=True):
        chosen = _of_type(rows, dtype, lambda row: row["bytes"])
        sizes = [row["bytes"] for row in chosen]
        limit = [row["ms"]["limit"]["value_and_grad"] for row in chosen]
        axis.plot(sizes, limit, color="#888", linewidth=1.2, linestyle="--", label="limit: a copy")
        for who in ("xla", "jaxloss"):
            times = [row["ms"][who]["value_and_grad"] for row in chosen]
            axis.plot(sizes, times, "o-", color=COLOURS[who], label=NAMES[who], markersize=4, linewidth=1.6)
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter("{x:g}")
        ticks = [2**power for power in range(10, 36, 4) if sizes[0] / 4 <= 2**power <= sizes[-1] * 4]
        axis.set_xticks(ticks, [f"{_short(tick)}B" for tick in ticks])
        axis.minorticks_off()
        axis.set_xlabel("bytes of the logits (logarithmic)")
        axis.set_title(f"{dtype}, {chosen[0]['shape'][1]} classes", loc="left", fontweight="bold", fontsize=10)
        _plain(axis)
    axes[0, 0].set_ylabel("value and gradient, ms (logarithmic)")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    axes[0, 0].legend(handles[::-1], labels[::-1], loc="upper left", frameon=False)
    figure.suptitle(f"Cross entropy with labels, {device}", x=0.01, ha="left")
    return figure


def draw_linear(file: pathlib.Path) -> pathlib.Path:
    """Draws time and memory over tokens of what `linear_cross_entropy` wrote, beside it, and returns where."""
    written = json.loads(file.read_text())
    measurements = [row for row in written["measurements"] if row["what"] == "sweep"]
    figure, axes = plt.subplots(1, 2, figsize=(WIDTH, 4.2), layout="constrained")
    colours = ("#1b5faa", "#6aa5e0", "#e0831a", "#7a7a7a")
    names = list(dict.fromkeys(m["who"] for m in measurements))
    for who, colour in zip(names, colours, strict=False):
        of = [m for m in measurements if m["who"] == who]
        for axis, key, scale in ((axes[0], "ms", 1.0), (axes[1], "temporary_bytes", 1e-9)):
            points = [(m["tokens"], m[key] * scale) for m in of if key in m]
            if points:
                axis.plot(*zip(*points, strict=True), "o-", color=colour, label=who, markersize=4)
    first = measurements[0]
    tokens = sorted({m["tokens"] for m in measurements})
    for axis, title in zip(axes, ("value and gradients, ms", "temporaries, GB"), strict=True):
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_xticks(tokens, [_short(count).replace(" ", "") for count in tokens])
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 3)))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.minorticks_off()
        axis.set_xlabel("tokens (logarithmic)")
        axis.set_title(f"{title} (logarithmic)", loc="left", fontweight="bold", fontsize=10)
        _plain(axis)
    shape = f"{first['dtype']}, {first['width']} features, {first['classes']} classes"
    figure.suptitle(f"Linear cross entropy, {shape}, {written['device']}", x=0.01, ha="left")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    figure.savefig(file.with_suffix(".png"), dpi=110)
    plt.close(figure)
    return file.with_suffix(".png")


if __name__ == "__main__":
    drawn = [picture for file in sorted(RESULTS.glob("losses*_sweep_*.json")) for picture in draw(file)]
    print(*drawn, draw_linear(RESULTS / "linear_cross_entropy_gpu.json"), sep="\n")
