"""How the notebooks draw: one style, a description in words beside every figure, and figures that follow sliders."""

import asyncio
import base64
import html
import io
import threading
from collections.abc import Callable

import ipywidgets as widgets
import matplotlib.pyplot as plt
from IPython.display import display
from matplotlib.figure import Figure

BLUE, ORANGE, RED, GREY = "#1f5fa8", "#d97706", "#c0392b", "#6b7280"
"""Told apart by those who confuse red and green, too; lines that cross also differ in their dashes."""

REDRAW_SECONDS = 0.03
"""How long a figure waits for the next of a slider's values before it is drawn."""

plt.rcParams.update(
    {
        "figure.dpi": 96,
        "figure.constrained_layout.use": True,
        "figure.facecolor": "white",  # not transparent: on a dark page dark text would vanish
        "savefig.facecolor": "white",
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.edgecolor": GREY,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlesize": 11,
        "grid.color": "#e5e7eb",
        "legend.frameon": False,
        "lines.linewidth": 2,
    }
)


def show(figure: Figure, description: str) -> None:
    """Displays a figure. The description is its alternative text, and all that a text-only reader is shown."""
    display(
        {"image/png": base64.b64encode(png(figure)).decode(), "text/plain": description},
        metadata={"image/png": {"alt": description}},
        raw=True,
    )
    plt.close(figure)


def png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def live(draw: Callable[..., tuple[Figure, str]], *controls: widgets.ValueWidget) -> widgets.HTML:
    """The figure that `draw` makes, with its description, of the controls' values, and again when one of them moves.

    While a figure is drawn a slider may send many values. They do not queue: the next figure is of the latest one.
    JupyterLab 4.6 with ipykernel 7 has messages of one slider in several threads: so figures are drawn one after the
    other, each of the values that there are then, and none of an older value comes last.
    """
    picture = widgets.HTML()
    waiting: asyncio.TimerHandle | None = None
    drawing = threading.Lock()

    def redraw() -> None:
        nonlocal waiting
        waiting = None
        with drawing:
            picture.value = as_html(*draw(*(control.value for control in controls)))

    def moved(_) -> None:
        nonlocal waiting
        if waiting is None:
            waiting = asyncio.get_running_loop().call_later(REDRAW_SECONDS, redraw)

    for control in controls:
        control.observe(moved, names="value")
    redraw()
    return picture


def as_html(figure: Figure, description: str) -> str:
    """An image with its alternative text, and its size, so that a page does not jump when it is replaced."""
    width, height = (round(inches * figure.dpi) for inches in figure.get_size_inches())
    source = base64.b64encode(png(figure)).decode()
    plt.close(figure)
    return (
        f'<img src="data:image/png;base64,{source}" alt="{html.escape(description)}" decoding="sync" '
        f'width="{width}" height="{height}" style="max-width: 100%; height: auto">'
    )


def slider(name: str, value: float, low: float, high: float, width: str = "420px") -> widgets.FloatSlider:
    return widgets.FloatSlider(
        value,
        min=low,
        max=high,
        step=0.05,
        description=name,
        style={"description_width": "80px"},
        layout=widgets.Layout(width=width, max_width="100%"),
    )


def checkbox(name: str, value: bool) -> widgets.Checkbox:
    return widgets.Checkbox(value, description=name, indent=False, layout=widgets.Layout(width="auto"))
