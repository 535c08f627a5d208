"""Processes that are killed or stopped: the next live call gets the slot within the lease."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from tests.conftest import LEASE
from tests.support.fleet import BEAT, IN_TIME, Fleet
from tests.support.waiting import wait_until
from tests.support.worker import Worker


@pytest.mark.slow
async def test_four_processes_with_fifty_waiters_each_keep_limit_and_order(fleet: Fleet) -> None:
    """At most 2 hold at any instant, grants follow the order of entering, tokens grow strictly."""
    gate = fleet.queue()
    gates = [fleet.call(gate, f"gate-{n}", 2) for n in range(2)]
    for call in gates:
        await call.held()
    workers = [await fleet.worker() for _ in range(4)]
    for number in range(50):
        for index, worker in enumerate(workers):
            worker.enter(f"{index}-{number}", limit=2, hold=0.002)

    async def all_wait() -> bool:
        return (await gate.stats("sales")).waiting == 200

    await wait_until(all_wait, "200 wait")
    entered = await fleet.order(gate)
    for call in gates:
        await call.leave()
    await wait_until(
        lambda: all(sum(e["event"] == "left" for e in w.events) == 50 for w in workers), "all left"
    )
    events = [event for worker in workers for event in worker.events]
    grants = sorted((e for e in events if e["event"] == "granted"), key=lambda e: e["token"])
    assert [e["item"] for e in grants] == entered
    tokens = [e["token"] for e in grants]
    assert tokens == sorted(set(tokens))
    edges = [(e["at"], 1) for e in grants]
    edges += [(e["at"], -1) for e in events if e["event"] == "leaving"]
    inside = most = 0
    for _, edge in sorted(edges):
        inside += edge
        most = max(most, inside)
    assert most == 2
    for worker in workers:
        await worker.close()
    await fleet.settled(2)


async def _line_of_workers(fleet: Fleet, count: int) -> list[Worker]:
    """Workers 0, 1, ...: the first holds, the others wait in this order, one call each."""
    queue = fleet.queue()
    workers = [await fleet.worker() for _ in range(count)]
    for index, worker in enumerate(workers):
        worker.enter(f"call-{index}", limit=1)
        if index:
            await fleet.waits(queue, f"call-{index}")
        else:
            await worker.event("granted")
    return workers


@pytest.mark.slow
@pytest.mark.parametrize(
    ("killed", "heir"),
    [((0,), 1), ((0, 1), 2), ((0, 1, 2), 3)],
    ids=["the holder", "holder and head", "holder and two heads"],
)
async def test_after_sigkill_the_next_live_waiter_holds_within_the_lease(
    fleet: Fleet, killed: tuple[int, ...], heir: int
) -> None:
    """Dead instances keep nothing for longer than lease + 1.5 s, and their waiters are passed over."""
    workers = await _line_of_workers(fleet, 5)
    at = max(workers[index].kill() for index in killed)
    granted = await workers[heir].event("granted")
    assert (granted["at"] - at) / 1e9 < IN_TIME
    assert workers[4].find("granted") is None
    for index in range(heir, 5):
        await workers[index].event("granted")
        workers[index].tell("leave", item=f"call-{index}")
        await workers[index].event("left")
        await workers[index].close()
    await fleet.settled()


@pytest.mark.slow
async def test_after_sigkill_of_the_head_a_release_grants_to_the_next_alive(fleet: Fleet) -> None:
    """The slot that the dead head got, or did not get, is the next one's within the lease."""
    workers = await _line_of_workers(fleet, 3)
    at = workers[1].kill()
    workers[0].tell("leave", item="call-0")
    granted = await workers[2].event("granted")
    assert (granted["at"] - at) / 1e9 < IN_TIME
    workers[2].tell("leave", item="call-2")
    await workers[2].event("left")
    await fleet.settled()


