"""A loss paired with its hand-derived gradient, in reverse and in forward mode.

`weighted_sum(loss)` is Σ wᵢ ℓᵢ of rows i. One forward pass makes its value and its gradients, and `jax.custom_vjp`
joins it with a backward pass that only scales them; a `custom_jvp` around that gives it forward mode. Derivatives with
respect to other operands, and those of the passes themselves, which second and higher orders ask for, are plain JAX.
"""

import abc
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxloss._arrays import Array, along, as_stored, is_masked, manual_axes, varying, weighted
from jaxloss._autodiff.tangents import (
    contracted,
    counted,
    losses_of_weights,
    or_none,
    scale_beyond,
    times,
    total_product,
    varying_like,
)


class Loss(abc.ABC):
    """What `weighted_sum` and `weighted_rows` ask of a loss of rows. It is hashable.

    Its operands are a named tuple, one of whose fields is `row_weight`. Losses are those of the rows, unweighted;
    gradients are those of their weighted sum. Where tangents are a named tuple like the operands, None stands for zero.

    Attributes:
        wrt: the names of the operands that a forward pass makes gradients of.
        float16_weight: a row weight that makes a gradient so large that float16 holds its small elements, too, and so
            small that it holds the large ones.
    """

    wrt: tuple[str, ...]
    float16_weight: float = 0.5

    @property
    def split_axes(self) -> tuple[str, ...]:
        """The mesh axes that an enclosing `shard_map` has split the features over."""
        return ()

    @abc.abstractmethod
    def rounds_to_float16(self, operands) -> bool:
        """Whether a gradient of the forward pass is rounded to float16."""

    @abc.abstractmethod
    def losses(self, operands, with_stats: bool) -> tuple[Array, ...]:
        """`(losses, *stats)`, differentiable; without statistics if they are not asked for."""

    @abc.abstractmethod
    def losses_and_gradients(
        self, wrt: tuple[str, ...], operands, with_stats: bool
    ) -> tuple[Array, list[Array], dict[str, Array]]:
        """Losses, statistics, and the gradients with respect to the operands of these names; differentiable."""

    @abc.abstractmethod
    def tangents(self, keep: Array, operands, losses: Array, stats: Sequence[Array], tangents) -> tuple[Any, ...]:
        """The tangents of losses and statistics, 0 in the rows that are not kept."""

    @abc.abstractmethod
    def rows_and_tangents(self, operands, tangents) -> tuple[Array, list[Array], Array, list[Any]]:
        """Losses, statistics, the tangents of the losses times the rows' weights, and those of the statistics.

        Of `row_weight` the tangent is None.
        """

    def sums(self, with_gradient: bool, operands) -> bool:
        """Whether the losses of these operands, whose rows have one weight, are rather summed as they are computed."""
        del with_gradient, operands
        return False

    def total(self, operands) -> Array:
        """That sum, differentiable."""
        raise NotImplementedError

    def total_and_gradients(self, operands) -> tuple[Array, dict[str, Array]]:
        """That sum, and the gradients with respect to all of `wrt`; differentiable."""
        raise NotImplementedError


@functools.cache
def pair(loss: Loss, wrt: tuple[str, ...], with_stats: bool, summed: bool) -> Callable[..., tuple[Array, ...]]:
    """Σ wᵢ ℓᵢ of rows, its forward pass joined with the hand-derived gradients by `jax.custom_vjp`.

    The result is `(total, losses, *stats)`, or with `summed`, where the losses are summed as they are computed,
    `(total,)`. Only the total is differentiated, and only with respect to the operands that `wrt` names; `weighted_sum`
    does the rest.
    """

    def value(operands):
        if summed:
            return (loss.total(operands),)
        losses, *stats = loss.losses(operands, with_stats)
        return contracted(operands.row_weight, losses), losses, *stats

    def value_and_gradients(operands):
        without = type(operands)(*(None for _ in operands))
        if summed:
            total, gradients = loss.total_and_gradients(operands)
            return (total,), without._replace(**gradients)
        losses, stats, gradients = loss.losses_and_gradients(wrt, operands, with_stats)
        return (contracted(operands.row_weight, losses), losses, *stats), without._replace(**gradients)

    return joined(value, value_and_gradients)


def joined(value: Callable[..., tuple[Array, ...]], value_and_gradients: Callable) -> Callable[..., tuple[Array, ...]]:
    """`value` of a tree of operands, joined by `jax.custom_vjp` with the gradients that its forward pass makes.

    Only the first result is differentiated. `value_and_gradients` gives the results, and a tree like the operands of
    that one's gradients, with None where there is none.
    """
    paired = jax.custom_vjp(value)

    def backward(gradients, cotangents):
        return (jax.tree.map(lambda gradient: cotangents[0].astype(gradient.dtype) * gradient, gradients),)

    paired.defvjp(value_and_gradients, backward)
    return paired


