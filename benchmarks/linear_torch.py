"""Contenders of torch beside linear losses: what they take.

Tensors share the memory of JAX's arrays. torch has no plan of a program: its temporaries are the peak of its allocator
beyond operands and gradients.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import torch

from benchmarks.timing import Program


def program(
    loss: Callable[..., torch.Tensor], operands: Sequence[jax.Array], wrt: tuple[int, ...]
) -> tuple[Program, int]:
    """Value and gradients of a loss, which was called and so is compiled; and the bytes of its temporaries."""
    return program_of_tensors(loss, [torch.from_dlpack(x).detach() for x in operands], wrt)


def program_of_tensors(
    loss: Callable[..., torch.Tensor], tensors: Sequence[torch.Tensor], wrt: tuple[int, ...]
) -> tuple[Program, int]:
    """The same of tensors."""
    for i in wrt:
        tensors[i].requires_grad_()
    step = functools.partial(value_and_gradients, loss, tensors, wrt)
    for _ in range(2):
        step()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    torch.cuda.synchronize()
    gradients = sum(tensors[i].nbytes for i in wrt)
    temporaries = torch.cuda.max_memory_allocated() - before - gradients
    return Program(step, lambda _: torch.cuda.synchronize()), max(0, temporaries)


def value_and_gradients(loss: Callable[..., torch.Tensor], tensors: Sequence[torch.Tensor], wrt: tuple[int, ...]):
    """Of tensors that require gradients where `wrt` says so."""
    value = loss(*tensors)
    return value, torch.autograd.grad(value, [tensors[i] for i in wrt])


def liger_jensen_shannon(beta: float, temperature: float, accumulate: torch.dtype | None = None):
    """Liger's fused linear Jensen-Shannon divergence: of beta 0 it is KL of student from teacher, of 1 the reverse.

    Its kernels are `[classes, width]`: it is given ours transposed, as views.
    """
    from liger_kernel.ops.fused_linear_jsd import LigerFusedLinearJSDFunction

    def loss(hidden, kernel, teacher_hidden, teacher_kernel, *_):
        operands = (hidden, kernel.T, teacher_hidden, teacher_kernel.T)
        return LigerFusedLinearJSDFunction.apply(*operands, None, beta, -100, temperature, accumulate)

    return loss
