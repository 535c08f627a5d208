"""The FreeSWITCH example: what callers hear, and which slots are held."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from examples.freeswitch.settings import Settings, sentence, with_ring_timeout
from examples.freeswitch_outbound import parse_arguments, settings_of
from genesis.queue import WaitStatus
from tests.conftest import Spans
from tests.freeswitch.switch import Channel
from tests.freeswitch.world import FIRST, LENGTHS, MUSIC, SORRY, World, outcomes, stand, talks, waits
from tests.support.waiting import wait_until

# The usual ----------------------------------------------------------------------------------------


async def test_a_call_is_served_and_the_next_moves_up(world: World, spans: Spans) -> None:
    """Music, then the agent; when the agent hangs up, the call ends and the next has its turn."""
    service = await world.instance()
    first = world.call("first", service)
    await talks(first)
    second = world.call("second", service)
    third = world.call("third", service)
    for channel in (second, third):
        await waits(channel)
    await stand(world.queue, waiting=2, in_use=1)
    first.agent_hangs_up()
    assert await first.over() == "NORMAL_CLEARING"
    assert not any("app-name: hangup" in command for command in first.commands)
    await wait_until(lambda: second.talks_with or third.talks_with, "one has its turn")
    for channel in (second, third):
        await talks(channel)
        channel.hang_up()
        await channel.over()
    await stand(world.queue, waiting=0, in_use=0)
    assert outcomes(spans, "hold", "first") == ["released"]


async def test_a_hang_up_makes_room_at_once(world: World, spans: Spans) -> None:
    """Of a waiting caller, of one whose agent's phone rings, and of one who talks."""
    world.phones.known[FIRST] = "rings"
    service = await world.instance(ring_seconds=2000)
    first = world.call("first", service)
    await wait_until(lambda: world.phones.calls[FIRST] == 1, "the phone rings")
    second = world.call("second", service)
    await waits(second)
    third = world.call("third", service)
    await waits(third)
    await stand(world.queue, waiting=2, in_use=1)
    second.hang_up()
    await stand(world.queue, waiting=1, in_use=1)
    world.phones.known[FIRST] = "answers"
    first.hang_up()
    await talks(third)
    third.hang_up()
    await stand(world.queue, waiting=0, in_use=0)
    assert outcomes(spans, "wait", "second") == ["cancelled"]


