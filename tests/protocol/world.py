"""The states of a small line: Redis, instances, what is on its way between them; and every possible step.

Commands travel on wires, in order; replies and messages come back on the current wire of an instance. A wire
that broke might still deliver its commands, later, to Redis; nobody reads its replies.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from tests.protocol.caller import Call, Caller, Instance, Wrong
from tests.protocol.numbers import ANCIENT, FRESH, OLD, canonical, first_session, renewal, replaced
from tests.protocol.promises import after_run, broken_promise, inside
from tests.protocol.server import ALIVE, CLOSED, EXPIRED, LAPSED, OPEN, REAPED, Data, Server

__all__ = ["Bound", "Faults", "Ghost", "State", "Wire", "World"]

Label = tuple[Any, ...]


class Faults(NamedTuple):
    """How many may still come."""

    breaks: int = 0
    kills: int = 0
    lapses: int = 0  # an instance is stopped for longer than its lease
    clock_steps: int = 0  # of Redis: a lease ends early
    early: int = 0  # an instance's own clock says that its lease has passed
    evictions: int = 0  # by somebody else
    own_evictions: int = 0  # by an instance
    losses: int = 0  # Redis restarts empty
    flushes: int = 0  # it loses its data, connections stay
    stale: int = 0  # fail-over to a replica that is behind
    moves: int = 0  # of the slot to the other server
    syncs: int = 0  # without a reason: the full heartbeat
    forgets: int = 0  # an idle instance's lease ends, and it forgets the queue
    prunes: int = 0  # the record of a reaped instance expires
    rejects: int = 0  # Redis answers with an error, and does nothing
    deaf: int = 0  # a message is lost, the connection is not
    expiries: int = 0  # a kept place expires
    replica: Data | None = None


class Ghost(NamedTuple):
    """What no party knows; for the promises."""

    allowed: int = 1  # so many may hold: the limit, or those who held before it was lowered
    lost: int = 0  # 1: data was lost; 2: and an instance that knew it has synced
    exempt: bool = False  # the limit is exceeded as README.md says that it may be
    synced: tuple[bool, ...] = ()  # since the loss
    evicted: tuple[int, ...] = ()
    kept: tuple[tuple[int, int], ...] = ()  # call that left its place, which
    used: tuple[tuple[int, int], ...] = ()  # ... and by which call it was taken


class Wire(NamedTuple):
    owner: int
    current: bool
    server: int = 0
    commands: tuple[Any, ...] = ()
    replies: tuple[Any, ...] = ()


class State(NamedTuple):
    redis: Data
    instances: tuple[Instance, ...]
    wires: tuple[Wire, ...]
    faults: Faults
    ops: tuple[int, ...] = ()  # set_limits: 0 new, 1 done, otherwise the version that the command carries
    slot: int = 0  # the server of the queue
    ghost: Ghost = Ghost()


class Bound(NamedTuple):
    name: str
    calls: tuple[Call, ...]
    faults: Faults = Faults()
    ops: tuple[tuple[int, int | None], ...] = ()  # set_limits: instance or -1, limit
    page: int = 500
    portion: int = 500
    calm: bool = False  # nobody gives up
    patience: bool = False  # nobody leaves at all but holders, and these only once
    limit: int = 1
    seconds: float = 0  # about what it takes


def put(items: tuple[Any, ...], index: int, item: Any) -> tuple[Any, ...]:
    return (*items[:index], item, *items[index + 1 :])


def order(wire: Wire) -> tuple[Any, ...]:
    return wire.owner, wire.current, wire.server, hash(wire.commands)


class World:
    def __init__(self, bound: Bound, server: Server, caller: Caller) -> None:
        self.bound, self.server, self.caller = bound, server, caller
        self.calls = bound.calls
        self.count = max(call.owner for call in bound.calls) + 1
        self.empty = Data(((0, False, 0, 0),) * self.count)
        self.whole = bound.faults
        # What an instance's own set_limit or evict grants to it comes in the reply: a break loses that, and
        # the next heartbeat finds it.
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
                w._replace(commands=w.commands + step.commands) if w.current and w.owner == i else w for w in wires
            )
        return state._replace(instances=put(state.instances, i, step.instance), wires=wires)

    def script(self, state: State, i: int, command: tuple[Any, ...]) -> tuple[State, Any]:
        """Redis runs one script."""
        name, session, _, arguments, *_ = command
        if name in ("limit", "evict"):
            session = 0  # what the core needs when it reads the reply; the script gets none
        data, reply, published = self.server.run(state.redis, i, name, session, arguments)
        wires = state.wires
        for owner, message in published:
            wires = tuple(
                w._replace(replies=(*w.replies, message)) if w.current and w.owner == owner else w for w in wires
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
                raise Wrong(f"a heartbeat of {'ABC'[i]} does not find that Redis has other tickets of it")
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
        """All that instance `i` knows of its last renewal is older than that now."""
        new = {renewal(i, younger): renewal(i, age) for younger in range(FRESH, age)}
        instances = put(state.instances, i, replaced(state.instances[i], new))
        return state._replace(
            instances=instances, wires=tuple(replaced(w, new) if w.owner == i else w for w in state.wires)
        )

    def lease(self, state: State, i: int, deadline: int) -> State:
        record = (*state.redis.records[i][:3], deadline)
        return state._replace(redis=state.redis._replace(records=put(state.redis.records, i, record)))

    # Every step that is possible

    def steps(self, state: State) -> Iterator[tuple[Label, State]]:
        for label, after in self._steps(state):
            yield label, self.finish(after)

    def _steps(self, state: State) -> Iterator[tuple[Label, State]]:
        self.label: Label = ()

        def tried(label: Label) -> Label:
            self.label = label  # the step that a `Wrong` is about
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
        """Whether Redis has of this instance what its core thinks that it has."""
        mine = [ticket for ticket in me.tickets if ticket.stage in "wh"]
        prefix = b"%c:" % (97 + i)
        redis = state.redis
        return sum(member.startswith(prefix) for member in redis.tickets) == len(mine) and sorted(
            number for number, member in redis.holding if member.startswith(prefix)
        ) == sorted(ticket.number for ticket in mine if ticket.stage == "h")

    def due(self, state: State, i: int, me: Instance) -> bool:
        """A timer is modelled where something comes of it; a heartbeat only when nothing is on its way."""
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
        """set_limit: by an outsider in two steps, so that it might come late; or by an instance."""
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
                    yield ("set", k), lambda k=k, w=wires: state._replace(wires=w, ops=put(state.ops, k, 1))
                else:
                    yield ("set", k), lambda k=k, v=version: state._replace(ops=put(state.ops, k, v or 9))
            elif state.ops[k] > 1:
                old = 0 if state.ops[k] == 9 else state.ops[k]
                yield ("set now", k), lambda k=k, run=("limit", 0, 1, (old, word)): self.set_now(state, k, run)

    def set_now(self, state: State, k: int, run: tuple[Any, ...]) -> State:
        after, reply = self.script(state._replace(ops=put(state.ops, k, 1)), -1, run)
        if reply[0] and 1 in state.ops[k + 1 :]:
            raise Wrong("a late set_limit undoes a newer one")
        return after

    def faulty(self, state: State, faults: Faults) -> Iterator[tuple[Label, Any]]:
        redis, instances, wires = state.redis, state.instances, state.wires

        def less(**changes: Any) -> State:
            [name] = changes or [""]
            return state._replace(faults=faults._replace(**{name: getattr(faults, name) - 1}))

        for i, me in enumerate(instances):
            session, reaped, _, lease = redis.records[i]
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
                    yield ("clock", i), lambda i=i: self.aged(self.lease(less(clock_steps=1), i, LAPSED), i, OLD)
            if faults.early and me.lease == 1 and not me.lapsed:
                yield ("early", i), lambda i=i: self.lapsed(less(early=1), i, FRESH)
            if faults.syncs and me.up and me.session and me.due and not me.lapsed:
                yield ("resync", i), lambda i=i: self.event(less(syncs=1), i, "sync soon")
            idle = me.up and me.session and all(ticket.view == "x" for ticket in me.tickets)
            if faults.forgets and idle and self.quiet(state, i) and me.confirmed == me.session:
                yield ("forget", i), lambda i=i: self.forgotten(less(forgets=1), i)
            if faults.prunes and lease == REAPED and not any(w.owner == i and w.commands for w in wires):
                yield ("prune", i), lambda i=i: self.aged(self.lease(less(prunes=1), i, EXPIRED), i, ANCIENT)
            if faults.own_evictions and me.up and self.quiet(state, i):
                for member in redis.tickets:
                    yield ("own evict", i, member), lambda i=i, m=member: self.own_evict(less(own_evictions=1), i, m)
        for member in redis.tickets if faults.evictions else ():
            run = ("evict", 0, 1, (member,))
            yield ("evict", member), lambda run=run: self.script(less(evictions=1), -1, run)[0]
        for n, entry in enumerate(redis.past if faults.expiries else ()):
            if entry[0].startswith(b"k") and entry[2]:
                past = put(redis.past, n, (*entry[:2], False))
                yield ("expire", n), lambda past=past: less(expiries=1)._replace(redis=redis._replace(past=past))
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
                    yield ("deaf", n, k), lambda n=n, w=fewer: less(deaf=1)._replace(wires=put(wires, n, w))

    def lapsed(self, state: State, i: int, age: int = OLD) -> State:
        """Its lease has passed, and with it those that commands on their way asked for."""
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
            w._replace(commands=(*w.commands, command)) if w.current and w.owner == i else w for w in state.wires
        )
        return state._replace(wires=wires)

    def reject(self, state: State, n: int) -> State:
        wire = state.wires[n]
        state = state._replace(wires=put(state.wires, n, wire._replace(commands=wire.commands[1:])))
        return self.answered(state, n, wire.commands[0], ("error",))

    def all_cut(self, state: State) -> State:
        """The server is another one: what was on its way to the old one is gone."""
        for i, me in enumerate(state.instances):
            if me.alive and me.up:
                state = self.cut(state, i)
        return state._replace(wires=())

    def lose(self, state: State, stages: str = "wh") -> State:
        synced = tuple(
            not me.alive or not (me.version or any(ticket.view in stages for ticket in me.tickets))
            for me in state.instances
        )
        return state._replace(redis=self.empty, ghost=state.ghost._replace(lost=1, synced=synced, used=()))

    def fail_over(self, state: State) -> State:
        replica = state.faults.replica
        assert replica is not None
        synced = tuple(not me.alive or not me.session for me in state.instances)
        return state._replace(
            redis=replica,
            faults=state.faults._replace(replica=None),
            ghost=state.ghost._replace(exempt=True, lost=2, synced=synced),
        )

    # In plain words

    def described(self, label: Label, state: State) -> str:
        kind, *rest = label
        who = "ABC"
        names = [call.name for call in self.calls]
        if kind in ("run", "read", "gone", "reject", "deaf"):
            wire = state.wires[rest[0]]
            owner, old = who[wire.owner], "" if wire.current else " (from an old connection)"
            where = f" (server {wire.server})" if self.whole.moves else ""
            if kind == "gone":
                return f"an old connection of {owner} is gone, with {self.command(wire.commands[0])}"
            if kind in ("run", "reject"):
                does = "runs" if kind == "run" else "rejects"
                return f"redis{where} {does} {self.command(wire.commands[0])} of {owner}{old}"
            reply = wire.replies[rest[1] if kind == "deaf" else 0]
            return f"{owner} {'reads' if kind == 'read' else 'never gets'} {self.reply(reply)}"
        if kind in ("evict", "own evict"):
            by = f" by {who[rest[0]]}" if kind == "own evict" else ""
            return f"{names[self.caller.by_member[rest[-1]]]} is evicted{by}"
        if kind in ("set", "set now"):
            i, limit = self.bound.ops[rest[0]]
            by = f"{who[i]} sends" if i >= 0 else "somebody sends" if kind == "set" else "redis runs"
            return f"{by} set_limit({limit})"
        if kind == "leave":
            return f"{names[rest[0]]} {'leaves' if rest[1] else 'gives up'}"
        words = {
            "enter": "{call} enters", "keep": "{call} is cancelled, its place kept", "connect": "{who} connects",
            "lapse": "{who} sees that its lease has lapsed", "tick": "the timer of {who}",
            "dead": "the lease of dead {who} lapses", "closed": "the recovery window ends",
            "look": "somebody looks at the queue", "break": "the connection of {who} breaks",
            "kill": "{who} is killed", "stop": "{who} is stopped for longer than its lease",
            "clock": "the clock of redis steps beyond the lease of {who}",
            "early": "the clock of {who} says that its lease has passed", "resync": "{who} syncs without a reason",
            "forget": "idle {who}'s lease ends; it forgets the queue", "prune": "the record of {who} expires",
            "expire": "a kept place expires", "loss": "redis restarts empty", "flush": "redis is flushed",
            "replica": "the replica falls behind", "stale": "fail-over to the replica",
            "move": "the slot moves to the other server",
        }  # fmt: skip
        call = names[rest[0]] if kind in ("enter", "keep") else ""
        return words[kind].format(call=call, who=who[rest[0]] if rest else "")

    def command(self, command: Any) -> str:
        name, session, _, arguments, *_ = command
        if name == "sync":
            rows = [
                f"{self.member(arguments[n])} {arguments[n + 1].decode()} {arguments[n + 2]}"
                for n in range(9, len(arguments), 6)
            ]
            page = "" if arguments[5] and arguments[6] else f", page{' 1' if arguments[5] else ''}{', last' if arguments[6] else ''}"
            return f"sync (session {session}, confirmed {arguments[0]}{page}) of [{', '.join(rows)}]"
        what = self.member(arguments[0]) if name in ("enter", "leave", "evict") else ""
        return f"{name} {what}".strip() + f" (session {session})"

    def member(self, member: bytes) -> str:
        return self.calls[self.caller.by_member[member]].name

    def reply(self, reply: Any) -> str:
        if reply[0] == "push":
            _, kind, session, ticket, token = reply
            what = f"granted, {token}" if kind == b"g" else "evicted"
            return f"the message: {self.calls[self.caller.by_id[ticket]].name} {what} (session {session})"
        (name, session, _, _, handles, _), answer = reply
        calls = " ".join(self.calls[k].name for k in handles)
        return f"the reply to {name} {calls} (session {session}): {answer}"


__all__ += ["Wrong", "broken_promise"]
