"""The sweeps as pictures: of cross entropy over classes and over bytes, and of linear cross entropy over tokens."""

import json
import pathlib

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

COLOURS = {"jaxloss": "#1b5faa", "xla": "#e0831a"}
NAMES = {"jaxloss": "jaxloss", "xla": "XLA"}
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
    """Share of the memory's limit, with the goal as a step where there is one."""
    dtypes = list(dict.fromkeys(row["dtype"] for row in rows))
    figure, axes = plt.subplots(
        2, len(dtypes), figsize=(6.2 * len(dtypes), 7), sharex=True, sharey=True, layout="constrained", squeeze=False
    )
    highest = 1.1
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
            ticks = [2**power for power in range(1, 31, 4) if 2**power <= 2 * classes[-1]]
            axis.set_xticks(ticks, [_short(tick).replace(" ", "") for tick in ticks])
            axis.minorticks_off()
            _plain(axis)
    for axis in axes[:, 0]:
        axis.set_ylabel("share of the memory's limit")
    for axis in axes[-1]:
        axis.set_xlabel("classes")
    axes[0, 0].set_ylim(0, highest)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc="outside lower center", ncols=len(labels), frameon=False)
    size = _short(max(row["bytes"] for row in rows))
    loss = rows[0]["loss"].replace("categorical", "Cross entropy").replace("_", "-")
    figure.suptitle(f"{loss} of {size}B of logits with labels, {device}", x=0.01, ha="left")
    return figure


def _by_bytes(rows: list[dict], device: str):
    """Time of value and gradient, with the time that memory alone takes."""
    dtypes = list(dict.fromkeys(row["dtype"] for row in rows))
    figure, axes = plt.subplots(
        1, len(dtypes), figsize=(6.2 * len(dtypes), 4.6), sharey=True, layout="constrained", squeeze=False
    )
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
        axis.set_xlabel("logits")
        axis.set_title(f"{dtype}, {chosen[0]['shape'][1]} classes", loc="left", fontweight="bold", fontsize=10)
        _plain(axis)
    axes[0, 0].set_ylabel("value and gradient, ms a call")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    axes[0, 0].legend(handles[::-1], labels[::-1], loc="upper left", frameon=False)
    figure.suptitle(f"Cross entropy with labels, {device}", x=0.01, ha="left")
    return figure


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
