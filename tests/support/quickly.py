"""How programs are compiled that run a few times only."""

import functools

import jax


def _known(options: dict) -> dict:
    """Those that this version of the compiler knows."""

    def is_known(name):
        try:
            jax.jit(lambda: 0, compiler_options={name: options[name]})()
        except jax.errors.JaxRuntimeError:
            return False
        return True

    return {name: value for name, value in options.items() if is_known(name)}


QUICKLY = _known({"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False})
"""Options to compile what runs a few times only: the emitters of fusions take three times as long as what was before."""

jit_quickly = functools.partial(jax.jit, compiler_options=QUICKLY)
"""For tests of rules, placements and modules. The module is the same to the letter, but LLVM takes less care of the code that
XLA makes itself, in a third of the time. Tests of how near numbers are take `jax.jit`."""