async def test_granted_is_logged_once(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """By the library; the example adds what the library cannot know."""
    caplog.set_level(logging.INFO)
    channel = world.call("caller", await world.instance())
    await talks(channel)
    channel.hang_up()
    await channel.over()
    events = [(one.name, getattr(one, "event", one.getMessage())) for one in caplog.records]
    assert not [name for name, event in events if name == "freeswitch" and "granted" in event]


async def test_each_agent_is_called_by_one_call_at_a_time(world: World) -> None:
    """Three agents, ten calls: each agent talks with one at a time, and nobody is left out."""
    agents = ("user/1", "user/2", "user/3")
    world.phones.known = dict.fromkeys(agents, "answers")
    service = await world.instance(agents=agents)
    channels = [world.call(f"call-{number}", service) for number in range(10)]
    for served in range(10):
        talking: list[Channel] = []

        def enough(talking: list[Channel] = talking, least: int = min(3, 10 - served)) -> bool:
            talking[:] = [channel for channel in channels if channel.talks_with]
            return len(talking) >= least

        await wait_until(enough, "as many talk as there are agents")
        talking[0].agent_hangs_up()
        await talking[0].over()
    assert world.phones.at_once == dict.fromkeys(agents, 1)


def test_the_limit_says_how_many_calls_an_agent_takes() -> None:
    """One each, unless there are to be more calls at once than dial strings."""
    assert (Settings(agents=("a", "b")).calls_at_once, Settings(agents=("a", "b")).calls_per_agent) == (
        2,
        1,
    )
    assert Settings(agents=("a", "b"), limit=1).calls_per_agent == 1
    assert Settings(agents=("group",), limit=5).calls_per_agent == 5


# Agents who are not reached --------------------------------------------------------------------------


@pytest.mark.parametrize("failing", ["busy", "rings", "not registered"])
async def test_an_agent_who_is_not_reached_costs_no_caller(failing: str, world: World) -> None:
    """The next agent is called, and the caller is not hung up on."""
    world.phones.known = {"user/1": failing, "user/2": "answers"}
    service = await world.instance(agents=("user/1", "user/2"))
    channel = world.call("caller", service)
    await talks(channel, "user/2")
    assert not channel.cause
    channel.hang_up()


async def test_nobody_reached_keeps_the_caller_ahead(world: World) -> None:
    """With music between the rounds; later callers are not served first."""
    world.phones.known = {}
    service = await world.instance(rounds=1000)
    first = world.call("first", service)
    await wait_until(lambda: first.hears == [MUSIC, MUSIC], "a round was in vain")
    second = world.call("second", service)
    await waits(second)
    await wait_until(lambda: len(first.hears) > 3, "some more rounds")
    assert not any("bridge" in command for command in second.commands)
    world.phones.known = {FIRST: "answers"}
    await talks(first)
    for channel in (first, second):
        channel.hang_up()


async def test_nobody_reached_is_an_error(world: World, spans: Spans) -> None:
    """After some rounds an announcement: a line without agents does not keep callers for ever."""
    world.phones.known = {}
    channel = world.call("caller", await world.instance(rounds=2))
    assert await channel.over() == "NORMAL_TEMPORARY_FAILURE"
    assert channel.hears[-1] == SORRY
    assert outcomes(spans, "hold", "caller") == ["error"]


def test_the_ring_timeout_joins_the_options_of_the_dial_string() -> None:
    assert with_ring_timeout("user/1", 20) == "{originate_timeout=20}user/1"
    assert with_ring_timeout("{a=b}user/1", 20) == "{originate_timeout=20,a=b}user/1"


# Who is sent away ------------------------------------------------------------------------------------


async def test_an_announcement_is_played_to_its_end(world: World) -> None:
    """The hang-up waits for it, though FreeSWITCH would run it within the announcement."""
    service = await world.instance(timeout=0.05)
    async with world.queue.slot("agents", max_concurrent=1):
        channel = world.call("caller", service)
        started = asyncio.get_running_loop().time()
        await wait_until(lambda: channel.hears[-1:] == [SORRY], "the announcement begins")
        assert await channel.over() == "NORMAL_TEMPORARY_FAILURE"
        assert asyncio.get_running_loop().time() - started >= LENGTHS[SORRY]


@pytest.mark.parametrize("overflow", ["", "6000 XML default"])
async def test_a_full_line_sends_newcomers_elsewhere(overflow: str, world: World) -> None:
    """To another extension if there is one, else an announcement and busy."""
    service = await world.instance(max_waiting=1, overflow=overflow)
    async with world.queue.slot("agents", max_concurrent=1):
        first = world.call("first", service)
        await stand(world.queue, waiting=1, in_use=1)
        second = world.call("second", service)
        if overflow:
            await wait_until(lambda: second.extension == "6000", "the call is elsewhere")
            await second.settled()
            assert not second.cause
        else:
            assert await second.over() == "USER_BUSY"
            assert second.hears[-1] == SORRY
        await stand(world.queue, waiting=1, in_use=1)
        first.hang_up()


@pytest.mark.parametrize("overflow", ["", "6000 XML default"])
async def test_a_key_leaves_the_line(overflow: str, world: World, spans: Spans) -> None:
    """That key only, and only while the caller waits."""
    service = await world.instance(leave_key="1", overflow=overflow)
    talking = world.call("talking", service)
    await talks(talking)
    channel = world.call("caller", service)
    await waits(channel)
    await stand(world.queue, waiting=1, in_use=1)
    talking.press("1")
    channel.press("2")
    channel.press("1")
    await stand(world.queue, waiting=0, in_use=1)
    if overflow:
        await wait_until(lambda: channel.extension == "6000", "the call is elsewhere")
    else:
        assert await channel.over() == "NORMAL_CLEARING"
    assert outcomes(spans, "wait", "caller") == ["cancelled"]
    assert talking.talks_with
    talking.hang_up()


# Music and speech ------------------------------------------------------------------------------------


async def test_a_star_does_not_end_the_music(world: World) -> None:
    service = await world.instance()
    async with world.queue.slot("agents", max_concurrent=1):
        channel = world.call("caller", service)
        await stand(world.queue, waiting=1, in_use=1)
        await wait_until(lambda: channel.music_plays, "music")
        for digit in "1*#":
            channel.press(digit)
        await channel.settled()
        assert channel.hears == [MUSIC]
        assert channel.music_plays
        channel.hang_up()


async def test_music_that_ends_starts_again(world: World) -> None:
    """A file is as good as an endless stream."""
    service = await world.instance()
    async with world.queue.slot("agents", max_concurrent=1):
        channel = world.call("caller", service, lengths={MUSIC: 0.05})
        await wait_until(lambda: channel.hears == [MUSIC] * 3, "music begins again")
        channel.hang_up()


async def test_position_and_estimate_are_spoken(world: World) -> None:
    """Within the music, again when the position changes, and a bridge does not wait for the end."""
    service = await world.instance(speech="say:{}", speak_every=60.0, speak_at_least=0.05)
    async with world.queue.slot("agents", max_concurrent=1):
        first = world.call("first", service, lengths={"say:You are number 1 in line.": 0.05})
        await stand(world.queue, waiting=1, in_use=1)
        second = world.call("second", service, lengths={"say:You are number 2 in line.": 0.05})
        await wait_until(lambda: "say:You are number 2 in line." in second.hears, "the position")
        first.hang_up()
        await wait_until(lambda: "say:You are number 1 in line." in second.hears, "the new position")
    # That announcement never ends by itself.
    await talks(second)
    second.agent_hangs_up()
    await second.over()


def test_the_sentence_has_position_and_estimate() -> None:
    assert sentence(WaitStatus(2, 3, 0.0, None)) == "You are number 2 in line."
    assert sentence(WaitStatus(2, 3, 0.0, 61.0)).endswith("Your wait is about 2 minutes.")
    assert sentence(WaitStatus(1, 3, 0.0, 0.0)).endswith("Your wait is about 1 minute.")


def test_the_command_line_says_what_a_call_meets() -> None:
    """The options that the example promises are there, with the settings' defaults."""
    options = parse_arguments(["--redis", "redis://localhost", "--agent", "a", "--agent", "b"])
    assert (options.redis, options.host, options.port) == ("redis://localhost", "127.0.0.1", 9696)
    assert settings_of(options) == Settings(agents=("a", "b"))
    assert settings_of(parse_arguments([])) == Settings()


@pytest.mark.parametrize("bad", [{"limit": 0}, {"max_waiting": -1}, {"timeout": -1}, {"queue_id": ""}])
async def test_bad_settings_are_an_error_at_the_start(bad: dict[str, Any], world: World) -> None:
    """And not one for every call."""
    with pytest.raises(ValueError, match=r"queue|limit"):
        await world.instance(**bad)
