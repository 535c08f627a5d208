"""A batch that leaves room: many jobs, three at once over all processes, and users go first.

    python examples/batch_job.py --redis redis://localhost:6379

Nightly documents and users' documents share one line for a service that can do three at once. A user's
document gets a head start of an hour, so it is next although the batch came first. Nothing starves: a
nightly document that has waited for an hour is served before a user who comes then.

Run it twice at the same time: there are still three at once. If you stop one with Ctrl-C, its slots are
free at once; if you kill it, after the lease. The line stores no jobs, so the next run does the rest.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # run by its path, only its own folder is on it

from genesis import Queue
from genesis.queue import RedisBackend

LIMIT = 3
SERVICE_SECONDS = 0.05
HOUR = 3600.0


async def convert(document: str) -> str:
    """The service that can do three at once."""
    await asyncio.sleep(SERVICE_SECONDS)
    return document.replace(".docx", ".pdf")


async def main(url: str, documents: int) -> None:
    done: list[str] = []
    begun = asyncio.Event()
    async with Queue(RedisBackend(url) if url else None) as queue:
        nightly = queue.semaphore("converter", max_concurrent=LIMIT)
        users = queue.semaphore("converter", max_concurrent=LIMIT, head_start=HOUR)

        async def job(document: str) -> None:
            async with nightly(item_id=document):
                done.append(await convert(document))
            if len(done) >= min(LIMIT, documents):
                begun.set()

        async def user(document: str) -> None:
            await begun.wait()  # this one comes when the batch is under way
            async with users(item_id=document) as slot:
                done.append(await convert(document))
            print(f"{document} waited {slot.waited:.2f} s behind a batch of {documents}")

        await asyncio.gather(*(job(f"{n}.docx") for n in range(documents)), user("urgent.docx"))
    print(f"{len(done)} documents; urgent.pdf was number {done.index('urgent.pdf') + 1}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A batch with a limit over all processes.")
    parser.add_argument("--redis", default="", metavar="URL", help="share the limit; else in here")
    parser.add_argument("--documents", type=int, default=30)
    options = parser.parse_args()
    if options.documents < 1:
        parser.error("--documents must be at least 1")  # the user waits until the batch has begun
    asyncio.run(main(options.redis, options.documents))
