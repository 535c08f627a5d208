"""A day of a call centre, replayed through the waiting line.

    python examples/call_centre.py                      a generated day in memory, in a minute
    python examples/call_centre.py day.csv --speed 60   a recorded day, a minute of it a second
    python examples/call_centre.py --redis redis://localhost:6379 --instances 3
    python examples/call_centre.py --redis redis://localhost:6379 --instances 3 --kill-one-at 12:00

Every call enters `queue.slot("bank")` when it did on the day, hangs up when its patience ends, and
talks as long as it did while it holds the slot. The limit of the queue is the number of agents on
duty, and follows them through `queue.set_limit`. With `--redis` this process is the telephone network:
it hands the calls in turn to N worker processes, the instances, which share one line, and watches that
line from outside. `--kill-one-at` kills one of them (SIGKILL) with calls in its hands; the others get
the calls that come later.

While it runs you see one line: the time of the day, who waits and talks, the agents, how many were
answered and hung up. At the end a table puts this run beside an ideal line (the same day computed,
first come, first served, without any delay) and, for a recorded day, beside what was recorded:

    12:03:17   waiting   4   talking  11   agents  11   answered   595   abandoned  242
    ...
                                                              this run    ideal line      recorded
    calls answered                                                1880          1887          1511
    calls abandoned                                                359           352           728
    average speed of answer (mean wait of the answered)         46.4 s        45.1 s       134.8 s
    answered within 20 s, of all calls                           50.0%         51.5%         18.0%
    ... of all but those who hung up within 20 s                 52.6%         54.2%         19.6%
    maximum depth of the line                                       19            19            21

    ended exactly once: 2239 of 2239
    limit held at every instant: yes (1880 grants, 47 changes of the limit; 0 slots lost)
    FIFO held at every instant: yes (1005 looks at the line, in which 917 calls were seen waiting; ...)

(a recorded day over Redis with 3 instances, 600 times as fast). The higher the speed-up, the more of
the day a millisecond of delay is: that is the difference between this run and the ideal line.

Exit code: 0 if every call ended exactly once and the limit and the order held, 1 if not (what was
violated is listed), 2 if the day cannot be run at all.

The parts of this file, in order: the instance (what an application does with the queue: begin there),
the worker process around it, the replay, the day, the judge, the report, the program.

What a day is
    A CSV file with the columns entered_s, call_id, service, waited_s, outcome, talked_s and agent;
    others are ignored. Times are seconds, entered_s since midnight; the outcome is `answered`, or
    `abandoned`: hung up in the line. Without a file a day is generated, see `generate_day`. What is not
    on record is decided here:

    - *Patience of the answered.* Only a lower bound is known; they wait as long as it takes. The
      patience of the abandoned is what they waited.
    - *Talk of the abandoned,* should they be answered this time: drawn (`--seed`) from the recorded
      talks of the same service.
    - *Priority* is ignored: the line is first come, first served.
    - *Agents* are on duty from the start of the first to the end of the last call they took. An
      answered call without a recorded agent was taken by somebody who was on duty for just that call.
      Whoever waits while nobody is on duty waits for the next agent. Those who are on duty last stay
      until the line is empty, so nobody waits for ever.

    A replay therefore differs from the record: real agents take breaks, write up calls, and serve
    preferred customers first, while here an agent on duty takes the next call at once.

How it is judged
    Only from outside. Every process notes each step of each call with time.monotonic_ns, which is one
    clock for all processes of a machine; besides there are looks at the line (`queue.entries`). What is
    concluded from them is certain, however late a process noted what happened: no margin of time is
    assumed. In exchange, a fault that lasts for less than the delay between a grant and its note can go
    unseen. See `check_endings`, `check_limit` and `check_order`.

    An instance that stands still for longer than the lease loses its place in line until it wakes,
    which counts as an inversion here: on a machine that is that busy choose a longer `--lease`. At a
    high speed-up the lease, which is in real seconds, is a long time of the day: choose a shorter one
    for `--kill-one-at`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import csv
import heapq
import itertools
import json
import math
import os
import random
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from prometheus_client import start_http_server

from genesis import Queue
from genesis.exceptions import BackendUnavailableError, GenesisError
from genesis.queue import RedisBackend

QUEUE = "bank"
SERVICE_LEVEL = 20.0  # seconds of the day within which a call should be answered
LOOK_EVERY = 0.1  # real seconds between two looks at the line
REAP_MARGIN = 1.5  # real seconds beyond the lease in which the living must have noticed
GIVE_UP_AFTER = 60.0  # real seconds beyond the ideal end of the day
VIOLATIONS_SHOWN = 20


class CannotRun(Exception):  # noqa: N818 - a message for the user, not a fault of the program
    """The day cannot be run as asked; the text says why in one line."""


# ---------------------------------------------------------------------------------- the instance


class Order(NamedTuple):
    """A call as it is handed to an instance, in real seconds."""

    call_id: str
    patience: float | None
    talk: float


class Instance:
    """Handles calls in this process: what an application does with the queue is in `_handle`."""

    def __init__(self, name: str, queue: Queue, note: Callable[[Event], None]) -> None:
        self.name = name
        self._queue = queue
        self._note = note
        self._tasks: set[asyncio.Task[None]] = set()

    def take(self, order: Order) -> None:
        task = asyncio.create_task(self._handle(order))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """End the calls that have not ended, if there are any."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks)

    async def _handle(self, order: Order) -> None:
        task = asyncio.current_task()
        assert task is not None
        hang_up: asyncio.TimerHandle | None = None
        if order.patience is not None:
            hang_up = asyncio.get_running_loop().call_later(order.patience, task.cancel)
        # Noted in the same turn of the loop in which the slot is asked for, so that the notes of an
        # instance are in the order of entering.
        self._event("entering", order)
        try:
            async with self._queue.slot(QUEUE, item_id=order.call_id) as slot:
                if hang_up is not None:
                    hang_up.cancel()
                self._event("granted", order, token=slot.fencing_token, waited=slot.waited)
                await asyncio.sleep(order.talk)
                self._event("leaving", order, note="lost" if slot.lost else "")
        except asyncio.CancelledError:
            self._event("abandoned", order)
        except GenesisError as error:
            self._event("failed", order, note=str(error))
        else:
            self._event("left", order)
        finally:
            if hang_up is not None:
                hang_up.cancel()

    def _event(
        self, kind: Kind, order: Order, *, token: int = 0, waited: float = 0.0, note: str = ""
    ) -> None:
        at = time.monotonic_ns()
        self._note(Event(self.name, kind, at, order.call_id, token, waited, note))


