"""Runs the campaigns, and keeps what they found.

python -m trust                                   every campaign in its long form: half an hour on two cores
python -m trust --quick                           each for seconds: what CI runs; keeps nothing
python -m trust --only fuzz --share 10 --seed 7
python -m trust --platform gpu --minutes 5        those about a device, on a GPU
"""

import argparse
import importlib
import os
import sys

from trust import names


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m trust", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the short form, of which nothing is kept")
    parser.add_argument("--only", action="append", choices=names.ALL, help="this campaign; may be repeated")
    parser.add_argument("--platform", choices=names.CAMPAIGNS, default="cpu", help="what calls run on")
    parser.add_argument("--minutes", type=float, help="of the fuzz at most; on a GPU, of all. Default: 60, or 5")
    parser.add_argument("--share", type=float, default=1.0, help="so much of the long form: 0.25, 10")
    parser.add_argument("--jobs", type=int, help="so many processes at once; default: one a processor")
    parser.add_argument("--seed", type=int, default=0, help="another one draws other calls")
    parser.add_argument("--output", help="where to write the JSON; default: benchmarks/results")
    asked = parser.parse_args()
    # Before JAX is imported: where calls run, and on a GPU that this process leaves memory to its children.
    os.environ.setdefault("JAX_PLATFORMS", {"cpu": "cpu", "gpu": "cuda,cpu"}[asked.platform])
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    campaign = importlib.import_module("trust.campaign")

    minutes = asked.minutes or {"cpu": 60.0, "gpu": 5.0}[asked.platform]
    effort = campaign.Effort(
        quick=asked.quick, seed=asked.seed, minutes=minutes, share=asked.share, platform=asked.platform
    )
    chosen = asked.only or names.CAMPAIGNS[asked.platform]
    campaigns = {name: importlib.import_module(f"trust.{name}").campaign(effort) for name in chosen}
    found, at_once = 0, asked.jobs or len(os.sched_getaffinity(0))
    for parts in campaign.measured(campaigns, effort, at_once):
        found += sum(len(part["finds"]) for part in parts)
        if not asked.quick:
            print(f"kept in {campaign.write(parts, asked.platform, asked.output)}", flush=True)
    if found:
        sys.exit(f"error: {found} found")


if __name__ == "__main__":
    main()
