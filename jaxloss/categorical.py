"""Losses of classes that exclude each other."""

import dataclasses

import jax
import jax.numpy as jnp

from jaxloss import _arguments, _cross_entropy, _examples
from jaxloss._calls import Array


def categorical_cross_entropy(
    logits,
    target,
    *,
    axis: int = -1,
    where=None,
    ignore_index: int | None = None,
    weights=None,
    clip: float | None = 1e-7,
    reduction="mean",
    normalizer=None,
    axis_name: str | tuple[str, ...] | None = None,
) -> Array:
    r"""Cross entropy of classes, with the softmax inside.

    $$\frac1n \sum -a_i \log t_i, \quad t = \mathrm{softmax}(x),
      \qquad \frac{\partial}{\partial x_i} = \frac{t_i - a_i}{n}$$

    An example is a row: everything but the axis of classes; $n$ is the number of rows. Where a target $a$ does not sum
    to 1, the gradient is $t_i \sum_j a_j - a_i$.

    Args:
        logits: $x$, `[..., V]`; float32, bfloat16, float16 or float64. A class whose logit is -Inf is masked: its
            probability and gradient are 0.
        target: class indices `[...]` of an integer type, or probabilities `[..., V]` of a floating-point type. A row
            whose index is not in `[0, V)` has loss NaN and gradient 0, unless it is `ignore_index`.
        axis: the axis of classes of `logits`, and of a target of probabilities.
        where: booleans, false for rows that are left out: their loss and gradient are exactly 0, even where they hold
            NaN. Shape `[...]`, or the same with a 1 for the axis of classes. $n$ counts the rows left in. Default: all
            count.
        ignore_index: rows whose class index is this are left out, as by `where`.
        weights: numbers that rows' losses are multiplied by, of the shapes that `where` may have; $n$ stays. Default:
            1.
        clip: the value is that of $\max(t_i, \mathrm{clip})$. The gradient is never clipped, so that a saturated
            prediction still learns. None for the exact value.
        reduction: `"mean"` divides the sum by $n$, `"sum"` does not, `"none"` returns the loss of each row.
        normalizer: a number or scalar array that replaces $n$ in `"mean"`.
        axis_name: the mesh axis, or axes, that an enclosing `jax.shard_map` (with `check_vma=True`, its default) has
            split the classes over: logits, and probabilities, are the slice of this device, class indices are those of
            the whole vocabulary. The loss is that of whole rows, the gradient that of the slice; only numbers of one a
            row are exchanged.

    Returns:
        A scalar, or for `"none"` an array `[...]`; float64 for float64 logits, else float32. The loss is differentiable
        with respect to `logits`, a target of probabilities, `weights` and `normalizer`; a mean over no row is 0.

    Raises:
        TypeError: `logits` is not floating-point, or another argument is of the wrong kind.
        ValueError: shapes do not match, or an option has no such value.

    >>> import jax
    >>> import jax.numpy as jnp
    >>> import jaxloss
    >>> logits = jnp.array([[2.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    >>> print(jaxloss.categorical_cross_entropy(logits, jnp.array([0, 2])))
    0.75311
    >>> print(jaxloss.categorical_cross_entropy(logits, jnp.array([0, -100]), ignore_index=-100))
    0.40761
    >>> print(jax.grad(jaxloss.categorical_cross_entropy)(logits, jnp.array([0, 2]))[1])
    [ 0.16667  0.16667 -0.33333 ]

    Source: C. M. Bishop, *Pattern Recognition and Machine Learning* (2006), section 4.3.4.
    """
    x, a, examples, axes, _ = _checked(
        logits, target, axis, where, ignore_index, weights, reduction, normalizer, axis_name
    )
    return _cross_entropy.value(axes, _arguments.clip_value(clip, 1.0), x, a, examples)


def d_categorical_cross_entropy(
    logits,
    target,
    *,
    axis: int = -1,
    where=None,
    ignore_index: int | None = None,
    weights=None,
    clip: float | None = 1e-7,
    reduction="mean",
    normalizer=None,
    axis_name: str | tuple[str, ...] | None = None,
) -> Array:
    r"""The gradient of `categorical_cross_entropy` with respect to `logits`: $(t - a) / n$.

    Args:
        logits: as for `categorical_cross_entropy`.
        target: as for `categorical_cross_entropy`.
        axis: as for `categorical_cross_entropy`.
        where: as for `categorical_cross_entropy`; the gradient of what is left out is 0.
        ignore_index: as for `categorical_cross_entropy`.
        weights: as for `categorical_cross_entropy`.
        clip: as for `categorical_cross_entropy`; it does not change the gradient.
        reduction: as for `categorical_cross_entropy`; `"none"` gives the gradient of each row's own loss, as does
            `"sum"`.
        normalizer: as for `categorical_cross_entropy`.
        axis_name: as for `categorical_cross_entropy`.

    Returns:
        An array like `logits`.

    Raises:
        TypeError: as `categorical_cross_entropy`.
        ValueError: as `categorical_cross_entropy`.

    >>> import jax.numpy as jnp
    >>> import jaxloss
    >>> print(jaxloss.d_categorical_cross_entropy(jnp.zeros((1, 4)), jnp.array([1])))
    [[ 0.25 -0.75  0.25  0.25]]
    """
    x, a, examples, axes, axis = _checked(
        logits, target, axis, where, ignore_index, weights, reduction, normalizer, axis_name
    )
    _arguments.clip_value(clip, 1.0)
    return jnp.moveaxis(_cross_entropy.gradient(axes, x, a, examples), -1, axis).astype(jnp.asarray(logits).dtype)


def _checked(logits, target, axis, where, ignore_index, weights, reduction, normalizer, axis_name):
    """Logits and target with the classes last, the examples, the mesh axes, and the axis counted from the front."""
    logits = _arguments.prediction("logits", logits)
    axis = _arguments.axis_index(axis, logits.ndim)
    axes = _arguments.mesh_axes(axis_name, logits)
    examples = _examples.checked(where, weights, reduction, normalizer)
    target, shape = jnp.asarray(target), logits.shape
    if target.shape == shape and not jnp.issubdtype(target.dtype, jnp.integer):
        target = jnp.moveaxis(target, axis, -1)
    logits = jnp.moveaxis(logits, axis, -1)
    classes = logits.shape[-1] * (jax.lax.axis_size(axes) if axes else 1)
    target, logits, counted = _arguments.class_target(target, logits, classes, ignore_index)

    def classes_last(x):
        return x if x is None or x.ndim != logits.ndim else jnp.moveaxis(x, axis, -1)

    where, weights = classes_last(examples.where), classes_last(examples.weights)
    if counted is not None:
        rank = logits.ndim - 1
        if where is not None:
            where = _examples.leading("where", where, logits.shape, rank, rank)
            counted = counted & _examples.along_rows(where, logits.shape[:-1])
        where = counted
    return logits, target, dataclasses.replace(examples, where=where, weights=weights), axes, axis
