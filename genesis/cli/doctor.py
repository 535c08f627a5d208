"""`genesis doctor`: finds problems of the server, the instances and the queues, and names the fix.

Nothing is written. A right is probed with a command that has no effect: Redis checks rights before it
checks arguments. The url's user therefore needs only the rights of an instance.
"""

from __future__ import annotations

import math
import re
import shlex
import time
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from functools import partial
from itertools import groupby
from typing import Literal, NamedTuple

from redis import RedisError, exceptions

from genesis.backends.redis.keys import channel_prefix
from genesis.cli.show import span
from genesis.cli.store import KEY_PREFIX, Instance, Limits, QueueLook, Store

RUNBOOKS = {
    "BACKEND_UNAVAILABLE": "GenesisBackendUnavailable",
    "STALE_INSTANCE": "GenesisInstanceDown",
    "STUCK_HEAD": "GenesisStuckHead",
    "LIMITS_DIFFER": "GenesisLimitDisagreement",
    "OLD_HOLD": "GenesisOldHold",
    "PAUSED": "GenesisPaused",
}
"""By code, the runbook of the alert with the same cause, if there is one."""

PROBES = (
    "ping", "time", "script|load x", "evalsha x 1 KEY", "exists KEY", "expire KEY x", "get KEY",
    "set KEY x x", "hget KEY x", "hmget KEY x", "hset KEY x x x", "hdel KEY x", "zadd KEY x x",
    "zrem KEY x", "zcard KEY", "zrank KEY x", "zscore KEY x", "zrange KEY x x", "zrangebyscore KEY x x",
    "zremrangebyscore KEY x x", "zrangebylex KEY x x", "zlexcount KEY x x", "publish CHANNEL x",
    "subscribe CHANNEL",
)  # fmt: skip
"""The commands of an instance, with arguments with which they have no effect on a key that does not
exist. `subscribe` is the last: after it, the connection takes no other command."""

_REJECTIONS = exceptions.ReadOnlyError, exceptions.OutOfMemoryError, exceptions.ClusterDownError
_MARGIN = 1.0  # seconds by which times of one clock might differ, through rounding and delay
_RECHECK_AFTER = 0.5  # seconds until a queue that looks stuck is checked again
_MAX_NAMED = 5  # queues in one message


class Finding(NamedTuple):
    severity: Literal["critical", "warning"]
    code: str
    """Stable, for use in scripts."""
    message: str
    fix: str


critical, warning = partial(Finding, "critical"), partial(Finding, "warning")


def unreachable(text: str, denied: bool) -> Finding:
    """The finding for a server that could not be reached, or that denied access."""
    if denied:
        fix = "use a url with the right user and password; README.md lists the rights it needs"
        return critical("DENIED", text, fix)
    fix = "check the address, the network and that the server is up; instances wait meanwhile"
    return critical("BACKEND_UNAVAILABLE", text, fix)


def examine(
    store: Store, queues: Sequence[str], old_hold: float, user: str | None
) -> tuple[list[Finding], list[str]]:
    """Run all checks, of the listed queues if `queues` is empty.

    Args:
        store: reads the queues.
        queues: their names.
        old_hold: seconds from which a hold is a finding.
        user: check this user's rights with ACL DRYRUN, instead of those of the url's user.

    Returns:
        The findings, and the checks that the url's user is not permitted to make, with the reason.

    Raises:
        redis.RedisError: the server cannot be reached, or denies what an instance itself needs.
    """
    store.client.ping()
    findings = [*check_rights(store, user), *check_resp3(store)]
    unchecked = []
    try:
        findings += check_eviction(store)
    except exceptions.ResponseError as denied:
        unchecked.append(f"EVICTION_POLICY ({denied})")
    try:
        instances = store.instances()
        looks = store.look(queues or store.queues())
        lease = max((each.lease for each in instances), default=0.0)
        if any(each.code == "READ_ONLY" for each in findings):
            unchecked.append("instances (while writes are rejected, a live one looks dead, too)")
        else:
            findings += check_instances(instances, looks)
        findings += check_queues(store, looks, lease, old_hold)
        limits = [each for each in store.limits() if not queues or each.queue_id in queues]
        findings += check_limits(store, limits)
        findings += check_clock(looks, instances, lease)
        findings += check_layout(looks)
    except RedisError as error:
        if not findings:
            raise
        unchecked.append(f"queues and instances ({error})")
    return sorted(findings, key=lambda each: each.severity), unchecked  # critical ones first


# The server


