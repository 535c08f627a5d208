"""The exposition: bounded, finite, fresh, and correct in multiprocess mode too."""

from __future__ import annotations

import asyncio
import math
import os
import re
import subprocess
import sys
import threading
from decimal import Decimal
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics

from genesis import EvictedError, Queue
from genesis.backends.protocol import EnterRequest, EnterResult, QueueStats, State
from genesis.backends.redis import errors
from genesis.observability import Telemetry, names
from genesis.observability.histogram import MAX_UNFLUSHED, Distribution, FastHistogram
from genesis.observability.metrics import (
    CROWDED_IDLE_SECONDS,
    IDLE_SECONDS,
    MAX_QUEUES,
    WAIT_BUCKETS,
)
from genesis.observability.shared import SharedGauges
from genesis.queue import InMemoryBackend
from tests.support.waiting import quiesce, wait_until

MAX_SERIES = 15_000


class Clock:
    """A clock that advances only on request."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def series(registry: CollectorRegistry) -> list[str]:
    return [line for line in generate_latest(registry).decode().splitlines() if line[0] != "#"]


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


async def test_a_wait_of_45_minutes_lands_in_a_finite_bucket(registry: CollectorRegistry) -> None:
    """The buckets reach an hour: 2,700 s are above 1,800 and not above 3,600."""
    clock = Clock()
    backend = InMemoryBackend(clock=clock)
    async with Queue(backend, telemetry=Telemetry(registry, clock=clock)) as queue:

        async def call() -> float:
            async with queue.slot("sales") as slot:
                return slot.waited

        async with queue.slot("sales"):
            waiter = asyncio.create_task(call())
            await quiesce()
            clock.now += 2_700
            assert (await queue.stats("sales")).oldest_wait == 2_700
        assert await waiter == 2_700

    def at_most(bound: str) -> float | None:
        labels = {"queue": "sales", "outcome": "granted", "le": bound}
        return registry.get_sample_value(f"{names.WAIT_SECONDS}_bucket", labels)

    assert (at_most("0.0"), at_most("1800.0"), at_most("3600.0")) == (1, 1, 2)


async def test_an_infinite_bucket_is_exposed_once(registry: CollectorRegistry) -> None:
    """prometheus_client's own default buckets end with infinity; Prometheus wants each bound once."""
    async with Queue(telemetry=Telemetry(registry, wait_buckets=Histogram.DEFAULT_BUCKETS)) as queue:
        async with queue.slot("sales"):
            pass
        labels = 'outcome="granted",queue="sales"'
        start = f'{names.WAIT_SECONDS}_bucket{{le="+Inf",{labels}}}'
        assert [line for line in series(registry) if line.startswith(start)] == [f"{start} 1.0"]


SECONDS = st.one_of(st.sampled_from(WAIT_BUCKETS), st.floats(0, 7_200))  # on the bounds, too


@given(st.lists(st.one_of(SECONDS, st.none()), max_size=600))
def test_observations_fall_where_prometheus_client_puts_them(observed: list[float | None]) -> None:
    """Its own Histogram shows the same, however often it is read in between (None)."""
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    histogram = FastHistogram("seconds", "Text.", (), WAIT_BUCKETS)
    ours.register(histogram)
    reference = Histogram("seconds", "Text.", registry=theirs, buckets=WAIT_BUCKETS)
    child = histogram.labels()
    for value in observed:
        if value is None:
            child.read()
        else:
            child.observe(value)
            reference.observe(value)
    expected = {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in series(theirs)}
    shown = {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in series(ours)}
    del expected["seconds_created"]
    assert shown == pytest.approx(expected)


@pytest.mark.parametrize("wrong", [None, math.nan, "3"])
def test_an_observation_that_is_no_number_is_lost_alone(wrong: Any) -> None:
    """A user's backend might return anything; 300 values exceed the unsorted list."""
    child = Distribution((1.0, 2.0), all_buckets=True)
    for number in range(300):
        child.observe(wrong if number == 100 else 1.5)
    counts, total, _ = child.read()
    assert (counts, total) == ([0, 299, 0], 299 * 1.5)


async def test_observations_do_not_pile_up_until_somebody_scrapes(registry: CollectorRegistry) -> None:
    """Without any scrape, the list of unsorted values is still bounded."""
    telemetry = Telemetry(registry)
    async with Queue(telemetry=telemetry) as queue:
        for _ in range(2_000):
            async with queue.slot("sales"):
                pass
        instruments = telemetry.instruments
        histograms = (instruments.wait, instruments.hold, instruments.position, instruments.operation)
        children = [child for histogram in histograms for child in histogram._children.values()]
        assert max(len(child._unsorted) for child in children) <= MAX_UNFLUSHED
        assert sum(sum(child.read()[0]) for child in children) == 5 * 2_000


async def test_observations_do_not_pile_up_while_a_long_line_drains(
    registry: CollectorRegistry,
) -> None:
    """Thousands can enter before one leaves, and leave before one enters: all values are sorted."""
    telemetry = Telemetry(registry)
    async with Queue(telemetry=telemetry) as queue:

        async def call() -> None:
            async with queue.slot("sales"):
                pass

        first = queue.slot("sales")
        await first.__aenter__()
        calls = [asyncio.create_task(call()) for _ in range(2_000)]
        await quiesce()
        instruments = telemetry.instruments
        histograms = (instruments.wait, instruments.hold, instruments.position, instruments.operation)
        children = [child for histogram in histograms for child in histogram._children.values()]
        assert max(len(child._unsorted) for child in children) <= MAX_UNFLUSHED
        await first.__aexit__(None, None, None)
        await asyncio.gather(*calls)
        children = [child for histogram in histograms for child in histogram._children.values()]
        assert max(len(child._unsorted) for child in children) <= MAX_UNFLUSHED


