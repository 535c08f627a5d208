"""The numbers that the metrics of a host must show."""

from __future__ import annotations

from typing import NamedTuple

from prometheus_client.parser import text_string_to_metric_families

from genesis.observability import names

__all__ = ["Numbers", "numbers"]


class Numbers(NamedTuple):
    """Of one queue, over all processes of a host."""

    granted: int = 0
    cancelled: int = 0
    timeout: int = 0
    released: int = 0
    lost: int = 0
    entered: int = 0
    waiting: int = 0
    holding: int = 0
    failures: int = 0
    """Of the telemetry itself."""


def numbers(text: str, queue_id: str) -> Numbers:
    """Read them from an exposition."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == names.TELEMETRY_ERRORS:
                found["failures"] = found.get("failures", 0) + sample.value
            elif sample.labels.get("queue") == queue_id:
                kind = sample.labels.get("outcome", "")
                field = f"{sample.name} {kind}".strip()
                found[field] = found.get(field, 0) + sample.value

    def of(name: str, outcome: str = "") -> int:
        return int(found.get(f"{name} {outcome}".strip(), 0))

    waits = f"{names.WAIT_SECONDS}_count"
    return Numbers(
        granted=of(waits, "granted"),
        cancelled=of(waits, "cancelled"),
        timeout=of(waits, "timeout"),
        released=of(f"{names.HOLD_SECONDS}_count", "released"),
        lost=of(f"{names.HOLD_SECONDS}_count", "lost"),
        entered=of(f"{names.POSITION}_count"),
        waiting=of(names.WAITING),
        holding=of(names.HOLDING),
        failures=int(found.get("failures", 0)),
    )
