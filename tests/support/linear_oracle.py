"""Cross entropy of `hidden @ kernel` in float64, with gradients by hand and the magnitudes of what was added up to them."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Sample:
    """Operands of a linear loss."""

    hidden: np.ndarray
    kernel: np.ndarray
    labels: np.ndarray
    bias: np.ndarray


def sample(tokens, width, classes, seed=0, dtype="float32", kernel_dtype=None, scale=1.0) -> Sample:
    """Random hidden states `[*tokens, width]`, a kernel that makes logits of deviation about `scale`, labels, a bias."""
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(*tokens, width))
    kernel = rng.normal(size=(width, classes)) * (scale / np.sqrt(width))
    labels = rng.integers(0, classes, tokens, np.int32)
    bias = rng.normal(size=classes)
    return Sample(hidden.astype(dtype), kernel.astype(kernel_dtype or dtype), labels, bias.astype(np.float32))


@dataclasses.dataclass(frozen=True)
class Expected:
    """Exact results, each with the magnitude of its terms; gradients of Σ cotangent · loss."""

    losses: tuple
    of_hidden: tuple
    of_kernel: tuple
    of_bias: tuple


def expected(s: Sample, cotangent, keep=None, with_bias=True) -> Expected:
    """Of tokens' losses and their sum with these factors; tokens that are not kept count nothing."""
    width = s.kernel.shape[0]
    keep = np.ones(s.labels.shape, bool) if keep is None else np.broadcast_to(keep, s.labels.shape)
    hidden = np.where(keep[..., None], s.hidden, 0).astype(np.float64).reshape(-1, width)
    kernel, bias = s.kernel.astype(np.float64), s.bias.astype(np.float64) * with_bias
    labels = np.where(keep, s.labels, 0).reshape(-1)
    factor = (np.broadcast_to(cotangent, keep.shape) * keep).astype(np.float64).reshape(-1)
    logits, size = hidden @ kernel + bias, np.abs(hidden) @ np.abs(kernel) + np.abs(bias)
    maximum = logits.max(-1, keepdims=True)
    lse = maximum + np.log(np.exp(logits - maximum).sum(-1, keepdims=True))
    softmax = np.exp(logits - lse)
    rows = np.arange(len(labels))
    losses = (lse[:, 0] - logits[rows, labels]) * keep.reshape(-1)
    one_hot = np.zeros_like(logits)
    one_hot[rows, labels] = 1
    d_logits = (softmax - one_hot) * factor[:, None]
    # A logit errs like the sum that made it, and its row's softmax with it.
    d_size = (softmax + one_hot) * np.abs(factor)[:, None] * (1 + size.max(-1, keepdims=True))

    def of_tokens(array):
        return array.reshape((*keep.shape, *array.shape[1:]))

    return Expected(
        losses=(of_tokens(losses), of_tokens(size.max(-1) + np.abs(lse[:, 0]))),
        of_hidden=(of_tokens(d_logits @ kernel.T), of_tokens(d_size @ np.abs(kernel).T)),
        of_kernel=(hidden.T @ d_logits, np.abs(hidden).T @ d_size),
        of_bias=(d_logits.sum(0), d_size.sum(0)),
    )