def check_rights(store: Store, user: str | None) -> Iterator[Finding]:
    """The rights that are missing, and whether the server rejects writes."""
    channel = channel_prefix(store.key_prefix).decode()
    stand_for = {"KEY": f"{store.key_prefix}index:probe", "CHANNEL": f"{channel}doctor"}
    probes = [probe.split() for probe in ("cluster|slots",) * store.clustered + PROBES]
    commands = [
        [*name.split("|"), *(stand_for.get(each, each) for each in arguments)]
        for name, *arguments in probes
    ]
    if user is not None:
        commands = [["acl", "dryrun", user, *command] for command in commands]
    missing: dict[str, None] = {}
    rejected = ""
    for (name, *_), reply in zip(probes, store.replies(commands), strict=True):
        if user is None:
            denial = str(reply) if isinstance(reply, exceptions.NoPermissionError) else ""
        elif isinstance(reply, Exception):
            raise reply
        else:
            denial = "" if reply == b"OK" else str(reply)
        if denial:
            what = re.search(r"access .*\b(key|channel)", denial)
            missing[f"{what[1]}s" if what else name] = None
        elif isinstance(reply, _REJECTIONS) or str(reply).startswith(("MISCONF", "NOREPLICAS")):
            rejected = f"{type(reply).__name__}: {reply}"
    if missing:
        who = "the user of the url" if user is None else f"user {user!r}"
        forms = {"keys": f"~{store.key_prefix}*", "channels": f"&{channel}*"}
        rights = " ".join(forms.get(name, f"+{name}") for name in missing)
        fix = f"ACL SETUSER {user or 'NAME'} {rights}"
        yield critical("ACL_MISSING", f"{who} must not use: {', '.join(missing)}", fix)
    if rejected:
        fix = "connect to the master (Sentinel or Cluster url), or fix what the server names"
        if rejected.startswith("OutOfMemory"):
            fix = "raise `maxmemory`, or free memory"
        yield critical("READ_ONLY", f"the server rejects writes: {rejected}", fix)


def check_resp3(store: Store) -> Iterator[Finding]:
    (reply,) = store.replies([["hello", "3"]])
    if not isinstance(reply, dict) or reply.get(b"proto") != 3:
        fix = "Redis 6.2 or later, with nothing in between (a proxy) that speaks RESP2 alone"
        yield critical("RESP3_MISSING", f"HELLO 3 is not answered in RESP3: {reply}", fix)


def check_eviction(store: Store) -> Iterator[Finding]:
    where = {"target_nodes": "primaries"} if store.clustered else {}
    reply = store.client.info("memory", **where)
    facts = [reply] if "maxmemory" in reply else list(reply.values())
    policies = {str(each.get("maxmemory_policy")) for each in facts} - {"noeviction", "None"}
    bounded = any(each.get("maxmemory") for each in facts)
    if policies:
        now = "maxmemory is set" if bounded else "maxmemory is not set"
        text = f"maxmemory-policy is {', '.join(policies)} ({now}): Redis might drop queues and limits"
        fix = "CONFIG SET maxmemory-policy noeviction, also in the server's configuration"
        yield (critical if bounded else warning)("EVICTION_POLICY", text, fix)


# The instances and the queues


def check_instances(instances: Sequence[Instance], looks: Sequence[QueueLook]) -> Iterator[Finding]:
    left: dict[str, list[str]] = defaultdict(list)
    for look in looks:
        for owner, lapsed in look.lapsed.items():
            if lapsed > _MARGIN and (look.waiting or look.in_use):
                left[owner].append(look.queue_id)
    known = {each.instance_id: each for each in instances}
    stale = {each.instance_id for each in instances if each.seen > each.lease + _MARGIN}
    for owner in sorted(left.keys() | stale):
        text = f"instance {owner}"
        if owner in known:
            each = known[owner]
            text += f" (host {each.host}, pid {each.pid}, lease {span(each.lease)}) "
            text += f"has given no sign of life for {span(each.seen)}"
        if owner in left:
            text += f"; nobody has taken back what it had in {_names(left[owner])}"
            fix = "start an instance that uses the same queues: its first call or `stats` takes it back"
            yield critical("STALE_INSTANCE", text, fix)
        else:
            fix = "unless it was meant to end, is its process killed, stopped or cut off from Redis?"
            left_nothing = "nothing of it is left in the queues checked"
            yield warning("STALE_INSTANCE", f"{text}; {left_nothing}", fix)
    alive = [each for each in instances if each.alive]
    leases = {f"{each.lease:g} s": each for each in alive}
    if len(leases) > 1:
        text = f"instances have different leases: {_examples(leases)}"
        yield warning("LEASES_DIFFER", text, "give all instances one `lease`")
    versions = {each.version: each for each in alive}
    if len(versions) > 1:
        text = f"instances have different versions: {_examples(versions)}"
        yield warning("VERSIONS_DIFFER", text, "end the deployment, or roll it back")


