"""Slots, requests and semaphores: entering, leaving and misuse."""

from __future__ import annotations

import asyncio
import gc
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from enum import Enum
from functools import partial

import pytest
from prometheus_client import CollectorRegistry

from genesis import Queue, QueueTimeoutError
from genesis.exceptions import (
    EvictedError,
)
from genesis.observability import Telemetry
from genesis.queue import (
    QueueSemaphore,
)
from tests.conftest import state_of
from tests.support.waiting import quiesce, wait_until


@pytest.fixture
async def queue(telemetry: Telemetry) -> AsyncIterator[Queue]:
    async with Queue(telemetry=telemetry) as queue:
        yield queue


async def test_a_slot_without_item_id_has_a_uuid(queue: Queue) -> None:
    """Each slot, and each use of a semaphore, gets its own item_id."""
    seen = set()
    semaphore = queue.semaphore("sales", 9)
    for request in (queue.slot("sales"), queue.slot("sales"), semaphore, semaphore, semaphore()):
        async with request as slot:
            seen.add(uuid.UUID(slot.item_id))
    assert len(seen) == 5


async def test_the_attributes_of_a_slot(queue: Queue) -> None:
    """queue_id, item_id, waited, fencing_token and lost, and a repr for logs."""
    async with queue.slot("sales", item_id="call-1") as slot:
        assert (slot.queue_id, slot.item_id, slot.waited, slot.lost) == ("sales", "call-1", 0.0, False)
        assert isinstance(slot.fencing_token, int)
        slot.ensure_held()
        assert "'sales'" in repr(slot)
        assert "'call-1'" in repr(slot)
        assert "lost" not in repr(slot)
        await queue.evict("sales", "call-1")
        assert "lost" in repr(slot)


async def test_a_slot_that_was_given_back_in_time_was_not_lost(queue: Queue) -> None:
    """After the block, slot.lost keeps its last value."""
    async with queue.slot("sales", item_id="kept") as kept:
        pass
    async with queue.slot("sales", item_id="taken") as taken:
        await queue.evict("sales", "taken")
    await queue.close()
    assert not kept.lost
    assert taken.lost


async def test_a_slot_request_does_nothing_until_it_is_entered(queue: Queue) -> None:
    """queue.slot() sends nothing; a discarded request leaves no place in the line."""
    queue.slot("sales", max_concurrent=4)
    queue.semaphore("sales", 4)
    assert await queue.stats("sales") == (0, 0, 1, 0.0, 0.0, None)
    assert not state_of(queue)


@pytest.mark.parametrize("when", ["while held", "while it waits", "after it was left"])
async def test_a_slot_request_is_entered_once(queue: Queue, when: str) -> None:
    """A request raises if it is entered again, however it ended first, and no slot leaks."""
    request = queue.slot("sales", max_concurrent=2)
    if when == "after it was left":
        async with request:
            pass
        with pytest.raises(RuntimeError, match="once"):
            await request.__aenter__()
    elif when == "while held":
        async with request:
            with pytest.raises(RuntimeError, match="once"):
                await request.__aenter__()
    else:
        await queue.set_limit("sales", 0)
        first = asyncio.create_task(request.__aenter__())
        await quiesce()
        with pytest.raises(RuntimeError, match="once"):
            await asyncio.wait_for(request.__aenter__(), 1)
        await queue.set_limit("sales", None)
        await first
        await request.__aexit__(None, None, None)
    assert (await queue.stats("sales"))[:2] == (0, 0)


async def test_a_request_whose_wait_failed_can_be_left_without_harm(queue: Queue) -> None:
    """__aexit__ after a failed __aenter__ does not give back another call's slot."""
    async with queue.slot("sales"):
        request = queue.slot("sales", timeout=0)
        with pytest.raises(QueueTimeoutError):
            await request.__aenter__()
        await request.__aexit__(None, None, None)
        assert (await queue.stats("sales"))[:2] == (0, 1)


async def test_a_semaphore_called_from_another_task_is_refused(queue: Queue) -> None:
    """Without `async with`, only the task that entered can leave; no other slot is given back."""
    semaphore = queue.semaphore("sales", 2)
    with pytest.raises(RuntimeError, match=r"'sales'.*holds no slot"):
        await semaphore.__aexit__(None, None, None)
    async with semaphore as slot:
        for leave in (partial(semaphore.__aexit__, None, None, None), partial(leave_in, semaphore)):
            with pytest.raises(RuntimeError, match=r"'sales'.*holds no slot"):
                await asyncio.create_task(leave())
        assert (await queue.stats("sales"))[:2] == (0, 1)
        assert not slot.lost
        await queue.evict("sales", slot.item_id)
        assert slot.lost
    assert not state_of(queue)


