"""The arguments of `linear_objective`, checked and brought into the form that `_linear.objective` takes."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxloss._arrays import MASKED, Array, inlined, manual_axes, varying
from jaxloss._checks.arrays import array
from jaxloss._checks.parameters import choice, integer, real_array
from jaxloss._linear.blocks import BlockPlan
from jaxloss._linear.plan import Plan
from jaxloss._linear.traced import Objective, Tokens
from jaxloss._partitioning.meshes import axis_split, mesh_of
from jaxloss._rows.weights import Examples, inverse
from jaxloss._types import Per, TokenNormalizer

NORMALIZERS = ("tokens", "sequences", "groups")


def checked(
    plan: Plan,
    operands: Sequence[Array],
    examples: Examples,
    rest: Sequence[Array],
    objective: Callable[..., Any],
    data: Sequence[Any],
    *,
    per: Per | None,
    group: int | None,
    normalizer: TokenNormalizer,
    has_aux: bool,
) -> tuple[BlockPlan, tuple[Array, ...], Callable[[Sequence[Array]], Any]]:
    """The plan of blocks, its operands, and what makes the auxiliary result of its leaves.

    Plan, operands, examples and further operands are those of a linear loss without weights.
    """
    if not callable(objective):
        raise TypeError(f"objective has type {type(objective).__name__}: expected a function of tokens and data")
    hidden, kernel, labels = operands
    per = getattr(objective, "per", "sequence") if per is None else per
    choice("per", per, get_args(Per))
    by_sequence = per == "sequence"
    group = _group(objective, group, by_sequence, labels)
    arrays = [array(f"data[{place}]", x) for place, x in enumerate(data)]
    leading = labels.shape[:-1] if by_sequence else labels.shape
    for place, x in enumerate(arrays):
        if x.shape[: len(leading)] != leading:
            raise _data_shape_error(place, x, labels, by_sequence)

    dtype = plan.value_dtype
    counted, n = _normalizer(normalizer, by_sequence)
    hidden, labels, weight, arrays, factor = _in_blocks(
        (group, by_sequence, counted, dtype), hidden, labels, examples, arrays, n
    )
    plan = dataclasses.replace(plan, token_rank=labels.ndim, whole_rank=2 if by_sequence else 0)
    block = labels.shape[-2:] if by_sequence else (1,)
    of_block = [jax.ShapeDtypeStruct((block[0], *x.shape[labels.ndim - by_sequence :]), x.dtype) for x in arrays]
    operands = (hidden, kernel, labels, weight, *rest, *arrays)
    traced, closed_over, structure = _traced(objective, block, dtype, of_block, has_aux, operands, plan.axes)
    details = dataclasses.replace(plan.objective, details=traced.uses[1])
    blocks = BlockPlan(
        dataclasses.replace(plan, objective=details),
        traced,
        tuple(len(x.shape) for x in of_block),
        factor is not None,
        tuple(x.ndim for x in closed_over),
    )
    factors = () if factor is None else (factor,)
    return blocks, (*operands, *factors, *closed_over), structure.unflatten


def _group(objective: Callable[..., Any], group: int | None, by_sequence: bool, labels: Array) -> int:
    """How many sequences a block has."""
    given = (getattr(objective, "group", 1) if by_sequence else 1) if group is None else group
    group = integer("group", given)
    if group < 1:
        raise ValueError(f"group is {group}: expected at least 1")
    if not by_sequence and group != 1:
        raise ValueError(f"group is {group}, per is 'token': expected per='sequence' for blocks of several sequences")
    if by_sequence and labels.ndim == 0:
        raise ValueError("labels has shape (): expected an axis of tokens, or per='token'")
    sequences = labels.shape[-2] if labels.ndim > 1 else 1
    if by_sequence and sequences % group:
        raise ValueError(
            f"group is {group}, labels has shape {labels.shape}: expected a multiple of {group} along axis "
            f"{labels.ndim - 2}, of sequences"
            if labels.ndim > 1
            else f"group is {group}, labels has shape {labels.shape}, one sequence: expected [sequences, T]"
        )
    return group


def _data_shape_error(place: int, x: Array, labels: Array, by_sequence: bool) -> ValueError:
    expected = (
        f"the leading axes of the sequences {labels.shape[:-1]}" if by_sequence else f"the leading axes {labels.shape}"
    )
    hint = ""
    if by_sequence and x.ndim == 0:
        hint = f"; write jnp.broadcast_to(x, {labels.shape[:-1]}), or let the objective close over it"
    return ValueError(f"data[{place}] has shape {x.shape}, labels {labels.shape}: expected {expected}{hint}")


def _normalizer(normalizer: TokenNormalizer, by_sequence: bool) -> tuple[str | None, Array | None]:
    """What is to be counted, or the number."""
    if normalizer is None:
        return None, None
    if isinstance(normalizer, str):
        choice("normalizer", normalizer, NORMALIZERS)
        if not by_sequence and normalizer != "tokens":
            raise ValueError(f"normalizer is {normalizer!r}, per is 'token': expected 'tokens' or a number")
        return normalizer, None
    n = real_array("normalizer", normalizer)
    if n.shape:
        raise ValueError(f"normalizer has shape {n.shape}: expected a scalar, or one of {', '.join(NORMALIZERS)}")
    return None, n


@inlined(static_argnums=0)
def _in_blocks(how: tuple, hidden: Array, labels: Array, examples: Examples, data: Sequence[Array], n: Array | None):
    """Hidden states, labels and weights of tokens, data, and what the sum over blocks is multiplied by (None for 1).

    Tokens have one axis before those of a block at least; a block of sequences has two.
    """
    group, by_sequence, counted, dtype = how
    mask = jnp.ones(labels.shape, bool) if examples.where is None else examples.where
    weight = jnp.where(mask, jnp.ones((), dtype), jnp.full((), MASKED, dtype))
    if counted is not None:
        n = _count(mask, {"tokens": 0, "sequences": 1, "groups": group}[counted], dtype)
    factor = None if n is None else inverse(n.astype(dtype))

    def of(x: Array, sequences: int | None) -> Array:
        if not by_sequence:
            return x if labels.ndim else x[None]
        if sequences is None:  # it is one
            return x[None, None]
        return jnp.expand_dims(x, sequences + 1) if group == 1 else axis_split(x, sequences, group)

    axis = labels.ndim - 2 if labels.ndim > 1 else None
    return *(of(x, axis) for x in (hidden, labels, weight)), [of(x, axis) for x in data], factor


def _count(mask: Array, sequences: int, dtype) -> Array:
    """The number of tokens, or of blocks of so many sequences, that are not masked altogether."""
    if sequences:
        mask = mask.any(-1)
    if sequences > 1:
        mask = axis_split(mask, mask.ndim - 1, sequences).any(-1)
    return mask.sum(dtype=dtype)


def _traced(
    objective: Callable[..., Any],
    block: tuple[int, ...],
    dtype,
    data: Sequence[jax.ShapeDtypeStruct],
    has_aux: bool,
    operands: Sequence[Array],
    axes: tuple[str, ...],
) -> tuple[Objective, list[Array], Any]:
    """The objective of one block, the arrays that it closes over, and the structure of its auxiliary result."""
    structure: list[Any] = []

    def flat(tokens: Tokens, *data: Array) -> tuple[Array, list[Array]]:
        value, aux = _value_and_aux(objective(tokens, *data), has_aux)
        sums, tree = jax.tree.flatten(aux)
        structure[:] = [tree]
        sums = [array("the auxiliary result of objective", x) for x in sums]
        return value.astype(dtype), [x.astype(jnp.int32) if x.dtype == jnp.bool_ else x for x in sums]

    own_axes = tuple(axis for axis in manual_axes(*operands) if axis not in axes)

    def example(shape, dtype) -> Any:
        return varying(own_axes, jnp.zeros(shape, dtype)) if own_axes else jax.ShapeDtypeStruct(shape, dtype)

    number = example(block, dtype)
    tokens = Tokens(number, number, number, example(block, jnp.bool_))
    closed, shapes = jax.make_jaxpr(flat, return_shape=True)(tokens, *(example(x.shape, x.dtype) for x in data))
    sums = tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in shapes[1])
    used = {id(x) for equation in closed.jaxpr.eqns for x in equation.invars} | {id(x) for x in closed.jaxpr.outvars}
    log_prob, entropy, lse, *_ = (id(x) in used for x in closed.jaxpr.invars)
    uses = log_prob, entropy, lse
    if mesh_of(operands).explicit_axes:
        # Types there say how arrays are split: the objective is traced anew on each device.
        if any(isinstance(x, Tracer) for x in closed.consts):
            raise ValueError(
                "objective closes over a traced array, and mesh axes of the operands are explicit: expected one that "
                "closes over none; give it as data, or use automatic axes"
            )
        return Objective(flat, None, uses, sums), [], structure[0]
    return (
        Objective(flat, closed.jaxpr, uses, sums),
        [_on_device(x) for x in closed.consts],
        structure[0],
    )


def _on_device(x: Any) -> Array:
    """What an objective closes over. NumPy's arrays are copied: they may change before a call has ended."""
    return x if isinstance(x, Array) else jax.device_put(np.array(x))


def _value_and_aux(result: Any, has_aux: bool) -> tuple[Array, Any]:
    """What an objective returns, as a floating-point scalar and the rest."""
    if has_aux and not (isinstance(result, tuple) and len(result) == 2):
        raise TypeError(f"objective returns {_kind(result)}: expected (value, aux), as has_aux=True says")
    value, aux = result if has_aux else (result, ())
    if isinstance(value, tuple) and len(value) == 2 and not has_aux:
        raise TypeError("objective returns a tuple of 2: expected a scalar; write has_aux=True for (value, aux)")
    if not isinstance(value, jax.Array | np.ndarray | np.generic | int | float) or isinstance(value, bool):
        raise TypeError(f"objective returns {_kind(value)}: expected a scalar")
    value = jnp.asarray(value)
    if value.shape:
        raise ValueError(f"objective returns an array of shape {value.shape}: expected a scalar; write .sum()")
    if not jnp.issubdtype(value.dtype, jnp.floating) and isinstance(value, Tracer):
        raise TypeError(f"objective returns a scalar of dtype {value.dtype}: expected a floating-point type")
    return value, aux


def _kind(x: Any) -> str:
    return f"a tuple of {len(x)}" if isinstance(x, tuple) else f"a {type(x).__name__}"
