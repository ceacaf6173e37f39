"""Weak and strong scaling of the losses over the devices of a host, beside XLA's own partitioning of optax's formula.

Run it with `python -m benchmarks.scaling [--only WORD] [--seconds S] [--quick] [--output DIRECTORY]`. Writes
`scaling_PLATFORM.json` and a plot. It measures value and gradient on one device and on 2, 4, 8 … of those there are. On
a CPU, XLA_FLAGS=--xla_force_host_platform_device_count=4 makes devices of it: that shows that the script runs, no more.

Weak scaling gives each device the work of one, strong scaling splits that work. Efficiency is the time of the same
contender on one device over the time here, over the number of devices in strong scaling. Devices of one host differ by
some percent, so each of them is timed by itself (`each_alone_ms`, of jaxloss), and the one device is the slowest, for
which the others wait. All that is compared at one placement takes turns, a fifth of a second each: a device that is
warm from the others' work has another clock than one that has rested. Of communication are said:

- `collectives`, bytes: read from the compiled module. What a device sends is what a ring of them would have it send.
- `local_ms`: the work of the devices without any collective, all at once: the whole loss of the own rows of each, or,
  where classes are split, of its own classes. That part reads the logits twice, for nobody knows the gradient before
  all devices have told their sums; the whole loss on one device reads them once. So efficiency can not be 1 there, and
  `local_ms / ms` is what the collectives leave of it. Rows of linear cross entropy become split classes too, where they
  are few: what it then takes longer counts as exposed.
- `communication_ms`: each collective alone, timed one after the other, times how often a step runs it.
- `exposed_ms`: `ms - local_ms`, what the step takes longer for being one of several devices.
- `hidden`: the share of `communication_ms` that is not exposed; None where it is smaller than the times' own spread.
- `bytes_beside_compute`: those of asynchronous collectives between whose start and done the schedule has work
  (`exchanges.Collective`). It is what the compiler intends, not a measurement.
"""

import argparse
import dataclasses
import functools
import time

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxloss
from benchmarks import exchanges, record
from benchmarks import timing as clock
from benchmarks.communication import communication, loops_in_turn, total
from benchmarks.linear_cross_entropy import SUMMED_IN_BFLOAT16, whole_logits

