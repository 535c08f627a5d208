"""The commands, their arguments, their output and the exit codes."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

from redis import RedisError, exceptions

from genesis.backends.redis.keys import check_key_prefix
from genesis.cli import doctor
from genesis.cli.connect import connect, redact
from genesis.cli.show import clean, frame, live, queue_cells, span, table
from genesis.cli.store import KEY_PREFIX, Store
from genesis.queue.arguments import check_id, check_limit
from genesis.version import VERSION

OK, FOUND, USAGE, UNREACHABLE, DENIED, UNWRITTEN = 0, 1, 2, 3, 4, 5
_URL = "redis://localhost:6379"
_CODES = """exit codes: 0 done, healthy; 1 doctor has findings, or nothing was found; 2 wrong arguments;
3 Redis is out of reach or gave an error; 4 it denied access; 5 the output cannot be
written. See genesis/cli/README.md."""

_DENIALS = exceptions.AuthenticationError, exceptions.AuthorizationError, exceptions.NoPermissionError

Result: TypeAlias = "tuple[int, dict[str, Any], Iterable[str]]"
"""The exit code, the document for `--json`, and the lines of text."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command, by default that of the process's command line. Returns the exit code."""
    url = os.environ.get("GENESIS_REDIS_URL") or _URL
    defaults = argparse.Namespace(url=url, key_prefix=KEY_PREFIX, timeout=5.0, json=False)
    options = _parser().parse_args(arguments, defaults)
    if isinstance(sys.stdout, io.TextIOWrapper):  # its encoding might lack a character of an id
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code, document, lines = _run(options)
        lines = [json.dumps(document, indent=2)] if options.json else map(clean, lines)
        stream = sys.stderr if "error" in document and not options.json else sys.stdout
        if stream is None:
            return UNWRITTEN  # `genesis doctor >&-`
        stream.write("".join(f"{line}\n" for line in lines))
        stream.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):  # `genesis status | head`
            return OK
        sys.stderr.write(f"genesis {options.command}: the output cannot be written: {error}\n")
        return UNWRITTEN
    except KeyboardInterrupt:
        return 130
    return code


def _run(options: argparse.Namespace) -> Result:
    try:
        check_key_prefix(options.key_prefix)
        for name in ("queue", "item"):
            if hasattr(options, name):
                check_id(name, getattr(options, name))
        if options.command == "limit":
            check_limit("limit", options.queue, options.limit, least=0)
        with contextlib.closing(connect(options.url, options.timeout)) as client:
            result: Result = options.run(Store(client, options.key_prefix), options)
        return result
    except ValueError as error:
        code, name, text = USAGE, "USAGE", str(error)
    except (RedisError, exceptions.RedisClusterException, OSError) as error:
        text = redact(f"{type(error).__name__}: {error}", options.url)
        denied = _is_denied(error)
        code = DENIED if denied else UNREACHABLE
        other = "REJECTED" if isinstance(error, exceptions.ResponseError) else "UNREACHABLE"
        name = "DENIED" if denied else other
        if options.command == "doctor" and name != "REJECTED":
            return _report(code, [doctor.unreachable(text, denied)], [])
    return code, {"error": {"code": name, "message": text}}, [f"genesis {options.command}: {text}"]


def _is_denied(error: BaseException | None) -> bool:
    # A Cluster's error has the denial as its cause, a Sentinel's only in its text.
    while error is not None:
        if isinstance(error, _DENIALS) or "AuthenticationError" in str(error):
            return True
        error = error.__cause__
    return False


# Commands


def _status(store: Store, options: argparse.Namespace) -> Result:
    looks, instances = store.look(options.queues or store.queues()), store.instances()
    document = {
        "queues": [look.facts for look in looks],
        "instances": [each._asdict() for each in instances],
    }
    if not (looks or instances):
        return FOUND, document, [f"no queue was used under {store.key_prefix!r} in the last 11 minutes"]
    head = "QUEUE", "WAITING", "IN USE", "LIMIT", "OLDEST WAIT", "OLDEST HOLD", "EXPECTED", "INSTANCES"
    lines = table(head, *((*queue_cells(look), look.instances) for look in looks))
    if any(look.override is not None for look in looks):
        lines.append("* overridden by set_limit; `genesis limit QUEUE none` ends it")
    names = "INSTANCE", "HOST", "VERSION", "PID", "LEASE", "UP FOR", "LAST SEEN"
    rows = []
    for each in instances:
        seen = f"{span(each.seen)} ago{'' if each.alive else ' (STALE)'}"
        rows.append((each.instance_id, each.host, each.version, each.pid, each.lease, each.age, seen))
    return OK, document, [*lines, "", *table(names, *rows, left=3)]


def _top(store: Store, options: argparse.Namespace) -> Result:
    if options.json:
        return _status(store, options)

    def picture(columns: int, rows: int, color: bool) -> list[str]:
        looks = store.look(options.queues or store.queues())
        waiting, in_use = sum(look.waiting for look in looks), sum(look.in_use for look in looks)
        alive = sum(each.alive for each in store.instances())
        counts = f"{len(looks)} queues, {waiting} waiting, {in_use} in use, {alive} instances"
        return frame(looks, f"genesis {store.key_prefix}: {counts}", columns, rows, color)

    if not all(stream and stream.isatty() for stream in (sys.stdin, sys.stdout)):
        return OK, {}, picture(100, 0, False)
    live(picture, options.interval)
    return OK, {}, []


