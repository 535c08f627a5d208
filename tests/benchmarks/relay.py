"""The least that a hand-off over Redis can cost: one script call that publishes, and its delivery.

Redis-py alone: the holder sends EVALSHA, the script moves the slot to the head of a line and
publishes to its owner, and the owner is inside when the message is delivered.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from types import TracebackType
from typing import Any

import redis.asyncio

__all__ = ["Relay"]

SCRIPT = b"""
local waiting, holding, meta = KEYS[1], KEYS[2], KEYS[3]
local time = redis.call('TIME')
local number = time[1] * 1000000 + time[2]
redis.call('ZREM', holding, ARGV[1])
redis.call('ZADD', waiting, number, ARGV[2])
local head = redis.call('ZRANGE', waiting, 0, 0)[1]
redis.call('ZADD', holding, number, head)
redis.call('ZREM', waiting, head)
redis.call('HSET', meta, 'last', number)
if ARGV[3] == 'publish' then
  redis.call('PUBLISH', 'relay:' .. head, 'granted')
end
return {head, number}
"""
SHA = hashlib.sha1(SCRIPT).hexdigest()


class Relay:
    """One of those between whom the slot goes to and fro.

    Args:
        url: of the server.
        name: its own.
        other: whom it gives the slot to; itself, if it is alone.
    """

    def __init__(self, url: str, name: str, other: str) -> None:
        self._client: Any = redis.asyncio.Redis.from_url(url)
        self._pubsub: Any = self._client.pubsub(ignore_subscribe_messages=True)
        self._name = name
        self._other = other

    async def __aenter__(self) -> Relay:
        await self._client.script_load(SCRIPT)
        await self._pubsub.subscribe(f"relay:{self._name}")
        await self._pubsub.get_message(timeout=5.0)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._pubsub.aclose()
        await self._client.aclose()

    async def alone(self, hops: int) -> float:
        """Microseconds per hop when it gives the slot to itself."""
        began = time.perf_counter()
        for _ in range(hops):
            await self._pass_on()
            await self._receive()
        return (time.perf_counter() - began) / hops * 1e6

    async def take_turns(
        self, hops: int, begin: bool, hold: float, apart: bool
    ) -> list[tuple[int, int]]:
        """Be inside `hops` times; returns when it came in and when it began to pass on, in ns.

        Args:
            begin: be the first, who need not wait.
            hold: seconds for which to be inside.
            apart: pass on by a script that does not publish, and then PUBLISH.
        """
        stamps: list[tuple[int, int]] = []
        for _ in range(hops):
            if stamps or not begin:
                await self._receive()
            inside = time.monotonic_ns()
            if hold:
                await asyncio.sleep(hold)
            stamps.append((inside, time.monotonic_ns()))
            if apart:
                await self._pass_on("quietly")
                await self._client.publish(f"relay:{self._other}", "granted")
            else:
                await self._pass_on()
        if begin:
            await self._receive()  # what the other one's last pass sent
        return stamps

    async def _pass_on(self, how: str = "publish") -> None:
        keys = ("relay:{r}:waiting", "relay:{r}:holding", "relay:{r}:meta")
        await self._client.evalsha(SHA, 3, *keys, self._name, self._other, how)

    async def _receive(self) -> None:
        while await self._pubsub.get_message(timeout=60.0) is None:
            pass
