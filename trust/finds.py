"""A find of the differential fuzz, made small and written as a program of its own."""

import base64
import dataclasses
import inspect

import numpy as np

from trust import programs, transforms
from trust.calls import Configuration, Drawn

TRIES = 40
"""So many smaller calls are tried."""


def errors(configuration: Configuration, draw: Drawn, results) -> dict[int, list[str]]:
    """What is wrong with the results of calls, by which of them they are."""
    checks = programs.checks(configuration, draw, results)
    right = np.ones(len(draw), bool)
    for check in checks:
        right &= programs.are_right(configuration, check)
    return {
        int(i): [error for check in checks if (error := programs.error_of(configuration, check, i))]
        for i in np.flatnonzero(~right)
    }


def smaller(configuration: Configuration, draw: Drawn) -> tuple[Configuration, Drawn, list[str]]:
    """A call with as few options and examples as still go wrong, and how it does; no errors if none does alone."""
    alone = dataclasses.replace(configuration, transform="grad") if configuration.transform == "vmap" else configuration
    best, tries = (alone, draw, _errors_alone(alone, draw)), 0
    changed = bool(best[2])
    while changed and tries < TRIES:
        changed = False
        for candidate in best[0].simpler(best[1]):
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
    return errors(configuration, draw, results).get(0, [])


def as_program(configuration: Configuration, draw: Drawn, found: list[str]) -> str:
    """Python code that makes the call, and in comments what is wrong with what it prints.

    A draw of several calls is those of one batch, if they are under `vmap`.
    """
    transform = configuration.transform
    chosen = transforms.OF_TRANSFORM[transform]
    run = f"functools.partial({chosen.__name__}, loss)"
    run = f"jax.vmap({run})" if transform == "vmap" else run
    run = run if transform == "eager" else f"jax.jit({run})"
    operands, tangents = (
        {name: x if transform == "vmap" else x[0] for name, x in d.items()} for d in (draw.operands, draw.tangents)
    )
    cotangent = draw.cotangent if transform == "vmap" else draw.cotangent[0]
    parts = [
        *(f"# {line}" for error in found for line in error.splitlines()),
        "import base64\nimport functools\n\nimport jax\nimport jax.numpy as jnp\nimport ml_dtypes  # noqa: F401",
        "import numpy as np\nfrom numpy import inf, nan  # noqa: F401\n\nimport jaxloss",
        "from jaxloss._ffi import call\n",
        f"call.FALLBACK_SIZE = {programs.DEFAULT_FALLBACK if configuration.by_formula else 0}",
        *(inspect.getsource(function) for function in dict.fromkeys((transforms.split, chosen))),
        f"\n{configuration.source}",
        *(
            f"{name} = {{{', '.join(f'{key!r}: {_literal(x)}' for key, x in arrays.items())}}}"
            for name, arrays in (("operands", operands), ("tangents", tangents))
        ),
        f"cotangent = {_literal(np.asarray(cotangent))}",
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
