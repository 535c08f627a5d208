"""TLS, the rights of a user, secrets that never show, and text from outside that breaks nothing.

The password of these tests is planted wherever one can be, and then searched for in all that the
library puts out.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import subprocess
import traceback
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import redis
import trustme
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from redis.asyncio import Redis, RedisCluster
from redis.asyncio.sentinel import Sentinel
from redis.credentials import CredentialProvider

from genesis import Queue
from genesis.backends.redis.scripts import INSTANCE_SCRIPTS, load
from genesis.exceptions import BackendUnavailableError, EvictedError, QueueTimeoutError
from genesis.observability import ObservabilityServer, Telemetry
from genesis.queue import RedisBackend
from tests.conftest import LEASE, Spans
from tests.support.ids import UNUSUAL_IDS
from tests.support.redis_server import RedisServer, find_redis_server, free_port
from tests.support.topology import Cluster
from tests.support.waiting import wait_until

PASSWORD = "pl4nted/s3cret"
QUOTED = "pl4nted%2Fs3cret"
PLANTED = re.compile("pl4nted|s3cret")
README = Path(__file__).parents[2] / "README.md"


# TLS and the rights of a user


class Certificates:
    """A certificate authority of our own, and files that it signed."""

    def __init__(self, folder: Path) -> None:
        authority = trustme.CA()
        self.ca = str(folder / "ca.pem")
        authority.cert_pem.write_to_path(self.ca)
        self.server = self._write(authority.issue_cert("127.0.0.1", "localhost"), folder / "server.pem")
        self.client = self._write(authority.issue_cert("client@example.org"), folder / "client.pem")
        self.stranger = str(folder / "stranger.pem")
        trustme.CA().cert_pem.write_to_path(self.stranger)

    def _write(self, certificate: trustme.LeafCert, file: Path) -> str:
        certificate.private_key_and_cert_chain_pem.write_to_path(str(file))
        return str(file)

    def options(self, *, clients: str = "no") -> list[str]:
        """Of redis-server."""
        files = ["--tls-cert-file", self.server, "--tls-key-file", self.server]
        return [*files, "--tls-ca-cert-file", self.ca, "--tls-auth-clients", clients]

    def trusting(self) -> dict[str, Any]:
        """Of a client."""
        return {"ssl": True, "ssl_ca_certs": self.ca}


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    if not _speaks_tls():
        pytest.skip(f"{find_redis_server()} was built without TLS")
    return Certificates(tmp_path_factory.mktemp("tls"))


def _speaks_tls() -> bool:
    command = [find_redis_server(), "--port", "0", "--tls-port", "1", "--tls-cert-file", "/nowhere"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    return "FATAL CONFIG" not in done.stdout + done.stderr  # such an option, it does not know


@pytest.fixture
def tls_redis(certificates: Certificates) -> Iterator[RedisServer]:
    yield from _tls_server(certificates, clients="no")


@pytest.fixture
def strict_tls_redis(certificates: Certificates) -> Iterator[RedisServer]:
    """It wants a certificate of its clients, too."""
    yield from _tls_server(certificates, clients="yes")


def _tls_server(certificates: Certificates, clients: str) -> Iterator[RedisServer]:
    port = free_port()
    own = ["--port", "0", "--tls-port", str(port), *certificates.options(clients=clients)]
    how = {**certificates.trusting(), "ssl_certfile": certificates.client}
    server = RedisServer(*own, port=port, client={**how, "ssl_keyfile": certificates.client})
    yield server
    server.close()


def rights() -> list[str]:
    """The rules of the user in the README, as an operator copies them."""
    text = README.read_text()
    match = re.search(r"^    ACL SETUSER genesis (on >\S+ (?:.*\\\n)*.*)$", text, re.MULTILINE)
    assert match is not None, "the README shows no user"
    return [word for word in match[1].split() if word != "\\"]


def make_user(server: RedisServer, *more: str) -> None:
    client: Any = server.client
    rules = [f">{PASSWORD}" if rule.startswith(">") else rule for rule in rights()]
    client.execute_command("ACL", "SETUSER", "genesis", "reset", *rules, *more)


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


def quiet(backend: RedisBackend) -> Queue:
    return Queue(backend, telemetry=Telemetry(registry=CollectorRegistry()))


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
    """Each command that a script calls is listed, and no other but those of the connections."""
    called = {
        name.lower()
        for script in INSTANCE_SCRIPTS
        for name in re.findall(r"redis\.p?call\(\s*'(\w+)'", load(script).source.decode())
    }
    allowed = {rule[1:] for rule in rights() if rule.startswith("+")}
    assert allowed == called | {"evalsha", "script|load", "subscribe", "ping"}


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
        async with quiet(RedisBackend(url, operation_timeout=0.5)) as queue:
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


async def test_a_unix_socket_is_reached() -> None:
    """`unix://`, as redis-py takes it."""
    server = RedisServer("--unixsocket", "genesis.sock")
    try:
        path = f"{server.folder}/genesis.sock"
        mine = quiet(RedisBackend(f"unix://{path}?db=3"))
        async with mine as queue, queue.slot("sales", max_concurrent=1):
            keys: Any = server.client.info("keyspace")
        assert list(keys) == ["db3"]
    finally:
        server.close()


# Secrets


class Provider(CredentialProvider):
    """Credentials that no argument of a connection shows."""

    def get_credentials(self) -> tuple[str, str]:
        return "genesis", PASSWORD


def _url(server: str) -> str:
    return f"redis://genesis:{QUOTED}@{server}/0"


def _unreachable(server: RedisServer) -> dict[str, Any]:
    return {"url": _url("127.0.0.1:1")}


def _wrong_password(server: RedisServer) -> dict[str, Any]:
    return {"url": _url(f"127.0.0.1:{server.port}")}


def _provider(server: RedisServer) -> dict[str, Any]:
    return {"client": Redis(port=server.port, credential_provider=Provider())}


def _sentinel(server: RedisServer) -> dict[str, Any]:
    make: Any = Sentinel
    asked = make(
        [("127.0.0.1", 1), ("127.0.0.1", server.port)],
        sentinel_kwargs={"password": PASSWORD},
        password=PASSWORD,
    )
    return {"client": asked.master_for("callcentre")}


def _cluster(server: RedisServer) -> dict[str, Any]:
    client = RedisCluster(host="127.0.0.1", port=server.port, username="genesis", password=PASSWORD)
    return {"client": client}


SITUATIONS = {
    "unreachable": _unreachable,
    "wrong password": _wrong_password,
    "wrong password from a provider": _provider,
    "Sentinel": _sentinel,
    "cluster": _cluster,
}


@pytest.fixture
def deaf_server() -> Iterator[RedisServer]:
    """A server without HELLO and AUTH, which repeats the arguments of what it does not know."""
    renamed = ("--rename-command", "HELLO", "", "--rename-command", "AUTH", "")
    server = RedisServer(*renamed, client={"protocol": 2})
    yield server
    server.close()


@pytest.mark.parametrize("auth", ["unknown", "known"])
@pytest.mark.parametrize("situation", SITUATIONS)
async def test_no_output_shows_a_password(
    deaf_server: RedisServer,
    redis_server: RedisServer,
    telemetry: Telemetry,
    registry: CollectorRegistry,
    spans: Spans,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    situation: str,
    auth: str,
) -> None:
    """Errors with all that is behind them, logs, spans, metrics, endpoints, reprs: searched for it."""
    caplog.set_level(logging.DEBUG)
    server = deaf_server if auth == "unknown" else redis_server
    backend = RedisBackend(**SITUATIONS[situation](server), operation_timeout=0.4, lease=1.2)
    queue = Queue(backend, telemetry=telemetry)
    errors = []
    async with queue, ObservabilityServer(queue, port=0, registry=registry) as endpoints:
        with pytest.raises(BackendUnavailableError) as caught:
            await _pass(queue, "sales", "item")
        errors.append(caught.value)
        with pytest.raises(BackendUnavailableError) as caught:
            await queue.ping()
        errors.append(caught.value)
        bodies = [
            await asyncio.to_thread(_get, f"http://127.0.0.1:{endpoints.port}{path}")
            for path in ("/ready", "/metrics", "/health")
        ]
        shown = [repr(queue), repr(backend), repr(backend._driver), repr(backend._servers)]
    out, err = capfd.readouterr()
    outputs = {
        "errors": "".join(_all_of(error) for error in errors),
        "logs": caplog.text + repr([vars(record) for record in caplog.records]),
        "spans": "".join(span.to_json() for span in spans.get_finished_spans()),
        "metrics": generate_latest(registry).decode(),
        "endpoints": "".join(bodies),
        "reprs": "".join(shown),
        "stdout and stderr": out + err,
    }
    assert "backend_unavailable" in outputs["logs"]
    assert "BackendUnavailableError" in outputs["spans"]
    assert "not ready" in outputs["endpoints"]
    if auth == "unknown" and situation != "unreachable":
        assert "unknown command" in outputs["errors"]  # of which Redis repeats the arguments
    found = {where: PLANTED.findall(text) for where, text in outputs.items() if PLANTED.search(text)}
    assert found == {}, "".join(outputs[where] for where in found)[-3000:]


def _get(url: str) -> str:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            text: str = str(answer.headers) + answer.read().decode()
            return text
    except urllib.error.HTTPError as error:
        with error:
            return str(error.headers) + error.read().decode()


def _all_of(error: BaseException) -> str:
    """An error, and every error that hangs on it, whether or not a traceback would show it."""
    texts, seen, todo = [], set(), [error]
    while todo:
        one = todo.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        texts += ["".join(traceback.format_exception(one)), repr(one), repr(one.args), repr(vars(one))]
        todo += [behind for behind in (one.__cause__, one.__context__) if behind is not None]
    return "\n".join(texts)


async def test_bad_tls_shows_no_password(
    tls_redis: RedisServer, certificates: Certificates, caplog: pytest.LogCaptureFixture
) -> None:
    """A certificate that is not trusted, a file that is not there, TLS to a server without."""
    caplog.set_level(logging.DEBUG)
    tls = f"rediss://genesis:{QUOTED}@localhost:{tls_redis.port}/0"
    for options in (
        f"ssl_ca_certs={certificates.stranger}",
        "ssl_ca_certs=/not/there.pem",
        f"ssl_certfile={certificates.ca}&ssl_password={QUOTED}",
    ):
        async with quiet(RedisBackend(f"{tls}?{options}", operation_timeout=0.4)) as queue:
            with pytest.raises(BackendUnavailableError) as caught:
                await queue.ping()
        assert not PLANTED.search(_all_of(caught.value))
    assert not PLANTED.search(caplog.text)


@pytest.mark.parametrize(
    "url",
    [
        "redis://genesis:pl4nted/s3cret@localhost:6379/0",
        "redis://genesis:s3cret]@localhost",
        "redis://genesis:s3cret@[localhost",
        "http://genesis:s3cret@localhost",
        "redis://genesis:s3cret@localhost:port",
        "redis://genesis:s3cret@localhost/0?db=s3cret",
        "redis://genesis:s3cret@localhost/0?unknown=s3cret",
        "rediss://genesis:s3cret@localhost/0?ssl_cert_reqs=s3cret",
    ],
)
def test_a_bad_url_is_refused_without_showing_it(url: str) -> None:
    """No part of it is in the error, nor in one behind it."""
    with pytest.raises(ValueError) as caught:
        RedisBackend(url)
    text = _all_of(caught.value)
    shown = "".join(line for line in text.splitlines() if "RedisBackend(url)" not in line)
    assert not re.search("s3cret", shown), text


@pytest.mark.parametrize(
    "client", ["redis://localhost", object(), 5, "sync"], ids=["url", "object", "int", "sync"]
)
def test_a_client_of_another_kind_is_refused(client: Any) -> None:
    """The error names the kinds that are taken."""
    if client == "sync":
        client = redis.Redis()
    with pytest.raises(TypeError, match=r"redis\.asyncio\.Redis"):
        RedisBackend(client=client)


@pytest.mark.parametrize("url", ["redis://localhost:6380", "redis://localhost:6379"])
def test_url_and_client_together_are_refused(url: str) -> None:
    """One of the two would be ignored in silence; also if the default URL was written out."""
    with pytest.raises(ValueError, match="url and client"):
        RedisBackend(url, client=Redis())


@pytest.mark.parametrize("prefix", ["{genesis}:", "a{", "b}", "{}", "\ud800", "p" * 1025])
def test_a_key_prefix_that_breaks_the_hash_tag_is_refused(prefix: str) -> None:
    """Braces before the queue's own would decide in which slot its keys are; too long is too long."""
    with pytest.raises(ValueError, match="key_prefix"):
        RedisBackend(key_prefix=prefix)


