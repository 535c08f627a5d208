"""`Queue`s over `RedisBackend`, each in a loop of its own, on one real redis-server.

What is explored is the client's state machine: backend, ledger, heartbeat, link and subscriber. The
schedule decides when a command reaches Redis, when a reply or a message reaches the client, when a
timer fires, and what breaks. Each instance has its own virtual clock, so that none of them can be
relied on; Redis keeps its own, which nobody touches. What takes Redis time is said to have passed by
writing what would then be true: a lease that nobody renews any more is set to have lapsed, and the
recovery window to be over once all living instances have registered again.

Faults, each of which may be drawn several times:

    cut      a connection breaks; replies under way are lost, commands may still arrive later
    refuse   a connection that is being made is refused
    flush    FLUSHALL
    scripts  SCRIPT FLUSH
    pause    an instance stands still for longer than its lease, and another may reap it meanwhile
    kill     an instance is gone at once
    oom      Redis is out of memory for a while, and refuses what would need more
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from genesis.backends.redis.ledger import Passage, Stage

from genesis import Queue
from genesis.backends.protocol import BackendEvent, Disrupted
from genesis.backends.redis.scripts import load
from genesis.exceptions import BackendUnavailableError
from genesis.queue import RedisBackend
from tests.conftest import state_of
from tests.schedules.calls import Call, Violation
from tests.schedules.choices import Choices
from tests.schedules.loop import Order, VirtualLoop
from tests.schedules.scenario import Admin, Scenario
from tests.schedules.sinks import BareQueue, Sinks
from tests.schedules.truth import Books, name_of
from tests.schedules.wire import Command, Network, Pipe, ScriptedEndpoint, Server, pack

__all__ = ["FAULTS", "SOON", "SharedSchedule"]

FAULTS = ("cut", "cut", "cut", "refuse", "flush", "scripts", "pause", "kill", "oom")

_LEASE = 60.0  # seconds; a schedule takes milliseconds of Redis' clock, so none lapses by itself
_PREFIX = "s:"
_MOST_STEPS = 4_000
_MOST_CALM = 20_000
SOON = 0.05  # seconds; the heartbeat asks again so soon after one that was just under way
_ROUNDS = 6  # heartbeats within which everything must be mended

_AFRESH = pack(("UNSUBSCRIBE",)) + pack(("FLUSHALL",))

Step = tuple[Callable[[Any], None], Any]


class Instance:
    """One process: a Queue on a RedisBackend, in a loop of its own."""

    def __init__(self, number: int, network: Network, sinks: Sinks, observed: bool) -> None:
        self.number = number
        self.name = "ABC"[number]
        self.loop = VirtualLoop()
        self.dead = False
        self.frozen = False
        self.closing = False
        self.events: list[BackendEvent] = []
        self.errands: list[asyncio.Task[None]] = []  # the operators' and the closing one
        self.backend = backend = RedisBackend(key_prefix=_PREFIX, lease=_LEASE)
        backend.instance_id = self.name
        # The boundary: from here on the library's bytes go where the schedule lets them go.
        backend._place = ScriptedEndpoint(lambda: network.pipe(self.loop, number))
        make: Any = Queue if observed else BareQueue
        self.queue: Queue = make(backend, telemetry=sinks.telemetry)
        listener = backend._listener
        assert listener is not None

        def listen(event: BackendEvent) -> None:
            self.events.append(event)
            listener(event)

        backend.listen(listen)

    @property
    def running(self) -> bool:
        return not self.dead and not self.frozen

    def find(self, ticket: str) -> Passage | None:
        session = self.backend._session
        return session.ledger.find(ticket) if session is not None else None

    def passages(self) -> list[Passage]:
        session = self.backend._session
        return list(session.ledger._passages.values()) if session is not None else []

    def knows(self, ticket: str) -> bool:
        """Whether it has the ticket, and has not given it up for lost."""
        passage = None if self.dead else self.find(ticket)
        return passage is not None and passage.stage is not Stage.GONE and not self.lost(passage)

    def lost(self, passage: Passage) -> bool:
        """As `slot.lost` would say; a look that changes nothing."""
        return passage.lost or (passage.stage is Stage.HOLDING and self.loop.now >= passage.line.fence)

    def dispose(self) -> None:
        for _ in range(20):
            for task in self.loop.tasks:
                if not task.done():
                    task.cancel()
            while self.loop.ready:
                self.loop.run_one("fifo", _NONE)
        self.loop.close()


class _NoChoice:
    """In the order "fifo" a loop asks nothing."""

    def pick(self, count: int) -> int:
        return 0

    def weighted(self, weights: Any) -> int:
        return 0

    def chance(self, probability: float) -> bool:
        return True


_NONE = _NoChoice()


class SharedSchedule:
    """One schedule of one scenario over Redis; `run` walks it to its end.

    Args:
        server: emptied at the beginning.
        sinks, observed, order, tell: as `memory.MemorySchedule`.
    """

    def __init__(
        self,
        scenario: Scenario,
        choices: Choices,
        server: Server,
        sinks: Sinks,
        *,
        observed: bool = False,
        order: Order = "fifo",
        tell: Callable[[str], None] | None = None,
    ) -> None:
        self.scenario = scenario
        self.choices = choices
        self.server = server
        self.sinks = sinks
        self.observed = observed
        self.order = order
        self.tell = tell
        self.steps: list[object] = []
        self.counts: dict[str, int] = {}
        self.network = Network(server)
        self.instances = [Instance(n, self.network, sinks, observed) for n in range(scenario.instances)]
        sinks.clock.loop = self.instances[0].loop
        queues = sorted({plan.queue_id for plan in scenario.calls})
        names = [instance.name for instance in self.instances]
        self.books = Books(_PREFIX, queues, names, self._knows)
        self.history = self.books.history
        self.calls = [
            Call(n, plan, self.instances[plan.instance].loop) for n, plan in enumerate(scenario.calls)
        ]
        self._operator = self.network.pipe(self.instances[0].loop, -1)  # never open: it hears nothing
        self._to_start = list(reversed(self.calls))
        self._alive: list[Call] = []
        self._admins = list(scenario.admins)
        self._faults = list(scenario.faults)
        self._timers_left = scenario.timers
        self._out_of_memory = False
        self._disturbed = False  # by a fault
        self._slow = False  # time has passed although something was on its way
        self._overridden: set[str] = set()

    def run(self) -> None:
        """Walk one schedule.

        Raises:
            Violation: a promise was broken.
        """
        with self.open():
            if self.scenario.warm:
                self.warm_up()
            for _ in range(_MOST_STEPS):
                if not self._step():
                    break
            self.finish()

    @contextmanager
    def open(self) -> Iterator[None]:
        """An empty server before, and no task left after it; for `run`, or for steps by hand."""
        before = random.getstate()
        random.seed(0)  # the library draws its pauses between two tries of a connection
        try:
            self.server.carry_out(_AFRESH, 1)
            yield
        finally:
            random.setstate(before)
            if self._out_of_memory:
                self._find_memory(None)
            for instance in self.instances:
                instance.dispose()

    def warm_up(self) -> None:
        """The connections stand before anything happens."""
        for instance in self.instances:
            instance.errands.append(instance.loop.create_task(instance.queue.ping()))
        choices, self.choices = self.choices, _NONE
        self.calm()
        self.choices = choices

    # -- steps --------------------------------------------------------------------------------------

    def _step(self) -> bool:
        """One step of any kind; False when nothing is left to happen."""
        kinds = [(12, self._runs()), (8, self._wires(self.scenario.lagging)), (4, self._events())]
        if self._timers_left:
            kinds.append((1, self._timers()))
        if self._faults:
            kinds.append((2, self._breaks()))
        if self._disturbed:
            kinds.append((2, self._lapses()))
        kinds = [(weight, steps) for weight, steps in kinds if steps]
        if not kinds:
            return False
        steps = kinds[self.choices.weighted([weight for weight, _ in kinds])][1]
        happen, what = steps[self.choices.pick(len(steps))]
        happen(what)
        self._check()
        return True

    @property
    def _busy(self) -> bool:
        """Half of the calls have started."""
        return 2 * len(self._to_start) <= len(self.calls)

    def _runs(self) -> list[Step]:
        steps: list[Step] = []
        for instance in self.instances:
            if instance.running:
                if instance.loop.ready:
                    steps.append((self._run, instance))
                if _due(instance.loop):
                    steps.append((self._fire, instance))
        return steps

    def _wires(self, lagging: int = 0) -> list[Step]:
        steps: list[Step] = []
        for pipe in self.network.pipes:
            if pipe.connecting is not None:
                steps.append((self._accept, pipe))
            if pipe.outgoing and not pipe.held:
                steps.append((self._carry, pipe))
            late = pipe.number == lagging and self.choices.chance(0.9)
            if (
                pipe.incoming
                and not late
                and not pipe.stalled
                and not self.instances[pipe.owner].frozen
            ):
                steps.append((self._deliver, pipe))
            if pipe.late:
                steps.append((self._arrive_late, pipe))
        return steps

    def _events(self) -> list[Step]:
        steps: list[Step] = []
        if self._to_start:
            if self.instances[self._to_start[-1].plan.instance].running:
                steps.append((self.start, None))
            elif self.instances[self._to_start[-1].plan.instance].dead:
                self._to_start.pop()
        waits_for_all = bool(self._to_start) and self.scenario.patient
        for call in self._alive:
            if self.instances[call.plan.instance].running:
                if call.cancels_left:
                    steps.append((self._cancel, call))
                if call.inside and not call.let_go and not waits_for_all:
                    steps.append((self.release, call))
        for admin in self._admins:
            if self.instances[admin.instance].running and (self._busy or admin.what == "set_limit"):
                steps.append((self._administer, admin))
        return steps

    def _timers(self) -> list[Step]:
        steps: list[Step] = [
            (self._fire, instance)
            for instance in self.instances
            if instance.running and instance.loop.next_timer is not None
        ]
        if self._out_of_memory:
            return [*steps, (self._find_memory, None)]
        steps += [(self._end_window, q) for q in self.books.queues if self._window_may_end(q)]
        steps += [(self.resume, instance) for instance in self.instances if instance.frozen]
        return steps

    def _lapses(self) -> list[Step]:
        """The leases that instances which do not run have in Redis."""
        if self._out_of_memory:
            return []  # writing what would be so would be refused as well
        return [
            (self.lapse, instance)
            for instance in self.instances
            if not instance.running
            and any(
                instance.name in truth.leases and (queue_id, instance.name) not in self.books.lapsed
                for queue_id, truth in self.books.queues.items()
            )
        ]

    def _breaks(self) -> list[Step]:
        steps: list[Step] = []
        alive = [instance for instance in self.instances if instance.running]
        for fault in self._faults:
            if fault == "cut":
                steps += [(self._cut, pipe) for pipe in self.network.pipes if pipe.open]
            elif fault == "refuse":
                steps += [(self._refuse, pipe) for pipe in self.network.pipes if pipe.connecting]
            elif not self._busy:
                continue  # it would hit nobody
            elif fault == "flush":
                steps.append((self._flush, None))
            elif fault == "scripts":
                steps.append((self._flush_scripts, None))
            elif fault == "pause":
                steps += [(self.pause, instance) for instance in alive]
            elif fault == "oom" and not self._out_of_memory:
                steps.append((self._run_out_of_memory, None))
            elif fault == "kill" and len(alive) > 1:
                steps += [(self._kill, instance) for instance in alive]
        return steps

    def _run(self, instance: Instance) -> None:
        """One callback, or all that can run without anything from outside."""
        every = self.choices.chance(0.6)
        self._note("run", instance.name, "on" if every else "one")
        instance.loop.run_one(self.order, self.choices)
        if every:
            self.run_on(instance.loop)

    def run_on(self, loop: VirtualLoop) -> None:
        for _ in range(_MOST_CALM):
            if not loop.ready:
                return
            loop.run_one(self.order, self.choices)
        raise Violation("a loop never comes to rest")

    def _fire(self, instance: Instance) -> None:
        self._note("timer", instance.name)
        if not _due(instance.loop):
            self._timers_left -= 1
            # Time passes although something is on its way: the network is as slow as that.
            self._slow = (
                self._slow
                or bool(instance.loop.ready)
                or any(pipe.connecting or pipe.outgoing or pipe.incoming for pipe in self.network.pipes)
            )
        instance.loop.fire_timer()

    def _accept(self, pipe: Pipe) -> None:
        self._note("accept", pipe.number)
        pipe.accept()

    def _carry(self, pipe: Pipe) -> None:
        if pipe.outgoing[0][0] == b"SCRIPT":
            self._note("load scripts", pipe.number)
            self.network.load_scripts(pipe)
        else:
            self._carry_out(pipe, pipe.outgoing.popleft(), "carry out")

    def _arrive_late(self, pipe: Pipe) -> None:
        command = pipe.late.popleft()
        if command[0] == b"EVALSHA":
            self._count("commands arrived late")
            self._carry_out(pipe, command, "arrives late")

    def _carry_out(self, pipe: Pipe, command: Command, how: str) -> None:
        kind, queue_id = name_of(command), self.books.queue_of(command)
        who = [word.decode() for word in command[7:8]] if command[0] == b"EVALSHA" else []
        self._note(how, pipe.number, kind, *who)
        books = self.books
        reply, looks = self.network.carry_out(pipe, command, books.probe, books.probed)
        books.changed(command, reply, looks)
        if self.tell is not None and queue_id is not None:
            self.tell(f"      {reply} {books.queues[queue_id]}")

    def _deliver(self, pipe: Pipe) -> None:
        self._note("deliver", pipe.number)
        pipe.deliver()
        # The answers to SCRIPT LOAD say nothing by themselves.
        while pipe.incoming and isinstance(pipe.inbox[-1], bytes) and len(pipe.inbox[-1]) == 40:
            pipe.deliver()

    def start(self, _: None) -> None:
        call = self._to_start.pop()
        self._note("start", call)
        call.start(self.instances[call.plan.instance].queue)
        self._alive.append(call)

    def _cancel(self, call: Call) -> None:
        self._note("cancel", call)
        call.cancel()

    def release(self, call: Call) -> None:
        self._note("release", call)
        call.release()

    def _administer(self, admin: Admin) -> None:
        self._admins.remove(admin)
        item_id, queue_id = admin.item_id, admin.queue_id
        if not item_id and self._alive:
            plan = self._alive[self.choices.pick(len(self._alive))].plan
            item_id, queue_id = plan.item_id, plan.queue_id
        if queue_id not in self.books.queues:
            return
        instance = self.instances[admin.instance]
        self._note(admin.what, instance.name, queue_id, item_id, admin.limit)
        instance.closing = instance.closing or admin.what == "close"
        work = _carry_out(instance.queue, admin.what, queue_id, item_id or "nobody", admin.limit)
        instance.errands.append(instance.loop.create_task(work))

    # -- faults -------------------------------------------------------------------------------------

    def _cut(self, pipe: Pipe) -> None:
        arriving = self.choices.pick(len(pipe.outgoing) + 1)
        self._broke("cut", "cut", pipe.number, arriving)
        pipe.cut(arriving)

    def _refuse(self, pipe: Pipe) -> None:
        self._broke("refuse", "refuse", pipe.number)
        pipe.refuse()

    def _flush(self, _: None) -> None:
        self._broke("flush", "FLUSHALL")
        self.lose_data()

    def lose_data(self) -> None:
        self._disturbed = True
        self.server.ask("FLUSHALL")
        self.books.lost()

    def _flush_scripts(self, _: None) -> None:
        self._broke("scripts", "SCRIPT FLUSH")
        self.server.ask("SCRIPT", "FLUSH")

    def _run_out_of_memory(self, _: None) -> None:
        self._broke("oom", "out of memory")
        self._out_of_memory = self.books.out_of_memory = True
        self.server.ask("CONFIG", "SET", "maxmemory", "1")
        self._timers_left += 2

    def _find_memory(self, _: None) -> None:
        self._note("memory again")
        self._out_of_memory = self.books.out_of_memory = False
        self.server.ask("CONFIG", "SET", "maxmemory", "0")

    def pause(self, instance: Instance) -> None:
        self._broke("pause", "pause", instance.name)
        instance.frozen = True
        self._timers_left += 3

    def resume(self, instance: Instance) -> None:
        self._note("resume", instance.name)
        instance.frozen = False
        instance.loop.now += _LEASE + 0.001

    def _kill(self, instance: Instance) -> None:
        self._broke("kill", "kill", instance.name)
        instance.dead = True
        instance.frozen = False
        self._timers_left += 1
        for pipe in self.network.pipes:
            if pipe.owner == instance.number:
                pipe.connecting = None
                if pipe.open:
                    pipe.cut(self.choices.pick(len(pipe.outgoing) + 1))
        self._alive = [call for call in self._alive if call.plan.instance != instance.number]

    def lapse(self, instance: Instance) -> None:
        """Nobody has renewed its leases for long enough."""
        self._note("lapse", instance.name)
        for queue_id, keys in self.books.keys.items():
            if instance.name in self.books.queues[queue_id].leases:
                self._count("leases lapsed")
                self.server.ask("ZADD", keys[3], "XX", 1, instance.name)
                self.books.lapsed.add((queue_id, instance.name))

    def _window_may_end(self, queue_id: str) -> bool:
        return self.books.queues[queue_id].recovering and not self.books.survivors(queue_id)

    def _end_window(self, queue_id: str) -> None:
        """Half a lease has passed since the loss, and all living instances have registered again."""
        self._note("the recovery window ends", queue_id)
        self.server.ask("HSET", self.books.keys[queue_id][0], "until", "1")
        self.books.queues[queue_id].recovering = False

    def _broke(self, fault: str, *what: object) -> None:
        self._faults.remove(fault)
        self._disturbed = True
        self._count(fault)
        self._note(*what)

    # -- checks -------------------------------------------------------------------------------------

    def _knows(self, ticket: str) -> bool:
        for instance in self.instances:
            if ticket.startswith(instance.name):
                return instance.knows(ticket)
        return False

    def _check(self) -> None:
        """Who runs a body has a slot; who has ended, ended as he may."""
        for pipe in self.network.pipes:
            if pipe.broken and not self.instances[pipe.owner].closing:
                self._disturbed = True  # by its client, whose patience was over
        ended = False
        for call in self._alive:
            if call.done:
                ended = True
                call.settle()
                self.history.append(f"{call.number}{call.ending}")
                closing = self.instances[call.plan.instance].closing
                if call.ending == "unavailable" and self._calm_so_far and not closing:
                    raise Violation(f"{call} was told that Redis is unavailable; nothing had happened")
                if call.ending == "evicted" and not self.books.evicted:
                    raise Violation(f"{call} was told that it was evicted; nobody was")
            elif call.inside:
                self._check_holder(call)
        if ended:
            self._alive = [call for call in self._alive if not call.done]

    def _check_holder(self, call: Call) -> None:
        instance, slot = self.instances[call.plan.instance], call.slot
        assert slot is not None
        ticket, queue_id = slot.ticket.id, call.plan.queue_id
        if slot.fencing_token not in self.books.grants.get(ticket, ()):
            raise Violation(f"{call} believes in {slot}; Redis granted {self.books.grants.get(ticket)}")
        held = self.books.queues[queue_id].holding.get(ticket)
        if held == slot.fencing_token or instance.frozen:
            if slot._lost and self._calm_so_far and not instance.closing:
                raise Violation(f"{call} was told that its slot is lost, and nothing had happened")
            return
        told = slot._lost or not instance.knows(ticket)
        if not (told or ticket in self.books.evicted or ticket in self.books.survivors(queue_id)):
            raise Violation(f"{call} runs its body without a slot: {self.books.queues[queue_id]}")

    @property
    def _unbroken(self) -> bool:
        """Nothing was lost, so nothing takes a heartbeat to mend."""
        return not self._disturbed

    @property
    def _calm_so_far(self) -> bool:
        """Nothing was lost, and nothing was late."""
        return not self._slow and self._unbroken

    # -- the end ------------------------------------------------------------------------------------

    def finish(self) -> None:
        """Everything comes to rest, belief and truth agree, all end, and nothing is left."""
        self._note("the end begins")
        self._faults = []
        if self._out_of_memory:
            self._find_memory(None)
        for instance in self.instances:
            if instance.frozen:
                self.resume(instance)
        for pipe in self.network.pipes:
            while pipe.late and self.choices.chance(0.5):
                self._arrive_late(pipe)
            pipe.late.clear()
        self._to_start = [c for c in self._to_start if not self.instances[c.plan.instance].dead]
        self.calm()
        self._timers_left = 1_000
        self.pass_time(SOON)
        self._let_the_gone_lapse()
        if not self._unbroken:
            self._mend()
        self._agree()
        for queue_id, truth in self.books.queues.items():
            if truth.overridden:
                self._operate(queue_id, "limit", b"")
        self._let_all_end()
        self._sweep()
        self._close_all()
        self._count("evicted holders and waiters", len(self.books.evicted))
        if self.observed:
            self.sinks.expect(self.calls, leaving_takes_time=True)

    def _let_the_gone_lapse(self) -> None:
        """What the dead have, and what those who closed could not give back, is taken by the lease."""
        closing = [i for i in self.instances if i.closing and not i.dead]
        for _ in range(_ROUNDS):
            if all(task.done() for instance in closing for task in instance.errands):
                break
            self.beat()
        else:
            raise Violation(f"{closing} do not end closing")
        for instance in self.instances:
            left = any(instance.name in truth.leases for truth in self.books.queues.values())
            if left and (instance.dead or instance.closing):
                if self._calm_so_far:
                    raise Violation(f"{instance.name} has closed, and given nothing back")
                self.lapse(instance)
                self._disturbed = True  # what it could not give back takes the lease, and a beat

    def calm(self) -> None:
        """Go on, with a network that works and no time that passes, until nothing moves."""
        for _ in range(_MOST_CALM):
            for instance in self.instances:
                if instance.running:
                    self.run_on(instance.loop)
                    while _due(instance.loop):
                        instance.loop.fire_timer()
                        self.run_on(instance.loop)
            self._check()
            steps = self._wires()
            if not steps:
                return
            happen, what = steps[self.choices.pick(len(steps))]
            happen(what)
        raise Violation("it never comes to rest")

    def pass_time(self, seconds: float) -> None:
        for instance in self.instances:
            if instance.dead:
                continue
            until = instance.loop.now + seconds
            while (due := instance.loop.next_timer) is not None and due <= until:
                self._fire(instance)
                self.calm()
            instance.loop.now = max(instance.loop.now, until)

    def beat(self) -> None:
        """A heartbeat's time passes on every instance."""
        self._timers_left = 1_000
        self.pass_time(_LEASE / 3 + 0.1)
        for queue_id in self.books.queues:
            if self._window_may_end(queue_id):
                self._end_window(queue_id)

    def _mend(self) -> None:
        for _ in range(_ROUNDS):
            self.beat()
            try:
                self._agree()
            except Violation:
                continue
            return

    def _agree(self) -> None:
        """What every living instance believes is what Redis has."""
        for instance in self.instances:
            if instance.dead:
                continue
            for passage in instance.passages():
                ticket, queue_id = passage.ticket.id, passage.ticket.queue_id
                truth = self.books.queues[queue_id]
                if passage.stage is Stage.WAITING and passage.future and passage.future.done():
                    continue  # it is over, and its task has yet to say so
                believed = passage.stage.name.lower()
                actual = "waiting" if ticket in truth.waiting else "gone"
                if ticket in truth.holding:
                    actual = "holding"
                if believed != actual and not (believed == "holding" and instance.lost(passage)):
                    raise Violation(
                        f"{instance.name} believes {ticket} of {queue_id} to be {believed}: {truth}"
                    )
        for queue_id, truth in self.books.queues.items():
            if truth.recovering or self.books.survivors(queue_id):
                raise Violation(f"{queue_id} has not recovered: {truth}")
            wanted = any(self._knows(ticket) for ticket in truth.waiting)
            if wanted and len(truth.holding) < truth.limit:
                raise Violation(f"{queue_id} has a free slot and a waiter: {truth}")

    def _let_all_end(self) -> None:
        rounds = 0
        for _ in range(_MOST_STEPS):
            self.calm()
            inside = [call for call in self._alive if call.inside and not call.let_go]
            if self._to_start:
                self.start(None)
            elif inside:
                self.release(inside[0])
            elif not self._alive:
                return
            elif self._unbroken or rounds == _ROUNDS:
                raise Violation(f"stuck: {self._alive}: {self.books.queues}")
            else:
                rounds += 1
                self.beat()

    def _sweep(self) -> None:
        """No instance has anything any more; what Redis has, is what nobody could take out."""
        for _ in range(_ROUNDS):
            if not any(state_of(i.queue) for i in self.instances if not i.dead):
                break
            self.beat()
        for instance in self.instances:
            if not instance.dead and (state := state_of(instance.queue)):
                raise Violation(f"{instance.name} still has {state}")
        for queue_id, truth in self.books.queues.items():
            left = [*truth.waiting, *truth.holding]
            if (left or truth.leases) and self._unbroken:
                raise Violation(f"Redis still has {left} in {queue_id}: {truth}")
            if truth.leases and not left:
                self._count("leases without a ticket")
            if left:
                self._count("tickets left to the lease", len(left))
            if not left and not truth.leases:
                continue
            for instance in self.instances:
                self.lapse(instance)
            self._operate(queue_id, "reap")
            truth = self.books.queues[queue_id]
            if truth.waiting or truth.holding or truth.leases or truth.books:
                raise Violation(f"not even the lease clears {queue_id}: {truth}")

    def _close_all(self) -> None:
        for instance in self.instances:
            if not instance.dead and not instance.closing:
                instance.closing = True
                instance.errands.append(instance.loop.create_task(instance.queue.close()))
        for _ in range(_ROUNDS):
            self.calm()
            if not any(i.loop.unfinished() for i in self.instances if not i.dead):
                break
            self.beat()
        for instance in self.instances:
            if instance.dead:
                continue
            if instance.loop.unfinished() or instance.loop.next_timer is not None:
                raise Violation(
                    f"{instance.name} has closed, but there is {instance.loop.unfinished()}"
                )
            if instance.loop.errors:
                raise Violation(f"asyncio was told of errors: {instance.loop.errors}")
            for task in instance.errands:
                if not task.cancelled() and (error := task.exception()) is not None:
                    raise Violation(f"{task!r} failed: {error!r}")
            disruptions = [e for e in instance.events if isinstance(e, Disrupted)]
            if disruptions and not self.scenario.faults and self._calm_so_far:
                raise Violation(f"{instance.name} reports {disruptions}, and nothing had happened")
        if any(pipe.open or pipe.connecting for pipe in self.network.pipes):
            raise Violation("a connection was left open")
        (keys,), _ = self.server.carry_out(pack(("KEYS", "*")), 1)
        lives, _ = self.server.carry_out(b"".join(pack(("TTL", key)) for key in keys), len(keys))
        for key, seconds in zip(keys, lives, strict=True):
            part = key.rpartition(b"}:")[2].partition(b":")[0]
            if part not in (b"meta", b"gone", b"left") or seconds < 0:
                raise Violation(f"{key} was left behind")

    def _operate(self, queue_id: str, script: str, *first: bytes) -> None:
        """A script called from elsewhere."""
        keys = self.books.keys[queue_id]
        backend = self.instances[0].backend
        command = [b"EVALSHA", load(script).sha, b"4", *keys, *first, *backend._constants]
        if script == "limit":
            command += [b"operator", b"3600"]
        if self.counts.get("scripts"):
            self.server.ask("SCRIPT", "LOAD", load(script).source)
        self._carry_out(self._operator, command, "elsewhere")

    def _note(self, *what: object) -> None:
        self.steps.append(what)
        if self.tell is not None:
            self.tell(" ".join(str(part) for part in what))

    def _count(self, what: str, times: int = 1) -> None:
        self.counts[what] = self.counts.get(what, 0) + times


async def _carry_out(queue: Queue, what: str, queue_id: str, item_id: str, limit: int | None) -> None:
    try:
        if what == "set_limit":
            await queue.set_limit(queue_id, limit)
        elif what == "evict":
            await queue.evict(queue_id, item_id)
        elif what == "close":
            await queue.close()
        elif what == "stats":
            await queue.stats(queue_id)
        elif what == "entries":
            await queue.entries(queue_id)
        else:
            await queue.position(queue_id, item_id)
    except BackendUnavailableError:
        return


def _due(loop: VirtualLoop) -> bool:
    """Whether a timer is due without any time passing."""
    when = loop.next_timer
    return when is not None and when <= loop.now
