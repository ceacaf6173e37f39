"""Loss functions for JAX whose value and hand-derived gradient are one custom call.

The losses expect predictions or logits and a target, divide by the batch size, and compose with `jax.jit`, `jax.grad`,
`jax.vmap`, forward mode, higher derivatives and sharding. `formulas` states each of them in `jax.numpy`.
"""

import importlib
from typing import TYPE_CHECKING

from jaxloss import formulas, objectives
from jaxloss._checks import other_names
from jaxloss._checks.debug import debug_checks
from jaxloss._ffi.library import Backends, backends, export_checks
from jaxloss._version import __version__
from jaxloss.binary import binary_cross_entropy, d_binary_cross_entropy
from jaxloss.categorical import (
    CrossEntropyStats,
    categorical_cross_entropy,
    categorical_cross_entropy_with_stats,
    d_categorical_cross_entropy,
    entropy,
    log_prob,
)
from jaxloss.contrastive import sigmoid_contrastive
from jaxloss.distillation import d_jensen_shannon, d_kl_divergence, jensen_shannon, kl_divergence
from jaxloss.linear import linear_cross_entropy, linear_cross_entropy_with_stats, linear_log_prob, linear_objective
from jaxloss.linear_distillation import linear_jensen_shannon, linear_kl_divergence
from jaxloss.regression import (
    d_gaussian_nll,
    d_huber,
    d_log_cosh,
    d_mae,
    d_mse,
    d_poisson_nll,
    d_quantile,
    gaussian_nll,
    huber,
    log_cosh,
    mae,
    mse,
    poisson_nll,
    quantile,
)

if TYPE_CHECKING:
    from jaxloss import optax as optax
else:

    def __getattr__(name: str):
        """`jaxloss.optax`, imported when it is asked for; or the error, which says what ours is called."""
        if name == "optax":
            return importlib.import_module("jaxloss.optax")
        raise other_names.no_attribute(name)

    def __dir__() -> list[str]:
        return sorted({*globals(), "optax"})


__all__ = [
    "Backends",
    "CrossEntropyStats",
    "__version__",
    "backends",
    "binary_cross_entropy",
    "categorical_cross_entropy",
    "categorical_cross_entropy_with_stats",
    "d_binary_cross_entropy",
    "d_categorical_cross_entropy",
    "d_gaussian_nll",
    "d_huber",
    "d_jensen_shannon",
    "d_kl_divergence",
    "d_log_cosh",
    "d_mae",
    "d_mse",
    "d_poisson_nll",
    "d_quantile",
    "debug_checks",
    "entropy",
    "export_checks",
    "formulas",
    "gaussian_nll",
    "huber",
    "jensen_shannon",
    "kl_divergence",
    "linear_cross_entropy",
    "linear_cross_entropy_with_stats",
    "linear_jensen_shannon",
    "linear_kl_divergence",
    "linear_log_prob",
    "linear_objective",
    "log_cosh",
    "log_prob",
    "mae",
    "mse",
    "objectives",
    "poisson_nll",
    "quantile",
    "sigmoid_contrastive",
]
