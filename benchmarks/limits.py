"""The time that memory alone takes: to read a row's own operands, and to read them and write as much as the first.

The same program differs by up to 7 % between buffers of one size, by where their pages lie, for as long as a process
keeps them (H100): so these programs read the very arrays that the losses read. No reduction by XLA is always the
fastest read there is, nor its negation the fastest copy, so each is the fastest of a few programs that move the same
bytes. Which one it was is kept with the time.
"""

import dataclasses
import functools
import itertools
import math
import os
from collections.abc import Callable

import jax
import jax.numpy as jnp

from benchmarks.timing import Program, in_turn, timing

ROW = 8192  # numbers
SMALL = 2**20  # bytes; below, a time is that of a launch


def _floats(x):
    return x.astype(jnp.float32)


def _bits(x):
    return jax.lax.bitcast_convert_type(x, f"uint{8 * x.dtype.itemsize}")


def _by_rows(reduction, numbers):
    """Reduces rows first, then them and what is left. The barrier keeps XLA from making one reduction of the two."""
    numbers = numbers.reshape(-1)
    whole = numbers.size // ROW * ROW
    of_rows = reduction(numbers[:whole].reshape(-1, ROW), axis=-1)
    return reduction(jnp.concatenate([jax.lax.optimization_barrier(of_rows), numbers[whole:]]))


# By the number of operands. A read makes one number of all that it reads, as the value of a loss is one.
READS = {
    1: {"sum": lambda x: jnp.sum(_floats(x)), "maximum of bits": lambda x: jnp.max(_bits(x))},
    2: {
        "sum of x + a": lambda x, a: jnp.sum(_floats(x) + _floats(a)),
        "sum of x + sum of a": lambda x, a: jnp.sum(_floats(x)) + jnp.sum(_floats(a)),
        "maximum of x ^ a": lambda x, a: jnp.max(_bits(x) ^ _bits(a)),
    },
}
READS_BY_ROWS = {
    1: {
        "sums of rows": lambda x: _by_rows(jnp.sum, _floats(x)),
        "maxima of rows": lambda x: _by_rows(jnp.max, x),
        "maxima of rows of bits": lambda x: _by_rows(jnp.max, _bits(x)),
    },
    2: {
        "sums of rows of x + a": lambda x, a: _by_rows(jnp.sum, _floats(x) + _floats(a)),
        "maxima of rows of x ^ a": lambda x, a: _by_rows(jnp.max, _bits(x) ^ _bits(a)),
    },
}
COPIES = {
    1: {
        "negation": lambda x: -x,
        "copy": jnp.copy,  # the runtime's own, which torch's `copy_` is too
        "sign flip of bits": lambda x: _bits(x) ^ _bits(jnp.asarray(-0.0, x.dtype)),
    },
    2: {"x + a": lambda x, a: x + a, "x ^ a": lambda x, a: _bits(x) ^ _bits(a)},
}


def cache_bytes() -> int:
    """Of the last cache before memory: 50 MB on an H100 and an H200."""
    if jax.default_backend() != "cpu":
        return 50 * 2**20
    known = os.sysconf("SC_LEVEL3_CACHE_SIZE") if "SC_LEVEL3_CACHE_SIZE" in os.sysconf_names else 0
    return known if known > 0 else 32 * 2**20


def sets_of_operands(nbytes: int) -> int:
    """How many sets of operands to go through in turn, so that none is found in a cache.

    One where they are much larger than it, or so small that the time is that of a launch.
    """
    return 1 if nbytes < SMALL else max(1, -(-4 * cache_bytes() // nbytes))


@dataclasses.dataclass(frozen=True)
class Limit:
    """The fastest read and the fastest copy ("read", "copy") of some operands.

    Attributes:
        programs: the two.
        by: their names.
        read: bytes that both read.
        written: bytes that the copy writes.
    """

    programs: dict[str, Program]
    by: dict[str, str]
    read: int
    written: int

    def read_share(self, nbytes: float) -> float:
        """What to multiply the time of the read by, to have that of so many bytes."""
        return _share(nbytes, self.read)

    def copy_share(self, nbytes: float) -> float:
        """The same for the time of the copy, with so many bytes read and written together."""
        return _share(nbytes, self.read + self.written)


def _share(nbytes: float, measured: int) -> float:
    return nbytes / measured if measured > SMALL else 1.0  # a launch takes as long for fewer bytes


def limit_of(operands: list[tuple[jax.Array, ...]]) -> Limit:
    """Of sets of one or two operands of one shape and type, which calls go through in turn."""
    first = operands[0]
    x = first[0]
    programs, by = {}, {}
    for what, functions in _functions(x.shape, len(first)).items():
        candidates = {
            name: _program(_executable(function, x.shape, x.dtype.name, len(first)), operands)
            for name, function in functions.items()
        }
        times = in_turn(candidates, repeats=3, seconds=0.01)
        by[what] = min(candidates, key=lambda name, times=times: timing(times[name]).ms)
        programs[what] = candidates[by[what]]
    return Limit(programs, by, sum(each.nbytes for each in first), x.nbytes)


def compilations(shape: tuple[int, ...], dtype: str, operands: int) -> set[tuple]:
    """What `limit_of` will need compiled: functions and arguments, to be called on as many threads as there are."""
    reads_and_copies = _functions(shape, operands).values()
    return {
        (_executable, function, shape, dtype, operands)
        for functions in reads_and_copies
        for function in functions.values()
    }


def _functions(shape: tuple[int, ...], operands: int) -> dict[str, dict[str, Callable]]:
    by_rows = READS_BY_ROWS[operands] if math.prod(shape) >= ROW else {}
    return {"read": READS[operands] | by_rows, "copy": COPIES[operands]}


@functools.cache
def _executable(function: Callable, shape: tuple[int, ...], dtype: str, operands: int) -> jax.stages.Compiled:
    return jax.jit(function).lower(*operands * [jax.ShapeDtypeStruct(shape, dtype)]).compile()


def _program(executable: jax.stages.Compiled, operands: list[tuple[jax.Array, ...]]) -> Program:
    turns = itertools.cycle(operands)
    return Program(lambda: executable(*next(turns)))
