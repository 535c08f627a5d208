"""The fast bounds hold, each rule left out is missed, and the table in core.py is what was seen."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from genesis.backends.redis import core
from tests.protocol.__main__ import run
from tests.protocol.bounds import ALL, FAST
from tests.protocol.caller import Caller
from tests.protocol.explore import Result
from tests.protocol.plants import PLANTS
from tests.support.redis_server import RedisServer

NAMED = {bound.name: bound for bound in (*FAST, *ALL)}
explored: dict[str, tuple[Result, Caller]] = {}


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    server = RedisServer()
    yield server
    server.close()


def result_of(redis: RedisServer, name: str) -> tuple[Result, Caller]:
    if name not in explored:
        explored[name] = run(redis, NAMED[name], None, float("inf"))[:2]
    return explored[name]


@pytest.mark.parametrize("name", [bound.name for bound in FAST])
def test_every_promise_holds_within(redis: RedisServer, name: str) -> None:
    result, _ = result_of(redis, name)
    assert not result.wrong, "\n".join((result.wrong, *result.trace))
    assert result.finished


def test_the_fast_bounds_have_many_states(redis: RedisServer) -> None:
    assert sum(result_of(redis, bound.name)[0].states for bound in FAST) >= 20_000


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


def test_the_table_in_core_is_what_was_seen(redis: RedisServer) -> None:
    seen = set()
    for bound in FAST:
        seen |= result_of(redis, bound.name)[1].transitions
    assert core.__doc__ is not None
    rows = [line.strip("| ").split("|") for line in core.__doc__.splitlines() if line.startswith("| ")]
    table = set()
    for stage, events, after, verdict in ([cell.strip() for cell in row] for row in rows):
        if stage in ("stage", "any"):
            continue
        for part in events.partition(":")[0].split(";"):
            words = part.strip()
            prefix = "reply to " if words.startswith("reply to ") else ""
            table |= {
                (prefix + name.strip(), stage, after, verdict)
                for name in words.removeprefix(prefix).split(",")
            }
    assert {row for row in seen if row[3]} == table
    # Of calls that have left, nobody hears: the same moves, or to ENDED.
    moves = {row[1:3] for row in table}
    assert all(row[1:3] in moves or row[2] == "ENDED" for row in seen)
