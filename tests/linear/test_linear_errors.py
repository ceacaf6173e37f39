"""Errors of the linear losses name the arguments that their callers have: hidden states and kernel, never logits."""

import inspect

import numpy as np
import pytest

import jaxloss

HIDDEN, KERNEL = np.zeros((2, 3, 4), np.float32), np.zeros((4, 5), np.float32)
LABELS = np.zeros((2, 3), np.int32)
TEACHER = np.zeros((2, 3, 6), np.float32), np.zeros((6, 5), np.float32)


def objective(tokens):
    return tokens.log_prob.sum()


OPERANDS = {
    "linear_cross_entropy": (LABELS,),
    "linear_cross_entropy_with_stats": (LABELS,),
    "linear_log_prob": (LABELS,),
    "linear_objective": (LABELS, objective),
    "linear_kl_divergence": TEACHER,
    "linear_jensen_shannon": TEACHER,
}
EXPECTED = (
    "expected the shape of the examples (2, 3), or an axis for each of hidden's, as long or 1 and 1 along the features"
)
# Of each argument, what is wrong, and the whole message.
WRONG = {
    "where": [
        (np.ones((3, 2), bool), f"where has shape (3, 2), hidden (2, 3, 4): {EXPECTED}"),
        (
            np.ones((2, 3, 5), bool),
            f"where has shape (2, 3, 5), hidden (2, 3, 4): {EXPECTED}; to mask classes, give them a bias of -Inf",
        ),
        (
            np.ones((2,), bool),
            f"where has shape (2,), hidden (2, 3, 4): {EXPECTED}; write where[..., None, None] if its axes are hidden's "
            f"first",
        ),
    ],
    "weights": [(np.ones((3, 2)), f"weights has shape (3, 2), hidden (2, 3, 4): {EXPECTED}")],
    "num_classes": [(6, "num_classes is 6, kernel has 5 classes: expected from 1 to 5")],
    "class_weights": [
        (np.ones(4), "class_weights has shape (4,), kernel has 5 classes: expected (5,), one number per class"),
        (
            np.ones((2, 3)),
            "class_weights has shape (2, 3), kernel has 5 classes: expected (5,), one number per class; weights= takes "
            "one per token",
        ),
    ],
}
CASES = [
    (name, argument, place)
    for name in OPERANDS
    for argument, cases in WRONG.items()
    if argument in inspect.signature(getattr(jaxloss, name)).parameters
    for place in range(len(cases))
]


@pytest.mark.parametrize(("name", "argument", "place"), CASES)
def test_the_whole_message(name, argument, place):
    value, message = WRONG[argument][place]
    with pytest.raises(ValueError, match="expected") as error:
        getattr(jaxloss, name)(HIDDEN, KERNEL, *OPERANDS[name], **{argument: value})
    assert str(error.value) == message


ODD = {
    "where": [np.ones(5, bool), np.ones((2, 3)), "x"],
    "weights": [np.ones((2, 3, 5)), np.ones(5), True],
    "num_classes": [0, 2.0, True],
    "class_weights": [np.ones((2, 3, 5)), "x"],
    "label_smoothing": [2.0, np.ones(3)],
    "z_loss": [-1.0, np.ones((2, 3))],
    "softcap": [0.0, np.ones(5)],
    "margin": [np.ones((2, 3))],
    "temperature": [0.0, np.ones((2, 3))],
    "ignore_index": [1.5],
    "shift": [-1],
    "normalizer": ["x", np.ones(3)],
    "labels": [
        np.zeros((2, 3)),
        np.zeros(3, int),
        np.zeros((2, 3, 1), int),
        np.zeros((2, 3, 5)),
        np.zeros((2, 3), bool),
    ],
    "kernel_axis": [2],
    "bias": [np.ones(4), np.ones(5, int)],
    "remainder": ["x", "spread"],
}


@pytest.mark.parametrize("name", OPERANDS)
def test_no_message_is_about_logits(name):
    """Whatever is wrong: no caller of a linear loss has any."""
    function, operands = getattr(jaxloss, name), (HIDDEN, KERNEL, *OPERANDS[name])
    parameters = [*inspect.signature(function).parameters]
    odd_ones = {argument: cases for argument, cases in ODD.items() if argument in parameters}
    for argument in parameters[: len(operands)]:
        if argument != "objective":
            no_operand = [None, np.zeros((2, 3, 4), int), np.zeros(()), np.zeros((2, 3, 4, 5))]
            odd_ones[argument] = [*odd_ones.get(argument, []), *no_operand]
    for argument, cases in odd_ones.items():
        for odd in cases:
            given, options = [*operands], {}
            if argument in parameters[: len(operands)]:
                given[parameters.index(argument)] = odd
            else:
                options[argument] = odd
            with pytest.raises((TypeError, ValueError)) as error:
                function(*given, **options)
            words = str(error.value)
            assert "logits" not in words, words
            assert "the prediction" not in words, words
