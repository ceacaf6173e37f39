"""How long the collectives of a compiled step take by themselves."""

import dataclasses
import functools
import time
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks import exchanges
from benchmarks import timing as clock
from benchmarks.timing import Timing

# A GPU at its power limit takes about a second to the clock that it keeps. A loop must be long beside what it costs to
# start, and beside the time in which that clock follows what the GPU does.
WARM_UP_SECONDS, LOOP_SECONDS, LOOPS = 1.0, 0.2, 7


def loops_in_turn(steps: Mapping[str, tuple]) -> dict[str, list[float]]:
    """Milliseconds a call of steps, each given with its operands, of several loops, at which they take turns.

    On virtual devices a call waits for the one before: they would take its threads.
    """
    on_cpu = jax.default_backend() == "cpu"
    called = {
        name: functools.partial(_waited, *step) if on_cpu else functools.partial(*step) for name, step in steps.items()
    }
    programs = {name: clock.Program(call) for name, call in called.items()}
    for program in programs.values():
        program.loop(1)  # a step may be compiled by its first call, which warms nothing up
    start = time.monotonic()
    while not on_cpu and time.monotonic() < start + WARM_UP_SECONDS:
        for program in programs.values():
            program.loop(3)
    return clock.in_turn(programs, *((LOOPS, LOOP_SECONDS) if not on_cpu else ()))


def _waited(step, *operands):
    return jax.block_until_ready(step(*operands))


def timed(step, *operands) -> Timing:
    """The time of one of them."""
    return clock.timing(loops_in_turn({"": (step, *operands)})[""])


def alone(collective: exchanges.Collective, mesh: Mesh) -> float:
    """The milliseconds of one such collective of as many bytes, all of one type.

    Of a small one it is a share of several in a row, for its start counts: each has a factor, which takes microseconds.
    A large one is given an array made for it, which it need not keep, and the time of making that is taken off.
    """
    kinds = {"bf16": jnp.bfloat16, "f16": jnp.float16, "s32": jnp.int32}
    dtype = kinds.get(max(collective.results, key=lambda result: result[1])[0], jnp.float32)
    size = collective.bytes // jnp.dtype(dtype).itemsize
    repeats, devices = 16 if collective.bytes < 2**20 else 1, collective.devices
    of_device = {"all-gather": size // devices, "reduce-scatter": size * devices}.get(collective.kind, size)
    if collective.kind == "all-to-all":
        of_device -= of_device % devices
    round_the_ring = [(device, (device + 1) % devices) for device in range(devices)]
    run_one = {
        "all-gather": lambda x: jax.lax.all_gather(x, "d", tiled=True),
        "reduce-scatter": lambda x: jax.lax.psum_scatter(x, "d", tiled=True),
        "all-reduce": lambda x: jax.lax.psum(x, "d"),
        "all-to-all": lambda x: jax.lax.all_to_all(x, "d", 0, 0, tiled=True),
        "collective-permute": lambda x: jax.lax.ppermute(x, "d", round_the_ring),
    }[collective.kind]

    # The factor differs between devices, for all that XLA knows: it would do without a sum of what all of them hold.
    @functools.partial(jax.shard_map, mesh=mesh, in_specs=(P("d"), P("d")), out_specs=P("d"), check_vma=False)
    def run(x, factor):
        for _ in range(repeats - 1):
            told = run_one(x) * factor
            x = jnp.tile(told, devices) if collective.kind == "reduce-scatter" else told[:of_device]
        return run_one(x * factor)

    place = NamedSharding(mesh, P("d"))
    sizes = devices * of_device, devices
    x, factor = jax.jit(lambda: [jnp.ones((size,), dtype) for size in sizes], out_shardings=[place, place])()
    found = timed(jax.jit(run), x, factor).ms / repeats
    if repeats > 1:
        return found
    made = jax.shard_map(lambda x, factor: x * factor, mesh=mesh, in_specs=(P("d"), P("d")), out_specs=P("d"))
    return max(0.0, found - timed(jax.jit(made), x, factor).ms)


def communication(found: list[exchanges.Collective], mesh: Mesh, known: dict | None) -> list[dict]:
    """The collectives of a step, each with its time alone unless `known`, which has those timed before, is None."""
    described = []
    for collective in found:
        row = dataclasses.asdict(collective) | {"bytes": collective.bytes, "bytes_sent": collective.bytes_sent}
        if known is not None:
            what = (collective.kind, collective.results, collective.devices)
            known[what] = known[what] if what in known else alone(collective, mesh)
            row["ms"] = known[what]
        described.append(row)
    return described


def total(collectives: list[dict], key: str) -> float:
    """Of a step, that of a collective times how often it runs; once where nobody knows."""
    return sum(collective[key] * (collective["times"] or 1) for collective in collectives)
