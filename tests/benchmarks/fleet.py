"""Many instances on one Redis: what they cost it, and which of its resources ends first.

    python -m tests.benchmarks.fleet [--instances 10 100 1000] [--seconds 20] [--json FILE]

Every instance is a `RedisBackend` of its own, with its own connection and its own heartbeat, as it
would have in a process of its own; hundreds share a process only because a thousand processes do not
fit on one machine. Ten of them share a queue with one slot, and each keeps a call in it. Two stretches
are measured: one in which everybody waits and nothing happens but heartbeats, and one in which each
call holds its slot for `--hold` seconds and then enters anew: slots go from instance to instance.

The figures are the server's own (INFO), and the latencies those of the instances: from the release
called in one until the next is inside, whichever process that is in. From the two stretches follows
what a heartbeat and what a passage cost, and from that the estimate.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

from genesis import Queue
from genesis.queue import RedisBackend
from tests.benchmarks.fleet_process import Load, allow_files, queue_id
from tests.benchmarks.machine import describe
from tests.benchmarks.process import Process
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until

__all__ = ["Load", "estimate", "measure"]

Figures: TypeAlias = dict[str, Any]

MODULE = "tests.benchmarks.fleet_process"

CORE = 0.7
"""The share of a core that a Redis may use before its latency suffers."""
MAX_CLIENTS = 10_000  # Redis' own default


async def measure(load: Load) -> Figures:
    """Run a fleet through both stretches."""
    allow_files(load.instances * 2 + 1_000)
    server = RedisServer("--maxclients", str(load.instances * 2 + 500))
    try:
        empty = _used_memory(server)
        crew = await _hire(server.url, load)
        try:
            await asyncio.gather(*(worker.ask("start") for worker in crew))
            await _all_stand(server.url, load)
            found: Figures = {
                "instances": load.instances,
                "queues": load.queues,
                "connections": server.connections(),
                "redis MB": (_used_memory(server) - empty) / 1e6,
                "waiting": await _stretch(server, crew, load),
            }
            for worker in crew:
                await worker.ask("go")
            await asyncio.sleep(2 * load.hold)  # until the first calls have come round
            found["handing over"] = await _stretch(server, crew, load)
            return found
        finally:
            for worker in crew:
                await worker.close()
    finally:
        server.close()


def estimate(found: list[Figures], lease: float) -> Figures:
    """What one heartbeat and one passage cost a Redis, and how many instances it carries."""
    largest = found[-1]
    quiet, busy = largest["waiting"], largest["handing over"]
    beats = largest["instances"] * 3 / lease
    passages = max(busy["hand-offs/s"], 1e-9)
    # Whoever enters renews its lease, so beats are fewer while calls pass: what is not one of the
    # two script calls of a passage was a beat.
    still = max(0.0, busy["script calls/s"] - 2 * passages) / beats
    unit: Figures = {
        "us of Redis a heartbeat of one queue": quiet["redis CPU %"] / 100 / beats * 1e6,
        "us of Redis a passage": max(0.0, busy["redis CPU %"] - still * quiet["redis CPU %"])
        / 100
        / passages
        * 1e6,
        "bytes a heartbeat": quiet["bytes/s"] / beats,
        "bytes a passage": max(0.0, busy["bytes/s"] - still * quiet["bytes/s"]) / passages,
        "kB of Redis an instance": largest["redis MB"] * 1e3 / largest["instances"],
    }
    return {**unit, "for": [_carries(unit, instances, lease) for instances in (10, 100, 1_000)]}


def _carries(unit: Figures, instances: int, lease: float, queues: int = 10) -> Figures:
    """What is left for calls, when every instance has calls in `queues` queues at any time."""
    beats = instances * queues * 3 / lease
    heart = beats * unit["us of Redis a heartbeat of one queue"] / 1e6
    passages = max(0.0, CORE - heart) * 1e6 / max(unit["us of Redis a passage"], 1e-9)
    traffic = beats * unit["bytes a heartbeat"] + passages * unit["bytes a passage"]
    used = {
        "connections": instances / MAX_CLIENTS,
        "a core, by heartbeats alone": heart / CORE,
        "1 Gbit/s of network, at the most passages": traffic * 8 / 1e9,
    }
    return {
        "instances": instances,
        "queues each": queues,
        "heartbeats, % of a core": heart * 100,
        "passages/s until a core is full": passages,
        "passages/s an instance": passages / instances,
        "connections": instances,
        "MB/s then": traffic / 1e6,
        "redis MB, nobody waiting": instances * unit["kB of Redis an instance"] / 1e3,
        "share of each limit": used,
    }


async def _stretch(server: RedisServer, crew: list[Process], load: Load) -> Figures:
    for worker in crew:
        await worker.ask("mark")
    server.client.config_resetstat()
    began = _look(server)
    await asyncio.sleep(load.seconds)
    ended = _look(server)
    stats: Any = server.client.info("commandstats")
    said = stats.get("cmdstat_evalsha", {"calls": 0, "usec": 0})
    reports = [await worker.ask("report") for worker in crew]
    took = ended["at"] - began["at"]
    passages = sorted(tuple(passage) for report in reports for passage in report["passages"])
    latencies = sorted(_latencies(passages))
    inside = sum(int(of["calls"]) for name, of in stats.items() if name != "cmdstat_evalsha")
    return {
        "hand-offs/s": len(latencies) / took,
        "script calls/s": said["calls"] / took,
        "commands in scripts/s": inside / took,
        "us inside a script call": said["usec"] / max(1, said["calls"]),
        "redis CPU %": (ended["cpu"] - began["cpu"]) / took * 100,
        "bytes/s": (ended["bytes"] - began["bytes"]) / took,
        "python CPU %": sum(report["cpu"] for report in reports) / took * 100,
        "python MB an instance": sum(report["memory"] for report in reports) / 1e6 / load.instances,
        "hand-off ms, median": _part(latencies, 0.5),
        "hand-off ms, 99 of 100": _part(latencies, 0.99),
        "hand-off ms, worst": _part(latencies, 1.0),
        "slots lost": sum(report["lost"] for report in reports),
        "disruptions": sum(report["disruptions"] for report in reports),
    }


def _look(server: RedisServer) -> Figures:
    stats: Any = server.client.info("stats")
    cpu: Any = server.client.info("cpu")
    return {
        "at": time.monotonic(),
        "cpu": float(cpu["used_cpu_user"]) + float(cpu["used_cpu_sys"]),
        "bytes": int(stats["total_net_input_bytes"]) + int(stats["total_net_output_bytes"]),
    }


def _used_memory(server: RedisServer) -> int:
    memory: Any = server.client.info("memory")
    return int(memory["used_memory"])


def _latencies(passages: list[Any]) -> Iterator[float]:
    """Milliseconds, from each release until the next of the same queue is inside."""
    for number in range(1, len(passages)):
        before, after = passages[number - 1], passages[number]
        if before[0] == after[0]:
            yield (after[2] - before[3]) / 1e6


def _part(ordered: list[float], part: float) -> float | None:
    if not ordered:
        return None
    if part == 0.5:
        return statistics.median(ordered)
    return ordered[min(len(ordered) - 1, math.ceil(part * len(ordered)) - 1)]


async def _all_stand(url: str, load: Load) -> None:
    async with Queue(RedisBackend(url)) as control:

        async def standing() -> bool:
            stats = [await control.stats(queue_id(number)) for number in range(load.queues)]
            return sum(found.waiting + found.in_use for found in stats) == load.instances

        await wait_until(standing, f"{load.instances} instances have a call in a queue", timeout=120.0)


async def _hire(url: str, load: Load) -> list[Process]:
    crew = []
    processes = min(load.processes, load.instances)
    for number in range(processes):
        mine = json.dumps([url, number, processes, load])
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", MODULE, mine, stdin=pipe, stdout=pipe, limit=1 << 28
        )
        crew.append(Process(process))
    return crew


def _show(found: list[Figures], paper: Figures) -> None:
    print(f"\n{'':34}" + "".join(f"{figures['instances']:>14,}" for figures in found))
    for name in ("queues", "connections", "redis MB"):
        print(f"{name:34}" + "".join(_cell(figures[name]) for figures in found))
    for stretch in ("waiting", "handing over"):
        print(stretch)
        for name in found[0][stretch]:
            print(f"  {name:32}" + "".join(_cell(figures[stretch][name]) for figures in found))
    print("\nFrom the largest:")
    for name, value in paper.items():
        if name != "for":
            print(f"  {name:50}{_cell(value)}")
    print(f"\nOne Redis, at {CORE:.0%} of a core:")
    for name in paper["for"][0]:
        if name == "share of each limit":
            for limit in paper["for"][0][name]:
                cells = (f"{row[name][limit]:>14.1%}" for row in paper["for"])
                print(f"  of {limit:47}" + "".join(cells))
        else:
            print(f"  {name:50}" + "".join(_cell(row[name]) for row in paper["for"]))


def _cell(value: float | None) -> str:
    if value is None:
        return f"{'-':>14}"
    return f"{value:>14,.2f}" if abs(value) < 100 and value != int(value) else f"{value:>14,.0f}"


async def main(words: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.fleet", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--instances", type=int, nargs="+", default=[10, 100, 1_000])
    parser.add_argument("--seconds", type=float, default=20.0, help="length of a stretch")
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--share", type=int, default=10, help="instances that share a queue")
    parser.add_argument("--hold", type=float, default=0.1, help="seconds in which a call has its slot")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args(words)
    machine = describe()
    print(", ".join(f"{name} {value}" for name, value in machine.items()), flush=True)
    found = []
    for instances in sorted(options.instances):
        load = Load(
            instances,
            seconds=options.seconds,
            processes=options.processes,
            share=options.share,
            hold=options.hold,
        )
        found.append(await measure(load))
        print(f"{instances} instances: done", flush=True)
    paper = estimate(found, Load(1).lease)
    _show(found, paper)
    machine["load after"] = [round(figure, 2) for figure in os.getloadavg()]
    if options.json:
        report = {"machine": machine, "found": found, "estimate": paper}
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
