"""The kinds of numbers in a state, and how a state is made canonical.

| numbers               | meaning                                                                  |
|-----------------------|--------------------------------------------------------------------------|
| below 10              | counts, codes, flags, indexes                                            |
| 10 i + 11, + 12, + 13 | the last renewal of instance i: fresh, older than a lease, than a record |
| 100 (i + 1) and above | sessions of instance i                                                   |
| 1,000 and above       | places, fencing tokens, versions of overrides: Redis's clock             |

Only the order of sessions and of Redis's numbers matters. After every step they are therefore replaced
by their ranks; otherwise Redis's clock would make every state new. When a script is run, the ranks are
written to Redis: they lie far in the past, so every number that the script adds is greater.
"""

from __future__ import annotations

from typing import Any, TypeVar

__all__ = ["ANCIENT", "FRESH", "OLD", "canonical", "first_session", "renewal", "replaced"]

T = TypeVar("T")
FRESH, OLD, ANCIENT = 1, 2, 3


def renewal(instance: int, age: int) -> int:
    return 10 * (instance + 1) + age


def first_session(instance: int) -> int:
    return 100 * (instance + 1)


def _collect(part: Any, found: set[int]) -> None:
    for item in part:
        if type(item) is int:
            if item >= 100:
                found.add(item)
        elif isinstance(item, tuple):
            _collect(item, found)


def replaced(part: T, new: dict[int, int]) -> T:
    """`part` with each number that is in `new` replaced."""
    changed = False
    items = []
    for item in part:  # type: ignore[attr-defined]
        after = item
        if type(item) is int:
            after = new.get(item, item)
        elif isinstance(item, tuple):
            after = replaced(item, new)
        changed = changed or after is not item
        items.append(after)
    return tuple.__new__(type(part), items) if changed else part  # type: ignore[type-var]


def canonical(state: T) -> T:
    """`state` with sessions and Redis's numbers replaced by their ranks."""
    found: set[int] = set()
    _collect(state, found)
    new: dict[int, int] = {}
    ranks: dict[int, int] = {}
    for number in sorted(found):
        base = 1000 if number >= 1000 else number // 100 * 100
        rank = ranks.get(base, base)
        ranks[base] = rank + 1
        if number != rank:
            new[number] = rank
    return replaced(state, new) if new else state
