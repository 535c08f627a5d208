"""`Store`: reads queues, instances and tickets from Redis; sets limits and evicts items."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

from redis import Redis, RedisCluster, RedisError

from genesis.backends.estimate import expected_wait
from genesis.backends.protocol import QueueEntry
from genesis.backends.redis.cluster import guard_key
from genesis.backends.redis.index import KEEP, KEEP_OVERRIDDEN, index_keys
from genesis.backends.redis.keys import channel_prefix, queue_keys
from genesis.backends.redis.members import parse_member, stats_of
from genesis.backends.redis.scripts import load

KEY_PREFIX = "genesis:queue:"
"""The default, as in `RedisBackend`."""

_PAGE = 500  # members per command
_BATCH = 100  # queues per round trip
_NOBODY = ("", "", 0, "")  # ARGV 1 to 4 of a script that only reads


class Instance(NamedTuple):
    """One instance, as listed in the index."""

    instance_id: str
    version: str
    lease: float
    host: str
    pid: int
    age: float
    """Seconds since its first use."""
    seen: float
    """Seconds since it last wrote to the index; negative if Redis's clock stepped back."""
    alive: bool
    """Whether it has written within its lease."""


class Limits(NamedTuple):
    """Call sites named different limits for a queue."""

    queue_id: str
    ago: float
    """Seconds since that was noticed last."""
    limits: list[int]
    instance_id: str
    """The instance that noticed it."""


class QueueLook(NamedTuple):
    """A queue at one instant. Times are seconds."""

    queue_id: str
    waiting: int
    in_use: int
    limit: int
    oldest_wait: float
    oldest_hold: float
    mean_hold: float | None
    override: int | None
    expected_wait: float | None
    """Of a newcomer."""
    instances: int
    """Instances with a running lease."""
    last: float
    """Seconds from now to the greatest number assigned; more than 0 if Redis's clock stepped back."""
    until: float
    """Seconds from now to the end of the recovery window, in which nothing is granted."""
    furthest: float
    """Seconds from now to the latest lease deadline."""
    lapsed: dict[str, float]
    """By instance: seconds since its lease lapsed, for the first few which are not reaped."""
    old_layout: bool
    longest_holder: str
    head: str
    """The item_ids, or ''."""

    @property
    def known_limit(self) -> int | None:
        """`limit`; None for an empty queue without an override: Redis forgets the call sites' limit."""
        return self.limit if self.waiting or self.in_use or self.override is not None else None

    @property
    def facts(self) -> dict[str, Any]:
        """The stable fields, for programs."""
        return {**dict(zip(self._fields[:10], self[:10], strict=True)), "limit": self.known_limit}


