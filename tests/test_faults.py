"""Killed, stopped and cut off: the promises on real processes, real servers and broken connections.

Themes: many processes; dead instances; stopped instances; lost data; two servers; no server; broken
connections; lost replies and late commands; cancellation; several instances; a server that refuses.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from genesis import Queue
from genesis.backends.redis.link import Link
from genesis.backends.redis.subscriber import Subscriber
from genesis.exceptions import BackendUnavailableError, EvictedError, QueueTimeoutError
from genesis.observability import Telemetry
from genesis.queue import RedisBackend
from genesis.queue.slot import Slot
from tests.conftest import LEASE, assert_nothing_kept, state_of
from tests.redis_server import RedisServer
from tests.tcp_proxy import TcpProxy
from tests.waiting import quiesce, wait_until
from tests.worker import Worker

BEAT = LEASE / 3
IN_TIME = LEASE + 1.5  # within which the next live waiter must be in
SALES = "sales"


class Call:
    """One call in this process: it enters, holds until told to leave, leaves."""

    def __init__(
        self, queue: Queue, item: str, limit: int | None, timeout: float | None, queue_id: str
    ) -> None:
        self.item = item
        self.slot: Slot | None = None
        self.token = 0
        self._go = asyncio.Event()
        request = queue.slot(queue_id, item_id=item, max_concurrent=limit, timeout=timeout)
        self.task = asyncio.create_task(self._run(request))

    @property
    def holds(self) -> bool:
        return self.slot is not None and not self.task.done()

    @property
    def lost(self) -> bool:
        return self.slot is not None and self.slot.lost

    async def held(self, timeout: float = 20.0) -> float:
        """Wait until it holds; the seconds that took."""
        return await wait_until(lambda: self._granted(), f"{self.item} holds", timeout)

    async def leave(self) -> None:
        self._go.set()
        await self.task

    async def failure(self, timeout: float = 20.0) -> BaseException:
        """Wait until it has failed; the error."""
        await wait_until(self.task.done, f"{self.item} has failed", timeout)
        error = self.task.exception()
        assert error is not None, f"{self.item} did not fail"
        return error

    async def ended(self) -> BaseException | None:
        self._go.set()
        return (await asyncio.gather(self.task, return_exceptions=True))[0]

    def _granted(self) -> bool:
        if self.task.done() and not self.task.cancelled() and (error := self.task.exception()):
            raise AssertionError(f"{self.item} failed: {error!r}") from error
        return self.slot is not None

    async def _run(self, request: Any) -> None:
        async with request as self.slot:
            assert self.slot is not None
            self.token = self.slot.fencing_token
            await self._go.wait()


async def drain(calls: list[Call]) -> None:
    """Let every call leave as soon as it holds, in whatever order that is."""

    async def step() -> bool:
        for call in calls:
            if call.holds:
                await call.leave()
        return all(call.task.done() for call in calls)

    await wait_until(step, "all calls have had their turn")


class House:
    """Instances and workers on one server, and what must be true when all is over."""

    def __init__(self, server: RedisServer, stack: AsyncExitStack) -> None:
        self.server = server
        self._stack = stack
        self.queues: list[Queue] = []
        self.registry = CollectorRegistry()

    def queue(self, url: str = "", **options: Any) -> Queue:
        backend = RedisBackend(url or self.server.url, **{"lease": LEASE, **options})
        queue = Queue(backend, telemetry=Telemetry(registry=self.registry))
        self.queues.append(queue)
        return queue

    def call(
        self,
        queue: Queue,
        item: str,
        limit: int | None = 1,
        *,
        timeout: float | None = None,
        queue_id: str = SALES,
    ) -> Call:
        return Call(queue, item, limit, timeout, queue_id)

    async def waiting(self, queue: Queue, *items: str) -> list[Call]:
        """Calls that have entered one after the other and wait, in this order."""
        calls = []
        for item in items:
            calls.append(self.call(queue, item))
            await self.waits(queue, item)
        return calls

    async def waits(self, queue: Queue, item: str) -> None:
        async def does() -> bool:
            return await queue.position(SALES, item) is not None

        await wait_until(does, f"{item} waits")

    async def worker(self) -> Worker:
        return await self._stack.enter_async_context(Worker(self.server.url, LEASE, SALES))

    async def proxy(self) -> TcpProxy:
        return await self._stack.enter_async_context(TcpProxy(self.server.port))

    async def connected(self, queue: Queue) -> None:
        """Both connections of `queue` stand."""
        await queue.ping()
        channel = f"genesis:queue:wake:{queue.instance_id}"
        await wait_until(
            lambda: channel in self.server.client.pubsub_channels(), "the subscriber listens"
        )

    async def order(self, queue: Queue) -> list[str]:
        return [e.item_id for e in await queue.entries(SALES) if e.state == "waiting"]

    async def holders(self, queue: Queue) -> list[str]:
        return [e.item_id for e in await queue.entries(SALES) if e.state == "holding"]

    def allow(self, rule: str) -> None:
        """Change what the user `worker` may do, e.g. `-evalsha`."""
        client: Any = self.server.client
        client.execute_command("ACL", "SETUSER", "worker", rule)

    def counted(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(name, labels) or 0.0

    async def settled(self, limit: int = 1) -> None:
        """All is as if nothing had happened: nobody there, no state, the full limit available."""
        for queue in self.queues:
            await assert_nothing_kept(queue)
        fresh = self.queue()

        async def nobody() -> bool:
            return (await fresh.stats(SALES))[:2] == (0, 0)

        await wait_until(nobody, "nobody waits or holds")
        calls = [self.call(fresh, f"last-{n}", limit, timeout=5) for n in range(limit)]
        for call in calls:
            await call.held()
        with pytest.raises(QueueTimeoutError):
            await self.call(fresh, "one-too-many", limit, timeout=0).task
        for call in calls:
            await call.leave()
        for queue in self.queues:
            await assert_nothing_kept(queue)
        assert self.server.keys_without_expiry() == []


@pytest.fixture
async def house(own_redis: RedisServer) -> AsyncIterator[House]:
    async with AsyncExitStack() as stack:
        house = House(own_redis, stack)
        yield house
        for queue in house.queues:
            await asyncio.wait_for(queue.close(), 20)


# Many processes


@pytest.mark.slow
async def test_four_processes_with_fifty_waiters_each_keep_limit_and_order(house: House) -> None:
    """At most 2 inside at any instant, grants in the order of entry, tokens strictly growing."""
    gate = house.queue()
    gates = [house.call(gate, f"gate-{n}", 2) for n in range(2)]
    for call in gates:
        await call.held()
    workers = [await house.worker() for _ in range(4)]
    for number in range(50):
        for index, worker in enumerate(workers):
            worker.enter(f"{index}-{number}", limit=2, hold=0.002)

    async def all_wait() -> bool:
        return (await gate.stats(SALES)).waiting == 200

    await wait_until(all_wait, "200 wait")
    entered = await house.order(gate)
    began = time.monotonic()
    for call in gates:
        await call.leave()
    await wait_until(
        lambda: all(sum(e["event"] == "left" for e in w.events) == 50 for w in workers), "all left"
    )
    took = time.monotonic() - began
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
    print(f"200 hand-offs over 4 processes in {took:.2f} s, at most {most} inside")
    for worker in workers:
        await worker.close()
    await house.settled(2)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # Python's, if there are threads
def test_a_backend_that_was_made_before_a_fork_is_refused_in_the_child(own_redis: RedisServer) -> None:
    """Parent and child would be one instance, whose tickets are the same: both would hold one slot."""
    queue = Queue(RedisBackend(own_redis.url), telemetry=Telemetry(registry=CollectorRegistry()))

    async def hold() -> None:
        async with queue.slot(SALES):
            pass

    child = os.fork()
    if child == 0:
        code = 1
        try:
            asyncio.run(hold())
        except RuntimeError as error:
            code = 0 if "fork" in str(error) else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

    async def pass_here() -> None:
        await hold()
        await queue.close()

    asyncio.run(pass_here())


# Dead instances


async def _line_of_workers(house: House, count: int) -> list[Worker]:
    """Workers 0, 1, ...: the first holds, the others wait in this order, one call each."""
    queue = house.queue()
    workers = [await house.worker() for _ in range(count)]
    for index, worker in enumerate(workers):
        worker.enter(f"call-{index}", limit=1)
        if index:
            await house.waits(queue, f"call-{index}")
        else:
            await worker.event("granted")
    return workers


@pytest.mark.slow
@pytest.mark.parametrize(
    ("killed", "heir"),
    [((0,), 1), ((0, 1), 2), ((0, 1, 2), 3)],
    ids=["the holder", "holder and head", "holder and two heads"],
)
async def test_after_sigkill_the_next_live_waiter_is_in_within_the_lease(
    house: House, killed: tuple[int, ...], heir: int
) -> None:
    """The dead hold nothing for longer than lease + 1.5 s, and their waiters are passed over."""
    workers = await _line_of_workers(house, 5)
    at = max(workers[index].kill() for index in killed)
    granted = await workers[heir].event("granted")
    took = (granted["at"] - at) / 1e9
    print(f"SIGKILL of {len(killed)}: the next is in after {took:.2f} s (lease {LEASE:g} s)")
    assert took < IN_TIME
    assert workers[4].find("granted") is None
    for index in range(heir, 5):
        await workers[index].event("granted")
        workers[index].tell("leave", item=f"call-{index}")
        await workers[index].event("left")
        await workers[index].close()
    await house.settled()


@pytest.mark.slow
async def test_after_sigkill_of_the_head_a_release_grants_to_the_next_alive(house: House) -> None:
    """The slot given to the dead head, or kept from it, is the next one's within the lease."""
    workers = await _line_of_workers(house, 3)
    at = workers[1].kill()
    workers[0].tell("leave", item="call-0")
    granted = await workers[2].event("granted")
    took = (granted["at"] - at) / 1e9
    print(f"SIGKILL of the head, then a release: the next is in after {took:.2f} s (lease {LEASE:g})")
    assert took < IN_TIME
    workers[2].tell("leave", item="call-2")
    await workers[2].event("left")
    await house.settled()


