"""What the options of cross entropy cost: off, each alone and all at once, against XLA's formula with the same options.

Run it with `python -m benchmarks.options [--output DIRECTORY]`; it writes `options_PLATFORM.json`. Every time is one of
value and gradient, as the ratio to the time that the same process takes to copy the logits once.
"""

import argparse

import jax
import jax.numpy as jnp

import jaxloss
from benchmarks import record
from benchmarks.timing import timed
from jaxloss._spec import OPTIONS

SHAPES = {"gpu": [(8192, 128256), (16384, 32000), (65536, 1024)], "cpu": [(256, 32768), (4096, 1024)]}
OFF = {name: option.off for name, option in OPTIONS.items() if option.is_argument}


def sets(classes: int) -> dict[str, dict]:
    """Options by the name of what is on."""
    alone = {
        "class_weights": jnp.ones(classes),
        "label_smoothing": 0.1,
        "z_loss": 1e-4,
        "softcap": 30.0,
        "margin": 0.35,
        "temperature": 0.7,
        "num_classes": classes - 8,
    }
    return (
        {"none given": {}, "all off": OFF}
        | {name: {name: option} for name, option in alone.items()}
        | {"all on": alone}
    )


def by_xla(x, labels, **options):
    """The formula, under `jit`."""
    losses = jaxloss.formulas.categorical_cross_entropy(
        x, labels, **{name: option for name, option in options.items() if option is not None}
    )
    return losses.mean()


def main() -> None:
    """Prints a line for each set of options, and writes them."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", help="where to write; default: benchmarks/results")
    output = parser.parse_args().output
    platform = jax.default_backend()
    measurements = []
    for rows, classes in SHAPES["cpu" if platform == "cpu" else "gpu"]:
        x = jax.random.normal(jax.random.key(0), (rows, classes), jnp.float32).astype(jnp.bfloat16)
        labels = jax.random.randint(jax.random.key(1), (rows,), 0, classes - 8, jnp.int32)
        limit = timed(jax.jit(lambda x: x * jnp.bfloat16(1.5)), x).ms
        print(f"bfloat16 [{rows}, {classes}]: a copy takes {limit:.3f} ms")
        functions = {name: (jaxloss.categorical_cross_entropy, options) for name, options in sets(classes).items()}
        functions["with statistics"] = (
            lambda *operands, **options: jaxloss.categorical_cross_entropy_with_stats(*operands, **options)[0],
            {},
        )
        functions |= {
            f"XLA, {name}": (by_xla, options)
            for name, options in sets(classes).items()
            if name in ("none given", "z_loss")
        }
        for name, (loss, options) in functions.items():
            step = jax.jit(jax.value_and_grad(lambda x, labels, loss=loss, options=options: loss(x, labels, **options)))
            time = timed(step, x, labels)
            print(f"  {name:20} {time.ms:8.3f} ms = {time.ms / limit:.3f} copies")
            measurements.append(
                {"shape": [rows, classes], "options": name, "ms": time.ms, "spread": time.spread, "copy_ms": limit}
            )
    print(record.write(f"options_{platform}", measurements, output))


if __name__ == "__main__":
    main()
