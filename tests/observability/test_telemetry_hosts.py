"""What telemetry does in the hosts that it is run in: many queues, workers, forks, loggers, loops."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import logging.config
import os
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator
from contextvars import Context
from enum import Enum
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import structlog
from opentelemetry import trace
from prometheus_client import CollectorRegistry, generate_latest

from genesis import Queue
from genesis.backends.protocol import (
    CallRef,
    EnterRequest,
    Grant,
    QueueStats,
    Reclaimed,
    SlotLost,
    Snapshot,
)
from genesis.observability import ObservabilityServer, Telemetry, configure, names
from genesis.observability.http import _known_formats
from genesis.observability.layer import ObservedBackend
from genesis.observability.shared import SharedGauges
from genesis.queue import InMemoryBackend
from tests.conftest import Spans
from tests.support.waiting import quiesce, wait_until


def value(registry: CollectorRegistry, name: str, **labels: str) -> float | None:
    return registry.get_sample_value(name, labels)


# --- shared gauges ---------------------------------------------------------------------------------


def shown(gauges: SharedGauges) -> dict[str, float]:
    return {s.name: s.value for family in gauges.collect() for s in family.samples}


def test_stores_that_share_a_label_are_added_up_and_one_store_counts_once() -> None:
    """Counts are added over distinct stores; of ages and expected waits the greatest is shown."""
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


async def test_snapshots_that_come_at_once_are_spread_over_turns(
    registry: CollectorRegistry,
) -> None:
    """20,000 heartbeats in one turn of the loop are noted in it, and shown in the turns that follow."""
    inner = InMemoryBackend()
    ObservedBackend(inner, Telemetry(registry), "1")
    for number in range(20_000):
        inner._emit(Snapshot(f"q{number}", QueueStats(1, 0, 1, 0.0)))
    count = value(registry, names.DEPTH, queue=names.OTHER_QUEUES, backend="memory")
    assert count is not None
    assert count < 1_000
    await quiesce(60)
    assert value(registry, names.DEPTH, queue=names.OTHER_QUEUES, backend="memory") == 19_900


# --- labels, registries, threads, forks -----------------------------------------------------------


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
        registry._genesis_instruments._next_look = 0.0  # type: ignore[attr-defined]
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


FORKS = """
import asyncio, os, signal, threading
from genesis import Queue
from genesis.observability import Telemetry
from prometheus_client import CollectorRegistry, generate_latest
registry = CollectorRegistry()
queue = Queue(telemetry=Telemetry(registry))

async def fill():
    for number in range(40):
        async with queue.slot(f"q{number}"):
            pass

asyncio.run(fill())
stop = False

def scrape():
    while not stop:
        generate_latest(registry)

threads = [threading.Thread(target=scrape, daemon=True) for _ in range(3)]
for thread in threads:
    thread.start()
stuck = 0
for _ in range(60):
    pid = os.fork()
    if pid == 0:
        signal.alarm(5)
        text = generate_latest(registry).decode()
        count = 'genesis_queue_wait_seconds_count{outcome="granted",queue="q1"} 0.0'
        os._exit(0 if count in text else 1)
    stuck += os.waitpid(pid, 0)[1] != 0
stop = True
print(stuck)
"""


def test_a_forked_child_can_be_scraped_and_counts_from_0() -> None:
    """Threads scrape during the fork, and hold locks that nobody lets go in the child."""
    done = subprocess.run([sys.executable, "-c", FORKS], capture_output=True, text=True, timeout=100)
    assert done.stdout == "0\n", done.stderr


# --- multiprocess mode -----------------------------------------------------------------------------

WORKER = """
import asyncio, logging, os, sys
logging.basicConfig(level=logging.ERROR, stream=sys.stdout, format="%(message)s")
if "late" in sys.argv: import prometheus_client
if len(sys.argv) > 2: os.environ[sys.argv[2]] = sys.argv[1]
from genesis import Queue
from genesis.observability.http import _metrics
from prometheus_client import REGISTRY

