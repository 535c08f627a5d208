"""Metrics of processes that fork, that are killed, and that share a directory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from genesis.observability import names
from tests.observability.conftest import run_alone


def value(registry: CollectorRegistry, name: str, **labels: str) -> float | None:
    return registry.get_sample_value(name, labels)


FORKS = """
import asyncio, os, signal, threading
from genesis import Queue
from genesis.observability import Telemetry
from prometheus_client import CollectorRegistry, generate_latest
registry = CollectorRegistry()
queue = Queue(telemetry=Telemetry(registry))

async def fill():
    for number in range(40):
        async with queue.slot(f"q{number}"):
            pass

asyncio.run(fill())
stop = False

def scrape():
    while not stop:
        generate_latest(registry)

threads = [threading.Thread(target=scrape, daemon=True) for _ in range(3)]
for thread in threads:
    thread.start()
stuck = 0
for _ in range(20):
    pid = os.fork()
    if pid == 0:
        signal.alarm(5)
        text = generate_latest(registry).decode()
        count = 'genesis_queue_wait_seconds_count{outcome="granted",queue="q1"} 0.0'
        os._exit(0 if count in text else 1)
    stuck += os.waitpid(pid, 0)[1] != 0
stop = True
print(stuck)
"""


def test_a_forked_child_can_be_scraped_and_counts_from_0() -> None:
    """Threads scrape during the fork, and hold locks that are never released in the child."""
    done = subprocess.run([sys.executable, "-c", FORKS], capture_output=True, text=True, timeout=100)
    assert done.stdout == "0\n", done.stderr


WORKER = """
import asyncio, logging, os, sys
logging.basicConfig(level=logging.ERROR, stream=sys.stdout, format="%(message)s")
if "late" in sys.argv: import prometheus_client
if len(sys.argv) > 2: os.environ[sys.argv[2]] = sys.argv[1]
from genesis import Queue
from genesis.observability.http import _metrics
from prometheus_client import REGISTRY

async def main():
    queue = Queue()
    async with queue.slot("sales", max_concurrent=1):
        queue._backend._inner._report()
        print("ready", flush=True)
        if "stay" in sys.argv:
            sys.stdin.readline()
        print(_metrics(REGISTRY, "").body.decode())

asyncio.run(main())
"""


def worker(*arguments: str) -> subprocess.Popen[str]:
    environment = {n: v for n, v in os.environ.items() if n.upper() != "PROMETHEUS_MULTIPROC_DIR"}
    return subprocess.Popen(
        [sys.executable, "-c", WORKER, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )


def test_the_gauges_of_a_killed_worker_are_gone(tmp_path: Path) -> None:
    """Without a hook of the server; the shared gauges of live processes are there."""
    killed = worker(str(tmp_path), "PROMETHEUS_MULTIPROC_DIR", "stay")
    assert killed.stdout is not None
    assert killed.stdout.readline() == "ready\n"
    killed.kill()
    killed.communicate()
    text, _ = worker(str(tmp_path), "PROMETHEUS_MULTIPROC_DIR").communicate(timeout=60)
    lines = text.splitlines()
    assert f'{names.HOLDING}{{queue="sales"}} 1.0' in lines
    assert f'{names.LIMIT}{{backend="memory",queue="sales"}} 1.0' in lines
    assert f'{names.WAIT_SECONDS}_count{{outcome="granted",queue="sales"}} 2.0' in lines


def test_a_rare_event_is_exposed_at_0_before_it_happens(tmp_path: Path) -> None:
    """Prometheus' `increase` does not see the value with which a series appears."""
    shown, _ = worker(str(tmp_path), "PROMETHEUS_MULTIPROC_DIR").communicate(timeout=30)
    for series in (
        'genesis_queue_hold_seconds_count{outcome="lost",queue="sales"}',
        'genesis_queue_reclaimed_total{queue="sales",state="holding"}',
        'genesis_queue_limit_disagreements_total{queue="sales"}',
        'genesis_backend_disruptions_total{backend="memory",reason="data_lost"}',
    ):
        assert f"{series} 0.0\n" in shown


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["/nowhere/at/all", "PROMETHEUS_MULTIPROC_DIR"], "no directory that this process can write"),
        (["/tmp", "PROMETHEUS_MULTIPROC_DIR", "late"], "after prometheus_client had been imported"),
    ],
)
def test_a_directory_that_is_not_used_is_logged(arguments: list[str], complaint: str) -> None:
    """An immediate, clear error; and the process serves its own metrics."""
    text, _ = worker(*arguments).communicate(timeout=60)
    assert complaint in text
    assert f'{names.HOLDING}{{queue="sales"}} 1.0' in text
    assert f'{names.TELEMETRY_ERRORS}{{sink="metrics"}} 0.0' in text


