"""Fixtures: a queue in this process, and a simulated FreeSWITCH that calls it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from genesis import Queue
from genesis.observability import Telemetry
from tests.conftest import assert_nothing_kept
from tests.freeswitch.world import World


@pytest.fixture
async def waiting_line(telemetry: Telemetry) -> AsyncIterator[Queue]:
    async with Queue(telemetry=telemetry) as queue:
        yield queue
        await assert_nothing_kept(queue)


@pytest.fixture
async def world(waiting_line: Queue) -> AsyncIterator[World]:
    world = World(waiting_line)
    async with world.stack:
        yield world
        for channel in world.channels:
            await channel.abandon()
