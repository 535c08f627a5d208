"""Histograms: their buckets, and observations that are fast, bounded, and never lost."""

from __future__ import annotations

import asyncio
import math
import sys
import threading
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram

from genesis import Queue
from genesis.backends.protocol import EnterRequest, EnterResult
from genesis.observability import Telemetry, names
from genesis.observability.histogram import MAX_UNFLUSHED, Distribution, FastHistogram
from genesis.observability.metrics import WAIT_BUCKETS
from genesis.queue import InMemoryBackend
from tests.observability.conftest import Clock, series
from tests.support.waiting import quiesce


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


# No judgement by the clock: the machine might be busy.
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
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
