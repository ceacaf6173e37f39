"""What the limit of a GPU's power costs: the times of short loops after a rest and of long ones, with clocks and watts.

Run it with `python -m benchmarks.power [--seconds 3] [--output DIRECTORY]` on a GPU whose driver has `nvidia-smi`.
Writes `power_gpu.json`: of each program milliseconds a call in loops of 8 ms, each after a rest, and in loops of 0.1 s
one after the other; and, while these run, the clock of the multiprocessors in MHz, the power in watts, and in which
share of the samples the driver held the clock down for it. The operands are bfloat16 logits [7000, 151936] and labels.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time

import jax
import jax.numpy as jnp

import jaxloss
from benchmarks import record
from benchmarks.timing import Program

SHAPE = (7000, 151936)
SHORT, LONG, REST = 0.008, 0.1, 0.5
"""Seconds of a loop, and between short ones."""

SAMPLED = "clocks.sm,power.draw.instant,clocks_event_reasons.sw_power_cap"
SECONDS_A_SAMPLE = 0.1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3, help="that the long loops of a program go on")
    parser.add_argument("--output", help="where to write; default: benchmarks/results")
    options = parser.parse_args()
    if jax.devices()[0].platform != "gpu":
        sys.exit("error: power is measured on a GPU, found: " + jax.devices()[0].platform)
    measurements = [measured(who, program, options.seconds) for who, program in programs().items()]
    print(record.write("power_gpu", measurements, options.output))


def programs() -> dict[str, Program]:
    """A copy, and value and gradient of cross entropy without options and with one."""
    logits = jax.random.normal(jax.random.key(0), SHAPE, jnp.bfloat16)
    labels = jax.random.randint(jax.random.key(1), SHAPE[:1], 0, SHAPE[1])

    def loss(**options):
        def of_logits(logits, labels):
            return jaxloss.categorical_cross_entropy(logits, labels, **options)

        function = jax.jit(jax.value_and_grad(of_logits))
        return Program(lambda: function(logits, labels))

    return {
        "copy": Program(lambda: jnp.copy(logits)),
        "no option": loss(),
        "z_loss": loss(z_loss=1e-4),
        "label_smoothing": loss(label_smoothing=0.1),
        "softcap": loss(softcap=30.0),
    }


def measured(who: str, program: Program, seconds: float) -> dict:
    program.loop(1)
    once = program.loop(4)
    short = []
    for _ in range(5):
        time.sleep(REST)
        short.append(program.loop(max(2, round(SHORT / once))) * 1e3)
    with sampling() as sampler:
        long, start = [], time.monotonic()
        while time.monotonic() - start < seconds:
            long.append(program.loop(round(LONG / once)) * 1e3)
        sampler.terminate()
        lines = sampler.communicate()[0].splitlines()
    samples = [line.split(", ") for line in lines if line.count(", ") == 2]
    samples = samples[len(samples) // 3 :]  # what is drawn is an average over a while
    found = {
        "who": who,
        "ms": {"short loops": statistics.median(short), "long loops": statistics.median(long[len(long) // 3 :])},
        "clock_mhz": statistics.median(float(clock) for clock, _, _ in samples),
        "power_w": statistics.median(float(power) for _, power, _ in samples),
        "held_down": sum(reason == "Active" for _, _, reason in samples) / len(samples),
    }
    print(
        f"{who:16} {found['ms']} {found['clock_mhz']:.0f} MHz {found['power_w']:.0f} W {found['held_down']:.2f}",
        flush=True,
    )
    return found


def sampling() -> subprocess.Popen:
    """What the driver says of the first GPU that is visible, again and again."""
    device = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    query = ["nvidia-smi", "-i", device, f"--query-gpu={SAMPLED}", "--format=csv,noheader,nounits"]
    return subprocess.Popen([*query, "-lms", str(round(1e3 * SECONDS_A_SAMPLE))], stdout=subprocess.PIPE, text=True)


if __name__ == "__main__":
    main()
