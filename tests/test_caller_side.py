"""What callers and operators ask of a waiting line, over every backend, on both event loops.

Themes: deadlines, full lines, head starts, kept places, statistics, watching, draining, disconnecting.
"""

from __future__ import annotations

import asyncio
import gc
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from genesis import Queue, QueueDrainingError, QueueFullError, QueueTimeoutError, WaitStatus
from genesis import until_disconnected as until_gone
from genesis.backends.protocol import Ticket
from genesis.exceptions import BackendUnavailableError, EvictedError
from genesis.queue.slot import Slot
from tests.conftest import MakeQueue, state_of
from tests.waiting import quiesce, wait_until

DAY = 86_400.0


class Call:
    """A task that enters a queue, with any options of `slot`, and stays until it may go."""

    def __init__(self, queue: Queue, item_id: str, **options: Any) -> None:
        self.item_id = item_id
        self.request = queue.slot("sales", item_id=item_id, **options)
        self.slot: Slot | None = None
        self._go = asyncio.Event()
        self.task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        async with self.request as self.slot:
            await self._go.wait()

    async def gone(self) -> None:
        self._go.set()
        await self.task

    async def dropped(self) -> None:
        self.task.cancel()
        await asyncio.wait({self.task})
        assert self.task.cancelled()


class Line:
    """The calls of one queue."""

    def __init__(self, queue: Queue) -> None:
        self.queue = queue
        self.calls: list[Call] = []

    async def call(self, item_id: str, **options: Any) -> Call:
        """Start a call, until it holds or waits."""
        call = Call(self.queue, item_id, **options)
        self.calls.append(call)
        await wait_until(
            lambda: call.slot or call.request.place_token or call.task.done(), f"{item_id} is there"
        )
        if call.task.done():
            await call.task
        return call

    async def waiting(self) -> list[str]:
        """Who waits, in the order of the line."""
        entries = await self.queue.entries("sales")
        return [entry.item_id for entry in entries if entry.state == "waiting"]

    async def grants(self) -> list[str]:
        """Let everybody go, one after the other; returns in which order they were granted."""
        for call in self.calls:
            call._go.set()
        done = [call for call in self.calls if not call.task.cancelled()]
        await asyncio.gather(*(call.task for call in done))
        done.sort(key=lambda call: call.slot.fencing_token if call.slot else 0)
        return [call.item_id for call in done]


@pytest.fixture
def queue(make_queue: MakeQueue) -> Queue:
    return make_queue(lease=300.0, operation_timeout=10.0)


@pytest.fixture
async def line(queue: Queue) -> AsyncIterator[Line]:
    line = Line(queue)
    yield line
    for call in line.calls:
        call.task.cancel()
    await asyncio.gather(*(call.task for call in line.calls), return_exceptions=True)


async def learn_holds(queue: Queue, count: int = 10) -> float:
    """Let the queue see so many holds; returns their mean."""
    for _ in range(count):
        async with queue.slot("sales"):
            await asyncio.sleep(0.001)
    mean: float | None = None

    async def known() -> bool:
        nonlocal mean
        mean = (await queue.stats("sales")).mean_hold
        return mean is not None

    await wait_until(known, "the mean hold is known")
    assert mean is not None
    return mean


# --- full lines ------------------------------------------------------------------------------------


async def test_a_full_line_refuses_at_once(line: Line) -> None:
    """`max_waiting` counts the waiters; the refused call was never in the line."""
    await line.call("holder")
    await line.call("first", max_waiting=1)
    with pytest.raises(QueueFullError, match=r"'sales'.*'late'.*max_waiting") as caught:
        await line.call("late", max_waiting=1)
    error = caught.value
    assert (error.queue_id, error.item_id, error.depth) == ("sales", "late", 1)
    assert error.retry_after is None
    assert await line.waiting() == ["first"]
    await line.call("second", max_waiting=2)
    assert await line.waiting() == ["first", "second"]
    line.calls = [call for call in line.calls if call.item_id != "late"]
    assert await line.grants() == ["holder", "first", "second"]


