"""A formula that is traced where a program is lowered for a platform that needs it, and nowhere else.

Where there is a kernel, most of what is traced of a loss would be the formula beside it, which nobody compiles: half of
the time that JAX takes to trace a loss.
"""

import functools
import types
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.core
from jax.extend.core import Primitive
from jax.interpreters import mlir
from jax.sharding import AbstractMesh

from jaxloss._arrays import Array

_primitive = Primitive("jaxloss_formula")
_primitive.multiple_results = True


class _Formula:
    """A function that is equal to another of the same code that closes over equal things, whenever it was made."""

    def __init__(self, function: Callable[..., Sequence[Array]]):
        self.function = function

    @functools.cached_property
    def _key(self):
        return _key(self.function)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Formula) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    def __repr__(self) -> str:
        return getattr(self.function, "__qualname__", type(self.function).__qualname__)


def _key(of: Any):
    if isinstance(of, functools.partial):
        return _key(of.func), of.args, *of.keywords.items()
    if not isinstance(of, types.FunctionType):
        return of
    return of.__code__, of.__defaults__, tuple(_key(cell.cell_contents) for cell in of.__closure__ or ())


def results_of(
    formula: Callable[..., Sequence[Array]], results: Sequence[jax.ShapeDtypeStruct], *operands: Array
) -> tuple[Array, ...]:
    """The results of the formula, of these types. Like a custom call it is neither differentiated nor batched.

    What it closes over is hashable, so no array. Its results vary over no mesh axis of a `shard_map`.
    """
    wide = jax.config.jax_enable_x64  # pyright: ignore[reportAttributeAccessIssue]
    return tuple(_primitive.bind(*operands, formula=_Formula(formula), results=tuple(results), wide=wide))


@_primitive.def_abstract_eval
def _types(*_: Any, results: Sequence[jax.ShapeDtypeStruct], **__: Any):
    return [jax.core.ShapedArray(result.shape, result.dtype) for result in results]


def _evaluated(*operands: Array, formula: _Formula, results: Sequence[jax.ShapeDtypeStruct], wide: bool):
    """In the types that there were where it was called, and as one device."""
    with jax.enable_x64(wide), jax.sharding.use_abstract_mesh(AbstractMesh((), ())):
        outputs = formula.function(*operands)
        return [output.astype(result.dtype) for output, result in zip(outputs, results, strict=True)]


_primitive.def_impl(_evaluated)


def _lowered(ctx: Any, *values: Any, wide: bool, **params: Any):
    operands = [jax.core.ShapedArray(of.shape, of.dtype) for of in ctx.avals_in]
    lowered = mlir.lower_fun(_evaluated, multiple_results=True)
    with jax.enable_x64(wide):
        return lowered(ctx.replace(avals_in=operands), *values, wide=wide, **params)


mlir.register_lowering(_primitive, _lowered)
