"""One caller's way: answered, in the line to music, bridged to an agent, or sent away.

| what happens | what this does |
|---|---|
| a slot is granted | the music stops, the next free agent is called |
| an agent is not reached | the next one is called; after all of them the hold ends as `error`, and the caller keeps its place |
| the caller hangs up | the place or slot is free at once |
| the talking caller is transferred | the slot is free; the call is left alone |
| the wait is too long, the line is full, the key is pressed | an announcement and a hang-up, or another extension |
| this instance is about to stop | who waits is handed over to the next `socket` action, with its place kept |
| this instance dies | who waits goes to the next `socket` action, and gets a head start of as long as it has waited |
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from opentelemetry import trace

from examples.freeswitch.esl import (
    CallEndedError,
    EslConnection,
    EslError,
    Execution,
    happens_within,
)
from genesis import (
    BackendUnavailableError,
    EvictedError,
    Queue,
    QueueDrainingError,
    QueueFullError,
    QueueTimeoutError,
)
from genesis.queue import SlotRequest, WaitStatus

__all__ = ["Agents", "Call", "NoAgentError", "Settings", "handle_call"]

PLACE = "genesis_place"
"""The channel variable that hands a place over; FreeSWITCH shows it to the next instance."""
MAX_HEAD_START = 86_400.0

logger = logging.getLogger("freeswitch")
tracer = trace.get_tracer("genesis.examples.freeswitch")


@dataclass(frozen=True)
class Settings:
    """What a call is to meet. Times are in seconds."""

    queue_id: str = "agents"
    agents: Sequence[str] = ("user/1000",)  # dial strings, each called by one call at a time
    limit: int | None = None  # calls with agents at once; None: one for each agent
    timeout: float | None = 300.0  # in the line at most
    max_waiting: int | None = None  # in the line at most; further callers find it full
    ring_seconds: int = 20  # until the next agent is called
    rounds: int = 3  # of calling all agents, until the caller is sent away
    pause_seconds: float = 5.0  # after such a round; the slot is kept meanwhile
    music: str = "tone_stream://%(2000,4000,440,480);loops=-1"
    sorry: str = "tone_stream://%(500,500,480,620);loops=4"
    speech: str = ""  # what plays a sentence, which replaces `{}` in it; nothing is spoken if empty
    speak_every: float = 30.0
    speak_at_least: float = 10.0
    leave_key: str = ""  # leaves the line
    overflow: str = ""  # extension for those who find the line full or press the key; else hung up
    keep_seconds: float = 60.0  # for which a place is kept when a call is handed over
    reply_seconds: float = 10.0  # for FreeSWITCH to reply to a command
    sorry_seconds: float = 30.0  # for the announcement and the hang-up after it
    linger_seconds: float = 2.0  # to get the report on how the call ended, once it has
    begin_seconds: float = 1.0  # for the music to begin

    @property
    def calls_at_once(self) -> int:
        return len(self.agents) if self.limit is None else self.limit

    @property
    def calls_per_agent(self) -> int:
        """More than 1 only if `limit` exceeds the agents: several phones are behind each dial string."""
        return max(1, math.ceil(self.calls_at_once / len(self.agents)))


class NoAgentError(Exception):
    """No agent was reached; lets the hold end as `error`."""


class Agents:
    """The agents, from one who was not called last. A process has one."""

    def __init__(self, agents: Sequence[str]) -> None:
        self._agents = agents
        self._first = itertools.cycle(range(len(agents)))

    def in_turn(self) -> Iterator[str]:
        first = next(self._first)
        return (self._agents[(first + n) % len(self._agents)] for n in range(len(self._agents)))


class Call:
    """One call, from taking it over to giving it away.

    Args:
        stopping: resolves when this instance is about to stop.
    """

    def __init__(
        self,
        esl: EslConnection,
        queue: Queue,
        settings: Settings,
        agents: Agents,
        stopping: asyncio.Future[None],
    ) -> None:
        self._esl = esl
        self._queue = queue
        self._settings = settings
        self._agents = agents
        self._stopping = stopping
        self._music: Execution | None = None
        self._request: SlotRequest | None = None  # while it waits
        self._began = 0.0  # when it began to wait, by the loop's clock; on whichever instance

    async def serve(self) -> None:
        """Serve the call to its end.

        Raises:
            EslError: the connection or the call ended in a way that nothing else can be done.
        """
        esl, settings = self._esl, self._settings
        channel = await esl.connect()
        with tracer.start_as_current_span("call", attributes={"genesis.item_id": esl.uuid}):
            place_token = self._resume(channel)
            await esl.replies(
                esl.send("linger"),
                esl.send("myevents plain"),
                # First of all: if this process dies, FreeSWITCH goes on to the next `socket` action.
                esl.execute("set", "socket_resume=true"),
                esl.execute("set", "playback_terminators=none"),  # `*` would end the music
                esl.execute("answer"),
            )
            try:
                await self._in_line(place_token)
            except QueueDrainingError:
                esl.end("handed over")
            except QueueFullError as error:
                await self._send_away(error, "USER_BUSY", settings.overflow)
            except (QueueTimeoutError, EvictedError, BackendUnavailableError, NoAgentError) as error:
                await self._send_away(error, "NORMAL_TEMPORARY_FAILURE")

    def _resume(self, channel: Mapping[str, str]) -> str | None:
        """Take note of a call that has waited before; returns the token of its place, if there is one.

        Both times are FreeSWITCH's, so no clock of an instance counts. A call is answered when it
        begins to wait, so this serves also if the instance before died without a word.
        """
        waited = 0.0
        if channel.get("variable_socket_resume") == "true":
            answered = int(channel.get("Caller-Channel-Answered-Time", "0"))
            if answered:
                waited = (int(channel["Event-Date-Timestamp"]) - answered) / 1e6
        self._began = asyncio.get_running_loop().time() - min(max(waited, 0.0), MAX_HEAD_START)
        _log("connected", self._esl.uuid, waited=round(waited, 3))
        return channel.get(f"variable_{PLACE}") or None

    async def _in_line(self, place_token: str | None) -> None:
        """Wait and talk; or leave the line by the key, or because this instance stops."""
        esl, settings = self._esl, self._settings
        turn = asyncio.ensure_future(self._take_turns(place_token))
        try:
            await _first_of(turn, esl.key_pressed, self._stopping)
            if self._stopping.done() and self._request is not None:
                # FreeSWITCH must have the token before the line is left. Who is granted a slot
                # meanwhile is not handed over.
                if token := self._request.place_token:
                    await esl.replies(esl.send(f"api uuid_setvar {esl.uuid} {PLACE} {token}"))
                if self._request is not None:
                    esl.end("handed over")
                    return
            if esl.key_pressed.done() and self._request is not None:
                await _cancelled(turn)
                await self._send_away("the key was pressed", "NORMAL_CLEARING", settings.overflow)
                return
            await _first_of(turn)
            turn.result()
        finally:
            await _cancelled(turn)

    async def _take_turns(self, place_token: str | None) -> None:
        """Wait for a slot and talk; if no agent is reached, again at the same place.

        Raises:
            NoAgentError: no agent was reached in any round.
            GenesisError: as entering the line does.
        """
        settings, item_id = self._settings, self._esl.uuid
        now = asyncio.get_running_loop().time
        for again in range(settings.rounds):
            waited = now() - self._began if again or now() - self._began > 1.0 else 0.0
            timeout, max_waiting = settings.timeout, settings.max_waiting
            if waited:
                timeout = None if timeout is None else max(1.0, timeout - waited)
                max_waiting = None  # once in the line, never refused
            options: dict[str, Any] = {
                "item_id": item_id,
                "max_concurrent": settings.calls_at_once,
                "timeout": timeout,
                "max_waiting": max_waiting,
                "head_start": min(waited, MAX_HEAD_START),
                "keep_place": settings.keep_seconds,
            }
            try:
                request = self._queue.slot(settings.queue_id, place_token=place_token, **options)
            except ValueError:  # a token that is malformed or another queue's
                request = self._queue.slot(settings.queue_id, **options)
            place_token = None
            self._request = request
            entertaining = asyncio.ensure_future(self._entertain(request))
            try:
                async with request as slot:
                    self._request = None
                    entertaining.cancel()
                    await self._talk()
                    if slot.lost:
                        _log("slot lost while talking", item_id)
                    return
            except NoAgentError:
                if again + 1 == settings.rounds:
                    raise
            finally:
                self._request = None
                await _cancelled(entertaining)

    async def _entertain(self, request: SlotRequest) -> None:
        """Play music, and from time to time where the caller stands, until this is cancelled."""
        speaking = asyncio.ensure_future(self._speak(request) if self._settings.speech else _nothing())
        now = asyncio.get_running_loop().time
        try:
            while True:
                if self._music is None or self._music.completed.done():
                    began = now()
                    self._music = self._esl.execute("playback", self._settings.music)
                    await self._esl.replies(self._music)
                await asyncio.wait({self._music.completed})
                # Music that a break ended, or a file that has, starts again. One that cannot be
                # played ends at once: try it once a second.
                await asyncio.sleep(max(0.0, 1.0 - (now() - began)))
        except CallEndedError:
            pass
        except EslError as error:
            self._esl.end(str(error))
        finally:
            await _cancelled(speaking)

    async def _speak(self, request: SlotRequest) -> None:
        """Within the music, which goes on afterwards. Not locked: a bridge does not wait for its end."""
        settings = self._settings
        pace = {"every": settings.speak_every, "at_least": settings.speak_at_least}
        try:
            async for status in request.watch(**pace):
                spoken = settings.speech.replace("{}", sentence(status))
                playing = self._esl.execute("playback", spoken)
                await self._esl.replies(playing)
                await asyncio.wait({playing.completed})
        except CallEndedError:
            pass
        except EslError as error:
            _log("not spoken", self._esl.uuid, reason=str(error))

    async def _talk(self) -> None:
        """Call one agent after the other until one is reached; return when the two have talked.

        Raises:
            NoAgentError: none was reached.
        """
        settings, esl = self._settings, self._esl
        await self._stop_music()
        # After the break, which discards what is queued. From here on a dead controller must not end
        # the conversation, and the agent's hang-up ends the call. FreeSWITCH carries them out in order
        # before the bridge; waiting for the replies would only delay it.
        sent = [
            esl.execute("set", "continue_on_fail=true"),  # else it hangs up on the caller
            esl.execute("set", "socket_resume=false"),
            esl.execute("set", "hangup_after_bridge=true"),
        ]
        for agent in self._agents.in_turn():
            phone = self._queue.slot(
                f"{settings.queue_id} {agent}",
                item_id=esl.uuid,
                max_concurrent=settings.calls_per_agent,
                timeout=0,
            )
            try:
                async with phone:
                    _log("calling", esl.uuid, agent=agent)
                    bridge = esl.execute("bridge", with_ring_timeout(agent, settings.ring_seconds))
                    await esl.replies(*sent, bridge)
                    event = await bridge.completed
                    if esl.bridged:
                        # Usually the hang-up has been reported by now. If it has not, the caller was
                        # transferred, and to send a hang-up would end the call that goes on.
                        _log("talked", esl.uuid, agent=agent)
                        return
                    cause = event.get("variable_originate_disposition", "")
                    _log("agent not reached", esl.uuid, agent=agent, cause=cause)
            except (QueueTimeoutError, BackendUnavailableError):
                continue  # that agent talks with another caller
        await esl.replies(*sent, esl.execute("set", "socket_resume=true"))
        self._music = self._music if self._music_runs else esl.execute("playback", settings.music)
        await esl.replies(self._music or esl.send("api status"))
        await asyncio.sleep(settings.pause_seconds)
        raise NoAgentError(f"none of {len(settings.agents)} agents was reached")

    @property
    def _music_runs(self) -> bool:
        return self._music is not None and not self._music.completed.done()

    async def _stop_music(self) -> None:
        """Only once it plays: the break would discard what is queued before it."""
        if self._music is not None:
            await happens_within(self._settings.begin_seconds, self._music.started)
        # If an announcement plays within the music, the break ends that alone. What follows then runs
        # within the music, as soon as after it.
        await self._esl.replies(self._esl.send(f"api uuid_break {self._esl.uuid} all"))

    async def _send_away(self, reason: object, cause: str, overflow: str = "") -> None:
        """To another extension, or, after an announcement, hung up."""
        esl, settings = self._esl, self._settings
        _log("not served", esl.uuid, reason=str(reason))
        await self._stop_music()
        if overflow:
            await esl.replies(
                esl.execute("set", "socket_resume=false"), esl.execute("transfer", overflow)
            )
        else:
            await esl.replies(
                esl.execute("playback", settings.sorry, lock=True), esl.execute("hangup", cause)
            )
        await happens_within(settings.sorry_seconds, esl.ended)


def sentence(status: WaitStatus) -> str:
    """What the caller is told. For recorded prompts give `file_string://` with the numbers' files."""
    text = f"You are number {status.position} in line."
    if status.expected_wait is not None:
        minutes = max(1, math.ceil(status.expected_wait / 60))
        text += f" Your wait is about {minutes} minute{'s' if minutes > 1 else ''}."
    return text


