"""`python -m tests.protocol`: explore the bounds, print one line each."""

from __future__ import annotations

import argparse
import sys

from tests.protocol.bounds import ALL, FAST
from tests.protocol.caller import Caller
from tests.protocol.explore import explore
from tests.protocol.server import Server
from tests.protocol.world import World
from tests.redis_server import RedisServer


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.protocol", description=__doc__)
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--only", default="")
    parser.add_argument("--seconds", type=float, default=float("inf"))
    options = parser.parse_args()
    redis = RedisServer()
    failed = 0
    try:
        for bound in (*FAST, *ALL) if options.all else FAST:
            if options.only not in bound.name:
                continue
            server = Server(redis.port, bound.portion)
            caller = Caller(bound.calls, bound.page)
            result = explore(World(bound, server, caller), options.seconds)
            verdict = result.wrong or ("holds" if result.finished else "not finished")
            print(f"{bound.name}: {result.states:,} states: {verdict} ({result.seconds:.1f} s; {server.runs} runs)", flush=True)
            for n, step in enumerate(result.trace, 1):
                print(f"  {n:3} {step}")
            failed += bool(result.wrong)
            server.close()
    finally:
        redis.close()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
