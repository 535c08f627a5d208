"""`watch`: the status of a waiter as it changes."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from typing import Any

import pytest

from genesis import Queue, WaitStatus
from genesis.backends.estimate import expected_wait
from genesis.backends.protocol import Ticket
from genesis.exceptions import BackendUnavailableError, LimitMismatchError, QueueDrainingError
from tests.support.line import Line, learn_holds
from tests.support.waiting import quiesce, wait_until


async def test_a_watch_yields_a_status_at_once_and_ends_with_the_wait(line: Line) -> None:
    """By request and by id, it yields position, depth and wait, and ends with the grant."""
    holder = await line.call("holder")
    await line.call("before")
    call = await line.call("call")
    watches = [call.request.watch(), line.queue.watch("sales", "call", at_least=0.05)]
    for watch in watches:
        status = await asyncio.wait_for(anext(watch), 5)
        assert (status.position, status.depth, status.expected_wait) == (2, 2, None)
        assert 0 < status.waited < 60
    await holder.gone()
    await line.calls[1].gone()
    for watch in watches:
        assert [status async for status in watch][-1:] in ([], [status])
    assert [status async for status in call.request.watch()] == []
    await call.gone()


async def test_a_status_that_a_cancelled_reader_missed_comes_again(line: Line) -> None:
    """A reader that is cancelled just as a status comes might go on later."""
    await line.call("holder")
    await line.call("waiter")
    watch = line.queue.watch("sales", "waiter")
    reader = asyncio.ensure_future(watch.__anext__())
    await asyncio.sleep(0)
    answer = watch._future
    assert answer is not None
    while not answer.done():  # noqa: ASYNC110 - the reader must not run once more
        await asyncio.sleep(0)
    reader.cancel()
    await asyncio.wait({reader})
    assert reader.cancelled()
    assert (await asyncio.wait_for(watch.__anext__(), 5)).position == 1


async def test_a_watch_begun_before_the_call_entered(line: Line) -> None:
    """It waits for the item, and yields its first status as soon as the item has entered."""
    await line.call("holder")
    watch = line.queue.watch("sales", "call")
    first = asyncio.create_task(anext(watch))
    await quiesce()
    assert not first.done()
    await line.call("call")
    assert (await asyncio.wait_for(first, 5)).position == 1
    await line.grants()


async def test_a_watch_by_id_ends_if_the_call_is_granted_at_once(line: Line) -> None:
    """It saw no wait and yields nothing. Afterwards nothing is polled."""
    watch = line.queue.watch("sales", "call", every=0.05, at_least=0.05)
    reading = asyncio.create_task(_read(watch))
    await quiesce()
    await line.call("call")
    assert await asyncio.wait_for(reading, 5) == []
    await wait_until(lambda: not line.queue.watches.tickers, "the ticker stops")
    await line.grants()


async def test_a_watch_by_id_goes_on_with_the_next_call_if_the_first_is_granted(queue: Queue) -> None:
    """Two calls have one id. The first is granted before the watch saw it wait; the other waits."""
    requests = [queue.slot("sales", item_id="call", max_concurrent=1) for _ in range(2)]
    async with queue.slot("sales", item_id="holder", max_concurrent=1):
        entering = [asyncio.create_task(request.__aenter__()) for request in requests]
        await wait_until(lambda: all(request.place_token for request in requests), "both wait")
        watch = queue.watch("sales", "call")
        reading = asyncio.create_task(anext(watch))
    await entering[0]
    status = await asyncio.wait_for(reading, 5)
    assert status.position == 1
    for request, entered in zip(requests, entering, strict=True):
        await entered
        await request.__aexit__(None, None, None)


async def test_a_watch_of_an_item_that_holds_waits_for_it_to_enter_again(line: Line) -> None:
    """So does the watch of the request that will enter: the slot is another call's."""
    await line.call("call", max_concurrent=1)
    again = line.queue.slot("sales", item_id="call")
    readings = [
        asyncio.create_task(anext(w)) for w in (line.queue.watch("sales", "call"), again.watch())
    ]
    await quiesce()
    assert not any(reading.done() for reading in readings)
    entering = asyncio.create_task(again.__aenter__())
    for reading in readings:
        assert (await asyncio.wait_for(reading, 5)).position == 1
    await line.grants()
    await entering
    await again.__aexit__(None, None, None)


