"""What `real_time.py` makes of the alerts that fired."""

from __future__ import annotations

from tests.dashboards.real_time import Fault, Firing, Run, table


def firing(alert: str, job: str, first: float, last: float, **labels: str) -> Firing:
    return Firing(alert, {"job": job, **labels}, first, last)


def test_an_alert_is_put_down_to_the_last_fault_there_and_to_its_queue_s_own() -> None:
    run = Run(1.0)
    run.faults += [
        Fault("killed", "died", "", 100, 200),
        Fault("frozen", "died", "", 300, 340),
        Fault("full", "lines", "full", 100, 500),
        Fault("sink raises", "lines", "", 100, 160),
    ]
    fired = [
        firing("GenesisReclaims", "died", 120, 180, queue="fragile"),
        firing("GenesisReclaims", "died", 330, 900, queue="frozen"),
        firing("GenesisRefusals", "lines", 400, 650, queue="full"),
        firing("GenesisTelemetryErrors", "lines", 110, 170, sink="logs"),
        firing("GenesisReclaims", "steady", 120, 180, queue="sales"),
    ]
    rows, unexplained = table(run, fired, 900.0)
    assert rows[2:] == [
        "| killed | 100 s | GenesisReclaims () | 20 s | -20 s |",
        "| full | 400 s | GenesisRefusals () | 300 s | 150 s |",
        "| sink raises | 60 s | GenesisTelemetryErrors () | 10 s | 10 s |",
        "| frozen | 40 s | GenesisReclaims () | 30 s | fires at the end of the run, 560 s later |",
    ]
    assert [each.labels["job"] for each in unexplained] == ["steady"]
