#!/usr/bin/env bash
# jax 0.10.2, XLA on a CPU with fused multiply-add: under jit, an exponential that overflows is finite once something is
# subtracted from it. exp(x) ends with a product by a power of 2, and that product and the difference become one operation,
# in which the product never overflows. Seen for x = a = 1e38: exp(x) - a is 2.676e+38, and for x = a = inf it is -inf.
# Without jit they are inf and nan, and exp(x) alone is inf either way.
. "$(dirname "$0")/fresh_environment.sh" jax==0.10.2
run - <<'PY'
import jax
import jax.numpy as jnp
import numpy as np

print("jax", jax.__version__)


def difference(x, a):
    return jnp.exp(x) - a


x = jnp.asarray([[1e38, np.inf, 3.0] + [0.0] * 13], jnp.float32)
eager, jitted = np.asarray(difference(x, x))[0], np.asarray(jax.jit(difference)(x, x))[0]
print("eager", eager[:3], "jitted", jitted[:3], "exp alone", jax.jit(jnp.exp)(x)[0, :3])
assert np.isposinf(eager[0]) and np.isnan(eager[1]), "without jit it is another result now: this finding is out of date"
assert np.isfinite(jitted[0]) and np.isneginf(jitted[1]), "it overflows under jit now: this finding is out of date"
assert np.isposinf(np.asarray(jax.jit(jnp.exp)(x))[0, :2]).all()
np.testing.assert_allclose(eager[2], jitted[2], rtol=1e-6)
PY
