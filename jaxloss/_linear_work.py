"""Cross entropy of `hidden @ kernel`, chunk by chunk of tokens: the logits never exist for all of them.

On one device a scan makes a chunk's logits, and from them all that is asked for: losses alone; or, by the fused custom
call that overwrites the logits with their gradient, losses and the gradients of hidden states, kernel and bias, by one
more matrix product each for the first two. There is no backward pass: the gradients of a reduced loss are kept for it.

Operands are always `(hidden, kernel, labels, row_weight, [bias,] *parameters)`.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxloss import _cross_entropy, _pair, _token_chunks
from jaxloss._calls import Array, along, manual_axes, varying
from jaxloss._linear_mesh import Roles
from jaxloss._pair import RowLoss
from jaxloss._token_chunks import zeros
from jaxloss.formulas import real

HIDDEN, KERNEL, LABELS, WEIGHT, REST = range(5)


@dataclasses.dataclass(frozen=True)
class Rows:
    """The loss of rows of logits: all that is known here of its options.

    Attributes:
        clip: 0 for none.
        with_stats: whether statistics of rows are wanted beside their losses.
    """

    clip: float = 0.0

    def loss(self, axes: tuple[str, ...]) -> RowLoss:
        """Where the classes are split over these mesh axes."""
        return _cross_entropy.row_loss(self.clip, axes, in_place=True)

    def operands(self, axes: tuple[str, ...], logits: Array, labels: Array, weight: Array, parameters) -> tuple:
        """What its ops are given."""
        return logits, _cross_entropy.target_of_slice(axes, logits, labels), weight, *parameters


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a linear loss is, beside its operands.

    Attributes:
        rows: the loss of rows of logits.
        token_rank: how many axes of the hidden states are tokens.
        classes_first: whether the kernel is `[V, D]`.
        has_bias: whether there is a bias.
        masked: whether rows may be taken out, or weigh nothing.
        chunk: how many tokens a chunk has, None for what `chunk_size` says.
        accumulate_dtype: what the gradient of the kernel is summed in.
        precision: of the matrix products.
        axes: the mesh axes that an enclosing `shard_map` has split the classes over.
    """

    rows: Rows
    token_rank: int
    classes_first: bool
    has_bias: bool
    masked: bool
    chunk: int | None
    accumulate_dtype: Any
    precision: Any
    axes: tuple[str, ...]

    @property
    def tokens(self) -> Roles:
        """The roles of the tokens' axes."""
        return tuple(f"t{axis}" for axis in range(self.token_rank))

    def roles(self, parameters: tuple[Roles, ...] = ()) -> tuple[Roles, ...]:
        """Of the operands' axes."""
        kernel = ("v", "d") if self.classes_first else ("d", "v")
        return ((*self.tokens, "e"), kernel, self.tokens, self.tokens, *((("v",),) if self.has_bias else ()), *parameters)


@dataclasses.dataclass(frozen=True)
class Wanted:
    """Which gradients are asked for."""

    hidden: bool = False
    kernel: bool = False
    bias: bool = False

    def __bool__(self) -> bool:
        return self.hidden or self.kernel or self.bias

    def of(self, operands: tuple) -> tuple:
        """Those of the operands that are wanted; of their roles or tangents, likewise."""
        places = ((self.hidden, HIDDEN), (self.kernel, KERNEL), (self.bias, REST))
        return tuple(operands[place] for wanted, place in places if wanted)


