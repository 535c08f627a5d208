"""Hash slots of a Cluster that move: whole, in part, and under load."""

from __future__ import annotations

import asyncio
import itertools
import random
import shutil
import time

import pytest

from genesis import Queue
from tests.conftest import assert_nothing_kept
from tests.support.instances import (
    LEASE,
    Instances,
    held_until,
    numbers_are,
    one_holds_one_waits,
    queue_on,
)
from tests.support.load import Load
from tests.support.redis_server import RedisServer
from tests.support.tcp_proxy import TcpProxy
from tests.support.topology import Cluster, slot_of
from tests.support.waiting import wait_until


async def test_a_slot_that_moves_under_load_loses_no_call_and_no_place(
    redis_cluster: Cluster, instances: Instances
) -> None:
    """The queue's slot moves around all masters twice: order, limit and every call are kept."""
    load = Load([instances.make(client=redis_cluster.client()) for _ in range(3)], ["sales"])
    await load.served(100, "calls come and go")
    slot, gaps = slot_of("sales"), []
    home = redis_cluster.owner(slot)
    others = [server for server in redis_cluster.servers if server is not home]
    for target in (*others, home, *others, home):
        began = time.monotonic()
        await asyncio.to_thread(redis_cluster.move, slot, target)
        await load.served(50, "calls come and go on the new node")
        gaps.append(load.longest_gap(began))
    await load.stop()
    print(f"6 moves: nobody was let in for {min(gaps):.3f} to {max(gaps):.3f} s")
    assert (load.failed, load.lost, load.inversions, load.excesses) == ([], 0, 0, [])
    for queue in instances.queues:
        await assert_nothing_kept(queue)


async def test_no_script_runs_half_way_while_its_slot_migrates(
    redis_cluster: Cluster, instances: Instances
) -> None:
    """All keys that a script names are there, one that it would touch is not: it is refused."""
    source, target = redis_cluster.servers[1:]
    name = queue_on(redis_cluster, source)
    slot = slot_of(name)
    queue, other = (instances.make(client=redis_cluster.client(), lease=30.0) for _ in range(2))
    holder, leaver, waiter = await one_holds_one_waits(queue, other, name)
    redis_cluster.begin_move(slot, source, target)
    before = redis_cluster.books(source, name)
    holder.set()
    await asyncio.wait_for(leaver, 5)  # what it gives back is owed
    await wait_until(lambda: instances.disruptions("slot_moving"), "the script was refused")
    assert redis_cluster.books(source, name) == before
    assert instances.disruptions("refused") == 0
    while redis_cluster.move_keys(slot, source, target):
        pass
    redis_cluster.end_move(slot, target)
    ended = time.monotonic()
    took = await asyncio.wait_for(waiter, 5) - ended
    print(f"the waiter is in {took:.3f} s after the slot has arrived")
    for each in instances.queues:
        await assert_nothing_kept(each)
    await asyncio.to_thread(redis_cluster.move, slot, source)


async def test_a_close_after_the_connection_to_a_node_broke_gives_back_what_it_has(
    redis_cluster: Cluster, instances: Instances
) -> None:
    """Another node is connected, so a reconnect is worthwhile: the next waiter is granted at once."""
    server = redis_cluster.servers[1]
    name = queue_on(redis_cluster, server)
    queue, other = (instances.make(client=redis_cluster.client()) for _ in range(2))
    await queue.stats(queue_on(redis_cluster, redis_cluster.servers[0]))
    go, holder, waiter = await one_holds_one_waits(queue, other, name)
    server.client.client_kill_filter(_type="pubsub")
    await queue.close()
    await asyncio.wait_for(waiter, LEASE / 3)
    go.set()
    await holder


