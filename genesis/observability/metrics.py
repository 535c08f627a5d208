"""Metrics on prometheus_client's registry.

Children are looked up once per queue and kept (`QueueSeries`), because `labels()` costs as much as the
observation. Every series of a queue exists from its first call, at 0: Prometheus' `increase` ignores
the value with which a series appears, so a rare event (a lost or reclaimed slot) would never be
visible. For the same reason the series of an idle queue are kept for a day, unless there are too many
queues. They are removed during a scrape, not when the queue becomes idle.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any, get_args

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from genesis.observability import multiprocess, names
from genesis.observability.histogram import Family, FastHistogram
from genesis.observability.series import QueueSeries
from genesis.observability.shared import BackendUp, SharedGauges

# fmt: off
WAIT_BUCKETS = (
    0.0, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0,
    10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0,
)
OPERATION_BUCKETS = (  # `wait` lasts as long as a call waits; all others are much shorter
    0.00001, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05,
    0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 600.0, 1800.0, 3600.0,
)
POSITION_BUCKETS = (0.0, 1.0, 2.0, 3.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 10000.0)
# fmt: on
MAX_QUEUES = 100
IDLE_SECONDS = 86_400.0
CROWDED_IDLE_SECONDS = 600.0  # when there are MAX_QUEUES
CHECK_SECONDS = 1.0  # between two checks that the registry still has the instruments


_Labels = tuple[str, ...]


class Count:
    """One child of a counter or a gauge."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._lock = threading.RLock()
        self.value = 0

    def inc(self) -> None:
        with self._lock:
            self.value += 1

    def set(self, value: int) -> None:
        self.value = value


