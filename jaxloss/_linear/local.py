"""What one device makes of tokens and a kernel: cross entropy of `hidden @ kernel`, chunk by chunk of tokens.

Of a chunk's logits come losses, statistics and their tangents. What also makes gradients is in `gradients`.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxloss._arrays import Array, along, manual_axes, promoted, varying
from jaxloss._autodiff import row_loss
from jaxloss._autodiff.row_loss import Operands
from jaxloss._autodiff.tangents import tangent_of
from jaxloss._linear.alignment import padded, without_padding
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
from jaxloss._linear.plan import LinearOperands, Plan
from jaxloss._linear.split import Roles, Split
from jaxloss._rows.cross_entropy import CrossEntropy
from jaxloss._rows.vocab_parallel import local_shard
from jaxloss.formulas import real

OF_CHUNK = ("t", "e")
"""The roles of the axes of a chunk's hidden states."""


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
        classes: how many there are here, without those that pad the kernel.
        float16_cotangents: whether a gradient of float16 may be of any size until a cotangent has multiplied it. It is
            rounded only then.
    """

    float16_cotangents = False

    def __init__(
        self, plan: Plan, split: Split, operands: LinearOperands, *, direct: bool = False, others: Sequence[Array] = ()
    ):
        self.plan, self.split, self.direct = plan, split, direct
        self.axes = axes = split.classes
        self.all_axes = manual_axes(*jax.tree.leaves(operands), *others)
        self.own_axes = tuple(axis for axis in self.all_axes if axis not in axes)
        hidden, kernel, labels, weight, bias, parameters = jax.tree.map(
            functools.partial(varying, self.own_axes), operands
        )
        self.others = [varying(self.own_axes, other) for other in others]
        self.hidden_type, self.dtype = hidden.dtype, promoted(hidden.dtype, kernel.dtype)
        self.classes = kernel.shape[plan.classes_axis]
        self.kernel = self.padded(kernel.astype(self.dtype), plan.roles.kernel)
        self.bias = None if bias is None else self.padded(bias, plan.roles.bias)
        self.parameters = self.padded_parameters(parameters)
        names = plan.objective.parameters
        if self.has_padding and "num_classes" not in names:
            names += ("num_classes",)  # the last of `PARAMETERS`
            self.parameters += (varying(self.own_axes, jnp.int32(plan.objective.classes)),)
        self.objective = dataclasses.replace(plan.objective, parameters=names, axes=axes, in_place=True)
        self.loss = CrossEntropy(self.objective)
        self.token_shape = hidden.shape[:-1]
        self.rows = tuple(self.flat(array) for array in (hidden, labels, weight))

    @property
    def width(self) -> int:
        """How many classes a row of logits has, with those that pad the kernel."""
        return self.kernel.shape[self.plan.classes_axis]

    @property
    def has_padding(self) -> bool:
        """Whether there are such."""
        return self.width != self.classes

    def padded(self, array: Array, roles: Roles) -> Array:
        """What has axes of these roles, as wide as it is worked on."""
        return padded(array, roles) if self.plan.aligned else array

    def padded_parameters(self, parameters: Sequence[Array | None]) -> tuple:
        """The same of those that the objective names, None for what is none."""
        each = zip(parameters, self.plan.roles.parameters, strict=True)
        return tuple(None if parameter is None else self.padded(parameter, roles) for parameter, roles in each)

    @property
    def _widens_float16(self) -> bool:
        return self.float16_cotangents and self.dtype == jnp.float16

    @property
    def hidden_dtype(self):
        """What the gradient of hidden states is made in. Of resharded tokens it is rounded once it is summed."""
        return promoted(self.dtype, jnp.float32) if self.split.resharded or self._widens_float16 else self.dtype

    @property
    def kept_dtype(self):
        """What the gradient of hidden states is kept in."""
        return promoted(self.dtype, jnp.float32) if self._widens_float16 else self.dtype

    @property
    def returned_dtype(self):
        """The type of their gradient in the end."""
        return self.kept_dtype if self._widens_float16 else self.hidden_type

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
        """The classes of a token, the bytes of one, those that a chunk's logits may take, and its fewest tokens."""
        # Devices that re-shard have as many times more rows of a chunk as they have fewer of its classes.
        classes = self.width * math.prod(map(jax.lax.axis_size, self.split.resharded))
        memory = RESHARDED_MEMORY if self.split.resharded else MEMORY
        return classes, jnp.dtype(self.plan.logits_dtype).itemsize, memory, FEWEST

    @property
    def is_one_chunk(self) -> bool:
        """Whether all tokens are known to make one chunk."""
        return isinstance(self.count, int) and self.count <= self.chunk_size

    def flat(self, array: Array) -> Array:
        """All tokens along one axis."""
        return array.reshape(math.prod(self.token_shape), *array.shape[self.plan.token_rank :])

    def logits(self, hidden: Array) -> Array:
        """`hidden @ kernel`, as the plan's type holds the sums that the product is."""
        dtype = self.plan.logits_dtype
        # No product of narrower operands has results of float64.
        operands_dtype = dtype if dtype == jnp.float64 else self.dtype
        return self._logits(hidden.astype(operands_dtype), self.kernel.astype(operands_dtype), dtype)

    def logits_tangent(self, hidden: Array, kernel: Array) -> Array:
        """The same of tangents. It is rounded to the operands' type, and in reverse mode the gradient of logits is."""
        return real(self._logits(hidden.astype(self.dtype), kernel.astype(self.dtype), self.dtype))

    def _logits(self, hidden: Array, kernel: Array, dtype) -> Array:
        hidden = self.padded(hidden, OF_CHUNK)
        return self._product(hidden, kernel, (1, 1 - self.plan.classes_axis), dtype)

    def rounded(self, d_logits: Any) -> Any:
        """The gradient of logits in the operands' type: of 16 bits, its products stay on tensor cores."""
        return d_logits.astype(self.dtype)

    def of_hidden(self, d_logits: Any) -> Array:
        """The gradient of a chunk's hidden states; with split classes, this device's share of it."""
        gradient = self._product(d_logits, self.kernel, (1, self.plan.classes_axis), self.hidden_dtype)
        return without_padding(gradient, (gradient.shape[0], *self.rows[0].shape[-1:]))

    def of_kernel(self, hidden: Array, weight: Array, d_logits: Any, dtype) -> Array:
        """A chunk's share of the gradient of the kernel."""
        hidden = self.padded(self.kept(hidden, weight).astype(self.dtype), OF_CHUNK)
        first, second = (d_logits, hidden) if self.plan.classes_first else (hidden, d_logits)
        return self._product(first, second, (0, 0), dtype)

    def _product(self, a: Array, b: Array, contracted: tuple[int, int], dtype) -> Array:
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

    def tangent_of_bias(self, tangent: Array, hidden: Array, logits: Array) -> Array:
        """What a tangent of the bias adds to that of a chunk's logits."""
        del hidden
        return jnp.broadcast_to(tangent, logits.shape)

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
        return with_bias(self.logits(hidden), self.bias)

    def row_operands(self, *rows: Array) -> Operands:
        """The logits of a chunk and what else its row loss is given."""
        hidden, _, weight = rows[-3:]
        return self.operands_of(self.biased_logits(hidden, weight), *rows)

    def operands_of(self, logits: Array, *rows: Array) -> Operands:
        """The same of logits that are known."""
        _, labels, weight = rows
        operands = logits, labels, weight, *self.parameters
        return Operands.of(local_shard(self.objective, self.axes, *operands, width=self.classes))

    def tangents_of(self, logits: Array, logits_tangent: Array | None, operands: Operands, parameters) -> Operands:
        """The tangents of these operands, from those of the logits that they are of and of what belongs to all."""
        del logits
        own = self.of_row_loss(parameters)
        return operands._replace(x=logits_tangent, target=None, row_weight=None, parameters=own)

    def value_and_d_logits(self, rows: Sequence[Array]) -> tuple[Sequence[Array], Any]:
        """Losses and statistics of a chunk, and what its gradients are made of."""
        *of_rows, d_logits = row_loss.value_and_grad(self.loss)(self.row_operands(*rows))
        return self.of_vocabulary(of_rows[: 1 + len(self.plan.stats)]), d_logits

    def of_vocabulary(self, of_rows: Sequence[Array]) -> Sequence[Array]:
        """Losses and statistics, whose classes on other devices have indices that no padding shifts."""
        if not (self.axes and self.has_padding and self.plan.stats):
            return of_rows
        named = dict(zip(("losses", *self.plan.stats), of_rows, strict=True))
        device, here = jnp.divmod(named["predicted"], self.width)
        named["predicted"] = jnp.where(named["predicted"] < 0, named["predicted"], device * self.classes + here)
        return tuple(named.values())

    def of_row_loss(self, parameters: tuple) -> tuple:
        """What belongs to the parameters of the row loss, of what belongs to all."""
        return parameters

    def of_rows(self, names) -> list[Result]:
        """The results of these names: losses and statistics."""
        outside = {"predicted": -1, "rank": self.objective.classes_of(self.classes)}
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


