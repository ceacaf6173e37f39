"""The program of a configuration: its transform of the public function, and what float64 says that it gives."""

import functools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

import oracles
import tolerance
from trust.configurations import Configuration
from trust.draws import Drawn
from trust.transforms import OF_TRANSFORM

BATCH = 3
"""So many calls are one under `vmap`."""

Check = tuple[str, np.ndarray, tuple[np.ndarray, np.ndarray], int]
"""A result: what it is, found, exact with the magnitude of its terms, and how many were added up."""


def program(configuration: Configuration):
    """A function of operands, tangents and cotangent to results by name."""
    function, static = configuration.subject.function, configuration.static

    def loss(operands):
        options = {name: x for name, x in operands.items() if name not in ("x", "a")}
        return function(operands["x"], operands["a"], **options, **static)

    transformed = functools.partial(OF_TRANSFORM[configuration.transform], loss)
    if configuration.transform == "eager":
        return transformed
    return jax.jit(jax.vmap(transformed) if configuration.transform == "vmap" else transformed)


def found(run, configuration: Configuration, draws: list[Drawn]) -> list[dict[str, np.ndarray]]:
    """What the program gives for each of the draws, as many as `BATCH` if it takes them together."""
    parts = [(draw.operands, draw.tangents, draw.cotangent) for draw in draws]
    if configuration.transform == "vmap":
        together = jax.tree.map(np.asarray, run(*jax.tree.map(lambda *leaves: np.stack(leaves), *parts)))
        return [{name: result[i] for name, result in together.items()} for i in range(len(draws))]
    # Eager functions are for the arrays of JAX.
    if configuration.transform == "eager":
        parts = [jax.tree.map(jnp.asarray, part) for part in parts]
    return [jax.tree.map(np.asarray, run(*part)) for part in parts]


def exact(configuration: Configuration, draw: Drawn, x=None, pulled: bool = True) -> oracles.Expected:
    """The oracle's results of that call; with `x` in place of its prediction."""
    given = dict(draw.operands)
    x = given["x"] if x is None else x
    options = {name: _exact_number(given[name]) for name in configuration.numbers}
    static = dict(configuration.static)
    if "num_classes" in static:
        options["num_classes"] = static.pop("num_classes")
    static.pop("target_type", None)
    if not configuration.case.loss.has_clip:
        static["clip"] = None
    reduced = {name: given[name] for name in ("where", "weights", "normalizer") if name in given}
    return oracles.reduced(
        functools.partial(configuration.subject.elements, **options),
        np.asarray(x),
        given["a"],
        by_rows=configuration.case.loss.by_rows,
        cotangent=draw.cotangent if pulled else None,
        **reduced,
        **static,
    )


def _exact_number(option: np.ndarray):
    return option.astype(np.float64) if option.ndim else float(option)


def checks(configuration: Configuration, draw: Drawn, results: dict[str, np.ndarray]) -> list[Check]:
    """Each result beside the exact one, as far as the oracle says it."""
    expected = exact(configuration, draw)
    unpulled = expected if draw.cotangent.ndim == 0 else exact(configuration, draw, pulled=False)
    gradients = {"x": expected.of_prediction, "a": expected.of_target}
    gradients |= {"weights": expected.of_weights, "normalizer": expected.of_normalizer}
    found = []
    for what, actual in results.items():
        if what == "value":
            found.append((what, actual, unpulled.value, expected.terms))
        elif what.startswith("gradient of "):
            pair = gradients.get(what.removeprefix("gradient of "))
            if pair is not None and not (what == "gradient of a" and _target_is_beyond(configuration, draw)):
                terms = _terms(configuration) if what.endswith((" x", " a")) else expected.terms
                found.append((what, actual, pair, terms))
        elif (
            what == "along" and _gradients_are_held(configuration, draw) and not _target_is_beyond(configuration, draw)
        ):
            found.append((what, actual, _along(draw, gradients), expected.terms))
        elif what == "hessian along" and draw.pattern == "ordinary":
            found.append((what, actual, _hessian_along(configuration, draw), expected.terms))
    return found


def _terms(configuration: Configuration) -> int:
    """How many numbers a gradient is a sum over."""
    return configuration.classes if configuration.case.loss.by_rows else 1


