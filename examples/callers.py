"""Callers for `examples/fastapi_app.py`: they call, wait, talk or hang up, until you stop the program.

    python examples/callers.py http://localhost:8000 [http://localhost:8001 ...]

Each call goes to a random instance. `sales` gets half as many calls as its slots can handle, so a call
sometimes waits for a moment; `support` gets few calls. With LOAD=0.95 a line forms.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
import uuid
from contextlib import suppress
from typing import NamedTuple
from urllib.parse import urlsplit

TALK_SECONDS = 4.0  # the mean, as of the other times
HASTY = 0.2  # the ratio of callers who hang up if they are not answered soon, and talk briefly
PATIENCE_SECONDS = 8.0
HASTY_TALK_SECONDS = 0.5


class Callers(NamedTuple):
    queue_id: str
    between: float
    """Mean seconds between two calls."""


LOAD = float(os.environ.get("LOAD", "0.5"))  # the utilization of the two slots of sales
GROUPS = (Callers("sales", TALK_SECONDS / (2 * LOAD)), Callers("support", TALK_SECONDS / 0.3))


async def call(url: str, queue_id: str) -> None:
    """One caller: asks for a slot, talks, or hangs up when its patience ends."""
    site = urlsplit(url)
    talk, patience = random.expovariate(1 / TALK_SECONDS), None
    if random.random() < HASTY:
        talk = HASTY_TALK_SECONDS
        patience = random.expovariate(1 / PATIENCE_SECONDS) + talk
    request = (
        f"GET /call/{uuid.uuid4()}?queue={queue_id}&seconds={talk:.3f} HTTP/1.1\r\n"
        f"Host: {site.netloc}\r\nConnection: close\r\n\r\n"
    )
    try:
        reader, writer = await asyncio.open_connection(site.hostname, site.port or 80)
        try:
            writer.write(request.encode())
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(reader.read(), patience)
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()
    except OSError as error:
        print(f"{queue_id}: {error}", file=sys.stderr)


async def keep_calling(urls: list[str], callers: Callers) -> None:
    calls: set[asyncio.Task[None]] = set()
    while True:
        await asyncio.sleep(random.expovariate(1 / callers.between))
        task = asyncio.create_task(call(random.choice(urls), callers.queue_id))
        calls.add(task)
        task.add_done_callback(calls.discard)


async def main(urls: list[str]) -> None:
    await asyncio.gather(*(keep_calling(urls, callers) for callers in GROUPS))


if __name__ == "__main__":
    if not sys.argv[1:]:
        sys.exit(__doc__)
    with suppress(KeyboardInterrupt):
        asyncio.run(main(sys.argv[1:]))
