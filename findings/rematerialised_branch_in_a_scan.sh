#!/usr/bin/env bash
# jax 0.10.2: jax.checkpoint inside a branch of lax.cond does not keep reverse mode from saving what the branch is of, once for
# every step of the scan around it. Seen for a kernel [512, 512] that all 16 steps share: the gradient's program saves
# f32[16,512,512], 16 copies of the kernel, and has 19 MB of temporaries. With checkpoint around the cond nothing of the kind
# is saved, and there is 1 MB. A newer jax (0.12.0.1) saves no copies either way.
. "$(dirname "$0")/fresh_environment.sh" jax==0.10.2
run - <<'PY'
import jax
import jax.numpy as jnp

STEPS, ROWS, WIDTH = 16, 8, 512


def idle(kernel, chunk):
    return jnp.zeros(())


def work(kernel, chunk):
    return jnp.sum(jnp.tanh(chunk @ kernel))


def inside(skipped, *operands):
    return jax.lax.cond(skipped, idle, jax.checkpoint(work, prevent_cse=False), *operands)


def around(skipped, *operands):
    either = lambda *operands: jax.lax.cond(skipped, idle, work, *operands)
    return jax.checkpoint(either, prevent_cse=False)(*operands)


def saved_and_temporaries(branch):
    def total(kernel, chunks, skipped):
        step = lambda carry, own: (carry + branch(own[1], kernel, own[0]), None)
        return jax.lax.scan(step, jnp.zeros(()), (chunks, skipped))[0]

    gradient = jax.grad(total)
    operands = jnp.ones((WIDTH, WIDTH)), jnp.ones((STEPS, ROWS, WIDTH)), jnp.zeros(STEPS, bool)
    copies = f"f32[{STEPS},{WIDTH},{WIDTH}]" in str(jax.make_jaxpr(gradient)(*operands))
    return copies, jax.jit(gradient).lower(*operands).compile().memory_analysis().temp_size_in_bytes / 1e6


print("jax", jax.__version__)
found = {branch.__name__: saved_and_temporaries(branch) for branch in (inside, around)}
for name, (copies, megabytes) in found.items():
    print(f"checkpoint {name} the cond: copies of the kernel are {'' if copies else 'not '}saved, {megabytes:.1f} MB of temporaries")
assert found["inside"][0] and not found["around"][0], "what is saved has changed: this finding is out of date"
assert found["inside"][1] > 4 * found["around"][1], "memory has changed: this finding is out of date"
PY
