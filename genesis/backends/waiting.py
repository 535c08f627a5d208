"""How a task waits for its grant: a future that a hand-off resolves, and at most one timer."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

from genesis.backends.protocol import Grant

__all__ = ["fail", "until_granted"]


def until_granted(future: asyncio.Future[Grant], timeout: float | None) -> Awaitable[Grant]:
    """`future`, to be awaited at most `timeout` seconds.

    A plain timer instead of `asyncio.wait_for`, which before Python 3.12 ran the wait in a task of
    its own and could lose a result that arrived together with a cancellation. Here nothing can be
    lost: the future is only a wake-up, and the caller says `leave` however the wait ends.

    Raises:
        TimeoutError: the timer came first.
    """
    return future if timeout is None else _granted_within(timeout, future)


async def _granted_within(timeout: float, future: asyncio.Future[Grant]) -> Grant:
    timer = future.get_loop().call_later(timeout, _expire, future)
    try:
        return await future
    finally:
        timer.cancel()


def fail(future: asyncio.Future[Grant], error: Exception) -> None:
    """End the wait with an error, unless it has ended."""
    if not future.done():
        future.set_exception(error)
        future.exception()  # its task may be on its way out, and never ask


def _expire(future: asyncio.Future[Grant]) -> None:
    fail(future, TimeoutError())
