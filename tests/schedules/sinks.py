"""Queues with and without the observing layer, and the counts that the layer must have."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from prometheus_client import CollectorRegistry

from genesis import Queue
from genesis.observability import Telemetry
from tests.conftest import WithoutLayer
from tests.schedules.calls import Call, Violation
from tests.schedules.loop import VirtualLoop

__all__ = ["BareQueue", "Clock", "Sinks"]


class BareQueue(Queue):
    """A Queue without the observing layer."""

    def __init__(self, backend: Any, telemetry: Telemetry) -> None:
        super().__init__(backend, telemetry=telemetry)
        self._backend = WithoutLayer(backend)  # type: ignore[assignment]


class Clock:
    """The clock of a `Telemetry` that outlives a schedule's loop."""

    def __init__(self) -> None:
        self.loop: VirtualLoop | None = None

    def __call__(self) -> float:
        return self.loop.now if self.loop is not None else 0.0


class Sinks:
    """A `Telemetry` for many schedules, and the counts that it must have at their end."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.registry = CollectorRegistry()
        self.telemetry = Telemetry(self.registry, clock=self.clock)
        self.expected: dict[str, int] = {}  # wait observations by outcome, and refusals

    def expect(self, calls: Iterable[Call]) -> int:
        """Add the endings of these calls to the expected counts. Returns how many of them entered."""
        counted = 0
        for call in calls:
            outcome = "granted" if call.slot is not None else call.ending
            outcome = {"unavailable": "error"}.get(outcome, outcome)
            if outcome == "timeout" and call.plan.timeout == 0:
                outcome = "refused"  # a refusal is no wait
            if outcome != "mismatch" and call.began:
                counted += 1
                self.expected[outcome] = self.expected.get(outcome, 0) + 1
        return counted

    def check(self) -> None:
        """Each ticket has exactly one wait observation, with its outcome, and a hold if granted."""
        waits: dict[str, float] = {}
        holds = errors = present = 0.0
        for metric in self.registry.collect():
            for sample in metric.samples:
                if sample.name == "genesis_queue_wait_seconds_count" and sample.value:
                    outcome = sample.labels["outcome"]
                    waits[outcome] = waits.get(outcome, 0.0) + sample.value
                elif sample.name == "genesis_queue_refused_total" and sample.value:
                    waits["refused"] = waits.get("refused", 0.0) + sample.value
                elif sample.name == "genesis_queue_hold_seconds_count":
                    holds += sample.value
                elif sample.name == "genesis_telemetry_errors_total":
                    errors += sample.value
                elif sample.name in ("genesis_queue_waiting", "genesis_queue_holding"):
                    present += abs(sample.value)
        if waits != self.expected:
            raise Violation(f"waits were counted as {waits}, but ended as {self.expected}")
        if holds != self.expected.get("granted", 0):
            raise Violation(f"{holds:g} holds were counted of {self.expected.get('granted', 0)}")
        if present or errors:
            raise Violation(f"gauges show {present:g} calls after the end; {errors:g} sinks failed")
