"""One ordered connection for all commands of an instance.

Commands of one turn of the event loop travel together, replies come back in the same order, and no
command waits for the reply to another. One connection instead of a pool is not thrift: it is what
makes the rest simple. Redis carries out what an instance says in the order in which it was said, so

- two tasks that enter one after the other stand in line in that order;
- a `leave` said by a task that was cancelled while its `enter` was on its way comes after it;
- a heartbeat's list of tickets is true at the moment at which Redis reads it.

States: *down* -> *up* -> *down* ... -> *closed*. On the way down the outcome of every command without
a reply is unknown. All of them can be said again, so they are, in their old order, on the next
connection, unless whoever asked has given up meanwhile. A lasting command (`leave`) never expires;
the others fail `timeout` seconds after they were said, however often the connection was tried
meanwhile. A connection that owes a reply for that long is given up as dead, which is how a half-open
one is found. A Redis that has forgotten its scripts is left and joined again, too: joining loads them,
and the order needs no rule of its own.

A command whose bytes sit in a connection that was given up may still arrive later: it is *stray*.
Nothing here can prevent that. Every script finds by the ticket that it was carried out already, and
changes nothing. After the ticket's `leave` there is nothing to find, so a `leave` tells Redis to
remember the ticket as left, if a connection has broken since the ticket was made.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections import deque
from collections.abc import Callable, Sequence
from contextvars import Context
from typing import Any

from redis import exceptions as redis_errors
from redis.asyncio.connection import AbstractConnection

try:
    from hiredis import pack_command
except ImportError:  # the extra is not installed
    pack_command = None  # type: ignore[assignment]

from genesis.backends.redis.endpoint import Endpoint
from genesis.backends.redis.scripts import SCRIPT_NAMES, Script, load

__all__ = [
    "Breaks",
    "Command",
    "Link",
    "Refused",
    "Unreachable",
    "backoff",
    "conclude",
    "end",
    "reason_of",
    "release",
]

_MAX_BATCH = 512  # commands written at once, so that replies are read meanwhile
_ELSEWHERE = (
    redis_errors.NoScriptError,
    redis_errors.ReadOnlyError,
    redis_errors.BusyLoadingError,
    redis_errors.MasterDownError,
)


class Unreachable(Exception):  # noqa: N818 - a state of affairs, raised inside only
    """A command was not answered in time, or was refused by the server."""


class Refused(Unreachable):
    """The server answered, and would not carry the command out."""


class Command:
    """A script call on its way.

    `on_answer` is called with Redis' answer, or with the `Unreachable` that ends the command, from
    the reading loop and in the order of the answers, whoever still awaits it. `reply` is for the
    caller alone: it resolves with the same, or, for a lasting command, with `Unreachable` as soon as
    the connection breaks, although the command will be said again.

    `again` is appended to the arguments if connections have broken by the time it is written, more
    than `breaks` of them in all: it, or what was said before it, may be stray. `sent` means that its
    bytes may have reached Redis, on whichever connection.
    """

    __slots__ = (
        "again",
        "arguments",
        "breaks",
        "expires",
        "keys",
        "on_answer",
        "reply",
        "script",
        "sent",
        "written",
    )

    def __init__(
        self,
        script: Script,
        keys: Sequence[bytes],
        arguments: Sequence[bytes],
        again: tuple[bytes, ...],
        on_answer: Callable[[Any], None] | None,
        reply: asyncio.Future[Any],
        expires: float,
        breaks: int,
    ) -> None:
        self.script = script
        self.keys = keys
        self.arguments = arguments
        self.again = again
        self.on_answer = on_answer
        self.reply = reply
        self.expires = expires  # the loop's clock; infinity for a lasting command
        self.sent = False
        self.breaks = breaks  # as long as there are no more of them, nothing is stray
        self.written = 0.0  # the loop's clock, on the connection in use

    @property
    def wanted(self) -> bool:
        return self.expires == math.inf or not self.reply.done()

    def words(self, breaks: int) -> tuple[Any, ...]:
        again = self.again if breaks != self.breaks else ()
        script = self.script
        return ("EVALSHA", script.sha, len(self.keys), *self.keys, *self.arguments, *again)


class Breaks:
    """How many connections were given up, with what they carried. The links of a cluster share one."""

    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0


def _nowhere_else(command: Command, refusal: redis_errors.ResponseError) -> bool:
    # Not every version of redis-py knows these refusals from a server that it takes for a single one.
    if isinstance(refusal, redis_errors.AskError) or str(refusal).startswith(("MOVED ", "ASK ")):
        cure = "the server is a node of a cluster; give RedisBackend client=RedisCluster.from_url(...)"
        conclude(command, Refused(f"{type(refusal).__name__}: {refusal}: {cure}"))
        return True
    return False


class Link:
    """See the module's text. Belongs to the event loop in which it is made.

    Args:
        endpoint: where to.
        timeout: seconds after which a command without an answer fails.
        on_up: called each time the connection stands.
        on_down: called with a reason and a detail each time it broke or could not be made.
        on_redirect: called with a command that was refused and the refusal; returns whether it takes
            the command over, because another server is to carry it out.
        breaks: is counted up; its own if None.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        timeout: float,
        on_up: Callable[[], None],
        on_down: Callable[[str, str], None],
        on_redirect: Callable[[Command, redis_errors.ResponseError], bool] = _nowhere_else,
        breaks: Breaks | None = None,
    ) -> None:
        self.endpoint = endpoint
        self._timeout = timeout
        self._on_up = on_up
        self._on_down = on_down
        self._on_redirect = on_redirect
        self._breaks = Breaks() if breaks is None else breaks
        self._loop = asyncio.get_running_loop()
        self._outbox: deque[Command] = deque()  # said, not written on this connection
        self._in_flight: deque[Command] = deque()  # written; replies come in this order
        self._something_to_write = asyncio.Event()
        self._drained = asyncio.Event()
        self._drained.set()
        self._watchdog: asyncio.TimerHandle | None = None
        self._overdue: Command | None = None  # the oldest in flight, when the watchdog last looked
        self._closed = False
        self._failures = 0  # connections in a row on which nothing was answered
        self._given_up: asyncio.Future[Exception] | None = None  # why to leave it, while up
        self.connection: AbstractConnection | None = None  # while up
        self.why_down = "not connected yet"
        self._task = self._loop.create_task(self._run(), name="genesis-redis-link")

    @property
    def up(self) -> bool:
        return self._given_up is not None

    @property
    def breaks(self) -> int:
        return self._breaks.count

    def subscribe_at(self) -> Endpoint:
        """Where the wake-ups of this link's commands are heard."""
        return self.endpoint

    def trouble(self, keys: Sequence[bytes]) -> str:  # noqa: ARG002 - one connection for all of them
        """Why a command on `keys` cannot be said at once; '' if it can."""
        return "" if self.up else self.why_down

    def call(
        self,
        script: Script,
        keys: Sequence[bytes],
        arguments: Sequence[bytes],
        *,
        again: tuple[bytes, ...] = (),
        since: int | None = None,
        on_answer: Callable[[Any], None] | None = None,
        lasting: bool = False,
    ) -> Command:
        """Say a command. Its place in the order is taken before this returns.

        Args:
            again: appended to the arguments if a connection has broken by the time it is written.
            since: ... since there had been this many `breaks`; since now if None.
            on_answer: see `Command`.
            lasting: never expires; said until Redis has answered.
        """
        expires = math.inf if lasting else self._loop.time() + self._timeout
        reply = self._loop.create_future()
        breaks = self.breaks if since is None else since
        command = Command(script, keys, arguments, again, on_answer, reply, expires, breaks)
        self.say(command)
        return command

    def say(self, command: Command) -> None:
        """Say a command that was made elsewhere, after all that was said before."""
        if self._closed:
            conclude(command, Unreachable(self.why_down))
            return
        self._outbox.append(command)
        self._drained.clear()
        self._something_to_write.set()
        if self._watchdog is None:
            self._watchdog = self._loop.call_later(self._timeout, self._watch, context=Context())

    def withdraw(self, chosen: Callable[[Command], bool]) -> list[Command]:
        """Take back, in their order, those commands that are not written on this connection."""
        taken = [command for command in self._outbox if chosen(command)]
        if taken:
            self._outbox = deque(command for command in self._outbox if not chosen(command))
            self._note_if_drained()
        return taken

    def withdrawable(self) -> list[Command]:
        """What `withdraw` can take."""
        return list(self._outbox)

    def take_all(self) -> list[Command]:
        """Take all that has no answer, in order: others will carry it out."""
        self._breaks.count += 1
        taken = [*self._in_flight, *self._outbox]
        self._in_flight.clear()
        self._outbox.clear()
        self._note_if_drained()
        return taken

    def unanswered(self) -> list[Command]:
        """What is written on this connection, in the order in which replies will come."""
        return list(self._in_flight)

    def silent(self, now: float) -> float:
        """Seconds for which the oldest command on this connection has had no reply."""
        return now - self._in_flight[0].written if self._in_flight else 0.0

    def leave(self, why: Exception) -> None:
        """Give the connection up, if there is one, and make another."""
        if self._given_up is not None and not self._given_up.done():
            self._given_up.set_result(why)

    def abandon(self, command: Command) -> bool:
        """Nobody wants this command any more: returns whether Redis may carry it out all the same."""
        command.reply.cancel()
        if command in self._outbox:  # not said yet, or to be said again
            self._outbox.remove(command)
            self._note_if_drained()
        return command.sent

    @property
    def owes(self) -> bool:
        """Whether anything that was said has no answer."""
        return not self._drained.is_set()

    async def drain(self, timeout: float) -> None:
        """Wait until all that was said is answered, `timeout` seconds at most."""
        waiting = asyncio.ensure_future(self._drained.wait())
        try:
            await asyncio.wait({waiting}, timeout=timeout)
        finally:
            waiting.cancel()

    async def close(self) -> None:
        """Stop at once; commands without an answer, and all that are said later, fail."""
        self._closed = True
        await end(self._task)
        if self._watchdog is not None:
            self._watchdog.cancel()
        self.why_down = "the backend was closed"
        for command in (*self._in_flight, *self._outbox):
            conclude(command, Unreachable(self.why_down))
        self._in_flight.clear()
        self._outbox.clear()

    async def _run(self) -> None:
        while True:
            connection = self.endpoint.connection()
            reason = "other"
            try:
                await self._open(connection)
                await self._converse(connection)
            except Exception as error:  # whatever it is, it must not end the link in silence
                reason, self.why_down = reason_of(error), self.endpoint.tell(error)
            finally:
                self._take_back()
                await connection.disconnect(nowait=True)
            # After the taking back: whoever hears of it may withdraw what has no reply.
            self._on_down(reason, self.why_down)
            await asyncio.sleep(backoff(self._failures))
            self._failures += 1

    async def _open(self, connection: AbstractConnection) -> None:
        try:
            await asyncio.wait_for(self._join(connection), self._timeout)
        except asyncio.TimeoutError:
            raise redis_errors.TimeoutError(f"no connection within {self._timeout:g} s") from None

    async def _join(self, connection: AbstractConnection) -> None:
        await connection.connect()  # type: ignore[no-untyped-call]
        scripts = [("SCRIPT", "LOAD", load(name).source) for name in SCRIPT_NAMES]
        await connection.send_packed_command(connection.pack_commands(scripts), check_health=False)
        for _ in scripts:
            await connection.read_response(timeout=math.inf, disconnect_on_error=False)

    async def _converse(self, connection: AbstractConnection) -> None:
        """Write and read until one of the two breaks, or the watchdog gives the connection up."""
        self._given_up = self._loop.create_future()
        self.connection = connection
        self._on_up()
        reader = self._loop.create_task(self._read(connection), name="genesis-redis-reader")
        writer = self._loop.create_task(self._write(connection), name="genesis-redis-writer")
        try:
            ends: set[asyncio.Future[Any]] = {reader, writer, self._given_up}
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if self._given_up.done():
                raise self._given_up.result()
        finally:
            reader.cancel()
            writer.cancel()
            broken = await asyncio.gather(reader, writer, return_exceptions=True)
        for error in broken:
            if isinstance(error, Exception):
                raise error

    async def _read(self, connection: AbstractConnection) -> None:
        while True:
            try:
                reply = await connection.read_response(timeout=math.inf, disconnect_on_error=False)
            except _ELSEWHERE:
                raise  # the command stays in flight, and is said again to whoever can carry it out
            except redis_errors.ResponseError as error:
                if _is_elsewhere(error):
                    raise redis_errors.ReadOnlyError(str(error)) from error
                command = self._in_flight.popleft()
                if not self._on_redirect(command, error):
                    conclude(command, Refused(self.endpoint.tell(error)))
            else:
                self._failures = 0
                conclude(self._in_flight.popleft(), reply)
            self._note_if_drained()

    async def _write(self, connection: AbstractConnection) -> None:
        while True:
            while self._outbox:
                batch = [self._outbox.popleft() for _ in range(min(_MAX_BATCH, len(self._outbox)))]
                words = [command.words(self.breaks) for command in batch]
                # In flight before the bytes leave: a reply can never find its command missing, and
                # after a write that fails half way all of them are said again.
                now = self._loop.time()
                for command in batch:
                    command.sent = True
                    command.written = now
                self._in_flight.extend(batch)
                packed = _pack(connection, words)
                await connection.send_packed_command(packed, check_health=False)
            self._something_to_write.clear()
            await self._something_to_write.wait()

    def _take_back(self) -> None:
        """Put what has no reply in front of what was not yet said, in the old order."""
        self._breaks.count += self.up
        self._given_up = self.connection = None
        unanswered, self._in_flight = self._in_flight, deque()
        self._outbox.extendleft(command for command in reversed(unanswered) if command.wanted)
        for command in unanswered:
            if not command.wanted:
                conclude(command, Unreachable(self.why_down))
        for command in self._outbox:
            if command.expires == math.inf:
                release(command, self.why_down)
        self._note_if_drained()

    def _watch(self) -> None:
        self._watchdog = None
        now = self._loop.time()
        late: list[Command] = []
        if not self.up:
            late += [command for command in self._outbox if command.expires <= now]
            self._outbox = deque(command for command in self._outbox if command.expires > now)
        oldest = self._in_flight[0] if self._in_flight else None
        if oldest is None or now - oldest.written < self._timeout:
            self._overdue = None
        elif oldest is not self._overdue:
            # Not at first sight: if it was this process that stood still, the reply lies in the
            # socket, and the reader comes to it before the next look.
            self._overdue = oldest
        elif self._given_up is not None and not self._given_up.done():
            late += [command for command in self._in_flight if command.expires <= now]
            self.leave(redis_errors.TimeoutError(f"no reply within {self._timeout:g} s"))
        for command in late:
            why = "it did not answer" if self.up else f"it is out of reach ({self.why_down})"
            conclude(command, Unreachable(f"{why}, and {self._timeout:g} s have passed"))
        if self._in_flight or self._outbox:
            self._watchdog = self._loop.call_later(self._timeout / 10, self._watch, context=Context())
        self._note_if_drained()

    def _note_if_drained(self) -> None:
        if not self._in_flight and not self._outbox:
            self._drained.set()


