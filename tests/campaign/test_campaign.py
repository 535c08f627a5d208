"""The campaign itself: it finds the bugs that are planted, and nothing where there is none.

The campaign over all faults is a step of `.ci/run` (`poe campaign`); here are short ones over few.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from genesis.backends.redis import core, scripts
from genesis.backends.redis.ticket import LocalTicket
from tests.campaign.checker import check
from tests.campaign.conductor import Campaign, Play, play
from tests.campaign.plants import PLANTS
from tests.campaign.scene import Company
from tests.campaign.verdict import RULES, Verdict

LEASE = 2.5  # long beside a hand-off, so that what the heartbeat makes up for comes late
SECONDS = 10.0
# Without faults, which would excuse what they do, but where a bug shows in nothing else.
WITHOUT_FAULTS: Mapping[str, Any] = {"only": ("none",)}
FOUND_BY: Mapping[str, tuple[set[str], Mapping[str, Any]]] = {
    "drop-leave": ({"standstill"}, WITHOUT_FAULTS),
    "forget-head-start": ({"fifo"}, {"only": ("flushall",), "pause": 1.0}),
    "hold-nothing": ({"limit"}, WITHOUT_FAULTS),
    "keep-used-place": ({"place"}, WITHOUT_FAULTS),
    "last-comes-first": ({"fifo"}, WITHOUT_FAULTS),
    "let-one-in": ({"full"}, WITHOUT_FAULTS),
    "lose-grant": ({"standstill"}, WITHOUT_FAULTS),
    "no-session-check": (
        {"standstill", "limit"},
        {"only": ("requests-lost",), "pause": 1.0, "seconds": 20.0},
    ),
    "no-tombstone": ({"ending"}, {"only": ("replies-lost", "cut"), "pause": 0.4}),
    "no-window": ({"window"}, {"only": ("flushall",), "pause": 1.0}),
    "skip-renewal": ({"limit", "cause"}, WITHOUT_FAULTS),
    "sync-lists-nothing": ({"limit", "cause", "fifo"}, {"only": ("cut",), "pause": 0.6}),
}
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
    expected, options = FOUND_BY[name]
    rules: set[str] = set()
    for seed in range(1, MAX_CAMPAIGNS + 1):
        _, verdict = await judged(company, seed=seed, plant=name, **options)
        rules = {violation.rule for violation in verdict.violations}
        if rules & expected:
            return
    pytest.fail(f"{name} was not found; violated were {rules or 'no rules'}")


@pytest.mark.parametrize("name", sorted(PLANTS))
def test_every_planted_text_is_in_its_script(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the workers fail, and that is seen only in the slow tests."""
    monkeypatch.setattr(scripts, "source_of", scripts.source_of)  # restored afterwards, as these are
    monkeypatch.setattr(core.QueueCore, "leave", core.QueueCore.leave)
    monkeypatch.setattr(LocalTicket, "listed", LocalTicket.listed)
    try:
        PLANTS[name]()
        for script in scripts.INSTANCE_SCRIPTS:
            assert scripts.load(script).source
    finally:
        scripts.load.cache_clear()


def test_every_planted_bug_has_its_rule() -> None:
    """And every rule is one of the checker's."""
    assert FOUND_BY.keys() == PLANTS.keys()
    assert set().union(*(rules for rules, _ in FOUND_BY.values())) <= set(RULES)


@pytest.mark.slow
async def test_without_a_planted_bug_nothing_is_found(company: Company) -> None:
    """A campaign as long, with faults that are seen to have happened."""
    campaign, verdict = await judged(company, seed=1, only=("cut",), pause=0.4)
    assert verdict.violations == []
    assert campaign.faults["cut"] == campaign.felt["cut"] > 0
    assert verdict.outcomes["released"] > 100


@pytest.mark.slow
async def test_a_campaign_in_a_cluster() -> None:
    """Masters are replaced and slots move, and no rule is broken."""
    kinds = ("fail-over", "master-killed", "slot-moved", "cut")
    with Company(cluster=True) as company:
        campaign, verdict = await judged(company, seed=1, only=kinds)
    assert verdict.violations == []
    assert all(campaign.felt[name] for name in kinds)
    assert verdict.outcomes["released"] > 100
