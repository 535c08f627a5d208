"""TLS, and the rights of the Redis user that the README shows."""

from __future__ import annotations

import asyncio
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from genesis import Queue
from genesis.backends.redis.scripts import INSTANCE_SCRIPTS, load
from genesis.exceptions import BackendUnavailableError, EvictedError, QueueTimeoutError
from genesis.queue import RedisBackend
from tests.backends.conftest import PASSWORD, QUOTED, Certificates, quiet
from tests.conftest import LEASE
from tests.support.redis_server import RedisServer
from tests.support.topology import Cluster
from tests.support.waiting import wait_until

README = Path(__file__).parents[2] / "README.md"


def command() -> list[str]:
    """The README's command that makes a user, as an operator pastes it: one line."""
    match = re.search(r"(?m)^    (ACL SETUSER genesis .*)$", README.read_text())
    assert match is not None, "the README shows no user"
    return match[1].split()


def make_user(server: RedisServer, *more: str) -> None:
    client: Any = server.client
    client.acl_deluser("genesis")
    client.execute_command(*(f">{PASSWORD}" if word.startswith(">") else word for word in command()))
    client.execute_command("ACL", "SETUSER", "genesis", *more)


def denied(server: RedisServer) -> list[str]:
    """What the user was refused, but for the names that redis-py tells the server unasked."""
    client: Any = server.client
    return [entry["object"] for entry in client.acl_log() if not entry["object"].startswith("client")]


async def everything(queue: Queue, other: Queue, *servers: RedisServer) -> None:
    """Every script, every message, and the recovery from a loss of data."""
    for name in ("sales", "support", "front desk"):  # in different slots
        async with queue.slot(name, item_id="holder", max_concurrent=1) as held:
            waiter = asyncio.ensure_future(_pass(other, name, "waiter"))
            victim = asyncio.ensure_future(_pass(other, name, "victim"))
            await wait_until(partial(_depth, queue, name, 2), "two wait")
            assert await other.evict(name, "victim") == 1
            with pytest.raises(EvictedError):
                await victim
            with pytest.raises(QueueTimeoutError):
                await _pass(queue, name, "hasty", timeout=0)
            assert await queue.position(name, "waiter") == 1
            assert len(await queue.entries(name)) == 2
            await queue.set_limit(name, 1)
            await queue.set_limit(name, None)
            for server in servers:
                server.client.flushall()
            await wait_until(partial(_depth, queue, name, 1), "they are back")
        assert not held.lost
        await asyncio.wait_for(waiter, 10)


async def _pass(queue: Queue, name: str, item: str, timeout: float | None = None) -> None:
    async with queue.slot(name, item_id=item, max_concurrent=1, timeout=timeout):
        pass


async def _depth(queue: Queue, name: str, waiting: int) -> bool:
    return (await queue.stats(name))[:2] == (waiting, 1)


@pytest.mark.slow
async def test_a_tls_url_with_the_readmes_user_suffices(
    tls_redis: RedisServer, certificates: Certificates
) -> None:
    """`rediss://` with a CA, a user and a password in it; the user may do what the README lists."""
    make_user(tls_redis)
    url = f"rediss://genesis:{QUOTED}@localhost:{tls_redis.port}/0?ssl_ca_certs={certificates.ca}"
    async with (
        quiet(RedisBackend(url, lease=LEASE, operation_timeout=LEASE)) as a,
        quiet(RedisBackend(url, lease=LEASE, operation_timeout=LEASE)) as b,
    ):
        await everything(a, b, tls_redis)
    assert denied(tls_redis) == []


