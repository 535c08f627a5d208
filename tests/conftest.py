"""Fixtures: backends bare and observed, instances, private redis servers, a look for leaks."""

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from typing import Any

import pytest
import uvloop
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry

from genesis import Queue
from genesis.backends import waiting
from genesis.backends.protocol import EnterRequest, Grant, LeaveResult, QueueBackend, Ticket
from genesis.observability import Telemetry
from genesis.queue import InMemoryBackend, RedisBackend
from tests.backends.scripted_line import Ear, Line
from tests.support.redis_server import RedisServer
from tests.support.sick import all_sick
from tests.support.topology import Cluster
from tests.support.waiting import wait_until

LEASE = 2.0  # seconds; short, so that tests of dead instances take seconds

MakeQueue = Callable[..., Queue]


LOOPS: Mapping[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}
ON_BOTH_LOOPS = (
    "test_connecting.py",
    "test_connection.py",
    "test_link.py",
    "test_router.py",
    "test_errors.py",
    "test_loops.py",
    "test_own_backends.py",
    "test_slot_requests.py",
    "test_surface.py",
    "test_timers.py",
)


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """What depends on the event loop runs on both of the loops that applications use."""
    folder = item.path.parent.name
    both = item.path.name in ON_BOTH_LOOPS or folder in ("contract", "faults")
    if folder == "topologies":
        both = item.get_closest_marker("slow") is None
    return LOOPS if both else {"asyncio": LOOPS["asyncio"]}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out combinations that prove nothing new.

    What the layer adds depends neither on the kind of server nor on the loop: the Cluster is one more
    backend for the contract alone, without a layer, and failing sinks fail on one loop.
    """

    def wanted(item: pytest.Item) -> bool:
        params = getattr(item, "callspec", None)
        if params is None:
            return True
        layer, uses_uvloop = params.params.get("layer"), "uvloop" in params.id
        if params.params.get("backend_kind") == "cluster":
            return item.path.parent.name == "contract" and layer == "bare"
        return not (uses_uvloop and layer == "failing")

    left_out = [item for item in items if not wanted(item)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if wanted(item)]


class WithoutLayer:
    """A backend as `Queue` calls it, with nothing in between: the contract must hold bare, too."""

    def __init__(self, inner: QueueBackend) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def refused(self, entry: EnterRequest, reason: str) -> None:
        """Only the layer would count it."""

    def leave(
        self,
        ticket: Ticket,
        context: str = "",
        keep_place: float = 0.0,
        error: BaseException | None = None,
    ) -> LeaveResult | None:
        return self.inner.leave(ticket, context, keep_place)


class BareQueue(Queue):
    def __init__(self, backend: QueueBackend) -> None:
        super().__init__(backend, telemetry=Telemetry(registry=CollectorRegistry()))
        self._backend = WithoutLayer(backend)  # type: ignore[assignment]


class Spans(InMemorySpanExporter):
    """The spans that have ended, easily asked."""

    def named(self, name: str) -> list[Any]:
        """By what follows `queue.`"""
        return [span for span in self.get_finished_spans() if span.name == f"queue.{name}"]


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def spans() -> Spans:
    return Spans()


@pytest.fixture
def telemetry(registry: CollectorRegistry, spans: Spans) -> Telemetry:
    """Sinks of this test's own: a registry, a tracer that keeps every span, a logger."""
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(spans))
    logger = logging.getLogger("genesis.tests")
    logger.setLevel(logging.DEBUG)
    return Telemetry(registry=registry, tracer_provider=provider, logger=logger)


def without_overrides(server: RedisServer) -> list[str]:
    """Keys without an expiry; an override of `set_limit` is the one thing that stays."""
    return [key for key in server.keys_without_expiry() if not key.endswith(":override")]


@pytest.fixture(scope="session")
def shared_redis() -> Iterator[RedisServer]:
    server = RedisServer()
    yield server
    server.close()


@pytest.fixture
def redis_server(shared_redis: RedisServer) -> Iterator[RedisServer]:
    """The session's server, emptied; for tests that leave it running."""
    shared_redis.client.flushall()
    shared_redis.client.config_resetstat()
    yield shared_redis
    left = without_overrides(shared_redis)
    assert not left, f"keys without an expiry were left behind: {left}"


@pytest.fixture
def own_redis() -> Iterator[RedisServer]:
    """A server of this test's own, to kill, pause and restart."""
    server = RedisServer()
    yield server
    server.close()


@pytest.fixture(scope="session")
def shared_cluster() -> Iterator[Cluster]:
    cluster = Cluster()
    yield cluster
    cluster.close()


