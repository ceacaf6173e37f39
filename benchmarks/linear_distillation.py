"""Distillation from hidden states: jaxloss against its four matrix products, whole logits and a checkpointed scan.

Run it with `python -m benchmarks.linear_distillation [--only WORD] [--quick] [--output DIRECTORY]`. Writes
`linear_distillation_PLATFORM.json`. The limit is the products of value and gradients that
`benchmarks.linear_cross_entropy` times, and the one of the teacher's logits; memory is that script's too.
"""

import dataclasses

import jax
import jax.numpy as jnp

import jaxloss
from benchmarks import contenders as shared
from benchmarks.linear_cross_entropy import Work, products
from benchmarks.timing import Timing

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


@dataclasses.dataclass(frozen=True)
class Pair:
    """A student, and a teacher of the same tokens and classes."""

    student: Work
    teacher_width: int

    @property
    def teacher(self) -> Work:
        """Its shape."""
        return dataclasses.replace(self.student, width=self.teacher_width)

    def operands(self) -> tuple[jax.Array, ...]:
        """Hidden states and kernels of both, and labels."""
        teacher_hidden, teacher_kernel, _ = self.teacher.operands()
        hidden, kernel, labels = self.student.operands()
        # Where both are as wide they would be the same.
        return hidden, kernel, jnp.flip(teacher_hidden, 0), teacher_kernel, labels

    def limit(self) -> Timing:
        """The four products."""
        of_student, of_teacher = products(self.student)["value_and_grad"], products(self.teacher)["value"]
        return Timing(of_student.ms + of_teacher.ms, max(of_student.spread, of_teacher.spread))


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

    return {
        "jaxloss": jaxloss_of(),
        "jaxloss, chunks of 1024": jaxloss_of(chunk_size=1024),
        "jaxloss, summed in bfloat16": jaxloss_of(accumulate_dtype=jnp.bfloat16),
        "whole logits": whole_logits,
        "scan and checkpoint": scan_and_checkpoint,
    }


def compared(pair: Pair, only: str) -> list[dict]:
    """All contenders at one shape."""
    limit = pair.limit()
    print(f"{pair.student}, teacher's D = {pair.teacher_width}: four products {limit.ms:.2f} ms")
    losses = {name: contenders(name) for name in LOSSES if only in name}
    shape = {**dataclasses.asdict(pair.student), "teacher_width": pair.teacher_width}
    return shared.compared(losses, pair.operands(), limit, shape)


SHAPES = {
    "gpu": [Pair(Work(8192, 4096, 128256), 4096)],
    "cpu": [Pair(Work(2048, 256, 8192, "float32"), 512)],
    "quick": [Pair(Work(256, 32, 512, "float32"), 64)],
}


if __name__ == "__main__":
    shared.command("linear_distillation", __doc__, compared, SHAPES)
