"""The losses against XLA's own and against the memory's limit, which is measured in the same process.

Run it with `python -m benchmarks.losses [--only WORD] [--sweep] [--output DIRECTORY]`. Writes `losses_PLATFORM.json`,
and with `--sweep` two plots of cross entropy over the number of classes.

The limit of a loss is the time to read its operands once (a sum over them), that of value and gradient the time to read
them and to write an array like the prediction (a negation, or a sum of prediction and target).
"""

import argparse
import dataclasses
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import optax

import jaxloss
from benchmarks import record
from benchmarks.timing import timed


@dataclasses.dataclass(frozen=True)
class Work:
    """One line of the table: a loss, the kind of its target, the type and the shape of its prediction."""

    loss: str
    target: str
    dtype: str
    shape: tuple[int, int]

    def __str__(self) -> str:
        return f"{self.loss} {self.target} {self.dtype} {list(self.shape)}"

    def operands(self) -> tuple[jax.Array, jax.Array]:
        """Random logits of deviation 3, and a random target."""

        @jax.jit
        def random(key):
            keys = jax.random.split(key)
            x = (3 * jax.random.normal(keys[0], self.shape)).astype(self.dtype)
            if self.target == "labels":
                return x, jax.random.randint(keys[1], self.shape[:1], 0, self.shape[1])
            a = jax.random.uniform(keys[1], self.shape)
            return x, (a / a.sum(-1, keepdims=True) if self.loss == "categorical" else a).astype(self.dtype)

        return random(jax.random.key(0))


def _mse(x, a):
    return optax.l2_loss(x.astype(jnp.float32), a.astype(jnp.float32)).sum() / x.shape[0]


def _binary(x, a):
    return optax.sigmoid_binary_cross_entropy(x.astype(jnp.float32), a.astype(jnp.float32)).sum() / x.shape[0]


def _categorical_rows(x, a):
    x = x.astype(jnp.float32)
    if a.ndim == 1:
        return optax.softmax_cross_entropy_with_integer_labels(x, a)
    return optax.softmax_cross_entropy(x, a.astype(jnp.float32))


LOSSES = {
    "mse": (jaxloss.mse, _mse),
    "binary": (jaxloss.binary_cross_entropy, _binary),
    "categorical": (jaxloss.categorical_cross_entropy, lambda x, a: _categorical_rows(x, a).mean()),
}

BIG = (8192, 32768)
GPU_TABLE = [
    *(Work(loss, "numbers", dtype, BIG) for loss in ("mse", "binary") for dtype in ("float32", "bfloat16")),
    *(Work("categorical", "numbers", dtype, BIG) for dtype in ("float32", "bfloat16")),
    Work("categorical", "labels", "bfloat16", (8192, 128256)),
    Work("categorical", "labels", "bfloat16", (4096, 262144)),
    Work("categorical", "labels", "float32", BIG),
    Work("categorical", "labels", "bfloat16", (16384, 32000)),
    Work("categorical", "labels", "bfloat16", (20000, 50257)),
    Work("categorical", "labels", "bfloat16", (20000, 50264)),
    Work("categorical", "labels", "bfloat16", (32768, 16384)),
    Work("categorical", "labels", "bfloat16", (32768, 4096)),
    Work("categorical", "labels", "bfloat16", (131072, 1024)),
    Work("categorical", "labels", "float32", (65536, 1024)),
    Work("categorical", "labels", "float32", (4096, 1000)),
    Work("categorical", "labels", "float32", (128, 10)),
]
CPU_TABLE = [
    *(Work(loss, "numbers", "float32", shape) for loss in ("mse", "binary") for shape in ((1024, 8192), (65536, 10))),
    *(Work("categorical", "labels", "float32", shape) for shape in ((1024, 32768), (8192, 1024), (65536, 10))),
    Work("categorical", "labels", "bfloat16", (8192, 1024)),
    Work("categorical", "numbers", "float32", (8192, 1024)),
]

