"""Each command, on a live queue of three instances: its output, its effect, its exit code."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pty
import select
import subprocess
import sys
import time
from typing import Any

import pytest

from genesis import EvictedError
from genesis.cli.connect import connect
from genesis.cli.main import main
from genesis.cli.show import frame
from genesis.cli.store import KEY_PREFIX, Store
from tests.cli.conftest import Line, Run
from tests.support.redis_server import RedisServer, free_port
from tests.support.topology import Cluster, SentinelTrio
from tests.support.waiting import wait_until


async def test_status_shows_queues_and_instances(line: Line) -> None:
    result = await line.run("status")
    assert result.code == 0
    head, sales, _, instances, *rest = result.out.splitlines()
    assert " ".join(head.split()) == (
        "QUEUE WAITING IN USE LIMIT OLDEST WAIT OLDEST HOLD EXPECTED INSTANCES"
    )
    assert sales.split()[:4] == ["sales", "2", "1", "1"]
    assert sales.split()[-1] == "3"
    assert instances.split()[0] == "INSTANCE"
    assert sorted(row.split()[0] for row in rest) == sorted(q.instance_id for q in line.queues)


async def test_status_in_json_equals_the_stats_of_an_instance(line: Line) -> None:
    (sales,) = (result := await line.run("status", "--json")).json["queues"]
    stats = await line.queues[0].stats("sales")
    assert (sales["waiting"], sales["in_use"], sales["limit"]) == (2, 1, 1) == stats[:3]
    assert sales["oldest_wait"] == pytest.approx(stats.oldest_wait, abs=2)
    assert sales["oldest_hold"] == pytest.approx(stats.oldest_hold, abs=2)
    assert (sales["expected_wait"], sales["override"], sales["instances"]) == (None, None, 3)
    for each in result.json["instances"]:
        assert each["alive"]
        assert (each["lease"], each["pid"]) == (2.0, os.getpid())
        assert 0 <= each["seen"] <= 2.0


async def test_nothing_under_a_prefix_is_exit_code_1(line: Line) -> None:
    result = await line.run("status", "--key-prefix", "other:")
    assert (result.code, "other:" in result.out) == (1, True)


async def test_looking_takes_no_part(line: Line) -> None:
    """Read-only commands create no lease, session or instance, and reap nothing."""
    client: Any = line.server.client
    leases = set(client.zrange("genesis:queue:{sales}:leases", 0, -1))
    names = set(client.keys("*"))
    for command in (["status"], ["top"], ["entries", "sales"], ["doctor"]):
        await line.run(*command)
    assert set(client.zrange("genesis:queue:{sales}:leases", 0, -1)) == leases
    assert set(client.keys("*")) == names
    assert len((await line.run("status", "--json")).json["instances"]) == 3


async def test_entries_are_those_of_an_instance(line: Line) -> None:
    shown = (await line.run("entries", "sales", "--json")).json["entries"]
    entries = await line.queues[0].entries("sales")
    for mine, theirs in zip(shown, entries, strict=True):
        assert mine.pop("age") == pytest.approx(theirs.age, abs=2)
        assert mine == {k: v for k, v in theirs._asdict().items() if k != "age"}
    text = (await line.run("entries", "sales")).out.splitlines()
    assert [row.split()[:2] for row in text[1:]] == [
        ["holding", "call-1"],
        ["waiting", "call-2"],
        ["waiting", "call-3"],
    ]


async def test_entries_of_nobody_are_exit_code_1(line: Line) -> None:
    result = await line.run("entries", "nowhere")
    assert (result.code, result.err) == (1, "")


async def test_entries_are_read_in_pages(line: Line) -> None:
    """1,200 members, many with one score: all are read, in order, once."""
    key = "genesis:queue:{long}:waiting"
    for start in range(0, 1_200, 100):
        names = [f"x:{n:010x} 0  item-{n}" for n in range(start, start + 100)]
        line.server.client.zadd(key, dict.fromkeys(names, 1_000_000 + start // 600))
    shown = (await line.run("entries", "long", "--json")).json["entries"]
    assert [entry["item_id"] for entry in shown] == [f"item-{n}" for n in range(1_200)]
    assert shown[-1]["position"] == 1_200
    line.server.client.delete(key)


async def test_limit_overrides_and_ends_that(line: Line) -> None:
    result = await line.run("limit", "sales", "2", "--json")
    assert (result.code, result.json) == (
        0,
        {"queue": "sales", "previous": 1, "limit": 2, "override": 2, "granted": 1},
    )
    await line.calls[1].held()
    assert "2*" in (await line.run("status")).out
    text = (await line.run("limit", "sales", "0")).out
    assert "limit 2 -> 0" in text
    assert "paused" in (await line.run("status")).out
    assert (await line.run("limit", "sales", "none", "--json")).json["override"] is None
    assert (await line.queues[0].stats("sales")).limit == 1


async def test_limit_does_not_shorten_the_expiry_for_a_long_lease(line: Line) -> None:
    """The greatest lease in the index counts."""
    client: Any = line.server.client
    other = line.fleet.queue(lease=7_200.0)
    async with other.slot("long", max_concurrent=1):
        await wait_until(lambda: client.zcard("genesis:queue:index:instances") == 4, "it is listed")
        await line.run("limit", "long", "2")
        assert client.ttl("genesis:queue:{long}:meta") > 7_200
    await line.run("limit", "long", "none")
    await other.close()


async def test_the_limit_of_an_empty_queue_is_unknown(line: Line) -> None:
    """Its call sites might name any. An override is known."""
    assert "limit unknown -> 7, an" in (await line.run("limit", "idle", "7")).out
    assert (await line.run("status", "idle")).out.split("\n")[1].split()[3] == "7*"
    assert "limit 7 -> unknown, the call sites' own" in (await line.run("limit", "idle", "none")).out
    for command, row in (("status", 1), ("top", 3)):
        shown = (await line.run(command, "idle")).out.splitlines()
        assert shown[row].split()[:4] == ["idle", "0", "0", "-"]
    assert (await line.run("status", "idle", "--json")).json["queues"][0]["limit"] is None
    assert (await line.run("limit", "idle", "none", "--json")).json["previous"] is None


async def test_a_queue_that_is_only_paused_is_listed(line: Line) -> None:
    await line.run("limit", "unused", "0")
    queues = (await line.run("status", "--json")).json["queues"]
    assert [(q["queue_id"], q["limit"]) for q in queues] == [("sales", 1), ("unused", 0)]
    await line.run("limit", "unused", "none")


async def test_evict_takes_an_item_out(line: Line) -> None:
    result = await line.run("evict", "sales", "call-2", "--json")
    assert (result.code, result.json["evicted"]) == (0, 1)
    assert isinstance(await line.calls[1].failure(), EvictedError)
    await line.run("evict", "sales", "call-1")
    await line.calls[2].held()  # the slot passes on at once
    await wait_until(lambda: line.calls[0].lost, "its holder learns it")
    assert (await line.run("evict", "sales", "call-2")).code == 1


async def test_top_draws_one_picture_into_a_pipe(line: Line) -> None:
    result = await line.run("top")
    assert (result.code, "\x1b" in result.out) == (0, False)
    assert "1 queues, 2 waiting, 1 in use, 3 instances" in result.out
    assert result.out.splitlines()[3].endswith("[#]>>")


@pytest.mark.parametrize(
    ("queues", "last"), [(20, "queue-"), (21, "... and 2 more"), (40, "... and 21 more")]
)
def test_top_fits_the_terminal(own_redis: RedisServer, queues: int, last: str) -> None:
    """Of 24 rows, the last one says how to quit. With one too many, the title would scroll away."""
    with contextlib.closing(connect(own_redis.url, 5.0)) as client:
        looks = Store(client, KEY_PREFIX).look([f"queue-{number}" for number in range(queues)])
    lines = frame(looks, "title", 80, 24, color=False)
    assert (len(lines), lines[0]) == (23, "title")
    assert lines[-1].startswith(last)


@pytest.mark.parametrize("columns", [40, 120])
def test_top_fits_the_terminal_with_wide_letters(own_redis: RedisServer, columns: int) -> None:
    """Each takes two cells: a line that wraps would move the title out of the picture."""
    with contextlib.closing(connect(own_redis.url, 5.0)) as client:
        looks = Store(client, KEY_PREFIX).look(["sales", "\u6771\u4eac", 20 * "\u5927\u962a"])
    looks = [look._replace(waiting=50, in_use=1) for look in looks]
    _, _, *lines = frame(looks, "title", columns, 24, color=False)
    cells = [line.replace("\u2026", ".").encode("gbk") for line in lines]  # two bytes for such a letter
    assert max(map(len, cells)) <= columns
    if columns == 120:
        assert len({line.index(b"[#") for line in cells[1:]} | {cells[0].index(b"SLOTS")}) == 1


@pytest.mark.parametrize(
    ("key", "interval", "expected"), [(b"q", "30", 0), (b"\x03", "3", 0), (b"", "30", 143)]
)
async def test_top_in_a_terminal_quits_and_puts_it_back(
    line: Line, key: bytes, interval: str, expected: int
) -> None:
    """A signal that comes just before the wait for a key is noticed after it, so that wait is short.

    Without a key it is ended by SIGTERM, as by `timeout`.
    """

    def play() -> tuple[int, bytes, bool]:
        master, slave = pty.openpty()
        before = subprocess.check_output(["stty", "-a"], stdin=slave)
        process = subprocess.Popen(
            [sys.executable, "-m", "genesis", "top", "--interval", interval],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=_take_terminal,
        )
        shown = b""
        deadline = time.monotonic() + 30
        while b"q quits" not in shown and time.monotonic() < deadline:
            shown += os.read(master, 65536)
        if key:
            os.write(master, key)
        else:
            process.terminate()
        code = process.wait(20)
        while select.select([master], [], [], 0)[0]:
            shown += os.read(master, 65536)
        same = subprocess.check_output(["stty", "-a"], stdin=slave) == before
        os.close(slave)
        os.close(master)
        return code, shown, same

    code, shown, same = await asyncio.to_thread(play)
    assert (code, same) == (expected, True)
    assert b"sales" in shown
    assert shown.rstrip().endswith(b"\x1b[?25h\x1b[?1049l")


def _take_terminal() -> None:
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


async def test_an_id_cannot_steer_the_terminal(line: Line) -> None:
    call = line.fleet.call(line.queues[0], "\x1b[2Jgone", queue_id="odd\x07")
    await call.held()
    for command in (["status", "odd\x07"], ["entries", "odd\x07"], ["top", "odd\x07"]):
        result = await line.run(*command)
        assert not {"\x1b", "\x07"} & set(result.out)
    await call.leave()


async def test_an_id_that_the_encoding_of_the_output_lacks(line: Line) -> None:
    """It is shown escaped."""
    await line.run("limit", "\u9577", "0")

    def output(command: str) -> str:
        environment = {**os.environ, "PYTHONIOENCODING": "latin-1"}
        program = [sys.executable, "-m", "genesis", command]
        return subprocess.check_output(program, env=environment, text=True, timeout=30)

    for command in ("status", "top"):
        assert "\\u9577" in await asyncio.to_thread(output, command)
    await line.run("limit", "\u9577", "none")


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["entries"],
        ["limit", "sales", "many"],
        ["limit", "sales", "-1"],
        ["entries", ""],
        ["status", "--key-prefix", "a{b"],
        ["status", "--url", "http://:hidden@x"],
        ["status", "--url", "redis://:hidden@x:port"],
        ["status", "--url", "redis://:hidden@x:1?no_such_option=1"],
        ["status", "--url", "redis+sentinel://:hidden@x:1"],
        ["status", "--url", "redis+cluster://:hidden@x:no"],
    ],
)
def test_wrong_arguments_are_exit_code_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = main(arguments)
    except SystemExit as error:
        code = int(str(error.code))
    assert code == 2
    assert "hidden" not in "".join(capsys.readouterr())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["limit", "sales", "many"], "expected a number of slots or none, got 'many'"),
        (["top", "--interval", "soon"], "expected more than 0 seconds, got 'soon'"),
        (["top", "--interval", "0"], "expected more than 0 seconds, got '0'"),
    ],
)
def test_a_wrong_argument_is_told_what_is_expected(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(arguments)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("form", ["redis://{}", "redis+sentinel://{}/name", "redis+cluster://{}"])
async def test_unreachable_is_exit_code_3(run: Run, form: str) -> None:
    url = form.format(f":hidden@127.0.0.1:{free_port()}")
    for command in (["status"], ["top"], ["entries", "q"], ["limit", "q", "1"], ["evict", "q", "i"]):
        result = await run(*command, "--url", url)
        assert (result.code, result.out, "hidden" in result.err) == (3, "", False)
    assert (await run("status", "--json", "--url", url)).json["error"]["code"] == "UNREACHABLE"
    assert (await run("doctor", "--json", "--url", url)).codes == ["BACKEND_UNAVAILABLE"]


async def test_a_wrong_password_is_exit_code_4(line: Line) -> None:
    url = line.server.url.replace("//", "//:hidden@")
    line.server.client.config_set("requirepass", "other")
    result = await line.run("status", "--url", url)
    line.server.client.config_set("requirepass", "")
    assert (result.code, "hidden" in result.err) == (4, False)


async def test_options_of_a_url_that_the_application_uses_too(line: Line) -> None:
    """As `RedisBackend`, it needs no decoded replies, and reads those of its own protocol."""
    for options in ("decode_responses=true", "protocol=3"):
        result = await line.run("status", "--json", "--url", f"{line.server.url}?{options}")
        assert (result.code, result.json["queues"][0]["waiting"]) == (0, 2)


def test_both_ways_to_call_it(own_redis: RedisServer) -> None:
    script = f"{os.path.dirname(sys.executable)}/genesis"  # noqa: PTH120
    for command in ([sys.executable, "-m", "genesis"], [script]):
        done = subprocess.run(
            [*command, "--url", own_redis.url, "status", "--json"],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert (done.returncode, done.stderr) == (1, "")
        assert '"queues": []' in done.stdout


async def test_a_cluster_by_its_url(redis_cluster: Cluster, run: Run) -> None:
    """The index lies on other nodes than the queues; limit and evict go to the right one."""
    from genesis import Queue, RedisBackend

    url = f"redis+cluster://127.0.0.1:{redis_cluster.servers[0].port}"
    queue = Queue(RedisBackend(client=redis_cluster.client(), lease=2.0))
    names = [f"queue-{number}" for number in range(8)]
    slots = [queue.slot(name, item_id="only") for name in names]
    for slot in slots:
        await slot.__aenter__()

    async def listed() -> bool:
        shown = (await run("status", "--json", "--url", url)).json
        return [q["queue_id"] for q in shown["queues"]] == names and len(shown["instances"]) == 1

    await wait_until(listed, "all are listed")
    assert (await run("doctor", "--url", url)).out == "healthy: no findings\n"
    assert (await run("status", "--url", url.replace("//", "//nobody:hidden@"))).code == 4
    assert (await run("limit", "queue-3", "5", "--url", url)).code == 0
    assert (await queue.stats("queue-3")).limit == 5
    assert (await run("limit", "queue-3", "none", "--url", url)).code == 0
    assert (await run("evict", "queue-4", "only", "--url", url)).code == 0
    assert await queue.entries("queue-4") == []
    for slot in slots:
        await slot.__aexit__(None, None, None)
    await queue.close()


async def test_sentinels_by_their_url(run: Run) -> None:
    trio = SentinelTrio(password="secret")
    try:
        where = ",".join(f"127.0.0.1:{port}" for port in trio.ports)
        url = f"redis+sentinel://:secret@{where}/{trio.service}/0"
        assert (await run("limit", "sales", "3", "--url", url)).code == 0
        client: Any = trio.master.client
        assert client.get("genesis:queue:{sales}:override").endswith(" 3")
        assert (await run("status", "--json", "--url", url)).json["queues"][0]["limit"] == 3
        assert (await run("doctor", "--url", url)).out == "healthy: no findings\n"
        for wrong, code in (
            (url.replace(trio.service, "other"), 3),
            (url.replace("secret", "hidden"), 4),
            (f"{url}?sentinel_password=hidden", 4),
        ):
            result = await run("status", "--url", wrong)
            assert (result.code, "hidden" in result.err) == (code, False)
    finally:
        trio.close()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")  # noqa: PTH110
@pytest.mark.parametrize("output", [">/dev/full", ">&-"])
@pytest.mark.parametrize("command", ["doctor", "status --json", "top"])
def test_output_that_cannot_be_written_has_an_exit_code_of_its_own(
    own_redis: RedisServer, command: str, output: str
) -> None:
    """Exit code 1 would mean findings."""
    line = f"{sys.executable} -m genesis {command} --url {own_redis.url} {output} <&-"
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, "Traceback" in done.stderr) == (5, False), done.stderr
