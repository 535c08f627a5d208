"""The promises, over {memory, redis} x {bare, observed, failing sinks}.

Themes: order, limit, ending, tokens, evicting, asking, semaphores, agreement, ids, closing.
"""

from __future__ import annotations

import asyncio
import random
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from functools import partial
from itertools import pairwise
from typing import Any

import pytest

from genesis import Queue, QueueTimeoutError
from genesis.backends import waiting
from genesis.backends.protocol import EnterRequest, Grant, Ticket
from genesis.exceptions import (
    BackendUnavailableError,
    EvictedError,
    GenesisError,
    LimitMismatchError,
    SlotLostError,
)
from genesis.queue.slot import Slot
from tests.conftest import MakeQueue, replace_until_granted, state_of
from tests.redis_server import RedisServer
from tests.waiting import quiesce, wait_until

UNUSUAL_IDS = [
    "a\nb",
    "a\r\nb",
    "nul\0inside",
    "{",
    "}",
    "{}",
    "a}b",
    "a{b",
    "a%7Db",
    "a%257Db",
    "{a}{b}",
    "100%",
    "%s",
    " ",
    "  leading and trailing  ",
    "a:b:meta",
    "wake:x",
    "*?[a]\\",
    "☎️ 📞",
    "ж" * 5000,
]


class Call:
    """One task that enters a queue and stays in its slot until it is told to go."""

    def __init__(
        self, floor: Floor, item_id: str, limit: int | None = 1, timeout: float | None = None
    ) -> None:
        self.item_id = item_id
        self.slot: Slot | None = None
        self._floor = floor
        self._go = asyncio.Event()
        self.task = asyncio.create_task(self._run(limit, timeout))

    async def _run(self, limit: int | None, timeout: float | None) -> None:
        floor = self._floor
        request = floor.queue.slot(
            floor.queue_id, item_id=self.item_id, max_concurrent=limit, timeout=timeout
        )
        async with request as self.slot:
            floor.entered.append(self.item_id)
            floor.inside += 1
            floor.most = max(floor.most, floor.inside)
            try:
                await self._go.wait()
            finally:
                floor.inside -= 1

    def go(self) -> None:
        """Let the body end, with the loop's next turn."""
        self._go.set()

    async def gone(self) -> None:
        """Let the body end, and wait until the slot is given back."""
        self._go.set()
        await self.task


class Floor:
    """The calls of one queue, and what their bodies saw."""

    def __init__(self, queue: Queue, queue_id: str = "sales") -> None:
        self.queue = queue
        self.queue_id = queue_id
        self.calls: list[Call] = []
        self.entered: list[str] = []  # item_ids, in the order in which the bodies began
        self.inside = 0
        self.most = 0

    def call(self, item_id: str, limit: int | None = 1, timeout: float | None = None) -> Call:
        self.calls.append(Call(self, item_id, limit, timeout))
        return self.calls[-1]

    async def line_up(self, *item_ids: str, limit: int | None = 1) -> list[Call]:
        """Start calls in this order, until each of them waits or is inside."""
        stats = await self.queue.stats(self.queue_id)
        expected = stats.waiting + stats.in_use + len(item_ids)
        calls = [self.call(item_id, limit) for item_id in item_ids]

        async def all_in_line() -> bool:
            stats = await self.queue.stats(self.queue_id)
            return stats.waiting + stats.in_use == expected and self.inside == stats.in_use

        await wait_until(all_in_line, f"{expected} calls wait or hold")
        return calls

    async def until_entered(self, *item_ids: str) -> None:
        """Wait until as many have entered, then insist on who, and in which order."""
        await wait_until(
            lambda: len(self.entered) >= len(item_ids), f"{item_ids} entered, not {self.entered}"
        )
        assert self.entered == list(item_ids)

    async def standing(self) -> tuple[int, int]:
        """Waiting and in use, as the queue tells it."""
        stats = await self.queue.stats(self.queue_id)
        return stats.waiting, stats.in_use


class Waits:
    """Waits for a grant seen from inside, to act between a grant and the waking of its task."""

    def __init__(self) -> None:
        self.futures: list[asyncio.Future[Grant]] = []  # in the order in which the waits began
        self.on_grant: Callable[[asyncio.Task[Any]], object] | None = None
        self.cancelled_after_grant = 0

    def cancel_at_grant(self, call: Call) -> None:
        def cancel(task: asyncio.Task[Any]) -> None:
            if task is call.task:
                task.cancel()

        self.on_grant = cancel

    def _ended(self, task: asyncio.Task[Any], future: asyncio.Future[Grant]) -> None:
        if self.on_grant is not None and _granted(future):
            self.on_grant(task)

    async def until_granted(self, future: asyncio.Future[Grant], timeout: float | None) -> Grant:
        task = asyncio.current_task()
        assert task is not None
        self.futures.append(future)
        # Added before the task's own wake-up, so it runs before it, in the same turn of the loop.
        future.add_done_callback(partial(self._ended, task))
        try:
            return await waiting.until_granted(future, timeout)
        except asyncio.CancelledError:
            self.cancelled_after_grant += _granted(future)
            raise


def _granted(future: asyncio.Future[Grant]) -> bool:
    return future.done() and not future.cancelled() and future.exception() is None


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> Waits:
    seen = Waits()
    replace_until_granted(monkeypatch, seen.until_granted)
    return seen


@pytest.fixture
def queue(make_queue: MakeQueue) -> Queue:
    """With a lease so long that no heartbeat can put right what a test shall find wrong."""
    return make_queue(lease=300.0, operation_timeout=10.0)


@pytest.fixture
async def floor(queue: Queue) -> AsyncIterator[Floor]:
    floor = Floor(queue)
    yield floor
    for call in floor.calls:
        call.task.cancel()  # of a test that failed; the others have ended
    await asyncio.gather(*(call.task for call in floor.calls), return_exceptions=True)


async def assert_free(queue: Queue, queue_id: str, slots: int) -> None:
    """Exactly `slots` can be had at this moment, and nobody waits."""
    async with AsyncExitStack() as stack:
        for number in range(slots):
            request = queue.slot(queue_id, item_id=f"probe {number}", max_concurrent=slots, timeout=0)
            await stack.enter_async_context(request)
        with pytest.raises(QueueTimeoutError):
            await stack.enter_async_context(queue.slot(queue_id, max_concurrent=slots, timeout=0))
        assert (await queue.stats(queue_id))[:2] == (0, slots)


# --- order -----------------------------------------------------------------------------------------


