"""The LLM gateway in this process: its replies."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from examples.fake_model import FakeModel
from examples.llm_gateway import QUEUE_ID, Settings, create_app
from genesis import Queue
from genesis.observability import Telemetry
from genesis.queue import RedisBackend
from tests.conftest import LEASE, assert_nothing_kept
from tests.support.asgi import Reply, request
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until


class Gateway:
    """The application, its queue and its model, in this process."""

    def __init__(self, queue: Queue, model: FakeModel, registry: CollectorRegistry) -> None:
        self.queue = queue
        self.model = model
        self.registry = registry
        self.stack = AsyncExitStack()

    async def start(self, **settings: Any) -> None:
        options = {"model": self.model.url, "limit": 1, "max_waiting": 1, **settings}
        self.app = create_app(Settings(**options), self.queue, self.registry)
        await self.stack.enter_async_context(self.app.router.lifespan_context(self.app))

    async def send(
        self, path: str = "/complete", name: str = "", gone: asyncio.Event | None = None
    ) -> Reply:
        """One request; its client goes away when `gone` is set."""
        return await request(
            self.app,
            path,
            "POST" if path == "/complete" else "GET",
            headers={"x-request-id": name} if name else None,
            body=b'{"prompt": "Hello"}',
            gone=gone,
        )

    def begin(self, **options: Any) -> asyncio.Task[Reply]:
        return asyncio.create_task(self.send(**options))

    async def stands(self, waiting: int, in_use: int) -> None:
        async def is_so() -> bool:
            stats = await self.queue.stats(QUEUE_ID)
            return (stats.waiting, stats.in_use) == (waiting, in_use)

        await wait_until(is_so, f"{waiting} wait and {in_use} are at the model")


class Speaker(FakeModel):
    """Says these bytes to whatever it is asked."""

    def __init__(self, reply: bytes) -> None:
        super().__init__()
        self._reply = reply
        self.heard = b""

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.heard = await reader.readuntil(b"\r\n\r\n")
        writer.write(self._reply)
        writer.close()


@pytest.fixture
async def gateway(telemetry: Telemetry, registry: CollectorRegistry) -> AsyncIterator[Gateway]:
    queue = Queue(telemetry=telemetry)
    async with FakeModel(seconds=0.005) as model:
        gateway = Gateway(queue, model, registry)
        async with gateway.stack:
            yield gateway
            await assert_nothing_kept(queue)


async def test_a_request_is_answered_by_the_model(gateway: Gateway) -> None:
    await gateway.start()
    reply = await gateway.send(name="request-1")
    assert (reply.status, json.loads(reply.body)) == (200, {"answer": "You sent 19 bytes."})
    assert gateway.model.seen == ["request-1"]
    metrics = (await gateway.send("/metrics")).body.decode()
    assert f'genesis_queue_hold_seconds_count{{outcome="released",queue="{QUEUE_ID}"}} 1.0' in metrics


@pytest.mark.parametrize(("holds", "retry_after"), [(0, "5"), (10, "1")])
async def test_a_full_line_is_429_with_retry_after(
    holds: int, retry_after: str, gateway: Gateway
) -> None:
    """From the estimate, once it is known; the line stays as it is."""
    await gateway.start()
    for _ in range(holds):
        await gateway.send()
    gateway.model.seconds = 3600.0
    gone = asyncio.Event()
    others = [gateway.begin(gone=gone) for _ in range(2)]
    await gateway.stands(1, 1)
    reply = await gateway.send()
    assert (reply.status, reply.json["error"]) == (429, "QueueFullError")
    assert reply.headers["retry-after"] == retry_after
    await gateway.stands(1, 1)
    gone.set()
    await asyncio.gather(*others)


async def test_a_wait_that_is_too_long_is_503(gateway: Gateway) -> None:
    await gateway.start(wait=0.02)
    async with gateway.queue.slot(QUEUE_ID):
        reply = await gateway.send()
    assert (reply.status, reply.json["error"]) == (503, "QueueTimeoutError")
    assert reply.headers["retry-after"] == "5"


async def test_a_client_that_leaves_frees_its_place_and_its_slot(gateway: Gateway) -> None:
    """And the model's call is broken off before another one has the slot."""
    gateway.model.seconds = 3600.0
    await gateway.start(max_waiting=2)
    gone = [asyncio.Event() for _ in range(3)]
    calls = []
    for number, event in enumerate(gone):
        calls.append(gateway.begin(name=str(number), gone=event))
        await gateway.stands(number, 1)
    gone[1].set()
    assert (await calls[1]).status == 499
    await gateway.stands(1, 1)
    gone[0].set()
    await gateway.stands(0, 1)
    await wait_until(lambda: gateway.model.seen == ["0", "2"], "the model has the next call")
    assert gateway.model.most == 1
    gone[2].set()
    await asyncio.gather(*calls)


