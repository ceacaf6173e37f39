"""Work on tokens, a chunk of them at a time, so that what is made of a chunk never exists for all of them.

A step takes sums so far and the rows of a chunk, and gives the sums with the chunk's share and results for its rows.
The last array of rows is the rows' weight.
"""

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from jaxloss._calls import TAKEN_OUT, Array, along, manual_axes, varying

Step = Callable[..., tuple[tuple[Array, ...], tuple[Array, ...]]]
Chunks = Callable[..., tuple[tuple[Array, ...], tuple[Array, ...]]]

MEMORY = 2**29
"""The bytes that the logits of a chunk may take. On an H100 chunks of this size cost 2 to 4 % of the products' time."""

FEWEST = 512
"""Products of fewer tokens wait for the kernel to be read, on an H100: it does 300 multiplications a byte."""

MULTIPLE = 256
"""Chunks are multiples of what the matrix products of a GPU are tiled by."""


def chunk_size(tokens: int, classes: int, itemsize: int, memory: int = MEMORY) -> int:
    """How many tokens a chunk has, if its logits of `itemsize` bytes may take about so much memory.

    The width of the hidden states does not matter: the products of a chunk and the traffic of the kernel and of its
    gradient, which each chunk reads anew, all grow with it. The chunks are as equal as multiples allow.
    """
    largest = max(FEWEST, memory // max(1, classes * itemsize) // MULTIPLE * MULTIPLE)
    equal = math.ceil(tokens / max(1, math.ceil(tokens / largest)))
    return max(1, min(tokens, math.ceil(equal / MULTIPLE) * MULTIPLE))


def overlapping(step: Step, sums: Sequence[Array], results: Sequence[Array], rows: Sequence[Array], size: int):
    """Runs `step` over chunks of rows that follow each other; nothing is copied to make their number even.

    Args:
        step: the work on one chunk.
        sums: what the sums start from.
        results: zeros of the shapes and types of all rows' results.
        rows: arrays whose first axis is the rows.
        size: how many rows a chunk has, at most all.
    """
    count = rows[0].shape[0]
    if count == 0:
        return tuple(sums), tuple(results)
    chunks = math.ceil(count / size)
    places = jnp.arange(size)

    def body(carry, chunk):
        sums, results = carry
        # The last chunk begins early enough to be whole. It comes first, so that the rows it shares with the one
        # before, which it must not count, are written over by that.
        begin = (chunks - 1 - chunk) * size
        start = jnp.minimum(begin, count - size)
        *others, weight = (jax.lax.dynamic_slice_in_dim(array, start, size) for array in rows)
        if count % size:
            weight = jnp.where(places < begin - start, jnp.asarray(TAKEN_OUT, weight.dtype), weight)
        sums, of_chunk = step(sums, (*others, weight))
        write = functools.partial(jax.lax.dynamic_update_slice_in_dim, start_index=start, axis=0)
        return (sums, tuple(write(*pair) for pair in zip(results, of_chunk, strict=True))), None

    return jax.lax.scan(body, (tuple(sums), tuple(results)), jnp.arange(chunks))[0]


def strided(step: Step, sums: Sequence[Array], results: Sequence[Array], rows: Sequence[Array], size: int):
    """The same over chunks of every so many-th row.

    Where XLA's partitioner has split the rows over devices, all of them then have a share of every chunk.
    """
    count = rows[0].shape[0]
    if count == 0:
        return tuple(sums), tuple(results)
    chunks = math.ceil(count / size)
    size = math.ceil(count / chunks)

    def in_chunks(array, filling):
        padded = jnp.pad(array, [(0, chunks * size - count)] + [(0, 0)] * (array.ndim - 1), constant_values=filling)
        return padded.reshape(size, chunks, *array.shape[1:])

    rows = tuple(in_chunks(array, TAKEN_OUT if array is rows[-1] else 0) for array in rows)
    results = tuple(in_chunks(array, 0) for array in results)

    def body(carry, chunk):
        sums, results = carry
        sums, of_chunk = step(sums, tuple(jax.lax.dynamic_index_in_dim(a, chunk, 1, keepdims=False) for a in rows))
        write = functools.partial(jax.lax.dynamic_update_index_in_dim, index=chunk, axis=1)
        return (sums, tuple(write(*pair) for pair in zip(results, of_chunk, strict=True))), None

    sums, results = jax.lax.scan(body, (tuple(sums), results), jnp.arange(chunks))[0]
    return sums, tuple(array.reshape(-1, *array.shape[2:])[:count] for array in results)


def zeros(shape: Sequence[int], dtype, axes: Sequence[str]) -> Array:
    """Zeros that vary over these axes of a `shard_map`."""
    return varying(axes, jnp.zeros(shape, dtype))


def without_masked_chunks(step: Step, results: Sequence[Array]) -> Step:
    """`step`, left out for a chunk of which every row is taken out."""

    def either(sums, rows):
        weight = rows[-1]

        def idle(sums, rows):
            return sums, tuple(
                zeros((weight.shape[0], *r.shape[1:]), r.dtype, manual_axes(r)) for r in results
            )

        return jax.lax.cond(jnp.all((weight == 0) & jnp.signbit(weight)), idle, step, sums, rows)

    return either
