"""The measurements as pictures: the losses over classes and bytes, linear cross entropy over tokens, scaling."""

import json
import pathlib

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import matplotlib.ticker
from matplotlib.axes import Axes

COLOURS = {"jaxloss": "#1b5faa", "xla": "#e0831a"}
NAMES = {"jaxloss": "jaxloss", "xla": "XLA (optax)"}
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
    figure.suptitle(f"Cross entropy of {size}B of logits with labels, {device}", x=0.01, ha="left")
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
