"""Multiclass losses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

# Some annotations of jax.numpy are partial.
# pyright: reportUnknownMemberType=false
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxloss._arrays import Array, inlined
from jaxloss._checks import arguments as _arguments
from jaxloss._checks import debug as _debug
from jaxloss._checks.arrays import array, axis_moved, is_wide, of_dtype
from jaxloss._checks.classes import Options, checked, checked_ids
from jaxloss._checks.debug import watched
from jaxloss._docs.described import described
from jaxloss._docs.losses import GRADIENT, RESULTS_OF_ROWS, ROWS, STATISTICS
from jaxloss._rows import cross_entropy as _cross_entropy
from jaxloss._rows import sparse as _sparse
from jaxloss._types import AxisName, ClassTarget, Normalizer, Reduction, Remainder


@watched(_debug.categorical)
@described(ROWS)
def categorical_cross_entropy(
    logits: ArrayLike,
    target: ClassTarget,
    *,
    axis: int = -1,
    where: ArrayLike | None = None,
    ignore_index: int | None = None,
    weights: ArrayLike | None = None,
    class_weights: ArrayLike | None = None,
    label_smoothing: ArrayLike = 0.0,
    z_loss: ArrayLike = 0.0,
    softcap: ArrayLike | None = None,
    margin: ArrayLike = 0.0,
    temperature: ArrayLike = 1.0,
    num_classes: int | None = None,
    clip: float | None = 1e-7,
    reduction: Reduction = "mean",
    normalizer: Normalizer | None = None,
    remainder: Remainder = "drop",
    axis_name: AxisName = None,
) -> Array:
    r"""Multiclass cross entropy, with the softmax inside.

    $$\frac1n \sum -a_i \log t_i, \quad t = \mathrm{softmax}(x),
      \qquad \frac{\partial}{\partial x_i} = \frac{t_i - a_i}{n}$$

    <batch size>

    Where a target $a$ does not sum to 1, the gradient is $t_i \sum_j a_j - a_i$. In the value, and not in the gradient,
    $t$ is at least `clip`, 1e-7 by default, so a row's loss is at most 16.118 per unit of target; `clip=None` gives the
    exact value, which is the default of `linear_cross_entropy`.

    With options the softmax is that of $z_i = (s \tanh(x_i / s) - m\,[i = y]) / T$ (softcap $s$, margin $m$ of the
    label $y$, temperature $T$), the target is $b_i = w_i ((1 - \varepsilon) a_i + \varepsilon / K)$ (class weights $w$,
    smoothing $\varepsilon$ over $K$ classes), and the term $\zeta \log^2 \sum_j e^{z_j}$ (z-loss $\zeta$) is added to a
    row's loss. All of it is done in the same pass; an option that is off costs nothing. `label_smoothing`, `z_loss`,
    `softcap`, `margin` and `temperature` may be Python numbers or traced scalars: a schedule does not compile anew.

    Args:
        logits: $x$, `[..., V]`; <dtypes>. A class whose logit is -Inf is masked: its probability is 0, it takes no
            smoothing, and its gradient is 0, less what of the target it has. So a label on a masked class has the loss
            $-\log \mathrm{clip}$, infinite without a clip, and there gradient -1.
        target: class indices `[...]` of an integer type, or probabilities `[..., V]` of a floating-point type. A row
            whose index is not in `[0, V)` has loss NaN and gradient 0, unless it is `ignore_index`. Or, for mixup,
            `(labels, other_labels, share)`: two arrays of class indices and the share of the first, a scalar or
            `[...]`. Or, for a teacher of whom the likeliest classes are stored, `(indices, probabilities)`: K class
            indices of each row and their probabilities, of the shape of `logits` with K in the place of V. Equal
            indices of a row add up; an index that is not in `[0, V)` makes the row's loss NaN and its gradient 0,
            unless its probability is 0.

    >>> import jax
    >>> import jax.numpy as jnp
    >>> import jaxloss
    >>> logits = jnp.array([[2.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    >>> print(jaxloss.categorical_cross_entropy(logits, jnp.array([0, 2])))
    0.75311
    >>> print(jaxloss.categorical_cross_entropy(logits, jnp.array([0, -100]), ignore_index=-100))
    0.40761
    >>> print(jaxloss.categorical_cross_entropy(logits, jnp.array([0, 2]), label_smoothing=0.1, z_loss=1e-4))
    0.80346
    >>> print(jax.grad(jaxloss.categorical_cross_entropy)(logits, jnp.array([0, 2]))[1])
    [ 0.16667  0.16667 -0.33333]

    Source: C. M. Bishop, *Pattern Recognition and Machine Learning* (2006), section 4.3.4. Smoothing: C. Szegedy et
    al., *Rethinking the Inception Architecture for Computer Vision* (2016). z-loss: A. Chowdhery et al., *PaLM* (2022).
    Margin: H. Wang et al., *CosFace: Large Margin Cosine Loss for Deep Face Recognition* (2018).
    Mixup: H. Zhang et al., *mixup: Beyond Empirical Risk Minimization* (2018).
    """
    options: Options = {
        "class_weights": class_weights,
        "label_smoothing": label_smoothing,
        "z_loss": z_loss,
        "softcap": softcap,
        "margin": margin,
        "temperature": temperature,
        "num_classes": num_classes,
    }
    classes = checked(
        logits,
        target,
        options,
        axis=axis,
        where=where,
        ignore_index=ignore_index,
        weights=weights,
        clip=clip,
        reduction=reduction,
        normalizer=normalizer,
        axis_name=axis_name,
        remainder=remainder,
    )
    return classes.value


@watched(_debug.categorical)
@described(GRADIENT, of=categorical_cross_entropy)
def d_categorical_cross_entropy(
    logits: ArrayLike,
    target: ClassTarget,
    *,
    axis: int = -1,
    where: ArrayLike | None = None,
    ignore_index: int | None = None,
    weights: ArrayLike | None = None,
    class_weights: ArrayLike | None = None,
    label_smoothing: ArrayLike = 0.0,
    z_loss: ArrayLike = 0.0,
    softcap: ArrayLike | None = None,
    margin: ArrayLike = 0.0,
    temperature: ArrayLike = 1.0,
    num_classes: int | None = None,
    clip: float | None = 1e-7,
    reduction: Reduction = "mean",
    normalizer: Normalizer | None = None,
    remainder: Remainder = "drop",
    axis_name: AxisName = None,
) -> Array:
    r"""The gradient of `categorical_cross_entropy` with respect to `logits`: $(t - a) / n$ without options.

    Here $t = \mathrm{softmax}(x)$. <batch size> The options enter as in `categorical_cross_entropy`.

    >>> import jax.numpy as jnp
    >>> import jaxloss
    >>> print(jaxloss.d_categorical_cross_entropy(jnp.zeros((1, 4)), jnp.array([1])))
    [[ 0.25 -0.75  0.25  0.25]]
    """
    options: Options = {
        "class_weights": class_weights,
        "label_smoothing": label_smoothing,
        "z_loss": z_loss,
        "softcap": softcap,
        "margin": margin,
        "temperature": temperature,
        "num_classes": num_classes,
    }
    classes = checked(
        logits,
        target,
        options,
        axis=axis,
        where=where,
        ignore_index=ignore_index,
        weights=weights,
        clip=clip,
        reduction=reduction,
        normalizer=normalizer,
        axis_name=axis_name,
        remainder=remainder,
    )
    gradient = classes.gradient
    return of_dtype(axis_moved(gradient, -1, classes.axis), array("logits", logits).dtype)


class CrossEntropyStats(NamedTuple):
    r"""Statistics of each row from `categorical_cross_entropy_with_stats`, of the softmax $t$ that the loss sees.

    A `margin` is in all of them but `predicted` and `rank`, so that an accuracy is that of the logits without it.

    Attributes:
        nll: $-\log t$ of the label, of probabilities $\sum -a_i \log t_i$; without clip, smoothing and weights of any
            kind. NaN for a label that is out of range. `jnp.exp(nll)` averaged is the perplexity.
        lse: $\log \sum_j e^{z_j}$.
        entropy: $\sum -t_i \log t_i$.
        z_loss: the row's z-loss term, 0 without `z_loss`.
        predicted: the class of the largest logit, of equal ones the first; -1 for a masked row.
        rank: how many classes rank before the label: 0 where it is `predicted`, less than k where it is among
            the top k. The number of classes for a masked row, a label out of range, and a target that is no
            single label.
        target_probability: $t$ of the label, $e^{-\mathrm{nll}}$.
    """

    nll: Array
    lse: Array
    entropy: Array
    z_loss: Array
    predicted: Array
    rank: Array
    target_probability: Array


@watched(_debug.categorical)
@described(STATISTICS, of=categorical_cross_entropy)
def categorical_cross_entropy_with_stats(
    logits: ArrayLike,
    target: ClassTarget,
    *,
    axis: int = -1,
    where: ArrayLike | None = None,
    ignore_index: int | None = None,
    weights: ArrayLike | None = None,
    class_weights: ArrayLike | None = None,
    label_smoothing: ArrayLike = 0.0,
    z_loss: ArrayLike = 0.0,
    softcap: ArrayLike | None = None,
    margin: ArrayLike = 0.0,
    temperature: ArrayLike = 1.0,
    num_classes: int | None = None,
    clip: float | None = 1e-7,
    reduction: Reduction = "mean",
    normalizer: Normalizer | None = None,
    axis_name: AxisName = None,
) -> tuple[Array, CrossEntropyStats]:
    r"""`categorical_cross_entropy`, and statistics of each row from the same pass over the logits.

    <batch size>

    >>> import jax.numpy as jnp
    >>> import jaxloss
    >>> logits = jnp.array([[2.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    >>> loss, stats = jaxloss.categorical_cross_entropy_with_stats(logits, jnp.array([1, 2]))
    >>> print(stats.entropy.round(3), stats.rank)
    [0.832 1.099] [1 2]
    >>> print((stats.rank < 2).mean())  # top-2 accuracy
    0.5
    """
    options: Options = {
        "class_weights": class_weights,
        "label_smoothing": label_smoothing,
        "z_loss": z_loss,
        "softcap": softcap,
        "margin": margin,
        "temperature": temperature,
        "num_classes": num_classes,
    }
    classes = checked(
        logits,
        target,
        options,
        axis=axis,
        where=where,
        ignore_index=ignore_index,
        weights=weights,
        clip=clip,
        reduction=reduction,
        normalizer=normalizer,
        axis_name=axis_name,
        details=True,
    )
    loss, stats = _cross_entropy.value_and_stats(classes.objective, classes.operands, classes.examples)
    return loss, public_stats(classes.objective, classes.operands[2], stats)


@inlined(static_argnums=0)
def public_stats(
    objective: _cross_entropy.Objective, parameters: Sequence[Array], stats: dict[str, Array]
) -> CrossEntropyStats:
    """The statistics as the public functions give them, from those of the row loss."""
    lse, z_loss = stats["maximum"] + stats["log_sum"], objective.options(parameters).get("z_loss")
    term = jnp.zeros_like(lse) if z_loss is None else z_loss * lse * lse
    out_of_loss = stats["predicted"] < 0
    return CrossEntropyStats(
        nll=stats["nll"],
        lse=lse,
        entropy=stats["entropy"],
        z_loss=jax.lax.stop_gradient(term),
        predicted=stats["predicted"],
        rank=stats["rank"],
        target_probability=jax.lax.stop_gradient(jnp.where(out_of_loss, 0, jnp.exp(-stats["nll"]))),
    )


@watched(_debug.categorical)
@described(RESULTS_OF_ROWS)
def log_prob(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    axis: int = -1,
    where: ArrayLike | None = None,
    softcap: ArrayLike | None = None,
    temperature: ArrayLike = 1.0,
    num_classes: int | None = None,
    axis_name: AxisName = None,
) -> Array:
    r"""The logarithm of the probability of each row's label: $\log t_y$ with $t = \mathrm{softmax}(z)$.

    It serves policy gradients and evaluation. $z$ is the logits $x$ after the options, as in
    `categorical_cross_entropy`.

    Args:
        logits: $x$, `[..., V]`; <dtypes>.
        labels: $y$, class indices `[...]` of an integer type; or K of each row, of the shape of `logits` with K in the
            place of V. One that is not in `[0, V)` gives NaN, and gradient 0.
        axis_name: <axis_name> Labels are indices of the whole vocabulary.

    Raises:
        TypeError: `logits` is not floating-point, `labels` is not of an integer type, or another argument is of the
            wrong kind.

    >>> import jax.numpy as jnp
    >>> import jaxloss
    >>> print(jaxloss.log_prob(jnp.array([[2.0, 1.0, 0.0]]), jnp.array([0])))
    [-0.40761]
    >>> print(jaxloss.log_prob(jnp.array([[2.0, 1.0, 0.0]]), jnp.array([[0, 2]]))[0, 1])
    -2.40761

    Source: R. J. Williams, *Simple statistical gradient-following algorithms* (1992).
    """
    logits = _arguments.prediction("logits", logits, "labels", labels)
    labels = labels if is_wide(labels) else array("labels", labels)
    if jnp.ndim(labels) == logits.ndim and jnp.shape(labels) != logits.shape:
        return _log_prob_of_ids(logits, labels, axis, where, softcap, temperature, num_classes, axis_name)
    labels = _arguments.class_indices("labels", array("labels", labels), logits.ndim - 1, axis)
    options: Options = {"softcap": softcap, "temperature": temperature, "num_classes": num_classes}
    classes = checked(
        logits,
        labels,
        options,
        axis=axis,
        where=where,
        reduction="none",
        axis_name=axis_name,
        target_name="labels",
    )
    return -classes.value


@watched(_debug.categorical)
@described(RESULTS_OF_ROWS)
def entropy(
    logits: ArrayLike,
    *,
    axis: int = -1,
    where: ArrayLike | None = None,
    softcap: ArrayLike | None = None,
    temperature: ArrayLike = 1.0,
    num_classes: int | None = None,
    axis_name: AxisName = None,
) -> Array:
    r"""The entropy of each row's softmax: $\sum_i -t_i \log t_i$ with $t = \mathrm{softmax}(z)$.

    $z$ is the logits $x$ after the options, as in `categorical_cross_entropy`.

    Args:
        logits: $x$, `[..., V]`; <dtypes>. A class whose logit is -Inf adds nothing.

    >>> import jax.numpy as jnp
    >>> import jaxloss
    >>> print(jaxloss.entropy(jnp.array([[2.0, 1.0, 0.0], [0.0, 0.0, 0.0]])).round(3))
    [0.832 1.099]

    Source: C. E. Shannon, *A Mathematical Theory of Communication* (1948).
    """
    logits = _arguments.prediction("logits", logits)
    axis = _arguments.axis_index(axis, logits.ndim)
    labels = _first_classes(logits, axis)
    options: Options = {"softcap": softcap, "temperature": temperature, "num_classes": num_classes}
    classes = checked(
        logits, labels, options, axis=axis, where=where, reduction="none", axis_name=axis_name, details=True
    )
    return _cross_entropy.value_and_stats(classes.objective, classes.operands, classes.examples)[1]["entropy"]


def _log_prob_of_ids(
    logits: Array,
    ids: ArrayLike,
    axis: int,
    where: ArrayLike | None,
    softcap: ArrayLike | None,
    temperature: ArrayLike,
    num_classes: int | None,
    axis_name: AxisName,
) -> Array:
    """`log_prob` of some classes of each row."""
    options: Options = {"softcap": softcap, "temperature": temperature, "num_classes": num_classes}
    classes = checked_ids(logits, ids, options, axis=axis, where=where, axis_name=axis_name)
    log_probs = _sparse.log_prob(classes.objective, classes.operands, classes.examples)
    return axis_moved(log_probs, -1, classes.axis)


@inlined(static_argnums=1)
def _first_classes(logits: Array, axis: int) -> Array:
    """A label of each row, which may be any."""
    return jnp.zeros((*logits.shape[:axis], *logits.shape[axis + 1 :]), jnp.int32)
