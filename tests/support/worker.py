"""A worker process with one instance, and `Worker`, by which tests drive, kill and stop it.

The process reads one JSON command per line from stdin and writes one JSON event per line to stdout.
Every event has `event` and `at`, time.monotonic_ns, which is one clock for all processes of a machine.

    {"do": "enter", "item": i, "limit": n, "timeout": s, "hold": s}    without hold: until told to leave
        -> {"event": "entering"}, then "granted" with token and waited, then "leaving" and "left";
           or "failed" with error, the name of its class, and text
    {"do": "leave", "item": i}
    {"do": "lost", "item": i}       -> {"event": "lost", "value": whether slot.lost}
    {"do": "close"}                 closes the queue and ends the process
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, TypeVar

from prometheus_client import CollectorRegistry

from genesis import Queue
from genesis.observability import Telemetry
from genesis.queue import RedisBackend
from genesis.queue.slot import Slot
from tests.support.waiting import wait_until

__all__ = ["Process", "Worker", "say"]

Event = dict[str, Any]
W = TypeVar("W", bound="Worker")


class Worker:
    """Drives one worker process. Use with `async with`."""

    module = "tests.support.worker"

    def __init__(self, url: str, lease: float, queue_id: str, *more: str) -> None:
        self._arguments = (url, str(lease), queue_id, *more)
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None
        self._ended = False
        self.events: list[Event] = []
        self.instance_id = ""

    async def __aenter__(self: W) -> W:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            self.module,
            *self._arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        self._reader = asyncio.create_task(self._read())
        self.instance_id = (await self.event("ready"))["instance_id"]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._signal(signal.SIGCONT)
        if not self._ended:
            self._signal(signal.SIGKILL)
        assert self._process is not None
        await self._process.wait()
        assert self._reader is not None
        await self._reader
        assert self._process.stdin is not None
        self._process.stdin.close()

    def tell(self, do: str, **arguments: Any) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": do, **arguments}).encode() + b"\n")

    def enter(self, item: str, **arguments: Any) -> None:
        self.tell("enter", item=item, **arguments)

    def find(self, event: str, item: str = "") -> Event | None:
        """The last such event, if any."""
        return next(
            (
                found
                for found in reversed(self.events)
                if found["event"] == event and (not item or found["item"] == item)
            ),
            None,
        )

    async def event(self, event: str, item: str = "", timeout: float = 20.0) -> Event:
        """Wait for the first such event."""
        where = f"{event} of {item or 'the worker'}"
        await wait_until(lambda: self.find(event, item), where, timeout)
        found = self.find(event, item)
        assert found is not None
        return found

    async def lost(self, item: str) -> bool:
        """`slot.lost` in the process, at this moment."""
        before = len(self.events)
        self.tell("lost", item=item)
        await wait_until(lambda: self._since(before, "lost", item), f"an answer about {item}")
        return bool(self._since(before, "lost", item)[0]["value"])

    async def close(self) -> None:
        """Let it close its queue and end."""
        self.tell("close")
        assert self._process is not None
        await asyncio.wait_for(self._process.wait(), 20)
        self._ended = True

    def kill(self) -> int:
        """SIGKILL. Returns the time, by time.monotonic_ns."""
        self._signal(signal.SIGKILL)
        return time.monotonic_ns()

    def stop(self) -> None:
        self._signal(signal.SIGSTOP)

    def carry_on(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: int) -> None:
        assert self._process is not None
        if self._process.returncode is None:
            os.kill(self._process.pid, number)

    def _since(self, index: int, event: str, item: str) -> list[Event]:
        return [e for e in self.events[index:] if e["event"] == event and e["item"] == item]

    async def _read(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            if line.endswith(b"\n"):
                self.events.append(json.loads(line))


class Process:
    """Runs in the worker process."""

    def __init__(self, queue: Queue, queue_id: str) -> None:
        self._queue = queue
        self._queue_id = queue_id
        self._slots: dict[str, Slot] = {}
        self._leave: dict[str, asyncio.Event] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._commands: dict[str, Callable[[dict[str, Any]], None]] = {
            "enter": self._enter,
            "leave": lambda command: self._leave[command["item"]].set(),
            "lost": lambda command: say(
                "lost", item=command["item"], value=self._slots[command["item"]].lost
            ),
        }

    async def run(self, **facts: Any) -> None:
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=1 << 20)
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        say("ready", instance_id=self._queue.instance_id, **facts)
        while line := await reader.readline():
            command = json.loads(line)
            if command["do"] == "close":
                break
            self._commands[command["do"]](command)
        await self._queue.close()

    def _enter(self, command: dict[str, Any]) -> None:
        self._leave[command["item"]] = asyncio.Event()
        task = asyncio.create_task(self._call(command))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _call(self, command: dict[str, Any]) -> None:
        item = command["item"]
        say("entering", item=item)
        try:
            async with self._queue.slot(
                self._queue_id,
                item_id=item,
                max_concurrent=command.get("limit"),
                timeout=command.get("timeout"),
            ) as slot:
                self._slots[item] = slot
                say("granted", item=item, token=slot.fencing_token, waited=slot.waited)
                if "hold" in command:
                    await asyncio.sleep(command["hold"])
                else:
                    await self._leave[item].wait()
                say("leaving", item=item, lost=slot.lost)
            say("left", item=item)
        except Exception as error:
            say("failed", item=item, error=type(error).__name__, text=str(error))


def say(event: str, **fields: Any) -> None:
    line = json.dumps({"event": event, "at": time.monotonic_ns(), **fields})
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


async def main() -> None:
    url, lease, queue_id = sys.argv[1:]
    queue = Queue(
        RedisBackend(url, lease=float(lease)), telemetry=Telemetry(registry=CollectorRegistry())
    )
    await Process(queue, queue_id).run()


if __name__ == "__main__":
    asyncio.run(main())