@pytest.mark.slow
async def test_an_instance_that_comes_later_takes_the_slot_of_a_dead_one(house: House) -> None:
    """Nobody waits when the holder dies; a newcomer is in within the lease all the same."""
    workers = await _line_of_workers(house, 1)
    at = workers[0].kill()
    call = house.call(house.queue(), "newcomer")
    await call.held()
    took = (time.monotonic_ns() - at) / 1e9
    assert took < IN_TIME
    await call.leave()
    await house.settled()


# Stopped instances


@pytest.mark.slow
async def test_a_stopped_holder_loses_its_slot_and_its_waiters_keep_their_places(house: House) -> None:
    """SIGSTOP for longer than the lease: the slot passes on; back again, it knows, and waits on."""
    here = house.queue()
    worker = await house.worker()
    worker.enter("there-1", limit=1)
    await worker.event("granted", "there-1")
    worker.enter("there-2", limit=1)
    await house.waits(here, "there-2")
    calls = await house.waiting(here, "here-1", "here-2")
    worker.stop()
    stopped = time.monotonic()
    await calls[0].held()
    print(f"SIGSTOP: the next is in after {time.monotonic() - stopped:.2f} s (lease {LEASE:g} s)")
    assert time.monotonic() - stopped < IN_TIME
    assert await house.order(here) == ["here-2"]
    worker.carry_on()
    assert await worker.lost("there-1")

    async def back() -> bool:
        return await house.order(here) == ["there-2", "here-2"]

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
    await house.settled()


@pytest.mark.slow
async def test_a_stopped_waiter_does_not_believe_the_grant_that_came_meanwhile(house: House) -> None:
    """Granted while stopped, reaped while stopped: it must not hold; it waits on in its old place."""
    here = house.queue()
    first = house.call(here, "here-1")
    await first.held()
    worker = await house.worker()
    worker.enter("there", limit=1)
    await house.waits(here, "there")
    (second,) = await house.waiting(here, "here-2")
    (third,) = await house.waiting(here, "here-3")
    worker.stop()
    await first.leave()  # grants to the stopped one
    assert await house.holders(here) == ["there"]
    await second.held(IN_TIME)
    worker.carry_on()

    def answered() -> Any:
        return worker.find("failed") or worker.find("granted")

    async def decided() -> bool:
        return bool(answered()) or await house.order(here) == ["there", "here-3"]

    await wait_until(decided, "the stopped one has learned what became of it")
    assert worker.find("granted") is None
    await second.leave()
    await third.held() if worker.find("failed") else await worker.event("granted")
    failed = worker.find("failed")
    worker.tell("leave", item="there")
    await third.held()
    await third.leave()
    await worker.close()
    await house.settled()
    assert failed is None, f"nobody evicted it, yet it was told: {failed}"


@pytest.mark.slow
async def test_a_grant_that_is_heard_of_after_it_was_taken_back_is_not_believed(house: House) -> None:
    """Granted, reaped, back in the line, and only then the message comes: it waits on."""
    proxy = await house.proxy()
    queue, other = house.queue(proxy.url, operation_timeout=5 * LEASE), house.queue()
    await house.connected(queue)
    holder = house.call(other, "holder")
    await holder.held()
    waiter, marker = await house.waiting(queue, "waiter", "marker")
    proxy.commands.hold()
    proxy.subscriber.deaf = True
    await holder.leave()
    holding: Any = house.server.client.zrange("genesis:queue:{sales}:holding", 0, -1, withscores=True)
    ticket, token = holding[0][0], int(holding[0][1])
    following = house.call(other, "following")
    await following.held(IN_TIME)  # the instance was reaped
    proxy.subscriber.deaf = False
    proxy.release()

    async def back() -> bool:
        return await house.order(other) == ["waiter", "marker"]

    await wait_until(back, "the waiters are in line again")
    channel = f"genesis:queue:wake:{queue.instance_id}"
    assert house.server.client.publish(channel, f"granted {ticket} {token} ") == 1
    await other.evict(SALES, "marker")
    assert isinstance(await marker.failure(), EvictedError)  # heard after the grant
    assert not waiter.holds
    assert await house.holders(other) == ["following"]
    await following.leave()
    await waiter.held(BEAT + 1)
    assert waiter.token > token
    await waiter.leave()
    await house.settled()