async def main():
    queue = Queue()
    async with queue.slot("sales", max_concurrent=1):
        queue._backend._inner._report()
        print("ready", flush=True)
        if "stay" in sys.argv:
            sys.stdin.readline()
        print(_metrics(REGISTRY, "").body.decode())

asyncio.run(main())
"""


def worker(*arguments: str) -> subprocess.Popen[str]:
    environment = {n: v for n, v in os.environ.items() if n.upper() != "PROMETHEUS_MULTIPROC_DIR"}
    return subprocess.Popen(
        [sys.executable, "-c", WORKER, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )


def test_the_gauges_of_a_killed_worker_are_gone(tmp_path: Path) -> None:
    """Without any hook of the server's; the shared gauges of the living are there."""
    killed = worker(str(tmp_path), "PROMETHEUS_MULTIPROC_DIR", "stay")
    assert killed.stdout is not None
    assert killed.stdout.readline() == "ready\n"
    killed.kill()
    killed.communicate()
    text, _ = worker(str(tmp_path), "PROMETHEUS_MULTIPROC_DIR").communicate(timeout=60)
    lines = text.splitlines()
    assert f'{names.HOLDING}{{queue="sales"}} 1.0' in lines
    assert f'{names.LIMIT}{{backend="memory",queue="sales"}} 1.0' in lines
    assert f'{names.WAIT_SECONDS}_count{{outcome="granted",queue="sales"}} 2.0' in lines


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["/nowhere/at/all", "PROMETHEUS_MULTIPROC_DIR"], "no directory that this process can write"),
        (["/tmp", "PROMETHEUS_MULTIPROC_DIR", "late"], "after prometheus_client had been imported"),
    ],
)
def test_a_directory_that_is_not_used_is_told(arguments: list[str], complaint: str) -> None:
    """At once, in words; and the process serves its own metrics."""
    text, _ = worker(*arguments).communicate(timeout=60)
    assert complaint in text
    assert f'{names.HOLDING}{{queue="sales"}} 1.0' in text
    assert f'{names.TELEMETRY_ERRORS}{{sink="metrics"}} 0.0' in text


def test_the_variable_may_be_in_lower_case(tmp_path: Path) -> None:
    """prometheus_client accepts it."""
    text, _ = worker(str(tmp_path), "prometheus_multiproc_dir").communicate(timeout=60)
    assert f'{names.HOLDING}{{queue="sales"}} 1.0' in text
    assert list(tmp_path.glob("*.db"))


# --- failures and loggers -------------------------------------------------------------------------


