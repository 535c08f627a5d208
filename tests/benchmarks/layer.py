"""What the observing layer costs: one enter + leave in memory, bare and with each kind of sink.

    python -m tests.benchmarks.layer [--rounds 9]

All rows run side by side in one process, in alternating rounds; figures are medians in us. The
first row is the yardstick: `asyncio.Semaphore`, acquired and released. The last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import statistics
import time
from collections.abc import Awaitable, Callable

from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from prometheus_client import CollectorRegistry

from genesis.backends.memory import InMemoryBackend
from genesis.backends.protocol import Entry, QueueBackend
from genesis.observability import Telemetry
from genesis.observability.layer import ObservedBackend

PAIRS = 2_000

Row = Callable[[], Awaitable[None]]


def pairs_on(backend: QueueBackend) -> Row:
    entry = Entry("sales", "call", 1)

    async def run() -> None:
        for _ in range(PAIRS):
            admission = await backend.enter(entry)
            await backend.leave(admission.ticket)

    return run


def observed(provider: TracerProvider | None) -> Row:
    telemetry = Telemetry(CollectorRegistry(), provider)
    return pairs_on(ObservedBackend(InMemoryBackend(), telemetry, "benchmark"))


def provider(ratio: float) -> TracerProvider:
    made = TracerProvider(sampler=ParentBased(TraceIdRatioBased(ratio)), shutdown_on_exit=False)
    made.add_span_processor(SpanProcessor())
    return made


async def semaphore() -> None:
    yardstick = asyncio.Semaphore(1)
    for _ in range(PAIRS):
        await yardstick.acquire()
        yardstick.release()


async def four_spans() -> None:
    """What the four spans of such a call cost with the SDK alone."""
    tracer = provider(1.0).get_tracer("benchmark")
    attributes = dict.fromkeys(("a", "b", "c", "d"), "value")
    for _ in range(PAIRS):
        for _ in range(4):
            tracer.start_span("span", attributes=attributes).end()


async def main(rounds: int) -> None:
    rows: dict[str, Row] = {
        "asyncio.Semaphore": semaphore,
        "bare backend": pairs_on(InMemoryBackend()),
        "observed, no SDK": observed(None),
        "observed, 1 % sampled": observed(provider(0.01)),
        "observed, all recorded": observed(provider(1.0)),
        "4 SDK spans alone": four_spans,
    }
    taken: dict[str, list[float]] = {name: [] for name in rows}
    for round_ in range(rounds + 1):
        for name, run in rows.items():
            gc.collect()
            began = time.perf_counter()
            await run()
            if round_:  # the first one warms up
                taken[name].append((time.perf_counter() - began) / PAIRS * 1e6)
    medians = {name: statistics.median(values) for name, values in taken.items()}
    bare = medians["bare backend"]
    print(f"{'':26}{'us':>9}{'over bare':>12}")
    for name, figure in medians.items():
        layer = f"{figure - bare:12.2f}" if name.startswith("observed") else ""
        print(f"{name:26}{figure:9.2f}{layer}")
    print(json.dumps({"rounds": rounds, "pairs": PAIRS, "us": medians}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    asyncio.run(main(parser.parse_args().rounds))
