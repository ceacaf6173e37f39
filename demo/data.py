"""The three data sets, which scikit-learn ships: split, standardised, float32."""

from typing import NamedTuple

import numpy as np
from sklearn import datasets
from sklearn.model_selection import train_test_split

SPLIT_SEED = 3
TEST_SHARE = 0.25


class Split(NamedTuple):
    """Examples x [n, features] float32 and their targets y [n]: numbers float32, classes int32."""

    x: np.ndarray
    y: np.ndarray


class Data(NamedTuple):
    """A training and a test split, and how the targets were scaled: original = y * target_scale + target_mean."""

    train: Split
    test: Split
    target_mean: float = 0.0
    target_scale: float = 1.0


def diabetes() -> Data:
    """442 patients, ten measurements each; the target is how far the disease went in a year, standardised."""
    x, y = datasets.load_diabetes(return_X_y=True)
    train, test = _split(x, y)
    mean, scale = float(train.y.mean()), float(train.y.std())
    train, test = (Split(s.x, ((s.y - mean) / scale).astype(np.float32)) for s in (train, test))
    return Data(*_standardised(train, test, axis=0), target_mean=mean, target_scale=scale)


def digits() -> Data:
    """1797 handwritten digits of 8 by 8 pixels; the target is the class index."""
    x, y = datasets.load_digits(return_X_y=True)
    y = np.asarray(y, np.int32)
    # One mean and one scale for all pixels: the pixels in the corners are nearly constant.
    return Data(*_standardised(*_split(x, y, classes=y), axis=None))


def breast_cancer() -> Data:
    """569 tumours, thirty measurements each; the target is 1 for a malignant one, 0 for a benign one."""
    x, y = datasets.load_breast_cancer(return_X_y=True)
    malignant = 1 - np.asarray(y, np.float32)  # scikit-learn counts the benign ones as 1
    return Data(*_standardised(*_split(x, malignant, classes=malignant), axis=0))


def _split(x, y, classes: np.ndarray | None = None) -> tuple[Split, Split]:
    x_train, x_test, y_train, y_test = train_test_split(
        x, y, test_size=TEST_SHARE, random_state=SPLIT_SEED, stratify=classes
    )
    return Split(np.asarray(x_train), np.asarray(y_train)), Split(np.asarray(x_test), np.asarray(y_test))


def _standardised(train: Split, test: Split, axis: int | None) -> tuple[Split, Split]:
    """Both splits with the mean and the standard deviation of the training split."""
    mean, scale = train.x.mean(axis), train.x.std(axis)
    train, test = (Split(((s.x - mean) / scale).astype(np.float32), s.y) for s in (train, test))
    return train, test