def test_the_first_failure_of_each_kind_is_logged(
    registry: CollectorRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    """With its traceback; the others are counted."""
    telemetry = Telemetry(registry)
    for error in (ValueError, ValueError, KeyError):
        try:
            raise error("boom")
        except Exception:
            telemetry.failed("traces")
    told = [r for r in caplog.records if r.name == "genesis" and r.exc_info]
    assert [r.exc_info[0] for r in told if r.exc_info] == [ValueError, KeyError]
    assert value(registry, names.TELEMETRY_ERRORS, sink="traces") == 3


async def test_a_collector_that_is_dead_is_counted(registry: CollectorRegistry) -> None:
    """Every export that is refused is a failure of the sink `traces`."""
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    handle = configure("router", otlp_endpoint="http://127.0.0.1:9", json_logs=False, registry=registry)
    telemetry = Telemetry(registry, handle.tracer_provider)
    async with Queue(telemetry=telemetry) as queue, queue.slot("sales"):
        pass
    await asyncio.to_thread(handle.shutdown, 10.0)
    await wait_until(lambda: value(registry, names.TELEMETRY_ERRORS, sink="traces"), "it is counted")


@pytest.mark.parametrize("kind", ["adapter", "async"])
async def test_loggers_as_applications_have_them_lose_no_event(
    registry: CollectorRegistry, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    caplog.set_level(logging.INFO, "app")
    stdlib = logging.getLogger("app")
    logger: Any = logging.LoggerAdapter(stdlib, {"tenant": 7})
    if kind == "async":
        logger = structlog.wrap_logger(
            stdlib,
            wrapper_class=structlog.stdlib.AsyncBoundLogger,
            processors=[structlog.stdlib.render_to_log_kwargs],
        )
    async with Queue(telemetry=Telemetry(registry, logger=logger)) as queue, queue.slot("sales"):
        pass
    told = [r for r in caplog.records if r.name == "app" and r.levelno >= logging.INFO]
    assert len(told) >= 3
    assert value(registry, names.TELEMETRY_ERRORS, sink="logs") == 0
    if kind == "adapter":
        assert {r.__dict__["tenant"] for r in told} == {7}


def test_a_logger_whose_log_is_a_coroutine_is_refused() -> None:
    class Foreign:
        async def log(self, level: int, event: str, **fields: Any) -> None:
            """Nobody would await it."""

    with pytest.raises(TypeError, match="coroutine"):
        Telemetry(CollectorRegistry(), logger=Foreign())


async def test_dict_config_after_the_queue_silences_nothing(
    registry: CollectorRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    """`disable_existing_loggers` is true unless an application says otherwise."""
    queue = Queue(telemetry=Telemetry(registry))
    logging.getLogger("genesis").disabled = True  # all that dictConfig does to it
    caplog.set_level(logging.INFO, "genesis")
    async with queue.slot("sales", item_id="told"):
        pass
    assert [r.__dict__["event"] for r in caplog.records if r.__dict__.get("item_id") == "told"]


def test_openmetrics_2_is_not_promised() -> None:
    accept = "application/openmetrics-text;version=2.0.0,text/plain;version=0.0.4;q=0.5"
    assert _known_formats(accept) == "text/plain;version=0.0.4;q=0.5"
    accept = "application/openmetrics-text;version=1.0.0"
    assert _known_formats(accept) == accept


async def test_a_port_in_use_is_named_with_the_way_out() -> None:
    async with ObservabilityServer(registry=CollectorRegistry(), port=0) as server:
        with pytest.raises(OSError, match=rf"port {server.port} .* port=0"):
            await ObservabilityServer(registry=CollectorRegistry(), port=server.port).start()


# --- the current span ------------------------------------------------------------------------------


async def test_slots_left_in_another_order_leave_the_context_as_it_was(telemetry: Telemetry) -> None:
    queue = Queue(telemetry=telemetry)
    before = trace.get_current_span()
    for _ in range(3):
        first, second = queue.slot("a"), queue.slot("b")
        await first.__aenter__()
        await second.__aenter__()
        inside = trace.get_current_span().get_span_context()
        await first.__aexit__(None, None, None)
        assert trace.get_current_span().get_span_context() == inside
        await second.__aexit__(None, None, None)
        assert trace.get_current_span() is before


async def test_a_generator_that_is_broken_off_leaves_no_ended_span_current(
    telemetry: Telemetry, spans: Spans
) -> None:
    """It is closed in another task; the next call of its consumer begins a trace of its own."""
    queue = Queue(telemetry=telemetry)

    async def stream() -> AsyncIterator[int]:
        async with queue.slot("llm", max_concurrent=5):
            yield 1

    for _ in range(3):
        async for _ in stream():
            break
        gc.collect()
        await wait_until(lambda: len(spans.named("release")) > 0, "it is closed")
        spans.clear()
        assert not trace.get_current_span().get_span_context().is_valid
        async with queue.slot("sales"):
            pass
        (slot,) = spans.named("slot")
        assert slot.parent is None
        spans.clear()


# --- what a trace says -----------------------------------------------------------------------------


def of(span: Any) -> dict[str, Any]:
    return dict(span.attributes)


async def test_each_span_ends_before_the_next_begins(telemetry: Telemetry, spans: Spans) -> None:
    """And all of a call without a parent is under `queue.slot`."""
    queue = Queue(telemetry=telemetry)

    async def call() -> None:
        async with queue.slot("sales", item_id="waiter"):
            pass

    async with queue.slot("sales", item_id="holder"):
        waiting = Context().run(asyncio.ensure_future, call())  # a caller without a span
        await quiesce()
    await waiting
    found: list[Any] = list(spans.get_finished_spans())
    mine = {s.name: s for s in found if of(s)[names.ITEM_ID] == "waiter"}
    order = ("queue.enqueue", "queue.wait", "queue.hold", "queue.release")
    for one, next_one in pairwise(order):
        assert mine[one].end_time + 1_000 <= mine[next_one].start_time, (one, next_one)
    slot = mine["queue.slot"]
    assert slot.parent is None
    assert slot.start_time <= mine["queue.acquire"].start_time
    assert slot.end_time >= mine["queue.release"].end_time
    for name in ("queue.acquire", "queue.hold", "queue.release"):
        assert mine[name].parent.span_id == slot.context.span_id
    assert of(mine["queue.wait"])["genesis.released_by.item_id"] == "holder"
    assert of(mine["queue.enqueue"])[names.HOLDERS] == ("holder",)
    (release,) = [s for s in spans.named("release") if of(s)[names.ITEM_ID] == "holder"]
    assert of(release)["genesis.granted_to.item_id"] == "waiter"


async def test_who_was_waited_for_is_told_without_a_link(telemetry: Telemetry, spans: Spans) -> None:
    """The other call was not sampled: it has no context, but a name."""
    backend = ObservedBackend(Unsampled(), telemetry, "1")
    await backend.enter(EnterRequest("sales", "holder", 1))
    waiter = await backend.enter(EnterRequest("sales", "waiter", 1))
    await backend.wait(waiter.ticket, None)
    backend.leave(waiter.ticket)
    (wait,) = spans.named("wait")
    assert wait.links == ()
    assert of(wait)["genesis.released_by.item_id"] == "unsampled"
    assert of(wait)["genesis.released_by.instance_id"] == "elsewhere"


class Unsampled(InMemoryBackend):
    async def wait(self, ticket: Any, timeout: float | None) -> Grant:
        return Grant(7, CallRef("unsampled", "elsewhere", ""))


async def test_a_reclaimed_call_ends_in_its_own_trace(telemetry: Telemetry, spans: Spans) -> None:
    """`queue.reclaim`, an error, under the span whose context came with the ticket."""
    inner = InMemoryBackend()
    ObservedBackend(inner, telemetry, "1")
    context = "00-0123456789abcdef0123456789abcdef-0123456789abcdef-01"
    inner._emit(Reclaimed("sales", "call-1", "dead-1", "holding", context))
    (reclaim,) = spans.named("reclaim")
    assert f"{reclaim.context.trace_id:032x}" == "0123456789abcdef0123456789abcdef"
    assert of(reclaim)["genesis.reclaimed_from.instance_id"] == "dead-1"
    assert not reclaim.status.is_ok


async def test_a_loss_has_its_time_on_the_hold(telemetry: Telemetry, spans: Spans) -> None:
    inner = InMemoryBackend()
    backend = ObservedBackend(inner, telemetry, "1")
    ticket = (await backend.enter(EnterRequest("sales", "call"))).ticket
    inner._emit(SlotLost(ticket, "lapsed"))
    backend.leave(ticket)
    (hold,) = spans.named("hold")
    assert [(event.name, dict(event.attributes)) for event in hold.events] == [
        ("lost", {"reason": "lapsed"})
    ]


def test_opentelemetrys_variables_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "theirs")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    handle = configure("ours", otlp_endpoint="http://127.0.0.1:9", json_logs=False)
    with contextlib.closing(contextlib.ExitStack()) as stack:
        stack.callback(handle.shutdown, 1.0)
        provider = handle.tracer_provider
        assert provider.resource.attributes["service.name"] == "theirs"
        assert not provider.get_tracer("x").start_span("x").is_recording()
