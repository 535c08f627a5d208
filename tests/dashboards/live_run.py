"""The example on three instances, under a real Prometheus, through every fault that an alert is for.

The committed rules are loaded with shorter windows, by the substitutions of `SHORTER` and nothing else:
durations are replaced in `expr`, `for`, `keep_firing_for` and `interval`, and two numbers in `expr`.
The expressions, their thresholds on counts and shares, and the buckets are those of production. The
lease is 2 s instead of 15 s, a heartbeat 0.67 s, a scrape every half second.

Queues: `calm` is called all the time, also on an instance that is being killed; `paused` has a limit of
0 and callers who time out all the time; `steady` has one slot, in use nearly all the time, and nobody
waiting; `idle` has one call. None of these is to blame for anything. The others have a fault each.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from typing import Any, NamedTuple

import yaml
from prometheus_client import CollectorRegistry

from genesis import Queue
from genesis.observability import Telemetry
from genesis.queue import RedisBackend
from tests.dashboards.callers import Callers
from tests.support.example_instance import ExampleInstance
from tests.support.observers import Prometheus
from tests.support.redis_server import RedisServer
from tests.support.telemetry_names import GRAFANA_DEFAULTS, RULE_FILES
from tests.support.waiting import wait_until

__all__ = ["SHORTER", "VARIABLES", "Fault", "LiveRun", "shortened", "shortened_rules"]

LEASE = 2.0
LIMIT = 2
PATIENCE = 6.0  # seconds until a caller is sent away; above the 5 s below which nobody has given up
SCRAPES = "500ms"
EVALUATIONS = 0.5  # seconds between two, as `SHORTER` has it
QUIET_SECONDS = 12
OLD_HOLD = "8"  # seconds, as `SHORTER` has it

SHORTER = {
    "15s": "500ms",  # between two evaluations
    "1m": "3s",  # longer than the lease, as in production
    "2m": "4s",
    "5m": "5s",
    "10m": "8s",
    "15m": "8s",
    "30m": "10s",
    "40m": "10s",
    "1h": "12s",
    "6h": "16s",
    "time() - 600": "time() - 8",  # the 10 minutes once more, as a number
    "> 300": "> 3",  # seconds that the head may wait
    "> 3600": "> 8",  # seconds that a slot may be held
}
VARIABLES = {**GRAFANA_DEFAULTS, "__rate_interval": "4s", "__interval": "500ms", "__range": "30s"}


def shortened(expression: str) -> str:
    """With every duration and the two numbers of `SHORTER` replaced."""
    for long, short in SHORTER.items():
        if " " in long:
            expression = expression.replace(long, short)
    return re.sub(r"(?<![\w.])\d+[smhd](?![\w])", lambda match: SHORTER[match.group()], str(expression))


def shortened_rules() -> str:
    """The committed rule files as one, shortened."""
    groups = []
    for file in RULE_FILES:
        for group in yaml.safe_load(file.read_text())["groups"]:
            group["interval"] = shortened(group["interval"])
            for rule in group["rules"]:
                for key in {"expr", "for", "keep_firing_for"} & set(rule):
                    rule[key] = shortened(rule[key])
            groups.append(group)
    return yaml.safe_dump({"groups": groups}, sort_keys=False)


class Fault(NamedTuple):
    """A fault, and its time in seconds since the epoch."""

    name: str
    began: float
    ended: float


class LiveRun(Callers):
    """Use with `async with`; `play` runs everything, and the data is kept until the block ends."""

    def __init__(self) -> None:
        super().__init__()
        self.faults: dict[str, Fault] = {}
        self.began = 0.0
        self.ended = 0.0
        self.instances: list[ExampleInstance] = []
        self.found: dict[str, set[str]] = {}
        """What `genesis doctor` found while a fault lasted: codes, by the name of the fault."""
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> LiveRun:
        async with AsyncExitStack() as stack:
            self.redis = RedisServer()
            stack.callback(self.redis.close)
            # The third names another limit, as a new version would in a rolling deployment.
            for limit in (LIMIT, LIMIT, LIMIT + 1):
                instance = ExampleInstance(self.redis.url, LEASE, limit, PATIENCE)
                stack.callback(instance.close)
                instance.start()
                self.instances.append(instance)
            backend = RedisBackend(self.redis.url, lease=LEASE)
            telemetry = Telemetry(CollectorRegistry())  # the operator's own, not scraped
            self.operator = await stack.enter_async_context(Queue(backend, telemetry=telemetry))
            for instance in self.instances:
                await wait_until(instance.ready, f"{instance.name} is ready")
            ports = [instance.port for instance in self.instances]
            self.prometheus = Prometheus(ports, shortened_rules(), SCRAPES)
            stack.callback(self.prometheus.close)
            stack.push_async_callback(self.hang_up_all)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    # What is done ------------------------------------------------------------------------------------
    async def play(self) -> None:
        """Every fault in turn, some at the same time on different queues, and back to quiet."""
        await wait_until(lambda: self.prometheus.value("sum(up)") == 3, "all three are scraped")
        self.began = time.time()
        one, two, three = self.instances
        await one.get("/call/only?queue=idle&seconds=0")
        calm = [self.every(0.4, i, "calm", 0.2) for i in (one, two)]
        await self.operator.set_limit("steady", 1)
        calm += [self.every(1.6, three, "steady", 1.4)]
        # The calm before: what needs no fault to return data does so here. Rates of 16 s need some.
        await self.seen(
            f"count_over_time(sum(genesis_queue_waiting)[1m:1s]) >= {QUIET_SECONDS}", "time has passed"
        )
        await self.seen(
            "max(count_over_time(genesis_queue_expected_wait_seconds[1m])) >= 4", "ten holds are known"
        )

        _, *_, paused = await asyncio.gather(
            self.exhaust_the_slots(one),
            self.disagree(one, three),
            self.break_a_sink(three),
            self.fill_the_line(one),
            self.kill_and_stop(one, two),
            self.pause(one),
        )
        await self.quiet(
            {"GenesisServiceLevelBurn", "GenesisAbandonRate", "GenesisOccupancy", "GenesisPaused"}
        )
        await self.hang_up(paused)
        await self.operator.set_limit("paused", None)
        await self.set_the_clock_back(one, two)
        await self.quiet(set())
        await self.hang_up(*calm)  # calls that meet an outage are not served in time, and rightly fire
        await self.operator.set_limit("steady", None)
        await self.stop_redis(one, two)
        await self.quiet(set())
        self.ended = time.time()

    async def exhaust_the_slots(self, one: ExampleInstance) -> None:
        """Both slots are held for long, and eight callers per second wait until they are refused."""
        with self.fault("slots exhausted"):
            held = [self.call(one, "busy", 100), self.call(one, "busy", 100)]
            callers = [self.every(0.125, one, "busy", 0.1)]
            for alert in ("GenesisOldestWait", "GenesisAbandonRate", "GenesisOccupancy"):
                await self.firing(alert, queue="busy")
            for window in ("15m", "1h", "6h"):
                await self.firing("GenesisServiceLevelBurn", queue="busy", window=window)
            await self.firing("GenesisOldHold", queue="busy")
            await self.ask_doctor("slots exhausted")
            await self.hang_up(*callers, *held)

    async def pause(self, one: ExampleInstance) -> asyncio.Task[Any]:
        """An operator pauses a queue and forgets it. Returns its callers, who keep calling."""
        with self.fault("queue paused"):
            await self.operator.set_limit("paused", 0)
            callers = self.every(PATIENCE / 12, one, "paused", 0.0)
            await self.firing("GenesisPaused", queue="paused")
            await self.ask_doctor("queue paused")
        return callers

    async def fill_the_line(self, one: ExampleInstance) -> None:
        """`max_waiting` is 0, and six callers per second try to enter."""
        with self.fault("line full"):
            held = [self.call(one, "full", 100), self.call(one, "full", 100)]
            await self.seen('sum(genesis_queue_holding{queue="full"}) == 2', "both slots are held")
            callers = self.every(0.17, one, "full&max_waiting=0", 0.1)
            await self.firing("GenesisRefusals", queue="full")
            await self.hang_up(callers, *held)

    async def disagree(self, one: ExampleInstance, three: ExampleInstance) -> None:
        """Two call sites name different limits, in turn."""
        with self.fault("limits disagree"):
            held = self.call(one, "deployed", 100)
            calls = [self.every(0.5, i, "deployed", 0.1) for i in (one, three)]
            await self.firing("GenesisLimitDisagreement", queue="deployed")
            await self.ask_doctor("limits disagree")
            await self.hang_up(held, *calls)

    async def break_a_sink(self, three: ExampleInstance) -> None:
        """A log handler of the application raises."""
        with self.fault("sink raises"):
            three.signal(signal.SIGUSR1)
            await self.firing("GenesisTelemetryErrors", sink="logs")
            three.signal(signal.SIGUSR2)

    async def kill_and_stop(self, one: ExampleInstance, two: ExampleInstance) -> None:
        """SIGKILL of the second, with a slot and two waiters; SIGSTOP of its successor, with a slot."""
        both = [self.call(i, "fragile", 100) for i in (one, two)]
        await self.seen('sum(genesis_queue_holding{queue="fragile"}) == 2', "both slots are held")
        both += [self.call(i, "fragile", 100) for i in (two, two, one, one)]
        four = '(sum(genesis_queue_waiting{queue="fragile"}) == 4)'
        for_a_while = f"count_over_time({four}[3s:500ms]) >= 4"
        await self.seen(for_a_while, "four wait, two on each")
        with self.fault("instance killed"):
            two.kill()
            await self.firing("GenesisReclaims", queue="fragile")
            await self.firing("GenesisInstanceDown")
            await self.ask_doctor("instance killed")
            two.start()
        for_a_while = 'max_over_time(sum(genesis_queue_waiting{queue="fragile"})[2s:500ms]) == 1'
        await self.seen(for_a_while, "the dead one's slot has gone to one of the living two")
        await self.hang_up(*both)
        await wait_until(two.ready, "it is back")
        held = self.call(two, "stopped", 100)
        await self.seen('sum(genesis_queue_holding{queue="stopped"}) == 1', "it holds again")
        other = self.call(one, "stopped", 100)
        with self.fault("instance stopped"):
            two.signal(signal.SIGSTOP)
            await self.seen(
                'sum(genesis_queue_reclaimed_total{queue="stopped"}) > 0', "it has been taken for dead"
            )
            two.signal(signal.SIGCONT)
            await wait_until(two.ready, "it carries on")
            await self.hang_up(held)
            await self.firing("GenesisLostLeases", queue="stopped")
        await self.hang_up(other)

    async def set_the_clock_back(self, one: ExampleInstance, two: ExampleInstance) -> None:
        """Redis loses its data, and in the half lease in which nobody is granted, its clock goes back.

        A clock that goes back by a minute leaves the end of the recovery window a minute ahead; so that
        is what is written, instead of changing the clock of this machine. Callers go on coming: those
        that wait already are sent away before the doctor has looked.
        """
        held = [self.call(one, "stuck", 100), self.call(one, "stuck", 100)]
        await self.seen('sum(genesis_queue_holding{queue="stuck"}) == 2', "both slots are held")
        waiting = [self.every(PATIENCE / 3, two, "stuck", 0.1)]
        await self.seen('max(genesis_queue_depth{queue="stuck"}) >= 2', "two wait")
        with self.fault("clock set back"):
            meta = "genesis:queue:{stuck}:meta"
            self.redis.client.flushall()
            await wait_until(lambda: self.redis.client.hget(meta, "until"), "the recovery has begun")
            moment: Any = self.redis.client.time()
            ahead = (moment[0] + 60) * 1_000_000
            self.redis.client.hset(meta, "until", str(ahead))
            await self.hang_up(*held)
            await self.firing("GenesisStuckHead", queue="stuck")
            await self.ask_doctor("clock set back")
            self.redis.client.hdel(meta, "until")
        await self.hang_up(*waiting)

    async def stop_redis(self, one: ExampleInstance, two: ExampleInstance) -> None:
        """Redis is killed while calls hold and wait, and starts again, empty, once all was seen."""
        held = [self.call(i, "cut off", 100) for i in (one, two)]
        await self.seen('sum(genesis_queue_holding{queue="cut off"}) == 2', "both slots are held")
        waiting = [self.call(i, "cut off", 100) for i in (one, two)]
        await self.seen('max(genesis_queue_depth{queue="cut off"}) == 2', "two wait")
        with self.fault("redis stopped"):
            self.redis.kill()
            await self.firing("GenesisBackendUnavailable", backend="redis")  # though nobody calls
            waiting += [self.every(0.5, i, "cut off", 0.1) for i in (one, two)]
            await self.seen(
                'sum(rate(genesis_backend_operation_seconds_count{outcome="unavailable"}[2s])) > 0',
                "calls that enter fail",
            )
            await self.firing("GenesisStaleSnapshot", queue="cut off")
            await self.ask_doctor("redis stopped")
            self.redis.start()
            await self.firing("GenesisBackendDisruptions", reason="data_lost")
        await self.hang_up(*held, *waiting)

    # What is seen -------------------------------------------------------------------------------------
    def first(self, expression: str, *, but_not: float = math.nan) -> float | None:
        """When the expression first had a value, or first one other than `but_not`."""
        return min(
            (
                float(at)
                for series in self.prometheus.range(expression, self.began, self.ended, 0.5)
                for at, text in series["values"]
                if not math.isnan(value := float(text)) and value != but_not
            ),
            default=None,
        )

    def fired(self) -> list[tuple[dict[str, str], float, float]]:
        """Each firing of an alert: its labels, and the times of its first and its last sample.

        These are the samples as they were written. A query over steps would see the first one up to a
        step late, after the end of a fault that ends as soon as its alert has fired.
        """
        seconds = math.ceil(self.ended - self.began)
        found = []
        for series in self.prometheus.query(f'ALERTS{{alertstate="firing"}}[{seconds}s]', self.ended):
            times = [float(at) for at, _ in series["values"]]
            first = last = times[0]
            for at in times[1:]:
                if at - last > 3 * EVALUATIONS:
                    found.append((series["metric"], first, last))
                    first = at
                last = at
            found.append((series["metric"], first, last))
        return found

    @contextmanager
    def fault(self, name: str) -> Iterator[None]:
        began = time.time()
        yield
        self.faults[name] = Fault(name, began, time.time())

    async def ask(self, expression: str) -> list[dict[str, Any]]:
        return await asyncio.to_thread(self.prometheus.query, expression)

    async def ask_doctor(self, fault: str) -> None:
        """Record the current findings of `genesis doctor`."""
        command = [sys.executable, "-m", "genesis", "doctor", "--json", "--url", self.redis.url]
        process = await asyncio.create_subprocess_exec(
            *command, "--old-hold", OLD_HOLD, stdout=asyncio.subprocess.PIPE
        )
        text, _ = await process.communicate()
        self.found[fault] = {finding["code"] for finding in json.loads(text)["findings"]}

    async def seen(self, expression: str, description: str, timeout: float = 30.0) -> None:
        await self._until(lambda: self.ask(expression), description, timeout)

    async def firing(self, alert: str, **labels: str) -> None:
        matchers = "".join(f', {label}="{value}"' for label, value in labels.items())
        expression = f'ALERTS{{alertname="{alert}", alertstate="firing"{matchers}}}'
        await self.seen(expression, f"{alert} fires {labels}", 45.0)

    async def quiet(self, but_for: set[str]) -> None:
        """Wait until no alert fires except those named."""
        pattern = "|".join(sorted(but_for)) or "none"
        expression = f'ALERTS{{alertstate="firing", alertname!~"{pattern}"}}'

        async def none_left() -> bool:
            return not await self.ask(expression)

        await self._until(none_left, f"nothing fires but {sorted(but_for)}", 60.0)

    async def _until(
        self, condition: Callable[[], Awaitable[Any]], description: str, timeout: float
    ) -> None:
        try:
            await wait_until(condition, description, timeout)
        except AssertionError as error:
            firing = await self.ask("ALERTS")
            told = [{k: v for k, v in each["metric"].items() if k != "__name__"} for each in firing]
            raise AssertionError(f"{error}; at that moment: {told}") from None
