"""The exposition: bounded, finite, fresh, and removed in time."""

from __future__ import annotations

import asyncio
import re
import sys
import threading
from pathlib import Path
from typing import Any, get_args

import pytest
from prometheus_client import CollectorRegistry

from genesis import EvictedError, Queue
from genesis.backends.protocol import QueueStats, State
from genesis.backends.redis import errors
from genesis.observability import Telemetry, names
from genesis.observability.metrics import (
    CROWDED_IDLE_SECONDS,
    IDLE_SECONDS,
    MAX_QUEUES,
    WAIT_BUCKETS,
)
from genesis.observability.shared import SharedGauges
from genesis.queue import InMemoryBackend
from tests.observability.conftest import Clock, series
from tests.support.waiting import wait_until

MAX_SERIES = 15_000


async def test_ten_thousand_items_in_five_hundred_queues_leave_the_series_bounded(
    registry: CollectorRegistry,
) -> None:
    """Neither many item_ids nor many queue_ids make many series: 100 labels, then `_other`."""
    async with Queue(telemetry=Telemetry(registry)) as queue:
        for number in range(10_000):
            async with queue.slot(f"queue-{number % 500}", item_id=f"item-{number}"):
                pass
        exposed = series(registry)
        labels = {line.split('queue="')[1].split('"')[0] for line in exposed if 'queue="' in line}
    assert len(labels) == MAX_QUEUES + 1
    assert names.OTHER_QUEUES in labels
    assert not [line for line in exposed if "item-" in line]
    print(f"{len(exposed)} series")
    assert len(exposed) < MAX_SERIES
    count = f'{names.WAIT_SECONDS}_count{{outcome="granted",queue="{names.OTHER_QUEUES}"}}'
    assert [float(line.split()[-1]) for line in exposed if line.startswith(count)] == [8_000.0]


async def test_an_idle_queue_s_series_are_removed_in_time(registry: CollectorRegistry) -> None:
    """They outlast the call, for later scrapes, and are removed after a long idle time."""
    clock = Clock()
    async with Queue(telemetry=Telemetry(registry, clock=clock)) as queue:
        async with queue.slot("sales"):
            pass
        assert any('queue="sales"' in line for line in series(registry))
        clock.now += IDLE_SECONDS / 2
        assert any('queue="sales"' in line for line in series(registry))
        clock.now += IDLE_SECONDS
        series(registry)  # the scrape that finds it idle
        assert not any('queue="sales"' in line for line in series(registry))


