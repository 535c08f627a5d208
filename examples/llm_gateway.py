"""An LLM gateway: at most N concurrent model calls, over all pods.

    pip install genesis-queue starlette uvicorn
    python examples/llm_gateway.py --port 8000 --redis redis://localhost:6379 --limit 8

    POST /complete {"prompt": "Hello"}     200 with the answer, after waiting for a slot
    GET /metrics, /health, /ready          for Prometheus and the load balancer

Without `--model URL` it starts a fake model and logs its address, for use with `--model` of other pods.

| reply | when | Retry-After |
|---|---|---|
| 429 | `--max-waiting` requests already wait | the expected wait, from recent calls |
| 503 | no slot in `--wait` seconds, Redis unreachable, the slot is lost, or the pod stops | 5 s |
| 502, 504 | the model failed, or took more than `--model-seconds` | - |

A counter in Redis with a time to live does the same until something fails. Common complaints about it:

- *After a crash its slots are stuck until the counter expires, an hour later.* Here they are taken back
  after the pod's lease (`--lease`, 15 s).
- *A cancelled request never counts down.* Here its place or slot is free at once: `until_disconnected`
  cancels the request when the client disconnects.
- *Without Redis each pod counts for itself.* Here a request without a slot gets 503 and never calls the
  model. Waiting requests keep their places for the lease, and a call whose slot is lost is cancelled.

More than N calls reach the model only after Redis has lost its data (`genesis/backends/redis/README.md`
explains for how long), and while a pod that was cut off from Redis for the lease has not yet cancelled
its calls: a tenth of a second, or as long as its process stands still.

On SIGTERM new requests get 503, and so does `/ready`. Waiting and running requests can finish, for at
most `--drain` seconds; then the server stops, and what is left gets 503. A second signal stops it at
once.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import math
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route

sys.path.insert(0, str(Path(__file__).parents[1]))  # a script run by path has only its own folder

from examples.fake_model import FakeModel, post
from genesis import (
    BackendUnavailableError,
    EvictedError,
    Queue,
    QueueDrainingError,
    QueueFullError,
    QueueTimeoutError,
    SlotLostError,
    until_disconnected,
)
from genesis.observability import Telemetry, asgi_app, configure
from genesis.queue import RedisBackend, Slot

__all__ = ["QUEUE_ID", "Settings", "create_app", "main"]

QUEUE_ID = "model"
MAX_ID = 200  # characters of a request's id
RETRY_SECONDS = 5.0  # used without an estimate
NOT_NOW = (QueueTimeoutError, QueueDrainingError, EvictedError, BackendUnavailableError, SlotLostError)

logger = logging.getLogger("llm_gateway")


@dataclass(frozen=True)
class Settings:
    """Times are in seconds."""

    redis: str = ""
    model: str = ""  # url; a fake model is started if empty
    limit: int = 8  # concurrent model calls, over all pods
    max_waiting: int = 100  # requests in the line, over all pods
    wait: float = 30.0  # in the line
    model_seconds: float = 60.0  # for the model to answer
    lease: float = 15.0


async def ask_while_held(slot: Slot, url: str, body: bytes, seconds: float) -> bytes:
    """Call the model, and cancel the call as soon as the slot is lost: another call might have it now.

    Raises:
        SlotLostError: this pod could not reach Redis for longer than the lease.
        asyncio.TimeoutError: no answer in time.
        OSError, EOFError: the model failed.
    """
    asking = asyncio.ensure_future(asyncio.wait_for(post(url, body, slot.item_id), seconds))
    try:
        while not (await asyncio.wait({asking}, timeout=0.1))[0]:
            slot.ensure_held()
        status, _, answer = asking.result()
    finally:
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
    if status != 200:
        raise OSError(f"the model answered {status}")
    return answer


def create_app(
    settings: Settings, queue: Queue, registry: CollectorRegistry | None = None
) -> Starlette:
    """Create the application. It closes the queue at its end."""
    line = queue.semaphore(
        QUEUE_ID, settings.limit, timeout=settings.wait, max_waiting=settings.max_waiting
    )

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(queue)
            app.state.model = settings.model
            if not settings.model:
                app.state.model = (await stack.enter_async_context(FakeModel())).url
                logger.info("a fake model answers at %s", app.state.model)
            yield
            await queue.drain(1.0)  # requests that the server has broken off give back what they have

    async def complete(request: Request) -> Response:
        try:
            async with until_disconnected(request):
                return await answer_to(request)
        except ClientDisconnect:
            pass
        except asyncio.CancelledError as error:  # the server stops, and breaks off what is left
            return come_back(503, error, None)
        return Response(status_code=499)  # the client has gone; nobody reads this

    async def answer_to(request: Request) -> Response:
        body = await request.body()
        try:
            async with line(item_id=request.headers.get("x-request-id", "")[:MAX_ID] or None) as slot:
                url: str = request.app.state.model
                answer = await ask_while_held(slot, url, body, settings.model_seconds)
        except QueueFullError as error:
            return come_back(429, error, error.retry_after)
        except NOT_NOW as error:
            return come_back(503, error, None)
        except asyncio.TimeoutError as error:  # after NOT_NOW, which includes a TimeoutError
            return JSONResponse({"error": type(error).__name__}, 504)
        except (OSError, EOFError) as error:
            return JSONResponse({"error": str(error)}, 502)
        return Response(answer, media_type="application/json")

    routes = [
        Route("/complete", complete, methods=["POST"]),
        Mount("/", asgi_app(queue, registry)),
    ]
    return Starlette(routes=routes, lifespan=lifespan)


def come_back(status: int, error: BaseException, seconds: float | None) -> Response:
    after = max(1, math.ceil(RETRY_SECONDS if seconds is None else seconds))
    return JSONResponse({"error": type(error).__name__}, status, headers={"Retry-After": str(after)})


class Server(uvicorn.Server):
    """On a signal, drain the queue while the server still replies; then stop the server."""

    def __init__(self, config: uvicorn.Config, drain: Callable[[], Awaitable[object]]) -> None:
        super().__init__(config)
        self._drain = drain
        self._draining: asyncio.Task[None] | None = None

    async def serve(self, sockets: Any = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().serve(sockets)

    def handle_exit(self, _sig: int, _frame: FrameType | None) -> None:
        """Not uvicorn's, which raises the signal again in the end: `main` would not come to its end."""
        if self._draining is None:
            self._loop.call_soon_threadsafe(self._begin)
        else:
            self.config.timeout_graceful_shutdown = 0
            self.should_exit = True

    def _begin(self) -> None:
        async def drain() -> None:
            logger.info("draining: new requests are refused, the others finish")
            await self._drain()
            self.should_exit = True

        self._draining = asyncio.ensure_future(drain())


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="An LLM gateway with a waiting line.")
    add = parser.add_argument
    add("--host", default="127.0.0.1")
    add("--port", type=int, default=8000)
    add("--redis", default="", metavar="URL", help="share the line; in this process if left out")
    add("--model", default="", metavar="URL", help="a fake one is started if left out")
    add("--limit", type=int, default=Settings.limit, help="calls at the model, over all pods")
    add("--max-waiting", type=int, default=Settings.max_waiting, help="requests in the line")
    add("--wait", type=float, default=Settings.wait, help="seconds in the line at most")
    add("--model-seconds", type=float, default=Settings.model_seconds, help="for an answer")
    add("--lease", type=float, default=Settings.lease, help="seconds; the same for all pods")
    add("--drain", type=float, default=90.0, help="seconds to finish requests on SIGTERM")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    options = vars(parse_arguments(sys.argv[1:] if arguments is None else arguments))
    host, port, drain = (options.pop(name) for name in ("host", "port", "drain"))
    settings = Settings(**options)
    with configure("llm-gateway") as observability:
        backend = RedisBackend(settings.redis, lease=settings.lease) if settings.redis else None
        queue = Queue(backend, telemetry=Telemetry(tracer_provider=observability.tracer_provider))
        app = create_app(settings, queue)
        # After the drain, so that the last replies are sent.
        config = uvicorn.Config(app, host=host, port=port, timeout_graceful_shutdown=5)
        Server(config, lambda: queue.drain(drain)).run()


if __name__ == "__main__":
    main()
