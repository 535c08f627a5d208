"""`Driver`: runs the cores of a `RedisBackend` in one event loop, with links, timers and futures.

Every event of a queue (a call, a reply, a message, a connection, a timer) goes into its core, and its
`LocalQueue` gets what the core puts out. All of this is synchronous: there is no await point at which a
cancellation could lose anything.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections import deque
from collections.abc import Callable
from contextvars import Context
from typing import Any

from genesis.backends.protocol import BackendEvent, Disrupted, LeaveResult, Left, Recovered
from genesis.backends.redis.calls import Call, LocalQueue, unavailable
from genesis.backends.redis.cluster import guard_key
from genesis.backends.redis.connection import ConnectionLost
from genesis.backends.redis.errors import reason_of
from genesis.backends.redis.index import Index
from genesis.backends.redis.keys import queue_keys
from genesis.backends.redis.link import Link
from genesis.backends.redis.router import Router
from genesis.backends.redis.ticket import Command, Sessions, Stage
from genesis.exceptions import BackendUnavailableError

__all__ = ["BEFORE", "Driver"]

_MAX_PER_TURN = 100  # queues that a timer or a new connection handles per iteration of the loop
BEFORE = "event loop before"  # the part of `down` that was inherited from a closed loop's driver
_RETRY = 0.1  # seconds after a redirection until the queue's server is looked up again
# Reasons of error replies after which a new connection, perhaps to another server, might succeed.
_ELSEWHERE = ("read_only", "loading", "scripts_lost")


class Driver:
    """See the module docstring.

    Args:
        instance_id: the backend's.
        key_prefix: the prefix of the keys.
        channels: the prefix of the wake-up channels.
        lease, timeout: seconds; for a reply.
        emit: passes an event to the listener.

    `router` must be set before any other call.
    """

    def __init__(
        self,
        instance_id: str,
        key_prefix: str,
        channels: bytes,
        lease: float,
        timeout: float,
        emit: Callable[[BackendEvent], None],
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.instance_id = instance_id
        self.router: Router
        self._key_prefix = key_prefix
        self.lease = lease
        self.timeout = timeout
        self.emit = emit
        self.head = instance_id.encode()
        self.tail = (b"%d" % round(lease * 1e6), channels)
        self.sessions = Sessions()
        self.serials = itertools.count(1)
        self.queues: dict[str, LocalQueue] = {}
        self.calls: dict[str, Call] = {}  # by ticket, until Redis has confirmed that it left
        self._unanswered: deque[tuple[float, Call]] = deque()  # (deadline, call), see `answer_within`
        self._watch: asyncio.TimerHandle | None = None
        self._due: list[tuple[float, int, LocalQueue]] = []  # a heap
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due = float("inf")
        self._turns = itertools.count()
        self.down: dict[str, float] = {}  # parts that are down, by `loop.time()` since when
        self._changed: asyncio.Future[None] | None = None  # see `until_changed`
        self.closing = False
        self.index = Index(self, key_prefix)

    # Calls

    def open(self, queue_id: str) -> LocalQueue:
        """The local state of a queue, created at first use."""
        queue = self.queues.get(queue_id)
        if queue is None:
            keys = queue_keys(self._key_prefix, queue_id)
            if self.router.clustered:
                keys = (*keys, guard_key(keys))
            queue = self.queues[queue_id] = LocalQueue(self, queue_id, keys, self.sessions)
            self._attach(queue)
            # Set a timer: a queue into which no call enters must be dropped too.
            later = _RETRY if queue.link is None else self.lease
            self._look_at(queue, self.loop.time() + later)
            self.index.opened(queue_id)
        return queue

    def enter(self, call: Call) -> None:
        self.calls[call.ticket.id] = call
        call.queue.core.enter(call, self.loop.time())
        self.schedule(call.queue)

    def answer_within(self, call: Call, timeout: float | None) -> asyncio.TimerHandle | None:
        """Fail the call if the reply to `enter` does not come in time.

        Calls with the default timeout expire in the order of entering, so they share one timer.
        """
        if timeout is not None and timeout < self.timeout:
            return self.loop.call_later(timeout, self._expire, call, context=Context())
        line = self._unanswered
        while line and line[0][1].answer.done():
            line.popleft()
        line.append((self.loop.time() + self.timeout, call))
        if self._watch is None:
            self._watch = self.loop.call_later(self.timeout, self._expire_some, context=Context())
        return None

    def _expire_some(self) -> None:
        self._watch = None
        line, now = self._unanswered, self.loop.time()
        while line and (line[0][0] <= now or line[0][1].answer.done()):
            self._expire(line.popleft()[1])
        if line:
            self._watch = self.loop.call_at(line[0][0], self._expire_some, context=Context())

    def _expire(self, call: Call) -> None:
        if not call.answer.done():
            why = self.why_down(call.queue)
            cause = f"it is out of reach ({why})" if why else "it did not answer in time"
            call.fail(unavailable("enter", cause, *call.ticket[:2]))

    def leave(
        self, call: Call, context: str = "", keep_place: float = 0.0, *, unanswered: bool = False
    ) -> None:
        call.queue.core.leave(call, self.loop.time(), context.encode(), keep_place, unanswered)
        self.schedule(call.queue)

    def why_down(self, queue: LocalQueue) -> str:
        why = "" if queue.link is not None else self.router.why_down(queue.keys[0])
        return why or queue.redirection

    def denied(self, queue: LocalQueue) -> bool:
        """Whether a retry cannot help: a wrong password, an unknown host."""
        return queue.link is None and self.router.denied(queue.keys[0])

    def schedule(self, queue: LocalQueue) -> None:
        """Set the timer after an event of the queue's core."""
        core = queue.core
        when = core.due if core.due < core.lease_deadline else core.lease_deadline
        if when < queue.timer_at:
            self._look_at(queue, when)

    # Replies and messages

    def replied(self, queue: LocalQueue, command: Command, reply: Any) -> None:
        if isinstance(reply, Exception):
            late = queue.link is None or command.session != queue.core.session
            if late or isinstance(reply, ConnectionLost) or self.redirected(queue, reply):
                return
        else:
            self.is_served(queue, rejected=command.name not in ("sync", "beat"))
        queue.core.replied(command, reply, self.loop.time())
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
                queue.link.reconnect(reason, str(error))
        else:
            return False
        return True

    def _stands_still(self, queue: LocalQueue, reason: str, why: str) -> None:
        queue.redirection, queue.redirected_at = why, self.loop.time()
        if reason:
            self.is_down(f"slot of {queue.queue_id}", reason, f"queue {queue.queue_id!r}: {why}")

    def is_served(self, queue: LocalQueue, *, rejected: bool = True) -> None:
        """A script of the queue has run; `rejected`: heartbeats and syncs might still be rejected."""
        if queue.redirection:
            queue.redirection = ""
            self.is_up(f"slot of {queue.queue_id}")
        if queue.rejected_since is not None and not rejected:
            queue.rejected_since = None
            self.is_up(f"queue {queue.queue_id}")

    def on_push(self, link: Link, data: list[Any]) -> None:
        """`[message, channel, text]`; the text is `<kind> <session> <ticket> ...`, see library.lua."""
        if data[0] not in (b"message", b"smessage"):
            return
        kind, session, ticket_id, *rest = data[2].split(b" ", 3)
        call = self.calls.get(ticket_id.decode())
        if call is not None and call.queue.link is link:
            now = self.loop.time()
            call.queue.core.pushed(kind, int(session), ticket_id, rest[0] if rest else b"", now)
            self.schedule(call.queue)

    # Links

    def on_up(self, link: Link) -> None:
        self.is_up(f"link {id(link)}")
        self.is_up(BEFORE)
        self._notify()
        # Queues with holders first: their lease matters most.
        waiting = [q for q in self.queues.values() if q.link is None and self._link_of(q) is link]
        waiting.sort(key=lambda queue: not queue.core.held)
        self._attach_some(waiting)

    def on_down(self, link: Link | None, reason: str, detail: str) -> None:
        """A link is down; with None, the slot map of a Cluster cannot be read."""
        if reason != "idle_closed":  # no alarm
            self.is_down(f"link {id(link)}", reason, detail)
        for queue in self.queues.values():
            if link is not None and queue.link is link:
                self._detach(queue)
        self._notify()
        if link is None or link.denied:
            for call in list(self.calls.values()):
                if call.granted is None and self.denied(call.queue):
                    call.fail(unavailable("enter", detail, *call.ticket[:2]))

    def on_moved(self) -> None:
        """The slot map of the Cluster has changed, or can be read again."""
        self.is_up(f"link {id(None)}")
        in_use = {f"link {id(link)}" for link in (None, *self.router.links())}
        for part in [part for part in self.down if part.startswith("link ") and part not in in_use]:
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

    def _attach_some(self, queues: list[LocalQueue]) -> None:
        for queue in queues[:_MAX_PER_TURN]:
            self._attach(queue)
        if len(queues) > _MAX_PER_TURN:
            rest = queues[_MAX_PER_TURN:]
            self.loop.call_soon(self._attach_some, rest, context=Context())

    def _attach(self, queue: LocalQueue) -> None:
        link = self._link_of(queue)
        if queue.link is None and link is not None and link.up:
            queue.link = link
            queue.core.connected(self.loop.time())
            self.schedule(queue)
            self._notify()

    def _detach(self, queue: LocalQueue) -> None:
        queue.link = None
        queue.core.disconnected()
        self.schedule(queue)

    async def until_changed(self, timeout: float | None) -> None:
        """Wait, at most `timeout` s, until a link or a queue's link changes, or a call has left."""
        if self._changed is None or self._changed.done():
            self._changed = self.loop.create_future()
        await asyncio.wait({self._changed}, timeout=timeout)

    def _notify(self) -> None:
        if self._changed is not None and not self._changed.done():
            self._changed.set_result(None)

    def is_up(self, part: str) -> None:
        since = self.down.pop(part, None)
        if since is not None and not self.down:
            self.emit(Recovered(self.loop.time() - since))

    def is_down(self, part: str, reason: str, detail: str) -> None:
        if part not in self.down:  # one event per outage, however many retries fail
            self.down[part] = self.loop.time()
            self.emit(Disrupted(reason, detail))

    # Timers

    def _look_at(self, queue: LocalQueue, when: float) -> None:
        queue.timer_at = when
        heapq.heappush(self._due, (when, next(self._turns), queue))
        self._set_timer()

    def _set_timer(self) -> None:
        """Set the timer for the first queue that is due."""
        if self.closing or not self._due or self._due[0][0] >= self._timer_due:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_due = self._due[0][0]
        self._timer = self.loop.call_at(self._timer_due, self._tick, context=Context())

    def _tick(self) -> None:
        self._timer, self._timer_due = None, float("inf")
        now = self.loop.time()
        for _ in range(_MAX_PER_TURN):
            if not self._due or self._due[0][0] > now:
                break
            when, _, queue = heapq.heappop(self._due)
            if when == queue.timer_at and self.queues.get(queue.queue_id) is queue:
                queue.timer_at = float("inf")
                self._tick_queue(queue, now)
        self._set_timer()

    def _tick_queue(self, queue: LocalQueue, now: float) -> None:
        core = queue.core
        if queue.link is None:
            self._attach(queue)
        core.tick(now)
        self.schedule(queue)
        if core.idle and now >= queue.redirected_at + self.lease:
            del self.queues[queue.queue_id]
            self.is_served(queue, rejected=False)  # an unused queue must not prolong an outage
        elif queue.timer_at == float("inf"):
            self._look_at(queue, now + (_RETRY if queue.link is None else self.lease))

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
            if call.stage is Stage.HOLDING:
                call.queue.lost(call, "closed")
            operation = "enter" if call.granted is None else "wait"
            call.fail(unavailable(operation, BackendUnavailableError.CLOSED, *call.ticket[:2]))
            self.leave(call)

    def end(self) -> None:
        """The last connection has ended: a `leave` without a reply will never get one."""
        for call in list(self.calls.values()):
            if call.observed and not call.wanted:
                self.emit(Left(call.ticket, LeaveResult(None), False))
        self.calls.clear()
        if not self.loop.is_closed():
            self._notify()

    def stop(self) -> None:
        self.closing = True
        self.index.stop()
        for timer in (self._timer, self._watch):
            if timer is not None:
                timer.cancel()
