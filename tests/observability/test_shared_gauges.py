"""Shared gauges, labels and registries, where threads and many queues meet."""

from __future__ import annotations

import sys
import threading
import time
from enum import Enum
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest

from genesis import Queue
from genesis.backends.protocol import (
    QueueStats,
)
from genesis.observability import Telemetry, names
from genesis.observability.shared import SharedGauges


def value(registry: CollectorRegistry, name: str, **labels: str) -> float | None:
    return registry.get_sample_value(name, labels)


def shown(gauges: SharedGauges) -> dict[str, float]:
    return {s.name: s.value for family in gauges.collect() for s in family.samples}


def test_stores_that_share_a_label_are_added_up_and_one_store_counts_once() -> None:
    """Counts are summed over distinct stores; of ages and expected waits the maximum is shown."""
    gauges = SharedGauges(lambda: 0.0, lambda _: True)
    for store, waiting in (("a", 5), ("b", 0), ("a", 6)):
        stats = QueueStats(waiting, 1, 1, 2.0 * waiting, 3.0, 10.0)
        gauges.report("jobs", "redis", "jobs", stats, 5.0, store)
    assert shown(gauges) == {
        names.DEPTH: 6,
        names.IN_USE: 2,
        names.LIMIT: 2,
        names.OLDEST_WAIT: 12.0,
        names.OLDEST_HOLD: 3.0,
        names.EXPECTED_WAIT: 70.0,
    }


def test_many_queues_are_reported_without_a_sweep() -> None:
    """A report of one of 20,000 queues costs what it costs among few, and so does a scrape."""
    now = 0.0
    gauges = SharedGauges(lambda: now, lambda _: True)

    def beat() -> float:
        began = time.process_time()
        for number in range(20_000):
            stats = QueueStats(1, 1, 1, float(number))
            gauges.report(f"q{number}", "redis", names.OTHER_QUEUES, stats, 5.0, "store")
        return time.process_time() - began

    longest = 0.0
    for _ in range(3):
        longest = max(longest, beat())
        now += 5.0
    assert longest / 20_000 < 50e-6
    began = time.process_time()
    found = shown(gauges)
    assert time.process_time() - began < 0.01
    assert (found[names.DEPTH], found[names.OLDEST_WAIT]) == (20_000, 19_999.0)
    now += 60.1
    assert shown(gauges) == {}


class Line(str, Enum):
    SALES = "sales"


def test_labels_are_short_and_plain(registry: CollectorRegistry) -> None:
    """At most 120 characters, different for different ids; an Enum counts as its text."""
    telemetry = Telemetry(registry)
    long = [telemetry.series("x" * 16_384 + end).label for end in "ab"]
    assert len(set(long)) == 2
    assert {len(label) for label in long} == {120}
    assert telemetry.series(Line.SALES) is telemetry.series("sales")
    assert 'queue="sales"' in generate_latest(registry).decode()


async def test_a_registry_that_was_emptied_shows_metrics_again(registry: CollectorRegistry) -> None:
    """As test suites do between tests; for the next Queue at once, for an old one soon."""
    async with Queue(telemetry=Telemetry(registry)) as queue, queue.slot("sales"):
        pass
    for collector in list(registry._collector_to_names):
        registry.unregister(collector)
    async with Queue(telemetry=Telemetry(registry)) as queue:
        registry._genesis_instruments._next_check = 0.0  # type: ignore[attr-defined]
        Telemetry(registry).instruments  # noqa: B018
        async with queue.slot("sales"):
            pass
    assert value(registry, f"{names.WAIT_SECONDS}_count", queue="sales", outcome="granted") == 2


def test_threads_that_meet_in_labels_get_one_child() -> None:
    """Of two children one would never be seen."""
    from genesis.observability.histogram import FastHistogram

    histogram = FastHistogram("x", "Text.", ("queue",), (1.0,))
    found: list[Any] = []
    barrier = threading.Barrier(8)

    def look(label: str) -> None:
        barrier.wait()
        found.append(histogram.labels(label))

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for number in range(50):
            found.clear()
            threads = [threading.Thread(target=look, args=[str(number)]) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert len({id(child) for child in found}) == 1
    finally:
        sys.setswitchinterval(interval)