@pytest.mark.slow
async def test_a_pause_shorter_than_the_lease_costs_nothing(house: House) -> None:
    """SIGSTOP for half the lease: nothing is lost, and what came meanwhile is believed."""
    here = house.queue()
    first = house.call(here, "here-1")
    await first.held()
    worker = await house.worker()
    worker.enter("there", limit=1)
    await house.waits(here, "there")
    worker.stop()
    await first.leave()
    await asyncio.sleep(LEASE / 2)  # the pause is the subject
    worker.carry_on()
    await worker.event("granted", timeout=1.0)
    assert not await worker.lost("there")
    worker.tell("leave", item="there")
    await worker.event("left")
    await worker.close()
    await house.settled()


# Lost data


async def test_flushall_strands_nobody_and_keeps_the_order(house: House) -> None:
    """One holds and five wait on two instances: grants go on, in order, one at a time."""
    a, b = house.queue(), house.queue()
    holder = house.call(a, "holder")
    await holder.held()
    calls = [(await house.waiting(queue, f"call-{n}"))[0] for n, queue in enumerate([b, a, b, b, a])]
    house.server.client.flushall()

    async def registered() -> bool:
        return await house.order(a) == [call.item for call in calls]

    took = await wait_until(registered, "all have registered again, in order")
    print(f"FLUSHALL: registered again after {took:.2f} s (heartbeat {BEAT:.2f} s)")
    assert took < BEAT + 0.5
    assert not holder.lost
    await holder.leave()
    last = holder.token
    for index, call in enumerate(calls):
        await call.held(BEAT + 1)
        assert not any(later.holds for later in calls[index + 1 :])
        assert call.token > last
        last = call.token
        await call.leave()
    await house.settled()


async def test_a_newcomer_after_flushall_does_not_overtake(house: House) -> None:
    """An instance that knew the queue holds all grants back until everybody has registered."""
    a, b = house.queue(), house.queue()
    holder = house.call(a, "holder")
    await holder.held()
    (first,) = await house.waiting(b, "first")
    house.server.client.flushall()
    newcomer = house.call(a, "newcomer")
    await house.waits(a, "newcomer")
    await wait_until(lambda: house.order(a), "somebody waits")

    async def registered() -> bool:
        return await house.order(a) == ["first", "newcomer"]

    await wait_until(registered, "the order is the old one")
    assert (await a.stats(SALES)).in_use == 1
    await holder.leave()
    await first.held()
    assert not newcomer.holds
    await first.leave()
    await newcomer.held()
    await newcomer.leave()
    await house.settled()


async def test_flushall_keeps_the_order_for_an_instance_far_away(house: House) -> None:
    """A round trip of 100 ms: the far instance registers in time to keep its place and its slot."""
    proxy = await house.proxy()
    proxy.delay = 0.05
    near, far = house.queue(), house.queue(proxy.url)
    holder = house.call(far, "far-holder")
    await holder.held()
    (first,) = await house.waiting(far, "far-first")
    (second,) = await house.waiting(near, "near-second")
    # Just after a heartbeat of the far one: its next comes a full interval after the loss.
    line = far._backend._inner._session.ledger.lines[SALES]  # type: ignore[attr-defined]
    due = line.due
    await wait_until(lambda: line.due > due and not line.beating, "a heartbeat of the far one is done")
    house.server.client.flushall()
    newcomer = house.call(near, "near-newcomer")
    await wait_until(
        lambda: house.server.client.zscore("genesis:queue:{sales}:holding", _ticket(far, 1)),
        "the far holder has registered again",
    )
    overshoot = (await near.stats(SALES)).in_use
    order = await house.order(near)
    await holder.leave()
    calls = [first, second, newcomer]
    await drain(calls)
    assert overshoot == 1
    assert order == ["far-first", "near-second", "near-newcomer"]
    assert first.token < second.token < newcomer.token
    await house.settled()


def _ticket(queue: Queue, serial: int) -> str:
    return f"{queue.instance_id}:{serial}"


@pytest.mark.slow
async def test_redis_killed_and_restarted_empty_strands_nobody(house: House) -> None:
    """Down for a second with holders, waiters and newcomers: each is granted or gets the error."""
    a, b = house.queue(), house.queue()
    holders = [house.call(a, "holder-0", 2), house.call(b, "holder-1", 2)]
    for call in holders:
        await call.held()
    calls = []
    for number, queue in enumerate([a, b, b, a]):
        calls.append(house.call(queue, f"call-{number}", 2))
        await house.waits(queue, f"call-{number}")
    house.server.kill()
    newcomers = [house.call(queue, f"newcomer-{n}", 2) for n, queue in enumerate([a, b] * 3)]
    await asyncio.sleep(1.0)  # the outage is the subject
    house.server.start()
    fresh = house.queue()

    async def registered() -> bool:
        try:
            return (await house.order(fresh))[:4] == [call.item for call in calls]
        except BackendUnavailableError:
            return False

    took = await wait_until(registered, "the waiters stand in their old order")
    print(f"restart: registered again after {took:.2f} s (heartbeat {BEAT:.2f} s)")
    assert (await fresh.stats(SALES)).in_use == 2
    assert not any(call.lost for call in holders)
    for call in holders:
        await call.leave()
    tokens = []
    everybody = [*calls, *newcomers]
    while not all(call.task.done() for call in everybody):
        inside = [call for call in everybody if call.holds]
        assert len(inside) <= 2
        for call in inside:
            tokens.append((call.token, call.item))
            await call.leave()
        await asyncio.sleep(0)
    assert [item for _, item in sorted(tokens)][:4] == [call.item for call in calls]
    errors = [error for call in newcomers if (error := call.task.exception())]
    assert all(isinstance(error, BackendUnavailableError) for error in errors)
    await house.settled(2)


@pytest.mark.slow
async def test_an_override_survives_the_loss_of_data(house: House) -> None:
    """set_limit's number is registered again by those who knew it."""
    queue = house.queue()
    call = house.call(queue, "call")
    await call.held()
    await queue.set_limit(SALES, 3)
    line = queue._backend._inner._session.ledger.lines[SALES]  # type: ignore[attr-defined]
    await wait_until(lambda: line.override[0] == b"3", "a heartbeat has learned of it")
    house.server.client.flushall()

    async def back() -> bool:
        return (await queue.stats(SALES)).limit == 3

    await wait_until(back, "the override is in force again", BEAT + 1)
    await queue.set_limit(SALES, None)
    await call.leave()
    await house.settled()


