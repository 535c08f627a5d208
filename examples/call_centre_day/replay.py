"""Plays a day: dispatches each call when it is due, sets the limit to the agents on duty, watches."""

from __future__ import annotations

import asyncio
import contextlib
import math
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from examples.call_centre_day.day import QUEUE, Call, Day, LimitChange, Outcome, clock
from examples.call_centre_day.figures import ideal_outcomes
from examples.call_centre_day.history import Event, History, LimitSet, Snapshot
from examples.call_centre_day.worker import Worker
from genesis import Queue
from genesis.exceptions import BackendUnavailableError

SNAPSHOT_INTERVAL = 0.1  # real seconds
PROGRESS_INTERVAL = 5.0  # real seconds between two lines of progress, if stdout is no terminal
REAP_MARGIN = 1.5  # real seconds beyond the lease within which a dead instance must have been reaped
GIVE_UP_AFTER = 60.0  # real seconds beyond the ideal end of the day


class Instance(Protocol):
    """Handles calls, in this process or in another."""

    @property
    def name(self) -> str: ...

    def take(self, call: Call) -> None:
        """Begin to handle a call, whose times are real seconds; returns at once."""


@dataclass
class Reaping:
    """What became of the calls of the killed instance."""

    name: str
    instance_id: str
    killed_at: int
    left: Sequence[str] | None = None
    """The states, waiting or holding, of what it left in the line, by the first snapshot afterwards."""
    gone_at: int | None = None

    @property
    def seconds(self) -> float:
        """From the SIGKILL until none of its calls was in the line any more."""
        return math.inf if self.gone_at is None else (self.gone_at - self.killed_at) / 1e9

    def __str__(self) -> str:
        left = self.left or []
        calls = f"{left.count('holding')} talking and {left.count('waiting')} waiting"
        gone = "still there" if self.gone_at is None else f"reaped after {self.seconds:.2f} s"
        return f"instance {self.name} was killed; what it left ({calls}) was {gone}"


