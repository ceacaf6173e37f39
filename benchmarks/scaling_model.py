"""A model on paper of the losses on many hosts: classes split over the GPUs of a host, rows over the hosts.

`python -m benchmarks.scaling_model` prints its tables, `--write` puts them into `docs/scaling.md`, which explains them.
What `benchmarks.scaling` measured on GPUs, in `--output` or else `benchmarks/results`, replaces specifications.
"""

import argparse
import collections
import dataclasses
import json
import math
import pathlib

from benchmarks import record
from jaxloss._linear.chunks import chunk_size

PAGE = pathlib.Path(__file__).parents[1] / "docs" / "scaling.md"
BEGIN, END = "<!-- written by benchmarks/scaling_model.py -->\n", "<!-- end -->"

SPECIFICATION, ASSUMED = "specification", "assumption"


@dataclasses.dataclass(frozen=True)
class Figure:
    """A number and where it is from."""

    value: float
    source: str


@dataclasses.dataclass(frozen=True)
class Hardware:
    """What a GPU can do, and what it costs to tell others something.

    Attributes:
        memory: bytes a second.
        products: operations a second of a matrix product in bfloat16.
        host: bytes a second that a GPU sends to the others of its host.
        network: bytes a second that a GPU sends to other hosts.
        host_start: seconds from the start of a collective in a host to its end if it carries next to nothing.
        network_hop: seconds that a message takes from one host to another.
    """

    memory: Figure = Figure(3.35e12, SPECIFICATION)
    products: Figure = Figure(989e12, SPECIFICATION)
    host: Figure = Figure(450e9, SPECIFICATION)
    network: Figure = Figure(50e9, SPECIFICATION)
    host_start: Figure = Figure(15e-6, ASSUMED)
    network_hop: Figure = Figure(5e-6, ASSUMED)


@dataclasses.dataclass(frozen=True)
class Layout:
    """A loss of bfloat16 over many GPUs.

    Attributes:
        in_host: the GPUs that share the classes.
        hosts: the groups of them that share the rows.
        rows: for each GPU, so a host has `in_host` times as many.
        width: of hidden states.
        classes: in all.
    """

    in_host: int = 8
    hosts: int = 128
    rows: int = 8192
    width: int = 4096
    classes: int = 128256

    @property
    def host_rows(self) -> int:
        """The rows of a host, all of which each of its GPUs sees."""
        return self.rows * self.in_host

    @property
    def gpu_classes(self) -> int:
        """The classes of a GPU."""
        return self.classes // self.in_host


@dataclasses.dataclass(frozen=True)
class Cost:
    """A part of a step.

    Attributes:
        what: in words.
        times: how often.
        sent: the bytes that a GPU sends each time; of a computation, those that it reads and writes.
        seconds: of all times together.
    """

    what: str
    times: int
    sent: float
    seconds: float


ITEM, FLOAT = 2, 4
NUMBERS_OF_ROWS = (1, 3)
"""How many numbers of a row each all-reduce carries that a split of the classes costs: the maximum; then, together, the
sum of exponentials, the logit of the label, and whether the label is a class."""


def collective(hardware: Hardware, what: str, kind: str, size: float, over: str, devices: int, times: int = 1) -> Cost:
    """An all-reduce of `size` bytes, or an all-gather or reduce-scatter of so many in all.

    In a host it starts at once; over hosts its start is a tree of messages there (all-gather, reduce-scatter), and back
    too (all-reduce).
    """
    passes = 2 if kind == "all-reduce" else 1
    sent = passes * (devices - 1) / devices * size
    hops = passes * math.ceil(math.log2(devices)) if devices > 1 else 0
    start = hardware.host_start.value if over == "host" else hops * hardware.network_hop.value
    rate = hardware.host.value if over == "host" else hardware.network.value
    seconds = times * (start + sent / rate) if devices > 1 else 0.0
    return Cost(f"{kind} of {what}, over the {over}", times, sent, seconds)


def cross_entropy(hardware: Hardware, layout: Layout) -> tuple[Cost, list[Cost]]:
    """The computation of a step, value and gradient of given logits, and its collectives."""
    logits = layout.host_rows * layout.gpu_classes * ITEM
    passes = 3 if layout.in_host > 1 else 2  # read for the sums, read and written for the gradient; at once if whole
    compute = Cost("logits read and gradient written", 1, passes * logits, passes * logits / hardware.memory.value)
    return compute, [*of_rows(hardware, layout, layout.host_rows, 1), of_loss(hardware, layout)]


