"""The FreeSWITCH example: calls that go elsewhere, instances that stop or die, and many calls."""

from __future__ import annotations

import asyncio
import itertools
import random
import re
from dataclasses import replace

import pytest
from prometheus_client import CollectorRegistry

from examples import freeswitch_outbound
from examples.freeswitch import call
from examples.freeswitch_outbound import serve
from genesis import Queue
from genesis.observability import Telemetry
from genesis.queue import RedisBackend
from tests.conftest import LEASE, Spans, assert_nothing_kept
from tests.freeswitch.switch import Channel, Phones
from tests.freeswitch.world import (
    FIRST,
    LENGTHS,
    MUSIC,
    SETTINGS,
    SORRY,
    World,
    outcomes,
    stand,
    talks,
    waits,
)
from tests.support.redis_server import RedisServer, free_port
from tests.support.waiting import wait_until

# Transfers, instances that stop or die ----------------------------------------------------------------


@pytest.mark.parametrize("when", ["talking", "waiting"])
async def test_a_transferred_call_is_left_alone(when: str, world: World) -> None:
    """Its slot or place is free at once; the call goes on, and the connection with it."""
    service = await world.instance()
    other = world.call("other", service) if when == "waiting" else None
    if other is not None:
        await talks(other)
    channel = world.call("caller", service)
    await (talks(channel) if when == "talking" else waits(channel))
    channel.transfer("6000")
    await stand(world.queue, waiting=0, in_use=0 if other is None else 1)
    await channel.settled()
    assert not channel.dead
    assert not channel.cause
    channel.hang_up()
    await channel.over()
    assert not any("hangup\n" in command for command in channel.commands)
    if other is not None:
        other.hang_up()
        await other.over()


async def test_a_call_that_is_transferred_while_a_phone_rings_is_left_alone(world: World) -> None:
    """The bridge has failed then, but no other agent is called for a call that is elsewhere."""
    world.phones.known = {"user/1": "rings", "user/2": "answers"}
    service = await world.instance(agents=("user/1", "user/2"), ring_seconds=2000)
    channel = world.call("caller", service)
    await wait_until(lambda: world.phones.calls["user/1"] == 1, "the phone rings")
    sent = len(channel.commands)
    channel.transfer("6000")
    await stand(world.queue, waiting=0, in_use=0)
    await channel.settled()
    assert channel.commands[sent:] == []


