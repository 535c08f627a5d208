"""A batch that lets users go first: many jobs, three at once over all processes.

    python examples/batch_job.py --redis redis://localhost:6379

Nightly documents and users' documents share one line for a service that can convert three at once. A
user's document gets a head start of an hour, so it is served before the batch. Nothing starves: a
nightly document that has waited for an hour comes before a user's document that enters then.

Run it twice at the same time: there are still three conversions at once. If you stop one run with
Ctrl-C, its slots are free at once; if you kill it, after the lease. The line stores no jobs: what is
left, the next run must do.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # a script run by path has only its own folder

from genesis import Queue
from genesis.queue import RedisBackend

LIMIT = 3
SERVICE_SECONDS = 0.05
HOUR = 3600.0


async def convert(document: str) -> str:
    """The service, which can convert three documents at once."""
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
            await begun.wait()  # enter after the batch has started
            async with users(item_id=document) as slot:
                done.append(await convert(document))
            print(f"{document} waited {slot.waited:.2f} s behind a batch of {documents}")

        await asyncio.gather(*(job(f"{n}.docx") for n in range(documents)), user("urgent.docx"))
    print(f"{len(done)} documents; urgent.pdf was number {done.index('urgent.pdf') + 1}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A batch with a limit over all processes.")
    parser.add_argument("--redis", default="", metavar="URL", help="share the limit over processes")
    parser.add_argument("--documents", type=int, default=30)
    options = parser.parse_args()
    if options.documents < 1:
        parser.error("--documents must be at least 1")  # the user waits until the batch has begun
    asyncio.run(main(options.redis, options.documents))
