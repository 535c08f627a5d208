"""A fork server for worker processes: it has imported everything, and forks on request.

`python -m tests.campaign.forks` reads one JSON configuration per line from stdin, and forks a process
that runs `worker.run` with it. Its children are real processes, and do not end with it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from pathlib import Path
from subprocess import PIPE, Popen
from typing import Any

from tests.campaign import worker

__all__ = ["ForkServer", "find_libfaketime"]


class ForkServer:
    """Controls a fork server.

    Args:
        clock: a file for libfaketime with the offset of the children's wall clock; None leaves their
            clocks alone.
    """

    def __init__(self, clock: Path | None = None) -> None:
        environment = dict(os.environ)
        if clock is not None:
            library = find_libfaketime()
            assert library is not None
            environment |= {
                "LD_PRELOAD": library,
                "FAKETIME_TIMESTAMP_FILE": str(clock),
                "FAKETIME_NO_CACHE": "1",
                "FAKETIME_DONT_FAKE_MONOTONIC": "1",
                "DONT_FAKE_MONOTONIC": "1",
            }
        command = [sys.executable, "-m", "tests.campaign.forks"]
        self._process = Popen(command, stdin=PIPE, env=environment)

    def fork(self, config: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(config).encode() + b"\n")
        self._process.stdin.flush()

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def find_libfaketime() -> str | None:
    """The path of libfaketime (Debian's package libfaketime); None if it is not installed."""
    places = sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
    return str(places[0]) if places else None


def main() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # ended children leave no zombies
    while line := sys.stdin.buffer.readline():
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _live(json.loads(line))


def _live(config: dict[str, Any]) -> None:
    code = 1
    try:
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        worker.run(config)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
