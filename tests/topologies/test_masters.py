"""Masters of a Cluster that die or are replaced, and slots without a master."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from redis.crc import key_slot

from genesis import Queue
from genesis.exceptions import BackendUnavailableError
from tests.conftest import assert_nothing_kept
from tests.support.instances import (
    LEASE,
    Instances,
    held_at,
    numbers_are,
    one_holds_one_waits,
    queue_on,
)
from tests.support.load import Load
from tests.support.topology import Cluster, slot_of
from tests.support.waiting import wait_until


@pytest.mark.slow
@pytest.mark.parametrize("how", ["killed", "stopped", "replaced"])
async def test_a_master_of_a_cluster_that_fails_over_under_load_loses_no_call(
    own_cluster: Cluster, instances: Instances, how: str
) -> None:
    """Killed, silent, or replaced on request: its queues continue on its replica."""
    names = [queue_on(own_cluster, server) for server in own_cluster.servers[:3]]
    made = [instances.make(client=own_cluster.client()) for _ in range(3)]
    hit, spared = Load(made, names[:1]), Load(made, names[1:])
    await hit.served(100, "calls come and go")
    await spared.served(100, "calls come and go")
    master, replica = own_cluster.servers[0], own_cluster.servers[3]
    began = time.monotonic()
    if how == "killed":
        master.kill()
    elif how == "stopped":
        master.pause()
    else:
        own_cluster.promote(replica)
    try:
        await wait_until(lambda: own_cluster.serves(replica), "the replica has taken over", 30)
        took_over = time.monotonic() - began
        await hit.served(100, "calls come and go on the replica", 30)
        gap = hit.longest_gap(began)
        await spared.served(100, "calls come and go elsewhere")
    finally:
        if how == "stopped":
            master.resume()
    for each in (hit, spared):
        await each.stop()
    windows = [excess.ended - began for excess in hit.excesses]
    print(
        f"{how}: the replica took over after {took_over:.2f} s; nobody was let in for {gap:.2f} s (on "
        f"other masters {spared.longest_gap(began):.2f} s); {hit.done} served, {len(hit.failed)} "
        f"failed, {hit.lost} lost, {len(windows)} times over the limit"
    )
    assert (hit.failed, hit.lost) == ([], 0)
    assert (spared.failed, spared.lost, spared.inversions, spared.excesses) == ([], 0, 0, [])
    assert all(end < took_over + LEASE / 3 + 1.5 for end in windows)
    if how == "replaced":  # the replica has all of it before it takes over
        assert (hit.inversions, hit.excesses) == (0, [])
    for queue in instances.queues:
        await assert_nothing_kept(queue)


@pytest.mark.slow
async def test_a_waiter_whose_master_was_replaced_is_woken_at_once(
    own_cluster: Cluster, instances: Instances
) -> None:
    """The master is killed; on its replica a leave wakes the next waiter, not a heartbeat."""
    queue, other = (instances.make(client=own_cluster.client()) for _ in range(2))
    master, replica = own_cluster.servers[0], own_cluster.servers[3]
    name = queue_on(own_cluster, master)
    go, holder, waiter = await one_holds_one_waits(queue, other, name)
    master.kill()
    await wait_until(lambda: own_cluster.serves(replica), "the replica has taken over", 30)
    back = await wait_until(lambda: _both_are_there(queue, other, name), "both are registered", 10)
    go.set()
    await holder
    left = time.monotonic()
    woken = await asyncio.wait_for(waiter, 5) - left
    print(f"served {back:.2f} s after the replica took over; woken after {woken * 1e3:.1f} ms")
    assert woken < LEASE / 3 / 2


async def _both_are_there(queue: Queue, other: Queue, name: str) -> bool:
    """Both instances have reached the new master, and it has the holder and the waiter."""
    return await numbers_are(queue, name, 1, 1) and await numbers_are(other, name, 1, 1)


@pytest.mark.slow
async def test_a_cluster_without_a_majority_is_an_error_and_serves_when_it_is_back(
    instances: Instances,
) -> None:
    """Two of three masters die: calls fail in bounded time and name the cause; then all recover."""
    cluster = Cluster()
    try:
        queue = instances.make(client=cluster.client(), lease=60.0, operation_timeout=3.0)
        alive, *dead = cluster.servers
        name = queue_on(cluster, alive)
        async with queue.slot(name, max_concurrent=1) as held:
            waiter = asyncio.create_task(held_at(queue, name))
            await wait_until(lambda: numbers_are(queue, name, 1, 1), "the waiter waits")
            for server in dead:
                server.kill()
            # It takes the remaining master a moment to detect that it is alone.
            await wait_until(lambda: _answers_not(queue, name), "the cluster is down")
            began = time.monotonic()
            with pytest.raises(BackendUnavailableError, match="cluster is down"):
                await queue.set_limit(name, 2)
            failed = time.monotonic() - began
            assert instances.disruptions("cluster_down")
            for server in dead:
                server.start()
            back = await wait_until(lambda: _answers(queue, name), "the cluster answers", 30)
            assert not held.lost
        await asyncio.wait_for(waiter, 10)
        print(f"failed after {failed:.2f} s (timeout 3 s); back {back:.2f} s after the masters are")
        assert failed < 4.0
    finally:
        cluster.close()


async def _answers_not(queue: Queue, name: str) -> bool:
    return not await _answers(queue, name)


async def _answers(queue: Queue, name: str) -> bool:
    try:
        await queue.stats(name)
    except BackendUnavailableError:
        return False
    return True


@pytest.mark.slow
async def test_a_ping_needs_every_master_in_use_and_no_other(instances: Instances) -> None:
    """Of three masters two are in use, and one of them dies: not ready until it is back."""
    cluster = Cluster()
    try:
        other = cluster.owner(key_slot(b"ping"))
        used = [server for server in cluster.servers if server is not other]
        queue = instances.make(client=cluster.client(), lease=60.0, operation_timeout=1.0)
        for server in used:
            await queue.stats(queue_on(cluster, server))
        await queue.ping()
        used[0].kill()
        for _ in range(2):
            with pytest.raises(BackendUnavailableError, match=f"out of reach.*:{used[0].port}"):
                await queue.ping()
        used[0].start()
        await wait_until(lambda: _pings(queue), "ready again")
        router: Any = queue._backend._inner._driver.router  # type: ignore[attr-defined]
        assert len(router.links()) == 2
    finally:
        cluster.close()


@pytest.mark.slow
async def test_a_ping_needs_no_master_whose_slots_have_moved(instances: Instances) -> None:
    """It is taken out of service after its slots were moved, and no call has noticed that yet."""
    cluster = Cluster()
    try:
        queue = instances.make(client=cluster.client(), lease=60.0, operation_timeout=10.0)
        removed, *_ = cluster.servers
        for server in cluster.servers:
            await queue.stats(queue_on(cluster, server))
        await asyncio.to_thread(cluster.take_all, removed, cluster.servers[1])
        await queue.ping()
        removed.kill()
        for _ in range(3):
            await queue.ping()
    finally:
        cluster.close()


async def _pings(queue: Queue) -> bool:
    try:
        await queue.ping()
    except BackendUnavailableError:
        return False
    return True


def reads(cluster: Cluster) -> int:
    """How often the map was asked for; before Redis 7.0, subcommands are not counted apart."""
    return sum(each.calls("cluster|slots") + each.calls("cluster") for each in cluster.running)


@pytest.mark.slow
async def test_a_slot_that_had_no_master_is_served_soon_after_it_has_one(instances: Instances) -> None:
    """Nobody served it, and the map of the Cluster is sound otherwise: the holder keeps its slot."""
    cluster = Cluster(0, "--cluster-require-full-coverage", "no")
    try:
        queue = instances.make(client=cluster.client(), lease=15.0)
        server = cluster.servers[1]
        name = queue_on(cluster, server)
        async with queue.slot(name, max_concurrent=1) as held:
            cluster.forget_slot(slot_of(name))
            await wait_until(lambda: instances.disruptions("cluster_down"), "it is reported")
            known = reads(cluster)
            await wait_until(lambda: reads(cluster) >= known + 2, "the map was read, without a master")
            before = server.calls("evalsha")
            cluster.add_slot(slot_of(name), server)
            # No operation is called meanwhile: the instance must detect it by itself.
            back = await wait_until(lambda: server.calls("evalsha") > before, "it is served", 2)
            assert not held.lost
        print(f"served {back:.2f} s after it had a master")
        for each in instances.queues:
            await each.close()
    finally:
        cluster.close()
