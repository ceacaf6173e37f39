"""Work on tokens, a chunk of them at a time, so that what is made of a chunk never exists for all of them."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxloss._arrays import MASKED, Array, along, is_masked, manual_axes, sizes_known, varying

MEMORY = 2**29
"""The bytes that the logits of a chunk may take. On an H100 chunks of this size cost 2 to 4 % of the products' time."""

RESHARDED_MEMORY = 2**31
"""The same on each of devices that re-shard, where XLA's own partitioning takes more. A chunk costs them more: its
communication, and a sum of the whole kernel's gradient, read and written while there is little else to do."""

FEWEST = 2048
"""Products of few tokens wait for the kernel to be read, and for the sum of its gradient to be read and written: an
H100 does 300 multiplications a byte."""

MULTIPLE = 256
"""Chunks are multiples of what the matrix products of a GPU are tiled by."""


def chunk_size(tokens: int, classes: int, itemsize: int, memory: int = MEMORY, fewest: int = FEWEST) -> int:
    """How many tokens a chunk has, if its logits of `itemsize` bytes may take about so much memory.

    The width of the hidden states does not matter: the products of a chunk, and the traffic of the kernel and of its
    gradient that each chunk costs, all grow with it. The chunks are as equal as multiples allow.
    """
    largest = largest_chunk(classes, itemsize, memory, fewest)
    if not isinstance(tokens, int):
        return min(largest, FEWEST // 2)  # they are padded to whole chunks
    return max(1, min(tokens, math.ceil(equal_size(tokens, largest) / MULTIPLE) * MULTIPLE))


def largest_chunk(classes: int, itemsize: int, memory: int, fewest: int) -> int:
    """How many tokens a chunk has at most, however they are divided."""
    if not isinstance(classes, int):  # a size that only the call of an exported program knows
        return fewest
    return max(fewest, memory // max(1, classes * itemsize) // MULTIPLE * MULTIPLE)


def equal_size(count: int, largest: int) -> int:
    """How many a chunk has of so many, if as few chunks as can be are as equal as can be."""
    return math.ceil(count / max(1, math.ceil(count / largest)))


APART_FROM = 2**26
"""The bytes of a sum from which on the first of several chunks is apart from the loop over the others. It writes the
sum, and no zeros are written before and read again. On a GPU smaller sums are in the caches, and a loop alone is
compiled in half the time."""


@dataclasses.dataclass(frozen=True)
class Result:
    """What a step gives of each row.

    Attributes:
        dtype: of its numbers.
        axes: the mesh axes of a `shard_map` that it varies over.
        shape: that of a row.
        of_masked_row: what a row that is masked has.
    """

    dtype: jnp.dtype
    axes: tuple[str, ...]
    shape: tuple[int, ...] = ()
    of_masked_row: int = 0

    def initial(self, rows: int) -> Array:
        """That of rows which are all masked."""
        return varying(self.axes, jnp.full((rows, *self.shape), self.of_masked_row, self.dtype))


class Overlapping:
    """Chunks of rows that follow each other.

    The last chunk begins early enough to be whole, so nothing is padded. It comes first: the rows that it shares with
    the one before, which it does not count, are written over by that.
    """

    def __init__(self, rows: int, size: int):
        self.rows, self.size, self.chunks = rows, size, math.ceil(rows / size)

    def _begin(self, chunk: Array) -> Array:
        return (self.chunks - 1 - chunk) * self.size

    def _start(self, chunk: Array) -> Array:
        return jnp.minimum(self._begin(chunk), self.rows - self.size)

    def split(self, array: Array, _: float) -> Array:
        """The array of all rows, in the form that `take` and `put` work on."""
        return array

    def joined(self, array: Array) -> Array:
        """The reverse."""
        return array

    def take(self, array: Array, chunk: Array) -> Array:
        """The rows of a chunk."""
        return jax.lax.dynamic_slice_in_dim(array, self._start(chunk), self.size)

    def put(self, array: Array, of_chunk: Array, chunk: Array) -> Array:
        """The array with a chunk's rows in place."""
        return jax.lax.dynamic_update_slice_in_dim(array, of_chunk, self._start(chunk), 0)

    def weight(self, weight: Array, chunk: Array) -> Array:
        """The weights of a chunk's rows, those masked that another chunk counts."""
        own = self.take(weight, chunk)
        if self.rows % self.size == 0:
            return own
        elsewhere = jnp.arange(self.size) < self._begin(chunk) - self._start(chunk)
        return jnp.where(along(elsewhere, own), MASKED, own)


class Strided:
    """Chunks of every so many-th row.

    Where XLA's partitioner has split the rows over devices, all of them then have a share of every chunk, and an equal
    one: custom calls on unequal shares fail to compile. Which devices these are is not known here.
    """

    def __init__(self, rows: int, size: int):
        equal, devices = math.ceil(rows / math.ceil(rows / size)), jax.device_count()
        self.size = math.ceil(equal / devices) * devices
        self.rows, self.chunks = rows, math.ceil(rows / self.size)

    def split(self, array: Array, filling: float) -> Array:
        """The array of all rows, in the form that `take` and `put` work on."""
        padding = [(0, self.chunks * self.size - self.rows)] + [(0, 0)] * (array.ndim - 1)
        padded = jnp.pad(array, padding, constant_values=filling)
        return padded.reshape(self.size, self.chunks, *array.shape[1:])

    def joined(self, array: Array) -> Array:
        """The reverse."""
        return array.reshape(-1, *array.shape[2:])[: self.rows]

    def take(self, array: Array, chunk: Array) -> Array:
        """The rows of a chunk."""
        return jax.lax.dynamic_index_in_dim(array, chunk, 1, keepdims=False)

    def put(self, array: Array, of_chunk: Array, chunk: Array) -> Array:
        """The array with a chunk's rows in place."""
        return jax.lax.dynamic_update_index_in_dim(array, of_chunk, chunk, 1)

    weight = take


class Padded:
    """Chunks of rows that follow each other, for a number of rows that only the call of an exported program knows."""

    def __init__(self, rows, size: int):
        self.rows, self.size, self.chunks = rows, size, (rows + size - 1) // size

    def split(self, array: Array, filling: float) -> Array:
        """The array of all rows, in the form that `take` and `put` work on."""
        padding = [(0, self.chunks * self.size - self.rows)] + [(0, 0)] * (array.ndim - 1)
        return jnp.pad(array, padding, constant_values=filling)

    def joined(self, array: Array) -> Array:
        """The reverse."""
        return array[: self.rows]

    def take(self, array: Array, chunk: Array) -> Array:
        """The rows of a chunk."""
        return jax.lax.dynamic_slice_in_dim(array, chunk * self.size, self.size)

    def put(self, array: Array, of_chunk: Array, chunk: Array) -> Array:
        """The array with a chunk's rows in place."""
        return jax.lax.dynamic_update_slice_in_dim(array, of_chunk, chunk * self.size, 0)

    weight = take


def _as_they_are(results: Sequence[Array]) -> tuple[Array, ...]:
    return tuple(results)


@dataclasses.dataclass(frozen=True)
class Collectives:
    """The communication of devices that work on a part of the tokens or of the classes each.

    The results of each chunk are made one chunk late, those of the last after the sums: work beside this communication.

    Attributes:
        gathered: rows of this device to those of all that work on them, too, along a new first axis.
        kept: results to this device's part of them.
        anywhere: whether something is so on any of these devices.
        complete: what is done with the sums that needs no other device.
        sums: then what does.
        finalize: `Stages.finalize` for the last chunk.
    """

    gathered: Callable[[Array], Array]
    kept: Callable[[tuple[Array, ...]], tuple[Array, ...]]
    anywhere: Callable[[Array], Array]
    complete: Callable[[Sequence[Array]], Sequence[Array]]
    sums: Callable[[Sequence[Array]], Sequence[Array]]
    finalize: Callable[..., tuple[Array, ...]]


@dataclasses.dataclass(frozen=True)
class Stages:
    """What is done with the rows of a chunk.

    Attributes:
        forward: rows to what the chunk adds to the sums, and what its results are made of.
        finalize: that to the results.
        collectives: the communication. None where that is nothing, or where reverse mode comes.
    """

    forward: Callable[..., tuple[tuple[Array, ...], Any]]
    finalize: Callable[..., tuple[Array, ...]] = _as_they_are
    collectives: Collectives | None = None


def scan_chunks(
    stages: Stages,
    sums: Sequence[Array],
    results: Sequence[Result],
    rows: Sequence[Array],
    division: type[Overlapping] | type[Strided] | type[Padded],
    size: int,
    skip: bool,
    direct: bool,
) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    """The sums over all chunks, and the results of all rows.

    Args:
        stages: what is done with a chunk.
        sums: zeros, which the sums start from.
        results: what the results are.
        rows: arrays whose first axis is the rows; the last is their weight, or the weights of a row's tokens.
        division: how rows are divided.
        size: how many rows a chunk has at most.
        skip: whether a chunk of which every row is masked is not worked on.
        direct: whether reverse mode never comes here.
    """
    count = rows[0].shape[0]
    if isinstance(count, int):
        if count == 0:
            return tuple(sums), tuple(result.initial(0) for result in results)
        chunking = division(count, min(size, count))
    else:
        chunking = Padded(count, size)
    *others, weight = (chunking.split(array, MASKED if array is rows[-1] else 0) for array in rows)
    filled = tuple(chunking.split(result.initial(count), result.of_masked_row) for result in results)

    def rows_of(chunk, own_weight):
        return (*(chunking.take(array, chunk) for array in others), own_weight)

    def work_on(chunk, own_weight):
        shares, rest = stages.forward(rows_of(chunk, own_weight))
        return shares, stages.finalize(rest)

    def body(carry, chunk, skip):
        sums, filled = carry
        own_weight = chunking.weight(weight, chunk)

        def work(chunk, own_weight, sums):
            shares, of_chunk = work_on(chunk, own_weight)
            return tuple(map(jnp.add, sums, shares)), of_chunk

        def idle(chunk, own_weight, sums):
            del chunk, own_weight
            return sums, tuple(result.initial(chunking.size) for result in results)

        # Rematerialised: what reverse mode keeps of a chunk, if it comes here, is its number. Its logits, and even its
        # rows, are made again. Around the branch, of which it would keep all that a branch is of, the kernel for one.
        @functools.partial(jax.checkpoint, prevent_cse=False)
        def worked_on(chunk, own_weight, sums):
            if not skip:
                return work(chunk, own_weight, sums)
            return jax.lax.cond(is_masked(own_weight).all(), idle, work, chunk, own_weight, sums)

        sums, of_chunk = worked_on(chunk, own_weight, sums)
        return sums, _with_rows(chunking, filled, of_chunk, chunk)

    order, busy = jnp.arange(chunking.chunks), chunking.chunks
    several = not isinstance(busy, int) or busy > 1
    if skip and direct and several:
        # Only the chunks that have work, in their order. A branch would do, too, but XLA copies the sums around it.
        works = jax.vmap(lambda chunk: ~is_masked(chunking.weight(weight, chunk)).all())(order)
        works = stages.collectives.anywhere(works) if stages.collectives else works
        order = jnp.argsort(~works, stable=True)
        busy = works.sum()
    carry, first = (tuple(sums), filled), 0
    if stages.collectives:
        carry = _software_pipelined(stages, stages.collectives, chunking, others, weight, filled, order, busy)
    elif direct and isinstance(chunking.chunks, int):
        if any(sizes_known(total) and total.nbytes >= APART_FROM for total in sums):
            # What it adds to zeros is written: they are not, nor read. One chunk at least, even if all is masked.
            shares, of_chunk = work_on(order[0], chunking.weight(weight, order[0]))
            carry, first = (tuple(map(_like, shares, sums)), _with_rows(chunking, filled, of_chunk, order[0])), 1
        if several or not first:
            carry = jax.lax.fori_loop(first, busy, lambda i, carry: body(carry, order[i], skip=False), carry)
    else:
        carry = jax.lax.scan(lambda carry, chunk: (body(carry, chunk, skip), None), carry, order)[0]
    sums, filled = carry
    return tuple(sums), tuple(map(chunking.joined, filled))


def _like(share: Array, total: Array) -> Array:
    """A share of the type of the sum."""
    return varying(manual_axes(total), share.astype(total.dtype))


def _with_rows(chunking, filled, of_chunk, chunk):
    """The results with those of a chunk in place."""
    return tuple(chunking.put(*pair, chunk) for pair in zip(filled, of_chunk, strict=True))


def _software_pipelined(
    stages: Stages, collectives: Collectives, chunking, others, weight: Array, filled, order: Array, busy
):
    """The sums and results of the first `busy` chunks of `order`, one at least, on devices that communicate."""
    # All rows at once, beside nothing that needs all multiprocessors. Beside a matrix product a device that begins to
    # gather before another holds some of its own until the other's product has ended.
    gathered = tuple(map(collectives.gathered, (*others, weight)))

    def rows_of(chunk):
        def of_device(*arrays):
            *others, weight = arrays
            return (*(chunking.take(array, chunk) for array in others), chunking.weight(weight, chunk))

        return tuple(rows.reshape(-1, *rows.shape[2:]) for rows in jax.vmap(of_device)(*gathered))

    def step(i, carry):
        sums, filled, rest = carry
        # The logits of a chunk take the memory of the gradient of those before.
        of_chunk, rows = jax.lax.optimization_barrier((stages.finalize(rest), rows_of(order[i])))
        shares, rest = stages.forward(rows)
        return (
            tuple(map(jnp.add, sums, shares)),
            _with_rows(chunking, filled, collectives.kept(of_chunk), order[i - 1]),
            rest,
        )

    shares, rest = stages.forward(rows_of(order[0]))
    carry = shares, filled, rest
    if chunking.chunks > 1:
        carry = jax.lax.fori_loop(1, busy, step, carry)
    sums, filled, rest = carry
    # Else XLA would make the results first, for they free memory, and tell of the last ones before the sums.
    sums, filled, rest = jax.lax.optimization_barrier((collectives.complete(sums), filled, rest))
    sums, of_chunk = jax.lax.optimization_barrier((collectives.sums(sums), collectives.finalize(rest)))
    return sums, _with_rows(chunking, filled, collectives.kept(of_chunk), order[jnp.maximum(busy - 1, 0)])
