"""Gauges of the backends: the shared state of their queues, and whether they can be reached.

The shared gauges are those of the last snapshot. They disappear instead of going stale.
"""

from __future__ import annotations

import asyncio
import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextvars import Context
from typing import Any, NamedTuple, TypeAlias
from weakref import WeakKeyDictionary, finalize

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from genesis.backends.estimate import expected_wait
from genesis.backends.protocol import QueueStats, Snapshot
from genesis.observability import names

STALE_HEARTBEATS = 3
LIMIT_SECONDS = 60.0  # a limit rarely changes, so it is shown longer than the other numbers
_CROWDED = 64  # queues under one label
_CROWDED_SECONDS = 1.0
_MAX_FORGOTTEN = 10  # in one report
_SNAPSHOTS_A_TURN = 500

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
                    finalize(backend, self.show, backend.name).atexit = False
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
    stats: QueueStats
    expected: float | None
    """The expected wait of a newcomer."""
    at: float
    heartbeat: float

    def is_live(self, now: float) -> bool:
        return now <= self.at + STALE_HEARTBEATS * self.heartbeat

    def is_over(self, now: float) -> bool:
        return not self.is_live(now) and now > self.at + LIMIT_SECONDS


class SharedGauges(Collector):
    """The shared numbers of the queues, by label.

    Counts of queues that share a label are summed over distinct stores; of ages and expected waits the
    maximum is shown. If two backends of one store report the same queue, it counts once. A report does
    not iterate over all queues: only a scrape does, in its own thread.

    Args:
        clock: returns monotonic seconds.
        busy: whether this process has calls under a label.
        publish: called with each new value; for a label with many queues once in `_CROWDED_SECONDS`.
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
        # By label and backend: the reports by store and queue, the oldest first.
        self._reports: dict[tuple[str, str], OrderedDict[tuple[str, str], _Report]] = {}
        self._published: dict[tuple[str, str], float] = {}

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
        labels, key = (label, backend), (store, queue_id)
        with self._lock:
            reports = self._reports.setdefault(labels, OrderedDict())
            reports[key] = _Report(stats, expected, now, heartbeat)
            reports.move_to_end(key)
            for _ in range(_MAX_FORGOTTEN):
                if not next(iter(reports.values())).is_over(now):
                    break
                reports.popitem(last=False)
            is_due = (
                len(reports) <= _CROWDED or now >= self._published.get(labels, 0) + _CROWDED_SECONDS
            )
            if self._publish is not None and is_due:
                self._published[labels] = now
                seconds = heartbeat * self._lifetime(label)
                for (name, _), value in zip(SHARED, self._values(labels, now), strict=True):
                    self._publish(name, labels, value, seconds)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        now = self._clock()
        families = [GaugeMetricFamily(name, text, labels=("queue", "backend")) for name, text in SHARED]
        for labels in list(self._reports):
            for family, value in zip(families, self._values(labels, now), strict=False):
                if value is not None:
                    family.add_metric(labels, value)
        yield from families

    def _values(self, labels: tuple[str, str], now: float) -> Sequence[float | None]:
        """The values of `SHARED`; fewer if the others are unknown."""
        with self._lock:
            reports = list(self._reports.get(labels, {}).values())
            if not reports or reports[-1].is_over(now):
                self._reports.pop(labels, None)
                return ()
        last = reports[-1]
        live = [report for report in reports if report.is_live(now)]
        limit = sum(report.stats.limit for report in live) if live else last.stats.limit
        if now > last.at + last.heartbeat * self._lifetime(labels[0]):
            return (None, None, limit)
        waiting, in_use, _, oldest_wait, oldest_hold, _ = zip(*(r.stats for r in live), strict=True)
        known = [report.expected for report in live if report.expected is not None]
        expected = max(known, default=None)
        return (sum(waiting), sum(in_use), limit, max(oldest_wait), max(oldest_hold), expected)

    def _lifetime(self, label: str) -> int:
        return STALE_HEARTBEATS if self._busy(label) else 1
