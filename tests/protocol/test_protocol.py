"""The fast bounds hold, each rule left out is missed, and the table in core.py is what was seen."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from genesis.backends.redis import core
from tests.protocol.__main__ import run
from tests.protocol.bounds import ALL, FAST
from tests.protocol.plants import PLANTS
from tests.support.redis_server import RedisServer

NAMED = {bound.name: bound for bound in (*FAST, *ALL)}
SHOW_EVERY_ROW = (
    "two calls, no fault",
    "two calls of one instance, a rejection",
    "one call, a break, an eviction",
    "two calls, an eviction by an instance",
    "two calls in pages of one, a loss",
    "two calls, an early lapse",
    "two calls, a clock step, a record expires",
    "three calls in portions of one, a kill",
    "a call that does not wait",
)


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    server = RedisServer()
    yield server
    server.close()


@pytest.mark.parametrize("name", [bound.name for bound in FAST])
def test_every_promise_holds_within(redis: RedisServer, name: str) -> None:
    """And a call moves only as the table in core.py says."""
    result, caller, _ = run(redis, NAMED[name], None, float("inf"))
    assert not result.wrong, "\n".join((result.wrong, *result.trace))
    assert result.finished
    assert result.states > 200
    rows = table()
    assert {row for row in caller.transitions if row[3]} <= rows
    # Of calls that have left, nobody hears: the same moves, or to ENDED.
    moves = {row[1:3] for row in rows}
    assert all(row[1:3] in moves or row[2] == "ENDED" for row in caller.transitions)


def test_every_row_of_the_table_in_core_is_seen(redis: RedisServer) -> None:
    """In a few of the bounds together."""
    seen = set()
    for name in SHOW_EVERY_ROW:
        seen |= run(redis, NAMED[name], None, float("inf"))[1].transitions
    assert {row for row in seen if row[3]} == table()


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


def table() -> set[tuple[str, str, str, str]]:
    """The rows in the docstring of core.py: event, stage, stage afterwards, verdict."""
    assert core.__doc__ is not None
    rows = [line.strip("| ").split("|") for line in core.__doc__.splitlines() if line.startswith("| ")]
    found = set()
    for stage, events, after, verdict in ([cell.strip() for cell in row] for row in rows):
        if stage in ("stage", "any"):
            continue
        for part in events.partition(":")[0].split(";"):
            words = part.strip()
            prefix = "reply to " if words.startswith("reply to ") else ""
            found |= {
                (prefix + name.strip(), stage, after, verdict)
                for name in words.removeprefix(prefix).split(",")
            }
    return found
