"""optax's multiclass losses, by the kernels of `jaxloss.categorical_cross_entropy`."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxloss._arrays import Array
from jaxloss._checks.arrays import array
from jaxloss._checks.parameters import wrong_type
from jaxloss._docs.described import described
from jaxloss.categorical import categorical_cross_entropy
from jaxloss.optax._docs import SOFTMAXES
from jaxloss.optax._operands import broadcast, floating, mask, number, of_type, one_program, wide
from jaxloss.optax._rows import Axis, Rows, masked, of_indices, of_probabilities


@one_program
@described(SOFTMAXES)
def softmax_cross_entropy(
    logits: ArrayLike, labels: ArrayLike, axis: Axis = -1, where: ArrayLike | None = None
) -> Array:
    r"""Cross entropy of each row with probabilities, $\sum_i -a_i \log t_i$ with $t = \mathrm{softmax}(x)$.

    >>> import jax.numpy as jnp
    >>> from jaxloss import optax as losses
    >>> print(losses.softmax_cross_entropy(jnp.array([2.0, 1.0, 0.0]), jnp.array([1.0, 0.0, 0.0])))
    0.40761

    Source: C. M. Bishop, *Pattern Recognition and Machine Learning* (2006), section 4.3.4.
    """
    rows = _checked(logits, labels, axis, where)
    losses = _cross_entropy(rows)
    return of_type(losses.sum() if axis is None else losses, logits, labels)


@described(SOFTMAXES)
def safe_softmax_cross_entropy(logits: ArrayLike, labels: ArrayLike) -> Array:
    """`softmax_cross_entropy` over the last axis, which is safe here too.

    Raises:
        ValueError: shapes do not broadcast.

    >>> import jax.numpy as jnp
    >>> from jaxloss import optax as losses
    >>> print(losses.safe_softmax_cross_entropy(jnp.array([2.0, 1.0, -jnp.inf]), jnp.array([1.0, 0.0, 0.0])))
    0.31326
    """
    return softmax_cross_entropy(logits, labels)


@one_program
@described(SOFTMAXES)
def softmax_cross_entropy_with_integer_labels(
    logits: ArrayLike, labels: ArrayLike, axis: int | tuple[int, ...] = -1, where: ArrayLike | None = None
) -> Array:
    r"""Cross entropy of each row with the index of its class, $-\log t_a$ with $t = \mathrm{softmax}(x)$.

    Args:
        logits: $x$, of a floating-point type.
        labels: $a$, class indices of an integer type, of the shape of `logits` without the class axes, or one
            that broadcasts with it. A row whose index is not in `[0, V)` has loss NaN and gradient 0.
        axis: the class axis or axes; indices into several axes count along them in the order given.
        where: <where> A label of a class that is not there costs Inf.

    Returns:
        An array like `labels`, of the type of `logits`.

    Raises:
        TypeError: `logits` is not floating-point, or `labels` not of an integer type.
        ValueError: shapes do not match, `axis` is none of `logits`, or `where` is not boolean.

    >>> import jax.numpy as jnp
    >>> from jaxloss import optax as losses
    >>> print(losses.softmax_cross_entropy_with_integer_labels(jnp.array([[2.0, 1.0, 0.0]]), jnp.array([0])))
    [0.40761]

    Source: C. M. Bishop, *Pattern Recognition and Machine Learning* (2006), section 4.3.4.
    """
    x, labels = floating("logits", logits), array("labels", labels)
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise _labels_dtype_error(x, labels)
    if not isinstance(axis, int | tuple):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ValueError(str(wrong_type("axis", axis, "int or a tuple of int")))
    rows = of_indices(x, labels, axis, where)
    return of_type(_rows_loss(masked(rows, finite=False), rows.labels, rows), logits)


@one_program
@described(SOFTMAXES)
def poly_loss_cross_entropy(
    logits: ArrayLike, labels: ArrayLike, *, epsilon: ArrayLike = 2.0, axis: Axis = -1, where: ArrayLike | None = None
) -> Array:
    r"""The PolyLoss of each row, $\sum_i -a_i \log t_i + \epsilon \sum_i a_i (1 - t_i)$ with $t = \mathrm{softmax}(x)$.

    Args:
        labels: $a$, probabilities, of a floating-point type; broadcasts with `logits`.
        epsilon: $\epsilon$, a number, or an array that broadcasts with the losses.

    Returns:
        An array without the class axes, of the type that `logits`, `labels` and `epsilon` promote to.

    Raises:
        TypeError: `logits` or `labels` is not floating-point.

    >>> import jax.numpy as jnp
    >>> from jaxloss import optax as losses
    >>> print(losses.poly_loss_cross_entropy(jnp.array([2.0, 1.0, 0.0]), jnp.array([1.0, 0.0, 0.0])))
    1.07713

    Source: Z. Leng et al., *PolyLoss: A Polynomial Expansion Perspective of Classification Loss Functions* (2022).
    """
    # Both terms have gradients, of which the sum is rounded to an operand's type, and not each.
    of_labels = wide(floating("labels", labels))
    rows = _checked(wide(floating("logits", logits)), of_labels, axis, where)
    losses, scale = _cross_entropy(rows), wide(number("epsilon", epsilon))
    x, a = masked(rows, finite=True), rows.labels
    if rows.included is not None:
        a = jnp.where(rows.included, a, 0)
    if rows.where is not None:
        x, a = (jnp.where(rows.where[..., None], part, 0) for part in (x, a))
    misses = jnp.sum(a * (1 - jax.nn.softmax(x)), -1)
    if axis is None:
        losses, misses = losses.sum(), misses.sum()
    broadcast(losses=losses, epsilon=scale)
    return of_type(losses + scale * misses, logits, labels, epsilon)


@one_program
@described(SOFTMAXES)
def ranking_softmax_loss(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduce_fn: Callable[..., Array] | None = jnp.mean,
) -> Array:
    r"""The softmax loss of lists, $\sum_i -w_i a_i \log t_i$ with $t = \mathrm{softmax}(x)$ for each, reduced.

    Args:
        logits: scores $x$ of a list's items, `[..., V]` of a floating-point type.
        labels: the items' relevance $a$, of any real type; broadcasts with `logits`.
        where: booleans that broadcast with `logits`, false for items that a list does not have. Default: it has all.
        weights: $w$, numbers that broadcast with `logits`. Default: 1.
        reduce_fn: takes the losses `[...]`, and with `where=` which lists have items; `jax.numpy.mean` and
            `jax.numpy.sum` do. None returns the losses. A mean over no list is 0.

    Returns:
        What `reduce_fn` makes of the losses, of the type that `logits` and `weights` promote to.

    Raises:
        ValueError: shapes do not broadcast, or `where` is not boolean.

    >>> import jax.numpy as jnp
    >>> from jaxloss import optax as losses
    >>> print(losses.ranking_softmax_loss(jnp.array([2.0, 1.0, 3.0]), jnp.array([1.0, 0.0, 0.0])))
    1.40761

    Source: Z. Cao et al., *Learning to Rank: From Pairwise Approach to Listwise Approach* (2007).
    """
    x, a = floating("logits", logits), number("labels", labels)
    _check_reduction(reduce_fn)
    weight = None if weights is None else number("weights", weights)
    where = None if where is None else mask(where)
    broadcast(logits=x, labels=a, weights=weight, where=where)
    operands = (x,) if weights is None else (x, weights)
    a = a.astype(wide(x).dtype if weight is not None or a.dtype != x.dtype else x.dtype)
    if weight is not None:
        a = a * wide(weight) if where is None else jnp.where(where, a * wide(weight), 0)
    rows = of_probabilities(x, a, -1, where)
    losses, has_items = _cross_entropy(rows), rows.where
    if reduce_fn is None:
        return of_type(losses, *operands)
    reduced = reduce_fn(losses, where=has_items)
    if reduce_fn is jnp.mean:
        none = losses.size == 0 if has_items is None else ~has_items.any()
        reduced = jnp.where(none, 0, reduced)
    return of_type(reduced, *operands)


def _labels_dtype_error(x: Array, labels: Array) -> TypeError:
    """The error, which says what to write."""
    if jnp.issubdtype(labels.dtype, jnp.complexfloating):
        hint = ""
    elif labels.ndim == x.ndim:
        hint = "; softmax_cross_entropy takes probabilities"
    else:
        hint = "; write labels.astype(int) if these are class indices"
    return TypeError(f"labels has dtype {labels.dtype}: expected an integer type, of class indices{hint}")


def _check_reduction(reduce_fn: object) -> None:
    """An error for what cannot be called with the losses and `where=`, as far as its signature tells."""
    if reduce_fn is None or reduce_fn is jnp.mean:
        return
    expected = "a function of losses and where=, such as jax.numpy.sum, or None"
    if not callable(reduce_fn):
        raise wrong_type("reduce_fn", reduce_fn, expected)
    try:
        signature = inspect.signature(reduce_fn)
    except ValueError:
        return
    try:
        signature.bind(None, where=None)
    except TypeError as error:
        raise TypeError(f"reduce_fn cannot be called so ({error}): expected {expected}") from None


def _checked(logits: ArrayLike, labels: ArrayLike, axis: Axis, where: ArrayLike | None) -> Rows:
    x, a = floating("logits", logits), number("labels", labels)
    if not jnp.issubdtype(a.dtype, jnp.floating):
        a = a.astype(x.dtype)
    return of_probabilities(x, a, axis, where)


def _cross_entropy(rows: Rows) -> Array:
    """The losses of rows of probabilities."""
    labels = rows.labels if rows.included is None else jnp.where(rows.included, rows.labels, 0)
    return _rows_loss(masked(rows, finite=True), labels, rows)


def _rows_loss(logits: Array, labels: Array, rows: Rows) -> Array:
    return categorical_cross_entropy(logits, labels, where=rows.where, clip=None, reduction="none")
