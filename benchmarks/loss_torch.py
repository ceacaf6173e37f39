"""The programs of torch that a row of `benchmarks.loss_table` times: its losses by torch.compile, and Liger's kernel.

Formulas are of `.float()`, in the words of `benchmarks.loss_programs`. Liger has cross entropy of labels with some of
the options, and is left out of the other rows, and where it is not installed.
"""

import importlib.util
import itertools
from collections.abc import Callable

import jax
import torch
import torch.nn.functional as functional

from benchmarks.loss_programs import OPTIONS, STATISTICS
from benchmarks.loss_table import Work
from benchmarks.timing import Program

OF_LIGER = {"z_loss", "label_smoothing", "class_weights", "softcap"}
"""The options that its cross entropy has too."""

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor | tuple]


def programs(work: Work, operands: list[tuple[jax.Array, jax.Array]]) -> dict[tuple[str, str], Program]:
    """Value, and value and gradient, by who and what. Each was called, which compiles it."""
    torch._dynamo.reset()  # else what was compiled for other shapes counts, and from eight on nothing is compiled
    tensors = []
    for x, a in operands:
        x, a = torch.from_dlpack(x).detach(), torch.from_dlpack(a)
        tensors.append((x, a.long() if work.target == "labels" else a))
    weights = None
    if weight := _options(work).get("class_weights"):
        weights = torch.full(work.shape[1:], weight, device=tensors[0][0].device)
    found = _programs("torch.compile", torch.compile(_loss(work, weights), dynamic=False), work, tensors)
    if tensors[0][0].is_cuda and importlib.util.find_spec("liger_kernel") and (loss := _by_liger(work, weights)):
        # It writes the gradient in place of the logits, which are ours.
        found |= _programs("Liger", loss, work, [(x.clone(), a) for x, a in tensors[:1]])
    return found


def _programs(who: str, loss: Loss, work: Work, tensors: list[tuple[torch.Tensor, torch.Tensor]]):
    turns = itertools.cycle([(x, x.detach().requires_grad_(), a) for x, a in tensors])

    def value():
        x, _, a = next(turns)
        with torch.no_grad():
            return loss(x, a)

    def value_and_grad():
        _, x, a = next(turns)
        result = loss(x, a)
        return result, torch.autograd.grad(result[0] if work.loss == STATISTICS else result, x)[0]

    wait = (lambda _: torch.cuda.synchronize()) if tensors[0][0].is_cuda else (lambda _: None)
    found = {"value": Program(value, wait)}
    found |= {what: Program(value_and_grad, wait) for what in ("grad", "value_and_grad")}
    found = {(who, what): program for what, program in found.items() if what in work.goals}
    for program in found.values():
        program.loop(2)
    return found


def _options(work: Work) -> dict[str, float]:
    return OPTIONS.get(work.loss.removeprefix("categorical with "), {})


def _by_liger(work: Work, weights: torch.Tensor | None) -> Loss | None:
    """None of a loss that it does not have."""
    options = _options(work)
    is_cross_entropy = work.target == "labels" and work.loss.startswith("categorical") and work.loss != STATISTICS
    if not is_cross_entropy or not options.keys() <= OF_LIGER:
        return None
    from liger_kernel.ops.cross_entropy import LigerCrossEntropyFunction

    z_loss, smoothing, softcap = (options.get(name, 0.0) for name in ("z_loss", "label_smoothing", "softcap"))
    ignored, reduction = -100, "mean"
    return lambda x, a: LigerCrossEntropyFunction.apply(
        x, a, weights, ignored, z_loss, smoothing, reduction, softcap or None
    )[0]


def _loss(work: Work, weights: torch.Tensor | None) -> Loss:
    options = _options(work)

    def loss(x, a):
        x = x.float()
        if work.loss == "mse":
            return 0.5 * ((x - a.float()) ** 2).sum() / x.shape[0]
        if work.loss == "binary":
            return functional.binary_cross_entropy_with_logits(x, a.float(), reduction="sum") / x.shape[0]
        if work.loss == STATISTICS:
            return _with_statistics(x, a)
        if work.loss == "entropy":
            log_p = torch.log_softmax(x, dim=-1)
            return -(log_p.exp() * log_p).sum(dim=-1).mean()
        if work.loss == "policy":
            log_p = torch.log_softmax(x, dim=-1)
            of_action = log_p.gather(-1, a[:, None])[:, 0]
            return -(of_action.exp() - 0.01 * (log_p.exp() * log_p).sum(dim=-1)).mean()
        if work.target == "teacher":
            return _divergence(work.loss, x, a.float())
        if options:
            return _with_options(x, a, **(options | {"class_weights": weights}))
        return functional.cross_entropy(x, a if work.target == "labels" else a.float())

    return loss


def _with_options(x, a, *, z_loss=0, temperature=1, label_smoothing=0, class_weights=None, softcap=None):
    if softcap is not None:
        x = softcap * torch.tanh(x / softcap)
    x = x / temperature
    lse = torch.logsumexp(x, dim=-1)
    losses = lse - x.gather(1, a[:, None])[:, 0]
    smoothed = 0
    if label_smoothing:
        losses = (1 - label_smoothing) * losses
        of_classes = lse[:, None] - x
        if class_weights is not None:
            of_classes = of_classes * class_weights
        smoothed = label_smoothing * of_classes.mean(dim=-1)
    if class_weights is not None:
        losses = losses * class_weights[a]
    return (losses + smoothed + z_loss * lse * lse).mean()


def _with_statistics(x, a):
    lse = torch.logsumexp(x, dim=-1)
    of_label = x.gather(1, a[:, None])
    entropy = lse - (torch.exp(x - lse[:, None]) * x).sum(dim=-1)
    before = torch.arange(x.shape[1], device=x.device) < a[:, None]
    rank = ((x > of_label) | ((x == of_label) & before)).sum(dim=-1)
    nll = lse - of_label[:, 0]
    return nll.mean(), [t.detach() for t in (nll, lse, entropy, x.argmax(dim=-1), rank)]


def _divergence(name, x, a):
    log_t, log_a = torch.log_softmax(x, dim=-1), torch.log_softmax(a, dim=-1)
    t, a = log_t.exp(), log_a.exp()
    if name == "KL":
        return (a * (log_a - log_t)).sum(dim=-1).mean()
    log_m = ((t + a) / 2).log()
    return ((a * (log_a - log_m) + t * (log_t - log_m)) / 2).sum(dim=-1).mean()