@pytest.mark.parametrize("arrived", [True, False], ids=["moved", "moving"])
async def test_a_close_during_a_move_gives_everything_back(
    redis_cluster: Cluster, instances: Instances, arrived: bool
) -> None:
    """Its `leave` is the first to be rejected: a sync at the new node repeats its effect."""
    source, target = redis_cluster.servers[1:]
    name = queue_on(redis_cluster, source)
    slot = slot_of(name)
    queue, other = (instances.make(client=redis_cluster.client(), lease=30.0) for _ in range(2))
    go, holder, waiter = await one_holds_one_waits(queue, other, name)
    redis_cluster.begin_move(slot, source, target)
    redis_cluster.move_keys(slot, source, target, most=1000 if arrived else 2)
    if arrived:
        redis_cluster.end_move(slot, target)
    closing = asyncio.create_task(queue.close())
    if not arrived:
        await wait_until(lambda: instances.disruptions("slot_moving"), "the leave was refused")
        assert not closing.done()
        while redis_cluster.move_keys(slot, source, target):
            pass
        redis_cluster.end_move(slot, target)
    await asyncio.wait_for(closing, 5)
    await asyncio.wait_for(waiter, 2)
    go.set()
    await holder
    await asyncio.to_thread(redis_cluster.move, slot, source)


@pytest.mark.parametrize("how", ["cut", "overdue"])
async def test_commands_that_arrive_after_their_slot_has_moved_change_nothing(
    redis_cluster: Cluster, instances: Instances, how: str
) -> None:
    """The node stops answering, and the slot moves: the calls go on, in order, where the slot is.
    What had been sent to the old node arrives after the slot has come back."""
    source, target = redis_cluster.servers[1:]
    name = queue_on(redis_cluster, source)
    slot = slot_of(name)
    async with TcpProxy(source.port) as proxy:

        def remap(address: tuple[str, int]) -> tuple[str, int]:
            return (address[0], proxy.port) if address[1] == source.port else address

        queue = instances.make(client=redis_cluster.client(address_remap=remap))
        other = instances.make(client=redis_cluster.client())
        go = asyncio.Event()
        holder = asyncio.create_task(held_until(other, name, go))
        await wait_until(lambda: numbers_are(other, name, 0, 1), "the holder holds")
        await queue.stats(name)
        relay = proxy.subscriber
        relay.hold()
        served: list[str] = []
        calls = [asyncio.create_task(_served(queue, name, served, "first"))]
        await wait_until(lambda: relay.held_chunks, "the first is on its way")
        cancelled = asyncio.create_task(_served(queue, name, served, "cancelled"))
        await wait_until(lambda: b"cancelled" in relay.received, "the second, too")
        cancelled.cancel()
        await asyncio.gather(cancelled, return_exceptions=True)
        calls.append(asyncio.create_task(_served(queue, name, served, "last")))
        await asyncio.to_thread(redis_cluster.move, slot, target)
        if how == "cut":
            relay.cut()
        await wait_until(lambda: numbers_are(other, name, 2, 1), "both calls wait", LEASE / 2)
        go.set()
        await asyncio.gather(holder, *calls)
        assert served == ["first", "last"]
        await wait_until(lambda: numbers_are(other, name, 0, 0), "nobody is there")
        await asyncio.to_thread(redis_cluster.move, slot, source)
        await relay.arrive_late()
        assert await numbers_are(other, name, 0, 0)
        await assert_nothing_kept(queue)
        await queue.close()


async def _served(queue: Queue, name: str, served: list[str], item_id: str) -> None:
    async with queue.slot(name, item_id=item_id, max_concurrent=1):
        served.append(item_id)


async def test_calls_cancelled_while_their_slot_moves_leave_nothing(
    redis_cluster: Cluster, instances: Instances
) -> None:
    """Whether a command was held, in flight or had its reply when its task was cancelled."""
    made = [instances.make(client=redis_cluster.client()) for _ in range(2)]
    slot, served = slot_of("sales"), 0
    rng = random.Random(7)

    async def call(number: int) -> None:
        nonlocal served
        async with made[number % 2].slot("sales", item_id=f"call-{number}", max_concurrent=2):
            await asyncio.sleep(rng.uniform(0.0, 0.004))  # in which state it is moved is the subject
        served += 1

    tasks: list[asyncio.Task[None]] = []
    targets = itertools.cycle(redis_cluster.servers)
    for round_number in range(12):
        source = redis_cluster.owner(slot)
        target = next(server for server in targets if server is not source)
        tasks += [asyncio.create_task(call(100 * round_number + n)) for n in range(40)]
        redis_cluster.begin_move(slot, source, target)
        for task in rng.sample(tasks[-40:], 20):
            asyncio.get_running_loop().call_later(rng.uniform(0.0, 0.15), task.cancel)
        await asyncio.sleep(rng.uniform(0.0, 0.1))  # what is on its way then is the subject
        await asyncio.to_thread(_move_one_by_one, redis_cluster, slot, source, target)
        redis_cluster.end_move(slot, target)
    ends = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 60)
    cancelled = sum(isinstance(end, asyncio.CancelledError) for end in ends)
    print(f"{served} served, {cancelled} cancelled")
    assert served + cancelled == 480
    assert cancelled > 50
    for queue in made:
        await assert_nothing_kept(queue)
    assert (await made[0].stats("sales"))[:2] == (0, 0)


