"""The future that a waiter waits for."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

from genesis.backends.protocol import Grant
from genesis.backends.waiting import fail


async def test_an_error_that_nobody_asks_for_leaves_no_warning() -> None:
    """A task that is on its way out when its wait is ended leaves no "never retrieved" behind."""
    loop = asyncio.get_running_loop()
    told: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: told.append(context))
    future: asyncio.Future[Grant] = loop.create_future()
    fail(future, ValueError("evicted"))
    del future
    gc.collect()
    assert told == []
