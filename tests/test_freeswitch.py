"""The FreeSWITCH example over real TCP, against scripted peers and recorded sessions."""

from __future__ import annotations

import asyncio
import os
import random
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest

from examples.freeswitch_outbound import (
    MAX_BODY,
    MAX_HEADER,
    CallEndedError,
    EslConnection,
    EslError,
    Frame,
    Settings,
    parse_arguments,
    read_frame,
    serve,
)
from genesis import Queue
from genesis.observability import Telemetry
from genesis.queue import RedisBackend
from tests.conftest import LEASE, Spans, assert_nothing_kept
from tests.redis_server import RedisServer
from tests.waiting import wait_until

SETTINGS = Settings(
    queue_id="agents",
    limit=1,
    timeout=60.0,
    agent="user/1000",
    reply_seconds=5.0,
    sorry_seconds=5.0,
    linger_seconds=60.0,  # so that whatever waits for it fails
    break_seconds=0.5,
)

# As they were on the wire, but for the headers left out.
CHANNEL_DATA = (
    "Event-Name: CHANNEL_DATA\nFreeSWITCH-IPv6: fd00%3A%3A2\n"
    "Event-Date-Local: 2026-11-23%2022%3A12%3A57\nChannel-Caller-ID-Number: sipp\n"
    "Channel-Unique-ID: {uuid}\nAnswer-State: ringing\nUnique-ID: {uuid}\n"
    "variable_current_application_data: 127.0.0.1%3A9696%20async%20full\n"
    "Content-Type: command/reply\nReply-Text: %2BOK%0A\nSocket-Mode: async\nControl: full\n\n"
)
DISCONNECT = (
    "Content-Type: text/disconnect-notice\nControlled-Session-UUID: {uuid}\n"
    "Content-Disposition: linger\nChannel-Name: sofia/internal/sipp@127.0.0.1:15999\n"
    "Linger-Time: -1\nContent-Length: 0\n\n"
)


def reply(text: str = "+OK") -> bytes:
    return f"Content-Type: command/reply\nReply-Text: {text}\n\n".encode()


def event(name: str, uuid: str, body: str = "", **headers: str) -> bytes:
    lines = [f"Event-Name: {name}", f"Unique-ID: {uuid}"]
    lines += [f"{key.replace('_', '-')}: {value}" for key, value in headers.items()]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    text = "\n".join(lines) + "\n\n" + body
    return f"Content-Length: {len(text)}\nContent-Type: text/event-plain\n\n{text}".encode()


