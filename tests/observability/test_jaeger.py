"""Ten situations of a call in a real Jaeger: which call did it wait for, and how did it end?"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased, Sampler, TraceIdRatioBased
from prometheus_client import CollectorRegistry

from genesis import EvictedError, Queue, QueueTimeoutError, RedisBackend
from genesis.observability import Telemetry
from tests.observability.observed_worker import SERVICE, ObservedWorker
from tests.support.observers import Jaeger
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(Jaeger.missing()), reason=Jaeger.missing() or "there is one"),
]

LEASE = 2.0
ENOUGH = 40  # calls at 50 %: that none of them followed one that was not sampled has a chance of 1e-5


class Span(NamedTuple):
    """A span as Jaeger's HTTP API gives it."""

    name: str
    trace_id: str
    span_id: str
    parent_id: str
    began: int
    ended: int
    """Microseconds."""
    tags: dict[str, Any]
    events: dict[str, dict[str, Any]]
    warnings: list[str]

    def __getitem__(self, name: Any) -> Any:
        """One of the attributes that begin with `genesis.`; None if it has none of that name."""
        return self.tags.get(f"genesis.{name}")

    @property
    def item(self) -> str:
        return str(self["item_id"])

    @property
    def holders(self) -> list[str]:
        return list(json.loads(str(self["holders"] or "[]")))

    @property
    def failed(self) -> bool:
        return self.tags.get("otel.status_code") == "ERROR"


def read(span: dict[str, Any]) -> Span:
    parents = [r["spanID"] for r in span["references"] if r["refType"] == "CHILD_OF"]
    return Span(
        name=span["operationName"].removeprefix("queue."),
        trace_id=span["traceID"],
        span_id=span["spanID"],
        parent_id=parents[0] if parents else "",
        began=span["startTime"],
        ended=span["startTime"] + span["duration"],
        tags={tag["key"]: tag["value"] for tag in span["tags"]},
        events={
            fields["event"]: fields
            for log in span["logs"]
            for fields in [{field["key"]: field["value"] for field in log["fields"]}]
        },
        warnings=span["warnings"] or [],
    )


class Instance:
    """A Queue with its own tracer provider, as in a process of its own."""

    def __init__(self, redis_url: str, otlp: str, sampler: Sampler = ALWAYS_ON) -> None:
        backend = RedisBackend(redis_url, lease=LEASE)
        about = {"service.name": SERVICE, "service.instance.id": backend.instance_id}
        self.provider = TracerProvider(
            resource=Resource.create(about), sampler=ParentBased(sampler), shutdown_on_exit=False
        )
        exporter = OTLPSpanExporter(endpoint=f"{otlp}/v1/traces")
        self.provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=100))
        self.queue = Queue(backend, telemetry=Telemetry(CollectorRegistry(), self.provider))

    async def call(
        self, item: str, leave: asyncio.Event | None = None, timeout: float | None = None
    ) -> None:
        """A request with a span of its own; holds until `leave`."""
        with self.provider.get_tracer("application").start_as_current_span(f"GET {item}"):
            await self.orphan(item, leave, timeout)

    async def orphan(
        self, item: str, leave: asyncio.Event | None = None, timeout: float | None = None
    ) -> None:
        """The same without a span."""
        async with self.queue.slot("sales", item_id=item, max_concurrent=1, timeout=timeout):
            if leave is not None:
                await leave.wait()

    async def stands(self, waiting: int, in_use: int) -> None:
        async def is_so() -> bool:
            stats = await self.queue.stats("sales")
            return (stats.waiting, stats.in_use) == (waiting, in_use)

        await wait_until(is_so, f"{waiting} wait and {in_use} hold")


