"""Sentinel and Cluster: a line outlives its master, and its hash slot's move to another node.

Themes: what may be given; Sentinel; routing in a Cluster; slots that move; masters that die.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import shutil
import socket
import time
from collections.abc import AsyncIterator, Iterator
from functools import partial
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from redis.asyncio import RedisCluster
from redis.asyncio.sentinel import Sentinel

from genesis import Queue
from genesis.exceptions import BackendUnavailableError
from genesis.observability import Telemetry
from genesis.queue import RedisBackend
from tests.conftest import assert_nothing_kept
from tests.load import Load
from tests.redis_server import RedisServer
from tests.tcp_proxy import TcpProxy
from tests.topology import Cluster, SentinelTrio, in_step, slot_of
from tests.waiting import wait_until

LEASE = 6.0
PATIENCE = 6.0


class Instances:
    """Queues of one test, closed at its end."""

    def __init__(self) -> None:
        self.queues: list[Queue] = []
        self.registry = CollectorRegistry()

    def make(self, **options: Any) -> Queue:
        backend = RedisBackend(**{"lease": LEASE, "operation_timeout": PATIENCE, **options})
        queue = Queue(backend, telemetry=Telemetry(registry=self.registry))
        self.queues.append(queue)
        return queue

    def disruptions(self, reason: str) -> float:
        name, labels = "genesis_backend_disruptions_total", {"backend": "redis", "reason": reason}
        return self.registry.get_sample_value(name, labels) or 0.0


@pytest.fixture
async def instances() -> AsyncIterator[Instances]:
    made = Instances()
    yield made
    for queue in made.queues:
        await asyncio.wait_for(queue.close(), 20)


@pytest.fixture
def trio() -> Iterator[SentinelTrio]:
    trio = SentinelTrio()
    yield trio
    trio.close()


# Sentinel


@pytest.mark.slow
@pytest.mark.parametrize("how", ["killed", "replaced"])
async def test_a_sentinel_failover_under_load_loses_no_call(
    trio: SentinelTrio, instances: Instances, how: str
) -> None:
    """The master is killed, or replaced while it lives: every call is served, none is stuck."""
    load = Load([instances.make(client=trio.client()) for _ in range(3)], ["sales", "support"])
    await load.served(300, "calls come and go")
    old = trio.master
    assert load.excesses == []
    began = time.monotonic()
    if how == "killed":
        old.kill()
    else:
        trio.fail_over()
    await wait_until(lambda: asyncio.to_thread(lambda: trio.master is not old), "a failover", 30)
    named = time.monotonic() - began
    await load.served(300, "calls come and go on the new master", 30)
    new = trio.master
    assert new is not old
    await load.served(300, "they still do")
    gap = load.longest_gap(began)
    for queue in instances.queues:
        assert await _is_at(queue, new.port)
    await load.stop()
    windows = [excess.ended - began for excess in load.excesses]
    print(
        f"{how}: Sentinel named the new master after {named:.2f} s; nobody was let in for {gap:.2f} s; "
        f"{load.done} served, {len(load.failed)} failed, {load.lost} lost, "
        f"{len(load.excesses)} times over the limit, the last until {max(windows, default=0):.2f} s, "
        f"at most {max((e.most for e in load.excesses), default=2)} inside"
    )
    assert (load.failed, load.lost) == ([], 0)
    assert all(end < named + LEASE / 3 + 1.5 for end in windows)
    for queue in instances.queues:
        await assert_nothing_kept(queue)


async def _is_at(queue: Queue, port: int) -> bool:
    backend: Any = queue._backend
    return bool(backend._inner._session.link.connection.port == port)


@pytest.mark.slow
async def test_a_sentinel_that_does_not_answer_keeps_nobody_from_the_master(
    trio: SentinelTrio, instances: Instances
) -> None:
    """The first Sentinel in the client's list is a host that swallows connections."""
    with socket.socket() as hole:
        hole.bind(("127.0.0.1", 0))
        hole.listen(0)
        client = trio.client(hole.getsockname(), socket_timeout=60, socket_connect_timeout=60)
        queue = instances.make(client=client, operation_timeout=2.0)
        began = time.monotonic()
        async with queue.slot("sales", max_concurrent=1, timeout=5):
            took = time.monotonic() - began
        print(f"a slot after {took:.2f} s")
        assert took < 2.0
        await queue.close()


