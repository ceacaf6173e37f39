"""Linear cross entropy against its matrix products alone, and against whole logits and what else there is.

Run it with `python -m benchmarks.linear_cross_entropy [--only WORD] [--sweep] [--quick] [--output DIRECTORY]`, or
with `--goals` or `--odd` and [--only WORD] [--who WORD] [--budget SECONDS] [--quick] [--output DIRECTORY].
Writes `linear_cross_entropy_PLATFORM.json` and a plot of time and memory over the number of tokens. In place of these,
`--sweep` writes `linear_cross_entropy_sweep_PLATFORM.json`, of many shapes against whole logits; `--odd` writes
`linear_cross_entropy_odd_PLATFORM.json`, of vocabularies that are no multiple of 8, `--goals` the same of large
vocabularies, and both fail if a goal is missed: each contender is timed in turn with the products.
Peers that are not installed (jax-cce, tokamax, torch, Liger) are left out; `--quick` runs small shapes, on a CPU too.

The limit of a value is the product that makes the logits, that of value and gradients that and the two products of the
gradients, each timed alone in the same process; of an odd vocabulary those at the next multiple of 8 classes. Memory is
the temporaries that the compiler plans, beside operands and results; for torch, the peak of its allocator beyond what
was there before.
"""

import argparse
import dataclasses
import functools
import importlib.util
import os
import sys

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # torch uses the same GPU

import jax
import jax.numpy as jnp
import optax

import jaxloss
from benchmarks import contenders, record
from benchmarks.contenders import Comparison, Goal, with_setting
from benchmarks.loss_table import NEVER_BEHIND
from benchmarks.timing import Program, Timing, in_turn, ratio, timed, timing
from jaxloss._linear import alignment, chunks

MULTIPLE = 8


