"""A Redis Cluster: one ordered link to each master in use; each command goes to the one with its slot.

All keys of a queue are in one hash slot, so all of a queue's commands go to one node, over one link, in
order. What this module adds to `link` is to keep that order while slots change hands.

A command that is refused because its slot is elsewhere (MOVED), on its way (ASK, TRYAGAIN) or nowhere
(CLUSTERDOWN) was not carried out. Its slot then gets a *lane*, which holds its commands back until

1. those that are still on their way have come home, in order: refused, answered, or taken back because
   the connection broke. Nothing of the slot goes anywhere meanwhile, so nothing overtakes them;
2. the first of them, sent alone to the slot's owner as now known, is answered. Alone, because whether
   the next is refused may depend on the microsecond in which the slot arrives.

Then the lane ends, and what it holds is said in order. So a command of a slot is in one place: in its
lane, or on the link to its owner, or among the last on the link to whoever was its owner.

While a slot migrates, its keys are on two nodes, and Redis checks each key when a script touches it.
One that is not here (or nowhere: an empty line has no key) ends the script half way, its first writes
done. If a *declared* key is not here, Redis refuses the script before it begins. So here every script
declares one key more, which never exists: scripts are refused while their slot migrates, whole, on
both sides, and a queue stands still as long as its slot takes. For that reason nothing follows ASK.

The map of slots is asked for at the start, when a node is lost or says that a slot has moved, and once
a minute. Wake-ups are published to every node, so one subscriber on any of them hears all.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Sequence
from functools import partial
from typing import Any, TypeAlias

from redis import exceptions as redis_errors
from redis.asyncio import RedisCluster
from redis.asyncio.connection import AbstractConnection
from redis.crc import key_slot

from genesis.backends.redis.endpoint import Endpoint, settings
from genesis.backends.redis.link import (
    Breaks,
    Command,
    Link,
    Refused,
    Unreachable,
    backoff,
    conclude,
    end,
    reason_of,
    release,
)
from genesis.backends.redis.scripts import Script

__all__ = ["ClusterLink", "Nodes"]

Address: TypeAlias = tuple[str, int]

_SLOTS = 16384
_LOOK_EVERY = 60.0  # seconds between two looks at the map when nothing is wrong
_LOOK_AGAIN = 0.25  # ... while a node is out of reach: its replica may have taken over
_LOOK_AFTER_MOVE = 1.0  # ... while slots move: the move itself is known, others may come
_SILENT = 1.0  # seconds without a reply after which the map is asked whether a node was replaced
_MAX_PAUSE = 0.2  # seconds between two tries of a slot that is on its way
_NEVER = b"never"


class Nodes:
    """How the nodes of a given client's cluster are connected to, and the first to ask."""

    def __init__(self, client: RedisCluster, timeout: float) -> None:
        seeds = list(client.nodes_manager.startup_nodes.values())
        self.seeds: list[Address] = [(node.host, int(node.port)) for node in seeds]
        self._class: type[AbstractConnection] = seeds[0].connection_class
        self._kwargs = settings(self._class, seeds[0].connection_kwargs, timeout)
        self._remap = client.nodes_manager.remap_host_port

    def reach(self, host: str, port: int) -> Address:
        """The address at which a node that calls itself `host` is reached from here."""
        host, port = self._remap(host, port)
        return host, int(port)

    def endpoint(self, address: Address, gone: Callable[[Address], bool]) -> _NodeEndpoint:
        kwargs = {**self._kwargs, "host": address[0], "port": address[1]}
        return _NodeEndpoint(self._class, kwargs, address, gone)


class _NodeEndpoint(Endpoint):
    def __init__(
        self,
        connection_class: type[AbstractConnection],
        kwargs: dict[str, Any],
        address: Address,
        gone: Callable[[Address], bool],
    ) -> None:
        super().__init__(connection_class, kwargs)
        self.address = address
        self._gone = gone

    def left(self, connection: AbstractConnection) -> bool:  # noqa: ARG002
        return self._gone(self.address)


