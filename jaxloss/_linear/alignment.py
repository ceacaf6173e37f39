"""Widths that tensor cores take: features and classes are padded while a device works, if they are no multiple of 8.

A product of 16-bit operands runs at full speed if the rows of all three of its matrices begin at multiples of 16 bytes.
These rows are of `D` features or of `V` classes, and each of the two is the row of a matrix, however the kernel lies:

| product                  | hidden, or its gradient | logits, or theirs | kernel `[D, V]` | kernel `[V, D]` |
|--------------------------|-------------------------|-------------------|-----------------|-----------------|
| logits                   | `D`                     | `V`               | `V`             | `D`             |
| gradient of hidden       | `D`                     | `V`               | `V`             | `D`             |
| gradient of the kernel   | `D`                     | `V`               | `V`             | `D`             |

So both are padded. The kernel is copied once for all chunks, hidden states as a chunk of them is read. Classes of the
padding are masked as `num_classes` masks them, features are 0, and the gradients of both are cut off.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from jaxloss._arrays import Array, promoted
from jaxloss._linear.plan import Plan
from jaxloss._linear.split import Roles, Split

MULTIPLE = 8
"""Of 16-bit numbers: 16 bytes."""

FASTEST = 64
"""The same for products that are faster still. At N, D, V = 16384, 2048, 50257 value and gradients take 1.13 times the
products at 50264 on an H200 if classes are padded to a multiple of 8, and 1.08 to one of 64."""

MOST_PADDING = 0.02
"""Of a width, to reach the latter."""

FEWEST_TOKENS = 512
"""The copy of the kernel and the slice of its gradient move 4 bytes a number each, at 4.3 TB/s on an H200. At N, D, V =
16384, 2048, 50257 its products run at 200 TFLOP/s, at 16384, 2048, 50264 at 620. So padding is ahead from 140 tokens on
if one product is all there is, and from 90 with gradients; 512 leaves room for other cards and smaller differences."""

NARROWEST = 128
"""Products of fewer features or classes wait for the memory of an H200 at either speed: one of `D` features does `D`
multiplications for each logit that it writes, and 200 TFLOP/s to 4.3 TB/s are 47."""

ROLES = frozenset({"v", "d", "e"})
"""Of the axes of features and classes."""

forced: bool | None = None
"""For tests: whether all plans from now on are aligned, on every platform; None leaves it to `aligning_platforms`."""


def aligning_platforms(tokens: int, features: int, classes: int, dtype) -> tuple[str, ...]:
    """The platforms on which products of so many tokens, in this type, are faster with widths that are padded.

    It is CUDA or none. Elsewhere nothing is known to gain by it, least of all CPUs. Products of float32 and float64 are
    not much slower at odd widths. Of few tokens, or of narrow ones, the products take no longer than the padding; a
    size that only the call of an exported program knows may be of either kind.
    """
    sizes = tokens, features, classes
    if jnp.dtype(dtype).itemsize != 2 or not all(isinstance(size, int) for size in sizes):
        return ()
    if tokens < FEWEST_TOKENS or min(features, classes) < NARROWEST:
        return ()
    return ("cuda",) if features % MULTIPLE or classes % MULTIPLE else ()


def where_faster(plan: Plan, of_device: Callable[[Plan], Callable[..., tuple[Array, ...]]]):
    """The work of one device, `of_device` of a plan, on aligned widths where `aligning_platforms` says so.

    Like that work it is given how devices split it, and whether they may have split the tokens without its knowledge;
    then operands. Which platform it is for is known once it is lowered: both are traced, and one is compiled.
    """
    plain, aligned = (of_device(dataclasses.replace(plan, aligned=aligned)) for aligned in (False, True))

    def work(split: Split, strided: bool, *operands: Array) -> tuple[Array, ...]:
        if plan.aligned is not None:
            return (aligned if plan.aligned else plain)(split, strided, *operands)
        hidden, kernel, *_ = operands
        tokens = math.prod((*hidden.shape[:-1], *map(jax.lax.axis_size, split.resharded)))
        classes = kernel.shape[plan.classes_axis]
        platforms = aligning_platforms(tokens, hidden.shape[-1], classes, promoted(hidden.dtype, kernel.dtype))
        if not platforms:
            return plain(split, strided, *operands)
        each, default = (functools.partial(of, split, strided) for of in (aligned, plain))
        # Rematerialised: reverse mode saves what either of them would, and the padded kernel is made again for a copy.
        each = jax.checkpoint(each, prevent_cse=False)
        return jax.lax.platform_dependent(*operands, default=default, **dict.fromkeys(platforms, each))

    return work


def padding(size: int) -> int:
    """By how much such a width is padded: not at all if it is a multiple of 8."""
    to_fastest = -size % FASTEST
    return to_fastest if size % MULTIPLE and to_fastest <= MOST_PADDING * size else -size % MULTIPLE


def padded(array: Array, roles: Roles) -> Array:
    """The array with zeros after its features and classes, where these are no multiple."""
    missing = [
        padding(size) if role in ROLES and isinstance(size, int) else 0
        for role, size in zip(roles, array.shape, strict=True)
    ]
    return jnp.pad(array, [(0, count) for count in missing]) if any(missing) else array


def without_padding(array: Array, shape: Sequence[int]) -> Array:
    """The part of it that has this shape."""
    return array if array.shape == tuple(shape) else array[tuple(map(slice, shape))]
