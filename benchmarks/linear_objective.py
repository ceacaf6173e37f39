"""The objective of GRPO from hidden states: jaxloss against its matrix products, whole logits and a checkpointed scan.

Run it with `python -m benchmarks.linear_objective [--only WORD] [--who WORD] [--budget SECONDS] [--quick]
[--output DIRECTORY]`. Writes `linear_objective_PLATFORM.json`, and fails if a goal is missed. Limits and memory are
those of `benchmarks.linear_cross_entropy`, in turn with each contender.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

import jaxloss
from benchmarks import contenders as shared
from benchmarks.contenders import Comparison, Goal
from benchmarks.linear_cross_entropy import Work, all_products
from jaxloss import objectives
from jaxloss._linear import chunks

OBJECTIVES = {
    "GRPO": objectives.grpo(beta=0.04),
    "GRPO with entropy bonus": objectives.grpo(beta=0.04, entropy_bonus=0.01),
}


GOAL = Goal(1.10, gigabytes=2.7)
"""Of both, at the shape of a GPU."""


@dataclasses.dataclass(frozen=True)
class Batch:
    """Sequences of so many tokens."""

    work: Work
    length: int

    @functools.lru_cache(maxsize=1)  # noqa: B019 (one shape at a time)
    def operands(self) -> tuple[jax.Array, ...]:
        """Hidden states, kernel, labels, advantages, and log-probabilities of tokens before and of a reference."""
        hidden, kernel, labels = self.work.operands()
        hidden, labels = (x.reshape(-1, self.length, *x.shape[1:]) for x in (hidden, labels))
        advantages = jax.random.normal(jax.random.key(1), labels.shape[:1])
        log_prob = jax.jit(jaxloss.linear_log_prob)(hidden, kernel, labels)
        noise = 0.1 * jax.random.normal(jax.random.key(2), (2, *labels.shape))
        return hidden, kernel, labels, advantages, log_prob + noise[0], log_prob + noise[1]


def tokens_of(hidden, kernel, labels) -> objectives.Tokens:
    """The statistics of tokens, from logits."""
    logits = (hidden @ kernel).astype(jnp.float32)
    log_softmax = jax.nn.log_softmax(logits)
    log_prob = jnp.take_along_axis(log_softmax, labels[..., None], -1)[..., 0]
    entropy = -(jnp.exp(log_softmax) * log_softmax).sum(-1)
    return objectives.Tokens(log_prob, entropy, jax.nn.logsumexp(logits, -1), jnp.ones(labels.shape, bool))


def contenders(objective: objectives.Objective) -> dict:
    """Functions of the operands."""

    def ours(hidden, kernel, labels, *data):
        return jaxloss.linear_objective(hidden, kernel, labels, objective, *data, normalizer="sequences")

    def whole_logits(hidden, kernel, labels, *data):
        return objective(tokens_of(hidden, kernel, labels), *data) / len(labels)

    def scan_and_checkpoint(hidden, kernel, labels, *data):
        """As many sequences at a time as have 2,048 tokens."""
        sequences = max(1, 2048 // labels.shape[1])

        @jax.checkpoint
        def of_chunk(hidden, labels, *data):
            return objective(tokens_of(hidden, kernel, labels), *data)

        def step(total, chunk):
            return total + of_chunk(*chunk), None

        chunks = [x.reshape(-1, min(sequences, len(x)), *x.shape[1:]) for x in (hidden, labels, *data)]
        return jax.lax.scan(step, jnp.zeros(()), tuple(chunks))[0] / len(labels)

    return {
        "jaxloss": ours,
        "jaxloss, first chunk in the loop": shared.with_setting(chunks, "APART_FROM", 2**62, ours),
        "whole logits": whole_logits,
        "scan and checkpoint": scan_and_checkpoint,
    }


def comparisons(batch: Batch) -> list[Comparison]:
    """Of all objectives at one shape."""
    shape = {**dataclasses.asdict(batch.work), "length": batch.length}
    limit = functools.lru_cache(functools.partial(all_products, batch.work))
    goals = {"jaxloss": GOAL} if batch in SHAPES["gpu"] else {}
    return [
        Comparison(name, contenders(objective), batch.operands, limit, shape, goals=goals)
        for name, objective in OBJECTIVES.items()
    ]


SHAPES = {
    "gpu": [Batch(Work(8192, 4096, 128256), 1024)],
    "cpu": [Batch(Work(2048, 256, 8192, "float32"), 256)],
    "quick": [Batch(Work(256, 32, 512, "float32"), 64)],
}


if __name__ == "__main__":
    shared.command("linear_objective", __doc__, comparisons, SHAPES)
