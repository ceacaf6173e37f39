"""Multiclass losses of the logits `hidden @ kernel`, which are never materialized: for language models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

from jaxloss._arrays import Array, inlined
from jaxloss._checks import debug as _debug
from jaxloss._checks.classes import Options
from jaxloss._checks.debug import watched
from jaxloss._checks.linear import checked, class_indices_alone
from jaxloss._checks.objective import checked as checked_objective
from jaxloss._docs.described import described
from jaxloss._docs.losses import OBJECTIVE, STATISTICS, TOKENS, UNREDUCED
from jaxloss._linear import autodiff as _linear
from jaxloss._linear import objective as _objective
from jaxloss._types import AxisName, Normalizer, Per, Reduction, Remainder, TokenLabels, TokenNormalizer
from jaxloss.categorical import CrossEntropyStats, public_stats


@watched(_debug.linear)
@described(TOKENS)
def linear_cross_entropy(
    hidden: ArrayLike,
    kernel: ArrayLike,
    labels: TokenLabels,
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
    remainder: Remainder = "drop",
    shift: int = 0,
    chunk_size: int | None = None,
    accumulate_dtype: DTypeLike = jnp.float32,
    logits_dtype: DTypeLike | None = None,
    precision: jax.lax.PrecisionLike | None = None,
    axis_name: AxisName = None,
) -> Array:
    r"""Cross entropy of the logits `hidden @ kernel + bias`, which are made for a chunk of the tokens at a time.

    $$\frac1n \sum_i -\log \mathrm{softmax}(h_i W + b)_{y_i}$$

    The result is that of `categorical_cross_entropy(hidden @ kernel + bias, labels)` with the same `clip`. The default
    is None here and 1e-7 there: for a label whose probability is next to 0, this loss is exact, and that one 16.118.
    The gradients are the same. Value and gradients take the three matrix products that they need anyway, and the memory
    of one chunk's logits; value and gradient with respect to `hidden` or `kernel` alone take two products.

    <batch size>

    The options are those of `categorical_cross_entropy`, in the same pass. Logits and their gradients have the type
    that `hidden @ kernel` has, so two 16-bit operands keep the products on tensor cores; `logits_dtype` makes the
    logits alone more exact. On NVIDIA GPUs the kernel is copied where 16-bit products of its widths would be slow: a
    device then works on multiples of 8 or 64 features and classes, and the copy's padding has no part in any result.

    Args:
        hidden: $h$, `[..., D]`; <dtypes>.
        kernel: $W$, `[D, V]`; its type is one of these too.
        labels: $y$, class indices `[...]` of an integer type. A token whose label is not in `[0, V)` has a <result>
            of NaN and a gradient of 0, unless it is `ignore_index`. Or, for a teacher of whom the likeliest classes are
            stored, `(indices, probabilities)`: K class indices `[..., K]` of each token and their probabilities, at
            which gradients stop. Equal indices of a token add up; one that is not in `[0, V)` counts as a label does
            that is not, unless its probability is 0.
        bias: $b$, `[V]`. Default: none.
        kernel_axis: the class axis of `kernel`. With 0 it is `[V, D]`, like the table of an embedding.
        reduction: <reduction> The gradients of the first two are made with the value. Those of `"none"` wait for a
            cotangent of each token: the logits are then made a second time (not for the gradient of `hidden` alone).
        shift: a token's label is `shift` places further along the last axis of `labels`, as in next-token
            prediction. The last `shift` tokens of each sequence are masked. What else is given per token, such as
            `where`, is about the tokens that predict.
        chunk_size: how many tokens a device works on at a time. Default: as many as fill half a gigabyte of logits, or
            two gigabytes where devices share tokens and each works on a shard of the vocabulary; at least 2048.
        accumulate_dtype: the type that the kernel's gradient is summed in, over chunks and devices: bfloat16 takes
            half the memory and some percent less time, but rounds the sum at every chunk. A single chunk has no sum,
            and a gradient that is to be bfloat16 is rounded once, as it is made.
        precision: that of the matrix products, as `jax.lax.dot_general` takes it.

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
        logits_dtype=logits_dtype,
        precision=precision,
        axis_name=axis_name,
        remainder=remainder,
    )
    return _linear.value(plan, operands, examples, *rest)[0]