async def test_a_call_that_is_transferred_hears_no_more_of_our_music(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The transfer ends the music; that it ended is no reason to begin it again."""
    monkeypatch.setattr(call, "LEAST_MUSIC", 0.0)
    service = await world.instance()
    async with world.queue.slot("agents", max_concurrent=1):
        channel = world.call("caller", service)
        await wait_until(lambda: channel.music_plays, "music")
        await channel.settled()
        sent = len(channel.commands)
        channel.transfer("6000")
        await stand(world.queue, waiting=0, in_use=1)
        await channel.settled()
        assert channel.commands[sent:] == []


async def test_sigterm_hands_waiters_over_with_their_places(
    redis_server: RedisServer, world: World
) -> None:
    """Conversations finish; waiting callers go to the other instance and keep their places."""
    queues = [
        await world.stack.enter_async_context(
            Queue(
                RedisBackend(redis_server.url, lease=LEASE),
                telemetry=Telemetry(registry=CollectorRegistry()),
            )
        )
        for _ in range(2)
    ]
    stopped, other = [await world.instance(queue) for queue in queues]
    talking = world.call("talking", stopped, other)
    await talks(talking)
    waiting = []
    for number, dialplan in enumerate([(stopped, other), (other,), (stopped, other), (other,)]):
        waiting.append(world.call(f"waiting-{number}", *dialplan))
        await stand(queues[1], waiting=number + 1, in_use=1)
    draining = asyncio.ensure_future(stopped.drain(20.0))
    await wait_until(lambda: waiting[2].connections == 2, "the other instance has it")
    await stand(queues[1], waiting=4, in_use=1)
    places = [await queues[1].position("agents", channel.uuid) for channel in waiting]
    assert places == [1, 2, 3, 4]
    assert talking.talks_with
    late = world.call("late", stopped, other)  # the first refuses connections
    await stand(queues[1], waiting=5, in_use=1)
    talking.agent_hangs_up()
    assert await draining == 0
    for channel in (*waiting, late):
        await talks(channel)
        channel.agent_hangs_up()
        await channel.over()


async def test_callers_of_a_dead_instance_keep_their_place(world: World) -> None:
    """FreeSWITCH takes a waiting call on to the other instance; there its head start counts."""
    dead, other = await world.instance(), await world.instance()
    async with world.queue.slot("agents", max_concurrent=1):
        channel = world.call("old", dead, other)
        await stand(world.queue, waiting=1, in_use=1)
        await wait_until(lambda: channel.music_plays, "music")
        newcomer = world.call("new", other)
        await stand(world.queue, waiting=2, in_use=1)
        channel.clock += 60_000_000
        channel.lose_handler()
        await wait_until(lambda: channel.connections == 2, "the other instance has it")
        await stand(world.queue, waiting=2, in_use=1)
        assert await world.queue.position("agents", "old") == 1
        newcomer.hang_up()
        channel.hang_up()


@pytest.mark.parametrize("before", ["another application", "an earlier wait"])
async def test_time_outside_the_line_is_no_head_start(before: str, world: World) -> None:
    """Neither a menu that answered the call, nor a wait that a transfer had ended."""
    dead, other = await world.instance(), await world.instance()
    async with world.queue.slot("agents", max_concurrent=1):
        older = world.call("older", other)
        await stand(world.queue, waiting=1, in_use=1)
        channel = world.call("late", dead, other)
        channel.clock += 120_000_000
        if before == "another application":
            channel.answered, channel.answer_state = channel.clock - 60_000_000, "answered"
        else:
            channel.variables[call.SINCE] = str(channel.clock - 60_000_000)
            channel.profile = channel.clock - 30_000_000
        await stand(world.queue, waiting=2, in_use=1)
        await wait_until(lambda: channel.music_plays, "music")
        assert await world.queue.position("agents", "late") == 2
        channel.lose_handler()
        await wait_until(lambda: channel.connections == 2, "the other instance has it")
        await stand(world.queue, waiting=2, in_use=1)
        assert await world.queue.position("agents", "late") == 2
        older.hang_up()
        channel.hang_up()


async def test_a_call_whose_instance_died_before_it_spoke_goes_on(world: World) -> None:
    """Because of the dialplan: no handler has set anything on this call."""
    dialplan = re.findall(r'application="(\w+)" data="(.*)"', freeswitch_outbound.__doc__ or "")
    dead = await asyncio.start_server(lambda _, writer: writer.transport.abort(), "127.0.0.1", 0)
    channel = world.call("caller", dead.sockets[0].getsockname()[1], await world.instance())
    for _, argument in itertools.takewhile(lambda action: action[0] == "set", dialplan):
        name, _, value = argument.partition("=")
        channel.variables[name] = value
    await talks(channel)
    assert channel.connections == 2
    channel.hang_up()
    await channel.over()
    dead.close()


@pytest.mark.parametrize("end", ["too long", "stopped", "killed"])
async def test_who_hears_the_announcement_is_not_in_line_again(end: str, world: World) -> None:
    """FreeSWITCH plays it to its end and hangs up, whether or not this instance waits for that."""
    service = await world.instance(timeout=0.05, sorry_seconds=0.05 if end == "too long" else 5.0)
    other = await world.instance()
    async with world.queue.slot("agents", max_concurrent=1):
        channel = world.call("caller", service, other, lengths={SORRY: 0.3})
        await wait_until(lambda: channel.hears[-1:] == [SORRY], "the announcement begins")
        await channel.settled()
        if end == "stopped":
            await service.close()
        elif end == "killed":
            channel.lose_handler()
        assert await channel.over() == "NORMAL_TEMPORARY_FAILURE"
        assert channel.connections == 1
        assert channel.hears == [MUSIC, SORRY]


async def test_a_conversation_outlives_its_controller(world: World) -> None:
    """Nobody is torn from an agent, and FreeSWITCH ends the call when the agent hangs up."""
    service, other = await world.instance(), await world.instance()
    channel = world.call("caller", service, other)
    await talks(channel)
    channel.lose_handler()
    await stand(world.queue, waiting=0, in_use=0)
    assert channel.talks_with == FIRST
    channel.agent_hangs_up()
    assert await channel.over() == "NORMAL_CLEARING"
    assert channel.connections == 1


async def test_an_agent_of_a_dead_instance_still_talks(world: World) -> None:
    """Its slots are free, but a phone without call waiting is busy; the next agent is called."""
    world.phones.known = {"user/1": "answers one", "user/2": "answers"}
    agents = ("user/1", "user/2")
    dead, other = await world.instance(agents=agents), await world.instance(agents=agents)
    talking = world.call("talking", dead)
    await talks(talking, "user/1")
    talking.lose_handler()
    await stand(world.queue, waiting=0, in_use=0)
    channel = world.call("caller", other)
    await talks(channel, "user/2")
    assert talking.talks_with == "user/1"
    for one in (talking, channel):
        one.agent_hangs_up()
        await one.over()


async def test_a_dead_instance_without_another_is_a_hang_up(world: World) -> None:
    """Not music for ever: the dialplan's last action."""
    service = await world.instance()
    async with world.queue.slot("agents", max_concurrent=1):
        channel = world.call("caller", service, free_port())
        await waits(channel)
        await stand(world.queue, waiting=1, in_use=1)
        await service.close()
        assert await channel.over() == "NORMAL_TEMPORARY_FAILURE"


async def test_a_call_while_redis_is_away_hears_the_announcement(
    world: World, telemetry: Telemetry
) -> None:
    """After music, once the entering has failed; it is not left without a word."""
    backend = RedisBackend(f"redis://127.0.0.1:{free_port()}", lease=LEASE)
    queue = await world.stack.enter_async_context(Queue(backend, telemetry=telemetry))
    channel = world.call("caller", await world.instance(queue))
    assert await channel.over() == "NORMAL_TEMPORARY_FAILURE"
    assert channel.hears == [MUSIC, SORRY]


async def test_a_caller_waits_for_redis_as_long_as_the_lease(
    own_redis: RedisServer, world: World, telemetry: Telemetry, spans: Spans
) -> None:
    """Then its place is lost, and it hears the announcement."""
    backend = RedisBackend(own_redis.url, lease=LEASE)
    queue = await world.stack.enter_async_context(Queue(backend, telemetry=telemetry))
    service = await world.instance(queue)
    talking = world.call("talking", service)
    await talks(talking)
    channel = world.call("caller", service)
    await stand(queue, waiting=1, in_use=1)
    own_redis.kill()
    assert await channel.over() == "NORMAL_TEMPORARY_FAILURE"
    assert channel.hears == [MUSIC, SORRY]
    assert outcomes(spans, "wait", "caller") == ["error"]
    assert talking.talks_with
    talking.hang_up()


async def test_a_large_channel_variable_is_no_reason_to_hang_up(world: World) -> None:
    service = await world.instance()
    channel = world.call("caller", service)
    channel.variables["big"] = "x" * 300_000
    await talks(channel)
    channel.hang_up()
    await channel.over()


# Many calls ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["memory", "redis"])
async def test_a_hundred_calls_never_exceed_the_limit(
    kind: str, request: pytest.FixtureRequest, telemetry: Telemetry
) -> None:
    """100 calls at once, of whom every fifth hangs up in the line: never more than 5 talk, all end."""
    backend = None
    if kind == "redis":
        server: RedisServer = request.getfixturevalue("redis_server")
        backend = RedisBackend(server.url, lease=LEASE)
    agents = [f"user/{number}" for number in range(5)]
    phones = Phones()
    phones.known = dict.fromkeys(agents, "answers")
    served = 0

    async def caller(number: int, port: int) -> None:
        nonlocal served
        dice = random.Random(number)
        channel = Channel(f"call-{number}", [port], phones, LENGTHS).start()
        if number % 5 == 4:
            await wait_until(lambda: channel.hears, "music or an agent")
        else:
            await wait_until(lambda: channel.talks_with, "an agent", timeout=100)
            served += 1
            assert sum(phones.calls.values()) <= 5
            for _ in range(dice.randint(1, 50)):
                await asyncio.sleep(0)
        channel.hang_up()
        await channel.over()

    async with Queue(backend, telemetry=telemetry) as queue:
        async with serve(queue, replace(SETTINGS, agents=agents), port=0) as service:
            await asyncio.gather(*(caller(number, service.port) for number in range(100)))
            await stand(queue, waiting=0, in_use=0)
        await assert_nothing_kept(queue)
    assert served == 80
    assert max(phones.at_once.values()) == 1
