"""A web application with a waiting line: FastAPI, in any number of workers.

    pip install 'genesis-queue[otel]' fastapi uvicorn uvloop
    GENESIS_REDIS_URL=redis://localhost:6379 PROMETHEUS_MULTIPROC_DIR=/run/metrics \\
        uvicorn --factory examples.fastapi_app:create_app --workers 2 --timeout-graceful-shutdown 20

    GET /call/{item_id}?seconds=2&queue=calls   waits for a slot, and holds it for 2 seconds
    GET /queue/{queue_id}                       the numbers, holders and waiters of a queue
    GET /metrics, /health, /ready               for Prometheus and the load balancer

Without GENESIS_REDIS_URL the queue is in this process, so use one worker. The directory for the metrics
of several workers must exist and be empty. OTEL_EXPORTER_OTLP_ENDPOINT is the target of traces; with
opentelemetry-instrumentation-fastapi they begin with the request.

On SIGTERM the server accepts no more requests, waits for the running ones, cancels those that take
longer than `--timeout-graceful-shutdown`, and ends the lifespan. gunicorn has no such option: set it in
`CONFIG_KWARGS` of a subclass of uvicorn_worker.UvicornWorker, to less than `--graceful-timeout`.
Otherwise gunicorn kills a call that takes longer, and its slot is reaped after the lease.
"""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import FastAPI, Path, Query, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CollectorRegistry
from starlette.requests import ClientDisconnect

from genesis import BackendUnavailableError, EvictedError, Queue, QueueTimeoutError, until_disconnected
from genesis.exceptions import GenesisError, QueueDrainingError, QueueFullError
from genesis.observability import Telemetry, asgi_app, configure
from genesis.queue import RedisBackend

__all__ = ["create_app"]

QUEUE_ID = "calls"
LIMIT = 2
MAX_WAITING = 100
WAIT_SECONDS = 30.0
DRAIN_SECONDS = 20.0

Name = Annotated[str, Path(max_length=200)]


def create_app(registry: CollectorRegistry | None = None) -> FastAPI:
    """Create the application and its queue.

    The server can call this before it forks its workers, because the queue connects at its first call.

    Args:
        registry: a prometheus_client registry; the process' default registry if None.
    """
    url = os.environ.get("GENESIS_REDIS_URL")
    queue = Queue(RedisBackend(url) if url else None, telemetry=Telemetry(registry))

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        with configure("genesis-fastapi-example", instance_id=queue.instance_id):
            async with queue:
                yield
                # The server has waited for its requests; wait for any other calls of the queue.
                await queue.drain(DRAIN_SECONDS)

    app = FastAPI(title="genesis example", lifespan=lifespan)

    @app.get("/call/{item_id}")
    async def call(
        request: Request,
        item_id: Name,
        seconds: Annotated[float, Query(ge=0, le=3600)] = 0.0,
        queue_id: Annotated[str, Query(alias="queue", min_length=1, max_length=200)] = QUEUE_ID,
        max_waiting: Annotated[int | None, Query(ge=0, le=1_000_000)] = None,
    ) -> Any:
        try:
            async with (
                until_disconnected(request) as client,
                queue.slot(
                    queue_id,
                    item_id=item_id,
                    max_concurrent=LIMIT,
                    timeout=WAIT_SECONDS,
                    max_waiting=MAX_WAITING if max_waiting is None else max_waiting,
                ) as slot,
            ):
                await asyncio.sleep(seconds)  # the work
        except asyncio.CancelledError as error:  # the server shuts down, and ends what is left
            return await come_back_later(request, error)
        if client.gone:
            return Response(status_code=499)  # nobody reads it
        return {
            "item_id": slot.item_id,
            "waited": slot.waited,
            "fencing_token": slot.fencing_token,
            "lost": slot.lost,
        }

    @app.get("/queue/{queue_id}")
    async def show(queue_id: Name) -> Any:
        stats = await queue.stats(queue_id)
        entries = await queue.entries(queue_id)
        return {**stats._asdict(), "entries": [entry._asdict() for entry in entries]}

    async def come_back_later(_: Request, error: BaseException) -> Response:
        after = getattr(error, "retry_after", None)
        headers = {} if after is None else {"Retry-After": f"{max(1, math.ceil(after))}"}
        return JSONResponse({"error": type(error).__name__}, status_code=503, headers=headers)

    @app.exception_handler(ClientDisconnect)
    async def gone(_: Request, __: Exception) -> Response:  # within the body
        return Response(status_code=499)

    unserved: tuple[type[GenesisError], ...] = (
        *(QueueTimeoutError, QueueFullError, QueueDrainingError),
        *(EvictedError, BackendUnavailableError),
    )
    for error in unserved:
        app.add_exception_handler(error, come_back_later)
    app.mount("/", asgi_app(queue, registry))  # last: it handles all remaining paths
    return app
