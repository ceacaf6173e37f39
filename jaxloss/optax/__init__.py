"""Drop-ins for the losses of optax: the names, signatures, defaults, shapes and types of `optax.losses` 0.2.8.

Where a program says `optax.softmax_cross_entropy`, `from jaxloss import optax as losses` and
`losses.softmax_cross_entropy` compute the same: faster, in less memory, and right where optax is not. What differs is
listed in `docs/optax.md`, and a test shows each difference. optax itself is not needed.

Every function returns losses without reducing them over the batch. The softmax losses run jaxloss's kernels; the
elementwise ones are formulas, which XLA fuses with whatever reduces them. Arithmetic is in float32 at least; results
have the type that optax gives them, that of the operands: `bfloat16` in, `bfloat16` out.
"""

from typing import TYPE_CHECKING

from jaxloss._checks import other_names
from jaxloss.optax._binary import (
    hinge_loss,
    perceptron_loss,
    sigmoid_binary_cross_entropy,
    sigmoid_focal_loss,
    sparsemax_loss,
)
from jaxloss.optax._divergence import (
    convex_kl_divergence,
    generalized_kl_divergence,
    kl_divergence,
    kl_divergence_with_log_targets,
)
from jaxloss.optax._regression import huber_loss, l2_loss, log_cosh, squared_error
from jaxloss.optax._smoothing import smooth_labels
from jaxloss.optax._softmax import (
    poly_loss_cross_entropy,
    ranking_softmax_loss,
    safe_softmax_cross_entropy,
    softmax_cross_entropy,
    softmax_cross_entropy_with_integer_labels,
)

if not TYPE_CHECKING:

    def __getattr__(name: str):
        """The error, which says what is meant or where it is."""
        raise other_names.no_drop_in(name)


__all__ = [
    "convex_kl_divergence",
    "generalized_kl_divergence",
    "hinge_loss",
    "huber_loss",
    "kl_divergence",
    "kl_divergence_with_log_targets",
    "l2_loss",
    "log_cosh",
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
]
