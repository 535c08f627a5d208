"""The one connection on which an instance is woken."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from functools import partial

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import TimeoutError as RedisTimeoutError

from genesis.backends.redis.endpoint import Endpoint
from genesis.backends.redis.link import backoff, end, reason_of

__all__ = ["Subscriber"]


class Subscriber:
    """Hands every message of one channel to `on_message`, straight from the reading loop.

    A message is a hint: the state in Redis is the truth, and each heartbeat compares. So nothing is
    done here about messages that were lost, but to say when that may have happened: `on_subscribed`
    is called each time the channel is (again) listened to.

    Args:
        choose: says where to, for each connection anew.
        channel: the instance's own.
        timeout: seconds within which the connection must stand.
        interval: seconds of quiet after which the connection is probed, and given up after as many
            again. What a half-open connection loses meanwhile, the heartbeats find.
        on_message: called with the message's text.
        on_subscribed: called each time the channel is listened to.
        on_down: called with a reason and a detail each time the connection broke.
    """

    def __init__(
        self,
        choose: Callable[[], Endpoint],
        channel: bytes,
        timeout: float,
        interval: float,
        on_message: Callable[[bytes], None],
        on_subscribed: Callable[[], None],
        on_down: Callable[[str, str], None],
    ) -> None:
        self._choose = choose
        self._channel = channel
        self._timeout = timeout
        self._interval = interval
        self._on_message = on_message
        self._on_subscribed = on_subscribed
        self._on_down = on_down
        self._listening: asyncio.Task[None] | None = None
        self._left: Callable[[], bool] = bool  # whether what is listened to is the wrong place by now
        self._task = asyncio.get_running_loop().create_task(
            self._run(), name="genesis-redis-subscriber"
        )

    def move_if_left(self) -> None:
        """Listen elsewhere if what is listened to lives, but is not where wake-ups are published."""
        if self._listening is not None and self._left():
            self._listening.cancel()

    async def close(self) -> None:
        await end(self._task)

    async def _run(self) -> None:
        failures = 0
        while True:
            endpoint = self._choose()
            connection = endpoint.connection()
            try:
                await asyncio.wait_for(self._subscribe(connection), self._timeout)
                failures = 0
                self._left = partial(endpoint.left, connection)
                self._on_subscribed()
                await self._listen_until_moved(connection)
            except Exception as error:  # whatever it is, it must not end the wake-ups in silence
                self._on_down(reason_of(error), f"subscriber: {endpoint.tell(error)}")
            finally:
                await connection.disconnect(nowait=True)
            await asyncio.sleep(backoff(failures))
            failures += 1

    async def _subscribe(self, connection: AbstractConnection) -> None:
        await connection.connect()  # type: ignore[no-untyped-call]
        packed = connection.pack_command("SUBSCRIBE", self._channel)
        await connection.send_packed_command(packed, check_health=False)
        await connection.read_response(timeout=math.inf, disconnect_on_error=False)

    async def _listen_until_moved(self, connection: AbstractConnection) -> None:
        listening = asyncio.get_running_loop().create_task(
            self._listen(connection), name="genesis-redis-listener"
        )
        self._listening = listening
        self.move_if_left()  # while it was subscribed
        try:
            await asyncio.wait({listening})
        finally:
            self._listening = None
            await end(listening)
        if not listening.cancelled():
            listening.result()

    async def _listen(self, connection: AbstractConnection) -> None:
        """Read messages; after `interval` quiet seconds ask for a sign of life, and wait as long."""
        probed = False
        while True:
            # RESP2, which the backend's pool asks for: [kind, channel, data], or [pong, data]
            message = await connection.read_response(timeout=self._interval, disconnect_on_error=False)
            if message is not None:
                probed = False
                if message[0] == b"message":
                    self._on_message(message[2])
            elif probed:
                raise RedisTimeoutError(f"no sign of life for {2 * self._interval:g} s")
            else:
                probed = True
                packed = connection.pack_command("PING")
                await connection.send_packed_command(packed, check_health=False)
