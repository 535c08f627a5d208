"""The first call of an instance in a queue enters by a sync, and learns what others learn."""

from __future__ import annotations

from genesis.backends.protocol import EnterRequest
from genesis.queue import RedisBackend
from tests.support.redis_server import RedisServer


async def test_the_first_call_of_an_instance_learns_its_position(redis_server: RedisServer) -> None:
    """With a head start it stands before others, not at the end of the line."""
    async with RedisBackend(redis_server.url) as near, RedisBackend(redis_server.url) as far:
        near.listen(lambda event: None)
        far.listen(lambda event: None)
        calls = [await near.enter(EnterRequest("q", f"call-{n}")) for n in range(4)]
        assert [call.position for call in calls] == [0, 1, 2, 3]
        first = await far.enter(EnterRequest("q", "first", head_start=60.0))
        assert (first.position, first.depth) == (1, 4)
        last = await far.enter(EnterRequest("q", "last"))
        assert (last.position, last.depth) == (5, 5)
        far.leave(first.ticket)
        far.leave(last.ticket)
        for call in calls[::-1]:
            near.leave(call.ticket)