class Site:
    """Two instances here, one in a process that can be killed, and the Jaeger that they export to."""

    def __init__(self, jaeger: Jaeger, redis_url: str, log: Path) -> None:
        self.jaeger = jaeger
        self.redis_url = redis_url
        self.one = Instance(redis_url, jaeger.otlp)
        self.two = Instance(redis_url, jaeger.otlp)
        self.mortal = ObservedWorker(redis_url, LEASE, "sales", jaeger.otlp, log)

    async def spans(self, item: str, *wanted: str) -> dict[str, Span]:
        """The spans of a call by name, once all those wanted are there."""
        found: dict[str, Span] = {}

        async def are_there() -> bool:
            traces = await asyncio.to_thread(self.jaeger.find, SERVICE, {"genesis.item_id": item})
            spans = [read(span) for each in traces for span in each["spans"]]
            found.update({span.name: span for span in spans if span["item_id"] == item})
            return set(wanted) <= set(found)

        await wait_until(are_there, f"Jaeger has {wanted} of {item}, and not only {set(found)}")
        assert len({span.trace_id for span in found.values()}) == 1
        return found


@pytest.fixture(scope="module")
def jaeger() -> Iterator[Jaeger]:
    program = Jaeger()
    yield program
    program.close()


@pytest.fixture
async def site(
    jaeger: Jaeger, own_redis: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Site]:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")  # milliseconds; of the process
    site = Site(jaeger, own_redis.url, tmp_path / "log")
    async with AsyncExitStack() as stack:
        for instance in (site.one, site.two):
            await stack.enter_async_context(instance.queue)
        yield site
    for instance in (site.one, site.two):
        await asyncio.to_thread(instance.provider.shutdown)


async def test_granted_at_once_waited_and_no_parent(site: Site) -> None:
    """Three calls in a row; the second waits for the first, the third, which has no parent, for it."""
    leave = [asyncio.Event() for _ in range(3)]
    calls = [asyncio.create_task(site.one.call("first", leave[0]))]
    await site.one.stands(0, 1)
    calls.append(asyncio.create_task(site.two.call("second", leave[1])))
    await site.one.stands(1, 1)
    calls.append(asyncio.create_task(site.one.orphan("third", leave[2])))
    await site.one.stands(2, 1)
    for number, event in enumerate(leave):
        event.set()
        await calls[number]

    first = await site.spans("first", "acquire", "enqueue", "hold", "release")
    assert "wait" not in first
    assert (first["acquire"]["outcome"], first["acquire"]["waited_seconds"]) == ("granted", 0.0)
    assert first["enqueue"].holders == []
    assert first["release"]["granted_to.item_id"] == "second"

    second = await site.spans("second", "acquire", "enqueue", "wait", "hold", "release")
    assert second["enqueue"].holders == ["first"]
    assert second["wait"]["released_by.item_id"] == "first"
    assert second["wait"]["released_by.instance_id"] == site.one.queue.instance_id
    assert second["release"]["granted_to.item_id"] == "third"

    third = await site.spans("third", "slot", "acquire", "enqueue", "wait", "hold", "release")
    assert third["slot"].parent_id == ""
    for name in ("acquire", "hold", "release"):
        assert third[name].parent_id == third["slot"].span_id
    assert (third["enqueue"].holders, third["wait"]["released_by.item_id"]) == (["first"], "second")
    for spans in (first, second, third):
        assert spans["acquire"].ended <= spans["hold"].began
        assert spans["hold"].ended <= spans["release"].began  # or the critical path leaves the hold out
        assert not any(span.failed for span in spans.values())
    for span in (*third.values(), *(each[n] for each in (first, second) for n in ("acquire", "hold"))):
        assert span.warnings == [], span.name  # `release` may outlast a request that waits for nothing


async def test_timed_out_hung_up_evicted_and_waiting_now(site: Site) -> None:
    """None of them gets a slot; each span names the holder."""
    leave = asyncio.Event()
    calls = [asyncio.create_task(site.one.call("holder", leave))]
    await site.one.stands(0, 1)
    with pytest.raises(QueueTimeoutError):
        await site.two.call("impatient", timeout=0.3)
    for item in ("hung up", "evicted", "waiting now"):
        calls.append(asyncio.create_task(site.two.call(item, leave)))
        await site.one.stands(len(calls) - 1, 1)
    calls[1].cancel()
    assert await site.one.queue.evict("sales", "evicted") == 1
    with pytest.raises(EvictedError):
        await calls[2]

    for item, outcome, error in (
        ("impatient", "timeout", "QueueTimeoutError"),
        ("hung up", "cancelled", None),
        ("evicted", "evicted", "EvictedError"),
    ):
        spans = await site.spans(item, "acquire", "enqueue", "wait")
        assert (spans["wait"]["outcome"], spans["wait"].holders) == (outcome, ["holder"])
        assert spans["wait"].tags.get("error.type") == error
        assert spans["wait"].failed is (error is not None)
        assert "hold" not in spans
    waiting = await site.spans("waiting now", "enqueue")
    assert set(waiting) == {"enqueue"}
    assert waiting["enqueue"].holders == ["holder"]
    assert waiting["enqueue"]["position"] == 3
    leave.set()
    await asyncio.gather(*calls, return_exceptions=True)


