"""Wait for a described condition, never for a length of time."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import Any

__all__ = ["quiesce", "turns", "wait_until"]


async def wait_until(
    condition: Callable[[], Any] | Callable[[], Awaitable[Any]],
    description: str,
    timeout: float = 20.0,
) -> float:
    """Wait until `condition` holds. Returns the seconds that took; fails with `description`."""
    began = time.monotonic()
    pause = 0.001
    while True:
        holds = condition()
        if inspect.isawaitable(holds):
            holds = await holds
        took = time.monotonic() - began
        if holds:
            return took
        if took > timeout:
            raise AssertionError(f"after {timeout:g} s still not: {description}")
        await asyncio.sleep(pause)
        pause = min(pause * 2, 0.05)


async def quiesce(turns: int = 20) -> None:
    """Let all ready tasks run, for some iterations of the event loop, without waiting."""
    for _ in range(turns):
        await asyncio.sleep(0)


async def turns(attempt: Callable[[], Awaitable[None]], times: int = 10) -> int:
    """Make an attempt, so many times in a row. Returns how often another task ran meanwhile."""
    count = 0

    async def other_task() -> None:
        nonlocal count
        while True:
            count += 1
            await asyncio.sleep(0)

    other = asyncio.create_task(other_task())
    await quiesce()
    before = count
    for _ in range(times):
        await attempt()
    other.cancel()
    return count - before
