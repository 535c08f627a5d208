"""Each cause is injected; the doctor finds it, and nothing else, and nothing on a healthy fleet."""

from __future__ import annotations

import asyncio
import contextlib
import re
import shlex
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from redis.exceptions import ResponseError

from genesis.backends.redis import index
from genesis.backends.redis.scripts import INSTANCE_SCRIPTS, source_of
from genesis.cli import doctor
from genesis.cli.doctor import PROBES, RUNBOOKS
from tests.cli.conftest import Line, Run
from tests.support.fleet import Fleet
from tests.support.redis_server import RedisServer, free_port, server_version
from tests.support.redis_server import find_redis_server as find
from tests.support.telemetry_names import RUNBOOKS as FOLDER
from tests.support.topology import in_step
from tests.support.waiting import wait_until
from tests.support.worker import Worker

META = "genesis:queue:{sales}:meta"
INSTANCES = "genesis:queue:index:instances"


async def only(line: Line, code: str, *more: str) -> dict[str, Any]:
    """The one finding, once it shows."""

    async def shows() -> bool:
        return (await line.doctor(*more)).codes == [code]

    await wait_until(shows, f"the doctor finds {code} alone")
    result = await line.doctor(*more)
    assert result.code == 1
    found: dict[str, Any] = result.json["findings"][0]
    assert set(found) == {"severity", "code", "message", "fix", "runbook"}
    return found


async def test_a_healthy_fleet_has_no_findings(line: Line) -> None:
    result = await line.run("doctor")
    assert (result.code, result.out) == (0, "healthy: no findings\n")
    assert (await line.doctor()).json == {"findings": [], "unchecked": []}


async def test_the_doctor_changes_nothing(line: Line) -> None:
    """A queue without a live instance has the same keys and values afterwards."""
    client: Any = line.server.client
    async with Worker(line.server.url, 2.0, "alone") as worker:
        worker.enter("doomed")
        await worker.event("granted", "doomed")
        await wait_until(lambda: client.zcard(INSTANCES) == 4, "it is listed")
        worker.kill()
        names = set(client.keys("*"))
        values = {name: client.dump(name) for name in names if "{alone}" in name}
        await line.doctor()
        assert values
        assert {name: client.dump(name) for name in values} == values
        assert set(client.keys("*")) == names


def test_every_runbook_exists() -> None:
    assert all((FOLDER / f"{name}.md").exists() for name in RUNBOOKS.values())
    page = Path(doctor.__file__).with_name("README.md").read_text()
    told = re.findall(r"^\| `([A-Z]\w+)` \|.*\| (\w*) ?\|$", page, re.MULTILINE)
    assert {code: runbook for code, runbook in told if runbook} == RUNBOOKS


def test_every_command_of_the_scripts_is_probed() -> None:
    """The others are the commands that an instance sends itself."""
    sources = "".join(source_of(name) for name in INSTANCE_SCRIPTS)
    called = {name.lower() for name in re.findall(r"redis\.p?call\('(\w+)'", sources)}
    others = {"ping", "script|load", "evalsha", "subscribe", "zremrangebyscore"}
    assert {probe.split()[0] for probe in PROBES} == called | others


def test_a_probe_has_no_effect(own_redis: RedisServer) -> None:
    """It passes the check of the number of arguments, which Redis makes first, and writes nothing."""
    client: Any = own_redis.client
    arities = {name: info["arity"] for name, info in client.command().items()}
    for probe in PROBES[:-1]:  # not the subscription
        name, *arguments = probe.split()
        words = [*name.split("|"), *arguments]
        arity = arities[words[0]]
        assert len(words) == arity if arity > 0 else len(words) >= -arity, probe
        with contextlib.suppress(ResponseError):
            client.execute_command(*words)
    assert client.dbsize() == 0


async def test_unreachable(run: Run) -> None:
    result = await run("doctor", "--json", "--url", f"redis://127.0.0.1:{free_port()}")
    assert (result.code, result.codes) == (3, ["BACKEND_UNAVAILABLE"])
    assert result.json["findings"][0]["runbook"] == "GenesisBackendUnavailable"


async def test_denied(line: Line) -> None:
    result = await line.doctor("--url", line.server.url.replace("//", "//nobody:hidden@"))
    assert (result.code, result.codes, "hidden" in result.out) == (4, ["DENIED"], False)


async def test_read_only(line: Line, run: Run) -> None:
    replica = RedisServer("--replicaof", "127.0.0.1", str(line.server.port))
    try:
        await wait_until(lambda: in_step(replica), "the replica follows")
        result = await line.doctor("--url", replica.url)
        assert result.codes == ["READ_ONLY"]
    finally:
        replica.close()


