"""What a process goes through: a million calls, compilation again and again, threads, forks, an end in the midst."""

import gc
import multiprocessing
import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import threading
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

import losses
from trust import ROOT
from trust.campaign import Campaign, Effort, by_kernels
from trust.jobs import Part, environment

THREADS = 16
FLAT = 24 * 2**20
"""Bytes by which a process may grow between the first fifth of a part and its end: what allocators keep."""


def campaign(effort: Effort) -> Campaign:
    jobs = (
        (_calls_in_a_loop, effort.count(1_000_000, 20_000)),
        (_eager_calls, effort.count(20_000, 300)),
        (_compiles, effort.count(2_000, 12)),
        (threads_at_once, effort.count(200, 5)),
        (_children, "fork", effort.count(20, 2)),
        (_children, "spawn", effort.count(10, 1)),
        (exits, effort.count(50, 2)),
    )
    return Campaign([partial(by_kernels, *job) for job in jobs])


def resident() -> int:
    """The bytes of memory that this process holds."""
    gc.collect()
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def watched(what: str, unit: str, count: int, step, size: int) -> Part:
    """`count` calls, `size` at a time, and by how much the process grew after the first fifth of them."""
    done, early = 0, None
    while done < count:
        step()
        done += size
        if early is None and done >= count / 5:
            early = resident()
    grown = resident() - (early or 0)
    finds = [f"{what}: the process grew by {grown / 2**20:.1f} MiB"] if grown > FLAT else []
    return Part(what, {unit: done}, finds, note=f"the process grew by {grown / 2**20:.1f} MiB after the first fifth")


def _calls_in_a_loop(count: int) -> Part:
    """Calls of kernels from loops of compiled programs, a thousand each, of every loss in turn."""
    size, programs = 1000, []
    for case in losses.CASES:
        x, a = map(jnp.asarray, case.sample((8, 16)))

        def many(x, a, case=case):
            step = jax.value_and_grad(case.loss)
            return jax.lax.fori_loop(0, size, lambda _, x: x - 1e-3 * step(x, a)[1], x)

        programs.append((jax.jit(many), x, a))

    def step():
        for program, x, a in programs:
            program(x, a).block_until_ready()

    return watched("memory over calls of kernels in compiled loops", "calls", count, step, size * len(programs))


def _eager_calls(count: int) -> Part:
    cases = [(case, *map(jnp.asarray, case.sample((8, 16)))) for case in losses.CASES]

    def step():
        for case, x, a in cases:
            jax.block_until_ready(jax.value_and_grad(case.loss)(x, a))

    return watched("memory over eager values and gradients", "calls", count, step, len(cases))


def _compiles(count: int) -> Part:
    """Programs that are traced and compiled anew, and forgotten."""
    samples = [(case, *case.sample((8, 16))) for case in losses.CASES]

    def step():
        for case, x, a in samples:
            jax.clear_caches()
            jax.block_until_ready(jax.jit(jax.value_and_grad(case.loss))(x, a))

    return watched("memory over compilations with jax.clear_caches()", "compilations", count, step, len(samples))


def threads_at_once(rounds: int) -> Part:
    """Threads of Python that call at once, each another loss or shape, with `jit` and without."""
    calls = []
    for i in range(THREADS):
        case = losses.CASES[i % len(losses.CASES)]
        x, a = map(jnp.asarray, case.sample((64 + i, 257), seed=i))
        function = jax.value_and_grad(case.loss)
        calls.append((case, jax.jit(function) if i % 4 else function, x, a))
    expected = [jax.tree.map(np.asarray, function(x, a)) for _, function, x, a in calls]
    finds, start = [], threading.Barrier(THREADS)

    def work(i: int) -> None:
        case, function, x, a = calls[i]
        start.wait()
        for _ in range(rounds):
            if not jax.tree.all(jax.tree.map(lambda p, q: bool((p == q).all()), function(x, a), expected[i])):
                finds.append(f"{case} on thread {i}: other numbers than on one thread")
                return

    threads = [threading.Thread(target=work, args=(i,)) for i in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return Part(f"{THREADS} threads that call at once", {"calls": THREADS * rounds}, finds)


def _value_in_a_child(queue) -> None:
    case = losses.CASES[2]
    queue.put(float(jax.jit(case.loss)(*case.sample((64, 257)))))


CHILDREN = """
    import multiprocessing, sys
    from trust import lifetime
    if __name__ == "__main__":
        sys.exit(lifetime.start_children({method!r}, {count}))
"""


def start_children(method: str, count: int) -> int:
    """How many of the children failed; before a fork nothing has started JAX's threads, which no child has."""
    context = multiprocessing.get_context(method)
    values = []
    for _ in range(count):
        queue = context.Queue()
        child = context.Process(target=_value_in_a_child, args=(queue,))
        child.start()
        values.append(queue.get(timeout=120))
        child.join(120)
    return count - sum(bool(value == values[0] and np.isfinite(value)) for value in values)


def _children(method: str, count: int) -> Part:
    """Children that import jaxloss with their parent, or again, and call it."""
    path = pathlib.Path(ROOT / "build" / "trust" / f"{method}.py")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(CHILDREN.format(method=method, count=count)))
    variables = environment()
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", str(path)], env=variables, capture_output=True, text=True, check=False
    )
    finds = [f"{method}: status {ran.returncode}:\n{ran.stderr[-3000:]}"] if ran.returncode else []
    return Part(f"children by {method} of a process that has imported jaxloss", {"children": count}, finds)


# Not on daemon threads of Python: those end in the midst of C++ when Python
# ends, which aborts the process, with jaxloss and without.
EXIT = """
    import jax, jax.numpy as jnp
    import jaxloss
    x, labels = jnp.ones((4000, 4000)), jnp.zeros(4000, int)
    step = jax.jit(jax.value_and_grad(jaxloss.categorical_cross_entropy))
    step(x, labels)
    results = [step(x, labels) for _ in range(40)]
    print("in flight", flush=True)
"""


def exits(count: int) -> Part:
    """Programs that end while calls are in flight: by their last line, and by an interrupt."""
    finds = []
    for i in range(count):
        interrupted = i % 2
        code = textwrap.dedent(EXIT) + ("import time; time.sleep(60)\n" if interrupted else "")
        variables = environment()
        process = subprocess.Popen(
            [sys.executable, "-c", code], env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        process.stdout.readline()
        if interrupted:
            process.send_signal(signal.SIGINT)
        try:
            _, said = process.communicate(timeout=120)
        except subprocess.TimeoutExpired:
            process.kill()
            finds.append(f"exit {i}: it never ended")
            continue
        if process.returncode not in ((0, 1, -signal.SIGINT, 130) if interrupted else (0,)):
            finds.append(f"exit {i}: status {process.returncode}:\n{said[-2000:]}")
    return Part("programs that end with calls in flight", {"programs": count}, finds)