async def test_grants_are_given_in_the_order_of_entering(queue: Queue) -> None:
    """Waiters get their slots first in, first out, two at a time.

    In the order of the fencing tokens, that is of the grants. Two bodies may begin in another: if both
    are granted in one turn of the loop, one that waits already is woken in the next, and the other,
    which is just being told that it entered, has not begun to wait.
    """
    granted: list[tuple[int, int]] = []

    async def call(number: int) -> None:
        async with queue.slot("sales", item_id=f"call-{number}", max_concurrent=2) as slot:
            granted.append((slot.fencing_token, number))
            await asyncio.sleep(0)

    tasks = [asyncio.create_task(call(number)) for number in range(20)]
    await asyncio.gather(*tasks)
    assert [number for _, number in sorted(granted)] == list(range(20))


async def test_mixed_arrivals_keep_their_order(floor: Floor) -> None:
    """Whatever the mixture of arrivals, departures, pauses and abandons, no one overtakes anyone."""
    rng = random.Random(7)
    calls: list[Call] = []
    gone: set[str] = set()
    while len(calls) < 80:
        step = rng.random()
        if step < 0.5:
            calls.append(floor.call(f"call-{len(calls)}", limit=3))
        elif step < 0.7:
            for call in calls:
                if call.slot is not None and not call.task.done():
                    call.go()
                    break
        elif step < 0.8 and calls:
            victim = rng.choice(calls)
            if victim.slot is None and not victim.task.done():
                victim.task.cancel()
                gone.add(victim.item_id)
        else:
            await quiesce(rng.randrange(5))
    for call in calls:
        call.go()
    await asyncio.gather(*(call.task for call in calls), return_exceptions=True)
    expected = [call.item_id for call in calls if call.slot is not None]
    assert floor.entered == expected
    assert len(floor.entered) + len(gone) == 80
    assert floor.most <= 3


async def test_a_newcomer_does_not_overtake_into_a_slot_freed_in_the_same_turn(floor: Floor) -> None:
    """Who enters in the very turn in which a slot is freed stands behind who waited already."""
    first, waiter = await floor.line_up("first", "waiter")
    first.go()
    newcomer = floor.call("newcomer")
    await floor.until_entered("first", "waiter")
    await wait_until(lambda: floor.queue.position("sales", "newcomer"), "the newcomer waits")
    await waiter.gone()
    await newcomer.gone()
    assert floor.entered == ["first", "waiter", "newcomer"]


async def test_who_releases_and_enters_again_stands_behind_the_waiters(floor: Floor) -> None:
    """A task that leaves and comes back without a pause does not get its own slot back."""
    async with floor.queue.slot("sales", max_concurrent=1):
        (waiter,) = [floor.call("waiter")]
        await wait_until(lambda: floor.queue.position("sales", "waiter"), "the waiter waits")
    with pytest.raises(QueueTimeoutError):
        async with floor.queue.slot("sales", max_concurrent=1, timeout=0):
            pytest.fail("overtook a waiter")
    waiter.go()
    async with floor.queue.slot("sales", item_id="again", max_concurrent=1):
        floor.entered.append("again")
    assert floor.entered == ["waiter", "again"]
    await waiter.gone()


async def test_slots_freed_in_one_turn_go_to_the_heads_in_order(floor: Floor) -> None:
    """Three slots that come free together go to the three that have waited longest."""
    calls = await floor.line_up("a", "b", "c", "d", "e", "f", "g", "h", limit=3)
    for call in (calls[1], calls[2], calls[0]):
        call.go()
    await floor.until_entered("a", "b", "c", "d", "e", "f")
    assert await floor.standing() == (2, 3)
    for call in calls:
        call.go()
    await asyncio.gather(*(call.task for call in calls))
    assert floor.entered == ["a", "b", "c", "d", "e", "f", "g", "h"]


@pytest.mark.parametrize("ending", ["timeout", "cancel", "evict"])
@pytest.mark.parametrize("victim", [1, 2, 4])
async def test_a_waiter_that_ends_early_keeps_the_others_in_order(
    floor: Floor, waits: Waits, ending: str, victim: int
) -> None:
    """A timeout, cancellation or eviction anywhere in the line moves nobody else."""
    names = ["holder", "w1", "w2", "w3", "w4"]
    calls = await floor.line_up("holder")
    calls += [floor.call(name, timeout=3600) for name in names[1:]]
    await wait_until(lambda: floor.queue.position("sales", "w4"), "four wait")
    await wait_until(lambda: len(waits.futures) == 4, "four have begun to wait")
    if ending == "timeout":
        waits.futures[victim - 1].set_exception(TimeoutError())  # what the timer does
    elif ending == "cancel":
        calls[victim].task.cancel()
    else:
        assert await floor.queue.evict("sales", names[victim]) == 1
    errors = {"timeout": QueueTimeoutError, "cancel": asyncio.CancelledError, "evict": EvictedError}
    with pytest.raises(errors[ending]):
        await calls[victim].task
    del calls[victim], names[victim]
    places = [await floor.queue.position("sales", name) for name in names]
    assert places == [None, 1, 2, 3]
    for call in calls:
        await call.gone()
    assert floor.entered == names


async def test_queues_do_not_wait_for_each_other(queue: Queue) -> None:
    """A full queue keeps nobody out of another one."""
    async with (
        queue.slot("sales", max_concurrent=1),
        queue.slot("support", max_concurrent=1, timeout=0),
    ):
        assert (await queue.stats("sales"))[:2] == (0, 1)
        assert (await queue.stats("support"))[:2] == (0, 1)


# --- limit -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 4])
async def test_never_more_than_the_limit_are_inside(queue: Queue, limit: int) -> None:
    """The bodies themselves see the limit reached and never exceeded."""
    rng = random.Random(limit)
    inside = most = 0
    full = asyncio.Event()

    async def call() -> None:
        nonlocal inside, most
        async with queue.slot("sales", max_concurrent=limit):
            inside += 1
            most = max(most, inside)
            if inside == limit:
                full.set()
            await full.wait()  # the first ones stay until all slots are in use
            await quiesce(rng.randrange(4))
            inside -= 1

    await asyncio.gather(*(call() for _ in range(60)))
    assert most == limit


async def test_a_raised_limit_is_granted_to_waiters_at_once(floor: Floor) -> None:
    """set_limit upwards lets the heads of the line in, without anybody leaving."""
    calls = await floor.line_up("a", "b", "c", "d", "e")
    await floor.queue.set_limit("sales", 3)
    assert (await floor.queue.stats("sales"))[:3] == (2, 3, 3)
    await floor.until_entered("a", "b", "c")
    await floor.queue.set_limit("sales", None)
    for call in calls:
        await call.gone()
    assert floor.entered == ["a", "b", "c", "d", "e"]


