"""FreeSWITCH as an outbound-socket handler meets it: calls that run what they are sent, and phones.

`test_recordings.py` holds it against sessions recorded with a real one. What matters:
a queued application runs within the running playback unless that is locked; `uuid_break ... all` ends
the innermost playback and discards what is queued; `*` ends a playback unless `playback_terminators` is
`none`; a failed bridge hangs the caller up unless `continue_on_fail` is set; and a call outlives its
handler: it goes on to the next `socket` action if `socket_resume` is set, else it stays where it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import uuid
from collections import Counter, deque
from collections.abc import Sequence
from urllib.parse import quote

__all__ = ["Channel", "Phones"]

EPOCH = 1_795_857_965_000_000  # microseconds


class Phones:
    """The agents' phones, by dial string; one that is not registered is not in `known`.

    Attributes:
        known: what a phone does with a call: "answers", "answers one" (call waiting is off), "busy", or
            "rings" until the time-out.
        at_once: how many calls a phone had at most at the same time.
    """

    def __init__(self, **known: str) -> None:
        self.known = {name.replace("_", "/"): what for name, what in known.items()}
        self.calls: Counter[str] = Counter()
        self.at_once: Counter[str] = Counter()

    def take(self, name: str) -> None:
        self.calls[name] += 1
        self.at_once[name] = max(self.at_once[name], self.calls[name])

    def leave(self, name: str) -> None:
        self.calls[name] -= 1


class Application:
    """One application that was queued: its name, argument, lock and the UUID of its events."""

    def __init__(self, command: str) -> None:
        headers = dict(line.split(": ", 1) for line in command.strip().split("\n")[1:])
        self.name = headers["execute-app-name"]
        self.argument = headers.get("execute-app-arg", "")
        self.locked = headers.get("event-lock") == "true"
        self.uuid = headers.get("event-uuid") or str(uuid.uuid4())


class Channel:
    """One caller's call.

    Args:
        ports: of the `socket` actions in the dialplan, in order; after them comes a hang-up.
        lengths: seconds of the files and tones that end; all others play for ever.
        second: how long a second of `originate_timeout` takes.

    Attributes:
        hears: what the caller has heard, in order: names of playbacks, and of phones.
        variables: the channel's.
        commands: what was received from the handlers.
        cause: of the hang-up; empty until then.
    """

    def __init__(
        self,
        name: str,
        ports: Sequence[int],
        phones: Phones | None = None,
        lengths: dict[str, float] | None = None,
        second: float = 0.05,
    ) -> None:
        self.uuid = name
        self._ports = ports
        self._phones = phones or Phones()
        self._lengths = lengths or {}
        self._second = second
        self.hears: list[str] = []
        self.variables: dict[str, str] = {}
        self.commands: list[str] = []
        self.connections = 0
        self.answered = 0
        self.profile = EPOCH  # when its last transfer was, or when it came
        self.answer_state = "ringing"
        self.cause = ""
        self.talks_with = ""
        self.extension = ""  # after a transfer
        self.dead = False  # whether its handler has gone
        self.clock = EPOCH
        self._queue: deque[Application] = deque()
        self._locks = 0
        self._playing = 0
        self._break = False
        self._response = "_none_"
        self._agent_gone = False
        self._wake = asyncio.Event()
        self._subscribed: set[str] = set()
        self._writer: asyncio.StreamWriter | None = None
        self._call: asyncio.Task[None] | None = None
        self._readings: list[asyncio.Task[None]] = []

    # What happens from outside -------------------------------------------------------------------

    def start(self) -> Channel:
        self._call = asyncio.ensure_future(self._dialplan())
        return self

    async def over(self) -> str:
        """Wait until the call has ended, and its connections; returns the cause."""
        assert self._call is not None
        await asyncio.wait_for(asyncio.shield(self._call), 20)
        await asyncio.wait_for(asyncio.gather(*self._readings), 20)
        return self.cause

    async def abandon(self) -> None:
        """For tests that end with a call in progress."""
        tasks = [task for task in (self._call, *self._readings) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._writer is not None:
            self._writer.close()

    def hang_up(self, cause: str = "NORMAL_CLEARING") -> None:
        if not self.cause:
            self.cause, self.answer_state = cause, "hangup"
            self.event("CHANNEL_HANGUP")
            self._wake.set()

    def press(self, digit: str) -> None:
        self.event("DTMF", DTMF_Digit=digit)
        if digit == "*" and self._playing and self.variables.get("playback_terminators") != "none":
            self._break = True
            self._wake.set()

    def agent_hangs_up(self) -> None:
        assert self.talks_with
        self._agent_gone = True
        self._wake.set()

    def transfer(self, extension: str) -> None:
        self.extension = extension
        self.variables["transfer_history"] = f"1:2:bl_xfer:{extension}"
        self._wake.set()

    def lose_handler(self) -> None:
        """As if its process were killed."""
        assert self._writer is not None
        self._writer.transport.abort()

    async def settled(self) -> None:
        """Wait until the handler has taken in all events, and FreeSWITCH what it sent for them."""
        count = len(self.commands)
        for _ in range(50):
            await asyncio.sleep(0)
        if len(self.commands) != count:
            await self.settled()

    @property
    def music_plays(self) -> bool:
        return self._playing > 0

    # The connection ------------------------------------------------------------------------------

    def event(self, name: str, **headers: str) -> None:
        if self._writer is None or self.dead or not self._subscribed:
            return
        if name in ("PLAYBACK_START", "PLAYBACK_STOP") and name not in self._subscribed:
            return
        fields = {
            "Event-Name": name,
            "Unique-ID": self.uuid,
            "Answer-State": self.answer_state,
            "Caller-Destination-Number": self.extension or "5000",
            **{key.replace("_", "-"): value for key, value in headers.items()},
        }
        if self.cause:
            fields["Hangup-Cause"] = self.cause
        fields.update({f"variable_{key}": value for key, value in self.variables.items()})
        text = "".join(f"{key}: {quote(value, safe=' ')}\n" for key, value in fields.items()) + "\n"
        self._send(f"Content-Length: {len(text)}\nContent-Type: text/event-plain\n\n{text}")

    def _send(self, text: str) -> None:
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(text.encode())

    async def _read(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                self._obey((await reader.readuntil(b"\n\n")).decode())
        writer.close()
        if writer is self._writer:
            self.dead = True
            self._wake.set()

    def _obey(self, command: str) -> None:
        self.commands.append(command)
        words = command.split()
        if words[0] == "connect":
            self._send(self._channel_data())
        elif words[0] == "api":
            if words[1] == "uuid_break":
                self._queue.clear()
                self._break = self._playing > 0
            elif words[1] == "uuid_setvar":
                self.variables[words[3]] = words[4]
            self._send("Content-Type: api/response\nContent-Length: 4\n\n+OK\n")
        else:
            if words[0] in ("myevents", "event"):
                self._subscribed.update(words)
            elif words[0] == "sendmsg":
                self._queue.append(Application(command))
            self._send("Content-Type: command/reply\nReply-Text: +OK\n\n")
        self._wake.set()

    def _channel_data(self) -> str:
        lines = ["Event-Name: CHANNEL_DATA", f"Unique-ID: {self.uuid}"]
        lines += [f"Answer-State: {self.answer_state}", f"Event-Date-Timestamp: {self.clock}"]
        lines += [f"Caller-Channel-Answered-Time: {self.answered}"]
        lines += [f"Caller-Profile-Created-Time: {self.profile}"]
        lines += [f"Caller-Destination-Number: {self.extension or '5000'}"]
        lines += [f"variable_{key}: {quote(value)}" for key, value in self.variables.items()]
        lines += ["Content-Type: command/reply", "Reply-Text: %2BOK%0A"]
        return "\n".join(lines) + "\n\n"

    # The call ------------------------------------------------------------------------------------

    @property
    def _goes_on(self) -> bool:
        """Whether the running application stops, because the call goes on elsewhere or has ended."""
        resumed = self.dead and self.variables.get("socket_resume") == "true"
        return bool(self.cause or self.extension or resumed)

    async def _dialplan(self) -> None:
        for port in self._ports:
            await self._socket(port)
            if self.cause or self.extension:
                break
        if self.extension:  # runs elsewhere, and the old socket is told
            await self._execute(Application("x\nexecute-app-name: answer"))
            while not (self.cause or self.dead):  # a `park` there ends when the old socket is closed
                await self._sleep(None)
        self.hang_up("NORMAL_TEMPORARY_FAILURE")
        self.event("CHANNEL_HANGUP_COMPLETE")
        self._send(
            f"Content-Type: text/disconnect-notice\nControlled-Session-UUID: {self.uuid}\n"
            "Content-Disposition: linger\nContent-Length: 0\n\n"
        )

    async def _socket(self, port: int) -> None:
        """The `socket` application; returns at once if nobody listens there."""
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            return
        self.connections += 1
        self._writer, self.dead = writer, False
        self._queue.clear()
        self._subscribed.clear()
        self._readings.append(asyncio.ensure_future(self._read(reader, writer)))
        # Without socket_resume the call waits for ever for a handler that has died.
        while not self._goes_on:
            if self._queue:
                await self._execute(self._queue.popleft())
            else:
                await self._sleep(None)
        await self.settled()  # what the handler says to the last event comes before the next event
        self.event("CHANNEL_UNPARK")
        self._complete("socket", "socket", self._response)

    async def _sleep(self, seconds: float | None) -> None:
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._wake.wait(), seconds)
        self._wake.clear()

    async def _execute(self, application: Application) -> None:
        about = {"Application": application.name, "Application_UUID": application.uuid}
        self.event("CHANNEL_EXECUTE", **about)
        self._locks += application.locked
        run = getattr(self, f"_run_{application.name}", None)
        response = await run(application.argument) if run is not None else "_none_"
        self._locks -= application.locked
        self._complete(application.name, application.uuid, response)

    def _complete(self, name: str, application_uuid: str, response: str) -> None:
        self._response = response
        self.event(
            "CHANNEL_EXECUTE_COMPLETE",
            Application=name,
            Application_UUID=application_uuid,
            Application_Response=response,
        )

    async def _run_set(self, argument: str) -> str:
        name, _, value = argument.partition("=")
        self.variables[name] = value
        return "_none_"

    async def _run_answer(self, argument: str) -> str:
        if not self.answered:
            self.answered, self.answer_state = self.clock, "answered"
            self.event("CHANNEL_ANSWER")
        return "_none_"

    async def _run_hangup(self, argument: str) -> str:
        self.hang_up(argument)
        return "_none_"

    async def _run_transfer(self, argument: str) -> str:
        self.transfer(argument.split()[0])
        return "_none_"

    async def _run_playback(self, argument: str) -> str:
        self.hears.append(argument)
        self.event("PLAYBACK_START")
        loop = asyncio.get_running_loop()
        ends = loop.time() + self._lengths.get(argument, 1e9)
        self._playing += 1
        try:
            while not self._goes_on:
                if self._break or loop.time() >= ends:
                    self.event("PLAYBACK_STOP", Playback_Status="break" if self._break else "done")
                    self._break = False
                    return "FILE PLAYED"
                if self._queue and not self._locks:
                    began = loop.time()
                    await self._execute(self._queue.popleft())
                    ends += loop.time() - began  # it goes on from where it had stopped
                    if self._goes_on:
                        return "FILE PLAYED"
                else:
                    await self._sleep(ends - loop.time())
            self.event("PLAYBACK_STOP", Playback_Status="done")
            return "PLAYBACK ERROR"
        finally:
            self._playing -= 1

    async def _run_bridge(self, argument: str) -> str:
        options = re.match(r"\{([^}]*)\}", argument)
        name = argument[options.end() :] if options else argument
        seconds = re.search(r"originate_timeout=(\d+)", options[1]) if options else None
        playing, self._playing = self._playing, 0
        self._phones.take(name)
        try:
            failure = await self._ring(name, int(seconds[1]) if seconds else 60)
            if failure:
                self.variables["originate_disposition"] = failure
                if self.variables.get("continue_on_fail") != "true" and not self.cause:
                    self.hang_up(failure)
                return "_none_"
            self.variables["originate_disposition"] = "SUCCESS"
            self.hears.append(name)
            self.talks_with, self._agent_gone = name, False
            self.event("CHANNEL_BRIDGE", Other_Leg_Unique_ID="agent")
            while not (self._goes_on or self._agent_gone):
                await self._sleep(None)
            self.talks_with = ""
            self.event("CHANNEL_UNBRIDGE")
            if self._agent_gone and self.variables.get("hangup_after_bridge") == "true":
                self.hang_up()
            return "_none_"
        finally:
            self._phones.leave(name)
            self._playing = playing

    async def _ring(self, name: str, seconds: int) -> str:
        """Returns why the agent was not reached; empty if it was."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds * self._second
        while self._phones.known.get(name) == "rings" and not self._goes_on:
            if loop.time() >= deadline:
                return "NO_ANSWER"
            await self._sleep(min(0.01, max(0.0, deadline - loop.time())))
        if self._goes_on:
            return "ORIGINATOR_CANCEL"
        if self._phones.known.get(name) == "answers one" and self._phones.calls[name] > 1:
            return "USER_BUSY"
        failures = {"answers": "", "answers one": "", "busy": "USER_BUSY"}
        return failures.get(self._phones.known.get(name, ""), "USER_NOT_REGISTERED")
