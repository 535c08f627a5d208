"""The faults; each is one step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tests.protocol.caller import Caller
from tests.protocol.instance import Instance
from tests.protocol.numbers import ANCIENT, FRESH, OLD
from tests.protocol.server import ALIVE, EXPIRED, LAPSED, REAPED, Data
from tests.protocol.state import Faults, Label, State, put

__all__ = ["Faulty"]


class Faulty:
    """The part of `World` that injects faults."""

    caller: Caller
    empty: Data

    def event(self, state: State, i: int, *event: Any) -> State:
        raise NotImplementedError

    def script(self, state: State, i: int, command: tuple[Any, ...]) -> tuple[State, Any]:
        raise NotImplementedError

    def answered(self, state: State, n: int, command: tuple[Any, ...], reply: Any) -> State:
        raise NotImplementedError

    def cut(self, state: State, i: int) -> State:
        raise NotImplementedError

    def aged(self, state: State, i: int, age: int) -> State:
        raise NotImplementedError

    def lease(self, state: State, i: int, deadline: int) -> State:
        raise NotImplementedError

    def quiet(self, state: State, i: int) -> bool:
        raise NotImplementedError

    def faulty(self, state: State, faults: Faults) -> Iterator[tuple[Label, Any]]:
        redis, instances, wires = state.redis, state.instances, state.wires

        def less(**changes: Any) -> State:
            [name] = changes or [""]
            return state._replace(faults=faults._replace(**{name: getattr(faults, name) - 1}))

        for i, me in enumerate(instances):
            lease = redis.records[i][3]
            if not me.alive:
                continue
            if faults.breaks and me.up:
                yield ("break", i), lambda i=i: self.cut(less(breaks=1), i)
            if faults.kills and me.session:
                yield ("kill", i), lambda i=i: self.kill(less(kills=1), i)
            if lease == ALIVE and not me.lapsed:
                if faults.lapses:
                    yield ("stop", i), lambda i=i: self.lapsed(self.lease(less(lapses=1), i, LAPSED), i)
                if faults.clock_steps:
                    yield (
                        ("clock", i),
                        lambda i=i: self.aged(self.lease(less(clock_steps=1), i, LAPSED), i, OLD),
                    )
            if faults.early and me.lease == 1 and not me.lapsed:
                yield ("early", i), lambda i=i: self.lapsed(less(early=1), i, FRESH)
            if faults.syncs and me.up and me.session and me.due and not me.lapsed:
                yield ("resync", i), lambda i=i: self.event(less(syncs=1), i, "sync soon")
            idle = me.up and me.session and all(ticket.view == "x" for ticket in me.tickets)
            if faults.forgets and idle and self.quiet(state, i) and me.confirmed == me.session:
                yield ("forget", i), lambda i=i: self.forgotten(less(forgets=1), i)
            if (
                faults.prunes
                and lease == REAPED
                and not any(w.owner == i and w.commands for w in wires)
            ):
                yield (
                    ("prune", i),
                    lambda i=i: self.aged(self.lease(less(prunes=1), i, EXPIRED), i, ANCIENT),
                )
            if faults.own_evictions and me.up and self.quiet(state, i):
                for member in redis.tickets:
                    yield (
                        ("own evict", i, member),
                        lambda i=i, m=member: self.own_evict(less(own_evictions=1), i, m),
                    )
        for member in redis.tickets if faults.evictions else ():
            run = ("evict", 0, 1, (member,))
            yield ("evict", member), lambda run=run: self.script(less(evictions=1), -1, run)[0]
        for n, entry in enumerate(redis.past if faults.expiries else ()):
            if entry[0].startswith((b"k", b"r")) and entry[2]:
                past = put(redis.past, n, (*entry[:2], False))
                yield (
                    ("expire", n),
                    lambda past=past: less(expiries=1)._replace(redis=redis._replace(past=past)),
                )
        known = any(record[0] for record in redis.records)
        if faults.losses and known:
            yield ("loss",), lambda: self.lose(self.all_cut(less(losses=1)))
        if faults.flushes and known:
            yield ("flush",), lambda: self.lose(less(flushes=1), "ewh")
        if faults.stale and known and not faults.replica:
            yield ("replica",), lambda: state._replace(faults=faults._replace(replica=redis))
        if faults.stale and faults.replica:
            yield ("stale",), lambda: self.fail_over(self.all_cut(less(stale=1)))
        if faults.moves and known:
            yield ("move",), lambda: less(moves=1)._replace(slot=1 - state.slot)
        for n, wire in enumerate(wires):
            if faults.rejects and wire.commands and wire.server == state.slot:
                yield ("reject", n), lambda n=n: self.reject(less(rejects=1), n)
            for k, reply in enumerate(wire.replies if faults.deaf else ()):
                if reply[0] == "push":
                    fewer = wire._replace(replies=(*wire.replies[:k], *wire.replies[k + 1 :]))
                    yield (
                        ("deaf", n, k),
                        lambda n=n, w=fewer: less(deaf=1)._replace(wires=put(wires, n, w)),
                    )

    def lapsed(self, state: State, i: int, age: int = OLD) -> State:
        """Its lease has lapsed, and so have the renewals by commands in flight."""
        state = self.aged(state, i, age)
        me = state.instances[i]
        wires = tuple(
            w._replace(
                commands=tuple((*c[:2], 0, *c[3:]) for c in w.commands),
                replies=tuple(
                    r if r[0] == "push" else ((*r[0][:2], 0, *r[0][3:]), r[1]) for r in w.replies
                ),
            ) if w.owner == i else w
            for w in state.wires
        )  # fmt: skip
        return state._replace(instances=put(state.instances, i, me._replace(lapsed=True)), wires=wires)

    def kill(self, state: State, i: int) -> State:
        wires = tuple(w._replace(current=False, replies=()) if w.owner == i else w for w in state.wires)
        dead = Instance(state.instances[i].last_session, alive=False, up=False)
        ghost = state.ghost._replace(synced=put(state.ghost.synced, i, True))
        return state._replace(instances=put(state.instances, i, dead), wires=wires, ghost=ghost)

    def forgotten(self, state: State, i: int) -> State:
        lease = state.redis.records[i][3]
        state = self.lease(state, i, LAPSED) if lease == ALIVE else state
        return self.event(self.lapsed(state, i), i, "forget")

    def own_evict(self, state: State, i: int, member: bytes) -> State:
        command = ("evict", state.instances[i].session, 1, (member,), (), True)
        wires = tuple(
            w._replace(commands=(*w.commands, command)) if w.current and w.owner == i else w
            for w in state.wires
        )
        return state._replace(wires=wires)

    def reject(self, state: State, n: int) -> State:
        wire = state.wires[n]
        state = state._replace(wires=put(state.wires, n, wire._replace(commands=wire.commands[1:])))
        return self.answered(state, n, wire.commands[0], ("error",))

    def all_cut(self, state: State) -> State:
        """The server was replaced: commands in flight to the old one are lost."""
        for i, me in enumerate(state.instances):
            if me.alive and me.up:
                state = self.cut(state, i)
        return state._replace(wires=())

    def lose(self, state: State, stages: str = "wh") -> State:
        synced = tuple(
            not me.alive or not (me.version or any(ticket.view in stages for ticket in me.tickets))
            for me in state.instances
        )
        return state._replace(
            redis=self.empty, ghost=state.ghost._replace(lost=1, synced=synced, used=())
        )

    def fail_over(self, state: State) -> State:
        replica = state.faults.replica
        assert replica is not None
        synced = tuple(not me.alive or not me.session for me in state.instances)
        return state._replace(
            redis=replica,
            faults=state.faults._replace(replica=None),
            ghost=state.ghost._replace(exempt=True, lost=2, synced=synced),
        )
