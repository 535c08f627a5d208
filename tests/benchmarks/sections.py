"""All that is measured, in the order of reading."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from tests.benchmarks import across, footprint, growth, memory, others, shared
from tests.benchmarks.rounds import Comparison, Plan

__all__ = ["SECTIONS"]

SECTIONS: dict[str, Callable[[Plan], Coroutine[Any, Any, list[Comparison]]]] = {
    **memory.SECTIONS,
    **shared.SECTIONS,
    **across.SECTIONS,
    **growth.SECTIONS,
    **footprint.SECTIONS,
    **others.SECTIONS,
}