JAXLOSS, XLA = "jaxloss", "XLA"
CROSS_ENTROPY, LINEAR = "cross entropy", "linear cross entropy"


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The work of one device."""

    rows: int
    width: int
    classes: int
    dtype: str


SIZES = {
    "gpu": Sizes(8192, 4096, 128256, "bfloat16"),
    "cpu": Sizes(512, 128, 8192, "float32"),
    "quick": Sizes(64, 32, 512, "float32"),
}


@dataclasses.dataclass(frozen=True)
class Placement:
    """A loss and how devices share its operands.

    Attributes:
        split: in words.
        specs: of logits and labels, or of hidden states, kernel and labels.
    """

    loss: str
    split: str
    specs: tuple[P, ...]

    def __str__(self) -> str:
        return f"{self.loss}, {self.split} split"

    @property
    def contenders(self) -> dict:
        """Losses of the operands, by name."""
        if self.loss == CROSS_ENTROPY:
            return {JAXLOSS: jaxloss.categorical_cross_entropy, XLA: by_xla}
        summed_in_bfloat16 = functools.partial(jaxloss.linear_cross_entropy, accumulate_dtype=jnp.bfloat16)
        return {
            JAXLOSS: jaxloss.linear_cross_entropy,
            SUMMED_IN_BFLOAT16: summed_in_bfloat16,
            XLA: whole_logits,
        }

    @property
    def argnums(self) -> tuple[int, ...]:
        """The operands that have a gradient."""
        return tuple(range(len(self.specs) - 1))

    def shapes(self, sizes: Sizes, rows: int, classes: int) -> tuple[tuple[int, ...], ...]:
        """Of the operands."""
        if self.loss == CROSS_ENTROPY:
            return (rows, classes), (rows,)
        return (rows, sizes.width), (sizes.width, classes), (rows,)


PLACEMENTS = (
    Placement(CROSS_ENTROPY, "rows", (P("d", None), P("d"))),
    Placement(CROSS_ENTROPY, "classes", (P(None, "d"), P())),
    Placement(LINEAR, "rows", (P("d", None), P(), P("d"))),
    Placement(LINEAR, "rows and kernel", (P("d", None), P("d", None), P("d"))),
    Placement(LINEAR, "classes", (P(), P(None, "d"), P())),
)


def by_xla(logits, labels):
    """optax's formula, which XLA's partitioner splits as it sees fit."""
    return optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), labels).mean()


def mesh_of(devices: int) -> Mesh:
    """The first so many devices."""
    return jax.make_mesh((devices,), ("d",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])


def operands(placement: Placement, sizes: Sizes, mesh: Mesh, rows: int, classes: int) -> tuple[jax.Array, ...]:
    """Random ones, made where they belong."""
    *floats, _ = placement.shapes(sizes, rows, classes)
    shardings = tuple(NamedSharding(mesh, spec) for spec in placement.specs)

    @functools.partial(jax.jit, out_shardings=shardings)
    def random(key):
        keys = jax.random.split(key, len(floats) + 1)
        deviations = (3.0,) if placement.loss == CROSS_ENTROPY else (1.0, sizes.width**-0.5)
        arrays = (
            (deviation * jax.random.normal(key, shape, jnp.float32)).astype(sizes.dtype)
            for key, shape, deviation in zip(keys, floats, deviations, strict=False)
        )
        return *arrays, jax.random.randint(keys[-1], (rows,), 0, classes)

    return jax.block_until_ready(random(jax.random.key(0)))


def step_of(placement: Placement, loss, mesh: Mesh):
    """Value and gradients, each of these placed as its operand."""
    of_gradients = tuple(NamedSharding(mesh, placement.specs[place]) for place in placement.argnums)
    step = jax.value_and_grad(loss, placement.argnums)
    return jax.jit(step, out_shardings=(NamedSharding(mesh, P()), of_gradients))


@functools.cache
def apart(placement: Placement, who: str, devices: int):
    """The loss of each device's own rows, or of its own classes, and gradients of its own: nobody tells anything."""
    loss = placement.contenders[who]
    # With an axis of one device for the classes, the loss is told that they are split.
    mesh = jax.make_mesh((devices, 1), ("d", "one"), axis_types=2 * (AxisType.Auto,), devices=jax.devices()[:devices])
    of_classes = placement.split == "classes"
    if of_classes:
        loss = functools.partial(loss, axis_name="one")

    def own(*operands):
        # What all devices hold is one device's own here: else they would add up its gradient.
        *floats, labels = (
            jax.lax.pcast(operand, "d", to="varying") if "d" not in spec else operand
            for operand, spec in zip(operands, placement.specs, strict=True)
        )
        if of_classes:
            labels = labels % floats[-1].shape[-1]
        step = jax.value_and_grad(lambda *floats: loss(*floats, labels), placement.argnums)
        return jax.tree.map(lambda result: result[None], step(*floats))

    def on_axis_of_one(spec: P) -> P:
        return P(*(("d", "one") if entry == "d" and of_classes else entry for entry in spec))

    in_specs = tuple(map(on_axis_of_one, placement.specs))
    return jax.jit(jax.shard_map(own, mesh=mesh, in_specs=in_specs, out_specs=P(("d", "one"))))


def attempted(step, operands):
    """The step compiled and run once, or why there is none: above all memory that is not enough for a peer."""
    try:
        compiled = step.lower(*operands).compile()
        jax.block_until_ready(compiled(*operands))
        return compiled
    except Exception as error:
        return record.failed(error)


def is_step(attempt) -> bool:
    """Whether it succeeded."""
    return not isinstance(attempt, dict)


def by_rows(placement: Placement) -> Placement:
    """That which splits the rows of the same loss alone: what a device has then is what it works on by itself."""
    return next(p for p in PLACEMENTS if p.loss == placement.loss and p.split == "rows")


# ---- measurements ----------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Alone:
    """The whole loss on one device, which does not depend on how it is split.

    Attributes:
        each_ms: of jaxloss, on each device.
        steps: of each contender on the slowest device, or why there is none.
        operands: theirs.
    """

    each_ms: list[float]
    steps: dict
    operands: list[jax.Array]