class Replay:
    """Plays one day.

    Args:
        queue: used for `set_limit` and `entries`. Calls enter through the queues of the instances.
        lease: in real seconds; 0 in memory, where there is none.
        kill_at: when to kill an instance, in seconds of the day; None: never.
    """

    def __init__(
        self, day: Day, speed: float, queue: Queue, lease: float = 0.0, kill_at: float | None = None
    ) -> None:
        self.history = History()
        self.reaping: Reaping | None = None
        self.lateness = 0.0  # the longest delay of a dispatch, in real seconds
        self._day = day
        self._speed = speed
        self._queue = queue
        self._lease = lease
        self._kill_at = kill_at
        self._instances: list[Instance] = []
        self._open: dict[str, str] = {}  # the instance of each call that has not ended
        self._all_dispatched = False
        self._all_ended = asyncio.Event()
        self._reaped = asyncio.Event()
        self._counts: Counter[str] = Counter()  # of events, by kind
        self._origin = 0.0  # the loop's clock at the start of the day

    def record(self, event: Event) -> None:
        self.history.events.append(event)
        self._counts[event.kind] += 1
        if event.kind in ("left", "abandoned", "failed"):
            self._open.pop(event.call_id, None)
            self._check_all_ended()

    def instance_exited(self, name: str) -> None:
        """Forget an instance whose process has ended, and its calls, which can no longer end."""
        if name not in self.history.killed and not self._all_ended.is_set():
            print(f"\ninstance {name} has died", file=sys.stderr)
        self._instances = [instance for instance in self._instances if instance.name != name]
        self._open = {call_id: owner for call_id, owner in self._open.items() if owner != name}
        self._check_all_ended()

    async def run(self, instances: Sequence[Instance]) -> None:
        """Play the day. Returns when all calls have ended, or 60 s after they should have."""
        self._instances = list(instances)
        _, ideal_end = ideal_outcomes(self._day)
        watch = asyncio.create_task(self._watch())
        self._origin = asyncio.get_running_loop().time()
        try:
            await self._dispatch_all()
            self._all_dispatched = True
            self._check_all_ended()
            left = (ideal_end - self.now) / self._speed + 2 * self._lease + GIVE_UP_AFTER
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._all_ended.wait(), left)
                if self.reaping is not None:
                    await asyncio.wait_for(self._reaped.wait(), self._lease + REAP_MARGIN)
        finally:
            watch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watch

    @property
    def now(self) -> float:
        """The time of the day that is played, in seconds since midnight."""
        return self._day.start + (asyncio.get_running_loop().time() - self._origin) * self._speed

    def outcomes(self) -> list[Outcome]:
        """What became of the calls that were answered or hung up, in seconds of the day."""
        entering = self.history.by_call("entering")
        found: list[Outcome] = []
        for event in self.history.events:
            if event.kind in ("granted", "abandoned"):
                began = entering[event.call_id].at
                answered = event.kind == "granted"
                waited = event.waited if answered else (event.at - began) / 1e9
                found.append(Outcome(began / 1e9 * self._speed, waited * self._speed, answered))
        return found

    def _check_all_ended(self) -> None:
        if self._all_dispatched and not self._open:
            self._all_ended.set()

    async def _dispatch_all(self) -> None:
        # The second field orders what is due at the same time: the limit changes before calls enter.
        timeline: list[tuple[float, int, LimitChange | Call | None]] = []
        timeline += [(change.at, 0, change) for change in self._day.limits]
        timeline += [(call.entered, 2, call) for call in self._day.calls]
        if self._kill_at is not None:
            timeline.append((self._kill_at, 1, None))
        if not self._day.limits or self._day.limits[0].at > self._day.start:
            await self._set_limit(0)
        for at, _, due in sorted(timeline, key=lambda entry: entry[:2]):
            if at > self.now:
                await asyncio.sleep((at - self.now) / self._speed)
            if isinstance(due, LimitChange):
                await self._set_limit(due.agents)
            elif isinstance(due, Call):
                self.lateness = max(self.lateness, (self.now - at) / self._speed)
                self._dispatch(due)
            else:
                self._kill_busiest()

    async def _set_limit(self, agents: int) -> None:
        asked = time.monotonic_ns()
        await self._queue.set_limit(QUEUE, agents)
        self.history.limits.append(LimitSet(agents, asked, time.monotonic_ns()))

    def _dispatch(self, call: Call) -> None:
        if not self._instances:
            return  # all have died; the judge will report that the call did not end
        instance = self._instances[len(self.history.dispatched) % len(self._instances)]
        self._open[call.call_id] = self.history.dispatched[call.call_id] = instance.name
        instance.take(call.faster(self._speed))

    def _kill_busiest(self) -> None:
        """Kill the instance that has the most calls."""
        owners = list(self._open.values())
        victim = max(self._instances, key=lambda instance: owners.count(instance.name))
        assert isinstance(victim, Worker)
        self.reaping = Reaping(victim.name, victim.instance_id, time.monotonic_ns())
        self.history.killed[victim.name] = self.reaping.killed_at
        victim.kill()
        self.instance_exited(victim.name)

    async def _watch(self) -> None:
        """Take snapshots, and show the progress."""
        on_terminal = sys.stdout.isatty()
        next_line = 0.0
        while True:
            with contextlib.suppress(BackendUnavailableError):
                snapshot = await self._take_snapshot()
                if on_terminal:
                    print(f"\r{self._progress(snapshot)}", end="", flush=True)
                elif time.monotonic() >= next_line:
                    next_line = time.monotonic() + PROGRESS_INTERVAL
                    print(self._progress(snapshot), flush=True)
            await asyncio.sleep(SNAPSHOT_INTERVAL)

    async def _take_snapshot(self) -> Snapshot:
        asked = time.monotonic_ns()
        entries = await self._queue.entries(QUEUE)
        answered = time.monotonic_ns()
        waiting = tuple(entry.item_id for entry in entries if entry.state == "waiting")
        holding = tuple(entry.item_id for entry in entries if entry.state == "holding")
        snapshot = Snapshot(asked, answered, waiting, holding)
        self.history.snapshots.append(snapshot)
        if self.reaping is not None and asked > self.reaping.killed_at:
            owner = self.reaping.instance_id
            left = [entry.state for entry in entries if entry.instance_id == owner]
            self._follow_reaping(self.reaping, left, answered)
        return snapshot

    def _follow_reaping(self, reaping: Reaping, left: Sequence[str], at: int) -> None:
        if reaping.left is None:
            reaping.left = left
        if left:
            reaping.gone_at = None
            self._reaped.clear()
        elif reaping.gone_at is None:
            reaping.gone_at = at
            self._reaped.set()

    def _progress(self, snapshot: Snapshot) -> str:
        agents = self.history.limits[-1].limit if self.history.limits else 0
        answered, abandoned = self._counts["granted"], self._counts["abandoned"]
        return (
            f"{clock(self.now)}   waiting {len(snapshot.waiting):3}   "
            f"talking {len(snapshot.holding):3}   agents {agents:3}   "
            f"answered {answered:5}   abandoned {abandoned:4}"
        )
