"""The transforms that a call is put through; their text is a part of the program that shows a find.

Each takes the loss, a function of operands by name, and gives its results by name.
"""

import jax
import jax.numpy as jnp


def split(loss, operands):
    """The floating-point operands, and the loss as a function of these."""
    live = {name: x for name, x in operands.items() if jnp.issubdtype(x.dtype, jnp.floating)}
    return live, lambda live: loss(operands | live)


def value(loss, operands, tangents, cotangent):
    del tangents, cotangent
    return {"value": loss(operands)}


def grad(loss, operands, tangents, cotangent):
    del tangents
    live, of_live = split(loss, operands)
    out, pull = jax.vjp(of_live, live)
    (gradients,) = pull(cotangent.astype(out.dtype))
    return {"value": out, **{f"gradient of {name}": gradients[name] for name in gradients}}


def jvp(loss, operands, tangents, cotangent):
    live, of_live = split(loss, operands)
    still = {name: jnp.zeros_like(x) for name, x in live.items()}
    out, along = jax.jvp(of_live, (live,), (still | tangents,))
    return {"value": out, "along": jnp.sum(along * cotangent.astype(along.dtype))}


def hvp(loss, operands, tangents, cotangent):
    def of_x(x):
        out = loss(operands | {"x": x})
        return jnp.sum(out * cotangent.astype(out.dtype))

    gradient, along = jax.jvp(jax.grad(of_x), (operands["x"],), (tangents["x"],))
    return {"gradient of x": gradient, "hessian along": along}


OF_TRANSFORM = {"eager": grad, "jit": value, "grad": grad, "vmap": grad, "jvp": jvp, "hvp": hvp}
"""What is asked of a call under each of `calls.TRANSFORMS`."""
