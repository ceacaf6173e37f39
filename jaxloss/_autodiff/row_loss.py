"""A loss of rows of one array: the row-wise ops that compute it, each with a derivative of its own.

A family of losses is a class that says how a row's loss is computed on one device (`forward`), how where a row's
features are split over devices (`partition`), and what its derivatives are (`derivative`, `vjp`, `jvp`).
"""

import abc
import enum
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxloss._arrays import MASKED, Array, along, as_stored, is_masked, weighted
from jaxloss._autodiff.pair import Loss
from jaxloss._autodiff.row_product import Formulas, Gradient, row_products
from jaxloss._autodiff.tangents import contracted, counted, or_none, varying_like, with_derivative_of, zero_tangent
from jaxloss._partitioning.meshes import Entry
from jaxloss._partitioning.partitioned import Call
from jaxloss._partitioning.row_wise import RowWise


class Operands(NamedTuple):
    """What a loss of rows is of: `x [rows..., features...]`, and what belongs to its rows and features.

    Attributes:
        x: what the gradient is with respect to.
        target: of the shape of `x`, or of its rows; or some numbers for each row.
        row_weight: of the shape of the rows, or of their first axes: then all rows of an index have that weight.
        parameters: numbers of rows, or of the features of rows.
    """

    x: Array
    target: Array
    row_weight: Array
    parameters: tuple[Array, ...] = ()

    @classmethod
    def of(cls, flat: Sequence[Array]) -> "Operands":
        """The reverse of `flat`."""
        x, target, row_weight, *parameters = flat
        return cls(x, target, row_weight, tuple(parameters))

    @property
    def flat(self) -> tuple[Array, ...]:
        """One after the other, as a custom call and a partitioner see them."""
        return *self[:3], *self.parameters


class Outputs(enum.StrEnum):
    """What a row-wise op gives."""

    VALUE = "value"
    """`(losses,)`."""
    VALUE_AND_STATS = "value_and_stats"
    """`(losses, *stats)`: the statistics are what derivatives need to know of a row."""
    VALUE_AND_GRAD = "value_and_grad"
    """`(losses, gradient)`, or `(losses, *stats, gradient)` where the pass has the statistics at hand."""
    TOTAL = "total"
    """`(total,)`, the weighted sum of the losses of the rows of each weight."""
    TOTAL_AND_GRAD = "total_and_grad"
    """`(total, gradient)`."""
    GRAD = "grad"
    """`(gradient,)`, from operands and statistics."""
    GRAD_OF_STATS = "grad_of_stats"
    """The same of losses and statistics together, from their weights too: those of the losses are in the operands."""


