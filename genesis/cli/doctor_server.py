"""The doctor's checks of the server: rights, RESP3, eviction policy, writes. Nothing is written.

A right is probed with a command that has no effect: Redis checks rights before it checks arguments. The
url's user therefore needs only the rights of an instance.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from redis import RedisError
from redis.exceptions import NoPermissionError, ResponseError

from genesis.backends.redis.keys import channel_prefix
from genesis.backends.redis.scripts import INSTANCE_SCRIPTS, source_of
from genesis.cli.finding import Finding, finding
from genesis.cli.store import Store

__all__ = ["check_server", "commands_of_scripts", "harmless"]

_HARMLESS: dict[str, tuple[str, ...]] = {
    "hset": ("f", "v", "no value"),
    "hdel": ("f",),
    "hget": ("f",),
    "hmget": ("f",),
    "hexists": ("f",),
    "hincrby": ("f", "no number"),
    "set": ("v", "no option"),
    "expire": ("no number",),
    "pexpire": ("no number",),
    "zadd": ("no number", "m"),
    "zrem": ("m",),
    "zrank": ("m",),
    "zscore": ("m",),
    "zmscore": ("m",),
    "zincrby": ("no number", "m"),
    "zcount": ("1", "0"),
    "zrange": ("1", "0"),
    "zrangebyscore": ("1", "0"),
    "zremrangebyscore": ("1", "0"),
    "zremrangebyrank": ("1", "0"),
    "zrangebylex": ("[b", "[a"),
    "zlexcount": ("[b", "[a"),
    "zremrangebylex": ("[b", "[a"),
}
"""Arguments after the key with which a command has no effect on a key that does not exist."""

_REJECTED = ("READONLY", "MISCONF", "NOREPLICAS", "OOM", "LOADING", "CLUSTERDOWN")


def commands_of_scripts() -> list[str]:
    """The commands that the scripts of an instance call, in lower case."""
    found: set[str] = set()
    for name in INSTANCE_SCRIPTS:
        found.update(re.findall(r"redis\.p?call\('(\w+)'", source_of(name)))
    return sorted(name.lower() for name in found)


def harmless(command: str, key: str, channel: str) -> tuple[str, ...]:
    """`command` with arguments with which it has no effect."""
    if command in ("time", "ping"):
        return (command,)
    if command in ("publish", "spublish"):
        return (command, channel, "")
    return (command, key, *_HARMLESS.get(command, ()))


def check_server(store: Store, user: str | None) -> tuple[list[Finding], list[str]]:
    """The findings, and the checks that were not permitted, with the reason."""
    found: list[Finding] = []
    unchecked: list[str] = []
    missing, rejected = _rights(store, user)
    if missing:
        who = f"user {user!r}" if user else "the user of the url"
        rights = " ".join(f"+{name}" for name in missing if name not in ("keys", "channels"))
        keys = f"~{store.key_prefix}* " if "keys" in missing else ""
        channels = f"&{channel_prefix(store.key_prefix).decode()}* " if "channels" in missing else ""
        found.append(
            finding(
                "critical",
                "ACL_MISSING",
                f"{who} must not use: {', '.join(missing)}",
                f"ACL SETUSER {user or 'NAME'} {keys}{channels}{rights}".strip(),
            )
        )
    if rejected:
        found.append(
            finding(
                "critical",
                "READ_ONLY",
                f"the server rejects writes: {rejected}",
                "connect to the master (Sentinel or Cluster url), or fix what the server names",
            )
        )
    error = _resp3(store)
    if error:
        found.append(
            finding(
                "critical",
                "RESP3_MISSING",
                f"HELLO 3 is not answered in RESP3: {error}",
                "Redis 6.2 or later, with nothing in between (a proxy) that speaks RESP2 alone",
            )
        )
    try:
        found += _eviction(store)
    except ResponseError as denied:
        unchecked.append(f"EVICTION_POLICY ({denied})")
    return found, unchecked


def _rights(store: Store, user: str | None) -> tuple[list[str], str]:
    """The missing rights, and the error with which the server rejects writes."""
    missing: list[str] = []
    rejected = ""
    key = f"{store.key_prefix}index:probe"
    for name, words in _probes(store, key):
        try:
            if user is not None:
                reply = store.client.execute_command("ACL DRYRUN", user, *words[0].split(), *words[1:])
                text = "" if reply in (b"OK", "OK", True) else f"NOPERM {reply!r}"
            elif words[0] == "SUBSCRIBE":
                text = _error_of(store, *words)
            else:
                store.client.execute_command(*words)
                text = ""
        except NoPermissionError as error:
            # redis-py removes the prefix
            text = f"NOPERM {error}"
        except ResponseError as error:
            if user is not None:
                raise
            text = str(error)
        except RedisError as error:  # redis-py maps some error replies to other classes
            text = f"{type(error).__name__} {error}"
        if "NOPERM" in text:
            what = name
            if "key" in text and "run the" not in text:
                what = "keys"
            elif "channel" in text and "run the" not in text:
                what = "channels"
            if what not in missing:
                missing.append(what)
        elif not rejected and _is_rejection(text):
            rejected = text
    return missing, rejected


def _probes(store: Store, key: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    channel = channel_prefix(store.key_prefix).decode() + "doctor"
    yield "ping", ("PING",)
    yield "script|load", ("SCRIPT LOAD", "return 0")
    yield "evalsha", ("EVALSHA", "0" * 40, "1", key)
    yield "subscribe", ("SUBSCRIBE", channel)
    if store.clustered:
        yield "cluster|slots", ("CLUSTER SLOTS",)
    for command in commands_of_scripts():
        first, *rest = harmless(command, key, channel)
        yield command, (first.upper(), *rest)


def _is_rejection(text: str) -> bool:
    words = (*_REJECTED, "ReadOnlyError", "OutOfMemoryError", "BusyLoadingError", "ClusterDownError")
    return any(word in text for word in words) or "read only replica" in text


def _error_of(store: Store, *words: str) -> str:
    """Run a command on a new connection. Returns its error, "" if it has none."""
    connection = _connection(store)
    try:
        connection.send_command(*words)
        connection.read_response()
    except ResponseError as error:
        word = "NOPERM " if isinstance(error, NoPermissionError) else ""
        return f"{word}{error}"
    finally:
        connection.disconnect()
    return ""


def _resp3(store: Store) -> str:
    connection = _connection(store)
    try:
        connection.send_command("HELLO", "3")
        reply = connection.read_response()
    except (RedisError, OSError) as error:
        return "" if isinstance(error, NoPermissionError) else f"{type(error).__name__}: {error}"
    finally:
        connection.disconnect()
    facts = reply if isinstance(reply, dict) else dict(zip(reply[::2], reply[1::2], strict=True))
    proto = facts.get(b"proto", facts.get("proto"))
    return "" if proto == 3 else f"it answers with protocol {proto}"


def _connection(store: Store) -> Any:
    """A new connection outside the pool, connected and authenticated."""
    client = store.client
    if store.clustered:
        client = client.get_redis_connection(client.get_node_from_key(f"{store.key_prefix}index:probe"))
    pool = client.connection_pool
    connection = pool.connection_class(**pool.connection_kwargs)
    connection.connect()
    return connection


def _eviction(store: Store) -> list[Finding]:
    where = {"target_nodes": "primaries"} if store.clustered else {}
    reply: Any = store.client.info("memory", **where)
    facts = list(reply.values()) if store.clustered and "maxmemory" not in reply else [reply]
    policies = {str(each.get("maxmemory_policy")) for each in facts} - {"noeviction", "None"}
    if not policies:
        return []
    bounded = any(each.get("maxmemory") for each in facts)
    now = "and maxmemory is set" if bounded else "though maxmemory is not set now"
    return [
        finding(
            "critical" if bounded else "warning",
            "EVICTION_POLICY",
            f"maxmemory-policy is {', '.join(sorted(policies))}, {now}: Redis might drop a queue, and "
            "its limit is then exceeded",
            "CONFIG SET maxmemory-policy noeviction, also in the server's configuration",
        )
    ]
