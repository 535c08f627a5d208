"""Over Redis, across processes: hand-off from one to the other, and the throughput of eight."""

from __future__ import annotations

import asyncio
import statistics
from functools import partial
from typing import Any

from genesis import Queue
from genesis.queue import RedisBackend
from tests.benchmarks.process import Process, processes
from tests.benchmarks.rounds import Comparison, Plan, Row, alternate
from tests.benchmarks.shared import redis_server
from tests.benchmarks.subjects import QUIET, SAMPLING, Said, recorded
from tests.support.waiting import wait_until

__all__ = ["SECTIONS"]

HELD = 0.005  # seconds inside
ONE = "redis-py, EVALSHA that publishes + its delivery"
TWO = "redis-py, EVALSHA, then PUBLISH + its delivery"


async def hand_off(plan: Plan) -> list[Comparison]:
    """From the release called in one process until the next call is inside in the other."""
    stretches = (
        ("across-hand-off", 0.0, plan.count(200), "Redis: hand-off to another process"),
        ("across-held", HELD, plan.count(60), f"Redis: the same, each inside for {HELD * 1e3:g} ms"),
    )
    found = []
    async with (
        redis_server() as server,
        processes(server.url, 2) as pair,
        Queue(RedisBackend(server.url, lease=QUIET)) as control,
    ):
        for key, hold, waiters, title in stretches:
            hops = waiters + waiters % 2
            rows: dict[str, Row] = {
                ONE: partial(_relayed, pair, hops, hold, False),
                TWO: partial(_relayed, pair, hops, hold, True),
            }
            for kind in SAMPLING:
                rows[f"Queue, {kind}"] = partial(_handed, pair, control, kind, hops, hold)
            samples = await alternate(rows, plan.rounds)
            found.append(Comparison(key, title, "us", ONE, samples))
    return found


async def eight(plan: Plan) -> list[Comparison]:
    """All in all: microseconds a pair, or a hand-off, whichever of the processes has it."""
    number, tasks, count, waiters = plan.count(8), plan.count(8), plan.count(100), plan.count(100)
    async with redis_server() as server, processes(server.url, number) as crew:
        said = await recorded(server, len(crew) * tasks)
        bare = f"redis-py over its pools, {number} x {tasks} tasks"
        free: dict[str, Row] = {bare: partial(_bare, crew, said, count)}
        for kind in SAMPLING:
            free[f"Queue, {kind}"] = partial(_free, crew, kind, count, tasks)
        samples = await alternate(free, plan.rounds)
        found = [
            Comparison("eight-free", f"{number} processes: enter + leave", "us a pair", bare, samples)
        ]
        async with Queue(RedisBackend(server.url, lease=QUIET)) as control:
            line: dict[str, Row] = {
                f"Queue, {kind}": partial(_drained, crew, control, kind, waiters) for kind in SAMPLING
            }
            samples = await alternate(line, plan.rounds)
        title = f"{number} processes: a line of {len(crew) * waiters} drained"
        return [*found, Comparison("eight-drain", title, "us a hand-off", None, samples)]


SECTIONS = {"across": hand_off, "eight": eight}


async def _relayed(pair: list[Process], hops: int, hold: float, apart: bool) -> float:
    one, other = "one", "other"
    await pair[0].ask("join", name=one, other=other)
    await pair[1].ask("join", name=other, other=one)
    how = {"hops": hops // 2, "hold": hold, "apart": apart}
    first, second = await asyncio.gather(
        pair[0].ask("relay", name=one, begin=True, **how),
        pair[1].ask("relay", name=other, begin=False, **how),
    )
    return _latency([stamp for both in zip(first, second, strict=True) for stamp in both])


async def _handed(pair: list[Process], control: Queue, kind: str, waiters: int, hold: float) -> float:
    async with control.slot(kind, max_concurrent=1):
        for number in range(waiters):
            pair[number % 2].tell("enter", kind=kind, queue_id=kind, hold=hold)
            await _in_line(control, kind, number + 1)
    passages = sorted(await _passages(pair))
    return _latency([(inside, released) for _, inside, released in passages])


async def _drained(crew: list[Process], control: Queue, kind: str, waiters: int) -> float:
    async with control.slot(kind, max_concurrent=1):
        for process in crew:
            process.tell("enter", kind=kind, queue_id=kind, times=waiters)
        await _in_line(control, kind, waiters * len(crew))
    passages = sorted(await _passages(crew))
    return float(passages[-1][1] - passages[0][2]) / (len(passages) - 1) / 1e3


async def _free(crew: list[Process], kind: str, count: int, tasks: int) -> float:
    # one queue a process: the limit is the number of tasks that enter it
    spans = await asyncio.gather(
        *(
            process.ask("pairs", kind=kind, queue_id=f"{kind}-{number}", count=count, tasks=tasks)
            for number, process in enumerate(crew)
        )
    )
    return _between(spans, len(crew) * tasks * count)


async def _bare(crew: list[Process], said: list[tuple[Said, Said]], count: int) -> float:
    share = len(said) // len(crew)
    texts = [[[word.decode("latin-1") for word in half] for half in both] for both in said]
    spans = await asyncio.gather(
        *(
            process.ask("bare", said=texts[number * share : (number + 1) * share], count=count)
            for number, process in enumerate(crew)
        )
    )
    return _between(spans, len(said) * count)


async def _passages(crew: list[Process]) -> list[Any]:
    answers = await asyncio.gather(*(process.ask("passages") for process in crew))
    return [passage for answer in answers for passage in answer]


async def _in_line(control: Queue, queue_id: str, waiters: int) -> None:
    async def waiting() -> bool:
        return (await control.stats(queue_id)).waiting == waiters

    await wait_until(waiting, f"{waiters} wait", timeout=60.0)


def _latency(stamps: list[Any]) -> float:
    """The median, in microseconds, from each release to the next one's being inside."""
    gaps = [stamps[n + 1][0] - stamps[n][1] for n in range(len(stamps) - 1)]
    return float(statistics.median(gaps)) / 1e3


def _between(spans: list[Any], count: int) -> float:
    return float(max(end for _, end in spans) - min(begin for begin, _ in spans)) / count / 1e3
