"""`genesis doctor`: finds problems of the server, the instances and the queues, and names the fix."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from redis import RedisError

from genesis.cli.doctor_server import check_server
from genesis.cli.finding import Finding, finding
from genesis.cli.show import span
from genesis.cli.store import Instance, Limits, QueueLook, Store

__all__ = ["OLD_HOLD", "Finding", "Report", "examine", "unreachable"]

OLD_HOLD = 3600.0
"""Seconds; the default age from which a hold is a finding."""

_MARGIN = 1_000_000  # us by which times of one clock might differ, through rounding and delay
_RECHECK_AFTER = 0.5  # seconds until a queue that looks stuck is checked again
_MAX_NAMED = 5  # queues in one message


class Report(NamedTuple):
    findings: list[Finding]
    unchecked: list[str]
    """Checks that the url's user is not permitted to make, and why."""


def unreachable(text: str, denied: bool) -> Finding:
    """The finding for a server that could not be reached, or that denied access."""
    if denied:
        fix = "use a url with the right user and password; README.md lists the rights it needs"
        return finding("critical", "DENIED", text, fix)
    fix = "check the address, the network and that the server is up; instances wait meanwhile"
    return finding("critical", "BACKEND_UNAVAILABLE", text, fix)


def examine(
    store: Store,
    queues: Sequence[str] = (),
    *,
    old_hold: float = OLD_HOLD,
    user: str | None = None,
) -> Report:
    """Run all checks. Read-only.

    Args:
        store: the queues.
        queues: the queues to check; by default all that are listed.
        old_hold: seconds, see `OLD_HOLD`.
        user: check this user's rights with ACL DRYRUN, instead of those of the url's user.

    Raises:
        redis.RedisError: the server cannot be reached, or denies what an instance itself needs.
    """
    store.client.ping()
    findings, unchecked = check_server(store, user)
    try:
        instances, limits = store.instances(), store.limits()
        looks = store.look(list(queues) or store.queues())
        findings += check_instances(instances, looks)
        findings += check_queues(store, looks, instances, old_hold)
        findings += check_limits(limits)
        findings += check_clock(looks, instances)
        findings += check_layout(store, looks)
    except RedisError as error:
        if not findings:
            raise
        unchecked.append(f"queues and instances ({error})")
    order = {"critical": 0, "warning": 1}
    return Report(sorted(findings, key=lambda each: order[each.severity]), unchecked)


def check_instances(instances: Sequence[Instance], looks: Sequence[QueueLook]) -> Iterator[Finding]:
    left: dict[str, list[str]] = {}
    for look in looks:
        for owner, deadline in look.lapsed:
            if deadline < look.now - _MARGIN and (look.waiting or look.in_use):
                left.setdefault(owner, []).append(look.queue_id)
    known = {each.instance_id: each for each in instances}
    stale = [each for each in instances if each.seen > each.lease + _MARGIN / 1e6]
    for owner in sorted({*left, *(each.instance_id for each in stale)}):
        each = known.get(owner)
        name = owner if each is None else f"{owner} (host {each.host}, pid {each.pid})"
        seen = "" if each is None else f" has given no sign of life for {span(each.seen)};"
        if owner in left:
            yield finding(
                "critical",
                "STALE_INSTANCE",
                f"instance {name}{seen} its lease has lapsed in {_names(left[owner])}, and nobody has "
                "taken back what it has there: no other instance uses these queues",
                "start an instance that uses them: its first call or `stats` takes it all back",
            )
        else:
            yield finding(
                "warning",
                "STALE_INSTANCE",
                f"instance {name}{seen} its lease is {span(each.lease if each else 0)}. What it had "
                "was taken back",
                "if it was not stopped on purpose, look at the process: killed, stopped, or cut off "
                "from Redis. One that ended without close() is listed for 11 minutes",
            )
    alive = [each for each in instances if each.alive]
    leases = sorted({each.lease for each in alive})
    if len(leases) > 1:
        yield finding(
            "warning",
            "LEASES_DIFFER",
            f"instances have different leases: {', '.join(f'{lease:g} s' for lease in leases)} "
            f"({_of_each(alive, leases, [each.lease for each in alive])})",
            "give all instances one `lease`",
        )
    versions = sorted({each.version for each in alive})
    if len(versions) > 1:
        yield finding(
            "warning",
            "VERSIONS_DIFFER",
            f"instances have different versions: {', '.join(versions)} "
            f"({_of_each(alive, versions, [each.version for each in alive])})",
            "end the deployment, or roll it back",
        )


