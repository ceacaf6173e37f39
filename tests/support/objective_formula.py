"""What `linear_objective` computes, from whole logits."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxloss.objectives import Tokens


def statistics(hidden, kernel, labels, mask, *, bias=None, softcap=None, temperature=1.0):
    """`Tokens` of all sequences; hidden states that are masked are not looked at."""
    wide = jnp.promote_types(hidden.dtype, jnp.float32)
    logits = jnp.where(mask[..., None], hidden, 0).astype(wide) @ kernel.astype(wide)
    logits = logits if bias is None else logits + bias
    logits = logits if softcap is None else softcap * jnp.tanh(logits / softcap)
    log_softmax = jax.nn.log_softmax(logits / temperature)
    of_label = jnp.take_along_axis(log_softmax, jnp.where(mask, labels, 0)[..., None], -1)[..., 0]
    entropy = -(jnp.exp(log_softmax) * log_softmax).sum(-1)
    lse = jax.nn.logsumexp(logits / temperature, -1)
    return Tokens(*(jnp.where(mask, x, 0) for x in (of_label, entropy, lse)), jnp.asarray(mask))


def formula(hidden, kernel, labels, objective, *data, mask, group=1, n=1, **options):
    """Of hidden states `[S, T, D]`, and a mask that is known: the objective of all blocks that count, which it sums."""
    counts = np.repeat(np.asarray(mask).reshape(len(labels) // group, -1).any(1), group)
    tokens = statistics(hidden[counts], kernel, labels[counts], np.asarray(mask)[counts], **options)
    result = objective(tokens, *(x[counts] for x in data))
    return (result[0] / n, result[1]) if isinstance(result, tuple) else result / n
