"""Operands as optax takes them, which broadcast and mix types, and formulas of them with derivatives of their own."""

from __future__ import annotations

# Some annotations of jax and jax.numpy are partial.
# pyright: reportUnknownMemberType=false
import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jax.typing import ArrayLike

from jaxloss._arrays import Array, promoted
from jaxloss._checks.arrays import array, is_wide, narrowed
from jaxloss._checks.parameters import integer

P = ParamSpec("P")


def floating(name: str, x: ArrayLike) -> Array:
    """`x` as an array, of a floating-point type."""
    x = array(name, x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"{name} has dtype {x.dtype}: expected a floating-point type")
    return x


def number(name: str, x: ArrayLike) -> Array:
    """`x` as an array, of any real type."""
    x = array(name, x)
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        raise TypeError(f"{name} has dtype {x.dtype}: expected a real type")
    return x


def signed(name: str, x: ArrayLike) -> Array:
    """`x` as an array of a real type that has negative numbers: no booleans."""
    x = number(name, x)
    if x.dtype == jnp.bool_:
        raise TypeError(f"{name} has dtype {x.dtype}: expected a real type other than bool")
    return x


def mask(where: ArrayLike) -> Array:
    """`where` as an array of booleans."""
    where = array("where", where)
    if where.dtype != jnp.bool_:
        raise ValueError(f"where has dtype {where.dtype}: expected bool")
    return where


def listed(axis: Any) -> tuple[int, ...]:
    """One axis or several, as a tuple."""
    axes = cast(Sequence[Any], axis) if isinstance(axis, tuple | list) else (axis,)
    return tuple(integer("axis", one) for one in axes)


def of_array(axis: Any, name: str, ndim: int) -> tuple[int, ...]:
    """The axes of an array that an error calls `name`, counted from the end, in their order; all for None."""
    if axis is None:
        return tuple(range(-ndim, 0))
    axes = listed(axis)
    for one in axes:
        if not -ndim <= one < ndim:
            expected = f"one from {-ndim} to {ndim - 1}" if ndim else "None"
            raise ValueError(f"axis is {axis}, {name} {ndim} axes: expected {expected}")
    axes = tuple(one % ndim - ndim for one in axes)
    if len(set(axes)) != len(axes):
        raise ValueError(f"axis is {axis}: expected no axis twice")
    return axes


def broadcast(**operands: Array | None) -> tuple[int, ...]:
    """The shape that the named operands broadcast to; None has no part in it."""
    shapes = {name: x.shape for name, x in operands.items() if x is not None}
    try:
        return jnp.broadcast_shapes(*shapes.values())
    except ValueError as error:
        found = ", ".join(f"{name} has shape {shape}" for name, shape in shapes.items())
        raise ValueError(f"{found}: expected shapes that broadcast") from error


def wide(x: Array) -> Array:
    """`x` in the type that losses are computed in: float32 for floating-point types that are narrower."""
    narrow = jnp.issubdtype(x.dtype, jnp.floating) and x.dtype.itemsize < 4
    return x.astype(jnp.float32) if narrow else x


def of_type(x: Array, *operands: ArrayLike) -> Array:
    """`x` in the type that optax gives a result of these operands: the one they promote to."""
    dtype = promoted(*(x if isinstance(x, Array) else jnp.asarray(x) for x in operands))
    return x if x.dtype == dtype else x.astype(dtype)


def with_derivatives(value: Callable[..., Array], *derivatives: Callable[..., Array]) -> Callable[..., Array]:
    """An elementwise `value` with its derivative with respect to each of its operands, as formulas.

    Only operands that have a tangent are asked for: another's derivative may be infinite, and 0 × ∞ is not 0.
    """
    function = jax.custom_jvp(value)

    def tangent(primals: tuple[Array, ...], tangents: tuple[Array | SymbolicZero, ...]) -> tuple[Array, Array]:
        out = function(*primals)
        terms = [
            derivative(*primals) * dot
            for derivative, dot in zip(derivatives, tangents, strict=True)
            if not isinstance(dot, SymbolicZero)
        ]
        return out, jnp.broadcast_to(sum(terms, start=jnp.zeros((), out.dtype)), out.shape).astype(out.dtype)

    function.defjvp(tangent, symbolic_zeros=True)
    return function


def one_program(function: Callable[P, Array]) -> Callable[P, Array]:
    """`function`, compiled as a whole where it is called eagerly: none of its constants is copied to the device alone.

    Arrays are arguments of the program, all else is compiled in.
    """
    parameters, by_name = inspect.signature(function), cast(Callable[..., Array], function)

    @functools.lru_cache(maxsize=1024)
    def program(rest: tuple[Any, ...]) -> Callable[..., Array]:
        given = {name: value for name, _, value in rest}

        def whole(arrays: dict[str, Array]) -> Array:
            return by_name(**arrays, **given)

        return jax.jit(whole, inline=True)

    @functools.wraps(function)
    def called(*args: P.args, **options: P.kwargs) -> Array:
        try:
            given = parameters.bind(*args, **options).arguments
        except TypeError as error:
            raise TypeError(f"{function.__name__}(): {error}") from None
        arrays = {
            name: narrowed(x) if is_wide(x) else x for name, x in given.items() if name != "axis" and _is_array(x)
        }
        rest: tuple[tuple[str, type[Any], Any], ...] = tuple(
            (name, cast(type[Any], type(x)), x) for name, x in given.items() if name not in arrays
        )
        try:
            compiled = program(rest)
        except TypeError:  # something that has no hash: a list of numbers, or what is no array
            return function(*args, **options)
        return compiled(arrays)

    return called


def _is_array(x: Any) -> bool:
    return isinstance(x, Array) or (isinstance(x, np.ndarray) and x.dtype.kind not in "OSUMm")
