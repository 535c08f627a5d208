"""A day of a call centre: each call waits in a queue for an agent, talks, and leaves.

    python examples/call_centre.py                      a generated day in memory, in a minute
    python examples/call_centre.py day.csv --speed 60   a recorded day, a minute of it a second
    python examples/call_centre.py --redis redis://localhost:6379 --instances 3
    python examples/call_centre.py --redis redis://localhost:6379 --instances 3 --kill-one-at 12:00

`CallCentre.handle` is what an application does with the queue. Everything else replays a day through
it: calls enter at their recorded times, hang up when their patience ends, and talk as long as recorded.
The limit of the queue is the number of agents on duty. With `--redis`, several worker processes share
one line, and `--kill-one-at` kills one of them (SIGKILL) in the middle of its calls.

It shows its progress. At the end it prints a table that compares this run with an ideal line (the same
day computed without delay), and whether each call ended once, the limit held, and FIFO order held.

Exit code: 0 if all three promises were kept, 1 if not, 2 if the day cannot be replayed. The package
`call_centre_day`, next to this file, replays and judges the day.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from prometheus_client import start_http_server

sys.path.insert(0, str(Path(__file__).parents[1]))  # a script run by path has only its own folder

from examples.call_centre_day.day import QUEUE, Call, CannotRunError, Day
from examples.call_centre_day.generated import generate_day
from examples.call_centre_day.history import Record, Recorder
from examples.call_centre_day.options import parse_arguments
from examples.call_centre_day.over_redis import replay_over_redis
from examples.call_centre_day.recorded import read_day
from examples.call_centre_day.replay import Replay
from examples.call_centre_day.report import headline, report
from examples.call_centre_day.worker import WorkerOptions, read_calls, write_line
from genesis import Queue
from genesis.exceptions import GenesisError
from genesis.queue import RedisBackend


class CallCentre:
    """Handles the calls of this process, each in a task of its own."""

    def __init__(self, name: str, queue: Queue, record: Record) -> None:
        self.name = name
        self._queue = queue
        self._step = Recorder(name, record)
        self._tasks: set[asyncio.Task[None]] = set()

    def take(self, call: Call) -> None:
        task = asyncio.create_task(self.handle(call))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def handle(self, call: Call) -> None:
        hang_up: asyncio.TimerHandle | None = None
        if call.patience is not None:  # the caller hangs up: the task is cancelled while it waits
            task = asyncio.current_task()
            assert task is not None
            hang_up = asyncio.get_running_loop().call_later(call.patience, task.cancel)
        # Recorded in the same iteration of the loop as the request, so that the records of this
        # process are in the order of entering.
        self._step("entering", call.call_id)
        try:
            async with self._queue.slot(QUEUE, item_id=call.call_id) as slot:
                if hang_up is not None:
                    hang_up.cancel()
                self._step("granted", call.call_id, token=slot.fencing_token, waited=slot.waited)
                await asyncio.sleep(call.talk)
                self._step("leaving", call.call_id, detail="lost" if slot.lost else "")
        except asyncio.CancelledError:
            self._step("abandoned", call.call_id)
        except GenesisError as error:
            self._step("failed", call.call_id, detail=str(error))
        else:
            self._step("left", call.call_id)

    async def close(self) -> None:
        """Cancel the calls that have not ended."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks)


def serve_metrics(port: int | None) -> None:
    if port is not None:
        try:
            start_http_server(port, addr="127.0.0.1")
        except OSError as error:
            raise CannotRunError(f"metrics cannot be served on port {port}: {error}") from None


async def play_in_memory(day: Day, options: argparse.Namespace) -> Replay:
    serve_metrics(options.metrics_port)
    async with Queue() as queue:
        replay = Replay(day, options.speed, queue)
        centre = CallCentre("1", queue, replay.record)
        await replay.run([centre])
        await centre.close()
    return replay


async def run_worker(options: WorkerOptions) -> None:
    """One of several processes that share the line through Redis; its calls come from stdin."""
    async with Queue(RedisBackend(options.url, lease=options.lease)) as queue:
        serve_metrics(options.metrics_port)
        centre = CallCentre(options.name, queue, write_line)
        write_line([queue.instance_id])
        async for call in read_calls():
            centre.take(call)
        await centre.close()


def run(options: argparse.Namespace) -> int:
    day = read_day(options.file, options.seed) if options.file else generate_day(options.seed)
    print(headline(day, options), flush=True)
    if options.redis:
        replay = asyncio.run(replay_over_redis(Path(__file__), day, options))
    else:
        replay = asyncio.run(play_in_memory(day, options))
    return 0 if report(day, replay, options.lease) else 1


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_arguments(arguments)
    try:
        if options.worker:
            # Ctrl-C reaches the whole process group; a worker ends when its stdin is closed.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            asyncio.run(run_worker(WorkerOptions(*json.loads(options.worker))))
            return 0
        return run(options)
    except (CannotRunError, GenesisError) as error:
        print(f"call_centre: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
