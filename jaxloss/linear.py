"""Multiclass losses of the logits `hidden @ kernel`, which are never materialized: for language models."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

from jaxloss._arrays import Array, inlined
from jaxloss._checks import debug as _debug
from jaxloss._checks.classes import Options
from jaxloss._checks.debug import watched
from jaxloss._checks.linear import checked
from jaxloss._linear import autodiff as _linear
from jaxloss._types import AxisName, Normalizer, Reduction
from jaxloss.categorical import CrossEntropyStats, public_stats


@watched(_debug.linear)
def linear_cross_entropy(
    hidden: ArrayLike,
    kernel: ArrayLike,
    labels: ArrayLike,
    *,
    bias: ArrayLike | None = None,
    kernel_axis: int = -1,
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
    clip: float | None = None,
    reduction: Reduction = "mean",
    normalizer: Normalizer | None = None,
    shift: int = 0,
    chunk_size: int | None = None,
    accumulate_dtype: DTypeLike = jnp.float32,
    precision: jax.lax.PrecisionLike | None = None,
    axis_name: AxisName = None,
) -> Array:
    r"""Cross entropy of the logits `hidden @ kernel + bias`, which are made for a chunk of the tokens at a time.

    $$\frac1n \sum_i -\log \mathrm{softmax}(h_i W + b)_{y_i}$$

    The result is that of `categorical_cross_entropy(hidden @ kernel + bias, labels)` with the same `clip`. The default
    is None here and 1e-7 there: for a label whose probability is next to 0, this loss is exact, and that one 16.118.
    The gradients are the same. Value and gradients take the three matrix products that they need anyway, and the memory
    of one chunk's logits; value and gradient with respect to `hidden` or `kernel` alone take two products.

    An example is a token: one index of all axes of `hidden` but the last. The options are those of
    `categorical_cross_entropy`, in the same pass. Logits and their gradients have the type that `hidden @ kernel` has,
    so two 16-bit operands keep the products on tensor cores.

    Args:
        hidden: $h$, `[..., D]`; float32, bfloat16, float16 or float64.
        kernel: $W$, `[D, V]`, of such a type too.
        labels: $y$, class indices `[...]` of an integer type. A token whose label is not in `[0, V)` has loss NaN and
            gradient 0, unless it is `ignore_index`.
        bias: $b$, `[V]`. Default: none.
        kernel_axis: the class axis of `kernel`. With 0 it is `[V, D]`, like the table of an embedding.
        where: a boolean mask `[...]`, false for masked tokens: their loss and gradient are exactly 0, even
            where they hold NaN, and a chunk of nothing else is skipped. $n$ counts the unmasked tokens. Default: all
            count.
        ignore_index: tokens whose label is this are masked, as by `where`.
        weights: numbers `[...]` that tokens' losses are multiplied by; $n$ stays. Default: 1.
        class_weights: `[V]`: what the loss of a class's tokens is multiplied by; $n$ stays, unless `normalizer` says
            otherwise. Default: 1.
        label_smoothing: from 0 to 1; a number or a traced scalar, like the next four.
        z_loss: 0 or more: what the square of the log-sum-exp is multiplied by and added.
        softcap: above 0; a tanh bounds the logits by it. None for none.
        margin: a finite number: what the logit of a token's label is lowered by, after the softcap. A scalar, not one
            per token.
        temperature: above 0; it divides the logits after the softcap.
        num_classes: how many classes there are, if `kernel` is padded beyond that. Default: `V`.
        clip: the value is that of $\max(\mathrm{softmax}, \mathrm{clip})$; the gradient is never clipped. Default:
            none.
        reduction: `"mean"` divides the sum by $n$, `"sum"` does not, `"none"` returns the loss of each token. The
            gradients of the first two are made with the value. Those of `"none"` wait for a cotangent of each token:
            the logits are then made a second time (not for the gradient of `hidden` alone).
        normalizer: a number or scalar array that replaces $n$ in `"mean"`; or `"weights"`, for the sum, over the
            unmasked tokens, of `weights` times their label's class weight.
        shift: a token's label is `shift` places further along the last axis of `labels`, as in next-token
            prediction. The last `shift` tokens of each sequence are masked. `where` and `weights` are those of the
            tokens that predict.
        chunk_size: how many tokens a device works on at a time. Default: as many as fill half a gigabyte of logits, or
            two gigabytes where devices share tokens and each works on a shard of the vocabulary; at least 2048.
        accumulate_dtype: the type that the kernel's gradient is summed in, over chunks and devices: bfloat16 takes
            half the memory and some percent less time, but rounds the sum at every chunk. A single chunk has no sum,
            and a gradient that is to be bfloat16 is rounded once, as it is made.
        precision: of the matrix products, as `jax.lax.dot_general` takes it.
        axis_name: the mesh axis, or axes, that an enclosing `jax.shard_map` (with `check_vma=True`, its default) has
            split the classes over: `kernel` and `bias` are this device's shard, labels are indices of the whole
            vocabulary. The devices exchange only scalars per token, and the gradient of `hidden`.

    Returns:
        A scalar, or for `"none"` an array `[...]`; float64 for float64 logits, else float32. The loss is differentiable
        with respect to `hidden`, `kernel`, `bias`, `weights`, `class_weights`, `normalizer` and every option that is a
        number; a mean over no token is 0.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: shapes do not match, or an option has no such value.

    >>> import jax.numpy as jnp
    >>> import jaxloss
    >>> hidden, kernel = jnp.array([[1.0, 0.0], [0.0, 1.0]]), jnp.array([[2.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    >>> print(jaxloss.linear_cross_entropy(hidden, kernel, jnp.array([0, 2])))
    0.75311
    >>> print(jaxloss.linear_cross_entropy(hidden, kernel, jnp.array([1, 0]), shift=1))
    0.40761

    Source: E. Wijmans et al., *Cut Your Losses in Large-Vocabulary Language Models* (2025), for the problem.
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
    plan, operands, examples, rest = checked(
        hidden,
        kernel,
        labels,
        options,
        bias=bias,
        kernel_axis=kernel_axis,
        where=where,
        ignore_index=ignore_index,
        weights=weights,
        clip=clip,
        reduction=reduction,
        normalizer=normalizer,
        shift=shift,
        chunk_size=chunk_size,
        accumulate_dtype=accumulate_dtype,
        precision=precision,
        axis_name=axis_name,
    )
    return _linear.value(plan, operands, examples, *rest)[0]


@watched(_debug.linear)
def linear_cross_entropy_with_stats(
    hidden: ArrayLike,
    kernel: ArrayLike,
    labels: ArrayLike,
    *,
    bias: ArrayLike | None = None,
    kernel_axis: int = -1,
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
    clip: float | None = None,
    reduction: Reduction = "mean",
    normalizer: Normalizer | None = None,
    shift: int = 0,
    chunk_size: int | None = None,
    accumulate_dtype: DTypeLike = jnp.float32,
    precision: jax.lax.PrecisionLike | None = None,
    axis_name: AxisName = None,
) -> tuple[Array, CrossEntropyStats]:
    r"""`linear_cross_entropy`, and statistics of each token from the same pass over the logits.

    Args:
        hidden: as for `linear_cross_entropy`.
        kernel: as for `linear_cross_entropy`.
        labels: as for `linear_cross_entropy`.
        bias: as for `linear_cross_entropy`.
        kernel_axis: as for `linear_cross_entropy`.
        where: as for `linear_cross_entropy`; the statistics of masked tokens are 0, but `predicted` and `rank`.
        ignore_index: as for `linear_cross_entropy`.
        weights: as for `linear_cross_entropy`.
        class_weights: as for `linear_cross_entropy`.
        label_smoothing: as for `linear_cross_entropy`.
        z_loss: as for `linear_cross_entropy`.
        softcap: as for `linear_cross_entropy`.
        margin: as for `linear_cross_entropy`.
        temperature: as for `linear_cross_entropy`.
        num_classes: as for `linear_cross_entropy`.
        clip: as for `linear_cross_entropy`; statistics are never clipped.
        reduction: as for `linear_cross_entropy`; statistics are never reduced.
        normalizer: as for `linear_cross_entropy`.
        shift: as for `linear_cross_entropy`.
        chunk_size: as for `linear_cross_entropy`.
        accumulate_dtype: as for `linear_cross_entropy`.
        precision: as for `linear_cross_entropy`.
        axis_name: as for `linear_cross_entropy`.

    Returns:
        The loss, and `CrossEntropyStats` of arrays `[...]`. `nll`, `lse` and `entropy` are differentiable like the
        loss: their gradients take three more products. Gradients stop at the others.

    Raises:
        TypeError: as `linear_cross_entropy`.
        ValueError: as `linear_cross_entropy`.

    >>> import jax.numpy as jnp
    >>> import jaxloss
    >>> hidden, kernel = jnp.array([[1.0, 0.0], [0.0, 1.0]]), jnp.array([[2.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    >>> loss, stats = jaxloss.linear_cross_entropy_with_stats(hidden, kernel, jnp.array([1, 2]))
    >>> print(loss, stats.rank)
    1.25311 [1 2]
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
    plan, operands, examples, rest = checked(
        hidden,
        kernel,
        labels,
        options,
        bias=bias,
        kernel_axis=kernel_axis,
        where=where,
        ignore_index=ignore_index,
        weights=weights,
        clip=clip,
        reduction=reduction,
        normalizer=normalizer,
        shift=shift,
        chunk_size=chunk_size,
        accumulate_dtype=accumulate_dtype,
        precision=precision,
        axis_name=axis_name,
        details=True,
    )
    loss, *stats = _linear.value(plan, operands, examples, *rest)
    named = dict(zip(plan.stats, stats, strict=True))
    return loss, public_stats(plan.objective, rest[plan.has_bias :], named)


@watched(_debug.linear)
def linear_log_prob(
    hidden: ArrayLike,
    kernel: ArrayLike,
    labels: ArrayLike,
    *,
    bias: ArrayLike | None = None,
    kernel_axis: int = -1,
    where: ArrayLike | None = None,
    ignore_index: int | None = None,
    softcap: ArrayLike | None = None,
    temperature: ArrayLike = 1.0,
    num_classes: int | None = None,
    shift: int = 0,
    chunk_size: int | None = None,
    accumulate_dtype: DTypeLike = jnp.float32,
    precision: jax.lax.PrecisionLike | None = None,
    axis_name: AxisName = None,
) -> Array:
    r"""The logarithm of the probability of each label under the logits `hidden @ kernel + bias`.

    $$\log \mathrm{softmax}(h_i W + b)_{y_i}$$

    For evaluation and for reinforcement learning: it is differentiable like `linear_cross_entropy` with
    `reduction="none"`, of which it is the negative.

    Args:
        hidden: as for `linear_cross_entropy`.
        kernel: as for `linear_cross_entropy`.
        labels: as for `linear_cross_entropy`.
        bias: as for `linear_cross_entropy`.
        kernel_axis: as for `linear_cross_entropy`.
        where: as for `linear_cross_entropy`; a masked token has 0.
        ignore_index: as for `linear_cross_entropy`.
        softcap: as for `linear_cross_entropy`.
        temperature: as for `linear_cross_entropy`.
        num_classes: as for `linear_cross_entropy`.
        shift: as for `linear_cross_entropy`.
        chunk_size: as for `linear_cross_entropy`.
        accumulate_dtype: as for `linear_cross_entropy`.
        precision: as for `linear_cross_entropy`.
        axis_name: as for `linear_cross_entropy`.

    Returns:
        An array `[...]`; float64 for float64 logits, else float32.

    Raises:
        TypeError: as `linear_cross_entropy`.
        ValueError: as `linear_cross_entropy`.

    >>> import jax.numpy as jnp
    >>> import jaxloss
    >>> print(jaxloss.linear_log_prob(jnp.zeros((2, 3)), jnp.zeros((3, 4)), jnp.array([0, 3])))
    [-1.38629 -1.38629]
    """
    losses = linear_cross_entropy(
        hidden,
        kernel,
        labels,
        bias=bias,
        kernel_axis=kernel_axis,
        where=where,
        ignore_index=ignore_index,
        softcap=softcap,
        temperature=temperature,
        num_classes=num_classes,
        reduction="none",
        shift=shift,
        chunk_size=chunk_size,
        accumulate_dtype=accumulate_dtype,
        precision=precision,
        axis_name=axis_name,
    )
    return _negated(losses)


@inlined()
def _negated(losses: Array) -> Array:
    return 0 - losses  # not −0 where a token is left out
