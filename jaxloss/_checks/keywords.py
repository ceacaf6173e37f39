"""Arguments that are given without their names, or by names that a loss does not have."""

import difflib
from typing import Any, get_args

import numpy as np

from jaxloss._types import Reduction, TargetType


def positional_options(function: str, names: tuple[str, ...], operands: int, args: tuple[Any, ...]) -> TypeError:
    """The error for options without their names, which says how to write them."""
    keywords = [_keyword(x, names[operands:]) for x in args[operands:]]
    written = [
        f"{name}={x!r}" if isinstance(x, str | int | float) else f"{name}=..."
        for name, x in zip(keywords, args[operands:], strict=True)
    ]
    unambiguous = all(keywords) and len(set(keywords)) == len(keywords)
    advice = ", ".join(written) if unambiguous else f"its options as keywords: {', '.join(names[operands:])}"
    takes = f"{operands} positional argument{'s' if operands > 1 else ''}"
    return TypeError(f"{function}() takes {takes} but {len(args)} were given: write {advice}")


_ELSEWHERE = {
    "_input": ("hidden",),
    "alpha": ("focal_alpha", "label_smoothing", "beta", "q"),
    "attention_mask": ("where",),
    "axis": ("kernel_axis",),
    "beta": ("delta",),
    "chunk": ("chunk_size",),
    "dim": ("axis", "kernel_axis"),
    "dtype": ("accumulate_dtype",),
    "from_logits": ("target_type",),
    "input": ("logits", "pred", "hidden"),
    "jsd_beta": ("beta",),
    "gamma": ("focal_gamma",),
    "ignore_index": ("where",),
    "ignore_label": ("ignore_index",),
    "label": ("labels", "target"),
    "label_weights": ("class_weights",),
    "labels": ("target",),
    "lin_weight": ("kernel",),
    "log_target": ("target_type",),
    "logit_scale": ("temperature",),
    "logit_softcap": ("softcap",),
    "logits": ("pred", "student_logits"),
    "loss_mask": ("where",),
    "loss_normalizing_factor": ("normalizer",),
    "lse_square_scale": ("z_loss",),
    "mask": ("where",),
    "num_items_in_batch": ("normalizer",),
    "padding_mask": ("where",),
    "pos_weight": ("class_weights",),
    "pred": ("logits",),
    "predictions": ("pred", "logits"),
    "quantile": ("q",),
    "reduce": ("reduction",),
    "sample_weight": ("weights",),
    "size_average": ("reduction",),
    "smoothing": ("label_smoothing",),
    "shift_labels": ("labels",),
    "student": ("student_logits", "logits"),
    "student_input": ("hidden",),
    "student_weight": ("kernel",),
    "target": ("labels", "teacher_logits"),
    "targets": ("target", "labels", "teacher_logits"),
    "tau": ("q", "temperature"),
    "teacher": ("teacher_logits", "target", "teacher_hidden"),
    "teacher_input": ("teacher_hidden",),
    "teacher_weight": ("teacher_kernel",),
    "threshold": ("delta",),
    "valid": ("where",),
    "vocab_size": ("num_classes",),
    "weight": ("class_weights", "weights"),
    "weight_hard_loss": ("hard_weight",),
    "weight_soft_loss": ("soft_weight",),
    "y_pred": ("logits", "pred"),
    "y_true": ("target", "labels"),
}
"""Arguments of other libraries, and of our other losses, and what each may be called here."""

_NEEDLESS = {"from_logits": ("logits", "the softmax or sigmoid is inside always: pass logits, and leave it out")}
"""Arguments of other libraries that say what is always so where there is that operand, and what to do."""


def unknown_argument(function: str, names: tuple[str, ...], operands: int, option: str) -> TypeError:
    """The error for a keyword that a loss does not have, which says which one may be meant."""
    elsewhere = [name for name in _ELSEWHERE.get(option, ()) if name in names]
    ours = elsewhere[:1] or difflib.get_close_matches(option, names, 1, 0.75)
    operand, advice = _NEEDLESS.get(option, ("", ""))
    if ours:
        hint = f"did you mean {ours[0]}?"
    elif operand in names:
        hint = advice
    else:
        hint = f"its options are {', '.join(names[operands:])}"
    return TypeError(f"{function}() got an unexpected keyword argument {option!r}: {hint}")


def _keyword(x: Any, options: tuple[str, ...]) -> str | None:
    """The option that a value is meant for, if its kind tells."""
    if isinstance(x, str):
        words = {"reduction": get_args(Reduction), "target_type": get_args(TargetType)}
        return next((name for name, among in words.items() if name in options and x in among), None)
    if getattr(x, "dtype", None) == np.bool_:
        return "where" if "where" in options else None
    kinds = {"axis": int, "delta": int | float, "q": int | float, "beta": int | float}
    return options[0] if isinstance(x, kinds.get(options[0], ())) and not isinstance(x, bool) else None