async def knows_the_override(queue: Queue, value: bytes) -> None:
    """A heartbeat of `queue` has learned of it."""

    def known() -> bool:
        override: bytes = state_of(queue)["lines"][SALES].override[0]
        return override == value

    await wait_until(known, f"the override {value!r} is known")


@pytest.mark.slow
async def test_an_override_that_was_ended_after_a_loss_of_data_stays_ended(house: House) -> None:
    """An instance that still knew it registers again later, and does not bring it back."""
    queue, other = house.queue(), house.queue()
    call = house.call(queue, "call")
    await call.held()
    await queue.set_limit(SALES, 3)
    await knows_the_override(queue, b"3")
    house.server.client.flushall()
    await other.set_limit(SALES, None)

    async def registered() -> bool:
        return await house.holders(other) == ["call"]

    await wait_until(registered, "the call is registered again", BEAT + 1)
    assert (await other.stats(SALES)).limit == 1
    await call.leave()
    await house.settled()


@pytest.mark.slow
async def test_an_override_that_was_ended_during_a_pause_stays_ended(house: House) -> None:
    """Reaped meanwhile, an instance puts its waiter back in the line, but not the old override."""
    proxy = await house.proxy()
    other, queue = house.queue(), house.queue(proxy.url, operation_timeout=5 * LEASE)
    holder = house.call(other, "holder")
    await holder.held()
    (waiter,) = await house.waiting(queue, "waiter")
    await other.set_limit(SALES, 0)
    await knows_the_override(queue, b"0")
    proxy.commands.hold()

    async def reaped() -> bool:
        return await house.order(other) == []

    await wait_until(reaped, "the waiter is reaped", IN_TIME)
    await other.set_limit(SALES, None)
    proxy.release()

    async def back() -> bool:
        return await house.order(other) == ["waiter"]

    await wait_until(back, "the waiter is in line again")
    assert (await other.stats(SALES)).limit == 1
    await drain([holder, waiter])
    await house.settled()


# Two servers at once


@pytest.mark.slow
async def test_a_split_brain_ends_when_the_old_master_misses_its_replica(house: House) -> None:
    """A master that must have a replica, and lost it, refuses writes: its holders lose their slots.

    Until then both sides grant. That cannot be prevented, only bounded: by min-replicas-max-lag, the
    second in which Redis looks at it, and the lease.
    """
    lag = 2
    house.server.client.config_set("min-replicas-max-lag", lag)
    house.server.client.config_set("repl-diskless-sync-delay", 0)
    replica = RedisServer()
    try:
        way = await house.proxy()
        replica.client.replicaof("127.0.0.1", str(way.port))

        def in_step() -> bool:
            info: Any = house.server.client.info("replication")
            return bool(info.get("slave0", {}).get("state") == "online")

        await wait_until(in_step, "the replica follows")
        house.server.client.config_set("min-replicas-to-write", 1)
        old, new = house.queue(), house.queue(replica.url)
        holder = house.call(old, "holder")
        await holder.held()
        for relay in way.relays:
            relay.hold()
            relay.deaf = True
        split = time.monotonic()
        replica.client.replicaof("NO", "ONE")
        late = house.call(old, "late", queue_id="elsewhere")
        await late.held()
        other = house.call(new, "other", queue_id="elsewhere")
        await other.held()
        assert not late.lost  # both hold the one slot of a queue: that is the split
        await wait_until(lambda: holder.lost, "the old side's slot is lost", lag + 1 + IN_TIME)
        await wait_until(lambda: late.lost, "the other one as well", lag + 1 + IN_TIME)
        assert time.monotonic() - split < lag + 1 + IN_TIME
        assert not other.lost
        for call in (other, late, holder):
            await call.leave()
        house.server.client.config_set("min-replicas-to-write", 0)
        await new.close()
        await house.settled()
    finally:
        replica.close()


# No server


@pytest.mark.slow
async def test_without_a_server_a_call_fails_in_bounded_time_and_works_once_it_is_there(
    house: House,
) -> None:
    """BackendUnavailableError after operation_timeout, whose message names queue, item and cause."""
    house.server.kill()
    queue = house.queue(operation_timeout=0.5)
    began = time.monotonic()
    error = await house.call(queue, "call-1").failure()
    took = time.monotonic() - began
    assert isinstance(error, BackendUnavailableError)
    for word in ("sales", "call-1", "out of reach"):
        assert word in str(error)
    assert 0.4 < took < 1.0
    house.server.start()

    async def works() -> bool:
        call = house.call(queue, "call-2")
        await asyncio.wait({call.task}, timeout=0.1)
        return await call.ended() is None

    assert await wait_until(works, "calls get slots again") < 3
    await house.settled()


@pytest.mark.slow
async def test_an_outage_longer_than_the_lease_ends_every_call_knowingly(house: House) -> None:
    """Holders' slot.lost turns true, waiters get the error, and nothing is stuck afterwards."""
    queue = house.queue()
    holder = house.call(queue, "holder")
    await holder.held()
    (waiter,) = await house.waiting(queue, "waiter")
    began = time.monotonic()
    house.server.kill()
    await wait_until(lambda: holder.lost, "the holder knows")
    knew = time.monotonic() - began
    error = await waiter.failure()
    print(f"outage: lost after {knew:.2f} s, the waiter failed after {time.monotonic() - began:.2f} s")
    assert isinstance(error, BackendUnavailableError)
    assert "longer than the lease" in str(error)
    assert time.monotonic() - began < LEASE + 0.5
    await holder.leave()
    house.server.start()
    await house.settled()


@pytest.mark.slow
async def test_a_leave_said_while_redis_is_down_is_delivered_when_it_is_back(house: House) -> None:
    """The data survives the outage (a pause), and the slot is free well before the lease lapses."""
    queue, other = house.queue(lease=30.0, operation_timeout=0.4), house.queue()
    holder = house.call(queue, "holder")
    await holder.held()
    house.server.pause()
    began = time.monotonic()
    await holder.leave()
    assert time.monotonic() - began < 1.0
    house.server.resume()
    call = house.call(other, "next")
    assert await call.held() < 3
    await call.leave()
    await house.settled()


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.25, 0.75], ids=["shortly", "for most of the lease"])
async def test_a_paused_redis_costs_nobody_a_slot_or_a_place(house: House, share: float) -> None:
    """SIGSTOP of the server for less than the lease: all go on where they were."""
    queue = house.queue()
    holder = house.call(queue, "holder")
    await holder.held()
    calls = await house.waiting(queue, "call-1", "call-2")
    line = queue._backend._inner._session.ledger.lines[SALES]  # type: ignore[attr-defined]
    fence = line.fence
    await wait_until(lambda: line.fence > fence, "a heartbeat has just been answered")
    house.server.pause()
    await asyncio.sleep(LEASE * share)  # the pause is the subject
    house.server.resume()
    await wait_until(lambda: line.fence > time.monotonic() + LEASE / 2, "heartbeats go on", 3)
    assert not holder.lost
    assert await house.order(queue) == ["call-1", "call-2"]
    await holder.leave()
    for call in calls:
        await call.held(2)
        await call.leave()
    await house.settled()