def of_rows(hardware: Hardware, layout: Layout, rows: int, times: int) -> list[Cost]:
    """What so many rows cost whose classes are split."""
    return [
        collective(
            hardware,
            f"{numbers} scalar{'s' if numbers > 1 else ''} per row",
            "all-reduce",
            numbers * rows * FLOAT,
            "host",
            layout.in_host,
            times * together,
        )
        for numbers, together in collections.Counter(NUMBERS_OF_ROWS).items()
    ]


def of_loss(hardware: Hardware, layout: Layout) -> Cost:
    """The sum of the hosts' losses."""
    return collective(hardware, "the loss", "all-reduce", FLOAT, "network", layout.hosts)


def linear_cross_entropy(
    hardware: Hardware, layout: Layout, fsdp: bool, sum_bytes: int = FLOAT
) -> tuple[Cost, list[Cost]]:
    """The same of hidden states and a kernel, whose gradient is summed in numbers of `sum_bytes`.

    With `fsdp` the kernel of a GPU is split over the hosts too.
    """
    operations = 6 * layout.host_rows * layout.width * layout.gpu_classes
    compute = Cost("three matrix products", 1, 0, operations / hardware.products.value)
    chunk = chunk_size(layout.host_rows, layout.gpu_classes, ITEM)
    chunks = math.ceil(layout.host_rows / chunk)
    kernel = layout.width * layout.gpu_classes
    hidden = layout.host_rows * layout.width * ITEM
    costs = [
        *of_rows(hardware, layout, chunk, chunks),
        collective(hardware, "the hidden states' gradient", "all-reduce", hidden, "host", layout.in_host),
    ]

    def over_hosts(what: str, kind: str, item: int):
        costs.append(collective(hardware, what, kind, kernel * item, "network", layout.hosts))

    if fsdp:
        over_hosts("the kernel", "all-gather", ITEM)
        over_hosts("the kernel's gradient", "reduce-scatter", sum_bytes)
    elif sum_bytes > ITEM:  # added up as it was summed, then told as it is kept
        over_hosts("the kernel's gradient", "reduce-scatter", sum_bytes)
        over_hosts("the kernel's gradient", "all-gather", ITEM)
    else:
        over_hosts("the kernel's gradient", "all-reduce", sum_bytes)
    return compute, [*costs, of_loss(hardware, layout)]


# ---- measurements ----------------------------------------------------------------------------------------------------


def measured(hardware: Hardware, measurements: list[dict], device: str) -> Hardware:
    """`hardware` with what a run of `benchmarks.scaling` says of it.

    Rates are those that the losses reached, on the most devices; a collective's start is the shortest collective.
    """
    rows = [row for row in measurements if row["who"] == "jaxloss" and "local_ms" in row]
    if not rows:
        return hardware
    most = max(row["devices"] for row in rows)
    by_placement = {(row["loss"], row["split"]): row for row in rows if row["devices"] == most}
    source = f"measured: {most} × {device}"
    found = {}
    if row := by_placement.get(("cross entropy", "classes")):
        logits = row["rows"] * row["classes"] // most * ITEM
        found["memory"] = 3 * logits / row["local_ms"] * 1e3
    if row := by_placement.get(("linear cross entropy", "rows")):
        found["products"] = 6 * row["rows"] // most * row["width"] * row["classes"] / row["local_ms"] * 1e3
    collectives = [each for row in by_placement.values() for each in row["collectives"] if each["ms"] > 0]
    if collectives:
        found["host_start"] = min(each["ms"] for each in collectives) / 1e3
        largest = max(collectives, key=lambda each: each["bytes_sent"])
        found["host"] = largest["bytes_sent"] / largest["ms"] * 1e3
    return dataclasses.replace(hardware, **{name: Figure(value, source) for name, value in found.items()})


def results_of(directory: str | None = None) -> dict:
    """What `benchmarks.scaling` wrote of GPUs; without measurements where there is none."""
    path = pathlib.Path(directory or record.RESULTS) / "scaling_gpu.json"
    return json.loads(path.read_text()) if path.exists() else {"device": "", "measurements": []}


# ---- tables ----------------------------------------------------------------------------------------------------------

