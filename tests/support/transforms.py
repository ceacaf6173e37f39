"""The transforms of JAX that every loss is put through. Each is a function of a loss and `Operands` to a tree of arrays.

The loss is given as a scalar function of prediction and target. `TRANSFORMS` differentiate with respect to the prediction,
`TRANSFORMS_OF_TARGET` with respect to the target too.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Operands:
    """Prediction `x`, target `a`, tangents of both, and two of each stacked."""

    x: jax.Array
    a: jax.Array
    v: jax.Array
    w: jax.Array
    xs: jax.Array
    targets: jax.Array


def dot(a, b):
    return jnp.sum(a * b)


def zero():
    return jnp.zeros((), float)


def _batched_along(axis, f, o):
    """Over a batch axis that is not the first one."""
    return jax.vmap(jax.grad(f), (axis, 0), axis)(jnp.moveaxis(o.xs, 0, axis), o.targets)


def _directional(f, o):
    """Of a prediction: the derivative along `o.v`."""
    return lambda x: jax.jvp(lambda y: f(y, o.a), (x,), (o.v,))[1]


def _gradient_along(f, o):
    return lambda x: dot(jax.grad(f)(x, o.a), o.v)


def _scanned(f, o, wrap=lambda step: step):
    def total(xs):
        def step(sum_so_far, x):
            return sum_so_far + f(jnp.sin(x), o.a), None

        return jax.lax.scan(wrap(step), zero(), xs)[0]

    return total


def _looped(f, o):
    """A `fori_loop` of fixed length, which reverse mode can take."""
    return lambda x: jax.lax.fori_loop(0, 2, lambda i, y: y + i * f(x * y, o.a).astype(float), zero() + 0.5)


def _while(f, o):
    """A `while_loop`, which only forward mode can take."""

    def loop(x):
        def step(state):
            i, total = state
            return i + 1, total + f(x * (i + 1), o.a).astype(float)

        return jax.lax.while_loop(lambda state: state[0] < 2, step, (0, zero()))[1]

    return loop


def _checkpointed(f, o, **policy):
    def model(x):
        return f(jnp.sin(x), o.a)

    return jax.grad(jax.checkpoint(model, **policy))(o.x)


def _branched(f, o):
    branches = [lambda x: x.sum(), lambda x: f(x, o.a), lambda x: 2 * x.sum()]
    return lambda x: jax.lax.switch(jnp.int32(o.x[0, 0] < 1e9), branches, x)


POLICIES = jax.checkpoint_policies

TRANSFORMS = {
    "value": lambda f, o: f(o.x, o.a),
    "grad": lambda f, o: jax.grad(f)(o.x, o.a),
    "value_and_grad": lambda f, o: jax.value_and_grad(f)(o.x, o.a),
    "grad_of_scaled": lambda f, o: jax.grad(lambda x: 3 * f(2 * x, o.a) ** 2)(o.x),
    "vjp": lambda f, o: jax.vjp(lambda x: f(x, o.a), o.x)[1](jnp.ones_like(f(o.x, o.a))),
    "vmap": lambda f, o: jax.vmap(f)(o.xs, o.targets),
    "vmap_of_prediction": lambda f, o: jax.vmap(f, (0, None))(o.xs, o.a),
    "vmap_of_target": lambda f, o: jax.vmap(f, (None, 0))(o.x, o.targets),
    "vmap_last_axis": functools.partial(_batched_along, -1),
    "vmap_middle_axis": functools.partial(_batched_along, 1),
    "vmap_nested": lambda f, o: jax.vmap(jax.vmap(jax.grad(f), (0, None)), (None, 0))(o.xs, o.targets),
    "vmap_grad": lambda f, o: jax.vmap(jax.value_and_grad(f))(o.xs, o.targets),
    "vmap_grad_of_prediction": lambda f, o: jax.vmap(jax.grad(f), (0, None))(o.xs, o.a),
    "vmap_grad_of_target": lambda f, o: jax.vmap(jax.grad(f), (None, 0))(o.x, o.targets),
    "grad_vmap": lambda f, o: jax.grad(lambda xs: jax.vmap(f)(xs, o.targets).sum())(o.xs),
    "per_example": lambda f, o: jax.vmap(jax.grad(lambda x, a: f(x[None], a[None])))(o.x, o.a),
    "jvp": lambda f, o: jax.jvp(lambda x: f(x, o.a), (o.x,), (o.v,)),
    "vmap_jvp": lambda f, o: jax.vmap(lambda x, a, v: jax.jvp(lambda y: f(y, a), (x,), (v,))[1])(
        o.xs, o.targets, o.xs[::-1]
    ),
    "jacfwd": lambda f, o: jax.jacfwd(f)(o.x[:2, :3], _first(o)),
    "jacrev": lambda f, o: jax.jacrev(f)(o.x, o.a),
    "linearize": lambda f, o: jax.linearize(lambda x: f(x, o.a), o.x)[1](o.v),
    "linear_transpose": lambda f, o: jax.linear_transpose(jax.linearize(lambda x: f(x, o.a), o.x)[1], o.x)(
        jnp.ones_like(f(o.x, o.a))
    ),
    "forward_over_reverse": lambda f, o: jax.jvp(lambda x: jax.grad(f)(x, o.a), (o.x,), (o.v,)),
    "reverse_over_reverse": lambda f, o: jax.grad(_gradient_along(f, o))(o.x),
    "reverse_over_forward": lambda f, o: jax.grad(_directional(f, o))(o.x),
    "forward_over_forward": lambda f, o: jax.jvp(_directional(f, o), (o.x,), (o.v,)),
    "vmap_of_second_order": lambda f, o: jax.vmap(lambda x: jax.jvp(lambda y: jax.grad(f)(y, o.a), (x,), (o.v,))[1])(
        o.xs
    ),
    "hessian": lambda f, o: jax.hessian(f)(o.x[:2, :3], _first(o)),
    "third_order": lambda f, o: jax.grad(lambda x: dot(jax.grad(_gradient_along(f, o))(x), o.v))(o.x),
    "scan": lambda f, o: jax.grad(_scanned(f, o))(o.xs),
    "scan_checkpoint": lambda f, o: jax.value_and_grad(_scanned(f, o, jax.checkpoint))(o.xs),
    "scan_jvp": lambda f, o: jax.jvp(_scanned(f, o), (o.xs,), (o.xs[::-1],)),
    "fori_loop": lambda f, o: jax.grad(_looped(f, o))(o.x),
    "while_loop": lambda f, o: jax.jvp(_while(f, o), (o.x,), (o.v,)),
    "map": lambda f, o: jax.grad(lambda xs: jax.lax.map(lambda pair: f(*pair), (xs, o.targets)).sum())(o.xs),
    "cond": lambda f, o: jax.grad(
        lambda x: jax.lax.cond(o.x[0, 0] < 1e9, lambda y: f(y, o.a), lambda y: 0 * f(y, o.a), x)
    )(o.x),
    "cond_vmap": lambda f, o: jax.vmap(
        jax.grad(lambda x, p: jax.lax.cond(p, lambda y: f(y, o.a), lambda y: 2 * f(y, o.a), x))
    )(o.xs, jnp.array([True, False])),
    "switch": lambda f, o: jax.grad(_branched(f, o))(o.x),
    "checkpoint": lambda f, o: _checkpointed(f, o),
    "checkpoint_everything_saveable": lambda f, o: _checkpointed(f, o, policy=POLICIES.everything_saveable),
    "checkpoint_nothing_saveable": lambda f, o: _checkpointed(f, o, policy=POLICIES.nothing_saveable),
    "checkpoint_dots_saveable": lambda f, o: _checkpointed(f, o, policy=POLICIES.dots_saveable),
    "checkpoint_second_order": lambda f, o: jax.jvp(
        jax.grad(jax.checkpoint(lambda x: f(jnp.sin(x), o.a))), (o.x,), (o.v,)
    ),
    "custom_vjp_around": lambda f, o: jax.grad(_in_custom_vjp(f, o))(o.x),
}


def _first(o):
    """The target of the first two rows and three columns."""
    return o.a[:2] % 3 if o.a.ndim == 1 else o.a[:2, :3]


def _in_custom_vjp(f, o):
    """The loss inside a rule of the user's own."""

    @jax.custom_vjp
    def doubled(x):
        return 2 * f(x, o.a)

    doubled.defvjp(lambda x: (doubled(x), x), lambda x, g: (2 * g * jax.grad(f)(x, o.a),))
    return doubled


