"""Commands that are not a step of a call: limits, evictions, introspection.

When the connection is lost, read-only commands are retried. Commands that write are idempotent, and are
retried only if the connection was idle before.

A reply is processed in its callback, before the waiting task resumes: a cancellation of the task must
not lose what the reply contains about tickets of this instance.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Any

from genesis.backends.estimate import expected_wait
from genesis.backends.protocol import QueueEntry, QueueStats, Ticket, WaitStatus
from genesis.backends.redis.calls import LocalQueue, unavailable
from genesis.backends.redis.connection import resolve
from genesis.backends.redis.driver import Driver
from genesis.backends.redis.errors import ConnectionLost
from genesis.backends.redis.members import parse_member, stats_of
from genesis.exceptions import BackendUnavailableError

_PAGE = 500  # tickets that one command reads
_NO_ANSWER = "it did not answer in time"
_FORGOTTEN = "it has forgotten a call that waits, and is told of it again within a heartbeat"
_REPEATABLE = "; it may have been applied, and is safe to repeat"


class Requests:
    """The part of `RedisBackend` that sends these commands. See the module docstring.

    Every method raises `BackendUnavailableError` if no reply comes within the operation timeout, which
    includes the time to connect.
    """

    def _join(self, operation: str, queue_id: str = "", item_id: str = "") -> Driver:
        """The running driver."""
        raise NotImplementedError

    async def set_limit(self, queue_id: str, limit: int | None) -> None:
        value = b"" if limit is None else b"%d" % limit
        # Compare and set: a late duplicate must not undo a newer override.
        driver = self._join("set_limit", queue_id)
        reply: list[Any] = [b"%d" % driver.open(queue_id).override[0]]
        while len(reply) == 1:
            reply = await self._ask("set_limit", queue_id, "limit", reply[0], value, lost=_REPEATABLE)

    async def stats(self, queue_id: str) -> QueueStats:
        return stats_of((await self._ask("stats", queue_id, "stats"))[0])

    async def wait_status(
        self, queue_id: str, wanted: Sequence[Ticket | str]
    ) -> list[WaitStatus | None]:
        queue = self._join("wait_status", queue_id).open(queue_id)
        named = queue.first_by_item() if any(isinstance(each, str) for each in wanted) else {}
        members: dict[Ticket | str, bytes] = {}
        own: dict[bytes, Any] = {}
        for each in wanted:
            call: Any = (
                named.get(each) if isinstance(each, str) else queue.tickets.get(each.id.encode())
            )
            if call is not None and call.waits:
                members[each], own[call.member] = call.member, call
        others = {each for each in wanted if isinstance(each, str) and each not in members}
        if others:
            async for member, _, _ in self._pages("wait_status", queue_id, b"waiting"):
                item_id = parse_member(member).item_id
                if item_id in others:
                    members[item_id] = member
                    others.remove(item_id)
                    if not others:
                        break
        found = [members.get(each) for each in wanted]
        asked = [member for member in found if member is not None]
        statuses: dict[bytes | None, WaitStatus] = {}
        for start in range(0, len(asked), _PAGE):
            page = asked[start : start + _PAGE]
            numbers, *_, rows = await self._ask("wait_status", queue_id, "stats", *page)
            depth, _, limit, *_, mean_hold = stats_of(numbers)
            for member, (position, *waited) in zip(page, rows, strict=True):
                if not position and member in own and own[member].waits:  # e.g. Redis lost its data
                    raise unavailable("wait_status", _FORGOTTEN, queue_id)
                if position:
                    expected = expected_wait(position, limit, mean_hold)
                    statuses[member] = WaitStatus(position, depth, waited[0] / 1e6, expected)
        return [statuses.get(member) for member in found]

    async def entries(self, queue_id: str) -> list[QueueEntry]:
        await self._ask("entries", queue_id, "stats")  # it reaps dead instances
        found = []
        async for member, token, age in self._pages("entries", queue_id, b"holding"):
            item_id, owner, _ = parse_member(member)
            found.append(QueueEntry(item_id, owner, "holding", age, None, token))
        holders = len(found)
        async for member, _, age in self._pages("entries", queue_id, b"waiting"):
            item_id, owner, _ = parse_member(member)
            position = len(found) - holders + 1
            found.append(QueueEntry(item_id, owner, "waiting", age, position, None))
        return found

    async def evict(self, queue_id: str, item_id: str) -> int:
        self._join("evict", queue_id, item_id)
        evicted = 0
        # Waiters first: a slot that an evicted holder frees must not go to one of them.
        for state in (b"waiting", b"holding"):
            members = [
                member
                async for member, _, _ in self._pages("evict", queue_id, state)
                if parse_member(member).item_id == item_id
            ]
            for member in members:
                reply = await self._ask("evict", queue_id, "evict", member, lost=_REPEATABLE)
                evicted += reply[0]
        return evicted

    async def ping(self) -> None:
        """Require a reply from every server in use."""
        driver = self._join("ping")
        router, deadline = driver.router, driver.loop.time() + driver.timeout
        while True:
            if not router.links():
                router.link(b"ping")  # of a Cluster: any node
            links = router.links()
            down = [link for link in links if not link.up]
            if down or not links:
                why = down[0].why_down if down else router.why_down(b"ping")
                denied = down[0].denied if down else router.denied(b"ping")
                await self._until_up(driver, "ping", "", deadline, why, denied)
                continue
            replies = []
            for link in links:
                replies.append(driver.loop.create_future())
                link.send((b"PING",), partial(resolve, replies[-1]))
            answers = [await self._within("ping", "", reply, deadline, "") for reply in replies]
            errors = [answer for answer in answers if isinstance(answer, Exception)]
            if not errors:
                return
            if not isinstance(errors[0], ConnectionLost):
                raise unavailable("ping", router.redact(errors[0]))

    async def _pages(
        self, operation: str, queue_id: str, state: bytes
    ) -> AsyncIterator[tuple[bytes, int, float]]:
        """All of one state in order: member, number, seconds for which it has waited or held."""
        after = b"-inf"
        while True:
            rows = await self._ask(operation, queue_id, "entries", state, after, b"%d" % _PAGE)
            for member, number, age in rows:
                yield member, number, age / 1e6
            if len(rows) < _PAGE:
                return
            after = b"%d" % rows[-1][1]

    async def _ask(
        self, operation: str, queue_id: str, script: str, *arguments: bytes, lost: str = ""
    ) -> Any:
        """Send a command as soon as a connection is up, and wait for the reply.

        Args:
            operation: the operation named in errors.
            queue_id: the queue.
            script: the script's name.
            arguments: its ARGV from the fifth on.
            lost: added to the error if the command was sent and might have run.
        """
        driver = self._join(operation, queue_id)
        deadline = driver.loop.time() + driver.timeout

        def on_reply(queue: LocalQueue, session: int, reply: asyncio.Future[Any], answer: Any) -> None:
            if not isinstance(answer, Exception):
                # Without a session there is no heartbeat, whose reply would end an outage.
                driver.is_served(queue, renewed=not queue.session)
                if script != "entries":
                    queue.asked(script, session, arguments, answer, driver.loop.time())
                    driver.schedule(queue)
            resolve(reply, answer)

        while True:
            queue = driver.open(queue_id)  # each time: an idle queue might have been dropped meanwhile
            reply = driver.loop.create_future()
            callback = partial(on_reply, queue, queue.session, reply)
            if not queue.call(script, b"", arguments, callback):
                await self._until_changed(operation, queue, deadline)
                continue
            answer = await self._within(operation, queue_id, reply, deadline, lost)
            if not isinstance(answer, Exception):
                return answer
            if isinstance(answer, ConnectionLost):
                if not lost or answer.reason == "idle_closed":
                    # The command is read-only, or idempotent: a connection that was closed or dropped
                    # while it was idle must not cause an error.
                    continue
                cause = f"the connection was lost before the reply came: {answer}{lost}"
                raise unavailable(operation, cause, queue_id)
            if not driver.redirected(queue, answer):
                raise unavailable(operation, driver.router.redact(answer), queue_id)
            # It did not run. Retry on another server or another connection.
            if queue.link is not None:
                await self._until_changed(operation, queue, deadline)

    async def _until_changed(self, operation: str, queue: LocalQueue, deadline: float) -> None:
        driver = queue.driver
        why, denied = driver.why_down(queue), driver.denied(queue)
        await self._until_up(driver, operation, queue.queue_id, deadline, why, denied)

    async def _until_up(
        self, driver: Driver, operation: str, queue_id: str, deadline: float, why: str, denied: bool
    ) -> None:
        """Wait until a link changes, or raise. Args: why a link is down; denied, for good."""
        left = deadline - driver.loop.time()
        if driver.closing:
            why = BackendUnavailableError.CLOSED
        elif not denied:
            if left > 0:
                return await driver.until_changed(left)
            why = f"it is out of reach ({why})"
        await asyncio.sleep(0)  # a caller that retries at once must not stop the loop
        raise unavailable(operation, why, queue_id)

    async def _within(
        self, operation: str, queue_id: str, reply: asyncio.Future[Any], deadline: float, lost: str
    ) -> Any:
        done, _ = await asyncio.wait({reply}, timeout=max(0.0, deadline - reply.get_loop().time()))
        if not done:
            raise unavailable(operation, _NO_ANSWER + lost, queue_id)
        return reply.result()
