"""The pictures of options.md: what each option does to a loss, as jaxloss computes it.

python docs/draw_options.py     writes docs/images/options/NAME_light.svg and NAME_dark.svg
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np

import jaxloss

matplotlib.use("Agg")
import matplotlib.pyplot as plt

IMAGES = pathlib.Path(__file__).with_name("images") / "options"
THEMES = {
    "light": {"text": "#1f2328", "grid": "#d9dee3", "series": ("#6b7280", "#1b5faa", "#c96f0c")},
    "dark": {"text": "#f0f3f6", "grid": "#3d444d", "series": ("#a6adb8", "#5aa2f0", "#e8983a")},
}
TEXTS = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "jaxloss",
    "path.simplify": False,
    "font.family": ["DejaVu Sans", "sans-serif"],
    "font.size": 14,
    "legend.fontsize": 13,
    "legend.frameon": False,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
DASHES = (":", "-", "--")  # told apart without colours, too
GAP = np.linspace(-8, 8, 81, dtype=np.float32)
LEAD = "lead of the label's logit"
CLASSES = 5

cross_entropy = functools.partial(jaxloss.categorical_cross_entropy, reduction="none")
binary = functools.partial(jaxloss.binary_cross_entropy, reduction="none", clip=None)


@dataclasses.dataclass(frozen=True)
class Chart:
    """Lines over x, or bars at it, one series for each setting of an option: at most three."""

    xlabel: str
    ylabel: str
    x: np.ndarray
    series: dict[str, jax.Array]
    bars: bool = False


def leading(classes: int = CLASSES) -> jax.Array:
    """Rows of logits, 0 but for the label's, class 0, which goes through GAP."""
    return jnp.zeros((len(GAP), classes)).at[:, 0].set(GAP)


def of_lead(sign: str, settings: dict[str, dict]) -> Chart:
    """The loss against the lead of the label, for settings that are called by what the sign is."""
    label = jnp.zeros(len(GAP), jnp.int32)
    return Chart(
        LEAD, "loss", GAP, {f"{sign} = {name}": cross_entropy(leading(), label, **of) for name, of in settings.items()}
    )


def of_logit(sign: str, settings: dict[str, dict], target: float = 1.0) -> Chart:
    """Binary cross entropy against the logit."""
    return Chart(
        f"logit, for a target of {target:g}",
        "loss",
        GAP,
        {f"{sign} = {name}": binary(GAP, np.full_like(GAP, target), **of) for name, of in settings.items()},
    )


def settings(option: str, *numbers: float | None) -> dict[str, dict]:
    return {"None" if number is None else f"{number:g}": {option: number} for number in numbers}


def class_weights() -> Chart:
    """Of rows whose label has the weight."""
    weights = {f"{w:g}": {"class_weights": jnp.ones(CLASSES).at[0].set(w)} for w in (0.5, 1.0, 2.0)}
    return of_lead("w", weights)


def z_loss() -> Chart:
    """Of two classes, to whose logits one number is added."""
    shift = np.linspace(-10, 10, 81, dtype=np.float32)
    logits, label = jnp.stack([shift + 1, shift], 1), jnp.zeros(len(shift), jnp.int32)
    series = {f"ζ = {z:g}": cross_entropy(logits, label, z_loss=z) for z in (0.0, 1e-3, 1e-2)}
    return Chart("what is added to all logits", "loss", shift, series)


def softcap() -> Chart:
    """The logits as the softmax sees them: differences of log-probabilities from a class of logit 0."""
    x = np.linspace(-12, 12, 97, dtype=np.float32)
    logits = jnp.stack([x, jnp.zeros_like(x)], 1)

    def capped(s: float | None) -> jax.Array:
        first, other = (jaxloss.log_prob(logits, np.full(len(x), label), softcap=s) for label in (0, 1))
        return first - other

    return Chart("logit x", "z", x, {f"s = {s}": capped(s) for s in (None, 6, 3)})


def temperature() -> Chart:
    """The probabilities of one row."""
    logits, classes = jnp.tile(jnp.array([2.0, 1.0, 0.0, -1.0, -2.0]), (CLASSES, 1)), np.arange(CLASSES)
    probabilities = {f"T = {t:g}": jnp.exp(jaxloss.log_prob(logits, classes, temperature=t)) for t in (0.5, 1.0, 2.0)}
    return Chart("class", "probability", classes, probabilities, bars=True)


def num_classes() -> Chart:
    """The gradient of one row of zeros, whose label is 0, with and without what pads it."""
    gradient = functools.partial(jaxloss.d_categorical_cross_entropy, jnp.zeros((1, 8)), jnp.zeros(1, jnp.int32))
    series = {f"K = {k or 'None'}": gradient(num_classes=k)[0] for k in (None, CLASSES)}
    return Chart("class, of 8", "gradient", np.arange(8), series, bars=True)


