"""Beside other libraries: the same rows, each library in a process and an environment of its own."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks.peers import driver, environments
from tests.benchmarks.rounds import Comparison, Plan
from tests.benchmarks.shared import redis_server
from tests.support.redis_server import RedisServer

__all__ = ["OURS", "SECTIONS", "compare"]

OURS = "ours (Queue, 1 % sampled)"
PATIENCE = 60.0  # seconds for one round of one library
PROCESSES = 4  # in the rows over several
ONCE = 5.0  # seconds: what takes longer is run once


class Failed(Exception):  # noqa: N818 - a state of affairs
    """A library could not do a row; the text says why."""


class Library:
    """The benchmark's end of one driver process."""

    def __init__(self, name: str, python: Path, url: str, loop: str) -> None:
        self.name = name
        self._python = python
        self._url = url
        self._loop = loop
        self._process: asyncio.subprocess.Process | None = None

    async def ask(self, row: str, **arguments: Any) -> Any:
        process = await self._started()
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps({"row": row, **arguments}).encode() + b"\n")
        try:
            line = await asyncio.wait_for(process.stdout.readline(), PATIENCE)
        except asyncio.TimeoutError:
            await self.end()
            raise Failed(f"not done in {PATIENCE:g} s") from None
        if not line:
            await self.end()
            raise Failed("its process ended")
        said = json.loads(line)
        if "error" in said:
            await self.end()
            raise Failed(said["error"])
        return said["figure"]

    async def end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            if process.returncode is None:
                process.kill()
            await process.wait()

    async def _started(self) -> asyncio.subprocess.Process:
        if self._process is None:
            library = "ours" if self.name == OURS else self.name
            self._process = await asyncio.create_subprocess_exec(
                str(self._python),
                driver.__file__,
                library,
                self._url,
                self._loop,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
                env=_environment(mine=self.name == OURS),
            )
        return self._process


class Several:
    """Several processes of one library, which share a line of one slot."""

    def __init__(self, libraries: list[Library]) -> None:
        self.name = libraries[0].name
        self._libraries = libraries

    async def ask(self, queue: str, waiters: int, hold: float) -> float:
        """Microseconds per hand-off less the time inside, from the first release to the last entry."""
        try:
            await self._all("crowd", queue=queue, waiters=waiters, hold=hold)
            await self._libraries[0].ask("hold", queue=queue)
            await self._all("gather", queue=queue)
            found = await self._all("drain", queue=queue)
        except Failed:
            await self.end()
            raise
        count = waiters * len(found)
        began = max(figures[0] for figures in found)
        ended = max(figures[1] for figures in found)
        inside = sum(figures[2] for figures in found) * (count - 1) / count  # all but the last one's
        return float((ended - began - inside) / count * 1e6)

    async def end(self) -> None:
        for library in self._libraries:
            await library.end()

    async def _all(self, row: str, **arguments: Any) -> list[Any]:
        return await asyncio.gather(*(library.ask(row, **arguments) for library in self._libraries))


async def peers(plan: Plan) -> list[Comparison]:
    return await compare(plan.at_most(5), environments.PEERS)


async def peers_uvloop(plan: Plan) -> list[Comparison]:
    """Under uvloop, the fastest peers; what this library was at ba0ea4a does not run there."""
    return await compare(plan.at_most(5), ["redsync 2.0.0", "redis-py Lock"], "uvloop")


async def compare(plan: Plan, names: Iterable[str], loop: str = "asyncio") -> list[Comparison]:
    """Every row for us and for the named libraries."""
    notes: dict[str, str] = {}
    async with redis_server() as server:
        pythons = {OURS: Path(sys.executable)}
        for name in names:
            try:
                pythons[name] = await asyncio.to_thread(environments.interpreter, name)
            except environments.Unavailable as error:
                notes[name] = str(error)
        libraries = [Library(name, python, server.url, loop) for name, python in pythons.items()]
        crowds = [
            Several([Library(name, python, server.url, loop) for _ in range(PROCESSES)])
            for name, python in pythons.items()
        ]
        try:
            return await _rows(plan, libraries, crowds, notes, server, loop)
        finally:
            for library in libraries:
                await library.end()
            for several in crowds:
                await several.end()


async def _rows(
    plan: Plan,
    libraries: list[Library],
    crowds: list[Several],
    notes: dict[str, str],
    server: RedisServer,
    loop: str,
) -> list[Comparison]:
    waiters, crowd = plan.count(200), plan.count(500)
    alone = {"row": "free", "tasks": 1, "count": plan.count(300)}
    together = {"row": "free", "tasks": plan.count(64), "count": plan.count(10)}
    behind = {"row": "hand-off", "waiters": waiters}
    many, few = plan.count(50), plan.count(10)
    where, suffix = ("under uvloop", "-uvloop") if loop == "uvloop" else ("Beside others", "")
    found = []
    rows: list[tuple[str, str, str, Sequence[Library | Several], dict[str, Any]]] = [
        ("free", "enter + leave, one task", "us", libraries, alone),
        (
            "cpu",
            "the client's CPU for enter + leave, one task",
            "us",
            libraries,
            {**alone, "cpu": True},
        ),
        ("64", "64 tasks at once, a slot free for each", "us a pair", libraries, together),
        ("hand-off", f"hand-off in one process, {waiters} wait", "us", libraries, behind),
        (
            "across",
            f"hand-off over {PROCESSES} processes, {many} wait in each",
            "us",
            crowds,
            {"waiters": many, "hold": 0.0},
        ),
        (
            "held",
            f"hand-off over {PROCESSES} processes, {few} wait in each, 5 ms inside",
            "us",
            crowds,
            {"waiters": few, "hold": 0.005},
        ),
    ]
    for key, title, unit, subjects, command in rows:
        samples, said = await _alternate(subjects, key, command, plan.rounds)
        name = f"peers-{key}{suffix}"
        found.append(Comparison(name, f"{where}: {title}", unit, OURS, samples, {**notes, **said}))
    samples, said = {}, {}
    for library in libraries:
        try:
            await library.ask("connections", queue=f"crowd-{library.name}", waiters=crowd)
            samples[library.name] = [float(server.connections())]
        except Failed as error:
            said[library.name] = str(error)
        await library.end()
    title = f"{where}: connections while {crowd} wait"
    key = f"peers-connections{suffix}"
    found.append(Comparison(key, title, "", OURS, samples, {**notes, **said}))
    return found


async def _alternate(
    subjects: Sequence[Library | Several], key: str, command: dict[str, Any], rounds: int
) -> tuple[dict[str, list[float]], dict[str, str]]:
    samples: dict[str, list[float]] = {subject.name: [] for subject in subjects}
    notes: dict[str, str] = {}
    for round_ in range(rounds + 1):
        for subject in subjects if round_ % 2 else reversed(subjects):
            if subject.name in notes:
                continue
            began = time.monotonic()
            try:
                figure = await subject.ask(**command, queue=f"{key}-{round_}-{subject.name}")
            except Failed as error:
                notes[subject.name] = str(error)
                continue
            took = time.monotonic() - began
            if took > ONCE and round_ == 0:
                notes[subject.name] = f"one round, which takes {took:.0f} s"
                samples[subject.name].append(figure)
            elif round_:
                samples[subject.name].append(figure)
    for subject in subjects:
        await subject.end()
    return {name: figures for name, figures in samples.items() if figures}, notes


def _environment(mine: bool) -> dict[str, str]:
    environment = dict(os.environ)
    environment.pop("PYTHONPATH", None)
    if mine:
        environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    return environment


SECTIONS = {"peers": peers, "peers-uvloop": peers_uvloop}
