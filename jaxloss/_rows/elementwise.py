"""The elementwise losses as row-wise ops: sums over a row's elements, each with a value and a derivative."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from jaxloss._arrays import Array, Formula, inlined, is_masked
from jaxloss._autodiff import pair
from jaxloss._autodiff.pair import RowLoss
from jaxloss._autodiff.tangents import row_dot, varying_like
from jaxloss._ffi import elementwise as calls
from jaxloss._partitioning.meshes import Entry, as_spec, explicit_entries, mesh_of, resharded
from jaxloss._partitioning.partitioned import Call
from jaxloss._partitioning.row_wise import RowWise, rank_of_weight
from jaxloss._rows.weights import Examples, row_weight
from jaxloss.formulas import real

_FIRST_PARAMETER = 3  # of the operands (x, target, row_weight, *parameters)


@dataclasses.dataclass(frozen=True)
class Elementwise:
    """What an elementwise loss is.

    Attributes:
        name: its functor in `cuda/maths/elementwise.h`.
        value: its formula, of prediction, target and parameters.
        derivative: the derivative with respect to the prediction, of the same.
        target_derivative: the derivative with respect to the target; that of `unclipped` if None.
        unclipped: the formula that derivatives with respect to parameters are of; `value` if None.
        constants: what the functor is made with.
        features: the positions of the parameters that have a number for each index of the prediction's last axis. The
            others are scalars.
        float16_weight: as `RowLoss` has it.
    """

    name: str
    value: Formula
    derivative: Formula
    target_derivative: Formula | None = None
    unclipped: Formula | None = None
    constants: tuple[float, ...] = ()
    features: tuple[int, ...] = ()
    float16_weight: float = 0.5


@inlined(static_argnums=0)
def value(loss: Elementwise, x: Array, target: Array, examples: Examples, parameters: tuple[Array, ...] = ()) -> Array:
    """The reduced loss; an example is one index of the first axis."""
    parameters = _computed(parameters, x)
    if examples.reduction == "none":
        weight = _weight(x, examples, full=True)
        return pair.weighted_rows(unreduced(loss))(x, target, weight, *parameters)
    return pair.weighted_sum(row_loss(loss))(x, target, _weight(x, examples), *parameters)


@inlined(static_argnums=0)
def gradient(
    loss: Elementwise, x: Array, target: Array, examples: Examples, parameters: tuple[Array, ...] = ()
) -> Array:
    """The gradient of the reduced loss with respect to `x`."""
    operands = (x, target, _weight(x, examples), *_computed(parameters, x))
    return pair.value_and_grad(row_loss(loss))(*operands)[1]


def _computed(parameters: tuple[Array, ...], x: Array) -> tuple[Array, ...]:
    """The parameters in the type that the loss of `x` is computed in."""
    return tuple(parameter.astype(real(x).dtype) for parameter in parameters)


def _weight(x: Array, examples: Examples, *, full: bool = False) -> Array:
    return row_weight(examples, x.shape, real(x).dtype, example_rank=min(1, x.ndim), row_rank=x.ndim, full=full)


@functools.cache
def row_loss(loss: Elementwise) -> RowLoss:
    """The sum of the losses of a row's elements; `row_weight` has as many axes as are rows."""
    kernel = (loss.name, loss.constants, loss.features)
    value = _row_wise(kernel, (loss.value,), weighed=False)
    return RowLoss(
        row_rank=rank_of_weight,
        value=value,
        value_and_stats=value,
        value_and_grad=_row_wise(kernel, (loss.value, loss.derivative), weighed=False),
        sums=lambda *_: True,
        total=_row_wise(kernel, (loss.value,), weighed=True),
        total_and_grad=_row_wise(kernel, (loss.value, loss.derivative), weighed=True),
        derivative=lambda operands, _: _of_operands(loss, loss.derivative, operands),
        tangents=functools.partial(_tangents, loss),
        features=value.features,
        float16_weight=loss.float16_weight,
    )


def _row_wise(kernel: tuple, of_elements: tuple[Formula, ...], weighed: bool) -> RowWise:
    """The sum of the losses of a row's elements, and their derivative if there is a formula of it besides the value's.

    `kernel` is a loss's name, constants and features; `weighed` says whether sums are times the row's weight.
    """
    function = calls.elementwise_value if len(of_elements) == 1 else calls.elementwise_value_and_grad
    local = functools.partial(function, *kernel, *of_elements, weighed=weighed)

    def split(axes, *operands):
        losses, *gradient = local(*operands)
        return jax.lax.psum(losses, axes), *gradient

    features = tuple(_FIRST_PARAMETER + place for place in kernel[-1])
    return RowWise((__name__, (kernel, of_elements, weighed)), local, split, rank_of_weight, features)


def partitioned(kernel: tuple, of_elements: tuple[Formula, ...], weighed: bool, outer: tuple[Entry, ...]) -> Call:
    """The call of that description."""
    return _row_wise(kernel, of_elements, weighed).call(outer)


def _of_operands(loss: Elementwise, formula: Formula, operands) -> Array:
    x, target, _, *parameters = operands
    return formula(x, target, *calls.parameters_of_elements(parameters, loss.features, x))


def _tangents(loss: Elementwise, operands, losses, stats, tangents):
    x, target, _, *parameters = operands
    parameters = calls.parameters_of_elements(parameters, loss.features, x)
    arguments = (x, target, *parameters)
    unclipped = loss.unclipped or loss.value

    def partial(place):
        if place == 0:
            return loss.derivative(*arguments)
        if place == 1 and loss.target_derivative is not None:
            return loss.target_derivative(*arguments)
        one = (jnp.ones_like(arguments[place]),)
        return jax.jvp(
            lambda y: unclipped(*arguments[:place], y, *arguments[place + 1 :]), arguments[place : place + 1], one
        )[1]

    x_tangent, target_tangent, _, *parameter_tangents = tangents
    of_elements = [x_tangent, target_tangent]
    for place, tangent in enumerate(parameter_tangents):
        of_elements.append(None if tangent is None else _of_every_element(tangent, place in loss.features, x))
    terms = [
        row_dot(partial(place), tangent, losses.ndim)
        for place, tangent in enumerate(of_elements)
        if tangent is not None
    ]
    return (varying_like(losses, sum(terms[1:], start=terms[0])),)


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


@functools.cache
def unreduced(loss: Elementwise) -> RowLoss:
    """Every element a row of its own, by formula: nothing is summed, so XLA fuses it with whatever comes next."""

    def value(*operands):
        row_weight = operands[2]
        return (jnp.where(is_masked(row_weight), 0, _of_operands(loss, loss.value, operands)),)

    def value_and_grad(*operands):
        x, _, row_weight, *_ = operands
        derivative = row_weight * _of_operands(loss, loss.derivative, operands)
        return *value(*operands), jnp.where(row_weight == 0, 0, derivative).astype(x.dtype)

    return dataclasses.replace(
        row_loss(loss), value=value, value_and_stats=value, value_and_grad=value_and_grad, row_rank=_rank_of_x
    )


def _rank_of_x(x: Array, *_) -> int:
    return x.ndim
