"""Errors: their messages, and pickling."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

import pytest

from genesis import QueueTimeoutError
from genesis.exceptions import (
    BackendUnavailableError,
    EvictedError,
    GenesisError,
    LimitMismatchError,
    QueueDrainingError,
    QueueFullError,
    SlotLostError,
)


async def test_every_message_names_the_queue_the_item_the_cause_and_the_way_out() -> None:
    """A message has everything that an operator needs."""
    errors: list[tuple[Exception, tuple[str, ...]]] = [
        (QueueTimeoutError("sales", "call-1", 30.0), ("30 s", "Raise the timeout")),
        (QueueTimeoutError("sales", "call-1", 0), ("timeout=0", "Raise the")),
        (LimitMismatchError("sales", "call-1", 2, 3), ("max_concurrent=2", "=3", "set_limit")),
        (SlotLostError("sales", "call-1", 42), ("42", "Stop the work")),
        (EvictedError("sales", "call-1"), ("evicted", "Enter again")),
        (QueueFullError("sales", "call-1", 7, 90.4), ("7 already wait", "90 s", "max_waiting")),
        (QueueFullError("sales", "call-1", 7), ("7 already wait", "later", "max_waiting")),
        (QueueDrainingError("sales", "call-1"), ("drain()", "another instance")),
        (
            BackendUnavailableError("redis", "evict", "it did not answer in time", "sales", "call-1"),
            ("did not answer in time", "try again"),
        ),
    ]
    for error, parts in errors:
        for part in ("'sales'", "'call-1'", *parts):
            assert part in str(error)


ERRORS: list[GenesisError] = [
    QueueTimeoutError("sales", "call-1", 30.0),
    QueueFullError("sales", "call-1", 7, 90.0),
    QueueDrainingError("sales", "call-1"),
    LimitMismatchError("sales", "call-1", 2, 3),
    BackendUnavailableError("redis", "enter", "no reply", "sales", "call-1"),
    SlotLostError("sales", "call-1", 42),
    EvictedError("sales", "call-1"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize(
    "through", [lambda error: pickle.loads(pickle.dumps(error)), copy.copy, copy.deepcopy]
)
def test_errors_survive_pickle_and_copy(
    error: GenesisError, through: Callable[[GenesisError], GenesisError]
) -> None:
    """Message and attributes survive pickle and copy, as in a process pool or a task queue."""
    again = through(error)
    assert type(again) is type(error)
    assert (str(again), again.args, vars(again)) == (str(error), error.args, vars(error))


def test_an_error_crosses_the_border_of_a_process() -> None:
    """The parent of a pool gets the error that its worker raised, and the pool continues."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        with pytest.raises(QueueTimeoutError, match="'call-1'"):
            pool.submit(_raise_a_timeout).result(30)
        assert pool.submit(int, "3").result(30) == 3


def _raise_a_timeout() -> None:
    raise QueueTimeoutError("sales", "call-1", 1.0)


def test_a_cause_that_ends_with_a_full_stop_gets_no_second_one() -> None:
    """As those of redis-py do."""
    error = BackendUnavailableError("redis", "enter", "user is disabled.", "sales", "call-1")
    assert "'enter': user is disabled. What the call held" in str(error)
    assert error.cause == "user is disabled."
