"""Interleavings by seed: thousands of orders of the same few events, each checked step by step.

`tests/schedules` is the explorer; what is here is a budget for it in every run, and the proof that it
finds what it is for. A seed that fails says how to see its steps again, one by one.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator

import pytest

from tests.schedules import planted
from tests.schedules.choices import Path, Seeded, every_path
from tests.schedules.explore import (
    Found,
    Report,
    explore_memory,
    explore_shared,
    memory_schedule,
    open_server,
    shared_schedule,
    walk_memory,
)
from tests.schedules.loop import Order
from tests.schedules.scenario import SMALL, TINY, CallPlan, Scenario
from tests.schedules.shared import SOON, SharedSchedule
from tests.schedules.sinks import Sinks
from tests.schedules.wire import Server

SECONDS = float(os.environ.get("GENESIS_SCHEDULE_SECONDS", "1.25"))  # for each kind, order and layer
ENDINGS = {"cancelled", "evicted", "failed", "mismatch", "released", "timeout", "unavailable"}

Plant = Callable[[pytest.MonkeyPatch], None]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with open_server() as server:
        yield server


def told(report: Report) -> Report:
    print(f"\n{report}")
    return report


@pytest.mark.parametrize("observed", [False, True], ids=["bare", "observed"])
@pytest.mark.parametrize("order", ["fifo", "any"])
def test_every_schedule_in_memory_keeps_the_promises(order: Order, observed: bool) -> None:
    """Limit, order, hand-off, tokens and endings hold at each step, in whatever order things come."""
    seeds = itertools.count()
    report = told(explore_memory(seeds, order=order, observed=observed, seconds=SECONDS))
    assert report.schedules == 1 or len(report.orders) > report.schedules / 2


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("order", ["fifo", "any"])
def test_every_order_of_a_tiny_scenario_keeps_the_promises(name: str, order: Order) -> None:
    """All orders of one race are walked, not a sample of them."""
    report = told(walk_memory(TINY[name], name=name, order=order))
    assert report.complete
    assert len(report.histories) > 1


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_every_order_of_a_small_scenario_keeps_the_promises(name: str) -> None:
    """The same of races among three: thousands of orders each."""
    report = told(walk_memory(SMALL[name], name=name))
    assert report.complete


@pytest.mark.parametrize("observed", [False, True], ids=["bare", "observed"])
@pytest.mark.parametrize("order", ["fifo", "any"])
def test_every_schedule_over_redis_keeps_the_promises(
    server: Server, order: Order, observed: bool
) -> None:
    """Each change in Redis is right, belief and truth agree at rest, and nothing is left behind."""
    seeds = itertools.count()
    report = told(explore_shared(server, seeds, order=order, observed=observed, seconds=SECONDS))
    assert len(report.orders) > report.schedules / 2


def test_the_seeds_reach_every_ending_and_every_fault(server: Server) -> None:
    """Guards the explorer: a promise that no seed puts to the test is not shown by them."""
    assert set(explore_memory(range(600)).counts) >= ENDINGS
    counts = explore_shared(server, range(250)).counts
    assert set(counts) >= ENDINGS | {"killed", "cut", "refuse", "flush", "scripts", "pause", "kill"}
    assert {"commands arrived late", "leases lapsed", "evicted holders and waiters"} <= set(counts)


def test_the_same_seed_is_the_same_schedule(server: Server) -> None:
    """A failure can be replayed: nothing but the seed decides, not even Redis' clock."""
    for seed in range(40):
        runs = [memory_schedule(seed, Sinks(), "any", observed) for observed in (False, False, True)]
        for run in runs:
            run.run()
        assert runs[0].steps == runs[1].steps == runs[2].steps
        assert runs[0].history == runs[1].history == runs[2].history
    for seed in range(40):
        pair = [shared_schedule(seed, server, Sinks(), "any", False) for _ in range(2)]
        for one in pair:
            one.run()
        assert list(map(str, pair[0].steps)) == list(map(str, pair[1].steps))
        assert pair[0].history == pair[1].history