COMPLAINT = """
import logging, sys
from genesis.observability import asgi_app
from genesis.observability.http import _metrics
from prometheus_client import REGISTRY

class Broken(logging.Handler):
    def emit(self, record):
        raise BrokenPipeError

if False:
    logging.getLogger().addHandler(Broken())
asgi_app()
assert _metrics(REGISTRY, "").status == 200
logging.basicConfig(stream=sys.stdout, format="%(message)s")
for _ in range(2):
    assert _metrics(REGISTRY, "").status == 200
"""


@pytest.mark.parametrize(
    ("environment", "complaint"),
    [
        ({"PROMETHEUS_MULTIPROC_DIR": "/nowhere/at/all"}, "no directory that this process can write"),
        ({"SERVER_SOFTWARE": "gunicorn/23.0"}, "looks like one of several workers"),
    ],
)
def test_a_complaint_is_shown_once_logging_is_configured(
    environment: dict[str, str], complaint: str
) -> None:
    """A server's worker often configures logging after the application was imported."""
    text, _ = run_alone(COMPLAINT, **environment)
    assert text.count(complaint) == len(text.splitlines()) == 1


def test_a_complaint_raises_nothing() -> None:
    """The application would not start because of its log's broken pipe."""
    run_alone(COMPLAINT.replace("if False", "if True"), SERVER_SOFTWARE="gunicorn/23.0")


def test_the_variable_may_be_in_lower_case(tmp_path: Path) -> None:
    """prometheus_client accepts it."""
    text, _ = worker(str(tmp_path), "prometheus_multiproc_dir").communicate(timeout=60)
    assert f'{names.HOLDING}{{queue="sales"}} 1.0' in text
    assert list(tmp_path.glob("*.db"))


TWO_REGISTRIES = """
import asyncio
from genesis import Queue
from genesis.observability import Telemetry
from genesis.observability.http import _metrics
from prometheus_client import REGISTRY, CollectorRegistry

async def main():
    first, second = (Queue(telemetry=Telemetry(CollectorRegistry())) for _ in range(2))
    for queue in (first, first, second, first):
        async with queue.slot("sales"):
            pass
    async with first.slot("sales"), second.slot("sales"):
        print(_metrics(REGISTRY, "").body.decode())

asyncio.run(main())
"""


def test_queues_with_different_registries_in_one_process_are_added_up(tmp_path: Path) -> None:
    """A process has one file, in which two metrics of one name would overwrite each other."""
    text, _ = run_alone(TWO_REGISTRIES, PROMETHEUS_MULTIPROC_DIR=str(tmp_path))
    lines = text.splitlines()
    assert f'{names.HOLDING}{{queue="sales"}} 2.0' in lines
    assert f'{names.WAIT_SECONDS}_count{{outcome="granted",queue="sales"}} 6.0' in lines


FOREIGN = """
import asyncio
from genesis import Queue
from genesis.observability.http import _metrics
from prometheus_client import REGISTRY, CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

def show(text):
    found = {line.split("{")[0] for line in text.splitlines()}
    print(*(f"genesis_{name}" in found for name in ("queue_limit", "backend_up", "queue_holding")))

async def main():
    queue = Queue()
    async with queue.slot("sales"):
        queue._backend._inner._report()
        registry = CollectorRegistry()
        MultiProcessCollector(registry)
        show(generate_latest(registry).decode())
        show(_metrics(REGISTRY, "").body.decode())

asyncio.run(main())
"""


