"""Train a model: a jitted step, the batches, the progress bar, and what is kept of the run."""

import time
from collections.abc import Iterator
from typing import NamedTuple

import jax
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from tqdm import tqdm

from demo import models
from demo.data import Data, Split
from demo.tasks import Loss, Task

INITIAL_SEED = 0
BATCH_SEED = 0


class Run(NamedTuple):
    """What a training run leaves behind: an entry an epoch, the first one before any step."""

    params: models.Params
    parameters: np.ndarray  # [epochs + 1, all parameters as one vector]
    train_loss: np.ndarray  # [epochs + 1]
    test_loss: np.ndarray  # [epochs + 1]
    steps: int
    seconds_a_step: float


def train(task: Task, data: Data, loss: Loss, epochs: int, label: str) -> Run:
    """Train with `loss`; the initial parameters and the batches are the same in every call."""
    step, evaluate = _make_step(loss, task.optimiser), _make_evaluate(loss)
    params = models.init(jax.random.key(INITIAL_SEED), task.layers)
    state = task.optimiser.init(params)
    history, seconds = [_snapshot(params, evaluate, data)], []
    order = np.random.default_rng(BATCH_SEED)

    # disable=None: a bar on a terminal, and nothing in a log.
    with tqdm(total=epochs, desc=label, unit="epoch", disable=None, dynamic_ncols=True) as progress:
        for _ in range(epochs):
            for x, y in _batches(data.train, task.batch_size, order):
                start = time.perf_counter()
                params, state, _ = jax.block_until_ready(step(params, state, x, y))
                seconds.append(time.perf_counter() - start)
            history.append(_snapshot(params, evaluate, data))
            progress.update()
            progress.set_postfix_str(f"loss {history[-1][1]:.4f}")

    parameters, train_loss, test_loss = (np.stack(values) for values in zip(*history, strict=True))
    # The median leaves the compilation in the first step out.
    return Run(params, parameters, train_loss, test_loss, len(seconds), float(np.median(seconds)))


def _make_step(loss: Loss, optimiser: optax.GradientTransformation):
    @jax.jit
    def step(params, state, x, y):
        value, gradient = jax.value_and_grad(lambda params: loss(models.apply(params, x), y))(params)
        update, state = optimiser.update(gradient, state)
        return optax.apply_updates(params, update), state, value

    return step


def _make_evaluate(loss: Loss):
    return jax.jit(lambda params, x, y: loss(models.apply(params, x), y))


def _snapshot(params: models.Params, evaluate, data: Data) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All parameters as one vector, the training loss and the test loss."""
    train, test = (np.asarray(evaluate(params, *split)) for split in (data.train, data.test))
    return np.asarray(ravel_pytree(params)[0]), train, test


def _batches(split: Split, size: int, order: np.random.Generator) -> Iterator[Split]:
    """The examples in a new order, in full batches: the few that are left over wait for the next epoch."""
    shuffled = order.permutation(len(split.x))
    for start in range(0, len(shuffled) - size + 1, size):
        chosen = shuffled[start : start + size]
        yield Split(split.x[chosen], split.y[chosen])
