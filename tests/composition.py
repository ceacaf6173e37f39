"""Writes `docs/composition.md` from the tables that the tests run: what jaxloss is known to work under.

Run it with `PYTHONPATH=. python tests/composition.py`. `test_composition.py` fails if the page is not what this writes.
"""

import os
import pathlib

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")

import test_axis_name
import test_shard_map
import test_sharding
from losses import MATRIX, REDUCTIONS
from transforms import TRANSFORMS, TRANSFORMS_OF_TARGET

PAGE = pathlib.Path(__file__).parents[1] / "docs" / "composition.md"

HEAD = """# What the losses compose with

This page is written by `tests/composition.py` from the tables that the tests run. Every cell of them is a test: the result
agrees with the plain formula under the same transform in float64, to a tolerance derived from the type. The suite runs on the
oldest and the newest supported jax in CI; its transforms run on a GPU too (`make test-gpu`), and the main ones of its
placements on two GPUs or more (`make test-multi-gpu`).

A dot is a tested cell, for each of the reductions {reductions}.
"""

EXCEPTIONS = """## What cannot be

| | why | what happens |
|---|---|---|
| the gradient with respect to class indices | integers have no derivative | JAX's own error |
| reverse mode through a `while_loop` | JAX has none, for any function | JAX's own error; forward mode works |
| `axis_name=` under `shard_map(check_vma=False)` | without checked types nobody knows which axes split the classes | a `ValueError` that says so |
| features that do not divide among the devices, under automatic sharding | the partitioner pads, and padding would count | they are gathered first; the result is right |
| some axes of a mesh manual, the classes split over the others | the types inside do not say how | the classes are gathered over those; the result is right |
"""

SHARDING = """## Sharding

On a mesh of 8 devices, d (4) × v (2), with automatic and with explicit axes. The gradient keeps the sharding of its operand,
and the compiled module holds no all-gather, no all-to-all and no collective-permute; what is reduced is numbers of one a row.

n is the global batch under `jit`. Inside `shard_map` it is what the device holds: give the global one as `normalizer=` and add
the shares up with `jax.lax.psum`.
"""

AXIS_NAME = """## A vocabulary that the caller has split

`axis_name=` inside `shard_map`, Megatron style: labels are indices of the whole vocabulary, three numbers a row are exchanged,
the gradient is that of the local slice.
"""


def table(heads: list[str], lines: list[tuple[str, list[bool]]]) -> str:
    """A Markdown table with a dot where true."""
    rows = [f"| `{name}` | {' | '.join('●' if cell else '' for cell in cells)} |" for name, cells in lines]
    return "\n".join([f"| | {' | '.join(heads)} |", f"|---|{':-:|' * len(heads)}", *rows]) + "\n"


def page() -> str:
    """The text of the page."""
    names = [str(case).replace("-", ", ") for case in MATRIX]
    everywhere = [True] * len(MATRIX)
    transforms = [(name, everywhere) for name in TRANSFORMS]
    transforms += [(name, [case.of_target for case in MATRIX]) for name in TRANSFORMS_OF_TARGET]
    placements = list(test_sharding.PLACEMENTS)
    stacked = ("rows", "features", "both")
    sharded = [(name, [True] * len(placements)) for name in test_sharding.PROGRAMS]
    sharded += [(name, [placement in stacked for placement in placements]) for name in test_sharding.STACKED_PROGRAMS]
    inside = [(name, [True] * len(test_shard_map.SPLITS)) for name in test_sharding.PROGRAMS]
    splits = list(test_axis_name.SPLITS)
    by_hand = [(name, [True] * len(splits)) for name in (*test_axis_name.NAMES, *test_axis_name.NAMES_OF_TARGET)]
    return "\n".join(
        [
            HEAD.format(reductions=", ".join(f"`{reduction}`" for reduction in REDUCTIONS)),
            "## Transforms\n",
            table(names, transforms),
            "Besides: eager calls, every floating-point type, derivatives with respect to `weights` and `normalizer`, batched",
            "masks, ahead-of-time compilation, `jax.export` for cpu, cuda, tpu and all in one artefact, with symbolic batch",
            "sizes, donated logits, `debug_nans`, and two processes under `jax.distributed`.\n",
            SHARDING,
            table([placement.replace("_", " ") for placement in placements], sharded),
            "Inside `shard_map`, rows split over one axis or two:\n",
            table([split.replace("_", " ") for split in test_shard_map.SPLITS], inside),
            AXIS_NAME,
            table([split.replace("_", " ") for split in splits], by_hand),
            EXCEPTIONS,
        ]
    )


if __name__ == "__main__":
    PAGE.write_text(page())
