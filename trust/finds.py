"""A find of the differential fuzz, made small and written as a program of its own."""

import base64
import dataclasses
import inspect
from collections.abc import Iterator

import numpy as np

from trust import programs, transforms
from trust.configurations import DEFAULT_FALLBACK, Configuration
from trust.draws import Drawn

TRIES = 40
"""So many smaller calls are tried."""


def errors(configuration: Configuration, draw: Drawn, results) -> list[str]:
    """What is wrong with the results of a call."""
    return [
        error
        for check in programs.checks(configuration, draw, results)
        if (error := programs.error_of(configuration, check))
    ]


def smaller(configuration: Configuration, draw: Drawn) -> tuple[Configuration, Drawn, list[str]]:
    """A call with as few options and examples as still go wrong, and how it does."""
    alone = dataclasses.replace(configuration, transform="grad") if configuration.transform == "vmap" else configuration
    best, tries = (configuration, draw, _errors_alone(alone, draw)), 0
    if not best[2]:  # only beside the other calls of its batch
        return configuration, draw, []
    best, changed = (alone, draw, best[2]), True
    while changed and tries < TRIES:
        changed = False
        for candidate in _candidates(*best[:2]):
            tries += 1
            if tries > TRIES:
                break
            if found := _errors_alone(*candidate):
                best, changed = (*candidate, found), True
                break
    return best


def _errors_alone(configuration: Configuration, draw: Drawn) -> list[str]:
    try:
        (results,) = programs.found(programs.program(configuration), configuration, [draw])
    except Exception as error:  # what a find may be, too
        return [f"{type(error).__name__}: {error}"]
    return errors(configuration, draw, results)


def _candidates(configuration: Configuration, draw: Drawn) -> Iterator[tuple[Configuration, Drawn]]:
    """Calls with an option less, or fewer examples."""

    def without(name):
        return dataclasses.replace(
            draw,
            operands={other: x for other, x in draw.operands.items() if other != name},
            tangents={other: x for other, x in draw.tangents.items() if other != name},
        )

    for name in configuration.numbers:
        if name not in configuration.subject.required:
            fewer = tuple(other for other in configuration.numbers if other != name)
            yield dataclasses.replace(configuration, numbers=fewer), without(name)
    for name in configuration.shapes:
        fewer = {other: shape for other, shape in configuration.shapes.items() if other != name}
        yield dataclasses.replace(configuration, shapes=fewer), without(name)
    if configuration.with_normalizer:
        yield dataclasses.replace(configuration, with_normalizer=False), without("normalizer")
    for name in ("clip", "ignore_index"):
        if name in configuration.static:
            fewer = {other: x for other, x in configuration.static.items() if other != name}
            yield dataclasses.replace(configuration, static=fewer), draw
    count = configuration.shape[0] if configuration.shape else 0
    if (count > 1 and configuration.axis % len(configuration.shape) != 0) or (
        count > 1 and not configuration.case.loss.by_rows
    ):
        for half in (slice(0, count // 2), slice(count // 2, count)):
            yield _part(configuration, draw, half, count)


def _part(configuration: Configuration, draw: Drawn, half: slice, count: int) -> tuple[Configuration, Drawn]:
    """Some of the indices of the first axis."""
    spread = ("x", "a", "where", "weights")

    def cut(name, x):
        return x[half] if name in spread and x.ndim and x.shape[0] == count else x

    operands = {name: cut(name, x) for name, x in draw.operands.items()}
    tangents = {name: cut(name, x) for name, x in draw.tangents.items()}
    cotangent = draw.cotangent[half] if draw.cotangent.ndim else draw.cotangent
    shapes = {name: operands[name].shape for name in configuration.shapes}
    smaller = dataclasses.replace(configuration, shape=operands["x"].shape, shapes=shapes)
    return smaller, dataclasses.replace(draw, operands=operands, tangents=tangents, cotangent=cotangent)


def as_program(configuration: Configuration, draw: Drawn, found: list[str]) -> str:
    """Python code that makes the call, and in comments what is wrong with what it prints."""
    loss, transform = configuration.case.loss.name, configuration.transform
    chosen = transforms.OF_TRANSFORM[transform]
    run = f"functools.partial({chosen.__name__}, loss)"
    run = run if transform == "eager" else f"jax.jit({run})"
    parts = [
        *(f"# {line}" for error in found for line in error.splitlines()),
        "import base64\nimport functools\n\nimport jax\nimport jax.numpy as jnp\nimport ml_dtypes  # noqa: F401",
        "import numpy as np\nfrom numpy import inf, nan  # noqa: F401\n\nimport jaxloss",
        "from jaxloss._ffi import call\n",
        f"call.FALLBACK_SIZE = {DEFAULT_FALLBACK if configuration.by_formula else 0}",
        *(inspect.getsource(function) for function in dict.fromkeys((transforms.split, chosen))),
        f"\ndef loss(operands):\n    options = {{name: x for name, x in operands.items() if name not in ('x', 'a')}}\n"
        f"    return jaxloss.{loss}(operands['x'], operands['a'], **options, **{configuration.static!r})\n",
        *(
            f"{name} = {{{', '.join(f'{key!r}: {_literal(x)}' for key, x in arrays.items())}}}"
            for name, arrays in (("operands", draw.operands), ("tangents", draw.tangents))
        ),
        f"cotangent = {_literal(draw.cotangent)}",
        f"with jax.enable_x64({configuration.of_64_bits}):",
        "    arrays = jax.tree.map(jnp.asarray, (operands, tangents, cotangent))",
        f"    print({run}(*arrays))",
    ]
    return "\n".join(parts) + "\n"


def _literal(x: np.ndarray) -> str:
    if x.size <= 64:
        wide = x.astype(np.float64) if x.dtype.kind not in "iub" else x
        return f"np.array({wide.tolist()!r}).astype({x.dtype.name!r})"
    text = base64.b64encode(np.ascontiguousarray(x).tobytes()).decode()
    return f"np.frombuffer(base64.b64decode({text!r}), {x.dtype.name!r}).reshape({x.shape})"
