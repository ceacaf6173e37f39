"""The divergences for their tests: what they are called, samples, and the comparison with the oracle."""

import functools

import jax
import numpy as np
import pytest

import jaxloss
import oracles
import tolerance
from jaxloss import formulas

OPERATIONS = 2 * tolerance.OPERATIONS
"""Of two softmaxes, where a loss of one has half as many."""

KINDS = {
    "kl": (jaxloss.kl_divergence, jaxloss.d_kl_divergence, oracles.kl_divergence, formulas.kl_divergence),
    "js": (jaxloss.jensen_shannon, jaxloss.d_jensen_shannon, oracles.jensen_shannon, formulas.jensen_shannon),
}
FORMULAS = {"kl": formulas.d_kl_divergence, "js": formulas.d_jensen_shannon}
CELLS = [(kind, target_type) for kind in KINDS for target_type in ("logits", "probabilities")]
cells = pytest.mark.parametrize(("kind", "target_type"), CELLS)


def sample(shape, target_type, dtype="float32", target_dtype=None, *, axis=-1, seed=0, scale=3.0):
    """Student's logits and a teacher; probabilities do not quite sum to 1, and some are 0."""
    rng = np.random.default_rng(seed)
    x, y = scale * rng.standard_normal((2, *shape))
    if target_type == "probabilities":
        y = np.where(y > -scale, np.exp(y), 0)
        y = 1.1 * y / np.maximum(y.sum(axis, keepdims=True), 1e-9)
    return x.astype(dtype), y.astype(target_dtype or dtype)


def numbers(kind, temperature, beta):
    """The options that are numbers, by name."""
    return {"temperature": temperature, **({"beta": beta} if kind == "js" else {})}


def check(actual, exact, what, *, computed=np.float32, terms=1):
    error = tolerance.bound(*exact, computed=computed, stored=actual.dtype, operations=OPERATIONS, terms=terms)
    tolerance.assert_within(actual, exact[0], error, what)


def expected_of(kind, target_type, x, a, *, temperature=1.0, beta=0.5, **options):
    """Oracle's results with options, and with them in `of_temperature` and `of_beta` the gradients of those numbers."""
    numerical = {name: float(value) for name, value in numbers(kind, temperature, beta).items()}
    elements = functools.partial(KINDS[kind][2], target_type=target_type, **numerical)
    found = oracles.reduced(elements, x, a, by_rows=True, **options)
    of_numbers = {}
    for name in numerical:
        # A number's derivative is reduced like the loss.
        def of_rows(x, a, clip, name=name):
            terms = elements(x, a, clip)
            return oracles.Terms(getattr(terms, f"of_{name}"), terms.of_prediction, terms.of_target)

        value, size = oracles.reduced(of_rows, x, a, by_rows=True, **options).value
        of_numbers[name] = value.sum(), size.sum()
    return found, of_numbers


@functools.cache
def everything(kind, target_type, reduction, static=()):
    """A jitted function to the value, the value beside the gradients, these, and what the `d_` function gives."""
    loss, d_loss, _, _ = KINDS[kind]
    options = {"target_type": target_type, "reduction": reduction, **dict(static)}

    def all_of_it(x, a, where, live):
        def scalar(x, a, live):
            losses = loss(x, a, where=where, **live, **options)
            return losses.sum(), losses

        (_, losses), gradients = jax.value_and_grad(scalar, (0, 1, 2), has_aux=True)(x, a, live)
        return scalar(x, a, live)[1], losses, gradients, d_loss(x, a, where=where, **live, **options)

    return jax.jit(all_of_it)


def assert_agrees(kind, target_type, x, a, *, reduction="mean", where=None, temperature=1.3, beta=0.3, **options):
    """That jaxloss and the oracle agree about value and every gradient; numbers are traced."""
    live = {name: np.float32(value) for name, value in numbers(kind, temperature, beta).items()}
    live |= {name: options.pop(name) for name in ("weights", "normalizer") if name in options}
    given = {name: live[name] for name in live if name not in ("temperature", "beta")}
    given |= {"where": where, "reduction": reduction, **options}
    with jax.enable_x64(np.float64 in (x.dtype, a.dtype)):
        run = everything(kind, target_type, reduction, tuple(options.items()))
        value, beside, (of_x, of_a, of_live), d_x = run(x, a, where, live)
        expected, of_numbers = expected_of(
            kind, target_type, x, a, **{name: live[name] for name in numbers(kind, 0, 0)}, **given
        )
        computed = tolerance.arithmetic(np.float64 if np.float64 in (x.dtype, a.dtype) else x.dtype)
        told = functools.partial(check, computed=computed)
        for what, actual in (("value", value), ("value beside the gradients", beside)):
            assert actual.dtype == computed
            told(actual, expected.value, what, terms=expected.terms)
        for what, actual, like in (("student", of_x, x), ("d_ function", d_x, x)):
            assert actual.dtype == like.dtype
            told(actual, expected.of_prediction, f"gradient of the {what}", terms=x.shape[-1])
        assert of_a.dtype == a.dtype
        told(of_a, expected.of_target, "gradient of the teacher", terms=x.shape[-1])
        for name, actual in of_live.items():
            exact = of_numbers[name] if name in of_numbers else getattr(expected, f"of_{name}")
            told(actual, exact, f"gradient of {name}", terms=expected.terms)
