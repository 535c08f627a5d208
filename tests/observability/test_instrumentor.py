"""Together with OpenTelemetry's instrumentation of redis-py, which creates a span per command."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis.asyncio
from opentelemetry.instrumentation.redis import RedisInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from prometheus_client import CollectorRegistry

from genesis import Queue
from genesis.observability import Telemetry
from genesis.queue import RedisBackend
from tests.conftest import LEASE, Spans
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until


@pytest.fixture
def provider(spans: Spans, redis_server: RedisServer) -> Iterator[TracerProvider]:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(spans))
    RedisInstrumentor().instrument(tracer_provider=provider)
    yield provider
    RedisInstrumentor().uninstrument()


async def test_heartbeats_stay_silent(
    provider: TracerProvider, spans: Spans, redis_server: RedisServer, registry: CollectorRegistry
) -> None:
    """A heartbeat during a hold creates no span; at the end there are only the call's own spans."""
    async with redis.asyncio.Redis.from_url(redis_server.url) as client:
        await client.ping()
    assert [span.name for span in spans.get_finished_spans()] == ["PING"]  # the instrumentation works
    spans.clear()

    def beats() -> float:
        labels = {"backend": "redis", "operation": "heartbeat", "outcome": "ok"}
        return registry.get_sample_value("genesis_backend_operation_seconds_count", labels) or 0.0

    backend = RedisBackend(redis_server.url, lease=LEASE / 2)
    async with Queue(backend, telemetry=Telemetry(registry, provider)) as queue:
        async with queue.slot("sales", item_id="call"):
            await wait_until(lambda: beats() >= 3, "three heartbeats")
            assert {span.name for span in spans.get_finished_spans()} == {
                "queue.acquire",
                "queue.enqueue",
            }
        await queue._backend.flush()
        made = {span.name for span in spans.get_finished_spans()}
    assert made == {f"queue.{name}" for name in ("slot", "acquire", "enqueue", "hold", "release")}
