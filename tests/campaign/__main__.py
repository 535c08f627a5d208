"""`python -m tests.campaign`: runs fault campaigns and checks their histories.

    python -m tests.campaign --seed 1 --seconds 1200 --lease 2             one long campaign
    python -m tests.campaign --seed 1 --seconds 4 --lease 0.6 --campaigns 500
    python -m tests.campaign --seed 1 --seconds 10 --lease 1 --campaigns 20 --cluster
    python -m tests.campaign --seed 1 --seconds 20 --lease 3 --plant skip-renewal

The last looks for a planted bug. A history with a violation is saved, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.campaign.checker import check
from tests.campaign.conductor import Campaign, Company, Play, play
from tests.campaign.faults import FAULTS, kinds_of
from tests.campaign.forks import find_libfaketime
from tests.campaign.history import History
from tests.campaign.plants import PLANTS
from tests.campaign.verdict import RULES, Verdict


class Tally:
    """All campaigns so far."""

    def __init__(self) -> None:
        self.campaigns = 0
        self.failed: list[int] = []
        self.faults: Counter[str] = Counter()
        self.felt: Counter[str] = Counter()
        self.outcomes: Counter[str] = Counter()
        self.violations: Counter[str] = Counter()
        self.overshoots: list[float] = []
        self.overshot_after: list[float] = []
        self.overtaken = 0
        self.windows: list[float] = []
        self.windows_alone: list[float] = []
        self.seconds = 0.0
        self.calm = 0.0

    def add(self, campaign: Campaign, verdict: Verdict) -> None:
        self.campaigns += 1
        self.faults += campaign.faults
        self.felt += campaign.felt
        self.outcomes += verdict.outcomes
        self.violations += Counter(violation.rule for violation in verdict.violations)
        self.overshoots += verdict.overshoots
        self.overshot_after += verdict.overshot_after
        self.overtaken += verdict.overtaken
        self.windows += verdict.windows
        self.windows_alone += verdict.windows_alone
        events = campaign.history.events
        self.seconds += events[-1].at - events[0].at
        self.calm += verdict.calm
        if verdict.violations:
            self.failed.append(campaign.play.seed)

    def facts(self) -> dict[str, Any]:
        return {
            "campaigns": self.campaigns,
            "seconds": round(self.seconds, 1),
            "seconds_without_a_fault": round(self.calm, 1),
            "calls": self.outcomes.total() - self.outcomes["lost"],
            "outcomes": dict(sorted(self.outcomes.items())),
            "violations": {rule: self.violations[rule] for rule in RULES},
            "failed_seeds": self.failed,
            "excused": {
                "grants_over_limit": len(self.overshoots),
                "longest_overshoot": round(max(self.overshoots, default=0.0), 3),
                "latest_after_loss": round(max(self.overshot_after, default=0.0), 3),
                "overtaken": self.overtaken,
            },
            "registered_again_after": {
                "measured": len(self.windows),
                "longest": round(max(self.windows, default=0.0), 3),
                "measured_alone": len(self.windows_alone),
                "longest_alone": round(max(self.windows_alone, default=0.0), 3),
            },
            "faults": {
                name: {"done": self.faults[name], "felt": self.felt[name]} for name in sorted(FAULTS)
            },
        }


async def run(options: argparse.Namespace) -> Tally:
    tally = Tally()
    with Company(cluster=options.cluster) as company:
        for seed in range(options.seed, options.seed + options.campaigns):
            plan = Play(seed, options.seconds, options.lease, options.plant, options.only)
            campaign = await play(company, plan)
            file = options.out / f"seed-{seed}.jsonl"
            campaign.history.save(file)
            verdict = await asyncio.to_thread(check, campaign.history)
            tally.add(campaign, verdict)
            report(campaign, verdict, file)
            write(tally, options.json)
    return tally


def write(tally: Tally, file: Path | None) -> None:
    if file is not None:
        file.write_text(json.dumps(tally.facts(), indent=2) + "\n")


def report(campaign: Campaign, verdict: Verdict, file: Path) -> None:
    kinds = sum(campaign.faults.values())
    calls = verdict.outcomes.total() - verdict.outcomes["lost"]
    outcome = "ok" if not verdict.violations else f"{len(verdict.violations)} VIOLATIONS"
    print(f"seed {campaign.play.seed}: {calls} calls, {kinds} faults: {outcome}", flush=True)
    for violation in verdict.violations[:10]:
        print(
            f"    {violation.rule} in {violation.queue or '-'} at {violation.at:.3f}: {violation.text}"
        )
    if verdict.violations:
        print(f"    its history is in {file}", flush=True)
    else:
        file.unlink()


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.campaign", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "--seed", type=int, default=1, help="of the first campaign; the next is one more"
    )
    parser.add_argument("--seconds", type=float, default=4.0, help="of faults, in each campaign")
    parser.add_argument("--lease", type=float, default=0.6)
    parser.add_argument("--campaigns", type=int, default=1)
    parser.add_argument(
        "--plant", choices=sorted(PLANTS), default="", help="put a bug in, to see it found"
    )
    parser.add_argument(
        "--only", type=lambda text: text.split(","), default=(), help=f"of: {','.join(sorted(FAULTS))}"
    )
    parser.add_argument("--out", type=Path, default=Path(".campaign"), help="where histories are saved")
    parser.add_argument("--json", type=Path, help="where the facts are written")
    parser.add_argument("--cluster", action="store_true", help="a Redis Cluster, and its faults")
    parser.add_argument("--every-kind", action="store_true", help="fail if a kind was never felt")
    parser.add_argument("--check", type=Path, help="judge a saved history, and nothing else")
    return parser.parse_args(arguments)


def main() -> int:
    options = parse()
    if options.check:
        verdict = check(History.load(options.check))
        for violation in verdict.violations:
            print(
                f"{violation.rule} in {violation.queue or '-'} at {violation.at:.3f}: {violation.text}"
            )
        return int(bool(verdict.violations))
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # no server must be left behind
    tally = asyncio.run(run(options))
    facts = tally.facts()
    text = json.dumps(facts, indent=2)
    print(text)
    write(tally, options.json)
    kinds = options.only or kinds_of(options.cluster)
    unfelt = [name for name in kinds if not tally.felt[name]]
    if find_libfaketime() is None and "clock" in unfelt:
        print("SKIPPED: clock; libfaketime is not installed")
        unfelt.remove("clock")
    if options.every_kind and unfelt:
        print(f"never felt: {', '.join(unfelt)}")
        return 1
    return int(bool(tally.failed))


if __name__ == "__main__":
    sys.exit(main())