@pytest.mark.slow
async def test_a_stale_replica_that_takes_over_strands_nobody(
    own_redis: RedisServer, instances: Instances
) -> None:
    """It lacks the last 200 calls: who holds and who waits registers again, and all is well."""
    async with TcpProxy(own_redis.port) as line, TcpProxy(own_redis.port) as replication:
        replica = RedisServer("--replicaof", f"127.0.0.1 {replication.port}")
        try:
            await wait_until(partial(in_step, replica), "in step")
            load = Load([instances.make(url=line.url) for _ in range(3)], ["sales", "support"])
            await load.served(200, "calls come and go")
            replication.relays[-1].deaf = True  # what the master passes on is lost
            await load.served(200, "they still do, and the replica does not hear of it")
            own_redis.kill()
            replica.client.replicaof("NO", "ONE")
            line.target = replica.port
            began = time.monotonic()
            line.cut()
            await load.served(300, "calls come and go on the replica")
            await load.stop()
            windows = [excess.ended - began for excess in load.excesses]
            most = max((excess.most for excess in load.excesses), default=2)
            print(
                f"stale by 200 calls: nobody was let in for {load.longest_gap(began):.2f} s; "
                f"{load.done} served, {len(load.failed)} failed, {load.lost} lost, {len(windows)} "
                f"times over the limit, until {max(windows, default=0):.2f} s, at most {most} inside"
            )
            assert (load.failed, load.lost) == ([], 0)
            assert all(0 <= end < LEASE / 3 + 1.5 for end in windows)
            for queue in instances.queues:
                await assert_nothing_kept(queue)
            assert (await instances.queues[0].stats("sales"))[:2] == (0, 0)
        finally:
            for queue in instances.queues:
                await queue.close()
            replica.close()


def test_a_client_that_leads_to_a_replica_is_refused() -> None:
    """`slave_for` instead of `master_for` would be refused by Redis at the first write."""
    make: Any = Sentinel
    sentinel = make([("127.0.0.1", 1)])
    with pytest.raises(ValueError, match="master_for"):
        RedisBackend(client=sentinel.slave_for("callcentre"))


# Routing in a Cluster


def queue_on(cluster: Cluster, server: RedisServer, number: int = 0) -> str:
    """A queue_id that `server` serves; another for each number."""
    names = (f"queue-{n}" for n in itertools.count())
    served = (name for name in names if cluster.owner(slot_of(name)) is server)
    return next(itertools.islice(served, number, None))


async def test_queues_are_spread_over_all_masters_with_one_connection_to_each(
    redis_cluster: Cluster, instances: Instances
) -> None:
    """30 queues: each keeps limit and order; an instance has a connection a master, and one more."""
    before = [server.connections() for server in redis_cluster.servers]
    made = [instances.make(client=redis_cluster.client()) for _ in range(2)]
    names = [f"queue-{number}" for number in range(30)]
    load = Load(made, names, limit=1)
    await load.served(600, "calls come and go")
    connections = [
        server.connections() - others
        for server, others in zip(redis_cluster.servers, before, strict=True)
    ]
    keys = [len(server.client.keys("*")) for server in redis_cluster.servers]
    await load.stop()
    print(f"connections a master {connections}, keys a master {keys}")
    assert (load.failed, load.lost, load.inversions, load.excesses) == ([], 0, 0, [])
    assert all(keys)
    assert sum(connections) <= len(made) * (3 + 1)


