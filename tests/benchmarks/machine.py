"""What the figures were taken on, without which they say nothing."""

from __future__ import annotations

import os
import platform
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from tests.support.redis_server import find_redis_server, server_version

__all__ = ["describe"]

PACKAGES = (
    "redis",
    "hiredis",
    "anyio",
    "opentelemetry-sdk",
    "prometheus_client",
    "structlog",
)


def describe() -> dict[str, Any]:
    found: dict[str, Any] = {
        "when": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "redis-server": ".".join(map(str, server_version(find_redis_server()))),
        "load": [round(figure, 2) for figure in os.getloadavg()],
    }
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
