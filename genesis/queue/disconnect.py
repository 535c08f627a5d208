"""`until_disconnected`: for web applications, whose clients go away while they wait."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager, suppress
from typing import Any, Protocol

__all__ = ["Client", "until_disconnected"]


class _Request(Protocol):
    """What is needed of a Starlette or FastAPI request."""

    @property
    def receive(self) -> Callable[[], Awaitable[MutableMapping[str, Any]]]: ...

    async def body(self) -> bytes: ...


class Client:
    """The other end of a request.

    Attributes:
        gone: whether it disconnected before the block was done.
    """

    __slots__ = ("gone",)

    def __init__(self) -> None:
        self.gone = False


@asynccontextmanager
async def until_disconnected(request: _Request) -> AsyncIterator[Client]:
    """Cancel the block when the client has gone, and go on behind the block.

    ::

        async with until_disconnected(request) as client:
            async with queue.slot("model", max_concurrent=8, timeout=30):
                answer = await ask_the_model()
        if client.gone:
            return Response(status_code=499)  # nobody reads it

    The waiter leaves the line at once, or gives its slot back. A cancellation from elsewhere passes
    through. The request's body is read first, if the application has not done so, and may be read again
    inside. Needs no Starlette of its own; anything with its `receive` and `body` will do.

    Args:
        request: a Starlette or FastAPI `Request`.

    Raises:
        starlette.requests.ClientDisconnect: the client went away while it sent the body.
    """
    with suppress(RuntimeError):  # the application has consumed it as a stream
        await request.body()  # else `_disconnected` would take its messages
    client = Client()
    host = asyncio.current_task()
    assert host is not None
    disconnected = asyncio.ensure_future(_disconnected(request.receive))

    def cancel(_: object) -> None:
        if not disconnected.cancelled() and disconnected.exception() is None:
            client.gone = True
            host.cancel()

    disconnected.add_done_callback(cancel)
    try:
        yield client
    except asyncio.CancelledError:
        if not client.gone or _is_cancelled_by_others(host):
            raise
    finally:
        disconnected.remove_done_callback(cancel)
        disconnected.cancel()


async def _disconnected(receive: Callable[[], Awaitable[MutableMapping[str, Any]]]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _is_cancelled_by_others(host: asyncio.Task[Any]) -> bool:
    uncancel = getattr(host, "uncancel", None)  # Python 3.11; before, nobody could tell
    return uncancel is not None and uncancel() > 0