UNITS = {
    "memory": ("bytes read or written a second", 1e12, "TB/s"),
    "products": ("operations a second of bfloat16 matrix products", 1e12, "TFLOP/s"),
    "host": ("bytes that a GPU sends a second in its host", 1e9, "GB/s"),
    "network": ("bytes that a GPU sends a second to other hosts", 1e9, "GB/s"),
    "host_start": ("a collective in a host that carries next to nothing", 1e-6, "µs"),
    "network_hop": ("a message from host to host", 1e-6, "µs"),
}


def figures(hardware: Hardware) -> str:
    """The table of what the model is fed."""
    lines = ["### What the model is fed\n", "| rate or time | | from |", "|---|--:|---|"]
    for name, (what, unit, symbol) in UNITS.items():
        figure = getattr(hardware, name)
        lines.append(f"| {what} | {figure.value / unit:.3g} {symbol} | {figure.source} |")
    return "\n".join(lines) + "\n"


def weak_scaling(results: dict) -> str:
    """The table of what was measured, each device with the work of one."""
    rows = [row for row in results["measurements"] if row["scaling"] == "weak" and "ms" in row]
    if not rows:
        return ""
    most = max(row["devices"] for row in rows)
    by_placement = collections.defaultdict(dict)
    for row in rows:
        if row["devices"] == most:
            by_placement[row["loss"], row["split"]][row["who"]] = row
    lines = [
        f"### Measured: {most} × {results['device']}, each with the work of one\n",
        "| loss | split | ms | efficiency | share of computation | XLA, ms | XLA, efficiency |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    for (loss, split), contenders in by_placement.items():
        xla = contenders.pop("XLA", None)
        of_xla = "| | |" if xla is None else f"| {xla['ms']:.2f} | {xla['efficiency']:.2f} |"
        lines += [
            f"| {loss} | {split}{who.removeprefix('jaxloss')} | {row['ms']:.2f} | {row['efficiency']:.3f} "
            f"| {row['local_ms'] / row['ms']:.3f} {of_xla}"
            for who, row in contenders.items()
        ]
    return "\n".join(lines) + "\n"


def quantity(size: float) -> str:
    """Bytes in the unit that suits them."""
    for unit, symbol in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= unit:
            return f"{size / unit:.3g} {symbol}"
    return f"{size:.0f} B"


def step(title: str, compute: Cost, collectives: list[Cost]) -> str:
    """The table of a step."""
    told = sum(cost.seconds for cost in collectives)
    lines = [f"### {title}\n", "| step | times | bytes a GPU sends, each | ms in all | of the computation |"]
    lines.append("|---|--:|--:|--:|--:|")
    lines.append(f"| {compute.what} | | | {compute.seconds * 1e3:.2f} | |")
    lines += [
        f"| {cost.what} | {cost.times} | {quantity(cost.sent)} | {cost.seconds * 1e3:.3f} "
        f"| {cost.seconds / compute.seconds:.1%} |"
        for cost in collectives
    ]
    lines.append(f"| all collectives | | | {told * 1e3:.2f} | {told / compute.seconds:.1%} |")
    nothing_hidden = compute.seconds / (compute.seconds + told)
    return "\n".join(lines) + f"\n\nEfficiency, if none of that is hidden: {nothing_hidden:.2f}.\n"


def tables(results: dict) -> str:
    """All of them."""
    hardware, layout = measured(Hardware(), results["measurements"], results["device"]), Layout()
    steps = {
        "Cross entropy": cross_entropy(hardware, layout),
        "Linear cross entropy, each host with the whole kernel": linear_cross_entropy(hardware, layout, False),
        "The same, the kernel's gradient summed in bfloat16": linear_cross_entropy(hardware, layout, False, ITEM),
        "Linear cross entropy, the kernel split over hosts too": linear_cross_entropy(hardware, layout, True),
    }
    of_steps = [step(title, *costs) for title, costs in steps.items()]
    return "\n".join([weak_scaling(results), figures(hardware), *of_steps])


def page(results: dict) -> str:
    """The page with its tables as they are now."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    return f"{before}{BEGIN}\n{tables(results)}\n{END}{rest.partition(END)[2]}"


def main() -> None:
    """Prints the tables, or writes them into the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put the tables into docs/scaling.md")
    parser.add_argument("--output", help="where the measurements are; default: benchmarks/results")
    arguments = parser.parse_args()
    results = results_of(arguments.output)
    if arguments.write:
        PAGE.write_text(page(results))
    else:
        print(tables(results))


if __name__ == "__main__":
    main()