def check_queues(
    store: Store, looks: Sequence[QueueLook], lease: float, old_hold: float
) -> Iterator[Finding]:
    for look in looks:
        queue = f"queue {look.queue_id!r}"
        if look.override == 0:
            line = f"{look.waiting} wait, the longest for {span(look.oldest_wait)}"
            fix = _command(store, "limit", look.queue_id, "none")
            yield warning("PAUSED", f"{queue} is paused (limit 0): {line}", fix)
        if look.in_use and look.oldest_hold >= old_hold:
            text = f"{queue}: item {look.longest_holder!r} has held a slot for {span(look.oldest_hold)}"
            command = _command(store, "evict", look.queue_id, look.longest_holder)
            fix = f"find the handler that never leaves its slot; if its work has ended, {command}"
            yield warning("OLD_HOLD", text, fix)
    stuck = [look.queue_id for look in looks if _is_stuck(look, lease)]
    if stuck:
        time.sleep(_RECHECK_AFTER)  # an instance that reaps many tickets does so in portions
    for look in store.look(stuck):
        if _is_stuck(look, lease):
            used = f"{look.waiting} waiting and {look.in_use} of {look.limit} slots in use"
            text = f"queue {look.queue_id!r} has {used}; {look.head!r} is next and is granted none"
            command = _command(store, "limit", look.queue_id, str(look.limit))
            fix = f"if CLOCK_STEPPED is found as well, fix that first; then {command} grants"
            yield critical("STUCK_HEAD", text, fix)


def _is_stuck(look: QueueLook, lease: float) -> bool:
    # Without a live instance nobody can be granted: that is STALE_INSTANCE. After a loss of data
    # nothing is granted for half a lease; a longer window means that the clock stepped back.
    recovering = 0 < look.until <= lease / 2 + _MARGIN
    return look.waiting > 0 and look.in_use < look.limit and look.instances > 0 and not recovering


def check_limits(store: Store, limits: Sequence[Limits]) -> Iterator[Finding]:
    """Args: limits by queue, the latest first."""
    for queue_id, group in groupby(limits, key=lambda each: each.queue_id):
        rows = list(group)
        numbers = sorted({number for each in rows for number in each.limits})
        last = f"last noticed {span(rows[0].ago)} ago by instance {rows[0].instance_id}"
        text = f"queue {queue_id!r}: call sites name different limits, {str(numbers)[1:-1]}; {last}"
        command = _command(store, "limit", queue_id, "N")
        fix = f"let one place name the limit, or all the same; {command} overrides them meanwhile"
        yield warning("LIMITS_DIFFER", text, fix)


def check_clock(
    looks: Sequence[QueueLook], instances: Sequence[Instance], lease: float
) -> Iterator[Finding]:
    """A clock that stepped back leaves times in the future. A step forward leaves no trace."""
    lease = lease or math.inf  # not known: nothing is judged by it
    steps = {
        look.queue_id: max(look.last, look.furthest - lease, look.until - lease / 2) for look in looks
    }
    steps = {queue_id: seconds for queue_id, seconds in steps.items() if seconds > _MARGIN}
    by = max([*steps.values(), *(-each.seen for each in instances)], default=0.0)
    if by > _MARGIN:
        where = f" ({_names(steps)})" if steps else ""
        text = f"Redis's clock went back by {span(by)} or more{where}: queues might grant nothing"
        fix = "fix the clock (slew, never step). If a queue stays stuck: HDEL its `meta` field `until`"
        yield critical("CLOCK_STEPPED", text, fix)


def check_layout(looks: Sequence[QueueLook]) -> Iterator[Finding]:
    old = [look.queue_id for look in looks if look.old_layout]
    if old:
        text = f"instances of 0.1 share {_names(old)}, and the versions do not see each other's tickets"
        fix = "stop the older instances; their keys expire. Or give the new ones another `key_prefix`"
        yield critical("OLD_LAYOUT", text, fix)


def _names(queue_ids: Collection[str]) -> str:
    names = [repr(queue_id) for queue_id in queue_ids]
    more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    return f"queue{'s' * (len(names) > 1)} {', '.join(names[:_MAX_NAMED])}{more}"


def _command(store: Store, command: str, *words: str) -> str:
    """A command line, quoted for a shell, without the url, which might contain a password."""
    prefix = [f"--key-prefix={store.key_prefix}"] * (store.key_prefix != KEY_PREFIX)
    dashes = ["--"] * any(word.startswith("-") for word in words)
    return f"`genesis {shlex.join([*prefix, command, *dashes, *words])}`"


def _examples(found: dict[str, Instance]) -> str:
    """Each value with an instance that has it."""
    return ", ".join(f"{value} (host {of.host}, pid {of.pid})" for value, of in sorted(found.items()))
