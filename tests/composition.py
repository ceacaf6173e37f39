"""Writes `docs/composition.md` from the tables that the tests run: what jaxloss is known to work under.

Run it with `python tests/composition.py`. `test_composition.py` fails if the page is not what this writes.
"""

import os
import pathlib
import sys

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
sys.path.append(str(pathlib.Path(__file__).parents[1]))

import test_axis_name
import test_shard_map
import test_sharding
from losses import CASES, MATRIX
from transforms import TRANSFORMS, TRANSFORMS_OF_TARGET

PAGE = pathlib.Path(__file__).parents[1] / "docs" / "composition.md"

HEAD = """# What the losses compose with

This page is written by `tests/composition.py` from the tables that the tests run. Every cell of them is a test: the result
agrees with the plain formula under the same transform in float64, to a tolerance derived from the type. The suite runs on the
oldest and the newest supported jax in CI; its transforms run on a GPU too (`make test-gpu`), and the main ones of its
placements on two GPUs or more (`make test-multi-gpu`).

A dot is a tested cell, with the reductions `mean` and `none`; of the founding losses (the first {founding} columns) with `sum`
too. Linear cross entropy is differentiated with respect to the hidden states there; its other tests take both operands.
"""

EXCEPTIONS = """## What cannot be

| | why | what happens |
|---|---|---|
| the gradient with respect to class indices | integers have no derivative | JAX's own error |
| reverse mode through a `while_loop` | JAX has none, for any function | JAX's own error; forward mode works |
| a third derivative in which reverse mode follows reverse mode, through a `scan` of checkpointed losses; the chunks of `linear_cross_entropy(reduction="none")` are such a scan, for both operands at once | JAX drops custom rules from what it transposes twice | JAX's own error; forward mode in between, or twice, works |
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


KEPT = """## Export, and programs that are kept

`jax.export` asks that custom calls be allowed by name: `disabled_checks=jaxloss.export_checks()`. Sizes of any axis may be
symbolic, that of the classes too; with `num_classes=` the symbol must be known to be as large (`constraints=("v >= 50257",)`
of `jax.export.symbolic_shape`). JAX itself runs no exported program with a symbolic axis that `shard_map` splits.

An artefact holds, for each platform that it is exported for, the kernel's custom call if this build of jaxloss has kernels for
it, else the plain formula. So an artefact for cuda that is exported by a build without CUDA kernels holds the plain formula,
wherever it is run later; `print(jaxloss.backends())` says which build it is. No GPU is needed to export for one.

The name of a custom call ends with the number of its calling convention, `jaxloss_mse_value_v1`. A program that was kept by a
release with another number is never run with the wrong buffers: the compilation cache does not hit, for its key is made of the
program, and an artefact or a serialized executable is an error of JAX's that names the custom call it does not find.

## Strict settings

| | |
|---|---|
| `jax.numpy_rank_promotion("raise")`, `jax.numpy_dtype_promotion("strict")` | nothing is promoted by accident. The logits of a linear loss still have the type that hidden states and kernel promote to, and results of `jaxloss.optax` the type that optax gives them. |
| `jax.transfer_guard("disallow")` | an eager call copies nothing from the host; Python's numbers are put on the device, which the guard allows. Eager `jax.grad` copies its cotangent 1 by itself, of any function, and JAX may copy constants when it transposes: a jitted gradient copies nothing. |
| `jax_debug_infs` | value and gradient of masked logits (−Inf) are quiet where the classes are the last axis, eager and jitted. Eager calls with another `axis`, eager second derivatives, and the eager gradients of `entropy` and of a teacher's masked logits give back intermediate arrays that hold −Inf: jit these. |
| `jax.ensure_compile_time_eval` | gives numbers |

## What a compiler knows of a call

`cost_analysis()` of a compiled program counts nothing of a custom call, neither bytes nor operations: `jax.ffi.ffi_call` takes no
estimate, and XLA's analysis looks at no attribute of a custom call (tried: `frontend_attributes` of the names that XLA uses for
costs). By hand: a value reads the logits once, value and gradient read and write them once. The operations are those of the
plain formula, of which `cost_analysis()` tells: `jax.jit(jaxloss.formulas.categorical_cross_entropy).lower(...)`.
"""


def table(heads: list[str], lines: list[tuple[str, list[bool]]]) -> str:
    """A Markdown table with a dot where true."""
    rows = [f"| `{name}` | {' | '.join('●' if cell else '' for cell in cells)} |" for name, cells in lines]
    return "\n".join([f"| | {' | '.join(heads)} |", f"|---|{':-:|' * len(heads)}", *rows]) + "\n"


def page() -> str:
    """The text of the page."""
    names = [*(str(case).replace("-", ", ") for case in MATRIX), "linear_cross_entropy, indices"]
    transforms = [(name, [True] * len(names)) for name in TRANSFORMS]
    transforms += [(name, [*(case.of_target for case in MATRIX), False]) for name in TRANSFORMS_OF_TARGET]
    placements = list(test_sharding.PLACEMENTS)
    stacked = ("rows", "features", "both")
    sharded = [(name, [True] * len(placements)) for name in test_sharding.PROGRAMS]
    sharded += [(name, [placement in stacked for placement in placements]) for name in test_sharding.STACKED_PROGRAMS]
    inside = [(name, [True] * len(test_shard_map.SPLITS)) for name in test_sharding.PROGRAMS]
    splits = list(test_axis_name.SPLITS)
    by_hand = [(name, [True] * len(splits)) for name in (*test_axis_name.NAMES, *test_axis_name.NAMES_OF_TARGET)]
    return "\n".join(
        [
            HEAD.format(founding=len(CASES)),
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
            KEPT,
            EXCEPTIONS,
        ]
    )


if __name__ == "__main__":
    PAGE.write_text(page())
