"""The FreeSWITCH example's event socket: frames, replies, and connections lost at any point."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace

import pytest

from examples.freeswitch.esl import (
    MAX_BODY,
    MAX_HEADER,
    CallEndedError,
    EslConnection,
    EslError,
    Frame,
    read_frame,
)
from examples.freeswitch.settings import Settings
from examples.freeswitch_outbound import Service, serve
from genesis import Queue
from tests.freeswitch.switch import Channel, Phones
from tests.freeswitch.world import stand
from tests.support.waiting import quiesce, wait_until

SETTINGS = Settings(timeout=60.0, reply_seconds=5.0, sorry_seconds=5.0, begin_seconds=0.5)

# As it was on the wire, but for the headers left out.
CHANNEL_DATA = (
    "Event-Name: CHANNEL_DATA\nFreeSWITCH-IPv6: fd00%3A%3A2\n"
    "Event-Date-Local: 2026-11-23%2022%3A12%3A57\nChannel-Caller-ID-Number: sipp\n"
    "Channel-Unique-ID: {uuid}\nAnswer-State: ringing\nUnique-ID: {uuid}\n"
    "variable_current_application_data: 127.0.0.1%3A9696%20async%20full\n"
    "Content-Type: command/reply\nReply-Text: %2BOK%0A\nSocket-Mode: async\nControl: full\n\n"
)
SET_UP = 6  # commands after `connect`, before the line is entered


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
    """One connection, as a test writes it."""

    def __init__(self, uuid: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.uuid = uuid
        self.reader = reader
        self.writer = writer

    async def receive(self) -> str:
        return (await asyncio.wait_for(self.reader.readuntil(b"\n\n"), 20)).decode()

    def send(self, *frames: bytes) -> None:
        for frame in frames:
            self.writer.write(frame)

    async def connect(self) -> None:
        assert await self.receive() == "connect\n\n"
        self.send(CHANNEL_DATA.format(uuid=self.uuid).encode())

    async def arrive(self) -> None:
        """Up to being in the line."""
        await self.connect()
        for _ in range(SET_UP):
            await self.receive()
            self.send(reply())

    async def closed(self) -> None:
        """Wait until the handler has closed the connection."""
        try:
            while await asyncio.wait_for(self.reader.read(4096), 20):
                pass
        except ConnectionError:
            pass


Call = Callable[..., Awaitable[Peer]]


@pytest.fixture
async def call(waiting_line: Queue) -> AsyncIterator[Call]:
    """Makes a connection to the handler; gives the peer's end of it."""
    peers: list[Peer] = []

    async with serve(waiting_line, SETTINGS, port=0) as service:

        async def make(uuid: str) -> Peer:
            peers.append(Peer(uuid, *await asyncio.open_connection("127.0.0.1", service.port)))
            return peers[-1]

        yield make
        for peer in peers:
            peer.writer.close()


def fed(data: bytes) -> asyncio.StreamReader:
    reader = asyncio.StreamReader(limit=MAX_HEADER)
    reader.feed_data(data)
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
    headers = {"Content-Type": "command/reply", "Reply-Text": "+OK will linger"}
    assert first == Frame("command/reply", headers, b"")
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
    ids=range(12),
)
async def test_a_malformed_frame_is_an_error(data: bytes) -> None:
    """A header without a name or with a false length is an error at once."""
    with pytest.raises(EslError) as raised:
        await read_frame(fed(data + b"x" * 20))
    assert raised.type is EslError  # and not the connection's end, which is one, too


async def test_a_cut_at_any_byte_is_the_end() -> None:
    """If the connection ends at any byte of a frame, the call ends."""
    whole = event("CHANNEL_ANSWER", "u", body="body")
    assert (await read_frame(fed(whole))).body == b"body"
    for length in range(len(whole)):
        with pytest.raises(CallEndedError):
            await read_frame(fed(whole[:length]))


async def test_replies_are_matched_by_order() -> None:
    """Each reply goes to its command, with events in between, even if nobody awaits it."""
    peers: asyncio.Queue[Peer] = asyncio.Queue()
    server = await asyncio.start_server(
        lambda reader, writer: peers.put_nowait(Peer("u", reader, writer)), "127.0.0.1", 0
    )
    ours = await asyncio.open_connection(*server.sockets[0].getsockname())
    connection = EslConnection(*ours, reply_seconds=5.0)
    reading = asyncio.ensure_future(connection.read())
    peer = await peers.get()
    sent = [connection.send(f"api echo {number}") for number in range(4)]
    for number in range(4):
        assert await peer.receive() == f"api echo {number}\n\n"
        peer.send(event("HEARTBEAT", "u"))
        peer.send(b"Content-Type: api/response\nContent-Length: 1\n\n%d" % number)
    assert (await connection.replies(sent[3])).body == b"3"
    assert [one.reply.result().body for one in sent] == [b"0", b"1", b"2", b"3"]
    with pytest.raises(EslError, match="line break"):
        connection.send("api echo", "x\n\nexit")
    peer.writer.transport.abort()
    await reading
    with pytest.raises(CallEndedError):
        await connection.replies(connection.send("api echo late"))
    await connection.close()
    server.close()


