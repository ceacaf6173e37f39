"""Writes `docs/composition.md` from the tables that the tests run: what jaxloss is known to work under.

Run it with `python tests/composition.py`. `test_composition.py` fails if the page is not what this writes.
"""

import os
import pathlib
import sys

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
sys.path.append(str(pathlib.Path(__file__).parents[1]))
sys.path += [str(pathlib.Path(__file__).with_name(name)) for name in ("support", "transforms", "sharding")]

import test_axis_name
import test_mesh_axis_types
import test_shard_map
import test_sharding
from losses import CASES, MATRIX, Case
from transforms import TRANSFORMS, TRANSFORMS_OF_TARGET

PAGE = pathlib.Path(__file__).parents[1] / "docs" / "composition.md"

HEAD = """# What the losses compose with

This page is written by `tests/composition.py` from the tables that the tests run. Every cell of them is a test: the result
agrees with the plain formula under the same transform in float64, to a tolerance derived from the type. The suite runs on the
oldest supported jax in CI, and a part of it that has every transform and placement on the newest; its transforms run on a GPU
too (`make test-gpu`), and the main ones of its placements on two GPUs or more (`make test-multi-gpu`).

A dot is a tested cell, with the reductions `mean` and `none`; of the first {founding} columns with `sum`
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
| one axis of an array split by an automatic mesh axis and then, within its parts, by an explicit one: `P(("automatic", "explicit"))` | explicit axes are made manual first, and JAX's `shard_map` then wants them first | the array is re-sharded; the result is right |
| the eager gradient of arrays on an explicit mesh, without `jax.set_mesh` | JAX makes the cotangent 1 on one device, for any function | JAX's own error; jit it, or set the mesh |
| `jax.export` of arrays on a mesh with both explicit and automatic axes, serialized | JAX does not write such a sharding, for any function | JAX's own error |
"""

SHARDING = """## Sharding

On a mesh of 8 devices, d (4) × v (2), with automatic and with explicit axes, the mesh in context. The gradient keeps the sharding of its operand,
and the compiled module holds no all-gather, no all-to-all and no collective-permute; only scalars per row are reduced.

n is the global batch under `jit`. Inside `shard_map` it is what the device holds: give the global one as `normalizer=` and add
the shares up with `jax.lax.psum`.
"""

AXIS_TYPES = """## Meshes of any axis types, with and without a context

Each mesh axis is treated by its own type. Axes that an enclosing `shard_map` has made manual are the caller's. Explicit axes
are in the operands' types, so they need no `jax.set_mesh`. Automatic axes are XLA's, whose partitioner asks when it has decided.
A loss of each family (elementwise, rows, rows unreduced, divergence, linear) has the plain formula's value, gradient and
shardings, and no collective that the formula does not have, but sums of one scalar per row; each cell is tested without a mesh in
context and under `jax.set_mesh`:
"""

PARTLY_MANUAL = """Inside a `shard_map` over one axis (d, or v), which splits the rows, while the other axis, of whatever type,
splits rows or classes:
"""

AUTO_AXES = """`jax.sharding.auto_axes` over d, v or both of an explicit mesh, operands split by rows, classes or both, is tested likewise;
every public function with every option is called on an explicit and on a mixed mesh without a context
(`tests/sharding/test_public_calls_on_meshes.py`). An operand whose sharding is `reduced` over a mesh axis is taken as the replicated
array that it is, and its gradient is unreduced, as JAX has it; one that is `unreduced` is a `ValueError` that names the argument.
"""

AXIS_NAME = """## A vocabulary that the caller has split

`axis_name=` inside `shard_map`, Megatron style: labels are indices of the whole vocabulary, three scalars per row are exchanged,
the gradient is that of the local slice.
"""


KEPT = """## Export, and programs that are kept

`jax.export` asks that custom calls be allowed by name: `disabled_checks=jaxloss.export_checks()`. Sizes of any axis may be
symbolic, that of the classes too; with `num_classes=` the symbol must be known to be as large (`constraints=("v >= 50257",)`
of `jax.export.symbolic_shape`). JAX itself runs no exported program with a symbolic axis that `shard_map` splits.

An artefact holds, for each platform that it is exported for, the kernel's custom call if this build of jaxloss has kernels for
it, else the plain formula. So an artefact for cuda that is exported by a build without CUDA kernels holds the plain formula,
wherever it is run later; `print(jaxloss.backends())` says which build it is. No GPU is needed to export for one.

A program on a mesh of automatic axes is kept like any other: the persistent compilation cache finds it in a second process,
`jax.experimental.serialize_executable` and `jax.export` write it, and another process that imports jaxloss runs it, partitioned
there with no all-gather. For XLA's partitioner finds what splits a call by a description that the program holds, not by an
address. A platform without kernels gets the plain formula, with nothing for a partitioner to ask.

The name of a custom call ends with the number of its calling convention, `jaxloss_mse_value_v2`. A program that was kept by a
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
    rows = [
        f"| {name.replace('_', ' ')} | {' | '.join('●' if cell else '' for cell in cells)} |" for name, cells in lines
    ]
    return "\n".join([f"| | {' | '.join(heads)} |", f"|---|{':-:|' * len(heads)}", *rows]) + "\n"


def heading(case: Case) -> str:
    """What a loss is called at the top of its column, in words that break where a column is narrow."""
    loss, _, target = str(case).partition("-")
    loss = loss.replace("_cross_entropy", "").replace("_with_everything", ", all options").replace("_with_", ", ")
    return f"{loss}, {target.replace('indices', 'labels')}" if loss.startswith("categorical") else loss


def page() -> str:
    """The text of the page."""
    names = [*map(heading, MATRIX), "linear"]
    transforms = [(name, [True] * len(names)) for name in TRANSFORMS]
    transforms += [(name, [*(case.of_target for case in MATRIX), False]) for name in TRANSFORMS_OF_TARGET]
    placements = list(test_sharding.PLACEMENTS)
    stacked = ("rows", "features", "both")
    sharded = [(name, [True] * len(placements)) for name in test_sharding.PROGRAMS]
    sharded += [(name, [placement in stacked for placement in placements]) for name in test_sharding.STACKED_PROGRAMS]
    inside = [(name, [True] * len(test_shard_map.SPLITS)) for name in test_sharding.PROGRAMS]
    splits, types = list(test_axis_name.SPLITS), test_mesh_axis_types.TYPES
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
            AXIS_TYPES,
            table(list(types), [(name, [True] * len(types)) for name in test_mesh_axis_types.PLACEMENTS]),
            PARTLY_MANUAL,
            table(list(types), [(f"other axis: {rest}", [True] * len(types)) for rest in test_mesh_axis_types.RESTS]),
            AUTO_AXES,
            "Inside `shard_map` over all axes, rows split over one axis or two:\n",
            table([split.replace("_", " ") for split in test_shard_map.SPLITS], inside),
            AXIS_NAME,
            table([split.replace("_", " ") for split in splits], by_hand),
            KEPT,
            EXCEPTIONS,
        ]
    )


if __name__ == "__main__":
    PAGE.write_text(page())
