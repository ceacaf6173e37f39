"""A language model's loss on a mesh of eight devices: the batch split over four of them, the vocabulary over two.

Under `jit` nothing changes in the loss: the shardings of its operands say it all. The program trains so, prints what
the devices tell each other, and compares with one device, and with `shard_map`, where `axis_name` says who has the
other classes. On a machine without eight devices they are virtual ones of the CPU.

    python -m examples.data_and_vocabulary_parallel --quick
"""

import re
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import examples
import jaxloss

VOCABULARY, WIDTH, BATCH, LENGTH = 512, 32, 16, 24
SPECS = {"embedding": P(), "hidden": P(), "output": P(None, "vocabulary")}
RATE = 3.0


def initial() -> dict[str, np.ndarray]:
    """An embedding, a hidden layer, and the output layer `[D, V]`."""
    rng = np.random.default_rng(0)
    shapes = {"embedding": (VOCABULARY, WIDTH), "hidden": (WIDTH, WIDTH), "output": (WIDTH, VOCABULARY)}
    return {name: (rng.standard_normal(shape) / np.sqrt(WIDTH)).astype(np.float32) for name, shape in shapes.items()}


def sentences(rng: np.random.Generator) -> np.ndarray:
    """Tokens [B, T], each of which tells the next one."""
    tokens = [rng.integers(0, 64, BATCH)]
    for _ in range(LENGTH - 1):
        tokens.append((5 * tokens[-1] + 7) % 64)
    return np.stack(tokens, axis=1).astype(np.int32)


def hidden_of(params, tokens):
    """Hidden states [B, T, D]."""
    return jnp.tanh(params["embedding"][tokens] @ params["hidden"])


def loss(params, tokens):
    """The mean over the whole batch, wherever it is."""
    return jaxloss.linear_cross_entropy(hidden_of(params, tokens), params["output"], tokens, shift=1)


@jax.jit
def step(params, tokens):
    """Parameters after a step of gradient descent, and the loss before it."""
    value, gradient = jax.value_and_grad(loss)(params, tokens)
    return jax.tree.map(lambda p, g: p - RATE * g, params, gradient), value


def part_of_loss(params, tokens):
    """The same inside `shard_map`: a device has some sentences, and some columns of the output layer."""
    predictions = BATCH * (LENGTH - 1)  # of the whole batch: what a device adds is its share of the mean
    value = jaxloss.linear_cross_entropy(
        hidden_of(params, tokens), params["output"], tokens, shift=1, axis_name="vocabulary", normalizer=predictions
    )
    return jax.lax.psum(value, "data")


def main(quick: bool = False) -> tuple[list[float], list[float]]:
    """Trains on the mesh and on one device; returns the losses of both."""
    mesh = jax.make_mesh((4, 2), ("data", "vocabulary"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    whole = initial()
    split = {name: jax.device_put(x, NamedSharding(mesh, SPECS[name])) for name, x in whole.items()}
    rng, losses, losses_of_one = np.random.default_rng(0), [], []
    steps = 30 if quick else 300
    for number in range(steps):
        tokens = sentences(rng)
        split_tokens = jax.device_put(tokens, NamedSharding(mesh, P("data")))
        if number == 0:
            text = step.lower(split, split_tokens).compile().as_text()
            kinds = re.findall(r" (all-reduce|all-gather|all-to-all|collective-permute)(?:-start)?\(", text)
            print("exchanges of a step:", dict(Counter(kinds)))
            by_hand = jax.shard_map(part_of_loss, mesh=mesh, in_specs=(SPECS, P("data")), out_specs=P())
            print(f"shard_map: loss {jax.jit(by_hand)(split, split_tokens):.4f}")
        split, value = step(split, split_tokens)
        whole, value_of_one = step(whole, tokens)
        losses.append(float(value))
        losses_of_one.append(float(value_of_one))
        if number % (steps // 3) == 0:
            print(f"step {number:3d}: loss {value:.4f} on the mesh, {value_of_one:.4f} on one device")
    print("the output layer is split:", split["output"].sharding.spec)
    return losses, losses_of_one


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 8)
    main(examples.quick())
