"""A worker process, seen from both ends of its pipes.

The parent writes one call a line, as JSON, to the worker's stdin. The worker writes its instance id in
its first line, and then one event a line, to stdout. It ends when its stdin is closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from examples.call_centre_day.day import Call, CannotRunError
from examples.call_centre_day.history import Event, Record

CLOSE_TIMEOUT = 10.0  # seconds that a worker has to end after its stdin is closed


class WorkerOptions(NamedTuple):
    """The value of `--worker`, as JSON."""

    name: str
    url: str
    lease: float
    metrics_port: int | None


async def read_calls() -> AsyncIterator[Call]:
    """In the worker: the calls to handle, until stdin is closed."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        yield Call(*json.loads(line))


def write_line(fields: Sequence[object]) -> None:
    """In the worker: send an event to the parent."""
    # One unbuffered write: the event has left this process before the next step of the call. Otherwise
    # a SIGKILL could take the record of a release along, although the slot was already given back.
    with contextlib.suppress(BrokenPipeError):
        os.write(1, json.dumps(fields).encode() + b"\n")


class Worker:
    """In the parent: a worker process that handles calls."""

    def __init__(self, program: Path, options: WorkerOptions, record: Record) -> None:
        self.name = options.name
        self.instance_id = ""
        self._command = [sys.executable, str(program), "--worker", json.dumps(options)]
        self._record = record
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None

    async def start(self, on_exit: Callable[[str], None]) -> None:
        """Start the process and wait until it has connected; `on_exit` gets its name when it ends.

        Raises:
            CannotRunError: the process ended before it had connected. It has written why to stderr.
        """
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(*self._command, stdin=pipe, stdout=pipe)
        assert process.stdout is not None
        self._process = process
        first = await process.stdout.readline()
        if not first:
            raise CannotRunError(f"instance {self.name} did not start")
        (self.instance_id,) = json.loads(first)
        self._reader = asyncio.create_task(self._read(process.stdout, on_exit))

    async def _read(self, events: asyncio.StreamReader, on_exit: Callable[[str], None]) -> None:
        while (line := await events.readline()).endswith(b"\n"):
            self._record(Event(*json.loads(line)))
        on_exit(self.name)

    def take(self, call: Call) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(call).encode() + b"\n")

    def kill(self) -> None:
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    async def close(self) -> None:
        """Let the process end by itself and read its remaining events; kill it after 10 s."""
        if self._process is None:
            return
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            await asyncio.wait_for(self._process.wait(), CLOSE_TIMEOUT)
        except asyncio.TimeoutError:
            self.kill()
            await self._process.wait()
        if self._reader is not None:
            await self._reader