def check_queues(
    store: Store, looks: Sequence[QueueLook], instances: Sequence[Instance], old_hold: float
) -> Iterator[Finding]:
    paused = [look for look in looks if look.override == 0]
    for look in paused:
        yield finding(
            "warning",
            "PAUSED",
            f"queue {look.queue_id!r} is paused (limit 0): {look.waiting} wait, the longest for "
            f"{span(look.oldest_wait)}, and nobody is granted a slot",
            _command("limit", look.queue_id, "none"),
        )
    longest = max((each.lease for each in instances), default=0.0)
    suspects = [look.queue_id for look in looks if _is_stuck(look, longest)]
    if suspects:
        time.sleep(_RECHECK_AFTER)  # an instance that reaps many tickets does so in portions
        for look in store.look(suspects):
            if _is_stuck(look, longest):
                yield finding(
                    "critical",
                    "STUCK_HEAD",
                    f"queue {look.queue_id!r} has {look.waiting} waiting and {look.in_use} of "
                    f"{look.limit} slots in use; {look.head!r} is next and is granted none",
                    "if CLOCK_STEPPED is found as well, fix that first; then "
                    f"{_command('limit', look.queue_id, str(look.limit))} grants",
                )
    for look in looks:
        if look.in_use and look.oldest_hold >= old_hold:
            yield finding(
                "warning",
                "OLD_HOLD",
                f"queue {look.queue_id!r}: item {look.longest_holder!r} has held a slot for "
                f"{span(look.oldest_hold)}",
                f"if its work has ended, {_command('evict', look.queue_id, look.longest_holder)}; and "
                "look for a handler that never leaves its slot",
            )


def _is_stuck(look: QueueLook, lease: float) -> bool:
    # Without a live instance nobody can be granted: that is STALE_INSTANCE. After a loss of data
    # nothing is granted for half a lease; a longer window means that the clock stepped back.
    recovering = look.now < look.until <= look.now + lease / 2 * 1e6 + _MARGIN
    return look.waiting > 0 and look.in_use < look.limit and look.instances > 0 and not recovering


def check_limits(limits: Sequence[Limits]) -> Iterator[Finding]:
    named: dict[str, set[int]] = {}
    latest: dict[str, Limits] = {}
    for each in limits:
        named.setdefault(each.queue_id, set()).update(each.limits)
        if each.queue_id not in latest or each.ago < latest[each.queue_id].ago:
            latest[each.queue_id] = each
    for queue_id, numbers in sorted(named.items()):
        last = latest[queue_id]
        yield finding(
            "warning",
            "LIMITS_DIFFER",
            f"queue {queue_id!r}: call sites name different limits, "
            f"{', '.join(map(str, sorted(numbers)))}; last noticed {span(last.ago)} ago by instance "
            f"{last.instance_id}",
            "let one place name the limit, or all the same; "
            f"{_command('limit', queue_id, 'N')} overrides them meanwhile",
        )


def check_clock(looks: Sequence[QueueLook], instances: Sequence[Instance]) -> Iterator[Finding]:
    """A clock that stepped back leaves times in the future. A step forward leaves no trace."""
    longest = max((each.lease for each in instances), default=0.0)
    ahead: dict[str, float] = {}
    for look in looks:
        beyond = [look.last - look.now]
        if longest:
            beyond.append(look.furthest - look.now - round(longest * 1e6))
            beyond.append(look.until - look.now - round(longest / 2 * 1e6))
        if max(beyond) > _MARGIN:
            ahead[look.queue_id] = max(beyond) / 1e6
    unborn = [-each.seen for each in instances if each.seen * 1e6 < -_MARGIN]
    if ahead or unborn:
        where = f": {_names(ahead)}" if ahead else ""
        by = max([*ahead.values(), *unborn])
        yield finding(
            "critical",
            "CLOCK_STEPPED",
            f"the clock of Redis has gone back by at least {span(by)}{where}. Leases last longer than "
            "they should, and a queue might grant nothing",
            "fix the clock (slew, never step). If a queue stays stuck: HDEL its `meta` field `until`",
        )


def check_layout(store: Store, looks: Sequence[QueueLook]) -> Iterator[Finding]:
    # That layout's other keys, `at:<instance>` and `left:<ticket>`, exist only together with `epoch`.
    found = [look.queue_id for look in looks if look.old_layout]
    rest = [look.queue_id for look in looks if not look.old_layout]
    found += store.with_key(rest, b"gone")
    if found:
        yield finding(
            "critical",
            "OLD_LAYOUT",
            f"keys of an older layout exist in {_names(found)}: instances of a version before this one "
            "share the queue and do not see the tickets of the others",
            "stop the instances of the older version; their keys expire. Or give the new ones a "
            "`key_prefix` of their own",
        )


def _names(queue_ids: Sequence[str] | dict[str, float]) -> str:
    names = list(queue_ids)
    more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    return "queue " * (len(names) == 1) + ", ".join(repr(name) for name in names[:_MAX_NAMED]) + more


def _command(*words: str) -> str:
    """A command line, quoted for a shell."""
    return f"`genesis {shlex.join(words)}`"


def _of_each(alive: Sequence[Instance], values: Sequence[object], of: Sequence[object]) -> str:
    """Each value with one instance that has it."""
    picks = [alive[list(of).index(value)] for value in values]
    return ", ".join(
        f"{value}: {each.host} pid {each.pid}" for value, each in zip(values, picks, strict=True)
    )
