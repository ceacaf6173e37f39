"""A training loop of torch, and the same in JAX: the loss gives the same numbers at every step.

The loss has class weights, smoothed labels, and padding of −100. What has to be said in jaxloss is what torch does by
default: `ignore_index=-100`, a mean over the class weights, and no clip. docs/migration.md has every loss of torch.
Without torch, the part in JAX runs alone.

    python -m examples.torch_port --quick
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import examples
import jaxloss

CLASSES, FEATURES, RATE = 5, 16, 0.5
CLASS_WEIGHTS = np.array([1.0, 2.0, 1.0, 0.5, 3.0], np.float32)


def batches(steps: int):
    """Features [64, 16] and labels [64], one in eight of them padding."""
    rng = np.random.default_rng(0)
    directions = rng.standard_normal((FEATURES, CLASSES))
    for _ in range(steps):
        x = rng.standard_normal((64, FEATURES)).astype(np.float32)
        labels = (x @ directions).argmax(-1)
        yield x, np.where(np.arange(64) % 8 == 7, -100, labels)


def initial() -> np.ndarray:
    """The same for both."""
    return (np.random.default_rng(1).standard_normal((FEATURES, CLASSES)) / 4).astype(np.float32)


def with_torch(steps: int) -> list[float]:
    """The loss of each step."""
    import torch
    import torch.nn.functional as F  # noqa: N812

    weight = torch.nn.Parameter(torch.tensor(initial()))
    optimiser = torch.optim.SGD([weight], lr=RATE, momentum=0.9)
    losses = []
    for x, labels in batches(steps):
        logits = torch.tensor(x) @ weight
        loss = F.cross_entropy(
            logits, torch.tensor(labels), weight=torch.tensor(CLASS_WEIGHTS), label_smoothing=0.1
        )  # fmt: skip
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return losses


def with_jax(steps: int) -> list[float]:
    """The same."""
    weight, optimiser, losses = jnp.asarray(initial()), optax.sgd(RATE, momentum=0.9), []
    state = optimiser.init(weight)

    @jax.jit
    def step(weight, state, x, labels):
        def loss(weight):
            return jaxloss.categorical_cross_entropy(
                x @ weight, labels, class_weights=CLASS_WEIGHTS, label_smoothing=0.1,
                ignore_index=-100, normalizer="weights", clip=None,
            )  # fmt: skip

        value, gradient = jax.value_and_grad(loss)(weight)
        update, state = optimiser.update(gradient, state)
        return optax.apply_updates(weight, update), state, value

    for x, labels in batches(steps):
        weight, state, value = step(weight, state, x, labels)
        losses.append(float(value))
    return losses


def main(quick: bool = False) -> tuple[list[float], list[float] | None]:
    """Trains with both, and returns the losses; None for those of torch where it is not installed."""
    steps = 40 if quick else 400
    ours = with_jax(steps)
    try:
        theirs = with_torch(steps)
    except ModuleNotFoundError as error:
        print(f"jaxloss alone, for {examples.what_is_missing(error)}")
        theirs = None
    for number in range(0, steps, steps // 8):
        beside = "" if theirs is None else f", torch {theirs[number]:.6f}"
        print(f"step {number:3d}: jaxloss {ours[number]:.6f}{beside}")
    return ours, theirs


if __name__ == "__main__":
    main(examples.quick())