class Work:
    """The operands on one device, and what is made of a chunk of their tokens."""

    def __init__(self, plan: Plan, axes: tuple[str, ...], operands: tuple):
        self.plan, self.axes = plan, axes
        # A device's sums are over its own tokens, so its kernel is one of its own too; not so over `axes`.
        self.own_axes = tuple(axis for axis in manual_axes(*operands) if axis not in axes)
        self.all_axes = tuple(manual_axes(*operands))
        hidden, kernel, labels, weight, *rest = (varying(self.own_axes, operand) for operand in operands)
        self.dtype = jnp.promote_types(hidden.dtype, kernel.dtype)
        self.kernel = kernel.astype(self.dtype)
        self.bias = rest.pop(0) if plan.has_bias else None
        self.parameters = tuple(rest)
        self.loss = plan.rows.loss(axes)
        self.token_shape = hidden.shape[:-1]
        self.tokens = math.prod(self.token_shape)
        self.rows = tuple(self.flat(array) for array in (hidden, labels, weight))

    def flat(self, array: Array) -> Array:
        """All tokens along one axis."""
        return array.reshape(self.tokens, *array.shape[self.plan.token_rank :])

    def product(self, hidden: Array, kernel: Array) -> Array:
        """`hidden @ kernel`."""
        contracted = 1 if self.plan.classes_first else 0
        return self._dot(hidden.astype(self.dtype), kernel, (1, contracted), self.dtype)

    def _dot(self, a: Array, b: Array, contracted: tuple[int, int], dtype) -> Array:
        dimensions = (((contracted[0],), (contracted[1],)), ((), ()))
        return jax.lax.dot_general(a, b, dimensions, precision=self.plan.precision, preferred_element_type=dtype)

    def with_bias(self, logits: Array, bias: Array | None) -> Array:
        """`logits + bias`."""
        return logits if bias is None else (real(logits) + real(bias)).astype(logits.dtype)

    def row_operands(self, hidden: Array, labels: Array, weight: Array) -> tuple:
        """The logits of a chunk and what else its row loss is given."""
        logits = self.with_bias(self.product(hidden, self.kernel), self.bias)
        return self.plan.rows.operands(self.axes, logits, labels, weight, self.parameters)

    def of_hidden(self, d_logits: Array) -> Array:
        """The gradient of a chunk's hidden states; with split classes, this device's share of it."""
        return self._dot(d_logits, self.kernel, (1, 0 if self.plan.classes_first else 1), self.dtype)

    @property
    def sum_dtype(self):
        """What gradients are summed in over tokens."""
        return self.dtype if self.dtype == jnp.float64 else jnp.dtype(self.plan.accumulate_dtype)

    def of_kernel(self, hidden: Array, weight: Array, d_logits: Array) -> Array:
        """A chunk's share of the gradient of the kernel."""
        hidden = hidden.astype(self.dtype)
        if self.plan.masked:  # 0 · NaN would be NaN
            hidden = jnp.where(along(weight == 0, hidden), 0, hidden)
        first, second = (d_logits, hidden) if self.plan.classes_first else (hidden, d_logits)
        return self._dot(first, second, (0, 0), self.sum_dtype)

    def scan(self, strided: bool, step, sums: list, results: list, rows: tuple = ()):
        """Runs a step over all chunks; see `_token_chunks`. The results get the tokens' axes back."""
        # Rematerialised: what reverse mode keeps of a chunk, if it comes here, are its rows and not its logits.
        live = jax.checkpoint(step, prevent_cse=False)

        def summed(sums, rows):
            shares, of_chunk = live(rows)
            return tuple(a + b for a, b in zip(sums, shares, strict=True)), of_chunk

        if self.plan.masked:
            summed = _token_chunks.without_masked_chunks(summed, results)
        size = self.plan.chunk
        if size is None:
            classes = self.kernel.shape[0 if self.plan.classes_first else 1]
            size = _token_chunks.chunk_size(self.tokens, classes, self.dtype.itemsize)
        chunks = _token_chunks.strided if strided else _token_chunks.overlapping
        size = max(1, min(size, self.tokens))
        sums, results = chunks(summed, sums, results, (*rows, *self.rows), size)
        return sums, tuple(result.reshape(*self.token_shape, *result.shape[1:]) for result in results)

    def row_zeros(self, dtype, count: int = 1) -> list[Array]:
        """Zeros for `count` numbers of each token."""
        return [zeros((self.tokens,), dtype, self.own_axes) for _ in range(count)]


