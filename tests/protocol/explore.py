"""Breadth-first search through all states of a bound. Stores a hash and the predecessor of each."""

from __future__ import annotations

import time
from collections import deque
from typing import NamedTuple

from tests.protocol.instance import BrokenPromiseError
from tests.protocol.promises import broken_promise
from tests.protocol.state import State
from tests.protocol.words import described
from tests.protocol.world import World

__all__ = ["Result", "explore"]


class Result(NamedTuple):
    states: int
    seconds: float
    wrong: str = ""
    trace: tuple[str, ...] = ()
    finished: bool = True


def explore(world: World, seconds: float = float("inf"), most: int = 10_000_000) -> Result:
    """Explore all states; stops at the shortest sequence of steps that breaks a promise."""
    began = time.perf_counter()
    first = world.finish(world.start())
    seen: dict[int, int] = {hash(first): 0}
    queue: deque[State] = deque([first])
    turns = 0
    while queue:
        state = queue.popleft()
        turns += 1
        key = hash(state)
        try:
            wrong = broken_promise(world, state)
            for _, after in () if wrong else world.steps(state):
                mark = hash(after)
                if mark not in seen:
                    seen[mark] = key
                    queue.append(after)
        except BrokenPromiseError as caught:
            last = described(world, world.label, state)
            path = trace(world, first, seen, key)
            return Result(len(seen), time.perf_counter() - began, str(caught), (*path, last))
        if wrong:
            return Result(len(seen), time.perf_counter() - began, wrong, trace(world, first, seen, key))
        if len(seen) > most or (turns % 256 == 0 and time.perf_counter() - began > seconds):
            return Result(len(seen), time.perf_counter() - began, finished=False)
    return Result(len(seen), time.perf_counter() - began)


def trace(world: World, first: State, seen: dict[int, int], key: int) -> tuple[str, ...]:
    chain = [key]
    while seen[chain[-1]]:
        chain.append(seen[chain[-1]])
    state, path = first, []
    for mark in chain[-2::-1]:
        for label, after in world.steps(state):
            if hash(after) == mark:
                path.append(described(world, label, state))
                state = after
                break
    return tuple(path)
