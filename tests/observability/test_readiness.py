"""`/ready`, from the server and from the ASGI application."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from genesis import Queue
from genesis.observability import ObservabilityServer, Telemetry, asgi_app
from genesis.queue import RedisBackend
from tests.support.asgi import request
from tests.support.http import aask, ask
from tests.support.redis_server import RedisServer
from tests.support.waiting import quiesce, wait_until


class Failing:
    """A queue whose backend fails with a secret in the error."""

    async def ping(self) -> None:
        raise ConnectionError("redis://user:secret@example.invalid:6379 is down")


class Silent:
    """A queue whose backend never answers."""

    async def ping(self) -> None:
        await asyncio.Event().wait()


async def test_a_blocked_loop_is_alive_and_not_ready(registry: CollectorRegistry) -> None:
    """While the event loop is blocked, metrics and health are served, and /ready names the reason."""
    async with (
        Queue(telemetry=Telemetry(registry)) as queue,
        ObservabilityServer(queue, registry, port=0, ready_timeout=0.2) as server,
    ):
        # Asked from within the loop: it is blocked for as long as each request takes.
        assert ask(server.port, "/health").status == 200
        assert ask(server.port, "/metrics").status == 200
        ready = ask(server.port, "/ready")
        assert (ready.status, ready.body) == (
            503,
            b"not ready: the event loop did not answer within 0.2 s\n",
        )
        assert (await aask(server.port, "/ready")).status == 200


@pytest.mark.parametrize("how", ["server", "asgi"])
async def test_readiness_tells_no_secret(how: str, registry: CollectorRegistry) -> None:
    """A failing and a silent backend are 503, with the kind of the error and not its text."""
    for queue, expected in ((Failing(), b"ConnectionError"), (Silent(), b"did not answer")):
        if how == "server":
            async with ObservabilityServer(queue, registry, port=0, ready_timeout=0.1) as server:
                reply = await aask(server.port, "/ready")
        else:
            reply = await request(asgi_app(queue, registry, ready_timeout=0.1), "/ready")
        assert reply.status == 503
        assert expected in reply.body
        assert b"secret" not in reply.body


async def test_readiness_follows_redis(own_redis: RedisServer, registry: CollectorRegistry) -> None:
    """Ready while Redis answers, not while it is gone, ready again when it is back."""
    backend = RedisBackend(own_redis.url, lease=2.0)
    async with (
        Queue(backend, telemetry=Telemetry(registry)) as queue,
        ObservabilityServer(queue, registry, port=0) as server,
    ):

        async def status() -> int:
            return (await aask(server.port, "/ready")).status

        assert await status() == 200
        own_redis.kill()
        gone = await aask(server.port, "/ready")
        assert gone.status == 503
        assert str(own_redis.port).encode() not in gone.body
        own_redis.start()

        async def ready() -> bool:
            return await status() == 200

        await wait_until(ready, "the server is ready again")


async def test_a_client_that_hangs_up_leaves_no_ping_behind() -> None:
    """ASGI servers cancel the application then; the ping to a backend that hangs ends with it."""
    ended = asyncio.Event()

    class Hanging:
        async def ping(self) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()

    asking = asyncio.create_task(request(asgi_app(Hanging(), CollectorRegistry()), "/ready"))
    await quiesce()
    asking.cancel()
    await asyncio.wait_for(ended.wait(), 1)


@pytest.mark.parametrize("how", ["server", "asgi"])
async def test_a_draining_queue_is_not_ready(how: str, registry: CollectorRegistry) -> None:
    """The load balancer sends no more calls to a process that is about to stop."""
    async with Queue(telemetry=Telemetry(registry)) as queue:
        await queue.drain(0)
        if how == "server":
            async with ObservabilityServer(queue, registry, port=0) as server:
                reply = await aask(server.port, "/ready")
        else:
            reply = await request(asgi_app(queue, registry), "/ready")
    assert (reply.status, reply.body) == (503, b"not ready: the queue is draining\n")


@pytest.mark.parametrize("make", [ObservabilityServer, asgi_app])
def test_a_timeout_that_is_not_positive_is_an_error(make: Callable[..., Any]) -> None:
    """A ping that has no time would never be answered."""
    with pytest.raises(ValueError, match="ready_timeout"):
        make(ready_timeout=0)


async def test_a_cancelled_ping_is_an_answer(registry: CollectorRegistry) -> None:
    """An application that cancels all tasks at its end still answers its probes."""

    class Cancelled:
        async def ping(self) -> None:
            raise asyncio.CancelledError

    reply = await request(asgi_app(Cancelled(), registry), "/ready")
    assert (reply.status, reply.body) == (
        503,
        b"not ready: the backend does not answer (CancelledError)\n",
    )


async def test_stopping_needs_no_thread_of_the_application(registry: CollectorRegistry) -> None:
    """All threads of the default executor might be blocked."""
    server = ObservabilityServer(registry=registry, port=0)
    await server.start()
    release = threading.Event()
    loop = asyncio.get_running_loop()
    blocked = [loop.run_in_executor(None, release.wait) for _ in range(64)]
    try:
        await asyncio.wait_for(server.stop(), 10)
    finally:
        release.set()
        await asyncio.gather(*blocked)