@dataclasses.dataclass(frozen=True)
class Work:
    """A shape: N tokens of width D, V classes."""

    tokens: int
    width: int
    classes: int
    dtype: str = "bfloat16"

    def __str__(self) -> str:
        return f"{self.dtype} N, D, V = {self.tokens}, {self.width}, {self.classes}"

    @property
    def aligned(self) -> "Work":
        """The same with as many classes as tensor cores take."""
        return dataclasses.replace(self, classes=-(-self.classes // MULTIPLE) * MULTIPLE)

    @functools.lru_cache(maxsize=1)  # noqa: B019 (one shape at a time)
    def operands(self) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Random hidden states, a kernel that makes logits of deviation about 1, and random labels."""

        @jax.jit
        def random(key):
            keys = jax.random.split(key, 3)
            hidden = jax.random.normal(keys[0], (self.tokens, self.width), jnp.float32)
            kernel = jax.random.normal(keys[1], (self.width, self.classes), jnp.float32) / self.width**0.5
            labels = jax.random.randint(keys[2], (self.tokens,), 0, self.classes)
            return hidden.astype(self.dtype), kernel.astype(self.dtype), labels

        return random(jax.random.key(0))


# ---- contenders: functions of hidden states, kernel and labels -------------------------------------------------------


def losses_of_logits(logits, labels):
    return optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), labels)


def whole_logits(hidden, kernel, labels, losses=losses_of_logits):
    """What one writes first."""
    return losses(hidden @ kernel, labels).mean()


def scan_and_checkpoint(hidden, kernel, labels, chunk_size=2048, losses=losses_of_logits):
    """What one writes next."""
    chunk_size = min(chunk_size, len(hidden))

    @jax.checkpoint
    def of_chunk(hidden, labels):
        return losses(hidden @ kernel, labels).sum()

    def step(total, chunk):
        return total + of_chunk(*chunk), None

    chunks = hidden.reshape(-1, chunk_size, hidden.shape[-1]), labels.reshape(-1, chunk_size)
    return jax.lax.scan(step, jnp.zeros(()), chunks)[0] / len(labels)


def tokamax(hidden, kernel, labels):
    """Google's, which has whole logits but on TPUs."""
    import tokamax
    from absl import flags

    if not flags.FLAGS.is_parsed():  # else it parses this script's options: findings/command_line_of_tokamax.sh
        flags.FLAGS(sys.argv[:1])
    return tokamax.linear_softmax_cross_entropy_loss(hidden, labels, kernel, reduction="mean", implementation="xla")


def jax_cce(hidden, kernel, labels):
    """Another pure JAX one, whose kernel is `[V, D]`."""
    import jax_cce

    return jax_cce.linear_cross_entropy(hidden, kernel.T, labels)


def ours(memory=None, **options):
    """jaxloss, with chunks of so many bytes of logits."""

    def loss(hidden, kernel, labels):
        if memory is not None:
            from jaxloss._linear.chunks import chunk_size

            options["chunk_size"] = chunk_size(len(hidden), kernel.shape[1], hidden.dtype.itemsize, memory)
        return jaxloss.linear_cross_entropy(hidden, kernel, labels, **options)

    return loss


SUMMED_IN_FLOAT32, SUMMED_IN_BFLOAT16 = "jaxloss", "jaxloss, summed in bfloat16"
FLOAT32_LOGITS = "jaxloss, float32 logits"
CONTENDERS = {
    SUMMED_IN_FLOAT32: ours(),
    SUMMED_IN_BFLOAT16: ours(accumulate_dtype=jnp.bfloat16),
    FLOAT32_LOGITS: ours(logits_dtype=jnp.float32),
    "jaxloss, chunks twice as large": ours(memory=2**30),
    "jaxloss, chunks half as large": ours(memory=2**28),
    "whole logits": whole_logits,
    "scan and checkpoint": scan_and_checkpoint,
}
PEERS = {"tokamax": {"tokamax": tokamax}, "jax_cce": {"jax-cce": jax_cce}}
SWEPT = (SUMMED_IN_FLOAT32, SUMMED_IN_BFLOAT16, "whole logits", "scan and checkpoint")
BESIDE = (SUMMED_IN_FLOAT32, "whole logits")
JUDGED = 10**7  # logits, from which on ours should never be slower than whole ones


# ---- measurements ----------------------------------------------------------------------------------------------------


def _product(contracted: tuple[int, int], *operands: jax.Array):
    """What runs the product of two matrices, compiled, along these axes of each."""
    dimensions = (((contracted[0],), (contracted[1],)), ((), ()))
    dot = jax.jit(functools.partial(jax.lax.dot_general, dimension_numbers=dimensions))
    return functools.partial(dot.lower(*operands).compile(), *operands)


def forward_product(hidden: jax.Array, kernel: jax.Array):
    """What runs the product that makes the logits."""
    return _product((1, 0), hidden, kernel)


def product_programs(work: Work) -> list:
    """What runs the product of the value, and those of the gradients."""
    hidden, kernel, _ = work.operands()
    forward = forward_product(hidden, kernel)
    logits = forward()
    return [forward, _product((1, 1), logits, kernel), _product((0, 0), hidden, logits)]


def all_products(work: Work):
    """What runs all three."""
    programs = product_programs(work)
    return lambda: [program() for program in programs]


def products(work: Work) -> dict[str, Timing]:
    """The limits: one product, and all three."""
    times = [timed(program) for program in product_programs(work)]
    total = Timing(sum(time.ms for time in times), max(time.spread for time in times))
    return {"value": times[0], "value_and_grad": total}


def measured(name: str, what: str, work: Work, time: bool = True) -> dict:
    """Time and temporaries of a contender, or why there are none."""
    loss = CONTENDERS[name]
    function = jax.jit(loss if what == "value" else jax.value_and_grad(loss, (0, 1)))
    try:
        operands = work.operands()
        temporary = function.lower(*operands).compile().memory_analysis().temp_size_in_bytes
        found = {"temporary_bytes": temporary}
        if time:
            timing = timed(function, *operands)
            found |= {"ms": timing.ms, "spread": timing.spread}
        return found
    except Exception as error:  # whatever a peer raises at a shape that it can not do, memory above all
        return record.failed(error)


def torch_peers(work: Work) -> dict[str, dict]:
    """`torch.compile` and Liger, where they are installed and there is a GPU."""
    if not importlib.util.find_spec("torch"):
        print("torch is not installed: torch.compile and Liger left out")
        return {}
    import torch

    if not torch.cuda.is_available():
        return {}
    dtype = getattr(torch, work.dtype)
    torch.manual_seed(0)
    hidden = torch.randn(work.tokens, work.width, device="cuda", dtype=dtype)
    kernel = (torch.randn(work.classes, work.width, device="cuda") / work.width**0.5).to(dtype)
    labels = torch.randint(0, work.classes, (work.tokens,), device="cuda")

    def whole(hidden, kernel):
        return torch.nn.functional.cross_entropy((hidden @ kernel.T).float(), labels)

    peers = {"torch.compile": torch.compile(whole)}
    if importlib.util.find_spec("liger_kernel"):
        from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction

        peers["Liger"] = lambda hidden, kernel: LigerFusedLinearCrossEntropyFunction.apply(hidden, kernel, labels)[0]
    return {name: _measured_of_torch(loss, (hidden, kernel)) for name, loss in peers.items()}


def _measured_of_torch(loss, tensors) -> dict:
    import torch

    from benchmarks import linear_torch

    try:
        program, temporary_bytes = linear_torch.program_of_tensors(loss, tensors, (0, 1))
        ms, spread = timing(in_turn({"torch": program})["torch"])
        return {"ms": ms, "spread": spread, "temporary_bytes": temporary_bytes}
    except Exception as error:
        return record.failed(error)
    finally:
        torch.cuda.empty_cache()


def line(name: str, found: dict, limit: Timing) -> str:
    """A line of the table."""
    if "failed" in found:
        return f"  {name:32s} {found['failed']}"
    ms = f"{found['ms']:9.2f} ms = {found['ms'] / limit.ms:5.3f} × the products" if "ms" in found else ""
    return f"  {name:32s} {ms:40s} {found['temporary_bytes'] / 1e9:7.3f} GB"


def compared(work: Work) -> list[dict]:
    """The contenders at one shape."""
    limits = products(work)
    print(f"{work}: products {limits['value'].ms:.2f} and {limits['value_and_grad'].ms:.2f} ms")
    rows = []
    for what, limit in limits.items():
        found = {name: measured(name, what, work) for name in CONTENDERS}
        if what == "value_and_grad":
            found |= torch_peers(work)
        print(f" {what}")
        for name, of in found.items():
            print(line(name, of, limit), flush=True)
            rows.append({**dataclasses.asdict(work), "what": what, "who": name, "limit_ms": limit.ms, **of})
    return rows


def comparisons(work: Work, goal: float | None) -> list[Comparison]:
    """Of value and gradients, and of the value alone; the products are those of as many classes as tensor cores take.

    With an odd vocabulary, temporaries may be those at its own widths and one kernel more.
    """
    is_odd, plain = work != work.aligned, ours()
    own_widths = with_setting(alignment, "forced", False, plain)
    variants = {
        SUMMED_IN_FLOAT32: plain,
        "whole logits": whole_logits,
        FLOAT32_LOGITS: CONTENDERS[FLOAT32_LOGITS],
        "jaxloss, first chunk in the loop": with_setting(chunks, "APART_FROM", 2**62, plain),
    }
    goals, on_gpu = {}, jax.devices()[0].platform == "gpu"
    if is_odd:
        variants |= {
            "jaxloss, padded to multiples of 8": with_setting(alignment, "FASTEST", 8, plain),
            "jaxloss, widths as they are": own_widths,
        }
    if goal is not None:
        most = float("inf")
        if is_odd and on_gpu:
            found = jax.jit(jax.value_and_grad(own_widths, (0, 1))).lower(*work.operands()).compile()
            aligned = work.aligned
            kernel = aligned.width * aligned.classes * jnp.dtype(work.dtype).itemsize
            most = (found.memory_analysis().temp_size_in_bytes + kernel) / 1e9
        goals = {SUMMED_IN_FLOAT32: Goal(goal, most, never_behind="whole logits")}
    shape = dataclasses.asdict(work)

    @functools.lru_cache
    def programs():
        return product_programs(work.aligned)

    both, one = lambda: lambda: [program() for program in programs()], lambda: programs()[0]
    value = {name: variants[name] for name in (SUMMED_IN_FLOAT32, "whole logits")}
    return [
        Comparison("value_and_grad", variants | contenders.peers(PEERS), work.operands, both, shape, goals=goals),
        Comparison("value", value, work.operands, one, shape, wrt=()),
    ]


def beside_whole_logits(works: list[Work], output: str | None, name: str) -> None:
    """Value and gradient at each shape and its ratio to that of whole logits, taking turns; written as they come.

    Compiled one after the other: XLA tries out algorithms for the products, and anything beside it misleads it.
    """
    rows, behind = [], []
    path = record.write(name, rows, output)  # where that can not be, nothing is measured
    for work in works:
        operands = work.operands()
        programs = {}
        for who in BESIDE:
            executable = jax.jit(jax.value_and_grad(CONTENDERS[who], (0, 1))).lower(*operands).compile()
            programs[who] = Program(functools.partial(executable, *operands))
        loops = in_turn(programs, repeats=5)
        of_whole = ratio(*loops.values())
        for who, of in loops.items():
            ms, spread = timing(of)
            rows.append({**dataclasses.asdict(work), "what": "sweep", "who": who, "ms": ms, "spread": spread})
        rows[-2]["ratio"] = of_whole
        judged = work.tokens * work.classes >= JUDGED
        if judged and of_whole > NEVER_BEHIND:
            behind.append(str(work))
        small = "" if judged else " (small)"
        print(f"{work!s:52s} {rows[-2]['ms']:9.3f} ms, {of_whole:.3f} of whole logits{small}", flush=True)
        record.write(name, rows, output)
    print(path)
    print("slower than whole logits:", *(behind or ["nowhere"]), sep="\n  ")


def swept(works: list[Work], timed_up_to: int) -> list[dict]:
    """Value and gradient over the number of tokens; for those beyond, memory alone."""
    rows = []
    for work in works:
        for name in SWEPT:
            found = measured(name, "value_and_grad", work, time=work.tokens <= timed_up_to)
            rows.append({**dataclasses.asdict(work), "what": "sweep", "who": name, **found})
            print(f"{work!s:52s} {name:32s} {found}", flush=True)
    return rows


GPU = [Work(8192, 4096, 128256), Work(32768, 2560, 128256)]
CPU = [Work(2048, 256, 8192, "float32")]
QUICK = [Work(256, 32, 512, "float32")]
ODD = {
    Work(16384, 2048, 50257): 1.06,
    Work(4096, 1024, 32001): 1.10,
    Work(16384, 2048, 50264): None,
    Work(4096, 1024, 32008): None,
}
"""With how many times the products' time they may take; and as many classes as the products have, for comparison."""
ODD_QUICK = {Work(256, 32, 509, "float32"): 100.0}
LARGE = {Work(8192, 4096, 128256): 1.07, Work(8192, 4096, 151936): 1.05, Work(20000, 3072, 151936): None}
"""The same of large vocabularies; None where none is set."""
LARGE_QUICK = {Work(256, 32, 512, "float32"): 100.0}
# Never slower than whole logits, wherever these are large enough to matter.
GPU_SHAPES = [
    Work(tokens, width, classes)
    for tokens in (512, 4096, 16384)
    for width in (512, 2048)
    for classes in (8192, 32000, 50257, 262144)
]


def main() -> None:
    """Measures, prints, writes and draws."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweep", action="store_true", help="sweep over N, D and V, against whole logits, instead")
    parser.add_argument("--odd", action="store_true", help="vocabularies that are no multiple of 8, instead")
    parser.add_argument("--goals", action="store_true", help="large vocabularies, instead")
    contenders.add_arguments(parser)
    arguments = parser.parse_args()
    platform = jax.devices()[0].platform
    suffix = "quick" if arguments.quick else platform
    if arguments.odd or arguments.goals:
        which = (ODD, ODD_QUICK) if arguments.odd else (LARGE, LARGE_QUICK)
        works = {work: goal for work, goal in which[arguments.quick].items() if arguments.only in str(work)}
        of_all = [of for work, goal in works.items() for of in comparisons(work, goal)]
        contenders.run(f"linear_cross_entropy_{'odd' if arguments.odd else 'goals'}_{suffix}", of_all, arguments)
        return
    print(record.circumstances())
    CONTENDERS.update(contenders.peers(PEERS))
    shapes = QUICK if arguments.quick else CPU if platform == "cpu" else GPU
    if arguments.sweep:
        shapes = [work for work in (shapes if suffix != "gpu" else GPU_SHAPES) if arguments.only in str(work)]
        beside_whole_logits(shapes, arguments.output, f"linear_cross_entropy_sweep_{suffix}")
        return
    rows = [row for work in shapes if arguments.only in str(work) for row in compared(work)]

    last = shapes[-1]
    sizes = [last.tokens * factor // 8 for factor in (2, 8, 16, 32)]
    rows += swept([dataclasses.replace(last, tokens=tokens) for tokens in sizes], timed_up_to=2 * last.tokens)
    name = f"linear_cross_entropy_{suffix}"
    path = record.write(name, rows, arguments.output)
    print(path)
    from benchmarks import plots

    plots.draw_linear(path)


if __name__ == "__main__":
    main()
