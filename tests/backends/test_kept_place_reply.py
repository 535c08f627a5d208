"""Kept places, and replies that are lost with the connection: the sync tells what became of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import pytest

from genesis.backends.protocol import BackendEvent, EnterRequest, EnterResult, Left
from genesis.exceptions import BackendUnavailableError
from genesis.queue import RedisBackend
from tests.support.redis_server import RedisServer
from tests.support.tcp_proxy import TcpProxy
from tests.support.waiting import wait_until


class Pair(NamedTuple):
    """Two instances; the commands of `far` pass through a proxy."""

    near: RedisBackend
    far: RedisBackend
    proxy: TcpProxy


@pytest.fixture
async def pair(redis_server: RedisServer) -> AsyncIterator[Pair]:
    async with (
        TcpProxy(redis_server.port) as proxy,
        RedisBackend(redis_server.url) as near,
        RedisBackend(proxy.url) as far,
    ):
        near.listen(lambda event: None)
        far.listen(lambda event: None)
        yield Pair(near, far, proxy)


async def left_behind(pair: Pair) -> tuple[EnterResult, EnterResult, EnterResult]:
    """A holder, a call whose place is kept, and one behind it. `far` is connected, and deaf."""
    calls = [await pair.near.enter(EnterRequest("q", name)) for name in ("holder", "dropped", "behind")]
    pair.near.leave(calls[1].ticket, keep_place=60.0)
    await pair.near.flush()
    await pair.far.ping()
    pair.proxy.relays[-1].deaf = True
    return calls[0], calls[1], calls[2]


@pytest.mark.parametrize("granted", [False, True])
async def test_a_place_that_was_taken_without_a_reply_is_known_as_resumed(
    pair: Pair, granted: bool
) -> None:
    """The reply is lost with the connection; the sync finds the ticket, which might hold by then."""
    near, far, proxy = pair
    holder, dropped, behind = await left_behind(pair)
    request = EnterRequest("q", "again", place_token=dropped.place_token)
    entering = asyncio.create_task(far.enter(request))

    async def waits() -> bool:
        return (await near.stats("q")).waiting == 2

    await wait_until(waits, "its enter was carried out")
    if granted:
        near.leave(holder.ticket)
        await near.flush()
    proxy.relays[-1].cut()
    result = await entering
    assert (result.grant is not None) == granted
    assert result.resumed
    for backend, call in ((far, result), (near, behind), (near, holder)):
        backend.leave(call.ticket)


async def test_a_call_that_fails_without_a_reply_does_not_use_up_its_place(pair: Pair) -> None:
    """Redis has given it the place, and only a later sync can say that nobody wants it."""
    near, far, proxy = pair
    holder, dropped, behind = await left_behind(pair)
    with pytest.raises(BackendUnavailableError):
        await far.enter(EnterRequest("q", "again", place_token=dropped.place_token, timeout=0.05))
    proxy.relays[-1].cut()
    await far.flush()
    last = await near.enter(EnterRequest("q", "last", place_token=dropped.place_token))
    assert last.resumed
    assert [entry.item_id for entry in await near.entries("q")] == ["holder", "last", "behind"]
    for call in (last, behind, holder):
        near.leave(call.ticket)


async def test_the_state_of_a_dropped_call_is_known_from_the_sync(
    redis_server: RedisServer,
) -> None:
    """It is granted a slot without knowing, and leaves: the slot is given back, the place kept."""
    left: list[Left] = []

    def note(event: BackendEvent) -> None:
        if isinstance(event, Left):
            left.append(event)

    async with (
        TcpProxy(redis_server.port) as proxy,
        RedisBackend(redis_server.url) as near,
        RedisBackend(proxy.url) as far,
    ):
        near.listen(lambda event: None)
        far.listen(note)
        holder = await near.enter(EnterRequest("q", "holder"))
        dropped = await far.enter(EnterRequest("q", "dropped"))
        assert dropped.position == 1
        relay = proxy.relays[-1]
        relay.hold()
        relay.deaf = True
        near.leave(holder.ticket)
        await near.flush()
        assert (await near.stats("q")).in_use == 1
        far.leave(dropped.ticket, keep_place=60.0)
        relay.cut()
        await wait_until(lambda: bool(left), "the sync has confirmed it")
        assert left[0].result.was == "holding"
        again = await near.enter(EnterRequest("q", "again", place_token=dropped.place_token))
        assert again.grant is not None
        assert again.resumed
        near.leave(again.ticket)


async def test_a_place_that_is_kept_again_by_a_late_sync_is_not_taken_twice(
    redis_server: RedisServer,
) -> None:
    """Its instance, which does not know that Redis has kept it, lists it once more."""
    async with (
        TcpProxy(redis_server.port) as proxy,
        RedisBackend(redis_server.url, lease=3.0) as near,
        RedisBackend(proxy.url, lease=3.0) as far,
    ):
        near.listen(lambda event: None)
        far.listen(lambda event: None)
        holder = await near.enter(EnterRequest("q", "holder"))
        dropped = await far.enter(EnterRequest("q", "dropped"))
        relay = proxy.relays[-1]
        relay.deaf = True
        far.leave(dropped.ticket, keep_place=0.1)
        client: Any = redis_server.client
        past = "genesis:queue:{q}:past"

        def is_kept() -> bool:
            return any(name.startswith("k ") for name in client.zrange(past, 0, -1))

        await wait_until(is_kept, "Redis has kept it")
        first = await near.enter(EnterRequest("q", "first", place_token=dropped.place_token))
        assert first.resumed
        (name,) = [each for each in client.zrange(past, 0, -1) if each.startswith("u ")]
        seconds, _ = client.time()
        assert client.zscore(past, name) / 1e6 > seconds + 500
        relay.cut()
        await far.flush()
        second = await near.enter(EnterRequest("q", "second", place_token=dropped.place_token))
        assert not second.resumed
        for each in (first, second, holder):
            near.leave(each.ticket)
