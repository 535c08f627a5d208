"""Fixtures of the contract: a queue over each backend and layer, and its calls."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from genesis import Queue
from tests.conftest import MakeQueue, replace_until_granted
from tests.support.call_group import CallGroup, Waits
from tests.support.line import Line


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> Waits:
    seen = Waits()
    replace_until_granted(monkeypatch, seen.until_granted)
    return seen


@pytest.fixture
def queue(make_queue: MakeQueue) -> Queue:
    """The lease is so long that no heartbeat repairs a fault before a test detects it."""
    return make_queue(lease=300.0, operation_timeout=10.0)


@pytest.fixture
async def group(queue: Queue) -> AsyncIterator[CallGroup]:
    group = CallGroup(queue)
    yield group
    for call in group.calls:
        call.task.cancel()  # only a test that failed leaves any
    await asyncio.gather(*(call.task for call in group.calls), return_exceptions=True)


@pytest.fixture
async def line(queue: Queue) -> AsyncIterator[Line]:
    line = Line(queue)
    yield line
    for call in line.calls:
        call.task.cancel()  # only a test that failed leaves any
    await asyncio.gather(*(call.task for call in line.calls), return_exceptions=True)
