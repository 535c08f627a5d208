"""Every rule, alert and panel on real data: three instances of the example, Redis, real faults.

One run for all tests here (`live_run.py`, a minute and a half). What a healthy line shows must be there
before the first fault; what only a fault shows stands in `SHOWN_BY`, beside that fault.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from genesis.cli.doctor import RUNBOOKS
from tests.dashboards.live_run import VARIABLES, LiveRun, shortened
from tests.support.observers import Prometheus
from tests.support.telemetry_names import filled_in, load_dashboards, load_rules, panel_expressions

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

# What gives data, or another number than 0, only through a fault, and through which one.
SHOWN_BY = {
    "job_queue_state:genesis_queue_reclaimed:increase10m": "instance killed",
    "job_queue:genesis_queue_lost:increase10m": "instance stopped",
    "job_queue:genesis_queue_limit_disagreements:increase10m": "limits disagree",
    "job_instance_backend_reason:genesis_backend_disruptions:increase10m": "clock set back",
    "job_sink:genesis_telemetry_errors:increase10m": "sink raises",
    "GenesisServiceLevelBurn 15m": "slots exhausted",
    "GenesisServiceLevelBurn 1h": "slots exhausted",
    "GenesisServiceLevelBurn 6h": "slots exhausted",
    "GenesisAbandonRate": "slots exhausted",
    "GenesisOldestWait": "slots exhausted",
    "GenesisOccupancy": "slots exhausted",
    "GenesisReclaims": "instance killed",
    "GenesisInstanceDown": "instance killed",
    "GenesisLostLeases": "instance stopped",
    "GenesisLimitDisagreement": "limits disagree",
    "GenesisTelemetryErrors": "sink raises",
    "GenesisStuckHead": "clock set back",
    "GenesisBackendDisruptions": "clock set back",
    "GenesisBackendUnavailable": "redis stopped",
    "GenesisStaleSnapshot": "redis stopped",
    "GenesisPaused": "queue paused",
    "GenesisOldHold": "slots exhausted",
    "GenesisRefusals": "line full",
    "overview: Queues 13": "clock set back",  # stuck
    "overview: Alerts that fire 1": "slots exhausted",
    "overview: Operations that failed 1": "redis stopped",
    # No bar where nothing happened.
    "overview: Faults 1": "instance killed",
    "overview: Faults 2": "instance stopped",
    "overview: Faults 3": "redis stopped",
    "overview: Faults 4": "sink raises",
    "overview: Faults 5": "limits disagree",
    "overview: Redis: disruptions 1": "clock set back",
    "queue: Refused 1": "line full",
    "queue: Reclaimed and lost 1": "instance killed",
    "queue: Reclaimed and lost 2": "instance stopped",
    "queue: Waits of those who gave up 1": "slots exhausted",
}
# What another fault might show for a moment before: a stopped instance has calls, and no young
# heartbeat until its first one after that. The rule's `for` keeps the alert silent then.
ALSO_SHOWN_BY = {"GenesisStaleSnapshot": "instance stopped"}
# Too long for this run: a hold of a minute. The state "one slot stuck" of test_view.py has it.
NOT_SHOWN = {"overview: Queues 12"}

# Who may fire, and for which queue; "" for alerts that have none. Anything else is a false alarm.
TO_BLAME = {
    "GenesisServiceLevelBurn": {"busy", "cut off"},  # newcomers get errors while Redis is away
    "GenesisAbandonRate": {"busy"},
    "GenesisOccupancy": {"busy"},
    "GenesisOldestWait": {"busy", "stuck", "fragile"},  # their heads do wait for more than 3 s
    # A machine that is too slow for a lease of 2 s loses leases, and then these are right, wherever
    # there are calls: what is to blame is that machine.
    "GenesisReclaims": {"fragile", "stopped", "calm", "busy", "deployed", "steady", "paused", "stuck"},
    "GenesisLostLeases": {"stopped", "cut off", "calm", "busy", "deployed", "steady", "stuck"},
    "GenesisInstanceDown": {""},
    "GenesisPaused": {"paused"},
    "GenesisRefusals": {"full"},
    # Wherever a call is held for longer than 8 s.
    "GenesisOldHold": {"busy", "deployed", "fragile", "stopped", "stuck", "cut off", "full"},
    "GenesisLimitDisagreement": {"deployed"},
    "GenesisTelemetryErrors": {""},
    "GenesisStuckHead": {"stuck"},
    "GenesisBackendDisruptions": {""},
    "GenesisBackendUnavailable": {""},
    "GenesisStaleSnapshot": {"cut off"},
}
LATE = (
    12.0  # seconds after the end of a fault within which it must have shown: half a window, and slack
)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def run() -> AsyncIterator[LiveRun]:
    if not Prometheus.available():
        pytest.skip(Prometheus.MISSING)
    async with LiveRun() as live:
        await live.play()
        yield live


def expressions() -> Iterator[tuple[str, str]]:
    """Every rule and every panel's query: what it is called in `SHOWN_BY`, and the expression."""
    for rule in load_rules():
        window = rule.labels.get("window", "")
        yield f"{rule.name} {window}".strip(), shortened(rule.expression)
    for path, dashboard in load_dashboards().items():
        board = path.split("/")[-1].removesuffix(".json").removeprefix("genesis-")
        seen: dict[str, int] = {}
        for title, expression in panel_expressions(dashboard):
            seen[title] = seen.get(title, 0) + 1
            yield f"{board}: {title} {seen[title]}", filled_in(expression, VARIABLES)


