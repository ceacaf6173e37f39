"""What a process on a GPU goes through: memory over calls and compilations, threads, running out of it, a sudden end.

On a CPU, of whose memory JAX tells nothing, it is the process that is watched, and nothing runs out.
"""

import gc
import json
import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

import jaxloss
import losses
from trust import lifetime
from trust.campaign import Campaign, Effort, by_kernels
from trust.jobs import Part, environment

FLAT = 2**20
"""Bytes by which a device's memory may grow: constants of programs that are compiled meanwhile."""

TOKENS, FEATURES = 4096, 256
"""Of the linear cross entropy whose memory is to be too small for all logits, and not for those of a sixteenth."""


def campaign(effort: Effort) -> Campaign:
    """Those that need most of the device's memory, or a part that is theirs, run alone."""
    together = (
        (_calls, effort.count(100_000, 2_000), effort.seconds(0.3)),
        (_compilations, effort.count(300, 6), effort.seconds(0.3)),
        (lifetime.threads_at_once, effort.count(100, 3)),
        (_devices, effort.count(100, 3)),
        (lifetime.exits, effort.count(2, 1)),
    )
    alone = ((_out_of_memory, effort.count(3, 1)), (_small_fraction,))
    return Campaign(*([partial(by_kernels, *job) for job in jobs] for jobs in (together, alone)))


def in_use() -> int:
    """The bytes of the device's memory that arrays and programs take; on a CPU those of the process."""
    gc.collect()
    statistics = jax.devices()[0].memory_stats()
    return statistics["bytes_in_use"] if statistics else lifetime.resident()


def watched(what: str, unit: str, count: int, seconds: float, step: Callable[[], int]) -> Part:
    """Steps, each of so many calls as it says, and by how much memory grew after the first fifth."""
    done, early, start = 0, None, time.monotonic()
    while done < count and time.monotonic() - start < seconds:
        done += step()
        if early is None and (done >= count / 5 or time.monotonic() - start > seconds / 5):
            early = in_use()
    grown = in_use() - (early or 0)
    limit = FLAT if jax.devices()[0].memory_stats() else lifetime.FLAT
    finds = [f"{what}: memory grew by {grown} bytes"] if grown > limit else []
    return Part(what, {unit: done}, finds, note=f"memory grew by {grown} bytes after the first fifth")


def _calls(count: int, seconds: float) -> Part:
    """Compiled values and gradients in turn, by kernels that rows of different lengths take."""
    steps = []
    for case in losses.CASES:
        for shape in ((64, 37), (8, 3000)):
            x, a = map(jnp.asarray, case.sample(shape))
            steps.append((jax.jit(jax.value_and_grad(case.loss)), x, a))

    def step() -> int:
        for _ in range(10):
            results = [function(x, a) for function, x, a in steps]
        jax.block_until_ready(results)
        return 10 * len(steps)

    return watched("memory over values and gradients", "calls", count, seconds, step)


def _compilations(count: int, seconds: float) -> Part:
    case = losses.CASES[2]
    x, a = map(jnp.asarray, case.sample((8, 16)))

    def step() -> int:
        jax.clear_caches()
        jax.block_until_ready(jax.jit(jax.value_and_grad(case.loss))(x, a))
        return 1

    return watched("memory over compilations with jax.clear_caches()", "compilations", count, seconds, step)


def _devices(rounds: int) -> Part:
    """Two devices from two threads at once, each with arrays of its own, against the first device alone."""
    devices = jax.devices()[:2]
    tried = "two devices from two threads"
    if len(devices) < 2:
        return Part(tried, {"calls": 0}, note="there is one device")
    case, finds = losses.CASES[2], []
    step = jax.jit(jax.value_and_grad(case.loss))
    samples = [case.sample((500, 1000 + i), seed=i) for i in range(2)]
    expected = [jax.tree.map(np.asarray, step(*jax.device_put(sample, devices[0]))) for sample in samples]

    def work(i: int) -> None:
        x, a = jax.device_put(samples[i], devices[i])
        for _ in range(rounds):
            results = step(x, a)
            if any(leaf.devices() != {devices[i]} for leaf in jax.tree.leaves(results)):
                finds.append(f"{case} on device {i}: its results are on another")
                return
            if not jax.tree.all(jax.tree.map(lambda p, q: bool((np.asarray(p) == q).all()), results, expected[i])):
                finds.append(f"{case} on device {i}: other numbers than on one device")
                return

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return Part(tried, {"calls": 2 * rounds}, finds)


