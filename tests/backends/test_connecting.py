"""Every way to connect and authenticate, and errors that a retry does not fix."""

from __future__ import annotations

from typing import Any

import pytest
from redis.asyncio import ConnectionPool, Redis
from redis.credentials import CredentialProvider

from tests.backends.conftest import Certificates
from tests.backends.linked import CHANNEL, linked
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until

# Ways to connect


async def test_tls(tls_redis: RedisServer, certificates: Certificates) -> None:
    url = f"rediss://127.0.0.1:{tls_redis.port}/0?ssl_ca_certs={certificates.ca}"
    async with linked(url, timeout=10.0) as watched:
        await watched.is_up()
        replies = [watched.increment() for _ in range(5000)]
        assert [await reply for reply in replies] == list(range(1, 5001))
        big = b"x" * 3_000_000
        assert await watched.ask(b"ECHO", big) == big
        watched.ask(b"ECHO", big)
        watched.link.reconnect("other", "a test")
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
            watched.link.reconnect("other", "a test")
            await watched.is_up(2)
            assert await watched.increment() == 2
        assert list(server.client.info("keyspace")) == ["db3"]
    finally:
        server.close()


_COMMANDS = "+evalsha +script|load +subscribe +ping +incr"
RIGHTS = f"on >secret ~* resetchannels &{CHANNEL.decode()} {_COMMANDS}".split()


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
        watched.link.reconnect("other", "a test")
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
async def test_an_error_that_a_retry_does_not_fix_is_known_at_once(
    own_redis: RedisServer, what: str
) -> None:
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


async def test_a_server_without_resp3_is_a_clear_error() -> None:
    server = RedisServer("--rename-command", "HELLO", "", client={"protocol": 2})
    try:
        async with linked(server.url) as watched:
            await wait_until(lambda: watched.downs, "the attempt failed")
            assert watched.link.denied
            assert "HELLO" in watched.link.why_down
    finally:
        server.close()