class Decimals(InMemoryBackend):
    """As one over a store whose numbers are Decimals."""

    async def enter(self, entry: EnterRequest) -> EnterResult:
        admission = await super().enter(entry)
        return admission._replace(position=Decimal(admission.position))  # type: ignore[arg-type]


async def test_a_number_of_another_kind_costs_no_observation(registry: CollectorRegistry) -> None:
    telemetry = Telemetry(registry)
    async with Queue(Decimals(), telemetry=telemetry) as queue:
        for _ in range(1_000):
            async with queue.slot("sales"):
                pass
    assert (telemetry.series("sales").waiting, telemetry.series("sales").holding) == (0, 0)
    assert sum(telemetry.instruments.wait.labels("sales", "granted").read()[0]) == 1_000
    assert sum(telemetry.instruments.position.labels("sales").read()[0]) == 1_000


def test_observing_within_a_reading_waits_for_nothing() -> None:
    """The garbage collector might close a call, which is observed, while the same thread reads."""
    child = Distribution((1.0,), all_buckets=True)
    with child._lock:
        for number in range(600):
            child.observe(0.5, {"trace_id": str(number)})
    counts, _, exemplars = child.read()
    assert counts == [600, 0]
    assert (exemplars[0].labels, exemplars[0].value) == ({"trace_id": "599"}, 0.5)


def test_threads_that_observe_and_read_at_once_lose_nothing() -> None:
    """Four event loops feed one child, while scrapes read it."""
    child = Distribution(WAIT_BUCKETS, all_buckets=True)
    done = threading.Event()

    def observe() -> None:
        for number in range(20_000):
            child.observe(float(number % 7))

    def read() -> None:
        while not done.is_set():
            child.read()

    feeders = [threading.Thread(target=observe) for _ in range(4)]
    readers = [threading.Thread(target=read) for _ in range(2)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for thread in (*feeders, *readers):
            thread.start()
        for thread in feeders:
            thread.join()
    finally:
        done.set()
        sys.setswitchinterval(interval)
    counts, total, _ = child.read()
    assert (sum(counts), total) == (80_000, 4 * sum(number % 7 for number in range(20_000)))


@pytest.mark.parametrize("wrong", [(), (math.inf,), (1, 5, 2), (1, 1), (1, math.nan)])
def test_buckets_that_do_not_rise_are_refused(wrong: tuple[float, ...]) -> None:
    """At once: a histogram over them would count waits where they do not belong."""
    with pytest.raises(ValueError, match="wait_buckets"):
        Telemetry(CollectorRegistry(), wait_buckets=wrong)


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
        remove = hold.remove_by_labels

        def remove_slowly(labels: dict[str, str]) -> None:
            back.start()
            back.join(0.1)
            remove(labels)

        monkeypatch.setattr(hold, "remove_by_labels", remove_slowly)
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
    told = {reason for _, reason in errors._REASONS} | {errors.reason_of(Exception())}
    told |= set(errors._REASONS_OF_REPLIES.values())
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


async def test_exemplars_are_served_in_openmetrics(
    registry: CollectorRegistry, telemetry: Telemetry
) -> None:
    """Wait and hold carry the trace and span of the call that was counted last."""
    async with Queue(telemetry=telemetry) as queue, queue.slot("sales"):
        pass
    text = generate_openmetrics(registry).decode()  # type: ignore[no-untyped-call]
    for name in (names.WAIT_SECONDS, names.HOLD_SECONDS):
        lines = [line for line in text.splitlines() if line.startswith(f"{name}_bucket")]
        assert any("# {" in line and "trace_id=" in line and "span_id=" in line for line in lines)


def test_two_queues_on_one_registry_share_their_instruments(registry: CollectorRegistry) -> None:
    """A second Queue, and a second Telemetry, never raise "Duplicated timeseries"."""
    Queue(telemetry=Telemetry(registry))
    Queue(telemetry=Telemetry(registry))
    assert registry.get_sample_value(names.BUILD_INFO, {"version": "x", "backend": "memory"}) is None
    assert any(line.startswith(names.BUILD_INFO) for line in series(registry))


MULTIPROCESS = """
import asyncio
from genesis import Queue
from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

async def main():
    async with Queue() as queue, queue.slot("sales"):
        registry = CollectorRegistry()
        MultiProcessCollector(registry)
        print(generate_latest(registry).decode())

asyncio.run(main())
"""


@pytest.mark.parametrize("processes", [1, 2])
def test_multiprocess_mode_adds_the_processes_up(tmp_path: Path, processes: int) -> None:
    """Histograms of all processes are summed; gauges come from live processes only."""
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    for _ in range(processes):
        done = subprocess.run(
            [sys.executable, "-c", MULTIPROCESS],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
    lines = done.stdout.splitlines()
    assert f'{names.WAIT_SECONDS}_count{{outcome="granted",queue="sales"}} {processes}.0' in lines
    assert any(line.startswith(f'{names.HOLDING}{{queue="sales"}}') for line in lines)
