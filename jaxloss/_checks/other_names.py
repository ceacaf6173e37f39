"""What other libraries call our losses."""

import sys

_EXAMPLES = "whose mean divides by the number of examples, not of elements"
_LOGITS_FIRST = "which takes logits first, then the target"
_LOGITS = "which takes logits; log-probabilities are logits too"
_TORCH = "which computes the same with axis=1, ignore_index=-100 and clip=None"
_REDUCED = "which returns the mean, and clips the value unless clip=None"
_BINARY = f"{_EXAMPLES}, and which clips the value unless clip=None"
_FOCAL = "with focal_gamma and focal_alpha"
_SQUARED = f"which has a factor 1/2, and {_EXAMPLES}"

# Of each name, ours, and how it differs.
_OURS = {
    "bce": ("binary_cross_entropy", "which takes logits"),
    "bce_with_logits": ("binary_cross_entropy", _BINARY),
    "binary_cross_entropy_with_logits": ("binary_cross_entropy", _BINARY),
    "binary_crossentropy": ("binary_cross_entropy", _LOGITS_FIRST),
    "categorical_crossentropy": ("categorical_cross_entropy", _LOGITS_FIRST),
    "cross_entropy": ("categorical_cross_entropy", _TORCH),
    "cross_entropy_loss": ("categorical_cross_entropy", _TORCH),
    "focal_loss": ("binary_cross_entropy", _FOCAL),
    "fused_linear_cross_entropy": ("linear_cross_entropy", "which takes hidden states first, then the kernel"),
    "huber_loss": ("huber", _EXAMPLES),
    "js_div": ("jensen_shannon", _LOGITS),
    "jsd": ("jensen_shannon", _LOGITS),
    "kl_div": ("kl_divergence", _LOGITS),
    "l1_loss": ("mae", _EXAMPLES),
    "l2_loss": ("mse", "which returns the mean over the examples"),
    "linear_softmax_cross_entropy": ("linear_cross_entropy", "which takes hidden states first, then the kernel"),
    "logcosh": ("log_cosh", _EXAMPLES),
    "mean_absolute_error": ("mae", _EXAMPLES),
    "mean_squared_error": ("mse", _SQUARED),
    "mse_loss": ("mse", _SQUARED),
    "nll_loss": ("categorical_cross_entropy", _LOGITS),
    "pinball_loss": ("quantile", _EXAMPLES),
    "quantile_loss": ("quantile", _EXAMPLES),
    "safe_softmax_cross_entropy": ("categorical_cross_entropy", _REDUCED),
    "sigmoid_binary_cross_entropy": ("binary_cross_entropy", _REDUCED),
    "sigmoid_cross_entropy_with_logits": ("binary_cross_entropy", _LOGITS_FIRST),
    "sigmoid_focal_loss": ("binary_cross_entropy", _FOCAL),
    "smooth_l1_loss": ("huber", f"which with delta=beta is beta times as much, and {_EXAMPLES}"),
    "softmax_cross_entropy": ("categorical_cross_entropy", _REDUCED),
    "softmax_cross_entropy_with_integer_labels": ("categorical_cross_entropy", _REDUCED),
    "softmax_cross_entropy_with_logits": ("categorical_cross_entropy", _LOGITS_FIRST),
    "sparse_categorical_crossentropy": ("categorical_cross_entropy", _LOGITS_FIRST),
    "sparse_softmax_cross_entropy_with_logits": ("categorical_cross_entropy", _LOGITS_FIRST),
    "squared_error": ("mse", _SQUARED),
}
_DROP_INS = (
    "huber_loss",
    "l2_loss",
    "safe_softmax_cross_entropy",
    "sigmoid_binary_cross_entropy",
    "sigmoid_focal_loss",
    "softmax_cross_entropy",
    "softmax_cross_entropy_with_integer_labels",
    "squared_error",
)


def no_attribute(name: str) -> AttributeError:
    """The error for an attribute that `jaxloss` does not have."""
    message = f"module 'jaxloss' has no attribute {name!r}"
    if name not in _OURS:
        return AttributeError(message, name=name, obj=sys.modules["jaxloss"])  # of which Python makes suggestions
    ours, difference = _OURS[name]
    drop_in = f" Or jaxloss.optax.{name}, optax's." if name in _DROP_INS else ""
    return AttributeError(f"{message}: did you mean jaxloss.{ours}, {difference}?{drop_in}")
