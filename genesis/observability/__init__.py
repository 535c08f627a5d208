"""The observing layer: metrics, traces and log events of every call."""

from genesis.observability.configure import Observability, configure
from genesis.observability.http import ObservabilityServer, asgi_app
from genesis.observability.telemetry import Telemetry

__all__ = ["Observability", "ObservabilityServer", "Telemetry", "asgi_app", "configure"]
