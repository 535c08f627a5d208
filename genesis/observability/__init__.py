"""The observing layer: what happens to a call, as metrics, traces and log events."""

from genesis.observability.server import ObservabilityServer, asgi_app
from genesis.observability.setup import Observability, set_up
from genesis.observability.telemetry import Telemetry

__all__ = ["Observability", "ObservabilityServer", "Telemetry", "asgi_app", "set_up"]
