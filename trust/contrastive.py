"""Random calls of `sigmoid_contrastive`: of few pairs and features, in chunks of few rows."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
import numpy as np

import losses
from trust import calls
from trust.calls import TRANSFORMS, Configuration, Drawn
from trust.exact import Exact

PAIRS = (0, 1, 2, 3, 5, 8, 17, 33)
FEATURES = (1, 2, 3, 8, 16, 17)
PATTERNS = ("ordinary", "ordinary", "wide", "tiny", "ties")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairsConfiguration(Configuration):
    """A call of it; `x` and `b` are the embeddings, and their shape is the configuration's.

    Attributes:
        other_dtype: of `b`.
    """

    of_examples: ClassVar = ("x", "b")

    other_dtype: str

    @property
    def arguments(self) -> tuple[str, ...]:
        return "x", "b"

    @property
    def of_64_bits(self) -> bool:
        return "float64" in (self.dtype, self.other_dtype)

    @property
    def computed(self) -> np.dtype:
        """The gradient of logits has this type, which a product of embeddings has."""
        return np.dtype(np.float64) if self.of_64_bits else jnp.promote_types(self.dtype, self.other_dtype)

    @property
    def rounded_to(self) -> np.dtype:
        return max((jnp.dtype(name) for name in (self.dtype, self.other_dtype)), key=calls.spacing)

    @property
    def size(self) -> int:
        return self.shape[0] * sum(self.shape)

    @property
    def examples(self) -> int:
        return self.shape[0]

    def __str__(self) -> str:
        types = f"{self.dtype}{list(self.shape)} {self.other_dtype}"
        return f"{self.transform} of {self.function} {types} {dict(self.static)}"

    def drawn(self, rng: np.random.Generator, count: int) -> Drawn:
        pattern = str(rng.choice(PATTERNS))
        operands = {
            name: calls.scaled(pattern, rng, rng.standard_normal((count, *self.shape)), dtype)
            for name, dtype in (("x", self.dtype), ("b", self.other_dtype))
        }
        operands["scale"] = (rng.choice([-1, 1, 1], count) * np.exp(rng.uniform(-2, 2, count))).astype(np.float32)
        operands["bias"] = rng.uniform(-8, 4, count).astype(np.float32)
        operands |= calls.drawn_multipliers(self, rng, count, pattern)
        units = self.shape[:1] if self.static["reduction"] == "none" else ()
        return calls.drawn(rng, pattern, operands, tuple(operands), units)

    def exact(self, draw: Drawn, x: np.ndarray | None = None) -> Exact:
        given = {name: array.astype(np.float64) for name, array in draw.operands.items()}
        a, b = given["x"] if x is None else x.astype(np.float64), given["b"]
        scale, bias, n = given["scale"][:, None, None], given["bias"][:, None, None], self.shape[0]
        products, largest = np.einsum("nid,njd->nij", a, b), np.einsum("nid,njd->nij", abs(a), abs(b))
        sign, off = 1 - 2 * np.eye(n), abs(scale) * largest + abs(bias)
        z = sign * (scale * products + bias)
        with np.errstate(over="ignore"):
            each, slope = np.logaddexp(0, z), 1 / (1 + np.exp(-z))
        with np.errstate(divide="ignore"):
            of_mean = 1 / given["normalizer"] if "normalizer" in given else np.full(len(a), 1 / n if n else 0.0)
        factor = of_mean if self.static["reduction"] == "mean" else np.ones(len(a))
        pulled = draw.cotangent.astype(np.float64)
        times = factor[:, None] * (pulled if pulled.ndim == 2 else pulled[:, None])
        # By what a logit errs, its loss does times the slope; and the slope by as much of itself.
        value = (each * factor[:, None, None]).sum(-1), ((each + slope * off) * factor[:, None, None]).sum(-1)
        of_z = times[..., None] * slope * sign
        size = abs(of_z) * (1 + off)
        gradients = {
            "x": (scale * np.einsum("nij,njd->nid", of_z, b), abs(scale) * np.einsum("nij,njd->nid", size, abs(b))),
            "b": (scale * np.einsum("nij,nid->njd", of_z, a), abs(scale) * np.einsum("nij,nid->njd", size, abs(a))),
            "scale": ((of_z * products).sum((1, 2)), (size * largest).sum((1, 2))),
            "bias": (of_z.sum((1, 2)), size.sum((1, 2))),
        }
        total = value[0].sum(-1), value[1].sum(-1)
        if "normalizer" in given:
            gradients["normalizer"] = -total[0] * factor * pulled, total[1] * abs(factor * pulled)
        return Exact(value if pulled.ndim == 2 else total, gradients, max(1, n * (n + self.shape[1])))

    def is_held(self, what: str, draw: Drawn) -> bool:
        return what != "hessian along" or (draw.pattern == "ordinary" and self.computed.itemsize > 2)


def of_pairs(rng: np.random.Generator, by_formula: bool) -> PairsConfiguration:
    """A random one."""
    chance, pick = calls.choices(rng)
    dtype, reduction = pick(losses.FLOATS), pick(losses.REDUCTIONS)
    return PairsConfiguration(
        function="sigmoid_contrastive",
        shape=(pick(PAIRS), pick(FEATURES)),
        dtype=dtype,
        other_dtype=pick(losses.FLOATS) if chance(0.25) else dtype,
        static={"reduction": reduction, "chunk_size": pick((None, 1, 4, 8)), "precision": "highest"},
        numbers=(),
        required=(),
        shapes={},
        with_normalizer=reduction == "mean" and chance(0.25),
        transform=pick(TRANSFORMS),
        by_formula=by_formula,
    )
