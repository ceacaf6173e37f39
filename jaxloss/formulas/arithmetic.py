"""What all formulas are written in."""

from __future__ import annotations

import jax
import jax.numpy as jnp

Array = jax.Array


def real(x: Array) -> Array:
    """`x` in the type that its loss is computed in: float64 for float64, float32 for everything else."""
    return x if x.dtype == jnp.float64 else x.astype(jnp.float32)


def product(weight: Array | float, value: Array) -> Array:
    """`weight * value`, where a weight of 0 takes the value out even if it is infinite."""
    return weight * jnp.where((weight == 0) & ~jnp.isfinite(value), 0, value)


@jax.custom_jvp
def with_derivatives_of(x: Array, value: Array) -> Array:
    """`value`, of which `x` is a less exact form, and one that JAX differentiates."""
    del x
    return value


@with_derivatives_of.defjvp
def _with_derivatives_of_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    return with_derivatives_of(*primals), tangents[0]
