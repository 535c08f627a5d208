"""The id of an instance."""

from __future__ import annotations

import os
import re
import secrets
import socket


def new_instance_id() -> str:
    """`host-pid-random`, unique for every backend object.

    The random part is needed because a restarted process can have the pid of the one that died: with
    the same id, its heartbeat would keep the dead process' tickets alive. The id contains only
    characters that need no escaping in a Redis channel, a label or a log line.
    """
    host = re.sub(r"[^A-Za-z0-9.-]", "-", socket.gethostname())[:64]
    return f"{host}-{os.getpid()}-{secrets.token_hex(4)}"


class Identity:
    """The id of a backend object, renewed in a forked child."""

    def __init__(self) -> None:
        self._pid, self.id = os.getpid(), new_instance_id()

    @property
    def forked(self) -> bool:
        """Whether the process forked after the id was taken."""
        return os.getpid() != self._pid

    def renew_if_forked(self) -> None:
        if self.forked:
            self._pid, self.id = os.getpid(), new_instance_id()
