"""What a tangent of `x` adds to the loss of each row: a primitive, whose transpose is the kernel of the gradient.

JAX transposes a formula operation by operation, and XLA makes of that what it can. A primitive says what its transpose
is. All else that JAX asks of it, the formula answers.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive, jaxpr_as_fun
from jax.interpreters import ad, batching, mlir

from jaxloss._arrays import MASKED, Array, along, inlined, is_masked, manual_axes, varying
from jaxloss._autodiff.tangents import or_none, row_dot, with_nonzero_tangents

_primitive = Primitive("jaxloss_row_product")


def row_product(gradient, formula, residuals: Sequence[Array], x_tangent: Array) -> Array:
    """wᵢ ⟨dℓᵢ/dxᵢ, ẋᵢ⟩ of rows i, in reverse mode by `gradient`.

    Args:
        gradient: `residuals` to the gradient of the losses with respect to `x`, times the rows' weights.
        formula: the same as a formula, of which JAX knows the derivatives. Both are compared by identity.
        residuals: `(x, target, row_weight)` and what else of rows these want.
        x_tangent: the tangent of `x`.
    """
    axes = manual_axes(*residuals, x_tangent)
    arrays = tuple(varying(axes, array) for array in (*residuals, x_tangent))
    jaxpr = jax.make_jaxpr(functools.partial(_product, formula))(*arrays)
    return _primitive.bind(*arrays, gradient=gradient, formula=formula, jaxpr=jaxpr)


def _product(formula, *arrays: Array) -> Array:
    *residuals, x_tangent = arrays
    return row_dot(formula(*residuals), x_tangent, x_tangent.ndim - 1)


def _evaluated(*arrays: Array, jaxpr, **_) -> Array:
    return jaxpr_as_fun(jaxpr)(*arrays)[0]


def _tangent(primals, tangents, *, gradient, formula, jaxpr):
    *residuals, x_tangent = primals
    *tangents, x_second_tangent = tangents
    out = _primitive.bind(*primals, gradient=gradient, formula=formula, jaxpr=jaxpr)
    terms = []
    if or_none(x_second_tangent) is not None:
        terms.append(row_product(gradient, formula, residuals, x_second_tangent))

    def of_residuals(*residuals):
        return _product(formula, *residuals, x_tangent)

    of_nonzero, nonzero, nonzero_tangents = with_nonzero_tangents(of_residuals, residuals, tangents)
    if nonzero:
        terms.append(jax.jvp(of_nonzero, nonzero, nonzero_tangents)[1])
    return out, sum(terms[1:], start=terms[0]) if terms else ad.Zero(jax.typeof(out).to_tangent_aval())


def _transposed(cotangent, *arrays, gradient, **_):
    *residuals, x_tangent = arrays
    if isinstance(cotangent, ad.Zero):
        return (*(None for _ in residuals), ad.Zero(x_tangent.aval))
    return (*(None for _ in residuals), _gradient(gradient, cotangent, *residuals))


@inlined(static_argnums=0)
def _gradient(gradient, cotangent: Array, x: Array, target: Array, row_weight: Array, *rest: Array) -> Array:
    weight = along(row_weight, cotangent)
    weight = jnp.where(is_masked(weight), MASKED, weight * cotangent)
    return gradient(x, target, weight, *rest)


def _batched(arrays, axes, *, gradient, formula, **_):
    size = next(array.shape[axis] for array, axis in zip(arrays, axes, strict=True) if axis is not None)
    if all(axis is None for axis in axes[:-1]):  # many tangents of the same rows
        return jax.vmap(functools.partial(_product, formula), axes)(*arrays), 0
    *residuals, x_tangent = (
        jnp.broadcast_to(array, (size, *array.shape)) if axis is None else jnp.moveaxis(array, axis, 0)
        for array, axis in zip(arrays, axes, strict=True)
    )
    return row_product(gradient, formula, residuals, x_tangent), 0


_primitive.def_impl(lambda *arrays, **parameters: jax.jit(functools.partial(_evaluated, **parameters))(*arrays))
_primitive.def_abstract_eval(lambda *_, jaxpr, **__: jaxpr.out_avals[0])
ad.primitive_jvps[_primitive] = _tangent
ad.primitive_transposes[_primitive] = _transposed
batching.primitive_batchers[_primitive] = _batched
mlir.register_lowering(_primitive, mlir.lower_fun(_evaluated, multiple_results=False))
