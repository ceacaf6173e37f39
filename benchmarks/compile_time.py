"""How long JAX takes to trace and compile a training step with jaxloss, and the same step with optax.

Run it with `python -m benchmarks.compile_time [--output DIRECTORY]`.
"""

import argparse
import statistics
import time

import jax
import jax.numpy as jnp
import optax

import jaxloss
from benchmarks import record

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


def seconds(loss, target) -> tuple[float, float]:
    """Of tracing and of compiling one step, from scratch."""
    params = [jnp.eye(WIDTH) for _ in range(LAYERS)]
    step, optimiser = step_of(loss)
    state = optimiser.init(params)
    jax.clear_caches()
    start = time.perf_counter()
    lowered = jax.jit(step).lower(params, state, jnp.ones((BATCH, WIDTH)), target)
    traced = time.perf_counter()
    lowered.compile()
    return traced - start, time.perf_counter() - traced


def main() -> None:
    """Measures every loss and writes `compile_time_PLATFORM.json`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", help="where to write the JSON; default: benchmarks/results")
    arguments = parser.parse_args()
    measurements = []
    for name, (ours, peer, target) in STEPS.items():
        seconds(ours, target), seconds(peer, target)
        # One after the other, so that whatever else the machine does falls on both.
        pairs = [(seconds(ours, target), seconds(peer, target)) for _ in range(REPEATS)]
        (trace, compilation), (peer_trace, peer_compilation) = (
            [statistics.median(column) for column in zip(*(pair[side] for pair in pairs), strict=True)]
            for side in (0, 1)
        )
        measurement = {
            "loss": name,
            "jaxloss": {"trace": trace, "compile": compilation},
            "optax": {"trace": peer_trace, "compile": peer_compilation},
            "ratio": (trace + compilation) / (peer_trace + peer_compilation),
        }
        measurements.append(measurement)
        print(
            f"{name:28s} jaxloss {1e3 * trace:.0f} + {1e3 * compilation:.0f} ms, "
            f"optax {1e3 * peer_trace:.0f} + {1e3 * peer_compilation:.0f} ms, ratio {measurement['ratio']:.2f}"
        )
    print(record.write(f"compile_time_{jax.devices()[0].platform}", measurements, arguments.output))


if __name__ == "__main__":
    main()
