"""One queue at the level of the Lua scripts, and the messages that they publish."""

from __future__ import annotations

from typing import Any

from genesis.backends.redis.keys import queue_keys
from genesis.backends.redis.scripts import INSTANCE_SCRIPTS, load
from tests.support.redis_server import RedisServer

LEASE = 60_000_000  # microseconds; long, so that nothing lapses that the test does not let lapse
WAKE = "wake:"
PORTION = 500


def member(ticket: str, head_start: int = 0, context: str = "") -> str:
    """Of `a1`: the first ticket of instance a."""
    return f"{ticket[0]}:{int(ticket[1:]):010x} {head_start} {context} item-{ticket}"


class Line:
    """One queue, at the level of the scripts. Instances are letters, tickets `a1`, `b7`."""

    def __init__(self, server: RedisServer) -> None:
        self.client: Any = server.client
        self.keys = [key.decode() for key in queue_keys("test:", "sales")]
        self.meta, self.waiting, self.holding, self.tickets, self.leases, self.past, self.override = (
            self.keys
        )
        self.sessions: dict[str, int] = {}
        for name in INSTANCE_SCRIPTS:
            self.client.script_load(load(name).source)

    def run(self, name: str, *arguments: object) -> Any:
        """Call a script. Afterwards every key except an override must have an expiry."""
        reply = self.client.evalsha(load(name).sha, len(self.keys), *self.keys, *arguments)
        for key in self.client.keys("*"):
            if key != self.override or not self.client.get(key).partition(" ")[2]:
                assert self.client.ttl(key) > 0, f"{key} has no expiry after {name} {arguments}"
        return reply

    def ask(self, name: str, *arguments: object) -> Any:
        """Run a script that needs no session, as an instance without tickets."""
        return self.run(name, "z", "", LEASE, WAKE, *arguments)

    def mine(self, name: str, instance: str, *arguments: object) -> Any:
        return self.run(name, instance, self.sessions.get(instance, 0), LEASE, WAKE, *arguments)

    def sync(
        self, instance: str, *rows: tuple[object, ...], session: int = 0, confirmed: object = 0,
        renewed: object = 0, override: object = "", version: object = 0, limit: object = 1,
        pages: tuple[object, ...] = ("", ""),
    ) -> Any:  # fmt: skip
        self.sessions[instance] = session or self.sessions.get(instance, 0) + 1
        words: list[object] = []
        for ticket, stage, number, *rest in rows:
            words += [member(str(ticket)), stage, number, *rest, *[""] * (2 - len(rest))]
        return self.mine("sync", instance, confirmed, renewed, override, version, limit, *pages, *words)

    def enter(
        self, ticket: str, limit: object = 1, most: object = "", head_start: int = 0, kept: str = "",
        context: str = "",
    ) -> Any:  # fmt: skip
        if ticket[0] not in self.sessions:
            self.sync(ticket[0], limit=limit)
        return self.mine("enter", ticket[0], member(ticket, head_start, context), limit, most, kept)

    def leave(self, ticket: str, token: object = "", keep: object = "", place: object = "") -> Any:
        return self.mine("leave", ticket[0], member(ticket), token, member(ticket), keep, place)

    def let_lapse(self, instance: str) -> None:
        """Let the lease of this instance lapse."""
        self.client.zadd(self.leases, {instance: 1}, xx=True)

    def now(self) -> int:
        seconds, micros = self.client.time()
        return int(seconds) * 1_000_000 + int(micros)

    def order(self) -> list[str]:
        return [name_of(text) for text in self.client.zrange(self.waiting, 0, -1)]

    def holders(self) -> list[str]:
        return [name_of(text) for text in self.client.zrange(self.holding, 0, -1)]

    def place(self, ticket: str) -> int:
        return int(self.client.zscore(self.waiting, member(ticket)))

    def many(self, instance: str, count: int, key: str = "") -> None:
        """Add `count` tickets of an instance."""
        names = [f"{instance}:{n:010x} 0  x" for n in range(1, count + 1)]
        self.client.zadd(key or self.waiting, {name: 10 + n for n, name in enumerate(names)})
        self.client.zadd(self.tickets, dict.fromkeys(names, 0))
        for written in (key or self.waiting, self.tickets):
            self.client.expire(written, 100)


def name_of(text: str) -> str:
    return text.rpartition("item-")[2]


def names(rows: Any) -> list[str]:
    return [name_of(row[0]) for row in rows]


class Ear:
    """Receives the messages to some instances."""

    def __init__(self, server: RedisServer, *instances: str) -> None:
        client: Any = server.client
        self._client = client
        self._pubsub: Any = client.pubsub()
        self._pubsub.subscribe("end", *(WAKE + instance for instance in instances))

    def published(self) -> list[tuple[str, str]]:
        """All (instance, message) pairs published before this call."""
        self._client.publish("end", "")
        found = []
        for message in self._pubsub.listen():
            if message["type"] == "message":
                if message["channel"] == "end":
                    break
                found.append((message["channel"][len(WAKE) :], message["data"]))
        return found

    def close(self) -> None:
        self._pubsub.close()


def limit(line: Line, version: object, number: object) -> Any:
    return line.ask("limit", version, number)