# ---------------------------------------------------------------------------- the worker process


class WorkerOptions(NamedTuple):
    """What a worker process is told on its command line, as JSON."""

    name: str
    url: str
    lease: float
    metrics_port: int | None


async def run_worker(options: WorkerOptions) -> None:
    """A worker process: reads orders from stdin until it is closed, writes events to stdout."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    async with Queue(RedisBackend(options.url, lease=options.lease)) as queue:
        serve_metrics(options.metrics_port)
        instance = Instance(options.name, queue, _write_line)
        _write_line([queue.instance_id])
        while line := await reader.readline():
            instance.take(Order(*json.loads(line)))
        await instance.close()


def _write_line(what: Sequence[object]) -> None:
    # Unbuffered, in one piece: what is noted has left this process before it does the next thing, so a
    # SIGKILL cannot take back that a slot was given back.
    with contextlib.suppress(BrokenPipeError):
        os.write(1, json.dumps(what).encode() + b"\n")


def serve_metrics(port: int | None) -> None:
    if port is not None:
        try:
            start_http_server(port, addr="127.0.0.1")
        except OSError as error:
            raise CannotRun(f"metrics cannot be served on port {port}: {error}") from None


class Worker:
    """This process' end of a worker process."""

    def __init__(self, options: WorkerOptions, note: Callable[[Event], None]) -> None:
        self.name = options.name
        self.instance_id = ""
        self._options = options
        self._note = note
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None

    async def start(self, on_death: Callable[[str], None]) -> None:
        command = [sys.executable, __file__, "--worker", json.dumps(self._options)]
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe)
        assert process.stdout is not None
        self._process = process
        first = await process.stdout.readline()
        if not first:
            raise CannotRun(f"instance {self.name} did not start")
        (self.instance_id,) = json.loads(first)
        self._reader = asyncio.create_task(self._read(process.stdout, on_death))

    async def _read(self, events: asyncio.StreamReader, on_death: Callable[[str], None]) -> None:
        while (line := await events.readline()).endswith(b"\n"):
            self._note(Event(*json.loads(line)))
        on_death(self.name)

    def take(self, order: Order) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order).encode() + b"\n")

    def kill(self) -> None:
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    async def close(self) -> None:
        """Let the process end by itself, and hear all it has to say."""
        if self._process is None:
            return
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            await asyncio.wait_for(self._process.wait(), 10)
        except asyncio.TimeoutError:
            self.kill()
            await self._process.wait()
        if self._reader is not None:
            await self._reader


# ------------------------------------------------------------------------------------ the replay


@dataclass
class Reaping:
    """What became of the calls of the killed instance."""

    name: str
    instance_id: str
    killed_at: int
    left: Sequence[str] | None = None
    """What it left in the line, as the first look afterwards showed: waiting or holding."""
    gone_at: int | None = None

    @property
    def seconds(self) -> float:
        """From the SIGKILL until nothing of it was in the line any more."""
        return math.inf if self.gone_at is None else (self.gone_at - self.killed_at) / 1e9

    def __str__(self) -> str:
        left = self.left or []
        calls = f"{left.count('holding')} talking and {left.count('waiting')} waiting"
        gone = "still there" if self.gone_at is None else f"reaped after {self.seconds:.2f} s"
        return f"instance {self.name} was killed; what it left ({calls}) was {gone}"


