"""A core with simulated replies of Redis, for the tests of the core."""

from __future__ import annotations

from typing import Any

from genesis.backends.redis.members import make_member
from genesis.backends.redis.ticket import Command, LocalTicket
from tests.protocol.instance import core_over

LEASE = 15.0
NUMBERS = [0, 0, b"1", 0, 0, 0, 0]
ERROR = RuntimeError("OOM command not allowed")


class Line:
    """A core, and the replies that Redis would give."""

    def __init__(self, page: int = 500) -> None:
        self.core = core_over()("q", LEASE, page)
        self.serial = 0

    def ticket(self, name: str, **options: Any) -> LocalTicket:
        self.serial += 1
        return LocalTicket(make_member("a", self.serial, 0, "", name), b"1", **options)

    def enter(self, name: str, now: float = 0, **options: Any) -> LocalTicket:
        ticket = self.ticket(name, **options)
        self.core.enter(ticket, now)
        return ticket

    def commands(self) -> list[Command]:
        commands, self.core.commands = self.core.commands, []
        return commands

    def command(self, name: str) -> Command:
        [command] = self.commands()
        assert command.name == name
        return command

    def verdicts(self) -> list[Any]:
        verdicts, self.core.verdicts = self.core.verdicts, []
        return verdicts

    def synced(
        self, command: Command, *rows: list[int], now: float = 0, override: bytes = b"",
        version: int = 0, more: int = 0, lost: int = 0, look: int = -1,
    ) -> None:  # fmt: skip
        listed = [[*row, 0, 1] if row[0] == 2 else row for row in rows]
        head = [1, 1000, override, b"%d" % version, NUMBERS, listed, lost, b"", []]
        reply = [*head, more, [], [], look]
        self.core.replied(command, reply, now)

    def connected(self, now: float = 0) -> Line:
        """Connected and synced, without tickets."""
        self.core.connected(now)
        first = self.enter("first", now)
        sync = self.command("sync")
        self.synced(sync, [1, 1])
        self.core.leave(first, now)
        self.core.replied(self.command("leave"), [1], now)
        self.verdicts()
        return self

    def holding(self, name: str = "held", token: int = 10) -> LocalTicket:
        ticket = self.enter(name)
        self.core.replied(self.command("enter"), granted(token), 0)
        assert self.verdicts() == [("granted", ticket, None)]
        return ticket

    def waiting(self, name: str = "waits", place: int = 20) -> LocalTicket:
        ticket = self.enter(name)
        self.core.replied(self.command("enter"), [[2, place, 0, 1], 1, b"1", b"", [], [], -1, []], 0)
        assert self.verdicts() == [("waiting", ticket, 1, 1, ())]
        return ticket


def granted(token: int) -> list[Any]:
    return [[1, token, 0], 0, b"1", b""]


def rows_of(command: Command) -> list[tuple[bytes, bytes, bytes]]:
    """Item, stage and number of each ticket that a sync lists."""
    words = command.arguments[7:]
    return [
        (words[i].split(b" ")[3], words[i + 1], words[i + 2]) for i in range(0, len(words), 5)
    ]  # fmt: skip
