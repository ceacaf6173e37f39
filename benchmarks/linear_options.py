"""Linear cross entropy with options: jaxloss against its matrix products, whole logits and a checkpointed scan.

Run it with `python -m benchmarks.linear_options [--only WORD] [--who WORD] [--budget SECONDS] [--quick]
[--output DIRECTORY]`. Writes `linear_options_PLATFORM.json`, and fails if a goal is missed. The limit and memory are
those of `benchmarks.linear_cross_entropy`, in turn with each contender.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from benchmarks import contenders
from benchmarks.contenders import Comparison, Goal
from benchmarks.linear_cross_entropy import Work, all_products, ours


@dataclasses.dataclass(frozen=True)
class Case:
    """A shape, the options there, and how many times the products' time they may take."""

    work: Work
    options: tuple[tuple[str, float], ...]
    goal: float = float("inf")


SOFTCAP, Z_LOSS = (("softcap", 30.0),), (("z_loss", 1e-4),)
SHAPES = {
    "gpu": [Case(Work(8192, 3584, 256000), SOFTCAP, 1.08), Case(Work(16384, 2048, 128256), Z_LOSS, 1.09)],
    "cpu": [Case(Work(2048, 256, 8192, "float32"), options) for options in (SOFTCAP, Z_LOSS)],
    "quick": [Case(Work(256, 32, 512, "float32"), options) for options in (SOFTCAP, Z_LOSS)],
}
CHUNK = 2048
"""Tokens that the checkpointed scan takes at once."""


def of_logits(logits: jax.Array, labels: jax.Array, softcap: float = 0.0, z_loss: float = 0.0) -> jax.Array:
    """The sum of the losses, as one writes it."""
    logits = logits.astype(jnp.float32)
    if softcap:
        logits = softcap * jnp.tanh(logits / softcap)
    log_sum = jax.nn.logsumexp(logits, axis=-1)
    of_labels = jnp.take_along_axis(logits, labels[:, None], axis=-1)[:, 0]
    return jnp.sum(log_sum - of_labels + z_loss * log_sum**2)


def whole_logits(options: dict[str, float]):
    """What one writes first."""

    def loss(hidden, kernel, labels):
        return of_logits(hidden @ kernel, labels, **options) / len(labels)

    return loss


def scan_and_checkpoint(options: dict[str, float]):
    """What one writes next."""

    def loss(hidden, kernel, labels):
        size = min(CHUNK, len(hidden))

        @jax.checkpoint
        def step(total, chunk):
            return total + of_logits(chunk[0] @ kernel, chunk[1], **options), None

        chunks = hidden.reshape(-1, size, hidden.shape[-1]), labels.reshape(-1, size)
        return jax.lax.scan(step, jnp.zeros(()), chunks)[0] / len(labels)

    return loss


def comparisons(case: Case) -> list[Comparison]:
    """The one of that case."""
    options = dict(case.options)
    who = {
        "jaxloss": ours(**options),
        "whole logits": whole_logits(options),
        "scan and checkpoint": scan_and_checkpoint(options),
    }
    limit = functools.lru_cache(functools.partial(all_products, case.work))
    shape = dataclasses.asdict(case.work)
    return [Comparison(" ".join(options), who, case.work.operands, limit, shape, goals={"jaxloss": Goal(case.goal)})]


if __name__ == "__main__":
    contenders.command("linear_options", __doc__, comparisons, SHAPES)
