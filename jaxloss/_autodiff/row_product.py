"""What a tangent of `x` adds to results of each row: a primitive, whose transpose is the kernel of their gradient.

JAX transposes a formula operation by operation, and XLA makes of that what it can. A primitive says what its transpose
is. All else that JAX asks of it, the formulas answer.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive, jaxpr_as_fun
from jax.interpreters import ad, batching, mlir

from jaxloss._arrays import Array, inlined, manual_axes, varying
from jaxloss._autodiff.tangents import or_none, row_dot, with_nonzero_tangents

Gradient = Callable[[tuple[Array | None, ...], tuple[Array, ...]], Array]
"""From cotangents of the results, None for zero, and the residuals to the gradient with respect to `x`."""

Formulas = Callable[..., tuple[Array, ...]]
"""From the residuals to the derivative of each result with respect to `x`."""

_primitive = Primitive("jaxloss_row_products")
_primitive.multiple_results = True


def row_products(gradient: Gradient, formulas: Formulas, residuals: Sequence[Array], x_tangent: Array) -> list[Array]:
    """⟨drᵢ/dxᵢ, ẋᵢ⟩ of rows i, for each result r, in reverse mode by `gradient`.

    Args:
        gradient: what they are transposed to.
        formulas: the same as formulas, of which JAX knows the derivatives. Both are compared by identity.
        residuals: `x`, and what else of rows these want.
        x_tangent: the tangent of `x`.
    """
    axes = manual_axes(*residuals, x_tangent)
    arrays = tuple(varying(axes, array) for array in (*residuals, x_tangent))
    jaxpr = jax.make_jaxpr(functools.partial(_products, formulas))(*arrays)
    return _primitive.bind(*arrays, gradient=gradient, formulas=formulas, jaxpr=jaxpr)


def _products(formulas: Formulas, *arrays: Array) -> list[Array]:
    *residuals, x_tangent = arrays
    return [row_dot(derivative, x_tangent, x_tangent.ndim - 1) for derivative in formulas(*residuals)]


def _evaluated(*arrays: Array, jaxpr, **_) -> list[Array]:
    return jaxpr_as_fun(jaxpr)(*arrays)


def _tangent(primals, tangents, *, gradient, formulas, jaxpr):
    *residuals, x_tangent = primals
    *tangents, x_second_tangent = tangents
    out = _primitive.bind(*primals, gradient=gradient, formulas=formulas, jaxpr=jaxpr)
    terms = []
    if or_none(x_second_tangent) is not None:
        terms.append(row_products(gradient, formulas, residuals, x_second_tangent))

    def of_residuals(*residuals):
        return _products(formulas, *residuals, x_tangent)

    of_nonzero, nonzero, nonzero_tangents = with_nonzero_tangents(of_residuals, residuals, tangents)
    if nonzero:
        terms.append(jax.jvp(of_nonzero, nonzero, nonzero_tangents)[1])
    if not terms:
        return out, [ad.Zero(jax.typeof(product).to_tangent_aval()) for product in out]
    return out, [sum(of_result[1:], start=of_result[0]) for of_result in zip(*terms, strict=True)]


def _transposed(cotangents, *arrays, gradient, **_):
    *residuals, x_tangent = arrays
    given = tuple(or_none(cotangent) for cotangent in cotangents)
    if all(cotangent is None for cotangent in given):
        return (*(None for _ in residuals), ad.Zero(x_tangent.aval))
    return (*(None for _ in residuals), _gradient(gradient, given, tuple(residuals)))


@inlined(static_argnums=0)
def _gradient(gradient: Gradient, cotangents: tuple[Array | None, ...], residuals: tuple[Array, ...]) -> Array:
    return gradient(cotangents, residuals)


def _batched(arrays, axes, *, gradient, formulas, jaxpr):
    of_each = [0] * len(jaxpr.out_avals)
    size = next(array.shape[axis] for array, axis in zip(arrays, axes, strict=True) if axis is not None)
    if all(axis is None for axis in axes[:-1]):  # many tangents of the same rows
        return jax.vmap(functools.partial(_products, formulas), axes)(*arrays), of_each
    *residuals, x_tangent = (
        jnp.broadcast_to(array, (size, *array.shape)) if axis is None else jnp.moveaxis(array, axis, 0)
        for array, axis in zip(arrays, axes, strict=True)
    )
    return row_products(gradient, formulas, residuals, x_tangent), of_each


_primitive.def_impl(lambda *arrays, **parameters: jax.jit(functools.partial(_evaluated, **parameters))(*arrays))
_primitive.def_abstract_eval(lambda *_, jaxpr, **__: jaxpr.out_avals)
ad.primitive_jvps[_primitive] = _tangent
ad.primitive_transposes[_primitive] = _transposed
batching.primitive_batchers[_primitive] = _batched
mlir.register_lowering(_primitive, mlir.lower_fun(_evaluated, multiple_results=True))
