"""The commands, their arguments, their output and the exit codes."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

from redis import RedisError, exceptions
from redis.exceptions import AuthenticationError, AuthorizationError, NoPermissionError

from genesis.backends.redis.keys import check_key_prefix
from genesis.cli import doctor, show, top
from genesis.cli.connect import UrlError, connect, secrets_of
from genesis.cli.store import QueueLook, Store
from genesis.queue.arguments import check_id, check_limit
from genesis.version import VERSION

__all__ = ["DENIED", "FOUND", "OK", "UNREACHABLE", "USAGE", "main"]

OK, FOUND, USAGE, UNREACHABLE, DENIED = 0, 1, 2, 3, 4
_URL = "redis://localhost:6379"
_CODES = """exit codes: 0 done, healthy; 1 doctor has findings, or nothing was found; 2 wrong arguments;
3 Redis is out of reach or gave an error; 4 it denied access. See genesis/cli/README.md."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code.

    Args:
        arguments: the command line; None for that of the process.
    """
    options = _parser().parse_args(arguments)
    try:
        check_key_prefix(options.key_prefix)
        for name in ("queue", "item"):
            if isinstance(getattr(options, name, None), str):
                check_id(name, getattr(options, name))
        if options.command == "limit":
            check_limit("limit", options.queue, options.limit, least=0)
        return _run(options)
    except (UrlError, ValueError) as error:
        return _failed(options, USAGE, "USAGE", str(error))
    except BrokenPipeError:  # `genesis status | head`
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except KeyboardInterrupt:
        return 130


def _run(options: argparse.Namespace) -> int:
    try:
        client: Any = connect(options.url, options.timeout)
        try:
            code: int = options.run(Store(client, options.key_prefix), options)
        finally:
            client.close()
    except (RedisError, OSError) as error:
        if isinstance(error, BrokenPipeError):
            raise
        text = f"{type(error).__name__}: {error}"
        for secret in secrets_of(options.url):
            text = text.replace(secret, "***")
        code, name = _kind_of(error)
        if options.command == "doctor":
            found = [doctor.unreachable(text, denied=code == DENIED)]
            _print_findings(options, found, [])
            return code
        return _failed(options, code, name, text)
    sys.stdout.flush()
    return code


def _kind_of(error: BaseException) -> tuple[int, str]:
    text = str(error)
    if isinstance(error, (AuthenticationError, AuthorizationError, NoPermissionError)) or any(
        word in text for word in ("NOAUTH", "WRONGPASS", "NOPERM")
    ):
        return DENIED, "DENIED"
    if isinstance(error, exceptions.ResponseError) and not isinstance(error, ConnectionError):
        return UNREACHABLE, "REJECTED"
    return UNREACHABLE, "UNREACHABLE"


def _failed(options: argparse.Namespace, code: int, name: str, text: str) -> int:
    if options.json:
        _json({"error": {"code": name, "message": text}})
    else:
        sys.stderr.write(f"genesis {options.command}: {text}\n")
    return code


# Commands


def _status(store: Store, options: argparse.Namespace) -> int:
    looks, instances = store.look(options.queues or store.queues()), store.instances()
    if options.json:
        rows = [each._asdict() | {"alive": each.alive} for each in instances]
        _json({"queues": [_facts(look) for look in looks], "instances": rows})
    elif looks or instances:
        _lines([*show.queues_table(looks), "", *show.instances_table(instances)])
    else:
        _lines(
            [f"nothing is listed under {store.key_prefix!r}: no queue was used in the last 11 minutes"]
        )
    return OK if looks or instances else FOUND


def _top(store: Store, options: argparse.Namespace) -> int:
    if options.json:
        return _status(store, options)

    def picture(size: tuple[int, int], color: bool) -> list[str]:
        looks = store.look(options.queues or store.queues())
        alive = sum(each.alive for each in store.instances())
        return top.frame(looks, alive, store.key_prefix, size, color)

    top.run(picture, options.interval)
    return OK


def _entries(store: Store, options: argparse.Namespace) -> int:
    entries = store.entries(options.queue)
    if options.json:
        _json({"queue": options.queue, "entries": [entry._asdict() for entry in entries]})
    else:
        nobody = [f"nobody holds or waits in queue {options.queue!r}"]
        _lines(show.entries_table(entries) if entries else nobody)
    return OK if entries else FOUND


def _limit(store: Store, options: argparse.Namespace) -> int:
    (before,) = store.look([options.queue])
    granted = store.set_limit(options.queue, options.limit)
    (after,) = store.look([options.queue])
    if options.json:
        facts = {"previous": before.limit, "limit": after.limit, "override": after.override}
        _json({"queue": options.queue, **facts, "granted": granted})
    else:
        override = "the call sites' own" if after.override is None else "an override on all instances"
        paused = "; nobody is granted a slot until it is raised" if after.limit == 0 else ""
        _lines(
            [
                f"queue {options.queue!r}: limit {before.limit} -> {after.limit}, {override}{paused}",
                *([f"granted at once: {granted}"] if granted else []),
            ]
        )
    return OK


def _evict(store: Store, options: argparse.Namespace) -> int:
    evicted = store.evict(options.queue, options.item)
    if options.json:
        _json({"queue": options.queue, "item": options.item, "evicted": evicted})
    elif evicted:
        _lines([f"queue {options.queue!r}: evicted {evicted} of item {options.item!r}"])
    else:
        _lines([f"queue {options.queue!r}: item {options.item!r} neither holds nor waits"])
    return OK if evicted else FOUND


def _doctor(store: Store, options: argparse.Namespace) -> int:
    report = doctor.examine(store, options.queues, old_hold=options.old_hold, user=options.user)
    _print_findings(options, report.findings, report.unchecked)
    return FOUND if report.findings else OK


def _print_findings(
    options: argparse.Namespace, findings: Sequence[doctor.Finding], unchecked: Sequence[str]
) -> None:
    if options.json:
        _json({"findings": [each._asdict() for each in findings], "unchecked": list(unchecked)})
        return
    lines = []
    for each in findings:
        lines += [f"{each.severity.upper()} {each.code}: {each.message}", f"    fix: {each.fix}"]
        if each.runbook:
            lines.append(f"    runbook: dashboards/runbooks/{each.runbook}.md")
    lines += [f"not checked: {text}" for text in unchecked]
    _lines([*lines, f"{len(findings)} findings" if findings else "healthy: no findings"])


def _facts(look: QueueLook) -> dict[str, Any]:
    """The stable fields of the JSON output."""
    names = (
        "queue_id", "waiting", "in_use", "limit", "override", "oldest_wait", "oldest_hold", "mean_hold",
        "expected_wait", "instances",
    )  # fmt: skip
    return {name: getattr(look, name) for name in names}


def _lines(lines: Sequence[str]) -> None:
    # An id might contain control characters.
    sys.stdout.write("".join(show.clean(line, most=100_000) + "\n" for line in lines))


def _json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


# Arguments


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="genesis", description="Inspect and repair queues in Redis.", epilog=_CODES
    )
    parser.add_argument("--version", action="version", version=f"genesis {VERSION}")
    _common(parser, first=True)
    common = argparse.ArgumentParser(add_help=False)
    _common(common, first=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(
            name, help=text, description=text, parents=[common], epilog=_CODES
        )
        command.set_defaults(run=run)
        return command

    for name, run, text in (
        ("status", _status, "the queues and the instances, now"),
        ("top", _top, "the queues, live, one bar each; a single frame if the output is no terminal"),
        ("doctor", _doctor, "find problems of Redis, the instances and the queues, and their fixes"),
    ):
        command = add(name, run, text)
        command.add_argument(
            "queues", nargs="*", metavar="QUEUE", help="only these; all that are listed"
        )
        if name == "top":
            command.add_argument(
                "--interval", type=_seconds, default=2.0, metavar="S", help="%(default)s"
            )
        if name == "doctor":
            command.add_argument(
                "--old-hold", type=_seconds, default=doctor.OLD_HOLD, metavar="S",
                help="seconds from which a hold is a finding (%(default)g)",
            )  # fmt: skip
            command.add_argument(
                "--user", help="check this Redis user's rights, by ACL DRYRUN (Redis 7)"
            )
    add("entries", _entries, "the holders and the waiters").add_argument("queue", metavar="QUEUE")
    limit = add("limit", _limit, "override the limit on all instances; 0 pauses, none ends it")
    limit.add_argument("queue", metavar="QUEUE")
    limit.add_argument("limit", type=_slots, metavar="N|none")
    evict = add("evict", _evict, "remove an item from a queue, whether it waits or holds")
    evict.add_argument("queue", metavar="QUEUE")
    evict.add_argument("item", metavar="ITEM")
    return parser


def _common(parser: argparse.ArgumentParser, first: bool) -> None:
    """Add the options. Those after the command must have no default: it would override the first."""

    def default(value: Any) -> Any:
        return value if first else argparse.SUPPRESS

    url = os.environ.get("GENESIS_REDIS_URL") or _URL
    parser.add_argument(
        "--url", default=default(url), help=f"default: the variable GENESIS_REDIS_URL, or {_URL}"
    )
    prefix = "genesis:queue:"
    parser.add_argument("--key-prefix", default=default(prefix), metavar="PREFIX", help=prefix)
    parser.add_argument("--timeout", type=_seconds, default=default(5.0), metavar="S", help="5")
    parser.add_argument("--json", action="store_true", default=default(False), help="for scripts")


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < 1e9:
        raise argparse.ArgumentTypeError("must be more than 0 seconds")
    return value


def _slots(text: str) -> int | None:
    return None if text == "none" else int(text)
