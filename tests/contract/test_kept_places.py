"""`keep_place` and `place_token`: a cancelled waiter returns to its place."""

from __future__ import annotations

import asyncio

import pytest

from genesis import QueueFullError, QueueTimeoutError
from genesis.backends.estimate import FEWEST_HOLDS
from genesis.exceptions import EvictedError
from tests.support.line import Call, Line
from tests.support.waiting import wait_until


async def test_a_caller_that_drops_and_calls_again_has_its_old_place(line: Line) -> None:
    """While its place is kept it counts nowhere; a call with its token takes it."""
    await line.call("holder")
    dropped = await line.call("dropped", keep_place=60)
    await line.call("next")
    token = dropped.request.place_token
    assert token is not None
    await dropped.dropped()
    assert await line.waiting() == ["next"]
    assert (await line.queue.stats("sales"))[:2] == (1, 1)
    assert await line.queue.position("sales", "next") == 1
    again = await line.call("again", place_token=token.upper(), max_waiting=2)  # still that token
    assert again.request.resumed
    assert await line.waiting() == ["again", "next"]
    assert await line.grants() == ["holder", "again", "next"]


async def test_a_place_is_taken_once(line: Line) -> None:
    """The second call with a token enters at the end of the line; `resumed` is false."""
    await line.call("holder")
    dropped = await line.call("dropped", keep_place=60)
    await line.call("next")
    await dropped.dropped()
    token = dropped.request.place_token
    first = await line.call("first", place_token=token)
    second = await line.call("second", place_token=token)
    assert (first.request.resumed, second.request.resumed) == (True, False)
    assert await line.waiting() == ["first", "next", "second"]
    await line.grants()


async def test_a_kept_place_expires(line: Line) -> None:
    """After `keep_place` seconds the token gives the end of the line."""
    await line.call("holder")
    dropped = await line.call("dropped", keep_place=0.02)
    await line.call("next")
    await dropped.dropped()
    await asyncio.sleep(0.05)  # that the time of the place has passed is the subject
    again = await line.call("again", place_token=dropped.request.place_token)
    assert not again.request.resumed
    assert await line.waiting() == ["next", "again"]
    await line.grants()


@pytest.mark.parametrize("ending", ["timeout", "evicted", "unasked", "granted"])
async def test_only_a_cancelled_waiter_keeps_its_place(line: Line, ending: str) -> None:
    """A timeout or eviction keeps no place, nor does a call without `keep_place`, nor a holder."""
    holder = await line.call("holder")
    timeout = 0.2 if ending == "timeout" else None
    keep = 0.0 if ending == "unasked" else 60.0
    call = await line.call("call", keep_place=keep, timeout=timeout)
    if ending == "timeout":
        with pytest.raises(QueueTimeoutError):
            await call.task
    elif ending == "evicted":
        await line.queue.evict("sales", "call")
        with pytest.raises(EvictedError):
            await call.task
    elif ending == "granted":
        await holder.gone()
        await wait_until(lambda: call.slot, "it holds")
        await call.dropped()
        holder = await line.call("holder again")
    else:
        await call.dropped()
    again = await line.call("again", place_token=call.request.place_token)
    assert not again.request.resumed
    line.calls = [holder, again]
    await line.grants()


async def test_a_refused_call_does_not_use_up_its_place(line: Line) -> None:
    """The token still works after a full line and after timeout=0."""
    await line.call("holder")
    dropped = await line.call("dropped", keep_place=60)
    await line.call("next")
    await dropped.dropped()
    token = dropped.request.place_token
    with pytest.raises(QueueFullError):
        async with line.queue.slot("sales", place_token=token, max_waiting=1):
            pytest.fail("entered")
    with pytest.raises(QueueTimeoutError):
        async with line.queue.slot("sales", place_token=token, timeout=0):
            pytest.fail("entered")
    again = await line.call("again", place_token=token)
    assert again.request.resumed
    assert await line.waiting() == ["again", "next"]
    await line.grants()