async def test_a_newcomer_does_not_overtake_into_a_raised_limit(floor: Floor) -> None:
    """The slot that set_limit adds belongs to the waiter, even if a newcomer asks in the same turn."""
    holder, waiter = await floor.line_up("holder", "waiter")
    raising = asyncio.create_task(floor.queue.set_limit("sales", 2))
    newcomer = floor.call("newcomer")
    await raising
    await floor.until_entered("holder", "waiter")
    await wait_until(lambda: floor.queue.position("sales", "newcomer"), "the newcomer waits")
    await floor.queue.set_limit("sales", None)
    for call in (holder, waiter, newcomer):
        await call.gone()


async def test_a_lowered_limit_takes_effect_as_holders_leave(floor: Floor) -> None:
    """set_limit downwards takes no slot away, but none is granted until enough have left."""
    a, b, c, d = await floor.line_up("a", "b", "c", "d", limit=3)
    await floor.queue.set_limit("sales", 1)
    assert (await floor.queue.stats("sales"))[:3] == (1, 3, 1)
    assert a.slot is not None
    assert not a.slot.lost
    await a.gone()
    await b.gone()
    assert await floor.standing() == (1, 1)
    await quiesce()
    assert floor.entered == ["a", "b", "c"]
    await c.gone()
    await floor.until_entered("a", "b", "c", "d")
    await floor.queue.set_limit("sales", None)
    await d.gone()


async def test_limit_zero_pauses_the_queue(floor: Floor) -> None:
    """At limit 0 nobody is let in, not even with timeout=0; any other limit ends the pause."""
    await floor.queue.set_limit("sales", 0)
    with pytest.raises(QueueTimeoutError):
        async with floor.queue.slot("sales", max_concurrent=5, timeout=0):
            pytest.fail("the queue is paused")
    calls = await floor.line_up("a", "b", limit=5)
    assert await floor.standing() == (2, 0)
    await floor.queue.set_limit("sales", 1)
    await floor.until_entered("a")
    await floor.queue.set_limit("sales", 0)
    await calls[0].gone()
    await quiesce()
    assert await floor.standing() == (1, 0)
    await floor.queue.set_limit("sales", None)
    await floor.until_entered("a", "b")
    await calls[1].gone()


async def test_the_end_of_an_override_brings_back_the_call_sites_limit(floor: Floor) -> None:
    """set_limit(None) puts the call sites' number in force again, and grants what it allows."""
    await floor.queue.set_limit("sales", 1)
    calls = await floor.line_up("a", "b", "c", limit=2)
    assert (await floor.queue.stats("sales"))[:3] == (2, 1, 1)
    await floor.queue.set_limit("sales", None)
    assert (await floor.queue.stats("sales"))[:3] == (1, 2, 2)
    await floor.until_entered("a", "b")
    for call in calls:
        await call.gone()


async def test_an_override_outlasts_an_idle_queue(queue: Queue) -> None:
    """set_limit holds at every call site until it is taken back, with or without calls."""
    await queue.set_limit("sales", 3)
    assert (await queue.stats("sales")).limit == 3
    async with queue.slot("sales", max_concurrent=1), queue.slot("sales", max_concurrent=1, timeout=0):
        assert (await queue.stats("sales"))[:3] == (0, 2, 3)
    assert (await queue.stats("sales")).limit == 3
    await queue.set_limit("sales", None)
    assert (await queue.stats("sales")).limit == 1
    await assert_free(queue, "sales", 1)


@pytest.mark.parametrize("ending", ["release", "cancel", "evict", "refuse"])
async def test_an_idle_queue_forgets_its_limit(floor: Floor, ending: str) -> None:
    """After its last call, however that ended, a queue has the limit 1 again."""
    queue = floor.queue
    (call,) = await floor.line_up("a", limit=7)
    assert (await queue.stats("sales")).limit == 7
    if ending == "refuse":
        await queue.set_limit("sales", 0)
        await call.gone()
        with pytest.raises(QueueTimeoutError):
            async with queue.slot("sales", max_concurrent=7, timeout=0):
                pytest.fail("the queue is paused")
        await queue.set_limit("sales", None)
    elif ending == "cancel":
        call.task.cancel()
        await asyncio.wait({call.task})
    elif ending == "evict":
        await queue.evict("sales", "a")
    else:
        await call.gone()
    assert (await queue.stats("sales")).limit == 1
    call.go()
    await asyncio.wait({call.task})
    async with queue.slot("sales", timeout=0):
        with pytest.raises(QueueTimeoutError):
            async with queue.slot("sales", timeout=0):
                pytest.fail("the old limit is still in force")


async def test_no_max_concurrent_takes_the_limit_in_force_or_one(queue: Queue) -> None:
    """A call without a number goes by the queue's limit; a queue that has none lets one in."""
    async with queue.slot("sales"):
        assert (await queue.stats("sales")).limit == 1
        with pytest.raises(QueueTimeoutError):
            async with queue.slot("sales", timeout=0):
                pytest.fail("two in a queue with limit 1")
    async with queue.slot("sales", max_concurrent=2), queue.slot("sales", timeout=0):
        assert (await queue.stats("sales"))[:3] == (0, 2, 2)


async def test_the_first_number_after_calls_without_one_lets_waiters_in(floor: Floor) -> None:
    """Calls without a number wait at limit 1 until a call names a larger one; they go first."""
    a, b = await floor.line_up("a", "b", limit=None)
    c = floor.call("c", limit=2)
    await floor.until_entered("a", "b")
    await wait_until(lambda: floor.queue.position("sales", "c"), "c waits")
    assert (await floor.queue.stats("sales"))[:3] == (1, 2, 2)
    for call in (a, b, c):
        await call.gone()


async def test_a_limit_as_large_as_they_come_is_told_as_it_is(queue: Queue) -> None:
    """`sys.maxsize` for "no limit" lets everybody in, and no statistic turns negative."""
    async with queue.slot("sales", max_concurrent=sys.maxsize), queue.slot("sales", timeout=0):
        stats = await queue.stats("sales")
    assert stats.in_use == 2
    assert stats.limit >= 2**53


# --- ending ----------------------------------------------------------------------------------------


