"""The same call gives the same bits: in every run, on any number of threads, in any process, with `jit` and without."""

import hashlib
import json
import os
import subprocess
import sys
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

import losses
from jaxloss._ffi import call
from trust import ROOT
from trust.campaign import Campaign, Effort, by_kernels
from trust.jobs import Part, environment

RUNS, QUICK_RUNS = 1000, 50
SHAPES = ((2000, 37), (16, 20_011))
"""Of many short rows and of few long ones: shared out over threads in groups of rows, and row by row."""

PROCESSORS = (1, 2, 4)
UNMEASURED = "--xla_gpu_autotune_level=0"
"""XLA's flag under which it does not choose by measurement."""


def campaign(effort: Effort) -> Campaign:
    return Campaign(
        [
            partial(by_kernels, _processes, effort.count(2 if effort.on_gpu else 10, 2), effort.on_gpu),
            partial(by_kernels, _runs, effort.count(RUNS, QUICK_RUNS), effort.seconds(0.15)),
            partial(by_kernels, _eager_and_jitted, effort.seconds(0.1)),
        ]
    )


def _calls():
    """Every loss of the table by its kernels, value and gradient."""
    for case in losses.MATRIX:
        for shape in SHAPES:
            x, a = case.sample(shape)
            yield case, jax.value_and_grad(case.loss), (x, a)


def bits(results) -> str:
    """A number of the bits of arrays."""
    total = hashlib.sha256()
    for leaf in jax.tree.leaves(results):
        total.update(np.ascontiguousarray(leaf).tobytes())
    return total.hexdigest()


def _runs(runs: int, seconds: float) -> Part:
    finds, count, start = [], 0, time.monotonic()
    for case, function, operands in _calls():
        if time.monotonic() - start > seconds:
            break
        step, (x, a) = jax.jit(function), map(jnp.asarray, operands)
        first = step(x, a)
        same = jax.jit(_same_bits)
        different = sum(not same(step(x, a), first) for _ in range(runs))
        count += 1
        if different:
            finds.append(f"{case} {x.shape}: {different} of {runs} runs have other bits")
    return Part("value and gradient again and again", {"programs": count, "runs of each": runs}, finds)


def _same_bits(results, others):
    """Whether the arrays of both have the same bits."""

    def words(x):
        return x.view(f"uint{8 * x.dtype.itemsize}")

    pairs = zip(jax.tree.leaves(results), jax.tree.leaves(others), strict=True)
    return jnp.stack([(words(p) == words(q)).all() for p, q in pairs]).all()


def _eager_and_jitted(seconds: float) -> Part:
    """The gradient alone: what XLA adds up in a jitted value it may add up in another order."""
    finds, count, start = [], 0, time.monotonic()
    for case in losses.CASES:
        for shape in SHAPES:
            if time.monotonic() - start > seconds:
                break
            x, a = map(jnp.asarray, case.sample(shape))
            eager, jitted = case.loss.gradient(x, a), jax.jit(case.loss.gradient)(x, a)
            count += 1
            if bits(eager) != bits(jitted):
                finds.append(f"{case} {shape}: the eager gradient has other bits than the jitted one")
    return Part("gradients, eager and jitted", {"pairs": count}, finds)


def _processes(times: int, on_gpu: bool = False) -> Part:
    """Value and gradient in processes that see so many processors, as many as XLA then takes threads on a CPU.

    On a GPU XLA measures, as it compiles, how to sum the losses of rows: in each process it may choose another order.
    """
    available = sorted(os.sched_getaffinity(0))
    finds, seen = [], {}
    counts = [len(available)] if on_gpu else [count for count in PROCESSORS if count <= len(available)]
    variables = environment(XLA_FLAGS=f"{os.environ.get('XLA_FLAGS', '')} {UNMEASURED}".strip()) if on_gpu else None
    for count in counts:
        for _ in range(times):
            command = [
                "taskset",
                "-c",
                ",".join(map(str, available[:count])),
                sys.executable,
                "-m",
                "trust.repeatability",
            ]
            ran = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, check=False)
            if ran.returncode:
                finds.append(f"{' '.join(command)}:\n{ran.stderr[-3000:]}")
                continue
            for name, digest in json.loads(ran.stdout.splitlines()[-1]).items():
                if seen.setdefault(name, digest) != digest:
                    finds.append(f"{name}: other bits on {count} processors")
    note = f"on {', '.join(map(str, counts))} processors: this machine has {len(available)}"
    note += f"; with {UNMEASURED}" if on_gpu else ""
    return Part("value and gradient in processes of their own", {"processes": times * len(counts)}, finds, note)


def _digests() -> dict[str, str]:
    call.FALLBACK_SIZE = 0
    return {f"{case} {x.shape}": bits(jax.jit(function)(x, a)) for case, function, (x, a) in _calls()}


if __name__ == "__main__":
    print(json.dumps(_digests()))
