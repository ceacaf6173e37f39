"""Linear cross entropy, distillation and the sigmoid loss of pairs under every transform that the other losses are put through, as a loss of hidden states."""

import jax
import numpy as np
import pytest

import jaxloss
import tolerance
from distillation_formula import rows
from linear_oracle import sample
from quickly import jit_quickly
from test_transforms import SHAPE, of_each
from transforms import HIGHER_ORDER, TRANSFORMS, Operands

CLASSES, CHUNK = 13, 2
TOKENS, WIDTH = SHAPE
FIRST, SECOND, THIRD = (sample((TOKENS,), WIDTH, CLASSES, seed=seed) for seed in range(3))
OPERANDS = Operands(
    x=FIRST.hidden,
    a=FIRST.labels,
    v=SECOND.hidden,
    w=FIRST.labels,
    xs=np.stack([FIRST.hidden, THIRD.hidden]),
    targets=np.stack([FIRST.labels, THIRD.labels]),
)


def kernel_of(hidden):
    """As many rows of the kernel as the hidden states are wide: some transforms take a corner of them."""
    return FIRST.kernel[: hidden.shape[-1]].astype(hidden.dtype)


def ours(hidden, labels, reduction):
    return jaxloss.linear_cross_entropy(hidden, kernel_of(hidden), labels, reduction=reduction, chunk_size=CHUNK)


def formula(hidden, labels, reduction):
    nll = -jax.nn.log_softmax(hidden @ kernel_of(hidden))
    losses = nll[np.arange(len(labels)), labels]
    return losses.mean() if reduction == "mean" else losses


def teacher_of(hidden):
    """As many of its hidden states, and its kernel."""
    return SECOND.hidden[: len(hidden)].astype(hidden.dtype), SECOND.kernel.astype(hidden.dtype)


def distilled(hidden, labels, reduction):
    operands = hidden, kernel_of(hidden), *teacher_of(hidden)
    return jaxloss.linear_jensen_shannon(*operands, labels=labels, reduction=reduction, chunk_size=CHUNK)


def distilled_formula(hidden, labels, reduction):
    teacher_hidden, teacher_kernel = teacher_of(hidden)
    losses = rows("js", hidden @ kernel_of(hidden), teacher_hidden @ teacher_kernel, labels=labels)
    return losses.mean() if reduction == "mean" else losses


def of_pairs(hidden, labels, reduction):
    del labels
    others, _ = teacher_of(hidden)
    options = {"scale": 3.0, "bias": -1.0, "reduction": reduction, "chunk_size": CHUNK}
    return jaxloss.sigmoid_contrastive(hidden, others[:, : hidden.shape[-1]], **options)


def formula_of_pairs(hidden, labels, reduction):
    del labels
    x = 3 * hidden @ teacher_of(hidden)[0][:, : hidden.shape[-1]].T - 1
    losses = jax.nn.softplus(np.where(np.eye(len(hidden)), -1, 1).astype(x.dtype) * x).sum(-1)
    return losses.mean() if reduction == "mean" else losses


LOSSES = {
    "cross entropy": (ours, formula),
    "distillation": (distilled, distilled_formula),
    "pairs": (of_pairs, formula_of_pairs),
}


@pytest.mark.parametrize(
    "what", [pytest.param(what, marks=[pytest.mark.slow] if what == "pairs" else []) for what in LOSSES]
)
@pytest.mark.parametrize("name", TRANSFORMS)
def test_agrees_with_the_formula(name, what):
    ours, formula = LOSSES[what]

    def run(loss, operands):
        return jit_quickly(lambda o: of_each(TRANSFORMS[name], loss, ("mean", "none"), o))(operands)

    actual = run(ours, OPERANDS)
    with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
        exact = jax.tree.map(lambda t: t if t.dtype.kind == "i" else t.astype(np.float64), OPERANDS)
        expected = jax.tree.map(np.asarray, run(formula, exact))
    # The logits are sums too, of as many terms as the hidden states are wide.
    operations = tolerance.OPERATIONS_OF_HIGHER_ORDER if name in HIGHER_ORDER else 2 * tolerance.OPERATIONS
    for result, ideal in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        tolerance.assert_close(result, ideal, name, operations=operations, terms=TOKENS * CLASSES, magnitude=1)
