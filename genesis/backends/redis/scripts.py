"""The Lua scripts: one atomic operation each, `line.lua` in front of every one."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib import resources
from typing import NamedTuple

__all__ = ["SCRIPT_NAMES", "Script", "load"]

SCRIPT_NAMES = (
    "enter",
    "entries",
    "evict",
    "heartbeat",
    "leave",
    "limit",
    "reap",
    "restore",
    "stats",
)


class Script(NamedTuple):
    name: str
    source: bytes
    sha: bytes


@cache
def load(name: str) -> Script:
    """Read one script; its SHA-1 is the name under which Redis keeps it."""
    folder = resources.files("genesis.backends.redis") / "lua"
    source = (folder / "line.lua").read_bytes() + (folder / f"{name}.lua").read_bytes()
    return Script(name, source, hashlib.sha1(source).hexdigest().encode())