async def test_a_timeout_is_a_timeout_error_that_names_queue_and_item(floor: Floor) -> None:
    """Who is not granted in time leaves the line with an error that says who, where and why."""
    (holder,) = await floor.line_up("holder")
    with pytest.raises(TimeoutError) as caught:
        async with floor.queue.slot("sales", item_id="late", max_concurrent=1, timeout=0.01):
            pytest.fail("granted a slot that is taken")
    assert isinstance(caught.value, QueueTimeoutError)
    assert isinstance(caught.value, GenesisError)
    assert "'sales'" in str(caught.value)
    assert "'late'" in str(caught.value)
    assert (caught.value.queue_id, caught.value.item_id, caught.value.timeout) == (
        "sales",
        "late",
        0.01,
    )
    assert await floor.standing() == (0, 1)
    await holder.gone()


async def test_a_wait_with_an_endless_timeout_is_granted(floor: Floor) -> None:
    """timeout=inf waits like None."""
    (holder,) = await floor.line_up("holder")
    waiter = floor.call("waiter", timeout=float("inf"))
    await wait_until(lambda: floor.queue.position("sales", "waiter"), "it waits")
    await holder.gone()
    await floor.until_entered("holder", "waiter")
    await waiter.gone()


async def test_timeout_zero_takes_a_free_slot(queue: Queue) -> None:
    """timeout=0 is granted if a slot is free now, with no wait."""
    async with queue.slot("sales", max_concurrent=1, timeout=0) as slot:
        assert slot.waited == 0.0
        assert (await queue.stats("sales"))[:2] == (0, 1)


async def test_timeout_zero_is_refused_without_being_enqueued(floor: Floor, waits: Waits) -> None:
    """timeout=0 on a full queue raises at once; it never stood in line."""
    (holder,) = await floor.line_up("holder")
    with pytest.raises(QueueTimeoutError, match="timeout=0"):
        async with floor.queue.slot("sales", item_id="now", timeout=0):
            pytest.fail("granted a slot that is taken")
    assert not waits.futures
    assert [entry.item_id for entry in await floor.queue.entries("sales")] == ["holder"]
    await holder.gone()


async def test_waited_is_zero_for_a_free_slot_and_more_after_a_wait(floor: Floor, layer: str) -> None:
    """slot.waited tells how long the call stood in line."""
    holder, waiter = await floor.line_up("holder", "waiter")
    assert holder.slot is not None
    assert holder.slot.waited == 0.0
    await holder.gone()
    await floor.until_entered("holder", "waiter")
    assert waiter.slot is not None
    if layer == "observed":  # the layer owns the clock
        assert waiter.slot.waited > 0.0
    await waiter.gone()


async def test_cancel_while_waiting_gives_up_the_place(floor: Floor) -> None:
    """A cancelled waiter is out of the line when its task ends, and the task stays cancelled."""
    holder, waiter, last = await floor.line_up("holder", "waiter", "last")
    waiter.task.cancel()
    await asyncio.wait({waiter.task})
    assert waiter.task.cancelled()
    assert await floor.queue.position("sales", "last") == 1
    await holder.gone()
    await floor.until_entered("holder", "last")
    await last.gone()


async def test_cancel_after_grant_passes_the_slot_on(floor: Floor, waits: Waits) -> None:
    """A task that is cancelled between its grant and its waking does not keep the slot."""
    holder, victim, heir = await floor.line_up("holder", "victim", "heir")
    waits.cancel_at_grant(victim)
    await holder.gone()
    await floor.until_entered("holder", "heir")
    await asyncio.wait({victim.task})
    assert victim.task.cancelled()
    assert waits.cancelled_after_grant == 1
    assert await floor.standing() == (0, 1)
    await heir.gone()


async def test_a_timeout_in_the_turn_of_the_grant_passes_the_slot_on(
    floor: Floor, waits: Waits
) -> None:
    """If the timer fires just before the grant, the call times out and the next one is let in."""
    (holder,) = await floor.line_up("holder")
    victim = floor.call("victim", timeout=3600)
    await wait_until(lambda: waits.futures, "the victim waits")
    heir = floor.call("heir")
    await wait_until(lambda: floor.queue.position("sales", "heir"), "the heir waits")
    holder.go()
    waits.futures[0].set_exception(TimeoutError())  # what the timer does
    with pytest.raises(QueueTimeoutError):
        await victim.task
    await floor.until_entered("holder", "heir")
    await heir.gone()
    await holder.gone()


async def test_a_cancelled_head_in_the_turn_of_the_release_passes_the_slot_on(floor: Floor) -> None:
    """The head is cancelled in the turn in which the slot is handed to it: the next one gets it."""
    for order in ("cancel first", "release first"):
        floor.entered.clear()
        holder, victim, heir = await floor.line_up("holder", "victim", "heir")
        if order == "cancel first":
            victim.task.cancel()
            holder.go()
        else:
            holder.go()
            victim.task.cancel()
        await floor.until_entered("holder", "heir")
        await heir.gone()
        await asyncio.wait({victim.task, holder.task})
        assert await floor.standing() == (0, 0)


async def test_cancel_while_holding_passes_the_slot_on(floor: Floor) -> None:
    """A cancelled body gives its slot back, and the head gets it."""
    holder, waiter = await floor.line_up("holder", "waiter")
    holder.task.cancel()
    await floor.until_entered("holder", "waiter")
    await asyncio.wait({holder.task})
    assert holder.task.cancelled()
    await waiter.gone()


@pytest.mark.parametrize("turns", range(8))
async def test_cancel_during_enter_takes_nothing(queue: Queue, turns: int) -> None:
    """A task cancelled some turns into its enter leaves the slot free for the next enter."""
    await queue.ping()  # so that the turns are those of the enter, not of the connection

    async def call() -> None:
        async with queue.slot("sales", max_concurrent=1):
            await asyncio.Event().wait()

    task = asyncio.create_task(call())
    await quiesce(turns)
    task.cancel()
    await asyncio.wait({task})
    assert task.cancelled()
    await assert_free(queue, "sales", 1)


@pytest.mark.parametrize("turns", range(8))
async def test_cancel_during_release_still_gives_the_slot_back(floor: Floor, turns: int) -> None:
    """A task cancelled some turns into its release has released, and the head is let in."""
    holder, waiter = await floor.line_up("holder", "waiter")
    holder.go()
    await quiesce(1 + turns)
    holder.task.cancel()
    await floor.until_entered("holder", "waiter")
    await asyncio.wait({holder.task})
    assert await floor.standing() == (0, 1)
    await waiter.gone()
    await assert_free(floor.queue, "sales", 1)


