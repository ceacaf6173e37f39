"""What campaigns are asked for and what they hand back."""

import dataclasses
import datetime
import json
import pathlib
import time
from collections.abc import Callable, Iterator

from benchmarks import record
from trust import ROOT, names

BUILD = ROOT / "build" / "trust"
"""Programs, finds and what a campaign continues from."""


@dataclasses.dataclass(frozen=True)
class Effort:
    """How long a campaign may take.

    Attributes:
        quick: the short form.
        seed: of everything random.
        minutes: of the differential fuzz; on a GPU, of all campaigns.
        share: of the counts of the other campaigns' long form.
        platform: that calls run on.
    """

    quick: bool
    seed: int
    minutes: float
    share: float = 1.0
    platform: str = "cpu"

    @property
    def on_gpu(self) -> bool:
        return self.platform == "gpu"

    def seconds(self, share: float) -> float:
        """On a GPU this share of the minutes, after which a part ends with the counts that it has; else no limit."""
        return 60 * self.minutes * share if self.on_gpu else float("inf")

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
        seconds: how long it took, where others ran beside it.
    """

    tried: str
    counts: dict[str, int]
    finds: list[str] = dataclasses.field(default_factory=list)
    note: str = ""
    seconds: float | None = None


Campaign = Callable[[Effort], Iterator[Part]]


def measured(name: str, campaign: Campaign, effort: Effort) -> list[dict]:
    """The parts of a campaign as they are kept."""
    commit = record.circumstances()["commit"]  # before what runs meanwhile writes its results
    parts, start = [], time.monotonic()
    for part in campaign(effort):
        seconds = time.monotonic() - start if part.seconds is None else part.seconds
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
                "commit": commit,
            }
        )
        start = time.monotonic()
    return parts


def write(parts: list[dict], platform: str, directory: str | None = None) -> pathlib.Path:
    """Keeps the parts, and of campaigns that were not run what there was."""
    run = {part["campaign"] for part in parts}
    return kept_with(parts, f"trust_{platform}", lambda part: part["campaign"] not in run, directory)


def kept_with(
    parts: list[dict], name: str, stays: Callable[[dict], bool], directory: str | None = None
) -> pathlib.Path:
    """Writes the parts to that file, with those of what is kept that stay; `directory` is looked into first."""
    kept = [
        json.loads(path.read_text(encoding="utf-8"))["measurements"]
        for folder in (directory, record.RESULTS)
        if folder and (path := pathlib.Path(folder) / f"{name}.json").exists()
    ]
    together = parts + [part for part in (kept[0] if kept else []) if stays(part)]

    def place(part: dict) -> int:
        return names.ALL.index(part["campaign"]) if part["campaign"] in names.ALL else len(names.ALL)

    return record.write(name, sorted(together, key=place), directory)
