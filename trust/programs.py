"""The program of a configuration: its transform of the public function, and what float64 says that it gives."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

import tolerance
from jaxloss._ffi import call
from trust.calls import Configuration, Drawn, spacing
from trust.configurations import of_losses
from trust.contrastive import of_pairs
from trust.drop_ins import of_drop_ins
from trust.exact import Pair
from trust.linear_losses import of_linear
from trust.listed_targets import of_few_classes
from trust.objectives import of_objectives
from trust.transforms import OF_TRANSFORM

BATCH = 5
"""So many calls are one under `vmap`: each of other options."""

BLOCK = 32
"""So many configurations one after the other take the same path: at a change of it, what was traced is forgotten."""

MAKERS = (of_losses, of_drop_ins, of_few_classes, of_pairs, of_linear, of_objectives)
SHARES = (0.5, 0.05, 0.1, 0.03, 0.22, 0.1)
"""Of the configurations."""

DEFAULT_FALLBACK = call.FALLBACK_SIZE


def configuration(seed: int, number: int) -> Configuration:
    """The one of that number, which follows from it and the seed alone."""
    rng = np.random.default_rng((seed, number))
    make = MAKERS[rng.choice(len(MAKERS), p=SHARES)]
    return make(rng, number // BLOCK % 4 == 3)


def on_path(by_formula: bool) -> None:
    """Has what is traced from now on take formulas for few elements, or kernels."""
    size = DEFAULT_FALLBACK if by_formula else 0
    if size != call.FALLBACK_SIZE:
        call.FALLBACK_SIZE = size
        jax.clear_caches()


def program(configuration: Configuration):
    """A function of operands, tangents and cotangent to results by name."""
    transformed = functools.partial(OF_TRANSFORM[configuration.transform], configuration.loss)
    if configuration.transform == "eager":
        return transformed
    return jax.jit(jax.vmap(transformed) if configuration.transform == "vmap" else transformed)


def found(run, configuration: Configuration, draws: list[Drawn]) -> list[dict[str, np.ndarray]]:
    """What the program gives for the calls of each draw; under `vmap` it takes one call of each at once."""
    parts = [(draw.operands, draw.tangents, draw.cotangent) for draw in draws]
    count = len(draws[0])
    if configuration.transform == "vmap":
        together = jax.tree.map(lambda *leaves: np.stack(leaves, 1), *parts)
        results = [run(*jax.tree.map(lambda x, i=i: x[i, ...], together)) for i in range(count)]
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *map(_arrays, results))
        return [jax.tree.map(lambda x, k=k: x[:, k], stacked) for k in range(len(draws))]
    if configuration.transform == "eager":  # which is for the arrays of JAX
        parts = [jax.tree.map(jnp.asarray, part) for part in parts]
    found = []
    for part in parts:
        results = [run(*jax.tree.map(lambda x, i=i: x[i, ...], part)) for i in range(count)]
        found.append(jax.tree.map(lambda *leaves: np.stack(leaves), *map(_arrays, results)))
    return found


def _arrays(results) -> dict[str, np.ndarray]:
    return {name: np.asarray(result) for name, result in results.items()}


@dataclasses.dataclass(frozen=True)
class Check:
    """A result of many calls.

    Attributes:
        what: it is.
        actual: found.
        exact: what it should be, with the magnitude of its terms.
        terms: how many were added up.
    """

    what: str
    actual: np.ndarray
    exact: Pair
    terms: int


def checks(configuration: Configuration, draw: Drawn, results: dict[str, np.ndarray]) -> list[Check]:
    """Each result beside the exact one, as far as the oracle says it."""
    exact, found = configuration.exact(draw), []
    for what, actual in results.items():
        if not configuration.is_held(what, draw):
            continue
        if what == "value":
            pair = exact.value
        elif what == "along":
            pair = _along(draw, exact.gradients)
        elif what == "hessian along":
            pair = _hessian_along(configuration, draw)
        else:
            pair = exact.gradients.get(what.removeprefix("gradient of "))
        if pair is not None:
            found.append(Check(what, actual, pair, configuration.terms(what, exact)))
    return found


def _of_calls(x: np.ndarray) -> tuple[int, ...]:
    """The axes of a call's own."""
    return tuple(range(1, x.ndim))


def _along(draw: Drawn, gradients: dict[str, Pair]) -> Pair:
    """The sum of gradients times tangents."""
    value = size = np.zeros(len(draw))
    with np.errstate(all="ignore"):
        for name, tangent in draw.tangents.items():
            exactly, magnitude = gradients[name]
            wide = tangent.astype(np.float64)
            value = value + np.sum(exactly * wide, _of_calls(wide))
            size = size + np.sum(np.maximum(magnitude, abs(exactly)) * abs(wide), _of_calls(wide))
    return value, size


