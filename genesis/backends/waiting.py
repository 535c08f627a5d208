"""How a task waits for its grant: a future that a hand-off resolves, and at most one timer."""

from __future__ import annotations

import asyncio

from genesis.backends.protocol import Grant

__all__ = ["fail", "until_granted"]


async def until_granted(future: asyncio.Future[Grant], timeout: float | None) -> Grant:
    """Await `future`, at most `timeout` seconds.

    A plain timer instead of `asyncio.wait_for`, which before Python 3.12 ran the wait in a task of
    its own and could lose a result that arrived together with a cancellation. Here nothing can be
    lost: the future is only a wake-up, and the caller says `leave` however the wait ends.

    Raises:
        TimeoutError: the timer came first.
    """
    if timeout is None:
        return await future
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
