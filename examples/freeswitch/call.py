"""One call: answer it, play music while it waits, bridge it to an agent, or reject it.

| event | action |
|---|---|
| a slot is granted | stop the music, call the next free agent |
| an agent is not reached | call the next one |
| no agent is reached | music and another round, the slot is kept; finally the hold ends as `error` |
| the caller hangs up | the place or slot is free at once |
| the talking caller is transferred | the slot is free; the call is left alone |
| the wait is too long | an announcement, then a hang-up |
| the line is full, or the key is pressed | another extension, or the same |
| this instance is about to stop | a waiter moves to the next `socket` action and keeps its place |
| this instance dies | the same, with a head start of the time that it has waited |
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from opentelemetry import trace

from examples.freeswitch.esl import EslConnection, EslError, Execution, happens_within
from examples.freeswitch.settings import Agents, Settings, sentence, with_ring_timeout
from genesis import (
    BackendUnavailableError,
    EvictedError,
    Queue,
    QueueDrainingError,
    QueueFullError,
    QueueTimeoutError,
)
from genesis.queue import SlotRequest

__all__ = ["Call", "NoAgentError", "handle_call"]

PLACE = "genesis_place"
"""The channel variable with the place token: FreeSWITCH passes it to the next instance."""
SINCE = "genesis_since"
"""The channel variable with FreeSWITCH's time, in microseconds, at which the call came to wait."""
MAX_HEAD_START = 86_400.0
LEAST_MUSIC = 1.0
"""Minimum seconds between two starts of the music, so that a missing file causes no busy loop."""

logger = logging.getLogger("freeswitch")
tracer = trace.get_tracer("genesis.examples.freeswitch")


class NoAgentError(Exception):
    """No agent was reached. It makes the hold end as `error`."""


