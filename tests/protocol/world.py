"""The steps of the model: Redis, instances, and the messages in flight between them.

Commands travel on wires, in order; replies and messages come back on the current wire of an instance. A
closed wire might still deliver its commands to Redis later; nobody reads its replies.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tests.protocol.caller import Caller
from tests.protocol.faulty import Faulty
from tests.protocol.instance import BrokenPromiseError, Instance
from tests.protocol.numbers import FRESH, canonical, first_session, renewal, replaced
from tests.protocol.promises import after_run, inside
from tests.protocol.server import ALIVE, CLOSED, EXPIRED, LAPSED, OPEN, Data, Server
from tests.protocol.state import Bound, Ghost, Label, State, Wire, order, put

__all__ = ["World"]


class World(Faulty):
    def __init__(self, bound: Bound, server: Server, caller: Caller) -> None:
        self.bound, self.server, self.caller = bound, server, caller
        self.calls = bound.calls
        self.count = max(call.owner for call in bound.calls) + 1
        self.empty = Data(((0, False, 0, 0),) * self.count)
        self.whole = bound.faults
        # The reply to an instance's own set_limit or evict reports grants to that instance. If the
        # connection is lost, so is the reply, and the next heartbeat finds the grants.
        own = bound.faults.own_evictions or any(i >= 0 for i, _ in bound.ops)
        self.unheard = bool(self.whole.deaf or self.whole.flushes or own)

    def start(self) -> State:
        return canonical(
            State(
                self.empty,
                tuple(Instance(first_session(i)) for i in range(self.count)),
                tuple(Wire(i, True) for i in range(self.count)),
                self.whole,
                (0,) * len(self.bound.ops),
                ghost=Ghost(self.bound.limit, synced=(True,) * self.count),
            )
        )

    # The parts of a step

    def event(self, state: State, i: int, *event: Any) -> State:
        """An instance has an event, and sends what its core wants to send."""
        step = self.caller.step(i, state.instances[i], event)
        wires = state.wires
        if step.commands:
            assert step.instance.up, "commands without a connection"
            wires = tuple(
                w._replace(commands=w.commands + step.commands) if w.current and w.owner == i else w
                for w in wires
            )
        return state._replace(instances=put(state.instances, i, step.instance), wires=wires)

    def script(self, state: State, i: int, command: tuple[Any, ...]) -> tuple[State, Any]:
        """Redis runs one script."""
        name, session, _, arguments, *_ = command
        if name in ("limit", "evict"):
            session = 0  # for the core when it reads the reply; the script gets none
        data, reply, published = self.server.run(state.redis, i, name, session, arguments)
        wires = state.wires
        for owner, message in published:
            wires = tuple(
                w._replace(replies=(*w.replies, message)) if w.current and w.owner == owner else w
                for w in wires
            )
        after = state._replace(redis=data, wires=wires)
        return after_run(self, state, after, i, command, reply), reply

    def run(self, state: State, n: int) -> State:
        """Redis runs the first command of wire `n`."""
        wire = state.wires[n]
        command = wire.commands[0]
        state = state._replace(wires=put(state.wires, n, wire._replace(commands=wire.commands[1:])))
        reply: Any = ("moved",)
        if wire.server == state.slot:
            state, reply = self.script(state, wire.owner, command)
        return self.answered(state, n, command, reply)

    def answered(self, state: State, n: int, command: tuple[Any, ...], reply: Any) -> State:
        wire = state.wires[n]
        if not wire.current:
            return state
        name, session, sent, arguments, handles, last = command
        short = arguments if name in ("limit", "evict") else ()
        replies = (*wire.replies, ((name, session, sent, short, handles, last), reply))
        return state._replace(wires=put(state.wires, n, wire._replace(replies=replies)))

    def read(self, state: State, n: int) -> State:
        wire = state.wires[n]
        first, i = wire.replies[0], wire.owner
        state = state._replace(wires=put(state.wires, n, wire._replace(replies=wire.replies[1:])))
        if first[0] == "push":
            return self.event(state, i, *first)
        command, reply = first
        if reply == ("moved",):
            state = self.cut(state, i)
            return self.connect(state, i, 1 - wire.server)
        after = self.event(state, i, "reply", command, reply)
        if command[0] == "beat" and reply[0] == 1 and self.quiet(after, i):
            me = after.instances[i]
            session, reaped, *_ = after.redis.records[i]
            if session == me.session == command[1] and not reaped and not self.agrees(after, i, me):
                raise BrokenPromiseError(
                    f"a heartbeat of {'ABC'[i]} does not find that Redis has other tickets of it"
                )
        return after

    def cut(self, state: State, i: int) -> State:
        wires = tuple(w._replace(current=False, replies=()) if w.owner == i else w for w in state.wires)
        return self.event(state._replace(wires=wires), i, "disconnected")

    def connect(self, state: State, i: int, server: int) -> State:
        state = state._replace(wires=(*state.wires, Wire(i, True, server)))
        return self.event(state, i, "connected")

    def finish(self, state: State) -> State:
        ghost, redis = state.ghost, state.redis
        held = {self.caller.by_member[member] for _, member in redis.holding}
        count = len(held.union(inside(self, state)))
        limit = self.limit(redis)
        allowed = max(limit, min(ghost.allowed, count))
        exempt = ghost.exempt and (ghost.lost > 0 or count > limit)
        if (allowed, exempt) != (ghost.allowed, ghost.exempt):
            ghost = ghost._replace(allowed=allowed, exempt=exempt)
        wires = tuple(w for w in state.wires if w.current or w.commands)
        state = canonical(state._replace(wires=wires, ghost=ghost))
        return state._replace(wires=tuple(sorted(state.wires, key=order)))

    def aged(self, state: State, i: int, age: int) -> State:
        """Instance `i`'s last known renewal becomes older than `age`."""
        new = {renewal(i, younger): renewal(i, age) for younger in range(FRESH, age)}
        instances = put(state.instances, i, replaced(state.instances[i], new))
        return state._replace(
            instances=instances,
            wires=tuple(replaced(w, new) if w.owner == i else w for w in state.wires),
        )

    def lease(self, state: State, i: int, deadline: int) -> State:
        record = (*state.redis.records[i][:3], deadline)
        return state._replace(redis=state.redis._replace(records=put(state.redis.records, i, record)))

    # Every possible step

    def steps(self, state: State) -> Iterator[tuple[Label, State]]:
        for label, after in self._steps(state):
            yield label, self.finish(after)

    def _steps(self, state: State) -> Iterator[tuple[Label, State]]:
        self.label: Label = ()

        def tried(label: Label) -> Label:
            self.label = label  # the step that a `BrokenPromiseError` is about
            return label

        redis, instances, wires, faults, _, _, ghost = state
        for n, wire in enumerate(wires):
            if wire.commands:
                yield tried(("run", n)), self.run(state, n)
                if not wire.current:
                    yield tried(("gone", n)), state._replace(wires=(*wires[:n], *wires[n + 1 :]))
            if wire.replies and instances[wire.owner].alive:
                yield tried(("read", n)), self.read(state, n)
        for i, me in enumerate(instances):
            if me.alive:
                for label, call in self.live(state, i, me):
                    yield tried(label), call()
            elif redis.records[i][3] == ALIVE:
                yield tried(("dead", i)), self.lease(state, i, LAPSED)
        if redis.until == OPEN and all(
            done or not me.alive or me.lapsed for done, me in zip(ghost.synced, instances, strict=True)
        ):
            yield tried(("closed",)), state._replace(redis=redis._replace(until=CLOSED))
        if any(record[3] == LAPSED for record in redis.records):
            yield tried(("look",)), self.script(state, -1, ("stats", 0, 1, ()))[0]
        for label, call in self.operators(state):
            yield tried(label), call()
        for label, call in self.faulty(state, faults):
            yield tried(label), call()

    def live(self, state: State, i: int, me: Instance) -> Iterator[tuple[Label, Any]]:
        there = {ticket.call: ticket for ticket in me.tickets}
        may_enter = True
        for k, call in enumerate(self.calls):
            if call.owner != i:
                continue
            ticket = there.get(k)
            if ticket is None:
                if may_enter:  # in the order of their serials
                    place = dict(state.ghost.kept).get(call.takes, 0)
                    if call.takes < 0 or place:
                        yield ("enter", k), lambda k=k, p=place: self.event(state, i, "enter", k, p)
                may_enter = False
            elif ticket.view in "ewh":
                holds = ticket.view == "h"
                if holds or not self.bound.calm:
                    yield ("leave", k, holds), lambda k=k: self.event(state, i, "leave", k, False)
                if call.keeps and ticket.view == "w":
                    yield ("keep", k), lambda k=k, p=ticket.number: self.kept(state, i, k, p)
        if not me.up:
            yield ("connect", i), lambda: self.connect(state, i, state.slot)
        elif me.lapsed or me.lease == 0:  # seen with the next event at the latest
            yield ("lapse", i), lambda: self.event(state, i, "tick")
        elif self.due(state, i, me):
            yield ("tick", i), lambda: self.event(state, i, "tick")

    def kept(self, state: State, i: int, k: int, place: int) -> State:
        ghost = state.ghost._replace(kept=tuple(sorted((*state.ghost.kept, (k, place)))))
        return self.event(state._replace(ghost=ghost), i, "leave", k, True)

    def quiet(self, state: State, i: int) -> bool:
        return not any(w.owner == i and w.current and (w.commands or w.replies) for w in state.wires)

    def agrees(self, state: State, i: int, me: Instance) -> bool:
        """Whether Redis has the tickets of this instance that its core expects."""
        mine = [ticket for ticket in me.tickets if ticket.stage in "wh"]
        prefix = b"%c:" % (97 + i)
        redis = state.redis
        return sum(member.startswith(prefix) for member in redis.tickets) == len(mine) and sorted(
            number for number, member in redis.holding if member.startswith(prefix)
        ) == sorted(ticket.number for ticket in mine if ticket.stage == "h")

    def due(self, state: State, i: int, me: Instance) -> bool:
        """Whether a timer would have an effect; a heartbeat runs only if nothing is in flight."""
        if not me.up or not me.due or me.lapsed:
            return False
        here = any(ticket.view != "x" for ticket in me.tickets)
        if me.beats < 0 or not here:
            return True
        if me.beating or me.confirmed != me.session or not self.quiet(state, i):
            return False
        redis = state.redis
        session, reaped, _, lease = redis.records[i]
        if session != me.session or reaped or lease != ALIVE or not self.agrees(state, i, me):
            return True
        if any(record[3] in (LAPSED, EXPIRED) for record in redis.records):
            return True
        return redis.until != OPEN and bool(redis.waiting) and len(redis.holding) < self.limit(redis)

    @staticmethod
    def limit(redis: Data) -> int:
        return int(redis.override or redis.limit or b"1")

    def operators(self, state: State) -> Iterator[tuple[Label, Any]]:
        """set_limit by an outsider, in two steps, so that it might be late; or by an instance."""
        for k, (i, limit) in enumerate(self.bound.ops):
            version = state.redis.key[0] if state.redis.key else 0
            word = b"" if limit is None else b"%d" % limit
            if state.ops[k] == 0 and all(state.ops[:k]):
                if i >= 0:
                    if not state.instances[i].up or not state.instances[i].alive:
                        continue
                    command = ("limit", state.instances[i].session, 1, (version, word), (), True)
                    wires = tuple(
                        w._replace(commands=(*w.commands, command)) if w.current and w.owner == i else w
                        for w in state.wires
                    )
                    yield (
                        ("set", k),
                        lambda k=k, w=wires: state._replace(wires=w, ops=put(state.ops, k, 1)),
                    )
                else:
                    yield (
                        ("set", k),
                        lambda k=k, v=version: state._replace(ops=put(state.ops, k, v or 9)),
                    )
            elif state.ops[k] > 1:
                old = 0 if state.ops[k] == 9 else state.ops[k]
                yield (
                    ("set now", k),
                    lambda k=k, run=("limit", 0, 1, (old, word)): self.set_now(state, k, run),
                )

    def set_now(self, state: State, k: int, run: tuple[Any, ...]) -> State:
        after, reply = self.script(state._replace(ops=put(state.ops, k, 1)), -1, run)
        if reply[0] and 1 in state.ops[k + 1 :]:
            raise BrokenPromiseError("a late set_limit undoes a newer one")
        return after

    def member(self, member: bytes) -> str:
        """The name of its call."""
        return self.calls[self.caller.by_member[member]].name
