"""`examples/call_centre.py`, run as a user runs it.

The recorded day of the slow tests is the file that GENESIS_BANK_DAY names, or, without it,
`shared/data/bank-day.csv` beside the repository.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from examples.call_centre_day.replay import REAP_MARGIN
from tests.support.call_centre import PROGRAM, assert_promises_kept, busy_rows, run_program, write_csv
from tests.support.redis_server import RedisServer, free_port
from tests.support.waiting import wait_until


def test_program_replays_a_file(tmp_path: Path) -> None:
    """It shows its progress, keeps all promises, and compares the run with the ideal and the record."""
    path = write_csv(tmp_path, *busy_rows())
    done = run_program(str(path), "--speed", "200")
    assert_promises_kept(done, path, slack=8)
    assert "waiting" in done.stdout.splitlines()[1]
    heads = next(line.split("  ") for line in done.stdout.splitlines() if "ideal line" in line)
    assert [head.strip() for head in heads if head.strip()] == ["this run", "ideal line", "recorded"]
    waits = next(
        line for line in done.stdout.splitlines() if line.startswith("average speed of answer")
    )
    this_run, ideal = (float(seconds) for seconds in re.findall(r"([0-9.]+) s(?= )", waits))
    # Not better than the ideal; a tenth of a second of a busy machine is 20 s of the day.
    assert 0.7 * ideal - 5 < this_run < 1.3 * ideal + 60


async def test_metrics_are_served_while_it_runs(tmp_path: Path) -> None:
    """--metrics-port serves the histograms while the day is played."""
    path = write_csv(tmp_path, *busy_rows())
    port = free_port()
    url = f"http://127.0.0.1:{port}/metrics"
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(PROGRAM), str(path), "--speed", "60", "--metrics-port", str(port),
        stdout=subprocess.DEVNULL,
    )  # fmt: skip

    def served() -> bool:
        assert process.returncode is None, "it has ended"
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5) as answer:
            return b'genesis_queue_wait_seconds_count{outcome="granted",queue="bank"}' in answer.read()
        return False

    try:
        await wait_until(served, f"{url} shows the wait of a call")
    finally:
        process.kill()
        await process.wait()


def test_instances_share_one_line(tmp_path: Path, redis_server: RedisServer) -> None:
    """Three processes over Redis keep all promises together, and leave no override behind."""
    path = write_csv(tmp_path, *busy_rows())
    done = run_program(str(path), "--speed", "300", "--redis", redis_server.url, "--instances", "3")
    assert_promises_kept(done, path, slack=12)
    assert redis_server.keys_without_expiry() == []


async def test_queue_in_use_is_left_alone(tmp_path: Path, redis_server: RedisServer) -> None:
    """A second run on the same queue is refused, and the first one goes on."""
    path = write_csv(tmp_path, *busy_rows())
    first = await asyncio.create_subprocess_exec(
        sys.executable, str(PROGRAM), str(path), "--speed", "60", "--redis", redis_server.url,
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        held = "genesis:queue:{bank}:holding"
        await wait_until(lambda: redis_server.client.exists(held), "a call of the first run holds")
        second = await asyncio.to_thread(run_program, str(path), "--redis", redis_server.url)
    finally:
        first.kill()
        await first.wait()
    assert second.returncode == 2
    assert second.stderr.startswith("call_centre: the queue 'bank' is in use")


def test_unreachable_redis_is_one_line() -> None:
    """Without a Redis the program prints one line to stderr and exits with 2."""
    done = run_program("--redis", f"redis://127.0.0.1:{free_port()}", "--lease", "1")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "redis" in done.stderr


@pytest.fixture(scope="module")
def bank_day() -> Path:
    named = os.environ.get("GENESIS_BANK_DAY")
    path = Path(named) if named else PROGRAM.parents[2] / "shared" / "data" / "bank-day.csv"
    if not path.exists():
        pytest.skip(f"the recorded day is not at {path}; name the file in GENESIS_BANK_DAY")
    return path


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_real_day_in_memory(bank_day: Path) -> None:
    """The recorded day in memory, 1,200 times as fast, keeps all promises."""
    done = run_program(str(bank_day), "--speed", "1200", timeout=170)
    assert_promises_kept(done, bank_day, slack=120)


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_real_day_over_redis(bank_day: Path, redis_server: RedisServer) -> None:
    """The recorded day on three instances that share one line keeps all promises."""
    options = ("--speed", "1200", "--redis", redis_server.url, "--instances", "3")
    done = run_program(str(bank_day), *options, timeout=170)
    assert_promises_kept(done, bank_day, slack=100)


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_real_day_with_one_instance_killed(bank_day: Path, redis_server: RedisServer) -> None:
    """One of three instances is killed: all other calls end, and its own are reaped in time."""
    options = ("--speed", "1200", "--redis", redis_server.url, "--instances", "3")
    done = run_program(str(bank_day), *options, "--lease", "2", "--kill-one-at", "11:00", timeout=170)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    ended = next(line for line in lines if line.startswith("ended exactly once")).split()
    cut_off = int(ended[6])
    assert cut_off > 0, "it was killed in the middle of its calls"
    assert int(ended[3]) + cut_off == 2239
    reaped = next(line for line in lines if " was killed; " in line)
    assert 0 < float(reaped.split(" was reaped after ")[1].split()[0]) <= 2 + REAP_MARGIN
