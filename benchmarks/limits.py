"""The time that memory alone takes: to read so many bytes, and to read them and write as many, or half as many.

Neither a sum nor a negation by XLA is always the fastest there is, so each is the fastest of a few programs that move
the same bytes: sums and maxima; a negation, the runtime's own copy (which is torch's `copy_` too), and a swap of signs
in words of integers. Which one it was is kept with the time.
"""

import functools
import itertools
import os

import jax
import jax.numpy as jnp

from benchmarks.timing import Program, in_turn, timing

ROW = 8192  # words
SMALL = 2**20  # bytes; below, a time is that of a launch

READS = {
    "sum": lambda words: words.sum(),
    "sums of rows": lambda words: words.reshape(-1, ROW).sum(-1),
    "maxima of rows": lambda words: words.reshape(-1, ROW).max(-1),
}
COPIES = {
    "negation": lambda words: -words,
    "copy": jnp.copy,
    "negation of integers": lambda words: jax.lax.bitcast_convert_type(words, jnp.int32) ^ (-(2**31)),
}
ADDITIONS = {
    "sum of two": lambda x, a: x + a,
    "exclusive or of two": lambda x, a: (
        jax.lax.bitcast_convert_type(x, jnp.int32) ^ jax.lax.bitcast_convert_type(a, jnp.int32)
    ),
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


class Limit:
    """Reading `read` bytes, and reading them and writing `written`: the same, or half (of two operands read)."""

    def __init__(self, read: int, written: int):
        count = sets_of_operands(read)
        keys = jax.random.split(jax.random.key(1), 2 * count)
        words = _words(read)
        self._read = 4 * words
        whole = [(_random(words)(key),) for key in keys[:count]]
        self.reads = {name: _program(_executable(name, words), whole) for name in READS}
        if written == read:
            self._moved = 2 * self._read
            self.copies = {name: _program(_executable(name, words), whole) for name in COPIES}
        else:
            words = _words(written)
            self._moved = 3 * 4 * words
            random = _random(words)
            pairs = [(random(keys[2 * i]), random(keys[2 * i + 1])) for i in range(count)]
            self.copies = {name: _program(_executable(name, words), pairs) for name in ADDITIONS}

    @functools.cached_property
    def fastest(self) -> tuple[str, str]:
        """The names of the fastest read and the fastest copy."""

        def best(programs: dict[str, Program]) -> str:
            if len(programs) == 1:
                return next(iter(programs))
            times = in_turn(programs, repeats=5, seconds=0.01)
            return min(times, key=lambda name: timing(times[name]).ms)

        return best(self.reads), best(self.copies)

    def programs(self) -> dict[str, Program]:
        """The fastest read and copy."""
        read, copy = self.fastest
        return {"read": self.reads[read], "copy": self.copies[copy]}

    def read_share(self, nbytes: float) -> float:
        """What to multiply the time of `read` by, to have that of so many bytes."""
        return _share(nbytes, self._read)

    def copy_share(self, nbytes: float) -> float:
        """The same for the time of `copy`, with so many bytes read and written together."""
        return _share(nbytes, self._moved)


def _share(nbytes: float, measured: int) -> float:
    return nbytes / measured if measured > SMALL else 1.0  # a launch takes as long for fewer bytes


def _words(nbytes: int) -> int:
    return -(-nbytes // 4 // ROW) * ROW


@functools.cache
def _random(words: int) -> jax.stages.Compiled:
    key = jax.eval_shape(jax.random.key, 0)
    return jax.jit(lambda key: jax.random.normal(key, (words,))).lower(key).compile()


@functools.cache
def _executable(name: str, words: int) -> jax.stages.Compiled:
    operand = jax.ShapeDtypeStruct((words,), jnp.float32)
    operands = (operand, operand) if name in ADDITIONS else (operand,)
    return jax.jit((READS | COPIES | ADDITIONS)[name]).lower(*operands).compile()


def _program(executable: jax.stages.Compiled, operands: list[tuple[jax.Array, ...]]) -> Program:
    turns = itertools.cycle(operands)
    return Program(lambda: executable(*next(turns)))


@functools.lru_cache(maxsize=2)
def _limit(read: int, written: int) -> Limit:
    return Limit(read, written)


def _sizes(prediction_bytes: int, operands: int) -> tuple[int, int]:
    written = int(float(f"{prediction_bytes:.2g}"))
    return operands * written, written


def limit_of(prediction_bytes: int, operands: int) -> Limit:
    """Of a loss of that prediction, and of one or two operands of its size; rows of nearly the same size share one."""
    return _limit(*_sizes(prediction_bytes, operands))


def compilations(prediction_bytes: int, operands: int) -> set[tuple]:
    """What `limit_of` will need compiled: functions and arguments, to be called on as many threads as there are."""
    read, written = (_words(nbytes) for nbytes in _sizes(prediction_bytes, operands))
    others = COPIES if operands == 1 else ADDITIONS
    return {
        *((_executable, name, read) for name in READS),
        *((_executable, name, written) for name in others),
        (_random, read),
        (_random, written),
    }