async def test_max_waiting_zero_is_a_free_slot_or_nothing(line: Line) -> None:
    """It takes a free slot, and never waits; the error is about a full line, not about time."""
    holder = await line.call("holder", max_waiting=0)
    with pytest.raises(QueueFullError):
        async with line.queue.slot("sales", max_waiting=0):
            pytest.fail("entered")
    with pytest.raises(QueueTimeoutError):
        async with line.queue.slot("sales", max_waiting=0, timeout=0):
            pytest.fail("entered")
    await holder.gone()
    async with line.queue.slot("sales", max_waiting=0):
        pass


async def test_a_full_line_lets_exactly_its_number_in(line: Line) -> None:
    """Many at once: one holds, three wait, the others are refused."""
    ended: Counter[str] = Counter()
    go = asyncio.Event()

    async def call() -> None:
        try:
            async with line.queue.slot("sales", max_waiting=3):
                await go.wait()
                ended["held"] += 1
        except QueueFullError:
            ended["full"] += 1

    tasks = [asyncio.create_task(call()) for _ in range(20)]
    await wait_until(lambda: ended["full"] == 16, "16 are refused")
    assert (await line.queue.stats("sales"))[:2] == (3, 1)
    go.set()
    await asyncio.gather(*tasks)
    assert ended == {"held": 4, "full": 16}


async def test_a_refusal_tells_when_to_try_again(line: Line) -> None:
    """Once ten holds are known: the expected wait of one more in the line."""
    mean = await learn_holds(line.queue)
    await line.call("holder")
    with pytest.raises(QueueFullError) as caught:
        await line.call("late", max_waiting=0)
    assert caught.value.retry_after == pytest.approx(mean, rel=0.01)
    line.calls.pop()
    await line.grants()


async def test_a_refused_call_leaves_the_limit_and_the_agreement_as_they_are(line: Line) -> None:
    """Nothing of it stays behind, also if it was alone in a paused queue."""
    await line.queue.set_limit("sales", 0)
    with pytest.raises(QueueFullError):
        async with line.queue.slot("sales", max_concurrent=7, max_waiting=0):
            pytest.fail("entered")
    await line.queue.set_limit("sales", None)
    assert (await line.queue.stats("sales"))[:3] == (0, 0, 1)
    assert not state_of(line.queue)


# --- head starts -----------------------------------------------------------------------------------


async def test_a_head_start_puts_a_call_where_it_would_have_been(line: Line) -> None:
    """By the time of entering less the head start; equals in the order of entering."""
    await line.call("holder")
    await line.call("plain")
    await line.call("early", head_start=3600)
    await line.call("earlier", head_start=7200.0)
    await line.call("early too", head_start=3600)
    await line.call("plain too")
    order = ["earlier", "early", "early too", "plain", "plain too"]
    assert await line.waiting() == order
    positions = [await line.queue.position("sales", item_id) for item_id in order]
    assert positions == [1, 2, 3, 4, 5]
    assert await line.grants() == ["holder", *order]


async def test_a_head_start_lets_nobody_overtake_who_entered_long_before(line: Line) -> None:
    """It is a static key: a waiter that entered earlier than the head start reaches stays before."""
    await line.call("holder")
    await line.call("waiter")
    await line.call("newcomer", head_start=1e-9)
    assert await line.waiting() == ["waiter", "newcomer"]
    await line.grants()


async def test_a_head_start_takes_no_slot_from_a_waiter_that_is_granted(line: Line) -> None:
    """It is a place in the line, and no slot: the holder stays, and a paused queue stays paused."""
    await line.queue.set_limit("sales", 0)
    await line.call("first", head_start=DAY)
    assert (await line.queue.stats("sales"))[:2] == (1, 0)
    await line.queue.set_limit("sales", None)
    assert await line.grants() == ["first"]


