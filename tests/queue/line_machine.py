"""A state machine that drives one or more Queues and the model of their line, rule by rule."""

from __future__ import annotations

import asyncio
import itertools
import weakref
from collections.abc import Callable, Coroutine
from typing import Any

import hypothesis.strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from genesis import Queue
from genesis.queue.request import SlotRequest
from tests.conftest import state_of
from tests.queue.line_model import Call, Model
from tests.support.waiting import wait_until

__all__ = ["QUEUE_ID", "Line", "Tasks"]

QUEUE_ID = "line"
ITEMS = st.sampled_from(["ann", "bob", "cy"])  # few, so that items have several tickets
LIMITS = st.sampled_from([None, None, 1, 2, 3])
ACTIONS = st.sampled_from(["enter", "release", "cancel", "expire"])
PICKS = st.integers(0, 1000)


class Tasks(weakref.WeakSet[Any]):
    """A set that keeps no task alive."""


class Line(RuleBasedStateMachine):
    """Drives one or more Queues that share a line, and the model."""

    def __init__(self, make: Callable[[], list[Queue]], in_wait: Tasks) -> None:
        super().__init__()
        self.in_wait = in_wait
        self.loop = asyncio.new_event_loop()
        self.queues = make()
        self.model = Model()
        self.numbers = itertools.count()
        self.entered: list[Call] = []

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(work)

    def teardown(self) -> None:
        try:
            self.run(self.finish())
        finally:
            self.run(self.close())
            self.loop.close()

    async def finish(self) -> None:
        """Every call leaves; no process must keep anything, and the full limit is available."""
        await self.queues[0].set_limit(QUEUE_ID, None)
        self.model.set_limit(None)
        while self.model.holding:
            call = self.model.holding[0]
            self.model.remove(call)
            await self.leave(call)
            await self.agree()
        for queue in self.queues:
            await wait_until(lambda: not any(map(state_of, self.queues)), "no state is left")
            assert (await queue.stats(QUEUE_ID))[:5] == (0, 0, 1, 0.0, 0.0)
            async with queue.slot(QUEUE_ID, timeout=0):
                pass

    async def close(self) -> None:
        for queue in self.queues:
            await queue.close()
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()  # of an example that failed
        await asyncio.gather(*rest, return_exceptions=True)

    # -- calls --------------------------------------------------------------------------------------

    def start(
        self,
        item_id: str,
        limit: int | None,
        instance: int,
        timeout: float | None,
        head_start: int = 0,
        **options: Any,
    ) -> Call:
        call = Call(next(self.numbers), item_id, limit, instance, head_start)
        call.place = (-head_start, call.number)
        call.request = self.queues[instance].slot(
            QUEUE_ID,
            item_id=item_id,
            max_concurrent=limit,
            timeout=timeout,
            head_start=3600 * head_start,
            **options,
        )
        call.task = self.loop.create_task(self.body(call, call.request))
        return call

    async def body(self, call: Call, request: SlotRequest) -> None:
        async with request as call.slot:
            self.entered.append(call)
            await call.go.wait()

    async def leave(self, call: Call) -> None:
        assert call.task is not None
        call.go.set()
        await self.ended(call, "release")

    async def ended(self, call: Call, how: str) -> None:
        """Wait until the call has ended, and check how: by a rule's name, or with an error."""
        task = call.task
        assert task is not None
        await wait_until(task.done, f"{call} has ended")
        error = None if task.cancelled() else task.exception()
        ended = "cancel" if task.cancelled() else type(error).__name__ if error else "release"
        assert ended == {"expire": "QueueTimeoutError"}.get(how, how)

    def agreed(self, instance: int) -> int | None:
        """The limit that the calls of one Queue agree on."""
        calls = self.queues[instance]._calls
        return None if calls is None else calls.agreements.get(QUEUE_ID, (0, None))[1]

    async def agree(self) -> None:
        """The queue has, or soon reaches, the state of the model."""
        model = self.model
        await wait_until(
            lambda: len(self.entered) >= len(model.grants) and all(c.slot for c in model.holding),
            f"{model.grants} are granted, not {self.entered}",
        )
        # Bodies of grants made in one iteration can start in any order; the tokens have the order.
        tokens = [c.slot.fencing_token for c in model.grants if c.slot]
        assert tokens == sorted(set(tokens))
        assert sorted(self.entered, key=lambda c: c.number) == sorted(
            model.grants, key=lambda c: c.number
        )
        for queue in self.queues:
            stats = await queue.stats(QUEUE_ID)
            assert stats[:3] == (len(model.waiting), len(model.holding), model.limit)
            assert (stats.oldest_wait > 0) <= bool(model.waiting)
        queue = self.queues[-1]
        entries = await queue.entries(QUEUE_ID)
        expected: list[Any] = [(c.item_id, "holding", None) for c in model.holding]
        expected += [(c.item_id, "waiting", n) for n, c in enumerate(model.waiting, 1)]
        assert [(e.item_id, e.state, e.position) for e in entries] == expected
        for entry, call in zip(entries, model.holding, strict=False):
            assert call.slot is not None
            assert entry.fencing_token == call.slot.fencing_token
            assert not call.slot.lost
        last = len(self.queues) - 1
        for item_id in ("ann", "bob", "cy"):
            alike = [
                (c.instance != last, n) for n, c in enumerate(model.waiting, 1) if c.item_id == item_id
            ]
            place = min(alike)[1] if alike else None  # an instance's own ones come first
            assert await queue.position(QUEUE_ID, item_id) == place

    # -- rules --------------------------------------------------------------------------------------

    @rule(item_id=ITEMS, limit=LIMITS, pick=PICKS, head_start=st.sampled_from([0, 0, 0, 1, 5]))
    def enter(self, item_id: str, limit: int | None, pick: int, head_start: int) -> None:
        """A call enters, and is granted or waits; one that disagrees on the limit does neither."""

        async def work() -> None:
            instance = pick % len(self.queues)
            agreed = self.agreed(instance)
            call = self.start(item_id, limit, instance, 3600, head_start)
            if limit is not None and agreed not in (None, limit):
                await self.ended(call, "LimitMismatchError")
            else:
                self.model.enter(call)
                await self.in_line(call)

        self.run(work())

    async def in_line(self, *calls: Call) -> None:
        """Wait until all of these wait or hold, without a query, which might repair the queue."""

        def there(call: Call) -> bool:
            return call.slot is not None or call.task in self.in_wait

        await wait_until(lambda: all(map(there, calls)), f"{calls} are in the line")

    @rule(item_id=ITEMS, limit=LIMITS, pick=PICKS)
    def enter_only_if_free(self, item_id: str, limit: int | None, pick: int) -> None:
        """timeout=0 is granted exactly if a slot is free for a newcomer."""

        async def work() -> None:
            instance = pick % len(self.queues)
            if limit is not None and self.agreed(instance) not in (None, limit):
                return
            refused = self.model.would_refuse(limit)
            call = self.start(item_id, limit, instance, 0)
            if refused:
                self.model.refuse(limit)
                await self.ended(call, "expire")
            else:
                self.model.enter(call)

        self.run(work())

    @rule(item_id=ITEMS, limit=LIMITS, pick=PICKS, most=st.integers(0, 3))
    def enter_if_not_full(self, item_id: str, limit: int | None, pick: int, most: int) -> None:
        """max_waiting refuses exactly if no slot is free and this many wait."""

        async def work() -> None:
            instance = pick % len(self.queues)
            if limit is not None and self.agreed(instance) not in (None, limit):
                return
            refused = self.model.would_be_full(limit, most)
            call = self.start(item_id, limit, instance, 3600, max_waiting=most)
            if refused:
                self.model.refuse(limit)
                await self.ended(call, "QueueFullError")
            else:
                self.model.enter(call)
                await self.in_line(call)

        self.run(work())

    @precondition(lambda self: self.model.waiting)
    @rule(item_id=ITEMS, pick=PICKS, keep=st.booleans())
    def drop(self, item_id: str, pick: int, keep: bool) -> None:
        """A waiter is cancelled and leaves its place, which counts nowhere from then on."""

        async def work() -> None:
            call = self.model.waiting[pick % len(self.model.waiting)]
            assert call.request is not None
            call.request._keep_place = 3600.0 if keep else 0.0
            self.end_wait(call, False)
            self.model.remove(call)
            self.model.kept.append(call)
            call.head_start = 0 if keep else -1  # whether its place is still there
            await self.ended(call, "cancel")

        self.run(work())

    @precondition(lambda self: self.model.kept)
    @rule(pick=PICKS, instance=PICKS)
    def resume(self, pick: int, instance: int) -> None:
        """With a token, a call takes the first one's place, once; otherwise the end of the line."""

        async def work() -> None:
            first = self.model.kept[pick % len(self.model.kept)]
            assert first.request is not None
            token = first.request.place_token
            kept, first.head_start = first.head_start == 0, -1
            call = self.start("cy", None, instance % len(self.queues), 3600, place_token=token)
            if kept:
                call.place = first.place
            self.model.enter(call)
            await self.in_line(call)
            assert call.request is not None
            assert call.request.resumed is kept

        self.run(work())

    @precondition(lambda self: self.model.waiting)
    @rule(pick=PICKS, by_timer=st.booleans())
    def abandon(self, pick: int, by_timer: bool) -> None:
        """A waiter anywhere in the line is cancelled, or its timer fires."""

        async def work() -> None:
            call = self.model.waiting[pick % len(self.model.waiting)]
            self.end_wait(call, by_timer)
            self.model.remove(call)
            await self.ended(call, "expire" if by_timer else "cancel")

        self.run(work())

    def end_wait(self, call: Call, by_timer: bool) -> None:
        task: Any = call.task
        if by_timer:
            task._fut_waiter.set_exception(TimeoutError())  # what the timer does
        else:
            task.cancel()

    @precondition(lambda self: self.model.holding)
    @rule(pick=PICKS, cancelled=st.booleans())
    def release(self, pick: int, cancelled: bool) -> None:
        """A body ends or is cancelled."""

        async def work() -> None:
            call = self.model.holding[pick % len(self.model.holding)]
            assert call.task is not None
            self.model.remove(call)
            if cancelled:
                call.task.cancel()
                await self.ended(call, "cancel")
            else:
                await self.leave(call)

        self.run(work())

    @rule(item_id=ITEMS, pick=PICKS)
    def evict(self, item_id: str, pick: int) -> None:
        """Every ticket of an item is removed: waiters get an error; holders lose the slot and leave."""

        async def work() -> None:
            waiters = [c for c in self.model.waiting if c.item_id == item_id]
            holders = [c for c in self.model.holding if c.item_id == item_id]
            queue = self.queues[pick % len(self.queues)]
            assert await queue.evict(QUEUE_ID, item_id) == len(waiters) + len(holders)
            self.model.remove(*waiters, *holders)
            for call in waiters:
                await self.ended(call, "EvictedError")
            for call in holders:
                slot = call.slot
                assert slot is not None
                await wait_until(lambda slot=slot: slot.lost, f"{call} knows")
                await self.leave(call)

        self.run(work())

    @rule(limit=st.sampled_from([None, None, 0, 1, 2, 4]), pick=PICKS)
    def set_limit(self, limit: int | None, pick: int) -> None:
        """The limit is overridden, or the override ends; waiters are granted at once."""
        self.run(self.queues[pick % len(self.queues)].set_limit(QUEUE_ID, limit))
        self.model.set_limit(limit)

    @precondition(lambda self: len(self.queues) == 1 and self.model.holding)
    @rule(choices=st.lists(st.tuples(ACTIONS, PICKS)))
    def burst(self, choices: list[tuple[str, int]]) -> None:
        """Many operations in one iteration of the loop have the same effect as one by one."""

        async def work() -> None:
            present = self.model.waiting + self.model.holding
            endings: dict[Call, str] = {}
            started: list[Call] = []
            for what, pick in choices:
                if what == "enter":
                    started.append(self.start("ann", None, 0, 3600))
                    self.model.enter(started[-1])
                    continue
                left = [
                    c for c in present if c not in endings and (c.slot is None) != (what == "release")
                ]
                if not left:
                    continue
                call = left[pick % len(left)]
                endings[call] = what
                if what == "release":
                    call.go.set()
                else:
                    self.end_wait(call, what == "expire")
                self.model.remove(call)
            for call, what in endings.items():
                await self.ended(call, what)
            # A call granted and abandoned in this iteration has not started its body.
            self.model.grants = [c for c in self.model.grants if endings.get(c, "release") == "release"]
            await self.in_line(*started)

        self.run(work())

    @invariant()
    def agrees(self) -> None:
        self.run(self.agree())
