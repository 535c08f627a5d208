"""What must hold in every state, after every script run, and in final states."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.protocol.instance import BrokenPromiseError
from tests.protocol.server import ALIVE, LAPSED, OPEN, Data

if TYPE_CHECKING:
    from tests.protocol.state import State
    from tests.protocol.world import World

__all__ = ["after_run", "broken_promise", "stuck"]


def inside(world: World, state: State) -> list[int]:
    """The calls that consider themselves holders."""
    return [
        ticket.call
        for me in state.instances
        if me.alive and not me.lapsed and me.lease != 0
        for ticket in me.tickets
        if ticket.view == "h" and ticket.call not in state.ghost.evicted
    ]


def after_run(world: World, before: State, after: State, i: int, command: Any, reply: Any) -> State:
    """Check one script run, and record what only the promises need."""
    name, session, _, arguments, *_ = command
    old, new, ghost = before.redis, after.redis, before.ghost
    if name == "sync" and len(reply) > 2:
        if ghost.lost == 1 and arguments[0] > old.records[i][0]:  # it knew the old data
            ghost = ghost._replace(lost=2)
        if not arguments[6] and session == after.instances[i].session:
            ghost = ghost._replace(synced=(*ghost.synced[:i], True, *ghost.synced[i + 1 :]))
        if all(ghost.synced):
            ghost = ghost._replace(lost=0)
    if name == "evict" and reply[0]:
        ghost = ghost._replace(
            evicted=tuple(sorted({*ghost.evicted, world.caller.by_member[arguments[0]]}))
        )
    # Only a ticket that a sync listed as holding returns without a grant.
    listed = (
        {arguments[n]: arguments[n + 1] for n in range(7, len(arguments), 5)} if name == "sync" else {}
    )
    held = {member for _, member in old.holding}
    granted = [member for _, member in new.holding if member not in held and listed.get(member) != b"h"]
    if (
        new.until == OPEN
        and old.until != OPEN
        and not (world.whole.losses or world.whole.flushes or world.whole.stale)
    ):
        raise BrokenPromiseError("the recovery window opens, and no data was lost")
    if name == "sync" and len(reply) > 2:
        for n, row in enumerate(reply[3]):
            member, stage, number = arguments[7 + 5 * n : 10 + 5 * n]
            if stage == b"w" and row[0] == 2 and row[1] != number and not world.whole.stale:
                raise BrokenPromiseError(f"FIFO: {world.member(member)} loses its place")
    if granted:
        if new.until == OPEN:
            raise BrokenPromiseError("a grant in the recovery window")
        if ghost.lost == 1:
            ghost = ghost._replace(exempt=True)
        for member in granted:
            owner = world.calls[world.caller.by_member[member]].owner
            if owner != i and new.records[owner][3] != ALIVE:
                raise BrokenPromiseError(f"{world.member(member)} of a dead instance is granted")
        for me, synced in zip(before.instances, ghost.synced, strict=True):
            newer = me.version > (new.key[0] if new.key else 0)
            if me.alive and synced and newer and me.override and int(me.override) <= len(old.holding):
                raise BrokenPromiseError(
                    f"set_limit: {world.member(granted[0])} is granted, over a known limit"
                )
        check_order(world, before, after._replace(ghost=ghost), granted, listed)
        limit = world.limit(new)
        if len(new.holding) > limit and len(new.holding) > len(old.holding):
            names = [world.member(member) for _, member in new.holding]
            raise BrokenPromiseError(f"limit: {names} hold, and one was granted just now")
    check_line(world, old, new, listed, command)
    for entry in old.past:
        if entry[0].startswith(b"k ") and entry not in new.past:
            owner = world.caller.by_id[entry[0][2:]]
            ghost = used(world, ghost, owner, old, new)
    for k in kept_again(world, command):
        ghost = not_used(world, ghost, k, old, new)
    return after._replace(ghost=ghost)


def kept_again(world: World, command: Any) -> list[int]:
    """The calls that left before the reply: the kept places that they took are given back."""
    name, arguments = command[0], command[3]
    if name == "leave":
        return list(command[4]) if arguments[3] == b"back" else []
    rows = [arguments[n : n + 5] for n in range(7, len(arguments), 5)] if name == "sync" else []
    return [world.caller.by_member[row[0]] for row in rows if row[1] == b"k" and row[3] == b"back"]


def not_used(world: World, ghost: Any, k: int, old: Data, new: Data) -> Any:
    """A call that took a kept place has left without learning that it took it."""
    member, place = world.caller.members[k], world.calls[k].takes
    there = {other for _, other in (*old.waiting, *old.holding)}
    if (place, k) not in ghost.used or member not in there or member in new.tickets:
        return ghost  # it took none, or has left before, or this came too late
    back = any(name == b"r " + world.caller.ids[k] and valid for name, _, valid in old.past)
    ghost = ghost._replace(used=tuple(pair for pair in ghost.used if pair != (place, k)))
    if any(name == b"k " + world.caller.ids[place] for name, _, _ in new.past):
        return ghost
    after = used(world, ghost, place, old, new)  # another call, listed in the same sync, took it
    if back and after is ghost:
        raise BrokenPromiseError(f"the place that {world.calls[k].name} took, unanswered, is lost")
    return after


def used(world: World, ghost: Any, owner: int, old: Data, new: Data) -> Any:
    """A kept place was taken."""
    there = {member for _, member in (*old.waiting, *old.holding)}
    for _, member in (*new.waiting, *new.holding):
        k = world.caller.by_member[member]
        if member not in there and world.calls[k].takes == owner:
            if any(place == owner and who != k for place, who in ghost.used):
                raise BrokenPromiseError(f"the kept place of {world.calls[owner].name} is taken twice")
            return ghost._replace(used=tuple(sorted({*ghost.used, (owner, k)})))
    return ghost


def check_order(
    world: World, before: State, after: State, granted: list[bytes], listed: dict[bytes, bytes]
) -> None:
    """FIFO: no call with a smaller place, whose instance is alive and connected, is overtaken."""
    places = {member: place for place, member in before.redis.waiting}
    line = {member: place for place, member in after.redis.waiting}
    held = {member for _, member in after.redis.holding}
    number = {member: n for n, member in after.redis.holding}
    caller = world.caller
    for member in granted:
        place = places.get(member, number[member])
        k = caller.by_member[member]
        taken = next((t.kept for t in before.instances[world.calls[k].owner].tickets if t.call == k), 0)
        if taken and any(
            e[:2] == (b"k " + caller.ids[world.calls[k].takes], taken) for e in before.redis.past
        ):
            place = min(place, taken)
        if member not in places and listed.get(member) == b"w":
            continue  # it was registered and granted in one sync: its place is its own
        for other, where in line.items():
            record = after.redis.records[world.calls[caller.by_member[other]].owner]
            if where < place and record[3] == ALIVE and not record[1] and places.get(other) == where:
                raise BrokenPromiseError(
                    f"FIFO: {world.member(member)} is granted before {world.member(other)}"
                )
        for o, me in enumerate(before.instances):
            session, reaped, _, lease = before.redis.records[o]
            if not (
                me.alive
                and me.up
                and not me.lapsed
                and session == me.session
                and not reaped
                and lease == ALIVE
            ):
                continue
            if me.confirmed != me.session or before.slot != after.slot:
                continue  # between two pages, what was not listed yet might be unknown
            for ticket in me.tickets:
                other = caller.members[ticket.call]
                known = other in held or other in line or other in places
                gone = ticket.call in after.ghost.evicted or world.whole.stale
                if ticket.view == "w" and ticket.number < place and not known and not gone:
                    names = f"{world.member(member)} is granted before {world.member(other)}"
                    raise BrokenPromiseError(f"FIFO: {names}")


def check_line(world: World, old: Data, new: Data, listed: dict[bytes, bytes], command: Any) -> None:
    there = {member for _, member in (*old.waiting, *old.holding)}
    for rank, (_, member) in enumerate(new.waiting):
        call = world.calls[world.caller.by_member[member]]
        if call.max_waiting == b"0":
            raise BrokenPromiseError(f"{call.name}, which does not wait, stands in the line")
        if member in there or not call.max_waiting or listed.get(member) == b"w":
            continue
        if rank >= int(call.max_waiting):
            raise BrokenPromiseError(f"{call.name} was let into a full line")


def broken_promise(world: World, state: State) -> str:
    redis, instances, faults, ghost = state.redis, state.instances, state.faults, state.ghost
    known = [member for _, member in (*redis.waiting, *redis.holding)]
    if len(known) != len(set(known)):
        return "a ticket stands in Redis twice"
    if sorted(known) != sorted(redis.tickets):
        return f"the index of tickets {redis.tickets} is not what is in the line: {known}"
    names = [world.calls[world.caller.by_member[member]].name for member in known]
    lossy = world.whole.losses or world.whole.flushes or world.whole.stale
    if not lossy and {world.calls[k].name for k in ghost.evicted} & set(names):
        return "an evicted ticket is back"
    for name, place, _ in redis.past:
        if name.startswith(b"k "):
            k = world.caller.by_id[name[2:]]
            if world.calls[k].name in names:
                return f"{world.calls[k].name} is in the line, and its place is kept"
            takers = {world.caller.members[who] for kept, who in ghost.used if kept == k}
            if not lossy and takers & {member for _, member in redis.waiting}:
                return f"the place of {world.calls[k].name} was taken, and is kept"
            if place and any(
                p == place and world.calls[world.caller.by_member[m]].takes != k
                for p, m in redis.waiting
            ):
                return "a kept place is another's"
    if len(redis.holding) > ghost.allowed and not ghost.exempt and not lossy:
        return f"limit: Redis shows too many holders: {names}"
    holders = inside(world, state)
    clean = faults.clock_steps == world.whole.clock_steps
    if len(holders) > ghost.allowed and clean and not ghost.exempt:
        return f"limit: {[world.calls[k].name for k in holders]} hold at once"
    for i, me in enumerate(instances):
        if not me.alive or not me.up or me.lapsed:
            continue
        here = any(ticket.stage != "x" for ticket in me.tickets)
        if here and not me.due:
            return f"{'ABC'[i]} has tickets, and no heartbeat is due"
        settled = me.confirmed == me.session and me.beats >= 0 and not me.beating and me.lease == 1
        session, reaped, _, lease = redis.records[i]
        if (
            settled and session == me.session and not reaped and lease == ALIVE
            and world.quiet(state, i) and not world.unheard and not world.agrees(state, i, me)
        ):  # fmt: skip
            return f"{'ABC'[i]} has other tickets than Redis has of it, and nothing is on its way"
    return stuck(world, state)


def stuck(world: World, state: State) -> str:
    """Only the calls' own steps are left: an error in this state is permanent."""
    redis, instances = state.redis, state.instances
    if redis.until == OPEN or any(w.commands or w.replies for w in state.wires):
        return ""
    if any(op > 1 for op in state.ops):
        return ""
    for i, me in enumerate(instances):
        lease = redis.records[i][3]
        if me.alive and (me.lapsed or not me.up or world.due(state, i, me)):
            return ""
        if not me.alive and lease == ALIVE:
            return ""
    if not any(ticket.view != "x" for me in instances for ticket in me.tickets if me.alive):
        return _leaks(world, state) if not any(record[3] == LAPSED for record in redis.records) else ""
    wrong = _leaks(world, state)
    if wrong:
        return wrong
    for me in instances:
        for ticket in me.tickets:
            if ticket.view == "l":
                return f"{world.calls[ticket.call].name} left, and gets no reply"
            if ticket.view == "e":
                return f"{world.calls[ticket.call].name} entered, and gets no reply"
    if redis.waiting and len(redis.holding) < world.limit(redis):
        return "a free slot, and somebody waits"
    return ""


def _leaks(world: World, state: State) -> str:
    redis = state.redis
    waiting, holding = {m for _, m in redis.waiting}, {m for _, m in redis.holding}
    stages = {ticket.call: ticket.view for me in state.instances for ticket in me.tickets}
    for k, member in enumerate(world.caller.members):
        name = world.calls[k].name
        where = "holding" if member in holding else "waiting" if member in waiting else "nowhere"
        stage = stages.get(k, "x")
        if stage in "lx" and where != "nowhere":
            return f"leak: {name} is gone, and {where} in Redis"
        if (stage == "w" and where != "waiting") or (stage == "h" and where != "holding"):
            return f"lost: {name} is {'waiting' if stage == 'w' else 'holding'}, and {where} in Redis"
    return ""