def test_a_grant_told_before_a_loss_of_data_is_not_believed_after_it(server: Server) -> None:
    """The message may still be on its way while its waiter registers again; then Redis' word counts."""
    plans = (CallPlan("q", "holder", 1, instance=1), CallPlan("q", "waiter", 1, instance=0))
    schedule = SharedSchedule(Scenario(plans, instances=2), Seeded(0), server, Sinks())
    holder, waiter = schedule.calls
    with schedule.open():
        schedule.warm_up()
        schedule.start(None)
        schedule.calm()
        schedule.start(None)
        schedule.calm()
        (ears,) = (p for p in schedule.network.pipes if p.channels == [b"s:wake:A"])
        ears.stalled = True
        schedule.release(holder)
        schedule.calm()
        schedule.lose_data()
        schedule.beat()  # the waiter registers again, as one who waits
        ears.stalled = False
        schedule.calm()
        schedule.finish()
    assert waiter.ending == "released"


def test_a_grant_told_before_its_waiter_was_reaped_is_not_believed_after_it(server: Server) -> None:
    """An instance stood still and was reaped; the message about the slot it lost comes only after it
    has registered its waiter again."""
    plans = (
        CallPlan("q", "holder", 1, instance=1),
        CallPlan("q", "waiter", 1, instance=0),
        CallPlan("q", "newcomer", 1, instance=1),
    )
    schedule = SharedSchedule(
        Scenario(plans, instances=2, faults=("pause",)), Seeded(0), server, Sinks()
    )
    holder, waiter, newcomer = schedule.calls
    stopped = schedule.instances[0]
    with schedule.open():
        schedule.warm_up()
        schedule.start(None)
        schedule.calm()
        schedule.start(None)
        schedule.calm()
        (ears,) = (p for p in schedule.network.pipes if p.channels == [b"s:wake:A"])
        ears.stalled = True
        schedule.pause(stopped)
        schedule.release(holder)
        schedule.calm()
        schedule.lapse(stopped)
        schedule.start(None)
        schedule.calm()
        assert newcomer.inside
        schedule.resume(stopped)
        schedule.calm()  # its heartbeat was due
        ears.stalled = False
        schedule.calm()
        assert not waiter.inside
        schedule.finish()
    assert waiter.ending == "released"


def test_a_grant_told_before_the_instance_listened_is_found_at_once(server: Server) -> None:
    """A new instance's first call is granted while its enter is under way; nobody hears of it."""
    plans = (CallPlan("q", "holder", 1), CallPlan("q", "waiter", 1, instance=1))
    schedule = SharedSchedule(Scenario(plans, instances=2), Seeded(0), server, Sinks())
    holder, waiter = schedule.calls
    with schedule.open():
        schedule.start(None)
        schedule.calm()
        schedule.start(None)
        schedule.run_on(schedule.instances[1].loop)
        link, ears = (pipe for pipe in schedule.network.pipes if pipe.owner == 1)
        ears.held = link.stalled = True
        schedule.calm()  # both are connected; the scripts are loaded
        while link.incoming:
            link.deliver()
        schedule.calm()  # the enter has been carried out, its answer is under way
        schedule.release(holder)
        schedule.calm()
        ears.held = False
        schedule.calm()  # it listens from here on
        link.stalled = False
        schedule.calm()
        schedule.pass_time(SOON)
        assert waiter.inside
        schedule.finish()


@pytest.mark.parametrize("bug", planted.MEMORY, ids=lambda bug: bug.__name__)
def test_a_bug_planted_in_the_memory_backend_is_found(
    bug: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of these needs a race to show, and the seeds contain it."""
    bug(monkeypatch)
    with pytest.raises(Found, match=r"python -m tests\.schedules --kind memory --seed \d+"):
        explore_memory(range(5_000))


@pytest.mark.parametrize(("bug", "fault"), planted.REDIS, ids=lambda bug: getattr(bug, "__name__", ""))
def test_a_bug_planted_in_the_redis_backend_is_found(
    server: Server, bug: Plant, fault: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of these needs a race to show, most of them also a fault, and the seeds contain them."""
    bug(monkeypatch)
    with pytest.raises(Found, match=r"python -m tests\.schedules --kind redis --seed \d+"):
        explore_shared(
            server,
            range(5_000),
            only=lambda scenario: fault in scenario.faults if fault else not scenario.faults,
        )


def test_an_enumeration_walks_each_path_once() -> None:
    """Three decisions, of which the last depends on the first: five paths."""

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
