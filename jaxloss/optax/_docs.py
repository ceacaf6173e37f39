"""What the drop-ins of a family have in common in their documentation."""

from jaxloss._docs.described import table

ERRORS = table(r"""
    predictions: $x$, of a floating-point type.
    targets: $a$ in $e = x - a$; broadcasts with <operand>. Default: 0.
    Returns: An array of the shape and type that the operands broadcast and promote to.
    TypeError: <operand> is not floating-point.
    ValueError: shapes do not broadcast.
    """)
"""Losses of errors."""

ERRORS_OF_ONE_SHAPE = table(
    r"""
    predictions: $x$, `[...]` of a floating-point type.
    targets: $a$, of the same shape and any real type. Default: 0.
    Returns: An array like <operand>, of the type that the operands promote to.
    ValueError: the shapes are not equal.
    """,
    ERRORS,
)
"""Losses of errors of a prediction and a target that do not broadcast."""

MARGINS = table(r"""
    predictor_outputs: $x$, of any real type.
    targets: $a$, -1 or 1; broadcasts with $x$.
    Returns: An array of the shape and type that the operands broadcast and promote to.
    ValueError: shapes do not broadcast.
    """)
"""Losses of the product of a prediction and a target of -1 or 1."""

SIGMOIDS = table(r"""
    logits: $x$, of a floating-point type.
    labels: probabilities $a$, of any real type; broadcasts with `logits`.
    Returns: An array of the shape that the operands broadcast to, of the type of `logits`.
    TypeError: `logits` is not floating-point.
    ValueError: shapes do not broadcast.
    """)
"""Losses of elements whose logit is that of one class of two."""

SOFTMAXES = table(r"""
    logits: $x$, of a floating-point type. A class whose logit is -Inf is masked: its probability is 0, and it costs
        nothing while its label is 0.
    labels: $a$, probabilities, of any real type; broadcasts with `logits`.
    axis: the class axis or axes; None for all.
    where: a boolean mask that broadcasts with `logits`, false for classes that a row does not have; or one boolean per
        row (without the class axes), false for masked rows. A row without classes has loss 0. What is masked may hold
        anything.
    Returns: An array without the class axes, of the type that `logits` and `labels` promote to.
    TypeError: `logits` is not floating-point.
    ValueError: shapes do not broadcast, `axis` is none of `logits`, or `where` is not boolean.
    """)
"""Losses of rows of logits."""

DIVERGENCES = table(r"""
    log_predictions: $\log p$, of a floating-point type.
    targets: $a$, probabilities, of a floating-point type; broadcasts with `log_predictions`.
    axis: the axis or axes that are summed over; None for all.
    where: booleans that broadcast with the operands, false for masked elements, which may hold anything.
    Returns: An array without the axes that were summed over, of the type that the operands promote to.
    TypeError: an operand is not floating-point.
    ValueError: shapes do not broadcast, `axis` is none of the operands', or `where` is not boolean.
    """)
"""Divergences of a prediction from a target."""
