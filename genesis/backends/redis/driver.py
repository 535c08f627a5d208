"""`Driver`: runs the cores of a `RedisBackend` in one event loop, with links, timers and futures.

Every event of a queue (a call, a reply, a message, a connection, a timer) goes into its core, and its
`LocalQueue` gets what the core puts out. All of this is synchronous: there is no await point at which a
cancellation could lose anything.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from contextvars import Context
from heapq import heappop, heappush
from math import inf
from typing import Any

from genesis.backends.protocol import (
    BackendEvent,
    Disrupted,
    LeaveResult,
    Left,
    Recovered,
    SlotLost,
)
from genesis.backends.redis.calls import Call, LocalQueue
from genesis.backends.redis.cluster import guard_key
from genesis.backends.redis.core import BEATS_PER_LEASE
from genesis.backends.redis.errors import ConnectionLost, reason_of
from genesis.backends.redis.index import Index
from genesis.backends.redis.keys import channel_prefix, queue_keys
from genesis.backends.redis.link import Link, LinkSettings
from genesis.backends.redis.router import Router
from genesis.backends.redis.scripts import loading
from genesis.backends.redis.ticket import Command, Stage
from genesis.exceptions import BackendUnavailableError

_MAX_PER_TURN = 100  # queues, and expired calls, that are handled per iteration of the loop
BEFORE = "event loop before"  # the part of `down` that was inherited from a closed loop's driver
CLOSE_WITHIN = 1.0  # seconds for which closing waits for Redis
_RETRY = 0.1  # seconds after a redirection until the queue's server is looked up again
# Reasons of error replies after which a new connection, perhaps to another server, might succeed.
_ELSEWHERE = ("read_only", "loading", "scripts_lost")


class Driver:
    """See the module docstring.

    Args:
        new_router: creates the router.
        instance_id, key_prefix: the backend's.
        lease, timeout: seconds; for a reply.
        emit: passes an event to the listener.
    """

    def __init__(
        self,
        new_router: Callable[[LinkSettings], Router],
        instance_id: str,
        key_prefix: str,
        lease: float,
        timeout: float,
        emit: Callable[[BackendEvent], None],
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.instance_id = instance_id
        self._key_prefix = key_prefix
        self.lease = lease
        self.timeout = timeout
        self.emit = emit
        channels = channel_prefix(key_prefix)
        self.head = instance_id.encode()
        self.tail = (b"%d" % round(lease * 1e6), channels)
        self.last_session = 0
        self.serials = itertools.count(1)
        self.queues: dict[str, LocalQueue] = {}
        # Shared by the calls whose `enter` has returned: the garbage collector has less to visit.
        self.answered: asyncio.Future[Any] = self.loop.create_future()
        self.answered.set_result(None)
        self.calls: dict[str, Call] = {}  # by ticket, until Redis has confirmed that it left
        self._unanswered: list[tuple[float, bytes, Call]] = []  # a heap: by the deadline of the reply
        # A heap: when to look at which queue. The garbage collector does not visit such tuples.
        self._due: list[tuple[float, str]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = inf
        # By `loop.time()`, since when these are down: links (None: the slot map), queues, slots.
        self.down: dict[Link | str | None, float] = {}
        self._changed: asyncio.Future[None] | None = None  # see `until_changed`
        self.closing = False
        self.index = Index(self, key_prefix)
        self.router = new_router(
            LinkSettings(
                [(b"SUBSCRIBE", channels + self.head), *loading()],
                timeout,
                lease / BEATS_PER_LEASE,
                self.on_up,
                self.on_down,
                self.on_push,
                self.on_moved,
            )
        )

    # Calls

    def open(self, queue_id: str) -> LocalQueue:
        """The local state of a queue, created at first use."""
        queue = self.queues.get(queue_id)
        if queue is None:
            keys = queue_keys(self._key_prefix, queue_id)
            if self.router.clustered:
                keys = (*keys, guard_key(keys))
            queue = self.queues[queue_id] = LocalQueue(self, queue_id, keys)
            self._attach(queue)
            self._look_later(queue)  # a queue into which no call enters must be dropped too
            self.index.opened(queue)
        return queue

    def enter(self, call: Call, timeout: float | None) -> None:
        """Enter; if the reply does not come in time, the call fails."""
        now, line = self.loop.time(), self._unanswered
        self.calls[call.ticket.id] = call
        call.queue.enter(call, now)
        call.queue.named.setdefault(call.ticket.item_id, call)
        self.schedule(call.queue)
        for _ in range(2):  # more than come in; all at once, it might be thousands in one turn
            if line and line[0][2].answer.done():
                heappop(line)
        deadline = now + (self.timeout if timeout is None else min(timeout, self.timeout))
        heappush(line, (deadline, call.id, call))
        if deadline < self._timer_at:
            self.wake_at(deadline)

    def _expire(self, call: Call) -> None:
        if not call.answer.done():
            why = self.why_down(call.queue)
            call.fail(f"it is out of reach ({why})" if why else "it did not answer in time")

    def leave(
        self, call: Call, context: str = "", keep_place: float = 0.0, *, unanswered: bool = False
    ) -> None:
        call.queue.leave(call, self.loop.time(), context.encode(), keep_place, unanswered)
        self.schedule(call.queue)

    def why_down(self, queue: LocalQueue) -> str:
        why = "" if queue.link is not None else self.router.why_down(queue.keys[0])
        return why or queue.redirection

    def denied(self, queue: LocalQueue) -> bool:
        """Whether a retry cannot help: a wrong password, an unknown host."""
        return queue.link is None and self.router.denied(queue.keys[0])

    def schedule(self, queue: LocalQueue) -> None:
        """Set the timer after an event of the queue's core."""
        when = queue.due if queue.due < queue.lease_deadline else queue.lease_deadline
        if when < queue.timer_at:
            self._look_at(queue, when)

    # Replies and messages

    def replied(self, queue: LocalQueue, command: Command, reply: Any) -> None:
        if isinstance(reply, Exception):
            late = queue.link is None or command.session != queue.session
            late = late or self.queues.get(queue.queue_id) is not queue  # nothing would end its outage
            if late or isinstance(reply, ConnectionLost) or self.redirected(queue, reply):
                return
        else:
            self.is_served(queue, renewed=command.name in ("sync", "beat"))
        queue.replied(command, reply, self.loop.time())
        self.schedule(queue)

    def redirected(self, queue: LocalQueue, error: Exception) -> bool:
        """Whether an error reply concerns the server or the connection, not the command."""
        reason = reason_of(error)
        if self.router.redirected(queue.keys[0], error):
            moved = str(error).startswith("MOVED ")  # served: no alarm, the first retry at once
            pause = 0.0 if moved and not queue.redirection else _RETRY
            self._stands_still(queue, "" if moved else reason, self.router.redact(error))
            if queue.link is not None:
                self._detach(queue)
                self._look_at(queue, self.loop.time() + pause)
        elif reason in _ELSEWHERE:
            if queue.link is not None:
                if self.queues.get(queue.queue_id) is queue:  # until a sync or a heartbeat has run
                    self.is_down(f"queue {queue.queue_id}", reason, self.router.redact(error))
                    reason = "idle_closed"  # no further alarm
                queue.link.reconnect(reason, str(error))
        else:
            return False
        return True

    def _stands_still(self, queue: LocalQueue, reason: str, why: str) -> None:
        queue.redirection, queue.redirected_at = why, self.loop.time()
        if reason:
            self.is_down(f"slot of {queue.queue_id}", reason, f"queue {queue.queue_id!r}: {why}")

    def is_served(self, queue: LocalQueue, *, renewed: bool = False) -> None:
        """A script of the queue has run. Args: renewed, a heartbeat or a sync."""
        if queue.redirection:
            queue.redirection = ""
            self.is_up(f"slot of {queue.queue_id}")
        if renewed and self.down:
            self.is_up(f"queue {queue.queue_id}")

    def on_push(self, link: Link, data: list[Any]) -> None:
        """`[message, channel, text]`; the text is `<kind> <session> <ticket> ...`, see library.lua."""
        if data[0] not in (b"message", b"smessage"):
            return
        kind, session, ticket_id, *rest = data[2].split(b" ", 3)
        call = self.calls.get(ticket_id.decode())
        if call is not None and call.queue.link is link:
            now = self.loop.time()
            call.queue.pushed(kind, int(session), ticket_id, rest[0] if rest else b"", now)
            self.schedule(call.queue)

    # Links

    def on_up(self, link: Link) -> None:
        self.is_up(link)
        self.is_up(BEFORE)
        self._notify()
        # Queues with holders first: their lease matters most.
        waiting = [q for q in self.queues.values() if q.link is None and self._link_of(q) is link]
        waiting.sort(key=lambda queue: not queue.held)
        self._attach_some(waiting)

    def on_down(self, link: Link | None, reason: str, detail: str) -> None:
        """A link is down; with None, the slot map of a Cluster cannot be read."""
        if reason != "idle_closed":  # no alarm
            self.is_down(link, reason, detail)
        for queue in self.queues.values():
            if link is not None and queue.link is link:
                self._detach(queue)
        self._notify()
        if link is None or link.denied:
            for call in list(self.calls.values()):
                if call.granted is None and self.denied(call.queue):
                    call.fail(detail)

    def on_moved(self) -> None:
        """The slot map of the Cluster has changed, or can be read again."""
        self.is_up(None)
        in_use = self.router.links()
        for part in [part for part in self.down if isinstance(part, Link) and part not in in_use]:
            self.is_up(part)  # its node serves no slot any more, so its outage is over
        moved = [q for q in self.queues.values() if q.link is not self._link_of(q)]
        for queue in moved:
            self._detach(queue)
            if self._link_of(queue) is None:
                self._stands_still(queue, "cluster_down", self.router.why_down(queue.keys[0]))
        self._attach_some(moved)
        self._notify()

    def _link_of(self, queue: LocalQueue) -> Link | None:
        return self.router.link(queue.keys[0])

    def _attach(self, queue: LocalQueue) -> None:
        link = self._link_of(queue)
        if queue.link is None and link is not None and link.up:
            queue.link = link
            queue.connected(self.loop.time())
            self.schedule(queue)
            self._notify()

    def _attach_some(self, queues: list[LocalQueue]) -> None:
        for queue in queues[:_MAX_PER_TURN]:
            self._attach(queue)
        if len(queues) > _MAX_PER_TURN:
            rest = queues[_MAX_PER_TURN:]
            self.loop.call_soon(self._attach_some, rest, context=Context())

    def _detach(self, queue: LocalQueue) -> None:
        queue.link = None
        queue.disconnected()
        self.schedule(queue)

    async def until_changed(self, timeout: float | None) -> None:
        """Wait, at most `timeout` s, until a link or a queue's link changes, or a call has left."""
        if self._changed is None or self._changed.done():
            self._changed = self.loop.create_future()
        await asyncio.wait({self._changed}, timeout=timeout)

    def _notify(self) -> None:
        if self._changed is not None and not self._changed.done():
            self._changed.set_result(None)

    def is_up(self, part: Link | str | None) -> None:
        since = self.down.pop(part, None)
        if since is not None and not self.down:
            self.emit(Recovered(self.loop.time() - since))

    def is_down(self, part: Link | str | None, reason: str, detail: str) -> None:
        if part not in self.down:  # one event per outage, however many retries fail
            self.down[part] = self.loop.time()
            self.emit(Disrupted(reason, detail))

    # Timers

    def _look_at(self, queue: LocalQueue, when: float) -> None:
        queue.timer_at = when
        heappush(self._due, (when, queue.queue_id))
        self.wake_at(when)

    def _look_later(self, queue: LocalQueue) -> None:
        # Without a redirection, a queue that has no link gets one by `on_up` or `on_moved`.
        self._look_at(queue, self.loop.time() + (_RETRY if queue.redirection else self.lease))

    def wake_at(self, when: float) -> None:
        """Set the one timer of the instance, unless it is set for an earlier time."""
        if when >= self._timer_at or self.closing:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = when
        self._timer = self.loop.call_at(when, self._tick, context=Context())

    def _tick(self) -> None:
        self._timer, self._timer_at = None, inf
        now, due, line = self.loop.time(), self._due, self._unanswered
        try:
            for _ in range(_MAX_PER_TURN):
                if not due or due[0][0] > now:
                    break
                when, queue_id = heappop(due)
                queue = self.queues.get(queue_id)
                if queue is not None and when == queue.timer_at:
                    queue.timer_at = inf
                    self._tick_queue(queue, now)
            for _ in range(_MAX_PER_TURN):
                if not line or not (line[0][0] <= now or line[0][2].answer.done()):
                    break
                self._expire(heappop(line)[2])
            if now >= self.index.due:
                self.index.write(now)
        finally:  # a listener might raise; the others must still be looked at
            self.wake_at(min([self.index.due, *(heap[0][0] for heap in (due, line) if heap)]))

    def _tick_queue(self, queue: LocalQueue, now: float) -> None:
        try:
            if queue.link is None:
                self._attach(queue)
            queue.tick(now)
        finally:
            self.schedule(queue)
            if queue.timer_at == inf:
                self._look_later(queue)
        if queue.idle and now >= queue.redirected_at + self.lease:
            del self.queues[queue.queue_id]
            self.is_served(queue, renewed=True)  # an unused queue must not prolong an outage

    # The end

    def forget(self, call: Call) -> None:
        """Redis has confirmed, or a sync has implied, that the call has left."""
        self.calls.pop(call.ticket.id, None)
        self._notify()

    async def flush(self) -> None:
        """Wait until every `leave` has an outcome: a reply, a later sync, or the end of the backend."""
        while any(not call.wanted for call in self.calls.values()):
            await self.until_changed(None)

    def end_calls(self) -> None:
        """Give everything back. Every call gets an error."""
        for call in list(self.calls.values()):
            if not call.wanted:
                continue
            call.fail(BackendUnavailableError.CLOSED)
            self.leave(call)
            if call.stage is Stage.HOLDING:
                self.emit(SlotLost(call.ticket, "closed"))

    async def close(self) -> None:
        """Wait for Redis's replies, and close the connections. Call `abort` afterwards."""
        deadline = self.loop.time() + CLOSE_WITHIN
        if any(link.up for link in self.router.links()):
            await asyncio.wait({asyncio.ensure_future(self.flush())}, timeout=CLOSE_WITHIN)
        self._stop()
        await self.router.close(max(0.1, deadline - self.loop.time()))

    def abort(self) -> None:
        """End at once. The loop might be stopped or closed: then no command can be sent."""
        if not self.loop.is_closed():
            self._stop()
            self.router.abort()
        for call in list(self.calls.values()):  # the reply to its `leave` will never come
            if call.observed:
                self.emit(Left(call.ticket, LeaveResult(None), False))
        self.calls.clear()
        if not self.loop.is_closed():
            self._notify()

    def _stop(self) -> None:
        self.closing = True
        self.index.stop()
        if self._timer is not None:
            self._timer.cancel()
