"""`until_disconnected`: a wait ends when its client disconnects."""

from __future__ import annotations

import asyncio
import gc
import sys
from typing import Any

import pytest

from genesis import Queue
from genesis import until_disconnected as until_gone
from tests.support.line import Line
from tests.support.waiting import quiesce, wait_until


class Request:
    """The part of Starlette's request that is used."""

    def __init__(self) -> None:
        self._gone = asyncio.Event()

    async def body(self) -> bytes:
        return b""

    async def receive(self) -> dict[str, Any]:
        await self._gone.wait()
        return {"type": "http.disconnect"}

    def disconnect(self) -> None:
        self._gone.set()


async def test_the_wait_ends_when_the_client_has_gone(line: Line) -> None:
    """The block is cancelled and left without an error, and the handler continues."""
    await line.call("holder")
    request = Request()
    ended: list[bool] = []

    async def handle() -> str:
        async with until_gone(request) as client, line.queue.slot("sales", item_id="web"):
            pytest.fail("entered")
        ended.append(client.gone)
        await asyncio.sleep(0)  # a later await is not cancelled
        return "499"

    handler = asyncio.create_task(handle())
    await wait_until(lambda: line.queue.position("sales", "web"), "it waits")
    request.disconnect()
    assert await asyncio.wait_for(handler, 5) == "499"
    assert ended == [True]
    assert await line.waiting() == []
    await line.grants()


@pytest.mark.skipif(sys.version_info < (3, 11), reason="a task does not count its cancellations")
async def test_a_task_can_serve_another_request_after_a_disconnect() -> None:
    """The first handler turns its cancellation into an error of its own."""

    async def handle(error: type[Exception] | None) -> bool:
        request = Request()
        asyncio.get_running_loop().call_soon(request.disconnect)
        async with until_gone(request) as client:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                if error is not None:
                    raise error from None
                raise
        return client.gone

    with pytest.raises(LookupError):
        await handle(LookupError)
    assert await handle(None)


async def test_a_client_that_stays_changes_nothing(queue: Queue) -> None:
    """The slot is granted, errors and other cancellations pass through, and no task is left."""
    request = Request()
    async with until_gone(request) as client, queue.slot("sales"):
        pass
    assert not client.gone
    with pytest.raises(ZeroDivisionError):
        async with until_gone(request), queue.slot("sales"):
            raise ZeroDivisionError

    async def hang() -> None:
        async with until_gone(request), queue.slot("sales"):
            await asyncio.Event().wait()

    task = asyncio.create_task(hang())
    await quiesce()
    task.cancel()
    await asyncio.wait({task})
    assert task.cancelled()
    await quiesce()
    gc.collect()
    assert not [each for each in asyncio.all_tasks() if "until_disconnected" in repr(each)]