class Run:
    """The measurements of one run, and what they are compared with."""

    def __init__(self, sizes: Sizes, seconds: float, name: str, output: str | None):
        self.sizes, self.name, self.output = sizes, name, output
        self.until = time.monotonic() + seconds
        self.measurements: list[dict] = []
        self.alone: dict[tuple[str, int], Alone] = {}
        self.collectives_alone: dict[int, dict] = {}

    def measure(self, placement: Placement, scaling: str, devices: int, only: str) -> None:
        """All contenders at one placement."""
        rows = self.sizes.rows * (devices if scaling == "weak" else 1)
        names = [who for who in placement.contenders if only in f"{placement} {scaling} {who}"]
        if placement.split == "classes" and SUMMED_IN_BFLOAT16 in names:
            names.remove(SUMMED_IN_BFLOAT16)  # that sum is each device's own
        if not names:
            return
        common = {
            "loss": placement.loss,
            "split": placement.split,
            "scaling": scaling,
            "devices": devices,
            **dataclasses.asdict(self.sizes),
            "rows": rows,
        }
        if time.monotonic() > self.until:
            found = {who: {"left_out": "out of time"} for who in names}
        else:
            found = self.contenders(placement, names, scaling, devices, rows)
        for who, of in found.items():
            row = {**common, "who": who, **of}
            self.measurements.append(row)
            print(line(row), flush=True)
        record.write(self.name, self.measurements, self.output)

    def contenders(self, placement: Placement, names: list[str], scaling: str, devices: int, rows: int) -> dict:
        """Of each contender its time and what it exchanges, and for jaxloss what its collectives cost."""
        alone = self.one_device(placement, devices)
        mesh = mesh_of(devices)
        of_mesh = operands(placement, self.sizes, mesh, rows, self.sizes.classes)
        steps = {
            who: attempted(step_of(placement, placement.contenders[who], mesh), of_mesh)
            if is_step(alone.steps[who])
            else alone.steps[who]
            for who in names
        }
        failed = {who: step for who, step in steps.items() if not is_step(step)}
        compared = [who for who in names if who not in failed and who != XLA and scaling == "weak"]
        programs = {who: (step, *of_mesh) for who, step in steps.items() if who not in failed}
        programs |= {f"{who}, one device": (alone.steps[who], *alone.operands) for who in programs}
        own_rows, of_devices = placement, of_mesh
        if placement.split == "rows and kernel":  # by itself a device works with all of the kernel
            own_rows = by_rows(placement)
            of_devices = of_mesh[0], jax.device_put(of_mesh[1], NamedSharding(mesh, P())), of_mesh[2]
        programs |= {f"{who}, apart": (apart(own_rows, who, devices), *of_devices) for who in compared}
        loops = loops_in_turn(programs) if programs else {}
        return failed | {
            who: {
                "each_alone_ms": alone.each_ms,
                **self.found(
                    steps[who], mesh, scaling, *(loops.get(f"{who}{of}") for of in ("", ", one device", ", apart"))
                ),
            }
            for who in names
            if who not in failed
        }

    def found(
        self, step, mesh: Mesh, scaling: str, loops: list[float], one: list[float], apart: list[float] | None
    ) -> dict:
        """What is written of a step: its time beside the others, and what it exchanges."""
        known = self.collectives_alone.setdefault(mesh.size, {}) if apart else None
        collectives = communication(exchanges.of_module(step.as_text()), mesh, known)
        timing = clock.timing(loops)
        row = {
            "ms": timing.ms,
            "spread": timing.spread,
            "one_device_ms": clock.timing(one).ms,
            "efficiency": clock.ratio(one, loops) / (mesh.size if scaling == "strong" else 1),
            "collectives": collectives,
            "bytes_sent": total(collectives, "bytes_sent"),
            "bytes_beside_compute": total([c for c in collectives if c["beside_compute"]], "bytes_sent"),
            "temporary_bytes": step.memory_analysis().temp_size_in_bytes,
        }
        if not apart:
            return row
        local = clock.timing(apart)
        alone_ms, exposed = total(collectives, "ms"), max(0.0, timing.ms - local.ms)
        noise = timing.spread * timing.ms + local.spread * local.ms
        hidden = max(0.0, 1 - exposed / alone_ms) if alone_ms > noise else None
        return row | {"local_ms": local.ms, "communication_ms": alone_ms, "exposed_ms": exposed, "hidden": hidden}

    def one_device(self, placement: Placement, devices: int) -> Alone:
        """The contenders on the slowest device by itself."""
        key = placement.loss, devices
        if key in self.alone:
            return self.alone[key]
        rows = by_rows(placement)
        of_mesh = operands(rows, self.sizes, mesh_of(devices), self.sizes.rows * devices, self.sizes.classes)
        meshes = [Mesh(jax.devices()[place : place + 1], ("d",)) for place in range(devices)]
        of_each = [
            [
                jax.device_put(operand.addressable_shards[place].data, NamedSharding(mesh, spec))
                for operand, spec in zip(of_mesh, rows.specs, strict=True)
            ]
            for place, mesh in enumerate(meshes)
        ]
        ours = [
            step_of(rows, rows.contenders[JAXLOSS], mesh).lower(*own).compile()
            for mesh, own in zip(meshes, of_each, strict=True)
        ]
        loops = loops_in_turn(
            {place: (step, *own) for place, (step, own) in enumerate(zip(ours, of_each, strict=True))}
        )
        each_ms = [clock.timing(of).ms for of in loops.values()]
        slowest = each_ms.index(max(each_ms))
        mesh, own = meshes[slowest], of_each[slowest]
        peers = {who: loss for who, loss in rows.contenders.items() if who != JAXLOSS}
        steps = {who: attempted(step_of(rows, loss, mesh), own) for who, loss in peers.items()}
        self.alone[key] = Alone(each_ms, {JAXLOSS: ours[slowest], **steps}, own)
        return self.alone[key]


