"""The custom call targets of cross entropy, a typed function for each, and the formulas that stand in for them."""

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxloss import formulas
from jaxloss._arrays import Array, along, is_masked, like, weighted
from jaxloss._ffi.call import EVERYWHERE, call
from jaxloss._spec import PARAMETERS, RESULTS, STATS

_KNOWN = ("maximum", "log_sum", "total")
_OF_STATS = ("of_lse", "of_entropy")


def _shapes(names: Sequence[str], logits: Array, row_weight: Array) -> list[jax.ShapeDtypeStruct]:
    rows = jax.ShapeDtypeStruct(logits.shape[:-1], row_weight.dtype)
    indices = jax.ShapeDtypeStruct(rows.shape, np.int32)
    others = {"gradient": like(logits), "predicted": indices, "rank": indices}
    return [others.get(name, rows) for name in names]


def _smoothed_classes(logits: Array, classes: int) -> dict:
    """How many classes a row has, as a kernel is told: 0 for as many as the logits have.

    Where only the call of an exported program knows how many, and other devices hold some, no kernel can be told.
    """
    if isinstance(classes, int):
        return {"smoothed_classes": np.int64(classes)}
    platforms = EVERYWHERE if classes == logits.shape[-1] else ()
    return {"smoothed_classes": np.int64(0), "platforms": platforms}


def _results(names: Sequence[str], logits: Array, target: Array, row_weight: Array, options, clip: float, classes: int):
    """What a kernel gives, by formula."""
    results = formulas.cross_entropy_results(logits, target, options, clip, classes)
    out = is_masked(along(row_weight, results["losses"]))
    of_masked_row = {"predicted": -1, "rank": classes}
    gradient = weighted(row_weight, results.pop("gradient"))
    results = {name: jnp.where(out, of_masked_row.get(name, 0), result) for name, result in results.items()}
    return tuple(gradient if name == "gradient" else results[name] for name in names)


def _aliases(in_place: bool, names: Sequence[str]) -> dict[int, int] | None:
    """The gradient in the memory of the logits, where a caller who made them needs them no more."""
    return {0: names.index("gradient")} if in_place and "gradient" in names else None


# ---- without options -------------------------------------------------------------------------------------------------


_PURPOSES = {("losses",): "value", ("losses", *STATS): "value_and_stats", ("losses", "gradient"): "value_and_grad"}
"""The end of a target's name, by what it gives."""


def cross_entropy(
    names: tuple[str, ...], logits: Array, target: Array, row_weight: Array, *, clip: float, in_place: bool = False
) -> tuple[Array, ...]:
    """Those `RESULTS` that are named: the losses of rows alone, with their `STATS`, or with the gradient.

    The gradient is times the row's weight. `clip` is 0 for none. `in_place`: the gradient may overwrite the logits.
    """

    def plain(logits, target, row_weight):
        return _results(names, logits, target, row_weight, {}, clip, logits.shape[-1])

    return call(
        f"cross_entropy_{_PURPOSES[names]}",
        _shapes(names, logits, row_weight),
        plain,
        *(logits, target, row_weight),
        aliases=_aliases(in_place, names),
        # A formula that loses no digit of small losses is several kernels of XLA's on a GPU.
        fallback_platforms=() if jnp.issubdtype(target.dtype, jnp.integer) else ("cpu",),
        clip=np.float64(clip),
    )


PARTS = 8192
"""Of a sum that a kernel leaves: more than its blocks are, and few enough for XLA to add up at once."""


