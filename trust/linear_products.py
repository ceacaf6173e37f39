"""Whole logits in float64: what they are made of, and the gradients of that from theirs."""

import dataclasses

import numpy as np

from trust.exact import Pair


@dataclasses.dataclass(frozen=True)
class Product:
    """Logits of each call, and what they are made of."""

    hidden: np.ndarray
    kernel: np.ndarray
    class_axis: int
    has_bias: bool
    logits: np.ndarray
    largest: np.ndarray
    """Of each row, the magnitude of the terms of a logit."""

    @classmethod
    def of(cls, hidden, kernel, bias, class_axis: int, where) -> "Product":
        if where is not None:
            keep = np.broadcast_to(where, hidden.shape[:-1])
            hidden = np.where(keep[..., None], hidden, np.zeros((), hidden.dtype))
        hidden, kernel = hidden.astype(np.float64), kernel.astype(np.float64)
        kernel = kernel if class_axis else np.moveaxis(kernel, 1, 2)
        added = np.zeros((len(hidden), kernel.shape[-1])) if bias is None else bias.astype(np.float64)
        added = added.reshape(len(hidden), *(1,) * (hidden.ndim - 2), -1)
        logits = np.einsum("n...d,ndv->n...v", hidden, kernel) + added
        size = np.einsum("n...d,ndv->n...v", abs(hidden), abs(kernel)) + abs(added)
        return cls(hidden, kernel, class_axis, bias is not None, logits, size.max(-1, keepdims=True, initial=0))

    def pulled(self, derivative, size) -> dict[str, Pair]:
        """The gradients of what the logits are made of, from theirs."""
        found: dict[str, Pair] = {}
        rows = len(derivative), -1
        pairs = ((derivative, self.hidden, self.kernel), (size, abs(self.hidden), abs(self.kernel)))
        of_x, of_kernel, of_bias = [], [], []
        for logits, hidden, kernel in pairs:
            of_x.append(np.einsum("n...v,ndv->n...d", logits, kernel))
            flat = (
                logits.reshape(*rows, logits.shape[-1]) if logits.size else np.zeros((len(logits), 0, logits.shape[-1]))
            )
            states = hidden.reshape(len(hidden), flat.shape[1], hidden.shape[-1])
            product = np.einsum("ntd,ntv->ndv", states, flat)
            of_kernel.append(product if self.class_axis else np.moveaxis(product, 1, 2))
            of_bias.append(flat.sum(1))
        found["x"], found["kernel"] = tuple(of_x), tuple(of_kernel)
        if self.has_bias:
            found["bias"] = tuple(of_bias)
        return found