async def test_a_call_that_comes_back_while_its_series_are_removed_is_shown(
    registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scrape that removes them runs in another thread: none of the new ones goes with the old."""
    clock = Clock()
    telemetry = Telemetry(registry, clock=clock)
    async with Queue(telemetry=telemetry) as queue:
        async with queue.slot("sales"):
            pass
        series(registry)  # finds it idle
        clock.now += IDLE_SECONDS
        back = threading.Thread(target=telemetry.series, args=["sales"])
        hold = telemetry.instruments.hold
        remove = hold.remove_queue

        def remove_slowly(label: str) -> None:
            back.start()
            back.join(0.1)
            remove(label)

        monkeypatch.setattr(hold, "remove_queue", remove_slowly)
        series(registry)
        back.join()
        async with queue.slot("sales"):
            assert registry.get_sample_value(names.HOLDING, {"queue": "sales"}) == 1
        count = f"{names.HOLD_SECONDS}_count"
        assert registry.get_sample_value(count, {"queue": "sales", "outcome": "released"}) == 1


async def test_two_scrapes_at_once_remove_what_is_idle_once(
    registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As two Prometheus servers do; neither of them gets an error for its answer."""
    clock = Clock()
    telemetry = Telemetry(registry, clock=clock)
    async with Queue(telemetry=telemetry) as queue, queue.slot("sales"):
        pass
    series(registry)  # finds it idle
    clock.now += IDLE_SECONDS
    instruments = telemetry.instruments
    busy = instruments.busy

    def another_scrape_meanwhile(_: str) -> bool:
        monkeypatch.setattr(instruments, "busy", busy)
        instruments.remove_idle()
        return False

    monkeypatch.setattr(instruments, "busy", another_scrape_meanwhile)
    series(registry)
    assert not any('queue="sales"' in line for line in series(registry))


async def test_idle_queues_make_room_when_there_are_too_many(registry: CollectorRegistry) -> None:
    """With all places taken, ten idle minutes cost a queue its series, and newcomers get the places."""
    clock = Clock()
    async with Queue(telemetry=Telemetry(registry, clock=clock)) as queue:
        for number in range(MAX_QUEUES):
            async with queue.slot(f"queue-{number}"):
                pass
        series(registry)  # finds all of them idle
        clock.now += CROWDED_IDLE_SECONDS
        series(registry)
        async with queue.slot("newcomer"):
            pass
        assert {line.split('queue="')[1][:9] for line in series(registry) if 'queue="' in line} == {
            'newcomer"'
        }


async def test_what_may_happen_to_a_queue_is_exposed_at_0_before_it_happens(
    registry: CollectorRegistry,
) -> None:
    """`increase` ignores the value with which a series appears, so every series starts at 0."""
    async with Queue(telemetry=Telemetry(registry)) as queue, queue.slot("sales"):

        def value(name: str, **labels: str) -> float | None:
            return registry.get_sample_value(name, labels)

        for outcome in get_args(names.WaitOutcome):
            count = value(f"{names.WAIT_SECONDS}_count", queue="sales", outcome=outcome)
            assert count == (1 if outcome == "granted" else 0), outcome
        for outcome in get_args(names.HoldOutcome):
            assert value(f"{names.HOLD_SECONDS}_count", queue="sales", outcome=outcome) == 0
        for state in get_args(State):
            assert value(names.RECLAIMED, queue="sales", state=state) == 0
        assert value(names.LIMIT_DISAGREEMENTS, queue="sales") == 0
        for sink in get_args(names.Sink):
            assert value(names.TELEMETRY_ERRORS, sink=sink) == 0
        for reason in get_args(names.DisruptionReason):
            assert value(names.DISRUPTIONS, backend="memory", reason=reason) == 0
        failed = {"backend": "memory", "operation": "enter", "outcome": "unavailable"}
        assert value(f"{names.OPERATION_SECONDS}_count", **failed) == 0
        # With +Inf alone, the first would be the increase of no other bucket, and last an hour.
        assert value(f"{names.OPERATION_SECONDS}_bucket", **failed, le="5.0") == 0


async def test_an_outcome_that_never_came_costs_no_buckets(registry: CollectorRegistry) -> None:
    """Its count is there at 0; the buckets come with the first observation, complete."""
    async with Queue(telemetry=Telemetry(registry)) as queue:

        def buckets() -> list[str]:
            start = f"{names.WAIT_SECONDS}_bucket"
            return [line for line in series(registry) if line.startswith(start) and "evicted" in line]

        async def call() -> None:
            async with queue.slot("sales", item_id="waiter"):
                pass

        async with queue.slot("sales"):
            assert len(buckets()) == 1  # +Inf, which a histogram must have
            waiter = asyncio.create_task(call())
            await wait_until(lambda: queue.evict("sales", "waiter"), "the waiter is in the line")
            with pytest.raises(EvictedError):
                await waiter
        assert len(buckets()) == len(WAIT_BUCKETS) + 1


def test_every_reason_that_redis_can_be_lost_for_has_a_name() -> None:
    """The backend's reasons for disruptions are those of the counter, the rules and the panels."""
    told = {reason for reason, *_ in errors._REASONS} | {errors.reason_of(Exception())}
    for path in Path(errors.__file__).parent.glob("*.py"):
        told |= set(re.findall(r'Disrupted\("(\w+)"', path.read_text()))
    assert told == set(get_args(names.DisruptionReason))


async def test_a_held_queue_is_never_idle(registry: CollectorRegistry) -> None:
    """However long a call lasts, its gauge stays, and its end is counted where its beginning was."""
    clock = Clock()
    async with Queue(telemetry=Telemetry(registry, clock=clock)) as queue:
        async with queue.slot("sales"):
            series(registry)
            clock.now += 10 * IDLE_SECONDS
            series(registry)
            assert registry.get_sample_value(names.HOLDING, {"queue": "sales"}) == 1
        assert registry.get_sample_value(names.HOLDING, {"queue": "sales"}) == 0


def test_a_stale_shared_gauge_is_gone() -> None:
    """A snapshot is shown for exactly three heartbeats; its limit for a minute."""
    clock = Clock()
    gauges = SharedGauges(clock, lambda label: label == "sales")
    gauges.report("sales", "redis", "sales", QueueStats(3, 1, 2, 4.5, 6.5), heartbeat=5)

    def shown() -> dict[str, Any]:
        return {s.name: s.value for family in gauges.collect() for s in family.samples}

    counts = {names.DEPTH: 3, names.IN_USE: 1, names.LIMIT: 2}
    assert shown() == {**counts, names.OLDEST_WAIT: 4.5, names.OLDEST_HOLD: 6.5}
    clock.now += 15
    assert shown()[names.DEPTH] == 3
    clock.now += 0.1
    assert shown() == {names.LIMIT: 2}
    clock.now += 45
    assert shown() == {}


async def test_a_queue_that_was_left_is_not_shown_as_in_use(registry: CollectorRegistry) -> None:
    """With its last call gone no snapshot follows, and within a heartbeat the shared gauges agree."""
    clock = Clock()
    backend = InMemoryBackend()
    async with Queue(backend, telemetry=Telemetry(registry, clock=clock)) as queue:

        def in_use() -> float | None:
            return registry.get_sample_value(names.IN_USE, {"queue": "sales", "backend": "memory"})

        async with queue.slot("sales"):
            backend._report()
            clock.now += 2 * backend.heartbeat_interval
            assert in_use() == 1  # a heartbeat that is late is no reason
        backend._report()
        assert in_use() is None


def test_two_queues_on_one_registry_share_their_instruments(registry: CollectorRegistry) -> None:
    """A second Queue, and a second Telemetry, never raise "Duplicated timeseries"."""
    Queue(telemetry=Telemetry(registry))
    Queue(telemetry=Telemetry(registry))
    assert registry.get_sample_value(names.BUILD_INFO, {"version": "x", "backend": "memory"}) is None
    assert any(line.startswith(names.BUILD_INFO) for line in series(registry))


def test_threads_that_make_the_metrics_of_one_registry_at_once_fail_at_nothing() -> None:
    """The second one registered them again. That error was counted, and its backend not exposed."""
    interval, failures = sys.getswitchinterval(), 0.0
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(40):
            registry, start = CollectorRegistry(), threading.Barrier(4)

            def make(registry: CollectorRegistry = registry, start: Any = start) -> None:
                start.wait()
                Queue(telemetry=Telemetry(registry))

            threads = [threading.Thread(target=make) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            failures += registry.get_sample_value(names.TELEMETRY_ERRORS, {"sink": "metrics"}) or 0.0
    finally:
        sys.setswitchinterval(interval)
    assert failures == 0