def _move_one_by_one(cluster: Cluster, slot: int, source: RedisServer, target: RedisServer) -> None:
    while cluster.move_keys(slot, source, target, most=1):
        pass


async def test_a_queue_pauses_while_its_slot_moves_and_its_neighbours_continue(
    redis_cluster: Cluster, instances: Instances
) -> None:
    """Half of the keys on each node: no script runs, not even partly; other slots are served."""
    source, target = redis_cluster.servers[:2]
    moving, staying = queue_on(redis_cluster, source), queue_on(redis_cluster, source, 1)
    slot = slot_of(moving)
    patient = {"lease": 60.0, "operation_timeout": 30.0}
    made = [instances.make(client=redis_cluster.client(), **patient) for _ in range(2)]
    neighbours = Load(made, [staying])
    load = Load(made, [moving])
    await load.served(100, "calls come and go")
    redis_cluster.begin_move(slot, source, target)
    redis_cluster.move_keys(slot, source, target, most=2)
    await wait_until(lambda: instances.disruptions("slot_moving"), "an instance knows")
    halted = load.done
    await neighbours.served(100, "the neighbours are served")
    state = [redis_cluster.books(server, moving) for server in (source, target)]
    # All that held when it began have left by now, as far as it knows; no call was let in.
    assert load.done - halted <= 2
    assert load.since(time.monotonic() - 0.1) == 0
    await neighbours.served(100, "they still are")
    assert [redis_cluster.books(server, moving) for server in (source, target)] == state
    while redis_cluster.move_keys(slot, source, target):
        pass
    ended = time.monotonic()
    redis_cluster.end_move(slot, target)
    await load.served(1, "calls come and go on the new node")
    print(f"goes on {time.monotonic() - ended:.3f} s after the slot has arrived")
    await load.served(100, "they still do")
    await load.stop()
    await neighbours.stop()
    for each in (load, neighbours):
        assert (each.failed, each.lost, each.inversions, each.excesses) == ([], 0, 0, [])
    await asyncio.to_thread(redis_cluster.move, slot, source)


@pytest.mark.slow
async def test_redis_clis_reshard_under_load_loses_no_call_and_no_place(
    own_cluster: Cluster, instances: Instances
) -> None:
    """The operator's own tool moves 150 slots, with twelve queues in use among them."""
    if shutil.which("redis-cli") is None:
        pytest.skip("there is no redis-cli")
    first, second = own_cluster.servers[:2]
    names = [name for n in range(20_000) if slot_of(name := f"queue-{n}") < 150][:12]
    made = [instances.make(client=own_cluster.client()) for _ in range(3)]
    load = Load(made, names, callers=2)
    await load.served(200, "calls come and go")
    began = time.monotonic()
    await asyncio.to_thread(own_cluster.reshard, first, second, 150)
    took = time.monotonic() - began
    assert all(own_cluster.owner(slot_of(name)) is second for name in names)
    await load.served(500, "calls come and go on the new node")
    await load.stop()
    print(
        f"150 slots with 12 queues in {took:.1f} s: "
        f"nobody was let in for {load.longest_gap(began):.3f} s"
    )
    assert (load.failed, load.lost, load.inversions, load.excesses) == ([], 0, 0, [])
    for queue in instances.queues:
        await assert_nothing_kept(queue)