async def leave_in(semaphore: QueueSemaphore) -> None:
    await semaphore.__aexit__(None, None, None)


async def test_a_semaphore_in_a_generator_gives_back_its_own_slot(queue: Queue) -> None:
    """Generators that are closed, or left in any order by any task, have their own slots."""
    semaphore = queue.semaphore("sales", 5)
    tokens: list[int] = []

    async def generate() -> AsyncIterator[int]:
        async with semaphore as slot:
            tokens.append(slot.fencing_token)
            yield 1
            yield 2

    async def holding() -> list[int | None]:
        return [entry.fencing_token for entry in await queue.entries("sales")]

    async def enter() -> AsyncIterator[int]:
        generator = generate()
        await generator.__anext__()
        return generator

    async def end(generator: AsyncIterator[int]) -> None:
        async for _ in generator:
            pass

    async with semaphore as own:
        first, second = await enter(), await asyncio.create_task(enter())
        async with semaphore as inner:
            assert await holding() == [own.fencing_token, *tokens, inner.fencing_token]
            await end(first)
            assert await holding() == [own.fencing_token, tokens[1], inner.fencing_token]
            await asyncio.create_task(end(second))
            assert await holding() == [own.fencing_token, inner.fencing_token]
            async for _ in generate():
                break
            gc.collect()
            await quiesce()
            assert await holding() == [own.fencing_token, inner.fencing_token]
        assert await holding() == [own.fencing_token]
    assert not state_of(queue)


async def test_a_semaphore_in_an_exit_stack(queue: Queue) -> None:
    """The last one first, in the task that entered."""
    semaphore = queue.semaphore("sales", 8)

    async def call() -> None:
        async with AsyncExitStack() as stack:
            slots = [await stack.enter_async_context(semaphore) for _ in range(2)]
            assert not any(slot.lost for slot in slots)
            await quiesce()

    await asyncio.gather(*(call() for _ in range(4)))
    assert not state_of(queue)


async def test_a_request_that_was_never_entered_cannot_be_left(queue: Queue) -> None:
    """`__aexit__` without `__aenter__` raises a clear error."""
    with pytest.raises(RuntimeError, match="never entered"):
        await queue.slot("sales").__aexit__(None, None, None)


async def test_a_slot_may_be_left_in_another_task_than_entered(
    queue: Queue, registry: CollectorRegistry
) -> None:
    """The same for slot(), in spite of what the layer keeps in the first task's context."""
    request = queue.slot("sales")
    await asyncio.create_task(request.__aenter__())
    await asyncio.create_task(request.__aexit__(None, None, None))
    assert not state_of(queue)
    assert registry.get_sample_value("genesis_telemetry_errors_total", {"sink": "traces"}) == 0


async def test_wait_for_around_a_slot_leaks_nothing(queue: Queue) -> None:
    """asyncio.wait_for, which cancels from outside, works as well as timeout=."""

    async def call() -> None:
        async with queue.slot("sales"):
            pytest.fail("two in a queue with limit 1")

    async with queue.slot("sales"):
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(call(), 0.01)
        assert (await queue.stats("sales"))[:2] == (0, 1)
    assert not state_of(queue)


async def test_a_timeout_error_of_the_body_stays_the_bodys(queue: Queue) -> None:
    """A TimeoutError raised inside the block is not mistaken for the queue's."""
    with pytest.raises(TimeoutError) as caught:
        async with queue.slot("sales", timeout=5):
            raise TimeoutError("the body's own")
    assert not isinstance(caught.value, QueueTimeoutError)


class Colour(str, Enum):
    """Ids as applications have them; `str(Colour.RED)` is not "red"."""

    RED = "red"


async def test_ids_that_are_subclasses_of_str_count_as_their_text(queue: Queue) -> None:
    """A `(str, Enum)` member is found by itself and by its text, and stored as text."""
    async with queue.slot(Colour.RED, item_id=Colour.RED) as slot:
        waiter = asyncio.create_task(queue.semaphore(Colour.RED)(Colour.RED).__aenter__())
        await wait_until(lambda: queue.position(Colour.RED, Colour.RED), "it waits")
        assert await queue.position("red", "red") == 1
        entries = await queue.entries("red")
        assert [type(entry.item_id) for entry in entries] == [str, str]
        assert (type(slot.queue_id), type(slot.item_id)) == (str, str)
        assert await queue.evict(Colour.RED, Colour.RED) == 2
        with pytest.raises(EvictedError):
            await waiter
