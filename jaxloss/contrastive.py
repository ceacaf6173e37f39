"""Contrastive losses of pairs of embeddings, whose logits are never materialized."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

from jaxloss._arrays import Array
from jaxloss._checks import debug as _debug
from jaxloss._checks.contrastive import checked
from jaxloss._checks.debug import watched
from jaxloss._docs.described import described
from jaxloss._docs.losses import PAIRS
from jaxloss._linear import contrastive as _contrastive
from jaxloss._types import FINITE, AxisName, Reduction


@watched(_debug.contrastive, scale=FINITE)
@described(PAIRS)
def sigmoid_contrastive(
    a: ArrayLike,
    b: ArrayLike,
    *,
    scale: ArrayLike,
    bias: ArrayLike,
    reduction: Reduction = "mean",
    normalizer: ArrayLike | None = None,
    chunk_size: int | None = None,
    accumulate_dtype: DTypeLike = jnp.float32,
    precision: jax.lax.PrecisionLike | None = None,
    axis_name: AxisName = None,
) -> Array:
    r"""The sigmoid loss of pairs of embeddings: of each two rows of `a` and `b`, whether they belong together (SigLIP).

    $$-\frac1n \sum_{ij} \log \sigma\big(z_{ij} (s\, a_i \cdot b_j + c)\big), \qquad z_{ii} = 1, \quad z_{ij} = -1$$

    The logits are made for a chunk of the rows of `a` at a time. Value and gradients, those of scale and bias too, take
    the three matrix products that they need anyway, and the memory of one chunk's logits. Logits are float32 (float64
    where an embedding is), as the products of 16-bit embeddings are summed; their gradient is rounded to the type of
    `a @ b.T` before its products. The value is exact, in log space.

    $n$ is the number of pairs, not of logits. Under `jax.jit` the embeddings may be split over a mesh by their rows:
    the devices gather `b`, once, and add up its gradient, once.

    The softmax counterpart (CLIP) is `linear_cross_entropy(scale * a, b, jnp.arange(n), kernel_axis=0)`, and the same
    with `a` and `b` swapped.

    >>> import jax
    >>> import jax.numpy as jnp
    >>> import jaxloss
    >>> images, texts = jnp.eye(3), jnp.eye(3)[:, ::-1]
    >>> print(jaxloss.sigmoid_contrastive(images, texts, scale=10.0, bias=-5.0))
    6.68681
    >>> def loss(log_scale):
    ...     return jaxloss.sigmoid_contrastive(images, images, scale=jnp.exp(log_scale), bias=-5.0)
    >>> print(jax.grad(loss)(jnp.log(10.0)))
    -0.06693

    Source: X. Zhai et al., *Sigmoid Loss for Language Image Pre-Training* (2023), arXiv:2303.15343.
    """
    plan, axes, a, b, numbers, examples = checked(
        a,
        b,
        scale,
        bias,
        reduction=reduction,
        normalizer=normalizer,
        chunk_size=chunk_size,
        accumulate_dtype=accumulate_dtype,
        precision=precision,
        axis_name=axis_name,
    )
    return _contrastive.value(plan, axes, a, b, numbers, examples)