def test_a_foreign_collector_shows_no_gauge_that_expires(tmp_path: Path) -> None:
    """prometheus_client's own would show old values for ever, and an unknown one as 0."""
    text, _ = run_alone(FOREIGN, PROMETHEUS_MULTIPROC_DIR=str(tmp_path))
    assert text.splitlines() == ["False False True", "True True True"]


NAMESAKE = """
import asyncio, os, shutil, sys
from genesis import Queue
from genesis.observability.http import _metrics
from prometheus_client import REGISTRY

shown = ("genesis_queue_holding{", "genesis_queue_limit{")
file = os.environ["PROMETHEUS_MULTIPROC_DIR"] + "/gauge_livesum_{}.db"

async def main(queue):
    async with queue.slot("sales" if "again" not in sys.argv else "support"):
        if "again" not in sys.argv:
            queue._backend._inner._report()
            os.execv(sys.executable, [*sys.orig_argv, "again"])  # a new program with this pid
        lines = _metrics(REGISTRY, "").body.decode().splitlines()
        print(*[line for line in lines if line.startswith(shown)], sep="\\n")

if "fork" in sys.argv and "again" in sys.argv:
    shutil.copy(file.format(os.getpid()), file.format("copy"))
    queue = Queue()
    if pid := os.fork():
        sys.exit(os.waitpid(pid, 0)[1])
    os.rename(file.format("copy"), file.format(os.getpid()))
    asyncio.run(main(queue))
else:
    asyncio.run(main(Queue()))
"""


@pytest.mark.parametrize("how", ["", "fork"])
def test_the_gauges_of_a_dead_process_with_the_same_pid_are_0(tmp_path: Path, how: str) -> None:
    """As after the restart of a container; also if the queue was made before a fork."""
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    command = [sys.executable, "-c", NAMESAKE, how]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert ran.stdout.splitlines() == [
        f'{names.HOLDING}{{queue="sales"}} 0.0',
        f'{names.HOLDING}{{queue="support"}} 1.0',
    ], ran.stderr


def test_files_that_are_being_created_or_are_gone_meanwhile_are_skipped(tmp_path: Path) -> None:
    """Creating a file and giving it its size are two steps. Before, such a scrape was a 500."""
    for name in ("counter_1.db", "gauge_livesum_1.db", "genesis_1.shared"):
        (tmp_path / name).touch()
    (tmp_path / "histogram_1.db").symlink_to("gone")
    text, _ = worker(str(tmp_path), "PROMETHEUS_MULTIPROC_DIR").communicate(timeout=60)
    assert f'{names.HOLDING}{{queue="sales"}} 1.0' in text.splitlines()


OUTAGE = """
import asyncio, os, sys
from genesis import Queue
from genesis.backends.protocol import Disrupted
from genesis.observability.http import _metrics
from prometheus_client import REGISTRY

async def use(queue):
    async with queue.slot("sales"):
        lines = _metrics(REGISTRY, "").body.decode().splitlines()
    return [line for line in lines if line.startswith("genesis_backend_up")]

parents = Queue()
parents._backend._on_event(Disrupted("connection", "gone"))
readable, writable = os.pipe()
if pid := os.fork():
    asyncio.run(parents.close())
    os.write(writable, b".")
    sys.exit(os.waitpid(pid, 0)[1])
os.read(readable, 1)
print(*asyncio.run(use(Queue())))
"""


@pytest.mark.parametrize("shared", [True, False])
def test_an_outage_of_the_parent_is_none_of_a_forked_child(tmp_path: Path, shared: bool) -> None:
    environment = {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)} if shared else {}
    text, _ = run_alone(OUTAGE, **environment)
    assert text == f'{names.BACKEND_UP}{{backend="memory"}} 1.0\n'
