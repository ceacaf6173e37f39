"""The sigmoid loss of pairs, and its derivative."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxloss.formulas.arithmetic import Array, real
from jaxloss.formulas.categorical import one_hot


def sigmoid_contrastive(logits: Array, pairs: Array) -> Array:
    r"""$\sum_j -\log \sigma(z_j x_j)$ of each row, $z$ being 1 at its index in `pairs` and -1 elsewhere."""
    wrong = _wrong(logits, one_hot(pairs, logits.shape[-1]))
    return jnp.sum(jnp.maximum(wrong, 0) + jnp.log1p(jnp.exp(-jnp.abs(wrong))), axis=-1)


def d_sigmoid_contrastive(logits: Array, pairs: Array) -> Array:
    r"""The derivative with respect to the logits, $-z_j \sigma(-z_j x_j)$."""
    is_pair = one_hot(pairs, logits.shape[-1])
    missing = jax.nn.sigmoid(_wrong(logits, is_pair))
    return jnp.where(is_pair, -missing, missing)


def _wrong(logits: Array, is_pair: Array) -> Array:
    """How much a logit speaks for what is wrong: no loss of it is a difference of larger numbers."""
    x = real(logits)
    return jnp.where(is_pair, -x, x)