async def test_ages_are_true_whatever_the_place(line: Line) -> None:
    """`oldest_wait` is the longest wait, not the head's, and an age has no head start in it."""
    await line.call("holder")
    await line.call("old")

    async def oldest_wait() -> float:
        return (await line.queue.stats("sales")).oldest_wait

    async def is_old() -> bool:
        return await oldest_wait() > 0.03

    await wait_until(is_old, "it has waited for 30 ms")
    await line.call("young", head_start=3600)
    entries = {entry.item_id: entry for entry in await line.queue.entries("sales")}
    assert entries["young"].position == 1
    assert entries["young"].age < entries["old"].age <= await oldest_wait() < 60
    await line.grants()


# --- kept places -----------------------------------------------------------------------------------


async def test_who_drops_and_calls_again_stands_where_he_stood(line: Line) -> None:
    """The place is kept, counts nowhere while it is, and is taken with its token."""
    await line.call("holder")
    dropped = await line.call("dropped", keep_place=60)
    await line.call("next")
    token = dropped.request.place_token
    assert token is not None
    await dropped.dropped()
    assert await line.waiting() == ["next"]
    assert (await line.queue.stats("sales"))[:2] == (1, 1)
    assert await line.queue.position("sales", "next") == 1
    again = await line.call("again", place_token=token, max_waiting=2)
    assert again.request.resumed
    assert await line.waiting() == ["again", "next"]
    assert await line.grants() == ["holder", "again", "next"]


async def test_a_place_is_taken_once(line: Line) -> None:
    """The second call with a token stands at the end of the line, and is told so."""
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
    await asyncio.sleep(0.05)
    again = await line.call("again", place_token=dropped.request.place_token)
    assert not again.request.resumed
    assert await line.waiting() == ["next", "again"]
    await line.grants()


@pytest.mark.parametrize("ending", ["timeout", "evicted", "unasked", "granted"])
async def test_only_a_cancelled_waiter_keeps_its_place(line: Line, ending: str) -> None:
    """A timeout and an eviction keep nothing, nor does a call that did not ask for it or held."""
    holder = await line.call("holder")
    timeout = 0.01 if ending == "timeout" else None
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


async def test_a_kept_place_blocks_nobody_and_can_be_kept_again(line: Line) -> None:
    """A free slot goes to who is there; a resumed call that drops again keeps the same place."""
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


async def test_a_place_taken_while_a_slot_is_free(line: Line) -> None:
    """It is granted at once; `resumed` still tells that the place was there."""
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


async def test_tokens_of_other_queues_and_none_at_all_are_refused(line: Line) -> None:
    """At once, when the slot is asked for."""
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


# --- deadlines -------------------------------------------------------------------------------------


async def test_the_time_that_entering_takes_counts(queue: Queue, monkeypatch: Any) -> None:
    """The wait gets what is left of the timeout, not all of it again."""
    backend = queue._backend
    enter = backend.enter
    given: list[float] = []
    told: list[float | None] = []

    async def slow_enter(request: Any) -> Any:
        told.append(request.timeout)
        result = await enter(request)
        await asyncio.sleep(0.05)
        return result

    wait = backend.wait

    async def noting_wait(ticket: Ticket, timeout: float | None) -> Any:
        assert timeout is not None
        given.append(timeout)
        return await wait(ticket, timeout)

    async with queue.slot("sales"):
        monkeypatch.setattr(backend, "enter", slow_enter, raising=False)
        monkeypatch.setattr(backend, "wait", noting_wait, raising=False)
        with pytest.raises(QueueTimeoutError, match=r"0\.2 s"):
            async with queue.slot("sales", timeout=0.2):
                pytest.fail("entered")
        with pytest.raises(QueueTimeoutError):
            async with queue.slot("sales", timeout=0):
                pytest.fail("entered")
    assert told == [0.2, 1.0]
    assert 0 < given[0] <= 0.16


# --- statistics ------------------------------------------------------------------------------------