def test_every_expression_returns_data(run: LiveRun) -> None:
    """Of rules and panels: in the calm before the first fault, or through the fault listed for it."""
    calm_until = min(fault.began for fault in run.faults.values())
    wrong = []
    known = dict(expressions())
    assert set(SHOWN_BY) | NOT_SHOWN <= set(known), (set(SHOWN_BY) | NOT_SHOWN) - set(known)
    for name, expression in known.items():
        if name in NOT_SHOWN:
            continue
        if name not in SHOWN_BY:
            at = run.first(expression)
            if at is None or at > calm_until:
                wrong.append(f"{name}: no data without a fault (first at {at}): {expression}")
            continue
        fault = run.faults[SHOWN_BY[name]]
        # An alert's expression gives nothing unless it is true, and its value might be 0 then.
        nothing = math.nan if name.startswith("Genesis") else 0.0
        at = run.first(expression, but_not=nothing)
        if at is None:
            wrong.append(f"{name}: not shown by {fault.name}: {expression}")
        elif not any(
            each.began - 0.5 <= at <= each.ended + LATE
            for each in (fault, run.faults[ALSO_SHOWN_BY.get(name, fault.name)])
        ):
            wrong.append(f"{name}: shown {at - fault.began:+.1f} s after {fault.name} began")
    print(f"{len(known)} expressions, {len(SHOWN_BY)} of them shown by a fault")
    assert not wrong, "\n".join(wrong)


def test_the_rules_were_evaluated_without_an_error(run: LiveRun) -> None:
    """Prometheus loaded every rule, and no evaluation failed, in health and in trouble."""
    rules = run.prometheus.rules()
    assert len(rules) == len(load_rules())
    assert [(rule["name"], rule.get("lastError")) for rule in rules if rule["health"] != "ok"] == []


def test_every_alert_fires_by_its_real_cause_and_clears(run: LiveRun) -> None:
    """Not before the fault. That it clears is what `play` waits for before it ends."""
    fired = run.fired()
    for name, fault in SHOWN_BY.items():
        if not name.startswith("Genesis"):
            continue
        alert, _, window = name.partition(" ")
        times = [
            (first, last)
            for labels, first, last in fired
            if labels["alertname"] == alert and labels.get("window", "") == window
        ]
        assert times, f"{name} has not fired"
        began = run.faults[fault].began
        first, last = min(t for t, _ in times), max(t for _, t in times)
        assert first >= began, f"{name} fired {began - first:.1f} s before {fault}"
        clear = run.ended - last
        print(f"{name}: {first - began:.1f} s after {fault}, clear {clear:.1f} s before the end")
    assert {rule.name for rule in load_rules() if rule.is_alert} == {
        name.split()[0] for name in SHOWN_BY if name.startswith("Genesis")
    }


def test_nothing_fires_for_a_queue_that_is_not_to_blame(run: LiveRun) -> None:
    """Calm, paused, full but unhurried and idle queues stay silent through everybody else's faults."""
    false = [
        (labels["alertname"], labels.get("queue", ""))
        for labels, _, _ in run.fired()
        if labels.get("queue", "") not in TO_BLAME[labels["alertname"]]
    ]
    assert not false


# By the code of the doctor: the fault that is its cause, and the alert that has the same one.
SAME_CAUSE = {
    "OLD_HOLD": ("slots exhausted", "GenesisOldHold"),
    "PAUSED": ("queue paused", "GenesisPaused"),
    "LIMITS_DIFFER": ("limits disagree", "GenesisLimitDisagreement"),
    "STALE_INSTANCE": ("instance killed", "GenesisInstanceDown"),
    "STUCK_HEAD": ("clock set back", "GenesisStuckHead"),
    "BACKEND_UNAVAILABLE": ("redis stopped", "GenesisBackendUnavailable"),
}


def test_the_doctor_and_the_alerts_agree(run: LiveRun) -> None:
    """Each cause that has a metric is found by the doctor and fires its alert, at one time."""
    assert {code: alert for code, (_, alert) in SAME_CAUSE.items()} == RUNBOOKS
    fired = run.fired()
    for code, (name, alert) in SAME_CAUSE.items():
        fault = run.faults[name]
        assert code in run.found[name], f"the doctor did not find {code}: {run.found[name]}"
        assert any(
            labels["alertname"] == alert and first <= fault.ended and last >= fault.began
            for labels, first, last in fired
        ), f"{alert} did not fire in {fault}"