def cross_entropy_total(
    with_gradient: bool, logits: Array, target: Array, row_weight: Array, *, clip: float
) -> tuple[Array, ...]:
    """Σ w ℓ of all rows, which have one weight w and labels, and the gradient if asked for.

    On a GPU no row's loss is written: it would be more than the logits of a row of two classes.
    """
    names = _names_beside_total(with_gradient)

    def plain(*operands):
        losses, *gradient = cross_entropy(names, *operands, clip=clip)
        return _in_parts(losses), *gradient

    sums, *gradient = call(
        f"cross_entropy_sums_{_PURPOSES[names]}",
        (_parts(row_weight), *_shapes(names[1:], logits, row_weight)),
        plain,
        *(logits, target, row_weight),
        platforms=("cuda",),
        clip=np.float64(clip),
    )
    return weighted(row_weight, sums).sum(), *gradient


def _names_beside_total(with_gradient: bool) -> tuple[str, ...]:
    return ("losses", "gradient") if with_gradient else ("losses",)


def _parts(row_weight: Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((PARTS,), row_weight.dtype)


def _in_parts(losses: Array) -> Array:
    return jnp.pad(losses.sum()[None], (0, PARTS - 1))


def cross_entropy_grad(
    logits: Array,
    target: Array,
    row_weight: Array,
    maximum: Array,
    log_sum: Array,
    target_sum: Array,
    *,
    in_place: bool = False,
) -> Array:
    """The gradient alone, of rows (or of a slice of their classes) whose statistics and target sum are known.

    A label outside the slice is not at fault: only a target sum of 0 says that the row's label is out of range.
    `in_place`: the gradient may overwrite the logits.
    """

    def plain(logits, target, row_weight, maximum, log_sum, total):
        derivative = formulas.d_cross_entropy_with_options(logits, target, {}, maximum, log_sum, total, 1)
        if jnp.issubdtype(target.dtype, jnp.integer):
            derivative = jnp.where(total[..., None] == 0, 0, derivative)
        return (weighted(row_weight, derivative),)

    operands = (logits, target, row_weight, maximum, log_sum, target_sum)
    aliases = _aliases(in_place, ("gradient",))
    return call("cross_entropy_grad", (like(logits),), plain, *operands, aliases=aliases)[0]


# ---- with options ----------------------------------------------------------------------------------------------------


def _bits(all_names: tuple[str, ...], names) -> np.int64:
    return np.int64(sum(1 << place for place, name in enumerate(all_names) if name in names))


def cross_entropy_with_options(
    purpose: str,
    names: Sequence[str],
    logits: Array,
    target: Array,
    row_weight: Array,
    options: Mapping[str, Array],
    *,
    clip: float,
    classes: int,
    in_place: bool = False,
) -> tuple[Array, ...]:
    """Those `RESULTS` that are named, of rows with options.

    Args:
        purpose: the end of the target's name: what the results are for.
        names: of results, in their order; the losses are always one, and `DETAILS` come together.
        logits: `[rows..., V]`.
        target: as everywhere; the first of two labels where there is a `second_label`.
        row_weight: as everywhere.
        options: parameters by name, in their order.
        clip: 0 for none.
        classes: how many classes a row has, here and in other slices of it.
        in_place: the gradient may overwrite the logits.
    """
    given_names = tuple(options)

    def plain(logits, target, row_weight, *parameters):
        given = dict(zip(given_names, parameters, strict=True))
        return _results(names, logits, target, row_weight, given, clip, classes)

    return call(
        f"cross_entropy_with_options_{purpose}",
        _shapes(names, logits, row_weight),
        plain,
        *(logits, target, row_weight, *options.values()),
        aliases=_aliases(in_place, names),
        given=_bits(PARAMETERS, options),
        wanted=_bits(RESULTS, names),
        **_smoothed_classes(logits, classes),
        clip=np.float64(clip),
    )


def cross_entropy_with_options_total(
    with_gradient: bool,
    logits: Array,
    target: Array,
    row_weight: Array,
    options: Mapping[str, Array],
    *,
    clip: float,
    classes: int,
) -> tuple[Array, ...]:
    """The same of rows with options, whose number of classes is known."""
    given_names, names = tuple(options), _names_beside_total(with_gradient)

    def plain(logits, target, row_weight, *parameters):
        given = dict(zip(given_names, parameters, strict=True))
        operands = (logits, target, row_weight, given)
        losses, *gradient = cross_entropy_with_options(_PURPOSES[names], names, *operands, clip=clip, classes=classes)
        return *gradient, _in_parts(losses)

    *gradient, sums = call(
        f"cross_entropy_with_options_sums_{_PURPOSES[names]}",
        (*_shapes(names[1:], logits, row_weight), _parts(row_weight)),
        plain,
        *(logits, target, row_weight, *options.values()),
        platforms=("cuda",),
        given=_bits(PARAMETERS, options),
        wanted=_bits((*RESULTS, "sums"), (*names[1:], "sums")),
        smoothed_classes=np.int64(classes),
        clip=np.float64(clip),
    )
    return weighted(row_weight, sums).sum(), *gradient


def cross_entropy_with_options_grad(
    logits: Array,
    target: Array,
    row_weight: Array,
    options: Mapping[str, Array],
    maximum: Array,
    log_sum: Array,
    total: Array,
    *,
    classes: int,
    in_place: bool = False,
) -> Array:
    """The gradient alone, of rows (or of a slice of their classes) whose statistics are known.

    `total` is what the softmax is multiplied by in the derivative. A label outside the slice is not at fault: a row
    whose label is out of range must come with a weight of 0. `in_place`: it may overwrite the logits.
    """
    given_names = tuple(options)

    def plain(logits, target, row_weight, *parameters):
        *parameters, maximum, log_sum, total = parameters
        given = dict(zip(given_names, parameters, strict=True))
        derivative = formulas.d_cross_entropy_with_options(logits, target, given, maximum, log_sum, total, classes)
        return (weighted(row_weight, derivative),)

    return call(
        "cross_entropy_with_options_grad",
        (like(logits),),
        plain,
        *(logits, target, row_weight, *options.values(), maximum, log_sum, total),
        aliases=_aliases(in_place, ("gradient",)),
        given=_bits((*PARAMETERS, *_KNOWN), (*options, *_KNOWN)),
        wanted=_bits(RESULTS, ("gradient",)),
        **_smoothed_classes(logits, classes),
        clip=np.float64(0),
    )[0]


def cross_entropy_with_options_stats_grad(
    formula: Callable[..., Array],
    stats: Sequence[Array],
    logits: Array,
    target: Array,
    row_weight: Array,
    options: Mapping[str, Array],
    of_lse: Array,
    of_entropy: Array,
    *,
    classes: int,
    in_place: bool = False,
) -> Array:
    """The gradient of rows' losses, log-sum-exps and entropies, times these weights of each, in one pass.

    `formula` gives it where there is no such kernel, of the statistics of rows and then the same operands. `in_place`:
    it may overwrite the logits.
    """
    given_names = tuple(options)
    if in_place:  # a function of the statistics, or XLA copies the logits to be free to make these later
        log_sum = stats[1]
        of_lse = jnp.where(jnp.isnan(log_sum), log_sum, of_lse)  # of no number, so is the gradient

    def plain(logits, target, row_weight, *others):
        parameters, (of_lse, of_entropy, *stats) = others[: len(given_names)], others[len(given_names) :]
        given = dict(zip(given_names, parameters, strict=True))
        return (formula(stats, logits, target, row_weight, given, of_lse, of_entropy),)

    return call(
        "cross_entropy_with_options_stats_grad",
        (like(logits),),
        plain,
        *(logits, target, row_weight, *options.values(), of_lse, of_entropy),
        aliases=_aliases(in_place, ("gradient",)),
        of_formula=stats,
        given=_bits((*PARAMETERS, *_KNOWN, *_OF_STATS), (*options, *_OF_STATS)),
        wanted=_bits(RESULTS, ("gradient",)),
        **_smoothed_classes(logits, classes),
        clip=np.float64(0),
    )[0]