def mixup() -> Chart:
    """Of two classes, between which the target is divided."""
    logits, first = jnp.stack([GAP, jnp.zeros_like(GAP)], 1), jnp.zeros(len(GAP), jnp.int32)
    series = {f"λ = {share:g}": cross_entropy(logits, (first, first + 1, share)) for share in (1.0, 0.7, 0.5)}
    return Chart("lead of the first label's logit", "loss", GAP, series)


def some_classes() -> Chart:
    """The gradient of one row of zeros, whose target lists classes 0 and 3."""
    target = jnp.array([[0, 3]]), jnp.array([[0.6, 0.2]])
    gradient = functools.partial(jaxloss.d_categorical_cross_entropy, jnp.zeros((1, CLASSES)), target)
    series = {f'remainder="{name}"': gradient(remainder=name)[0] for name in ("drop", "spread")}
    return Chart("class; 0.6 and 0.2 are given to 0 and 3", "gradient", np.arange(CLASSES), series, bars=True)


def binary_class_weights() -> Chart:
    """Of one label, whose weight it is."""
    logits, target = GAP[:, None], np.ones((len(GAP), 1), np.float32)
    series = {f"c = {c:g}": binary(logits, target, class_weights=np.full(1, c, np.float32))[:, 0] for c in (0.5, 1, 2)}
    return Chart("logit, for a target of 1", "loss", GAP, series)


def clip() -> Chart:
    """Value and gradient of a wrong prediction."""
    gap = np.linspace(-30, 5, 71, dtype=np.float32)
    logits, label = jnp.stack([gap, jnp.zeros_like(gap)], 1), jnp.zeros(len(gap), jnp.int32)
    gradient = jaxloss.d_categorical_cross_entropy(logits, label, reduction="sum")[:, 0]
    series = {f"value, c = {c}": cross_entropy(logits, label, clip=c) for c in (None, 1e-7)}
    return Chart(LEAD, "value, gradient", gap, {**series, "gradient, with either": gradient})


CHARTS: dict[str, Callable[[], Chart]] = {
    "label_smoothing": lambda: of_lead("ε", settings("label_smoothing", 0.0, 0.1, 0.3)),
    "class_weights": class_weights,
    "z_loss": z_loss,
    "softcap": softcap,
    "margin": lambda: of_lead("m", settings("margin", 0.0, 1.5, 3.0)),
    "temperature": temperature,
    "num_classes": num_classes,
    "mixup": mixup,
    "some_classes": some_classes,
    "clip": clip,
    "pos_weight": lambda: of_logit("p", settings("pos_weight", 1.0, 2.0, 4.0)),
    "binary_class_weights": binary_class_weights,
    "binary_label_smoothing": lambda: of_logit("ε", settings("label_smoothing", 0.0, 0.1, 0.3)),
    "focal_gamma": lambda: of_logit("γ", settings("focal_gamma", 0.0, 1.0, 3.0)),
    "focal_alpha": lambda: of_logit("α", settings("focal_alpha", None, 0.25, 0.75)),
}


def draw(chart: Chart, theme: str, path: pathlib.Path) -> None:
    """Writes an SVG whose text is text, without a background, for a page of that theme."""
    colors = THEMES[theme]
    style: dict = dict.fromkeys(TEXTS, colors["text"]) | STYLE | {"grid.color": colors["grid"]}
    with matplotlib.rc_context(style):
        figure, axes = plt.subplots(figsize=(480 / 72, 250 / 72), layout="constrained")
        for place, (name, values) in enumerate(chart.series.items()):
            color, gid = colors["series"][place], f"series: {name}"
            if chart.bars:
                width = 0.8 / len(chart.series)
                at = chart.x + (place - (len(chart.series) - 1) / 2) * width
                for number, bar in enumerate(axes.bar(at, np.asarray(values), width * 0.9, color=color, label=name)):
                    bar.set_gid(f"{gid}: {number}")
            else:
                dashes = DASHES[place]
                axes.plot(chart.x, np.asarray(values), dashes, color=color, linewidth=2.5, label=name, gid=gid)
        axes.set(xlabel=chart.xlabel, ylabel=chart.ylabel)
        if chart.bars:
            axes.set_xticks(chart.x)
            axes.axhline(0, color=colors["text"], linewidth=0.8)
        axes.grid(axis="y" if chart.bars else "both")
        axes.legend()
        figure.savefig(path, transparent=True, metadata={"Date": None, "Creator": None})
        plt.close(figure)


if __name__ == "__main__":
    IMAGES.mkdir(exist_ok=True)
    for name, chart in CHARTS.items():
        for theme in THEMES:
            draw(chart(), theme, IMAGES / f"{name}_{theme}.svg")
        print(name)