@pytest.mark.parametrize("why", ["draining", "another limit"])
async def test_a_watch_begun_before_a_call_that_may_not_enter_ends(line: Line, why: str) -> None:
    await line.call("holder", max_concurrent=1)
    request = line.queue.slot("sales", max_concurrent=1 if why == "draining" else 2)
    reading = asyncio.create_task(_read(request.watch()))
    await quiesce()
    if why == "draining":
        await line.queue.drain(timeout=0)
    with pytest.raises(QueueDrainingError if why == "draining" else LimitMismatchError):
        await request.__aenter__()
    await asyncio.wait_for(reading, 5)
    await line.grants()


async def test_a_watch_yields_changes_but_not_too_often(line: Line) -> None:
    """A new position is yielded after `at_least` seconds, the same one after `every` seconds."""
    holder = await line.call("holder")
    calls = [await line.call(f"call-{number}") for number in range(4)]
    seen: list[WaitStatus] = []

    async def read() -> None:
        async for status in calls[3].request.watch(every=0.3, at_least=0.1):
            seen.append(status)

    reader = asyncio.create_task(read())
    await wait_until(lambda: seen, "the first")
    await holder.gone()
    await calls[0].gone()
    await wait_until(lambda: len(seen) >= 2, "the second")
    await wait_until(lambda: len(seen) >= 3, "the third, without a change")
    assert [status.position for status in seen[:3]] == [4, 2, 2]
    # `waited` is measured at the reply, the pause from the request: on a busy machine they differ.
    assert seen[1].waited - seen[0].waited >= 0.05
    assert 0.2 <= seen[2].waited - seen[1].waited < 5
    line.calls = calls[1:]
    await line.grants()
    await asyncio.wait_for(reader, 5)


async def test_one_command_a_tick_for_all_that_are_watched(line: Line, monkeypatch: Any) -> None:
    """Twenty watches of one queue send one command a tick; without a watch none is sent."""
    await line.call("holder")
    calls = [await line.call(f"call-{number}") for number in range(20)]
    requested: list[int] = []
    backend = line.queue._backend
    wait_status = backend.wait_status

    async def counting(queue_id: str, wanted: Sequence[Ticket | str]) -> list[WaitStatus | None]:
        requested.append(len(wanted))
        return await wait_status(queue_id, wanted)

    monkeypatch.setattr(backend, "wait_status", counting, raising=False)
    watches = [call.request.watch(every=0.1, at_least=0.1) for call in calls[:10]]
    watches += [line.queue.watch("sales", call.item_id, every=0.1, at_least=0.1) for call in calls[10:]]
    for _ in range(3):
        statuses = await asyncio.gather(*map(anext, watches))
        assert [status.position for status in statuses] == list(range(1, 21))
    assert requested == [20, 20, 20]
    await wait_until(lambda: not line.queue.watches.tickers, "the ticker stops")
    assert len(requested) == 3
    await line.grants()


async def test_the_expected_wait_is_in_the_status(line: Line) -> None:
    """It is position / limit times the mean hold, or None in a paused queue."""
    mean = await learn_holds(line.queue)
    for number in range(7):
        await line.call(f"call-{number}", max_concurrent=2)
    expected = []
    for number in range(2, 7):
        status = await anext(line.queue.watch("sales", f"call-{number}"))
        expected.append(status.expected_wait)
    assert expected == pytest.approx([position / 2 * mean for position in range(1, 6)], rel=0.01)
    await line.queue.set_limit("sales", 0)
    assert (await anext(line.queue.watch("sales", "call-6"))).expected_wait is None
    await line.queue.set_limit("sales", None)
    await line.grants()


