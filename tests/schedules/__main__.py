"""`python -m tests.schedules`: replay one seed, or run many.

python -m tests.schedules --kind memory --seed 526 -v        one schedule, step by step
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
    memory_schedule,
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
    parser.add_argument("--kind", choices=("memory", "walk"), required=True)
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
            print(explore_memory(seeds, **how))
    except (Found, Violation) as broken:
        print(f"BROKEN: {broken}")
        return 1
    return 0


def _replay(options: argparse.Namespace, tell: Callable[[str], None] | None) -> None:
    sinks = Sinks()
    schedule = memory_schedule(options.seed, sinks, options.order, options.observed, tell)
    print(schedule.scenario)
    schedule.run()
    if options.observed:
        sinks.check()
    print("endings:", {str(call): call.ending for call in schedule.calls})
    print("history (> entered, + granted):", " ".join(schedule.history))


sys.exit(main())
