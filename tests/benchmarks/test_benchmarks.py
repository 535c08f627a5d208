"""The benchmarks still run: every section at tiny size yields its rows. Nothing about speed."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from tests.benchmarks import __main__ as command
from tests.benchmarks import fleet, others
from tests.benchmarks.peers import environments
from tests.benchmarks.report import markdown
from tests.benchmarks.rounds import Comparison, Plan
from tests.benchmarks.sections import SECTIONS
from tests.benchmarks.targets import judge

pytestmark = pytest.mark.slow

TINY = Plan(rounds=1, scale=0.02)
NEED_OTHERS = {"peers", "peers-uvloop"}  # installs libraries; its own rows are tried below


@pytest.mark.parametrize("name", sorted(SECTIONS.keys() - NEED_OTHERS))
async def test_a_section_yields_positive_figures_for_every_row(name: str) -> None:
    """No row is missing, none is nought or less, and the yardstick stands at 1."""
    for comparison in await SECTIONS[name](TINY):
        assert comparison.samples, comparison.key
        for row in comparison.samples:
            figure = comparison.median(row)
            assert figure is not None, row
            if row != "messages":  # none within a process
                assert figure > 0, (comparison.key, row)
            assert math.isfinite(figure)
        if comparison.yardstick is not None:
            assert comparison.ratio(comparison.yardstick) == 1


async def test_the_rows_beside_others_run_for_us_whatever_cannot_be_installed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The driver does each row for us; a library that is not to be had is a row with the reason."""

    def refuse(peer: str) -> Path:
        raise environments.Unavailable("cannot be installed: no network")

    monkeypatch.setattr(environments, "interpreter", refuse)
    comparisons = await others.compare(TINY, ["redsync 2.0.0"])
    assert [comparison.key for comparison in comparisons] == [
        "peers-free",
        "peers-cpu",
        "peers-64",
        "peers-hand-off",
        "peers-across",
        "peers-held",
        "peers-connections",
    ]
    for comparison in comparisons:
        assert comparison.notes == {"redsync 2.0.0": "cannot be installed: no network"}
        assert comparison.rows == [others.OURS, "redsync 2.0.0"]
        figure = comparison.median(others.OURS)
        assert figure is not None
        assert figure > 0


async def test_a_small_fleet_yields_figures_and_an_estimate() -> None:
    """Heartbeats cost something, slots go from instance to instance, and none is lost."""
    load = fleet.Load(6, seconds=1.0, processes=2, share=3, hold=0.02, lease=2.0)
    found = await fleet.measure(load)
    assert found["connections"] == 6
    assert found["waiting"]["script calls/s"] > 0
    assert found["waiting"]["hand-offs/s"] == 0
    assert found["handing over"]["hand-offs/s"] > 0
    assert found["handing over"]["hand-off ms, median"] > 0
    assert found["handing over"]["slots lost"] == 0
    paper = fleet.estimate([found], load.lease)
    assert [row["instances"] for row in paper["for"]] == [10, 100, 1_000]


def test_the_command_prints_the_table_and_writes_json_and_markdown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One command, and an exit without an error although bounds are missed or not measured."""
    written, page = tmp_path / "figures.json", tmp_path / "figures.md"
    words = ["--rounds", "1", "--scale", "0.01", "--only", "memory-free"]
    command.main([*words, "--json", str(written), "--markdown", str(page)])
    printed = capsys.readouterr().out
    assert "asyncio.Semaphore" in printed
    assert "not measured" in printed
    report = json.loads(written.read_text())
    assert report["machine"]["cores"] >= 1
    assert {row["row"] for row in report["comparisons"][0]["rows"]} >= {"asyncio.Semaphore"}
    assert "\n".join(markdown(report)) + "\n" == page.read_text()
    assert "in memory: enter + leave, no SDK" in page.read_text()
    command.main([*words[:-1], "memory-hand-off", "--json", str(written), "--add"])
    keys = [comparison["key"] for comparison in json.loads(written.read_text())["comparisons"]]
    assert keys == ["memory-free", "memory-hand-off"]


def test_a_ratio_is_taken_within_each_round() -> None:
    """A machine that becomes twice as slow between two rounds changes no ratio."""
    comparison = Comparison("k", "t", "us", "base", {"base": [1.0, 2.0, 4.0], "row": [3.0, 6.0, 12.0]})
    assert comparison.ratio("row") == 3
    assert comparison.ratio("base") == 1


def test_what_was_not_measured_is_not_called_reached() -> None:
    """A verdict needs a figure; at the bound it is reached, beyond it missed."""
    assert all(verdict.reached is None for verdict in judge([]))

    def pair(ours: float) -> Comparison:
        samples = {"bare": [1.0], "Queue, 1 % sampled": [ours]}
        return Comparison("redis-free", "t", "us", "bare", samples)

    assert judge([pair(0.7)])[0].reached is True
    assert judge([pair(0.71)])[0].reached is False
