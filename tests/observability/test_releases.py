"""How a release is observed: after it was sent, when its reply comes, or when none can come."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

from opentelemetry.trace import StatusCode
from prometheus_client import CollectorRegistry

from genesis import Queue
from genesis.backends.protocol import LeaveResult, Left, Ticket
from genesis.observability import Telemetry
from genesis.queue import InMemoryBackend
from tests.conftest import Spans, state_of
from tests.observability.conftest import run_alone
from tests.support.observations import end_as, holds, of, operations
from tests.support.waiting import quiesce, wait_until


class RepliesLater(InMemoryBackend):
    """A backend that reports the result of a `leave` only when `reply` is called, by a `Left` event."""

    def __init__(self) -> None:
        super().__init__()
        self.unreported: list[Left] = []

    def leave(  # type: ignore[override]
        self, ticket: Ticket, context: str = "", keep_place: float = 0.0
    ) -> LeaveResult | None:
        self.unreported.append(Left(ticket, super().leave(ticket, context, keep_place), confirmed=True))
        return None

    def reply(self, *, confirmed: bool = True) -> None:
        while self.unreported:
            self._emit(self.unreported.pop(0)._replace(confirmed=confirmed))


async def test_a_release_is_observed_when_its_reply_comes(
    telemetry: Telemetry, registry: CollectorRegistry, spans: Spans
) -> None:
    """The hold is observed at once, and its span; the release with the `Left` event, with its links."""
    inner = RepliesLater()
    queue = Queue(inner, telemetry=telemetry)
    waiting = asyncio.create_task(end_as(queue, "granted"))
    async with queue.slot("sales", item_id="holder"):
        waiting.cancel()
        heir = asyncio.create_task(end_as(queue, "granted"))
        await quiesce()
    await heir
    assert holds(registry) == {"released": 2}
    assert len(spans.named("hold")) == 2
    assert spans.named("release") == []
    assert not operations(registry, "leave")
    inner.reply()
    assert operations(registry, "leave") == 2 + len(inner.unreported)
    holder = next(s for s in spans.named("release") if of(s)["genesis.item_id"] == "holder")
    assert [link.attributes["genesis.item_id"] for link in holder.links] == ["secret-item"]
    assert not state_of(queue)


async def test_a_release_without_a_reply_is_unconfirmed(
    telemetry: Telemetry, registry: CollectorRegistry, spans: Spans
) -> None:
    """Its operation and its span have the outcome `unconfirmed`, which is not an error."""
    inner = RepliesLater()
    queue = Queue(inner, telemetry=telemetry)
    await end_as(queue, "granted")
    inner.reply(confirmed=False)
    assert operations(registry, "leave", "unconfirmed") == 1
    assert not operations(registry, "leave")
    (release,) = spans.named("release")
    assert of(release)["genesis.outcome"] == "unconfirmed"
    assert release.status.status_code is not StatusCode.ERROR
    inner.reply()
    assert not state_of(queue)


def test_a_queue_dropped_after_its_loop_ends_the_spans_of_a_release_without_a_reply(
    telemetry: Telemetry, registry: CollectorRegistry, spans: Spans
) -> None:
    """No reply can come any more: the release is unconfirmed."""
    queue = Queue(RepliesLater(), telemetry=telemetry)
    asyncio.run(end_as(queue, "granted"))
    assert spans.named("release") == []
    del queue
    gc.collect()
    asyncio.run(_until(lambda: spans.named("slot")))
    assert operations(registry, "leave", "unconfirmed") == 1
    (release,) = spans.named("release")
    assert of(release)["genesis.outcome"] == "unconfirmed"
    assert len(spans.named("slot")) == 1


async def _until(condition: Callable[[], Any]) -> None:
    await wait_until(condition, "the release of the dropped queue is observed")


COLLECTED_INSIDE_A_LOCK = """
import asyncio, gc
from genesis import Queue
from genesis.observability import Telemetry
from prometheus_client import REGISTRY
from tests.observability.test_releases import RepliesLater
from tests.support.waiting import wait_until

async def main():
    async with queue.slot("sales"):
        pass

telemetry = Telemetry()
queue = Queue(RepliesLater(), telemetry=telemetry)
asyncio.run(main())
labels = {"backend": "memory", "operation": "leave", "outcome": "unconfirmed"}
with telemetry.instruments.operation._lock:  # prometheus_client's: not reentrant
    del queue
    gc.collect()
seen = lambda: REGISTRY.get_sample_value("genesis_backend_operation_seconds_count", labels)
asyncio.run(wait_until(seen, "the release is observed"))
"""


def test_a_queue_that_is_collected_inside_a_sinks_lock_does_not_wait_for_it(tmp_path: Path) -> None:
    """The collector runs at any allocation, in any thread: the lock might be that thread's."""
    assert run_alone(COLLECTED_INSIDE_A_LOCK, PROMETHEUS_MULTIPROC_DIR=str(tmp_path)) == ("", "")


DROPPED_AT_EXIT = """
import asyncio
from genesis import Queue
from genesis.observability import Telemetry
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry
from tests.observability.test_releases import RepliesLater

provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(InMemorySpanExporter()))
queue = Queue(RepliesLater(), telemetry=Telemetry(CollectorRegistry(), provider))

async def main():
    async with queue.slot("sales"):
        pass

asyncio.run(main())
assert queue._backend._leaving
"""


def test_a_queue_that_is_dropped_as_the_process_ends_prints_nothing() -> None:
    """The SDK was shut down before, and would complain of each span."""
    assert run_alone(DROPPED_AT_EXIT) == ("", "")


class Watched(InMemoryBackend):
    """A backend that records what had been observed when each slot was given back."""

    def __init__(self, look: Callable[[], Any]) -> None:
        super().__init__()
        self._look = look
        self.seen: list[Any] = []

    def leave(self, ticket: Ticket, context: str = "", keep_place: float = 0.0) -> LeaveResult:
        self.seen.append((self._look(), bool(context)))
        return super().leave(ticket, context, keep_place)


async def test_the_release_is_sent_before_the_hold_is_observed(
    telemetry: Telemetry, registry: CollectorRegistry, spans: Spans
) -> None:
    """The next waiter does not wait for telemetry, and the command carries the context of the hold."""
    inner = Watched(lambda: (holds(registry), len(spans.named("hold"))))
    await end_as(Queue(inner, telemetry=telemetry), "granted")
    assert inner.seen == [(({}, 0), True)]
    assert holds(registry) == {"released": 1}
