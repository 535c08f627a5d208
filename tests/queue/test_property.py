"""A stateful property test: any sequence of operations, compared with a small model of the line.

After every step the queue must tell the same as the model (`line_model.py`), and the grants must have
been made in the model's order, as their tokens tell it. `line_machine.py` has the steps.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test
from prometheus_client import CollectorRegistry

from genesis import Queue
from genesis.backends import waiting
from genesis.backends.protocol import Grant
from genesis.observability import Telemetry
from genesis.queue import InMemoryBackend, RedisBackend
from tests.conftest import replace_until_granted, state_of
from tests.queue.line_machine import QUEUE_ID, Line, Tasks
from tests.support.redis_server import RedisServer


def check(make: Callable[[], list[Queue]], in_wait: Tasks, examples: int) -> None:
    run_state_machine_as_test(
        lambda: Line(make, in_wait),  # type: ignore[arg-type]
        settings=settings(
            max_examples=examples,
            stateful_step_count=25,
            deadline=None,
            derandomize=True,  # the same examples in every run
            database=None,
            phases=[Phase.generate],  # shrinking takes minutes, and 25 steps are read without
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.fixture
def in_wait(monkeypatch: pytest.MonkeyPatch) -> Tasks:
    """The tasks that have begun to wait for their grant."""
    tasks = Tasks()

    async def until_granted(future: asyncio.Future[Grant], timeout: float | None) -> Grant:
        tasks.add(asyncio.current_task())
        return await waiting.until_granted(future, timeout)

    replace_until_granted(monkeypatch, until_granted)
    return tasks


def telemetry() -> Telemetry:
    return Telemetry(CollectorRegistry())


def test_any_sequence_of_operations_in_memory_agrees_with_the_model(in_wait: Tasks) -> None:
    """One process: enter, abandon, release, evict, set_limit, alone and many in one iteration."""
    check(lambda: [Queue(InMemoryBackend(), telemetry=telemetry())], in_wait, examples=120)


def test_any_sequence_of_operations_over_redis_agrees_with_the_model(
    redis_server: RedisServer, in_wait: Tasks
) -> None:
    """The same over Redis with one instance."""
    prefixes = itertools.count()

    def make() -> list[Queue]:
        backend = RedisBackend(redis_server.url, f"one:{next(prefixes)}:", lease=60.0)
        return [Queue(backend, telemetry=telemetry())]

    check(make, in_wait, examples=40)


def test_any_sequence_of_operations_of_two_instances_agrees_with_the_model(
    redis_server: RedisServer, in_wait: Tasks
) -> None:
    """Two instances share a line, and can disagree on its limit: the last one named wins."""
    prefixes = itertools.count()

    def make() -> list[Queue]:
        prefix = f"two:{next(prefixes)}:"
        return [
            Queue(RedisBackend(redis_server.url, prefix, lease=60.0), telemetry=telemetry())
            for _ in range(2)
        ]

    check(make, in_wait, examples=40)


def test_the_machine_has_the_state_it_should_watch() -> None:
    """Guards the test itself: `state_of` sees a call that is there."""

    async def work() -> None:
        async with Queue(telemetry=telemetry()) as queue:
            async with queue.slot(QUEUE_ID):
                assert set(state_of(queue)) >= {"agreements", "recorders", "lines"}
            assert not state_of(queue)

    asyncio.run(work())