@pytest.mark.slow
async def test_a_redis_paused_for_longer_than_the_lease_ends_every_call_knowingly(
    house: House,
) -> None:
    """A server that answers nothing for long is as good as none: told, and nothing stuck."""
    queue = house.queue()
    holder = house.call(queue, "holder")
    await holder.held()
    (waiter,) = await house.waiting(queue, "waiter")
    began = time.monotonic()
    house.server.pause()
    try:
        await wait_until(lambda: holder.lost, "the holder knows")
        error = await waiter.failure()
        took = time.monotonic() - began
        newcomer = await house.call(queue, "newcomer").failure()
    finally:
        house.server.resume()
    assert isinstance(error, BackendUnavailableError)
    assert isinstance(newcomer, BackendUnavailableError)
    assert took < LEASE + 1.0
    await holder.leave()
    await house.settled()


# Broken connections


async def _busy(house: House, break_it: Callable[[], object], times: int) -> None:
    """Many short calls on two instances while something is broken again and again."""
    queues = [house.queue(), house.queue()]
    inside = most = done = 0
    tokens: list[int] = []
    broken = 0
    all_slots = asyncio.Event()  # have been taken at once; from then on calls end as soon as they can

    async def call(number: int) -> None:
        nonlocal inside, most, done
        async with queues[number % 2].slot(SALES, item_id=f"call-{number}", max_concurrent=3) as slot:
            inside += 1
            most = max(most, inside)
            tokens.append(slot.fencing_token)
            if inside == 3:
                all_slots.set()
            await all_slots.wait()
            assert not slot.lost
            inside -= 1
        done += 1

    tasks = {asyncio.create_task(call(number)) for number in range(400)}
    pending = tasks
    while pending:
        if broken < times and done > broken * 300 // times:
            broken += 1
            break_it()
        _, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
    await asyncio.gather(*tasks)
    assert (done, most, broken) == (400, 3, times)
    assert len(set(tokens)) == 400
    await house.settled(3)


async def test_killing_the_command_connections_under_load_loses_and_doubles_nothing(
    house: House,
) -> None:
    """CLIENT KILL in the middle of many operations: every call is served once, the limit holds."""
    await _busy(house, lambda: house.server.client.client_kill_filter(_type="normal"), 5)


async def test_killing_the_subscribers_under_load_strands_nobody(house: House) -> None:
    """CLIENT KILL of the wake-up connections: every waiter still gets its turn."""
    await _busy(house, lambda: house.server.client.client_kill_filter(_type="pubsub"), 5)


async def test_script_flush_under_load_loses_and_doubles_nothing(house: House) -> None:
    """A server that forgets its scripts is joined again, which loads them."""
    await _busy(house, lambda: house.server.client.script_flush(), 5)


async def test_a_cut_subscriber_is_back_at_once_and_asks_what_it_missed(house: House) -> None:
    """The grant whose message was lost is learned when the channel is listened to again."""
    a, b = house.queue(), house.queue()
    await house.connected(b)
    holder = house.call(a, "holder")
    await holder.held()
    (waiter,) = await house.waiting(b, "waiter")
    house.server.client.client_kill_filter(_type="pubsub")
    await holder.leave()
    assert await waiter.held() < BEAT + 0.3
    await waiter.leave()
    await house.settled()


async def test_without_wake_ups_a_waiter_is_in_within_one_heartbeat(house: House) -> None:
    """Nothing is heard on the channel for good: the heartbeat finds the grant."""
    proxy = await house.proxy()
    proxy.mute = True
    a, b = house.queue(), house.queue(proxy.url)
    holder = house.call(a, "holder")
    await holder.held()
    (waiter,) = await house.waiting(b, "waiter")
    await holder.leave()
    took = await waiter.held()
    print(f"lost wake-up: in after {took:.2f} s (heartbeat {BEAT:.2f} s)")
    assert took < BEAT + 0.3
    await waiter.leave()
    await house.settled()


@pytest.mark.slow
async def test_a_server_that_became_a_replica_is_left_and_not_stormed(house: House) -> None:
    """After a failover the old master refuses writes: say so, try elsewhere, but with patience."""
    queue = house.queue()
    call = house.call(queue, "call")
    await call.held()
    received = int(house.server.client.info("stats")["total_connections_received"])
    house.server.client.replicaof("127.0.0.1", 1)
    try:
        error = await house.call(queue, "refused").failure()
        await asyncio.sleep(LEASE / 2)  # the number of tries in it is the subject
        tries = int(house.server.client.info("stats")["total_connections_received"]) - received
        left = house.counted("genesis_backend_disruptions_total", backend="redis", reason="read_only")
    finally:
        house.server.client.replicaof("NO", "ONE")
    await call.ended()
    print(f"read-only: {tries} connections in {LEASE / 2 + BEAT:.1f} s")
    assert isinstance(error, BackendUnavailableError)
    assert left >= 1
    assert tries <= 20
    await house.settled()


# Lost replies, late commands


async def test_an_enter_whose_reply_is_lost_is_carried_out_once(house: House) -> None:
    """Sent again on the next connection, it has the effect of one: one ticket, and it holds."""
    proxy = await house.proxy()
    queue, other = house.queue(proxy.url), house.queue()
    await house.connected(queue)
    relay = proxy.commands
    relay.deaf = True
    call = house.call(queue, "call")

    async def carried_out() -> bool:
        return await house.holders(other) == ["call"]

    await wait_until(carried_out, "Redis has carried it out")
    relay.cut()
    await call.held()
    assert await house.holders(other) == ["call"]
    assert (await other.stats(SALES)).waiting == 0
    await call.leave()
    await house.settled()


async def test_a_waiters_enter_whose_reply_is_lost_keeps_its_place(house: House) -> None:
    """Those who come between the two sendings stand behind it."""
    proxy = await house.proxy()
    queue, other = house.queue(proxy.url), house.queue()
    await house.connected(queue)
    holder = house.call(other, "holder")
    await holder.held()
    proxy.commands.deaf = True
    first = house.call(queue, "first")
    await house.waits(other, "first")
    (second,) = await house.waiting(other, "second")
    proxy.commands.cut()
    await house.connected(queue)
    assert await house.order(other) == ["first", "second"]
    await holder.leave()
    await first.held()
    await first.leave()
    await second.held()
    await second.leave()
    await house.settled()