class Replay:
    """Plays a day: brings the calls to the instances, the agents to the queue, and watches the line.

    Args:
        queue: for `set_limit` and `entries`; no call enters through it, unless it is the only one.
        lease: real seconds; 0 if there is none.
        kill_at: when to kill an instance, in seconds of the day.
    """

    def __init__(
        self, day: Day, speed: float, queue: Queue, lease: float = 0.0, kill_at: float | None = None
    ) -> None:
        self.history = History()
        self.reaping: Reaping | None = None
        self.lateness = 0.0  # of the call that entered latest, in real seconds
        self._day = day
        self._speed = speed
        self._queue = queue
        self._lease = lease
        self._kill_at = kill_at
        self._instances: list[Instance | Worker] = []
        self._turn = 0
        self._open: dict[str, str] = {}  # calls that have not ended, and their instances
        self._brought = False  # all calls have been handed over
        self._all_ended = asyncio.Event()
        self._reaped = asyncio.Event()
        self._counts: defaultdict[str, int] = defaultdict(int)  # of events, by kind
        self._origin = 0.0  # the loop's clock at the start of the day
        self._ids = {call.call_id: call.call_id for call in day.calls}

    def note(self, event: Event) -> None:
        self.history.events.append(event)
        self._counts[event.kind] += 1
        if event.kind in ("left", "abandoned", "failed"):
            self._open.pop(event.call_id, None)
            self._look_whether_all_ended()

    def died(self, name: str) -> None:
        """An instance is no more; its calls will not end by themselves."""
        if name not in self.history.killed and not self._all_ended.is_set():
            print(f"\ninstance {name} has died", file=sys.stderr)
        self._instances = [instance for instance in self._instances if instance.name != name]
        self._open = {call_id: owner for call_id, owner in self._open.items() if owner != name}
        self._look_whether_all_ended()

    async def run(self, instances: Sequence[Instance | Worker]) -> None:
        """Play the day on these instances; returns when all calls have ended, or never will."""
        self._instances = list(instances)
        _, ideal_end = ideal_outcomes(self._day)
        watch = asyncio.create_task(self._watch())
        self._origin = asyncio.get_running_loop().time()
        try:
            await self._drive()
            self._brought = True
            self._look_whether_all_ended()
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
        """Seconds since midnight, on the day that is played."""
        return self._day.start + (asyncio.get_running_loop().time() - self._origin) * self._speed

    def outcomes(self) -> list[Outcome]:
        """What became of those who were answered or hung up, in seconds of the day."""
        entering = self.history.by_call("entering")
        found: list[Outcome] = []
        for event in self.history.events:
            if event.kind in ("granted", "abandoned"):
                began = entering[event.call_id].at
                answered = event.kind == "granted"
                waited = event.waited if answered else (event.at - began) / 1e9
                found.append(Outcome(began / 1e9 * self._speed, waited * self._speed, answered))
        return found

    def _look_whether_all_ended(self) -> None:
        if self._brought and not self._open:
            self._all_ended.set()

    async def _drive(self) -> None:
        # At one instant the agents come and go first.
        timeline: list[tuple[float, int, LimitChange | Call | None]] = []
        timeline += [(change.at, 0, change) for change in self._day.limits]
        timeline += [(call.entered, 2, call) for call in self._day.calls]
        if self._kill_at is not None:
            timeline.append((self._kill_at, 1, None))
        if not self._day.limits or self._day.limits[0].at > self._day.start:
            await self._set_limit(0)
        for at, _, what in sorted(timeline, key=lambda entry: entry[:2]):
            if at > self.now:
                await asyncio.sleep((at - self.now) / self._speed)
            if isinstance(what, LimitChange):
                await self._set_limit(what.agents)
            elif isinstance(what, Call):
                self.lateness = max(self.lateness, (self.now - at) / self._speed)
                self._bring(what)
            else:
                self._kill_one()

    async def _set_limit(self, agents: int) -> None:
        asked = time.monotonic_ns()
        await self._queue.set_limit(QUEUE, agents)
        self.history.limits.append(LimitSet(agents, asked, time.monotonic_ns()))

    def _bring(self, call: Call) -> None:
        if not self._instances:
            return  # all have died; the calls will be reported as not ended
        self._turn += 1
        instance = self._instances[self._turn % len(self._instances)]
        self._open[call.call_id] = self.history.routed[call.call_id] = instance.name
        patience = None if call.patience is None else call.patience / self._speed
        instance.take(Order(call.call_id, patience, call.talk / self._speed))

    def _kill_one(self) -> None:
        """Kill the one with the most calls in its hands."""
        owners = list(self._open.values())
        victim = max(self._instances, key=lambda instance: owners.count(instance.name))
        assert isinstance(victim, Worker)
        self.reaping = Reaping(victim.name, victim.instance_id, time.monotonic_ns())
        self.history.killed[victim.name] = self.reaping.killed_at
        victim.kill()
        self.died(victim.name)

    async def _watch(self) -> None:
        """Look at the line again and again, and show what is going on."""
        progress = Progress()
        while True:
            with contextlib.suppress(BackendUnavailableError):
                progress.show(await self._look())
            await asyncio.sleep(LOOK_EVERY)

    async def _look(self) -> str:
        asked = time.monotonic_ns()
        entries = await self._queue.entries(QUEUE)
        answered = time.monotonic_ns()
        waiting = tuple(self._ids.get(e.item_id, e.item_id) for e in entries if e.state == "waiting")
        holding = tuple(self._ids.get(e.item_id, e.item_id) for e in entries if e.state == "holding")
        self.history.looks.append(Look(asked, answered, waiting, holding))
        if self.reaping is not None and asked > self.reaping.killed_at:
            owner = self.reaping.instance_id
            self._see_reaping(
                self.reaping, [e.state for e in entries if e.instance_id == owner], answered
            )
        agents = self.history.limits[-1].limit if self.history.limits else 0
        counts = self._counts
        return (
            f"{clock(self.now)}   waiting {len(waiting):3}   talking {len(holding):3}   "
            f"agents {agents:3}   answered {counts['granted']:5}   abandoned {counts['abandoned']:4}"
        )

    def _see_reaping(self, reaping: Reaping, left: list[str], at: int) -> None:
        if reaping.left is None:
            reaping.left = left
        if left:
            reaping.gone_at = None
            self._reaped.clear()
        elif reaping.gone_at is None:
            reaping.gone_at = at
            self._reaped.set()


