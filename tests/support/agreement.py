"""The one comparison with the oracle: value, gradients of every floating operand, and the `d_` function, at once."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import tolerance
from jaxloss._ffi import call, library
from losses import Case
from quickly import jit_quickly


@functools.cache
def _everything(case: Case, places: tuple[int, ...], static: tuple, by_kernel: bool):
    """A jitted function to (value, gradients of the operands in `places`, result of the `d_` function).

    Of a kernel, the numbers are the library's own, and compiled as they are: not so those of a formula.
    """
    options = dict(static)

    def loss(x, a, traced):
        return case.loss(x, a, **traced, **options)

    def all_of_it(x, a, traced, cotangent):
        operands = [x, a, *traced.values()]

        def of_live(*live):
            now = list(operands)
            for place, operand in zip(places, live, strict=True):
                now[place] = operand
            return loss(now[0], now[1], dict(zip(traced, now[2:], strict=True)))

        out, pull = jax.vjp(of_live, *(operands[place] for place in places))
        gradients = pull(cotangent.astype(out.dtype))
        return loss(x, a, traced), out, gradients, case.loss.gradient(x, a, **traced, **options)

    return (jit_quickly if by_kernel else jax.jit)(all_of_it)


def assert_agrees(case: Case, x, a, *, cotangent=None, **options) -> None:
    """That jaxloss and the oracle agree about this call: its value, each gradient, the `d_` function, and all their types.

    Runs with 64-bit types if an operand has one.
    """
    x, a = np.asarray(x), np.asarray(a)
    with jax.enable_x64(8 in (x.itemsize, a.itemsize)):
        _assert_agrees(case, x, a, cotangent, options)


def _assert_agrees(case: Case, x, a, cotangent, options) -> None:
    # In the order of the alphabet, which is how a dictionary comes out of jit.
    traced = {
        name: jnp.asarray(options[name]) for name in ("normalizer", "weights", "where") if options.get(name) is not None
    }
    static = tuple((name, value) for name, value in options.items() if name not in traced)
    operands = {"prediction": x, "target": a, **traced}
    live = [i for i, operand in enumerate(operands.values()) if jnp.issubdtype(operand.dtype, jnp.floating)]
    names = [list(operands)[i] for i in live]

    unpulled = case.expected(x, a, **options)
    if options.get("reduction") == "none":
        if cotangent is None:
            cotangent = np.cos(np.arange(unpulled.value[0].size)).reshape(unpulled.value[0].shape)
    else:
        cotangent = np.ones(())
    cotangent = np.asarray(cotangent, np.float32)
    by_kernel = call.FALLBACK_SIZE == 0 and "cpu" in library.PLATFORMS
    expected = case.expected(x, a, cotangent=cotangent, **options)
    value, with_gradient, gradients, d_function = _everything(case, tuple(live), static, by_kernel)(
        jnp.asarray(x), jnp.asarray(a), traced, jnp.asarray(cotangent)
    )

    computed = tolerance.arithmetic(np.float64 if np.float64 in (x.dtype, a.dtype) else x.dtype)

    def check(what, actual, exact, terms=1):
        error = tolerance.bound(*exact, computed=computed, stored=actual.dtype, terms=terms)
        tolerance.assert_within(actual, exact[0], error, f"{what} of {case} {x.dtype}{list(x.shape)} {options}")

    for what, actual in (("value", value), ("value beside the gradient", with_gradient)):
        assert actual.dtype == computed, f"{what} has dtype {actual.dtype}: expected {computed}"
        check(what, actual, expected.value, expected.terms)
    for name, gradient in zip(names, gradients, strict=True):
        assert gradient.dtype == operands[name].dtype, f"gradient of the {name} has dtype {gradient.dtype}"
        check(
            f"gradient of the {name}",
            gradient,
            getattr(expected, f"of_{name}"),
            1 if name in ("prediction", "target") else expected.terms,
        )
    assert d_function.dtype == x.dtype
    check(f"d_{case.loss.name}", d_function, unpulled.of_prediction)
