"""Real observers for end-to-end tests: an OTLP receiver, a Prometheus, a Jaeger."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.support.redis_server import free_port

__all__ = ["Jaeger", "OtlpReceiver", "Prometheus", "ReceivedSpan"]


class ReceivedSpan(NamedTuple):
    """A span as received over OTLP."""

    service: str
    instance: str
    name: str
    kind: int
    trace_id: str
    span_id: str
    parent_id: str
    status: int
    attributes: dict[str, Any]
    links: list[tuple[str, str, dict[str, Any]]]


class OtlpReceiver:
    """Receives OTLP/HTTP, decodes it with the official messages, and optionally forwards it."""

    def __init__(self, pass_on_to: str | None = None) -> None:
        self.spans: list[ReceivedSpan] = []
        self._pass_on_to = pass_on_to
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                receiver._take(body)
                self.send_response(200)
                self.send_header("Content-Type", "application/x-protobuf")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def of(self, item_id: str, name: str = "") -> list[ReceivedSpan]:
        """The spans of a call, perhaps only those of one name."""
        return [
            span
            for span in self.spans
            if span.attributes.get("genesis.item_id") == item_id
            and (not name or span.name.removeprefix("queue.") == name)
        ]

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _take(self, body: bytes) -> None:
        if self._pass_on_to is not None:
            kind = {"Content-Type": "application/x-protobuf"}
            request = urllib.request.Request(self._pass_on_to + "/v1/traces", body, kind)
            urllib.request.urlopen(request, timeout=10).close()
        for resource_spans in ExportTraceServiceRequest.FromString(body).resource_spans:
            resource = _attributes(resource_spans.resource.attributes)
            for scope_spans in resource_spans.scope_spans:
                for span in scope_spans.spans:
                    self.spans.append(_received(resource, span))


def _received(resource: dict[str, Any], span: Any) -> ReceivedSpan:
    return ReceivedSpan(
        service=resource["service.name"],
        instance=resource["service.instance.id"],
        name=span.name,
        kind=span.kind,
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        status=span.status.code,
        attributes=_attributes(span.attributes),
        links=[
            (link.trace_id.hex(), link.span_id.hex(), _attributes(link.attributes))
            for link in span.links
        ],
    )


def _attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in pairs}


class _Program:
    """A server program of one test, in its own folder, stopped by pid."""

    def __init__(self, command: Callable[[Path], list[str]], **environment: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="genesis-observer-"))
        self._log = (self.folder / "log").open("wb")
        self._process = subprocess.Popen(
            command(self.folder),
            stdout=self._log,
            stderr=subprocess.STDOUT,
            cwd=self.folder,
            env={**os.environ, **environment},
        )

    def wait_for(self, url: str, timeout: float = 60.0) -> None:
        deadline = time.monotonic() + timeout
        while True:
            try:
                urllib.request.urlopen(url, timeout=2).close()
            except (urllib.error.URLError, OSError):
                if self._process.poll() is not None or time.monotonic() > deadline:
                    log = (self.folder / "log").read_text(errors="replace")[-2000:]
                    self.close()
                    raise RuntimeError(f"{url} does not answer:\n{log}") from None
                time.sleep(0.05)
            else:
                return

    def close(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()
        shutil.rmtree(self.folder, ignore_errors=True)


class Prometheus:
    """A real Prometheus that scrapes the given ports four times a second and keeps exemplars.

    Args:
        ports: the ports of the instances, on this machine; for several jobs, by job name.
        rules: the text of a rule file, if any.
        interval: the time between two scrapes.
    """

    MISSING = "no `prometheus` on this machine (Debian: apt-get install prometheus)"

    def __init__(
        self,
        ports: Sequence[int] | Mapping[str, Sequence[int]],
        rules: str = "",
        interval: str = "250ms",
    ) -> None:
        self._port = free_port()
        jobs = ports if isinstance(ports, Mapping) else {"genesis": ports}

        def command(folder: Path) -> list[str]:
            scraped = "".join(
                f"  - {{job_name: {job}, static_configs: [{{targets: "
                f"{[f'127.0.0.1:{port}' for port in of_job]}}}]}}\n"
                for job, of_job in jobs.items()
            )
            (folder / "rules.yml").write_text(rules or "groups: []\n")
            (folder / "prometheus.yml").write_text(
                f"global: {{scrape_interval: {interval}, scrape_timeout: {interval}}}\n"
                f"rule_files: [rules.yml]\nscrape_configs:\n{scraped}"
            )
            return [
                "prometheus",
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{self._port}",
                "--enable-feature=exemplar-storage",
            ]

        self._program = _Program(command)
        self._program.wait_for(f"http://127.0.0.1:{self._port}/-/ready")

    @staticmethod
    def available() -> bool:
        return shutil.which("prometheus") is not None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def query(self, expression: str, at: float | None = None) -> list[dict[str, Any]]:
        """Evaluate the expression now, or at that time."""
        when = {} if at is None else {"time": at}
        found: list[dict[str, Any]] = self._get("query", query=expression, **when)["result"]
        return found

    def value(self, expression: str) -> float | None:
        """The single sample of the expression; None if it has none."""
        result = self.query(expression)
        assert len(result) <= 1, f"{expression} gives {len(result)} samples"
        return float(result[0]["value"][1]) if result else None

    def series(self, expression: str, start: float, end: float) -> dict[float, float]:
        """The samples of one series over a range of time, four per second."""
        result = self._get("query_range", query=expression, start=start, end=end, step=0.25)["result"]
        assert len(result) <= 1, f"{expression} gives {len(result)} series"
        return {float(t): float(v) for t, v in result[0]["values"]} if result else {}

    def range(self, expression: str, start: float, end: float, step: float) -> list[dict[str, Any]]:
        """All series of the expression over a range of time."""
        found = self._get("query_range", query=expression, start=start, end=end, step=step)["result"]
        assert isinstance(found, list)
        return found

    def rules(self) -> list[dict[str, Any]]:
        """The loaded rules, with their `health` and `lastError`."""
        return [rule for group in self._get("rules")["groups"] for rule in group["rules"]]

    def exemplars(self, expression: str) -> list[dict[str, Any]]:
        now = time.time()
        found = self._get("query_exemplars", query=expression, start=now - 3600, end=now + 60)
        return [exemplar for series in found for exemplar in series["exemplars"]]

    def close(self) -> None:
        self._program.close()

    def _get(self, path: str, **arguments: Any) -> Any:
        query = urllib.parse.urlencode(arguments)
        url = f"http://127.0.0.1:{self._port}/api/v1/{path}?{query}"
        with urllib.request.urlopen(url, timeout=10) as response:
            return json.load(response)["data"]


class Jaeger:
    """A real Jaeger v2, if GENESIS_JAEGER names the program; queried over its HTTP API."""

    def __init__(self) -> None:
        self._query, self._otlp, health = free_port(), free_port(), free_port()

        def command(folder: Path) -> list[str]:
            (folder / "config.yaml").write_text(
                _JAEGER_CONFIG.format(query=self._query, otlp=self._otlp, health=health)
            )
            return [os.environ["GENESIS_JAEGER"], "--config", str(folder / "config.yaml")]

        self._program = _Program(command)
        self._program.wait_for(f"http://127.0.0.1:{self._query}/api/services")

    @staticmethod
    def missing() -> str:
        """Why no Jaeger is available; empty if one is."""
        if shutil.which(os.environ.get("GENESIS_JAEGER", "")) is not None:
            return ""
        cure = "`.ci/build-jaeger` builds one and prints where it is"
        if shutil.which("go") is None:
            cure = "there is no Go toolchain (`go`) to build it with by .ci/build-jaeger"
        return f"no Jaeger v2: GENESIS_JAEGER does not name the program; {cure}"

    @property
    def otlp(self) -> str:
        return f"http://127.0.0.1:{self._otlp}"

    def find(self, service: str, tags: dict[str, str]) -> list[dict[str, Any]]:
        """All traces of a service that have a span with these tags."""
        query = urllib.parse.urlencode({"service": service, "tags": json.dumps(tags), "limit": 50})
        url = f"http://127.0.0.1:{self._query}/api/traces?{query}"
        with urllib.request.urlopen(url, timeout=10) as response:
            found: list[dict[str, Any]] = json.load(response)["data"]
            return found

    def close(self) -> None:
        self._program.close()


_JAEGER_CONFIG = """
service:
  extensions: [jaeger_storage, jaeger_query, healthcheckv2]
  pipelines:
    traces: {{receivers: [otlp], processors: [], exporters: [jaeger_storage_exporter]}}
  telemetry: {{metrics: {{level: none}}, traces: {{level: none}}}}
extensions:
  jaeger_query:
    storage: {{traces: memory}}
    http: {{endpoint: "127.0.0.1:{query}"}}
    grpc: {{endpoint: "127.0.0.1:0"}}
  jaeger_storage: {{backends: {{memory: {{memory: {{max_traces: 10000}}}}}}}}
  healthcheckv2: {{use_v2: true, http: {{endpoint: "127.0.0.1:{health}"}}}}
receivers:
  otlp: {{protocols: {{http: {{endpoint: "127.0.0.1:{otlp}"}}}}}}
exporters:
  jaeger_storage_exporter: {{trace_storage: memory}}
"""
