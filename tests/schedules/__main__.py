"""`python -m tests.schedules`: replay one seed, or run many.

python -m tests.schedules --kind redis --seed 526 -v         one schedule, step by step
python -m tests.schedules --kind redis --seconds 600         as many as fit, from --first on
python -m tests.schedules --kind memory --seconds 600 --order any --observed
python -m tests.schedules --kind walk                        every order of the tiny scenarios
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable

from tests.schedules.calls import Violation
from tests.schedules.explore import (
    Found,
    explore_memory,
    explore_shared,
    memory_schedule,
    open_server,
    shared_schedule,
    walk_memory,
)
from tests.schedules.scenario import SMALL, TINY
from tests.schedules.sinks import Sinks


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.schedules",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--kind", choices=("memory", "redis", "walk"), required=True)
    parser.add_argument("--seed", type=int, help="run this one alone")
    parser.add_argument("--first", type=int, default=0, help="the first of many seeds")
    parser.add_argument("--seconds", type=float, default=10.0, help="how long to go on with many")
    parser.add_argument("--order", choices=("fifo", "any"), default="fifo", help="of ready callbacks")
    parser.add_argument("--observed", action="store_true", help="with the observing layer in between")
    parser.add_argument("-v", "--verbose", action="store_true", help="print each step of --seed")
    options = parser.parse_args()
    try:
        if options.kind == "walk":
            for name, scenario in (TINY if options.order == "any" else TINY | SMALL).items():
                print(walk_memory(scenario, name=name, order=options.order), flush=True)
        elif options.seed is not None:
            _replay(options, print if options.verbose else None)
        else:
            seeds = itertools.count(options.first)
            how = {"order": options.order, "observed": options.observed, "seconds": options.seconds}
            if options.kind == "memory":
                print(explore_memory(seeds, **how))
            else:
                with open_server() as server:
                    print(explore_shared(server, seeds, **how))
    except (Found, Violation) as broken:
        print(f"BROKEN: {broken}")
        return 1
    return 0


def _replay(options: argparse.Namespace, tell: Callable[[str], None] | None) -> None:
    sinks = Sinks()
    how = (sinks, options.order, options.observed, tell)
    if options.kind == "memory":
        alone = memory_schedule(options.seed, *how)
        print(alone.scenario)
        alone.run()
        history, calls = alone.history, alone.calls
    else:
        with open_server() as server:
            shared = shared_schedule(options.seed, server, *how)
            print(shared.scenario)
            shared.run()
            history, calls = shared.history, shared.calls
    if options.observed:
        sinks.check()
    print("endings:", {str(call): call.ending or "killed" for call in calls})
    print("history (> entered, + granted):", " ".join(history))


sys.exit(main())
