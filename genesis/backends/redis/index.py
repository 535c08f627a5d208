"""The index of queues and instances under a key prefix, so that operators need no SCAN.

Three sorted sets outside the queues' hash tags. A score is the time (us, Redis's clock) until which the
member is listed. Keys of queues contain braces, so they cannot clash with these names.

| key                       | member                                                      | listed for |
|---------------------------|-------------------------------------------------------------|------------|
| `<prefix>index:queues`    | queue_id                                                    | `KEEP`     |
| `<prefix>index:instances` | JSON: id, version, lease (s), host, pid, started (us)       | `KEEP`     |
| `<prefix>index:limits`    | JSON: queue, limits, instance: call sites named both limits | `KEEP`     |

`KEEP` counts from the last write by an instance. A queue with an override is listed for a day. A closed
instance removes its member.

An instance writes its members shortly after the first use of a queue and every third of its lease, or
of `KEEP` if that is shorter. No call waits for these writes. Error replies are ignored: the next write
repeats everything in use.
"""

from __future__ import annotations

import json
import math
import os
import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from genesis.backends.redis.core import BEATS_PER_LEASE
from genesis.backends.redis.link import ignore
from genesis.version import VERSION

if TYPE_CHECKING:
    from genesis.backends.redis.calls import LocalQueue
    from genesis.backends.redis.driver import Driver

KEEP = 660.0
"""Seconds for which an unused queue is listed."""
KEEP_OVERRIDDEN = 86_400.0

_BATCH = 500  # members per command
_SOON = 0.5  # seconds until new queues are listed; all queues opened by then share a command


def index_keys(key_prefix: str) -> tuple[bytes, bytes, bytes]:
    """The keys of the queues, of the instances, and of the limits that differ."""
    base = f"{key_prefix}index:".encode()
    return base + b"queues", base + b"instances", base + b"limits"


class Index:
    """Writes the members of one instance. Belongs to the event loop of its driver."""

    def __init__(self, driver: Driver, key_prefix: str) -> None:
        self._driver = driver
        self._queues_key, self._instances_key, self._limits_key = index_keys(key_prefix)
        self._facts = b""  # the member of this instance; empty until Redis has told the time
        self._fresh: dict[str, LocalQueue] = {}  # opened since the last write
        self._disagreements: dict[bytes, None] = {}
        self._interval = min(driver.lease, KEEP) / BEATS_PER_LEASE
        self._next_full = 0.0  # by loop.time(): when everything in use is written again
        self.due = math.inf  # by loop.time(): the next write

    def opened(self, queue: LocalQueue) -> None:
        """A queue is used for the first time."""
        self._fresh[queue.queue_id] = queue
        self.write_in(_SOON)

    def disagreed(self, queue_id: str, previous: int, current: int) -> None:
        """Call sites named two different limits for a queue."""
        if len(self._disagreements) < _BATCH:
            facts = {"queue": queue_id, "limits": sorted((previous, current))}
            self._disagreements[_pack({**facts, "instance": self._driver.instance_id})] = None

    def stop(self) -> None:
        if self._facts and self._driver.loop.is_running():
            link = self._driver.router.link(self._instances_key)
            if link is not None:
                link.send((b"ZREM", self._instances_key, self._facts), ignore)

    def write_in(self, seconds: float) -> None:
        """Write in so many seconds, or earlier."""
        self.due = min(self.due, self._driver.loop.time() + min(seconds, self._interval))
        self._driver.wake_at(self.due)

    def write(self, now: float) -> None:
        """Write the queues that are new, or everything in use."""
        self.due = now + min(_SOON, self._interval)
        queues, self._fresh = self._fresh, {}
        links = map(self._driver.router.link, (self._queues_key, self._instances_key))
        if not all(link is not None and link.up for link in links):
            self._next_full = now  # in an outage, build no list until it is over
            return
        if now >= self._next_full:
            self._next_full = now + self._interval
            queues |= self._driver.queues
            disagreements, self._disagreements = self._disagreements, {}
            self._add(self._instances_key, [])
            if disagreements:
                self._add(self._limits_key, [(facts, KEEP) for facts in disagreements])
        if queues:
            rows = [
                (name.encode(), KEEP_OVERRIDDEN if queue.override[1] else KEEP)
                for name, queue in queues.items()
            ]
            self._add(self._queues_key, rows)
        self.due = self._next_full

    def _add(self, key: bytes, rows: Sequence[tuple[bytes, float]]) -> None:
        """Get the server's time, then add members, each for so many seconds; none: this instance."""
        link = self._driver.router.link(key)
        if link is None:
            return

        def on_time(reply: Any) -> None:
            if isinstance(reply, Exception):
                self._driver.router.redirected(key, reply)
                return
            now = int(reply[0]) * 1_000_000 + int(reply[1])
            self._facts = self._facts or self._describe(now)
            parts = [b"ZADD", key, b"GT"]
            for member, keep in rows[:_BATCH] or [(self._facts, KEEP)]:
                parts += (b"%d" % (now + round(keep * 1e6)), member)
            link.send(parts, ignore)
            if len(rows) > _BATCH:
                # One command per round trip, so that thousands of queues delay no call. Each batch has
                # its own time, so that a reader can continue from a score.
                self._add(key, rows[_BATCH:])
            else:
                link.send((b"ZREMRANGEBYSCORE", key, b"-inf", b"%d" % now), ignore)
                link.send((b"EXPIRE", key, b"%d" % (KEEP_OVERRIDDEN + KEEP)), ignore)

        link.send((b"TIME",), on_time)

    def _describe(self, now: int) -> bytes:
        facts = {
            "id": self._driver.instance_id,
            "version": VERSION,
            "lease": self._driver.lease,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started": now,
        }
        return _pack(facts)


def _pack(facts: dict[str, Any]) -> bytes:
    return json.dumps(facts, sort_keys=True).encode()
