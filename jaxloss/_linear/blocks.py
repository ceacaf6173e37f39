"""What one device makes of blocks of tokens: a caller's objective of them, and its gradients, chunk by chunk.

A block is a token, or a few whole sequences. A chunk is as many blocks as its logits may take memory for. Where these
logits still are, JAX differentiates the objective with respect to the statistics of tokens; what is made of that takes
the place of the logits, and two more products give the gradients of hidden states and kernel.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jaxloss._arrays import MASKED, Array, along, manual_axes, varying
from jaxloss._autodiff import row_loss
from jaxloss._autodiff.row_loss import Operands
from jaxloss._autodiff.tangents import BOUNDED, times
from jaxloss._linear.chunks import Result, Stages, equal_size, largest_chunk
from jaxloss._linear.gradients import with_gradients
from jaxloss._linear.local import Work
from jaxloss._linear.plan import LinearOperands, Plan
from jaxloss._linear.split import Roles, Split
from jaxloss._linear.traced import Objective, Tokens
from jaxloss._rows.cross_entropy_derivatives import d_numbers, d_scaled_logits
from jaxloss.formulas import logit_slopes


@dataclasses.dataclass(frozen=True)
class BlockPlan:
    """What the loss of blocks is, beside its operands.

    The operands are, one after the other, those of the plan, the data of the blocks, a factor of the result if there is
    one, and the arrays that the objective closes over.

    Attributes:
        plan: of the tokens. Devices split none of the last axes of tokens that make a block.
        objective: of a block.
        data_ranks: how many axes the data of a block have.
        has_factor: whether the result is multiplied by a number.
        closed_over_ranks: how many axes the arrays have that the objective closes over.
    """

    plan: Plan
    objective: Objective
    data_ranks: tuple[int, ...]
    has_factor: bool
    closed_over_ranks: tuple[int, ...]

    @property
    def linear(self) -> int:
        """How many of the operands are those of the plan."""
        return 4 + self.plan.has_bias + len(self.plan.objective.parameters)

    @property
    def roles(self) -> tuple[Roles, ...]:
        """Of the operands' axes."""
        plan = self.plan
        of_block = plan.tokens[:-1] if plan.whole_rank else plan.tokens
        data = [
            (*of_block, *(f"x{place}.{axis}" for axis in range(rank - 1))) for place, rank in enumerate(self.data_ranks)
        ]
        closed_over = [
            tuple(f"c{place}.{axis}" for axis in range(rank)) for place, rank in enumerate(self.closed_over_ranks)
        ]
        return *plan.flat(plan.roles), *data, *([()] if self.has_factor else []), *closed_over

    def separated(self, flat: Sequence) -> tuple[LinearOperands, tuple, tuple, tuple]:
        """Operands of the plan, data, the factor if there is one, and what the objective closes over."""
        data = self.linear + len(self.data_ranks)
        factor = data + self.has_factor
        linear = self.plan.operands(flat[: self.linear])
        return linear, tuple(flat[self.linear : data]), tuple(flat[data:factor]), tuple(flat[factor:])


