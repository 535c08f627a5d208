"""`until_disconnected`: end a web request's wait when its client disconnects."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol


class _Request(Protocol):
    """The part of a Starlette or FastAPI request that is used here."""

    @property
    def receive(self) -> Callable[[], Awaitable[MutableMapping[str, Any]]]: ...

    async def body(self) -> bytes: ...


@dataclass(eq=False, slots=True)
class Client:
    """The client of a request."""

    gone: bool = False
    """Whether it disconnected before the block ended."""


@asynccontextmanager
async def until_disconnected(request: _Request) -> AsyncIterator[Client]:
    """Cancel the block when the client disconnects, then continue after the block.

    ::

        async with until_disconnected(request) as client:
            async with queue.slot("model", max_concurrent=8, timeout=30):
                answer = await ask_the_model()
        if client.gone:
            return Response(status_code=499)  # nobody reads it

    A waiter leaves the line at once; a holder gives its slot back. Any other cancellation propagates.
    The request's body is read first, unless the application has read it; it can be read again inside
    the block. Starlette itself is not imported: any object with its `receive` and `body` works.

    Do not use it in the generator of a `StreamingResponse`. Starlette has consumed the messages of the
    body by then, so entering could wait until the client disconnects, and the cancellation could miss
    the block. `async with queue.slot(...)` alone is right there: under uvicorn, Starlette itself
    cancels the generator when the client disconnects.

    Args:
        request: a Starlette or FastAPI `Request`.

    Raises:
        starlette.requests.ClientDisconnect: the client disconnected while it sent the body.
    """
    with suppress(RuntimeError):  # the application has consumed the body as a stream
        await request.body()  # before `watch`, which would consume the body's messages
    client = Client()
    host = asyncio.current_task()
    assert host is not None
    before = host.cancelling() if hasattr(host, "cancelling") else 0

    async def watch() -> None:
        await asyncio.sleep(0)  # an eager task would cancel its host, which might never wait
        with suppress(Exception):  # the server failed: nothing is known about the client
            while (await request.receive())["type"] != "http.disconnect":
                pass
            client.gone = True
            host.cancel()

    watching = asyncio.ensure_future(watch())
    try:
        yield client
    except asyncio.CancelledError:
        # Before Python 3.11, other cancellations cannot be detected.
        if not client.gone or (hasattr(host, "cancelling") and host.cancelling() > before + 1):
            raise
    finally:
        watching.cancel()
        if client.gone and hasattr(host, "uncancel"):
            host.uncancel()  # however the block ended