@functools.singledispatch
def work_of(plan: Plan, split: Split, operands: LinearOperands, *, direct: bool = False) -> Work:
    """The operands on one device, and what is made of a chunk of their tokens; another kind of plan has its own."""
    return Work(plan, split, operands, direct=direct)


def with_bias(logits: Array, bias: Array | None) -> Array:
    """Logits and a bias of their classes, None for none."""
    return logits if bias is None else (real(logits) + real(bias)[None]).astype(logits.dtype)


def losses(plan: Plan, direct: bool, split: Split, strided: bool, *operands: Array) -> tuple[Array, ...]:
    """The losses of tokens, unweighted, and the statistics that are asked for.

    `direct`: this is not differentiated.
    """
    work = work_of(plan, split, plan.operands(operands), direct=direct)
    op = (row_loss.value_and_stats if plan.stats else row_loss.value)(work.loss)

    stages = Stages(lambda rows: ((), work.of_vocabulary(op(work.row_operands(*rows)))))
    _, filled = work.scan(strided, stages, [], work.of_rows(("losses", *plan.stats)))
    return tuple(map(work.of_tokens, filled))


def tangents(
    plan: Plan, nonzero: tuple[bool, ...], split: Split, strided: bool, *operands_and_tangents: Array
) -> tuple[Array, ...]:
    """The tangents of the losses of tokens, and of those statistics that have one.

    They are from the operands, and the tangents of those that `nonzero` says have one.
    """
    operands, given = operands_and_tangents[: len(nonzero)], iter(operands_and_tangents[len(nonzero) :])
    work = work_of(plan, split, plan.operands(operands))
    # In reverse mode, the casts become the sums over devices: once, for they are made before the scan.
    tangents = plan.operands([varying(work.own_axes, next(given)) if has_one else None for has_one in nonzero])
    hidden_tangent, kernel_tangent, _, _, bias_tangent, parameter_tangents = tangents
    if kernel_tangent is not None:  # in reverse mode, this is the type that the chunks' shares are summed in
        kernel_tangent = work.padded(kernel_tangent.astype(work.sum_dtype), plan.roles.kernel)
    if bias_tangent is not None:  # likewise
        bias_tangent = work.padded(real(bias_tangent), plan.roles.bias)
    parameter_tangents = work.padded_parameters(parameter_tangents)
    parameter_tangents += (None,) * (len(work.parameters) - len(parameter_tangents))
    moving = () if hidden_tangent is None else (work.flat(varying(work.all_axes, hidden_tangent)),)
    names = ("losses", *(name for name in plan.stats if name not in ("predicted", "rank")))
    op = (row_loss.value_and_stats if plan.stats else row_loss.value)(work.loss)

    def step(rows):
        hidden_tangents, rows = rows[: len(moving)], rows[len(moving) :]
        hidden, _, weight = rows[-3:]
        logits = work.biased_logits(hidden, weight)
        terms = [work.logits_tangent(tangent, work.kernel) for tangent in hidden_tangents]
        if kernel_tangent is not None:
            terms.append(work.logits_tangent(work.kept(hidden, weight), kernel_tangent))
        if bias_tangent is not None:
            terms.append(work.tangent_of_bias(bias_tangent, hidden, logits))

        logits_tangent = sum(terms[1:], start=terms[0]).astype(logits.dtype) if terms else None
        operands = work.operands_of(logits, *rows)
        own_tangents = work.tangents_of(logits, logits_tangent, operands, parameter_tangents)
        return (), tangent_of(lambda operands: op(operands)[: len(names)], (operands,), (own_tangents,))

    _, filled = work.scan(strided, Stages(step), [], work.of_rows(names), *moving)
    return tuple(map(work.of_tokens, filled))
