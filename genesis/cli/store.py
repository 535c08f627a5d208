"""`Store`: reads queues, instances and tickets from Redis; sets limits and evicts items."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from redis import RedisCluster

from genesis.backends.estimate import FEWEST_HOLDS, expected_wait
from genesis.backends.protocol import QueueEntry
from genesis.backends.redis.cluster import guard_key
from genesis.backends.redis.index import KEEP, KEEP_OVERRIDDEN, index_keys
from genesis.backends.redis.keys import channel_prefix, queue_keys
from genesis.backends.redis.members import age_of, parse_member
from genesis.backends.redis.scripts import load
from genesis.cli.connect import Client

__all__ = ["Instance", "Limits", "QueueLook", "Store"]

_PAGE = 500  # members per command
_BATCH = 100  # queues per round trip
_DEFAULT_LEASE = 15.0


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

    @property
    def alive(self) -> bool:
        return self.seen <= self.lease


class QueueLook(NamedTuple):
    """A queue at one instant. Times are Redis's, in microseconds; ages are seconds."""

    queue_id: str
    waiting: int
    in_use: int
    limit: int
    override: int | None
    oldest_wait: float
    oldest_hold: float
    mean_hold: float | None
    expected_wait: float | None
    """Of a newcomer."""
    instances: int
    """Instances with a running lease."""
    now: int
    last: int
    until: int
    old_layout: bool
    lapsed: list[tuple[str, int]]
    """The first few instances whose lease has lapsed and which are not reaped, with the deadline."""
    furthest: int
    """The latest lease deadline."""
    longest_holder: str
    head: str
    """The item_ids, or ''."""
    version: int
    """Of the override."""


class Limits(NamedTuple):
    """Call sites named different limits for a queue."""

    queue_id: str
    limits: list[int]
    instance_id: str
    ago: float