SWEEP_BYTES = 2**30
SWEEP_CLASSES = (
    2,
    3,
    4,
    8,
    10,
    16,
    31,
    32,
    64,
    100,
    128,
    256,
    257,
    512,
    1000,
    1024,
    2048,
    4096,
    8192,
    16384,
    32000,
    32001,
)
SWEEP_CLASSES += (50257, 65536, 100003, 128256, 151936, 262144)


def sweep() -> Iterator[Work]:
    """Cross entropy at constant bytes, from 2 classes to 262144."""
    for dtype in ("bfloat16", "float32"):
        for classes in SWEEP_CLASSES:
            rows = SWEEP_BYTES // (classes * jnp.dtype(dtype).itemsize)
            yield Work("categorical", "labels", dtype, (rows, classes))


def measured(work: Work) -> dict:
    """Times of the limit, of jaxloss and of XLA: value alone, value and gradient, and a cotangent for each row."""
    x, a = work.operands()
    ours, xla = LOSSES[work.loss]
    cotangent = jnp.linspace(0.5, 1.5, work.shape[0])

    def pulled(rows):
        return jax.jit(lambda x, a, g: jax.vjp(lambda x: rows(x, a), x)[1](g))

    total = jax.jit(lambda x, a: x.sum(dtype=jnp.float32) + a.sum(dtype=jnp.float32))
    copied = jax.jit(lambda x, a: -x if a.ndim == 1 else x + a)
    times = {
        "limit": {"value": timed(total, x, a), "value_and_grad": timed(copied, x, a)},
        "jaxloss": {
            "value": timed(jax.jit(ours), x, a),
            "value_and_grad": timed(jax.jit(jax.value_and_grad(ours)), x, a),
        },
        "xla": {"value": timed(jax.jit(xla), x, a), "value_and_grad": timed(jax.jit(jax.value_and_grad(xla)), x, a)},
    }
    if work.loss == "categorical" and work.target == "labels":
        rows = lambda x, a: jaxloss.categorical_cross_entropy(x, a, reduction="none")  # noqa: E731
        times["jaxloss"]["rows_vjp"] = timed(pulled(rows), x, a, cotangent)
        times["xla"]["rows_vjp"] = timed(pulled(_categorical_rows), x, a, cotangent)
        # Read for the loss, then read again and written for the gradient, which waits for the cotangent.
        limit = times["limit"]
        times["limit"]["rows_vjp"] = limit["value"]._replace(ms=limit["value"].ms + limit["value_and_grad"].ms)
    temporary = jax.jit(jax.value_and_grad(ours)).lower(x, a).compile().memory_analysis().temp_size_in_bytes
    return {
        **dataclasses.asdict(work),
        "bytes": x.nbytes,
        "temporary_bytes": temporary,
        "ms": {who: {what: timing.ms for what, timing in of.items()} for who, of in times.items()},
        "spread": {who: {what: timing.spread for what, timing in of.items()} for who, of in times.items()},
    }


def line(work: Work, measurement: dict) -> str:
    """A line of the table: each time as a ratio to the limit."""
    ms = measurement["ms"]
    cells = [
        f"{what} {ms['limit'][what]:.4g} ms: jaxloss {ms['jaxloss'][what] / ms['limit'][what]:.3f} "
        f"xla {ms['xla'][what] / ms['limit'][what]:.3f}"
        for what in ms["jaxloss"]
    ]
    return f"{work!s:48s} " + " | ".join(cells)


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="measure only lines that contain this")
    parser.add_argument("--sweep", action="store_true", help="also sweep cross entropy over the number of classes")
    parser.add_argument("--output", help="where to write; default: benchmarks/results")
    arguments = parser.parse_args()
    platform = jax.devices()[0].platform
    print(record.circumstances())
    table = [*(CPU_TABLE if platform == "cpu" else GPU_TABLE), *(sweep() if arguments.sweep else ())]
    measurements = []
    for work in table:
        if arguments.only in str(work):
            measurements.append(measured(work))
            print(line(work, measurements[-1]), flush=True)
    print(record.write(f"losses_{platform}", measurements, arguments.output))
    if arguments.sweep:
        from benchmarks import plots

        plots.draw(measurements, arguments.output)


if __name__ == "__main__":
    main()