class RowLoss(Loss):
    """A loss of rows, of `Operands`. Subclasses are frozen dataclasses: a description names them to other processes.

    Attributes:
        has_vjp: whether there is a `vjp`: where there is none, the derivative's formula is as fast.
    """

    wrt = ("x",)
    has_vjp: bool = False

    @property
    def stats(self) -> int:
        """How many statistics a row has."""
        return 0

    @property
    def vjp_stats(self) -> tuple[int, ...]:
        """Which statistics have their part in `stats_vjp`, by their places; none if there is no such."""
        return ()

    @property
    def gives_stats_with_gradient(self) -> bool:
        """Whether the pass of value and gradient gives the statistics too."""
        return False

    @property
    def features(self) -> tuple[int, ...]:
        """The positions of the parameters that have the last axis of `x`, and not its first ones."""
        return ()

    @property
    def listed(self) -> tuple[int, ...]:
        """The positions of the flat operands that have some numbers for each row, along a last axis that they share."""
        return ()

    @abc.abstractmethod
    def row_rank(self, outputs: Outputs, operands: Operands) -> int:
        """How many axes of `x` are rows, to the op of these outputs."""

    @abc.abstractmethod
    def forward(self, outputs: Outputs, operands: Operands) -> tuple[Array, ...]:
        """The outputs, computed on one device."""

    @abc.abstractmethod
    def partition(
        self, outputs: Outputs, axes: tuple[str, ...], last_axes: tuple[str, ...], operands: Operands
    ) -> tuple[Array, ...]:
        """The outputs where mesh axes have split `x` beyond its rows: `last_axes` its last axis, `axes` others."""

    @abc.abstractmethod
    def derivative(self, operands: Operands, stats: Sequence[Array]) -> Array:
        """The derivative of each row's loss with respect to `x`, a formula."""

    def vjp(self, axes: tuple[str, ...], operands: Operands, stats: Sequence[Array]) -> Array:
        """The gradient from statistics that are known, where these mesh axes have split the features."""
        raise NotImplementedError

    def stats_derivatives(self, operands: Operands, stats: Sequence[Array]) -> tuple[Array, ...]:
        """The derivatives of each row's `vjp_stats` with respect to `x`, formulas."""
        raise NotImplementedError

    def stats_vjp(
        self, axes: tuple[str, ...], operands: Operands, stats: Sequence[Array], weights: Sequence[Array]
    ) -> Array:
        """The gradient of the losses, times the rows' weights, and of `vjp_stats`, times these weights."""
        raise NotImplementedError

    @abc.abstractmethod
    def jvp(
        self, operands: Operands, losses: Array, stats: Sequence[Array], tangents: Operands
    ) -> tuple[Array | None, ...]:
        """The tangents of losses and statistics, formulas; None for zeros. That of `row_weight` is None."""

    def run(self, outputs: Outputs, operands: Operands, of_rows: Sequence[Array] = ()) -> tuple[Array, ...]:
        """The outputs, wherever the operands lie; those that are gradients want statistics, and their weights."""
        return _row_wise(self, outputs)(*operands.flat, *of_rows)

    def from_stats(self, outputs: Outputs, operands: Operands, losses: Array, *stats: Array) -> tuple[Array, ...]:
        """The outputs, from losses and statistics of the rows; a gradient by its formula, beside the statistics."""
        if outputs is Outputs.VALUE:
            return (losses,)
        if outputs is Outputs.VALUE_AND_STATS:
            return losses, *stats
        gradient = weighted(operands.row_weight, self.derivative(operands, stats))
        return losses, *stats, gradient.astype(operands.x.dtype)

    # ---- what a pair asks ------------------------------------------------------------------------------------------

    def rounds_to_float16(self, operands: Operands) -> bool:
        return operands.x.dtype == jnp.float16

    def losses(self, operands: Operands, with_stats: bool) -> tuple[Array, ...]:
        return (value_and_stats if with_stats else value)(self)(operands)

    def losses_and_gradients(self, wrt, operands: Operands, with_stats: bool):
        del wrt
        losses, *stats, gradient = value_and_grad(self)(operands)
        if with_stats and not self.gives_stats_with_gradient:
            losses, *stats = value_and_stats(self)(operands)
        return losses, stats, {"x": gradient}

    def total(self, operands: Operands) -> Array:
        return self.run(Outputs.TOTAL, operands)[0]

    def total_and_gradients(self, operands: Operands):
        total, gradient = total_and_grad(self)(operands)
        return total, {"x": gradient}

    def tangents(
        self, keep: Array, operands: Operands, losses: Array, stats: Sequence[Array], tangents: Operands
    ) -> tuple[Any, ...]:
        if not jax.tree.leaves(tangents):
            return tuple(map(zero_tangent, (losses, *stats)))
        # Rematerialised, a scan saves its logits and not a float32 softmax. No barriers against common subexpressions:
        # they would keep XLA from folding a cotangent of 1, and from fusing.
        rule = jax.checkpoint(self.jvp, prevent_cse=False)
        kept = _kept_operands(self, keep, operands, operands.x.ndim)
        kept_tangents = _kept_operands(self, keep, tangents, operands.x.ndim, otherwise=0)
        results = rule(kept, losses, _kept(keep, *stats), kept_tangents)
        # Not all is 0 of itself: a parameter that all rows share has a tangent in rows that are not kept, too.
        return tuple(
            zero_tangent(of) if tangent is None else _kept(keep, tangent)[0]
            for of, tangent in zip((losses, *stats), results, strict=True)
        )

    def rows_and_tangents(self, operands: Operands, tangents: Operands) -> tuple[Array, list[Array], Array, list[Any]]:
        """In reverse mode by the kernel of the gradient from the statistics, if there is one.

        Else by a plain formula, which XLA fuses into one pass over `x`.
        """
        operands = as_stored(operands)
        losses, *stats = value_and_stats(self)(operands)
        if not jax.tree.leaves(tangents):
            return losses, stats, jnp.zeros_like(losses), list(map(zero_tangent, stats))
        row_weight, by_formula = operands.row_weight, tangents
        keep, keep_stats = counted(row_weight, losses), ~is_masked(along(row_weight, losses))
        tangent, of_stats = jnp.zeros_like(losses), {}
        if self.has_vjp and tangents.x is not None:
            weight = jnp.where(keep, along(row_weight, losses), MASKED)
            residuals = (*operands._replace(row_weight=weight).flat, *stats, keep_stats)
            products = row_products(*_grad_and_formulas(self), residuals, tangents.x)
            tangent, *of_vjp = (varying_like(losses, product) for product in products)
            of_stats, by_formula = dict(zip(self.vjp_stats, of_vjp, strict=True)), tangents._replace(x=None)
        losses_tangent = self.tangents(keep, operands, losses, stats, by_formula)[0]
        tangent = tangent + along(row_weight, losses) * losses_tangent
        stats_tangents = list(self.tangents(keep_stats, operands, losses, stats, tangents)[1:])
        of_others = self.tangents(keep_stats, operands, losses, stats, by_formula)[1:] if of_stats else []
        for place, product in of_stats.items():
            stats_tangents[place] = product + of_others[place]
        return losses, stats, tangent, stats_tangents


