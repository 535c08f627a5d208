"""Interleavings by seed: thousands of orders of the same few events, each checked step by step.

`tests/schedules` is the explorer. These tests give it a time budget in every run, and prove that it
finds planted bugs. A failing seed prints the command that replays its steps.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable

import pytest

from tests.schedules import planted
from tests.schedules.choices import Path, every_path
from tests.schedules.explore import (
    Found,
    Report,
    explore_memory,
    memory_schedule,
    walk_memory,
)
from tests.schedules.loop import Order
from tests.schedules.scenario import SMALL, TINY
from tests.schedules.sinks import Sinks

SECONDS = float(os.environ.get("GENESIS_SCHEDULE_SECONDS", "1.25"))  # for each kind, order and layer
ENDINGS = {"cancelled", "evicted", "failed", "mismatch", "released", "timeout", "unavailable"}

Plant = Callable[[pytest.MonkeyPatch], None]


def told(report: Report) -> Report:
    print(f"\n{report}")
    return report


@pytest.mark.parametrize("observed", [False, True], ids=["bare", "observed"])
@pytest.mark.parametrize("order", ["fifo", "any"])
def test_every_schedule_in_memory_keeps_the_promises(order: Order, observed: bool) -> None:
    """Limit, order, hand-off, tokens and endings hold at each step, in any order of events."""
    seeds = itertools.count()
    report = told(explore_memory(seeds, order=order, observed=observed, seconds=SECONDS))
    assert report.schedules == 1 or len(report.orders) > report.schedules / 2


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("order", ["fifo", "any"])
def test_every_order_of_a_tiny_scenario_keeps_the_promises(name: str, order: Order) -> None:
    """All orders of one race are enumerated, not sampled."""
    report = told(walk_memory(TINY[name], name=name, order=order))
    assert report.complete
    assert len(report.histories) > 1


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_every_order_of_a_small_scenario_keeps_the_promises(name: str) -> None:
    """The same for races among three calls: thousands of orders each."""
    report = told(walk_memory(SMALL[name], name=name))
    assert report.complete


def test_the_seeds_reach_every_ending() -> None:
    """Guards the explorer: the seeds prove nothing about an ending that they never reach."""
    assert set(explore_memory(range(600)).counts) >= ENDINGS


def test_the_same_seed_is_the_same_schedule() -> None:
    """A failure can be replayed: only the seed decides."""
    for seed in range(40):
        runs = [memory_schedule(seed, Sinks(), "any", observed) for observed in (False, False, True)]
        for run in runs:
            run.run()
        assert runs[0].steps == runs[1].steps == runs[2].steps
        assert runs[0].history == runs[1].history == runs[2].history


@pytest.mark.parametrize("bug", planted.MEMORY, ids=lambda bug: bug.__name__)
def test_a_bug_planted_in_the_memory_backend_is_found(
    bug: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of these needs a race to show, and the seeds contain it."""
    bug(monkeypatch)
    with pytest.raises(Found, match=r"python -m tests\.schedules --kind memory --seed \d+"):
        explore_memory(range(5_000))


def test_an_enumeration_walks_each_path_once() -> None:
    """Three decisions, the last of which depends on the first: five paths."""

    def walk(path: Path) -> tuple[int, ...]:
        first = path.pick(2)
        return (first, path.pick(1 + first), *((path.pick(2),) if first else (path.pick(1),)))

    assert [walk(path) for path in every_path()] == [
        (0, 0, 0),
        (1, 0, 0),
        (1, 0, 1),
        (1, 1, 0),
        (1, 1, 1),
    ]