class Store:
    """The queues under one key prefix.

    Args:
        client: a client that uses RESP2 and does not decode replies.
        key_prefix: the prefix of the queues' keys.

    Every method raises `redis.RedisError` if Redis cannot be reached or rejects a command.
    """

    def __init__(self, client: Redis | RedisCluster, key_prefix: str) -> None:
        self.client: Any = client
        self.key_prefix = key_prefix
        self.clustered = isinstance(client, RedisCluster)
        self._queues, self._instances, self._limits = index_keys(key_prefix)

    # The index

    def queues(self) -> list[str]:
        """The listed queues, sorted by name."""
        return sorted(member.decode() for member, _, _ in self._listed(self._queues))

    def instances(self) -> list[Instance]:
        found = []
        for member, now, ago in self._listed(self._instances):
            facts = json.loads(member)
            lease, age = float(facts["lease"]), (now - facts["started"]) / 1e6
            who = facts["id"], facts["version"], lease, facts["host"], facts["pid"]
            found.append(Instance(*who, age, ago, ago <= lease))
        return sorted(found, key=lambda each: (each.host, each.pid, each.instance_id))

    def limits(self) -> list[Limits]:
        """By queue; the latest first."""
        found = []
        for member, _, ago in self._listed(self._limits):
            facts = json.loads(member)
            found.append(Limits(facts["queue"], ago, facts["limits"], facts["instance"]))
        return sorted(found)

    def _listed(self, key: bytes) -> Iterator[tuple[bytes, int, float]]:
        """Of an index: each member, Redis's time (us), and the seconds since the member was written."""
        last = now = self._now(key)
        read = partial(self.client.zrangebyscore, key, withscores=True, score_cast_func=int)
        found: dict[bytes, int] = {}
        # Scores grow: a member that is written meanwhile is read again, not missed.
        while rows := read(f"({last}", "+inf", 0, _PAGE):
            last = rows[-1][1]
            # A page might end between members that share a score.
            found.update([*rows, *read(last, last)])
        for member, until in found.items():
            yield member, now, (now - until) / 1e6 + KEEP

    # Queues

    def look(self, queue_ids: Sequence[str]) -> list[QueueLook]:
        """The state of each queue at one instant; one round trip reads many queues."""
        script = load("stats")
        self.client.script_load(script.source.decode())
        found: list[QueueLook] = []
        for start in range(0, len(queue_ids), _BATCH):
            some = queue_ids[start : start + _BATCH]
            pipeline = self.client.pipeline(**({} if self.clustered else {"transaction": False}))
            for queue_id in some:
                keys = self._keys(queue_id)
                pipeline.execute_command("EVALSHA", script.sha, len(keys), *keys, *_NOBODY)
            found += map(_look, some, pipeline.execute())
        return found

    def entries(self, queue_id: str) -> list[QueueEntry]:
        """The holders in the order of their grants, then the waiters in the order of the line."""
        found = []
        for member, token, age in self._pages(queue_id, "holding"):
            item_id, owner, _ = parse_member(member)
            found.append(QueueEntry(item_id, owner, "holding", age / 1e6, None, token))
        for position, (member, _, age) in enumerate(self._pages(queue_id, "waiting"), 1):
            item_id, owner, _ = parse_member(member)
            found.append(QueueEntry(item_id, owner, "waiting", age / 1e6, position, None))
        return found

    def set_limit(self, queue_id: str, limit: int | None) -> int:
        """Override the limit; None ends the override. Returns how many waiters were granted a slot."""
        value = b"" if limit is None else b"%d" % limit
        reply: list[Any] = [b"0"]
        while len(reply) == 1:
            reply = self._run("limit", queue_id, *self._caller(), reply[0], value)
        # List the queue, so that the pause of an unused queue stays visible.
        until = self._now(self._queues) + round(KEEP_OVERRIDDEN * 1e6)
        self.client.execute_command("ZADD", self._queues, "GT", until, queue_id.encode())
        self.client.expire(self._queues, round(KEEP_OVERRIDDEN + KEEP))
        return len(reply[1])

    def evict(self, queue_id: str, item_id: str) -> int:
        """Remove all tickets of an item from the queue. Returns their number."""
        evicted = 0
        # Waiters first: a slot that an evicted holder frees must not go to one of them.
        for state in ("waiting", "holding"):
            rows = list(self._pages(queue_id, state))
            for member in [member for member, *_ in rows if parse_member(member).item_id == item_id]:
                evicted += int(self._run("evict", queue_id, *self._caller(), member)[0])
        return evicted

    def replies(self, commands: Iterable[Sequence[str]]) -> list[Any]:
        """The reply to each command or its error, on one new connection; in a Cluster to one node."""
        client = self.client
        if self.clustered:
            client = client.get_redis_connection(client.get_node_from_key(self._queues))
        pool = client.connection_pool
        connection = pool.connection_class(**pool.connection_kwargs)
        replies = []
        try:
            connection.connect()
            for command in commands:
                try:
                    connection.send_command(*command)
                    replies.append(connection.read_response())
                except RedisError as error:
                    replies.append(error)
        finally:
            connection.disconnect()
        return replies

    def _keys(self, queue_id: str) -> tuple[bytes, ...]:
        keys = queue_keys(self.key_prefix, queue_id)
        return (*keys, guard_key(keys)) if self.clustered else keys

    def _now(self, key: bytes) -> int:
        """The time (us) of the server that has `key`."""
        where = {"target_nodes": self.client.get_node_from_key(key)} if self.clustered else {}
        seconds, microseconds = self.client.time(**where)
        return int(seconds) * 1_000_000 + int(microseconds)

    def _caller(self) -> tuple[Any, ...]:
        """ARGV 1 to 4 of a script that writes: instance "cli", which has no session and no tickets."""
        lease = max((each.lease for each in self.instances()), default=15.0)
        return "cli", "", round(lease * 1e6), channel_prefix(self.key_prefix)

    def _run(self, name: str, queue_id: str, *arguments: Any) -> Any:
        return self.client.register_script(load(name).source)(self._keys(queue_id), arguments)

    def _pages(self, queue_id: str, state: str) -> Iterator[tuple[bytes, int, int]]:
        """All of one state in order: member, number, microseconds for which it has waited or held."""
        after: Any = "-inf"
        while rows := self._run("entries", queue_id, *_NOBODY, state, after, _PAGE):
            yield from rows
            after = rows[-1][1]


def _look(queue_id: str, reply: Any) -> QueueLook:
    numbers, now, override, _, last, until, epoch, live, lapsed, *more = reply
    furthest, *members = more
    stats = stats_of(numbers)
    free = stats.waiting == 0 and stats.in_use < stats.limit
    expected = expected_wait(stats.waiting + 1, stats.limit, stats.mean_hold)
    last, until, furthest = ((int(time) - now) / 1e6 for time in (last, until, furthest))
    lapsed = {lapsed[i].decode(): (now - int(lapsed[i + 1])) / 1e6 for i in range(0, len(lapsed), 2)}
    holder, head = (member.decode().split(" ", 3)[-1] for member in members)  # the item_ids
    return QueueLook(
        queue_id,
        *stats,
        int(override) if override else None,
        0.0 if free else expected,
        live,
        last,
        until,
        furthest,
        lapsed,
        bool(epoch),
        holder,
        head,
    )
