"""Servers that speak TLS, and the certificates for them."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from prometheus_client import CollectorRegistry

from genesis import Queue
from genesis.observability import Telemetry
from genesis.queue import RedisBackend
from tests.support.redis_server import RedisServer, find_redis_server, free_port

PASSWORD = "pl4nted/s3cret"
QUOTED = "pl4nted%2Fs3cret"  # as a URL has it


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


def quiet(backend: RedisBackend) -> Queue:
    return Queue(backend, telemetry=Telemetry(registry=CollectorRegistry()))
