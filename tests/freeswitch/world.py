"""FreeSWITCH, instances of the example, and what tests ask of them."""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

from examples.freeswitch.settings import Settings
from examples.freeswitch_outbound import Service, serve
from genesis import Queue
from tests.conftest import Spans
from tests.freeswitch.switch import Channel, Phones
from tests.support.waiting import wait_until

__all__ = [
    "FIRST", "LENGTHS", "MUSIC", "SETTINGS", "SORRY", "World", "outcomes", "stand", "talks", "waits",
]  # fmt: skip

MUSIC, SORRY, FIRST = "tone_stream://music", "tone_stream://sorry", "user/1000"
SETTINGS = Settings(
    agents=(FIRST,),
    timeout=60.0,
    music=MUSIC,
    sorry=SORRY,
    ring_seconds=2,
    pause_seconds=0.05,
    reply_seconds=5.0,
    sorry_seconds=5.0,
    linger_seconds=20.0,  # so that whatever waits for it fails
)
LENGTHS = {SORRY: 0.1}


class World:
    """FreeSWITCH and instances of the example."""

    def __init__(self, queue: Queue) -> None:
        self.queue = queue
        self.phones = Phones(user_1000="answers")
        self.stack = AsyncExitStack()
        self.channels: list[Channel] = []

    async def instance(self, queue: Queue | None = None, **settings: Any) -> Service:
        serving = serve(queue or self.queue, replace(SETTINGS, **settings), port=0)
        return await self.stack.enter_async_context(serving)

    def call(self, name: str, *instances: Service | int, **options: Any) -> Channel:
        ports = [one if isinstance(one, int) else one.port for one in instances]
        channel = Channel(name, ports, self.phones, {**LENGTHS, **options.pop("lengths", {})})
        self.channels.append(channel)
        return channel.start()


async def stand(queue: Queue, waiting: int, in_use: int) -> None:
    async def stands() -> bool:
        stats = await queue.stats("agents")
        return (stats.waiting, stats.in_use) == (waiting, in_use)

    await wait_until(stands, f"{waiting} wait and {in_use} hold")


async def talks(channel: Channel, phone: str = FIRST) -> None:
    await wait_until(lambda: channel.talks_with == phone, f"{channel.uuid} talks with {phone}")


async def waits(channel: Channel) -> None:
    await wait_until(lambda: channel.hears == [MUSIC], f"{channel.uuid} hears music")


def outcomes(spans: Spans, kind: str, item_id: str) -> list[str]:
    """Of the line's waits or holds of a call, in order."""
    return [
        span.attributes["genesis.outcome"]
        for span in spans.named(kind)
        if span.attributes["genesis.item_id"] == item_id
        and span.attributes["genesis.queue_id"] == "agents"
    ]