async def test_a_model_that_fails_is_502_and_a_slow_one_504(gateway: Gateway) -> None:
    """The slot is free afterwards."""
    gateway.model.seconds = 3600.0
    await gateway.start(model_seconds=0.02)
    assert (await gateway.send()).status == 504
    gateway.app.state.model = "http://127.0.0.1:1/"
    assert (await gateway.send()).status == 502
    await gateway.stands(0, 0)


@pytest.mark.parametrize(
    "reply",
    [
        b"",
        b"\r\n\r\n",
        b"hello\r\n\r\n",
        b"HTTP/1.1 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70_000 + b"\r\n\r\n",
        b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n",
    ],
    ids=range(8),
)
async def test_a_model_that_answers_nonsense_or_a_part_is_502(reply: bytes, gateway: Gateway) -> None:
    async with Speaker(reply) as model:
        await gateway.start(model=model.url)
        assert (await gateway.send()).status == 502
        await gateway.stands(0, 0)


async def test_a_models_headers_may_be_written_in_any_way(gateway: Gateway) -> None:
    """A model that knows HTTP/1.1 may send chunks, but not to a client of HTTP/1.0."""
    reply = b"HTTP/1.1 200 OK\r\nCONTENT-LENGTH:2\r\nX-Odd\r\n\r\n{}"
    model = Speaker(reply)
    async with model:
        await gateway.start(model=model.url)
        answer = await gateway.send()
    assert (answer.status, answer.body) == (200, b"{}")
    assert model.heard.startswith(b"POST / HTTP/1.0\r\n")


@pytest.mark.parametrize("bad", [{"limit": 0}, {"max_waiting": -1}, {"wait": -1.0}])
async def test_bad_settings_are_an_error_at_the_start(bad: dict[str, Any], gateway: Gateway) -> None:
    """And not one for every request."""
    with pytest.raises(ValueError, match=f"queue '{QUEUE_ID}'"):
        await gateway.start(**bad)


async def test_no_prompt_goes_out_in_the_clear_instead_of_over_https(gateway: Gateway) -> None:
    await gateway.start(model=gateway.model.url.replace("http:", "https:"))
    assert (await gateway.send()).status == 502
    assert gateway.model.seen == []


async def test_a_request_id_may_be_long(gateway: Gateway) -> None:
    """It is a name in logs and traces, cut to a reasonable length, and no reason to fail."""
    await gateway.start()
    assert (await gateway.send(name="x" * 60_000)).status == 200
    assert gateway.model.seen == ["x" * 200]


async def test_a_call_whose_slot_is_lost_is_cancelled(gateway: Gateway) -> None:
    gateway.model.seconds = 3600.0
    await gateway.start()
    call = gateway.begin(name="request-1")
    await wait_until(lambda: gateway.model.active == 1, "the model has the call")
    assert await gateway.queue.evict(QUEUE_ID, "request-1") == 1
    assert ((await call).status, (await call).json["error"]) == (503, "SlotLostError")
    await wait_until(lambda: gateway.model.active == 0, "the model has stopped")


async def test_without_redis_no_call_reaches_the_model(
    own_redis: RedisServer, gateway: Gateway, telemetry: Telemetry
) -> None:
    """A pod that counted for itself would pass the limit of all pods."""
    gateway.queue = Queue(RedisBackend(own_redis.url, lease=LEASE), telemetry=telemetry)
    await gateway.start()
    assert (await gateway.send(name="before")).status == 200
    own_redis.kill()
    reply = await gateway.send(name="after")
    assert (reply.status, reply.json["error"]) == (503, "BackendUnavailableError")
    assert gateway.model.seen == ["before"]
    assert (await gateway.send("/ready")).status == 503
