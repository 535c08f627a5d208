"""Loads the Lua scripts, one per atomic operation, and resolves their `@include` lines."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import cache
from importlib import resources
from typing import NamedTuple

INSTANCE_SCRIPTS = ("beat", "enter", "entries", "evict", "leave", "limit", "stats", "sync")


_NOTHING = b"return 1"


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


def loading() -> Iterator[tuple[bytes, ...]]:
    """The commands that load the scripts on a new connection, and show that they run.

    `CLIENT PAUSE WRITE`, which is part of a fail-over, holds scripts back, but not their loading. A
    connection made meanwhile must not replace one that is silent: it would be silent, too.
    """
    sources = [load(name).source for name in INSTANCE_SCRIPTS]
    for source in (*sources, _NOTHING):
        yield b"SCRIPT", b"LOAD", source
    yield b"EVALSHA", hashlib.sha1(_NOTHING).hexdigest().encode(), b"0"
