"""The connection of the Redis backend: the order of replies and wake-ups, and lost connections."""

from __future__ import annotations

import asyncio
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hiredis
import pytest

from genesis.backends.redis.connection import Connection
from genesis.backends.redis.errors import ConnectionLost, reason_of
from tests.backends.linked import CHANNEL, linked
from tests.support.redis_server import RedisServer
from tests.support.waiting import quiesce, wait_until

# Order


async def test_thousands_in_a_turn_are_answered_in_order_and_let_others_run(
    redis_server: RedisServer,
) -> None:
    async with linked(redis_server.url) as watched:
        await watched.is_up()
        redis_server.client.delete("counter")
        most, turns = 20_000, 0
        replies = [watched.increment() for _ in range(most)]
        connection = watched.link._connection
        assert connection is not None
        assert (len(connection._pending), len(connection._outgoing)) == (
            most,
            most - 2,
        )  # two are written at once
        while not replies[-1].done():
            await asyncio.sleep(0)
            turns += 1
        assert [reply.result() for reply in replies] == list(range(1, most + 1))
        redis_server.client.delete("counter")
        assert turns >= most // 512, "one turn of the loop wrote or read without bound"


async def test_wake_ups_and_replies_come_in_the_order_in_which_redis_sent_them(
    redis_server: RedisServer,
) -> None:
    async with linked(redis_server.url) as watched:
        await watched.is_up()
        expected: list[Any] = []
        for number in range(3):
            redis_server.client.publish(CHANNEL.decode(), f"{number}")
            watched.ask(b"ECHO", b"after %d" % number)
            await watched.ask(b"ECHO", b"and more")
            expected += [[b"message", CHANNEL, b"%d" % number], b"after %d" % number, b"and more"]
        assert watched.events == expected


async def test_a_rejected_command_gets_the_error_and_the_next_one_its_own_reply(
    redis_server: RedisServer,
) -> None:
    async with linked(redis_server.url) as watched:
        await watched.is_up()
        lost = watched.ask(b"EVALSHA", b"0" * 40, b"0")
        unknown = watched.ask(b"NOSUCHCOMMAND")
        assert await watched.ask(b"ECHO", b"next") == b"next"
        assert [reason_of(lost.result()), reason_of(unknown.result())] == ["scripts_lost", "refused"]
        assert isinstance(lost.result(), hiredis.ReplyError)
        assert watched.downs == []


async def test_more_channels_can_be_subscribed_to(redis_server: RedisServer) -> None:
    async with linked(redis_server.url) as watched:
        await watched.is_up()
        assert await watched.ask(b"SUBSCRIBE", b"other") == [b"subscribe", b"other", 2]
        await watched.ask(b"PUBLISH", b"other", b"hello")
        assert [b"message", b"other", b"hello"] in watched.events


async def test_replies_and_commands_of_megabytes_pass(redis_server: RedisServer) -> None:
    async with linked(redis_server.url, timeout=10.0) as watched:
        await watched.is_up()
        big = b"x" * 5_000_000
        replies = [watched.ask(b"ECHO", big), *(watched.ask(b"ECHO", b"%d" % i) for i in range(100))]
        assert await replies[0] == big
        assert [await reply for reply in replies[1:]] == [b"%d" % i for i in range(100)]


async def test_a_callback_that_raises_is_reported_and_ends_nothing(redis_server: RedisServer) -> None:
    reported: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: reported.append(context))
    async with linked(redis_server.url) as watched:
        watched.fail_on_up = True
        await watched.is_up()

        def fails(reply: Any) -> None:
            raise RuntimeError("planted")

        watched.link.send((b"PING",), fails)
        assert await watched.ask(b"ECHO", b"next") == b"next"
        assert watched.downs == []
    assert [str(context["exception"]) for context in reported] == ["planted", "planted"]


async def test_callbacks_run_in_no_context_of_a_caller(redis_server: RedisServer) -> None:
    variable: ContextVar[str] = ContextVar("variable", default="")
    seen: list[str] = []
    variable.set("a caller's")
    async with linked(redis_server.url) as watched:
        await watched.is_up()
        for _ in range(3):
            watched.link.send((b"PING",), lambda reply: seen.append(variable.get()))
        watched.link.reconnect("other", "a test")  # the pending ones fail
        await watched.is_up(2)
        watched.link.send((b"PING",), lambda reply: seen.append(variable.get()))
        await watched.ask(b"PING")
    assert seen == [""] * 4