class _Node:
    """A master in use."""

    __slots__ = ("address", "link", "outcast", "part")

    def __init__(self, address: Address) -> None:
        self.address = address
        self.part = f"link {address[0]}:{address[1]}"
        self.link: Link
        self.outcast = False  # it has said that it knows of no majority; its map is not to be trusted


class _Lane:
    """The commands of one slot that are held back: `home`, then `awaited` if any, then `held`."""

    __slots__ = (
        "awaited",
        "held",
        "home",
        "moves",
        "node",
        "reported",
        "slot",
        "timer",
        "told",
        "tries",
        "why",
    )

    def __init__(self, slot: int, why: str) -> None:
        self.slot = slot
        self.why = why
        self.home: deque[Command] = deque()  # came back
        self.held: deque[Command] = deque()  # said since, or never written
        self.awaited: Command | None = None  # the last on its way, on the link of `node`
        self.told: Callable[[Any], None] | None = None  # its own on_answer
        self.node: _Node | None = None
        self.tries = 0
        self.moves = 0  # how often a try was answered by MOVED
        self.timer: asyncio.TimerHandle | None = None
        self.reported = False

    def commands(self) -> tuple[Command, ...]:
        return (*self.home, *self.held)


class ClusterLink:
    """What `Link` is for one server, for a cluster. Belongs to the event loop in which it is made.

    Args:
        nodes: how to connect.
        timeout: seconds after which a command without an answer fails.
        on_up: called with the part (a node, a slot, the map) that is reached again.
        on_down: called with a part, a reason and a detail when it is not reached.
        on_change: called when any queue may be served by another node, or by one that was away.
    """

    def __init__(
        self,
        nodes: Nodes,
        timeout: float,
        on_up: Callable[[str], None],
        on_down: Callable[[str, str, str], None],
        on_change: Callable[[], None],
    ) -> None:
        self._source = nodes
        self._timeout = timeout
        self._on_up = on_up
        self._on_down = on_down
        self._on_change = on_change
        self._loop = asyncio.get_running_loop()
        self._owners: list[Address | None] = [None] * _SLOTS
        self._masters: set[Address] = set()
        self._replicas: set[Address] = set()
        self._nodes: dict[Address, _Node] = {}
        self._lanes: dict[int, _Lane] = {}
        self._no_lanes = asyncio.Event()
        self._no_lanes.set()
        self._tick = min(_LOOK_AGAIN, timeout / 10)
        self._watchdog = self._loop.call_later(self._tick, self._watch)
        self._closed = False
        self._breaks = Breaks()
        self._retiring: dict[asyncio.Task[None], _Node] = {}
        self._look_wanted = asyncio.Event()
        self._look_timer: asyncio.TimerHandle | None = None
        self._look_due = 0.0  # of `_look_timer`; uvloop handles might have no `when()`
        self._task = self._loop.create_task(self._keep_map(), name="genesis-redis-map")

    @property
    def up(self) -> bool:
        return any(node.link.up for node in self._nodes.values())

    @property
    def breaks(self) -> int:
        """See `Link`."""
        return self._breaks.count

    def subscribe_at(self) -> Endpoint:
        """Any node hears all wake-ups; one that is likely to answer."""
        return self._endpoint(self._in_order_of_trust(self._masters or self._source.seeds)[0])

    def trouble(self, keys: Sequence[bytes]) -> str:
        """Why a command on `keys` cannot be said at once; '' if it can."""
        slot = key_slot(keys[0])
        if slot in self._lanes:
            return self._lanes[slot].why
        node = self._nodes.get(self._owners[slot] or ("", 0))
        return "not connected yet" if node is None else node.link.trouble(keys)

    def call(
        self,
        script: Script,
        keys: Sequence[bytes],
        arguments: Sequence[bytes],
        *,
        again: tuple[bytes, ...] = (),
        since: int | None = None,
        on_answer: Callable[[Any], None] | None = None,
        lasting: bool = False,
    ) -> Command:
        """Say a command, as `Link.call` does. Its place in the queue's order is taken at once."""
        keys = (*keys, keys[0][: -len(b"meta")] + _NEVER)
        expires = math.inf if lasting else self._loop.time() + self._timeout
        reply = self._loop.create_future()
        breaks = self.breaks if since is None else since
        command = Command(script, keys, arguments, again, on_answer, reply, expires, breaks)
        self._say(command)
        return command

    def abandon(self, command: Command) -> bool:
        """Nobody wants this command any more: returns whether Redis may carry it out all the same."""
        command.reply.cancel()
        lane = self._lanes.get(_slot_of(command))
        if lane is not None:
            for place in (lane.home, lane.held):
                if command in place:
                    place.remove(command)
        for node in self._nodes.values():
            node.link.abandon(command)
        if lane is not None and lane.awaited is command and lane.node is not None:
            on_its_way = command in lane.node.link.unanswered()
            if not on_its_way:
                self._bring_home(lane)
        return command.sent

    async def drain(self, timeout: float) -> None:
        """Wait until all that was said is answered, `timeout` seconds at most."""
        until = self._loop.time() + timeout
        while (left := until - self._loop.time()) > 0 and (owing := self._owing()):
            waiting = [asyncio.ensure_future(each) for each in owing]
            await asyncio.wait(waiting, timeout=left)
            for each in waiting:
                each.cancel()

    def _owing(self) -> list[Coroutine[Any, Any, Any]]:
        # Asked anew each time: what a node refuses as moved is held in a lane, then said to another.
        lanes = [self._no_lanes.wait()] if self._lanes else []
        busy = [node.link for node in self._nodes.values() if node.link.owes]
        return [*lanes, *(link.drain(self._timeout) for link in busy)]

    async def close(self) -> None:
        """Stop at once; commands without an answer, and all that are said later, fail."""
        self._closed = True
        await end(self._task)
        self._watchdog.cancel()
        if self._look_timer is not None:
            self._look_timer.cancel()
        for task, node in list(self._retiring.items()):
            await end(task)
            await node.link.close()
        for lane in self._lanes.values():
            if lane.timer is not None:
                lane.timer.cancel()
            for command in lane.commands():
                conclude(command, Unreachable("the backend was closed"))
        for node in self._nodes.values():
            await node.link.close()
        self._nodes.clear()
        self._lanes.clear()

    # Commands and lanes

    def _say(self, command: Command) -> None:
        if self._closed:
            conclude(command, Unreachable("the backend was closed"))
            return
        slot = _slot_of(command)
        lane = self._lanes.get(slot)
        node = self._owner(slot) if lane is None else None
        if node is not None:
            node.link.say(command)
            return
        if lane is None:
            lane = self._open_lane(slot, "no node that serves its hash slot is known")
            self._try_later(lane)
        lane.held.append(command)

    def _owner(self, slot: int) -> _Node | None:
        address = self._owners[slot]
        if address is None:
            return None
        node = self._nodes.get(address)
        if node is None:
            node = self._nodes[address] = _Node(address)
            node.link = Link(
                self._endpoint(address),
                self._timeout,
                partial(self._node_up, node),
                partial(self._node_down, node),
                partial(self._redirected, node),
                self._breaks,
            )
        return node

    def _endpoint(self, address: Address) -> Endpoint:
        return self._source.endpoint(address, self._is_gone)

    def _is_gone(self, address: Address) -> bool:
        return bool(self._masters) and address not in self._masters

    def _redirected(self, node: _Node, command: Command, refusal: redis_errors.ResponseError) -> bool:
        """Called by a link with a command that its node refused; returns whether it is held here."""
        moved = isinstance(refusal, redis_errors.MovedError)
        if not moved and not isinstance(
            refusal,
            (redis_errors.AskError, redis_errors.TryAgainError, redis_errors.ClusterDownError),
        ):
            return False
        slot = _slot_of(command)
        if isinstance(refusal, redis_errors.MovedError):
            self._owners[slot] = self._source.reach(refusal.host or node.address[0], refusal.port)
            self._look_in(_LOOK_AFTER_MOVE)
        elif isinstance(refusal, redis_errors.ClusterDownError):
            node.outcast = True
            self._look_in(0.0)
        lane = self._lanes.get(slot)
        if lane is None:
            lane = self._hold(slot, node, "")
        lane.why = f"its hash slot {slot}: {type(refusal).__name__}: {refusal}"
        if not moved:
            self._report(lane, reason_of(refusal))
        lane.moves += moved and lane.awaited in (None, command)
        lane.home.append(command)
        if lane.awaited is command:
            self._stop_awaiting(lane)
        if lane.awaited is None:
            # A second word of a move is one of two nodes that do not agree yet.
            self._try_later(lane, at_once=moved and lane.moves == 1)
        return True

    def _hold(self, slot: int, node: _Node, why: str) -> _Lane:
        """Open a lane for a slot that `node` does not serve, with all that is not answered."""
        lane = self._open_lane(slot, why)
        lane.held.extend(node.link.withdraw(lambda command: _slot_of(command) == slot))
        on_their_way = [c for c in node.link.unanswered() if _slot_of(c) == slot]
        if on_their_way:
            self._await(lane, node, on_their_way[-1])
        return lane

    def _open_lane(self, slot: int, why: str) -> _Lane:
        lane = self._lanes[slot] = _Lane(slot, why)
        self._no_lanes.clear()
        return lane

    def _await(self, lane: _Lane, node: _Node, command: Command) -> None:
        """Let the lane end as soon as this command, the last that is on its way, is answered."""
        told = lane.told = command.on_answer
        lane.awaited, lane.node = command, node

        def answered(answer: Any) -> None:
            lane.told = None
            try:
                if told is not None:
                    told(answer)
            finally:
                if not isinstance(answer, Unreachable):
                    node.outcast = False
                if not isinstance(answer, Unreachable) or isinstance(answer, Refused) or self._closed:
                    lane.awaited = None
                    self._end_lane(lane)
                elif command not in node.link.unanswered():
                    self._bring_home(lane)
                # else it was given up, and its connection is about to be: `_node_down` goes on. What
                # is held is not said before that break is counted, and overtakes nothing.

        command.on_answer = answered

    def _stop_awaiting(self, lane: _Lane) -> None:
        if lane.awaited is not None:
            lane.awaited.on_answer = lane.told
        lane.awaited = lane.told = lane.node = None

    def _bring_home(self, lane: _Lane) -> None:
        """What was on its way is not any more, because its connection broke: have it back."""
        node = lane.node
        self._stop_awaiting(lane)
        if node is not None:
            lane.home.extend(node.link.withdraw(lambda command: _slot_of(command) == lane.slot))
        self._try_later(lane)

    def _try_later(self, lane: _Lane, *, at_once: bool = False) -> None:
        if lane.timer is not None:
            lane.timer.cancel()
        delay = 0.0 if at_once else min(_MAX_PAUSE, backoff(lane.tries))
        if not at_once:
            for command in lane.commands():
                if command.expires == math.inf:  # it will be said; its caller need not wait for that
                    release(command, lane.why)
        lane.tries += 1
        lane.timer = self._loop.call_later(delay, self._try, lane)

    def _try(self, lane: _Lane) -> None:
        """Send the first command of the lane to the slot's owner, alone."""
        lane.timer = None
        lane.held.extendleft(reversed(lane.home))
        lane.home.clear()
        while lane.held and not lane.held[0].wanted:
            conclude(lane.held.popleft(), Unreachable(lane.why))
        if not lane.held:
            self._end_lane(lane)
            return
        node = self._owner(lane.slot)
        if node is None:
            self._look_in(0.0)
            self._try_later(lane)
            return
        first = lane.held.popleft()
        self._await(lane, node, first)
        node.link.say(first)

    def _end_lane(self, lane: _Lane) -> None:
        if self._lanes.get(lane.slot) is not lane:
            return
        if lane.timer is not None:
            lane.timer.cancel()
        del self._lanes[lane.slot]
        if not self._lanes:
            self._no_lanes.set()
        if lane.reported:
            self._on_up(_part(lane))
        for command in lane.commands():
            self._say(command)

    def _report(self, lane: _Lane, reason: str) -> None:
        lane.reported = True
        self._on_down(_part(lane), reason, lane.why)

    def _watch(self) -> None:
        """Ends what has waited in a lane for longer than its time; asks about a node that is silent."""
        now = self._loop.time()
        for lane in list(self._lanes.values()):
            late = [command for command in lane.commands() if command.expires <= now]
            for command in late:
                (lane.home if command in lane.home else lane.held).remove(command)
            for command in late:
                text = f"it is out of reach ({lane.why}), and {self._timeout:g} s have passed"
                conclude(command, Unreachable(text))
        if any(self._is_silent(node) for node in self._nodes.values()):
            # Its replica may have taken over, long before the connection is given up as dead.
            self._look_in(_LOOK_AGAIN)
        self._watchdog = self._loop.call_later(self._tick, self._watch)

    # Nodes and the map

    def _node_up(self, node: _Node) -> None:
        self._on_up(node.part)
        self._on_change()

    def _node_down(self, node: _Node, reason: str, detail: str) -> None:
        self._on_down(node.part, reason, detail)
        for lane in list(self._lanes.values()):
            if lane.node is node and lane.awaited is not None:
                self._bring_home(lane)
        self._look_in(0.0)

    def _look_in(self, seconds: float) -> None:
        """Look at the map in so many seconds, or sooner if that is intended already."""
        when = self._loop.time() + seconds
        if self._look_timer is not None:
            if self._look_due <= when:
                return
            self._look_timer.cancel()
        self._look_due = when
        self._look_timer = self._loop.call_at(when, self._look_wanted.set)

    async def _keep_map(self) -> None:
        failures = 0
        while True:
            try:
                self._take_in(*await self._look())
            except Exception as error:  # whatever it is, it must not end the looks in silence
                text = f"the map of slots: {self._endpoint(self._source.seeds[0]).tell(error)}"
                self._on_down("map", reason_of(error), text)
                for lane in self._lanes.values():
                    if self._owners[lane.slot] is None:
                        lane.why = text
                failures += 1
            else:
                self._on_up("map")
                failures = 0
            # At least this long between two looks, whoever wants them.
            await asyncio.sleep(backoff(failures))
            away = any(not node.link.up for node in self._nodes.values())
            self._look_in(0.0 if failures else _LOOK_AGAIN if away else _LOOK_EVERY)
            await self._look_wanted.wait()
            self._look_wanted.clear()
            self._look_timer = None

    async def _look(self) -> tuple[list[Address | None], set[Address], set[Address]]:
        """Ask one node after the other for the map, until one answers."""
        known = {*self._masters, *self._replicas, *self._source.seeds}
        share = max(self._timeout / 4, min(self._timeout, 1.0))
        broken: Exception = redis_errors.ConnectionError("no node of the cluster is known")
        for address in self._in_order_of_trust(known):
            try:
                rows = await asyncio.wait_for(self._ask(address), share)
                return self._read_map(rows, address)
            except asyncio.TimeoutError:
                broken = redis_errors.TimeoutError(f"no answer from {address} within {share:g} s")
            except (redis_errors.RedisError, OSError) as error:
                broken = error
        raise broken

    async def _ask(self, address: Address) -> Any:
        connection = self._endpoint(address).connection()
        try:
            await connection.connect()  # type: ignore[no-untyped-call]
            packed = connection.pack_command("CLUSTER", "SLOTS")
            await connection.send_packed_command(packed, check_health=False)
            return await connection.read_response(timeout=math.inf, disconnect_on_error=False)
        finally:
            await connection.disconnect(nowait=True)

    def _read_map(
        self, rows: Any, asked: Address
    ) -> tuple[list[Address | None], set[Address], set[Address]]:
        """`[first slot, last slot, master, replica, ...]`; a node is `[host, port, ...]`."""
        owners: list[Address | None] = [None] * _SLOTS
        masters: set[Address] = set()
        replicas: set[Address] = set()
        for first, last, *nodes in rows:
            # A node that does not know its own name leaves it out.
            found = [self._source.reach((n[0] or b"").decode() or asked[0], n[1]) for n in nodes]
            masters.add(found[0])
            replicas.update(found[1:])
            owners[first : last + 1] = [found[0]] * (last + 1 - first)
        if not masters:
            raise redis_errors.ClusterDownError("CLUSTERDOWN no node serves any slot")
        return owners, masters, replicas

    def _take_in(
        self, owners: list[Address | None], masters: set[Address], replicas: set[Address]
    ) -> None:
        changed = owners != self._owners
        self._owners, self._masters, self._replicas = owners, masters, replicas
        for lane in list(self._lanes.values()):
            node = lane.node
            if lane.awaited is None:
                self._try_later(lane, at_once=lane.tries <= 1)
            elif node is not None and node.address != owners[lane.slot] and not node.link.up:
                self._bring_home(lane)
        for node in list(self._nodes.values()):
            self._let_go(node)
        if changed:
            self._on_change()

    def _let_go(self, node: _Node) -> None:
        """Hold what `node` has of slots that are not its own any more; leave it if it has none."""
        pending = (*node.link.unanswered(), *node.link.withdrawable())
        for slot in {_slot_of(command) for command in pending}:
            if self._owners[slot] != node.address and slot not in self._lanes:
                lane = self._hold(slot, node, f"its hash slot {slot} has moved")
                if lane.awaited is None:
                    self._try_later(lane, at_once=True)
        if node.address not in self._masters:
            del self._nodes[node.address]
            task = self._loop.create_task(self._retire(node), name="genesis-redis-retire")
            self._retiring[task] = node
            task.add_done_callback(self._retiring.pop)

    async def _retire(self, node: _Node) -> None:
        """Leave a node that has no slots any more, once it has answered what is on its way to it.

        It gets a moment for that. If it does not answer it was replaced because of that, and what it
        carries out later is thrown away with the rest of what it has.
        """
        if node.link.up and not self._is_silent(node):
            await node.link.drain(self._timeout / 10)
        left = node.link.take_all()
        lanes = [lane for lane in self._lanes.values() if lane.node is node]
        for lane in lanes:
            self._stop_awaiting(lane)
        for command in left:
            lane_of_it = self._lanes.get(_slot_of(command))
            if lane_of_it in lanes and lane_of_it is not None:
                lane_of_it.home.append(command)
            else:
                self._say(command)
        for lane in lanes:
            self._try_later(lane)
        await node.link.close()
        self._on_up(node.part)  # it is not missed

    def _in_order_of_trust(self, addresses: Iterable[Address]) -> list[Address]:
        """Shuffled, but whoever is out of reach, silent or in a minority comes last."""
        found = list(addresses)
        random.shuffle(found)
        return sorted(found, key=self._doubtful)

    def _doubtful(self, address: Address) -> bool:
        node = self._nodes.get(address)
        return node is not None and (node.outcast or not node.link.up or self._is_silent(node))

    def _is_silent(self, node: _Node) -> bool:
        return node.link.silent(self._loop.time()) > min(_SILENT, self._timeout / 5)


def _slot_of(command: Command) -> int:
    slot: int = key_slot(command.keys[0])
    return slot


def _part(lane: _Lane) -> str:
    return f"slot {lane.slot}"