async def test_the_mean_hold_is_known_after_ten(queue: Queue) -> None:
    """Fewer tell too little; from then on the mean is there, also while nobody is."""
    for _ in range(9):
        async with queue.slot("sales"):
            pass
    await queue._backend.flush()
    assert (await queue.stats("sales")).mean_hold is None
    async with queue.slot("sales"):
        pass
    await queue._backend.flush()
    mean = (await queue.stats("sales")).mean_hold
    assert mean is not None
    assert 0 <= mean < 1


async def test_the_oldest_hold_is_told(line: Line) -> None:
    """Seconds since the first of the holders was granted; 0.0 without any."""
    assert (await line.queue.stats("sales")).oldest_hold == 0.0
    await line.call("first", max_concurrent=2)

    async def is_old() -> bool:
        return (await line.queue.stats("sales")).oldest_hold > 0.02

    await wait_until(is_old, "it has held for 20 ms")
    await line.call("second", max_concurrent=2)
    assert 0.02 < (await line.queue.stats("sales")).oldest_hold < 60
    await line.grants()
    assert (await line.queue.stats("sales")).oldest_hold == 0.0


# --- watching --------------------------------------------------------------------------------------


async def test_a_watch_tells_the_first_status_at_once_and_ends_with_the_wait(line: Line) -> None:
    """By request and by id: position, depth, wait; the end when it is granted."""
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


async def test_a_watch_begun_before_the_call_entered(line: Line) -> None:
    """It waits for the item, and tells its first status as soon as that stands in the line."""
    await line.call("holder")
    watch = line.queue.watch("sales", "call")
    first = asyncio.create_task(anext(watch))
    await quiesce()
    assert not first.done()
    await line.call("call")
    assert (await asyncio.wait_for(first, 5)).position == 1
    await line.grants()


async def test_a_watch_tells_what_changes_but_not_too_often(line: Line) -> None:
    """A new position once `at_least` has passed; without a change, one in `every` seconds."""
    holder = await line.call("holder")
    calls = [await line.call(f"call-{number}") for number in range(4)]
    loop = asyncio.get_running_loop()
    seen: list[tuple[float, WaitStatus]] = []

    async def read() -> None:
        async for status in calls[3].request.watch(every=0.3, at_least=0.1):
            seen.append((loop.time(), status))

    reader = asyncio.create_task(read())
    await wait_until(lambda: seen, "the first")
    await holder.gone()
    await calls[0].gone()
    await wait_until(lambda: len(seen) >= 2, "the second")
    await wait_until(lambda: len(seen) >= 3, "the third, without a change")
    assert [status.position for _, status in seen[:3]] == [4, 2, 2]
    assert seen[1][0] - seen[0][0] >= 0.09
    assert 0.29 <= seen[2][0] - seen[1][0] < 5
    line.calls = calls[1:]
    await line.grants()
    await asyncio.wait_for(reader, 5)


async def test_one_command_a_tick_for_all_that_are_watched(line: Line, monkeypatch: Any) -> None:
    """Twenty watchers of one queue send one command, not twenty; none when nobody watches."""
    await line.call("holder")
    calls = [await line.call(f"call-{number}") for number in range(20)]
    asked: list[int] = []
    backend = line.queue._backend
    wait_status = backend.wait_status

    async def counting(queue_id: str, wanted: Sequence[Ticket | str]) -> list[WaitStatus | None]:
        asked.append(len(wanted))
        return await wait_status(queue_id, wanted)

    monkeypatch.setattr(backend, "wait_status", counting, raising=False)
    watches = [call.request.watch(every=0.1, at_least=0.1) for call in calls[:10]]
    watches += [line.queue.watch("sales", call.item_id, every=0.1, at_least=0.1) for call in calls[10:]]
    for _ in range(3):
        statuses = await asyncio.gather(*map(anext, watches))
        assert [status.position for status in statuses] == list(range(1, 21))
    assert asked == [20, 20, 20]
    watching = line.queue.watches._tickers
    await wait_until(
        lambda: all(ticker.serves is None for ticker in watching.values()), "the ticker stops"
    )
    assert len(asked) == 3
    await line.grants()


