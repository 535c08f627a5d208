"""`python -m tests.campaign.recovery`: measures the recovery time of each kind of fault.

Four processes keep a queue with one slot busy: each always has a call in it, so each is served about
twenty times a second. Then one fault is injected, and two times are taken from the history:

    nobody   the longest time without any grant, from the start of the fault on
    all      from its end until every running process has been served again; from its start if the
             fault is momentary

They are printed next to the promised bound. The first line, `none`, is the same without a fault: the
error of the method.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import signal
import statistics
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from tests.campaign.checker import check
from tests.campaign.conductor import Company, Scene, apply, count_faults, finish, on_stage
from tests.campaign.faults import FAULTS, NONE, Fault, kinds_of
from tests.campaign.history import Event, History

MOMENTS = ("cut", "client-kill", "script-flush", "flushall")


class Run(NamedTuple):
    """The effect of one fault, in seconds; `everybody` is None if a process was not served again."""

    nobody: float
    everybody: float | None


async def measure(
    company: Company, fault: Fault, lease: float, runs: int, seed: int, out: Path
) -> dict[str, Any]:
    """All runs of one kind, one by one on one scene."""
    rng = random.Random(f"{seed} {fault.name}")
    with tempfile.TemporaryDirectory(prefix="genesis-recovery-") as name:
        scene = await asyncio.to_thread(Scene, company, Path(name), lease, rng, steady=True)
        try:
            async with on_stage(scene) as operator:
                await asyncio.sleep(lease)
                for number in range(runs):
                    station = scene.stations[number % len(scene.stations)]
                    if fault.name == "clock":
                        station = scene.stations[-1]
                    await apply(scene, fault, station, rng, rng.uniform(*fault.lasts) * lease)
                    leases, seconds = fault.settle
                    # the next comes at no fixed distance from a heartbeat
                    await asyncio.sleep(leases * lease + seconds + rng.uniform(0.5, 0.5 + lease / 3))
                await finish(scene, operator)
            history = await asyncio.to_thread(scene.history)
        finally:
            scene.end()
    # Other kinds are measured at the same time, by the same loop.
    verdict = await asyncio.to_thread(check, history)
    for violation in verdict.violations:
        print(f"    {violation.rule} at {violation.at:.3f}: {violation.text}", flush=True)
    if verdict.violations:
        history.save(out / f"recovery-{fault.name}.jsonl")
    measured = await asyncio.to_thread(facts, fault, history)
    return measured | {"violations": len(verdict.violations)}


def facts(fault: Fault, history: History) -> dict[str, Any]:
    runs = list(_runs(fault, history))
    nobody = [run.nobody for run in runs]
    everybody = [run.everybody for run in runs if run.everybody is not None]
    leases, seconds = fault.settle
    return {
        "fault": fault.name,
        "runs": len(runs),
        "felt": count_faults(history)[1][fault.name],
        "lease": history.lease,
        "bound": round(leases * history.lease + seconds, 3),
        "nobody_median": round(statistics.median(nobody), 3),
        "nobody_worst": round(max(nobody), 3),
        "all_median": round(statistics.median(everybody), 3) if everybody else None,
        "all_worst": round(max(everybody), 3) if everybody else None,
        "never": sum(run.everybody is None for run in runs),
    }


def _runs(fault: Fault, history: History) -> list[Run]:
    begun: dict[int, Event] = {}
    spans: list[tuple[float, float]] = []
    for event in history.events:
        if event.kind == "fault":
            begun[event.more["id"]] = event
        elif event.kind == "fault_end":
            spans.append((begun[event.more["id"]].at, event.at))
    starts = [begin for begin, _ in spans[1:]] + [history.events[-1].at]
    return [
        _run(fault, history, begin, end, until)
        for (begin, end), until in zip(spans, starts, strict=True)
    ]


def _run(fault: Fault, history: History, begin: float, end: float, until: float) -> Run:
    """The effect of a fault from `begin` to `end`; the next fault starts at `until`."""
    grants = [e for e in history.events if e.kind == "grant" and begin - 1 <= e.at <= until]
    leases, seconds = fault.settle
    last = min(until, end + leases * history.lease + seconds + 0.4)
    times = [begin, *(e.at for e in grants if begin <= e.at <= last), last]
    nobody = max(after - before for before, after in pairwise(times))
    since = begin if fault.name in MOMENTS else end
    first: dict[str, float] = {}
    for event in grants:
        if event.at >= since:
            first.setdefault(event.who.partition(".")[0], event.at)
    everybody = max(first.values()) - since if len(first) == 4 else None
    return Run(nobody, everybody)


async def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    kinds = [NONE, *(FAULTS[name] for name in options.only or kinds_of(cluster=False))]
    results: dict[str, dict[str, Any]] = {}
    lanes = asyncio.Semaphore(options.lanes)

    async def one(company: Company, fault: Fault) -> None:
        async with lanes:
            results[fault.name] = await measure(
                company, fault, options.lease, options.runs, options.seed, options.out
            )
            print(line(results[fault.name]), flush=True)

    with Company() as company:
        if not company.has_clock:
            kinds = [kind for kind in kinds if kind.name != "clock"]
        print(HEAD, flush=True)
        await asyncio.gather(*(one(company, kind) for kind in kinds))
    return [results[kind.name] for kind in kinds]


HEAD = (
    f"{'fault':18} {'runs':>5} {'felt':>5} {'bound':>7} {'nobody: median':>15} {'worst':>7} "
    f"{'all: median':>12} {'worst':>7} {'violations':>11}"
)


def line(fact: dict[str, Any]) -> str:
    return (
        f"{fact['fault']:18} {fact['runs']:5} {fact['felt']:5} {fact['bound']:7} "
        f"{fact['nobody_median']:15} {fact['nobody_worst']:7} "
        f"{fact['all_median']!s:>12} {fact['all_worst']!s:>7} {fact['violations']:11}"
        + (f"  {fact['never']} times not all were served again" if fact["never"] else "")
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.campaign.recovery", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--runs", type=int, default=20, help="of each kind")
    parser.add_argument("--lease", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--lanes", type=int, default=2, help="kinds that are measured at the same time")
    parser.add_argument("--only", type=lambda text: text.split(","), default=())
    parser.add_argument("--json", type=Path)
    parser.add_argument("--out", type=Path, default=Path(".campaign"), help="for histories gone wrong")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # no server must be left behind
    results = asyncio.run(run(options))
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")
    return int(any(result["violations"] or result["never"] for result in results))


if __name__ == "__main__":
    sys.exit(main())
