"""A custom call: the kernel where a platform has one, and the formula that stands in where it has none."""

from collections.abc import Callable, Sequence
from typing import Any

import jax

from jaxloss._arrays import Array, manual_axes, sizes_known, varying
from jaxloss._ffi import library
from jaxloss._ffi.formula import results_of

FALLBACK_SIZE = 4096
"""Of so few elements, a formula that XLA fuses with what is around it takes less time than starting a kernel."""

EVERYWHERE = ("cpu", "cuda")
"""The platforms that may have kernels."""


def call(
    name: str,
    results: Sequence[jax.ShapeDtypeStruct],
    formula: Callable,
    *operands: Array,
    aliases: dict[int, int] | None = None,
    fallback_platforms: Sequence[str] = (),
    platforms: Sequence[str] = EVERYWHERE,
    platforms_in_place: Sequence[str] = EVERYWHERE,
    of_formula: Sequence[Array] = (),
    **attributes,
) -> Any:
    """The kernel `name` where the platform has it, else the formula. Both give the tuple of results.

    The formula closes over no array: it is traced where it is compiled.

    `aliases` says which operand's memory the kernel may write a result to; XLA copies what is still needed.
    `fallback_platforms`: those on which the formula is taken where the first operand has at most `FALLBACK_SIZE`
    elements.
    `platforms`: those that may have this kernel.
    `platforms_in_place`: those whose kernel reads what it needs of such an operand before it writes there.
    `of_formula`: operands of the formula alone, which follow the others.
    """
    # ffi_call forgets which axes of a shard_map its results vary over, and the kernel's types must be the formula's.
    axes, of_kernel = manual_axes(*operands, *of_formula), len(operands)
    operands = tuple(varying(axes, operand) for operand in (*operands, *of_formula))

    def kernel(platform):
        in_place = aliases if platform in platforms_in_place else None
        target = jax.ffi.ffi_call(library.target_name(name), tuple(results), input_output_aliases=in_place)
        return lambda *operands: tuple(varying(axes, output) for output in target(*operands[:of_kernel], **attributes))

    def plain(*operands):
        return tuple(varying(axes, output) for output in results_of(formula, results, *operands))

    few = sizes_known(operands[0]) and operands[0].size <= FALLBACK_SIZE
    without = fallback_platforms if few else ()
    names = (name for name in library.PLATFORMS if name in platforms and name not in without)
    branches = {name: kernel(name) for name in names}
    if not branches:
        outputs = formula(*operands)
        return tuple(
            varying(axes, output.astype(result.dtype)) for output, result in zip(outputs, results, strict=True)
        )
    return jax.lax.platform_dependent(*operands, default=plain, **branches)
