"""What one device makes of tokens and a kernel: cross entropy of `hidden @ kernel`, chunk by chunk of tokens.

Of a chunk's logits come losses, statistics and their tangents. What also makes gradients is in `gradients`.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxloss._arrays import Array, along, manual_axes, promoted, varying
from jaxloss._autodiff import row_loss
from jaxloss._autodiff.row_loss import Operands
from jaxloss._autodiff.tangents import tangent_of
from jaxloss._linear.chunks import (
    FEWEST,
    MEMORY,
    RESHARDED_MEMORY,
    Overlapping,
    Result,
    Stages,
    Strided,
    chunk_size,
    scan_chunks,
)
from jaxloss._linear.split import Roles, Split
from jaxloss._rows.cross_entropy import CrossEntropy
from jaxloss._rows.vocab_parallel import local_shard
from jaxloss._spec import OPTIONS, Objective
from jaxloss.formulas import real


class LinearOperands(NamedTuple):
    """What a linear loss is of; or what belongs to each of these.

    Attributes:
        hidden: hidden states, `[tokens..., D]`.
        kernel: `[D, V]` or `[V, D]`.
        labels: `[tokens...]`; of a divergence the teacher's hidden states, `[tokens..., D']`.
        row_weight: `[tokens...]`.
        bias: `[V]`, or None.
        parameters: those that the objective names; of a divergence those that `DivergencePlan` says.
    """

    hidden: Any
    kernel: Any
    labels: Any
    row_weight: Any
    bias: Any = None
    parameters: tuple = ()


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a linear loss is, beside its operands.

    Attributes:
        objective: the loss of rows of logits, and the mesh axes that an enclosing `shard_map` has split them over.
        token_rank: how many axes of the hidden states are tokens.
        classes_first: whether the kernel is `[V, D]`.
        has_bias: whether there is a bias.
        masked: whether tokens may be left out.
        weighted: whether tokens have weights, which may be 0.
        chunk: how many tokens a chunk has, None for what `chunk_size` says.
        accumulate_dtype: what the gradient of the kernel is summed in.
        precision: of the matrix products.
        whole_rank: how many of the last axes of tokens devices never split: those of a block that is whole.
    """

    objective: Objective
    token_rank: int
    classes_first: bool
    has_bias: bool
    masked: bool
    weighted: bool
    chunk: int | None
    accumulate_dtype: Any
    precision: Any
    whole_rank: int = 0

    def work(self, split: Split, operands: LinearOperands, *, direct: bool = False) -> "Work":
        """The operands on one device, and what is made of a chunk of their tokens."""
        return Work(self, split, operands, direct=direct)

    @property
    def axes(self) -> tuple[str, ...]:
        """The mesh axes that an enclosing `shard_map` has split the classes over."""
        return self.objective.axes

    @property
    def widens(self) -> bool:
        """Whether a batch of tokens may become one more axis of tokens: no parameter is one of tokens."""
        return True

    @property
    def sums_in_float16(self) -> bool:
        """Whether the gradient of the kernel is summed in a type that holds a mean of tokens, but no sum of them."""
        return jnp.dtype(self.accumulate_dtype) == jnp.float16

    @property
    def tokens(self) -> Roles:
        """The roles of the tokens' axes."""
        split = self.token_rank - self.whole_rank
        return tuple(f"{'t' if axis < split else 'b'}{axis}" for axis in range(self.token_rank))

    @property
    def roles(self) -> LinearOperands:
        """Of the operands' axes."""
        kernel = ("v", "d") if self.classes_first else ("d", "v")
        parameters = tuple(("v",) if OPTIONS[name].per_class else () for name in self.objective.parameters)
        return LinearOperands((*self.tokens, "e"), kernel, self.tokens, self.tokens, ("v",), parameters)

    def flat(self, operands: LinearOperands) -> tuple:
        """One after the other, as devices split them; so what belongs to each."""
        bias = (operands.bias,) if self.has_bias else ()
        return *operands[:4], *bias, *operands.parameters

    @property
    def places(self) -> dict[str, int]:
        """Of the operands that a gradient is made of, among the flat ones."""
        return {"hidden": 0, "kernel": 1, "bias": 4}

    def operands(self, flat: Sequence) -> LinearOperands:
        """The reverse."""
        hidden, kernel, labels, row_weight, *rest = flat
        bias = rest.pop(0) if self.has_bias else None
        return LinearOperands(hidden, kernel, labels, row_weight, bias, tuple(rest))

    @property
    def stats(self) -> tuple[str, ...]:
        """The names of the statistics of a token that are asked for."""
        return self.objective.stats if self.objective.details else ()


class Work:
    """The operands on one device, and what is made of a chunk of their tokens.

    Attributes:
        split: how devices share the work.
        axes: the mesh axes that the classes are split over.
        own_axes: the other axes of a `shard_map` that operands vary over. A device's sums are over its own tokens, so
            its kernel is one of its own too.
        all_axes: both.
        direct: whether it is not differentiated.
        others: further operands.
    """

    def __init__(
        self, plan: Plan, split: Split, operands: LinearOperands, *, direct: bool = False, others: Sequence[Array] = ()
    ):
        self.plan, self.split, self.direct = plan, split, direct
        self.axes = axes = split.classes
        self.all_axes = manual_axes(*jax.tree.leaves(operands), *others)
        self.own_axes = tuple(axis for axis in self.all_axes if axis not in axes)
        hidden, kernel, labels, weight, self.bias, self.parameters = jax.tree.map(
            functools.partial(varying, self.own_axes), operands
        )
        self.others = [varying(self.own_axes, other) for other in others]
        self.hidden_type, self.dtype = hidden.dtype, promoted(hidden.dtype, kernel.dtype)
        self.kernel = kernel.astype(self.dtype)
        self.objective = dataclasses.replace(plan.objective, axes=axes, in_place=True)
        self.loss = CrossEntropy(self.objective)
        self.token_shape = hidden.shape[:-1]
        self.rows = tuple(self.flat(array) for array in (hidden, labels, weight))

    @property
    def classes_axis(self) -> int:
        """The axis of classes of the kernel."""
        return 0 if self.plan.classes_first else 1

    @property
    def hidden_dtype(self):
        """What the gradient of hidden states is made in. Of resharded tokens it is rounded once it is summed."""
        return promoted(self.dtype, jnp.float32) if self.split.resharded else self.dtype

    @property
    def kept_dtype(self):
        """What the gradient of hidden states is kept in."""
        return self.dtype

    @property
    def returned_dtype(self):
        """The type of their gradient in the end."""
        return self.hidden_type

    @property
    def sum_dtype(self):
        """What the kernel's gradient is summed in."""
        return self.dtype if self.dtype == jnp.float64 else self.plan.accumulate_dtype

    @property
    def count(self):
        """How many tokens there are: a number, unless only the call of an exported program knows it."""
        return self.rows[0].shape[0]

    @property
    def chunk_size(self) -> int:
        """How many tokens a chunk has at most."""
        if self.plan.chunk is not None:
            return self.plan.chunk
        return chunk_size(self.count, *self.memory_of_token)

    @property
    def memory_of_token(self) -> tuple[int, int, int, int]:
        """The classes of a token, the bytes of one, those of a chunk's logits, and the least tokens of a chunk."""
        # Devices that re-shard have as many times more rows of a chunk as they have fewer of its classes.
        classes = self.kernel.shape[self.classes_axis] * math.prod(map(jax.lax.axis_size, self.split.resharded))
        memory = RESHARDED_MEMORY if self.split.resharded else MEMORY
        return classes, self.dtype.itemsize, memory, FEWEST

    @property
    def is_one_chunk(self) -> bool:
        """Whether all tokens are known to make one chunk."""
        return isinstance(self.count, int) and self.count <= self.chunk_size

    def flat(self, array: Array) -> Array:
        """All tokens along one axis."""
        return array.reshape(math.prod(self.token_shape), *array.shape[self.plan.token_rank :])

    def logits(self, hidden: Array, kernel: Array) -> Array:
        """`hidden @ kernel`."""
        return self._tangent(hidden.astype(self.dtype), kernel, (1, 1 - self.classes_axis), self.dtype)

    def of_hidden(self, d_logits: Any) -> Array:
        """The gradient of a chunk's hidden states; with split classes, this device's share of it."""
        return self._tangent(d_logits, self.kernel, (1, self.classes_axis), self.hidden_dtype)

    def of_kernel(self, hidden: Array, weight: Array, d_logits: Any, dtype) -> Array:
        """A chunk's share of the gradient of the kernel."""
        hidden = self.kept(hidden, weight).astype(self.dtype)
        first, second = (d_logits, hidden) if self.plan.classes_first else (hidden, d_logits)
        return self._tangent(first, second, (0, 0), dtype)

    def _tangent(self, a: Array, b: Array, contracted: tuple[int, int], dtype) -> Array:
        dimensions = (((contracted[0],), (contracted[1],)), ((), ()))
        return jax.lax.dot_general(a, b, dimensions, precision=self.plan.precision, preferred_element_type=dtype)

    def kept(self, hidden: Array, weight: Array) -> Array:
        """Hidden states with zeros where a token weighs nothing: 0 · NaN would be NaN."""
        if not self.plan.masked and not self.plan.weighted:
            return hidden
        return jnp.where(along(weight == 0, hidden), 0, hidden)

    def of_bias(self, d_logits: Any) -> Array:
        """A chunk's share of the gradient of the bias."""
        return real(d_logits).sum(0)

    def tokens_of(self, rows: Sequence[Array]) -> Sequence[Array]:
        """Hidden states, labels and weights of the tokens of a chunk, along one axis."""
        return rows

    def in_rows(self, of_tokens: Array) -> Array:
        """The reverse, of what has one index a token."""
        return of_tokens

    def biased_logits(self, hidden: Array, weight: Array) -> Array:
        """The logits of a chunk."""
        if not self.direct:  # second order multiplies hidden states with a tangent: 0 · NaN would be NaN
            hidden = self.kept(hidden, weight)
        return with_bias(self.logits(hidden, self.kernel), self.bias)

    def row_operands(self, *rows: Array) -> Operands:
        """The logits of a chunk and what else its row loss is given."""
        hidden, labels, weight = rows
        logits = self.biased_logits(hidden, weight)
        return Operands.of(local_shard(self.objective, self.axes, logits, labels, weight, *self.parameters))

    def of_row_loss(self, parameters: tuple) -> tuple:
        """What belongs to the parameters of the row loss, of what belongs to all."""
        return parameters

    def of_rows(self, names) -> list[Result]:
        """The results of these names: losses and statistics."""
        outside = {"predicted": -1, "rank": self.objective.classes_of(self.kernel.shape[self.classes_axis])}
        dtype = self.rows[-1].dtype
        return [
            Result(jnp.dtype(jnp.int32), self.own_axes, of_masked_row=outside[name])
            if name in outside
            else Result(dtype, self.own_axes)
            for name in names
        ]

    def zeros(self, like: Array | jax.ShapeDtypeStruct, dtype) -> Array:
        """As many of them: what a sum over tokens starts from."""
        return varying(self.all_axes, jnp.zeros(like.shape, dtype))

    def scan(self, strided: bool, stages: Stages, sums: list[Array], results: list[Result], *rows: Array):
        """`scan_chunks` over the tokens, and further rows before them."""
        division = Strided if strided else Overlapping
        rows, skip = (*rows, *self.rows), self.plan.masked
        return scan_chunks(stages, sums, results, rows, division, self.chunk_size, skip, self.direct)

    def of_tokens(self, array: Array) -> Array:
        """A result of all tokens, with their axes."""
        return array.reshape(*self.token_shape, *array.shape[1:])


def with_bias(logits: Array, bias: Array | None) -> Array:
    """Logits and a bias of their classes, None for none."""
    return logits if bias is None else (real(logits) + real(bias)[None]).astype(logits.dtype)


def losses(plan: Plan, direct: bool, split: Split, strided: bool, *operands: Array) -> tuple[Array, ...]:
    """The losses of tokens, unweighted, and the statistics that are asked for.

    `direct`: this is not differentiated.
    """
    work = plan.work(split, plan.operands(operands), direct=direct)
    op = (row_loss.value_and_stats if plan.stats else row_loss.value)(work.loss)

    stages = Stages(lambda rows: ((), op(work.row_operands(*rows))))
    _, filled = work.scan(strided, stages, [], work.of_rows(("losses", *plan.stats)))
    return tuple(map(work.of_tokens, filled))


def tangents(
    plan: Plan, nonzero: tuple[bool, ...], split: Split, strided: bool, *operands_and_tangents: Array
) -> tuple[Array, ...]:
    """The tangents of the losses of tokens, and of those statistics that have one.

    They are from the operands, and the tangents of those that `nonzero` says have one.
    """
    operands, given = operands_and_tangents[: len(nonzero)], iter(operands_and_tangents[len(nonzero) :])
    work = plan.work(split, plan.operands(operands))
    # In reverse mode, the casts become the sums over devices: once, for they are made before the scan.
    tangents = plan.operands([varying(work.own_axes, next(given)) if has_one else None for has_one in nonzero])
    hidden_tangent, kernel_tangent, _, _, bias_tangent, parameter_tangents = tangents
    if kernel_tangent is not None:  # in reverse mode, this is the type that the chunks' shares are summed in
        kernel_tangent = kernel_tangent.astype(work.sum_dtype)
    moving = () if hidden_tangent is None else (work.flat(varying(work.all_axes, hidden_tangent)),)
    names = ("losses", *(name for name in plan.stats if name not in ("predicted", "rank")))
    op = (row_loss.value_and_stats if plan.stats else row_loss.value)(work.loss)

    def step(rows):
        hidden_tangents, rows = rows[: len(moving)], rows[len(moving) :]
        hidden, _, weight = rows[-3:]
        operands = work.row_operands(*rows)
        logits = operands.x
        terms = [real(work.logits(tangent, work.kernel)) for tangent in hidden_tangents]
        if kernel_tangent is not None:
            terms.append(real(work.logits(work.kept(hidden, weight), kernel_tangent.astype(work.dtype))))
        if bias_tangent is not None:
            terms.append(jnp.broadcast_to(real(bias_tangent), logits.shape))

        logits_tangent = sum(terms[1:], start=terms[0]).astype(logits.dtype) if terms else None
        own_parameters = work.of_row_loss(parameter_tangents)
        own_tangents = operands._replace(x=logits_tangent, target=None, row_weight=None, parameters=own_parameters)
        return (), tangent_of(lambda operands: op(operands)[: len(names)], (operands,), (own_tangents,))

    _, filled = work.scan(strided, Stages(step), [], work.of_rows(names), *moving)
    return tuple(map(work.of_tokens, filled))
