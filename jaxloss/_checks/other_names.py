"""What other libraries call our losses, as functions or as classes."""

import sys

_EXAMPLES = "whose mean divides by the number of examples, not of elements"
_LOGITS_FIRST = "which takes logits first, then the target"
_LOGITS = "which takes logits; log-probabilities are logits too"
_TORCH = "which computes the same with axis=1, ignore_index=-100 and clip=None"
_REDUCED = "which returns the mean, and clips the value unless clip=None"
_BINARY = f"{_EXAMPLES}, and which clips the value unless clip=None"
_HIDDEN_FIRST = "which takes hidden states first, then the kernel"
_LIGER = "which computes the same with ignore_index=-100 and clip=None"
_OF_LABELS = "which gives the log-probabilities of labels alone"
_ONE_HOT = "which takes class indices, or floating-point probabilities"
_PAIRS = "which takes the embeddings of both kinds, and scale and bias by name"
_FOCAL = "with focal_gamma and focal_alpha"
_SQUARED = f"which has a factor 1/2, and {_EXAMPLES}"
_RATES = f"which takes the logarithm of the rate, and {_EXAMPLES}"
_VARIANCES = f"which takes mean, target and variance, and {_EXAMPLES}"
_SMOOTH_L1 = f"which with delta=beta is beta times as much, and {_EXAMPLES}"

# Of each name, ours, and how it differs.
_OURS = {
    "BCELoss": ("binary_cross_entropy", "which takes logits"),
    "BCEWithLogitsLoss": ("binary_cross_entropy", _BINARY),
    "BinaryCrossentropy": ("binary_cross_entropy", _LOGITS_FIRST),
    "BinaryFocalCrossentropy": ("binary_cross_entropy", _FOCAL),
    "CategoricalCrossentropy": ("categorical_cross_entropy", _LOGITS_FIRST),
    "CrossEntropyLoss": ("categorical_cross_entropy", _TORCH),
    "Huber": ("huber", _EXAMPLES),
    "HuberLoss": ("huber", _EXAMPLES),
    "KLDivLoss": ("kl_divergence", _LOGITS),
    "KLDivergence": ("kl_divergence", _LOGITS_FIRST),
    "L1Loss": ("mae", _EXAMPLES),
    "LigerCrossEntropyLoss": ("categorical_cross_entropy", _LIGER),
    "LigerFusedLinearCrossEntropyLoss": ("linear_cross_entropy", _HIDDEN_FIRST),
    "LigerFusedLinearJSD": ("linear_jensen_shannon", _HIDDEN_FIRST),
    "LigerJSD": ("jensen_shannon", _LOGITS),
    "GaussianNLLLoss": ("gaussian_nll", _VARIANCES),
    "LigerKLDIVLoss": ("kl_divergence", _LOGITS),
    "LogCosh": ("log_cosh", _EXAMPLES),
    "MSELoss": ("mse", _SQUARED),
    "MeanAbsoluteError": ("mae", _EXAMPLES),
    "MeanSquaredError": ("mse", _SQUARED),
    "NLLLoss": ("categorical_cross_entropy", _LOGITS),
    "Poisson": ("poisson_nll", _RATES),
    "PoissonNLLLoss": ("poisson_nll", _RATES),
    "SigLipLoss": ("sigmoid_contrastive", _PAIRS),
    "SmoothL1Loss": ("huber", _SMOOTH_L1),
    "SparseCategoricalCrossentropy": ("categorical_cross_entropy", _LOGITS_FIRST),
    "bce": ("binary_cross_entropy", "which takes logits"),
    "bce_loss": ("binary_cross_entropy", "which takes logits"),
    "bce_with_logits": ("binary_cross_entropy", _BINARY),
    "binary_cross_entropy_with_logits": ("binary_cross_entropy", _BINARY),
    "binary_crossentropy": ("binary_cross_entropy", _LOGITS_FIRST),
    "binary_focal_crossentropy": ("binary_cross_entropy", _FOCAL),
    "categorical_crossentropy": ("categorical_cross_entropy", _LOGITS_FIRST),
    "ce": ("categorical_cross_entropy", _TORCH),
    "ce_loss": ("categorical_cross_entropy", _TORCH),
    "cross_entropy": ("categorical_cross_entropy", _TORCH),
    "cross_entropy_loss": ("categorical_cross_entropy", _TORCH),
    "cross_entropy_with_logits": ("categorical_cross_entropy", _ONE_HOT),
    "crossentropy": ("categorical_cross_entropy", _TORCH),
    "focal_loss": ("binary_cross_entropy", _FOCAL),
    "fused_linear_cross_entropy": ("linear_cross_entropy", _HIDDEN_FIRST),
    "gaussian_nll_loss": ("gaussian_nll", _VARIANCES),
    "huber_loss": ("huber", _EXAMPLES),
    "jensen_shannon_divergence": ("jensen_shannon", _LOGITS),
    "js_div": ("jensen_shannon", _LOGITS),
    "js_divergence": ("jensen_shannon", _LOGITS),
    "jsd": ("jensen_shannon", _LOGITS),
    "kl_div": ("kl_divergence", _LOGITS),
    "kullback_leibler_divergence": ("kl_divergence", _LOGITS_FIRST),
    "l1_loss": ("mae", _EXAMPLES),
    "l2_loss": ("mse", "which returns the mean over the examples"),
    "linear_softmax_cross_entropy": ("linear_cross_entropy", _HIDDEN_FIRST),
    "linear_softmax_cross_entropy_loss": ("linear_cross_entropy", _HIDDEN_FIRST),
    "log_loss": ("binary_cross_entropy", "which takes logits first, then the target"),
    "log_probs": ("log_prob", _OF_LABELS),
    "log_softmax": ("log_prob", _OF_LABELS),
    "logcosh": ("log_cosh", _EXAMPLES),
    "logprobs": ("log_prob", _OF_LABELS),
    "mae_loss": ("mae", _EXAMPLES),
    "mean_absolute_error": ("mae", _EXAMPLES),
    "mean_pinball_loss": ("quantile", _EXAMPLES),
    "mean_squared_error": ("mse", _SQUARED),
    "mse_loss": ("mse", _SQUARED),
    "nll_loss": ("categorical_cross_entropy", _LOGITS),
    "poisson": ("poisson_nll", _RATES),
    "poisson_nll_loss": ("poisson_nll", _RATES),
    "pinball_loss": ("quantile", _EXAMPLES),
    "quantile_loss": ("quantile", _EXAMPLES),
    "safe_softmax_cross_entropy": ("categorical_cross_entropy", _REDUCED),
    "sigmoid_binary_cross_entropy": ("binary_cross_entropy", _REDUCED),
    "sigmoid_cross_entropy": ("binary_cross_entropy", _LOGITS_FIRST),
    "sigmoid_cross_entropy_with_logits": ("binary_cross_entropy", _LOGITS_FIRST),
    "sigmoid_focal_loss": ("binary_cross_entropy", _FOCAL),
    "siglip_loss": ("sigmoid_contrastive", _PAIRS),
    "smooth_l1_loss": ("huber", _SMOOTH_L1),
    "softmax_cross_entropy": ("categorical_cross_entropy", _REDUCED),
    "softmax_cross_entropy_with_integer_labels": ("categorical_cross_entropy", _REDUCED),
    "softmax_cross_entropy_with_logits": ("categorical_cross_entropy", _LOGITS_FIRST),
    "sparse_categorical_crossentropy": ("categorical_cross_entropy", _LOGITS_FIRST),
    "sparse_softmax_cross_entropy_with_logits": ("categorical_cross_entropy", _LOGITS_FIRST),
    "squared_error": ("mse", _SQUARED),
}
# The drop-ins for optax's losses whose names jaxloss itself does not have.
_DROP_INS = (
    "convex_kl_divergence",
    "generalized_kl_divergence",
    "hinge_loss",
    "huber_loss",
    "kl_divergence_with_log_targets",
    "l2_loss",
    "perceptron_loss",
    "poly_loss_cross_entropy",
    "ranking_softmax_loss",
    "safe_softmax_cross_entropy",
    "sigmoid_binary_cross_entropy",
    "sigmoid_focal_loss",
    "smooth_labels",
    "softmax_cross_entropy",
    "softmax_cross_entropy_with_integer_labels",
    "sparsemax_loss",
    "squared_error",
)
# The losses of optax that are nowhere here.
_OPTAX_ALONE = (
    "binary_dice_loss",
    "cosine_distance",
    "cosine_similarity",
    "ctc_loss",
    "ctc_loss_with_forward_probs",
    "dice_loss",
    "make_fenchel_young_loss",
    "multiclass_generalized_dice_loss",
    "multiclass_hinge_loss",
    "multiclass_perceptron_loss",
    "multiclass_sparsemax_loss",
    "ntxent",
    "triplet_margin_loss",
)


