"""An operator's question about three real processes on one Redis: why did call X wait, and for whom?

Prometheus, the traces and the logs must each hold the answer, and agree.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.observability.observed_worker import SERVICE, ObservedWorker
from tests.support.observers import Jaeger, OtlpReceiver, Prometheus, ReceivedSpan
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

LEASE = 3.0
QUEUE = "sales"


class Site(NamedTuple):
    """Three instances and all that observes them."""

    workers: list[ObservedWorker]
    otlp: OtlpReceiver
    prometheus: Prometheus


@pytest.fixture
def jaeger() -> Iterator[Jaeger | None]:
    program = None if Jaeger.missing() else Jaeger()
    yield program
    if program is not None:
        program.close()


@pytest.fixture
async def site(
    own_redis: RedisServer, jaeger: Jaeger | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Site]:
    if not Prometheus.available():
        pytest.skip(Prometheus.MISSING)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")  # milliseconds
    otlp = OtlpReceiver(jaeger.otlp if jaeger is not None else None)
    async with AsyncExitStack() as stack:
        workers = []
        for number in range(3):
            log = tmp_path / f"{number}.log"
            worker = ObservedWorker(own_redis.url, LEASE, QUEUE, otlp.url, log)
            workers.append(await stack.enter_async_context(worker))
        prometheus = Prometheus([worker.port for worker in workers])
        stack.callback(prometheus.close)
        await wait_until(lambda: prometheus.value("sum(up)") == 3, "all three are scraped")
        yield Site(workers, otlp, prometheus)
    otlp.close()


async def hand_on_three_calls(site: Site) -> None:
    """`first` holds on one instance, `chosen` and `third` wait on the two others; all get through."""
    one, two, three = site.workers
    one.enter("first", limit=1)
    await one.event("granted", "first")
    two.enter("chosen", limit=1)
    await wait_until(lambda: site.otlp.of("chosen", "enqueue"), "chosen is seen to wait")
    three.enter("third", limit=1)
    await wait_until(lambda: site.otlp.of("third", "enqueue"), "third is seen to wait")
    for worker, item in ((one, "first"), (two, "chosen"), (three, "third")):
        await worker.event("granted", item)
        worker.tell("leave", item=item)
        await worker.event("left", item)
    # Each instance exports on its own; `acquire` of a call arrives long after its `enqueue`.
    for item in ("first", "chosen", "third"):
        for name in ("acquire", "hold", "release", "slot"):
            await wait_until(lambda i=item, n=name: site.otlp.of(i, n), f"{name} of {item} has arrived")


async def test_traces_exemplars_and_logs_tell_one_story_of_a_call(
    site: Site, jaeger: Jaeger | None
) -> None:
    """A call's spans come from its instance, link to its neighbours', and share a trace_id with all."""
    await hand_on_three_calls(site)
    otlp, two = site.otlp, site.workers[1]
    chosen = {span.name.removeprefix("queue."): span for span in otlp.of("chosen")}
    assert set(chosen) == {"slot", "acquire", "enqueue", "wait", "hold", "release"}
    assert {span.attributes["genesis.instance_id"] for span in chosen.values()} == {two.instance_id}
    assert {span.instance for span in chosen.values()} == {two.instance_id}
    assert len({span.instance for item in ("first", "chosen", "third") for span in otlp.of(item)}) == 3
    assert len({span.trace_id for span in chosen.values()}) == 1
    trace_id = chosen["wait"].trace_id

    first, third = one_span(otlp, "first", "hold"), one_span(otlp, "third", "enqueue")
    assert links(chosen["wait"]) == [(first.trace_id, first.span_id, "released_by", "first")]
    assert links(chosen["release"]) == [(third.trace_id, third.span_id, "granted_to", "third")]
    back = one_span(otlp, "first", "release")
    enqueue = chosen["enqueue"]
    assert links(back) == [(enqueue.trace_id, enqueue.span_id, "granted_to", "chosen")]

    name = "genesis_queue_wait_seconds_bucket"
    await wait_until(
        lambda: trace_id in {e["labels"]["trace_id"] for e in site.prometheus.exemplars(name)},
        "the exemplar of the chosen call's wait is in Prometheus",
    )
    lines = [json.loads(line) for line in two.log.read_text().splitlines()]
    events = {line["event"]: line for line in lines if line.get("item_id") == "chosen"}
    assert {"enqueued", "granted", "released"} <= set(events)
    assert {line["trace_id"] for line in events.values()} == {trace_id}
    waited = chosen["wait"].attributes["genesis.waited_seconds"]
    assert round(events["granted"]["waited"], 3) == waited

    if jaeger is None:
        pytest.skip(f"all shown but for Jaeger: {Jaeger.missing()}")
    tags = {"genesis.item_id": "chosen"}
    await wait_until(lambda: jaeger.find(SERVICE, tags), "Jaeger finds the call by its item_id")
    found = jaeger.find(SERVICE, tags)
    assert trace_id in {trace["traceID"] for trace in found}
    names = {s["operationName"] for t in found for s in t["spans"] if t["traceID"] == trace_id}
    assert names == {f"queue.{name}" for name in chosen}


async def test_the_gauges_agree_and_a_dead_instance_shows(site: Site) -> None:
    """Sum of waiting = depth and sum of holding = in use, except for tickets of a dead instance."""
    one, two, three = site.workers
    one.enter("holder", limit=1)
    await one.event("granted", "holder")
    for number in range(4):
        two.enter(f"two-{number}", limit=1)
        three.enter(f"three-{number}", limit=1)
    prometheus = site.prometheus
    await wait_until(lambda: prometheus.value("sum(genesis_queue_waiting)") == 8, "8 calls wait")
    await wait_until(lambda: prometheus.value("max(genesis_queue_depth)") == 8, "depth is 8")
    await wait_until(lambda: prometheus.value("sum(genesis_queue_holding)") == 1, "one holds")
    await wait_until(lambda: prometheus.value("max(genesis_queue_in_use)") == 1, "one slot is in use")
    oldest = "max(genesis_queue_oldest_wait_seconds) > 0"
    await wait_until(lambda: prometheus.query(oldest), "the oldest wait shows")

    three.kill()
    left_behind = "max(genesis_queue_depth) - sum(genesis_queue_waiting)"
    seen = await wait_until(
        lambda: prometheus.value(left_behind) == 4, "the dead instance's 4 calls show", LEASE
    )
    reclaimed = "sum(genesis_queue_reclaimed_total{state='waiting'})"
    took = await wait_until(lambda: prometheus.value(reclaimed) == 4, "they are reclaimed", 2 * LEASE)
    await wait_until(lambda: prometheus.value(left_behind) == 0, "the gauges agree again", LEASE)
    assert prometheus.value(reclaimed) == 4
    assert prometheus.query("genesis_queue_reclaimed_total{state='holding'} > 0") == []
    print(f"difference seen after {seen:.2f} s, reclaimed {took:.2f} s later, lease {LEASE:g} s")

    for worker, item in ((one, "holder"), *((two, f"two-{number}") for number in range(4))):
        await worker.event("granted", item)
        worker.tell("leave", item=item)
    await wait_until(
        lambda: prometheus.value("sum(genesis_queue_wait_seconds_count{outcome='granted'})") == 5,
        "every call that lived has one wait observation",
    )


async def test_the_sum_of_the_instances_is_the_shared_state_all_along(site: Site) -> None:
    """While calls come and go, no difference between sum and depth lasts longer than a heartbeat."""
    began = time.time()
    for number in range(60):
        site.workers[number % 3].enter(f"call-{number}", limit=2, hold=0.15)
        await asyncio.sleep(0.02)  # the rate of arrivals
    for number in range(60):
        await site.workers[number % 3].event("left", f"call-{number}")
    ended = time.time()
    await wait_until(
        lambda: site.prometheus.value("sum(genesis_queue_holding)") == 0, "the last has left"
    )
    for summed, shared in (
        ("sum(genesis_queue_waiting)", "max(genesis_queue_depth)"),
        ("sum(genesis_queue_holding)", "max(genesis_queue_in_use)"),
    ):
        ours = site.prometheus.series(f"{summed} or vector(0)", began - 5, ended)
        theirs = site.prometheus.series(shared, began, ended)
        # A shared gauge is as old as the last heartbeat, and both are as old as the last scrape: some
        # sample of the heartbeat's time before must have had the value that is shown now.
        window = LEASE / 3 + 1.0
        for at, value in theirs.items():
            nearby = [v for t, v in ours.items() if at - window <= t <= at + 1.0]
            if nearby:
                assert min(nearby) <= value <= max(nearby), f"{shared} shows {value}, {summed} {nearby}"
        assert theirs, f"{shared} was never shown"


def one_span(otlp: OtlpReceiver, item_id: str, name: str) -> ReceivedSpan:
    (span,) = otlp.of(item_id, name)
    return span


def links(span: ReceivedSpan) -> list[tuple[str, str, Any, Any]]:
    return [
        (trace_id, span_id, attributes["genesis.link"], attributes["genesis.item_id"])
        for trace_id, span_id, attributes in span.links
    ]
