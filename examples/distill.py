"""A small model of letters learns from little text, and from a teacher's hidden states, who has read much more.

Both models end, as language models do, in hidden states and an output layer. `linear_kl_divergence` takes these of the
student and of the teacher, and never materializes their logits. A student that has the text alone is trained beside it.

    python -m examples.distill --quick
"""

import functools
import pathlib
import sysconfig

import jax
import jax.numpy as jnp
import numpy as np
import optax

import examples
import jaxloss

LETTERS, CONTEXT, EMBEDDING, BATCH, PARTS = 128, 10, 16, 512, 10


def library_source(letters: int) -> np.ndarray:
    """Letters of Python's own sources, as numbers below 128."""
    files = sorted(pathlib.Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    letters_of_all = np.frombuffer(b"".join(path.read_bytes() for path in files), np.uint8)
    return letters_of_all[letters_of_all < LETTERS][:letters].astype(np.int32)


def initial(width: int) -> dict[str, jax.Array]:
    """The parameters of a model whose hidden states have this width."""
    keys, normal = jax.random.split(jax.random.key(width), 3), jax.random.normal
    return {
        "embedding": normal(keys[0], (LETTERS, EMBEDDING)),
        "inner": normal(keys[1], (CONTEXT * EMBEDDING, width)) / (CONTEXT * EMBEDDING) ** 0.5,
        "output": normal(keys[2], (width, LETTERS)) / width**0.5,
    }


def hidden_of(params, contexts):
    """Hidden states [n, width], of the letters [n, CONTEXT] before each."""
    return jax.nn.gelu(params["embedding"][contexts].reshape(len(contexts), -1) @ params["inner"])


def from_text(params, contexts, labels):
    """Cross entropy of the next letter."""
    return jaxloss.linear_cross_entropy(hidden_of(params, contexts), params["output"], labels)


def from_teacher(teacher, params, contexts, _):
    """The divergence from the teacher's prediction of the next letter."""
    of_teacher = hidden_of(teacher, contexts), teacher["output"]
    return jaxloss.linear_kl_divergence(hidden_of(params, contexts), params["output"], *of_teacher)


def trained(width: int, loss, text, steps: int, unseen):
    """A model of this width, and its cross entropy of unseen text after each tenth of the steps."""
    params, optimiser = initial(width), optax.adam(optax.cosine_decay_schedule(5e-3, steps))

    def windows(text, starts):
        places = starts[:, None] + jnp.arange(CONTEXT + 1)
        return text[places[:, :-1]], text[places[:, -1]]

    def step(carry, key):
        params, state = carry
        batch = windows(text, jax.random.randint(key, (BATCH,), 0, len(text) - CONTEXT))
        update, state = optimiser.update(jax.grad(loss)(params, *batch), state)
        return (optax.apply_updates(params, update), state), None

    @jax.jit
    def part(carry, keys):
        carry, _ = jax.lax.scan(step, carry, keys)
        return carry, from_text(carry[0], *windows(unseen, jnp.arange(len(unseen) - CONTEXT)))

    carry, curve = (params, optimiser.init(params)), []
    for keys in jax.random.split(jax.random.key(0), (PARTS, steps // PARTS)):
        carry, value = part(carry, keys)
        curve.append(float(value))
    return carry[0], curve


def main(quick: bool = False) -> dict[str, list[float]]:
    """Trains all three, and returns the cross entropy of unseen text, of each after each tenth of its training."""
    text = jnp.asarray(library_source(400_000 if quick else 2_000_000))
    unseen, little, much = text[:10_000], text[10_000:20_000], text[10_000:]
    curves = {}
    teacher, curves["teacher"] = trained(256, from_text, much, 600 if quick else 6000, unseen)
    for name, loss in {"text": from_text, "teacher": functools.partial(from_teacher, teacher)}.items():
        _, curves[f"student, from the {name}"] = trained(64, loss, little, 300, unseen)
    print(f"cross entropy of unseen text, in nats a letter, by tenths of the training; students have {len(little)}")
    for name, curve in curves.items():
        print(f"\n{name}")
        for value in curve:
            print(f"{value:6.2f} {'█' * round(12 * value)}")
    return curves


if __name__ == "__main__":
    main(examples.quick())