# Text from outside


@pytest.fixture
async def noisy(redis_server: RedisServer, telemetry: Telemetry) -> AsyncIterator[Queue]:
    async with Queue(RedisBackend(redis_server.url, lease=LEASE), telemetry=telemetry) as queue:
        yield queue


async def test_no_id_breaks_a_label_a_line_or_a_span(
    noisy: Queue,
    registry: CollectorRegistry,
    spans: Spans,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Every unusual id comes out of metrics, logs and spans as it went in, on a line of its own."""
    caplog.set_level(logging.DEBUG)
    for name in UNUSUAL_IDS:
        async with noisy.slot(name, item_id=name, max_concurrent=1):
            with pytest.raises(QueueTimeoutError):
                await _pass(noisy, name, name, timeout=0)
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("genesis")]
    assert len(lines) >= 4 * len(UNUSUAL_IDS)
    assert not [line for line in lines if not line.isprintable()]
    records = [vars(record) for record in caplog.records]
    seen = {(fields.get("queue_id"), fields.get("item_id")) for fields in records}
    assert {(name, name) for name in UNUSUAL_IDS} <= seen
    labels = {
        sample.labels["queue"]
        for family in text_string_to_metric_families(generate_latest(registry).decode())
        for sample in family.samples
        if "queue" in sample.labels
    }
    assert {name for name in UNUSUAL_IDS if len(name) <= 120} <= labels
    assert all(len(label) <= 120 for label in labels)
    attributes = [json.loads(span.to_json())["attributes"] for span in spans.get_finished_spans()]
    assert set(UNUSUAL_IDS) <= {fields.get("genesis.queue_id") for fields in attributes}