class Progress:
    """One line, refreshed on a terminal; else a new one every few seconds."""

    def __init__(self) -> None:
        self._terminal = sys.stdout.isatty()
        self._next = 0.0

    def show(self, line: str) -> None:
        if self._terminal:
            print(f"\r{line}", end="", flush=True)
        elif time.monotonic() >= self._next:
            self._next = time.monotonic() + 5
            print(line, flush=True)


# --------------------------------------------------------------------------------------- the day


class Call(NamedTuple):
    """What a caller brings along, in seconds of the day."""

    call_id: str
    entered: float
    patience: float | None
    """How long it waits before it hangs up; None: as long as it takes."""
    talk: float


class Outcome(NamedTuple):
    """What became of a call, in seconds of the day."""

    entered: float
    waited: float
    answered: bool


class LimitChange(NamedTuple):
    at: float
    agents: int


@dataclass(frozen=True)
class Day:
    title: str
    calls: Sequence[Call]
    """In the order of entering."""
    limits: Sequence[LimitChange]
    recorded: Sequence[Outcome] = ()

    @property
    def start(self) -> float:
        return min([self.calls[0].entered] + [change.at for change in self.limits[:1]])


class Row(NamedTuple):
    """A line of the CSV file."""

    call_id: str
    service: str
    entered: float
    waited: float
    talked: float | None
    """None: abandoned."""
    agent: str

    @classmethod
    def parse(cls, fields: dict[str, str]) -> Row:
        if not fields["call_id"]:
            raise ValueError("call_id is empty")
        if fields["outcome"] not in ("answered", "abandoned"):
            raise ValueError(f"outcome must be answered or abandoned, not {fields['outcome']!r}")
        answered = fields["outcome"] == "answered"
        return cls(
            fields["call_id"],
            fields["service"],
            _seconds(fields, "entered_s"),
            _seconds(fields, "waited_s"),
            _seconds(fields, "talked_s") if answered else None,
            fields["agent"] if answered else "",
        )


COLUMNS = ("entered_s", "call_id", "service", "waited_s", "outcome", "talked_s", "agent")


def _seconds(fields: dict[str, str], column: str) -> float:
    try:
        value = float(fields[column])
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise ValueError(f"{column} must be a number of seconds, not {fields[column]!r}")
    return value


