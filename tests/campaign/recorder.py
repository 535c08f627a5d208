"""A backend that records the events of its calls, for the history."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from genesis.backends.places import decode
from genesis.backends.protocol import (
    BackendEvent,
    Disrupted,
    EnterRequest,
    EnterResult,
    Grant,
    LeaveResult,
    Left,
    Listener,
    QueueEntry,
    QueueStats,
    SlotLost,
    Ticket,
    WaitStatus,
)
from genesis.backends.redis.calls import LocalQueue
from genesis.backends.redis.ticket import Command
from genesis.queue import RedisBackend
from tests.campaign.history import Log

__all__ = ["Recorder"]


class Recorder:
    """Delegates every operation to the backend, and logs what the calls cannot see.

    Most of it comes through the backend's interface. Replies to heartbeats and syncs are observed at
    the cores: a core's `session`, `confirmed` and `lease_deadline` before and after.
    """

    def __init__(self, inner: RedisBackend, log: Log) -> None:
        self._inner = inner
        self._log = log
        self._granted: set[str] = set()
        self._giving_up: set[str] = set()  # until their `Left`
        self._deadlines: dict[str, float] = {}  # by queue: the lease deadline that was known last
        self.name = inner.name
        self.instance_id = inner.instance_id
        self.heartbeat_interval = inner.heartbeat_interval
        self.store = inner.store

    def join(self) -> None:
        """Observe the cores. The loop must run."""
        driver = self._inner._join("join")
        honest = driver.open

        def open_queue(queue_id: str) -> LocalQueue:
            queue = honest(queue_id)
            if "replied" not in vars(queue):
                vars(queue)["replied"] = partial(self._replied, queue, queue.replied)
            return queue

        vars(driver)["open"] = open_queue

    def _replied(
        self, queue: LocalQueue, honest: Any, command: Command, reply: Any, now: float
    ) -> None:
        queue_id = queue.queue_id
        current = command.session == queue.session and queue.up
        honest(command, reply, now)
        if not current or isinstance(reply, Exception) or reply[0] != 1:
            return
        synced = command.name == "sync" and command.last and queue.confirmed == command.session
        if not synced and command.name != "beat":
            return
        self._deadlines[queue_id] = command.sent + self._inner.heartbeat_interval * 3
        self._log("deadline", queue=queue_id, until=self._deadlines[queue_id])
        # A heartbeat whose numbers differ is followed by a sync.
        unknown = int(queue.session != command.session)
        self._log("beat", queue=queue_id, sent=command.sent, unknown=unknown)
        if synced:
            self._log("restored", queue=queue_id, redis=reply[1], data_lost=bool(reply[6]))

    def listen(self, listener: Listener) -> None:
        def on_event(event: BackendEvent) -> None:
            if isinstance(event, SlotLost):
                queue_id, item_id, _ = event.ticket
                deadline = self._deadlines.get(queue_id) if event.reason == "lapsed" else None
                self._log("lost", queue=queue_id, call=item_id, reason=event.reason, deadline=deadline)
            elif isinstance(event, Disrupted):
                self._log("disrupted", reason=event.reason)
            elif isinstance(event, Left) and event.ticket.id in self._giving_up:
                self._given_up(event.ticket, event.result)
            listener(event)

        self._inner.listen(on_event)

    async def enter(self, request: EnterRequest) -> EnterResult:
        result = await self._inner.enter(request)
        queue, call = request.queue_id, request.item_id
        if result.position:
            place = round(decode(result.place_token).place) if result.place_token else None
            self._log("entered", queue=queue, call=call, place=place, resumed=result.resumed)
        elif result.grant is not None:
            self._granted.add(result.ticket.id)
            if result.resumed:
                self._log("resumed", queue=queue, call=call)
        return result

    async def wait(self, ticket: Ticket, timeout: float | None) -> Grant:
        grant = await self._inner.wait(ticket, timeout)
        self._granted.add(ticket.id)
        return grant

    def leave(self, ticket: Ticket, context: str = "", keep_place: float = 0.0) -> LeaveResult | None:
        if ticket.id in self._granted:
            self._granted.remove(ticket.id)
            return self._inner.leave(ticket, context)
        self._log("giving_up", queue=ticket.queue_id, call=ticket.item_id, keep=keep_place)
        self._giving_up.add(ticket.id)
        result = self._inner.leave(ticket, context, keep_place)
        if result is not None:
            self._given_up(ticket, result)
        return result

    def _given_up(self, ticket: Ticket, result: LeaveResult) -> None:
        self._giving_up.discard(ticket.id)
        self._log("given_up", queue=ticket.queue_id, call=ticket.item_id, was=result.was)

    async def flush(self) -> None:
        await self._inner.flush()

    def lapsed(self, ticket: Ticket) -> bool:
        return self._inner.lapsed(ticket)

    async def set_limit(self, queue_id: str, limit: int | None) -> None:
        await self._inner.set_limit(queue_id, limit)

    async def stats(self, queue_id: str) -> QueueStats:
        return await self._inner.stats(queue_id)

    async def wait_status(
        self, queue_id: str, wanted: Sequence[Ticket | str]
    ) -> list[WaitStatus | None]:
        return await self._inner.wait_status(queue_id, wanted)

    async def entries(self, queue_id: str) -> list[QueueEntry]:
        return await self._inner.entries(queue_id)

    async def evict(self, queue_id: str, item_id: str) -> int:
        return await self._inner.evict(queue_id, item_id)

    async def ping(self) -> None:
        await self._inner.ping()

    async def close(self) -> None:
        await self._inner.close()

    def kept(self) -> dict[str, Any]:
        """The calls and queues that this object and the backend still keep."""
        driver = self._inner._driver
        kept: dict[str, Any] = {"granted": self._granted, "giving_up": self._giving_up}
        return kept if driver is None else kept | {"calls": driver.calls, "queues": driver.queues}
