"""A virtual environment for each library, kept in the user's cache."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

__all__ = ["PEERS", "Unavailable", "interpreter"]

_REPOSITORY = Path(__file__).parents[3]

PEERS = {
    # This library before its Redis backend was rebuilt; from this repository's history.
    "commit ba0ea4a": (
        f"git+file://{_REPOSITORY}@ba0ea4a#egg=genesis[otel]",
        "hiredis",
    ),
    # The newest that was there, and the last one that works over Redis.
    "genesis 2026.10.18": ("genesis==2026.10.18", "hiredis"),
    "genesis 2026.6.17": ("genesis==2026.6.17", "hiredis"),
    "py-redis-semaphore 0.2.0": ("py-redis-semaphore==0.2.0", "hiredis"),
    "self-limiters 0.4.0": ("self-limiters==0.4.0",),
    "redsync 2.0.0": ("redsync==2.0.0", "hiredis"),
    "redis-py Lock": ("redis[hiredis]>=8.0",),
}
"""What is installed for each, and uvloop; with hiredis, where it uses redis-py."""


class Unavailable(Exception):  # noqa: N818 - a state of affairs
    """A library cannot be installed here; the text says why."""


def interpreter(peer: str) -> Path:
    """The interpreter of the environment in which `peer` is installed, made if it is not there yet."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "genesis-benchmarks"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    home = cache / f"{peer.replace(' ', '-')}-{version}"
    python, mark = home / "bin" / "python", home / "installed"
    wanted = "\n".join(PEERS[peer])
    if mark.exists() and mark.read_text() == wanted:
        return python
    home.parent.mkdir(parents=True, exist_ok=True)
    _run([sys.executable, "-m", "venv", "--clear", str(home)])
    _run(
        [
            str(python),
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "uvloop",
            *PEERS[peer],
        ]
    )
    mark.write_text(wanted)
    return python


def _run(command: list[str]) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
    except subprocess.CalledProcessError as error:
        last = (error.stderr or error.stdout).strip().splitlines()[-1:]
        raise Unavailable("cannot be installed: " + "".join(last)[:120]) from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"cannot be installed: {error}"[:120]) from error
