"""Second-order steps without a matrix: products with the Hessian of a loss, and with its Gauss-Newton part.

The Gauss-Newton matrix is Jᵀ H J, of the network's Jacobian J and the loss's Hessian H with respect to the logits, and
never negative. `jax.jvp` of `d_categorical_cross_entropy` is the product with H. A step solves (Jᵀ H J + λ) d =
−gradient by conjugate gradients, and sets λ by how well the quadratic model foretold the loss (Levenberg and
Marquardt).

    python -m examples.gauss_newton --quick
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from jax.scipy.sparse.linalg import cg
from sklearn import datasets

import examples
import jaxloss


def logits_of(params, images):
    """Logits [n, 10]."""
    return jnp.tanh(images @ params["hidden"]) @ params["output"]


def loss(params, images, labels):
    """What is minimised: cross entropy, exact far from the labels too."""
    return jaxloss.categorical_cross_entropy(logits_of(params, images), labels, clip=None)


def hessian_product(params, images, labels, vector):
    """The Hessian of the loss with respect to the parameters, times a vector like them: forward over reverse."""
    return jax.jvp(lambda params: jax.grad(loss)(params, images, labels), (params,), (vector,))[1]


def gauss_newton_product(params, images, labels, vector):
    """Its Gauss-Newton part times a vector: J, then H, then Jᵀ."""
    network = functools.partial(logits_of, images=images)
    logits, tangent = jax.jvp(network, (params,), (vector,))
    gradient = functools.partial(jaxloss.d_categorical_cross_entropy, target=labels)
    curvature = jax.jvp(gradient, (logits,), (tangent,))[1]
    return jax.vjp(network, params)[1](curvature)[0]


@jax.jit
def step(params, damping, images, labels):
    """Parameters and damping after a step, and the loss before it."""
    value, gradient = jax.value_and_grad(loss)(params, images, labels)
    start, unravel = ravel_pytree(params)
    slope = ravel_pytree(gradient)[0]

    def product(vector):
        return ravel_pytree(gauss_newton_product(params, images, labels, unravel(vector)))[0]

    direction, _ = cg(lambda vector: product(vector) + damping * vector, -slope, maxiter=15)
    foretold = slope @ direction + direction @ product(direction) / 2
    moved = unravel(start + direction)
    quality = (loss(moved, images, labels) - value) / foretold
    damping = jnp.where(quality > 0.75, damping / 3, jnp.where(quality < 0.25, damping * 3, damping))
    return jax.tree.map(lambda new, old: jnp.where(quality > 0, new, old), moved, params), damping, value


def main(quick: bool = False) -> tuple[float, float]:
    """Takes so many steps with Gauss-Newton and with Adam, and returns the loss after each."""
    images, labels = datasets.load_digits(return_X_y=True)
    images, labels = jnp.asarray((images - 8) / 8, jnp.float32), jnp.asarray(labels, jnp.int32)
    rng = np.random.default_rng(0)
    params = {"hidden": rng.standard_normal((64, 32)) / 8, "output": rng.standard_normal((32, 10)) / 8}
    params = by_adam = jax.tree.map(jnp.float32, params)
    optimiser = optax.adam(1e-2)
    state, damping = optimiser.init(by_adam), jnp.float32(1e-2)

    @jax.jit
    def adam_step(params, state):
        value, gradient = jax.value_and_grad(loss)(params, images, labels)
        update, state = optimiser.update(gradient, state)
        return optax.apply_updates(params, update), state, value

    direction = jax.grad(loss)(params, images, labels)
    for product in (hessian_product, gauss_newton_product):
        curvature = optax.tree.vdot(direction, jax.jit(product)(params, images, labels, direction))
        print(f"{product.__name__}: {curvature / optax.tree.vdot(direction, direction):.4f} along the gradient")
    for number in range(8 if quick else 16):
        params, damping, value = step(params, damping, images, labels)
        by_adam, state, adam_value = adam_step(by_adam, state)
        print(f"step {number:2d}: loss {value:.6f}, damping {damping:.1e}; Adam {adam_value:.6f}")
    return float(value), float(adam_value)


if __name__ == "__main__":
    main(examples.quick())
