"""Trains a small GPT (flax.nnx) on the source of Python's standard library, with `jaxloss.linear_cross_entropy`.

Run it with `make example NAME=language_model`, or with `python -m examples.language_model`; it needs flax, optax, tqdm
and matplotlib, which `pip install --group examples` brings. It takes some two minutes on a CPU, and a larger model on a
GPU. It shows what the model writes before and after, draws the loss (`language_model.png`), and measures memory and
time of a training step with jaxloss and with optax.

The loss is one line, `LOSS` below. The embedding is tied: its table `[V, D]` is the kernel of the loss too, classes
first.
"""

import argparse
import dataclasses
import functools
import pathlib
import re
import sysconfig
import time
from collections import Counter

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
from flax import nnx
from tqdm import tqdm

import jaxloss

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def with_jaxloss(hidden, table, tokens):
    """Each token predicts the next one; the logits never exist as a whole."""
    return jaxloss.linear_cross_entropy(hidden, table, tokens, kernel_axis=0, shift=1)


def with_optax(hidden, table, tokens):
    """The same with logits."""
    logits = (hidden[:, :-1] @ table.T).astype(jnp.float32)
    return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()


LOSS = with_jaxloss  # or with_optax


@dataclasses.dataclass(frozen=True)
class Size:
    """Of the model and its training."""

    vocabulary: int
    width: int
    layers: int
    heads: int
    length: int
    batch: int
    steps: int
    dtype: str


SIZES = {
    "cpu": Size(4096, width=128, layers=3, heads=4, length=64, batch=16, steps=200, dtype="float32"),
    "gpu": Size(65536, width=768, layers=12, heads=12, length=512, batch=32, steps=1500, dtype="bfloat16"),
}


# ---- text ------------------------------------------------------------------------------------------------------------

_PIECE = re.compile(r" ?[A-Za-z_]+|\d| ?[^\w\s]+|\n *|\s")


class Vocabulary:
    """The most frequent words, and the bytes that the others are made of."""

    def __init__(self, text: str, size: int):
        counts = Counter(_PIECE.findall(text))
        words = [word for word, _ in counts.most_common(size - 256) if len(word) > 1]
        self.pieces = [bytes([byte]) for byte in range(256)] + [word.encode() for word in words]
        self.index = {piece: index for index, piece in enumerate(self.pieces)}

    def __len__(self) -> int:
        return len(self.pieces)

    def encode(self, text: str) -> np.ndarray:
        """The tokens of a text."""
        tokens: list[int] = []
        for piece in _PIECE.findall(text):
            whole = self.index.get(piece.encode())
            tokens.extend(piece.encode() if whole is None else [whole])
        return np.array(tokens, np.int32)

    def decode(self, tokens) -> str:
        """The text of tokens."""
        return b"".join(self.pieces[token] for token in tokens).decode(errors="replace")


def library_source(most: int = 8_000_000) -> str:
    """So many characters of Python's standard library."""
    folder = pathlib.Path(sysconfig.get_paths()["stdlib"])
    files = sorted(path for path in folder.rglob("*.py") if "site-packages" not in path.parts)
    text = ""
    for path in files:
        text += path.read_text(encoding="utf-8", errors="replace")
        if len(text) > most:
            break
    return text[:most]


def batches(tokens: np.ndarray, size: Size, seed: int = 0):
    """Random stretches of the text."""
    rng = np.random.default_rng(seed)
    while True:
        starts = rng.integers(0, len(tokens) - size.length, size.batch)
        yield np.stack([tokens[start : start + size.length] for start in starts])


# ---- model -----------------------------------------------------------------------------------------------------------


class Block(nnx.Module):
    """Attention, then a perceptron."""

    def __init__(self, size: Size, rngs: nnx.Rngs):
        linear = functools.partial(nnx.Linear, use_bias=False, dtype=size.dtype, rngs=rngs)
        norm = functools.partial(nnx.RMSNorm, size.width, dtype=size.dtype, rngs=rngs)
        self.heads = size.heads
        self.before_attention, self.before_perceptron = norm(), norm()
        self.queries_keys_values = linear(size.width, 3 * size.width)
        self.attended = linear(size.width, size.width)
        self.up, self.down = linear(size.width, 4 * size.width), linear(4 * size.width, size.width)

    def __call__(self, x):
        """Hidden states to hidden states, `[batch, length, width]`."""
        batch, length, width = x.shape
        qkv = self.queries_keys_values(self.before_attention(x)).reshape(batch, length, 3, self.heads, -1)
        attended = jax.nn.dot_product_attention(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2], is_causal=True)
        x = x + self.attended(attended.reshape(batch, length, width))
        return x + self.down(jax.nn.gelu(self.up(self.before_perceptron(x))))