@pytest.mark.parametrize("turns", range(5))
@pytest.mark.parametrize("state", ["waiting", "granted", "holding"])
async def test_a_second_cancellation_changes_nothing(
    floor: Floor, waits: Waits, state: str, turns: int
) -> None:
    """Cancelling again while a cancelled task gives back what it has neither leaks nor strands."""
    holder, victim, heir = await floor.line_up("holder", "victim", "heir")
    if state == "granted":
        waits.cancel_at_grant(victim)
        holder.go()
        await wait_until(lambda: waits.cancelled_after_grant, "the victim is cancelled at its grant")
    else:
        if state == "holding":
            await holder.gone()
            await wait_until(lambda: victim.slot, "the victim holds")
        victim.task.cancel()
    await quiesce(turns)
    victim.task.cancel()
    await asyncio.wait({victim.task})
    assert victim.task.cancelled()
    await holder.gone()
    await wait_until(lambda: heir.slot, "the heir holds")
    assert await floor.standing() == (0, 1)
    await heir.gone()
    await assert_free(floor.queue, "sales", 1)


async def test_leave_gives_back_whatever_there_is_and_only_once(queue: Queue) -> None:
    """leave(), in each state of a ticket, tells what it had; the second time it has nothing."""
    backend = queue._backend
    holder = await backend.enter(EnterRequest("sales", "holder"))
    gone = await backend.enter(EnterRequest("sales", "gone"))
    heir = await backend.enter(EnterRequest("sales", "heir"))
    assert [holder.position, gone.position, heir.position] == [0, 1, 2]

    async def leave(ticket: Ticket, *expected: object) -> tuple[int, int]:
        result = backend.leave(ticket)
        if result is not None:  # else it is not known yet
            assert (result.was, *(call.item_id for call in result.granted_to)) == expected
        await backend.flush()
        return (await queue.stats("sales"))[:2]

    assert await leave(gone.ticket, "waiting") == (1, 1)
    assert await leave(gone.ticket, None) == (1, 1)
    assert await leave(holder.ticket, "holding", "heir") == (0, 1)
    assert await leave(holder.ticket, None) == (0, 1)
    assert await leave(heir.ticket, "holding") == (0, 0)


async def test_a_body_that_raises_gives_its_slot_back_and_keeps_its_error(floor: Floor) -> None:
    """The body's exception comes out as it went in, and the head is let in."""
    error = ZeroDivisionError("the body's own")

    async def fail() -> None:
        async with floor.queue.slot("sales", max_concurrent=1):
            floor.call("waiter")
            await wait_until(lambda: floor.queue.position("sales", "waiter"), "it waits")
            raise error

    with pytest.raises(ZeroDivisionError) as caught:
        await fail()
    assert caught.value is error
    await floor.until_entered("waiter")
    await floor.calls[0].gone()


async def test_a_thousand_tasks_cancelled_at_random_points_leave_nothing(
    queue: Queue, waits: Waits, request: pytest.FixtureRequest, backend_kind: str
) -> None:
    """1,000 tasks cancelled while waiting, being granted and holding leak and strand nothing."""
    rng = random.Random(1000)
    ended: Counter[str] = Counter()
    inside: set[asyncio.Task[None]] = set()
    most = 0

    async def call(number: int) -> None:
        nonlocal most
        state = "waiting"
        task = asyncio.current_task()
        assert task is not None
        try:
            async with queue.slot("sales", item_id=f"call-{number}", max_concurrent=5):
                state = "holding"
                inside.add(task)
                most = max(most, len(inside))
                try:
                    await asyncio.Event().wait()
                finally:
                    inside.discard(task)
        finally:
            ended[state] += 1

    def cancel_some(task: asyncio.Task[Any]) -> None:
        if rng.random() < 0.1:
            task.cancel()

    waits.on_grant = cancel_some
    tasks = [asyncio.create_task(call(number)) for number in range(1000)]
    live = tasks
    while live:
        await asyncio.sleep(0)
        live = [task for task in live if not task.done()]
        if inside and rng.random() < 0.5:
            rng.choice(sorted(inside, key=tasks.index)).cancel()
        if live and rng.random() < (0.3 if inside else 0.02):
            rng.choice(live).cancel()  # now and then one that is just leaving: a second time
    assert all(task.cancelled() for task in tasks)
    assert ended.total() == 1000
    assert min(ended["waiting"], ended["holding"]) > 100, ended
    assert waits.cancelled_after_grant > 5
    assert most == 5
    assert (await queue.stats("sales"))[:3] == (0, 0, 1)
    assert await queue.entries("sales") == []
    await assert_free(queue, "sales", 5)
    await wait_until(lambda: not state_of(queue), "nothing of the calls is kept")
    if backend_kind == "redis":
        server: RedisServer = request.getfixturevalue("redis_server")
        assert server.keys_without_expiry() == []


# --- fencing tokens --------------------------------------------------------------------------------


async def test_fencing_tokens_grow_with_every_grant(queue: Queue) -> None:
    """Each grant, at once or after a wait, in one slot or several, has a larger token than the last."""
    tokens: list[int] = []

    async def call() -> None:
        async with queue.slot("sales", max_concurrent=2) as slot:
            tokens.append(slot.fencing_token)
            await asyncio.sleep(0)

    await asyncio.gather(*(call() for _ in range(30)))
    assert len(tokens) == 30
    assert all(type(token) is int for token in tokens)
    assert all(earlier < later for earlier, later in pairwise(tokens))


async def test_fencing_tokens_grow_across_idle_times(queue: Queue) -> None:
    """A queue that was empty does not begin again with small tokens."""
    tokens = []
    for _ in range(20):
        async with queue.slot("sales", max_concurrent=1) as slot:
            tokens.append(slot.fencing_token)
        assert (await queue.stats("sales"))[:2] == (0, 0)
    assert all(earlier < later for earlier, later in pairwise(tokens))


async def test_a_waiter_that_was_there_first_has_a_token_of_its_grant(floor: Floor) -> None:
    """Tokens follow the grants, not the arrivals: entries() and the slot tell the same one."""
    holder, waiter = await floor.line_up("holder", "waiter")
    await holder.gone()
    await wait_until(lambda: waiter.slot, "the waiter holds")
    assert holder.slot is not None
    assert waiter.slot is not None
    assert waiter.slot.fencing_token > holder.slot.fencing_token
    (entry,) = await floor.queue.entries("sales")
    assert entry.fencing_token == waiter.slot.fencing_token
    await waiter.gone()


# --- evicting --------------------------------------------------------------------------------------


