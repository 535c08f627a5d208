"""Runs many schedules: how many, how fast, how many distinct ones, and which one fails."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field

from tests.schedules.calls import Violation
from tests.schedules.choices import Path, Seeded, every_path
from tests.schedules.loop import Order
from tests.schedules.memory import MemorySchedule
from tests.schedules.scenario import Scenario, drawn
from tests.schedules.sinks import Sinks

__all__ = [
    "Found",
    "Report",
    "explore_memory",
    "memory_schedule",
    "walk_memory",
]

_BATCH = 500  # schedules between two checks of what the layer has counted


class Found(AssertionError):  # noqa: N818 - as the test reports it
    """A schedule that breaks a promise; the message has the command that replays it."""


@dataclass
class Report:
    """The statistics of an exploration."""

    kind: str
    schedules: int = 0
    steps: int = 0
    seconds: float = 0.0
    busy: float = 0.0
    """Seconds of CPU."""
    orders: set[int] = field(default_factory=set)
    histories: set[int] = field(default_factory=set)
    counts: dict[str, int] = field(default_factory=dict)
    complete: bool = True
    """Whether an enumeration was completed."""

    def add(self, steps: Iterable[object], history: Iterable[object]) -> None:
        done = tuple(steps)
        self.schedules += 1
        self.steps += len(done)
        self.orders.add(hash(done))
        self.histories.add(hash(tuple(history)))

    def count(self, what: str, times: int = 1) -> None:
        self.counts[what] = self.counts.get(what, 0) + times

    def __str__(self) -> str:
        rate = self.schedules / self.seconds if self.seconds else 0.0
        text = (
            f"{self.kind}: {self.schedules} schedules in {self.seconds:.1f} s = {rate:.0f}/s "
            f"({self.schedules / self.busy if self.busy else 0:.0f} a second of CPU), "
            f"{self.steps} steps, {len(self.orders)} distinct orders, "
            f"{len(self.histories)} distinct histories"
        )
        if not self.complete:
            text += ", not all walked"
        if self.counts:
            text += "; " + ", ".join(f"{what} {n}" for what, n in sorted(self.counts.items()))
        return text


def memory_schedule(
    seed: int, sinks: Sinks, order: Order, observed: bool, tell: Callable[[str], None] | None = None
) -> MemorySchedule:
    """The schedule of a seed."""
    return MemorySchedule(drawn(seed), Seeded(seed), sinks, observed=observed, order=order, tell=tell)


def explore_memory(
    seeds: Iterable[int], *, order: Order = "fifo", observed: bool = False, seconds: float = 1e9
) -> Report:
    """Run the schedules of `seeds`, for at most `seconds`.

    Raises:
        Found: one of them breaks a promise.
    """
    kind = f"memory, {'observed' if observed else 'bare'}, {order}"
    report = Report(kind)
    began, busy = time.perf_counter(), time.process_time()
    sinks, batch = Sinks(), list[int]()
    for seed in seeds:
        try:
            schedule = memory_schedule(seed, sinks, order, observed)
            schedule.run()
        except Violation as violation:
            raise _found(violation, "memory", seed, order, observed) from violation
        report.add(schedule.steps, schedule.history)
        for call in schedule.calls:
            report.count(call.ending)
        batch.append(seed)
        if len(batch) == _BATCH:
            _check_sinks(sinks, batch, order, observed)
            sinks, batch = Sinks(), []
        if time.perf_counter() - began > seconds:
            break
    _check_sinks(sinks, batch, order, observed)
    report.seconds = time.perf_counter() - began
    report.busy = time.process_time() - busy
    return report


def walk_memory(
    scenario: Scenario, *, order: Order = "fifo", most: int = 1_000_000, name: str = ""
) -> Report:
    """Run every schedule of one scenario, at most `most`.

    Raises:
        Found: one of them breaks a promise.
    """
    report = Report(f"memory, every path of {name or scenario}, {order}")
    began, busy = time.perf_counter(), time.process_time()
    sinks = Sinks()
    for path in every_path():
        if report.schedules == most:
            report.complete = False
            break
        try:
            schedule = MemorySchedule(scenario, path, sinks, order=order)
            schedule.run()
        except Violation as violation:
            raise _found_on_path(violation, scenario, path, order) from violation
        report.add(schedule.steps, schedule.history)
        for call in schedule.calls:
            report.count(call.ending)
    report.seconds = time.perf_counter() - began
    report.busy = time.process_time() - busy
    return report


def _check_sinks(sinks: Sinks, seeds: list[int], order: Order, observed: bool) -> None:
    """Check what the layer has counted for these schedules; on an error, find the schedule."""
    if not observed:
        return
    try:
        sinks.check()
    except Violation as violation:
        for seed in seeds:
            alone = Sinks()
            memory_schedule(seed, alone, order, observed).run()
            try:
                alone.check()
            except Violation as single:
                raise _found(single, "memory", seed, order, observed) from single
        raise Found(f"{violation}; none of the seeds {seeds[0]} to {seeds[-1]} alone") from violation


def _found(violation: Violation, kind: str, seed: int, order: str, observed: bool) -> Found:
    options = f"--kind {kind} --seed {seed} --order {order}" + (" --observed" if observed else "")
    return Found(f"{violation}\nreplay: python -m tests.schedules {options} -v")


def _found_on_path(violation: Violation, scenario: Scenario, path: Path, order: Order) -> Found:
    told: list[str] = []
    with suppress(Violation):
        MemorySchedule(scenario, Path(path.taken), Sinks(), order=order, tell=told.append).run()
    steps = "\n".join(f"  {step}" for step in told)
    return Found(f"{violation}\nreplay: {scenario}, order {order}, path {path.taken}:\n{steps}")
