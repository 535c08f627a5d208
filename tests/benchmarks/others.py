"""Beside other libraries: the same rows, each library in a process and an environment of its own."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.benchmarks.peers import driver, environments
from tests.benchmarks.rounds import Comparison, Plan
from tests.benchmarks.shared import redis_server
from tests.redis_server import RedisServer

__all__ = ["OURS", "SECTIONS", "compare"]

OURS = "ours (Queue, 1 % sampled)"
PATIENCE = 60.0  # seconds for one round of one library
ONCE = 5.0  # seconds: what takes longer is run once


class Failed(Exception):  # noqa: N818 - a state of affairs
    """A library could not do a row; the text says why."""


class Library:
    """The benchmark's end of one driver process."""

    def __init__(self, name: str, python: Path, url: str) -> None:
        self.name = name
        self._python = python
        self._url = url
        self._process: asyncio.subprocess.Process | None = None

    async def ask(self, row: str, **arguments: Any) -> float:
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
        return float(said["figure"])

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
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
                env=_environment(mine=self.name == OURS),
            )
        return self._process


async def peers(plan: Plan) -> list[Comparison]:
    return await compare(plan.at_most(5), environments.PEERS)


async def compare(plan: Plan, names: Iterable[str]) -> list[Comparison]:
    """Every row for us and for the named libraries."""
    notes: dict[str, str] = {}
    async with redis_server() as server:
        libraries = [Library(OURS, Path(sys.executable), server.url)]
        for name in names:
            try:
                python = await asyncio.to_thread(environments.interpreter, name)
            except environments.Unavailable as error:
                notes[name] = str(error)
            else:
                libraries.append(Library(name, python, server.url))
        try:
            return await _rows(plan, libraries, notes, server)
        finally:
            for library in libraries:
                await library.end()


async def _rows(
    plan: Plan, libraries: list[Library], notes: dict[str, str], server: RedisServer
) -> list[Comparison]:
    waiters, crowd = plan.count(200), plan.count(500)
    alone = {"row": "free", "tasks": 1, "count": plan.count(300)}
    together = {"row": "free", "tasks": plan.count(64), "count": plan.count(10)}
    behind = {"row": "hand-off", "waiters": waiters}
    found = []
    for key, title, unit, command in (
        ("peers-free", "Beside others: enter + leave, one task", "us", alone),
        ("peers-64", "Beside others: 64 tasks at once, a slot free for each", "us a pair", together),
        ("peers-hand-off", f"Beside others: hand-off in one process, {waiters} wait", "us", behind),
    ):
        samples, said = await _alternate(libraries, key, command, plan.rounds)
        found.append(Comparison(key, title, unit, OURS, samples, {**notes, **said}))
    samples, said = {}, {}
    for library in libraries:
        try:
            await library.ask("connections", queue=f"crowd-{library.name}", waiters=crowd)
            samples[library.name] = [float(server.connections())]
        except Failed as error:
            said[library.name] = str(error)
        await library.end()
    title = f"Beside others: connections while {crowd} wait"
    found.append(Comparison("peers-connections", title, "", OURS, samples, {**notes, **said}))
    return found


async def _alternate(
    libraries: list[Library], key: str, command: dict[str, Any], rounds: int
) -> tuple[dict[str, list[float]], dict[str, str]]:
    samples: dict[str, list[float]] = {library.name: [] for library in libraries}
    notes: dict[str, str] = {}
    for round_ in range(rounds + 1):
        for library in libraries if round_ % 2 else reversed(libraries):
            if library.name in notes:
                continue
            began = time.monotonic()
            try:
                figure = await library.ask(**command, queue=f"{key}-{round_}-{library.name}")
            except Failed as error:
                notes[library.name] = str(error)
                continue
            took = time.monotonic() - began
            if took > ONCE and round_ == 0:
                notes[library.name] = f"one round, which takes {took:.0f} s"
                samples[library.name].append(figure)
            elif round_:
                samples[library.name].append(figure)
    for library in libraries:
        await library.end()
    return {name: figures for name, figures in samples.items() if figures}, notes


def _environment(mine: bool) -> dict[str, str]:
    environment = dict(os.environ)
    environment.pop("PYTHONPATH", None)
    if mine:
        environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    return environment


SECTIONS = {"peers": peers}
