"""Runs the campaigns, and keeps what they found.

python -m trust                                   every campaign in its long form, an hour and more
python -m trust --quick                           each for seconds: what CI runs; keeps nothing
python -m trust --only fuzz --minutes 60 --seed 7
"""

import argparse
import importlib
import os
import sys

# Before jax is imported: campaigns are about the CPU.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from trust import campaign


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m trust", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the short form, of which nothing is kept")
    parser.add_argument("--only", action="append", choices=campaign.CAMPAIGNS, help="this campaign; may be repeated")
    parser.add_argument("--minutes", type=float, default=30, help="of the differential fuzz, in the long form")
    parser.add_argument("--share", type=float, default=1.0, help="so much of the long form, the fuzz apart: 0.25, 10")
    parser.add_argument("--seed", type=int, default=0, help="another one draws other calls")
    asked = parser.parse_args()
    effort = campaign.Effort(quick=asked.quick, seed=asked.seed, minutes=asked.minutes, share=asked.share)
    found = 0
    for name in asked.only or campaign.CAMPAIGNS:
        parts = campaign.measured(name, importlib.import_module(f"trust.{name}").run, effort)
        found += sum(len(part["finds"]) for part in parts)
        if not asked.quick:
            print(f"kept in {campaign.write(parts)}", flush=True)
    if found:
        sys.exit(f"error: {found} found")


if __name__ == "__main__":
    main()