async def test_an_evicted_waiter_gets_an_error_that_names_queue_and_item(floor: Floor) -> None:
    """evict() takes a waiter out of the line; its task is told."""
    holder, victim = await floor.line_up("holder", "victim")
    assert await floor.queue.evict("sales", "victim") == 1
    with pytest.raises(EvictedError, match=r"'sales'.*'victim'"):
        await victim.task
    assert await floor.standing() == (0, 1)
    await holder.gone()


async def test_an_evicted_holder_is_told_and_its_slot_passes_on_at_once(floor: Floor) -> None:
    """evict() takes a slot back while the body still runs: slot.lost, and the head is let in."""
    holder, waiter, last = await floor.line_up("holder", "waiter", "last")
    assert holder.slot is not None
    assert not holder.slot.lost
    holder.slot.ensure_held()
    assert await floor.queue.evict("sales", "holder") == 1
    await floor.until_entered("holder", "waiter")
    slot = holder.slot
    await wait_until(lambda: slot.lost, "the holder knows that it has lost its slot")
    with pytest.raises(SlotLostError, match=r"'sales'.*'holder'"):
        slot.ensure_held()
    # Its own leave gives back nothing: the slot is another's by now.
    await holder.gone()
    await quiesce()
    assert await floor.standing() == (1, 1)
    assert floor.entered == ["holder", "waiter"]
    assert slot.lost
    for call in (waiter, last):
        await call.gone()


async def test_a_call_evicted_in_the_turn_of_its_grant_knows_that_it_lost_the_slot(
    floor: Floor,
) -> None:
    """Evicted after the grant and before its task woke: an error, or a slot that says it is lost."""
    async with floor.queue.slot("sales", max_concurrent=1):
        victim = floor.call("victim")
        heir = floor.call("heir")
        await wait_until(lambda: floor.queue.position("sales", "heir"), "two wait")
    assert await floor.queue.evict("sales", "victim") == 1
    await wait_until(lambda: heir.slot, "the heir holds")
    await quiesce()
    if victim.slot is not None:
        slot = victim.slot
        await wait_until(lambda: slot.lost, "the evicted call knows", timeout=2)
        await victim.gone()
    else:
        with pytest.raises(EvictedError):
            await victim.task
    assert await floor.standing() == (0, 1)
    await heir.gone()


async def test_evict_takes_every_ticket_of_an_item(floor: Floor) -> None:
    """Holders and waiters of one item_id go together, none of them into the slot of another."""
    calls = await floor.line_up("twin", "twin", "other", "twin")
    assert await floor.queue.evict("sales", "twin") == 3
    await floor.until_entered("twin", "other")
    for twin in (calls[1], calls[3]):
        with pytest.raises(EvictedError):
            await twin.task
    await calls[0].gone()
    assert await floor.standing() == (0, 1)
    await calls[2].gone()


async def test_evicting_nobody_counts_nothing(floor: Floor) -> None:
    """evict() of an unknown item returns 0 and touches nobody, neither here nor in another queue."""
    (holder,) = await floor.line_up("holder")
    assert await floor.queue.evict("sales", "stranger") == 0
    assert await floor.queue.evict("support", "holder") == 0
    assert await floor.standing() == (0, 1)
    assert holder.slot is not None
    assert not holder.slot.lost
    await holder.gone()
    assert await floor.queue.evict("sales", "holder") == 0


# --- asking ----------------------------------------------------------------------------------------


async def test_stats_count_who_waits_and_who_holds(floor: Floor) -> None:
    """stats() tells waiting, in use and the limit, from the first call to the last."""
    assert (await floor.queue.stats("sales"))[:4] == (0, 0, 1, 0.0)
    calls = await floor.line_up("a", "b", "c", "d", "e", limit=2)
    assert (await floor.queue.stats("sales"))[:3] == (3, 2, 2)
    assert (await floor.queue.stats("support"))[:4] == (0, 0, 1, 0.0)
    for call in calls:
        await call.gone()
    assert (await floor.queue.stats("sales"))[:4] == (0, 0, 1, 0.0)


async def test_the_oldest_wait_is_that_of_the_head(floor: Floor) -> None:
    """stats().oldest_wait grows while the head waits, and shrinks when a younger one is the head."""
    holder, head = await floor.line_up("holder", "head")

    async def head_has_waited() -> bool:
        return (await floor.queue.stats("sales")).oldest_wait > 0.05

    await wait_until(head_has_waited, "the head has waited for 50 ms")
    (second,) = await floor.line_up("second")
    entries = await floor.queue.entries("sales")
    oldest = (await floor.queue.stats("sales")).oldest_wait
    assert entries[1].age <= oldest < entries[1].age + 5
    assert entries[2].age < entries[1].age
    await holder.gone()
    await floor.until_entered("holder", "head")
    assert (await floor.queue.stats("sales")).oldest_wait < oldest + 0.05
    assert (await floor.queue.stats("sales")).oldest_wait > 0
    await head.gone()
    assert (await floor.queue.stats("sales")).oldest_wait == 0.0
    await second.gone()


async def test_position_counts_from_the_head(floor: Floor) -> None:
    """position() is 1 for who is next, None for holders and strangers, and moves up."""
    a, b, c = await floor.line_up("a", "b", "c")
    assert [await floor.queue.position("sales", name) for name in "abcx"] == [None, 1, 2, None]
    await a.gone()
    assert [await floor.queue.position("sales", name) for name in "abcx"] == [None, None, 1, None]
    await b.gone()
    await c.gone()


async def test_two_waiters_may_bear_the_same_item_id(floor: Floor) -> None:
    """They are two waiters: counted, listed, granted and cancelled one by one."""
    calls = await floor.line_up("twin", "x", "twin", "twin")
    assert await floor.standing() == (3, 1)
    assert await floor.queue.position("sales", "twin") == 2
    entries = await floor.queue.entries("sales")
    assert [entry.item_id for entry in entries] == ["twin", "x", "twin", "twin"]
    calls[2].task.cancel()
    await asyncio.wait({calls[2].task})
    assert await floor.standing() == (2, 1)
    assert not calls[3].task.done()
    for call in (calls[0], calls[1], calls[3]):
        await call.gone()
    assert floor.entered == ["twin", "x", "twin"]


async def test_entries_list_holders_then_waiters_in_order(floor: Floor) -> None:
    """entries() tells who, of which instance, in which state, for how long, in which place."""
    calls = await floor.line_up("a", "b", "c", "d", limit=2)
    entries = await floor.queue.entries("sales")
    assert [(e.item_id, e.state, e.position) for e in entries] == [
        ("a", "holding", None),
        ("b", "holding", None),
        ("c", "waiting", 1),
        ("d", "waiting", 2),
    ]
    assert {entry.instance_id for entry in entries} == {floor.queue.instance_id}
    assert all(0 <= entry.age < 30 for entry in entries)
    slots = [call.slot.fencing_token if call.slot else None for call in calls]
    assert [entry.fencing_token for entry in entries] == slots
    for call in calls:
        await call.gone()
    assert await floor.queue.entries("sales") == []


