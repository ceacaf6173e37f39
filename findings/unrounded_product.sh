#!/usr/bin/env bash
# jax 0.10.2 on a CPU: inside one jitted function a product of bfloat16 matrices, z, has two values. Where it is a result it is
# rounded to bfloat16; where it is converted to float32 it is the product before that rounding. So exp(z - max z), computed in
# float32 as softmaxes are, has a largest element other than 1. (xla_allow_excess_precision, which is on, is what allows it;
# jax 0.12.0 gives 1.)
# Seen: differences of up to 0.06 between z and z converted, of numbers up to 29; largest elements from 0.5 to 3.3.
. "$(dirname "$0")/fresh_environment.sh" jax==0.10.2
run - <<'PY'
import jax
import jax.numpy as jnp
import numpy as np

print("jax", jax.__version__)
rng = np.random.default_rng(0)
x, w = (jnp.asarray(rng.standard_normal(shape), jnp.bfloat16) for shape in ((8, 64), (64, 32)))


@jax.jit
def product(x, w):
    z = x @ w
    return z, z.astype(jnp.float32)


@jax.jit
def largest_of_row(x, w):
    z = x @ w
    largest = jnp.max(z, axis=-1, keepdims=True)
    return jnp.exp(z.astype(jnp.float32) - largest.astype(jnp.float32)).max(axis=-1)


z, converted = product(x, w)
apart = float(jnp.abs(z.astype(jnp.float32) - converted).max())
print("z, and z converted to float32 in the same function, differ by up to", apart)
largest = np.asarray(largest_of_row(20 * x, w))
print("the largest exp(z - max z) of each row:", largest.round(2))
assert apart > 0.01, "z has one value now: this finding is out of date"
assert largest.max() > 1.5 and largest.min() < 0.9
PY