@pytest.mark.parametrize("how", ["end", "reset", "nonsense", "huge", "surplus reply"])
@pytest.mark.parametrize("stage", ["accepted", "connecting", "arriving", "waiting"])
async def test_a_connection_that_breaks_frees_its_place(
    stage: str, how: str, call: Call, waiting_line: Queue
) -> None:
    """Cut off, reset or out of step at any stage: the call ends, and its place is free."""
    async with waiting_line.slot("agents", max_concurrent=1):
        peer = await call("caller")
        if stage == "connecting":
            await peer.receive()
        elif stage == "arriving":
            await peer.connect()
            await peer.receive()
        elif stage == "waiting":
            await peer.arrive()
            await stand(waiting_line, waiting=1, in_use=1)
        if how == "end":
            peer.writer.write_eof()
        elif how == "reset":
            peer.writer.transport.abort()
        elif how == "nonsense":
            peer.send(b"SIP/2.0 200 OK\nnot a header\n\n")
        elif how == "huge":
            peer.send(b"Content-Type: text/event-plain\nContent-Length: 99999999999\n\n")
        else:
            peer.send(*[reply()] * 19)
        if how != "reset":
            await peer.closed()
        await stand(waiting_line, waiting=0, in_use=1)
    await stand(waiting_line, waiting=0, in_use=0)


@pytest.mark.parametrize("how", ["reset", "nonsense"])
async def test_a_connection_that_breaks_while_talking_frees_the_slot(
    how: str, waiting_line: Queue
) -> None:
    async with serve(waiting_line, SETTINGS, port=0) as service:
        channel = Channel("caller", [service.port], Phones(user_1000="answers")).start()
        await wait_until(lambda: channel.talks_with, "they talk")
        await stand(waiting_line, waiting=0, in_use=1)
        if how == "reset":
            channel.lose_handler()
        else:
            channel._send("not a header\n\n")
        await stand(waiting_line, waiting=0, in_use=0)
        channel.hang_up()
        await channel.over()


async def test_a_cut_at_any_byte_frees_the_place(call: Call, waiting_line: Queue) -> None:
    """The hang-up's event is cut at a few dozen of its bytes; no call ever stays in the line."""
    farewell = event("CHANNEL_HANGUP", "caller", Hangup_Cause="NORMAL_CLEARING")
    async with waiting_line.slot("agents", max_concurrent=1):
        for length in range(0, len(farewell), 7):
            peer = await call("caller")
            await peer.arrive()
            await stand(waiting_line, waiting=1, in_use=1)
            peer.send(farewell[:length])
            peer.writer.write_eof()
            await peer.closed()
            await stand(waiting_line, waiting=0, in_use=1)


@pytest.mark.parametrize("ended", [False, True])
async def test_a_stop_at_any_moment_closes_the_connection(ended: bool, waiting_line: Queue) -> None:
    """Also of a call that is just accepted, and of one that is about to close its connection."""
    for turns in range(40):
        service = Service(waiting_line, SETTINGS)
        await service.start("127.0.0.1", 0)
        peer = Peer(f"call-{turns}", *await asyncio.open_connection("127.0.0.1", service.port))
        if ended:
            await peer.arrive()
            peer.send(event("CHANNEL_HANGUP", peer.uuid), event("CHANNEL_HANGUP_COMPLETE", peer.uuid))
        await quiesce(turns)
        await service.close()
        await peer.closed()
        peer.writer.close()


async def test_a_silent_freeswitch_is_given_up(waiting_line: Queue) -> None:
    """Without a reply in time the connection is closed, and nothing is left of the call."""
    settings = replace(SETTINGS, reply_seconds=0.1)
    async with serve(waiting_line, settings, port=0) as service:
        peer = Peer("caller", *await asyncio.open_connection("127.0.0.1", service.port))
        assert await peer.receive() == "connect\n\n"
        await peer.closed()
        peer.writer.close()


@pytest.mark.parametrize("refused", range(SET_UP))
async def test_a_refused_command_ends_the_call(refused: int, call: Call, waiting_line: Queue) -> None:
    """An -ERR to any command of the beginning closes the connection without a wait."""
    peer = await call("caller")
    await peer.connect()
    for _ in range(SET_UP):  # all are sent before the first reply
        await peer.receive()
    for number in range(SET_UP):
        peer.send(reply("-ERR no such channel" if number == refused else "+OK"))
    await peer.closed()
    await stand(waiting_line, waiting=0, in_use=0)


@pytest.mark.parametrize("uuid", ["", "a%0Ab", "a%20b", "caf%C3%A9"])
async def test_an_id_that_is_no_id_ends_the_call(uuid: str, call: Call) -> None:
    """A Unique-ID that could inject a command is rejected."""
    peer = await call(uuid)
    await peer.connect()
    with pytest.raises(asyncio.IncompleteReadError):
        await peer.receive()


async def test_the_agents_channel_is_not_the_callers(call: Call, waiting_line: Queue) -> None:
    """Events of another channel, and kinds of frames nobody asked for, change nothing."""
    async with waiting_line.slot("agents", max_concurrent=1):
        peer = await call("caller")
        await peer.arrive()
        await stand(waiting_line, waiting=1, in_use=1)
        peer.send(event("CHANNEL_HANGUP", "agent", Hangup_Cause="NORMAL_CLEARING"))
        peer.send(b"Content-Type: log/data\nContent-Length: 3\n\nabc")
        peer.send(event("CUSTOM", "caller", body="x\n\ny"))
        peer.send(event("CHANNEL_EXECUTE_COMPLETE", "caller", Application="something else"))
        assert "playback" in await peer.receive()
        peer.send(reply())
        peer.send(event("DTMF", "caller", DTMF_Digit="5"))
        assert await waiting_line.position("agents", "caller") == 1
        peer.send(event("CHANNEL_HANGUP", "caller"), event("CHANNEL_HANGUP_COMPLETE", "caller"))
        await peer.closed()
        await stand(waiting_line, waiting=0, in_use=1)