def _target_is_beyond(configuration: Configuration, draw: Drawn) -> bool:
    """Whether nothing is promised of the gradient with respect to the target.

    So it is of a loss that is infinite or NaN, and of the focal loss where a probability is flushed to zero, for one
    over it is a factor of that gradient.
    """
    return draw.pattern in ("special", "ends", *(("wide",) if "focal_gamma" in configuration.numbers else ()))


def _gradients_are_held(configuration: Configuration, draw: Drawn) -> bool:
    """Whether the gradients that a sum along tangents is made of are finite in their own type."""
    return draw.pattern in (
        "ordinary",
        "tiny",
        "ties",
        *(("wide",) if configuration.dtype in ("float32", "float64") else ()),
    ) and not _target_is_beyond(configuration, draw)


def _along(draw: Drawn, gradients):
    """The sum of gradients times tangents."""
    value = size = 0.0
    with np.errstate(all="ignore"):
        for name, tangent in draw.tangents.items():
            exactly, magnitude = gradients[name]
            wide = tangent.astype(np.float64)
            value = value + np.sum(exactly * wide)
            size = size + np.sum(magnitude * abs(wide))
    return np.asarray(value), np.asarray(size)


STEP = 1e-4


def _hessian_along(configuration: Configuration, draw: Drawn):
    """By differences of the exact gradient; NaN beside a kink, where those of two lengths are not the same."""
    x, tangent = (array.astype(np.float64) for array in (draw.operands["x"], draw.tangents["x"]))

    def difference(step):
        ahead, behind = (exact(configuration, draw, x + sign * step * tangent).of_prediction for sign in (1, -1))
        return (ahead[0] - behind[0]) / (2 * step), ahead[1]

    (value, size), (of_half, _) = difference(STEP), difference(STEP / 2)
    largest = np.max(size, initial=0, where=np.isfinite(size)) * np.abs(tangent).max(initial=0)
    value = np.where(abs(value - of_half) <= 1e-3 * largest, value, np.nan)
    return value, np.full_like(value, largest)


def error_of(configuration: Configuration, check: Check) -> str:
    """What is wrong with a result; empty if nothing is."""
    what, actual, (exactly, size), terms = check
    computed = tolerance.arithmetic(np.float64 if configuration.of_64_bits else configuration.dtype)
    operations = 2 * tolerance.OPERATIONS
    if configuration.of_64_bits:  # the oracle errs as much
        operations, terms = 2 * operations, 4 * terms
    if what == "along" and configuration.dtype in ("bfloat16", "float16"):  # of gradients that are rounded to that
        computed = np.dtype(configuration.dtype)
    if what in ("gradient of weights", "gradient of normalizer"):  # which is summed in its own type
        computed = np.result_type(np.float32, actual.dtype)
    if what == "hessian along":  # whose differences are no nearer than single precision
        computed, operations = np.dtype(np.float32), tolerance.OPERATIONS_OF_HIGHER_ORDER
    bound = tolerance.bound(exactly, size, computed=computed, stored=actual.dtype, operations=operations, terms=terms)
    # Exponentials, and terms of a sum, are flushed to zero below the smallest normal number; factors are made of them.
    smallest = max(float(ml_dtypes.finfo(dtype).smallest_normal) for dtype in {computed, _flushed(actual.dtype)})
    bound = bound + smallest * (128 * max(1.0, float(np.max(size, initial=0, where=np.isfinite(size)))) + terms)
    if what.startswith("gradient"):  # which may be beyond the end before it is multiplied by a cotangent below 1
        beyond = (np.sign(actual) == np.sign(exactly)) & (4 * abs(exactly) > float(ml_dtypes.finfo(actual.dtype).max))
        exactly = np.where(np.isinf(actual) & beyond, actual.astype(np.float64), exactly)
    if what in ("hessian along", "gradient of a"):  # where the oracle has none, nothing is asked
        exactly = np.where(np.isfinite(exactly), exactly, actual.astype(np.float64))
    try:
        tolerance.assert_within(actual, np.asarray(exactly), bound, what)
    except AssertionError as error:
        return str(error)
    return ""


def _flushed(dtype) -> np.dtype:
    """The type itself, if small numbers of it are flushed to zero; float16 keeps them."""
    return np.dtype(np.float32 if dtype == np.float16 else dtype)
