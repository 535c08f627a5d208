"""The connection under the Redis backend: order, breaks, idle times, and every way to connect."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import Any

import hiredis
import pytest
import trustme
from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.connection import Connection as RedisPyConnection
from redis.credentials import CredentialProvider

from genesis.backends.redis.connection import ConnectionLost, reason_of
from genesis.backends.redis.endpoint import Endpoint, endpoint_of_pool, pool_of_url
from genesis.backends.redis.link import Link
from genesis.backends.redis.scripts import Script
from tests.redis_server import RedisServer, free_port
from tests.tcp_proxy import TcpProxy
from tests.waiting import quiesce, wait_until

TIMEOUT = 2.0  # seconds
PROBE = 0.3  # seconds
CHANNEL = b"genesis:test:wake"


def script(source: bytes) -> Script:
    return Script("test", source, hashlib.sha1(source).hexdigest().encode())


INCREMENT = script(b"return redis.call('INCR', KEYS[1])")


class Watched:
    """A link, and what it has called back."""

    def __init__(self, where: str | ConnectionPool | Endpoint, **options: Any) -> None:
        self.ups = 0
        self.downs: list[tuple[str, str, bool]] = []
        self.events: list[Any] = []  # pushes and replies, in order
        self.fail_on_up = False
        timeout = options.setdefault("timeout", TIMEOUT)
        options.setdefault("probe_interval", PROBE)
        if isinstance(where, str):
            where = pool_of_url(where)
        place = where if isinstance(where, Endpoint) else endpoint_of_pool(where, timeout)
        self.link = Link(
            place,
            CHANNEL,
            [INCREMENT],
            on_up=self._up,
            on_down=lambda link, *what: self.downs.append(what),
            on_push=lambda link, push: self.events.append(push),
            **options,
        )

    @property
    def alarms(self) -> list[str]:
        return [reason for reason, _, alarm in self.downs if alarm]

    async def is_up(self, times: int = 1) -> None:
        await wait_until(lambda: self.ups >= times and self.link.up, f"it was up {times} times")

    def ask(self, *parts: bytes) -> asyncio.Future[Any]:
        reply: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        def on_reply(answer: Any) -> None:
            self.events.append(answer)
            reply.set_result(answer)  # raises if it is called twice

        assert self.link.send(parts, on_reply), self.link.why_down
        return reply

    def increment(self, key: bytes = b"counter") -> asyncio.Future[Any]:
        reply: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        assert self.link.call(INCREMENT, [key], [], reply.set_result), self.link.why_down
        return reply

    def _up(self, link: Link) -> None:
        self.ups += 1
        if self.fail_on_up:
            self.fail_on_up = False
            raise RuntimeError("planted")


@asynccontextmanager
async def linked(where: str | ConnectionPool | Endpoint, **options: Any) -> AsyncIterator[Watched]:
    watched = Watched(where, **options)
    try:
        yield watched
    finally:
        watched.link.close()
        await watched.link.wait_closed()
        assert asyncio.all_tasks() <= {asyncio.current_task()}, "the link left a task behind"


@asynccontextmanager
async def proxied(server: RedisServer, **options: Any) -> AsyncIterator[tuple[TcpProxy, Watched]]:
    async with TcpProxy(server.port) as proxy:
        watched = Watched(proxy.url, **options)
        try:
            yield proxy, watched
        finally:
            watched.link.close()
            proxy.release()
            await watched.link.wait_closed()


# Order


async def test_thousands_in_a_turn_are_answered_in_order_and_let_others_run(
    redis_server: RedisServer,
) -> None:
    async with linked(redis_server.url) as watched:
        await watched.is_up()
        redis_server.client.delete("counter")
        most, turns = 20_000, 0
        replies = [watched.increment() for _ in range(most)]
        connection = watched.link.connection
        assert connection is not None
        assert (connection.pending, connection.queued) == (most, most - 1)
        while not replies[-1].done():
            await asyncio.sleep(0)
            turns += 1
        assert [reply.result() for reply in replies] == list(range(1, most + 1))
        assert turns >= most // 512, "one turn of the loop wrote or read without bound"


async def test_wake_ups_and_replies_come_in_the_order_in_which_redis_sent_them(
    redis_server: RedisServer,
) -> None:
    async with linked(redis_server.url) as watched:
        await watched.is_up()
        for number in range(3):
            watched.ask(b"ECHO", b"before %d" % number)
            watched.ask(b"PUBLISH", CHANNEL, b"%d" % number)
        await watched.ask(b"ECHO", b"last")
        expected: list[Any] = []
        for number in range(3):
            expected += [b"before %d" % number, [b"message", CHANNEL, b"%d" % number], 1]
        assert watched.events == [*expected, b"last"]


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
        watched.link.leave("other", "a test")  # the pending ones fail
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
            connection = watched.link.connection
            assert connection is not None
            await wait_until(lambda: connection.queued == 0, "all is written")
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
        watched.link._on_down = lambda *_: failed_first.append(all(r.done() for r in replies))
        watched.link.leave("read_only", "a test")
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
        watched.link.leave("other", "a test")
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
        assert 0.4 < time.monotonic() - began < 2.0
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
        watched.link.leave("other", "a test")
        await wait_until(lambda: watched.link._opening is not None, "it connects")
        cancel_all()
        own_redis.resume()
        await watched.is_up(2)
        assert await watched.ask(b"PING") == b"PONG"


async def test_an_error_while_a_connection_is_made_is_told_and_ends_nothing(
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
        assert watched.downs[0] == ("other", "LookupError: planted", True)
        Sick.healthy = True
        await watched.is_up()


async def test_the_back_off_starts_anew_once_a_connection_was_up(own_redis: RedisServer) -> None:
    async with linked(own_redis.url) as watched:
        await watched.is_up()
        own_redis.kill()
        await wait_until(lambda: len(watched.alarms) >= 6, "several attempts have failed")
        own_redis.start()
        await watched.is_up(2)
        now = asyncio.get_running_loop().time
        await wait_until(lambda: now() - watched.link._up_since > 1.0, "it is up for a second")
        began = now()
        watched.link.leave("other", "a test")
        await watched.is_up(3)
        assert now() - began < 0.3, "the old back-off was waited for"


async def test_a_server_that_closes_every_new_connection_is_not_flooded(own_redis: RedisServer) -> None:
    async with linked(own_redis.url) as watched:
        for times in range(1, 6):
            await watched.is_up(times)
            watched.link.leave("read_only", "a test")
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


async def test_closing_does_not_wait_for_a_server_that_stands_still(own_redis: RedisServer) -> None:
    watched = Watched(own_redis.url)
    await watched.is_up()
    own_redis.pause()
    reply = watched.ask(b"SET", b"big", b"x" * 50_000_000)
    began = time.monotonic()
    watched.link.close()
    await watched.link.wait_closed(0.3)
    assert time.monotonic() - began < 1.0
    assert reason_of(await reply) == "closed"
    own_redis.resume()


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
            await asyncio.sleep(0.01)
        assert own_redis.calls("ping") - before <= 1


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
        assert time.monotonic() - began < 1.0
        assert isinstance(lost, ConnectionLost)
        assert [(reason, alarm) for reason, _, alarm in watched.downs] == [("idle_closed", False)]
        assert await watched.ask(b"PING") == b"PONG"


async def test_a_server_that_closes_idle_connections_raises_no_alarm(own_redis: RedisServer) -> None:
    own_redis.client.config_set("timeout", 1)
    async with linked(own_redis.url, probe_interval=30.0) as watched:
        await watched.is_up()
        for client in own_redis.client.client_list():
            if client["resp"] == "3":
                own_redis.client.client_kill_filter(_id=client["id"])
        await watched.is_up(2)
        assert [(reason, alarm) for reason, _, alarm in watched.downs] == [("idle_closed", False)]


async def test_a_server_that_ends_while_nobody_calls_raises_the_alarm_at_the_first_retry(
    own_redis: RedisServer,
) -> None:
    async with linked(own_redis.url, probe_interval=30.0) as watched:
        await watched.is_up()
        own_redis.kill()
        await wait_until(lambda: len(watched.downs) >= 2, "the retry failed")
        assert watched.downs[0][0] == "idle_closed"
        assert watched.alarms[0] == "connection"


# Ways to connect


class Certificates:
    """A certificate authority of our own, and files that it signed."""

    def __init__(self, folder: Path) -> None:
        authority = trustme.CA()
        self.ca, self.server = str(folder / "ca.pem"), str(folder / "server.pem")
        authority.cert_pem.write_to_path(self.ca)
        issued = authority.issue_cert("127.0.0.1", "localhost")
        issued.private_key_and_cert_chain_pem.write_to_path(self.server)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def tls_redis(certificates: Certificates) -> Iterator[RedisServer]:
    port = free_port()
    files = ["--tls-cert-file", certificates.server, "--tls-key-file", certificates.server]
    own = ["--port", "0", "--tls-port", str(port), "--tls-ca-cert-file", certificates.ca]
    server = RedisServer(
        *own,
        *files,
        "--tls-auth-clients",
        "no",
        port=port,
        client={"ssl": True, "ssl_ca_certs": certificates.ca},
    )
    yield server
    server.close()


async def test_tls(tls_redis: RedisServer, certificates: Certificates) -> None:
    url = f"rediss://127.0.0.1:{tls_redis.port}/0?ssl_ca_certs={certificates.ca}"
    async with linked(url, timeout=10.0) as watched:
        await watched.is_up()
        replies = [watched.increment() for _ in range(5000)]
        assert [await reply for reply in replies] == list(range(1, 5001))
        big = b"x" * 3_000_000
        assert await watched.ask(b"ECHO", big) == big
        watched.ask(b"ECHO", big)
        watched.link.leave("other", "a test")
        await watched.is_up(2)
        assert await watched.ask(b"PUBLISH", CHANNEL, b"hello") == 1
        assert [b"message", CHANNEL, b"hello"] in watched.events


async def test_tls_that_cannot_be_trusted_is_denied(tls_redis: RedisServer) -> None:
    async with linked(f"rediss://127.0.0.1:{tls_redis.port}/0") as watched:
        await wait_until(lambda: watched.downs, "the attempt failed")
        assert watched.link.denied
        assert "CERTIFICATE_VERIFY_FAILED" in watched.link.why_down


async def test_a_unix_socket() -> None:
    server = RedisServer("--unixsocket", "genesis.sock")
    try:
        async with linked(f"unix://{server.folder}/genesis.sock?db=3") as watched:
            await watched.is_up()
            assert await watched.increment() == 1
            watched.link.leave("other", "a test")
            await watched.is_up(2)
            assert await watched.increment() == 2
        assert list(server.client.info("keyspace")) == ["db3"]
    finally:
        server.close()


RIGHTS = f"on >secret ~* &{CHANNEL.decode()} +evalsha +script|load +subscribe +ping +incr".split()


@pytest.mark.parametrize("how", ["url", "credential provider", "redis_connect_func"])
async def test_a_user_with_few_rights(own_redis: RedisServer, how: str) -> None:
    client: Any = own_redis.client
    client.execute_command("ACL", "SETUSER", "genesis", "reset", *RIGHTS)
    called: list[str] = []

    class Provider(CredentialProvider):
        def get_credentials(self) -> tuple[str, str]:
            called.append(how)
            return "genesis", "secret"

    async def connect(connection: Any) -> None:  # speaks RESP2, as many of the old ones do
        called.append(how)
        connection._parser.on_connect(connection)
        await connection.send_command("AUTH", "genesis", "secret", check_health=False)
        assert await connection.read_response() in (b"OK", "OK")

    where: str | ConnectionPool = f"redis://genesis:secret@127.0.0.1:{own_redis.port}"
    options: dict[str, Any] = {"host": "127.0.0.1", "port": own_redis.port}
    if how == "credential provider":
        where = Redis(**options, credential_provider=Provider()).connection_pool
    elif how == "redis_connect_func":
        where = ConnectionPool(**options, redis_connect_func=connect)
    async with linked(where) as watched:
        await watched.is_up()
        assert await watched.increment() == 1
        own_redis.client.publish(CHANNEL.decode(), "hello")
        await wait_until(lambda: watched.events, "the wake-up came")
        watched.link.leave("other", "a test")
        await watched.is_up(2)
    assert len(called) == (0 if how == "url" else 2)


async def test_a_lost_right_to_subscribe_is_denied(own_redis: RedisServer) -> None:
    client: Any = own_redis.client
    rights = [right for right in RIGHTS if not right.startswith("&")]
    client.execute_command("ACL", "SETUSER", "genesis", "reset", *rights, "resetchannels")
    async with linked(f"redis://genesis:secret@127.0.0.1:{own_redis.port}") as watched:
        await wait_until(lambda: watched.downs, "the attempt failed")
        assert watched.link.denied
        assert watched.downs[0][0] == "denied"
        assert "NOPERM" in watched.link.why_down
        client.execute_command("ACL", "SETUSER", "genesis", f"&{CHANNEL.decode()}")
        await watched.is_up()
        assert (watched.link.denied, watched.link.why_down) == (False, "")


@pytest.mark.parametrize("what", ["password", "host"])
async def test_what_waiting_does_not_mend_is_known_at_once(own_redis: RedisServer, what: str) -> None:
    own_redis.client.config_set("requirepass", "secret")
    url = "redis://no-such-host.invalid:1"
    if what == "password":
        url = f"redis://:wrong@127.0.0.1:{own_redis.port}"
    async with linked(url) as watched:
        await wait_until(lambda: watched.downs, "the attempt failed")
        assert watched.link.denied
        assert "wrong" not in watched.link.why_down.replace("WRONGPASS", "")
    own_redis.client.config_set("requirepass", "")


async def test_a_server_that_is_not_there_may_come_back(own_redis: RedisServer) -> None:
    own_redis.kill()
    async with linked(own_redis.url) as watched:
        await wait_until(lambda: watched.downs, "the attempt failed")
        assert (watched.link.denied, watched.link.up) == (False, False)
        own_redis.start()
        await watched.is_up()


async def test_a_server_without_resp3_says_so() -> None:
    server = RedisServer("--rename-command", "HELLO", "", client={"protocol": 2})
    try:
        async with linked(server.url) as watched:
            await wait_until(lambda: watched.downs, "the attempt failed")
            assert watched.link.denied
            assert "HELLO" in watched.link.why_down
    finally:
        server.close()