# Breaks


@pytest.mark.parametrize("state", ["queued", "in flight", "answered in part"])
async def test_what_was_not_answered_fails_once_and_in_order(
    own_redis: RedisServer, state: str
) -> None:
    async with linked(own_redis.url) as watched:
        await watched.is_up()
        answers: list[tuple[int, Any]] = []

        def on_reply(number: int, reply: Any) -> None:
            answers.append((number, reply))

        def send(first: int, last: int) -> None:
            for number in range(first, last):
                watched.link.send((b"PING",), partial(on_reply, number))

        answered = 1000 if state == "answered in part" else 0
        send(0, answered)
        await wait_until(lambda: len(answers) == answered, "some are answered")
        own_redis.pause()
        send(answered, 2000)
        if state != "queued":
            connection = watched.link._connection
            assert connection is not None
            await wait_until(lambda: not connection._outgoing, "all is written")
        own_redis.kill()
        await wait_until(lambda: len(answers) == 2000, "all are answered or failed")
        assert [number for number, _ in answers] == list(range(2000))
        lost = [isinstance(reply, ConnectionLost) for _, reply in answers]
        assert lost == [False] * answered + [True] * (2000 - answered)
        assert not watched.link.send((b"PING",), print)
        own_redis.start()
        await watched.is_up(2)
        assert await watched.ask(b"PING") == b"PONG"
        assert len(answers) == 2000


async def test_everything_pending_has_failed_before_on_down_and_on_up(own_redis: RedisServer) -> None:
    async with linked(own_redis.url) as watched:
        await watched.is_up()
        own_redis.pause()
        replies = [watched.ask(b"PING") for _ in range(1500)]
        failed_first: list[bool] = []
        watched.on_down = lambda *_: failed_first.append(all(r.done() for r in replies))  # type: ignore[method-assign]
        watched.link.reconnect("read_only", "a test")
        assert not any(reply.done() for reply in replies), "a callback ran inside `leave`"
        assert not watched.link.up
        own_redis.resume()
        await watched.is_up(2)
        assert failed_first == [True]
        assert {reason_of(await reply) for reply in replies} == {"read_only"}


async def test_what_the_kernel_holds_is_not_delivered_after_an_abort(own_redis: RedisServer) -> None:
    async with linked(own_redis.url) as watched:
        await watched.is_up()
        own_redis.pause()  # its receive buffer fills, then ours
        watched.ask(b"SET", b"late", b"x" * 50_000_000)
        await quiesce()
        assert _sockets_to(own_redis.port, "01")
        watched.link.reconnect("other", "a test")
        await wait_until(
            lambda: len(_sockets_to(own_redis.port, "01")) <= 1, "only a new connection is left"
        )
        assert _sockets_to(own_redis.port, "04") == [], "the kernel goes on delivering"
        own_redis.resume()
        await watched.is_up(2)
        assert not own_redis.client.exists("late")


def _sockets_to(port: int, state: str) -> list[str]:
    """Sockets of this machine that lead to `port`; state 01 is established, 04 FIN-WAIT-1."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return [row[1] for row in rows if row[2].endswith(f":{port:04X}") and row[3] == state]


async def test_replies_that_have_arrived_are_not_lost_with_the_connection() -> None:
    """Thousands of replies, then an orderly end: it must not overtake them."""
    count = 4_000

    async def answer_all(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked = 0
        while asked < count:
            asked += (await reader.read(1 << 20)).count(b"PING")
        writer.write(b"+PONG\r\n" * count)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer_all, "127.0.0.1", 0)
    connection = Connection(lambda push: None, lambda: None)
    opened: Any = SimpleNamespace()  # what `take_over` needs of a connection of redis-py
    opened._reader, opened._writer = await asyncio.open_connection(
        "127.0.0.1", server.sockets[0].getsockname()[1]
    )
    await connection.take_over(opened)
    replies: list[Any] = []
    try:
        for _ in range(count):
            connection.send((b"PING",), replies.append)
        await asyncio.wait_for(connection.closed, 30)
    finally:
        connection.abort("closed", "the test has ended")
        server.close()
    assert len(replies) == count
    assert sum(reply != b"PONG" for reply in replies) == 0