class Store:
    """The queues under one key prefix.

    Args:
        client: a client that uses RESP2 and does not decode replies.
        key_prefix: the prefix of the queues' keys.

    Every method raises `redis.RedisError` if Redis cannot be reached or rejects a command.
    """

    def __init__(self, client: Client, key_prefix: str) -> None:
        self.client: Any = client
        self.key_prefix = key_prefix
        self.clustered = isinstance(client, RedisCluster)
        self._queues, self._instances, self._limits = index_keys(key_prefix)

    # The index

    def queues(self) -> list[str]:
        """The listed queues, sorted by name."""
        now = self.now(self._queues)
        return sorted(member.decode() for member, until in self._rows(self._queues) if until > now)

    def instances(self) -> list[Instance]:
        now = self.now(self._instances)
        found = []
        for member, until in self._rows(self._instances):
            if until > now:
                facts = json.loads(member)
                found.append(
                    Instance(
                        facts["id"],
                        facts["version"],
                        facts["lease"],
                        facts["host"],
                        facts["pid"],
                        (now - facts["started"]) / 1e6,
                        (now - until) / 1e6 + KEEP,
                    )
                )
        return sorted(found, key=lambda each: (each.host, each.pid, each.instance_id))

    def limits(self) -> list[Limits]:
        now = self.now(self._limits)
        found = []
        for member, until in self._rows(self._limits):
            if until > now:
                facts = json.loads(member)
                ago = (now - until) / 1e6 + KEEP
                found.append(Limits(facts["queue"], facts["limits"], facts["instance"], ago))
        return found

    # Queues

    def look(self, queue_ids: Sequence[str]) -> list[QueueLook]:
        """The state of each queue at one instant; one round trip reads many queues."""
        self._load("stats")
        found: list[QueueLook] = []
        for some, pipeline in self._batches(queue_ids):
            for queue_id in some:
                keys = self.keys(queue_id)
                pipeline.execute_command("EVALSHA", load("stats").sha, len(keys), *keys, "", "", 0, "")
            found += [_look(name, row) for name, row in zip(some, pipeline.execute(), strict=True)]
        return found

    def with_key(self, queue_ids: Sequence[str], kind: bytes) -> list[str]:
        """The queues that have a key of this kind, for example one that only older versions write."""
        found: list[str] = []
        for some, pipeline in self._batches(queue_ids):
            for queue_id in some:
                pipeline.exists(queue_keys(self.key_prefix, queue_id)[0].removesuffix(b"meta") + kind)
            found += [name for name, is_there in zip(some, pipeline.execute(), strict=True) if is_there]
        return found

    def entries(self, queue_id: str) -> list[QueueEntry]:
        """The holders in the order of their grants, then the waiters in the order of the line."""
        keys = self.keys(queue_id)
        now = self.now(keys[0])
        found = []
        for member, number in self._rows(keys[2]):
            item_id, owner, _ = parse_member(member)
            age = max(0, now - number) / 1e6
            found.append(QueueEntry(item_id, owner, "holding", age, None, number))
        past: Any = self.client.zrangebyscore(keys[5], "-inf", "(0", withscores=True)
        resumed = {name.removeprefix(b"e "): -int(score) for name, score in past}
        for position, (member, place) in enumerate(self._rows(keys[1]), 1):
            item_id, owner, _ = parse_member(member)
            age = age_of(member, place, now, resumed)
            found.append(QueueEntry(item_id, owner, "waiting", age, position, None))
        return found

    def set_limit(self, queue_id: str, limit: int | None) -> int:
        """Override the limit; None ends the override. Returns how many waiters were granted a slot."""
        self._load("limit")
        version = b"0"
        while True:
            reply = self._run("limit", queue_id, version, b"" if limit is None else b"%d" % limit)
            if reply[0]:
                break
            version = reply[1]
        # List the queue, so that the pause of an unused queue stays visible.
        until = self.now(self._queues) + round(KEEP_OVERRIDDEN * 1e6)
        self.client.execute_command("ZADD", self._queues, "GT", until, queue_id.encode())
        self.client.expire(self._queues, round(KEEP_OVERRIDDEN + KEEP))
        return len(reply[2])

    def evict(self, queue_id: str, item_id: str) -> int:
        """Remove all tickets of an item from the queue. Returns their number."""
        self._load("evict")
        keys = self.keys(queue_id)
        evicted = 0
        # Waiters first: a slot that an evicted holder frees must not go to one of them.
        for key in (keys[1], keys[2]):
            for member in [m for m, _ in self._rows(key) if parse_member(m).item_id == item_id]:
                evicted += int(self._run("evict", queue_id, member)[0])
        return evicted

    def keys(self, queue_id: str) -> tuple[bytes, ...]:
        keys = queue_keys(self.key_prefix, queue_id)
        return (*keys, guard_key(keys)) if self.clustered else keys

    def now(self, key: bytes) -> int:
        """The time (us) of the server that has `key`."""
        where = {"target_nodes": self.client.get_node_from_key(key)} if self.clustered else {}
        seconds, microseconds = self.client.time(**where)
        return int(seconds) * 1_000_000 + int(microseconds)

    def _batches(self, queue_ids: Sequence[str]) -> Iterator[tuple[Sequence[str], Any]]:
        for start in range(0, len(queue_ids), _BATCH):
            pipeline = self.client.pipeline(**({} if self.clustered else {"transaction": False}))
            yield queue_ids[start : start + _BATCH], pipeline

    def _load(self, script: str) -> None:
        self.client.script_load(load(script).source.decode())

    def _run(self, script: str, queue_id: str, *arguments: bytes) -> Any:
        """Run a script that needs no session, as the instance "cli", which has no tickets."""
        leases = [each.lease for each in self.instances()]
        lease = round(max(leases, default=_DEFAULT_LEASE) * 1e6)
        preface = (b"cli", b"", lease, channel_prefix(self.key_prefix))
        keys = self.keys(queue_id)
        return self.client.evalsha(load(script).sha.decode(), len(keys), *keys, *preface, *arguments)

    def _rows(self, key: bytes) -> Iterator[tuple[bytes, int]]:
        """Read a sorted set in pages. Scores only grow, so a member that moves is not missed."""
        after, most = b"-inf", _PAGE
        seen: set[bytes] = set()
        while True:
            flat = self.client.execute_command(
                "ZRANGEBYSCORE", key, after, "+inf", "WITHSCORES", "LIMIT", 0, most
            )
            rows = _pairs(flat)
            for member, score in rows:
                if member not in seen:
                    seen.add(member)
                    yield member, score
            if len(rows) < most:
                return
            if b"%d" % rows[-1][1] == after:  # more than a page of members share one score
                most *= 2
            after = b"%d" % rows[-1][1]


def _pairs(flat: Any) -> list[tuple[bytes, int]]:
    if flat and isinstance(flat[0], (tuple, list)):  # redis-py has paired members and scores
        return [(member, int(float(score))) for member, score in flat]
    return [(flat[i], int(float(flat[i + 1]))) for i in range(0, len(flat), 2)]


def _look(queue_id: str, reply: Any) -> QueueLook:
    numbers, _, _, _, now, override, version, last, until, epoch, live, lapsed, *members = reply
    furthest, holder, head = members
    waiting, in_use, limit, oldest_wait, oldest_hold, holds, mean = (int(float(n)) for n in numbers)
    mean_hold = mean / 1e6 if holds >= FEWEST_HOLDS else None
    free = waiting == 0 and in_use < limit
    return QueueLook(
        queue_id,
        waiting,
        in_use,
        limit,
        int(override) if override else None,
        oldest_wait / 1e6,
        oldest_hold / 1e6,
        mean_hold,
        0.0 if free else expected_wait(waiting + 1, limit, mean_hold),
        int(live),
        int(now),
        int(last),
        int(until),
        bool(epoch),
        [(owner.decode(), deadline) for owner, deadline in _pairs(lapsed)],
        int(float(furthest)),
        _item_of(holder),
        _item_of(head),
        int(version),
    )


def _item_of(member: bytes) -> str:
    try:
        return parse_member(member).item_id if member else ""
    except ValueError:  # a member of another layout
        return member.decode(errors="replace")