@pytest.mark.parametrize(
    ("rule", "named"),
    [
        ("-zadd", "zadd"),
        ("-subscribe", "subscribe"),
        ("-script", "script|load"),
        ("-hset", "hset"),
    ],
)
async def test_acl_missing(line: Line, rule: str, named: str) -> None:
    url = line.fleet.add_user()
    line.fleet.allow(rule)
    found = (await line.doctor("--url", url)).json["findings"]
    assert [each["code"] for each in found] == ["ACL_MISSING"]
    assert f"must not use: {named}" in found[0]["message"]
    assert f"+{named}" in found[0]["fix"]


async def test_acl_missing_for_keys_and_channels(line: Line) -> None:
    url = line.fleet.add_user()
    for rule in ("resetkeys", "~other:*", "resetchannels"):
        line.fleet.allow(rule)
    (found,) = (await line.doctor("--url", url)).json["findings"]
    assert found["code"] == "ACL_MISSING"
    assert "~genesis:queue:*" in found["fix"]
    assert "&genesis:queue:wake:*" in found["fix"]


@pytest.mark.skipif(server_version(find()) < (7,), reason="ACL DRYRUN came with Redis 7.0")
async def test_acl_of_another_user(line: Line) -> None:
    line.fleet.add_user()
    assert (await line.doctor("--user", "worker")).codes == []
    line.fleet.allow("-evalsha")
    found = await only(line, "ACL_MISSING", "--user", "worker")
    assert found["fix"] == "ACL SETUSER worker +evalsha"
    unknown = await line.doctor("--user", "nobody")
    assert (unknown.code, unknown.json["error"]["code"]) == (3, "REJECTED")


async def test_without_the_info_right_the_eviction_policy_is_reported_as_unchecked(line: Line) -> None:
    url = line.fleet.add_user()
    line.fleet.allow("-info")
    result = await line.doctor("--url", url)
    assert (result.code, result.codes) == (0, [])
    assert result.json["unchecked"][0].startswith("EVICTION_POLICY")


async def test_eviction_policy(line: Line) -> None:
    line.server.client.config_set("maxmemory-policy", "allkeys-lru")
    assert (await only(line, "EVICTION_POLICY"))["severity"] == "warning"
    line.server.client.config_set("maxmemory", "100mb")
    assert (await only(line, "EVICTION_POLICY"))["severity"] == "critical"


async def test_resp3_missing(line: Line) -> None:
    """A server without HELLO, as an old proxy is."""
    legacy = RedisServer("--rename-command", "HELLO", "", client={"protocol": 2})
    try:
        assert (await line.doctor("--url", legacy.url)).codes == ["RESP3_MISSING"]
    finally:
        legacy.close()


async def test_stale_instance_in_a_fleet_that_lives(line: Line) -> None:
    """Killed; the other instances reaped its tickets."""
    async with Worker(line.server.url, 2.0, "sales") as worker:
        worker.enter("doomed")
        await wait_until(lambda: line.server.client.zcard(INSTANCES) == 4, "it is listed")
        worker.kill()
        found = await only(line, "STALE_INSTANCE")
        assert (found["severity"], found["runbook"]) == ("warning", "GenesisInstanceDown")
        assert worker.instance_id in found["message"]


async def test_stale_instance_that_nobody_takes_back(line: Line) -> None:
    async with Worker(line.server.url, 2.0, "alone") as worker:
        worker.enter("doomed")
        await worker.event("granted", "doomed")
        await wait_until(lambda: line.server.client.zcard(INSTANCES) == 4, "it is listed")
        worker.kill()

        async def critical() -> bool:
            found = (await line.doctor()).json["findings"]
            return [each["severity"] for each in found] == ["critical"]

        await wait_until(critical, "its ticket is left")
        assert "'alone'" in (await only(line, "STALE_INSTANCE"))["message"]
        await line.queues[0].stats("alone")  # as the fix says
        assert (await only(line, "STALE_INSTANCE"))["severity"] == "warning"


async def test_what_an_instance_left_in_a_queue_that_was_not_checked_is_not_told(line: Line) -> None:
    async with Worker(line.server.url, 2.0, "alone") as worker:
        worker.enter("doomed")
        await worker.event("granted", "doomed")
        await wait_until(lambda: line.server.client.zcard(INSTANCES) == 4, "it is listed")
        worker.kill()
        found = await only(line, "STALE_INSTANCE", "sales")
        assert found["message"].endswith("; nothing of it is left in the queues checked")
        await line.queues[0].stats("alone")


async def test_an_instance_that_cannot_write_is_not_called_dead(line: Line) -> None:
    """Out of memory: leases are renewed, and the index is not written."""
    client: Any = line.server.client
    seconds, _ = client.time()
    client.config_set("maxmemory", 1)
    await wait_until(lambda: client.time()[0] > seconds + 4, "the index is older than a lease")
    result = await line.doctor()
    client.config_set("maxmemory", 0)
    assert not line.calls[0].lost
    assert (result.codes, len(result.json["unchecked"])) == (["READ_ONLY"], 1)
    assert result.json["findings"][0]["fix"] == "raise `maxmemory`, or free memory"


