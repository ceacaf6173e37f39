"""How much of its clock a GPU has while a loss runs on and on: one at the limit of its power has less.

Run it with `python -m benchmarks.power [--seconds 3] [--output DIRECTORY]` on a GPU whose driver has `nvidia-smi`.
Writes `power_gpu.json`: of each program milliseconds a call in loops of 0.1 s, one after the other; and, while these
run, the clock of the multiprocessors and the highest that it has, in MHz, the power in watts, and in which share of the
samples the driver held the clock down for the power. The operands are bfloat16 logits [7000, 151936] and labels.
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
SECONDS_A_LOOP, SECONDS_A_SAMPLE = 0.1, 0.1
SAMPLED = "clocks.sm,clocks.max.sm,power.draw.instant,clocks_event_reasons.sw_power_cap"


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
    calls = round(SECONDS_A_LOOP / program.loop(4))
    with sampling() as sampler:
        loops, start = [], time.monotonic()
        while time.monotonic() - start < seconds:
            loops.append(program.loop(calls) * 1e3)
        sampler.terminate()
        lines = sampler.communicate()[0].splitlines()
    samples = [line.split(", ") for line in lines if line.count(", ") == SAMPLED.count(",")]
    samples, loops = samples[len(samples) // 3 :], loops[len(loops) // 3 :]  # once it is warm
    found = {
        "who": who,
        "ms": statistics.median(loops),
        "clock_mhz": statistics.median(float(clock) for clock, _, _, _ in samples),
        "highest_clock_mhz": max(float(highest) for _, highest, _, _ in samples),
        "power_w": statistics.median(float(power) for _, _, power, _ in samples),
        "held_down": sum(reason == "Active" for _, _, _, reason in samples) / len(samples),
    }
    print(*(f"{value:.4g}" if isinstance(value, float) else value for value in found.values()), flush=True)
    return found


def sampling() -> subprocess.Popen:
    """What the driver says of the first GPU that is visible, again and again."""
    device = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    query = ["nvidia-smi", "-i", device, f"--query-gpu={SAMPLED}", "--format=csv,noheader,nounits"]
    return subprocess.Popen([*query, "-lms", str(round(1e3 * SECONDS_A_SAMPLE))], stdout=subprocess.PIPE, text=True)


if __name__ == "__main__":
    main()