# ---- how it is partitioned -------------------------------------------------------------------------------------------


@functools.cache
def _row_wise(loss: RowLoss, outputs: Outputs) -> RowWise:
    """The row-wise op of these outputs, of the flat operands."""
    behind = {Outputs.GRAD: loss.stats, Outputs.GRAD_OF_STATS: loss.stats + len(loss.vjp_stats)}.get(outputs, 0)

    def separated(flat) -> tuple[Operands, Sequence[Array]]:
        place = len(flat) - behind
        return Operands.of(flat[:place]), flat[place:]

    def gradient(axes, operands, of_rows) -> tuple[Array, ...]:
        stats, weights = of_rows[: loss.stats], of_rows[loss.stats :]
        return (loss.stats_vjp(axes, operands, stats, weights) if weights else loss.vjp(axes, operands, stats),)

    def local(*flat):
        operands, of_rows = separated(flat)
        return gradient((), operands, of_rows) if of_rows else loss.forward(outputs, operands)

    def split(axes, last_axes, *flat):
        operands, of_rows = separated(flat)
        if of_rows:
            return gradient(axes + last_axes, operands, of_rows)
        return loss.partition(outputs, axes, last_axes, operands)

    def row_rank(*flat) -> int:
        return loss.row_rank(outputs, separated(flat)[0])

    features = tuple(3 + place for place in loss.features)
    return RowWise((__name__, (loss, outputs)), local, split, row_rank, features, loss.listed)


def partitioned(loss: RowLoss, outputs: str, outer: tuple[Entry, ...]) -> Call:
    """The call of that description."""
    return _row_wise(loss, Outputs(outputs)).call(outer)


# ---- rows that are not kept ------------------------------------------------------------------------------------------


def _kept(keep: Array, *arrays: Array, otherwise: float = 0) -> tuple[Array, ...]:
    """The arrays with other numbers in the rows that are not kept, so that what is there can reach no derivative."""
    return tuple(
        jnp.where(along(keep, a), a, otherwise) if jnp.issubdtype(a.dtype, jnp.floating) and a.ndim >= keep.ndim else a
        for a in arrays
    )


def _kept_operands(loss: RowLoss, keep: Array, operands: Operands, rank: int, *, otherwise: float = 1) -> Operands:
    """The operands of rows, of an `x` of this rank, so, but for the weights.

    Parameters become `otherwise`, by default 1, a number that none is undefined at.
    """

    def kept(operand: Array | None, number: float = 0) -> Any:
        return None if operand is None else _kept(keep, operand, otherwise=number)[0]

    def is_of_features(place: int, parameter: Array | None) -> bool:
        """Whether rows share it. One that has all axes of `x` has numbers of each row's own."""
        return place in loss.features and parameter is not None and parameter.ndim < rank

    return Operands(
        kept(operands.x),
        kept(operands.target),
        operands.row_weight,
        tuple(
            parameter if is_of_features(place, parameter) else kept(parameter, otherwise)
            for place, parameter in enumerate(operands.parameters)
        ),
    )


# ---- the ops, with their derivatives ---------------------------------------------------------------------------------

Op = Callable[..., tuple[Array, ...]]


@functools.cache
def value_and_stats(loss: RowLoss) -> Op:
    """From operands to `Outputs.VALUE_AND_STATS`."""

    @jax.custom_jvp
    def value_and_stats(operands):
        return loss.run(Outputs.VALUE_AND_STATS, operands)

    def tangent(primals, tangents) -> Any:
        (operands,), tangents = as_stored(primals), jax.tree.map(or_none, *tangents)._replace(row_weight=None)
        results = losses, *stats = value_and_stats(operands)
        return results, loss.tangents(~is_masked(operands.row_weight), operands, losses, stats, tangents)

    value_and_stats.defjvp(tangent, symbolic_zeros=True)
    return value_and_stats