TRANSFORMS_OF_TARGET = {
    "grad_of_target": lambda f, o: jax.grad(f, 1)(o.x, o.a),
    "value_and_grad_of_both": lambda f, o: jax.value_and_grad(f, (0, 1))(o.x, o.a),
    "vmap_grad_of_both": lambda f, o: jax.vmap(jax.grad(f, (0, 1)))(o.xs, o.targets),
    "vmap_grad_of_target_alone": lambda f, o: jax.vmap(jax.grad(f, 1), (0, None))(o.xs, o.a),
    "jvp_of_target": lambda f, o: jax.jvp(lambda a: f(o.x, a), (o.a,), (o.w,)),
    "jvp_of_both": lambda f, o: jax.jvp(f, (o.x, o.a), (o.v, o.w)),
    "mixed_forward_over_reverse": lambda f, o: jax.jvp(lambda a: jax.grad(f)(o.x, a), (o.a,), (o.w,)),
    "mixed_reverse_over_reverse": lambda f, o: jax.grad(lambda a: dot(jax.grad(f)(o.x, a), o.v))(o.a),
    "mixed_reverse_over_forward": lambda f, o: jax.grad(lambda a: jax.jvp(lambda x: f(x, a), (o.x,), (o.v,))[1])(o.a),
    "hessian_of_both": lambda f, o: jax.hessian(f, (0, 1))(o.x[:2, :3], o.a[:2, :3]),
    "scan_of_target": lambda f, o: jax.grad(lambda ts: jax.lax.scan(lambda s, t: (s + f(o.x, t), None), zero(), ts)[0])(
        o.targets
    ),
    "checkpoint_of_both": lambda f, o: jax.grad(jax.checkpoint(f), (0, 1))(o.x, o.a),
}

HIGHER_ORDER = {
    name
    for name in (*TRANSFORMS, *TRANSFORMS_OF_TARGET)
    if any(word in name for word in ("_over_", "second", "third", "hessian"))
}
