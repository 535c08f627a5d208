"""Bad arguments raise at once, with an error that names the argument, and nothing is enqueued."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import redis
from prometheus_client import CollectorRegistry
from redis.asyncio import Redis

from genesis import Queue
from genesis.exceptions import GenesisError
from genesis.observability import Telemetry
from genesis.queue import InMemoryBackend, RedisBackend
from tests.conftest import state_of

NAN = float("nan")

BAD_IDS: list[tuple[Any, type[Exception]]] = [
    ("", ValueError),
    ("\ud800", ValueError),
    ("call \udcff", ValueError),
    ("x" * 16_385, ValueError),
    ("ж" * 8_193, ValueError),
    (None, TypeError),
    (b"sales", TypeError),
    (7, TypeError),
    (0, TypeError),
    (False, TypeError),
    (["sales"], TypeError),
]
BAD_ITEM_IDS = [(value, error) for value, error in BAD_IDS if value is not None]  # None: a UUID
BAD_LIMITS: list[tuple[Any, type[Exception]]] = [
    (0, ValueError),
    (-1, ValueError),
    (True, TypeError),
    (False, TypeError),
    (1.0, TypeError),
    (NAN, TypeError),
    ("2", TypeError),
    ([2], TypeError),
]
BAD_OVERRIDES = [(value, error) for value, error in BAD_LIMITS if value != 0 or value is False]
BAD_TIMEOUTS: list[tuple[Any, type[Exception]]] = [
    (-1, ValueError),
    (-0.001, ValueError),
    (float("-inf"), ValueError),
    (NAN, ValueError),
    (True, TypeError),
    (False, TypeError),
    ("30", TypeError),
    (b"30", TypeError),
    ([1], TypeError),
]


def named(value: object) -> str:
    return ascii(value)[:24]


class Enqueues(InMemoryBackend):
    """A backend that a bad argument must never reach."""

    def __getattribute__(self, name: str) -> Any:
        member = super().__getattribute__(name)
        if inspect.iscoroutinefunction(member) and name not in ("close", "stats"):
            pytest.fail(f"{name} reached the backend")
        return member


@pytest.fixture
async def queue() -> AsyncIterator[Queue]:
    """A queue whose backend must not have been called at the end."""
    registry = CollectorRegistry()
    async with Queue(Enqueues(), telemetry=Telemetry(registry)) as queue:
        yield queue
        assert not state_of(queue)
        counts = [sample for metric in registry.collect() for sample in metric.samples]
        assert not any(
            sample.value for sample in counts if sample.name.endswith("operation_seconds_count")
        )


@pytest.mark.parametrize(("value", "error"), BAD_IDS, ids=named)
async def test_a_bad_queue_id_is_refused(queue: Queue, value: Any, error: type[Exception]) -> None:
    """slot() and semaphore() raise when they are called, not when they are entered; the rest too."""
    calls: list[Callable[[], Any]] = [lambda: queue.slot(value), lambda: queue.semaphore(value)]
    for call in calls:
        with pytest.raises(error, match="queue_id"):
            call()
    for ask in (
        queue.stats(value),
        queue.entries(value),
        queue.set_limit(value, 1),
        queue.set_limit(value, None),
        queue.position(value, "item"),
        queue.evict(value, "item"),
    ):
        with pytest.raises(error, match="queue_id"):
            await ask


@pytest.mark.parametrize(("value", "error"), BAD_ITEM_IDS, ids=named)
async def test_a_bad_item_id_is_refused(queue: Queue, value: Any, error: type[Exception]) -> None:
    """item_id is checked in slots, in slots of a semaphore, and in queries."""
    with pytest.raises(error, match="item_id"):
        queue.slot("sales", item_id=value)
    semaphore = queue.semaphore("sales")
    with pytest.raises(error, match="item_id"):
        semaphore(item_id=value)
    for ask in (queue.position("sales", value), queue.evict("sales", value)):
        with pytest.raises(error, match="item_id"):
            await ask


async def test_questions_about_no_item_are_refused(queue: Queue) -> None:
    """item_id is optional only for a new slot."""
    nobody: Any = None
    for ask in (queue.position("sales", nobody), queue.evict("sales", nobody)):
        with pytest.raises(TypeError, match="item_id"):
            await ask


@pytest.mark.parametrize(("value", "error"), BAD_LIMITS, ids=named)
async def test_a_bad_limit_is_refused(queue: Queue, value: Any, error: type[Exception]) -> None:
    """max_concurrent is an int of at least 1, or None; the message names the queue."""
    with pytest.raises(error, match=r"'sales'.*max_concurrent"):
        queue.slot("sales", max_concurrent=value)
    with pytest.raises(error, match=r"'sales'.*max_concurrent"):
        queue.semaphore("sales", value)


@pytest.mark.parametrize(("value", "error"), BAD_OVERRIDES, ids=named)
async def test_a_bad_override_is_refused(queue: Queue, value: Any, error: type[Exception]) -> None:
    """set_limit takes 0, but nothing below, and nothing that is not an int."""
    with pytest.raises(error, match=r"'sales'.*limit"):
        await queue.set_limit("sales", value)


@pytest.mark.parametrize(("value", "error"), BAD_TIMEOUTS, ids=named)
async def test_a_bad_timeout_is_refused(queue: Queue, value: Any, error: type[Exception]) -> None:
    """A timeout is a number of seconds, 0 or more, or None; the message names the queue."""
    with pytest.raises(error, match=r"'sales'.*timeout"):
        queue.slot("sales", timeout=value)
    with pytest.raises(error, match=r"'sales'.*timeout"):
        queue.semaphore("sales", timeout=value)


async def test_a_timeout_beyond_all_floats_is_refused(queue: Queue) -> None:
    """An int that no clock can add to its time is a ValueError like any other bad timeout."""
    with pytest.raises(ValueError, match=r"'sales'.*timeout"):
        queue.slot("sales", timeout=10**400)


BAD_SECONDS = [*BAD_TIMEOUTS, (None, TypeError), (86_401, ValueError), (float("inf"), ValueError)]


@pytest.mark.parametrize(("value", "error"), BAD_SECONDS, ids=named)
@pytest.mark.parametrize("name", ["head_start", "keep_place"])
async def test_bad_seconds_are_refused(
    queue: Queue, name: str, value: Any, error: type[Exception]
) -> None:
    """A head start and the time for which a place is kept are 0 to 86,400 seconds."""
    options = {name: value}
    with pytest.raises(error, match=rf"'sales'.*{name}"):
        queue.slot("sales", **options)
    with pytest.raises(error, match=rf"'sales'.*{name}"):
        queue.semaphore("sales", **options)


@pytest.mark.parametrize(("value", "error"), BAD_OVERRIDES, ids=named)
async def test_a_bad_max_waiting_is_refused(queue: Queue, value: Any, error: type[Exception]) -> None:
    """It is an int of 0 or more, or None."""
    with pytest.raises(error, match=r"'sales'.*max_waiting"):
        queue.slot("sales", max_waiting=value)
    with pytest.raises(error, match=r"'sales'.*max_waiting"):
        queue.semaphore("sales", max_waiting=value)


@pytest.mark.parametrize(("value", "error"), BAD_TIMEOUTS, ids=named)
async def test_a_bad_pace_of_a_watch_is_refused(
    queue: Queue, value: Any, error: type[Exception]
) -> None:
    """Seconds; `every` is more than 0. Raised when watch() is called."""
    for name in ("every", "at_least"):
        with pytest.raises(error, match=rf"'sales'.*{name}"):
            queue.watch("sales", "call", **{name: value})
        with pytest.raises(error, match=rf"'sales'.*{name}"):
            queue.slot("sales").watch(**{name: value})
    with pytest.raises(ValueError, match=r"'sales'.*every"):
        queue.watch("sales", "call", every=0)


@pytest.mark.parametrize("value", [7, b"31", 1.5, ["31"]], ids=named)
async def test_a_place_token_that_is_no_text_is_refused(queue: Queue, value: Any) -> None:
    """For its form and its queue see the tests of kept places."""
    with pytest.raises(TypeError, match=r"'sales'.*place_token"):
        queue.slot("sales", place_token=value)


@pytest.mark.parametrize(("value", "error"), BAD_TIMEOUTS, ids=named)
async def test_a_bad_timeout_of_drain_is_refused(
    queue: Queue, value: Any, error: type[Exception]
) -> None:
    """And the queue is not drained."""
    with pytest.raises(error, match=r"drain.*timeout"):
        await queue.drain(value)
    assert not queue.draining


@pytest.mark.parametrize("arguments", [(), ("sales", "item"), ("sales", "item", 1, 2.0)])
def test_only_the_queue_id_of_a_slot_is_positional(arguments: tuple[Any, ...]) -> None:
    """slot("sales", "item") is refused rather than guessed at."""
    slot: Any = Queue(telemetry=Telemetry(CollectorRegistry())).slot
    with pytest.raises(TypeError):
        slot(*arguments)


async def test_the_borders_are_accepted() -> None:
    """The largest id, the smallest limit, timeout 0 and 0.0 and -0.0 and a pause are good arguments."""
    async with Queue(telemetry=Telemetry(CollectorRegistry())) as queue:
        for timeout in (0, 0.0, -0.0, 1e-9, 10**9, float("inf"), None):
            async with queue.slot(
                "x" * 16_384, item_id="ж" * 8_192, max_concurrent=1, timeout=timeout
            ) as slot:
                assert slot.item_id == "ж" * 8_192
        await queue.set_limit("sales", 0)
        assert (await queue.stats("sales")).limit == 0


@pytest.mark.parametrize(
    "lease",
    [0, 0.0, -1, NAN, float("inf"), 1e300, 10**400, 86_401, "15", None, True, [1]],
    ids=lambda value: f"{value!r:.9}",
)
def test_a_bad_lease_is_refused(lease: Any) -> None:
    """A lease is a positive number of seconds, at most a day; RedisBackend checks it on creation."""
    with pytest.raises((ValueError, TypeError), match="lease"):
        RedisBackend(lease=lease)


@pytest.mark.parametrize("timeout", [0, -1, NAN, "15", True, [1]], ids=named)
def test_a_bad_operation_timeout_is_refused(timeout: Any) -> None:
    """An operation_timeout is a positive number of seconds, or None."""
    with pytest.raises((ValueError, TypeError), match="operation_timeout"):
        RedisBackend(operation_timeout=timeout)


def test_an_operation_timeout_beyond_the_lease_is_refused() -> None:
    """The lease would lapse while an operation waits."""
    with pytest.raises(ValueError, match="operation_timeout"):
        RedisBackend(lease=2.0, operation_timeout=2.1)
    RedisBackend(lease=2.0, operation_timeout=2.0)


@pytest.mark.parametrize(
    "url", ["", "localhost", "localhost:6379", "http://localhost", "redis://h:port", None, 6379, b"x"]
)
def test_a_bad_url_is_refused(url: Any) -> None:
    """A url that redis-py cannot parse raises when the backend is created, not at its first use."""
    with pytest.raises((ValueError, TypeError)):
        RedisBackend(url)


@pytest.mark.parametrize("prefix", [None, 7, b"genesis:"], ids=named)
def test_a_bad_key_prefix_is_refused(prefix: Any) -> None:
    """A key_prefix is a str."""
    with pytest.raises((ValueError, TypeError)):
        RedisBackend(key_prefix=prefix)


@pytest.mark.parametrize("prefix", ["{genesis}:", "a{", "b}", "{}", "\ud800", "p" * 1025], ids=named)
def test_a_key_prefix_that_breaks_the_hash_tag_is_refused(prefix: str) -> None:
    """Braces before the queue's own would decide in which slot its keys are; too long is too long."""
    with pytest.raises(ValueError, match="key_prefix"):
        RedisBackend(key_prefix=prefix)


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


def test_options_of_the_redis_backend_are_keyword_only() -> None:
    """Beyond url and key_prefix nothing is positional, so that options can be added."""
    make: Any = RedisBackend
    with pytest.raises(TypeError):
        make("redis://localhost", "genesis:", 15.0)


@pytest.mark.parametrize("backend", ["redis://localhost", 7, InMemoryBackend])
def test_what_is_not_a_backend_is_refused(backend: Any) -> None:
    """Queue("redis://...") is a likely mistake; the error names the valid types."""
    with pytest.raises(TypeError, match="backend"):
        Queue(backend, telemetry=Telemetry(CollectorRegistry()))


def test_argument_errors_are_not_genesis_errors(queue: Queue) -> None:
    """`except GenesisError` handles the outcomes of calls, and does not hide a programming error."""
    with pytest.raises(ValueError) as caught:
        queue.slot("")
    assert not isinstance(caught.value, GenesisError)
