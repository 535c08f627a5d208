"""The Lua scripts: one atomic operation each, with `library.lua` included where a script says so."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib import resources
from typing import NamedTuple

__all__ = ["INSTANCE_SCRIPTS", "Script", "load", "source_of"]

INSTANCE_SCRIPTS = ("beat", "enter", "entries", "evict", "leave", "limit", "places", "stats", "sync")
_INCLUDE = "-- @include library\n"


class Script(NamedTuple):
    name: str
    source: bytes
    sha: bytes


def source_of(name: str) -> str:
    """The text of one script, as Redis gets it."""
    folder = resources.files("genesis.backends.redis") / "lua"
    text = (folder / f"{name}.lua").read_text()
    return text.replace(_INCLUDE, (folder / "library.lua").read_text())


@cache
def load(name: str) -> Script:
    """Read one script; its SHA-1 is the name under which Redis keeps it."""
    source = source_of(name).encode()
    return Script(name, source, hashlib.sha1(source).hexdigest().encode())