@functools.cache
def value(loss: RowLoss) -> Op:
    """From operands to `Outputs.VALUE`; its derivative is that of `value_and_stats`."""
    return with_derivative_of(value_and_stats(loss), functools.partial(loss.run, Outputs.VALUE))


@functools.cache
def value_and_grad(loss: RowLoss) -> Op:
    """From operands to `Outputs.VALUE_AND_GRAD`."""

    def formula(operands):
        operands = as_stored(operands)
        losses, *stats = value_and_stats(loss)(operands)
        gradient = _gradient(loss, operands, stats).astype(operands.x.dtype)
        return (losses, *stats, gradient) if loss.gives_stats_with_gradient else (losses, gradient)

    return with_derivative_of(formula, functools.partial(loss.run, Outputs.VALUE_AND_GRAD))


@functools.cache
def total_and_grad(loss: RowLoss) -> Op:
    """From operands to `Outputs.TOTAL_AND_GRAD`."""

    def formula(operands):
        operands = as_stored(operands)
        losses, *stats = value_and_stats(loss)(operands)
        total = contracted(operands.row_weight, losses)
        return total, _gradient(loss, operands, stats).astype(operands.x.dtype)

    return with_derivative_of(formula, functools.partial(loss.run, Outputs.TOTAL_AND_GRAD))


def _gradient(loss: RowLoss, operands: Operands, stats: Sequence[Array]) -> Array:
    """As a formula."""
    keep = ~is_masked(operands.row_weight)
    kept = _kept_operands(loss, keep, operands, operands.x.ndim)
    derivative = loss.derivative(kept, _kept(keep, *stats))
    return weighted(operands.row_weight, _kept(keep, derivative)[0])


@functools.cache
def _grad_and_formulas(loss: RowLoss) -> tuple[Gradient, Formulas]:
    """The gradient alone, and the derivatives that it is of, as `row_products` wants them.

    Both are of flat operands, the statistics, and which rows these have a derivative in.
    """

    def separated(residuals) -> tuple[Operands, Sequence[Array], Array]:
        *flat, keep_stats = residuals
        place = len(flat) - loss.stats
        return Operands.of(flat[:place]), flat[place:], keep_stats

    def formulas(*residuals):
        operands, stats, keep_stats = separated(residuals)
        gradient = _gradient(loss, operands, stats)
        if not loss.vjp_stats:
            return (gradient,)
        kept = _kept_operands(loss, keep_stats, operands, operands.x.ndim)
        return gradient, *_kept(keep_stats, *loss.stats_derivatives(kept, _kept(keep_stats, *stats)))

    # The derivatives of the ops of gradients, which second and higher orders ask for.
    def of_losses(operands, stats):
        return (_gradient(loss, operands, stats).astype(operands.x.dtype),)

    def of_all(operands, stats, weights, keep_stats):
        of_losses, *of_stats = formulas(*operands.flat, *stats, keep_stats)
        terms = (of_losses, *(along(weight, term) * term for weight, term in zip(weights, of_stats, strict=True)))
        return (sum(terms[1:], start=terms[0]).astype(operands.x.dtype),)

    grad = with_derivative_of(of_losses, lambda operands, stats: loss.run(Outputs.GRAD, operands, stats))

    def run_all(operands, stats, weights, keep_stats):
        weight = operands.row_weight
        weight = jnp.where(keep_stats, jnp.where(is_masked(weight), 0, weight), MASKED)
        return loss.run(Outputs.GRAD_OF_STATS, operands._replace(row_weight=weight), (*stats, *weights))

    grad_of_all = with_derivative_of(of_all, run_all)

    def gradient(cotangents, residuals):
        operands, stats, keep_stats = separated(residuals)
        of_losses, *of_stats = cotangents
        weight = operands.row_weight
        scaled = jnp.zeros_like(weight) if of_losses is None else weight * of_losses
        operands = operands._replace(row_weight=jnp.where(is_masked(weight), MASKED, scaled))
        if all(cotangent is None for cotangent in of_stats):
            return grad(operands, stats)[0]
        weights = [jnp.zeros_like(weight) if cotangent is None else cotangent for cotangent in of_stats]
        return grad_of_all(operands, stats, weights, keep_stats)[0]

    return gradient, formulas


def gradient(
    loss: RowLoss,
    operands: Operands,
    stats: Sequence[Array],
    of_losses: Array | None,
    of_stats: Sequence[Array | None],
) -> Array:
    """The gradient with respect to `x`, from those of the losses of rows and of `vjp_stats`; None for zeros."""
    function, _ = _grad_and_formulas(loss)
    return function((of_losses, *of_stats), (*operands.flat, *stats, ~is_masked(operands.row_weight)))
