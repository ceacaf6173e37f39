"""Trains a small GPT (flax.nnx) on the source of Python's standard library, with `linear_cross_entropy`.

The embedding is tied: its table [V, D] is the loss's kernel too. A step is compared with one of optax's loss.

    python -m examples.language_model --quick
"""

import collections
import functools
import pathlib
import re
import sysconfig
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import examples
import jaxloss

VOCABULARY, WIDTH, HEADS, LENGTH, BATCH = 8192, 128, 4, 64, 32


def with_jaxloss(hidden, table, tokens):  # each token predicts the next one; logits exist for a chunk at a time
    return jaxloss.linear_cross_entropy(hidden, table, tokens, kernel_axis=0, shift=1)


def with_optax(hidden, table, tokens):
    return optax.softmax_cross_entropy_with_integer_labels(hidden[:, :-1] @ table.T, tokens[:, 1:]).mean()


def library_source(letters: int) -> tuple[np.ndarray, list[str]]:
    """Tokens of Python's own sources, and what each stands for: a frequent word, or "?" for all others."""
    files = sorted(pathlib.Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    pieces = re.findall(r" ?\w+| ?[^\w\s]+|\n *|\s", "".join(path.read_text("utf-8") for path in files)[:letters])
    words = ["?", *(word for word, _ in collections.Counter(pieces).most_common(VOCABULARY - 1))]
    index = {word: number for number, word in enumerate(words)}
    return np.array([index.get(piece, 0) for piece in pieces], np.int32), words


class Block(nnx.Module):
    def __init__(self, rngs):
        self.norms = nnx.List([nnx.RMSNorm(WIDTH, rngs=rngs), nnx.RMSNorm(WIDTH, rngs=rngs)])
        shapes = (WIDTH, 3 * WIDTH), (WIDTH, WIDTH), (WIDTH, 4 * WIDTH), (4 * WIDTH, WIDTH)
        self.layers = nnx.List([nnx.Linear(*shape, rngs=rngs) for shape in shapes])

    def __call__(self, x):
        heads, mixed, up, down = self.layers
        q, k, v = jnp.moveaxis(heads(self.norms[0](x)).reshape(*x.shape[:2], 3, HEADS, -1), 2, 0)
        x = x + mixed(jax.nn.dot_product_attention(q, k, v, is_causal=True).reshape(x.shape))
        return x + down(jax.nn.gelu(up(self.norms[1](x))))


class GPT(nnx.Module):  # tokens [n, LENGTH] to hidden states, and the table: the logits are their product
    def __init__(self, blocks, rngs):
        self.table = nnx.Param(0.02 * jax.random.normal(rngs.params(), (VOCABULARY, WIDTH)))
        self.places = nnx.Param(0.02 * jax.random.normal(rngs.params(), (LENGTH, WIDTH)))
        self.layers = nnx.Sequential(*(Block(rngs) for _ in range(blocks)), nnx.RMSNorm(WIDTH, rngs=rngs))

    def __call__(self, tokens):
        return self.layers(self.table[...][tokens] + self.places[...]), self.table[...]


def main(quick: bool = False) -> dict[str, list[float]]:
    """Trains with both losses, shows what the model writes, and returns the losses."""
    blocks, steps = (1, 30) if quick else (3, 300)
    tokens, words = library_source(500_000 if quick else 8_000_000)
    graph, first = nnx.split(GPT(blocks, nnx.Rngs(0)))
    optimiser, losses = optax.adam(optax.warmup_cosine_decay_schedule(0, 3e-3, steps // 10, steps)), {}

    def step(params, state, tokens, loss):
        value, gradient = jax.value_and_grad(lambda params: loss(*nnx.merge(graph, params)(tokens), tokens))(params)
        update, state = optimiser.update(gradient, state)
        return optax.apply_updates(params, update), state, value

    for loss in (with_optax, with_jaxloss):
        params, state, rng, losses[loss.__name__] = first, optimiser.init(first), np.random.default_rng(0), []
        batch = jax.ShapeDtypeStruct((BATCH, LENGTH), jnp.int32)
        compiled = jax.jit(functools.partial(step, loss=loss)).lower(params, state, batch).compile()
        start = time.perf_counter()
        for _ in range(steps):
            starts = rng.integers(0, len(tokens) - LENGTH, (BATCH, 1))
            params, state, value = compiled(params, state, tokens[starts + np.arange(LENGTH)])
            losses[loss.__name__].append(float(value))
        ms, of_all = 1000 * (time.perf_counter() - start) / steps, compiled.memory_analysis().temp_size_in_bytes
        print(f"{loss.__name__:12}: loss {value:.3f}; {ms:.0f} ms and {of_all / 1e6:.0f} MB of temporaries a step")
    text = list(tokens[:LENGTH])
    for key in jax.random.split(jax.random.key(0), 40):
        hidden, table = nnx.merge(graph, params)(jnp.array([text[-LENGTH:]]))
        text.append(int(jax.random.categorical(key, hidden[0, -1] @ table.T / 0.7)))
    print("it writes:", "".join(words[token] for token in text[LENGTH:]))
    return losses


if __name__ == "__main__":
    main(examples.quick())
