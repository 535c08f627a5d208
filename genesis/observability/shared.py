"""Gauges of the backends: the shared state of their queues, and whether they can be reached.

The shared gauges are those of the last snapshot. They disappear instead of going stale.
"""

from __future__ import annotations

import _thread
import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias
from weakref import WeakKeyDictionary, finalize

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from genesis.backends.estimate import expected_wait
from genesis.backends.protocol import QueueStats
from genesis.observability import names

STALE_HEARTBEATS = 3
LIMIT_SECONDS = 60.0  # a limit rarely changes, so it is shown longer than the other numbers
_MAX_EXACT = 64
_MAX_FORGOTTEN = 500

SHARED = (
    (names.DEPTH, "Waiters in the queue, over all instances."),
    (names.IN_USE, "Slots in use in the queue, over all instances."),
    (names.LIMIT, "The limit in force."),
    (names.OLDEST_WAIT, "Seconds of the longest wait of those who wait."),
    (names.OLDEST_HOLD, "Seconds of the longest hold of those who hold."),
    (names.EXPECTED_WAIT, "Seconds that a newcomer would wait, if that can be estimated."),
)
_UP = (names.BACKEND_UP, "1 if the backend is reached, 0 if it or a part of it is not.", ("backend",))
GAUGES = (*((name, text, ("queue", "backend")) for name, text in SHARED), _UP)
"""Name, help text and labels of every gauge in this file."""

Values: TypeAlias = tuple[float, float, float, float, float, "float | None"]
Publish: TypeAlias = Callable[[str, tuple[str, ...], "float | None", float], None]
"""Called with a gauge's name, its label values, its new value, and the seconds for which it is valid.
In multiprocess mode it writes the value to a file."""


class BackendUp(Collector):
    """1, or 0 while a backend of a kind in this process, or a part of one, is unreachable.

    There is no series before the first contact with a backend, or after all backends are closed or
    abandoned. Only rare events change the value, so the path of a call never touches it.
    """

    def __init__(self, publish: Publish | None = None) -> None:
        self._publish = publish
        self.reset()

    def reset(self) -> None:
        # One thread must not overwrite a newer value of another. The lock is reentrant, because the
        # garbage collector might finalize a backend in between.
        self._lock = threading.RLock()
        self._reached: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()

    def show(self, kind: str) -> None:
        """Publish the value of a kind, even if it is not known."""
        if self._publish is not None:
            with self._lock:
                self._publish(names.BACKEND_UP, (kind,), self._values().get(kind), math.inf)

    def met(self, backend: Any) -> None:
        """The backend has replied. That ends no outage: another part of it might be unreachable."""
        with self._lock:
            self.set(backend, self._reached.get(backend, True))

    def set(self, backend: Any, reached: bool | None) -> None:
        """The backend with all its parts is reached, or is not, or (None) was closed."""
        with self._lock:
            if reached is None:
                self._reached.pop(backend, None)
            else:
                if self._publish is not None and backend not in self._reached:
                    # Not in this thread, see `ObservedBackend.__del__`.
                    show = finalize(backend, _thread.start_new_thread, self.show, (backend.name,))
                    show.atexit = False
                self._reached[backend] = reached
        self.show(backend.name)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        name, text, labels = _UP
        family = GaugeMetricFamily(name, text, labels=labels)
        with self._lock:
            values = self._values()
        for kind, value in values.items():
            family.add_metric((kind,), value)
        yield family

    def _values(self) -> dict[str, float]:
        values: dict[str, float] = {}
        for backend, reached in self._reached.items():
            values[backend.name] = min(float(reached), values.get(backend.name, 1.0))
        return values


class _Report(NamedTuple):
    labels: tuple[str, str]
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

    def __init__(self) -> None:
        self.waiting = self.in_use = self.limit = 0
        self.reports: dict[tuple[str, str], _Report] = {}
        self.last: _Report | None = None
        self._began = 0.0
        self._greatest = self._before = (0.0, 0.0, -1.0)

    def add(self, key: tuple[str, str], report: _Report) -> None:
        self._count(report.stats, 1)
        self.reports[key] = self.last = report
        if report.at - self._began > report.heartbeat:
            recent = report.at - self._began <= 2 * report.heartbeat
            self._before = self._greatest if recent else (0.0, 0.0, -1.0)
            self._greatest, self._began = report.ages, report.at
        else:
            self._greatest = _greatest((self._greatest, report.ages))

    def remove(self, key: tuple[str, str]) -> None:
        self._count(self.reports.pop(key).stats, -1)

    def _count(self, stats: QueueStats, sign: int) -> None:
        self.waiting += sign * stats.waiting
        self.in_use += sign * stats.in_use
        self.limit += sign * stats.limit

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
        publish: called with each new value.
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
        # By store (all reports of one have the same heartbeat), oldest report first.
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
        labels = (label, backend)
        report = _Report(labels, stats, ages, now, heartbeat)
        with self._lock:
            self._forget(store, now, 10)
            reports = self._reports.setdefault(store, OrderedDict())
            if queue_id in reports:
                self._remove(store, queue_id)
            reports[queue_id] = report
            total = self._totals.get(labels)
            if total is None:
                total = self._totals[labels] = _Total()
            total.add((store, queue_id), report)
            if self._publish is not None:
                seconds = heartbeat * self._lifetime(label)
                for (name, _), value in zip(SHARED, total.values(), strict=True):
                    self._publish(name, labels, value, seconds)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        now = self._clock()
        for store in list(self._reports):
            while self._forget(store, now, _MAX_FORGOTTEN):
                continue  # release the lock in between
        families = [GaugeMetricFamily(name, text, labels=("queue", "backend")) for name, text in SHARED]
        for labels, total in list(self._totals.items()):
            with self._lock:
                last = total.last
                assert last is not None
                values: Sequence[float | None] = ()
                if total.reports and now <= last.at + last.heartbeat * self._lifetime(labels[0]):
                    values = total.values()
                elif now <= last.at + LIMIT_SECONDS:
                    values = (None, None, total.limit if total.reports else last.stats.limit)
                elif not total.reports:
                    self._totals.pop(labels, None)
            for family, value in zip(families, values, strict=False):
                if value is not None:
                    family.add_metric(labels, value)
        yield from families

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
        self._totals[report.labels].remove((store, queue_id))