async def test_a_very_long_line_is_listed_completely(floor: Floor) -> None:
    """entries(), position() and evict() see beyond the first thousand waiters."""
    names = [f"call-{number}" for number in range(1003)]
    calls = await floor.line_up(*names)
    assert [entry.item_id for entry in await floor.queue.entries("sales")] == names
    assert await floor.queue.position("sales", "call-1002") == 1002
    assert await floor.queue.evict("sales", "call-1002") == 1
    with pytest.raises(EvictedError):
        await calls.pop().task
    for call in calls:
        call.go()
    await asyncio.gather(*(call.task for call in calls))
    assert floor.entered == names[:-1]


# --- semaphores ------------------------------------------------------------------------------------


async def test_a_semaphore_serves_many_tasks_at_once(queue: Queue) -> None:
    """One handle, many tasks: the limit holds, the order holds, each gives back its own slot."""
    sem = queue.semaphore("support", max_concurrent=2)
    order: list[tuple[int, int]] = []  # by token: see the order of entering, above
    inside = most = 0
    two_inside = asyncio.Event()

    async def call(number: int) -> None:
        nonlocal inside, most
        async with sem as slot:
            assert not slot.lost
            order.append((slot.fencing_token, number))
            inside += 1
            most = max(most, inside)
            if inside == 2:
                two_inside.set()
            if number == 0:  # else each might have left before the next is granted
                await two_inside.wait()
            await quiesce(number % 4)
            inside -= 1

    await asyncio.gather(*(call(number) for number in range(40)))
    assert [number for _, number in sorted(order)] == list(range(40))
    assert most == 2
    await assert_free(queue, "support", 2)


async def test_a_semaphore_may_be_nested_in_one_task(queue: Queue) -> None:
    """The inner block gives back the inner slot, the outer block the outer one."""
    sem = queue.semaphore("support", max_concurrent=2, timeout=5.0)
    async with sem as outer:
        async with sem as inner:
            assert inner.fencing_token > outer.fencing_token
            assert (await queue.stats("support"))[:2] == (0, 2)
        (entry,) = await queue.entries("support")
        assert entry.fencing_token == outer.fencing_token
    await assert_free(queue, "support", 2)


async def test_a_semaphore_makes_slots_for_named_items(queue: Queue) -> None:
    """sem(item_id=...) is a slot of the same queue, limit and timeout."""
    await queue.ping()  # connects, for which the deadline leaves no time
    sem = queue.semaphore("support", max_concurrent=1, timeout=0.01)
    async with sem(item_id="call-1") as slot:
        assert (slot.queue_id, slot.item_id) == ("support", "call-1")
        assert (await queue.stats("support")).limit == 1
        with pytest.raises(QueueTimeoutError, match="call-2"):
            async with sem(item_id="call-2"):
                pytest.fail("two in a queue with limit 1")
        with pytest.raises(QueueTimeoutError):
            async with sem:
                pytest.fail("two in a queue with limit 1")
    await assert_free(queue, "support", 1)


async def test_a_semaphore_cancelled_while_it_waits_can_be_used_again(queue: Queue) -> None:
    """A cancelled use leaves the handle as it was."""
    sem = queue.semaphore("support", max_concurrent=1)

    async def use() -> None:
        async with sem:
            await asyncio.Event().wait()

    async with sem:
        task = asyncio.create_task(use())

        async def one_waits() -> bool:
            return (await queue.stats("support")).waiting == 1

        await wait_until(one_waits, "one waits")
        task.cancel()
        await asyncio.wait({task})
    async with sem:
        assert (await queue.stats("support"))[:2] == (0, 1)


async def test_slot_and_semaphore_stand_in_the_same_line(queue: Queue) -> None:
    """A semaphore is another way to enter the queue, not another queue."""
    async with queue.slot("support", max_concurrent=1):
        with pytest.raises(QueueTimeoutError):
            async with queue.semaphore("support", max_concurrent=1, timeout=0):
                pytest.fail("two in a queue with limit 1")


# --- agreement on the limit ------------------------------------------------------------------------


async def test_another_limit_is_refused_before_anything_is_enqueued(floor: Floor) -> None:
    """A call site that disagrees gets an error with both numbers; queue and limit stay as they are."""
    (holder,) = await floor.line_up("holder", limit=2)
    with pytest.raises(LimitMismatchError) as caught:
        async with floor.queue.slot("sales", item_id="odd", max_concurrent=3):
            pytest.fail("entered with another limit")
    error = caught.value
    assert isinstance(error, ValueError)
    assert (error.queue_id, error.item_id, error.current, error.requested) == ("sales", "odd", 2, 3)
    for part in ("'sales'", "'odd'", "max_concurrent=3", "max_concurrent=2", "set_limit"):
        assert part in str(error)
    assert (await floor.queue.stats("sales"))[:3] == (0, 1, 2)
    async with floor.queue.slot("sales", timeout=0), floor.queue.slot("support", max_concurrent=3):
        pass
    await holder.gone()


async def test_a_waiter_counts_for_the_agreement_too(floor: Floor) -> None:
    """The number of a call that only waits binds the others as well, under an override, too."""
    await floor.queue.set_limit("sales", 0)
    (waiter,) = await floor.line_up("waiter", limit=2)
    with pytest.raises(LimitMismatchError):
        async with floor.queue.slot("sales", max_concurrent=3, timeout=0):
            pytest.fail("entered with another limit")
    await floor.queue.set_limit("sales", None)
    await waiter.gone()


@pytest.mark.parametrize("ending", ["released", "timeout", "refused", "cancelled", "evicted"])
async def test_the_agreement_ends_with_the_last_call(floor: Floor, ending: str) -> None:
    """Once a Queue has no calls in a queue, however they ended, another limit is as good."""
    queue = floor.queue
    (holder,) = await floor.line_up("holder", limit=1)
    if ending in ("timeout", "refused"):
        with pytest.raises(QueueTimeoutError):
            async with queue.slot(
                "sales", max_concurrent=1, timeout=0 if ending == "refused" else 0.01
            ):
                pytest.fail("two in a queue with limit 1")
    elif ending != "released":
        (waiter,) = await floor.line_up("waiter", limit=1)
        if ending == "cancelled":
            waiter.task.cancel()
        else:
            await queue.evict("sales", "waiter")
        await asyncio.wait({waiter.task})
    await holder.gone()
    async with queue.slot("sales", max_concurrent=3, timeout=0):
        assert (await queue.stats("sales")).limit == 3


