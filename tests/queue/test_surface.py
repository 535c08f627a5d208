"""The public surface: names and defaults on which programs depend."""

from __future__ import annotations

import inspect
import subprocess
import sys
import textwrap
from collections.abc import Callable
from typing import Any

import genesis
import genesis.exceptions
import genesis.queue
from genesis import Queue, QueueTimeoutError
from genesis.exceptions import (
    BackendUnavailableError,
    EvictedError,
    GenesisError,
    LimitMismatchError,
    QueueDrainingError,
    QueueFullError,
    SlotLostError,
)
from genesis.queue import (
    InMemoryBackend,
    QueueBackend,
    QueueSemaphore,
    RedisBackend,
    SlotRequest,
)


def parameters(function: Callable[..., Any]) -> dict[str, tuple[Any, bool]]:
    """Name -> (default, keyword-only), without self."""
    found = inspect.signature(function).parameters.values()
    return {p.name: (p.default, p.kind is p.KEYWORD_ONLY) for p in found if p.name != "self"}


def run_python(program: str) -> None:
    """Run `program` in a new process, which must succeed and print nothing."""
    command = [sys.executable, "-c", textwrap.dedent(program)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_names_that_programs_import_are_there() -> None:
    """`genesis`, `genesis.queue` and `genesis.exceptions` offer what design.md section 2 names."""
    new = {"QueueFullError", "QueueDrainingError", "WaitStatus", "until_disconnected"}
    assert {"Queue", "QueueTimeoutError", "RedisBackend"} | new <= set(genesis.__all__)
    assert {"InMemoryBackend", "QueueBackend", "RedisBackend"} | new <= set(genesis.queue.__all__)
    assert genesis.RedisBackend is genesis.queue.RedisBackend
    assert all(hasattr(genesis, name) for name in genesis.__all__)
    assert genesis.QueueTimeoutError is genesis.exceptions.QueueTimeoutError


def test_the_signatures_are_the_promised_ones() -> None:
    """Names, defaults and keyword-only markers of the public calls."""
    required = inspect.Parameter.empty
    assert parameters(Queue) == {"backend": (None, False), "telemetry": (None, True)}
    assert parameters(Queue.slot) == {
        "queue_id": (required, False),
        "item_id": (None, True),
        "max_concurrent": (None, True),
        "timeout": (None, True),
        "max_waiting": (None, True),
        "head_start": (0.0, True),
        "keep_place": (0.0, True),
        "place_token": (None, True),
    }
    assert parameters(Queue.semaphore) == {
        "queue_id": (required, False),
        "max_concurrent": (None, False),
        "timeout": (None, False),
        "max_waiting": (None, True),
        "head_start": (0.0, True),
        "keep_place": (0.0, True),
    }
    assert parameters(QueueSemaphore.__call__) == {
        "item_id": (None, False),
        "place_token": (None, False),
    }
    watch = {"every": (30.0, True), "at_least": (10.0, True)}
    assert parameters(SlotRequest.watch) == watch
    required_ids = {"queue_id": (required, False), "item_id": (required, False)}
    assert parameters(Queue.watch) == {**required_ids, **watch}
    assert parameters(Queue.drain) == {"timeout": (None, False)}
    redis = parameters(RedisBackend)
    assert redis["url"] == ("redis://localhost:6379", False)
    assert redis["key_prefix"] == ("genesis:queue:", False)
    assert redis["lease"] == (15.0, True)
    assert all(only for name, (_, only) in redis.items() if name not in ("url", "key_prefix"))
    assert all(default is not required for default, _ in parameters(InMemoryBackend).values())


def test_the_errors_are_what_programs_catch() -> None:
    """All derive from GenesisError, and some from a matching built-in error."""
    kinds: dict[type[Exception], type[Exception]] = {
        QueueTimeoutError: TimeoutError,
        LimitMismatchError: ValueError,
        BackendUnavailableError: ConnectionError,
        SlotLostError: GenesisError,
        EvictedError: GenesisError,
        QueueFullError: GenesisError,
        QueueDrainingError: GenesisError,
    }
    for error, kind in kinds.items():
        assert issubclass(error, GenesisError)
        assert issubclass(error, kind)
    assert not issubclass(BackendUnavailableError, TimeoutError)


def test_import_creates_and_prints_nothing() -> None:
    """Importing registers no metric, configures no logging, starts no thread and prints nothing."""
    run_python(
        """
        import logging, threading, genesis, genesis.queue
        from prometheus_client import REGISTRY
        assert not [m for m in REGISTRY.collect() if m.name.startswith("genesis")]
        assert threading.active_count() == 1
        assert not logging.getLogger().handlers and not logging.getLogger("genesis").handlers
        """
    )


async def test_both_backends_are_backends() -> None:
    """isinstance works with the protocol, and both backends satisfy it."""
    assert isinstance(InMemoryBackend(), QueueBackend)
    assert isinstance(RedisBackend(), QueueBackend)
    assert not isinstance(object(), QueueBackend)


def test_a_queue_without_arguments_works_and_reports_to_the_process_defaults() -> None:
    """Queue() needs nothing; its metrics are in prometheus_client's default registry."""
    run_python(
        """
        import asyncio, genesis, prometheus_client

        async def main():
            async with genesis.Queue() as queue, queue.slot("sales"):
                assert (await queue.stats("sales")).in_use == 1

        asyncio.run(main())
        labels = {"queue": "sales", "outcome": "granted"}
        count = prometheus_client.REGISTRY.get_sample_value("genesis_queue_wait_seconds_count", labels)
        assert count == 1, count
        """
    )
