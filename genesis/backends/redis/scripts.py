"""Loads the Lua scripts, one per atomic operation, and resolves their `@include` lines."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib import resources
from typing import NamedTuple

INSTANCE_SCRIPTS = ("beat", "enter", "entries", "evict", "leave", "limit", "stats", "sync")


class Script(NamedTuple):
    name: str
    source: bytes
    sha: bytes


def source_of(name: str) -> str:
    """The text of one script as it is sent to Redis."""
    folder = resources.files("genesis.backends.redis") / "lua"
    text = (folder / f"{name}.lua").read_text()
    for part in ("preface", "library"):
        text = text.replace(f"-- @include {part}\n", (folder / f"{part}.lua").read_text())
    return text


@cache
def load(name: str) -> Script:
    """Read one script and compute the SHA-1 by which EVALSHA names it."""
    source = source_of(name).encode()
    return Script(name, source, hashlib.sha1(source).hexdigest().encode())