def _entries(store: Store, options: argparse.Namespace) -> Result:
    entries = store.entries(options.queue)
    document = {"queue": options.queue, "entries": [entry._asdict() for entry in entries]}
    if not entries:
        return FOUND, document, [f"nobody holds or waits in queue {options.queue!r}"]
    head = "STATE", "ITEM", "INSTANCE", "POSITION", "AGE", "FENCING TOKEN"
    rows = [(e.state, e.item_id, e.instance_id, e.position, e.age, e.fencing_token) for e in entries]
    return OK, document, table(head, *rows, left=3)


def _limit(store: Store, options: argparse.Namespace) -> Result:
    (before,) = store.look([options.queue])
    granted = store.set_limit(options.queue, options.limit)
    (after,) = store.look([options.queue])
    override = "the call sites' own" if after.override is None else "an override on all instances"
    paused = "; nobody is granted a slot until the limit is raised" if after.limit == 0 else ""
    limits = {"previous": before.known_limit, "limit": after.known_limit, "override": after.override}
    was, now = ("unknown" if each.known_limit is None else each.limit for each in (before, after))
    lines = [f"queue {options.queue!r}: limit {was} -> {now}, {override}{paused}"]
    if granted:
        lines.append(f"granted at once: {granted}")
    return OK, {"queue": options.queue, **limits, "granted": granted}, lines


def _evict(store: Store, options: argparse.Namespace) -> Result:
    evicted = store.evict(options.queue, options.item)
    item = f"item {options.item!r}"
    text = f"evicted {evicted} of {item}" if evicted else f"{item} neither holds nor waits"
    document = {"queue": options.queue, "item": options.item, "evicted": evicted}
    return OK if evicted else FOUND, document, [f"queue {options.queue!r}: {text}"]


def _doctor(store: Store, options: argparse.Namespace) -> Result:
    findings, unchecked = doctor.examine(store, options.queues, options.old_hold, options.user)
    return _report(FOUND if findings else OK, findings, unchecked)


def _report(code: int, findings: Sequence[doctor.Finding], unchecked: Sequence[str]) -> Result:
    lines, rows = [], []
    for each in findings:
        runbook = doctor.RUNBOOKS.get(each.code)
        rows.append({**each._asdict(), "runbook": runbook})
        lines += [f"{each.severity.upper()} {each.code}: {each.message}", f"    fix: {each.fix}"]
        if runbook:
            lines.append(f"    runbook: dashboards/runbooks/{runbook}.md")
    lines += [f"not checked: {text}" for text in unchecked]
    lines.append(f"{len(findings)} findings" if findings else "healthy: no findings")
    return code, {"findings": rows, "unchecked": unchecked}, lines


# Arguments


def _parser() -> argparse.ArgumentParser:
    # These options may stand before or after the command. They have no default here: that of the
    # command's parser would override what stands before it.
    common = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    common.add_argument("--url", help=f"default: the variable GENESIS_REDIS_URL, or {_URL}")
    common.add_argument("--key-prefix", metavar="PREFIX", help=f"default: {KEY_PREFIX}")
    common.add_argument("--timeout", type=_seconds, metavar="S", help="default: 5")
    common.add_argument("--json", action="store_true", help="for scripts")
    about = "Inspect and repair queues in Redis."
    parser = argparse.ArgumentParser("genesis", description=about, epilog=_CODES, parents=[common])
    parser.add_argument("--version", action="version", version=f"genesis {VERSION}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, run: Any, text: str, *positional: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text, parents=[common], epilog=_CODES)
        sub.set_defaults(run=run)
        for each in positional:
            sub.add_argument(each, metavar=each.upper())
        if not positional:
            sub.add_argument("queues", nargs="*", metavar="QUEUE", help="only these queues")
        return sub

    add("status", _status, "the queues and the instances, now")
    top = add("top", _top, "the queues, live, one bar each; one frame if there is no terminal")
    top.add_argument("--interval", type=_seconds, default=2.0, metavar="S", help="default: 2")
    add("entries", _entries, "the holders and the waiters", "queue")
    limit = add("limit", _limit, "override the limit on all instances; 0 pauses, none ends it", "queue")
    limit.add_argument("limit", type=_slots, metavar="N|none")
    add("evict", _evict, "remove an item from a queue, whether it waits or holds", "queue", "item")
    check = add("doctor", _doctor, "find problems of Redis, instances and queues, and their fixes")
    old = "seconds from which a hold is a finding; default: 3600"
    check.add_argument("--old-hold", type=_seconds, default=3600.0, metavar="S", help=old)
    check.add_argument("--user", help="check this Redis user's rights, by ACL DRYRUN (Redis 7)")
    return parser


def _seconds(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 < (value := float(text)) < 1e9:
            return value
    raise argparse.ArgumentTypeError(f"expected more than 0 seconds, got {text!r}")


def _slots(text: str) -> int | None:
    with contextlib.suppress(ValueError):
        return None if text == "none" else int(text)
    raise argparse.ArgumentTypeError(f"expected a number of slots or none, got {text!r}")
