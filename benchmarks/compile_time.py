"""How long JAX takes to trace and compile a training step with jaxloss, and the same step with optax.

Run it with `python -m benchmarks.compile_time [--sharded] [--output DIRECTORY]`. In place of these, `--sharded`
compares linear cross entropy of operands on four devices with whole logits, writes
`compile_time_sharded_PLATFORM.json`, and fails if one misses its goal. On a CPU it takes
XLA_FLAGS=--xla_force_host_platform_device_count=4.

The time is that of the process on all its processors, so that what else the machine does does not count.
"""

import argparse
import statistics
import time

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxloss
from benchmarks import record
from benchmarks.linear_cross_entropy import whole_logits

LAYERS, WIDTH, BATCH, REPEATS = 4, 256, 128, 9


def optax_mse(pred, target):
    """`jaxloss.mse` in optax's terms."""
    return optax.l2_loss(pred, target).sum() / pred.shape[0]


def optax_categorical(logits, labels):
    """`jaxloss.categorical_cross_entropy` in optax's terms."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def optax_binary(logits, target):
    """`jaxloss.binary_cross_entropy` in optax's terms."""
    return optax.sigmoid_binary_cross_entropy(logits, target).sum() / logits.shape[0]


NUMBERS, LABELS = jnp.ones((BATCH, WIDTH)), jnp.zeros(BATCH, jnp.int32)
STEPS = {
    "mse": (jaxloss.mse, optax_mse, NUMBERS),
    "categorical_cross_entropy": (jaxloss.categorical_cross_entropy, optax_categorical, LABELS),
    "binary_cross_entropy": (jaxloss.binary_cross_entropy, optax_binary, NUMBERS),
}


def step_of(loss):
    """A training step of a small multilayer perceptron with Adam."""
    optimiser = optax.adam(1e-3)

    def step(params, state, x, target):
        def total(params):
            activations = x
            for weight in params:
                activations = jnp.tanh(activations @ weight)
            return loss(activations, target)

        value, gradient = jax.value_and_grad(total)(params)
        update, state = optimiser.update(gradient, state)
        return optax.apply_updates(params, update), state, value

    return step, optimiser


def seconds(function, operands) -> tuple[float, float]:
    """Of tracing and of compiling a function, from scratch."""
    jax.clear_caches()
    start = time.process_time()
    lowered = jax.jit(function).lower(*operands)
    traced = time.process_time()
    lowered.compile()
    return traced - start, time.process_time() - traced


def of_step(loss, target) -> tuple:
    """A training step and its operands."""
    params = [jnp.eye(WIDTH) for _ in range(LAYERS)]
    step, optimiser = step_of(loss)
    return step, (params, optimiser.init(params), jnp.ones((BATCH, WIDTH)), target)


# ---- on devices ------------------------------------------------------------------------------------------------------

DEVICES, GOAL = 4, 2.0
P = PartitionSpec
SPLIT = {
    "tokens": (P("d"), P(), P("d")),
    "tokens, and features of the kernel": (P("d"), P("d"), P("d")),
    "classes": (P(), P(None, "d"), P()),
}
SHAPES = [(4096, 64, 32000), (8192, 64, 128256), (65536, 64, 50000)]
"""Tokens, features and classes: one chunk, and several, with tokens resharded to classes and without."""


def masked(hidden, kernel, labels):
    """What language models are trained with."""
    return jaxloss.linear_cross_entropy(hidden, kernel, labels, ignore_index=-100)


def masked_whole_logits(hidden, kernel, labels):
    """The same of whole logits."""
    keep = labels != -100
    logits = (hidden @ kernel).astype(jnp.float32)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.where(keep, labels, 0))
    return jnp.where(keep, losses, 0).sum() / keep.sum()


LINEAR = {"all tokens": (jaxloss.linear_cross_entropy, whole_logits), "masked": (masked, masked_whole_logits)}


def of_devices(loss, shape: tuple[int, int, int], split) -> tuple:
    """Value and gradients of a linear loss, and operands on devices."""
    mesh = jax.make_mesh((DEVICES,), ("d",), axis_types=(AxisType.Auto,), devices=jax.devices()[:DEVICES])
    tokens, features, classes = shape
    of = ((tokens, features), "bfloat16"), ((features, classes), "bfloat16"), ((tokens,), "int32")
    operands = [
        jax.ShapeDtypeStruct(*each, sharding=NamedSharding(mesh, spec)) for each, spec in zip(of, split, strict=True)
    ]
    return jax.value_and_grad(loss, (0, 1)), operands


# ---- the two compared ------------------------------------------------------------------------------------------------


def compared(name: str, ours: tuple, other: str, peer: tuple, repeats: int) -> dict:
    """Medians of tracing and compiling ours and another's, each a function and its operands, and their ratio."""
    for each in (ours, peer):
        seconds(*each)
    # One after the other, so that whatever else the machine does falls on both.
    pairs = [(seconds(*ours), seconds(*peer)) for _ in range(repeats)]
    (trace, compilation), (peer_trace, peer_compilation) = (
        [statistics.median(column) for column in zip(*(pair[side] for pair in pairs), strict=True)] for side in (0, 1)
    )
    ratio = (trace + compilation) / (peer_trace + peer_compilation)
    print(
        f"{name:72s} jaxloss {1e3 * trace:.0f} + {1e3 * compilation:.0f} ms, "
        f"{other} {1e3 * peer_trace:.0f} + {1e3 * peer_compilation:.0f} ms, ratio {ratio:.2f}",
        flush=True,
    )
    of_both = {"jaxloss": (trace, compilation), other: (peer_trace, peer_compilation)}
    times = {who: dict(zip(("trace", "compile"), of, strict=True)) for who, of in of_both.items()}
    return {"loss": name, **times, "ratio": ratio}


def on_devices(output: str | None) -> list[str]:
    """Measures linear cross entropy on devices, and returns what misses the goal."""
    rows, name = [], f"compile_time_sharded_{jax.devices()[0].platform}"
    path = record.write(name, rows, output)  # where that can not be, nothing is measured
    for shape in SHAPES:
        for split, specs in SPLIT.items():
            for kind, losses in LINEAR.items():
                ours, whole = (of_devices(loss, shape, specs) for loss in losses)
                of = f"linear_cross_entropy {shape}, {split} split, {kind}"
                rows.append({**compared(of, ours, "whole logits", whole, repeats=3), "goal": GOAL})
                record.write(name, rows, output)
    print(path)
    return [f"{row['loss']}: {row['ratio']:.2f}, goal {GOAL}" for row in rows if row["ratio"] > GOAL]


def main() -> None:
    """Measures every loss and writes `compile_time_PLATFORM.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sharded", action="store_true", help="linear cross entropy on four devices, instead")
    parser.add_argument("--output", help="where to write the JSON; default: benchmarks/results")
    arguments = parser.parse_args()
    if arguments.sharded:
        if jax.device_count() < DEVICES:
            raise SystemExit(f"{jax.device_count()} devices: expected {DEVICES}")
        if missed := on_devices(arguments.output):
            raise SystemExit("\n  ".join(("beyond the goal:", *missed)))
        return
    measurements = [
        compared(name, of_step(ours, target), "optax", of_step(peer, target), REPEATS)
        for name, (ours, peer, target) in STEPS.items()
    ]
    print(record.write(f"compile_time_{jax.devices()[0].platform}", measurements, arguments.output))


if __name__ == "__main__":
    main()
