"""Measure, print, and judge.

    python -m tests.benchmarks [--rounds 7] [--only SECTION ...] [--no-peers] [--json FILE] ...

The whole takes about ten minutes; `--only` and `--json FILE --add` take it in parts. Starts a
redis-server of its own. The exit status says nothing of the figures: a bound that is missed is printed,
not raised. Take the figures on a machine that does nothing else, and look at the ratios.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from pathlib import Path

from tests.benchmarks.machine import describe
from tests.benchmarks.report import as_json, markdown, table, verdict_lines
from tests.benchmarks.rounds import Comparison, Plan
from tests.benchmarks.sections import SECTIONS
from tests.benchmarks.targets import judge


def main(words: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="SECTION",
        help=f"sections, or beginnings of their names: {', '.join(SECTIONS)}",
    )
    parser.add_argument("--no-peers", action="store_true", help="leave other libraries out")
    parser.add_argument("--scale", type=float, default=1.0, help="factor on how much a round does")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument(
        "--add", action="store_true", help="keep in the JSON what this run does not measure"
    )
    parser.add_argument("--markdown", type=Path, metavar="FILE")
    options = parser.parse_args(words)
    if options.only and (strange := [o for o in options.only if not _named(o)]):
        parser.error(f"no such section: {', '.join(strange)}")

    machine = describe()
    print(", ".join(f"{name} {value}" for name, value in machine.items()), flush=True)
    comparisons: list[Comparison] = []
    for name, measure in SECTIONS.items():
        if options.only and not any(name.startswith(only) for only in options.only):
            continue
        if options.no_peers and name.startswith("peers"):
            continue
        for comparison in asyncio.run(measure(Plan(options.rounds, options.scale))):
            comparisons.append(comparison)
            print("\n" + "\n".join(table(comparison)), flush=True)
    if options.add and options.json and options.json.exists():
        before = json.loads(options.json.read_text())["comparisons"]
        measured = {comparison.key for comparison in comparisons}
        kept = [Comparison.from_json(found) for found in before if found["key"] not in measured]
        comparisons = kept + comparisons
    verdicts = judge(comparisons)
    print("\n" + "\n".join(verdict_lines(verdicts)))
    machine["load after"] = [round(figure, 2) for figure in os.getloadavg()]
    report = as_json(machine, options.rounds, comparisons, verdicts)
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    if options.markdown:
        options.markdown.write_text("\n".join(markdown(report)) + "\n")


def _named(beginning: str) -> bool:
    return any(name.startswith(beginning) for name in SECTIONS)


if __name__ == "__main__":
    main(sys.argv[1:])