async def test_an_instance_that_was_closed_is_no_finding(line: Line) -> None:
    await line.queues[2].close()
    assert line.server.client.zcard(INSTANCES) == 2
    assert (await line.doctor()).codes == []


async def test_an_idle_instance_is_no_finding(own_redis: RedisServer, run: Run) -> None:
    """Nothing in any queue for longer than the lease."""
    async with AsyncExitStack() as stack:
        queue = Fleet(own_redis, stack).queue(lease=0.5)
        await queue.stats("sales")
        await wait_until(lambda: own_redis.client.zcard(INSTANCES) == 1, "it is listed")
        await asyncio.sleep(1.5)  # that it is idle is the subject
        assert (await run("doctor", "--json", "--url", own_redis.url)).codes == []
        await queue.close()


async def test_stuck_head_because_the_clock_went_back(line: Line) -> None:
    """The recovery window ends far in the future."""
    client = line.server.client
    client.hset(META, "until", str(int((time.time() + 900) * 1e6)))
    await line.calls[0].leave()

    async def both() -> bool:
        return sorted((await line.doctor()).codes) == ["CLOCK_STEPPED", "STUCK_HEAD"]

    await wait_until(both, "the doctor finds both")
    found = {each["code"]: each for each in (await line.doctor()).json["findings"]}
    assert found["STUCK_HEAD"]["runbook"] == "GenesisStuckHead"
    assert "'call-2'" in found["STUCK_HEAD"]["message"]
    client.hdel(META, "until")  # as the fix says
    await line.calls[1].held()
    assert (await line.doctor()).codes == []


async def test_clock_stepped(line: Line) -> None:
    """The greatest number given lies in the future."""
    client = line.server.client
    before = str(client.hget(META, "last"))
    client.hset(META, "last", str(int((time.time() + 60) * 1e6)))
    found = await only(line, "CLOCK_STEPPED")
    assert "'sales'" in found["message"]
    client.hset(META, "last", before)
    assert (await line.doctor()).codes == []


async def test_paused(line: Line) -> None:
    await line.queues[0].set_limit("sales", 0)
    found = await only(line, "PAUSED")
    assert found["fix"] == "`genesis limit sales none`"
    await line.run("limit", "sales", "none")
    assert (await line.doctor()).codes == []


async def test_a_fix_can_be_pasted(own_redis: RedisServer, run: Run) -> None:
    """It has the key prefix, and quotes an id that a shell or the command line would read otherwise."""
    where = "--url", own_redis.url, "--key-prefix", "my app:"
    await run("limit", *where, "--", "-$HOME", "0")
    (found,) = (await run("doctor", *where, "--json")).json["findings"]
    genesis, *words = shlex.split(found["fix"].strip("`"))
    assert (genesis, (await run("--url", own_redis.url, *words)).code) == ("genesis", 0)
    assert (await run("doctor", *where)).out == "healthy: no findings\n"


async def test_leases_differ(line: Line) -> None:
    other = line.fleet.queue(lease=5.0)
    await other.stats("sales")
    assert re.search(r"2 s \(.*5 s \(", (await only(line, "LEASES_DIFFER"))["message"])
    await other.close()
    assert (await line.doctor()).codes == []


async def test_versions_differ(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "VERSION", "99.1")
    other = line.fleet.queue()
    await other.stats("sales")
    assert "99.1" in (await only(line, "VERSIONS_DIFFER"))["message"]
    await other.close()


async def test_limits_differ(line: Line) -> None:
    line.queues.append(line.fleet.queue())  # closed with the others
    call = line.fleet.call(line.queues[-1], "greedy", 2)
    found = await only(line, "LIMITS_DIFFER")
    assert "1, 2" in found["message"]
    assert found["runbook"] == "GenesisLimitDisagreement"
    assert (await line.doctor("support")).codes == []  # of that queue alone
    line.calls.append(call)


async def test_old_hold(line: Line) -> None:
    assert (await line.doctor("--old-hold", "600")).codes == []
    found = await only(line, "OLD_HOLD", "--old-hold", "0.1")
    assert "'call-1'" in found["message"]
    assert "genesis evict sales call-1" in found["fix"]


async def test_old_layout(line: Line) -> None:
    """An instance of 0.1 writes `epoch` whenever it uses a queue."""
    line.server.client.hset(META, "epoch", "1")
    assert "'sales'" in (await only(line, "OLD_LAYOUT"))["message"]
    line.server.client.hdel(META, "epoch")


async def test_text_names_the_fix_and_the_runbook(line: Line) -> None:
    await line.queues[0].set_limit("sales", 0)
    result = await line.run("doctor")
    assert result.out.startswith("WARNING PAUSED: queue 'sales' is paused (limit 0): 2 wait")
    assert "    fix: `genesis limit sales none`\n" in result.out
    await line.queues[0].set_limit("sales", None)
