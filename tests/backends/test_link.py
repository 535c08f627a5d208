"""A link makes its connection again after breaks, and keeps it through idle times."""

from __future__ import annotations

import asyncio
import gc
import socket
import sys
import time
from typing import Any

import hiredis
import pytest
from redis import exceptions as redis_errors
from redis.asyncio import ConnectionPool
from redis.asyncio.connection import Connection as RedisPyConnection

from genesis.backends.redis.errors import ConnectionLost, is_permanent, reason_of
from tests.backends.linked import CHANNEL, TIMEOUT, Watched, linked, proxied
from tests.support.redis_server import RedisServer
from tests.support.waiting import quiesce, wait_until


@pytest.mark.parametrize("when", ["accepted", "greeted"])
async def test_a_connection_that_does_not_come_up_in_time_is_tried_again(
    own_redis: RedisServer, when: str
) -> None:
    async with proxied(own_redis, timeout=0.3) as (proxy, watched):
        if when == "accepted":
            own_redis.pause()
            await wait_until(lambda: watched.alarms, "an attempt failed")
            own_redis.resume()
        else:  # the greeting is on its way: everything after SUBSCRIBE is held
            proxy.mute = True
            await wait_until(lambda: watched.alarms, "an attempt failed")
            proxy.mute = False
        assert watched.alarms[0] == "timeout"
        await watched.is_up()
        assert not watched.link.denied


async def test_an_unanswered_command_ends_the_connection_after_the_timeout(
    own_redis: RedisServer,
) -> None:
    async with linked(own_redis.url, timeout=0.5) as watched:
        await watched.is_up()
        own_redis.pause()
        began = time.monotonic()
        lost = await watched.ask(b"PING")
        assert reason_of(lost) == "timeout"
        assert 0.4 < time.monotonic() - began < 5.0
        own_redis.resume()
        await watched.is_up(2)


async def test_a_server_that_is_slow_is_not_given_up(own_redis: RedisServer) -> None:
    """It answers on the first connection as soon as on the second."""
    async with linked(own_redis.url, timeout=10.0) as watched:
        await watched.is_up()
        own_redis.pause()
        reply = watched.ask(b"ECHO", b"late")
        await wait_until(lambda: watched.link._opening is not None, "a second one is tried")
        own_redis.resume()
        assert await reply == b"late"
        await wait_until(lambda: watched.link._opening is None, "the second one is made")
        await wait_until(lambda: own_redis.connections() == 1, "it is dropped")
        assert (watched.ups, watched.downs) == (1, [])


async def test_a_long_way_is_no_silence(own_redis: RedisServer) -> None:
    async with proxied(own_redis) as (proxy, watched):
        await watched.is_up()
        proxy.delay = 0.1
        assert await asyncio.gather(*(watched.increment() for _ in range(50))) == list(range(1, 51))
        assert watched.downs == []


async def test_a_process_that_stood_still_finds_its_reply_in_the_socket(own_redis: RedisServer) -> None:
    async with linked(own_redis.url, timeout=0.3) as watched:
        await watched.is_up()
        for _ in range(3):
            reply = watched.ask(b"PING")
            time.sleep(0.8)  # noqa: ASYNC251 - the whole process stands still
            assert await reply == b"PONG"
        assert watched.downs == []


