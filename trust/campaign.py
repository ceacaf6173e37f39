"""What campaigns are asked for and what they hand back."""

import collections
import dataclasses
import datetime
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence

from benchmarks import record
from jaxloss._ffi import call
from trust import ROOT, jobs, names
from trust.jobs import Job, Part

BUILD = ROOT / "build" / "trust"
"""Programs, finds and what a campaign continues from."""


@dataclasses.dataclass(frozen=True)
class Effort:
    """How long a campaign may take.

    Attributes:
        quick: the short form.
        seed: of everything random.
        minutes: of the differential fuzz at most; on a GPU, of all campaigns.
        share: of the counts of the long form.
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


@dataclasses.dataclass(frozen=True)
class Campaign:
    """The jobs of a campaign: those that run beside others, and those that nothing may run beside."""

    together: Sequence[Job]
    alone: Sequence[Job] = ()


def by_kernels(part: Callable[..., Part], *arguments) -> Part:
    """The part, where arrays of few elements, which take a formula by default, take the kernels too."""
    call.FALLBACK_SIZE = 0
    return part(*arguments)


def measured(campaigns: Mapping[str, Campaign], effort: Effort, at_once: int) -> Iterator[list[dict]]:
    """The parts of each campaign as they are kept, when its last job has ended."""
    commit = record.circumstances()["commit"]  # before what runs meanwhile writes its results
    left = collections.Counter(
        {name: len(campaign.together) + len(campaign.alone) for name, campaign in campaigns.items()}
    )
    found: dict[str, dict[int, list[Part]]] = {name: {} for name in campaigns}
    for together in (True, False):
        groups = list(_groups(campaigns, effort, together))
        for place, parts in jobs.parts([group for _, _, group in groups], at_once if together else 1):
            name, first, group = groups[place]
            _say(name, parts)
            found[name][first] = parts
            left[name] -= len(group)
            if not left[name]:
                yield _kept(name, effort, commit, [part for _, parts in sorted(found[name].items()) for part in parts])


Group = tuple[str, int, Sequence[Job]]
"""A campaign's name, the place in it of the first of some jobs, and these: what one process is started for."""


def _groups(campaigns: Mapping[str, Campaign], effort: Effort, together: bool) -> Iterator[Group]:
    """Those that run beside others or alone, in the order that they start in: the fuzz's, which are alike, the last.

    In the short form most of a process's time is its start: there a campaign has one.
    """
    for name in sorted(campaigns, key=lambda name: name == "fuzz"):
        campaign = campaigns[name]
        of_it = campaign.together if together else campaign.alone
        size = max(1, len(of_it)) if effort.quick else 1
        for first in range(0, len(of_it), size):
            yield name, first if together else len(campaign.together) + first, of_it[first : first + size]


def _say(name: str, parts: Sequence[Part]) -> None:
    for part in parts:
        counts = ", ".join(f"{count:,} {what}" for what, count in part.counts.items())
        took = f"{part.seconds:.0f} s, {part.cpu_seconds:.0f} of a processor"
        print(f"{name}: {part.tried}: {counts}; {len(part.finds)} found, {took}", flush=True)
        for find in part.finds:
            print(f"FOUND by {name}: {find}", flush=True)


def _kept(name: str, effort: Effort, commit: str | None, parts: Sequence[Part]) -> list[dict]:
    """The parts as they are written, the shares of each added up."""
    of_tried: dict[str, Part] = {}
    for part in parts:
        of_tried[part.tried] = of_tried[part.tried] + part if part.tried in of_tried else part
    return [
        {
            "campaign": name,
            **dataclasses.asdict(part),
            "seconds": round(part.seconds, 1),
            "cpu_seconds": round(part.cpu_seconds, 1),
            "seed": effort.seed,
            "date": datetime.date.today().isoformat(),
            "commit": commit,
        }
        for part in of_tried.values()
    ]


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