async def test_holder_killed_and_waited_for_the_dead(site: Site) -> None:
    """The dead call's own trace ends with a failed `reclaim`; who waited for it has its name."""
    async with site.mortal as mortal:
        mortal.enter("doomed", limit=1)
        await mortal.event("granted", "doomed")
        await site.spans("doomed", "enqueue")  # is exported before its process is killed
        waiting = [asyncio.create_task(site.one.call("heir"))]
        await site.one.stands(1, 1)
        waiting.append(asyncio.create_task(site.two.call("next")))  # either might be the one that reaps
        await site.one.stands(2, 1)
        mortal.kill()
        await asyncio.gather(*waiting)
        dead = await site.spans("doomed", "enqueue", "reclaim")
        assert dead["reclaim"].failed
        assert not any("duration" in warning for warning in dead["reclaim"].warnings)
        assert (dead["reclaim"]["outcome"], dead["reclaim"]["reclaimed_from.item_id"]) == (
            "holding",
            "doomed",
        )
        assert dead["reclaim"]["reclaimed_from.instance_id"] == mortal.instance_id
        heir = await site.spans("heir", "acquire", "enqueue", "wait", "hold", "release")
        assert heir["enqueue"].holders == ["doomed"]
        assert heir["wait"].holders == ["doomed"]
        assert heir["wait"]["released_by.item_id"] == "doomed"
        assert heir["wait"]["released_by.instance_id"] == mortal.instance_id
        assert heir["wait"]["outcome"] == "granted"


async def test_evicted_while_it_held(site: Site) -> None:
    """The loss has a time on the hold, and the hold has failed."""
    leave = asyncio.Event()
    holding = asyncio.create_task(site.one.call("thrown out", leave))
    await site.one.stands(0, 1)
    assert await site.two.queue.evict("sales", "thrown out") == 1
    await site.one.stands(0, 0)
    leave.set()
    with suppress(Exception):
        await holding
    spans = await site.spans("thrown out", "hold", "release")
    assert "evicted" in spans["hold"].events
    assert (spans["hold"]["outcome"], spans["hold"].failed) == ("evicted", True)


async def test_sampled_at_a_half(site: Site) -> None:
    """A sampled span names the call it waited for, even if that call was not sampled."""
    half = Instance(site.redis_url, site.jaeger.otlp, TraceIdRatioBased(0.5))
    async with half.queue:
        leave = asyncio.Event()
        calls = []
        for number in range(ENOUGH):
            calls.append(asyncio.create_task(half.call(f"half {number}", leave)))
            await half.stands(number, 1)
        leave.set()
        await asyncio.gather(*calls)
    await asyncio.to_thread(half.provider.shutdown)
    mine = {"genesis.instance_id": half.queue.instance_id}

    async def sampled() -> dict[str, Span]:
        traces = await asyncio.to_thread(site.jaeger.find, SERVICE, mine)
        spans = [read(span) for each in traces for span in each["spans"]]
        return {span.item: span for span in spans if span.name == "wait"}

    await wait_until(sampled, "some are there")
    waits = await sampled()
    assert ENOUGH / 5 < len(waits) < ENOUGH * 4 / 5
    before = {f"half {number}": f"half {number - 1}" for number in range(1, ENOUGH)}
    assert {item: span["released_by.item_id"] for item, span in waits.items()} == {
        item: before[item] for item in waits
    }
    assert any(before[item] not in waits for item in waits)
    assert all(span.holders == ["half 0"] for span in waits.values())