async def test_the_expected_wait_is_in_the_status(line: Line) -> None:
    """Position / limit mean holds; None in a paused queue."""
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


async def test_a_watch_ends_with_eviction_and_with_close(line: Line) -> None:
    """Whoever iterates is not left hanging."""
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
    """The ticker has no task that lives on; a look that is cancelled is followed by the next."""
    await line.call("holder")
    call = await line.call("call")
    watch = call.request.watch(every=0.1, at_least=0.1)
    await anext(watch)
    following = asyncio.ensure_future(anext(watch))
    keep = {asyncio.current_task(), following, *(each.task for each in line.calls)}
    for _ in range(5):
        await quiesce(1)
        for task in asyncio.all_tasks() - keep:
            if "_ask" in repr(task):
                task.cancel()
    assert (await asyncio.wait_for(following, 5)).position == 1
    await line.grants()


# --- draining --------------------------------------------------------------------------------------


async def test_drain_lets_all_finish_and_takes_nobody_in(line: Line) -> None:
    """Waiters are still granted; new entries are refused, for good; it returns when all have left."""
    holder, waiter = await line.call("holder"), await line.call("waiter")
    drained = asyncio.create_task(line.queue.drain())
    await quiesce()
    assert line.queue.draining
    with pytest.raises(QueueDrainingError, match=r"'sales'.*'late'"):
        await line.call("late")
    await holder.gone()
    await wait_until(lambda: waiter.slot, "the waiter is granted")
    assert not drained.done()
    await waiter.gone()
    assert await asyncio.wait_for(drained, 5) == 0
    with pytest.raises(QueueDrainingError):
        async with line.queue.semaphore("support"):
            pytest.fail("entered")
    assert (await line.queue.stats("sales"))[:2] == (0, 0)


async def test_drain_returns_how_many_are_left_at_its_timeout(line: Line) -> None:
    """It cancels nobody, and may be called again."""
    await line.call("holder")
    await line.call("waiter")
    assert await line.queue.drain(0.01) == 2
    assert await line.queue.drain(0) == 2
    assert await line.grants() == ["holder", "waiter"]
    assert await line.queue.drain(timeout=5) == 0


async def test_a_task_that_holds_may_still_enter_while_draining(queue: Queue) -> None:
    """Else it could not come to its end, and `drain` would wait for it for ever."""
    async with queue.slot("sales"):
        drained = asyncio.create_task(queue.drain())
        await quiesce()
        async with queue.slot("support") as inner:
            assert inner.queue_id == "support"
        assert not drained.done()
    assert await asyncio.wait_for(drained, 5) == 0
    with pytest.raises(QueueDrainingError):
        async with queue.slot("sales"):
            pytest.fail("entered")


async def test_drain_of_a_queue_that_was_never_used(queue: Queue) -> None:
    """Nobody is there: it returns at once, and takes nobody in afterwards."""
    assert await queue.drain() == 0
    with pytest.raises(QueueDrainingError):
        await queue.slot("sales").__aenter__()


# --- disconnecting ---------------------------------------------------------------------------------


class Request:
    """A request as Starlette has it, as far as it is needed."""

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
    """The block is cancelled and left in peace; what comes after it runs."""
    await line.call("holder")
    request = Request()
    ended: list[bool] = []

    async def handle() -> str:
        async with until_gone(request) as client, line.queue.slot("sales", item_id="web"):
            pytest.fail("entered")
        ended.append(client.gone)
        await asyncio.sleep(0)  # it can go on to wait
        return "499"

    handler = asyncio.create_task(handle())
    await wait_until(lambda: line.queue.position("sales", "web"), "it waits")
    request.disconnect()
    assert await asyncio.wait_for(handler, 5) == "499"
    assert ended == [True]
    assert await line.waiting() == []
    await line.grants()


async def test_a_client_that_stays_changes_nothing(queue: Queue) -> None:
    """The slot is had, errors and cancellations from elsewhere pass, and nothing is left running."""
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
    assert not [each for each in asyncio.all_tasks() if "_disconnected" in repr(each)]
