"""Metrics with prometheus_client, so that exemplars survive.

Children are looked up once a queue and kept (`QueueSeries`), because `labels()` costs as much as the
observation. Series of a queue that has been idle for `IDLE_SECONDS` are removed at a scrape, not when
the queue becomes idle: between two calls of a quiet queue its histograms must still be there.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.registry import Collector

from genesis.backends.protocol import QueueStats
from genesis.observability import names

__all__ = ["WAIT_BUCKETS", "Instruments", "QueueSeries", "instruments_of"]

WAIT_BUCKETS = (
    0.0,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    20.0,
    30.0,
    60.0,
    120.0,
    300.0,
    600.0,
    1800.0,
    3600.0,
)
OPERATION_BUCKETS = (
    0.00001,
    0.0001,
    0.00025,
    0.0005,
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
)
POSITION_BUCKETS = (0, 1, 2, 3, 5, 10, 20, 50, 100, 200, 500, 1000, 10000)
MOST_QUEUES = 100
IDLE_SECONDS = 600.0
STALE_HEARTBEATS = 3

MOST_REPORTS = 10_000

_SHARED = (
    (names.DEPTH, "Waiters in the queue, over all instances."),
    (names.IN_USE, "Slots in use in the queue, over all instances."),
    (names.LIMIT, "The limit in force."),
    (names.OLDEST_WAIT, "Seconds for which the head of the line has waited."),
)


class QueueSeries:
    """The children of one `queue` label."""

    __slots__ = (
        "_hold",
        "_instruments",
        "_wait",
        "holding",
        "idle_since",
        "label",
        "position",
        "users",
        "waiting",
    )

    def __init__(self, instruments: Instruments, label: str) -> None:
        self.label = label
        self.position: Any = instruments.position.labels(label)
        self.waiting: Any = instruments.waiting.labels(label)
        self.holding: Any = instruments.holding.labels(label)
        self.users = 0  # calls of this process in the queue
        self.idle_since = 0.0  # meaningful while there are no users
        self._instruments = instruments
        self._wait: dict[str, Any] = {}
        self._hold: dict[str, Any] = {}

    def wait(self, outcome: str) -> Any:
        child = self._wait.get(outcome)
        if child is None:
            child = self._wait[outcome] = self._instruments.wait.labels(self.label, outcome)
        return child

    def hold(self, outcome: str) -> Any:
        child = self._hold.get(outcome)
        if child is None:
            child = self._hold[outcome] = self._instruments.hold.labels(self.label, outcome)
        return child

    def leave(self) -> None:
        self.users -= 1
        if not self.users:
            self.idle_since = self._instruments.clock()


class SharedGauges(Collector):
    """Gauges of shared state, as the backends reported it; gone, rather than stale.

    Queues that share a label (`_other`, or an application's own `queue_label`) are added up, and the
    oldest of their waits is shown.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._reports: dict[tuple[str, str], tuple[str, QueueStats, float]] = {}
        self.before_scrape: Callable[[], None] = lambda: None

    def report(
        self, queue_id: str, backend: str, label: str, stats: QueueStats, lifetime: float
    ) -> None:
        """Show `stats` for `lifetime` seconds, unless a newer report comes."""
        if len(self._reports) >= MOST_REPORTS:
            self._drop_stale()
        self._reports[queue_id, backend] = (label, stats, self._clock() + lifetime)

    def describe(self) -> Iterable[Any]:
        return [GaugeMetricFamily(name, text) for name, text in _SHARED]

    def collect(self) -> Iterable[Any]:
        self.before_scrape()
        self._drop_stale()
        totals: dict[tuple[str, str], tuple[float, float, float, float]] = {}
        for (_, backend), (label, stats, _) in list(self._reports.items()):
            waiting, in_use, limit, oldest = totals.get((label, backend), (0, 0, 0, 0.0))
            totals[label, backend] = (
                waiting + stats.waiting,
                in_use + stats.in_use,
                limit + stats.limit,
                max(oldest, stats.oldest_wait),
            )
        for place, (name, text) in enumerate(_SHARED):
            family = GaugeMetricFamily(name, text, labels=("queue", "backend"))
            for labels, values in totals.items():
                family.add_metric(labels, values[place])
            yield family

    def _drop_stale(self) -> None:
        now = self._clock()
        self._reports = {k: v for k, v in self._reports.items() if v[2] >= now}


class Instruments:
    """All metrics of one registry."""

    def __init__(
        self,
        registry: CollectorRegistry,
        wait_buckets: Sequence[float],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.clock = clock
        self.wait_buckets = tuple(wait_buckets)
        queue = ("queue",)
        ended = ("queue", "outcome")
        buckets = self.wait_buckets
        self.wait = Histogram(
            names.WAIT_SECONDS,
            "Seconds from entering the line to the end of the wait, once an item.",
            ended,
            registry=registry,
            buckets=buckets,
        )
        self.hold = Histogram(
            names.HOLD_SECONDS,
            "Seconds for which a slot was held.",
            ended,
            registry=registry,
            buckets=buckets,
        )
        self.position = Histogram(
            names.POSITION,
            "Place in the line on entering; 0 when granted at once.",
            queue,
            registry=registry,
            buckets=POSITION_BUCKETS,
        )
        self.waiting = Gauge(
            names.WAITING,
            "Calls of this process that wait.",
            queue,
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.holding = Gauge(
            names.HOLDING,
            "Calls of this process that hold a slot.",
            queue,
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.reclaimed = Counter(
            names.RECLAIMED,
            "Waiters and slots taken back from dead instances, by this process.",
            ("queue", "state"),
            registry=registry,
        )
        self.disagreements = Counter(
            names.LIMIT_DISAGREEMENTS,
            "Times a call site named another limit than the one in force.",
            queue,
            registry=registry,
        )
        self.operation = Histogram(
            names.OPERATION_SECONDS,
            "Seconds that an operation on the backend took.",
            ("backend", "operation", "outcome"),
            registry=registry,
            buckets=OPERATION_BUCKETS,
        )
        self.disruptions = Counter(
            names.DISRUPTIONS,
            "Times the backend could not be reached, or had lost its data.",
            ("backend", "reason"),
            registry=registry,
        )
        self.telemetry_errors = Counter(
            names.TELEMETRY_ERRORS,
            "Failures of a telemetry sink; no call was affected.",
            ("sink",),
            registry=registry,
        )
        self.build_info = Gauge(
            names.BUILD_INFO,
            "1, with the version and the backend in use.",
            ("version", "backend"),
            registry=registry,
            multiprocess_mode="livemax",
        )
        self.shared = SharedGauges(clock)
        self.shared.before_scrape = self.remove_idle
        registry.register(self.shared)
        self._series: dict[str, QueueSeries] = {}
        self._operations: dict[tuple[str, str, str], Any] = {}

    def join(self, label: str) -> QueueSeries:
        """The series of a queue, or, once there are `MOST_QUEUES`, those of all others together.

        Whoever joins says `leave` when it is done with them.
        """
        series = self._series.get(label)
        if series is None:
            if len(self._series) >= MOST_QUEUES:
                label = names.OTHER_QUEUES
            series = self._series.get(label)
            if series is None:
                series = self._series[label] = QueueSeries(self, label)
        series.users += 1
        return series

    def operation_child(self, backend: str, operation: str, outcome: str) -> Any:
        key = (backend, operation, outcome)
        child = self._operations.get(key)
        if child is None:
            child = self._operations[key] = self.operation.labels(*key)
        return child

    def remove_idle(self) -> None:
        """Forget queues without a call of this process for `IDLE_SECONDS`."""
        if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
            return  # files of other processes: nothing can be removed from them
        now = self.clock()
        for label, series in list(self._series.items()):
            if not series.users and now - series.idle_since >= IDLE_SECONDS:
                del self._series[label]
                self._remove_series(label)

    def _remove_series(self, label: str) -> None:
        metrics: tuple[MetricWrapperBase, ...] = (
            self.wait,
            self.hold,
            self.position,
            self.waiting,
            self.holding,
            self.reclaimed,
            self.disagreements,
        )
        for metric in metrics:
            metric.remove_by_labels({"queue": label})


def instruments_of(
    registry: CollectorRegistry, wait_buckets: Sequence[float], clock: Callable[[], float]
) -> Instruments:
    """The instruments of a registry; made once, kept on the registry itself.

    Kept there, and not in a table of this module, because a registry outlives a reload of the module,
    and registering a name twice raises.
    """
    kept: Instruments | None = getattr(registry, "_genesis_instruments", None)
    if kept is None:
        kept = Instruments(registry, wait_buckets, clock)
        registry._genesis_instruments = kept  # type: ignore[attr-defined]
    return kept
