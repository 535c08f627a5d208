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


def markdown(report: dict[str, Any]) -> Iterator[str]:
    """The same from the JSON, for a page."""
    for comparison in report["comparisons"]:
        yield f"| {comparison['title']} | {comparison['unit']} | ratio |"
        yield "|---|---:|---:|"
        for row in comparison["rows"]:
            note = f" ({row['note']})" if "note" in row else ""
            figure, ratio = row.get("median"), row.get("ratio")
            yield f"| {row['row']}{note} | {_figure(figure)} | {_times(ratio)} |"
        yield ""


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
