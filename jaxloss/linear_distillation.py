"""Distillation losses of the logits `hidden @ kernel`, which are never materialized: for language models."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

from jaxloss._arrays import Array
from jaxloss._checks import debug as _debug
from jaxloss._checks.debug import watched
from jaxloss._checks.linear_divergence import checked, kullback_leibler
from jaxloss._docs.described import described
from jaxloss._docs.losses import LINEAR_DIVERGENCES
from jaxloss._linear import divergence as _linear
from jaxloss._rows.divergence import JENSEN_SHANNON
from jaxloss._types import AxisName, Direction, Normalizer, Reduction


@watched(_debug.linear_divergence)
@described(LINEAR_DIVERGENCES)
def linear_kl_divergence(
    hidden: ArrayLike,
    kernel: ArrayLike,
    teacher_hidden: ArrayLike,
    teacher_kernel: ArrayLike,
    *,
    direction: Direction = "forward",
    bias: ArrayLike | None = None,
    teacher_bias: ArrayLike | None = None,
    kernel_axis: int = -1,
    teacher_kernel_axis: int = -1,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    softcap: ArrayLike | None = None,
    teacher_softcap: ArrayLike | None = None,
    temperature: ArrayLike = 1.0,
    labels: ArrayLike | None = None,
    ignore_index: int | None = None,
    shift: int = 0,
    soft_weight: ArrayLike | None = None,
    hard_weight: ArrayLike | None = None,
    num_classes: int | None = None,
    reduction: Reduction = "mean",
    normalizer: Normalizer | None = None,
    chunk_size: int | None = None,
    accumulate_dtype: DTypeLike = jnp.float32,
    logits_dtype: DTypeLike | None = None,
    precision: jax.lax.PrecisionLike | None = None,
    axis_name: AxisName = None,
) -> Array:
    r"""Kullback-Leibler divergence of a student from a teacher, both given as hidden states and a kernel.

    $$\mathrm{KL}(q \| p) = \frac1n \sum q_i \log\frac{q_i}{p_i}, \quad p = \mathrm{softmax}((h W + b) / T),
      \; q = \mathrm{softmax}((h' W' + b') / T)$$

    The result is that of `kl_divergence(hidden @ kernel + bias, teacher_hidden @ teacher_kernel + teacher_bias,
    target_type="logits")`, whose two arguments are made for a chunk of the tokens at a time. Value and gradients take
    the three matrix products that they need anyway and one for the teacher's logits, and the memory of one chunk's
    logits; value and gradient with respect to `hidden` or `kernel` alone take three products.

    The teacher is frozen: gradients stop at `teacher_hidden`, `teacher_kernel` and `teacher_bias`. A factor $T^2$ is
    not included: multiply the loss, or with labels `soft_weight`, by `temperature**2` to have it. <batch size>

    With `labels`, their cross entropy is added, for no further product.

    Args:
        direction: `"forward"` for the divergence above, which spreads the student over all that the teacher finds
            likely; `"reverse"` for $\mathrm{KL}(p \| q)$, which keeps it from all that the teacher finds unlikely.
        reduction: <reduction> The gradients of the first two are made with the value. Those of `"none"` wait for a
            cotangent of each token: the logits are then made a second time (not for the gradient of `hidden` alone).

    >>> import jax.numpy as jnp
    >>> import jaxloss
    >>> hidden, kernel = jnp.array([[1.0, 0.0], [0.0, 1.0]]), jnp.array([[2.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    >>> teacher_hidden, teacher_kernel = jnp.ones((2, 1)), jnp.array([[1.0, 1.0, 0.0]])
    >>> print(jaxloss.linear_kl_divergence(hidden, kernel, teacher_hidden, teacher_kernel))
    0.10227
    >>> print(jaxloss.linear_kl_divergence(hidden, kernel, teacher_hidden, teacher_kernel, direction="reverse"))
    0.10817

    Source: G. Hinton, O. Vinyals, J. Dean, *Distilling the Knowledge in a Neural Network* (2015), arXiv:1503.02531; for
    the problem, P. Hsu et al., *Liger Kernel: Efficient Triton Kernels for LLM Training* (2024), arXiv:2410.10989.
    """
    plan, operands, examples, rest = checked(
        kullback_leibler(direction),
        hidden,
        kernel,
        teacher_hidden,
        teacher_kernel,
        bias=bias,
        teacher_bias=teacher_bias,
        kernel_axis=kernel_axis,
        teacher_kernel_axis=teacher_kernel_axis,
        where=where,
        weights=weights,
        softcap=softcap,
        teacher_softcap=teacher_softcap,
        temperature=temperature,
        labels=labels,
        ignore_index=ignore_index,
        shift=shift,
        soft_weight=soft_weight,
        hard_weight=hard_weight,
        num_classes=num_classes,
        reduction=reduction,
        normalizer=normalizer,
        chunk_size=chunk_size,
        accumulate_dtype=accumulate_dtype,
        logits_dtype=logits_dtype,
        precision=precision,
        axis_name=axis_name,
    )
    return _linear.value(plan, operands, examples, *rest)[0]


@watched(_debug.linear_divergence)
@described(LINEAR_DIVERGENCES)
def linear_jensen_shannon(
    hidden: ArrayLike,
    kernel: ArrayLike,
    teacher_hidden: ArrayLike,
    teacher_kernel: ArrayLike,
    *,
    beta: ArrayLike = 0.5,
    bias: ArrayLike | None = None,
    teacher_bias: ArrayLike | None = None,
    kernel_axis: int = -1,
    teacher_kernel_axis: int = -1,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    softcap: ArrayLike | None = None,
    teacher_softcap: ArrayLike | None = None,
    temperature: ArrayLike = 1.0,
    labels: ArrayLike | None = None,
    ignore_index: int | None = None,
    shift: int = 0,
    soft_weight: ArrayLike | None = None,
    hard_weight: ArrayLike | None = None,
    num_classes: int | None = None,
    reduction: Reduction = "mean",
    normalizer: Normalizer | None = None,
    chunk_size: int | None = None,
    accumulate_dtype: DTypeLike = jnp.float32,
    logits_dtype: DTypeLike | None = None,
    precision: jax.lax.PrecisionLike | None = None,
    axis_name: AxisName = None,
) -> Array:
    r"""Generalised Jensen-Shannon divergence of a student and a teacher, both given as hidden states and a kernel.

    $$\mathrm{JSD}_\beta = \frac1n \sum \beta q_i \log\frac{q_i}{m_i} + (1 - \beta) p_i \log\frac{p_i}{m_i},
      \quad m = \beta q + (1 - \beta) p$$

    with the student's $p = \mathrm{softmax}((h W + b) / T)$ and the teacher's $q = \mathrm{softmax}((h' W' + b') / T)$.

    The result is that of `jensen_shannon(hidden @ kernel + bias, teacher_hidden @ teacher_kernel + teacher_bias)`,
    whose two arguments are made for a chunk of the tokens at a time, with the products and the memory of
    `linear_kl_divergence`.

    The teacher is frozen: gradients stop at `teacher_hidden`, `teacher_kernel` and `teacher_bias`. A factor $T^2$ is
    not included: multiply the loss, or with labels `soft_weight`, by `temperature**2` to have it. <batch size>

    With `labels`, their cross entropy is added, for no further product.

    Args:
        beta: $\beta$, the teacher's share of the mixture, <number> strictly between 0 and 1. A JAX array that is not
            between them makes every loss NaN. What is small of second order in a small $\beta$ is computed of numbers
            that are not: in float32 the relative error is about $4 \cdot 10^{-9} / \beta$. What other libraries
            return for 0 and 1 is `linear_kl_divergence` of the directions `"forward"` and `"reverse"`.
        reduction: <reduction> The gradients of the first two are made with the value. Those of `"none"` wait for a
            cotangent of each token: the logits are then made a second time (not for the gradient of `hidden` alone).

    >>> import jax.numpy as jnp
    >>> import jaxloss
    >>> hidden, kernel = jnp.array([[1.0, 0.0], [0.0, 1.0]]), jnp.array([[2.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    >>> teacher_hidden, teacher_kernel = jnp.ones((2, 1)), jnp.array([[1.0, 1.0, 0.0]])
    >>> print(jaxloss.linear_jensen_shannon(hidden, kernel, teacher_hidden, teacher_kernel))
    0.02594
    >>> print(jaxloss.linear_jensen_shannon(hidden, kernel, teacher_hidden, teacher_kernel, beta=0.9))
    0.00963

    Source: R. Agarwal et al., *On-Policy Distillation of Language Models: Learning from Self-Generated Mistakes*
    (2024), arXiv:2306.13649, equation 2; for the problem, P. Hsu et al., *Liger Kernel: Efficient Triton Kernels
    for LLM Training* (2024), arXiv:2410.10989.
    """
    plan, operands, examples, rest = checked(
        JENSEN_SHANNON,
        hidden,
        kernel,
        teacher_hidden,
        teacher_kernel,
        beta=beta,
        bias=bias,
        teacher_bias=teacher_bias,
        kernel_axis=kernel_axis,
        teacher_kernel_axis=teacher_kernel_axis,
        where=where,
        weights=weights,
        softcap=softcap,
        teacher_softcap=teacher_softcap,
        temperature=temperature,
        labels=labels,
        ignore_index=ignore_index,
        shift=shift,
        soft_weight=soft_weight,
        hard_weight=hard_weight,
        num_classes=num_classes,
        reduction=reduction,
        normalizer=normalizer,
        chunk_size=chunk_size,
        accumulate_dtype=accumulate_dtype,
        logits_dtype=logits_dtype,
        precision=precision,
        axis_name=axis_name,
    )
    return _linear.value(plan, operands, examples, *rest)[0]
