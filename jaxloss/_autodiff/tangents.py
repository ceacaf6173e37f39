"""What the derivative rules of weighted losses are made of: tangents that may be zero, products, which rows count."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.interpreters import ad
from jax.sharding import NamedSharding

from jaxloss._arrays import Array, along, is_masked, manual_axes, weighted
from jaxloss._partitioning.meshes import as_spec, explicit_entries, mesh_of
from jaxloss.formulas import real

BOUNDED = 16.0
"""The `float16_weight` of losses whose gradients are differences of probabilities, most of them small."""


def or_none(tangent):
    """The tangent, None for one that is known to be zero."""
    return None if isinstance(tangent, SymbolicZero | ad.Zero) else tangent


def with_nonzero_tangents(function: Callable, primals, tangents):
    """`function` of those arrays of its operands that have a tangent, and these arrays and tangents."""
    arrays, structure = jax.tree.flatten(primals)
    tangents = structure.flatten_up_to(tangents)
    places = [place for place, tangent in enumerate(tangents) if or_none(tangent) is not None]

    def of_nonzero(*nonzero):
        operands = list(arrays)
        for place, operand in zip(places, nonzero, strict=True):
            operands[place] = operand
        return function(*structure.unflatten(operands))

    return of_nonzero, tuple(arrays[i] for i in places), tuple(tangents[i] for i in places)


def tangent_of(function: Callable, primals, tangents) -> Any:
    """The tangent of what the function gives; one at least of its operands' is not zero."""
    of_nonzero, nonzero, nonzero_tangents = with_nonzero_tangents(function, primals, tangents)
    return jax.jvp(of_nonzero, nonzero, nonzero_tangents)[1]


def with_derivative_of(formula: Callable, op: Callable) -> Callable[..., tuple[Array, ...]]:
    """`op`, whose derivative is that of the first results of a formula."""
    differentiable = jax.custom_jvp(op)

    def tangent(primals, tangents) -> Any:
        results = differentiable(*primals)
        return results, tangent_of(formula, primals, tangents)[: len(results)]

    differentiable.defjvp(tangent, symbolic_zeros=True)
    return differentiable


def zero_tangent(primal: Array):
    """Its tangent, where it has none."""
    if jnp.issubdtype(primal.dtype, jnp.floating):
        return jnp.zeros_like(primal)
    return SymbolicZero(jax.typeof(primal).to_tangent_aval())  # of a type that knows what it varies over


def row_dot(a: Array, b: Array, rank: int) -> Array:
    """The sum of `a * b` over all axes but the first `rank`."""
    rows, features = tuple(range(rank)), tuple(range(rank, a.ndim))
    mesh = mesh_of([a, b])
    # Where shardings are part of the types, split features must be told what becomes of them: they are summed.
    out_sharding = NamedSharding(mesh, as_spec(explicit_entries(a)[:rank])) if mesh.explicit_axes else None
    # Not sum(a * b), which jaxlib 0.10.2's CPU compiler gets wrong under vmap.
    return jax.lax.dot_general(
        real(a),
        real(b),
        ((features, features), (rows, rows)),
        precision=jax.lax.Precision.HIGHEST,
        out_sharding=out_sharding,
    )


def varying_like(result: Array, x: Array) -> Array:
    """`x`, summed over the mesh axes of a `shard_map` that it varies over and `result` does not.

    Those are axes that the features are split over: a row's tangent is the sum of what its slices contribute.
    """
    axes = tuple(axis for axis in manual_axes(x) if axis not in manual_axes(result))
    return jax.lax.psum(x, axes) if axes else x


@functools.partial(jax.checkpoint, prevent_cse=False)  # a scan saves the 16-bit gradient, not what it is widened to
def total_product(a: Array, b: Array) -> Array:
    # Not vdot: its reshape makes XLA gather an operand whose features are split over devices.
    return jnp.sum(real(a) * real(b))


def scale_beyond(row_weight: Array, largest: float) -> Array:
    """A power of two that brings weights up to `largest`, all by the same, when they are divided by it; at most 1.

    Gradients of float16 are made with weights so large, and multiplied by the scale after the cotangent, in float32:
    rounded with 1/n in them, and before the factor that losses of float16 are scaled by, most would be 0.
    """
    weight = jax.lax.stop_gradient(row_weight)
    size = jnp.max(jnp.where(jnp.isfinite(weight), jnp.abs(weight), 0), initial=0)
    exponent = jnp.clip(jnp.frexp(size / largest)[1], -100, 0)
    return jnp.ldexp(jnp.ones_like(size), jnp.where(size == 0, 0, exponent))


def times(x: Array, scale: Array | None) -> Array:
    """`x` times a scale, None for 1."""
    return x if scale is None else x * scale


def contracted(row_weight: Array, losses: Array) -> Array:
    """Σ wᵢ ℓᵢ; a weight of 0 takes a loss out even if that is NaN."""
    return weighted(row_weight, losses).sum()


def totals(row_weight: Array, losses: Array) -> Array:
    """The same for the rows of each weight."""
    return losses_of_weights(row_weight, weighted(row_weight, losses))


def counted(row_weight: Array, losses: Array) -> Array:
    """Which rows' tangents count: a weight of 0 takes them out, too, where the loss is not finite."""
    weight = along(row_weight, losses)
    return ~(is_masked(weight) | ((weight == 0) & ~jnp.isfinite(losses)))


def losses_of_weights(row_weight: Array, losses: Array) -> Array:
    """The losses of all rows of each weight together."""
    return losses.sum(tuple(range(row_weight.ndim, losses.ndim)))
