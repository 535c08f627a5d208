"""Descriptions of steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.protocol.state import State
    from tests.protocol.world import World

__all__ = ["described"]


def described(world: World, label: tuple[Any, ...], state: State) -> str:
    kind, *rest = label
    who = "ABC"
    names = [call.name for call in world.calls]
    if kind in ("run", "read", "gone", "reject", "deaf"):
        wire = state.wires[rest[0]]
        owner, old = who[wire.owner], "" if wire.current else " (from an old connection)"
        where = f" (server {wire.server})" if world.whole.moves else ""
        command = command_in_words(world, wire.commands[0]) if wire.commands else ""
        if kind == "gone":
            return f"an old connection of {owner} is gone, with {command}"
        if kind in ("run", "reject"):
            does = "runs" if kind == "run" else "rejects"
            return f"redis{where} {does} {command} of {owner}{old}"
        reply = wire.replies[rest[1] if kind == "deaf" else 0]
        return f"{owner} {'reads' if kind == 'read' else 'never gets'} {reply_in_words(world, reply)}"
    if kind in ("evict", "own evict"):
        by = f" by {who[rest[0]]}" if kind == "own evict" else ""
        return f"{names[world.caller.by_member[rest[-1]]]} is evicted{by}"
    if kind in ("set", "set now"):
        i, limit = world.bound.ops[rest[0]]
        by = f"{who[i]} sends" if i >= 0 else "somebody sends" if kind == "set" else "redis runs"
        return f"{by} set_limit({limit})"
    if kind == "leave":
        return f"{names[rest[0]]} {'leaves' if rest[1] else 'gives up'}"
    words = {
        "enter": "{call} enters", "keep": "{call} is cancelled, its place kept",
        "connect": "{who} connects",
        "lapse": "{who} sees that its lease has lapsed", "tick": "the timer of {who}",
        "dead": "the lease of dead {who} lapses", "closed": "the recovery window ends",
        "look": "somebody looks at the queue", "break": "the connection of {who} breaks",
        "kill": "{who} is killed", "stop": "{who} is stopped for longer than its lease",
        "clock": "the clock of redis steps beyond the lease of {who}",
        "early": "the clock of {who} says that its lease has passed",
        "resync": "{who} syncs without a reason",
        "forget": "idle {who}'s lease ends; it forgets the queue",
        "prune": "the record of {who} expires",
        "expire": "a kept place expires", "loss": "redis restarts empty", "flush": "redis is flushed",
        "replica": "the replica falls behind", "stale": "fail-over to the replica",
        "move": "the slot moves to the other server",
    }  # fmt: skip
    call = names[rest[0]] if kind in ("enter", "keep") else ""
    return words[kind].format(call=call, who=who[rest[0]] if rest else "")


def command_in_words(world: World, command: Any) -> str:
    name, session, _, arguments, *_ = command
    if name == "sync":
        rows = [
            f"{world.member(arguments[n])} {arguments[n + 1].decode()} {arguments[n + 2]}"
            for n in range(7, len(arguments), 5)
        ]
        page = (
            ""
            if not arguments[5] and not arguments[6]
            else f", page{'' if arguments[5] else ' 1'}{'' if arguments[6] else ', last'}"
        )
        return f"sync (session {session}, confirmed {arguments[0]}{page}) of [{', '.join(rows)}]"
    what = world.member(arguments[0]) if name in ("enter", "leave", "evict") else ""
    return f"{name} {what}".strip() + f" (session {session})"


def reply_in_words(world: World, reply: Any) -> str:
    if reply[0] == "push":
        _, kind, session, ticket, token = reply
        what = f"granted, {token}" if kind == b"g" else "evicted"
        return f"the message: {world.calls[world.caller.by_id[ticket]].name} {what} (session {session})"
    (name, session, _, _, handles, _), answer = reply
    calls = " ".join(world.calls[k].name for k in handles)
    return f"the reply to {name} {calls} (session {session}): {answer}"
