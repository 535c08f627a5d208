"""The campaign itself: it finds the bugs that are planted, and nothing where there is none.

The campaign over all faults is a step of `.ci/run` (`poe campaign`); here are short ones over few.
"""

from __future__ import annotations

from collections.abc import Iterator

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
# Without faults, which would excuse what they do; but for one that shows in nothing else.
NEEDED = {"forget-left": ("requests-lost",)}


@pytest.fixture(scope="module")
def company() -> Iterator[Company]:
    with Company() as company:
        yield company


async def judged(company: Company, **options: object) -> tuple[Campaign, Verdict]:
    campaign = await play(company, Play(**{"seconds": SECONDS, "lease": LEASE, **options}))  # type: ignore[arg-type]
    campaign.server.close()
    return campaign, check(campaign.history)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(PLANTS))
async def test_a_planted_bug_is_found(company: Company, name: str) -> None:
    """By the rule that it breaks, in the first campaign or at the latest in the fifth."""
    rules: set[str] = set()
    for seed in range(1, 6):
        _, verdict = await judged(company, seed=seed, plant=name, only=NEEDED.get(name, ("none",)))
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