# --- ids -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", UNUSUAL_IDS, ids=lambda name: ascii(name)[:20])
async def test_any_id_works_from_end_to_end(queue: Queue, name: str) -> None:
    """Whatever characters an id has, it is entered, granted, listed, found and evicted."""
    floor = Floor(queue, name)
    holder, waiter, victim = await floor.line_up(name, name, name + "!")
    entries = await queue.entries(name)
    assert [entry.item_id for entry in entries] == [name, name, name + "!"]
    assert await queue.position(name, name) == 1
    assert await queue.position(name, name + "!") == 2
    assert await queue.evict(name, name + "!") == 1
    with pytest.raises(EvictedError) as caught:
        await victim.task
    assert repr(name) in str(caught.value)
    await holder.gone()
    await floor.until_entered(name, name)
    assert waiter.slot is not None
    assert (waiter.slot.queue_id, waiter.slot.item_id) == (name, name)
    await queue.set_limit(name, 2)
    (second,) = await floor.line_up(name)
    assert (await queue.stats(name))[:3] == (0, 2, 2)
    await queue.set_limit(name, None)
    assert await queue.evict(name, name) == 2
    await waiter.gone()
    await second.gone()


async def test_unusual_queue_ids_do_not_collide(queue: Queue) -> None:
    """No two ids, however alike after escaping, are one queue."""
    async with AsyncExitStack() as stack:
        for name in UNUSUAL_IDS:
            await stack.enter_async_context(queue.slot(name, max_concurrent=1, timeout=0))
        for name in UNUSUAL_IDS:
            assert (await queue.stats(name))[:2] == (0, 1)


# --- closing ---------------------------------------------------------------------------------------


async def test_close_tells_waiters_and_holders(floor: Floor) -> None:
    """Waiters get an error that names queue and item; holders see slot.lost; leaving raises nothing."""
    holder, waiter = await floor.line_up("holder", "waiter")
    await floor.queue.close()
    with pytest.raises(BackendUnavailableError) as caught:
        await waiter.task
    assert isinstance(caught.value, ConnectionError)
    assert holder.slot is not None
    assert holder.slot.lost
    await holder.gone()
    assert "closed" in str(caught.value)
    assert "'sales'" in str(caught.value)
    assert "'waiter'" in str(caught.value)


async def test_close_in_the_turn_of_a_grant_tells_the_call(floor: Floor) -> None:
    """Closed after the grant and before its task woke: an error, or a slot that says it is lost."""
    holder, victim = await floor.line_up("holder", "victim")
    await floor.queue.set_limit("sales", 2)
    await floor.queue.close()
    await quiesce()
    if victim.slot is not None:
        assert victim.slot.lost
        await victim.gone()
    else:
        with pytest.raises(BackendUnavailableError):
            await victim.task
    await holder.gone()


@pytest.mark.parametrize("turns", range(4))
async def test_close_while_calls_enter_ends_the_calls(floor: Floor, turns: int) -> None:
    """Calls whose enter is on its way when the queue is closed end: with an error, or a lost slot."""
    await floor.queue.ping()  # so that the turns are those of the enter, not of the connection
    calls = [floor.call(f"call-{number}", limit=2) for number in range(4)]
    await quiesce(turns)
    await floor.queue.close()
    await quiesce()
    for call in calls:
        if call.slot is not None:
            assert call.slot.lost
            await call.gone()
        else:
            with pytest.raises(BackendUnavailableError):
                await call.task


OPERATIONS: dict[str, Callable[[Queue], Any]] = {
    "enter": lambda queue: queue.slot("sales", item_id="late").__aenter__(),
    "set_limit": lambda queue: queue.set_limit("sales", 1),
    "stats": lambda queue: queue.stats("sales"),
    "wait_status": lambda queue: queue.position("sales", "late"),
    "entries": lambda queue: queue.entries("sales"),
    "evict": lambda queue: queue.evict("sales", "late"),
    "ping": lambda queue: queue.ping(),
}


@pytest.mark.parametrize("used", [False, True], ids=["unused", "used"])
@pytest.mark.parametrize("operation", OPERATIONS)
async def test_use_after_close_raises(queue: Queue, operation: str, used: bool) -> None:
    """Every operation on a closed queue says that it is closed, which operation it was, and on what."""
    if used:
        await OPERATIONS["stats"](queue)
    await queue.close()
    with pytest.raises(BackendUnavailableError, match="closed") as caught:
        await OPERATIONS[operation](queue)
    assert caught.value.operation == operation
    if operation == "enter":
        assert "'sales'" in str(caught.value)
        assert "'late'" in str(caught.value)


async def test_close_can_be_said_again(queue: Queue) -> None:
    """A second close() does nothing; neither does one of a queue that was never used."""
    await queue.close()
    await queue.close()
    async with queue:
        pass


async def test_close_does_not_wait_for_calls_that_were_cancelled(
    make_queue: MakeQueue, request: pytest.FixtureRequest, backend_kind: str
) -> None:
    """A call that is cancelled before its enter was sent does not delay close()."""
    queue = make_queue(lease=60.0) if backend_kind == "redis" else make_queue()

    async def call() -> None:
        async with queue.slot("sales", max_concurrent=1):
            pytest.fail("was cancelled before")

    task = asyncio.create_task(call())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    if backend_kind == "redis":
        server: RedisServer = request.getfixturevalue("redis_server")
        loads = ("script|load", "script")  # as Redis 7 and as Redis 6 count them
        await wait_until(lambda: sum(map(server.calls, loads)) >= 8, "the connection stands")
        await wait_until(lambda: server.calls("subscribe") >= 1, "both of them")
        await quiesce()
    began = time.monotonic()
    await queue.close()
    assert time.monotonic() - began < 5


async def test_a_queue_is_a_context_manager(make_queue: MakeQueue) -> None:
    """Leaving `async with queue` closes it."""
    async with make_queue() as queue, queue.slot("sales"):
        pass
    with pytest.raises(BackendUnavailableError):
        await queue.ping()


async def test_ping_answers(queue: Queue) -> None:
    """ping() returns from a backend that answers, and leaves no trace."""
    await queue.ping()
    await wait_until(lambda: not state_of(queue), "nothing of the calls is kept")
