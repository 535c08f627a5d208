"""Days for `examples/call_centre.py`, and helpers that run the program as a user does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from examples.call_centre_day.figures import Figures, ideal_outcomes
from examples.call_centre_day.recorded import read_day

PROGRAM = Path(__file__).parents[2] / "examples" / "call_centre.py"
HEADER = "entered_s,call_id,service,priority,waited_s,outcome,talked_s,agent"


def write_csv(folder: Path, *rows: str, header: str = HEADER) -> Path:
    path = folder / "day.csv"
    path.write_text("\n".join([header, *rows, ""]), encoding="utf-8")
    return path


def busy_rows(calls: int = 80) -> list[str]:
    """Ten minutes with more calls than three agents can answer, one of whom leaves early."""
    rows = []
    for number in range(calls):
        entered = 36000 + number * 600 // calls
        if number % 4 == 3:
            rows.append(f"{entered},call-{number},PS,0,{5 + number % 40},abandoned,,")
        else:
            agent = number % 3 if number < calls // 2 else number % 2
            rows.append(f"{entered},call-{number},PS,0,0,answered,{10 + number % 30},agent-{agent}")
    return rows


def run_program(*arguments: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(PROGRAM), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)


def assert_promises_kept(done: subprocess.CompletedProcess[str], path: Path, slack: int) -> None:
    """The run kept all promises and, except for `slack` calls, answered as many as an ideal line."""
    day = read_day(path, 1)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    assert f"ended exactly once: {len(day.calls)} of {len(day.calls)}" in done.stdout
    assert "limit held at every instant: yes" in done.stdout
    assert "FIFO held at every instant: yes" in done.stdout
    row = next(line for line in done.stdout.splitlines() if line.startswith("calls answered"))
    answered = Figures.of(ideal_outcomes(day)[0]).answered
    assert abs(int(row.split()[2]) - answered) <= slack, row
