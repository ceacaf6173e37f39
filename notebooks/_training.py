"""What the notebook about training shares: small data, batches of one size, and curves."""

from collections.abc import Iterator

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator
from sklearn import datasets, model_selection

CLASSES, FEATURES = 10, 64

Batch = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Images `[n, 64]`, labels `[n]`, and which of them are real: the rest fills the batch up."""


def digits() -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Handwritten digits of 8 × 8 pixels between 0 and 1, and their labels: for training, and for the test."""
    images, labels = (np.asarray(array) for array in datasets.load_digits(return_X_y=True))
    images, labels = (images / 16).astype(np.float32), labels.astype(np.int32)
    split = model_selection.train_test_split(images, labels, test_size=0.25, random_state=0)
    images, test_images, labels, test_labels = (np.asarray(array) for array in split)
    return (images, labels), (test_images, test_labels)


def shuffled(images: np.ndarray, labels: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The same in a random order."""
    order = np.random.default_rng(seed).permutation(len(images))
    return images[order], labels[order]


def batches(images: np.ndarray, labels: np.ndarray, size: int, seed: int) -> Iterator[Batch]:
    """One epoch in a random order. The last batch is filled up with zeros and with a label that is no class."""
    images, labels = shuffled(images, labels, seed)
    real = np.ones(len(images), bool)
    missing = -len(images) % size
    filled = (
        np.pad(images, ((0, missing), (0, 0))),
        np.pad(labels, (0, missing), constant_values=-1),
        np.pad(real, (0, missing)),
    )
    for start in range(0, len(filled[0]), size):
        images, labels, real = (array[start : start + size] for array in filled)
        yield images, labels, real


def curves(losses: dict[str, list[float]], title: str) -> Figure:
    """The loss of every epoch, one line for each way of training; lines that coincide differ in width and dashes."""
    figure, axes = plt.subplots(figsize=(7, 3.6))
    styles = (("#1f5fa8", "-", 6), ("#d97706", "-", 3), ("#c0392b", "--", 2), ("#6b7280", ":", 2))
    for (name, values), (color, dashes, width) in zip(losses.items(), styles, strict=False):
        axes.semilogy(range(1, len(values) + 1), values, dashes, color=color, linewidth=width, label=name)
    axes.set(title=title, xlabel="epoch", ylabel="loss (nats, logarithmic)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_locator(NullLocator())
    axes.legend()
    return figure
