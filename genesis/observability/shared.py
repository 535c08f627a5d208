"""Gauges of shared state, from the backends' snapshots. They disappear instead of going stale."""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextvars import Context
from typing import NamedTuple

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from genesis.backends.estimate import expected_wait
from genesis.backends.protocol import QueueStats, Snapshot
from genesis.observability import names

__all__ = ["SHARED", "STALE_HEARTBEATS", "SharedGauges", "Spread"]

STALE_HEARTBEATS = 3
LIMIT_SECONDS = 60.0  # a limit rarely changes, so it is shown longer than the other numbers
_MAX_EXACT = 64
_MAX_FORGOTTEN = 500
_SNAPSHOTS_A_TURN = 500

SHARED = (
    (names.DEPTH, "Waiters in the queue, over all instances."),
    (names.IN_USE, "Slots in use in the queue, over all instances."),
    (names.LIMIT, "The limit in force."),
    (names.OLDEST_WAIT, "Seconds of the longest wait of those who wait."),
    (names.OLDEST_HOLD, "Seconds of the longest hold of those who hold."),
    (names.EXPECTED_WAIT, "Seconds that a newcomer would wait, if that can be estimated."),
)
_LIMIT = 2  # its index in SHARED

Values = tuple[float, float, float, float, float, float | None]
Publish = Callable[[str, str, Values, float], None]


class Spread:
    """Shows snapshots, at most `_SNAPSHOTS_A_TURN` per iteration of the event loop.

    A process might have 20,000 queues, whose heartbeats come at once.
    """

    def __init__(self, show: Callable[[Snapshot], None]) -> None:
        self._show = show
        self._later: dict[str, Snapshot] = {}
        self._shown = 0  # in this iteration

    def take(self, snapshot: Snapshot) -> None:
        if self._later or self._shown >= _SNAPSHOTS_A_TURN:
            self._later[snapshot.queue_id] = snapshot
            return
        if not self._shown and (loop := asyncio._get_running_loop()) is not None:
            loop.call_soon(self._show_more, context=Context())
            self._shown = 1
        elif self._shown:
            self._shown += 1
        self._show(snapshot)

    def _show_more(self) -> None:
        count = self._shown = min(len(self._later), _SNAPSHOTS_A_TURN)
        if count:
            asyncio.get_running_loop().call_soon(self._show_more, context=Context())
        for _ in range(count):
            self._show(self._later.popitem()[1])


class _Report(NamedTuple):
    label: str
    backend: str
    stats: QueueStats
    ages: tuple[float, float, float]
    """Oldest wait, oldest hold, expected wait (-1 while it is not known)."""
    at: float
    heartbeat: float


class _Total:
    """The sum of the reports under one label, updated incrementally.

    A maximum of many ages cannot be updated incrementally. For more than `_MAX_EXACT` queues it is the
    maximum over the reports of this heartbeat and the previous one.
    """

    __slots__ = ("_before", "_began", "_greatest", "in_use", "last", "limit", "reports", "waiting")

    def __init__(self) -> None:
        self.waiting = self.in_use = self.limit = 0
        self.reports: dict[tuple[str, str], _Report] = {}
        self.last: _Report | None = None
        self._began = 0.0
        self._greatest = self._before = (0.0, 0.0, -1.0)

    def add(self, key: tuple[str, str], report: _Report) -> None:
        stats = report.stats
        self.waiting += stats.waiting
        self.in_use += stats.in_use
        self.limit += stats.limit
        self.reports[key] = report
        self.last = report
        if report.at - self._began > report.heartbeat:
            recent = report.at - self._began <= 2 * report.heartbeat
            self._before = self._greatest if recent else (0.0, 0.0, -1.0)
            self._greatest, self._began = report.ages, report.at
        else:
            self._greatest = _greatest((self._greatest, report.ages))

    def remove(self, key: tuple[str, str]) -> None:
        stats = self.reports.pop(key).stats
        self.waiting -= stats.waiting
        self.in_use -= stats.in_use
        self.limit -= stats.limit

    def values(self) -> Values:
        if len(self.reports) <= _MAX_EXACT:
            ages = _greatest([report.ages for report in self.reports.values()])
        else:
            ages = _greatest((self._greatest, self._before))
        wait, hold, expected = ages
        known = None if expected < 0 else expected
        return (self.waiting, self.in_use, self.limit, wait, hold, known)


