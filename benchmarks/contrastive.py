"""Losses of pairs of embeddings: jaxloss against its matrix products alone, whole logits and a checkpointed scan.

Run it with `python -m benchmarks.contrastive [--only WORD] [--who WORD] [--budget SECONDS] [--quick]
[--output DIRECTORY]`. Writes `contrastive_PLATFORM.json`, and fails if a goal is missed. The limit and memory are those
of `benchmarks.linear_cross_entropy`, in turn with each contender: the three products of value and gradients, for CLIP
twice. What is learnt of scale and bias is differentiated too.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

import jaxloss
from benchmarks import contenders as shared
from benchmarks.contenders import Comparison, Goal
from benchmarks.linear_cross_entropy import Work, all_products


@functools.lru_cache(maxsize=1)  # one shape at a time
def embeddings(work: Work) -> tuple[jax.Array, ...]:
    """Of both kinds, of unit length, scale and bias."""

    @jax.jit
    def random(key):
        x = jax.random.normal(key, (2, work.tokens, work.width), jnp.float32)
        return (x / jnp.linalg.norm(x, axis=-1, keepdims=True)).astype(work.dtype)

    return *random(jax.random.key(0)), jnp.float32(10), jnp.float32(-10)


def logits_of(a, b, scale, bias):
    """Those of rows of `a` with all of `b`, as float32 holds them."""
    products = jax.lax.dot_general(a, b, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)
    return scale * products + bias


def sigmoid_of_rows(a, b, scale, bias, first):
    """The sum of the losses of rows of `a` from that one on."""
    x = logits_of(a, b, scale, bias)
    pairs = first + jnp.arange(len(a))[:, None] == jnp.arange(len(b))
    return jax.nn.softplus(jnp.where(pairs, -x, x)).sum()


def softmax_of_rows(a, b, scale, bias, first):
    """The same of the softmax loss in one direction, which no bias changes."""
    log_softmax = jax.nn.log_softmax(logits_of(a, b, scale, bias))
    return -jnp.take_along_axis(log_softmax, first + jnp.arange(len(a))[:, None], -1).sum()


def whole(of_rows, both_directions):
    """What one writes first."""

    def loss(a, b, scale, bias):
        total = of_rows(a, b, scale, bias, 0)
        return (total + of_rows(b, a, scale, bias, 0) if both_directions else total) / len(a)

    return loss


def scanned(of_rows, both_directions):
    """What one writes next."""

    def one_direction(a, b, scale, bias):
        size = min(2048, len(a))
        of_chunk = jax.checkpoint(of_rows)

        def step(total, chunk):
            rows, first = chunk
            return total + of_chunk(rows, b, scale, bias, first), None

        chunks = a.reshape(-1, size, a.shape[-1]), jnp.arange(0, len(a), size)
        return jax.lax.scan(step, jnp.zeros(()), chunks)[0]

    def loss(a, b, scale, bias):
        total = one_direction(a, b, scale, bias)
        return (total + one_direction(b, a, scale, bias) if both_directions else total) / len(a)

    return loss


def sigmoid(a, b, scale, bias):
    """Ours."""
    return jaxloss.sigmoid_contrastive(a, b, scale=scale, bias=bias)


def clip(a, b, scale, bias):
    """Ours."""
    del bias
    pairs, scaled = jnp.arange(len(a)), [(scale * x).astype(x.dtype) for x in (a, b)]
    options = {"kernel_axis": 0, "logits_dtype": jnp.float32}
    return sum(
        jaxloss.linear_cross_entropy(rows, others, pairs, **options)
        for rows, others in zip(scaled, (b, a), strict=True)
    )


# Of each loss ours, the formula of rows, and whether there are two directions.
LOSSES = {"SigLIP": (sigmoid, sigmoid_of_rows, False), "CLIP": (clip, softmax_of_rows, True)}


GOALS = {32768: Goal(gigabytes=1.0), 65536: Goal(gigabytes=1.4)}
"""By the number of rows, of 768 features: half a gigabyte of logits, and the embeddings' gradients in float32."""


def comparisons(work: Work) -> list[Comparison]:
    """Of both losses at one shape."""

    def limit(times: int):
        run = all_products(work)
        return lambda: [run() for _ in range(times)]

    found = []
    for name, (ours, of_rows, both) in LOSSES.items():
        contenders = {
            "jaxloss": ours,
            "whole logits": whole(of_rows, both),
            "scan and checkpoint": scanned(of_rows, both),
        }
        goals = {"jaxloss": GOALS[work.tokens]} if work in SHAPES["gpu"] else {}
        operands, of_limit = (
            functools.partial(embeddings, work),
            functools.lru_cache(functools.partial(limit, 1 + both)),
        )
        shape = dataclasses.asdict(work)
        found.append(Comparison(name, contenders, operands, of_limit, shape, wrt=(0, 1, 2, 3), goals=goals))
    return found


SHAPES = {
    "gpu": [Work(32768, 768, 32768), Work(65536, 768, 65536)],
    "cpu": [Work(4096, 256, 4096, "float32")],
    "quick": [Work(256, 32, 256, "float32")],
}


if __name__ == "__main__":
    shared.command("contrastive", __doc__, comparisons, SHAPES)
