"""Secrets that never show: a planted password is searched for in all that the library puts out."""

from __future__ import annotations

import asyncio
import inspect
import logging
import re
import traceback
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from redis.asyncio import Redis, RedisCluster, SSLConnection
from redis.asyncio.sentinel import Sentinel
from redis.credentials import CredentialProvider

from genesis import Queue
from genesis.exceptions import BackendUnavailableError
from genesis.observability import ObservabilityServer, Telemetry
from genesis.queue import RedisBackend
from tests.backends.conftest import PASSWORD, QUOTED, Certificates, quiet
from tests.backends.linked import linked
from tests.conftest import Spans
from tests.support.redis_server import RedisServer

PLANTED = re.compile("pl4nted|s3cret")


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
            async with queue.slot("sales", item_id="item", max_concurrent=1):
                pass
        errors.append(caught.value)
        with pytest.raises(BackendUnavailableError) as caught:
            await queue.ping()
        errors.append(caught.value)
        bodies = [
            await asyncio.to_thread(_get, f"http://127.0.0.1:{endpoints.port}{path}")
            for path in ("/ready", "/metrics", "/health")
        ]
        shown = [repr(queue), repr(backend), repr(backend._driver), repr(backend._new_router)]
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
    bad = [f"ssl_ca_certs={certificates.stranger}", "ssl_ca_certs=/not/there.pem"]
    if "ssl_password" in inspect.signature(SSLConnection.__init__).parameters:  # not in redis-py 5.2
        bad.append(f"ssl_certfile={certificates.ca}&ssl_password={QUOTED}")
    for options in bad:
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


async def test_an_error_of_an_earlier_sentinel_shows_no_password() -> None:
    """Each Sentinel can have its own; the error might come after the next one was tried."""
    urls = ("redis://:first-secret@localhost:1", "redis://:second-secret@localhost:2")
    async with linked(*urls) as watched:
        for secret in ("first-secret", "second-secret"):
            assert secret not in watched.link.redact(ValueError(f"AUTH {secret} failed"))
