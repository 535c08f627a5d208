"""The future of a waiter."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

from genesis.backends.protocol import Grant
from genesis.backends.waiting import fail


async def test_an_error_that_nobody_asks_for_leaves_no_warning() -> None:
    """A task that is being cancelled when its wait fails causes no "never retrieved" warning."""
    loop = asyncio.get_running_loop()
    told: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: told.append(context))
    future: asyncio.Future[Grant] = loop.create_future()
    fail(future, ValueError("evicted"))
    del future
    gc.collect()
    assert told == []
