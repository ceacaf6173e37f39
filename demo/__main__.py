"""Train the three models, hold each against the plain formula, print the table and draw the pictures."""

import argparse
import sys
import textwrap
from pathlib import Path

import jax

import jaxloss
from demo import pictures, report
from demo.agreement import agreement
from demo.tasks import BREAST_CANCER, DIABETES, DIGITS
from demo.training import train


def main() -> None:
    arguments = _arguments()
    # On a GPU, float32 products may otherwise be taken with ten bits of precision, and that would be all one compares.
    jax.config.update("jax_default_matmul_precision", "highest")
    print(textwrap.fill(_kernels(), 100))

    results, rows, failures = {}, [], []
    for task in (DIABETES, DIGITS, BREAST_CANCER):
        epochs = 3 if arguments.quick else task.epochs
        data = task.load()
        run = train(task, data, task.loss, epochs, f"{task.name}, jaxloss")
        plain = train(task, data, task.formula, epochs, f"{task.name}, formula")
        agreed = agreement(run, plain)
        results[task.name] = pictures.Result(data, run)
        rows.append(report.row(task, data, run, agreed))
        if not agreed.holds:
            failures.append(f"{task.name}: {agreed}")

    print(f"\n{report.table(rows)}\n\n{report.NOTE}")
    for path in pictures.draw(results, arguments.output):
        print(f"drew {path}")
    if failures:
        sys.exit("\n".join(["error: further from the plain formula than rounding explains", *failures]))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m demo", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few seconds' worth of training, to see that it runs")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path(__file__).parent / "output",
        metavar="DIR",
        help="where the pictures go (default: output/ beside this file)",
    )
    return parser.parse_args()


def _kernels() -> str:
    device, held = jax.devices()[0], jaxloss.backends()
    if device.platform == "cpu":
        return f"running on the CPU kernels ({held.cpu})"
    if device.platform in ("gpu", "cuda") and held.cuda:
        runs = "the CUDA kernels"
    else:
        runs = "the plain formulas, for this platform has no kernels in this build"
    return f"running on {runs} (device: {device.device_kind}; this build holds {held})"


if __name__ == "__main__":
    main()
