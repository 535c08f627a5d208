"""The campaign itself: it finds the bugs that are planted, and nothing where there is none.

The campaign over all faults is a step of `.ci/run` (`poe campaign`); here are short ones over few.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from tests.campaign.checker import Verdict, check
from tests.campaign.conductor import Campaign, Company, Play, play
from tests.campaign.plants import PLANTS

LEASE = 2.5  # long beside a hand-off, so that what the heartbeat makes up for comes late
SECONDS = 10.0
FOUND_BY = {
    "skip-renewal": {"limit", "cause"},
    "drop-handoff": {"standstill"},
    "publish-first": {"limit"},
    "forget-left": {"standstill"},
}
# Without faults, which would excuse what they do; but for one that shows in nothing else, and then only
# if the next fault is not there before the line stands still. Of 10 such campaigns, 6 found it.
WITHOUT_FAULTS: Mapping[str, Any] = {"only": ("none",)}
NEEDED = {"forget-left": {"only": ("requests-lost",), "pause": 1.0, "seconds": 20.0}}
MAX_CAMPAIGNS = 12


@pytest.fixture(scope="module")
def company() -> Iterator[Company]:
    with Company() as company:
        yield company


async def judged(company: Company, **options: Any) -> tuple[Campaign, Verdict]:
    campaign = await play(company, Play(**{"seconds": SECONDS, "lease": LEASE, **options}))
    return campaign, check(campaign.history)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(PLANTS))
async def test_a_planted_bug_is_found(company: Company, name: str) -> None:
    """By the rule that it breaks, mostly in the first campaign."""
    rules: set[str] = set()
    for seed in range(1, MAX_CAMPAIGNS + 1):
        _, verdict = await judged(company, seed=seed, plant=name, **NEEDED.get(name, WITHOUT_FAULTS))
        rules = {violation.rule for violation in verdict.violations}
        if rules & FOUND_BY[name]:
            return
    pytest.fail(f"{name} was not found; violated were {rules or 'no rules'}")


@pytest.mark.slow
async def test_without_a_planted_bug_nothing_is_found(company: Company) -> None:
    """A campaign as long, with faults that are seen to have happened."""
    campaign, verdict = await judged(company, seed=1, only=("cut",))
    assert verdict.violations == []
    assert campaign.faults["cut"] == campaign.felt["cut"] > 0
    assert verdict.outcomes["released"] > 100