async def test_a_leave_whose_reply_is_lost_is_carried_out_once(house: House) -> None:
    """Its slot is passed on once, although it is said twice."""
    proxy = await house.proxy()
    queue, other = house.queue(proxy.url), house.queue()
    await house.connected(queue)
    holder = house.call(queue, "holder")
    await holder.held()
    first, second = await house.waiting(other, "first", "second")
    relay = proxy.commands
    relay.deaf = True
    leaving = asyncio.create_task(holder.leave())
    await first.held()
    relay.cut()
    await leaving
    await house.connected(queue)
    assert not second.holds
    assert await house.holders(other) == ["first"]
    await first.leave()
    await second.held()
    await second.leave()
    await house.settled()


@pytest.mark.slow
@pytest.mark.parametrize("kept", [True, False], ids=["others stay", "queue left"])
@pytest.mark.parametrize("ending", ["gave up", "left", "refused"])
async def test_a_late_enter_of_a_call_that_is_over_takes_nothing(
    house: House, ending: str, kept: bool
) -> None:
    """Its bytes arrive after all is over: no slot is taken, whether or not its instance still beats."""
    proxy = await house.proxy()
    gives_up = ending == "gave up"
    options = {} if gives_up else {"operation_timeout": LEASE}
    queue, other = house.queue(proxy.url, **options), house.queue()
    await house.connected(queue)
    staying = [house.call(other, "holder", 2)] if ending == "refused" else []
    if kept:
        staying.append(house.call(queue, "keeper", 2))
    elif ending == "refused":
        staying.append(house.call(other, "second holder", 2))
    for call in staying:
        await call.held()
    relay = proxy.commands
    relay.hold()
    late = house.call(queue, "unhurried", 2, timeout=0 if ending == "refused" else None)
    await wait_until(lambda: b"unhurried" in relay.heard, "the first bytes are on their way")
    if gives_up:
        assert isinstance(await late.failure(), BackendUnavailableError)
    else:
        relay.cut()
    if ending == "refused":
        assert isinstance(await late.failure(), QueueTimeoutError)
    elif ending == "left":
        await late.held()
        await late.leave()
    await house.connected(queue)
    await other.stats("elsewhere")
    for call in staying:
        if call.item.endswith("holder"):
            await call.leave()
    await relay.arrive_late()
    assert await house.holders(other) == (["keeper"] if kept else [])
    for call in staying:
        await call.ended()
    await house.settled(2)


@pytest.mark.slow
@pytest.mark.parametrize("position", ["holder", "waiter"])
async def test_a_late_first_copy_of_an_enter_changes_nothing(house: House, position: str) -> None:
    """Said again on a new connection and carried out, then the first bytes arrive: one effect."""
    proxy = await house.proxy()
    queue, other = house.queue(proxy.url, operation_timeout=LEASE), house.queue()
    await house.connected(queue)
    calls = []
    if position == "waiter":
        calls.append(house.call(other, "holder"))
        await calls[0].held()
    relay = proxy.commands
    relay.hold()
    call = house.call(queue, "copied")
    await wait_until(lambda: b"copied" in relay.heard, "the first bytes are on their way")
    relay.cut()
    if position == "waiter":
        await house.waits(other, "copied")
    else:
        await call.held()
    calls.append(call)
    calls += await house.waiting(other, "behind")
    await relay.arrive_late()
    entries = await other.entries(SALES)
    await drain(calls)
    assert [entry.item_id for entry in entries] == [item.item for item in calls]
    await house.settled()


@pytest.mark.slow
async def test_a_half_open_connection_is_found_and_left(house: House) -> None:
    """Replies stop coming without a word: the link is given up after operation_timeout."""
    proxy = await house.proxy()
    queue = house.queue(proxy.url)
    holder = house.call(queue, "holder")
    await holder.held()
    (waiter,) = await house.waiting(queue, "waiter")
    relay = proxy.commands
    relay.deaf = True
    relay.hold()
    await wait_until(lambda: proxy.commands is not relay, "a new connection is made")
    await holder.leave()
    await waiter.held(LEASE)
    assert not waiter.lost
    await waiter.leave()
    await house.settled()


# Cancellation


@pytest.mark.slow
@pytest.mark.parametrize("how", ["held", "deaf", "refused"])
async def test_cancelling_while_the_connection_is_broken_leaks_nothing(house: House, how: str) -> None:
    """Entering, waiting and holding tasks are cancelled at once, and their slots come free."""
    proxy = await house.proxy()
    queue, other = house.queue(proxy.url), house.queue()
    holder = house.call(queue, "holder")
    await holder.held()
    (waiter,) = await house.waiting(queue, "waiter")
    (live,) = await house.waiting(other, "live")
    relay = proxy.commands
    if how == "held":
        relay.hold()
    elif how == "deaf":
        relay.deaf = True
    else:
        proxy.refusing = True
        proxy.cut()
    entering = house.call(queue, "entering")
    await quiesce()
    began = time.monotonic()
    for call in (entering, waiter, holder):
        call.task.cancel()
    for call in (entering, waiter, holder):
        await call.ended()
        assert call.task.done()
    assert time.monotonic() - began < 2 * BEAT
    proxy.refusing = False
    await live.held(IN_TIME)
    relay.release()
    await live.leave()
    await house.settled()


@pytest.mark.parametrize("turns", range(12))
async def test_cancelling_an_enter_at_any_turn_leaks_nothing(house: House, turns: int) -> None:
    """From before its bytes are written until after its reply is read."""
    queue = house.queue()
    await house.connected(queue)
    for _ in range(10):
        call = house.call(queue, "call")
        await quiesce(turns)
        call.task.cancel()
        await call.ended()
    await house.settled()


@pytest.mark.parametrize("part", [Link, Subscriber])
async def test_closing_while_a_connection_is_just_made_does_not_hang(
    house: House, part: type[Link] | type[Subscriber], monkeypatch: pytest.MonkeyPatch
) -> None:
    """close() in the very turn in which the connection stands: it ends, and leaves no task."""
    name = "_join" if part is Link else "_subscribe"
    connect = getattr(part, name)
    backend = RedisBackend(house.server.url, lease=LEASE)
    closing: list[asyncio.Task[None]] = []

    async def close_then(self: Any, connection: Any) -> None:
        await connect(self, connection)
        session = backend._session
        if session is not None and not closing:
            running = session.link if part is Link else session.subscriber
            closing.append(asyncio.create_task(running.close()))

    monkeypatch.setattr(part, name, close_then)
    ping = asyncio.create_task(backend.ping())
    await wait_until(lambda: closing, "the connection is being made")
    done, _ = await asyncio.wait(closing, timeout=3)
    session = backend._session
    assert session is not None
    task = session.link._task if part is Link else session.subscriber._task
    stuck = not done
    task.cancel()  # so that a failure here does not hang the tests that follow
    await asyncio.wait(closing)
    await asyncio.gather(ping, return_exceptions=True)
    await backend.close()
    assert not stuck, "close() waits for ever: its cancellation was swallowed"


# Several instances


