"""What campaigns are asked for and what they hand back."""

import dataclasses
import datetime
import json
import pathlib
import time
from collections.abc import Callable, Iterator

from benchmarks import record
from trust import ROOT

BUILD = ROOT / "build" / "trust"
"""Programs, finds and what a campaign continues from."""

NAME = "trust_cpu"


@dataclasses.dataclass(frozen=True)
class Effort:
    """How long a campaign may take.

    Attributes:
        quick: the short form.
        seed: of everything random.
        minutes: of the differential fuzz.
        share: of the counts of the other campaigns' long form.
    """

    quick: bool
    seed: int
    minutes: float
    share: float = 1.0

    def count(self, long: int, quick: int) -> int:
        """How many, of what the long form and the short form have so many of."""
        return quick if self.quick else max(1, round(self.share * long))


@dataclasses.dataclass
class Part:
    """A part of a campaign.

    Attributes:
        tried: what was tried, in a few words.
        counts: how often, by what is counted.
        finds: what is wrong, one text each.
        note: what a reader has to know of the figures.
    """

    tried: str
    counts: dict[str, int]
    finds: list[str] = dataclasses.field(default_factory=list)
    note: str = ""


Campaign = Callable[[Effort], Iterator[Part]]


def measured(name: str, campaign: Campaign, effort: Effort) -> list[dict]:
    """The parts of a campaign as they are kept."""
    parts, start = [], time.monotonic()
    for part in campaign(effort):
        seconds = time.monotonic() - start
        counts = ", ".join(f"{count:,} {what}" for what, count in part.counts.items())
        print(f"{name}: {part.tried}: {counts}; {len(part.finds)} found, {seconds:.0f} s", flush=True)
        for find in part.finds:
            print(f"FOUND by {name}: {find}", flush=True)
        parts.append(
            {
                "campaign": name,
                **dataclasses.asdict(part),
                "seed": effort.seed,
                "seconds": round(seconds, 1),
                "date": datetime.date.today().isoformat(),
                "commit": record.circumstances()["commit"],
            }
        )
        start = time.monotonic()
    return parts


def write(parts: list[dict]) -> pathlib.Path:
    """Keeps the parts, and of campaigns that were not run what there was."""
    path = record.RESULTS / f"{NAME}.json"
    kept = json.loads(path.read_text(encoding="utf-8"))["measurements"] if path.exists() else []
    run = {part["campaign"] for part in parts}
    together = parts + [part for part in kept if part["campaign"] not in run]
    return record.write(NAME, sorted(together, key=lambda part: CAMPAIGNS.index(part["campaign"])))


CAMPAIGNS = ("sanitizers", "handlers", "fuzz", "repeatability", "lifetime")
"""Their names, which are those of their modules, in the order of the page."""