async def test_the_order_of_entering_is_kept_by_every_queue(
    redis_cluster: Cluster, instances: Instances
) -> None:
    """Calls that enter queues of all masters in one turn of the loop stand in each in their order."""
    queue = instances.make(client=redis_cluster.client())
    names = [queue_on(redis_cluster, server) for server in redis_cluster.servers]
    entered: dict[str, list[str]] = {name: [] for name in names}

    async def call(name: str, item: str) -> None:
        async with queue.slot(name, item_id=item, max_concurrent=1):
            entered[name].append(item)

    await asyncio.gather(*(call(name, f"{n:03}") for n in range(100) for name in names))
    assert all(items == sorted(items) and len(items) == 100 for items in entered.values())


async def test_a_node_of_a_cluster_given_as_a_url_says_what_to_give_instead(
    redis_cluster: Cluster, instances: Instances
) -> None:
    """A queue that is served elsewhere is refused with the way out in the text."""
    name = queue_on(redis_cluster, redis_cluster.servers[1])
    queue = instances.make(url=redis_cluster.servers[0].url)
    with pytest.raises(BackendUnavailableError, match="RedisCluster"):
        await queue.stats(name)


async def test_a_server_that_is_no_cluster_says_so(
    redis_server: RedisServer, instances: Instances
) -> None:
    """A RedisCluster client for a single server: the error names the cause, in bounded time."""
    client = RedisCluster(host="127.0.0.1", port=redis_server.port)
    queue = instances.make(client=client, operation_timeout=0.5)
    with pytest.raises(BackendUnavailableError, match="cluster support disabled"):
        await queue.stats("sales")


# Slots that move


async def test_a_slot_that_moves_under_load_loses_no_call_and_no_place(
    redis_cluster: Cluster, instances: Instances
) -> None:
    """The queue's slot goes around all masters twice: order, limit and every call are kept."""
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
    holder, leaver, waiter = await _one_holds_one_waits(queue, other, name)
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


async def test_a_leave_that_waits_while_the_connection_of_its_enter_breaks_is_remembered(
    redis_cluster: Cluster, instances: Instances
) -> None:
    """It was held back, not said on that connection; but the enter was, and may come after it."""
    server = redis_cluster.servers[1]
    name = queue_on(redis_cluster, server)
    queue, other = (instances.make(client=redis_cluster.client()) for _ in range(2))
    await queue.stats(name)
    link: Any = queue._backend._inner._session.link  # type: ignore[attr-defined]
    node = next(node for address, node in link._nodes.items() if address[1] == server.port)
    server.pause()
    try:
        call = asyncio.ensure_future(_held_at(queue, name))
        await wait_until(node.link.unanswered, "the enter is on its way")
        link._hold(slot_of(name), node, "its hash slot may have moved")
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        node.link.leave(ConnectionError("cut by the test"))
        await wait_until(lambda: not node.link.up, "the connection is given up")
    finally:
        server.resume()

    async def over() -> bool:
        left = server.client.keys(f"genesis:queue:{{{name}}}:left:*")
        return len(left) == 1 and await _stands(other, name, 0, 0)

    await wait_until(over, "nobody is there, and the ticket is remembered as left")
    await assert_nothing_kept(queue)


