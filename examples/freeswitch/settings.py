"""The settings: the queue, the agents, the music and the announcements."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from genesis.queue import WaitStatus

__all__ = ["Agents", "Settings", "sentence", "with_ring_timeout"]


@dataclass(frozen=True)
class Settings:
    """Times are in seconds."""

    queue_id: str = "agents"
    agents: Sequence[str] = ("user/1000",)  # dial strings, each called by one call at a time
    limit: int | None = None  # calls with agents at once; None: one for each agent
    timeout: float | None = 300.0  # the maximum wait
    max_waiting: int | None = None  # the maximum number of waiters; further callers are refused
    ring_seconds: int = 20  # until the next agent is called
    rounds: int = 3  # of calling all agents, before the caller is hung up
    pause_seconds: float = 5.0  # after a round without an answer; the slot is kept meanwhile
    music: str = "tone_stream://%(2000,4000,440,480);loops=-1"
    sorry: str = "tone_stream://%(500,500,480,620);loops=4"
    speech: str = ""  # plays a sentence, which replaces `{}`; if empty, nothing is spoken
    speak_every: float = 30.0
    speak_at_least: float = 10.0  # minimum time between two sentences
    leave_key: str = ""  # leaves the line
    overflow: str = ""  # extension for callers refused as `full` or who press the key; "" to hang up
    keep_seconds: float = 60.0  # how long a place is kept when a call is handed over
    reply_seconds: float = 10.0  # for FreeSWITCH to reply to a command
    sorry_seconds: float = 30.0  # for the announcement and the hang-up after it
    linger_seconds: float = 2.0  # for the report on how the call ended
    begin_seconds: float = 1.0  # for the music to start

    @property
    def calls_at_once(self) -> int:
        return len(self.agents) if self.limit is None else self.limit

    @property
    def calls_per_agent(self) -> int:
        """More than 1 only if `limit` exceeds the number of agents: then each has several phones."""
        return math.ceil(self.calls_at_once / len(self.agents))


class Agents:
    """The agents, each time starting with the next one, so that no agent gets all the calls."""

    def __init__(self, agents: Sequence[str]) -> None:
        self._agents = agents
        self._first = itertools.cycle(range(len(agents)))

    def in_turn(self) -> Iterator[str]:
        first = next(self._first)
        return (self._agents[(first + n) % len(self._agents)] for n in range(len(self._agents)))


def sentence(status: WaitStatus) -> str:
    """The announcement for a waiting caller."""
    text = f"You are number {status.position} in line."
    if status.expected_wait is not None:
        minutes = max(1, math.ceil(status.expected_wait / 60))
        text += f" Your wait is about {minutes} minute{'s' if minutes > 1 else ''}."
    return text


def with_ring_timeout(agent: str, seconds: int) -> str:
    """The dial string with a limit on ringing, added to its own options if it has any."""
    if agent.startswith("{"):
        return f"{{originate_timeout={seconds},{agent[1:]}"
    return f"{{originate_timeout={seconds}}}{agent}"
