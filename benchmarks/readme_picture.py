"""The README's picture: time and memory of a loss beside those of its peers, all from results/.

python -m benchmarks.readme_picture     writes docs/images/speed_light.svg and docs/images/speed_dark.svg

A page shows it as wide as a telephone, too: panels are stacked, and letters are a thirtieth of the width.
"""

import dataclasses
import json
import pathlib

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from benchmarks.record import RESULTS

IMAGES = pathlib.Path(__file__).parents[1] / "docs" / "images"

WIDTH, BAR, NAME, TITLE, FOOT = 640, 34, 34, 84, 48
"""Points: of the picture, a bar, a group's name, a heading, the last line."""
THEMES = {
    "light": {"text": "#1f2328", "jaxloss": "#1b5faa", "other": "#c96f0c", "limit": "#1f2328", "on bar": "#ffffff"},
    "dark": {"text": "#f0f3f6", "jaxloss": "#5aa2f0", "other": "#e8983a", "limit": "#f0f3f6", "on bar": "#0d1117"},
}
LINEAR = {
    "jaxloss": "jaxloss",
    "torch.compile": "torch.compile",
    "Liger": "Liger",
    "tokamax": "tokamax",
    "whole logits": "XLA, whole logits",
    "scan and checkpoint": "XLA, checkpointed scan",
}
"""Whom the linear loss is compared with, and what the picture calls them; who was not measured is not drawn. Nor is
jax-cce, which takes three times as long as they do: it would leave their bars no room."""


@dataclasses.dataclass(frozen=True)
class Bar:
    """One bar: who, how long it is, and where the group has its limit, if there is one."""

    who: str
    length: float
    limit: float | None = None


@dataclasses.dataclass(frozen=True)
class Panel:
    """A heading in two lines, the unit, and groups of bars with a line of text above each; no text, no line."""

    title: str
    subtitle: str
    unit: str
    groups: dict[str, list[Bar]]


def read(name: str) -> dict:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def shape(*sizes: int) -> str:
    return " × ".join(map(str, sizes))


def cross_entropy(kept: dict) -> Panel:
    """Value and gradient of three shapes and types of logits, with the time that a copy of them takes."""
    drawn = (("bfloat16", [8192, 128256]), ("bfloat16", [16384, 32000]), ("float32", [8192, 32768]))
    groups = {}
    for dtype, sizes in drawn:
        (found,) = [
            row
            for row in kept["measurements"]
            if (row["part"], row["loss"], row["target"]) == ("table", "categorical", "labels")
            and (row["dtype"], row["shape"]) == (dtype, sizes)
        ]
        ms = {who: times["value_and_grad"] for who, times in found["ms"].items()}
        names = {"jaxloss": "jaxloss", "torch.compile": "torch.compile", "Liger": "Liger", "xla": "XLA"}
        bars = [Bar(name, ms[who], ms["limit"]) for who, name in names.items() if who in ms]
        groups[f"{dtype} {shape(*sizes)}"] = bars
    return Panel("Cross entropy", "value and gradient; the line: a copy of the logits", "ms", groups)


def linear_cross_entropy(kept: dict) -> list[Panel]:
    """Time and temporaries of value and gradients for the largest number of tokens that all were measured at."""
    found = [row for row in kept["measurements"] if row["what"] == "value_and_grad" and row["who"] in LINEAR]
    tokens = max(row["tokens"] for row in found)
    of = {row["who"]: row for row in found if row["tokens"] == tokens and "ms" in row}
    sizes = shape(*(of["jaxloss"][key] for key in ("tokens", "width", "classes")))
    time = [Bar(name, of[who]["ms"]) for who, name in LINEAR.items() if who in of]
    memory = [Bar(name, of[who]["temporary_bytes"] / 1e9) for who, name in LINEAR.items() if who in of]
    title = "Linear cross entropy"
    return [
        Panel(f"{title}, time", f"value and gradients, {of['jaxloss']['dtype']} {sizes}", "ms", {"": time}),
        Panel(f"{title}, memory", "temporaries of the same", "GB", {"": memory}),
    ]


def panels() -> tuple[list[Panel], str]:
    """What is drawn, from top to bottom, and on which device it was measured."""
    losses, linear = read("losses_torch_gpu"), read("linear_cross_entropy_gpu")
    assert losses["device"] == linear["device"], "one picture is of one device"
    return [cross_entropy(losses), *linear_cross_entropy(linear)], losses["device"]


def number(length: float) -> str:
    """In three digits, without those behind the point that would be a fourth."""
    return f"{length:.0f}" if length >= 100 else f"{length:.1f}" if length >= 10 else f"{length:.2f}"


def height(panel: Panel) -> float:
    bars = sum(len(bars) for bars in panel.groups.values())
    return TITLE + BAR * bars + NAME * sum(bool(name) for name in panel.groups)


def draw_panel(axes: Axes, panel: Panel, theme: dict[str, str]) -> None:
    """Bars from the left edge, each with its name and its number in it or behind it."""
    longest = max(bar.length for bars in panel.groups.values() for bar in bars)
    axes.set(xlim=(0, longest * 1.02), ylim=(height(panel), 0))
    axes.axis("off")
    axes.text(0, 36, panel.title, fontsize=24, fontweight="bold", color=theme["text"], va="baseline")
    axes.text(0, 65, panel.subtitle, fontsize=19, color=theme["text"], va="baseline")
    top = TITLE
    for name, bars in panel.groups.items():
        if name:
            axes.text(0, top + 25, name, fontsize=19, color=theme["text"], va="baseline")
            top += NAME
        for bar in bars:
            color = theme["jaxloss" if bar.who == "jaxloss" else "other"]
            (drawn,) = axes.barh(top + BAR / 2, bar.length, BAR - 5, color=color)
            drawn.set_gid(f"bar: {panel.title}: {name}: {bar.who}")
            label = f"{bar.who} {number(bar.length)} {panel.unit}"
            inside = bar.length > 0.45 * longest
            axes.text(
                bar.length - 0.012 * longest if inside else bar.length + 0.012 * longest,
                top + BAR / 2 + 7,
                label,
                fontsize=20,
                fontweight="bold" if bar.who == "jaxloss" else "normal",
                color=theme["on bar" if inside else "text"],
                ha="right" if inside else "left",
                va="baseline",
            )
            if bar.limit:
                axes.plot([bar.limit] * 2, [top + 1, top + BAR - 1], color=theme["limit"], linewidth=3)
            top += BAR


def draw(theme: str, path: pathlib.Path) -> None:
    """Writes the picture: an SVG whose text is text, without a background, for a page of that theme."""
    drawn, device = panels()
    heights = [height(panel) for panel in drawn]
    style = {"svg.fonttype": "none", "svg.hashsalt": "jaxloss", "font.family": ["DejaVu Sans", "sans-serif"]}
    with matplotlib.rc_context(style):
        total = sum(heights) + FOOT
        figure = plt.figure(figsize=(WIDTH / 72, total / 72))
        top = total
        for panel, tall in zip(drawn, heights, strict=True):
            draw_panel(figure.add_axes((0.005, (top - tall) / total, 0.99, tall / total)), panel, THEMES[theme])
            top -= tall
        figure.text(0.005, 12 / total, f"{device}; lower is better", fontsize=19, color=THEMES[theme]["text"])
        figure.savefig(path, transparent=True, metadata={"Date": None, "Creator": None})
        plt.close(figure)


if __name__ == "__main__":
    for theme in THEMES:
        draw(theme, IMAGES / f"speed_{theme}.svg")
        print(IMAGES / f"speed_{theme}.svg")
