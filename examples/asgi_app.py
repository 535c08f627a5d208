"""A web application with a waiting line: plain ASGI, for any ASGI server.

    OTEL_EXPORTER_OTLP_ENDPOINT=http://localhost:4318 GENESIS_REDIS_URL=redis://localhost:6379 \\
        uvicorn examples.asgi_app:app

    GET /call/{item_id}?seconds=2&queue=calls   waits for one of the slots, and holds it for that long;
                                                &max_waiting=20: unless so many wait already
    GET /queue/{queue_id}                       how long the line is, and who is in it
    GET /metrics, /health, /ready               for Prometheus and the load balancer

Both variables may be left out: then nothing is exported, and the line is in this process. A client
that goes away while it waits or holds gives its place up at once.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import AsyncExitStack
from typing import Any
from urllib.parse import parse_qs

from opentelemetry import propagate, trace
from prometheus_client import CollectorRegistry

from genesis import BackendUnavailableError, EvictedError, Queue, QueueTimeoutError
from genesis.exceptions import QueueFullError
from genesis.observability import Telemetry, asgi_app, configure
from genesis.queue import RedisBackend

__all__ = ["Application", "app"]

QUEUE_ID = "calls"
LIMIT = 2
WAIT_SECONDS = 30.0
MAX_SECONDS = 3600.0

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Reply = tuple[int, dict[str, Any]]


class Application:
    """The ASGI application; its queue lives from the lifespan's startup to its shutdown.

    Args:
        registry: of prometheus_client; the process' default one if None.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self._registry = registry
        self._stack = AsyncExitStack()
        self._queue: Queue | None = None
        self._observability = asgi_app(None, registry)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "http" and scope["path"].startswith(("/call/", "/queue/")):
            await _respond(send, *await self._unless_gone(scope, receive))
        else:
            await self._observability(scope, receive, send)

    async def open(self) -> None:
        """Set up traces and logs, and the queue."""
        observability = configure("genesis-asgi-example")
        # It blocks while it flushes: in a thread, with the loop free for what still goes on.
        self._stack.push_async_callback(asyncio.to_thread, observability.shutdown)
        url = os.environ.get("GENESIS_REDIS_URL")
        telemetry = Telemetry(registry=self._registry, tracer_provider=observability.tracer_provider)
        queue = Queue(RedisBackend(url) if url else None, telemetry=telemetry)
        self._queue = await self._stack.enter_async_context(queue)
        self._observability = asgi_app(queue, self._registry)

    async def close(self) -> None:
        self._queue = None
        await self._stack.aclose()

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        try:
            await self.open()
        except Exception as error:
            await self.close()
            await send({"type": "lifespan.startup.failed", "message": type(error).__name__})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self.close()
        await send({"type": "lifespan.shutdown.complete"})

    async def _unless_gone(self, scope: Scope, receive: Receive) -> Reply:
        """The reply; if the client goes away first, the work on it is cancelled."""
        working = asyncio.ensure_future(self._work(scope))
        watching = asyncio.ensure_future(_gone(receive))
        try:
            either: set[asyncio.Future[Any]] = {working, watching}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        finally:
            watching.cancel()
            working.cancel()
            await asyncio.gather(working, watching, return_exceptions=True)
        return (499, {}) if working.cancelled() else working.result()

    async def _work(self, scope: Scope) -> Reply:
        queue = self._queue
        if queue is None:
            return 503, {"error": "the application is not started"}
        if scope["method"] != "GET":
            return 405, {"error": "only GET"}
        _, what, name = scope["path"].split("/", 2)
        if not name:
            return 404, {"error": "the path ends with an id"}
        try:
            if what == "queue":
                return await _show(queue, name)
            return await _call(queue, name, scope)
        except (QueueTimeoutError, QueueFullError, EvictedError, BackendUnavailableError) as error:
            return 503, {"error": type(error).__name__}
        except ValueError as error:
            return 400, {"error": str(error)}


async def _call(queue: Queue, item_id: str, scope: Scope) -> Reply:
    query = parse_qs(scope.get("query_string", b"").decode("latin-1"))
    seconds = float(query.get("seconds", ["0"])[0])
    if not (math.isfinite(seconds) and 0 <= seconds <= MAX_SECONDS):
        raise ValueError(f"seconds must be from 0 to {MAX_SECONDS:g}")
    queue_id = query.get("queue", [QUEUE_ID])[0]
    most = int(query["max_waiting"][0]) if "max_waiting" in query else None
    carrier = {key.decode("latin-1"): value.decode("latin-1") for key, value in scope["headers"]}
    tracer = trace.get_tracer("genesis.examples.asgi")
    with tracer.start_as_current_span(
        "GET /call/{item_id}", propagate.extract(carrier), kind=trace.SpanKind.SERVER
    ):
        async with queue.slot(
            queue_id, item_id=item_id, max_concurrent=LIMIT, timeout=WAIT_SECONDS, max_waiting=most
        ) as slot:
            await asyncio.sleep(seconds)
    return 200, {
        "item_id": slot.item_id,
        "waited": slot.waited,
        "fencing_token": slot.fencing_token,
        "lost": slot.lost,
    }


async def _show(queue: Queue, queue_id: str) -> Reply:
    stats = await queue.stats(queue_id)
    entries = await queue.entries(queue_id)
    return 200, {**stats._asdict(), "entries": [entry._asdict() for entry in entries]}


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _respond(send: Send, status: int, content: dict[str, Any]) -> None:
    body = json.dumps(content).encode() + b"\n"
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


app = Application()