def read_rows(path: Path) -> list[Row]:
    """The calls of a file in the order of entering; raises `CannotRun`, which names the row."""
    rows: dict[str, Row] = {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
            if missing:
                raise CannotRun(f"{path}: row 1: the header lacks {', '.join(missing)}")
            for fields in reader:
                try:
                    if None in fields or None in fields.values():
                        raise ValueError("it has another number of fields than the header")
                    row = Row.parse(fields)
                    if row.call_id in rows:
                        raise ValueError(f"call_id {row.call_id!r} is in the file twice")
                except ValueError as error:
                    raise CannotRun(f"{path}: row {reader.line_num}: {error}") from None
                rows[row.call_id] = row
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise CannotRun(f"{path}: {error}") from None
    if not rows:
        raise CannotRun(f"{path}: there are no calls in it")
    return sorted(rows.values(), key=lambda row: row.entered)


def agents_on_duty(rows: Iterable[Row]) -> list[LimitChange]:
    """How many agents are on duty from when on; the rules are in the module's text."""
    shifts: dict[str, tuple[float, float]] = {}
    for row in rows:
        if row.talked is None:
            continue
        began = row.entered + row.waited
        # An agent who is not on record is another one for every call.
        agent = row.agent or f"of {row.call_id}"
        first, last = shifts.get(agent, (began, began))
        shifts[agent] = (min(first, began), max(last, began + row.talked))
    steps: defaultdict[float, int] = defaultdict(int)
    for first, last in shifts.values():
        steps[first] += 1
        steps[last] -= 1
    changes: list[LimitChange] = []
    agents = 0
    for at, step in sorted(steps.items()):
        agents += step
        if step:
            changes.append(LimitChange(at, agents))
    if shifts and not changes:  # all talks on record took 0 s: somebody was there all the same
        return [LimitChange(min(steps), 1)]
    # The last change is to nobody: left out, since the last on duty stay until the line is empty.
    return changes[:-1]


def read_day(path: Path, seed: int) -> Day:
    rows = read_rows(path)
    talks: defaultdict[str, list[float]] = defaultdict(list)
    for row in rows:
        if row.talked is not None:
            talks[row.service].append(row.talked)
    everything = [talk for some in talks.values() for talk in some] or [0.0]
    chance = random.Random(seed)
    calls = [
        Call(row.call_id, row.entered, row.waited, chance.choice(talks[row.service] or everything))
        if row.talked is None
        else Call(row.call_id, row.entered, None, row.talked)
        for row in rows
    ]
    recorded = [Outcome(row.entered, row.waited, row.talked is not None) for row in rows]
    return Day(f"the day of {path.name}", calls, agents_on_duty(rows), recorded)


# Hour of the day, calls an hour, agents: one weekday of the bank's call centre behind Brown et al.,
# "Statistical Analysis of a Telephone Call Center: A Queueing-Science Perspective", JASA 2005, counts
# rounded to tens. The busiest hours offer more than the agents can carry, as they did.
HOURS = (
    (7, 50, 4), (8, 140, 6), (9, 210, 8), (10, 220, 10), (11, 210, 11), (12, 170, 11),
    (13, 170, 9), (14, 160, 9), (15, 180, 10), (16, 160, 9), (17, 160, 7), (18, 90, 7),
    (19, 60, 7), (20, 80, 7), (21, 80, 6), (22, 50, 4), (23, 40, 2),
)  # fmt: skip
# Talks are lognormal (Brown et al.): mean and deviation of the logarithm on that day, without the 4 %
# of talks of at most 10 s. That makes a mean talk of 191 s, where the day had 194 s.
TALK_LOG_MEAN, TALK_LOG_DEVIATION = 4.87, 0.875
# Patience is exponential, as in the Erlang-A model that Brown et al. compare their data with. The mean
# is the day's seconds of waiting divided by its 728 hang-ups: the maximum-likelihood estimate, given
# that the patience of the answered is known only to be longer than their wait.
PATIENCE_MEAN = 359.0


def calls_an_hour(at: float) -> float:
    """The rate of arrivals: straight lines between the middles of the hours."""
    middles = [((hour + 0.5) * 3600, float(rate)) for hour, rate, _ in HOURS]
    for (left, low), (right, high) in itertools.pairwise(middles):
        if left <= at <= right:
            return low + (high - low) * (at - left) / (right - left)
    return middles[0][1] if at < middles[0][0] else middles[-1][1]


def generate_day(seed: int) -> Day:
    """A day of the same kind as the recorded one.

    Arrivals are a Poisson process whose rate changes with the time of the day, by thinning (Lewis and
    Shedler, "Simulation of nonhomogeneous Poisson processes by thinning", Naval Research Logistics
    Quarterly 1979): arrivals at the highest rate, each kept with the probability rate / highest rate.
    """
    chance = random.Random(seed)
    highest = max(rate for _, rate, _ in HOURS)
    at, close = HOURS[0][0] * 3600.0, (HOURS[-1][0] + 1) * 3600.0
    calls: list[Call] = []
    while (at := at + chance.expovariate(highest / 3600)) < close:
        if chance.random() * highest < calls_an_hour(at):
            patience = chance.expovariate(1 / PATIENCE_MEAN)
            talk = chance.lognormvariate(TALK_LOG_MEAN, TALK_LOG_DEVIATION)
            calls.append(Call(f"call-{len(calls) + 1:04}", at, patience, talk))
    limits = [LimitChange(hour * 3600.0, agents) for hour, _, agents in HOURS]
    return Day(f"a generated day (seed {seed})", calls, limits)


def ideal_outcomes(day: Day) -> tuple[list[Outcome], float]:
    """The day in a line without any delay, and when its last call ends."""
    # At one instant: agents come and go, talks end, callers enter, and only then hang up.
    happenings: list[tuple[float, int, int]] = []
    happenings += [(change.at, 0, change.agents) for change in day.limits]
    happenings += [(call.entered, 2, number) for number, call in enumerate(day.calls)]
    heapq.heapify(happenings)
    outcomes: list[Outcome] = []
    waiting: dict[int, Call] = {}
    agents = talking = 0
    end = day.start
    while happenings:
        now, kind, number = heapq.heappop(happenings)
        if kind == 0:
            agents = number
        elif kind == 1:
            talking -= 1
            end = now
        elif kind == 2:
            call = waiting[number] = day.calls[number]
            if call.patience is not None:
                heapq.heappush(happenings, (now + call.patience, 3, number))
        elif number in waiting:
            call = waiting.pop(number)
            outcomes.append(Outcome(call.entered, now - call.entered, answered=False))
            end = now
        while waiting and talking < agents:
            call = waiting.pop(next(iter(waiting)))
            talking += 1
            outcomes.append(Outcome(call.entered, now - call.entered, answered=True))
            heapq.heappush(happenings, (now + call.talk, 1, 0))
    return outcomes, end


@dataclass(frozen=True)
class Figures:
    """What a call centre looks at, in seconds of the day and shares of 1."""

    answered: int
    abandoned: int
    speed_of_answer: float
    """The mean wait of the answered."""
    strict_level: float
    """Answered within 20 s, of all calls."""
    lenient_level: float
    """The same of all calls but those who hung up within 20 s."""
    depth: int
    """The most that waited at once."""

    @classmethod
    def of(cls, outcomes: Sequence[Outcome]) -> Figures:
        waits = [o.waited for o in outcomes if o.answered]
        soon = sum(wait <= SERVICE_LEVEL for wait in waits)
        fled = sum(not o.answered and o.waited <= SERVICE_LEVEL for o in outcomes)
        steps = [(o.entered, 1) for o in outcomes if o.waited > 0]
        steps += [(o.entered + o.waited, -1) for o in outcomes if o.waited > 0]
        depths = itertools.accumulate(step for _, step in sorted(steps))
        return cls(
            answered=len(waits),
            abandoned=len(outcomes) - len(waits),
            speed_of_answer=sum(waits) / max(1, len(waits)),
            strict_level=soon / max(1, len(outcomes)),
            lenient_level=soon / max(1, len(outcomes) - fled),
            depth=max(depths, default=0),
        )


# ------------------------------------------------------------------------------------- the judge


Kind = Literal["entering", "granted", "leaving", "left", "abandoned", "failed"]


class Event(NamedTuple):
    """A step of a call, as its process noted it: `entering` and `leaving` before the queue is told,
    `granted`, `left` and `abandoned` after the queue has answered."""

    instance: str
    kind: Kind
    at: int
    """time.monotonic_ns"""
    call_id: str
    token: int = 0
    waited: float = 0.0
    note: str = ""


class LimitSet(NamedTuple):
    """A `set_limit`, in force from some moment between `asked` and `answered`."""

    limit: int
    asked: int
    answered: int


class Look(NamedTuple):
    """What `queue.entries` showed at some moment between `asked` and `answered`."""

    asked: int
    answered: int
    waiting: tuple[str, ...]
    """In the order of the line."""
    holding: tuple[str, ...] = ()


@dataclass
class History:
    """All that was seen of a run. The events of one instance are in their order."""

    events: list[Event] = field(default_factory=list)
    limits: list[LimitSet] = field(default_factory=list)
    looks: list[Look] = field(default_factory=list)
    routed: dict[str, str] = field(default_factory=dict)
    """Which instance was given a call."""
    killed: dict[str, int] = field(default_factory=dict)
    """When an instance was killed: a moment before the SIGKILL."""

    def all_of(self, kind: Kind) -> list[Event]:
        return [event for event in self.events if event.kind == kind]

    def by_call(self, kind: Kind) -> dict[str, Event]:
        return {event.call_id: event for event in self.all_of(kind)}


WHOLE_LIVES: tuple[tuple[Kind, ...], ...] = (
    ("entering", "granted", "leaving", "left"),
    ("entering", "abandoned"),
    ("entering", "failed"),
)


def check_endings(history: History, call_ids: Iterable[str]) -> tuple[list[str], list[str]]:
    """Whether each call ended exactly once: violations, and the calls that died with their instance."""
    lives: defaultdict[str, tuple[Kind, ...]] = defaultdict(tuple)
    for event in history.events:
        lives[event.call_id] += (event.kind,)
    violations: list[str] = []
    cut_off: list[str] = []
    for call_id in call_ids:
        life = lives.pop(call_id, ())
        if life in WHOLE_LIVES:
            continue
        if history.routed.get(call_id) in history.killed and any(
            life == whole[: len(life)] for whole in WHOLE_LIVES
        ):
            cut_off.append(call_id)
        else:
            violations.append(f"{call_id} did not end exactly once: {', '.join(life) or 'nothing'}")
    violations += [
        f"{call_id} is not a call of this day: {', '.join(lives[call_id])}" for call_id in lives
    ]
    return violations, cut_off


def check_limit(history: History) -> list[str]:
    """Whether a slot was granted while as many as the limit were held.

    Grants come in the order of their fencing tokens. So those who held for certain when B was granted
    are those with a smaller token who noted `leaving` only after B had noted `granted`; a killed holder
    held until it was killed. The limit that B is measured by is the highest that may have been in force
    between the latest moment at which B was certainly not granted yet and the moment at which it noted
    it. A lowered limit takes nothing from holders, so only grants are judged. A holder whose slot was
    lost proves nothing and is not counted.
    """
    violations: list[str] = []
    entering, leaving = history.by_call("entering"), history.by_call("leaving")
    still_waiting = {call_id: look.asked for look in history.looks for call_id in look.waiting}
    ends = [following.answered for following in history.limits[1:]] + [sys.maxsize]
    holders: list[tuple[int, Event]] = []  # until when they held for certain
    earliest = 0
    token = -1
    for granted in sorted(history.by_call("granted").values(), key=lambda event: event.token):
        call_id = granted.call_id
        if granted.token == token:
            violations.append(f"{call_id} was granted the token {token}, which another has")
        token = granted.token
        # A grant is later than every grant with a smaller token.
        began = entering[call_id].at if call_id in entering else 0
        earliest = max(earliest, began, still_waiting.get(call_id, 0))
        allowed = max(
            (
                change.limit
                for change, end in zip(history.limits, ends, strict=True)
                if change.asked <= granted.at and end >= earliest
            ),
            default=0,
        )
        holders = [(until, event) for until, event in holders if until >= earliest]
        inside = [event.call_id for until, event in holders if until >= granted.at]
        if len(inside) >= allowed:
            violations.append(
                f"{call_id} (token {token}) was granted while the limit was {allowed} "
                f"and {len(inside)} held: {', '.join(inside) or 'nobody'}"
            )
        until = granted.at
        if call_id in leaving:
            until = granted.at if leaving[call_id].note == "lost" else leaving[call_id].at
        elif granted.instance in history.killed:
            until = history.killed[granted.instance]
        holders.append((until, granted))
    return violations


class _Ahead:
    """Calls that entered before some other, and those among them that it is hardest to be behind."""

    def __init__(self, granted: dict[str, Event], still_waiting: dict[str, int]) -> None:
        self._granted = granted
        self._still_waiting = still_waiting
        self._last_granted: Event | None = None
        self._last_waiting: tuple[int, str] = (-1, "")

    def add(self, call_id: str) -> None:
        granted = self._granted.get(call_id)
        if granted and (self._last_granted is None or granted.token > self._last_granted.token):
            self._last_granted = granted
        self._last_waiting = max(self._last_waiting, (self._still_waiting.get(call_id, -1), call_id))

    def overtaken_by(self, call_id: str) -> str:
        """What is wrong with the grant of this call, if anything is."""
        granted, last = self._granted.get(call_id), self._last_granted
        if granted is None:
            return ""
        who = f"{call_id} of instance {granted.instance} (token {granted.token}) overtook"
        if last is not None and last.token > granted.token:
            return f"{who} {last.call_id} of instance {last.instance} (token {last.token})"
        if self._last_waiting[0] > granted.at:
            return f"{who} {self._last_waiting[1]}, which was seen waiting afterwards"
        return ""


def check_order(history: History) -> list[str]:
    """Whether somebody was granted a slot before somebody who had entered earlier.

    A was in line before B for certain if
    - both entered through the same instance, A first;
    - A had noted its grant, or was seen in the line, before B, of whichever instance, began to enter;
    - both were seen waiting at once, A in front of B.
    Then B has overtaken A if A's fencing token is greater, or if A was seen waiting after B had noted
    its grant. That A hung up after B's grant proves nothing: A may have been granted just before.
    """
    entering, granted = history.by_call("entering"), history.by_call("granted")
    in_line_by = {call_id: event.at for call_id, event in granted.items()}
    still_waiting: dict[str, int] = {}
    for look in history.looks:
        for call_id in (*look.waiting, *look.holding):
            in_line_by[call_id] = min(look.answered, in_line_by.get(call_id, sys.maxsize))
        still_waiting.update(dict.fromkeys(look.waiting, look.asked))

    violations: dict[str, str] = {}  # by who overtook, each told once

    def tell(call_id: str, what: str) -> None:
        if what:
            violations.setdefault(call_id, what)

    ahead: defaultdict[str, _Ahead] = defaultdict(lambda: _Ahead(granted, still_waiting))
    for call_id, event in entering.items():
        tell(call_id, ahead[event.instance].overtaken_by(call_id))
        ahead[event.instance].add(call_id)

    everywhere = _Ahead(granted, still_waiting)
    moments = [(event.at, 0, call_id) for call_id, event in entering.items()]
    moments += [(at, 1, call_id) for call_id, at in in_line_by.items()]
    for _, in_line, call_id in sorted(moments):
        if in_line:
            everywhere.add(call_id)
        else:
            tell(call_id, everywhere.overtaken_by(call_id))

    for look in history.looks:
        in_front = _Ahead(granted, {})
        for call_id in look.waiting:
            tell(call_id, in_front.overtaken_by(call_id))
            in_front.add(call_id)
    return list(violations.values())


# ------------------------------------------------------------------------------------ the report


def clock(seconds: float) -> str:
    whole = int(seconds)
    return f"{whole // 3600:02}:{whole % 3600 // 60:02}:{whole % 60:02}"


def table(columns: dict[str, Figures]) -> Iterator[str]:
    rows: list[tuple[str, Callable[[Figures], str]]] = [
        ("calls answered", lambda f: f"{f.answered}"),
        ("calls abandoned", lambda f: f"{f.abandoned}"),
        ("average speed of answer (mean wait of the answered)", lambda f: f"{f.speed_of_answer:.1f} s"),
        (f"answered within {SERVICE_LEVEL:g} s, of all calls", lambda f: f"{f.strict_level:.1%}"),
        (
            f"... of all but those who hung up within {SERVICE_LEVEL:g} s",
            lambda f: f"{f.lenient_level:.1%}",
        ),
        ("maximum depth of the line", lambda f: f"{f.depth}"),
    ]
    yield f"{'':52}" + "".join(f"{name:>14}" for name in columns)
    for title, text in rows:
        yield f"{title:52}" + "".join(f"{text(figures):>14}" for figures in columns.values())


def report(day: Day, replay: Replay, lease: float) -> bool:
    """Print the summary; returns whether all is as it should be."""
    history = replay.history
    columns = {
        "this run": Figures.of(replay.outcomes()),
        "ideal line": Figures.of(ideal_outcomes(day)[0]),
    }
    if day.recorded:
        columns["recorded"] = Figures.of(day.recorded)
    print("\n", *table(columns), "", sep="\n")

    endings, cut_off = check_endings(history, [call.call_id for call in day.calls])
    endings += [f"{event.call_id} failed: {event.note}" for event in history.all_of("failed")]
    limit, order = check_limit(history), check_order(history)
    ended = f"{len(day.calls) - len(endings) - len(cut_off)} of {len(day.calls)}"
    if cut_off:
        ended += f"; {len(cut_off)} were cut off with their instance: {', '.join(cut_off)}"
    waited = sum(event.waited > 0 for event in history.all_of("granted")) + len(
        history.all_of("abandoned")
    )
    seen = len({call_id for look in history.looks for call_id in look.waiting})
    lost = sum(event.note == "lost" for event in history.all_of("leaving"))
    print(f"ended exactly once: {ended}")
    print(
        f"limit held at every instant: {verdict(limit)} ({len(history.all_of('granted'))} grants, "
        f"{len(history.limits)} changes of the limit; {lost} slots lost)"
    )
    print(
        f"FIFO held at every instant: {verdict(order)} ({len(history.looks)} looks at the line, "
        f"in which {seen} calls were seen waiting; {waited} waited)"
    )
    print(f"the call that entered latest was {replay.lateness * 1000:.0f} ms late")
    violations = endings + limit + order
    if replay.reaping is not None:
        print(f"{replay.reaping} (lease {lease:g} s)")
        if replay.reaping.seconds > lease + REAP_MARGIN:
            violations.append("what the killed instance left was not reaped within the lease")
    for line in violations[:VIOLATIONS_SHOWN]:
        print(f"  VIOLATION: {line}")
    if len(violations) > VIOLATIONS_SHOWN:
        print(f"  ... and {len(violations) - VIOLATIONS_SHOWN} more")
    return not violations


def verdict(violations: list[str]) -> str:
    return f"NO, {len(violations)} violations" if violations else "yes"


# ----------------------------------------------------------------------------------- the program


async def play_in_memory(day: Day, options: argparse.Namespace) -> Replay:
    serve_metrics(options.metrics_port)
    async with Queue() as queue:
        replay = Replay(day, options.speed, queue)
        instance = Instance("1", queue, replay.note)
        await replay.run([instance])
        await instance.close()
    return replay


async def play_over_redis(day: Day, options: argparse.Namespace) -> Replay:
    kill_at = None if options.kill_one_at is None else when(options.kill_one_at, day)
    try:
        backend = RedisBackend(options.redis, lease=options.lease)
    except ValueError as error:
        raise CannotRun(f"--redis {options.redis}: {error}") from None
    async with Queue(backend) as queue:
        stats = await queue.stats(QUEUE)
        if stats.waiting or stats.in_use:
            raise CannotRun(
                f"the queue {QUEUE!r} is in use: {stats.waiting} wait and {stats.in_use} hold. "
                "Let that run end, or use another Redis database"
            )
        replay = Replay(day, options.speed, queue, options.lease, kill_at)
        workers: list[Worker] = []
        for number in range(options.instances):
            port = None if options.metrics_port is None else options.metrics_port + number
            settings = WorkerOptions(str(number + 1), options.redis, options.lease, port)
            workers.append(Worker(settings, replay.note))
        try:
            starts = [worker.start(replay.died) for worker in workers]
            for failure in await asyncio.gather(*starts, return_exceptions=True):
                if failure is not None:
                    raise failure
            await replay.run(workers)
        finally:
            await asyncio.gather(*(worker.close() for worker in workers))
            with contextlib.suppress(GenesisError):
                await queue.set_limit(QUEUE, None)
    return replay


def when(text: str, day: Day) -> float:
    """HH:MM, HH:MM:SS, or a fraction of the time between the first call and the last."""
    first, last = day.calls[0].entered, day.calls[-1].entered
    try:
        parts = [float(part) for part in text.split(":")]
    except ValueError:
        parts = []
    if len(parts) == 1 and 0 <= parts[0] <= 1:
        return first + parts[0] * (last - first)
    if len(parts) in (2, 3):
        at = sum(part * unit for part, unit in zip(parts, (3600, 60, 1), strict=False))
        if first <= at <= last:
            return at
    raise CannotRun(
        f"--kill-one-at {text}: give a time from {clock(first)} to {clock(last)}, or a fraction"
    )


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Replay a day of a call centre through a genesis queue, and check that every call "
        "ended exactly once, that the limit held and that nobody was overtaken.",
        epilog="Without any argument: a generated day of 17 hours, in memory, in less than a minute. "
        "Exit code 1: something was violated. Exit code 2: the day cannot be run.",
    )
    parser.add_argument(
        "file", nargs="?", type=Path, help="CSV of a recorded day; without it a day is generated"
    )
    parser.add_argument(
        "--speed",
        type=positive,
        default=1200.0,
        help="times faster than the day, default %(default)g; 60 plays a minute of it a second",
    )
    parser.add_argument(
        "--seed", type=int, default=1, help="of all that is drawn (default %(default)s)"
    )
    parser.add_argument("--redis", metavar="URL", help="share the line through this Redis")
    parser.add_argument(
        "--instances", type=int, default=1, metavar="N", help="worker processes, with --redis"
    )
    parser.add_argument(
        "--lease",
        type=positive,
        default=15.0,
        metavar="S",
        help="real seconds after which a dead instance is reaped, with --redis; default %(default)g",
    )
    parser.add_argument(
        "--kill-one-at",
        metavar="WHEN",
        help="SIGKILL the busiest instance at this time of the day (12:30), or fraction of it (0.5)",
    )
    parser.add_argument(
        "--metrics-port",
        type=int,
        metavar="PORT",
        help="serve /metrics on 127.0.0.1, in real seconds; instance n on PORT + n - 1",
    )
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.metrics_port is not None and not 0 < options.metrics_port < 65536 - options.instances:
        parser.error(f"--metrics-port {options.metrics_port}: there is no such port")
    if options.instances < 1:
        parser.error("--instances must be at least 1")
    if options.instances > 1 and not options.redis:
        parser.error("--instances needs --redis: a line in memory is one process'")
    if options.kill_one_at is not None and options.instances < 2:
        parser.error("--kill-one-at needs --instances of at least 2: somebody must be left")
    return options


def positive(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise ValueError(text)
    return value


def run(options: argparse.Namespace) -> int:
    day = read_day(options.file, options.seed) if options.file else generate_day(options.seed)
    minutes = (ideal_outcomes(day)[1] - day.start) / options.speed / 60
    where = f"over Redis, instances: {options.instances}" if options.redis else "in memory"
    speed = f"{options.speed:g} times as fast as the day: {minutes:.1f} minutes"
    print(f"{day.title}, {len(day.calls)} calls, {where}, {speed}", flush=True)
    if options.metrics_port is not None:
        for number in range(options.instances):
            print(f"metrics: http://127.0.0.1:{options.metrics_port + number}/metrics")
    play = play_over_redis if options.redis else play_in_memory
    replay = asyncio.run(play(day, options))
    return 0 if report(day, replay, options.lease) else 1


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_arguments(arguments)
    try:
        if options.worker:
            # Ctrl-C reaches the whole group; a worker ends when its stdin is closed.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            asyncio.run(run_worker(WorkerOptions(*json.loads(options.worker))))
            return 0
        return run(options)
    except (CannotRun, GenesisError) as error:
        print(f"call_centre: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
