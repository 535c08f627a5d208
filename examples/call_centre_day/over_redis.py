"""Plays a day on several worker processes that share one line through Redis.

This process is the telephone network: it dispatches the calls to the workers in turn and watches the
line from outside.

A worker that stands still for longer than the lease loses its places in the line until it runs again,
which counts here as overtaking: on a very busy machine choose a longer `--lease`. The lease is in real
seconds, which at a high speed are a long time of the day: for `--kill-one-at` choose a shorter one.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
from pathlib import Path

from examples.call_centre_day.day import QUEUE, CannotRunError, Day
from examples.call_centre_day.options import kill_time
from examples.call_centre_day.replay import Replay
from examples.call_centre_day.worker import Worker, WorkerOptions
from genesis import Queue
from genesis.exceptions import GenesisError
from genesis.queue import RedisBackend


async def replay_over_redis(program: Path, day: Day, options: argparse.Namespace) -> Replay:
    """Play the day on `options.instances` processes, each started as `python PROGRAM --worker ...`.

    Raises:
        CannotRunError: the url is wrong, the queue is in use, or a worker did not start.
        GenesisError: Redis cannot be reached.
    """
    kill_at = None if options.kill_one_at is None else kill_time(options.kill_one_at, day)
    try:
        backend = RedisBackend(options.redis, lease=options.lease)
    except ValueError as error:
        raise CannotRunError(f"--redis {options.redis}: {error}") from None
    async with Queue(backend) as queue:
        stats = await queue.stats(QUEUE)
        if stats.waiting or stats.in_use:
            raise CannotRunError(
                f"the queue {QUEUE!r} is in use: {stats.waiting} wait and {stats.in_use} hold. "
                "Let that run end, or use another Redis database"
            )
        replay = Replay(day, options.speed, queue, options.lease, kill_at)
        workers: list[Worker] = []
        for number in range(options.instances):
            port = None if options.metrics_port is None else options.metrics_port + number
            settings = WorkerOptions(str(number + 1), options.redis, options.lease, port)
            workers.append(Worker(program, settings, replay.record))
        try:
            # All starts are awaited before the first failure is raised, so that `close` below finds
            # no process that is still starting.
            starts = [worker.start(replay.instance_exited) for worker in workers]
            for failure in await asyncio.gather(*starts, return_exceptions=True):
                if failure is not None:
                    raise failure
            await replay.run(workers)
        finally:
            await asyncio.gather(*(worker.close() for worker in workers))
            with contextlib.suppress(GenesisError):
                await queue.set_limit(QUEUE, None)
    return replay