def _out_of_memory(times: int) -> Part:
    """Logits that fit, and whose gradient does not: JAX's error, nothing left behind, and calls that work."""
    tried, statistics = "values and gradients that the memory is too small for", jax.devices()[0].memory_stats()
    if not statistics or not statistics.get("bytes_limit"):
        return Part(tried, {"calls": 0}, note="JAX tells no limit of this device's memory")
    rows = int(0.6 * (statistics["bytes_limit"] - statistics["bytes_in_use"])) // (4 * 4096)
    step = jax.jit(jax.value_and_grad(jaxloss.categorical_cross_entropy))
    small = jnp.ones((64, 4096)), jnp.zeros(64, int)
    right, finds, before = jax.tree.map(np.asarray, step(*small)), [], in_use()
    for i in range(times):
        large = jnp.zeros((rows, 4096)), jnp.zeros(rows, int)
        try:
            jax.block_until_ready(step(*large))
            finds.append(f"call {i}: {rows} × 4096 logits and their gradient fit into memory")
        except Exception as error:
            finds += [f"call {i}: {type(error).__name__}: {error}"] * ("RESOURCE_EXHAUSTED" not in str(error))
        del large
        after = in_use()
        if after > before + FLAT:
            finds.append(f"call {i}: {after - before} bytes are left behind")
        if not jax.tree.all(jax.tree.map(lambda p, q: bool((np.asarray(p) == q).all()), step(*small), right)):
            finds.append(f"call {i}: the next call has other numbers")
    return Part(tried, {"calls": times}, finds, note=f"{rows} × 4096 logits of float32")


FRACTION = """
    import gc, json
    import jax, jax.numpy as jnp
    import jaxloss

    device = jax.devices()[0]
    limit = device.memory_stats()["bytes_limit"]
    classes = limit // ({tokens} * 2) // 128 * 128
    hidden = jnp.ones(({tokens}, {features}), "bfloat16") / 16
    kernel = jnp.ones(({features}, classes), "bfloat16") / 16
    labels = jnp.arange({tokens}) % classes

    def call(chunk_size):
        loss = lambda hidden, kernel: jaxloss.linear_cross_entropy(hidden, kernel, labels, chunk_size=chunk_size)
        value, gradients = jax.jit(jax.value_and_grad(loss, (0, 1)))(hidden, kernel)
        return float(value), float(jnp.abs(gradients[0].astype("float32")).max())

    def in_use():
        gc.collect()
        return device.memory_stats()["bytes_in_use"]

    first, before, errors = call({chunk}), in_use(), []
    for _ in range(2):
        try:
            call({tokens})
            errors.append("")
        except Exception as error:
            errors.append(str(error))
    left, second = in_use() - before, call({chunk})
    print(json.dumps({{"limit": limit, "classes": classes, "errors": errors, "left": left,
                       "first": first, "second": second, "exact": float(jnp.log(classes))}}))
"""


def _small_fraction() -> Part:
    """A process that has so little of the memory that the temporaries of one chunk of all tokens do not fit."""
    tried = "linear cross entropy in a process with a small XLA_PYTHON_CLIENT_MEM_FRACTION"
    statistics = jax.devices()[0].memory_stats()
    if not statistics or not statistics.get("bytes_limit"):
        return Part(tried, {"calls": 0}, note="JAX tells no limit of this device's memory")
    of_device = statistics["bytes_limit"] / float(os.environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.75"))
    fraction = 3 * 2**30 / of_device
    variables = environment(XLA_PYTHON_CLIENT_MEM_FRACTION=f"{fraction:.4f}", XLA_PYTHON_CLIENT_PREALLOCATE="true")
    code = textwrap.dedent(FRACTION.format(tokens=TOKENS, features=FEATURES, chunk=TOKENS // 16))
    ran = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True, check=False)
    if ran.returncode:
        return Part(tried, {"calls": 0}, [f"status {ran.returncode}:\n{ran.stderr[-3000:]}"])
    said = json.loads(ran.stdout.splitlines()[-1])
    note = f"{said['limit']} bytes; {TOKENS} tokens, {said['classes']} classes of bfloat16"
    return Part(tried, {"calls": 2 + len(said["errors"])}, list(faults_of_fraction(said)), note)


def faults_of_fraction(said: dict) -> Iterator[str]:
    """What is wrong with what that process said."""
    for error in said["errors"]:
        if "RESOURCE_EXHAUSTED" not in error:
            yield f"a chunk of all tokens: {error or 'it fits into memory'}"
    if said["left"] > FLAT:
        yield f"{said['left']} bytes are left behind"
    if said["first"] != said["second"]:
        yield f"small chunks after the error: {said['second']}, and before it {said['first']}"
    if abs(said["first"][0] - said["exact"]) > 0.01:
        yield f"a loss of {said['first'][0]}: expected {said['exact']}, for all logits are equal"