async def test_in_a_rolling_deployment_the_last_limit_wins_and_is_counted(house: House) -> None:
    """Two instances with two numbers: no call is dropped, the disagreement is counted."""
    old, new = house.queue(), house.queue()
    calls = [house.call(old, "old", 1)]
    await calls[0].held()
    calls.append(house.call(new, "new", 3))
    await calls[1].held()
    assert (await old.stats(SALES)).limit == 3
    assert house.counted("genesis_queue_limit_disagreements_total", queue=SALES) == 1
    calls.append(house.call(new, "new-2", 3))
    await calls[2].held()
    for call in calls:
        await call.leave()
    await house.settled(3)


async def test_set_limit_elsewhere_grants_to_waiters_here_at_once(house: House) -> None:
    """Raised by another instance: the waiters are woken, not found by a heartbeat."""
    here, there = house.queue(), house.queue()
    await house.connected(here)
    holder = house.call(here, "holder")
    await holder.held()
    calls = await house.waiting(here, "call-1", "call-2", "call-3")
    await there.set_limit(SALES, 3)
    assert await calls[1].held() < BEAT / 2
    assert calls[0].holds
    assert not calls[2].holds
    await there.set_limit(SALES, None)
    await holder.leave()
    for call in calls:
        await call.held()
        await call.leave()
    await house.settled()


async def test_eviction_from_elsewhere_ends_a_wait_and_a_hold_here(house: House) -> None:
    """A waiter gets EvictedError, a holder's slot.lost turns true, and the next is granted."""
    here, there = house.queue(), house.queue()
    await house.connected(here)
    holder = house.call(here, "holder")
    await holder.held()
    calls = await house.waiting(here, "call-1", "call-2")
    assert await there.evict(SALES, "call-1") == 1
    assert isinstance(await calls[0].failure(BEAT), EvictedError)
    assert await there.evict(SALES, "holder") == 1
    await wait_until(lambda: holder.lost, "the evicted holder knows", BEAT)
    await calls[1].held(BEAT)
    await holder.leave()
    assert calls[1].holds
    assert not calls[1].lost
    await calls[1].leave()
    await house.settled()


async def test_entries_show_who_is_on_which_instance(house: House) -> None:
    """Holder and waiter of two instances, with their instance ids."""
    a, b = house.queue(), house.queue()
    holder = house.call(a, "holder")
    await holder.held()
    (waiter,) = await house.waiting(b, "waiter")
    found = [(e.item_id, e.instance_id, e.state, e.position) for e in await b.entries(SALES)]
    assert found == [
        ("holder", a.instance_id, "holding", None),
        ("waiter", b.instance_id, "waiting", 1),
    ]
    await holder.leave()
    await waiter.held()
    await waiter.leave()
    await house.settled()


# A server that refuses


async def test_an_enter_without_memory_is_an_error_that_says_so(house: House) -> None:
    """noeviction and no memory: BackendUnavailableError naming the cause; afterwards it works."""
    queue = house.queue()
    await house.connected(queue)
    house.server.client.config_set("maxmemory", "1")
    error = await house.call(queue, "call").failure(1)
    house.server.client.config_set("maxmemory", "0")
    assert isinstance(error, BackendUnavailableError)
    assert "maxmemory" in str(error)
    await house.settled()


@pytest.mark.slow
async def test_without_memory_for_longer_than_the_lease_nobody_loses_a_slot(house: House) -> None:
    """Renewing a lease needs no memory: the holder keeps its slot, and its leave passes it on."""
    queue = house.queue()
    holder = house.call(queue, "holder")
    await holder.held()
    (waiter,) = await house.waiting(queue, "waiter")
    house.server.client.config_set("maxmemory", "1")
    try:
        await asyncio.sleep(LEASE * 1.2)  # that it is longer than the lease is the subject
        lost = holder.lost
        await holder.leave()
        await waiter.held(LEASE)
    finally:
        house.server.client.config_set("maxmemory", "0")
    await waiter.leave()
    await house.settled()
    assert not lost


async def test_a_place_that_cannot_be_registered_again_for_lack_of_memory_is_told(
    house: House,
) -> None:
    """The line is lost and there is no memory: operators hear of it, and the place comes back later."""
    queue, other = house.queue(), house.queue()
    holder = house.call(other, "holder")
    await holder.held()
    (waiter,) = await house.waiting(queue, "waiter")
    house.server.client.config_set("maxmemory", "1")
    house.server.client.delete(f"genesis:queue:{{{SALES}}}:waiting")
    refused = {"backend": "redis", "reason": "refused"}
    await wait_until(
        lambda: house.counted("genesis_backend_disruptions_total", **refused), "it is told of"
    )
    house.server.client.config_set("maxmemory", "0")
    await house.waits(other, "waiter")
    await holder.leave()
    await waiter.held()
    await waiter.leave()
    await house.settled()


@pytest.mark.slow
async def test_a_leave_that_was_refused_is_made_up_for_by_the_heartbeat(house: House) -> None:
    """The server forbids scripts for a moment: the slot is free soon after it allows them again."""
    house.server.client.acl_setuser(
        "worker", enabled=True, passwords=["+secret"], keys=["*"], channels=["*"], categories=["+@all"]
    )
    url = house.server.url.replace("//", "//worker:secret@")
    queue, other = house.queue(url), house.queue()
    holder = house.call(queue, "holder")
    await holder.held()
    house.allow("-evalsha")
    await holder.leave()
    house.allow("+evalsha")
    call = house.call(other, "next")
    took = await call.held()
    assert took < 2 * BEAT + 0.3
    await call.leave()
    await house.settled()


@pytest.mark.slow
async def test_waiters_are_told_when_the_server_refuses_them_for_longer_than_the_lease(
    house: House,
) -> None:
    """The connection stands, but every heartbeat is refused: the place is lost, and they learn it."""
    house.server.client.acl_setuser(
        "worker", enabled=True, passwords=["+secret"], keys=["*"], channels=["*"], categories=["+@all"]
    )
    url = house.server.url.replace("//", "//worker:secret@")
    queue = house.queue(url)
    holder = house.call(queue, "holder")
    await holder.held()
    (waiter,) = await house.waiting(queue, "waiter")
    house.allow("-evalsha")
    try:
        await wait_until(lambda: holder.lost, "the holder knows", LEASE + 1)
        await asyncio.wait({waiter.task}, timeout=LEASE)
        told = waiter.task.done()
    finally:
        house.allow("+evalsha")
    await holder.leave()
    await waiter.ended()
    await house.settled()
    assert told, "the waiter still waits, a lease after its place was lost, and nobody told it"


