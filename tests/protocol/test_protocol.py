"""The fast bounds hold, each rule left out is missed, and the table in core.py is what was seen."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

import pytest

from genesis.backends.redis import core
from tests.protocol.__main__ import run
from tests.protocol.bounds import ALL, FAST
from tests.protocol.plants import PLANTS
from tests.support.redis_server import RedisServer

NAMED = {bound.name: bound for bound in (*FAST, *ALL)}
Row: TypeAlias = tuple[str, str, str, str]  # event, stage, stage afterwards, result
SHOWN: dict[str, set[Row]] = {
    "two calls, no fault": {
        ("pushed", "WAITING", "HOLDING", "granted"),
        ("reply to sync", "ENTERING", "HOLDING", "granted"),
        ("reply to sync", "ENTERING", "WAITING", "waiting"),
    },
    "two calls of one instance, a rejection": {
        ("reply to enter", "ENTERING", "ENDED", "failed"),
        ("reply to enter", "ENTERING", "HOLDING", "granted"),
        ("reply to enter", "ENTERING", "WAITING", "waiting"),
        ("reply to leave", "WAITING", "HOLDING", "granted"),
        ("reply to sync", "ENTERING", "ENDED", "failed"),
        ("reply to sync", "WAITING", "HOLDING", "granted"),
    },
    "one call, a break, an eviction": {
        ("pushed", "HOLDING", "ENDED", "lost"),
        ("reply to sync", "ENTERING", "ENDED", "evicted"),
        ("reply to sync", "HOLDING", "ENDED", "lost"),
    },
    "two calls, an eviction by an instance": {
        ("reply to evict", "HOLDING", "ENDED", "lost"),
        ("reply to evict", "WAITING", "ENDED", "evicted"),
        ("pushed", "WAITING", "ENDED", "evicted"),
        ("reply to evict", "WAITING", "HOLDING", "granted"),
    },
    "two calls, set_limit 2 and none by an instance": {
        ("reply to limit", "WAITING", "HOLDING", "granted"),
    },
    "two calls in pages of one, a loss": {
        ("reply to beat", "WAITING", "HOLDING", "granted"),
    },
    "two calls, an early lapse": {
        ("lease lapsed", "HOLDING", "ENDED", "lost"),
    },
    "two calls, a clock step, a record expires": {
        ("reply to sync", "WAITING", "ENDED", "evicted"),
    },
    "three calls in portions of one, a kill": {
        ("reply to enter", "WAITING", "HOLDING", "granted"),
    },
    "a call that does not wait": {
        ("reply to enter", "ENTERING", "ENDED", "refused"),
        ("reply to sync", "ENTERING", "ENDED", "refused"),
    },
}
"""The rows of the table in core.py, each at a bound in which it is seen."""


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    server = RedisServer()
    yield server
    server.close()


@pytest.mark.parametrize("name", [bound.name for bound in FAST])
def test_every_promise_holds_within(redis: RedisServer, name: str) -> None:
    """And a call moves only as the table in core.py says, and in all ways that are listed here."""
    result, caller, _ = run(redis, NAMED[name], None, float("inf"))
    assert not result.wrong, "\n".join((result.wrong, *result.trace))
    assert result.finished
    assert result.states > 200
    rows = table()
    assert SHOWN.get(name, set()) <= {row for row in caller.transitions if row[3]} <= rows
    # Of calls that have left, nobody hears: the same moves, or to ENDED.
    moves = {row[1:3] for row in rows}
    assert all(row[1:3] in moves or row[2] == "ENDED" for row in caller.transitions)


def test_every_row_of_the_table_in_core_is_seen() -> None:
    assert set().union(*SHOWN.values()) == table()
    assert SHOWN.keys() <= {bound.name for bound in FAST}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if plant.slow else ())
        for name, plant in PLANTS.items()
    ],
)
def test_a_rule_that_is_left_out_is_missed(redis: RedisServer, name: str) -> None:
    plant = PLANTS[name]
    result, _, _ = run(redis, NAMED[plant.bound], plant, float("inf"))
    assert result.wrong
    assert result.trace


def table() -> set[Row]:
    """The rows in the docstring of core.py."""
    assert core.__doc__ is not None
    rows = [line.strip("| ").split("|") for line in core.__doc__.splitlines() if line.startswith("| ")]
    found = set()
    for stage, events, after, result in ([cell.strip() for cell in row] for row in rows):
        if stage in ("stage", "any"):
            continue
        for part in events.partition(":")[0].split(";"):
            words = part.strip()
            prefix = "reply to " if words.startswith("reply to ") else ""
            found |= {
                (prefix + name.strip(), stage, after, result)
                for name in words.removeprefix(prefix).split(",")
            }
    return found