def losses(plan: Plan, axes: tuple[str, ...], strided: bool, *operands) -> tuple[Array, ...]:
    """The losses of tokens, unweighted."""
    work = Work(plan, axes, operands)

    def step(rows):
        return (), _pair.value(work.loss)(*work.row_operands(*rows))

    return work.scan(strided, step, [], work.row_zeros(operands[WEIGHT].dtype))[1]


def gradients(plan: Plan, wanted: Wanted, axes: tuple[str, ...], strided: bool, *operands) -> tuple[Array, ...]:
    """The losses of tokens, unweighted, and the gradients of the weighted ones' sum."""
    work = Work(plan, axes, operands)
    hidden, kernel, *_ = operands

    def step(rows):
        hidden, _, weight = rows
        losses, *_, d_logits = _pair.value_and_grad(work.loss)(*work.row_operands(*rows))
        sums = ()
        if wanted.kernel:
            sums += (work.of_kernel(hidden, weight, d_logits),)
        if wanted.bias:
            sums += (real(d_logits).sum(0),)
        return sums, (losses, work.of_hidden(d_logits)) if wanted.hidden else (losses,)

    results, sums = work.row_zeros(operands[WEIGHT].dtype), []
    if wanted.hidden:
        results.append(zeros((work.tokens, hidden.shape[-1]), work.dtype, work.all_axes))
    if wanted.kernel:
        sums.append(zeros(kernel.shape, work.sum_dtype, work.all_axes))
    if wanted.bias:
        sums.append(zeros(operands[REST].shape, real(operands[REST]).dtype, work.all_axes))
    sums, (losses, *of_hidden) = work.scan(strided, step, sums, results)
    if axes:
        of_hidden = [jax.lax.psum(share, axes) for share in of_hidden]
    return losses, *(gradient.astype(hidden.dtype) for gradient in of_hidden), *sums


def tangents(
    plan: Plan, live: tuple[bool, ...], axes: tuple[str, ...], strided: bool, *operands_and_dots
) -> tuple[Array, ...]:
    """The tangents of the tokens' losses, from operands and the tangents of those that have one."""
    operands = operands_and_dots[: len(live)]
    work = Work(plan, axes, operands_and_dots[: len(live)])
    given = iter(operands_and_dots[len(live) :])
    dots = [varying(work.own_axes, next(given)) if is_live else None for is_live in live]
    hidden_dot, kernel_dot, _, _, *rest_dots = dots
    bias_dot = rest_dots.pop(0) if plan.has_bias else None
    if kernel_dot is not None:  # in reverse mode, this is the type that shares of chunks are summed in
        kernel_dot = kernel_dot.astype(work.sum_dtype)

    def step(rows):
        *dot, hidden, labels, weight = rows
        row_operands = work.row_operands(hidden, labels, weight)
        logits = row_operands[0]
        terms = [real(work.product(dot[0], work.kernel))] if dot else []
        if kernel_dot is not None:
            kept = jnp.where(along(weight == 0, hidden), 0, hidden) if plan.masked else hidden
            terms.append(real(work.product(kept, kernel_dot.astype(work.dtype))))
        if bias_dot is not None:
            terms.append(jnp.broadcast_to(real(bias_dot), logits.shape))
        logits_dot = [sum(terms[1:], start=terms[0]).astype(logits.dtype)] if terms else []
        rest = [dot for dot in rest_dots if dot is not None]

        def losses(*now):
            now = iter(now)
            first = next(now) if terms else logits
            parameters = [
                old if dot is None else next(now) for old, dot in zip(row_operands[3:], rest_dots, strict=True)
            ]
            return _pair.value(work.loss)(first, *row_operands[1:3], *parameters)[0]

        primals = [logits] * len(logits_dot)
        primals += [old for old, dot in zip(row_operands[3:], rest_dots, strict=True) if dot is not None]
        return (), (jax.jvp(losses, tuple(primals), (*logits_dot, *rest))[1],)

    moving = () if hidden_dot is None else (work.flat(hidden_dot),)
    results = work.row_zeros(operands[WEIGHT].dtype)
    return work.scan(strided, step, [], results, moving)[1]
