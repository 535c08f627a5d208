"""The observing layer: what happens to a call, as metrics, traces and log events."""

from genesis.observability.telemetry import Telemetry

__all__ = ["Telemetry"]
