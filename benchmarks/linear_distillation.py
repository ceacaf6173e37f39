"""Distillation from hidden states: jaxloss against its four matrix products, whole logits, a scan, and Liger.

Run it with `python -m benchmarks.linear_distillation [--only WORD] [--who WORD] [--budget SECONDS] [--quick]
[--output DIRECTORY]`. Writes `linear_distillation_PLATFORM.json`, and fails if a goal is missed. The limit is the
products of value and gradients that `benchmarks.linear_cross_entropy` times, and the one of the teacher's logits, in
turn with each contender; memory is that script's too. Liger, a package of torch, is left out where it is not installed.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

import jaxloss
from benchmarks import contenders as shared
from benchmarks.contenders import Comparison, Goal
from benchmarks.linear_cross_entropy import Work, forward_product, product_programs
from jaxloss._linear import chunks

BETA, TEMPERATURE, HARD = 0.5, 2.0, 0.1


def forward(log_p, log_q):
    """The KL divergence of rows, from logarithms of the student's and the teacher's probabilities."""
    return (jnp.exp(log_q) * (log_q - log_p)).sum(-1)


def reverse(log_p, log_q):
    """The other way."""
    return forward(log_q, log_p)


def jensen_shannon(log_p, log_q):
    """The generalised divergence of rows."""
    log_m = jnp.logaddexp(log_q + jnp.log(BETA), log_p + jnp.log1p(-BETA))
    return BETA * forward(log_m, log_q) + (1 - BETA) * forward(log_m, log_p)


def kl(**options):
    """What makes a function of the operands that ours is called with."""
    return lambda *operands, **given: jaxloss.linear_kl_divergence(
        *operands, temperature=TEMPERATURE, **options, **given
    )


def js(**options):
    """The same of the other divergence."""
    return lambda *operands, **given: jaxloss.linear_jensen_shannon(
        *operands, temperature=TEMPERATURE, beta=BETA, **options, **given
    )


# Ours, the formula of rows, and whether there are labels.
LOSSES = {
    "KL": (kl(), forward, False),
    "reverse KL": (kl(direction="reverse"), reverse, False),
    "Jensen-Shannon": (js(), jensen_shannon, False),
    "KL and labels": (kl(hard_weight=HARD), forward, True),
    "Jensen-Shannon and labels": (js(hard_weight=HARD), jensen_shannon, True),
}


GOALS = {"KL": {"jaxloss": Goal(1.08, gigabytes=3.0)}}
"""At the shape of a GPU."""


@dataclasses.dataclass(frozen=True)
class Pair:
    """A student, and a teacher of the same tokens and classes."""

    student: Work
    teacher_width: int

    @property
    def teacher(self) -> Work:
        """Its shape."""
        return dataclasses.replace(self.student, width=self.teacher_width)

    @functools.lru_cache(maxsize=1)  # noqa: B019 (one shape at a time)
    def operands(self) -> tuple[jax.Array, ...]:
        """Hidden states and kernels of both, and labels."""
        teacher_hidden, teacher_kernel, _ = self.teacher.operands()
        hidden, kernel, labels = self.student.operands()
        # Where both are as wide they would be the same.
        return hidden, kernel, jnp.flip(teacher_hidden, 0), teacher_kernel, labels

    def limit(self):
        """The four products."""
        teacher_hidden, teacher_kernel = self.operands()[2:4]
        programs = [*product_programs(self.student), forward_product(teacher_hidden, teacher_kernel)]
        return lambda: [program() for program in programs]


def contenders(name: str) -> dict:
    """Functions of the operands."""
    ours, of_rows, has_labels = LOSSES[name]

    def jaxloss_of(**options):
        def loss(hidden, kernel, teacher_hidden, teacher_kernel, labels):
            given = {"labels": labels} if has_labels else {}
            return ours(hidden, kernel, teacher_hidden, teacher_kernel, **given, **options)

        return loss

    def of_tokens(hidden, kernel, teacher_hidden, teacher_kernel, labels):
        student, teacher = (
            (h @ w).astype(jnp.float32) for h, w in ((hidden, kernel), (teacher_hidden, teacher_kernel))
        )
        losses = of_rows(*(jax.nn.log_softmax(logits / TEMPERATURE) for logits in (student, teacher)))
        if has_labels:
            losses -= HARD * jnp.take_along_axis(jax.nn.log_softmax(student), labels[:, None], -1)[:, 0]
        return losses.sum()

    def whole_logits(*operands):
        return of_tokens(*operands) / len(operands[0])

    def scan_and_checkpoint(hidden, kernel, teacher_hidden, teacher_kernel, labels):
        @jax.checkpoint
        def of_chunk(hidden, teacher_hidden, labels):
            return of_tokens(hidden, kernel, teacher_hidden, teacher_kernel, labels)

        def step(total, chunk):
            return total + of_chunk(*chunk), None

        chunks = [x.reshape(-1, min(2048, len(x)), *x.shape[1:]) for x in (hidden, teacher_hidden, labels)]
        return jax.lax.scan(step, jnp.zeros(()), tuple(chunks))[0] / len(labels)

    of_liger = contenders_of_liger(name) if jax.devices()[0].platform == "gpu" else {}
    return {
        "jaxloss": jaxloss_of(),
        "jaxloss, first chunk in the loop": shared.with_setting(chunks, "APART_FROM", 2**62, jaxloss_of()),
        "jaxloss, chunks of 2048": jaxloss_of(chunk_size=2048),
        "jaxloss, summed in bfloat16": jaxloss_of(accumulate_dtype=jnp.bfloat16),
        "jaxloss, softcaps": jaxloss_of(softcap=30.0, teacher_softcap=30.0),
        "whole logits": whole_logits,
        "scan and checkpoint": scan_and_checkpoint,
        **of_liger,
    }


LIGER_BETA = {"KL": 0.0, "reverse KL": 1.0, "Jensen-Shannon": BETA}
"""Which of Liger's divergences are these; with labels it has none."""


def contenders_of_liger(name: str) -> dict[str, shared.OfTorch]:
    """Its fused divergence, where it is installed. By default it accumulates the gradient of the kernel in bfloat16."""
    if name not in LIGER_BETA:
        return {}

    def made(accumulate: str | None):
        import torch

        from benchmarks import linear_torch

        dtype = accumulate and getattr(torch, accumulate)
        return linear_torch.liger_jensen_shannon(LIGER_BETA[name], TEMPERATURE, dtype)

    return shared.peers(
        {
            "liger_kernel": {
                "Liger": shared.OfTorch(lambda: made(None)),
                "Liger, summed in float32": shared.OfTorch(lambda: made("float32")),
            }
        }
    )


def comparisons(pair: Pair) -> list[Comparison]:
    """Of all losses at one shape."""
    shape = {**dataclasses.asdict(pair.student), "teacher_width": pair.teacher_width}
    limit = functools.lru_cache(pair.limit)
    goals = GOALS if pair in SHAPES["gpu"] else {}
    return [
        Comparison(name, contenders(name), pair.operands, limit, shape, goals=goals.get(name, {})) for name in LOSSES
    ]


SHAPES = {
    "gpu": [Pair(Work(8192, 4096, 128256), 4096)],
    "cpu": [Pair(Work(2048, 256, 8192, "float32"), 512)],
    "quick": [Pair(Work(256, 32, 512, "float32"), 64)],
}


if __name__ == "__main__":
    shared.command("linear_distillation", __doc__, comparisons, SHAPES)
