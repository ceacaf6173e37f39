"""The elementwise losses as losses of rows: sums over a row's elements, each with a value and a derivative."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from jaxloss._arrays import Array, Formula, inlined, is_masked
from jaxloss._autodiff.pair import weighted_rows, weighted_sum
from jaxloss._autodiff.row_loss import Operands, Outputs, RowLoss, value_and_grad
from jaxloss._autodiff.tangents import row_dot, varying_like
from jaxloss._ffi import elementwise as calls
from jaxloss._partitioning.meshes import as_spec, explicit_entries, mesh_of, resharded
from jaxloss._rows.weights import Examples, row_weight
from jaxloss.formulas import real


@dataclasses.dataclass(frozen=True)
class Elementwise(RowLoss):
    """An elementwise loss: a row's is the sum of its elements'. As many axes are rows as `row_weight` has.

    Attributes:
        name: its functor in `cuda/maths/elementwise.h`.
        value: its formula, of prediction, target and parameters.
        d_value: the derivative with respect to the prediction, of the same.
        of_difference: whether it is a loss of the difference of prediction and target, so that the derivative with
            respect to the target is the other's negative.
        d_value_of_target: the derivative with respect to the target, where that of `unclipped` is not exact enough.
        unclipped: the formula that derivatives with respect to parameters are of; `value` if None.
        constants: what the functor is made with.
        per_feature: the positions of the parameters that have a number for each index of the prediction's last axis, or
            for each element. The others are scalars.
        float16_weight: as `Loss` has it.
    """

    name: str
    value: Formula
    d_value: Formula
    of_difference: bool = False
    d_value_of_target: Formula | None = None
    unclipped: Formula | None = None
    constants: tuple[float, ...] = ()
    per_feature: tuple[int, ...] = ()
    float16_weight: float = 0.5

    @property
    def features(self) -> tuple[int, ...]:
        return self.per_feature

    def row_rank(self, outputs: Outputs, operands: Operands) -> int:
        return len(operands.row_weight.shape)

    def forward(self, outputs: Outputs, operands: Operands) -> tuple[Array, ...]:
        weighed = outputs in (Outputs.TOTAL, Outputs.TOTAL_AND_GRAD)
        of_kernel = (self.name, self.constants, self.per_feature, self.value)
        if outputs in (Outputs.VALUE_AND_GRAD, Outputs.TOTAL_AND_GRAD):
            return calls.elementwise_value_and_grad(*of_kernel, self.d_value, *operands.flat, weighed=weighed)
        return calls.elementwise_value(*of_kernel, *operands.flat, weighed=weighed)

    def partition(self, outputs: Outputs, axes, last_axes, operands: Operands) -> tuple[Array, ...]:
        losses, *gradient = self.forward(outputs, operands)
        return jax.lax.psum(losses, axes + last_axes), *gradient

    def sums(self, with_gradient: bool, operands: Operands) -> bool:
        return True

    def derivative(self, operands: Operands, stats) -> Array:
        return self._of_elements(self.d_value, operands)

    def _of_elements(self, formula: Formula, operands: Operands) -> Array:
        x, target, _, parameters = operands
        return formula(x, target, *calls.parameters_of_elements(parameters, self.per_feature, x))

    def jvp(self, operands: Operands, losses: Array, stats, tangents: Operands):
        x, target, _, parameters = operands
        arguments = (x, target, *calls.parameters_of_elements(parameters, self.per_feature, x))

        def partial(place: int) -> Array:
            """The derivative with respect to the argument there."""
            if place == 0:
                return self.d_value(*arguments)
            if place == 1 and self.of_difference:
                return -self.d_value(*arguments)
            if place == 1 and self.d_value_of_target is not None:
                return self.d_value_of_target(*arguments)
            before, argument, after = arguments[:place], arguments[place], arguments[place + 1 :]
            unclipped = self.unclipped or self.value
            return jax.jvp(lambda y: unclipped(*before, y, *after), (argument,), (jnp.ones_like(argument),))[1]

        of_parameters = (
            None if tangent is None else _of_every_element(tangent, place in self.per_feature, x)
            for place, tangent in enumerate(tangents.parameters)
        )
        terms = [
            row_dot(partial(place), tangent, losses.ndim)
            for place, tangent in enumerate((tangents.x, tangents.target, *of_parameters))
            if tangent is not None
        ]
        return (varying_like(losses, sum(terms[1:], start=terms[0])),) if terms else (None,)


class _Unreduced(Elementwise):
    """Every element a row of its own, by formula: nothing is summed, so XLA fuses it with whatever comes next."""

    def run(self, outputs: Outputs, operands: Operands, of_rows=()) -> tuple[Array, ...]:
        x, _, row_weight, _ = operands
        losses = jnp.where(is_masked(row_weight), 0, self._of_elements(self.value, operands))
        if outputs is not Outputs.VALUE_AND_GRAD:
            return (losses,)
        derivative = row_weight * self.derivative(operands, ())
        return losses, jnp.where(row_weight == 0, 0, derivative).astype(x.dtype)


@functools.cache
def _unreduced(loss: Elementwise) -> _Unreduced:
    return _Unreduced(**{field.name: getattr(loss, field.name) for field in dataclasses.fields(loss)})


def _of_every_element(tangent: Array, per_feature: bool, x: Array) -> Array:
    """The tangent of a parameter, as often as there are elements."""
    axes = (*range(tangent.ndim - 1), x.ndim - 1) if per_feature else tuple(range(tangent.ndim))
    mesh = mesh_of([x])
    if not mesh.explicit_axes:
        return jax.lax.broadcast_in_dim(tangent, x.shape, axes)
    # Where shardings are part of the types: split like `x`, so that in reverse mode devices add up what they have.
    entries = explicit_entries(x)
    tangent = resharded(mesh, tangent, as_spec([entries[axis] for axis in axes]))
    return jax.lax.broadcast_in_dim(tangent, x.shape, axes, out_sharding=NamedSharding(mesh, as_spec(entries)))


# ---- reduced ---------------------------------------------------------------------------------------------------------


@inlined(static_argnums=0)
def value(loss: Elementwise, x: Array, target: Array, examples: Examples, parameters: tuple[Array, ...] = ()) -> Array:
    """The reduced loss; an example is one index of the first axis."""
    if examples.reduction == "none":
        return weighted_rows(_unreduced(loss))(_operands(x, target, examples, parameters, full=True))[0]
    return weighted_sum(loss)(_operands(x, target, examples, parameters))[0]


@inlined(static_argnums=0)
def gradient(
    loss: Elementwise, x: Array, target: Array, examples: Examples, parameters: tuple[Array, ...] = ()
) -> Array:
    """The gradient of the reduced loss with respect to `x`."""
    return value_and_grad(loss)(_operands(x, target, examples, parameters))[1]


def _operands(x: Array, target: Array, examples: Examples, parameters: tuple[Array, ...], full=False) -> Operands:
    dtype = real(x).dtype  # of the loss
    # A parameter of each element is one of the features of each row: of a row for each index of all axes but the last.
    rank = x.ndim if full else max((parameter.ndim - 1 for parameter in parameters), default=0)
    weight = row_weight(examples, x.shape, dtype, example_rank=min(1, x.ndim), row_rank=x.ndim, least_rank=max(0, rank))
    return Operands(x, target, weight, tuple(parameter.astype(dtype) for parameter in parameters))