def _with_gradients(paired: Callable[..., tuple[Array, ...]], wrt: tuple[str, ...], operands):
    """The pair's results and the gradients of its total."""

    def of_named(named: dict[str, Array]):
        total, *rest = paired(operands._replace(**named))
        return total, rest

    total, pull, rest = jax.vjp(of_named, {name: getattr(operands, name) for name in wrt}, has_aux=True)
    return total, rest, pull(jnp.ones_like(total))[0]


def _some(tangents) -> bool:
    """Whether any is not zero."""
    return bool(jax.tree.leaves(tangents))


def of_each_device(loss: Loss, operands, tangents) -> tuple[Any, Any]:
    """Operands and tangents that every device of a `shard_map` has its own of.

    There an operand that every device holds may meet one that differs: this cast gives each device a gradient of its
    own, and in reverse mode becomes their sum.
    """
    axes = [axis for axis in manual_axes(*jax.tree.leaves(operands)) if axis not in loss.split_axes]
    return tuple(jax.tree.map(functools.partial(varying, axes), arrays) for arrays in (operands, tangents))


@functools.cache
def weighted_sum(loss: Loss, with_stats: bool = False) -> Callable[..., tuple[Array, ...]]:
    """From operands to `(total,)`, the scalar Σ wᵢ ℓᵢ of rows with weights w; `with_stats`, to `(total, *stats)`.

    It is the `pair` in a shell that gives it forward mode, ⟨gradients, tangents⟩, which JAX transposes back to reverse
    mode, and the derivatives with respect to the other operands.
    """

    def summed(with_gradient: bool, operands) -> bool:
        return not with_stats and operands.row_weight.ndim == 0 and loss.sums(with_gradient, operands)

    @jax.custom_jvp
    def weighted_sum(operands):
        total, *rest = pair(loss, (), with_stats, summed(False, operands))(operands)
        return total, *rest[1:]

    def tangent(primals, tangents) -> Any:
        operands, tangents = of_each_device(loss, as_stored(primals[0]), jax.tree.map(or_none, *tangents))
        row_weight, weight_tangent = operands.row_weight, tangents.row_weight
        wrt = tuple(name for name in loss.wrt if getattr(tangents, name) is not None)
        tangents = tangents._replace(row_weight=None)
        others = tangents._replace(**dict.fromkeys(wrt))
        scale, terms = None, []
        if not wrt:
            losses, *stats = loss.losses(operands, with_stats or _some(others))
            total = contracted(row_weight, losses)
        else:
            weighed = operands
            if loss.rounds_to_float16(operands):
                scale = scale_beyond(row_weight, loss.float16_weight)
                weighed = operands._replace(row_weight=row_weight / scale)
            whole = not _some(others) and weight_tangent is None and summed(True, operands)
            paired = pair(loss, wrt, with_stats or _some(others), whole)
            total, rest, gradients = _with_gradients(paired, wrt, weighed)
            total = times(total, scale)
            terms += [times(total_product(gradients[name], getattr(tangents, name)), scale) for name in wrt]
            losses, *stats = rest or (total,)  # of a whole sum nothing else is asked
        if _some(others):
            losses_tangent = loss.tangents(counted(row_weight, losses), operands, losses, stats, others)[0]
            terms.append(jnp.sum(along(row_weight, losses) * losses_tangent))
        if weight_tangent is not None:
            terms.append(total_product(losses_of_weights(row_weight, losses), weight_tangent))
        tangent = sum(varying_like(total, term).astype(total.dtype) for term in terms)
        if not with_stats:
            return (total,), (tangent,)
        _, *stats_tangents = loss.tangents(~is_masked(row_weight), operands, losses, stats, tangents)
        return (total, *stats), (tangent, *stats_tangents)

    weighted_sum.defjvp(tangent, symbolic_zeros=True)
    return weighted_sum


@functools.cache
def weighted_rows(loss: Loss, with_stats: bool = False) -> Callable[..., tuple[Array, ...]]:
    """From operands to `(losses,)`, wᵢ ℓᵢ of rows with weights w; `with_stats`, to `(losses, *stats)`."""

    @jax.custom_jvp
    def weighted_rows(operands):
        losses, *stats = loss.losses(operands, with_stats)
        return weighted(operands.row_weight, losses), *stats

    def tangent(primals, tangents) -> Any:
        (operands,), tangents = primals, jax.tree.map(or_none, *tangents)
        row_weight, weight_tangent = operands.row_weight, tangents.row_weight
        tangents = tangents._replace(row_weight=None)
        losses, stats, tangent, stats_tangents = loss.rows_and_tangents(operands, tangents)
        if weight_tangent is not None:
            tangent = tangent + losses * along(weight_tangent, losses)
        results, of_results = (weighted(row_weight, losses), *stats), (tangent, *stats_tangents)
        return (results, of_results) if with_stats else (results[:1], of_results[:1])

    weighted_rows.defjvp(tangent, symbolic_zeros=True)
    return weighted_rows
