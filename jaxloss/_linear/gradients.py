"""Gradients that one device makes of tokens and a kernel in the pass that makes the value, chunk by chunk of tokens.

Where a chunk's logits still are, something takes their place with their gradient, such as the fused custom call of
cross entropy. From that come the gradients of hidden states, kernel and bias, for one more matrix product each for the
first two.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxloss._arrays import Array, promoted
from jaxloss._linear.alignment import without_padding
from jaxloss._linear.chunks import Collectives, Result, Stages
from jaxloss._linear.local import Work, work_of
from jaxloss._linear.plan import LinearOperands, Plan
from jaxloss._linear.split import Split
from jaxloss.formulas import real


def gradients(
    plan: Plan, wrt: tuple[str, ...], direct: bool, split: Split, strided: bool, *flat: Array
) -> tuple[Array, ...]:
    """The same, and the gradients of the weighted losses' sum with respect to the operands that `wrt` names."""
    operands = plan.operands(flat)
    work = work_of(plan, split, operands, direct=direct)
    results = work.of_rows(("losses", *plan.stats))

    def of_chunk(rows):
        return (), *work.value_and_d_logits(rows)

    _, of_rows, of_operands = with_gradients(work, wrt, operands, strided, of_chunk, [], results)
    return *map(work.of_tokens, of_rows), *of_operands


def with_gradients(
    work: Work,
    wrt: tuple[str, ...],
    operands: LinearOperands,
    strided: bool,
    of_chunk: Callable[..., tuple[tuple[Array, ...], Sequence[Array], Any]],
    sums: Sequence[Array],
    results: Sequence[Result],
    *rows: Array,
) -> tuple[list[Array], tuple[Array, ...], tuple[Array, ...]]:
    """Sums and results of chunks, and the gradients with respect to the linear operands that `wrt` names.

    Args:
        work: on one device.
        wrt: of "hidden", "kernel" and "bias", in this order.
        operands: those of the device.
        strided: whether devices may have split the tokens without this function's knowledge.
        of_chunk: from the rows of a chunk to what it adds to the sums, its results, and the gradient of its logits.
        sums: what the sums start from. They are of all tokens, and the same for all classes.
        results: what the results are.
        rows: further rows, which `of_chunk` is given before those of the tokens.
    """
    plan, split, direct = work.plan, work.split, work.direct
    of_sums, own = tuple(name for name in wrt if name != "hidden"), len(results)

    def forward(rows):
        hidden, _, weight = work.tokens_of(rows[-3:])
        shares, of_rows, d_logits = of_chunk(rows)
        rounded = rest = work.rounded(d_logits)
        if hidden_first:
            # The padded copy of the kernel is then gone when its gradient, as wide, is made, and gives it its memory.
            rest, rounded = jax.lax.optimization_barrier((work.of_hidden(rounded), rounded))
        if "kernel" in wrt:
            shares += (work.of_kernel(hidden, weight, rounded, added[own_sums]),)
        if "bias" in wrt:
            shares += (work.of_bias(d_logits).astype(dtypes[-1]),)
        return shares, (of_rows, rest)

    def finalize(rest, of_hidden=work.of_hidden):
        of_rows, rest = rest
        if "hidden" not in wrt:
            return tuple(of_rows)
        return *of_rows, work.in_rows(rest if hidden_first else of_hidden(rest))

    def of_hidden_later(d_logits):
        # In a branch whose condition the host reads, so that the product starts after the collectives of the sums:
        # they would wait until it ends, for they need a few multiprocessors, and the product holds all.
        always = jax.lax.optimization_barrier(jnp.asarray(True))
        like = jax.eval_shape(work.of_hidden, d_logits)
        return jax.lax.cond(always, work.of_hidden, lambda _: work.zeros(like, like.dtype), d_logits)

    def kept(results):
        of_rows, of_hidden = results[:own], results[own:]
        return *map(split.own, of_rows), *(split.own_sum(shares).astype(work.kept_dtype) for shares in of_hidden)

    results = [*results]
    if "hidden" in wrt:
        results.append(Result(work.kept_dtype, work.all_axes, shape=work.rows[0].shape[1:]))

    own_sums = len(sums)
    summed, roles = (tuple(getattr(of_each, name) for name in of_sums) for of_each in (operands, plan.roles))
    of_bias = promoted(work.dtype, real(operands.bias).dtype) if "bias" in wrt else None
    dtypes = [work.sum_dtype if name == "kernel" else of_bias for name in of_sums]
    sent = dtypes
    if direct:  # then what becomes of the sums is known: bfloat16 in the end has float32's range
        sent = [
            jnp.bfloat16 if pair == (jnp.bfloat16, jnp.float32) else pair[1]
            for pair in zip((operand.dtype for operand in summed), dtypes, strict=True)
        ]
    added = dtypes
    if "kernel" in wrt and sent[0] == work.dtype and work.is_one_chunk and not split.tokens:
        # Nothing is added to the one share, so the product may round it. If it does not, XLA makes product and rounding
        # one kernel of its own, which takes more than twice as long.
        added = [sent[0], *dtypes[1:]]
    of_own = [total.dtype for total in sums]
    added, sent, dtypes = ([*of_own, *of] for of in (added, sent, dtypes))
    roles = (*((),) * own_sums, *roles)
    shapes = [array.shape for array in (*sums, *summed)]
    summed = [getattr(work, name) for name in of_sums]  # as wide as they are worked on
    sums = [*sums, *(work.zeros(operand, dtype) for operand, dtype in zip(summed, added[own_sums:], strict=True))]

    def complete(sums):
        totals = map(without_padding, sums, shapes)
        return [total.astype(dtype) if split.resharded else total for total, dtype in zip(totals, sent, strict=True)]

    def communicated(sums):
        return [split.over_tokens(*each) for each in zip(roles, sums, sent, strict=True)]

    late = direct and bool(of_sums) and split.communicates_sums and isinstance(work.count, int) and work.count > 0
    hidden_first = direct and not late and bool(work.plan.aligned) and work.is_one_chunk and "hidden" in wrt
    last = functools.partial(finalize, of_hidden=of_hidden_later)
    collectives = Collectives(split.gathered, kept, split.anywhere, complete, communicated, last) if late else None
    stages = Stages(forward, finalize, collectives)
    sums, filled = work.scan(strided, stages, sums, results, *rows)
    if not late:
        sums = communicated(map(without_padding, sums, shapes))
    sums = [split.arranged(*each[:2]).astype(each[2]) for each in zip(roles, sums, dtypes, strict=True)]
    if split.classes:  # a number that all classes share has a gradient of them all
        of_all = [place >= own_sums and "v" not in role for place, role in enumerate(roles)]
        sums = [jax.lax.psum(x, split.classes) if of else x for x, of in zip(sums, of_all, strict=True)]
    of_rows, of_hidden = filled[:own], filled[own:]
    of_hidden = [split.over_classes(work.of_tokens(shares)).astype(work.returned_dtype) for shares in of_hidden]
    return sums[:own_sums], of_rows, (*of_hidden, *sums[own_sums:])
