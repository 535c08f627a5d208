"""The log of a campaign: one JSON line per event, on the clock that its processes share.

Every line has `at` (time.monotonic_ns, which is one clock for all processes of a machine), `kind` and,
where they apply, `who` (an instance), `queue`, `call`. The kinds, and their further fields:

    of a call        enter (timeout, ...)    it is about to enter; `head_start` and `max_waiting` if
                                             given, and `place_of`, the call whose place token it has
                     entered (place, resumed)  it waits; its number in Redis, null if unknown, and
                                             whether it took the kept place
                     resumed                 it was granted at once, and its kept place is used
                     grant (token)           its body runs
                     giving_up (keep)        it stops waiting, and is about to leave the line; seconds
                                             for which its place should be kept
                     given_up (was)          the reply: its state in Redis, null if unknown
                     leave (lost)            its body has ended; the slot is about to be given back
                     lost (reason, deadline)  slot.lost became true; it might have been true from
                                             `deadline` on
                     end (how)               released, timeout, refused, full, cancelled, evicted,
                                             failed
    of an instance   up (worker)             it runs
                     deadline (until)        its lease in a queue runs at least until then
                     beat (sent, unknown)    the reply to a heartbeat or to a sync; unknown: it differs
                                             from the tickets of the instance
                     restored (redis, data_lost)  the reply to a sync: all its tickets are registered;
                                             Redis's time (us), and whether Redis had lost its data
                     lag (seconds)           its event loop (or the machine) was stopped for so long
                     wall (shift)            its wall clock jumped
                     disrupted (reason)      as reported by the backend
                     kill, stop, cont        signals; kill and stop just before, cont just after
    of anybody       evict, evicted (count)  eviction of `call`: the request, and the reply
                     limit (id, value)       the request of set_limit
                     limited (id, ok)        its reply
    the conductor's  fault (id, name, target, settle), fault_end (id, effect)
                     loss (id, all), loss_end  Redis loses some or all data between these two
                     clock (offset, error)   Redis's clock minus this one
                     left_over (what)        found at the end, where nothing should be
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["CONDUCTOR", "Event", "History", "Log"]

CONDUCTOR = "conductor"


class Event(NamedTuple):
    at: float
    kind: str
    who: str = ""
    queue: str = ""
    call: str = ""
    more: Mapping[str, Any] = {}


class History(NamedTuple):
    """All events of one campaign, in the order of time.

    Attributes:
        lease: seconds.
        limits: the limit that the call sites of each queue name.
    """

    lease: float
    limits: Mapping[str, int]
    events: tuple[Event, ...]

    @classmethod
    def of(cls, lease: float, limits: Mapping[str, int], events: Iterable[Event]) -> History:
        return cls(lease, dict(limits), tuple(sorted(events, key=lambda event: event.at)))

    @classmethod
    def read(cls, lease: float, limits: Mapping[str, int], files: Iterable[Path]) -> History:
        return cls.of(lease, limits, (event for file in files for event in _events(file)))

    @classmethod
    def load(cls, file: Path) -> History:
        """Read a file that `save` wrote."""
        lines = file.read_text().splitlines()
        head = json.loads(lines[0])
        return cls.of(head["lease"], head["limits"], (Event(*json.loads(line)) for line in lines[1:]))

    def save(self, file: Path) -> None:
        lines = [json.dumps({"lease": self.lease, "limits": self.limits})]
        lines += [json.dumps(event) for event in self.events]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("\n".join(lines) + "\n")


class Log:
    """Appends events to a file, each with one write, so that SIGKILL loses no logged event."""

    def __init__(self, file: Path, who: str) -> None:
        self._who = who
        self._file = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def __call__(self, kind: str, *, who: str = "", at: float | None = None, **fields: Any) -> None:
        nanoseconds = time.monotonic_ns() if at is None else round(at * 1e9)
        line = json.dumps({"at": nanoseconds, "kind": kind, "who": who or self._who, **fields})
        os.write(self._file, line.encode() + b"\n")

    def close(self) -> None:
        os.close(self._file)


def _events(file: Path) -> Iterable[Event]:
    for line in file.read_bytes().splitlines(keepends=True):
        if line.endswith(b"\n"):  # a killed process might leave half a line
            fields = json.loads(line)
            at = fields.pop("at") / 1e9
            kind, who, queue, call = (fields.pop(n, "") for n in ("kind", "who", "queue", "call"))
            yield Event(at, kind, who, queue, call, fields)
