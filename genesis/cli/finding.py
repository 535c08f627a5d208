"""`Finding`: a result of the doctor. Its codes are stable, for use in scripts."""

from __future__ import annotations

from typing import Literal, NamedTuple, TypeAlias

__all__ = ["RUNBOOKS", "Finding", "Severity", "finding"]

Severity: TypeAlias = Literal["critical", "warning"]

RUNBOOKS = {
    "BACKEND_UNAVAILABLE": "GenesisBackendUnavailable",
    "STALE_INSTANCE": "GenesisInstanceDown",
    "STUCK_HEAD": "GenesisStuckHead",
    "LIMITS_DIFFER": "GenesisLimitDisagreement",
    "OLD_HOLD": "GenesisOldHold",
    "PAUSED": "GenesisPaused",
}
"""By code, the runbook of the alert with the same cause, if there is one."""


class Finding(NamedTuple):
    severity: Severity
    code: str
    message: str
    fix: str
    runbook: str | None
    """The name of the runbook, if any."""


def finding(severity: Severity, code: str, message: str, fix: str) -> Finding:
    return Finding(severity, code, message, fix, RUNBOOKS.get(code))