async def test_the_link_outlives_a_cancellation_of_all_tasks(own_redis: RedisServer) -> None:
    """The shutdown recipe of many programs, also of some that go on."""

    def cancel_all() -> None:
        for task in asyncio.all_tasks():
            if task is not asyncio.current_task():
                task.cancel()

    async with linked(own_redis.url) as watched:
        await quiesce(2)
        cancel_all()  # while it connects
        await watched.is_up()
        cancel_all()  # while it is up: there is no task
        assert await watched.ask(b"PING") == b"PONG"
        own_redis.pause()
        watched.link.reconnect("other", "a test")
        await wait_until(lambda: watched.link._opening is not None, "it connects")
        cancel_all()
        own_redis.resume()
        await watched.is_up(2)
        assert await watched.ask(b"PING") == b"PONG"


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="redis-py awaits while its coroutine is closed")
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # the closed loop has left a connection open
def test_a_loop_that_is_closed_while_a_link_connects_is_no_error(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program that ends without `close`."""
    unraisable: list[BaseException | None] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda hook: unraisable.append(hook.exc_value))

    async def connect() -> None:
        Watched(redis_server.url)
        await quiesce(2)

    loop = asyncio.new_event_loop()
    loop.run_until_complete(connect())
    loop.close()
    gc.collect()
    assert [each for each in unraisable if not isinstance(each, ResourceWarning)] == []


async def test_an_error_while_connecting_is_reported_and_retried(
    own_redis: RedisServer,
) -> None:
    class Sick(RedisPyConnection):
        healthy = False

        def __init__(self, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            if not Sick.healthy:
                raise LookupError("planted")

    pool = ConnectionPool(connection_class=Sick, host="127.0.0.1", port=own_redis.port)
    async with linked(pool) as watched:
        await wait_until(lambda: len(watched.downs) >= 2, "it was told, and tried again")
        assert watched.downs[0] == ("other", "LookupError: planted")
        Sick.healthy = True
        await watched.is_up()


async def test_a_host_that_is_unknown_after_it_was_up_may_come_back(own_redis: RedisServer) -> None:
    """A headless service of Kubernetes has no address while its pod restarts."""

    class Unnamed(RedisPyConnection):
        known = True

        async def _connect(self) -> None:
            if not Unnamed.known:
                raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
            await super()._connect()  # type: ignore[no-untyped-call]

    pool = ConnectionPool(connection_class=Unnamed, host="127.0.0.1", port=own_redis.port)
    async with linked(pool) as watched:
        await watched.is_up()
        Unnamed.known = False
        watched.link.reconnect("other", "a test")
        await wait_until(lambda: len(watched.downs) >= 2, "an attempt failed")
        assert "not known" in watched.link.why_down
        assert not watched.link.denied
        Unnamed.known = True
        await watched.is_up(2)


async def test_the_backoff_restarts_after_a_connection_was_up(own_redis: RedisServer) -> None:
    async with linked(own_redis.url) as watched:
        await watched.is_up()
        own_redis.kill()
        await wait_until(lambda: len(watched.alarms) >= 6, "several attempts have failed")
        own_redis.start()
        await watched.is_up(2)
        now = asyncio.get_running_loop().time
        await wait_until(lambda: now() - watched.link._up_since > 1.0, "it is up for a second")
        began = now()
        watched.link.reconnect("other", "a test")
        await watched.is_up(3)
        assert now() - began < 0.45, "the old back-off was waited for"  # 0.5 s at least


async def test_a_server_that_closes_every_new_connection_is_not_flooded(own_redis: RedisServer) -> None:
    async with linked(own_redis.url) as watched:
        for times in range(1, 6):
            await watched.is_up(times)
            watched.link.reconnect("read_only", "a test")
            await quiesce()
        assert watched.link._failures >= 4


async def test_closing_takes_the_replies_that_are_due_and_leaves_nothing(
    own_redis: RedisServer,
) -> None:
    watched = Watched(own_redis.url)
    await watched.is_up()
    replies = [watched.ask(b"RPUSH", b"list", b"%d" % number) for number in range(1000)]
    watched.link.close()
    await watched.link.wait_closed()
    assert [await reply for reply in replies] == list(range(1, 1001))
    assert own_redis.client.llen("list") == 1000
    await wait_until(lambda: own_redis.connections() == 0, "no connection is left")
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert watched.downs == []


async def test_closing_does_not_wait_for_a_stopped_server(own_redis: RedisServer) -> None:
    watched = Watched(own_redis.url)
    await watched.is_up()
    own_redis.pause()
    reply = watched.ask(b"SET", b"big", b"x" * 50_000_000)
    began = time.monotonic()
    watched.link.close()
    await watched.link.wait_closed(0.3)
    assert time.monotonic() - began < TIMEOUT
    assert reason_of(await reply) == "closed"
    own_redis.resume()


async def test_of_several_servers_each_attempt_tries_the_next(own_redis: RedisServer) -> None:
    """The loss of one is reported only if no other can be reached."""
    async with linked("redis://127.0.0.1:1", "redis://127.0.0.1:2", own_redis.url) as watched:
        await watched.is_up()
        assert watched.downs == []
        own_redis.kill()
        await wait_until(lambda: len(watched.downs) >= 3, "two rounds have failed")
        assert all("127.0.0.1:" in detail for _, detail in watched.downs[1:])
        own_redis.start()
        await watched.is_up(2)


@pytest.mark.parametrize(
    ("hosts", "denied"),
    [("unknown away", False), ("away unknown", False), ("unknown unknown", True)],
)
async def test_a_link_is_denied_if_each_of_its_servers_is(hosts: str, denied: bool) -> None:
    urls = {"unknown": "redis://no-such-host.invalid:1", "away": "redis://127.0.0.1:1"}
    async with linked(*(urls[host] for host in hosts.split())) as watched:
        for times in (1, 2):
            await wait_until(lambda: len(watched.downs) >= times, "a round has failed")  # noqa: B023
            assert watched.link.denied is denied


# Idle times


async def test_an_idle_connection_is_probed(own_redis: RedisServer) -> None:
    async with linked(own_redis.url, probe_interval=0.1) as watched:
        await watched.is_up()
        await wait_until(lambda: own_redis.calls("ping") >= 6, "several probes")
        assert (watched.ups, watched.downs, own_redis.connections()) == (1, [], 1)


async def test_a_connection_in_use_is_not_probed(own_redis: RedisServer) -> None:
    async with linked(own_redis.url, probe_interval=0.2) as watched:
        await watched.is_up()
        before, until = own_redis.calls("ping"), asyncio.get_running_loop().time() + 1.0
        while asyncio.get_running_loop().time() < until:
            await watched.increment()
            await asyncio.sleep(0.01)  # the rate of calls
        assert own_redis.calls("ping") - before <= 2  # if it were, 5; a process can stand still


async def test_the_first_call_on_a_forgotten_connection_is_late_by_less_than_a_second(
    own_redis: RedisServer,
) -> None:
    """A firewall that forgets a connection drops what comes on it, and says nothing."""
    async with proxied(own_redis, timeout=5.0, probe_interval=5.0) as (proxy, watched):
        await watched.is_up()
        relay = proxy.relays[-1]
        relay.hold()
        relay.deaf = True
        began = time.monotonic()
        lost = await watched.ask(b"PING")
        await watched.is_up(2)
        assert time.monotonic() - began < 2.0  # 0.5 s on a quiet machine
        assert isinstance(lost, ConnectionLost)
        assert [reason for reason, _ in watched.downs] == ["idle_closed"]
        assert await watched.ask(b"PING") == b"PONG"


async def test_a_server_that_closes_idle_connections_raises_no_alarm(own_redis: RedisServer) -> None:
    own_redis.client.config_set("timeout", 1)
    async with linked(own_redis.url, probe_interval=30.0) as watched:
        await watched.is_up()
        for client in own_redis.client.client_list():
            if client["sub"] == "1":
                own_redis.client.client_kill_filter(_id=client["id"])
        await watched.is_up(2)
        assert [reason for reason, _ in watched.downs] == ["idle_closed"]


async def test_a_server_that_ends_while_nobody_calls_raises_the_alarm_at_the_first_retry(
    own_redis: RedisServer,
) -> None:
    async with linked(own_redis.url, probe_interval=30.0) as watched:
        await watched.is_up()
        own_redis.kill()
        await wait_until(lambda: len(watched.downs) >= 2, "the retry failed")
        assert watched.downs[0][0] == "idle_closed"
        assert watched.alarms[0] == "connection"


async def test_wake_ups_of_a_second_connection_count_once_it_is_used(redis_server: RedisServer) -> None:
    """Otherwise one might overtake the reply to `enter`, which is still on its way on the first."""
    async with linked(redis_server.url) as watched:
        await watched.is_up()
        second = await watched.link._handshake()
        try:
            await watched.ask(b"PUBLISH", CHANNEL, b"hello")
            await watched.ask(b"ECHO", b"last")
            await second.request((b"PING",))
        finally:
            second.abort("closed", "the test has ended")
        assert watched.events.count([b"message", CHANNEL, b"hello"]) == 1


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (redis_errors.ReadOnlyError(), "read_only"),
        (redis_errors.MasterDownError("MASTERDOWN"), "read_only"),
        (redis_errors.ClusterDownError("CLUSTERDOWN"), "cluster_down"),
        (redis_errors.NoScriptError(), "scripts_lost"),
        (redis_errors.TryAgainError(), "slot_moving"),
        (redis_errors.OutOfMemoryError(), "refused"),
        (redis_errors.ResponseError("MISCONF Errors writing to the AOF file"), "refused"),
        (hiredis.ReplyError("NOREPLICAS Not enough good replicas to write."), "refused"),
    ],
)
def test_what_a_connect_function_raises_is_retried(error: Exception, reason: str) -> None:
    """A client's `redis_connect_func` might write, and find a replica or a full server."""
    assert reason_of(error) == reason
    assert not is_permanent(error, was_up=False)


async def test_a_connection_can_be_aborted_again_while_its_commands_fail(
    own_redis: RedisServer,
) -> None:
    """They fail in several iterations of the loop. uvloop's socket has no descriptor any more then."""
    async with linked(own_redis.url, timeout=5.0) as watched:
        await watched.is_up()
        connection = watched.link._connection
        assert connection is not None
        failed: list[Any] = []
        own_redis.pause()
        for _ in range(5_000):
            connection.send((b"PING",), failed.append)
        connection.abort("timeout", "the first")
        while len(failed) < 5_000:
            await asyncio.sleep(0)
            connection.abort("closed", "another")
        own_redis.resume()
        assert {each.reason for each in failed} == {"timeout"}


async def test_a_busy_loop_does_not_make_a_forgotten_connection_look_alive(
    own_redis: RedisServer,
) -> None:
    """The application keeps the loop busy while a reply becomes overdue on a forgotten connection."""
    async with proxied(own_redis, timeout=5.0, probe_interval=60.0) as (proxy, watched):
        await watched.is_up()
        connection = watched.link._connection
        assert connection is not None
        connection.last_received -= 2.0  # idle for 2 s
        for relay in proxy.relays:
            relay.forgotten = True
        reply = watched.increment()
        time.sleep(0.8)  # noqa: ASYNC251 - that the loop is busy until then is the subject
        assert (await reply).reason == "idle_closed"
        await watched.is_up(2)
        assert watched.alarms == []
