"""A sink that fails, or is missing, changes nothing for a call or for another sink."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys

import pytest
from prometheus_client import CollectorRegistry, Counter
from prometheus_client.registry import Collector

from genesis import Queue, QueueTimeoutError
from genesis.backends.protocol import EnterRequest, EnterResult, Grant
from genesis.exceptions import BackendUnavailableError, EvictedError
from genesis.observability import Telemetry, names
from genesis.observability.histogram import MAX_UNFLUSHED
from genesis.observability.layer import ObservedBackend
from genesis.queue import InMemoryBackend
from tests.conftest import state_of
from tests.support.observations import errors, gauges, holds, waits
from tests.support.sick import SICK, SickError
from tests.support.waiting import quiesce


async def use_everything(queue: Queue) -> None:
    """Every operation and every ending, with the results that they have without telemetry."""
    heir_entered = asyncio.Event()

    async def wait(item_id: str, timeout: float | None = None) -> str:
        async with queue.slot("sales", item_id=item_id, timeout=timeout):
            heir_entered.set()
        return item_id

    async with queue.slot("sales", item_id="holder", max_concurrent=1) as slot:
        assert slot.fencing_token
        waiters = {name: asyncio.create_task(wait(name)) for name in ("gone", "victim", "heir")}
        await quiesce()
        assert (await queue.stats("sales"))[:3] == (3, 1, 1)
        assert await queue.position("sales", "victim") == 2
        assert len(await queue.entries("sales")) == 4
        waiters["gone"].cancel()
        assert await queue.evict("sales", "victim") == 1
        for timeout in (0, 0.001):
            with pytest.raises(QueueTimeoutError):
                await wait("late", timeout)
        with pytest.raises(EvictedError):
            await waiters["victim"]
        await asyncio.wait({waiters["gone"]})
        assert waiters["gone"].cancelled()
        assert not heir_entered.is_set()
        await queue.set_limit("sales", 2)
        assert await waiters["heir"] == "heir"
        await queue.set_limit("sales", None)
        assert await queue.evict("sales", "holder") == 1
        assert slot.lost
    with pytest.raises(ZeroDivisionError):
        async with queue.slot("sales"):
            raise ZeroDivisionError
    await queue.ping()
    assert not state_of(queue)
    waiter = asyncio.create_task(wait("last"))
    await queue.set_limit("sales", 0)
    await quiesce()
    await queue.close()
    with pytest.raises(BackendUnavailableError):
        await waiter
    assert not state_of(queue)


@pytest.mark.parametrize("sick", SICK)
async def test_a_failing_sink_never_reaches_a_call(registry: CollectorRegistry, sick: str) -> None:
    """Whatever a sink raises, calls run as they do without it, and the failure is counted."""
    sink, make = SICK[sick]
    await use_everything(Queue(telemetry=make(registry)))
    if sink:
        assert errors(registry, sink) > 0
    others = {"metrics", "traces", "logs", "label"} - {sink}
    assert [other for other in others if errors(registry, other)] == []


async def test_sorting_the_values_of_a_failing_registry_reaches_no_call(
    registry: CollectorRegistry,
) -> None:
    """It is done once in so many calls."""
    async with Queue(telemetry=SICK["registry"][1](registry)) as queue:
        for _ in range(MAX_UNFLUSHED + 1):
            async with queue.slot("sales"):
                pass


async def test_a_registry_that_refuses_the_metrics_is_not_asked_at_each_step() -> None:
    """That would cost a hundred times as much as the call."""
    asked = 0

    class Counting(CollectorRegistry):
        def register(self, collector: Collector) -> None:
            nonlocal asked
            asked += 1
            super().register(collector)

    registry, now = Counting(), 1000.0
    of_the_application = Counter(names.REFUSED, "One of these names.", registry=registry)
    async with Queue(telemetry=Telemetry(registry, clock=lambda: now)) as queue:
        for _ in range(10):
            async with queue.slot("sales"):
                pass
        assert asked <= 3
        registry.unregister(of_the_application)
        now += 10.0
        Telemetry(registry).instruments  # noqa: B018
    assert waits(registry) == {"granted": 10}


async def test_a_metric_that_fails_now_and_then_is_counted_each_time(
    registry: CollectorRegistry,
) -> None:
    """It is called once per operation: what it counted before it raised is not counted twice."""
    telemetry = Telemetry(registry)
    backend = ObservedBackend(InMemoryBackend(), telemetry, "1")
    asked = 0

    def fickle(seconds: float) -> None:
        nonlocal asked
        asked += 1
        if asked % 2:
            raise SickError

    ticket = (await backend.enter(EnterRequest("sales", "call"))).ticket
    backend.leave(ticket)
    for operation in ("enter", "leave"):
        backend._observe_ok[operation] = fickle
    for _ in range(10):
        backend.leave((await backend.enter(EnterRequest("sales", "call"))).ticket)
    assert (asked, errors(registry, "metrics")) == (20, 10)


class ReportsWait(InMemoryBackend):
    """A backend that reports a wait by another clock."""

    async def enter(self, entry: EnterRequest) -> EnterResult:
        admission = await super().enter(entry)
        return admission._replace(grant=Grant(1, None, 5.0))


async def test_a_wait_that_a_backend_reports_is_ignored(registry: CollectorRegistry) -> None:
    """The slot and the histogram have the wait that the layer measured: 0 for an immediate grant."""
    queue = Queue(ReportsWait(), telemetry=Telemetry(registry))
    async with queue.slot("sales") as slot:
        assert slot.waited == 0.0
    labels = {"queue": "sales", "outcome": "granted"}
    assert registry.get_sample_value(f"{names.WAIT_SECONDS}_sum", labels) == 0.0


@pytest.mark.parametrize(
    "sick", ["provider", "tracer", "span", "processor", "logger", "level", "structlog"]
)
async def test_a_failing_tracer_or_logger_prevents_no_metric(
    registry: CollectorRegistry, sick: str
) -> None:
    """The sinks are independent of each other: every call is still counted."""
    await use_everything(Queue(telemetry=SICK[sick][1](registry)))
    assert waits(registry) == {"granted": 3, "cancelled": 1, "evicted": 1, "timeout": 1, "error": 1}
    assert holds(registry) == {"released": 1, "evicted": 1, "error": 1}
    assert gauges(registry) == (0, 0)


@pytest.mark.parametrize("sick", ["registry", "instruments", "provider", "tracer", "span", "processor"])
async def test_a_failing_registry_or_tracer_prevents_no_log_event(
    registry: CollectorRegistry, caplog: pytest.LogCaptureFixture, sick: str
) -> None:
    """Log events, above all that of a lost slot, are written even if no metric can be counted."""
    telemetry = SICK[sick][1](registry)
    telemetry.log = Telemetry(CollectorRegistry(), logger=logging.getLogger("genesis.tests")).log
    caplog.set_level(logging.DEBUG, "genesis.tests")
    await use_everything(Queue(telemetry=telemetry))
    records = [r.__dict__ for r in caplog.records if "event" in r.__dict__]
    assert {"timeout", "cancelled", "evicted", "limit_changed", "error"} <= {
        r["event"] for r in records
    }
    holder = [r for r in records if r.get("item_id") == "holder"]
    assert {"enqueued", "granted", "released"} <= {r["event"] for r in holder}
    # The event of the lost slot, apart from that of the request to evict it.
    assert [r["event"] for r in holder if "reason" in r] == ["evicted"]


def test_it_works_without_an_sdk() -> None:
    """With only the API of OpenTelemetry installed, calls are counted and not traced."""
    program = """
import asyncio, sys
sys.modules["opentelemetry.sdk"] = None
import genesis
from genesis.observability import Telemetry
from prometheus_client import CollectorRegistry, Counter
from prometheus_client.registry import Collector
registry = CollectorRegistry()

async def main():
    async with genesis.Queue(telemetry=Telemetry(registry)) as queue:
        async with queue.slot("sales"):
            other = asyncio.create_task(queue.slot("sales").__aenter__())
            await asyncio.sleep(0)
        await other

asyncio.run(main())
count = registry.get_sample_value(
    "genesis_queue_wait_seconds_count", {"queue": "sales", "outcome": "granted"}
)
assert count == 2, count
assert not registry.get_sample_value("genesis_telemetry_errors_total", {"sink": "traces"})
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
