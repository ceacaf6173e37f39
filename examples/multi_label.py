"""Tags that do not exclude each other, some of them rare: plain binary cross entropy, `pos_weight`, and focal loss.

A rare tag that is never predicted costs little, so the plain loss finds few of them at the threshold ½. `pos_weight`
makes the positives of a tag count more; the focal loss makes all count less that is right already.

    python -m examples.multi_label --quick
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

import examples
import jaxloss

SHARES = np.array([0.4, 0.2, 0.1, 0.05, 0.02, 0.01])
"""How many of the examples have each tag."""


def tagged(count: int, seed: int, features: int = 24) -> tuple[np.ndarray, np.ndarray]:
    """Features [count, 24], and whether an example has each tag: the largest values of a noisy direction of it."""
    directions = np.random.default_rng(0).standard_normal((features, len(SHARES))) / np.sqrt(features)
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((count, features))
    score = x @ directions + 0.3 * rng.standard_normal((count, len(SHARES)))
    return x.astype(np.float32), score > np.quantile(score, 1 - SHARES, axis=0).diagonal()


def trained(loss, x, tags, steps: int):
    """The parameters of a perceptron after training with this loss."""
    rng, width = np.random.default_rng(0), 64
    params = {
        "hidden": rng.standard_normal((x.shape[1], width)) * np.sqrt(2 / x.shape[1]),
        "output": rng.standard_normal((width, tags.shape[1])) * np.sqrt(1 / width),
        "bias": np.log(SHARES / (1 - SHARES)),
    }
    params = jax.tree.map(jnp.float32, params)
    optimiser = optax.adam(3e-3)

    @jax.jit
    def train(params):
        def step(carry, key):
            params, state = carry
            chosen = jax.random.randint(key, (256,), 0, len(x))
            gradient = jax.grad(lambda params: loss(logits_of(params, x[chosen]), tags[chosen]))(params)
            update, state = optimiser.update(gradient, state)
            return (optax.apply_updates(params, update), state), None

        keys = jax.random.split(jax.random.key(1), steps)
        return jax.lax.scan(step, (params, optimiser.init(params)), keys)[0][0]

    return train(params)


def logits_of(params, x):
    """Logits [n, tags]."""
    return jax.nn.relu(x @ params["hidden"]) @ params["output"] + params["bias"]


def main(quick: bool = False) -> dict[str, np.ndarray]:
    """Trains with each loss, and returns the recall of each tag."""
    x, tags = (jnp.asarray(array) for array in tagged(4000 if quick else 40000, seed=1))
    test_x, test_tags = tagged(20000, seed=2)
    balance = np.sqrt((1 - SHARES) / SHARES)  # between the plain loss and the ratio of negatives to positives
    losses = {
        "plain": jaxloss.binary_cross_entropy,
        "pos_weight": functools.partial(jaxloss.binary_cross_entropy, pos_weight=jnp.asarray(balance, jnp.float32)),
        "focal": functools.partial(jaxloss.binary_cross_entropy, focal_gamma=2.0, focal_alpha=0.75),
    }
    print("share of each tag    " + "".join(f"{share:8.0%}" for share in SHARES))
    recalls = {}
    for name, loss in losses.items():
        params = trained(loss, x, tags, steps=200 if quick else 3000)
        found = np.asarray(logits_of(params, test_x)) > 0
        recalls[name] = (found & test_tags).sum(0) / test_tags.sum(0)
        precision = (found & test_tags).sum(0) / np.maximum(found.sum(0), 1)
        for what, numbers in (("recall", recalls[name]), ("precision", precision)):
            print(f"{name:10s} {what:10s}" + "".join(f"{number:8.2f}" for number in numbers))
    return recalls


if __name__ == "__main__":
    main(examples.quick())