@pytest.mark.slow
async def test_a_newcomer_takes_the_slot_of_a_dead_instance(fleet: Fleet) -> None:
    """Nobody waits when the holder dies; a newcomer still holds within the lease."""
    (worker,) = await _line_of_workers(fleet, 1)
    at = worker.kill()
    call = fleet.call(fleet.queue(), "newcomer")
    await call.held()
    assert (time.monotonic_ns() - at) / 1e9 < IN_TIME
    await call.leave()
    await fleet.settled()


@pytest.mark.slow
async def test_inspection_shows_nobody_a_lease_after_the_only_instance_died(fleet: Fleet) -> None:
    """stats and entries are empty, although no other instance has a call in the queue."""
    other = fleet.queue()
    (worker,) = await _line_of_workers(fleet, 1)
    assert (await other.stats("sales")).in_use == 1
    worker.kill()

    async def nobody() -> bool:
        return (await other.stats("sales"))[:2] == (0, 0) and not await other.entries("sales")

    await wait_until(nobody, "nobody is shown any more", IN_TIME)


@pytest.mark.slow
async def test_a_stopped_holder_loses_its_slot_and_its_waiters_keep_their_places(fleet: Fleet) -> None:
    """SIGSTOP for longer than the lease: the slot passes on; afterwards the loss is detected."""
    here = fleet.queue()
    worker = await fleet.worker()
    worker.enter("there-1", limit=1)
    await worker.event("granted", "there-1")
    worker.enter("there-2", limit=1)
    await fleet.waits(here, "there-2")
    calls = await fleet.waiting(here, "here-1", "here-2")
    worker.stop()
    assert await calls[0].held() < IN_TIME
    assert await fleet.order(here) == ["here-2"]
    worker.carry_on()
    assert await worker.lost("there-1")

    async def back() -> bool:
        return await fleet.order(here) == ["there-2", "here-2"]

    await wait_until(back, "the waiter of the stopped process stands where it stood", BEAT + 1)
    await calls[0].leave()
    granted = await worker.event("granted", "there-2")
    assert granted["token"] > calls[0].token
    assert not calls[1].holds
    for item in ("there-1", "there-2"):
        worker.tell("leave", item=item)
        await worker.event("left", item)
    await calls[1].held()
    await calls[1].leave()
    await worker.close()
    await fleet.settled()


@pytest.mark.slow
async def test_a_stopped_waiter_does_not_believe_a_grant_that_was_taken_back(fleet: Fleet) -> None:
    """Granted while stopped, reaped while stopped: it must not hold; it keeps waiting in its place."""
    here = fleet.queue()
    first = fleet.call(here, "here-1")
    await first.held()
    worker = await fleet.worker()
    worker.enter("there", limit=1)
    await fleet.waits(here, "there")
    second, third = await fleet.waiting(here, "here-2", "here-3")
    worker.stop()
    await first.leave()  # grants to the stopped one
    assert await fleet.holders(here) == ["there"]
    await second.held(IN_TIME)
    worker.carry_on()

    def answered() -> Any:
        return worker.find("failed") or worker.find("granted")

    async def decided() -> bool:
        return bool(answered()) or await fleet.order(here) == ["there", "here-3"]

    await wait_until(decided, "the stopped one knows what became of it")
    assert worker.find("granted") is None
    assert worker.find("failed") is None
    await second.leave()
    await worker.event("granted")
    worker.tell("leave", item="there")
    await third.held()
    await third.leave()
    await worker.close()
    await fleet.settled()


@pytest.mark.slow
async def test_a_pause_shorter_than_the_lease_costs_nothing(fleet: Fleet) -> None:
    """SIGSTOP for half the lease: nothing is lost, and a grant during the stop is valid."""
    here = fleet.queue()
    first = fleet.call(here, "here-1")
    await first.held()
    worker = await fleet.worker()
    worker.enter("there", limit=1)
    await fleet.waits(here, "there")
    worker.stop()
    await first.leave()
    await asyncio.sleep(LEASE / 2)  # the pause is the subject
    worker.carry_on()
    await worker.event("granted", timeout=1.0)
    assert not await worker.lost("there")
    worker.tell("leave", item="there")
    await worker.event("left")
    await worker.close()
    await fleet.settled()