@watched(_debug.linear)
@described(STATISTICS, of=linear_cross_entropy)
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
    logits_dtype: DTypeLike | None = None,
    precision: jax.lax.PrecisionLike | None = None,
    axis_name: AxisName = None,
) -> tuple[Array, CrossEntropyStats]:
    r"""`linear_cross_entropy`, and statistics of each token from the same pass over the logits.

    <batch size>

    Returns:
        <Returns> Gradients of `nll`, `lse` and `entropy` take three more products.

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
        logits_dtype=logits_dtype,
        precision=precision,
        axis_name=axis_name,
        details=True,
    )
    loss, *stats = _linear.value(plan, operands, examples, *rest)
    named = dict(zip(plan.stats, stats, strict=True))
    return loss, public_stats(plan.objective, rest[plan.has_bias :], named)


@watched(_debug.linear)
@described(UNREDUCED, of=linear_cross_entropy)
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
    logits_dtype: DTypeLike | None = None,
    precision: jax.lax.PrecisionLike | None = None,
    axis_name: AxisName = None,
) -> Array:
    r"""The logarithm of the probability of each label under the logits `hidden @ kernel + bias`.

    $$\log \mathrm{softmax}(h_i W + b)_{y_i}$$

    It serves evaluation and reinforcement learning. It is the negative of `linear_cross_entropy` with
    `reduction="none"`, and differentiable like it.

    >>> import jax.numpy as jnp
    >>> import jaxloss
    >>> print(jaxloss.linear_log_prob(jnp.zeros((2, 3)), jnp.zeros((3, 4)), jnp.array([0, 3])))
    [-1.38629 -1.38629]
    """
    class_indices_alone(labels)
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
        logits_dtype=logits_dtype,
        precision=precision,
        axis_name=axis_name,
    )
    return _negated(losses)


@watched(_debug.linear)
@described(OBJECTIVE)
def linear_objective(
    hidden: ArrayLike,
    kernel: ArrayLike,
    labels: ArrayLike,
    objective: Callable[..., Any],
    *data: ArrayLike,
    bias: ArrayLike | None = None,
    kernel_axis: int = -1,
    where: ArrayLike | None = None,
    ignore_index: int | None = None,
    softcap: ArrayLike | None = None,
    temperature: ArrayLike = 1.0,
    num_classes: int | None = None,
    per: Per | None = None,
    group: int | None = None,
    normalizer: TokenNormalizer = None,
    shift: int = 0,
    chunk_size: int | None = None,
    accumulate_dtype: DTypeLike = jnp.float32,
    logits_dtype: DTypeLike | None = None,
    precision: jax.lax.PrecisionLike | None = None,
    axis_name: AxisName = None,
    has_aux: bool = False,
) -> Any:
    r"""Any function of tokens' log-probabilities, entropies and log-sum-exps under logits `hidden @ kernel + bias`.

    $$\frac1n \sum_b f\big((\log p_t, H_t, \mathrm{lse}_t)_{t \in b},\, d_b\big)$$

    `objective(tokens, *data)` is a JAX function $f$ of one block $b$ of `group` whole sequences, and returns a scalar.
    `tokens.log_prob` (of the labels), `tokens.entropy`, `tokens.lse` and the booleans `tokens.mask` are `[group, T]`,
    float32 or float64; data is what belongs to these sequences, `[group, ...]`. The result is the sum over all blocks,
    divided by the `normalizer`. It depends neither on chunks nor on how devices split the sequences.

    Value and gradients take the three matrix products that they need anyway, and the memory of one chunk's logits: JAX
    differentiates the objective where these are. A chunk has at least one block, so that very long sequences take the
    more memory: an objective that needs no other token of its sequence should say `per="token"`.

    `jaxloss.objectives` has those of PPO, GRPO, DPO and others.

    Args:
        hidden: `[..., T, D]`, or with `per="token"` `[..., D]`; <dtypes>.
        kernel: $W$, `[D, V]`; its type is one of these too.
        labels: class indices `[..., T]` of an integer type. The statistics of a token whose label is not in `[0, V)`
            are NaN, unless it is `ignore_index`.
        objective: $f$. It is traced at every call, and may close over arrays, traced ones too. On a mesh with explicit
            axes it may not close over traced arrays.
        data: arrays that have the leading axes of the sequences, those of `labels` but the last, or with `per="token"`
            all axes of `labels`. What they hold for masked tokens reaches the objective.
        bias: $b$, `[V]`. Default: none.
        kernel_axis: the class axis of `kernel`. With 0 it is `[V, D]`, like the table of an embedding.
        per: `"sequence"`, or `"token"`: then a block is one token, and its arrays are `[1]` and `[1, ...]`. Default:
            the attribute `per` of the objective, `"sequence"` if it has none.
        group: how many adjacent sequences, along the axis before the last of `labels`, make a block, such as a chosen
            and a rejected one. Default: the attribute `group` of the objective, 1 if it has none.
        shift: a token's label is `shift` places further along the last axis of `labels`, as in next-token prediction.
            The last `shift` tokens of each sequence are masked. What else is given per token, such as `where` and
            `data`, is about the tokens that predict.
        chunk_size: how many tokens a device works on at a time, rounded down to whole blocks, but at least one.
            Default: as many as fill half a gigabyte of logits, or two gigabytes where devices share tokens and each
            works on a shard of the vocabulary; at least 2048.
        accumulate_dtype: the type that the kernel's gradient is summed in, over chunks and devices.
        precision: that of the matrix products, as `jax.lax.dot_general` takes it.
        has_aux: whether the objective returns `(value, aux)`, a tree of arrays.

    >>> import jax.numpy as jnp
    >>> import jaxloss
    >>> hidden, kernel = jnp.ones((2, 3, 4)), jnp.zeros((4, 5))
    >>> labels, advantages = jnp.zeros((2, 3), int), jnp.array([1.0, -0.5])
    >>> def policy_gradient(tokens, advantages):
    ...     return -(advantages[:, None] * tokens.log_prob + 0.01 * tokens.entropy).sum()
    >>> print(jaxloss.linear_objective(hidden, kernel, labels, policy_gradient, advantages, normalizer="tokens"))
    0.38627

    Source: E. Wijmans et al., *Cut Your Losses in Large-Vocabulary Language Models* (2025), for the problem.
    """
    plan, operands, examples, rest = checked(
        hidden,
        kernel,
        labels,
        {"softcap": softcap, "temperature": temperature, "num_classes": num_classes},
        bias=bias,
        kernel_axis=kernel_axis,
        where=where,
        ignore_index=ignore_index,
        weights=None,
        clip=None,
        reduction="sum",
        normalizer=None,
        shift=shift,
        chunk_size=chunk_size,
        accumulate_dtype=accumulate_dtype,
        logits_dtype=logits_dtype,
        precision=precision,
        axis_name=axis_name,
    )
    blocks, flat, aux = checked_objective(
        plan,
        operands,
        examples,
        rest,
        objective,
        data,
        per=per,
        group=group,
        normalizer=normalizer,
        has_aux=has_aux,
    )
    value, *sums = _objective.value(blocks, flat)
    return (value, aux(sums)) if has_aux else value


@inlined()
def _negated(losses: Array) -> Array:
    return 0 - losses  # not −0 where a token is left out
