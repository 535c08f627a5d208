"""`python -m tests.protocol`: explore the bounds, print one line each."""

from __future__ import annotations

import argparse
import sys
import time

from tests.protocol.bounds import ALL, FAST
from tests.protocol.caller import Caller
from tests.protocol.explore import Result, explore
from tests.protocol.plants import PLANTS, Plant, planted_core, planted_script
from tests.protocol.server import Server
from tests.protocol.state import Bound
from tests.protocol.world import World
from tests.support.redis_server import RedisServer


def run(
    redis: RedisServer, bound: Bound, plant: Plant | None, seconds: float
) -> tuple[Result, Caller, int]:
    server = Server(redis.port, bound.portion, planted_script(plant))
    caller = Caller(bound.calls, bound.page, planted_core(plant))
    try:
        return explore(World(bound, server, caller), seconds), caller, server.runs
    finally:
        server.close()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.protocol", description=__doc__)
    parser.add_argument("--all", action="store_true", help="the larger bounds as well")
    parser.add_argument("--only", default="", metavar="TEXT", help="bounds with this in their name")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="for one bound, at most")
    parser.add_argument("--plant", choices=PLANTS, help="leave one rule of the shipped code out")
    parser.add_argument("--list", action="store_true", help="those rules")
    options = parser.parse_args()
    if options.list:
        for name, rule in PLANTS.items():
            print(f"{name:20} {rule.text}")
        return 0
    plant: Plant | None = PLANTS.get(options.plant)
    bounds = [bound for bound in (*FAST, *ALL) if bound.name == plant.bound] if plant else FAST
    if options.all or options.only:
        bounds = [*FAST, *ALL]
    redis = RedisServer()
    total, failed, began = 0, 0, time.perf_counter()
    try:
        for bound in bounds:
            if options.only not in bound.name:
                continue
            result, _, runs = run(redis, bound, plant, options.seconds)
            total += result.states
            failed += bool(result.wrong)
            verdict = result.wrong or ("holds" if result.finished else "not finished")
            took = f"{result.seconds:.1f} s, {runs:,} script runs"
            print(f"{bound.name}: {result.states:,} states: {verdict} ({took})", flush=True)
            for n, step in enumerate(result.trace, 1):
                print(f"  {n:3} {step}", flush=True)
    finally:
        redis.close()
    print(f"{total:,} states in {time.perf_counter() - began:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