async def test_the_expected_wait_does_not_grow_while_a_call_waits(line: Line) -> None:
    """While no hold ends and nobody comes before it, it stays, and falls as the call moves up."""
    await learn_holds(line.queue)
    told = await _told_while_moving_up(line)
    assert told == sorted(told, reverse=True)
    assert told[-1] == pytest.approx(told[0] / 4, rel=0.01)
    await line.grants()


async def test_an_expected_wait_that_grows_is_found(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planted: the longer they wait, the longer the mean is taken to be."""
    mean = await learn_holds(line.queue)
    began = asyncio.get_running_loop().time()

    def growing(position: int, limit: int, mean_hold: float | None) -> float | None:
        waited = asyncio.get_running_loop().time() - began
        return expected_wait(position, limit, None if mean_hold is None else mean + 10 * waited)

    monkeypatch.setattr("genesis.backends.memory.expected_wait", growing)
    monkeypatch.setattr("genesis.backends.redis.requests.expected_wait", growing)
    told = await _told_while_moving_up(line)
    assert told != sorted(told, reverse=True)


async def test_a_watch_ends_with_eviction_and_with_close(line: Line) -> None:
    """No iteration waits for ever."""
    await line.call("holder")
    one, two = await line.call("one"), await line.call("two")
    watches = [one.request.watch(), line.queue.watch("sales", "one", at_least=0.05)]
    ends = [asyncio.create_task(_read(watch)) for watch in watches]
    others = [two.request.watch(), line.queue.watch("sales", "two"), line.queue.watch("sales", "?")]
    others_end = [asyncio.create_task(_read(watch)) for watch in others]
    await wait_until(lambda: one.request._watches, "it is watched")
    await quiesce()
    await line.queue.evict("sales", "one")
    await asyncio.wait_for(asyncio.gather(*ends), 5)
    await line.queue.close()
    await asyncio.wait_for(asyncio.gather(*others_end), 5)
    with pytest.raises(BackendUnavailableError):
        await two.task


async def _read(watch: Any) -> list[WaitStatus]:
    return [status async for status in watch]


async def test_watches_survive_that_all_other_tasks_are_cancelled(line: Line) -> None:
    """Each poll has its own task; after a cancelled poll the next one follows."""
    await line.call("holder")
    call = await line.call("call")
    watch = call.request.watch(every=0.1, at_least=0.1)
    await anext(watch)
    following = asyncio.ensure_future(anext(watch))
    keep = {asyncio.current_task(), following, *(each.task for each in line.calls)}
    for _ in range(5):
        await quiesce(1)
        for task in asyncio.all_tasks() - keep:
            if "_poll" in repr(task):
                task.cancel()
    assert (await asyncio.wait_for(following, 5)).position == 1
    await line.grants()


async def _told_while_moving_up(line: Line) -> list[float]:
    """The expected waits of the last of four waiters: three at each position, down to the first."""
    await line.call("holder")
    before = [await line.call(f"before-{number}") for number in range(3)]
    last = await line.call("last")
    told: list[float] = []
    async for status in last.request.watch(every=0.02, at_least=0.02):
        assert status.expected_wait is not None
        told.append(status.expected_wait)
        if len(told) % 3 == 0:
            if not before:
                break
            await before.pop().dropped()
    return told


async def test_a_watch_without_end_has_a_tick(line: Line) -> None:
    """Its ticker ends with the first tick at which nobody watches; it must come."""
    await line.call("holder")
    await line.call("waiter")
    watch = line.queue.watch("sales", "waiter", every=math.inf, at_least=math.inf)
    assert (await anext(watch)).position == 1
    (ticker,) = line.queue.watches.tickers.values()
    assert ticker._timer is not None
    await line.grants()