class Instruments(Collector):
    """All metrics of one registry: one collector, or, in multiprocess mode, metrics kept in files."""

    def __init__(
        self,
        registry: CollectorRegistry,
        wait_buckets: Sequence[float],
        clock: Callable[[], float],
    ) -> None:
        self.clock = clock
        path = multiprocess.directory()
        self.in_files = path is not None
        self._registry = registry
        self._families: list[Family] = []  # unless they are in files
        self._next_check = 0.0
        queue, ended = ("queue",), ("queue", "outcome")
        self.wait = self._histogram(
            names.WAIT_SECONDS, "Seconds waited in the line, once an item.", ended, wait_buckets
        )
        self.hold = self._histogram(
            names.HOLD_SECONDS, "Seconds for which a slot was held.", ended, wait_buckets
        )
        self.position = self._histogram(
            names.POSITION, "Position on entering; 0 if granted at once.", queue, POSITION_BUCKETS
        )
        self.operation = self._histogram(
            names.OPERATION_SECONDS,
            "Seconds that an operation on the backend took.",
            ("backend", "operation", "outcome"),
            OPERATION_BUCKETS,
        )
        self.waiting = self._gauge(names.WAITING, "Calls of this process that wait.", queue)
        self.holding = self._gauge(names.HOLDING, "Calls of this process that hold a slot.", queue)
        self.build_info = self._gauge(
            names.BUILD_INFO, "1, with the version and the backend.", ("version", "backend"), "livemax"
        )
        self.reclaimed = self._counter(
            names.RECLAIMED, "Waiters and slots taken back from dead instances.", ("queue", "state")
        )
        self.refused = self._counter(
            names.REFUSED, "Calls that were turned away without waiting.", ("queue", "reason")
        )
        self.disagreements = self._counter(
            names.LIMIT_DISAGREEMENTS, "Times a call site named another limit.", queue
        )
        self.disruptions = self._counter(
            names.DISRUPTIONS, "Times the backend was lost, or its data.", ("backend", "reason")
        )
        self.telemetry_errors = self._counter(
            names.TELEMETRY_ERRORS, "Failures of a sink; no call was affected.", ("sink",)
        )
        publish = None if path is None else multiprocess.SharedFiles(path).publish
        self.up = BackendUp(publish)
        self.shared = SharedGauges(clock, self.busy, publish)
        self.known: dict[str, QueueSeries] = {}  # by label
        self._changing = threading.RLock()  # held to change `known` and its children
        self._process = 0
        self._clear_left_gauges()
        self._empty = list(self.collect())  # what is described
        for sink in get_args(names.Sink):
            self.telemetry_errors.labels(sink)
        _of_this_process.add(self)

    def describe(self) -> Iterable[Any]:
        return self._empty

    def collect(self) -> Iterator[Any]:
        self.remove_idle()
        for series in list(self.known.values()):
            self.waiting.labels(series.label).set(series.waiting)
            self.holding.labels(series.label).set(series.holding)
        for each in self._collectors():
            yield from each.collect()

    def ensure_registered(self) -> None:
        """Register again if the application has cleared the registry."""
        now = self.clock()
        if not self.in_files and now >= self._next_check:
            self._next_check = now + CHECK_SECONDS
            with suppress(ValueError):  # still registered
                self._registry.register(self)

    def reset(self) -> None:
        """Reset in a forked child: it has no calls, and the owners of locks do not exist there."""
        # A scraping thread of the parent might have held the registry's lock.
        self._registry._lock = threading.Lock()
        self._changing = threading.RLock()
        for each in (*self._collectors(), *self.known.values()):
            each.reset()
        if not self.in_files:
            for labels in list(self.build_info._children):
                self.build_info.labels(*labels).set(1)

    def series(self, label: str) -> QueueSeries:
        """The series of a queue; beyond `MAX_QUEUES`, the series that all further queues share."""
        with self._changing:
            if label not in self.known and len(self.known) >= MAX_QUEUES:
                label = names.OTHER_QUEUES
            if label not in self.known:
                self._clear_left_gauges()
                self.known[label] = QueueSeries(self, label)
            return self.known[label]

    def _clear_left_gauges(self) -> None:
        """Set to 0 what a killed process with this pid counted in its file. Repeated after a fork."""
        if not self.in_files or self._process == os.getpid():
            return
        self._process = os.getpid()
        gauges = {names.WAITING: self.waiting, names.HOLDING: self.holding}
        for name, labels in multiprocess.left_gauges():
            if name in gauges and not self.busy(labels["queue"]):
                gauges[name].labels(**labels).set(0)

    def flush(self) -> None:
        """Sort the noted values of all queues: it might be long until the next scrape."""
        if self.in_files:
            return
        self.ensure_registered()
        for family in self._families:
            family.flush()

    def busy(self, label: str) -> bool:
        """Whether this process has a call under this label."""
        series = self.known.get(label)
        return series is not None and bool(series.calls)

    def remove_idle(self) -> None:
        """Remove queues that have had no call of this process for a long time."""
        now = self.clock()
        # A scrape runs in its own thread. Without the lock, a call that enters between two steps of a
        # removal would use children that the next step removes from the exposition.
        with self._changing:
            patience = IDLE_SECONDS if len(self.known) < MAX_QUEUES else CROWDED_IDLE_SECONDS
            for label, series in list(self.known.items()):
                if self.busy(label):
                    series.idle_since = None
                elif series.idle_since is None:
                    series.idle_since = now
                elif now - series.idle_since >= patience:
                    self.known.pop(label, None)
                    for family in self._families:
                        family.remove_queue(label)

    def _collectors(self) -> tuple[Any, ...]:
        return (*self._families, self.up, self.shared)

    def _histogram(self, name: str, text: str, labels: _Labels, buckets: Sequence[float]) -> Any:
        if self.in_files:
            return Histogram(name, text, labels, registry=self._registry, buckets=buckets)
        return self._added(FastHistogram(name, text, labels, buckets))

    def _gauge(self, name: str, text: str, labels: _Labels, mode: Any = "livesum") -> Any:
        if self.in_files:
            return Gauge(name, text, labels, registry=self._registry, multiprocess_mode=mode)
        return self._added(Family(GaugeMetricFamily, name, text, labels, Count))

    def _counter(self, name: str, text: str, labels: _Labels) -> Any:
        if self.in_files:
            return Counter(name, text, labels, registry=self._registry)
        return self._added(Family(CounterMetricFamily, name, text, labels, Count))

    def _added(self, family: Family) -> Family:
        self._families.append(family)
        return family


_of_this_process: weakref.WeakSet[Instruments] = weakref.WeakSet()
_making = threading.RLock()  # of two threads, one makes the instruments of a registry


def _after_fork() -> None:
    global _making
    _making = threading.RLock()
    for instruments in list(_of_this_process):
        instruments.reset()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def instruments_of(
    registry: CollectorRegistry, wait_buckets: Sequence[float], clock: Callable[[], float]
) -> Instruments:
    """The instruments of a registry, in multiprocess mode of the process, stored on a registry.

    They are not stored in this module, because a registry outlives a reload of the module, and
    registering a name twice raises.
    """
    # In multiprocess mode two metrics of one name would overwrite each other's values in the file.
    owner = registry if multiprocess.directory() is None else REGISTRY
    with _making:
        kept: Instruments | None = getattr(owner, "_genesis_instruments", None)
        if kept is None:
            kept = vars(owner)["_genesis_instruments"] = Instruments(registry, wait_buckets, clock)
            if not kept.in_files:
                # If this raises, it is tried again by `ensure_registered`, but not at each step.
                registry.register(kept)
            return kept
    kept.ensure_registered()
    return kept
