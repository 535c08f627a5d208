"""`Queue` over the in-memory backend, compared with a small model after each step.

Every operation of this backend is atomic. A probe between queue and backend reports each operation to
the model, which must agree at every moment: who waits in which order, who holds, what the limit is.
This implies that limit and order hold, that no slot is free while a call waits, and that no call is
lost. In addition, tokens must grow, and each call must end once, in a way that fits its events.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from genesis import Queue
from genesis.backends.protocol import (
    EnterRequest,
    EnterResult,
    Grant,
    LeaveResult,
    Listener,
    QueueEntry,
    QueueStats,
    Ticket,
    WaitStatus,
)
from genesis.queue import InMemoryBackend
from tests.conftest import state_of
from tests.schedules.calls import Call, Violation
from tests.schedules.choices import Choices
from tests.schedules.loop import Order, VirtualLoop
from tests.schedules.model import Line, Model
from tests.schedules.scenario import Admin, Scenario
from tests.schedules.sinks import BareQueue, Sinks

__all__ = ["MemorySchedule"]

_MOST_STEPS = 2_000


class _Probe:
    """Reports each operation to the model when it takes effect. Sits between layer and backend."""

    def __init__(self, inner: InMemoryBackend, model: Model) -> None:
        self.inner = inner
        self.model = model
        self.entered = 0
        self.stirred = False  # an operation has run since the last check
        self.name = inner.name
        self.instance_id = inner.instance_id
        self.heartbeat_interval = inner.heartbeat_interval
        self.store = inner.store

    def listen(self, listener: Listener) -> None:
        self.inner.listen(listener)

    async def enter(self, entry: EnterRequest) -> EnterResult:
        self.entered += 1
        result = await self.inner.enter(entry)
        self.model.enter(entry, result)
        self.stirred = True
        return result

    async def wait(self, ticket: Ticket, timeout: float | None) -> Grant:
        return await self.inner.wait(ticket, timeout)

    def leave(self, ticket: Ticket, context: str = "", keep_place: float = 0.0) -> LeaveResult:
        result = self.inner.leave(ticket, context, keep_place)
        self.model.leave(ticket, result)
        self.stirred = True
        return result

    async def flush(self) -> None:
        await self.inner.flush()

    def lapsed(self, ticket: Ticket) -> bool:
        return self.inner.lapsed(ticket)

    async def set_limit(self, queue_id: str, limit: int | None) -> None:
        await self.inner.set_limit(queue_id, limit)
        self.model.set_limit(queue_id, limit)
        self.stirred = True

    async def stats(self, queue_id: str) -> QueueStats:
        stats = await self.inner.stats(queue_id)
        line = self.model.lines.get(queue_id, Line())
        truth = (len(line.waiting), len(line.holding), self.model.limit(queue_id))
        if stats[:3] != truth:
            self.model.fail(f"{stats} of {queue_id}, not {truth}")
        return stats

    async def wait_status(
        self, queue_id: str, wanted: Sequence[Ticket | str]
    ) -> list[WaitStatus | None]:
        found = await self.inner.wait_status(queue_id, wanted)
        names = [t.item_id for t in self.model.lines.get(queue_id, Line()).waiting]
        for item_id, status in zip(wanted, found, strict=True):
            position = None if status is None else status.position
            if position != (names.index(item_id) + 1 if item_id in names else None):
                self.model.fail(f"{item_id} is at {position} in {names}")
        return found

    async def entries(self, queue_id: str) -> list[QueueEntry]:
        entries = await self.inner.entries(queue_id)
        line = self.model.lines.get(queue_id, Line())
        if [e.item_id for e in entries] != [t.item_id for t in line.holding + line.waiting]:
            self.model.fail(f"{entries} are not {line.holding} and {line.waiting}")
        return entries

    async def evict(self, queue_id: str, item_id: str) -> int:
        count = await self.inner.evict(queue_id, item_id)
        self.model.evict(queue_id, item_id, count)
        self.stirred = True
        return count

    async def ping(self) -> None:
        await self.inner.ping()

    async def close(self) -> None:
        await self.inner.close()
        self.model.close()
        self.stirred = True


class MemorySchedule:
    """One schedule of one scenario.

    Args:
        sinks: the layer's sinks, shared by many schedules.
        observed: whether to use the observing layer.
        order: see `loop`.
        tell: called with a description of each step.
    """

    def __init__(
        self,
        scenario: Scenario,
        choices: Choices,
        sinks: Sinks,
        *,
        observed: bool = False,
        order: Order = "fifo",
        tell: Callable[[str], None] | None = None,
    ) -> None:
        self.scenario = scenario
        self.choices = choices
        self.sinks = sinks
        self.observed = observed
        self.order = order
        self.tell = tell
        self.steps: list[int] = []  # the schedule, as numbers
        self.history: list[str] = []  # the externally visible events
        self.loop = sinks.clock.loop = VirtualLoop()
        self.backend = InMemoryBackend(clock=self.loop.time)
        self.model = Model()
        self.probe = _Probe(self.backend, self.model)
        make: Any = Queue if observed else BareQueue
        self.queue: Queue = make(self.probe, telemetry=sinks.telemetry)
        self.calls = [Call(n, plan, self.loop) for n, plan in enumerate(scenario.calls)]
        self._to_start = list(reversed(self.calls))
        self._alive: list[Call] = []
        self._admins = list(scenario.admins)
        self._timers_left = scenario.timers
        self._tokens: dict[str, int] = {}  # the highest seen, by queue
        self._granted: dict[Ticket, int] = {}  # the token of every ticket that was seen to hold

    def run(self) -> None:
        """Run the schedule to its end.

        Raises:
            Violation: a promise was broken.
        """
        loop, choices = self.loop, self.choices
        pace = self.scenario.pace
        try:
            for _ in range(_MOST_STEPS):
                events = self._events()
                if not events:
                    break
                if loop.ready and choices.chance(pace):
                    self._run_one()
                else:
                    happen, what = events[choices.pick(len(events))]
                    happen(what)
            self._finish()
        finally:
            self._dispose()

    # -- steps --------------------------------------------------------------------------------------

    def _run_one(self) -> None:
        self._note(0, "run", None)
        self.loop.run_one(self.order, self.choices)
        self._check()

    def _events(self) -> list[tuple[Callable[[Any], None], Any]]:
        """All external events that can happen now."""
        events: list[tuple[Callable[[Any], None], Any]] = []
        if self._to_start:
            events.append((self._start, None))
        waits_for_all = bool(self._to_start) and self.scenario.patient
        for call in self._alive:
            if call.cancels_left:
                events.append((self._cancel, call))
            if call.inside and not call.let_go and not waits_for_all:
                events.append((self._release, call))
        for admin in self._admins:
            if admin.what != "close" or not self._to_start:
                events.append((self._administer, admin))
        if self._timers_left and self.loop.next_timer is not None:
            events.append((self._fire, None))
        return events

    def _start(self, _: None) -> None:
        call = self._to_start.pop()
        self._note(1 + 8 * call.number, "start", call)
        call.start(self.queue)
        self._alive.append(call)

    def _cancel(self, call: Call) -> None:
        self._note(2 + 8 * call.number, "cancel", call)
        call.cancel()

    def _release(self, call: Call) -> None:
        self._note(3 + 8 * call.number, "release", call)
        call.release()

    def _fire(self, _: None) -> None:
        self._note(4, "fire the next timer", None)
        self._timers_left -= 1
        self.loop.fire_timer()

    def _administer(self, admin: Admin) -> None:
        self._note(5 + 8 * self.scenario.admins.index(admin), "", admin)
        self._admins.remove(admin)
        if not admin.item_id and self._alive:
            plan = self._alive[self.choices.pick(len(self._alive))].plan
            admin = replace(admin, item_id=plan.item_id, queue_id=plan.queue_id)
        self.loop.create_task(self._carry_out(admin))

    async def _carry_out(self, admin: Admin) -> None:
        queue = self.queue
        if self.model.closed and admin.what != "close":
            return
        if admin.what == "set_limit":
            await queue.set_limit(admin.queue_id, admin.limit)
        elif admin.what == "evict":
            await queue.evict(admin.queue_id, admin.item_id or "nobody")
        elif admin.what == "close":
            await queue.close()
        elif admin.what == "stats":
            await queue.stats(admin.queue_id)
        elif admin.what == "entries":
            await queue.entries(admin.queue_id)
        else:
            await queue.position(admin.queue_id, admin.item_id or "nobody")

    # -- checks -------------------------------------------------------------------------------------

    def _check(self) -> None:
        """The backend agrees with the model; tokens grow; a running body has a slot."""
        for call in self._alive:
            if call.task is not None and call.task.done():
                self._alive = self._sorted_out(self._alive)
                break
        if not self.probe.stirred and self.model.broken is None:
            return
        self.probe.stirred = False
        if self.model.broken is not None:
            raise self.model.broken
        model, lines = self.model, self.backend._lines
        if len(lines) != len(model.lines):
            raise Violation(f"there are lines {list(lines)}, not {list(model.lines)}")
        for queue_id, expected in model.lines.items():
            line = lines.get(queue_id)
            if line is None:
                raise Violation(f"{queue_id} is gone, with {expected.waiting + expected.holding} in it")
            waiting = [p.ticket for p in line.order]
            if waiting != sorted((p.ticket for p in line.waiting.values()), key=waiting.index):
                raise Violation(f"{queue_id}: {waiting} in order, {list(line.waiting)} by id")
            holding = [p.ticket for p in line.holding.values()]
            if waiting != expected.waiting or holding != expected.holding:
                raise Violation(
                    f"{queue_id}: waiting {waiting}, holding {holding}; "
                    f"it must be waiting {expected.waiting}, holding {expected.holding}"
                )
            if line.effective_limit != model.limit(queue_id):
                raise Violation(
                    f"{queue_id}: limit {line.effective_limit}, not {model.limit(queue_id)}"
                )
            for passage in line.holding.values():
                if passage.ticket not in self._granted:
                    if passage.token <= self._tokens.get(queue_id, 0):
                        raise Violation(f"{queue_id}: token {passage.token} after {self._tokens}")
                    self._tokens[queue_id] = self._granted[passage.ticket] = passage.token
                    self.history.append(f"+{passage.ticket.item_id}")

    def _sorted_out(self, calls: list[Call]) -> list[Call]:
        left = []
        for call in calls:
            if call.done:
                self._judge(call)
            else:
                left.append(call)
        return left

    def _judge(self, call: Call) -> None:
        """Check that the end of a call fits its events."""
        call.settle()
        self.history.append(f"{call.number}{call.ending}")
        slot = call.slot
        ticket = slot.ticket if slot is not None else None
        if ticket is not None and self._granted.get(ticket) != (slot and slot.fencing_token):
            raise Violation(f"{call} had {slot}, the backend granted {self._granted.get(ticket)}")
        if ticket is not None and ticket.id in self.model.evicted and not (slot and slot.lost):
            raise Violation(f"{call} was evicted while it held, and was not told")
        if call.ending == "evicted" and not self.model.evicted:
            raise Violation(f"{call} was told that it was evicted; nobody was")
        if call.ending == "unavailable" and not self.model.closed:
            raise Violation(f"{call} was told that the backend is closed; it is not")
        if call.ending in ("released", "failed") and slot is None:
            raise Violation(f"{call} {call.ending} without a slot")

    def _finish(self) -> None:
        """Let everything end; a call that does not end is stuck."""
        self._note(6, "the end begins", None)
        self._admins = [admin for admin in self._admins if admin.what != "close"]
        for _ in range(_MOST_STEPS):
            if self.loop.ready:
                self._run_one()
                continue
            self._check()
            inside = [call for call in self._alive if call.inside and not call.let_go]
            if inside:
                self._release(inside[0])
            elif not self._alive:
                break
            elif self.model.overrides and not self.model.closed:
                queue_id = next(iter(self.model.overrides))
                self._administer_now(Admin("set_limit", queue_id))
            else:
                raise Violation(f"stuck: {self._alive}, and nothing is left that could wake them")
        while self.loop.next_timer is not None and self._timers_left > -4:
            self._fire(None)
            while self.loop.ready:
                self._run_one()
        left = state_of(self._without_probe())
        if left or self.loop.next_timer is not None or self.loop.unfinished():
            raise Violation(f"left behind: {left or self.loop.unfinished() or 'a timer'}")
        if self.loop.errors:
            raise Violation(f"asyncio was told of errors: {self.loop.errors}")
        for task in self.loop.tasks:
            if not task.cancelled() and task.exception() is not None:
                raise Violation(f"{task!r} failed")
        if self.observed:
            counted = self.sinks.expect(self.calls)
            if counted != self.probe.entered:
                raise Violation(f"{self.probe.entered} passages, of which {counted} have an outcome")

    def _administer_now(self, admin: Admin) -> None:
        self._note(7, "", admin)
        self.loop.create_task(self._carry_out(admin))

    def _without_probe(self) -> Queue:
        """For `state_of`, which needs the backend itself."""
        layer: Any = self.queue._backend
        if self.observed:
            layer._inner = self.backend
        else:
            layer.inner = self.backend
        return self.queue

    def _dispose(self) -> None:
        for task in self.loop.tasks:
            if not task.done():
                task.cancel()
        while self.loop.ready:
            self.loop.run_one("fifo", self.choices)
        self.loop.close()

    def _note(self, number: int, step: str, what: object) -> None:
        self.steps.append(number)
        if self.tell is not None:
            self.tell(f"{step} {what or ''}".strip())
