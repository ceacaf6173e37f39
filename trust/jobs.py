"""Jobs side by side, each in a process of its own: what one does to its process, no other sees."""

import concurrent.futures
import dataclasses
import faulthandler
import multiprocessing
import os
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection

from trust import ROOT


@dataclasses.dataclass
class Part:
    """A part of a campaign.

    Attributes:
        tried: what was tried, in a few words.
        counts: how often, by what is counted.
        finds: what is wrong, one text each.
        note: what a reader has to know of the figures.
        seconds: that it took, of all processes that it was shared out to.
        cpu_seconds: of processors, with those of children that have ended.
    """

    tried: str
    counts: dict[str, int]
    finds: list[str] = dataclasses.field(default_factory=list)
    note: str = ""
    seconds: float = 0.0
    cpu_seconds: float = 0.0

    def __add__(self, other: "Part") -> "Part":
        """Of the same tried: what both of its shares have."""
        names = dict.fromkeys((*self.counts, *other.counts))
        return Part(
            self.tried,
            {name: self.counts.get(name, 0) + other.counts.get(name, 0) for name in names},
            self.finds + other.finds,
            self.note or other.note,
            self.seconds + other.seconds,
            self.cpu_seconds + other.cpu_seconds,
        )


Job = Callable[[], Part]
"""What a process is started for; it is pickled. Jobs whose parts have tried the same are shares of one part."""


def parts(groups: Sequence[Sequence[Job]], at_once: int) -> Iterator[tuple[int, list[Part]]]:
    """The parts of each group of jobs as it ends, with its place; so many groups run at once, each in one process."""
    with concurrent.futures.ThreadPoolExecutor(max(1, at_once)) as pool:
        places = {pool.submit(_in_a_process, group): place for place, group in enumerate(groups)}
        for future in concurrent.futures.as_completed(places):
            yield places[future], future.result()


def _in_a_process(group: Sequence[Job]) -> list[Part]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(group, theirs), daemon=True)
    process.start()
    theirs.close()
    found = []
    try:
        while len(found) < len(group):
            found.append(ours.recv())
    except EOFError:
        process.join()
        said = f"{group[len(found)]}: its process ended with status {process.exitcode}"
        found.append(Part("what ended its process", {"processes": 1}, [said]))
    process.join()
    return found


def _work(group: Sequence[Job], connection: Connection) -> None:
    faulthandler.enable()
    for job in group:
        start, cpu = time.monotonic(), _cpu_seconds()
        try:
            part = job()
        except Exception:
            part = Part("what could not be tried", {"jobs": 1}, [f"{job}:\n{traceback.format_exc()}"])
        part.seconds, part.cpu_seconds = time.monotonic() - start, _cpu_seconds() - cpu
        connection.send(part)


def environment(**more: str) -> dict[str, str]:
    """Of a Python program that is to find what this one has found, and this checkout."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **more}


def _cpu_seconds() -> float:
    return sum(os.times()[:4])