def _greatest(ages: Iterable[tuple[float, float, float]]) -> tuple[float, float, float]:
    wait, hold, expected = zip(*ages, strict=True)
    return max(wait), max(hold), max(expected)


class SharedGauges(Collector):
    """The shared numbers of the queues, by label.

    Counts of queues that share a label are summed over distinct stores; of ages and expected waits the
    maximum is shown. If two backends of one store report the same queue, it counts once. Neither a
    report nor a scrape iterates over all queues.

    Args:
        clock: returns monotonic seconds.
        busy: whether this process has calls under a label.
        publish: called with each label's new values and their lifetime in seconds.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        busy: Callable[[str], bool],
        publish: Publish | None = None,
    ) -> None:
        self._clock = clock
        self._busy = busy
        self._publish = publish
        self.reset()

    def reset(self) -> None:
        """Reset. In a forked child, the lock's owner does not exist."""
        self._lock = threading.RLock()  # scrapes run in a thread, event loops perhaps in several
        # By store, oldest report first.
        self._reports: dict[str, OrderedDict[str, _Report]] = {}
        self._totals: dict[tuple[str, str], _Total] = {}

    def report(
        self,
        queue_id: str,
        backend: str,
        label: str,
        stats: QueueStats,
        heartbeat: float,
        store: str = "",
    ) -> None:
        """Show `stats` for `STALE_HEARTBEATS` heartbeats, unless a newer report comes.

        If this process has no call left in the queue, show it for one heartbeat only: no newer report
        will come, and this one counts calls that have left.
        """
        now = self._clock()
        free = not stats.waiting and stats.in_use < stats.limit
        expected = expected_wait(0 if free else stats.waiting + 1, stats.limit, stats.mean_hold)
        ages = (stats.oldest_wait, stats.oldest_hold, -1.0 if expected is None else expected)
        report = _Report(label, backend, stats, ages, now, heartbeat)
        with self._lock:
            self._forget(store, now, 10)
            reports = self._reports.setdefault(store, OrderedDict())
            if queue_id in reports:
                self._remove(store, queue_id)
            reports[queue_id] = report
            total = self._totals.get((label, backend))
            if total is None:
                total = self._totals[label, backend] = _Total()
            total.add((store, queue_id), report)
            values = total.values() if self._publish is not None else None
        if self._publish is not None and values is not None:
            self._publish(label, backend, values, heartbeat * self._lifetime(label))

    def describe(self) -> Iterable[GaugeMetricFamily]:
        return [GaugeMetricFamily(name, text) for name, text in SHARED]

    def collect(self) -> Iterator[GaugeMetricFamily]:
        now = self._clock()
        for store in list(self._reports):
            while self._forget(store, now, _MAX_FORGOTTEN):
                continue  # release the lock in between
        rows: list[tuple[tuple[str, str], tuple[float | None, ...]]] = []
        for labels, total in list(self._totals.items()):
            with self._lock:
                last = total.last
                assert last is not None
                if total.reports and now <= last.at + last.heartbeat * self._lifetime(labels[0]):
                    rows.append((labels, total.values()))
                elif now <= last.at + LIMIT_SECONDS:
                    limit = total.limit if total.reports else last.stats.limit
                    rows.append((labels, (None, None, limit, None, None, None)))
                elif not total.reports:
                    self._totals.pop(labels, None)
        for place, (name, text) in enumerate(SHARED):
            family = GaugeMetricFamily(name, text, labels=("queue", "backend"))
            for labels, values in rows:
                value = values[place]
                if value is not None:
                    family.add_metric(labels, value)
            yield family

    def _lifetime(self, label: str) -> int:
        return STALE_HEARTBEATS if self._busy(label) else 1

    def _forget(self, store: str, now: float, at_most: int) -> bool:
        """Remove expired reports, `at_most` so many. Returns True if more might have expired."""
        with self._lock:
            reports = self._reports.get(store)
            for _ in range(at_most):
                if not reports:
                    self._reports.pop(store, None)
                    return False
                queue_id, report = next(iter(reports.items()))
                if now <= report.at + STALE_HEARTBEATS * report.heartbeat:
                    return False
                self._remove(store, queue_id)
            return True

    def _remove(self, store: str, queue_id: str) -> None:
        report = self._reports[store].pop(queue_id)
        self._totals[report.label, report.backend].remove((store, queue_id))
