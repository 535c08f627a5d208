"""Callers for `examples/fastapi_app.py`: they call, wait, talk or hang up, until this is stopped.

    python examples/callers.py http://localhost:8000 [http://localhost:8001 ...]

Each call goes to any of the instances. `sales` gets half as many calls as its slots can take, so that
now and then somebody waits for a moment; `support` is quiet. With LOAD=0.95 a line forms.
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

TALK_SECONDS = 4.0  # on average, as are the others
HASTY = 0.2  # of the callers: they hang up if they are not answered soon, and have little to say
PATIENCE_SECONDS = 8.0
HASTY_TALK_SECONDS = 0.5


class Callers(NamedTuple):
    queue_id: str
    between: float
    """Seconds from one call to the next."""


LOAD = float(os.environ.get("LOAD", "0.5"))  # of the two slots of sales
GROUPS = (Callers("sales", TALK_SECONDS / (2 * LOAD)), Callers("support", TALK_SECONDS / 0.3))


async def call(url: str, queue_id: str) -> None:
    """One caller: asks for a slot, talks, and may hang up when patience ends."""
    site = urlsplit(url)
    talk, patience = random.expovariate(1 / TALK_SECONDS), None
    if random.random() < HASTY:
        talk = HASTY_TALK_SECONDS
        patience = random.expovariate(1 / PATIENCE_SECONDS) + talk
    request = (
        f"GET /call/{uuid.uuid4()}?queue={queue_id}&seconds={talk:.3f} HTTP/1.1\r\n"
        f"Host: {site.netloc}\r\nConnection: close\r\n\r\n"
    )
    reader, writer = await asyncio.open_connection(site.hostname, site.port or 80)
    try:
        writer.write(request.encode())
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(reader.read(), patience)
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


async def keep_calling(urls: list[str], callers: Callers) -> None:
    calls: set[asyncio.Task[None]] = set()
    while True:
        await asyncio.sleep(random.expovariate(1 / callers.between))
        calls.add(asyncio.create_task(call(random.choice(urls), callers.queue_id)))
        ended = {each for each in calls if each.done()}
        calls -= ended
        for each in ended:
            if (error := each.exception()) is not None:
                print(f"{callers.queue_id}: {error}", file=sys.stderr)


async def main(urls: list[str]) -> None:
    await asyncio.gather(*(keep_calling(urls, callers) for callers in GROUPS))


if __name__ == "__main__":
    if not sys.argv[1:]:
        sys.exit(__doc__)
    with suppress(KeyboardInterrupt):
        asyncio.run(main(sys.argv[1:]))