def _pack(connection: AbstractConnection, commands: list[tuple[Any, ...]]) -> list[bytes]:
    """As `connection` packs them, which is most of a command's cost; hiredis needs a fifth of it."""
    if pack_command is None:
        packed: list[bytes] = connection.pack_commands(commands)
        return packed
    return [pack_command(command) for command in commands]


def _is_elsewhere(error: Exception) -> bool:
    """Before 7.0, Redis wraps what a command inside a script was refused with."""
    return any(word in str(error) for word in ("-READONLY", "-MASTERDOWN", "-LOADING"))


def conclude(command: Command, answer: Any) -> None:
    """End a command with Redis' answer, or with the `Unreachable` that it gets instead."""
    # The answer is absorbed before its caller runs: between the two, a wake-up message may come.
    if command.on_answer is not None:
        on_answer, command.on_answer = command.on_answer, None
        try:
            on_answer(answer)
        finally:  # a bug in there must not keep the caller waiting for ever
            _resolve(command.reply, answer)
    else:
        _resolve(command.reply, answer)


def release(command: Command, why: str) -> None:
    """Tell the caller of a lasting command not to wait for the answer."""
    _resolve(command.reply, Unreachable(why))


def _resolve(reply: asyncio.Future[Any], answer: Any) -> None:
    if reply.done():
        return
    if isinstance(answer, Unreachable):
        reply.set_exception(answer)
        reply.exception()  # a caller that is gone need not be told
    else:
        reply.set_result(answer)


