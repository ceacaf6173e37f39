"""Whether tests call kernels, or the formulas that stand in for them."""

import contextlib
from collections.abc import Iterator

import jax

from jaxloss._ffi import library

PATHS = {"kernel": library.PLATFORMS, "formula": ()}
"""The platforms that have kernels: with none it is as in a build without any."""

_taken = "kernel"


def take(name: str) -> None:
    """Programs that took another are forgotten."""
    global _taken
    if name != _taken:
        library.PLATFORMS, _taken = PATHS[name], name
        jax.clear_caches()


@contextlib.contextmanager
def no_kernels() -> Iterator[None]:
    """`lax.platform_dependent` takes the formula."""
    before = _taken
    take("formula")
    try:
        yield
    finally:
        take(before)
