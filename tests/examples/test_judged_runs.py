"""The judge of `examples/call_centre.py`, on runs with a backend that breaks a promise."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from examples.call_centre import CallCentre
from examples.call_centre_day.judge import check_limit, check_order
from examples.call_centre_day.recorded import read_day
from examples.call_centre_day.replay import Replay
from examples.call_centre_day.report import report
from genesis import Queue
from genesis.backends.protocol import EnterRequest, EnterResult, LeaveResult, Ticket
from genesis.observability import Telemetry
from genesis.queue import InMemoryBackend
from tests.support.call_centre import busy_rows, write_csv


class OneTooMany(InMemoryBackend):
    """Grants one slot more than the limit."""

    async def set_limit(self, queue_id: str, limit: int | None) -> None:
        await super().set_limit(queue_id, None if limit is None else limit + 1)


class Unfair(InMemoryBackend):
    """Delays every tenth call until three others have entered, or until the queue is empty."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.delayed: list[tuple[int, asyncio.Event]] = []  # until so many calls have come

    async def enter(self, request: EnterRequest) -> EnterResult:
        self.calls += 1
        if self.calls % 10 == 0:
            may_enter = asyncio.Event()
            self.delayed.append((self.calls + 3, may_enter))
            await may_enter.wait()
        result = await super().enter(request)
        self.release_delayed()
        return result

    def leave(self, ticket: Ticket, context: str = "", keep_place: float = 0.0) -> LeaveResult:
        result = super().leave(ticket, context, keep_place)
        self.release_delayed()
        return result

    def release_delayed(self) -> None:
        idle = not any(line.waiting or line.holding for line in self._lines.values())
        while self.delayed and (self.delayed[0][0] <= self.calls or idle):
            self.delayed.pop(0)[1].set()


async def replay_in_memory(path: Path, backend: InMemoryBackend | None = None) -> Replay:
    telemetry = Telemetry(registry=CollectorRegistry())
    async with Queue(backend, telemetry=telemetry) as queue:
        replay = Replay(read_day(path, 1), 600, queue)
        await replay.run([CallCentre("1", queue, replay.record)])
        return replay


async def test_judge_finds_changes_to_a_real_history(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A real run passes; the same with two tokens swapped, a lower limit or a lost event does not."""
    path = write_csv(tmp_path, *busy_rows())
    day = read_day(path, 1)
    replay = await replay_in_memory(path)
    assert report(day, replay, lease=0)

    good = replay.history
    waited = [e for e in good.events if e.kind == "granted" and e.waited > 0]
    assert len(waited) > 10, "too few calls waited"
    for first, second in itertools.pairwise(waited):
        swap = {
            first: first._replace(token=second.token),
            second: second._replace(token=first.token),
        }
        swapped = replace(good, events=[swap.get(event, event) for event in good.events])
        assert check_order(swapped), f"{first.call_id} and {second.call_id} were swapped"

    lower = [change._replace(limit=max(0, change.limit - 1)) for change in good.limits]
    assert check_limit(replace(good, limits=lower))

    left = next(event for event in good.events if event.kind == "left")
    replay.history = replace(good, events=[event for event in good.events if event != left])
    capsys.readouterr()
    assert not report(day, replay, lease=0)
    line = f"VIOLATION: {left.call_id} did not end exactly once: entering, granted, leaving"
    assert line in capsys.readouterr().out


async def test_judge_finds_a_backend_that_grants_too_many(tmp_path: Path) -> None:
    """A backend that exceeds the limit violates the limit, but not the order."""
    replay = await replay_in_memory(write_csv(tmp_path, *busy_rows()), OneTooMany())
    assert check_limit(replay.history)
    assert check_order(replay.history) == []


async def test_judge_finds_an_unfair_backend(tmp_path: Path) -> None:
    """A backend in which calls are overtaken violates the order, but not the limit."""
    replay = await replay_in_memory(write_csv(tmp_path, *busy_rows()), Unfair())
    assert check_order(replay.history)
    assert check_limit(replay.history) == []