class Peer:
    """One call as FreeSWITCH makes it: says what it is told to, and keeps what it was told."""

    def __init__(self, uuid: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.uuid = uuid
        self.reader = reader
        self.writer = writer
        self.heard: list[str] = []

    async def hear(self) -> str:
        command = (await asyncio.wait_for(self.reader.readuntil(b"\n\n"), 20)).decode()
        self.heard.append(command)
        return command

    def say(self, *frames: bytes) -> None:
        for frame in frames:
            self.writer.write(frame)

    def executed(self, application: str) -> None:
        self.say(event("CHANNEL_EXECUTE", self.uuid, Application=application))

    def complete(self, application: str) -> None:
        self.say(event("CHANNEL_EXECUTE_COMPLETE", self.uuid, Application=application))

    async def arrive(self) -> None:
        """Up to the caller hearing music."""
        assert await self.hear() == "connect\n\n"
        self.say(CHANNEL_DATA.format(uuid=self.uuid).encode())
        for what in ("linger", "myevents plain", "name: answer", "name: playback"):
            assert what in await self.hear()
            self.say(reply())
        self.executed("answer")
        self.complete("answer")
        self.executed("playback")

    async def be_bridged(self) -> None:
        """Up to the caller talking to the agent."""
        assert await self.hear() == f"api uuid_break {self.uuid} all\n\n"
        command = await self.hear()
        assert "execute-app-name: bridge" in command
        self.say(b"Content-Type: api/response\nContent-Length: 4\n\n+OK\n", reply())
        self.complete("playback")
        self.executed("bridge")
        self.say(event("CHANNEL_BRIDGE", self.uuid, Other_Leg_Unique_ID="agent"))

    def hang_up(self) -> None:
        """All that FreeSWITCH says at the end of a call."""
        self.say(
            event("CHANNEL_HANGUP", self.uuid, Hangup_Cause="NORMAL_CLEARING"),
            DISCONNECT.format(uuid=self.uuid).encode(),
            event("CHANNEL_HANGUP_COMPLETE", self.uuid, Hangup_Cause="NORMAL_CLEARING"),
        )

    async def closed(self) -> None:
        """Wait until the handler has closed the connection."""
        try:
            while await asyncio.wait_for(self.reader.read(4096), 20):
                pass
        except ConnectionError:
            pass

    def cut(self) -> None:
        self.writer.transport.abort()


Call = Callable[..., Awaitable[Peer]]


@pytest.fixture
async def waiting_line(telemetry: Telemetry) -> AsyncIterator[Queue]:
    async with Queue(telemetry=telemetry) as queue:
        yield queue
        await assert_nothing_kept(queue)


@pytest.fixture
async def call(waiting_line: Queue) -> AsyncIterator[Call]:
    """Makes a call to the handler; gives the peer's end of it."""
    peers: list[Peer] = []

    async with serve(waiting_line, SETTINGS, port=0) as port:

        async def make(uuid: str) -> Peer:
            peers.append(Peer(uuid, *await asyncio.open_connection("127.0.0.1", port)))
            return peers[-1]

        yield make
        for peer in peers:
            peer.writer.close()


async def stand(queue: Queue, waiting: int, in_use: int) -> None:
    async def stands() -> bool:
        stats = await queue.stats("agents")
        return (stats.waiting, stats.in_use) == (waiting, in_use)

    await wait_until(stands, f"{waiting} wait and {in_use} hold")


# The parser ----------------------------------------------------------------------------------------


def fed(data: bytes, *, end: bool = True) -> asyncio.StreamReader:
    reader = asyncio.StreamReader(limit=MAX_HEADER)
    reader.feed_data(data)
    if end:
        reader.feed_eof()
    return reader


async def test_frames_are_taken_apart() -> None:
    """A reply, the channel's data, a counted body, an event and an event with a body of its own."""
    nested = event("CUSTOM", "u", body="line one\n\nline two", Event_Subclass="a%3A%3Ab")
    data = reply("+OK will linger") + CHANNEL_DATA.format(uuid="u").encode()
    data += b"Content-Type: api/response\nContent-Length: 4\n\n+OK\n" + nested
    data += CHANNEL_DATA.format(uuid="u").replace("Content-Type: command/reply\n", "").encode()
    reader = fed(data)
    first, channel, answer, custom, untyped = [await read_frame(reader) for _ in range(5)]
    assert first == Frame(
        "command/reply",
        {"Content-Type": "command/reply", "Reply-Text": "+OK will linger"},
        b"",
    )
    assert channel.headers["variable_current_application_data"] == "127.0.0.1:9696 async full"
    assert channel.headers["FreeSWITCH-IPv6"] == "fd00::2"
    assert (answer.kind, answer.body) == ("api/response", b"+OK\n")
    assert (custom.headers["Event-Subclass"], custom.body) == ("a::b", b"line one\n\nline two")
    assert untyped.kind == "command/reply"


@pytest.mark.parametrize(
    "data",
    [
        b"\n\n",
        b"no colon\n\n",
        b": no name\n\n",
        b"Content-Type: api/response\nContent-Length: -1\n\n",
        b"Content-Type: api/response\nContent-Length: 1e3\n\n",
        b"Content-Type: api/response\nContent-Length: \xd9\xa3\n\n",
        b"Content-Type: api/response\nContent-Length: %d\n\n" % (MAX_BODY + 1),
        b"Content-Type: api/response\nContent-Length: " + b"9" * 5000 + b"\n\n",
        b"Content-Type: text/event-plain\n\n",
        b"Content-Type: text/event-plain\nContent-Length: 5\n\nhello",
        b"Content-Type: text/event-plain\nContent-Length: 22\n\nContent-Length: 9\n\nabc",
        b"X: " + b"x" * MAX_HEADER + b"\n\n",
    ],
)
async def test_a_malformed_frame_is_an_error(data: bytes) -> None:
    """Neither a header without a name nor a length that lies is waited for or believed."""
    with pytest.raises(EslError) as raised:
        await read_frame(fed(data + b"x" * 20))
    assert raised.type is EslError  # and not the connection's end, which is one, too


async def test_a_cut_at_any_byte_is_the_end() -> None:
    """Whatever byte of a frame the connection ends before, it is the end of the call."""
    whole = event("CHANNEL_ANSWER", "u", body="body")
    assert (await read_frame(fed(whole))).body == b"body"
    for length in range(len(whole)):
        with pytest.raises(CallEndedError):
            await read_frame(fed(whole[:length]))


async def test_replies_are_matched_by_order() -> None:
    """Each reply goes to its command, with events in between, and one that nobody awaited, too."""
    peers: asyncio.Queue[Peer] = asyncio.Queue()
    server = await asyncio.start_server(
        lambda reader, writer: peers.put_nowait(Peer("u", reader, writer)), "127.0.0.1", 0
    )
    ours = await asyncio.open_connection(*server.sockets[0].getsockname())
    connection = EslConnection(*ours, reply_seconds=5.0)
    reading = asyncio.ensure_future(connection.read())
    peer = await peers.get()
    said = [connection.say(f"api echo {number}") for number in range(4)]
    for number in range(4):
        assert await peer.hear() == f"api echo {number}\n\n"
        peer.say(event("HEARTBEAT", "u"))
        peer.say(b"Content-Type: api/response\nContent-Length: 1\n\n%d" % number)
    assert (await connection.answered(said[3])).body == b"3"
    assert [one.reply.result().body for one in said] == [b"0", b"1", b"2", b"3"]
    with pytest.raises(EslError, match="line break"):
        connection.say("api echo", "x\n\nexit")
    peer.cut()
    await reading
    with pytest.raises(CallEndedError):
        await connection.answered(connection.say("api echo late"))
    await connection.close()
    server.close()


# Recorded sessions ----------------------------------------------------------------------------------


class Line(NamedTuple):
    """One frame of a recorded session."""

    to_freeswitch: bool
    frame: bytes


def recorded(name: str) -> list[Line]:
    """A recorded session; the test is skipped on a machine that has none."""
    places = [Path(__file__).parents[2] / "shared" / "data"]
    if named := os.environ.get("GENESIS_SHARED_DATA"):
        places.insert(0, Path(named))
    for place in places:
        if (place / name).is_file():
            text = (place / name).read_text()
            parts = re.split(r"(?m)^--- (to|from) FreeSWITCH\n", text)[1:]
            pairs = zip(parts[::2], parts[1::2], strict=True)
            return [Line(way == "to", frame[:-1].encode()) for way, frame in pairs]
    pytest.skip(
        f"{name} is not in {places[-1]}; name the folder of the recorded FreeSWITCH sessions in "
        "GENESIS_SHARED_DATA"
    )


def essence(command: str) -> tuple[str, str]:
    """A command's first line, and the application that it executes."""
    application = re.search(r"execute-app-name: (\S+)", command)
    return command.split("\n")[0], application[1] if application else ""


def uuid_of(session: list[Line]) -> str:
    found = re.search(rb"(?m)^Unique-ID: (\S+)$", session[1].frame)
    assert found
    return found[1].decode()


async def play(peer: Peer, lines: list[Line], chunks: random.Random | None) -> None:
    """Say FreeSWITCH's frames, and check the handler's against what was recorded."""
    for to_freeswitch, frame in lines:
        if to_freeswitch:
            assert essence(await peer.hear()) == essence(frame.decode())
            continue
        left = frame
        while left:
            size = chunks.randint(1, 2000) if chunks else len(left)
            peer.say(left[:size])
            await peer.writer.drain()
            left = left[size:]
            if chunks:
                await asyncio.sleep(0)  # a packet of its own, most of the time


def place_of(session: list[Line], name: str) -> int:
    wanted = f"\nEvent-Name: {name}\n".encode()
    return next(i for i, line in enumerate(session) if wanted in line.frame)


@pytest.mark.parametrize("seed", [None, 1, 2, 3])
async def test_the_recorded_hang_up_while_waiting(
    seed: int | None, call: Call, waiting_line: Queue, spans: Spans
) -> None:
    """A real caller who hangs up in the line leaves it, however the bytes are cut into packets."""
    session = recorded("esl-hangup-while-waiting.txt")
    chunks = None if seed is None else random.Random(seed)
    hang_up = place_of(session, "CHANNEL_HANGUP")
    async with waiting_line.slot("agents", item_id="someone before", max_concurrent=1):
        peer = await call(uuid_of(session))
        await play(peer, session[:hang_up], chunks)
        await stand(waiting_line, waiting=1, in_use=1)
        assert await waiting_line.position("agents", peer.uuid) == 1
        await play(peer, session[hang_up : hang_up + 1], chunks)
        await stand(waiting_line, waiting=0, in_use=1)  # before the rest of the session
        await play(peer, session[hang_up + 1 :], chunks)
        await peer.closed()
    wait = next(s for s in spans.named("wait") if s.attributes["genesis.item_id"] == peer.uuid)
    assert wait.attributes["genesis.outcome"] == "cancelled"


@pytest.mark.parametrize("seed", [None, 1, 2, 3])
async def test_the_recorded_bridged_call(
    seed: int | None, call: Call, waiting_line: Queue, spans: Spans
) -> None:
    """A real caller who is bridged holds the slot until the hang-up, and no longer."""
    session = recorded("esl-bridged.txt")
    chunks = None if seed is None else random.Random(seed)
    broken_off = next(i for i, line in enumerate(session) if b"uuid_break" in line.frame)
    hang_up = place_of(session, "CHANNEL_HANGUP")
    peer = await call(uuid_of(session))
    async with waiting_line.slot("agents", item_id="someone before", max_concurrent=1):
        await play(peer, session[:broken_off], chunks)
        await stand(waiting_line, waiting=1, in_use=1)
    await play(peer, session[broken_off:hang_up], chunks)
    await stand(waiting_line, waiting=0, in_use=1)
    (holder,) = await waiting_line.entries("agents")
    assert holder.item_id == peer.uuid
    await play(peer, session[hang_up : hang_up + 1], chunks)
    await stand(waiting_line, waiting=0, in_use=0)
    await play(peer, session[hang_up + 1 :], chunks)
    await peer.closed()
    hold = next(s for s in spans.named("hold") if s.attributes["genesis.item_id"] == peer.uuid)
    assert hold.attributes["genesis.outcome"] == "released"


# Scripted calls -------------------------------------------------------------------------------------


async def test_a_caller_who_hangs_up_makes_room_at_once(call: Call, waiting_line: Queue) -> None:
    """The next in line moves up when the one before hangs up, and gets the slot when it is free."""
    first, second, third = [await call(name) for name in ("first", "second", "third")]
    await first.arrive()
    await first.be_bridged()
    for peer, waiting in ((second, 1), (third, 2)):
        await peer.arrive()
        await stand(waiting_line, waiting=waiting, in_use=1)
    assert await waiting_line.position("agents", "third") == 2
    second.hang_up()
    await stand(waiting_line, waiting=1, in_use=1)
    assert await waiting_line.position("agents", "third") == 1
    first.hang_up()
    await third.be_bridged()
    await stand(waiting_line, waiting=0, in_use=1)
    third.hang_up()
    for peer in (first, second, third):
        await peer.closed()
    await stand(waiting_line, waiting=0, in_use=0)


async def test_an_agent_who_hangs_up_frees_the_slot(call: Call, waiting_line: Queue) -> None:
    """When the bridge ends and the caller does not, the caller is hung up on."""
    peer = await call("caller")
    await peer.arrive()
    await peer.be_bridged()
    peer.complete("bridge")
    command = await peer.hear()
    assert "execute-app-name: hangup\nexecute-app-arg: NORMAL_CLEARING" in command
    peer.say(reply())
    peer.hang_up()
    await peer.closed()
    await stand(waiting_line, waiting=0, in_use=0)


async def test_music_that_does_not_stop_is_broken_off_again(call: Call) -> None:
    """A break that came too early for the music does not leave the caller behind it for ever."""
    peer = await call("caller")
    await peer.arrive()
    for what in ("uuid_break", "bridge", "uuid_break"):
        assert what in await peer.hear()
        peer.say(reply())
    peer.complete("playback")
    peer.executed("bridge")
    peer.hang_up()
    await peer.closed()


async def test_a_wait_that_is_too_long_ends_with_an_announcement(waiting_line: Queue) -> None:
    """On the queue's timeout the music stops, the announcement plays, and the caller is hung up on."""
    settings = replace(SETTINGS, timeout=0.05)
    async with (
        waiting_line.slot("agents", max_concurrent=1),
        serve(waiting_line, settings, port=0) as port,
    ):
        peer = Peer("caller", *await asyncio.open_connection("127.0.0.1", port))
        await peer.arrive()
        for what in ("uuid_break", settings.sorry, "hangup"):
            assert what in await peer.hear()
            peer.say(reply())
        assert "NORMAL_TEMPORARY_FAILURE" in peer.heard[-1]
        peer.complete("playback")
        peer.hang_up()
        await peer.closed()
        peer.writer.close()


@pytest.mark.parametrize("how", ["end", "reset", "nonsense", "huge", "surplus reply"])
@pytest.mark.parametrize("stage", ["accepted", "connecting", "arriving", "waiting", "talking"])
async def test_a_connection_that_breaks_frees_its_place(
    stage: str, how: str, call: Call, waiting_line: Queue
) -> None:
    """Cut off, reset or out of step at any stage: the call ends, and the next one is served."""
    blocker = waiting_line.slot("agents", max_concurrent=1)
    if stage == "waiting":
        await blocker.__aenter__()
    peer = await call("caller")
    if stage == "connecting":
        await peer.hear()
    elif stage == "arriving":
        await peer.hear()
        peer.say(CHANNEL_DATA.format(uuid=peer.uuid).encode())
        await peer.hear()
    elif stage == "waiting":
        await peer.arrive()
        await stand(waiting_line, waiting=1, in_use=1)
    elif stage == "talking":
        await peer.arrive()
        await peer.be_bridged()
        await stand(waiting_line, waiting=0, in_use=1)
    if how == "end":
        peer.writer.write_eof()
    elif how == "reset":
        peer.cut()
    elif how == "nonsense":
        peer.say(b"SIP/2.0 200 OK\nnot a header\n\n")
    elif how == "huge":
        peer.say(b"Content-Type: text/event-plain\nContent-Length: 99999999999\n\n")
    else:
        peer.say(*[reply()] * 9)
    if how != "reset":
        await peer.closed()
    if stage == "waiting":
        await stand(waiting_line, waiting=0, in_use=1)
        await blocker.__aexit__(None, None, None)
    await stand(waiting_line, waiting=0, in_use=0)
    after = await call("after")
    await after.arrive()
    await after.be_bridged()
    after.hang_up()
    await after.closed()


async def test_a_cut_at_any_byte_frees_the_place(call: Call, waiting_line: Queue) -> None:
    """The hang-up's event is cut at a few dozen of its bytes; no call ever stays in the line."""
    farewell = event("CHANNEL_HANGUP", "caller", Hangup_Cause="NORMAL_CLEARING")
    for length in range(0, len(farewell), 7):
        peer = await call("caller")
        await peer.arrive()
        await stand(waiting_line, waiting=0, in_use=1)
        peer.say(farewell[:length])
        peer.writer.write_eof()
        await peer.closed()
        await stand(waiting_line, waiting=0, in_use=0)


async def test_a_silent_freeswitch_is_given_up(waiting_line: Queue) -> None:
    """Without a reply in time the connection is closed, and nothing is left of the call."""
    settings = replace(SETTINGS, reply_seconds=0.1)
    async with serve(waiting_line, settings, port=0) as port:
        peer = Peer("caller", *await asyncio.open_connection("127.0.0.1", port))
        assert await peer.hear() == "connect\n\n"
        await peer.closed()
        peer.writer.close()


@pytest.mark.parametrize("refused", range(4))
async def test_a_refused_command_ends_the_call(refused: int, call: Call, waiting_line: Queue) -> None:
    """An -ERR to any command of the beginning closes the connection without a wait."""
    peer = await call("caller")
    await peer.hear()
    peer.say(CHANNEL_DATA.format(uuid=peer.uuid).encode())
    for number in range(4):
        await peer.hear()
        peer.say(reply("-ERR no such channel" if number == refused else "+OK"))
    await peer.closed()
    await stand(waiting_line, waiting=0, in_use=0)


@pytest.mark.parametrize("uuid", ["", "a%0Ab", "a%20b", "caf%C3%A9"])
async def test_an_id_that_is_no_id_ends_the_call(uuid: str, call: Call) -> None:
    """What could break out of a command is not taken for a Unique-ID."""
    peer = await call(uuid)
    await peer.hear()
    peer.say(CHANNEL_DATA.format(uuid=uuid).encode())
    await peer.closed()
    assert peer.heard == ["connect\n\n"]


async def test_the_agents_channel_is_not_the_callers(call: Call, waiting_line: Queue) -> None:
    """Events of another channel, and kinds of frames nobody asked for, change nothing."""
    peer = await call("caller")
    await peer.arrive()
    await peer.be_bridged()
    peer.say(event("CHANNEL_HANGUP", "agent", Hangup_Cause="NORMAL_CLEARING"))
    peer.say(b"Content-Type: log/data\nContent-Length: 3\n\nabc")
    peer.say(event("CUSTOM", "caller", body="x\n\ny"))
    peer.complete("something else")
    peer.complete("bridge")  # taken in after all of these, and answered: the call still goes on
    assert "execute-app-name: hangup" in await peer.hear()
    await stand(waiting_line, waiting=0, in_use=1)
    peer.say(reply())
    peer.hang_up()
    await peer.closed()


async def test_leaving_the_server_ends_the_calls(waiting_line: Queue) -> None:
    """Stopping the application gives back what waits and what holds, and closes the connections."""
    async with serve(waiting_line, SETTINGS, port=0) as port:
        peers = [
            Peer(name, *await asyncio.open_connection("127.0.0.1", port)) for name in ("one", "two")
        ]
        for peer in peers:
            await peer.arrive()
        await stand(waiting_line, waiting=1, in_use=1)
    await stand(waiting_line, waiting=0, in_use=0)
    for peer in peers:
        await peer.closed()
        peer.writer.close()


@pytest.mark.parametrize("kind", ["memory", "redis"])
async def test_a_hundred_calls_never_exceed_the_limit(
    kind: str, request: pytest.FixtureRequest, telemetry: Telemetry
) -> None:
    """100 calls at once, of whom every fifth hangs up in the line: never more than 5 talk, all end."""
    talking, most, bridged = 0, 0, 0
    backend = None
    if kind == "redis":
        server: RedisServer = request.getfixturevalue("redis_server")
        backend = RedisBackend(server.url, lease=LEASE)
    settings = replace(SETTINGS, limit=5)

    async def caller(number: int, port: int, queue: Queue) -> None:
        nonlocal talking, most, bridged
        dice = random.Random(number)
        peer = Peer(f"call-{number}", *await asyncio.open_connection("127.0.0.1", port))
        await peer.arrive()
        if number % 5 == 4:
            impatient = asyncio.ensure_future(peer.hear())
            await asyncio.wait({impatient}, timeout=dice.random() / 10)
            impatient.cancel()
            peer.hang_up()
            await asyncio.gather(impatient, return_exceptions=True)
        else:
            await peer.be_bridged()
            talking += 1
            bridged += 1
            most = max(most, talking)
            for _ in range(dice.randint(1, 50)):
                await asyncio.sleep(0)
            talking -= 1
            peer.hang_up()
        await peer.closed()
        peer.writer.close()

    async with Queue(backend, telemetry=telemetry) as queue:
        async with serve(queue, settings, port=0) as port:
            await asyncio.gather(*(caller(number, port, queue) for number in range(100)))
            await stand(queue, waiting=0, in_use=0)
        await assert_nothing_kept(queue)
    assert most == 5
    assert bridged == 80


def test_the_command_line_says_what_a_call_meets() -> None:
    """The options that the example promises are there, with the settings' defaults."""
    options = parse_arguments(
        ["--redis", "redis://localhost", "--limit", "7", "--agent", "user/1", "--metrics-port", "0"]
    )
    assert (options.redis, options.limit, options.agent) == ("redis://localhost", 7, "user/1")
    assert (options.host, options.port, options.metrics_port) == ("127.0.0.1", 9696, 0)
    assert options.timeout == Settings.timeout