class BlockWork(Work):
    """The operands on one device, in blocks."""

    float16_cotangents = True

    def __init__(self, blocks: BlockPlan, split: Split, flat: Sequence[Array], *, direct: bool):
        operands, data, factor, self.closed_over = blocks.separated(flat)
        super().__init__(blocks.plan, split, operands, direct=direct, others=(*data, *factor))
        self.objective_of_block = blocks.objective
        self.block_shape = self.token_shape[self.token_rank :]
        self.block = math.prod(self.block_shape)
        self.rows = tuple(self.in_rows(array) for array in self.rows)
        data, self.factor = self.others[: len(data)], self.others[len(data) :]
        self.data = tuple(self._data_rows(array) for array in data)

    @property
    def token_rank(self) -> int:
        """How many axes of tokens come before those of a block."""
        return self.plan.token_rank - self.plan.whole_rank

    def _data_rows(self, data: Array) -> Array:
        """Of blocks along one axis, `[blocks, sequences, ...]`; those of single tokens `[blocks, 1, ...]`."""
        shape = data.shape[self.token_rank :] if self.block_shape else (1, *data.shape[self.token_rank :])
        return data.reshape(self.count, *shape)

    @property
    def chunk_size(self) -> int:
        """How many blocks a chunk has at most."""
        if not self.block_shape:
            return super().chunk_size
        tokens = largest_chunk(*self.memory_of_token) if self.plan.chunk is None else self.plan.chunk
        blocks = max(1, tokens // max(1, self.block))
        return equal_size(self.count, blocks) if isinstance(self.count, int) and self.count else blocks

    @property
    def value_dtype(self):
        """The type of a token's statistics and of the result."""
        return self.rows[-1].dtype

    def tokens_of(self, rows: Sequence[Array]) -> Sequence[Array]:
        if not self.block_shape:
            return rows
        return [array.reshape(math.prod(array.shape[:2]), *array.shape[2:]) for array in rows]

    def in_rows(self, of_tokens: Array) -> Array:
        if not self.block_shape:
            return of_tokens
        return of_tokens.reshape(of_tokens.shape[0] // max(1, self.block), self.block, *of_tokens.shape[1:])

    def of_tokens(self, array: Array) -> Array:
        return super().of_tokens(*self.tokens_of([array]))

    # A gradient of logits is one that a scale, None for 1, is to multiply.

    def rounded(self, d_logits: tuple[Array, Array | None]) -> tuple[Array, Array | None]:
        return super().rounded(d_logits[0]), d_logits[1]

    def of_hidden(self, d_logits: tuple[Array, Array | None]) -> Array:
        return times(super().of_hidden(d_logits[0]), d_logits[1]).astype(self.hidden_dtype)

    def of_kernel(self, hidden: Array, weight: Array, d_logits: tuple[Array, Array | None], dtype) -> Array:
        share = times(super().of_kernel(hidden, weight, d_logits[0], dtype), d_logits[1])
        return share.astype(dtype)

    def of_bias(self, d_logits: tuple[Array, Array | None]) -> Array:
        return times(super().of_bias(d_logits[0]), d_logits[1])

    def chunk(self, rows: Sequence[Array]) -> tuple[Sequence[Array], Array, Operands]:
        """Of a chunk the data of its blocks, the mask of its tokens, and the operands of their row loss."""
        hidden, labels, weight = self.tokens_of(rows[-3:])
        # Not by its sign, which XLA's partitioner may have lost: all others are 1.
        mask = weight != 0
        weight = jnp.where(mask, weight, MASKED)
        return rows[:-3], mask, self.row_operands(hidden, labels, weight)

    def statistics(self, operands: Operands) -> tuple[Array, list[Array]]:
        """The log-probabilities of tokens' labels, and `objective.stats`."""
        losses, *stats = row_loss.value_and_stats(self.loss)(operands)
        return 0 - losses, stats

    def of_each_token(self, log_prob: Array, stats: Sequence[Array]) -> tuple[Array, Array, Array]:
        """Log-probability, entropy (0 if it is not needed) and log-sum-exp."""
        entropy = dict(zip(self.objective.stats, stats, strict=True)).get("entropy")
        return log_prob, jnp.zeros_like(log_prob) if entropy is None else entropy, stats[0] + stats[1]

    def value(self, mask: Array, of_tokens: Sequence[Array], data: Sequence[Array], factor, closed_over):
        """The sum over the blocks that count, and the sums beside it.

        A block of masked tokens alone counts nothing. It is computed, with all others, of what a block that counts
        holds: an objective may be undefined where there is no token.
        """
        shape = (-1, *(self.block_shape or (1,)))
        mask = mask.reshape(shape)
        counts = mask.any(tuple(range(1, mask.ndim)))
        first = jnp.argmax(counts)

        def known(x: Array) -> Array:
            return jnp.where(along(counts, x), x, jax.lax.dynamic_index_in_dim(x, first))

        log_prob, entropy, lse = (known(array.reshape(shape)) for array in of_tokens)
        tokens = Tokens(log_prob, entropy, lse, known(mask))
        of_block = functools.partial(self.objective_of_block, closed_over=closed_over)
        values, sums = jax.vmap(of_block)(tokens, [known(array) for array in data])
        total = jnp.where(counts, values, 0).sum()
        sums = [jnp.where(along(counts, each), each, 0).sum(0, dtype=each.dtype) for each in sums]
        return total * factor[0].astype(total.dtype) if factor else total, sums

    def initial(self) -> list[Array]:
        """What result and sums start from."""
        like = (jax.ShapeDtypeStruct((), self.value_dtype), *self.objective_of_block.sums)
        return [varying(self.own_axes, jnp.zeros(each.shape, each.dtype)) for each in like]


def values(blocks: BlockPlan, split: Split, strided: bool, *flat: Array, direct: bool) -> tuple[Array, ...]:
    """The sum of the objective over all blocks, and the sums beside it."""
    work = BlockWork(blocks, split, flat, direct=direct)

    def forward(rows):
        data, mask, row_operands = work.chunk(rows)
        of_tokens = work.of_each_token(*work.statistics(row_operands))
        value, sums = work.value(mask, of_tokens, data, work.factor, work.closed_over)
        return (value, *sums), ()

    sums, _ = work.scan(strided, Stages(forward), work.initial(), [], *work.data)
    return tuple(split.over_tokens((), each, each.dtype) for each in sums)


def gradients(
    blocks: BlockPlan, split: Split, strided: bool, *flat: Array, wrt: tuple[int, ...], direct: bool
) -> tuple[Array, ...]:
    """The same, and the gradients of the first with respect to the operands at these places."""
    work = BlockWork(blocks, split, flat, direct=direct)
    operands, data, _, _ = blocks.separated(flat)
    places, of_data, of_factor, of_closed_over = blocks.separated(range(len(flat)))
    linear = tuple(name for name in ("hidden", "kernel", "bias") if getattr(places, name) in wrt)
    numbers = [number for number, place in enumerate(places.parameters) if place in wrt]
    others_wrt = [place for place in (*of_data, *of_factor, *of_closed_over) if place in wrt]
    data_wrt = [number for number, place in enumerate(of_data) if place in wrt]
    uses = work.objective_of_block.uses
    objective = work.objective

    def of_chunk(rows):
        data, keep, row_operands = work.chunk(rows)
        log_prob, stats = work.statistics(row_operands)
        known = dict(
            zip((*of_data, *of_factor, *of_closed_over), (*data, *work.factor, *work.closed_over), strict=True)
        )

        def value_of(of_tokens, *values):
            given = {**known, **dict(zip(others_wrt, values, strict=True))}
            each = ([given[place] for place in of] for of in (of_data, of_factor, of_closed_over))
            return work.value(keep, of_tokens, *each)

        of_tokens = work.of_each_token(log_prob, stats)
        value, pull, sums = jax.vjp(value_of, of_tokens, *(known[place] for place in others_wrt), has_aux=True)
        cotangents, *of_data_and_others = pull(jnp.ones_like(value))
        # Where no token counts the objective may be undefined.
        of_data_and_others = [jnp.where(keep.any(), each, 0) for each in of_data_and_others]
        cotangents = [jnp.where(keep, cotangent, 0) for cotangent in cotangents]
        scale = None
        if work.dtype == jnp.float16:
            # A number that brings the largest to `BOUNDED`, where the gradient of logits has its small elements too.
            largest = jnp.max(jnp.abs(jnp.stack(cotangents)), initial=0)
            scale = jnp.where(jnp.isfinite(largest) & (largest > 0), jnp.clip(largest / BOUNDED, 2.0**-100, 1), 1)
            scale = jax.lax.stop_gradient(scale)
            cotangents = [cotangent / scale for cotangent in cotangents]
        of_log_prob, of_entropy, of_lse = (
            cotangent if used else None for cotangent, used in zip(cotangents, uses, strict=True)
        )
        of_nll = None if of_log_prob is None else 0 - of_log_prob
        shares = (value, *sums)
        if not numbers and (of_lse is None or work.loss.vjp_stats):
            of_stats = {"log_sum": of_lse, "entropy": of_entropy}
            given = [of_stats.get(objective.stats[place]) for place in work.loss.vjp_stats]
            d_logits = row_loss.gradient(work.loss, row_operands, stats, of_nll, given)
        else:
            kept = row_operands._replace(x=jnp.where(keep[:, None], row_operands.x, 0))
            of_scaled = d_scaled_logits(objective, kept, stats[:2], of_nll, of_lse, of_entropy)
            of_scaled = jnp.where(keep[:, None], of_scaled, 0)
            if numbers:
                parameters = tuple(varying(work.all_axes, parameter) for parameter in kept.parameters)
                of_numbers = d_numbers(objective, kept._replace(parameters=parameters), of_scaled, numbers)
                shares += tuple(times(share, scale) for share in of_numbers)
            d_logits = (of_scaled * logit_slopes(kept.x, objective.options(kept.parameters))).astype(kept.x.dtype)
        shares += tuple(of_data_and_others[len(data_wrt) :])
        return shares, of_data_and_others[: len(data_wrt)], (d_logits, scale)

    results = [Result(work.data[number].dtype, work.own_axes, shape=work.data[number].shape[1:]) for number in data_wrt]
    sums = work.initial()
    own = len(sums)
    sums += [work.zeros(work.parameters[number], work.parameters[number].dtype) for number in numbers]
    others = [flat[place] for place in others_wrt[len(data_wrt) :]]
    axes = [work.own_axes if place in of_factor else manual_axes(flat[place]) for place in others_wrt[len(data_wrt) :]]
    sums += [varying(of, jnp.zeros(other.shape, other.dtype)) for of, other in zip(axes, others, strict=True)]
    sums, of_rows, of_linear = with_gradients(work, linear, operands, strided, of_chunk, sums, results, *work.data)
    value_and_sums, of_numbers, of_others = sums[:own], sums[own : own + len(numbers)], sums[own + len(numbers) :]
    if split.classes:
        of_numbers = [jax.lax.psum(share, split.classes) for share in of_numbers]
    found = {getattr(places, name): gradient for name, gradient in zip(linear, of_linear, strict=True)}
    found |= {places.parameters[number]: share for number, share in zip(numbers, of_numbers, strict=True)}
    found |= {of_data[number]: of.reshape(data[number].shape) for number, of in zip(data_wrt, of_rows, strict=True)}
    found |= dict(zip(others_wrt[len(data_wrt) :], of_others, strict=True))
    return *value_and_sums, *(found[place] for place in wrt)