@pytest.fixture
def redis_cluster(shared_cluster: Cluster) -> Iterator[Cluster]:
    """The session's cluster of three masters, emptied; for tests that leave it as it is."""
    for server in shared_cluster.servers:
        server.client.flushall()
    yield shared_cluster
    for server in shared_cluster.servers:
        left = without_overrides(server)
        assert not left, f"keys without an expiry were left behind: {left}"


@pytest.fixture(params=["memory", "redis", "cluster"])
def backend_kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["bare", "observed", "failing"])
def layer(request: pytest.FixtureRequest) -> str:
    """No layer, the layer, or the layer on sinks that raise on every call."""
    return str(request.param)


@pytest.fixture
async def make_queue(
    request: pytest.FixtureRequest, backend_kind: str, layer: str, telemetry: Telemetry
) -> AsyncIterator[MakeQueue]:
    """Makes a Queue over the backend and layer of this run; several share one line, if over Redis."""
    made: list[Queue] = []
    failures = CollectorRegistry()
    url = request.getfixturevalue("redis_server").url if backend_kind == "redis" else ""
    cluster = request.getfixturevalue("redis_cluster") if backend_kind == "cluster" else None

    def make(**options: Any) -> Queue:
        backend: QueueBackend
        if backend_kind == "memory":
            backend = InMemoryBackend()
        else:
            where = {"url": url} if cluster is None else {"client": cluster.client()}
            backend = RedisBackend(**where, **{"lease": LEASE, **options})
        if layer == "bare":
            queue: Queue = BareQueue(backend)
        else:
            sinks = telemetry if layer == "observed" else all_sick(failures)
            queue = Queue(backend, telemetry=sinks)
        made.append(queue)
        return queue

    yield make
    for queue in made:
        await assert_nothing_kept(queue)
        await queue.close()
    if layer == "failing" and made:
        # Only a call has spans, and inspections outside a span have none.
        called = any(queue._calls is not None for queue in made)
        for sink in ("metrics", "traces", "logs") if called else ("metrics", "logs"):
            count = failures.get_sample_value("genesis_telemetry_errors_total", {"sink": sink})
            assert count, f"no failure of {sink} was counted"


@pytest.fixture
def queue(make_queue: MakeQueue) -> Queue:
    return make_queue()


async def assert_nothing_kept(queue: Queue) -> None:
    """Once all calls have ended, no object may still know of one."""
    await wait_until(lambda: not state_of(queue), f"no state is left, but there is {state_of(queue)}")


def state_of(queue: Queue) -> dict[str, Any]:
    """What `queue`, its layer and its backend keep of calls, by name; empty when nobody is there."""
    state: dict[str, Any] = {}
    if queue._calls is not None:
        state.update(agreements=queue._calls.agreements, holding=queue._calls.holding)
    layer: Any = queue._backend
    inner = layer._inner if hasattr(layer, "_inner") else layer.inner
    state["recorders"] = getattr(layer, "_recorders", {})
    state["leaving"] = getattr(layer, "_leaving", {})
    if isinstance(inner, InMemoryBackend):
        state["lines"] = inner._lines
    elif isinstance(inner, RedisBackend) and inner._driver is not None:
        state["calls"] = inner._driver.calls
    return {name: value for name, value in state.items() if value}


UntilGranted = Callable[["asyncio.Future[Grant]", "float | None"], Awaitable[Grant]]


def replace_until_granted(patch: pytest.MonkeyPatch, replacement: UntilGranted) -> None:
    """Make every backend wait for its grants by `replacement`, to act between a grant and its task."""
    for name, module in list(sys.modules.items()):
        ours = name.startswith("genesis.backends.") and module is not waiting
        if ours and hasattr(module, "until_granted"):
            patch.setattr(module, "until_granted", replacement)


@pytest.fixture(autouse=True)
def no_provider_stays() -> Iterator[None]:
    """A tracer provider that a test sets for the whole process would reach every test after it."""
    before = trace.get_tracer_provider()
    yield
    assert trace.get_tracer_provider() is before


@pytest.fixture(autouse=True)
def collect_garbage() -> Iterator[None]:
    """A warning about something never awaited or closed belongs to the test that caused it.

    What was imported, and what pytest keeps of each test, is no garbage: it is set aside now and then,
    because to look through it after each of a thousand tests took half of their time.
    """
    if next(_tests) % 50 == 0:
        gc.collect()
        gc.freeze()
    yield
    gc.collect()


_tests = itertools.count()


@pytest.fixture
def line(redis_server: RedisServer) -> Iterator[Line]:
    yield Line(redis_server)
    redis_server.client.flushall()


@pytest.fixture
def ear(redis_server: RedisServer) -> Iterator[Ear]:
    ear = Ear(redis_server, "a", "b", "c")
    yield ear
    ear.close()
