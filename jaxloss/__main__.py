"""`python -m jaxloss`: the versions and devices that a report of a fault begins with, and a short self-check."""

import functools
import platform
import sys
import textwrap
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import jaxlib.version
import numpy as np

import jaxloss
from jaxloss import formulas
from jaxloss._ffi import call, driver, library

ROWS, WIDTH, FEATURES = 96, 320, 48
TOLERANCE = 2e-5
"""Of values and gradients, relative to the largest: what is summed in another order rounds in another way."""

Loss = Callable[..., Any]


OPTIONS = {"label_smoothing": 0.1, "z_loss": 1e-3, "softcap": 20.0}


# The gradient is that of the unclipped loss, so a formula that `jax.grad` goes through must not clip.
def _rows(x, target, **options):
    return formulas.categorical_cross_entropy(x, target, clip=None, **options)


def _binary(x, target):
    return formulas.binary_cross_entropy(x, target, clip=None)


def _linear(hidden, kernel, labels):
    return _rows(jnp.dot(hidden, kernel, precision="highest"), labels)


def _pairs(a, b):
    return formulas.sigmoid_contrastive(4 * jnp.dot(a, b.T, precision="highest") - 2, jnp.arange(ROWS))


def checks() -> dict[str, tuple[Loss, Loss, tuple[np.ndarray, ...]]]:
    """By name: the loss, the formula of its elements or rows, and operands; the gradient is that of the first."""
    random = np.random.default_rng(0)
    x, a = random.normal(0, 3, (2, ROWS, WIDTH)).astype(np.float32)
    variance = np.exp(random.normal(0, 1, (ROWS, WIDTH))).astype(np.float32)
    labels = random.integers(0, WIDTH, ROWS).astype(np.int32)
    shares = np.asarray(jax.nn.softmax(a, axis=-1))
    hidden = random.normal(0, 0.3, (ROWS, FEATURES)).astype(np.float32)
    kernel = random.normal(0, 0.3, (FEATURES, WIDTH)).astype(np.float32)
    assert x.size > call.FALLBACK_SIZE, "of so few elements no kernel runs"
    cross_entropy = functools.partial(jaxloss.categorical_cross_entropy, clip=None)
    return {
        "mse": (jaxloss.mse, formulas.squared_error, (x, a)),
        "mae": (jaxloss.mae, formulas.absolute_error, (x, a)),
        "huber": (jaxloss.huber, lambda x, a: formulas.huber(x, a, 1.0), (x, a)),
        "log_cosh": (jaxloss.log_cosh, formulas.log_cosh, (x, a)),
        "quantile": (functools.partial(jaxloss.quantile, q=0.9), lambda x, a: formulas.quantile(x, a, 0.9), (x, a)),
        "poisson_nll": (jaxloss.poisson_nll, formulas.poisson_nll, (x, np.exp(a))),
        "gaussian_nll": (
            lambda x, a: jaxloss.gaussian_nll(x, a, variance),
            lambda x, a: formulas.gaussian_nll(x, a, jnp.asarray(variance)),
            (x, a),
        ),
        "binary_cross_entropy": (
            functools.partial(jaxloss.binary_cross_entropy, clip=None),
            _binary,
            (x, 1 / (1 + np.exp(-a))),
        ),
        "categorical_cross_entropy, labels": (cross_entropy, _rows, (x, labels)),
        "categorical_cross_entropy, probabilities": (cross_entropy, _rows, (x, shares)),
        "categorical_cross_entropy, options": (
            functools.partial(cross_entropy, **OPTIONS),
            functools.partial(_rows, **OPTIONS),
            (x, labels),
        ),
        "kl_divergence": (jaxloss.kl_divergence, formulas.kl_divergence, (x, shares)),
        "jensen_shannon": (jaxloss.jensen_shannon, formulas.jensen_shannon, (x, a)),
        "linear_cross_entropy": (
            functools.partial(jaxloss.linear_cross_entropy, precision="highest"),
            _linear,
            (hidden, kernel, labels),
        ),
        "sigmoid_contrastive": (
            functools.partial(jaxloss.sigmoid_contrastive, scale=4.0, bias=-2.0, precision="highest"),
            _pairs,
            (hidden, hidden[::-1].copy()),
        ),
    }


def _error(loss: Loss, formula: Loss, operands: tuple[np.ndarray, ...], device: Any) -> float:
    """The largest difference of value and gradient on that device, relative to the largest number of each."""
    on_device = [jax.device_put(operand, device) for operand in operands]
    found = jax.jit(jax.value_and_grad(loss))(*on_device)
    expected = jax.jit(jax.value_and_grad(lambda x, *rest: formula(x, *rest).sum() / ROWS))(*on_device)
    errors = []
    for number, right in zip(found, expected, strict=True):
        difference = np.abs(np.asarray(number, np.float64) - np.asarray(right, np.float64)).max()
        errors.append(float(difference / np.abs(np.asarray(right, np.float64)).max()))
    return max(error if np.isfinite(error) else np.inf for error in errors)


def _kinds_of_devices() -> list[Any]:
    """One device of each kind, the CPU last."""
    devices = {device.device_kind: device for device in [*jax.devices(), *jax.devices("cpu")]}
    return list(devices.values())


def _driver_words() -> str:
    version = driver.cuda_version()
    return "none" if version is None else f"runs CUDA up to {driver.written(version)}"


def main() -> int:
    """Prints the report, and returns the exit status: 0 if every loss agrees with its formula on every device."""
    print(f"jaxloss      {jaxloss.__version__} in {jaxloss.__path__[0]}")
    print(f"library      {library.path()}")
    print(textwrap.fill(f"kernels      {jaxloss.backends()}", 100, subsequent_indent=" " * 13))
    print(f"jax, jaxlib  {jax.__version__}, {jaxlib.version.__version__}; numpy {np.__version__}")
    print(f"Python       {platform.python_version()} on {platform.system()} {platform.release()}, {platform.machine()}")
    print(f"driver       NVIDIA: {_driver_words()}")
    print(f"devices      {', '.join(map(str, jax.devices()))}")
    wrong = count = 0
    for device in _kinds_of_devices():
        begin = time.perf_counter()
        print(f"\n{device.device_kind} ({device.platform}): largest error, relative to the largest number")
        for name, (loss, formula, operands) in checks().items():
            error, count = _error(loss, formula, operands, device), count + 1
            verdict = "" if error <= TOLERANCE else f"   WRONG: at most {TOLERANCE:.0e} is expected"
            wrong += bool(verdict)
            print(f"  {name:42} {error:8.1e}{verdict}")
        print(f"  in {time.perf_counter() - begin:.1f} s")
    print(f"\n{f'{wrong} of {count} checks are WRONG' if wrong else f'all {count} checks agree: jaxloss works here'}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