class Call:
    """One call, from the connection to its end.

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
        self._now = asyncio.get_running_loop().time
        self._began = self._now()  # when it started to wait, perhaps on another instance
        self._since = 0
        self._waited_before = False
        self._music: Execution | None = None
        self._request: SlotRequest | None = None  # while it waits

    async def serve(self) -> None:
        """Serve the call to its end.

        Raises:
            EslError: the call or the connection ended, or FreeSWITCH refused a command.
        """
        esl, settings = self._esl, self._settings
        channel = await esl.connect()
        with tracer.start_as_current_span("call", attributes={"genesis.item_id": esl.uuid}):
            place_token = self._resume(channel)
            await esl.replies(
                esl.send("linger"),
                esl.send("myevents plain"),
                # First: if this process dies, FreeSWITCH must continue with the next `socket` action.
                esl.execute("set", "socket_resume=true"),
                esl.execute("set", f"{SINCE}={self._since}"),
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
        """Compute how long the call has waited on earlier instances. Returns its place token.

        All times are FreeSWITCH's, so no instance's clock counts. Each transfer gives the call a new
        profile: a call that comes back waits anew.
        """
        profile, since, now = (
            int(text) if text.isdecimal() else 0
            for text in (
                channel.get("Caller-Profile-Created-Time", ""),
                channel.get(f"variable_{SINCE}", ""),
                channel.get("Event-Date-Timestamp", ""),
            )
        )
        self._waited_before = since > 0 and profile <= since <= now
        self._since = since if self._waited_before else now
        self._began -= min((now - self._since) / 1e6, MAX_HEAD_START)
        _log("connected", self._esl.uuid, waited=round(self._now() - self._began, 3))
        return channel.get(f"variable_{PLACE}")

    async def _in_line(self, place_token: str | None) -> None:
        """Wait and talk; or leave the line by the key, or because this instance stops."""
        esl, settings = self._esl, self._settings
        turn = asyncio.ensure_future(self._take_turn(place_token))
        try:
            await _first_of(turn, esl.key_pressed, self._stopping)
            if self._stopping.done() and self._request is not None:
                # FreeSWITCH must have the token before the line is left. A call that is granted a slot
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

    async def _take_turn(self, place_token: str | None) -> None:
        """Wait for a slot and talk.

        Raises:
            NoAgentError: no agent was reached.
            GenesisError: as entering the line does.
        """
        self._request = request = self._slot_request(place_token)
        self._esl.key = self._settings.leave_key  # it counts while the caller waits
        waiting = [
            asyncio.ensure_future(self._play_music()),
            asyncio.ensure_future(self._speak(request)),
        ]
        try:
            async with request as slot:
                # Neither task must send anything from now on.
                self._stop_waiting(waiting)
                await self._talk()
                if slot.lost:
                    _log("slot lost while talking", self._esl.uuid)
        finally:
            self._stop_waiting(waiting)
            await asyncio.gather(*waiting, return_exceptions=True)

    def _slot_request(self, place_token: str | None) -> SlotRequest:
        settings = self._settings
        waited = min(self._now() - self._began, MAX_HEAD_START) if self._waited_before else 0.0
        timeout = settings.timeout
        options: dict[str, Any] = {
            "item_id": self._esl.uuid,
            "max_concurrent": settings.calls_at_once,
            "timeout": None if timeout is None else max(1.0, timeout - waited),
            # A call that was in the line once is never refused.
            "max_waiting": None if self._waited_before else settings.max_waiting,
            "head_start": waited,
            "keep_place": settings.keep_seconds,
        }
        try:
            return self._queue.slot(settings.queue_id, place_token=place_token, **options)
        except ValueError:
            if place_token is None:
                raise
            return self._queue.slot(settings.queue_id, **options)  # the token of another queue

    def _stop_waiting(self, waiting: Sequence[asyncio.Future[None]]) -> None:
        self._request = None
        self._esl.key = ""
        for task in waiting:
            task.cancel()

    async def _play_music(self) -> None:
        """Play music, again when it has ended, until this is cancelled."""
        try:
            while True:
                began = self._now()
                if self._music is None or self._music.completed.done():
                    self._music = self._esl.execute("playback", self._settings.music)
                    await self._esl.replies(self._music)
                await asyncio.wait({self._music.completed})
                await asyncio.sleep(LEAST_MUSIC - (self._now() - began))
        except EslError as error:
            self._esl.end(str(error))

    async def _speak(self, request: SlotRequest) -> None:
        """Announce the caller's position from time to time, until this is cancelled.

        FreeSWITCH plays it within the music, which continues afterwards. It is not locked, so that a
        bridge does not wait for its end.
        """
        settings, esl = self._settings, self._esl
        if not settings.speech:
            return
        try:
            async for status in request.watch(
                every=settings.speak_every, at_least=settings.speak_at_least
            ):
                spoken = settings.speech.replace("{}", sentence(status))
                playback = esl.execute("playback", spoken)
                await esl.replies(playback)
                await asyncio.wait({playback.completed})
        except EslError as error:
            esl.end(str(error))

    async def _talk(self) -> None:
        """Call the agents until one is reached; return after the conversation.

        The slot is kept between the rounds, so nobody is served before this caller, and unreachable
        agents are not called continuously.

        Raises:
            NoAgentError: no agent was reached in any round.
        """
        settings, esl = self._settings, self._esl
        for rounds_left in reversed(range(settings.rounds)):
            await self._break_music()
            # After the break, because the break discards queued applications.
            await esl.replies(
                esl.execute("set", "continue_on_fail=true"),  # do not hang up on the caller
                esl.execute("set", "socket_resume=false"),  # our death must not end the conversation
                esl.execute("set", "hangup_after_bridge=true"),  # when the agent hangs up
            )
            for agent in self._agents.in_turn():
                if await self._call_agent(agent):
                    return
            if rounds_left:
                await esl.replies(esl.execute("set", "socket_resume=true"))
                music = asyncio.ensure_future(self._play_music())
                try:
                    await asyncio.sleep(settings.pause_seconds)
                finally:
                    await _cancelled(music)
        raise NoAgentError(f"none of the agents was reached: {', '.join(settings.agents)}")

    async def _call_agent(self, agent: str) -> bool:
        """Call one agent. Returns whether the caller has talked to the agent."""
        settings, esl = self._settings, self._esl
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
                await esl.replies(bridge)
                event = await bridge.completed
        except (QueueTimeoutError, BackendUnavailableError):
            return False  # the agent talks with another caller
        if not esl.bridged:
            cause = event.get("variable_originate_disposition", "")
            _log("agent not reached", esl.uuid, agent=agent, cause=cause)
            return False
        _log("talked", esl.uuid, agent=agent)
        esl.let_go()  # if the call has not ended now, the caller was transferred
        return True

    async def _break_music(self) -> None:
        """Stop the music after it has started: an earlier break would discard what is queued.

        If an announcement plays within the music, the break ends only the announcement, and what
        follows runs within the music. It starts just as soon.
        """
        if self._music is not None:
            await happens_within(self._settings.begin_seconds, self._music.started)
            await self._esl.replies(self._esl.send(f"api uuid_break {self._esl.uuid} all"))

    async def _send_away(self, reason: object, cause: str, overflow: str = "") -> None:
        """Transfer the caller to an extension, or play an announcement and hang up."""
        esl, settings = self._esl, self._settings
        _log("not served", esl.uuid, reason=str(reason))
        await self._break_music()
        # If this instance ends now, or waits no longer, the call must not go on to the next `socket`.
        settled = esl.execute("set", "socket_resume=false")
        if overflow:
            await esl.replies(settled, esl.execute("transfer", overflow))
        else:
            # Locked: otherwise the hang-up would run within the announcement and cut it off.
            sorry = esl.execute("playback", settings.sorry, lock=True)
            await esl.replies(settled, sorry, esl.execute("hangup", cause))
        await happens_within(settings.sorry_seconds, esl.ended)


async def handle_call(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    queue: Queue,
    settings: Settings,
    agents: Agents,
    stopping: asyncio.Future[None],
) -> None:
    """Serve one connection to its end. Raises nothing except a cancellation."""
    esl = EslConnection(reader, writer, settings.reply_seconds)
    reading = asyncio.ensure_future(esl.read())
    call = asyncio.ensure_future(Call(esl, queue, settings, agents, stopping).serve())
    try:
        await _first_of(call, esl.ended)
    finally:
        try:
            # Give up the place first: the next caller must not wait for the end of this connection.
            outcome = await _cancelled(call)
            if isinstance(outcome, EslError):
                esl.end(str(outcome))
            elif isinstance(outcome, Exception):
                logger.error("the call failed", exc_info=outcome, extra={"item_id": esl.uuid})
            if esl.elsewhere:
                await _first_of(reading, esl.hung_up)
            if esl.hung_up.done():
                await asyncio.wait({reading}, timeout=settings.linger_seconds)
        finally:
            reading.cancel()
            await esl.close()
            _log("ended", esl.uuid, reason=esl.ended.result())


async def _first_of(*happenings: asyncio.Future[Any]) -> None:
    await asyncio.wait(happenings, return_when=asyncio.FIRST_COMPLETED)


async def _cancelled(task: asyncio.Future[Any]) -> Any:
    """Cancel a task if it runs, and return its result or exception."""
    task.cancel()
    outcomes: list[Any] = await asyncio.gather(*[task], return_exceptions=True)
    return outcomes[0]


def _log(event: str, item_id: str, **fields: object) -> None:
    text = " ".join(f"{name}={value!r}" for name, value in fields.items())
    extra = {"event": event, "item_id": item_id, **fields}
    logger.info("%s item_id=%s %s", event, item_id, text, extra=extra)
