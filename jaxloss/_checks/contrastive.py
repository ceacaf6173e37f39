"""The arguments of contrastive losses, checked and brought into the form that `_linear.contrastive` takes."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

from jaxloss._arrays import Array, inlined, promoted
from jaxloss._checks import arguments
from jaxloss._checks import examples as _examples
from jaxloss._checks.linear import how
from jaxloss._checks.parameters import number
from jaxloss._linear.contrastive import ContrastivePlan
from jaxloss._spec import Objective
from jaxloss._types import FINITE, AxisName, Reduction


def checked(
    a: ArrayLike,
    b: ArrayLike,
    scale: ArrayLike,
    bias: ArrayLike,
    *,
    reduction: Reduction,
    normalizer: ArrayLike | None,
    chunk_size: int | None,
    accumulate_dtype: DTypeLike,
    precision: jax.lax.PrecisionLike,
    axis_name: AxisName,
):
    """The plan, the mesh axes that split the pairs, the embeddings, scale and bias as one array, and the examples."""
    a, b = arguments.prediction("a", a), arguments.prediction("b", b)
    if a.ndim != 2:
        raise ValueError(f"a has shape {a.shape}: expected two axes, of examples and of features")
    if b.shape != a.shape:
        transposed = b.shape == a.shape[::-1]
        hint = "; write b.T" if transposed else "; jax.vmap takes a batch of them" if b.ndim > 2 else ""
        raise ValueError(f"b has shape {b.shape}, a {a.shape}: expected equal shapes, the pair of each row of a{hint}")
    axes = arguments.mesh_axes(axis_name, a, "a", "pairs")
    arguments.mesh_axes(axis_name, b, "b", "pairs")
    logits_dtype = promoted(a.dtype, b.dtype, jnp.float32)
    numbers = _stacked(
        *(number(name, x, FINITE).astype(logits_dtype) for name, x in (("scale", scale), ("bias", bias)))
    )
    plan = ContrastivePlan(
        objective=Objective(0.0, (), None),
        token_rank=1,
        classes_first=True,
        has_bias=True,
        masked=False,
        weighted=False,
        logits_dtype=logits_dtype,
        aligned=False,
        **how(chunk_size, accumulate_dtype, precision),
    )
    return plan, axes, a, b, numbers, _examples.checked(None, None, reduction, normalizer)


@inlined()
def _stacked(*numbers: Array) -> Array:
    return jnp.stack(numbers)