async def test_a_close_while_a_node_is_not_connected_gives_back_what_it_has(
    redis_cluster: Cluster, instances: Instances, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The node is tried again first: the next waiter need not wait for the lease."""
    server = redis_cluster.servers[1]
    name = queue_on(redis_cluster, server)
    queue, other = (instances.make(client=redis_cluster.client()) for _ in range(2))
    go, holder, waiter = await _one_holds_one_waits(queue, other, name)
    link: Any = queue._backend._inner._session.link  # type: ignore[attr-defined]
    node = next(node for address, node in link._nodes.items() if address[1] == server.port)
    monkeypatch.setattr("genesis.backends.redis.link.backoff", lambda _: 0.3)
    server.client.client_kill_filter(_type="normal")
    await wait_until(lambda: not node.link.up, "the connection is broken")
    await queue.close()
    await asyncio.wait_for(waiter, LEASE / 3)
    go.set()
    await holder


@pytest.mark.parametrize("arrived", [True, False], ids=["moved", "moving"])
async def test_a_close_that_is_told_of_a_move_gives_back_what_it_has(
    redis_cluster: Cluster, instances: Instances, arrived: bool
) -> None:
    """Its leave is the first to be refused: it is said again where the slot is, before the end."""
    source, target = redis_cluster.servers[1:]
    name = queue_on(redis_cluster, source)
    slot = slot_of(name)
    queue, other = (instances.make(client=redis_cluster.client(), lease=30.0) for _ in range(2))
    go, holder, waiter = await _one_holds_one_waits(queue, other, name)
    redis_cluster.begin_move(slot, source, target)
    redis_cluster.move_keys(slot, source, target, most=1000 if arrived else 2)
    if arrived:
        redis_cluster.end_move(slot, target)
    closing = asyncio.ensure_future(queue.close())
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
async def test_a_lane_outlasts_the_end_of_the_command_that_it_awaits(
    redis_cluster: Cluster, instances: Instances, how: str
) -> None:
    """A cancelled enter is the last on its way when its connection breaks: nothing overtakes the first,
    and its leave is remembered."""
    source, target = redis_cluster.servers[1:]
    name = queue_on(redis_cluster, source)
    slot = slot_of(name)
    async with TcpProxy(source.port) as proxy:

        def remap(address: tuple[str, int]) -> tuple[str, int]:
            return (address[0], proxy.port) if address[1] == source.port else address

        patience = PATIENCE if how == "cut" else 2.0
        client = redis_cluster.client(address_remap=remap)
        queue, other = (
            instances.make(client=client, operation_timeout=patience),
            instances.make(client=redis_cluster.client()),
        )
        go = asyncio.Event()
        holder = asyncio.ensure_future(_held_until(other, name, go))
        await wait_until(lambda: _stands(other, name, 0, 1), "the holder holds")
        await queue.stats(name)
        await queue.stats(queue_on(redis_cluster, target))
        link: Any = queue._backend._inner._session.link  # type: ignore[attr-defined]
        node = next(node for address, node in link._nodes.items() if address[1] == proxy.port)
        relay = next(relay for relay in reversed(proxy.relays) if relay.open and not relay.subscriber)
        relay.hold()
        served: list[str] = []
        calls = []
        if how == "cut":
            calls.append(asyncio.ensure_future(_served(queue, name, served, "first")))
            await wait_until(node.link.unanswered, "the first is on its way")
        cancelled = asyncio.ensure_future(_served(queue, name, served, "cancelled"))
        await wait_until(lambda: len(node.link.unanswered()) > len(calls), "they are on their way")
        await asyncio.to_thread(redis_cluster.move, slot, target)
        await wait_until(lambda: slot in link._lanes, "the instance knows of the move")
        cancelled.cancel()
        await asyncio.gather(cancelled, return_exceptions=True)
        if how == "cut":
            calls.append(asyncio.ensure_future(_served(queue, name, served, "last")))
            await wait_until(lambda: link._lanes[slot].held, "the last is held back")
            relay.cut()
        await wait_until(lambda: _stands(other, name, len(calls), 1), "the calls wait")
        await wait_until(lambda: slot not in link._lanes, "all is said")
        go.set()
        await asyncio.gather(holder, *calls)
        assert served == ["first", "last"][: len(calls)]
        await asyncio.to_thread(redis_cluster.move, slot, source)
        await wait_until(lambda: _stands(other, name, 0, 0), "nobody is there")
        await relay.arrive_late()
        assert await _stands(other, name, 0, 0)
        await assert_nothing_kept(queue)
        await queue.close()


async def _served(queue: Queue, name: str, served: list[str], item_id: str) -> None:
    async with queue.slot(name, item_id=item_id, max_concurrent=1):
        served.append(item_id)


async def _one_holds_one_waits(
    queue: Queue, other: Queue, name: str
) -> tuple[asyncio.Event, asyncio.Task[None], asyncio.Task[float]]:
    """The holder on `queue` leaves when the event is set; the waiter on `other`, at once."""
    go = asyncio.Event()
    holder = asyncio.ensure_future(_held_until(queue, name, go))
    await wait_until(lambda: _stands(other, name, 0, 1), "the holder holds")
    waiter = asyncio.ensure_future(_held_at(other, name))
    await wait_until(lambda: _stands(other, name, 1, 1), "the waiter waits")
    return go, holder, waiter


async def _held_until(queue: Queue, name: str, until: asyncio.Event) -> None:
    async with queue.slot(name, max_concurrent=1):
        await until.wait()


async def _stands(queue: Queue, name: str, waiting: int, holding: int) -> bool:
    return (await queue.stats(name))[:2] == (waiting, holding)


async def test_calls_cancelled_while_their_slot_moves_leave_nothing(
    redis_cluster: Cluster, instances: Instances
) -> None:
    """Whether a command was held back, on its way or answered when its task was cancelled."""
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


async def test_a_queue_stands_still_while_its_slot_moves_and_its_neighbours_go_on(
    redis_cluster: Cluster, instances: Instances
) -> None:
    """Half of the keys here, half there: no script runs, none half; other slots are served."""
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
    # Whoever held when it began has left by now, as far as it knows; nobody was let in.
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


# Masters that die


@pytest.fixture
def own_cluster() -> Iterator[Cluster]:
    """A cluster of this test's own, with a replica of every master."""
    cluster = Cluster(1)
    yield cluster
    cluster.close()


@pytest.mark.slow
@pytest.mark.parametrize("how", ["killed", "stopped", "replaced"])
async def test_a_master_of_a_cluster_that_fails_over_under_load_loses_no_call(
    own_cluster: Cluster, instances: Instances, how: str
) -> None:
    """Killed, silent, or replaced on demand: its queues go on at its replica."""
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
async def test_the_subscriber_moves_when_its_node_dies(
    own_cluster: Cluster, instances: Instances
) -> None:
    """Wake-ups are heard again from another node, also those of queues whose node lives."""
    queue, other = (instances.make(client=own_cluster.client()) for _ in range(2))
    await queue.ping()
    backend: Any = queue._backend
    channel = f"genesis:queue:wake:{queue.instance_id}"
    await wait_until(lambda: own_cluster.listeners(channel), "the subscriber listens")
    (node,) = own_cluster.listeners(channel)
    alive = next(server for server in own_cluster.servers[:3] if server is not node)
    name = queue_on(own_cluster, alive)
    async with other.slot(name, max_concurrent=1):
        waiter = asyncio.ensure_future(_held_at(queue, name))
        await wait_until(lambda: _waits(other, name), "the waiter waits")
        node.kill()
        took = await wait_until(lambda: own_cluster.listeners(channel), "it listens elsewhere")
        assert node not in own_cluster.listeners(channel)
    left = time.monotonic()
    woken = await asyncio.wait_for(waiter, 5) - left
    print(f"listens elsewhere after {took:.2f} s; a waiter is woken after {woken * 1e3:.1f} ms")
    assert woken < LEASE / 3 / 2  # not by a heartbeat
    assert backend.name == "redis"


async def _held_at(queue: Queue, name: str) -> float:
    async with queue.slot(name, max_concurrent=1):
        return time.monotonic()


async def _waits(queue: Queue, name: str) -> bool:
    return (await queue.stats(name)).waiting == 1


@pytest.mark.slow
async def test_a_cluster_without_a_majority_says_so_and_serves_when_it_is_back(
    instances: Instances,
) -> None:
    """Two of three masters die: calls fail in bounded time and name the cause; then all goes on."""
    cluster = Cluster()
    try:
        queue = instances.make(client=cluster.client(), lease=60.0, operation_timeout=3.0)
        alive, *dead = cluster.servers
        name = queue_on(cluster, alive)
        async with queue.slot(name, max_concurrent=1) as held:
            waiter = asyncio.ensure_future(_held_at(queue, name))
            await wait_until(lambda: _waits(queue, name), "the waiter waits")
            for server in dead:
                server.kill()
            # It takes the one that is left a moment to see that it is alone.
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
