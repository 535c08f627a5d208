"""`examples/README.md` is true: its commands run as they stand, and print what it says."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.redis_server import free_port
from tests.support.waiting import wait_until

ROOT = Path(__file__).parents[2]
README = ROOT / "examples" / "README.md"
COMMANDS = re.findall(r"(?m)^    ((?:python|uvicorn) .*)$", README.read_text())


def command(name: str) -> list[str]:
    """The one that has this name in it, for the shell's PATH that the tests may not have."""
    (found,) = [each for each in COMMANDS if name in each]
    free = re.sub(r"(--port|fake_model.py) \d+", lambda match: f"{match[1]} {free_port()}", found)
    words = free.split()
    return [sys.executable, *(words[1:] if words[0] == "python" else ["-m", *words])]


async def start(name: str, log: Path, *options: str) -> asyncio.subprocess.Process:
    clean = {
        key: value for key, value in os.environ.items() if not key.startswith(("OTEL_", "GENESIS_"))
    }
    with log.open("wb") as output:
        return await asyncio.create_subprocess_exec(
            *command(name), *options, cwd=ROOT, env=clean, stdout=output, stderr=output
        )


def test_each_example_has_its_paragraph() -> None:
    """And nothing else does."""
    named = re.findall(r"\w+\.py", " ".join(re.findall(r"(?m)^## (.*)$", README.read_text())))
    assert sorted(named) == sorted(file.name for file in README.parent.glob("*.py"))


@pytest.mark.parametrize("name", ["batch_job.py", "testing_an_application.py"])
async def test_what_ends_by_itself_prints_what_is_shown(name: str, tmp_path: Path) -> None:
    """But for the seconds."""
    process = await start(name, tmp_path / "log")
    assert await asyncio.wait_for(process.wait(), 60) == 0

    def without_seconds(text: str) -> list[str]:
        return [re.sub(r"\d+\.\d+ ?s", "N s", line.strip()) for line in text.strip().splitlines()]

    section = README.read_text().split(f"## {name}")[1].split("\n## ")[0]
    shown = section.split("It prints:\n\n")[1]
    assert without_seconds((tmp_path / "log").read_text()) == without_seconds(shown)


@pytest.mark.parametrize(
    "name", ["call_centre.py", "llm_gateway.py", "batch_job.py", "freeswitch_outbound.py"]
)
def test_an_example_runs_the_library_of_its_clone(name: str, tmp_path: Path) -> None:
    """And no other that is installed."""
    (tmp_path / "genesis.py").write_text("raise ImportError('the other one')")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, str(ROOT / "examples" / name), "--help"]
    subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, timeout=60, check=True)


@pytest.mark.parametrize("documents", ["0", "-1"])
async def test_a_batch_of_nothing_is_a_usage_error(documents: str, tmp_path: Path) -> None:
    """And does not wait for ever for the first document."""
    process = await start("batch_job.py", tmp_path / "log", f"--documents={documents}")
    try:
        assert await asyncio.wait_for(process.wait(), 20) == 2
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.mark.parametrize(
    ("name", "ready"),
    [
        ("fastapi_app", "running on http"),
        ("fake_model.py", "a fake model answers at http"),
        ("llm_gateway.py", "running on http"),
        ("freeswitch_outbound.py", "waiting for calls"),
    ],
)
async def test_what_serves_starts_and_stops(name: str, ready: str, tmp_path: Path) -> None:
    """Ctrl-C ends it without a traceback."""
    log = tmp_path / "log"
    process = await start(name, log)
    try:
        await wait_until(lambda: ready in log.read_text(), f"{name} is ready", 60.0)
        process.send_signal(signal.SIGINT)
        await asyncio.wait_for(process.wait(), 20)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert "Traceback" not in log.read_text()


async def test_callers_without_a_server_end_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LOAD", "500")  # a call every few milliseconds
    log = tmp_path / "log"
    words = [sys.executable, "examples/callers.py", f"http://127.0.0.1:{free_port()}"]
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(*words, cwd=ROOT, stdout=output, stderr=output)
    try:
        await wait_until(lambda: "sales: [Errno" in log.read_text(), "a call has failed", 60.0)
        process.send_signal(signal.SIGINT)
        await asyncio.wait_for(process.wait(), 20)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert "Traceback" not in log.read_text()
