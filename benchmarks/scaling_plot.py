"""Scaling as a picture: efficiency over the number of devices, and where a step's time goes."""

import pathlib

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import matplotlib.ticker


def draw(measurements: list[dict], path: pathlib.Path) -> None:
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
    axis.legend(frameon=False, fontsize=8, loc="lower right")
