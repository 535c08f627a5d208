"""Waiting for a grant: a future that the grant resolves, and at most one timer."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

from genesis.backends.protocol import Grant


def until_granted(future: asyncio.Future[Grant], timeout: float | None) -> Awaitable[Grant]:
    """An awaitable that waits for `future` at most `timeout` seconds.

    It uses a plain timer. Before Python 3.12, `asyncio.wait_for` ran the wait in a task of its own and
    could lose a result that arrived together with a cancellation. Here nothing can be lost: the future
    is only a wake-up, and the caller calls `leave` however the wait ends.

    Raises:
        TimeoutError: the timer fired first.
    """
    return future if timeout is None else _granted_within(timeout, future)


async def _granted_within(timeout: float, future: asyncio.Future[Grant]) -> Grant:
    timer = future.get_loop().call_later(timeout, fail, future, TimeoutError())
    try:
        return await future
    finally:
        timer.cancel()


def fail(future: asyncio.Future[Grant], error: Exception) -> None:
    """End the wait with an error, unless it has ended already."""
    if not future.done():
        future.set_exception(error)
        future.exception()  # a cancelled task never retrieves it: suppress asyncio's warning
