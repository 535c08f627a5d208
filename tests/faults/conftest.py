"""The fleet that the tests of this folder use."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from tests.support.fleet import Fleet
from tests.support.redis_server import RedisServer


@pytest.fixture
async def fleet(own_redis: RedisServer) -> AsyncIterator[Fleet]:
    async with AsyncExitStack() as stack:
        fleet = Fleet(own_redis, stack)
        yield fleet
        for queue in fleet.queues:
            await asyncio.wait_for(queue.close(), 20)
