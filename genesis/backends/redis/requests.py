"""Commands that concern no ticket of this instance: limits, evictions, introspection.

When the connection is lost, read-only commands are retried. Commands that write are idempotent, and are
retried only if the connection was idle before.

A reply is processed in its callback, before the waiting task resumes: a cancellation of the task must
not lose what the reply contains about tickets of this instance.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from typing import Any

from genesis.backends.estimate import expected_wait
from genesis.backends.protocol import QueueEntry, QueueStats, Ticket, WaitStatus
from genesis.backends.redis.calls import LocalQueue
from genesis.backends.redis.connection import ConnectionLost
from genesis.backends.redis.driver import Driver
from genesis.backends.redis.members import age_of, mean_hold_of, parse_member, stats_of, ticket_of
from genesis.backends.redis.scripts import load
from genesis.backends.redis.ticket import Stage

__all__ = ["Requests"]

_PAGE = 500  # tickets that one command reads
_NO_ANSWER = "it did not answer in time"
_REPEATABLE = "; it may have been applied, and is safe to repeat"


class Requests:
    """See the module docstring.

    Args:
        driver: sends the commands.
        timeout: seconds within which each reply must come, including the time to connect.

    Every method raises `BackendUnavailableError` if no reply comes in time.
    """

    def __init__(self, driver: Driver, timeout: float) -> None:
        self._driver = driver
        self._timeout = timeout

    async def set_limit(self, queue_id: str, limit: int | None) -> None:
        value = b"" if limit is None else b"%d" % limit

        def take(queue: LocalQueue, session: int, reply: Any) -> None:
            if reply[0]:
                queue.core.know_override(int(reply[1]), value)
                self._driver.absorb(queue, session, *reply[2:])

        # Compare and set: a late duplicate must not undo a newer override.
        version, reply = self._driver.open(queue_id).core.override[0], [0, 0]
        while reply[0] == 0:
            arguments = (*self._driver.preface(), b"%d" % version, value)
            reply = await self._ask("set_limit", queue_id, "limit", arguments, take, _REPEATABLE)
            version = int(reply[1])

    async def stats(self, queue_id: str) -> QueueStats:
        return stats_of(await self._reap("stats", queue_id))

    async def wait_status(
        self, queue_id: str, wanted: Sequence[Ticket | str]
    ) -> list[WaitStatus | None]:
        members = await self._find(queue_id, wanted)
        statuses: list[WaitStatus | None] = [None] * len(wanted)
        for start in range(0, len(members), _PAGE):
            await self._place(queue_id, members[start : start + _PAGE], statuses)
        return statuses

    async def _find(self, queue_id: str, wanted: Sequence[Ticket | str]) -> list[tuple[int, bytes]]:
        """The members of `wanted`: this instance's from memory, others by a scan of the line."""
        waiting = [
            call
            for call in self._driver.calls.values()
            if call.queue.queue_id == queue_id and call.stage is Stage.WAITING
        ]
        waiting.sort(key=lambda call: -call.number)  # of one item_id, the first in line wins
        own = {call.ticket.item_id: call.member for call in waiting}
        members: list[tuple[int, bytes]] = []
        others: dict[str, list[int]] = {}
        for index, each in enumerate(wanted):
            if isinstance(each, Ticket):
                if (found := self._driver.calls.get(each.id)) is not None:
                    members.append((index, found.member))
            elif each in own:
                members.append((index, own[each]))
            else:
                others.setdefault(each, []).append(index)
        if others:
            async for member, _, _ in self._pages("wait_status", queue_id, b"waiting"):
                for index in others.pop(parse_member(member).item_id, ()):
                    members.append((index, member))
                if not others:
                    break
        return members

    async def _place(
        self,
        queue_id: str,
        members: list[tuple[int, bytes]],
        statuses: list[WaitStatus | None],
    ) -> None:
        arguments = tuple(member for _, member in members)
        reply = await self._ask("wait_status", queue_id, "places", arguments)
        now, depth, limit, holds, mean, rows, resumed = reply
        entered, mean_hold = _pairs(resumed), mean_hold_of(holds, mean)
        for (index, member), position, place in zip(members, rows[::2], rows[1::2], strict=True):
            if position:
                waited = age_of(member, place, now, entered)
                expected = expected_wait(position, int(limit), mean_hold)
                statuses[index] = WaitStatus(position, depth, waited, expected)

    async def entries(self, queue_id: str) -> list[QueueEntry]:
        await self._reap("entries", queue_id)
        found = []
        async for member, number, age in self._pages("entries", queue_id, b"holding"):
            item_id, owner, _ = parse_member(member)
            found.append(QueueEntry(item_id, owner, "holding", age, None, number))
        position = 0
        async for member, _, age in self._pages("entries", queue_id, b"waiting"):
            position += 1
            item_id, owner, _ = parse_member(member)
            found.append(QueueEntry(item_id, owner, "waiting", age, position, None))
        return found

    async def evict(self, queue_id: str, item_id: str) -> int:
        evicted = 0
        # Waiters first: a slot that an evicted holder frees must not go to one of them.
        for state in (b"waiting", b"holding"):
            members = [
                member
                async for member, _, _ in self._pages("evict", queue_id, state)
                if parse_member(member).item_id == item_id
            ]
            for member in members:
                evicted += await self._evict(queue_id, member)
        return evicted

    async def _evict(self, queue_id: str, member: bytes) -> int:
        def take(queue: LocalQueue, session: int, reply: Any) -> None:
            if reply[0]:
                queue.core.evicted(session, ticket_of(member), self._driver.loop.time())
            self._driver.absorb(queue, session, *reply[1:])

        arguments = (*self._driver.preface(), member)
        reply = await self._ask("evict", queue_id, "evict", arguments, take, _REPEATABLE)
        return int(reply[0])

    async def ping(self) -> None:
        """Require a reply from every server in use."""
        driver = self._driver
        queue = LocalQueue(driver, "ping", (b"ping",), driver.sessions)
        deadline = driver.loop.time() + self._timeout
        while True:
            while not (links := [link for link in driver.router.links() if link.up]):
                driver.router.link(b"ping")
                await self._until_changed("ping", queue, deadline)
            replies = []
            for link in links:
                replies.append(driver.loop.create_future())
                link.send((b"PING",), _resolver(replies[-1]))
            answers = [await self._within("ping", "", reply, deadline, "") for reply in replies]
            errors = [answer for answer in answers if isinstance(answer, Exception)]
            if not errors:
                return
            if not isinstance(errors[0], ConnectionLost):
                raise driver.unavailable("ping", driver.redact(errors[0]))

    async def _reap(self, operation: str, queue_id: str) -> Any:
        """Reap dead instances before the queue is shown. Returns the queue's numbers."""

        def take(queue: LocalQueue, session: int, reply: Any) -> None:
            self._driver.absorb(queue, session, *reply[1:])

        return (await self._ask(operation, queue_id, "stats", self._driver.preface(), take))[0]

    async def _pages(
        self, operation: str, queue_id: str, state: bytes
    ) -> AsyncIterator[tuple[bytes, int, float]]:
        """All of one state in order: member, number, seconds for which it has waited or held."""
        after = b"-inf"
        while True:
            arguments = (state, after, b"%d" % _PAGE)
            now, rows, resumed = await self._ask(operation, queue_id, "entries", arguments)
            entered = _pairs(resumed)
            for member, score in zip(rows[::2], rows[1::2], strict=True):
                number = int(float(score))
                holds = state == b"holding"
                age = max(0, now - number) / 1e6 if holds else age_of(member, number, now, entered)
                yield member, number, age
            if len(rows) < 2 * _PAGE:
                return
            after = rows[-1]

    async def _ask(
        self,
        operation: str,
        queue_id: str,
        script: str,
        arguments: tuple[bytes, ...],
        take: Callable[[LocalQueue, int, Any], None] | None = None,
        lost: str = "",
    ) -> Any:
        """Send a command as soon as a connection is up, and wait for the reply.

        Args:
            operation: the operation named in errors.
            queue_id: the queue.
            script: the script's name.
            arguments: its ARGV.
            take: called with the reply, even if the caller was cancelled.
            lost: added to the error if the command was sent and might have run.
        """
        driver = self._driver
        deadline = driver.loop.time() + self._timeout
        while True:
            queue = driver.open(queue_id)  # each time: an idle queue might have been dropped meanwhile
            reply = driver.loop.create_future()
            resolve = _resolver(
                reply, None if take is None else partial(take, queue, queue.core.session)
            )
            link = queue.link
            if link is None or not link.call(load(script), queue.keys, arguments, resolve):
                await self._until_changed(operation, queue, deadline)
                continue
            answer = await self._within(operation, queue_id, reply, deadline, lost)
            if not isinstance(answer, Exception):
                driver.is_served(queue)
                return answer
            if isinstance(answer, ConnectionLost):
                if not lost or answer.reason == "idle_closed":
                    # The command is read-only, or idempotent: a connection that was closed or dropped
                    # while it was idle must not cause an error.
                    continue
                cause = f"the connection was lost before the reply came: {answer}{lost}"
                raise driver.unavailable(operation, cause, queue_id)
            if not driver.redirected(queue, answer):
                raise driver.unavailable(operation, driver.redact(answer), queue.queue_id)
            # It did not run. Retry on another server or another connection.
            if queue.link is not None:
                await self._until_changed(operation, queue, deadline)

    async def _until_changed(self, operation: str, queue: LocalQueue, deadline: float) -> None:
        driver = self._driver
        if driver.denied(queue):
            raise driver.unavailable(operation, driver.why_down(queue), queue.queue_id)
        left = deadline - driver.loop.time()
        if left <= 0:
            cause = f"it is out of reach ({driver.why_down(queue)})"
            raise driver.unavailable(operation, cause, queue.queue_id)
        await driver.until_changed(left)

    async def _within(
        self, operation: str, queue_id: str, reply: asyncio.Future[Any], deadline: float, lost: str
    ) -> Any:
        done, _ = await asyncio.wait({reply}, timeout=max(0.0, deadline - self._driver.loop.time()))
        if not done:
            raise self._driver.unavailable(operation, _NO_ANSWER + lost, queue_id)
        return reply.result()


def _resolver(
    reply: asyncio.Future[Any], take: Callable[[Any], None] | None = None
) -> Callable[[Any], None]:
    def resolve(answer: Any) -> None:
        if take is not None and not isinstance(answer, Exception):
            take(answer)
        if not reply.done():
            reply.set_result(answer)

    return resolve


def _pairs(rows: Sequence[Any]) -> dict[bytes, int]:
    return dict(zip(rows[::2], rows[1::2], strict=True))