def with_ring_timeout(agent: str, seconds: int) -> str:
    if agent.startswith("{"):
        return f"{{originate_timeout={seconds},{agent[1:]}"
    return f"{{originate_timeout={seconds}}}{agent}"


async def handle_call(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    queue: Queue,
    settings: Settings,
    agents: Agents,
    stopping: asyncio.Future[None],
) -> None:
    """Serve one connection, from its first to its last byte; raises nothing but a cancellation."""
    esl = EslConnection(reader, writer, settings.reply_seconds, settings.leave_key)
    reading = asyncio.ensure_future(esl.read())
    call = asyncio.ensure_future(Call(esl, queue, settings, agents, stopping).serve())
    try:
        await _first_of(call, esl.ended)
    finally:
        try:
            # The place first: whoever is next does not wait for this connection's end.
            outcome = await _cancelled(call)
            if isinstance(outcome, EslError):
                esl.end(str(outcome))
            elif isinstance(outcome, Exception):
                logger.error("the call failed", exc_info=outcome, extra={"item_id": esl.uuid})
            if esl.hung_up:
                await asyncio.wait({reading}, timeout=settings.linger_seconds)
        finally:
            await _cancelled(reading)
            await esl.close()
            _log("ended", esl.uuid, reason=esl.ended.result())


async def _first_of(*happenings: asyncio.Future[Any]) -> None:
    await asyncio.wait(happenings, return_when=asyncio.FIRST_COMPLETED)


async def _cancelled(task: asyncio.Future[Any]) -> Any:
    """End a task, if it has not ended; returns its result or exception."""
    task.cancel()
    (outcome,) = await asyncio.gather(task, return_exceptions=True)
    return outcome


async def _nothing() -> None: ...


def _log(event: str, item_id: str, **fields: object) -> None:
    text = " ".join(f"{name}={value!r}" for name, value in fields.items())
    extra = {"event": event, "item_id": item_id, **fields}
    logger.info("%s item_id=%s %s", event, item_id, text, extra=extra)