async def test_a_kept_place_blocks_no_call_and_can_be_kept_again(line: Line) -> None:
    """A free slot is granted to the next waiter; a resumed call that drops again keeps its place."""
    holder = await line.call("holder")
    dropped = await line.call("dropped", keep_place=60)
    await line.call("a")
    await line.call("b")
    await dropped.dropped()
    again = await line.call("again", place_token=dropped.request.place_token, keep_place=60)
    await again.dropped()
    await holder.gone()
    await wait_until(lambda: line.calls[2].slot, "a holds")
    last = await line.call("last", place_token=again.request.place_token)
    assert last.request.resumed
    assert await line.waiting() == ["last", "b"]
    line.calls = [*line.calls[2:4], last]
    assert await line.grants() == ["a", "last", "b"]


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
async def test_a_call_that_drops_before_it_is_answered_does_not_use_up_its_token(
    line: Line, turns: int
) -> None:
    """Whether or not Redis has seen it: the caller still has its place."""
    await line.call("holder")
    dropped = await line.call("dropped", keep_place=60)
    await line.call("next")
    await dropped.dropped()
    token = dropped.request.place_token
    again = Call(line.queue, "again", place_token=token, keep_place=60)
    for _ in range(turns):
        await asyncio.sleep(0)
    again.task.cancel()
    await asyncio.wait({again.task})
    last = await line.call("last", place_token=again.request.place_token or token)
    assert last.request.resumed
    assert await line.waiting() == ["last", "next"]
    assert await line.grants() == ["holder", "last", "next"]


async def test_a_waiter_that_is_granted_as_it_is_cancelled_keeps_its_place(line: Line) -> None:
    """That it never held is also what the mean of the holds says."""
    for _ in range(FEWEST_HOLDS - 2):
        async with line.queue.slot("sales"):
            pass
    holder = line.queue.slot("sales")
    await holder.__aenter__()
    dropped = await line.call("dropped", keep_place=60)
    await line.call("next")
    await holder.__aexit__(None, None, None)
    await dropped.dropped()
    await wait_until(lambda: line.calls[1].slot, "the next one holds")
    assert (await line.queue.stats("sales")).mean_hold is None
    await line.call("last")
    again = await line.call("again", place_token=dropped.request.place_token)
    assert again.request.resumed
    assert await line.waiting() == ["again", "last"]
    assert await line.grants() == ["next", "again", "last"]


async def test_the_wait_of_a_resumed_call_counts_from_its_return(line: Line) -> None:
    """Its place says when it first entered, and which head start it had then."""
    await line.call("holder")
    dropped = await line.call("dropped", keep_place=60, head_start=3_600)
    await dropped.dropped()
    again = await line.call("again", place_token=dropped.request.place_token)
    await line.call("newcomer")
    assert again.request.resumed
    entries = await line.queue.entries("sales")
    assert [entry.item_id for entry in entries] == ["holder", "again", "newcomer"]
    assert max(entry.age for entry in entries) < 60
    assert (await line.queue.stats("sales")).oldest_wait < 60
    async for place in line.queue.watch("sales", "again"):
        assert place.waited < 60
        break
    await line.grants()


async def test_a_place_taken_while_a_slot_is_free(line: Line) -> None:
    """It is granted at once, and `resumed` is true."""
    holder = await line.call("holder")
    dropped = await line.call("dropped", keep_place=60)
    await dropped.dropped()
    await holder.gone()
    for resumed in (True, False):
        request = line.queue.slot("sales", place_token=dropped.request.place_token)
        async with request as slot:
            assert slot.waited == 0.0
        assert request.resumed is resumed
        assert request.place_token is None


async def test_tokens_of_other_queues_and_invalid_tokens_are_refused(line: Line) -> None:
    """The request raises at once, before it is entered."""
    await line.call("holder")
    call = await line.call("call")
    token = call.request.place_token
    assert token is not None
    with pytest.raises(ValueError, match=r"'support'.*place_token.*'sales'"):
        line.queue.slot("support", place_token=token)
    for bad in ("", "7", "call", token[:-4], token + "é"):
        with pytest.raises(ValueError, match=r"'sales'.*place_token"):
            line.queue.slot("sales", place_token=bad)
    sem = line.queue.semaphore("support")
    with pytest.raises(ValueError, match=r"'support'.*place_token"):
        sem(place_token=token)
    await line.grants()
