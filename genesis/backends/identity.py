"""Who an instance is."""

from __future__ import annotations

import os
import re
import secrets
import socket

__all__ = ["new_instance_id"]


def new_instance_id() -> str:
    """`host-pid-random`, unique for every backend object.

    The random part is not decoration: a restarted process must never be taken for the one that
    died before it, or its heartbeat would keep alive what the dead one left. The characters are
    those that need no escaping in a Redis channel, a label and a log line.
    """
    host = re.sub(r"[^A-Za-z0-9.-]", "-", socket.gethostname())[:64]
    return f"{host}-{os.getpid()}-{secrets.token_hex(4)}"
