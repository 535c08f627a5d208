"""A finding of the doctor, and the codes that there are. Codes are stable: scripts may rely on them."""

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
"""The runbook of the alert that has the same cause, of those codes for which there is one."""


class Finding(NamedTuple):
    severity: Severity
    code: str
    message: str
    fix: str
    runbook: str | None
    """Its name; None if there is none."""


def finding(severity: Severity, code: str, message: str, fix: str) -> Finding:
    return Finding(severity, code, message, fix, RUNBOOKS.get(code))