def no_attribute(name: str) -> AttributeError:
    """The error for an attribute that `jaxloss` does not have."""
    message = f"module 'jaxloss' has no attribute {name!r}"
    drop_in = f"jaxloss.optax.{name}, optax's" if name in _DROP_INS else ""
    if name in _OURS:
        ours, difference = _OURS[name]
        return AttributeError(
            f"{message}: did you mean jaxloss.{ours}, {difference}?{f' Or {drop_in}.' if drop_in else ''}"
        )
    if drop_in:
        return AttributeError(f"{message}: did you mean {drop_in}?")
    return _suggested("jaxloss", name, message)


def no_drop_in(name: str) -> AttributeError:
    """The error for an attribute that `jaxloss.optax` does not have."""
    message = f"module 'jaxloss.optax' has no attribute {name!r}"
    if name in sys.modules["jaxloss"].__all__ and not name.startswith("_"):
        return AttributeError(f"{message}: did you mean jaxloss.{name}? This module has optax's names.")
    if name in _OURS:
        ours, difference = _OURS[name]
        return AttributeError(f"{message}: did you mean jaxloss.{ours}, {difference}? This module has optax's names.")
    return _suggested("jaxloss.optax", name, message)


def _suggested(module: str, name: str, message: str) -> AttributeError:
    """The error for a name that is unknown, of which Python makes suggestions, or that only optax has."""
    if name in _OPTAX_ALONE:
        return AttributeError(f"{message}: call optax.losses.{name}, which has no kernels here")
    return AttributeError(message, name=name, obj=sys.modules[module])
