"""The figures as a table for the terminal, as Markdown, and as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tests.benchmarks.rounds import Comparison
from tests.benchmarks.targets import Verdict

__all__ = ["as_json", "markdown", "table", "verdict_lines"]


def table(comparison: Comparison) -> Iterator[str]:
    yield f"{comparison.title} ({comparison.unit})"
    for row in comparison.rows:
        figure, ratio = _figure(comparison.median(row)), _times(comparison.ratio(row))
        yield f"  {row:50}{figure:>12}{ratio:>10}  {comparison.notes.get(row, '')}".rstrip()


def verdict_lines(verdicts: list[Verdict]) -> Iterator[str]:
    yield "To be reached"
    for verdict in verdicts:
        bound = f"{'>=' if verdict.at_least else '<='} {verdict.bound:g}"
        measured = "-" if verdict.measured is None else f"{verdict.measured:.2f}"
        word = {None: "not measured", True: "reached", False: "MISSED"}[verdict.reached]
        yield f"  {verdict.target:78}{measured:>8}{bound:>10}  {word}"


PAGE: tuple[tuple[str, str, str], ...] = (
    ("memory-free", "in memory: enter + leave, no SDK", "Queue, no SDK"),
    ("memory-free", "... an SDK that samples 1 %", "Queue, 1 % sampled"),
    ("memory-free", "... every call recorded", "Queue, all recorded"),
    ("memory-free", "... the bare backend", "backend, bare"),
    ("memory-hand-off", "in memory: hand-off, no SDK", "Queue, no SDK"),
    ("memory-hand-off", "... an SDK that samples 1 %", "Queue, 1 % sampled"),
    ("memory-hand-off", "... the bare backend", "backend, bare"),
    ("redis-free", "Redis: enter + leave, one task", "Queue, 1 % sampled"),
    ("redis-64", "... 64 tasks at once, per pair", "Queue, 1 % sampled, 64 tasks"),
    ("redis-500", "... 500 tasks at once, per pair", "Queue, 1 % sampled, 500 tasks"),
    ("redis-hand-off", "Redis: hand-off in one process", "Queue, 1 % sampled"),
    ("across-hand-off", "... to another process", "Queue, 1 % sampled"),
    ("across-held", "... each inside for 5 ms", "Queue, 1 % sampled"),
    ("eight-free", "Redis: enter + leave in 8 processes", "Queue, 1 % sampled"),
    ("growth-memory", "in memory: hand-off, 100,000 wait", "100,000 wait"),
    ("growth-redis", "Redis: hand-off, 100,000 wait", "100,000 wait"),
)
"""What a reader asks first: the comparison, how to say it, and its row."""


def markdown(report: dict[str, Any]) -> Iterator[str]:
    """The most important rows from the JSON, and the other libraries, for a page."""
    found = {comparison["key"]: comparison for comparison in report["comparisons"]}
    yield "| | microseconds | beside it | ratio |"
    yield "|---|---:|---|---:|"
    for key, what, row in PAGE:
        rows = {entry["row"]: entry for entry in found.get(key, {}).get("rows", ())}
        if row in rows:
            beside = found[key]["yardstick"]
            base = f"{beside}: {_figure(rows[beside]['median'])}"
            yield f"| {what} | {_figure(rows[row]['median'])} | {base} | {_times(rows[row]['ratio'])} |"
    others = [comparison for key, comparison in found.items() if key.startswith("peers-")]
    if others:
        yield ""
        yield (
            "| | " + " | ".join(comparison["title"].partition(": ")[2] for comparison in others) + " |"
        )
        yield "|---|" + "---:|" * len(others)
        by_row = [{entry["row"]: entry for entry in comparison["rows"]} for comparison in others]
        for library in by_row[0]:
            cells = (_cell(rows.get(library, {})) for rows in by_row)
            yield f"| {library} | " + " | ".join(cells) + " |"
        for library, entry in by_row[0].items():
            if "median" not in entry:
                yield ""
                yield f"{library}: {entry['note']}"


def _cell(entry: dict[str, Any]) -> str:
    return _figure(entry.get("median"))


def as_json(
    machine: dict[str, Any], rounds: int, comparisons: list[Comparison], verdicts: list[Verdict]
) -> dict[str, Any]:
    return {
        "machine": machine,
        "rounds": rounds,
        "comparisons": [comparison.as_json() for comparison in comparisons],
        "targets": [verdict.as_json() for verdict in verdicts],
    }


def _figure(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.2f}" if abs(value) < 100 else f"{value:,.0f}"


def _times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f} x"
