"""What a hand-off costs when 2,000 wait, beside what it costs when 100 wait.

    python -m tests.benchmarks.drain [--rounds 7]

Both sizes run side by side in one process, in alternating rounds, so that whatever else the machine
does falls on both; the figure is the median over the rounds. A round of 100 is drained as often as it
takes to hand over as many times as one round of 2,000. The last line is JSON. The exit status is 1 if
a ratio is over 1.35.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import statistics
import sys
import time
from typing import Any

from prometheus_client import CollectorRegistry

from genesis import Queue
from genesis.backends.protocol import QueueBackend
from genesis.observability import Telemetry
from genesis.queue import InMemoryBackend, RedisBackend
from tests.redis_server import RedisServer
from tests.waiting import wait_until

SMALL, LARGE = 100, 2_000
MOST = 1.35
LEASE = 600.0  # seconds, so that no heartbeat falls into a round


async def drain(queue: Queue, size: int, server: RedisServer | None) -> tuple[float, float]:
    """Microseconds per hand-off, on the clock and inside the server's scripts."""
    go = asyncio.Event()

    async def call() -> None:
        async with queue.slot("drain", max_concurrent=1):
            await go.wait()

    tasks = [asyncio.create_task(call()) for _ in range(size + 1)]

    async def all_wait() -> bool:
        return (await queue.stats("drain")).waiting == size

    await wait_until(all_wait, f"{size} wait")
    gc.collect()
    if server is not None:
        server.client.config_resetstat()
    began = time.perf_counter()
    go.set()
    await asyncio.gather(*tasks)
    took = (time.perf_counter() - began) / size * 1e6
    inside = 0.0
    if server is not None:
        stats: Any = server.client.info("commandstats")
        inside = stats["cmdstat_evalsha"]["usec"] / size
    return took, inside


async def measure(backend: QueueBackend, rounds: int, server: RedisServer | None) -> dict[str, Any]:
    times: dict[int, list[float]] = {SMALL: [], LARGE: []}
    inside: dict[int, list[float]] = {SMALL: [], LARGE: []}
    async with Queue(backend, telemetry=Telemetry(registry=CollectorRegistry())) as queue:
        for size in (SMALL, LARGE):
            await drain(queue, size, server)  # warms up, uncounted
        for _ in range(rounds):
            for size in (SMALL, LARGE):
                repeats = LARGE // size
                found = [await drain(queue, size, server) for _ in range(repeats)]
                times[size].append(sum(took for took, _ in found) / repeats)
                inside[size].append(sum(script for _, script in found) / repeats)
    small, large = (statistics.median(times[size]) for size in (SMALL, LARGE))
    result: dict[str, Any] = {
        "backend": backend.name,
        "us_per_hand_off_100": round(small, 1),
        "us_per_hand_off_2000": round(large, 1),
        "ratio": round(large / small, 3),
        "rounds_100": [round(value, 1) for value in times[SMALL]],
        "rounds_2000": [round(value, 1) for value in times[LARGE]],
    }
    if server is not None:
        small, large = (statistics.median(inside[size]) for size in (SMALL, LARGE))
        result["script_us_100"] = round(small, 1)
        result["script_us_2000"] = round(large, 1)
        result["script_ratio"] = round(large / small, 3)
    return result


def show(results: list[dict[str, Any]]) -> None:
    print(f"{'backend':<10}{'us, 100 wait':>14}{'us, 2000 wait':>15}{'ratio':>8}{'script ratio':>14}")
    for result in results:
        print(
            f"{result['backend']:<10}{result['us_per_hand_off_100']:>14}"
            f"{result['us_per_hand_off_2000']:>15}{result['ratio']:>8}"
            f"{result.get('script_ratio', '-'):>14}"
        )
    print(json.dumps({"most": MOST, "results": results}))


async def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    results = [await measure(InMemoryBackend(), rounds, None)]
    server = RedisServer()
    try:
        results.append(await measure(RedisBackend(server.url, lease=LEASE), rounds, server))
    finally:
        server.close()
    show(results)
    return int(any(result["ratio"] > MOST for result in results))


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
