"""Draws the pictures of the README from a live run: `python -m tests.pictures`, two minutes.

The queries are those of the committed panels, the data what Prometheus stored of `tests/live_run.py`.
Time is in seconds of that run, whose lease is 2 s and whose windows are short: see there.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot

from tests.live_run import VARIABLES, LiveRun
from tests.telemetry_names import DASHBOARDS, filled_in, load_dashboards, panel_expressions

FOLDER = DASHBOARDS / "pictures"
STEP = 0.5
GREY, INK = "#8a8f98", "#22252b"
COLOURS = ("#c4162a", "#3274d9", "#37872d", "#8f3bb8")
SEVERITIES = {"critical": "#c4162a", "warning": "#ff780a", "info": "#3274d9"}


def main() -> None:
    mpl.use("Agg")
    mpl.rcParams.update(
        {
            "font.size": 9,
            "axes.titlesize": 10,
            "axes.titlelocation": "left",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.edgecolor": GREY,
            "text.color": INK,
            "legend.frameon": False,
        }
    )
    asyncio.run(draw_all())


async def draw_all() -> None:
    FOLDER.mkdir(exist_ok=True)
    async with LiveRun() as run:
        await run.play()
        save(service(run), "service")
        save(dead_instance(run), "dead-instance")
        save(alerts(run), "alerts")


def service(run: LiveRun) -> Any:
    """Overview: a queue whose slots are exhausted, beside a calm one."""
    figure, axes = pyplot.subplots(3, 1, figsize=(8, 6.2), sharex=True, layout="constrained")
    panels = (
        ("overview", "Service level by queue", "share", ("busy", "calm")),
        ("overview", "Callers waiting by queue", "callers", ("busy", "calm")),
        ("overview", "Abandon rate by queue", "share", ("busy", "calm")),
    )
    fault = run.faults["slots exhausted"]
    for axis, (board, title, unit, queues) in zip(axes, panels, strict=True):
        for colour, queue in zip(COLOURS, queues, strict=False):
            (expression, *_) = queries(board, title, queue)
            for _, times, values in lines(run, expression):
                axis.plot(times, values, color=colour, label=queue)
        shade(axis, run, [fault.name])
        axis.set_title(title)
        axis.set_ylabel(unit)
        axis.set_ylim(*((-0.04, 1.08) if unit == "share" else (-2, 60)))
    axes[0].axhline(0.8, color=GREY, linestyle=":", linewidth=1)
    axes[0].text(0.5, 0.81, "80 %", color=GREY, va="bottom")
    axes[1].legend(loc="upper right")
    axes[0].text(fault.began - run.began + 0.3, 0.4, "both slots of busy\nheld for long", va="center")
    axes[-1].set_xlim(0, fault.ended - run.began + 15)
    axes[-1].set_xlabel("seconds")
    return figure


def dead_instance(run: LiveRun) -> Any:
    """Queue: the line and what the instances have of it, while one of them is killed."""
    figure, axis = pyplot.subplots(figsize=(8, 2.8), layout="constrained")
    title = "Depth: the line, and the callers the instances have"
    shared, own, left = queries("queue", title, "fragile")
    for expression, label, colour in (
        (shared, "waiting in the line, as Redis knows it", COLOURS[1]),
        (own, "of which living instances have", COLOURS[2]),
        (left, "left by the dead one, until the lease lapses", COLOURS[0]),
    ):
        for _, times, values in lines(run, expression):
            axis.step(times, values, where="post", color=colour, label=label)
    fault = run.faults["instance killed"]
    began = fault.began - run.began
    axis.axvline(began, color=INK, linewidth=1)
    axis.text(began, 6.5, " SIGKILL", va="top")
    axis.set_title(title)
    axis.set_xlim(began - 2.5, began + 3.6)
    axis.set_ylim(0, 6.5)
    axis.set_ylabel("callers")
    axis.set_xlabel("seconds; the lease is 2 s")
    axis.legend(loc="upper right")
    return figure


def alerts(run: LiveRun) -> Any:
    """Every alert, from its cause to its end."""
    spans: dict[str, list[tuple[float, float]]] = {}
    severity: dict[str, str] = {}
    for labels, first, last in sorted(run.fired(), key=lambda each: each[1]):
        window = labels.get("window", "")
        name = f"{labels['alertname'].removeprefix('Genesis')} {window}".strip()
        severity[name] = labels["severity"]
        spans.setdefault(name, []).append((first - run.began, last - first + STEP))
    rows: list[tuple[str, list[tuple[float, float]], str]] = [
        (fault.name, [(fault.began - run.began, fault.ended - fault.began)], INK)
        for fault in sorted(run.faults.values(), key=lambda each: each.began)
    ]
    rows += [(name, times, SEVERITIES[severity[name]]) for name, times in spans.items()]
    figure, axis = pyplot.subplots(figsize=(8, 5.6), layout="constrained")
    for place, (_, times, colour) in enumerate(rows):
        axis.broken_barh(joined(times), (place - 0.35, 0.7), color=colour)
    axis.axhline(len(run.faults) - 0.5, color=GREY, linewidth=1)
    axis.set_yticks(range(len(rows)), labels=[name for name, _, _ in rows])
    axis.set_ylim(len(rows) - 0.4, -0.6)
    axis.set_xlim(0, run.ended - run.began + 2)
    axis.set_xlabel("seconds")
    axis.grid(axis="x", color=GREY, alpha=0.25)
    axis.set_axisbelow(True)
    for name, colour in {"fault": INK, **SEVERITIES}.items():
        axis.barh(0, 0, color=colour, label=name)
    axis.legend(loc="lower left", frameon=True, framealpha=1)
    return figure


def joined(times: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Overlapping spans of `(start, length)` as one."""
    found: list[tuple[float, float]] = []
    for start, length in sorted(times):
        if found and start <= sum(found[-1]):
            first = found[-1][0]
            found[-1] = (first, max(sum(found[-1]), start + length) - first)
        else:
            found.append((start, length))
    return found


def queries(board: str, title: str, queue: str) -> list[str]:
    """The queries of a panel, for one queue."""
    dashboard = load_dashboards()[f"grafana/dashboards/genesis-{board}.json"]
    found = [
        filled_in(expression, {**VARIABLES, "queue": queue})
        for panel, expression in panel_expressions(dashboard)
        if panel == title
    ]
    assert found, f"{board} has no panel {title!r}"
    return found


def lines(
    run: LiveRun, expression: str
) -> Iterator[tuple[dict[str, str], Sequence[float], Sequence[float]]]:
    """Each series, with gaps where it had no sample."""
    for series in run.prometheus.range(expression, run.began, run.ended, STEP):
        times: list[float] = []
        values: list[float] = []
        for at, text in series["values"]:
            second = float(at) - run.began
            if times and second - times[-1] > 1.5 * STEP:
                times.append(second - STEP)
                values.append(math.nan)
            times.append(second)
            values.append(float(text))
        yield series["metric"], times, values


def shade(axis: Any, run: LiveRun, faults: list[str]) -> None:
    for name in faults:
        fault = run.faults[name]
        axis.axvspan(
            fault.began - run.began, fault.ended - run.began, color=GREY, alpha=0.15, linewidth=0
        )


def save(figure: Any, name: str) -> None:
    path: Path = FOLDER / f"{name}.png"
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    print(f"{path.relative_to(DASHBOARDS.parent)}: {path.stat().st_size // 1000} kB")


if __name__ == "__main__":
    main()
