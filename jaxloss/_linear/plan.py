"""What a linear loss is: its operands, and the plan that says what is made of them."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

from jaxloss._linear.split import Roles
from jaxloss._spec import OPTIONS, Objective


class LinearOperands(NamedTuple):
    """What a linear loss is of; or what belongs to each of these.

    Attributes:
        hidden: hidden states, `[tokens..., D]`.
        kernel: `[D, V]` or `[V, D]`.
        labels: `[tokens...]`; of a divergence the teacher's hidden states, `[tokens..., D']`.
        row_weight: `[tokens...]`.
        bias: `[V]`, or None.
        parameters: those that the objective names; of a divergence those that `DivergencePlan` says.
    """

    hidden: Any
    kernel: Any
    labels: Any
    row_weight: Any
    bias: Any = None
    parameters: tuple = ()


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a linear loss is, beside its operands.

    Attributes:
        objective: the loss of rows of logits, and the mesh axes that an enclosing `shard_map` has split them over.
        token_rank: how many axes of the hidden states are tokens.
        classes_first: whether the kernel is `[V, D]`.
        has_bias: whether there is a bias.
        masked: whether tokens may be left out.
        weighted: whether tokens have weights, which may be 0.
        chunk: how many tokens a chunk has, None for what `chunk_size` says.
        accumulate_dtype: what the gradient of the kernel is summed in.
        logits_dtype: of the logits, which holds the type of the product's operands.
        precision: of the matrix products.
        aligned: whether features and classes are padded to multiples while a device works, as `alignment` says; None
            where that depends on shapes and platform.
        whole_rank: how many of the last axes of tokens devices never split: those of a block that is whole.
    """

    objective: Objective
    token_rank: int
    classes_first: bool
    has_bias: bool
    masked: bool
    weighted: bool
    chunk: int | None
    accumulate_dtype: Any
    logits_dtype: Any
    precision: Any
    aligned: bool | None = None
    whole_rank: int = 0

    @property
    def axes(self) -> tuple[str, ...]:
        """The mesh axes that an enclosing `shard_map` has split the classes over."""
        return self.objective.axes

    @property
    def widens(self) -> bool:
        """Whether a batch of tokens may become one more axis of tokens: no parameter is one of tokens."""
        return True

    @property
    def classes_axis(self) -> int:
        """The axis of classes of the kernel."""
        return 0 if self.classes_first else 1

    @property
    def sums_in_float16(self) -> bool:
        """Whether the gradient of the kernel is summed in a type that holds a mean of tokens, but no sum of them."""
        return jnp.dtype(self.accumulate_dtype) == jnp.float16

    @property
    def value_dtype(self):
        """The type of a token's loss and statistics, and of what is made of them."""
        return jnp.float64 if self.logits_dtype == jnp.float64 else jnp.float32

    @property
    def tokens(self) -> Roles:
        """The roles of the tokens' axes."""
        split = self.token_rank - self.whole_rank
        return tuple(f"{'t' if axis < split else 'b'}{axis}" for axis in range(self.token_rank))

    @property
    def roles(self) -> LinearOperands:
        """Of the operands' axes."""
        kernel = ("v", "d") if self.classes_first else ("d", "v")
        parameters = tuple(("v",) if OPTIONS[name].per_class else () for name in self.objective.parameters)
        return LinearOperands((*self.tokens, "e"), kernel, self.tokens, self.tokens, ("v",), parameters)

    def flat(self, operands: LinearOperands) -> tuple:
        """One after the other, as devices split them; so what belongs to each."""
        bias = (operands.bias,) if self.has_bias else ()
        return *operands[:4], *bias, *operands.parameters

    @property
    def places(self) -> dict[str, int]:
        """Of the operands that a gradient is made of, among the flat ones."""
        return {"hidden": 0, "kernel": 1, "bias": 4}

    def operands(self, flat: Sequence) -> LinearOperands:
        """The reverse."""
        hidden, kernel, labels, row_weight, *rest = flat
        bias = rest.pop(0) if self.has_bias else None
        return LinearOperands(hidden, kernel, labels, row_weight, bias, tuple(rest))

    @property
    def stats(self) -> tuple[str, ...]:
        """The names of the statistics of a token that are asked for."""
        return self.objective.stats if self.objective.details else ()