@pytest.mark.slow
async def test_a_tls_cluster_with_the_readmes_user_suffices(certificates: Certificates) -> None:
    """Every node is reached over TLS, as the user; the map of slots is one right more."""
    cluster = Cluster(0, *certificates.options(), tls=True, client=certificates.trusting())
    try:
        for server in cluster.servers:
            make_user(server, "+cluster|slots")
        user = {"username": "genesis", "password": PASSWORD}
        backends = [
            RedisBackend(client=cluster.client(**user), lease=LEASE, operation_timeout=LEASE)
            for _ in range(2)
        ]
        async with quiet(backends[0]) as a, quiet(backends[1]) as b:
            await everything(a, b, *cluster.servers)
        assert [denied(server) for server in cluster.servers] == [[], [], []]
    finally:
        cluster.close()


def test_the_readmes_user_may_do_no_more_than_needed() -> None:
    """Each command that a script calls is listed, and no other but of connections and the index."""
    called = {
        name.lower()
        for script in INSTANCE_SCRIPTS
        for name in re.findall(r"redis\.p?call\(\s*'(\w+)'", load(script).source.decode())
    }
    allowed = {word[1:] for word in command() if word.startswith("+")}
    assert allowed == called | {"evalsha", "script|load", "subscribe", "ping", "zremrangebyscore"}


@pytest.mark.parametrize("channels", ["allchannels", "resetchannels"])
def test_the_readmes_command_makes_the_user(own_redis: RedisServer, channels: str) -> None:
    """Whether a new user may use all channels, as in Redis 6.2 by default, or none, as from 7.0 on."""
    client: Any = own_redis.client
    client.config_set("acl-pubsub-default", channels)
    make_user(own_redis)
    (channel,) = client.acl_getuser("genesis")["channels"]
    assert channel.lstrip("&") == "genesis:queue:wake:*"


async def test_a_client_certificate_is_shown(
    strict_tls_redis: RedisServer, certificates: Certificates
) -> None:
    """A server that wants to know its clients gets the certificate that the URL names."""
    url = f"rediss://127.0.0.1:{strict_tls_redis.port}/0?ssl_ca_certs={certificates.ca}"
    mine = f"&ssl_certfile={certificates.client}&ssl_keyfile={certificates.client}"
    async with quiet(RedisBackend(url + mine)) as queue:
        await queue.ping()
    async with quiet(RedisBackend(url, operation_timeout=0.5)) as queue:
        with pytest.raises(BackendUnavailableError):
            await queue.ping()


async def test_a_certificate_of_a_stranger_is_refused(
    tls_redis: RedisServer, certificates: Certificates
) -> None:
    """Neither an unknown authority nor another host's name is accepted, and the error says which."""
    strange = f"rediss://localhost:{tls_redis.port}/0?ssl_ca_certs={certificates.stranger}"
    elsewhere = f"rediss://127.0.0.2:{tls_redis.port}/0?ssl_ca_certs={certificates.ca}"
    for url, why in ((strange, "CERTIFICATE_VERIFY_FAILED"), (elsewhere, "127.0.0.2")):
        async with quiet(RedisBackend(url)) as queue:
            with pytest.raises(BackendUnavailableError, match=why):
                await queue.ping()


async def test_a_ready_client_over_tls_lends_its_settings_alone(
    tls_redis: RedisServer, certificates: Certificates
) -> None:
    """A user's own client, RESP3 and decoding: its connections are neither used nor closed."""
    make_user(tls_redis)
    client = Redis(
        port=tls_redis.port,
        username="genesis",
        password=PASSWORD,
        protocol=3,
        decode_responses=True,
        socket_timeout=0.05,
        max_connections=1,
        client_name=None,
        **certificates.trusting(),
    )
    assert await client.ping()
    before = client.connection_pool
    mine = quiet(RedisBackend(client=client, lease=LEASE, operation_timeout=LEASE))
    async with mine as queue, queue.slot("sales", max_concurrent=1):
        with pytest.raises(QueueTimeoutError):
            await _pass(queue, "sales", "second", timeout=0.2)
    pool: Any = client.connection_pool
    assert pool is before
    assert (len(pool._available_connections), len(pool._in_use_connections)) == (1, 0)
    assert await client.ping()  # it still stands
    await client.aclose()
