"""The log events of a call, with their fields."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import pytest
import structlog
from prometheus_client import CollectorRegistry

from genesis import Queue, QueueTimeoutError, RedisBackend
from genesis.backends.protocol import BackendEvent, Disrupted, Reclaimed, SlotLost
from genesis.exceptions import QueueDrainingError
from genesis.observability import Telemetry
from genesis.observability.layer import ObservedBackend
from genesis.queue import InMemoryBackend
from tests.conftest import Spans
from tests.support.observations import WAIT_OUTCOMES, end_as, enter, errors, of, waits
from tests.support.redis_server import RedisServer
from tests.support.waiting import quiesce, wait_until


@pytest.mark.parametrize("outcome", WAIT_OUTCOMES)
async def test_each_ending_has_its_event_with_its_fields(
    queue: Queue, caplog: pytest.LogCaptureFixture, outcome: str
) -> None:
    """enqueued, then granted, timeout, cancelled, evicted or error, with ids, trace and the wait."""
    caplog.set_level(logging.DEBUG, "genesis.tests")
    await end_as(queue, outcome)
    records = [r.__dict__ for r in caplog.records]
    mine = [r for r in records if r.get("item_id") == "secret-item" and "trace_id" in r]
    last = "released" if outcome == "granted" else outcome
    expected = ["enqueued", "granted", "released"] if outcome == "granted" else ["enqueued", last]
    assert [r["event"] for r in mine] == expected
    for record in mine:
        assert record["queue_id"] == "sales"
        assert record["instance_id"] == queue.instance_id
        assert len(record["trace_id"]) == 32
        assert len(record["span_id"]) == 16
    assert mine[1]["waited"] >= 0


async def test_bound_context_variables_suppress_no_event(
    queue: Queue, caplog: pytest.LogCaptureFixture, registry: CollectorRegistry
) -> None:
    """structlog's context variables can have names that `logging` reserves."""
    caplog.set_level(logging.INFO, "genesis.tests")
    with structlog.contextvars.bound_contextvars(module="billing", name="Ann", tenant=7):
        await end_as(queue, "granted")
    logged = [r.__dict__ for r in caplog.records]
    assert [r["event"] for r in logged] == ["enqueued", "granted", "released"]
    assert {(r["module_"], r["name_"], r["tenant"]) for r in logged} == {("billing", "Ann", 7)}
    assert errors(registry, "logs") == 0


async def test_an_event_of_the_backend_has_no_call_s_context(
    observed: ObservedBackend, inner: InMemoryBackend, caplog: pytest.LogCaptureFixture
) -> None:
    """A timer set in a call runs in its context, but an outage does not belong to that call."""
    caplog.set_level(logging.INFO, "genesis.tests")
    ticket = (await enter(observed)).ticket
    emitted: list[BackendEvent] = [
        Disrupted("connection", "refused"),
        Reclaimed("sales", "call-2", "dead-1", "waiting"),
        SlotLost(ticket, "lapsed"),
    ]
    caplog.clear()
    loop = asyncio.get_running_loop()
    with structlog.contextvars.bound_contextvars(caller="call-0"):
        for event in emitted:
            loop.call_soon(inner._emit, event)
    await quiesce()
    assert [r.__dict__["event"] for r in caplog.records] == ["backend_unavailable", "reclaimed", "lost"]
    assert not any("caller" in r.__dict__ for r in caplog.records)
    observed.leave(ticket)


@pytest.mark.parametrize("sampled", [True, False])
async def test_a_reclaimed_call_is_logged_with_the_ids_of_its_trace(
    observed: ObservedBackend, inner: InMemoryBackend, caplog: pytest.LogCaptureFixture, sampled: bool
) -> None:
    """Those that came with the ticket; none if there are none."""
    ids = {"trace_id": "0123456789abcdef0123456789abcdef", "span_id": "0123456789abcdef"}
    context = f"00-{ids['trace_id']}-{ids['span_id']}-01" if sampled else ""
    inner._emit(Reclaimed("sales", "call-1", "dead-1", "holding", context))
    (record,) = (vars(r) for r in caplog.records if vars(r).get("event") == "reclaimed")
    assert {name: record[name] for name in (*ids, "context") if name in record} == (
        ids if sampled else {}
    )
    assert (record["item_id"], record["instance_id"]) == ("call-1", "dead-1")


async def test_a_call_that_a_draining_queue_refuses_is_counted_and_logged(
    telemetry: Telemetry, registry: CollectorRegistry, spans: Spans, caplog: pytest.LogCaptureFixture
) -> None:
    """`draining` is a refusal like any other: a counter, an event, no wait. Nobody knows the depth."""
    with caplog.at_level(logging.INFO, "genesis.tests"):
        async with Queue(telemetry=telemetry) as queue:
            assert await queue.drain(0) == 0
            with pytest.raises(QueueDrainingError):
                async with queue.slot("sales", item_id="late"):
                    pass
    labels = {"queue": "sales", "reason": "draining"}
    assert registry.get_sample_value("genesis_queue_refused_total", labels) == 1
    assert registry.get_sample_value("genesis_queue_waiting", {"queue": "sales"}) == 0
    assert waits(registry) == {}
    logged = [r.__dict__ for r in caplog.records if r.__dict__.get("item_id") == "late"]
    assert [(each["event"], each["reason"]) for each in logged] == [("refused", "draining")]
    assert "depth" not in logged[0]
    (enqueue,) = spans.named("enqueue")
    assert "genesis.depth" not in of(enqueue)


async def test_a_refused_call_is_not_logged_as_enqueued(
    queue: Queue, caplog: pytest.LogCaptureFixture
) -> None:
    """timeout=0 without a free slot never enters the line: `refused`, and no `enqueued` before it."""
    caplog.set_level(logging.DEBUG, "genesis.tests")
    async with queue.slot("sales"):
        with pytest.raises(QueueTimeoutError):
            async with queue.slot("sales", item_id="refused", timeout=0):
                pytest.fail("two in a queue with limit 1")
    logged = [r.__dict__["event"] for r in caplog.records if r.__dict__.get("item_id") == "refused"]
    assert logged == ["refused"]


async def test_an_eviction_without_effect_is_not_logged_as_evicted(
    queue: Queue, events: Callable[[], list[str]]
) -> None:
    """An eviction that found no call is logged as an inspection."""
    assert await queue.evict("sales", "stranger") == 0
    assert "evicted" not in events()


async def test_a_limit_that_was_overridden_elsewhere_is_logged(
    own_redis: RedisServer, telemetry: Telemetry, caplog: pytest.LogCaptureFixture
) -> None:
    """By the command line, say: each instance that uses the queue logs it with its next heartbeat."""
    caplog.set_level(logging.INFO, "genesis.tests")

    def limits() -> list[int | None]:
        fields = [r.__dict__ for r in caplog.records]
        return [f["limit"] for f in fields if f.get("event") == "limit_changed"]

    backend = RedisBackend(own_redis.url, lease=0.9)
    elsewhere = Queue(RedisBackend(own_redis.url))
    async with Queue(backend, telemetry=telemetry) as queue, queue.slot("sales"), elsewhere:
        await elsewhere.set_limit("sales", 0)
        await wait_until(lambda: limits() == [0], "it is logged")
        await elsewhere.set_limit("sales", None)
        await wait_until(lambda: limits() == [0, None], "and its end")
        await queue.set_limit("sales", 7)
        await elsewhere.set_limit("sales", 1)
        await wait_until(lambda: limits()[-1] == 1, "the next change")
        assert limits() == [0, None, 7, 1]  # its own is logged once
