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
from benchmarks.linear_cross_entropy import Work, all_products, ours, scan_and_checkpoint, whole_logits


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


def losses_of_logits(logits: jax.Array, labels: jax.Array, softcap: float = 0.0, z_loss: float = 0.0) -> jax.Array:
    """The losses of tokens, as one writes them."""
    logits = logits.astype(jnp.float32)
    if softcap:
        logits = softcap * jnp.tanh(logits / softcap)
    log_sum = jax.nn.logsumexp(logits, axis=-1)
    of_labels = jnp.take_along_axis(logits, labels[:, None], axis=-1)[:, 0]
    return log_sum - of_labels + z_loss * log_sum**2


def comparisons(case: Case) -> list[Comparison]:
    """The one of that case."""
    options = dict(case.options)
    losses = functools.partial(losses_of_logits, **options)
    who = {
        "jaxloss": ours(**options),
        "whole logits": functools.partial(whole_logits, losses=losses),
        "scan and checkpoint": functools.partial(scan_and_checkpoint, losses=losses),
    }
    limit = functools.lru_cache(functools.partial(all_products, case.work))
    shape = dataclasses.asdict(case.work)
    return [Comparison(" ".join(options), who, case.work.operands, limit, shape, goals={"jaxloss": Goal(case.goal)})]


if __name__ == "__main__":
    contenders.command("linear_options", __doc__, comparisons, SHAPES)
