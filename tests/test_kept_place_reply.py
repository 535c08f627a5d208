"""A kept place whose `enter` was carried out, but not answered: the call learns that it has it."""

from __future__ import annotations

from genesis.backends.protocol import EnterRequest
from genesis.queue import RedisBackend
from tests.redis_server import RedisServer
from tests.tcp_proxy import TcpProxy
from tests.waiting import wait_until


async def test_a_place_that_was_taken_without_a_reply_is_known_as_resumed(
    redis_server: RedisServer,
) -> None:
    """The reply is lost with the connection, and the sync finds the ticket at the kept place."""
    async with (
        TcpProxy(redis_server.port) as proxy,
        RedisBackend(redis_server.url) as near,
        RedisBackend(proxy.url) as far,
    ):
        near.listen(lambda event: None)
        far.listen(lambda event: None)
        holder = await near.enter(EnterRequest("q", "holder"))
        dropped = await near.enter(EnterRequest("q", "dropped"))
        near.leave(dropped.ticket, keep_place=60.0)
        await near.flush()
        await far.ping()

        relay = proxy.relays[-1]
        relay.deaf = True
        request = EnterRequest("q", "again", place_token=dropped.place_token)
        entering = far._join("test").loop.create_task(far.enter(request))

        async def waits() -> bool:
            return (await near.stats("q")).waiting == 1

        await wait_until(waits, "its enter was carried out")
        relay.cut()
        result = await entering
        assert result.place_token.split()  # it waits
        assert result.resumed
        far.leave(result.ticket)
        near.leave(holder.ticket)
