r"""Every loss as a plain formula in `jax.numpy`, unreduced: what the documentation states and what the kernels compute.

The formulas run wherever JAX does, and are what jaxloss runs on a platform that it has no kernel for. Arithmetic is in
float32 at least. `x` is a prediction or logits, `a` a target; an elementwise loss keeps the shape of its operands, a
cross entropy gives one loss per row, the last axis being the classes.

A clip limits the value only. The functions that begin with `d_` are the derivatives of the losses without it.
"""

# What is imported and not in __all__ is what formulas are made of, for the rest of jaxloss.
# ruff: noqa: F401
# pyright: reportUnusedImport=false

from jaxloss.formulas.arithmetic import product, real
from jaxloss.formulas.binary import (
    binary_cross_entropy,
    binary_nll,
    d_binary_cross_entropy,
    d_binary_cross_entropy_of_target,
    d_focal_binary_cross_entropy,
    d_weighted_binary_cross_entropy,
    d_weighted_binary_cross_entropy_of_target,
    focal_binary_cross_entropy,
    smoothed,
    weighted_binary_cross_entropy,
)
from jaxloss.formulas.categorical import (
    categorical_cross_entropy,
    class_targets,
    counted_classes,
    cross_entropy_results,
    d_categorical_cross_entropy,
    d_cross_entropy_with_options,
    given_targets,
    has_softmax,
    in_range,
    label_derivative,
    label_ranks,
    log_of_sums,
    logit_slopes,
    nll,
    one_hot,
    only,
    predicted_classes,
    rest_of_sums,
    scaled_logits,
    softmax_minus_target,
    softmax_of,
    softmax_stats,
    sums_of_slice,
    target_totals,
    tempered_softmax_sums,
    valid_rows,
    with_maximum,
)
from jaxloss.formulas.contrastive import d_sigmoid_contrastive, sigmoid_contrastive
from jaxloss.formulas.distillation import (
    above_maximum,
    d_divergence_of_tempered,
    d_jensen_shannon,
    d_kl_divergence,
    divergence_stats,
    divergence_terms,
    jensen_shannon,
    js_terms,
    kl_divergence,
    kl_terms,
    log_of_probabilities,
    log_probabilities,
    mixture_ratios,
    reverse_kl_terms,
    stats_of_sums,
)
from jaxloss.formulas.regression import (
    absolute_error,
    d_absolute_error,
    d_gaussian_nll,
    d_huber,
    d_log_cosh,
    d_poisson_nll,
    d_poisson_nll_of_target,
    d_quantile,
    d_squared_error,
    gaussian_nll,
    huber,
    log_cosh,
    poisson_nll,
    quantile,
    squared_error,
)

__all__ = [
    "absolute_error",
    "binary_cross_entropy",
    "categorical_cross_entropy",
    "d_absolute_error",
    "d_binary_cross_entropy",
    "d_binary_cross_entropy_of_target",
    "d_categorical_cross_entropy",
    "d_focal_binary_cross_entropy",
    "d_gaussian_nll",
    "d_huber",
    "d_jensen_shannon",
    "d_kl_divergence",
    "d_log_cosh",
    "d_poisson_nll",
    "d_poisson_nll_of_target",
    "d_quantile",
    "d_sigmoid_contrastive",
    "d_squared_error",
    "d_weighted_binary_cross_entropy",
    "d_weighted_binary_cross_entropy_of_target",
    "focal_binary_cross_entropy",
    "gaussian_nll",
    "huber",
    "jensen_shannon",
    "kl_divergence",
    "log_cosh",
    "poisson_nll",
    "quantile",
    "sigmoid_contrastive",
    "squared_error",
    "weighted_binary_cross_entropy",
]