# The first that fits: some of redis-py's errors are kinds of others further down.
_REASONS: tuple[tuple[tuple[type[BaseException], ...], str], ...] = (
    ((redis_errors.AuthenticationError, redis_errors.AuthorizationError), "denied"),
    ((redis_errors.NoPermissionError,), "denied"),
    ((redis_errors.NoScriptError,), "scripts_lost"),
    ((redis_errors.ReadOnlyError, redis_errors.MasterDownError), "read_only"),
    ((redis_errors.BusyLoadingError,), "loading"),
    ((redis_errors.ClusterDownError,), "cluster_down"),
    ((redis_errors.AskError, redis_errors.TryAgainError), "slot_moving"),
    ((redis_errors.TimeoutError, TimeoutError, asyncio.TimeoutError), "timeout"),
    ((redis_errors.ResponseError,), "refused"),
    ((redis_errors.ConnectionError, OSError), "connection"),
)


async def end(task: asyncio.Task[None]) -> None:
    """Cancel a task until it has ended.

    Once is not enough: before Python 3.12, `asyncio.wait_for` swallows a cancellation that comes in the
    turn in which what it waits for is done.
    """
    while not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=0.05)


def backoff(failures: int) -> float:
    """Seconds until the next try: doubling from 20 ms to 1 s, half of it random."""
    most = min(1.0, 0.02 * 2.0 ** min(failures, 10))
    return random.uniform(most / 2, most)


def reason_of(error: BaseException) -> str:
    """A connection error as one of a few words, fit for a label."""
    for kinds, reason in _REASONS:
        if isinstance(error, kinds):
            return reason
    return "other"