@pytest.mark.slow
@pytest.mark.parametrize("wrong", ["password", "permission"])
async def test_a_denied_login_is_named_without_the_password(house: House, wrong: str) -> None:
    """BackendUnavailableError says what the server objects to, and never what was said to it."""
    house.server.client.acl_setuser("guest", enabled=True, passwords=["+right"], commands=["+ping"])
    password = "hunter2-wrong" if wrong == "password" else "right"
    url = house.server.url.replace("//", f"//guest:{password}@")
    queue = house.queue(url)
    error = await house.call(queue, "call").failure(BEAT + 1)
    assert isinstance(error, BackendUnavailableError)
    text = str(error)
    assert "hunter2" not in text
    assert ("password" in text) if wrong == "password" else ("permission" in text.lower())
    chain: BaseException | None = error
    while chain is not None:
        assert "hunter2" not in str(chain)
        chain = chain.__cause__


async def test_a_repeated_set_limit_does_not_undo_a_newer_one(own_redis: RedisServer) -> None:
    """Its reply lost, an instance says set_limit again; what another has set meanwhile stays."""
    async with TcpProxy(own_redis.port) as proxy, AsyncExitStack() as stack:
        one = await stack.enter_async_context(
            Queue(RedisBackend(proxy.url), telemetry=Telemetry(CollectorRegistry()))
        )
        two = await stack.enter_async_context(
            Queue(RedisBackend(own_redis.url), telemetry=Telemetry(CollectorRegistry()))
        )
        await one.ping()
        proxy.commands.deaf = True
        setting = asyncio.create_task(one.set_limit("line", 5))

        async def is_five() -> bool:
            return (await two.stats("line")).limit == 5

        await wait_until(is_five, "the first set_limit was carried out")
        await two.set_limit("line", 7)
        proxy.commands.cut()
        await setting
        assert (await two.stats("line")).limit == 7
        await two.set_limit("line", None)


async def test_a_late_first_copy_of_a_set_limit_does_not_undo_a_newer_one(house: House) -> None:
    """Held back while its connection is given up, and said again: the first copy comes last of all."""
    proxy = await house.proxy()
    one, two = house.queue(proxy.url), house.queue()
    await one.ping()
    relay = proxy.commands
    relay.hold()
    setting = asyncio.create_task(one.set_limit(SALES, 5))
    await wait_until(lambda: relay.held_chunks, "the first copy is on its way")
    relay.cut()
    await setting
    await two.set_limit(SALES, 7)
    await relay.arrive_late()
    assert (await two.stats(SALES)).limit == 7
    await two.set_limit(SALES, None)


@pytest.mark.parametrize("ending", ["failed", "cancelled"])
async def test_a_late_copy_of_a_set_limit_that_failed_does_not_undo_a_newer_one(
    house: House, ending: str
) -> None:
    """The caller has given it up, and has set another: a pause must not come after that."""
    proxy = await house.proxy()
    one, two = house.queue(proxy.url, operation_timeout=0.5), house.queue()
    await one.ping()
    relay = proxy.commands
    relay.hold()
    setting = asyncio.create_task(one.set_limit(SALES, 0))
    await wait_until(lambda: relay.held_chunks, "it is on its way")
    if ending == "cancelled":
        setting.cancel()
    (error,) = await asyncio.gather(setting, return_exceptions=True)
    assert isinstance(error, (BackendUnavailableError, asyncio.CancelledError))
    relay.cut()
    await one.set_limit(SALES, 7)
    await relay.arrive_late()
    assert (await two.stats(SALES)).limit == 7
    client: Any = house.server.client
    marks = client.keys("*:left:*")
    assert len(marks) == 2
    assert min(map(client.ttl, marks)) > 3_000, "what comes late is in force for ever"
    await two.set_limit(SALES, None)


async def test_a_late_enter_of_a_holder_that_was_evicted_takes_no_slot_for_good(house: House) -> None:
    """Its task goes on working for an hour: the next heartbeat gives back what the late copy took."""
    proxy = await house.proxy()
    queue, other = house.queue(proxy.url), house.queue()
    await queue.ping()
    relay = proxy.commands
    relay.hold()
    holder = house.call(queue, "stuck")
    await wait_until(lambda: relay.held_chunks, "the first copy is on its way")
    relay.cut()
    await holder.held()
    assert await other.evict(SALES, "stuck") == 1
    await wait_until(lambda: holder.lost, "the holder knows")
    await relay.arrive_late()

    async def nobody() -> bool:
        return (await other.stats(SALES))[:2] == (0, 0)

    await wait_until(nobody, "the slot is given back while the task still works", 2 * BEAT)
    await holder.leave()
    await house.settled()


async def test_what_is_remembered_of_a_set_limit_expires_by_itself(house: House) -> None:
    """However often it is said: nothing that lives on with the next one grows with each."""
    queue = house.queue()
    for limit in range(100):
        await queue.set_limit(SALES, limit)
    client: Any = house.server.client
    lasting = [key for key in client.keys("*") if ":left:" not in key]
    assert lasting == [f"genesis:queue:{{{SALES}}}:meta"]
    await queue.set_limit(SALES, None)


@pytest.mark.slow
async def test_a_look_at_a_queue_of_the_dead_shows_nobody(own_redis: RedisServer) -> None:
    """The only instance in a queue is killed: a lease later, stats and entries are empty for others."""
    async with (
        Worker(own_redis.url, LEASE, "line") as worker,
        Queue(
            RedisBackend(own_redis.url, lease=LEASE), telemetry=Telemetry(CollectorRegistry())
        ) as other,
    ):
        worker.enter("dead", limit=1)
        await worker.event("granted", "dead")
        assert (await other.stats("line")).in_use == 1
        worker.kill()

        async def nobody() -> bool:
            return (await other.stats("line"))[:2] == (0, 0) and not await other.entries("line")

        await wait_until(nobody, "nobody is shown any more", LEASE + 1.5)


async def test_a_close_while_the_connection_is_broken_gives_back_what_it_has(house: House) -> None:
    """It is made anew within the operation timeout: the next waiter need not wait for the lease."""
    proxy = await house.proxy()
    queue, other = house.queue(proxy.url), house.queue()
    holder = house.call(queue, "holder")
    await holder.held()
    (waiter,) = await house.waiting(other, "waiter")
    proxy.refusing = True
    proxy.cut()
    broken = {"backend": "redis", "reason": "connection"}
    await wait_until(
        lambda: house.counted("genesis_backend_disruptions_total", **broken), "the connection is broken"
    )
    closing = asyncio.create_task(queue.close())
    await wait_until(lambda: holder.lost, "the holder is told")
    proxy.refusing = False
    await closing
    await waiter.held(timeout=BEAT)
    await waiter.leave()
    await holder.ended()
    await house.settled()


async def test_a_close_that_is_cancelled_still_closes(own_redis: RedisServer) -> None:
    """Cut off half way, with Redis standing still, close goes on; a second one waits for its end."""
    queue = Queue(RedisBackend(own_redis.url, lease=LEASE), telemetry=Telemetry(CollectorRegistry()))
    before = asyncio.all_tasks()
    async with queue.slot("line"):
        own_redis.pause()
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(queue.close(), 0.05)
        own_redis.resume()
        await queue.close()
    await wait_until(lambda: asyncio.all_tasks() == before, "no task is left")
