"""What linear distillation computes, from whole logits; and a sample of its operands."""

import jax
import jax.numpy as jnp
import numpy as np

import jaxloss
from linear_oracle import sample

KINDS = ("forward", "reverse", "js")


def loss_of(kind, **options):
    """The public function of that kind."""
    if kind == "js":
        return lambda *operands, **given: jaxloss.linear_jensen_shannon(*operands, **options, **given)
    return lambda *operands, **given: jaxloss.linear_kl_divergence(*operands, direction=kind, **options, **given)


def operands(tokens, width, teacher_width, classes, seed=0) -> dict[str, np.ndarray]:
    """Arrays by the names of the arguments."""
    student, teacher = (
        sample(tokens, *sizes, classes, seed) for sizes, seed in (((width,), seed), ((teacher_width,), seed + 1))
    )
    return {
        "hidden": student.hidden,
        "kernel": student.kernel,
        "teacher_hidden": teacher.hidden,
        "teacher_kernel": teacher.kernel,
        "bias": student.bias,
        "teacher_bias": teacher.bias,
        "labels": student.labels,
    }


def rows(
    kind,
    x,
    y,
    temperature=1.0,
    beta=0.5,
    labels=None,
    soft_weight=1.0,
    hard_weight=1.0,
    softcap=None,
    teacher_softcap=None,
):
    """The loss of each row of the student's and the teacher's logits."""
    if softcap is not None:
        x = softcap * jnp.tanh(x / softcap)
    if teacher_softcap is not None:
        y = jax.lax.stop_gradient(teacher_softcap * jnp.tanh(y / teacher_softcap))
    log_p, log_q = (jax.nn.log_softmax(logits / temperature) for logits in (x, y))
    p, q = jnp.exp(log_p), jnp.exp(log_q)
    if kind == "js":
        log_m = jnp.logaddexp(jnp.log(beta) + log_q, jnp.log1p(-beta) + log_p)
        soft = (beta * q * (log_q - log_m) + (1 - beta) * p * (log_p - log_m)).sum(-1)
    else:
        soft = (p * (log_p - log_q) if kind == "reverse" else q * (log_q - log_p)).sum(-1)
    if labels is None:
        return soft
    return soft_weight * soft - hard_weight * jnp.take_along_axis(jax.nn.log_softmax(x), labels[..., None], -1)[..., 0]


def formula(kind, o, mask, **static):
    """The mean over the tokens that are not masked, of operands and options by their names."""
    o = dict(o)
    x = o.pop("hidden") @ o.pop("kernel") + o.pop("bias")
    y = jax.lax.stop_gradient(o.pop("teacher_hidden") @ o.pop("teacher_kernel") + o.pop("teacher_bias"))
    weights, n = o.pop("weights", 1.0), o.pop("normalizer", mask.sum())
    labels = o.pop("labels", None)
    return jnp.where(mask, weights * rows(kind, x, y, labels=labels, **o, **static), 0).sum() / n