def line(row: dict) -> str:
    """A line of the table."""
    placement = f"{row['loss']}, {row['split']} split"
    head = f"{placement:43s} {row['scaling']:6s} {row['devices']} {row['who']:27s}"
    if "ms" not in row:
        return f"{head} {row.get('failed') or row['left_out']}"
    text = f"{head} {row['ms']:9.3f} ms, efficiency {row['efficiency']:.3f}, {row['bytes_sent'] / 1e6:9.3f} MB sent"
    if "local_ms" in row:
        hidden = "" if row["hidden"] is None else f", {row['hidden']:.0%} of it hidden"
        text += f"; alone {row['local_ms'] / row['ms']:.3f} of it, collectives {row['communication_ms']:.3f} ms{hidden}"
    return text


def counts(available: int) -> list[int]:
    """The numbers of devices to measure on."""
    return sorted({2**power for power in range(1, available.bit_length()) if 2**power <= available} | {available})


def main() -> None:
    """Measures, prints, writes and draws."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="measure only lines that contain this")
    parser.add_argument("--seconds", type=float, default=210, help="begin no measurement after so long")
    parser.add_argument("--quick", action="store_true", help="small sizes")
    parser.add_argument("--output", help="where to write; default: benchmarks/results")
    arguments = parser.parse_args()
    platform, available = jax.devices()[0].platform, len(jax.devices())
    if available < 2:
        print("one device: there is nothing to scale over")
        return
    print(record.circumstances())
    name = "quick" if arguments.quick else platform
    run = Run(SIZES[name], arguments.seconds, f"scaling_{name}", arguments.output)
    for scaling in ("weak", "strong"):
        for devices in reversed(counts(available)):  # the most first, should time run out
            for placement in PLACEMENTS:
                run.measure(placement, scaling, devices, arguments.only)
    path = record.write(run.name, run.measurements, arguments.output)
    print(path)
    from benchmarks import scaling_plot

    scaling_plot.draw(run.measurements, path.with_suffix(".png"))
    failed = [row for row in run.measurements if "failed" in row and row["who"] != XLA]
    if failed:
        raise SystemExit(f"{len(failed)} measurements of jaxloss failed")


if __name__ == "__main__":
    main()
