"""Sessions recorded with a real FreeSWITCH, from both sides: against the example, which gets the very
frames that FreeSWITCH sent; and against `tests.freeswitch.switch`, which must send similar ones."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import re
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

import pytest

from examples.freeswitch.settings import Settings
from examples.freeswitch_outbound import serve
from genesis import Queue
from tests.conftest import Spans
from tests.freeswitch.switch import Channel, Phones
from tests.freeswitch.world import stand
from tests.support.waiting import wait_until

SESSIONS = (
    "agent-busy-continue",
    "agent-hangs-up",
    "agent-unreachable",
    "announce-cut",
    "announce-locked",
    "bridged",
    "finite-music",
    "hangup-while-waiting",
    "resumed-first",
    "resumed",
    "star-ends-music",
    "star-ignored",
    "transferred",
)


class Line(NamedTuple):
    """One frame of a recorded session."""

    to_freeswitch: bool
    frame: str

    def header(self, name: str) -> str:
        found = re.search(rf"(?m)^{name}: (.*)$", self.frame)
        return unquote(found[1]) if found else ""

    @property
    def event(self) -> str:
        return "" if self.frame.startswith("Event-Name: CHANNEL_DATA") else self.header("Event-Name")

    @property
    def executed(self) -> tuple[str, str]:
        """Of a command: the application and its argument."""
        return self.header("execute-app-name"), self.header("execute-app-arg")


def recorded(name: str) -> list[Line]:
    """A recorded session; the test is skipped on a machine that has none."""
    root = Path(__file__).parents[3]
    places = [Path(os.environ.get("GENESIS_SHARED_DATA", root / "shared" / "data"))]
    for place in places:
        file = place / f"esl-{name}.txt"
        if file.is_file():
            parts = re.split(r"(?m)^--- (to|from) FreeSWITCH(?: \+\d+ ms)?\n", file.read_text())[1:]
            pairs = zip(parts[::2], parts[1::2], strict=True)
            return [Line(way == "to", frame[:-1]) for way, frame in pairs]
    pytest.skip(
        f"esl-{name}.txt is not in {places[0]}; name the folder of the recorded FreeSWITCH sessions in "
        "GENESIS_SHARED_DATA"
    )


# FreeSWITCH of the tests against the real one ---------------------------------------------------------

PHONES = {
    "sofia/internal/agent@127.0.0.1:15998": "answers",
    "sofia/internal/agent@127.0.0.1:35125": "answers",
    "sofia/internal/short@127.0.0.1:35125": "answers",
    "sofia/internal/tone@127.0.0.1:35125": "answers",
    "sofia/internal/busy@127.0.0.1:35125": "busy",
    "sofia/internal/ring@127.0.0.1:35125": "rings",
}
LENGTHS = {
    "tone_stream://%(500,500,480,620);loops=4": 0.1,
    "tone_stream://%(500,0,1000)": 0.05,
    "/usr/local/freeswitch/sounds/hold.wav": 0.05,
}
COMPARED = (
    "Event-Name",
    "Application",
    "Application-Response",
    "Answer-State",
    "DTMF-Digit",
    "Playback-Status",
    "Hangup-Cause",
    "Content-Disposition",
)


def essence(line: Line) -> list[str]:
    return [line.header(name) for name in COMPARED]


def of_interest(line: Line) -> bool:
    """Not the reports of states, and not of a call that is transferred: they depend on the dialplan."""
    return (
        not line.to_freeswitch
        and (bool(line.event) or "disconnect-notice" in line.frame)
        and line.event not in ("CHANNEL_STATE", "CHANNEL_PARK")
    )


@pytest.mark.parametrize("name", SESSIONS)
async def test_the_freeswitch_of_the_tests_behaves_like_the_real_one(name: str) -> None:
    """It gets the recorded commands, at the recorded points, and sends the recorded events."""
    session = recorded(name)
    connections: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()
    server = await asyncio.start_server(
        lambda reader, writer: connections.put_nowait((reader, writer)), "127.0.0.1", 0
    )
    phones = Phones()
    phones.known = PHONES
    port = server.sockets[0].getsockname()[1]
    channel = Channel(session[1].header("Unique-ID"), [port], phones, LENGTHS)
    if name == "resumed":
        channel.variables["socket_resume"] = "true"
        channel.answered, channel.answer_state = channel.clock, "answered"
    channel.start()
    reader, writer = await connections.get()
    received: list[list[str]] = []
    wanted: list[list[str]] = []

    async def read() -> None:
        while True:
            head = (await reader.readuntil(b"\n\n")).decode()
            length = re.search(r"Content-Length: (\d+)", head)
            body = (await reader.readexactly(int(length[1]))).decode() if length else ""
            line = Line(False, head + body)
            if of_interest(line):
                received.append(essence(line))

    reading = asyncio.ensure_future(read())
    try:
        for number, line in enumerate(session):
            if line.to_freeswitch:
                # Commands that the recorded handler sent together came together.
                writer.write(line.frame.encode())
                continue
            if not of_interest(line):
                continue
            if line.header("variable_transfer_history") and not channel.extension:
                channel.transfer("tone")
            if channel.extension:
                break  # what follows is another extension's
            wanted.append(essence(line))
            if received[len(wanted) - 1 : len(wanted)] == []:
                if line.event == "DTMF":
                    channel.press(line.header("DTMF-Digit"))
                elif line.event == "CHANNEL_UNBRIDGE":
                    channel.agent_hangs_up()
                elif ends_by_the_caller(session, number):
                    await channel.settled()
                    channel.hang_up()
            seen = len(wanted)
            await wait_until(lambda seen=seen: len(received) >= seen, f"{name}: {wanted[-1]}", 5.0)
    finally:
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        writer.close()
        await channel.abandon()
        server.close()
    assert sorted_hang_up(received[: len(wanted)]) == sorted_hang_up(wanted)


def ends_by_the_caller(session: list[Line], number: int) -> bool:
    line = session[number]
    if not (line.event == "CHANNEL_HANGUP" or "disconnect-notice" in line.frame):
        return False
    begun = [one.header("Application") for one in session[:number] if one.event == "CHANNEL_EXECUTE"]
    failed = line.header("variable_originate_disposition") not in ("", "SUCCESS")
    hung_up = any(one.event.startswith("CHANNEL_HANGUP") for one in session[:number])
    return not (hung_up or failed or begun[-1] == "hangup")


def sorted_hang_up(events: list[list[str]]) -> list[list[str]]:
    """From the hang-up on the order is not fixed: the disconnect notice comes before or after."""
    first = next(
        (n for n, one in enumerate(events) if one[0] == "CHANNEL_HANGUP" or not one[0]), len(events)
    )
    return events[:first] + sorted(events[first:])


# The example against the real one ---------------------------------------------------------------------


class Replay:
    """Replies to the example's commands, and sends it the recorded events in their order.

    An event waits until the example has sent the command that it is about. Its UUID becomes the one
    that the example gave the application. What the recorded handler did, and the example does not,
    leaves events about applications that it knows nothing of.
    """

    def __init__(self, session: list[Line], port: int, chunks: random.Random | None) -> None:
        self.session = session
        self.port = port
        self.uuid = session[1].header("Unique-ID")
        self.executed: list[tuple[str, str]] = []  # application, event-uuid; not yet in an event
        self.commands: list[str] = []
        self._names: dict[str, str] = {}  # the example's UUIDs by the recorded ones
        self._chunks = chunks
        self._writing = asyncio.Lock()

    async def start(self) -> None:
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
        self.obeying = asyncio.ensure_future(self._obey())
        await wait_until(lambda: len(self.commands) >= 8, "the call is set up")

    async def _obey(self) -> None:
        while True:
            try:
                command = (await self.reader.readuntil(b"\n\n")).decode()
            except (asyncio.IncompleteReadError, ConnectionError):
                return
            self.commands.append(command)
            line = Line(True, command)
            if command == "connect\n\n":
                await self._write(self.session[1].frame.encode())
            elif command.startswith("api"):
                await self._write(b"Content-Type: api/response\nContent-Length: 4\n\n+OK\n")
            else:
                if line.header("execute-app-name"):
                    self.executed.append((line.header("execute-app-name"), line.header("event-uuid")))
                await self._write(b"Content-Type: command/reply\nReply-Text: +OK\n\n")

    def has(self, application: str) -> bool:
        return any(name == application for name, _ in self.executed)

    async def send_events(self, first: int, last: int) -> None:
        for line in self.session[first:last]:
            if line.to_freeswitch or not (line.event or "disconnect-notice" in line.frame):
                continue
            frame, old = line.frame, line.header("Application-UUID")
            application = line.header("Application")
            if old and application != "socket":
                if old not in self._names:
                    mine = next((one for one in self.executed if one[0] == application), None)
                    if mine is not None:
                        self.executed.remove(mine)
                        self._names[old] = mine[1]
                frame = frame.replace(old, self._names.get(old, old))
            await self._write(frame.encode())

    async def _write(self, data: bytes) -> None:
        """A whole frame, in one packet or in several; the example might have closed by now."""
        async with self._writing:
            with contextlib.suppress(ConnectionError):
                while data:
                    size = self._chunks.randint(1, 2000) if self._chunks else len(data)
                    self.writer.write(data[:size])
                    await self.writer.drain()
                    data = data[size:]
                    await asyncio.sleep(0)  # a packet of its own, most of the time

    async def closed(self) -> None:
        await asyncio.wait_for(self.obeying, 20)
        self.writer.close()


WAITING = ("hangup-while-waiting", "finite-music", "star-ends-music", "star-ignored", "resumed-first")
BRIDGED = ("bridged", "agent-hangs-up", "transferred", "resumed", "agent-unreachable")


@pytest.mark.parametrize("seed", [None, 1, 2])
@pytest.mark.parametrize("name", WAITING)
async def test_recorded_callers_who_wait(
    name: str, seed: int | None, waiting_line: Queue, spans: Spans
) -> None:
    """They stay in the line whatever they press or hear, until the first frame of the hang-up."""
    session = recorded(name)
    over = (n for n, line in enumerate(session) if ends_by_the_caller(session, n))
    end = next(over, len(session))
    async with (
        waiting_line.slot("agents", max_concurrent=1),
        serve(waiting_line, Settings(linger_seconds=20.0), port=0) as service,
    ):
        replay = Replay(session, service.port, None if seed is None else random.Random(seed))
        await replay.start()
        await stand(waiting_line, waiting=1, in_use=1)
        await replay.send_events(2, end)
        assert await waiting_line.position("agents", replay.uuid) == 1
        if end < len(session):
            await replay.send_events(end, end + 1)
        else:
            replay.writer.write_eof()
        await stand(waiting_line, waiting=0, in_use=1)  # before the rest of the session
        await replay.send_events(end + 1, len(session))
        await replay.closed()
    (wait,) = [s for s in spans.named("wait") if s.attributes["genesis.item_id"] == replay.uuid]
    assert wait.attributes["genesis.outcome"] == "cancelled"


@pytest.mark.parametrize("seed", [None, 1, 2])
@pytest.mark.parametrize("name", [*BRIDGED, "agent-busy-continue"])
async def test_recorded_callers_whose_turn_comes(
    name: str, seed: int | None, waiting_line: Queue, spans: Spans
) -> None:
    """They hold a slot until the recorded end of the call or the transfer, and are not hung up."""
    session = recorded(name)
    agents = ("a", "b", "c") if name == "agent-busy-continue" else ("a",)
    settings = Settings(agents=agents, limit=1, linger_seconds=0.2)
    broken_off = next(n for n, line in enumerate(session) if "uuid_break" in line.frame)
    async with serve(waiting_line, settings, port=0) as service:
        replay = Replay(session, service.port, None if seed is None else random.Random(seed))
        async with waiting_line.slot("agents", max_concurrent=1):
            await replay.start()
            await stand(waiting_line, waiting=1, in_use=1)
            await replay.send_events(2, broken_off)
        begin = broken_off
        bridges = [n for n, line in enumerate(session) if is_bridge(line)]
        for n in bridges:  # FreeSWITCH begins with it only when the example has asked for it
            await replay.send_events(begin, n)
            await wait_until(lambda: replay.has("bridge"), "the example calls an agent")
            begin = n
        await stand(waiting_line, waiting=0, in_use=1)
        end = next(n for n, line in enumerate(session) if n > begin and is_end(line))
        await replay.send_events(begin, end)
        await stand(waiting_line, waiting=0, in_use=1)
        await replay.send_events(end, end + 1)
        await stand(waiting_line, waiting=0, in_use=0)
        await replay.send_events(end + 1, len(session))
        await replay.closed()
    assert not any("app-name: hangup" in command for command in replay.commands)
    (hold,) = [
        span
        for span in spans.named("hold")
        if span.attributes["genesis.item_id"] == replay.uuid
        and span.attributes["genesis.queue_id"] == "agents"
    ]
    assert hold.attributes["genesis.outcome"] == "released"


def is_bridge(line: Line) -> bool:
    return line.event == "CHANNEL_EXECUTE" and line.header("Application") == "bridge"


def is_end(line: Line) -> bool:
    """Of the conversation: a hang-up, or the bridge's end after there was one."""
    bridged = line.event == "CHANNEL_EXECUTE_COMPLETE" and line.header("Application") == "bridge"
    reached = line.header("variable_originate_disposition") == "SUCCESS"
    return line.event == "CHANNEL_HANGUP" or (bridged and reached)