STEP = 1e-4


def _hessian_along(configuration: Configuration, draw: Drawn) -> Pair:
    """By differences of the exact gradient; NaN beside a kink, where those of two lengths are not the same."""
    x, tangent = (array.astype(np.float64) for array in (draw.operands["x"], draw.tangents["x"]))

    def difference(step):
        ahead, behind = (configuration.exact(draw, x + sign * step * tangent).gradients["x"] for sign in (1, -1))
        return (ahead[0] - behind[0]) / (2 * step), ahead[1]

    (value, size), (of_half, _) = difference(STEP), difference(STEP / 2)
    largest = largest_of_calls(size) * largest_of_calls(abs(tangent))
    # Not more than the bound allows: of what may jump, the magnitude is as large as the jump over the spacing.
    apart = tolerance.OPERATIONS_OF_HIGHER_ORDER * spacing(np.float32) * largest
    value = np.where(abs(value - of_half) <= apart, value, np.nan)
    return value, np.broadcast_to(largest, value.shape)


def largest_of_calls(size: np.ndarray) -> np.ndarray:
    """The largest finite number of each call, in the shape of the others."""
    finite = np.where(np.isfinite(size), size, 0)
    return finite.max(_of_calls(size), initial=0, keepdims=True) if size.ndim > 1 else finite


def are_right(configuration: Configuration, check: Check) -> np.ndarray:
    """Of each call, whether that result is right."""
    if check.actual.shape != check.exact[0].shape:
        return np.zeros(len(check.actual), bool)
    exactly, bound = _bound(configuration, check)
    good = tolerance.are_within(check.actual, exactly, bound)
    return good.all(_of_calls(good))


def error_of(configuration: Configuration, check: Check, i: int) -> str:
    """What is wrong with that result of call i; empty if nothing is."""
    if check.actual.shape != check.exact[0].shape:
        return f"{check.what} has shape {check.actual.shape[1:]}: expected {check.exact[0].shape[1:]}"
    exactly, bound = _bound(configuration, check)
    try:
        tolerance.assert_within(check.actual[i], exactly[i], np.broadcast_to(bound, exactly.shape)[i], check.what)
    except AssertionError as error:
        return str(error)
    return ""


def _bound(configuration: Configuration, check: Check) -> tuple[np.ndarray, np.ndarray]:
    """What the result should be where anything is asked, and how far it may be from it."""
    what, actual, (exactly, size), terms = check.what, check.actual, check.exact, check.terms
    computed, (operations, terms) = configuration.computed, configuration.counted(terms)
    if what == "along":  # of gradients that are rounded
        computed = max(computed, configuration.rounded_to, key=spacing)
    if what.startswith("gradient") and not what.endswith((" x", " a")):  # which is summed in its own type
        computed = max(computed, np.result_type(np.float32, actual.dtype), key=spacing)
    if what == "hessian along":  # whose differences are no nearer than single precision
        computed, operations = np.dtype(np.float32), tolerance.OPERATIONS_OF_HIGHER_ORDER
    largest = largest_of_calls(size)
    bound = tolerance.bound(
        *(exactly, size), computed=computed, stored=actual.dtype, operations=operations, terms=terms, largest=largest
    )
    # Exponentials, and terms of a sum, are flushed to zero below the smallest normal number; factors are made of them,
    # and of their logarithms.
    smallest = max(float(ml_dtypes.finfo(dtype).smallest_normal) for dtype in {computed, _flushed(actual.dtype)})
    bound = bound + smallest * (max(128, -2 * np.log(smallest)) * np.maximum(1.0, largest) + terms)
    if what.startswith("gradient"):  # which may be beyond the end before it is multiplied by a cotangent below 1
        beyond = (np.sign(actual) == np.sign(exactly)) & (4 * abs(exactly) > float(ml_dtypes.finfo(actual.dtype).max))
        exactly = np.where(np.isinf(actual) & beyond, actual.astype(np.float64), exactly)
    if what in ("hessian along", "gradient of a"):  # where the oracle has none, nothing is asked
        exactly = np.where(np.isfinite(exactly), exactly, actual.astype(np.float64))
    return exactly, bound


def _flushed(dtype) -> np.dtype:
    """The type itself, if small numbers of it are flushed to zero; float16 keeps them."""
    return np.dtype(np.float32 if dtype == np.float16 else dtype)