class GPT(nnx.Module):
    """Tokens to hidden states; the logits are their products with the embedding's table."""

    def __init__(self, size: Size, vocabulary: int, rngs: nnx.Rngs):
        scale = nnx.initializers.normal(0.02)
        self.dtype = size.dtype
        self.table = nnx.Param(scale(rngs.params(), (vocabulary, size.width), jnp.float32))
        self.places = nnx.Param(scale(rngs.params(), (size.length, size.width), jnp.float32))
        self.blocks = nnx.List([Block(size, rngs) for _ in range(size.layers)])
        self.norm = nnx.RMSNorm(size.width, dtype=size.dtype, rngs=rngs)

    def __call__(self, tokens):
        """Hidden states `[batch, length, width]` and the table, both in the type that is computed in."""
        table = self.table[...].astype(self.dtype)
        x = table[tokens] + self.places[...][: tokens.shape[-1]].astype(self.dtype)
        for block in self.blocks:
            x = block(x)
        return self.norm(x), table


# ---- training --------------------------------------------------------------------------------------------------------


def training_step(graph, optimiser, loss):
    """A step of parameters and optimiser's state, donated."""

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(parameters, state, tokens):
        def total(parameters):
            return loss(*nnx.merge(graph, parameters)(tokens), tokens)

        value, gradient = jax.value_and_grad(total)(parameters)
        update, state = optimiser.update(gradient, state, parameters)
        return optax.apply_updates(parameters, update), state, value

    return step


def written(graph, parameters, vocabulary: Vocabulary, size: Size, prompt: str, count: int = 60) -> str:
    """What the model goes on to write."""

    @jax.jit
    def next_token(parameters, tokens, place, key):
        hidden, table = nnx.merge(graph, parameters)(tokens[None])
        logits = (hidden[0, place] @ table.T).astype(jnp.float32)
        return jax.random.categorical(key, logits / 0.8)

    tokens = list(vocabulary.encode(prompt))
    for key in jax.random.split(jax.random.key(0), count):
        window = tokens[-size.length :]
        padded = np.zeros(size.length, np.int32)
        padded[: len(window)] = window
        tokens.append(int(next_token(parameters, padded, len(window) - 1, key)))
    return vocabulary.decode(tokens)


def measured(step, parameters, state, tokens, repeats: int = 10) -> tuple[float, float]:
    """The memory that a step takes in megabytes, parameters and all, and its time in milliseconds."""
    compiled = step.lower(parameters, state, tokens).compile()
    copied = jax.tree.map(jnp.copy, (parameters, state))
    *copied, value = compiled(*copied, tokens)
    jax.block_until_ready(value)
    start = time.perf_counter()
    for _ in range(repeats):
        *copied, value = compiled(*copied, tokens)
    jax.block_until_ready(value)
    milliseconds = (time.perf_counter() - start) / repeats * 1e3
    memory = compiled.memory_analysis()
    peak = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    return (peak - memory.alias_size_in_bytes) / 1e6, milliseconds


def draw(losses: list[float], path: pathlib.Path) -> None:
    """The loss over the steps."""
    figure, axis = plt.subplots(figsize=(7, 4), layout="constrained")
    axis.plot(losses, color="#1b5faa", linewidth=1)
    axis.set_xlabel("step")
    axis.set_ylabel("cross entropy, nats a token")
    axis.grid(color="#e4e4e4")
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Trains, and shows what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, help="how many; default: as many as take two minutes on a CPU")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("."), help="the folder for the picture")
    arguments = parser.parse_args()
    size = SIZES.get(jax.devices()[0].platform, SIZES["gpu"])
    if arguments.steps is not None:
        size = dataclasses.replace(size, steps=arguments.steps)

    text = library_source()
    vocabulary = Vocabulary(text, size.vocabulary)
    tokens = vocabulary.encode(text)
    print(f"{len(text):,} characters, {len(tokens):,} tokens, a vocabulary of {len(vocabulary):,}")
    graph, parameters = nnx.split(GPT(size, len(vocabulary), nnx.Rngs(0)))
    count = sum(leaf.size for leaf in jax.tree.leaves(parameters))
    print(f"{count:,} parameters, {size.batch * size.length:,} tokens a step, on {jax.devices()[0].device_kind}")

    schedule = optax.warmup_cosine_decay_schedule(0, 2e-3, size.steps // 10, max(size.steps, 2))
    optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.95))
    state, data = optimiser.init(parameters), batches(tokens, size)
    first = next(data)
    for loss in (with_jaxloss, with_optax):
        megabytes, milliseconds = measured(training_step(graph, optimiser, loss), parameters, state, first)
        print(f"{loss.__name__:13s} {megabytes:9.1f} MB, {milliseconds:8.1f} ms a step")

    prompt = "def main(self):\n"
    print(f"\nBefore:\n{written(graph, parameters, vocabulary, size, prompt)}\n")
    step, losses = training_step(graph, optimiser, LOSS), []
    progress = tqdm(range(size.steps), desc=LOSS.__name__)
    for _ in progress:
        parameters, state, value = step(parameters, state, next(data))
        losses.append(float(value))
        progress.set_postfix(loss=f"{np.mean(losses[-20:]):.3f}")
    print(f"\nAfter:\n{written(graph, parameters, vocabulary, size, prompt)}\n")

    arguments.output.mkdir(parents=True, exist_ok=True)
    path = arguments.output / "language_model.png"
    draw(losses, path)
    print(path)


if __name__ == "__main__":
    main()
