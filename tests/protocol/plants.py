"""Planted bugs: each removes a rule of the shipped code. Exploring must find every one."""

from __future__ import annotations

import inspect
import types
from typing import Any, NamedTuple

from genesis.backends.redis import core as core_module
from genesis.backends.redis.scripts import source_of
from tests.protocol.instance import Core, core_over

__all__ = ["PLANTS", "Plant", "planted_core", "planted_script"]


class Plant(NamedTuple):
    text: str
    changes: tuple[tuple[str, str, str], ...]  # "core" or a script, the shipped text, its replacement
    bound: str  # the bound that finds it
    slow: bool = False


SYNC_ANEW = """\
            # Even without tickets: Redis might still run late commands of the last connection.
            self._sync(now)
"""
ENTER_AGAIN = """\
            again = [t for t in self.tickets.values() if t.stage is Stage.ENTERING and t.wanted]
            if not again or self.confirmed != self.session:
                self._sync(now)
            self.due = now
            for ticket in again:
                self.enter(ticket, now)
"""
SESSION = "if meta[1] ~= ARGV[2] then"
PLANTS = {
    # The ten rules of the reference model
    "any_session": Plant(
        "Redis runs commands of whatever session",
        (("enter", SESSION, "if false then"), ("leave", SESSION, "if false then")),
        "two calls of one instance, a break",
    ),
    "reap_forgets": Plant(
        "reaping an instance forgets its session as well",
        (
            (
                "*",
                "redis.call('HSET', META, owner, -session, owner .. ':r', session)",
                "redis.call('HDEL', META, owner)",
            ),
        ),
        "two calls, a lapse",
    ),
    "told_is_known": Plant(
        "that it was reaped is forgotten with the next sync, whether that is answered or not",
        (
            (
                "sync",
                "redis.call('HSET', META, instance, ARGV[2])",
                "redis.call('HSET', META, instance, ARGV[2]) redis.call('HDEL', META, instance..':r')",
            ),
            ("sync", "local late = renewed > 0 and NOW > renewed + lease", "local late = false"),
        ),
        "two calls, break, clock",
        slow=True,
    ),
    "keep_unlisted": Plant(
        "a sync does not remove what its list lacks",
        (("sync", "if not index_of[member] and removed < PORTION then", "if false then"),),
        "two calls, a break",
    ),
    "no_tombstone": Plant(
        "an evicted ticket is not remembered",
        (("sync", "if redis.call('ZSCORE', PAST, 't ' .. ticket_of(member)) then", "if false then"),),
        "two calls, break, eviction",
    ),
    "no_window": Plant(
        "slots are granted at once after a loss of data",
        (("sync", "if NOW >= window + lease / 2 then", "if false then"),),
        "two calls, a loss",
    ),
    "send_again": Plant(
        "after a break the instance sends its unanswered enters again instead of a sync",
        (
            (
                "core",
                SYNC_ANEW,
                ENTER_AGAIN,
            ),
        ),
        "two calls of one instance, a break",
    ),
    "empty_is_silent": Plant(
        "an instance that has nothing left does not sync after a break",
        (
            (
                "core",
                "if self.session or self.tickets:",
                "if any(t.wanted for t in self.tickets.values()):",
            ),
        ),
        "two calls, a break",
    ),
    "believe_lapsed": Plant(
        "what is read after the lease lapsed is believed",
        (
            (
                "core",
                "        self._check_lease(now)\n        ticket = self.tickets.get(ticket_id)",
                "        ticket = self.tickets.get(ticket_id)",
            ),
            (
                "core",
                "        self._check_lease(now)\n        if command.session",
                "        if command.session",
            ),
        ),
        "two calls, a lapse",
    ),
    "believe_old": Plant(
        "replies and messages of an old session are believed",
        (
            (
                "core",
                "if session != self.session or not self.up or ticket is None:",
                "if not self.up or ticket is None:",
            ),
            ("core", "if command.session != self.session or not self.up:", "if not self.up:"),
        ),
        "two calls, lapse, sync",
        slow=True,
    ),
    # Those found by the sceptic's model
    "no_evidence": Plant(
        "confirmed > session on record does not open the recovery window",
        (("sync", "  open_window()\nend\n\nlocal rows", "end\n\nlocal rows"),),
        "three calls, loss",
        slow=True,
    ),
    "waiting_wins": Plant(
        "a holder that a stale replica shows as waiting is left in the line",
        (("sync", "elseif stage == 'h' then --", "elseif stage == 'h' and not place then --"),),
        "two calls, a stale replica",
    ),
    "never_late": Plant(
        "a holder that was not renewed for a lease comes back after its record expired",
        (("sync", "local late = renewed > 0 and NOW > renewed + lease", "local late = false"),),
        "two calls, a clock step, a record expires",
    ),
    "no_place_listed": Plant(
        "a sync enters a known waiter anew",
        (("sync", "  elseif stage == 'w' then\n", "  elseif false then\n"),),
        "two calls, a loss",
    ),
    "stages_uncompared": Plant(
        "a heartbeat compares tickets, not stages",
        (("core", "if count != self.known or not same:", "if count != self.known:"),),
        "two calls, a message lost",
    ),
    "errors_forgotten": Plant(
        "no sync follows an error",
        (("core", "        self._beats, self.due = -1, now + _RETRY\n", ""),),
        "two calls, a rejection",
    ),
    "used_forgotten": Plant(
        "a kept place that was taken is not remembered as taken",
        (
            (
                "*",
                (
                    "redis.call('ZADD', PAST, math.max(expiry, NOW + RECORD), "
                    "'u ' .. string.match(kept, '^%S+'))"
                ),
                "",
            ),
        ),
        "keep twice, break",
        slow=True,
    ),
    "taken_unanswered": Plant(
        "a call that leaves before it was answered uses up the place that it took",
        (("*", "    redis.call('ZADD', PAST, expiry, 'k ' .. kept)\n", ""),),
        "a kept place",
    ),
    "kept_anew": Plant(
        "a call that leaves before it was answered gives back a place that another took",
        (("*", "local expiry = redis.call('ZSCORE', PAST, taken)", "local expiry = NOW + RECORD"),),
        "keep twice, break",
        slow=True,
    ),
    "limit_unlisted": Plant(
        "a sync does not bring a lost override back",
        (("sync", "if tonumber(ARGV[8]) > version then", "if false then"),),
        "two calls, set_limit, loss",
        slow=True,
    ),
    "limit_unnumbered": Plant(
        "a late set_limit undoes a newer one",
        (("limit", "if version ~= tonumber(ARGV[5]) then", "if false then"),),
        "two calls, set_limit 0 and 1 by an outsider",
    ),
    # Rules of the scripts and of the core
    "newcomer_first": Plant(
        "a newcomer takes a free slot although somebody waits",
        (
            (
                "enter",
                "if plain and waiters == 0 and holders < limit",
                "if plain and holders < limit",
            ),
        ),
        "three calls, loss",
        slow=True,
    ),
    "grant_in_window": Plant(
        "free slots are granted in the recovery window",
        (("*", "  if NOW < window then\n    return\n  end\n", ""),),
        "two calls, a loss",
    ),
    "never_full": Plant(
        "a full line refuses nobody",
        (("enter", "waiters >= tonumber(most)", "false"),),
        "a full line",
    ),
    "never_busy": Plant(
        "a call that does not wait is let into the line",
        (("enter", "waiters >= tonumber(most)", "false"),),
        "a call that does not wait",
    ),
    "dead_granted": Plant(
        "a dead instance's waiter is granted",
        (("*", "if deadline == true or deadline and tonumber(deadline) > NOW then", "if true then"),),
        "three calls in portions of one, a kill",
    ),
    "reap_self": Plant(
        "a script reaps its own caller",
        (("*", "    if owner ~= instance then\n      reap(owner)\n    end\n", "    reap(owner)\n"),),
        "three calls, kill",
    ),
    "evicted_unsent": Plant(
        "no message says that a ticket was evicted",
        (("evict", "  if owner_of(member) ~= instance then\n", "  if false then\n"),),
        "two calls, an eviction",
    ),
    "idle_timer": Plant(
        "a call that enters while no heartbeat is due sends no sync",
        (("core", "if self.session == 0 or self.due == math.inf:", "if self.session == 0:"),),
        "three calls, no fault",
    ),
    "late_sync": Plant(
        "a sync of an old connection is believed",
        (("sync", "if first_page and session <= record then", "if false then"),),
        "two calls, a break",
    ),
    "short_way_to_the_dead": Plant(
        "the short way of leave grants to a dead head",
        (("leave", "  if deadline > NOW then", "  if true then"),),
        "two calls, a kill",
    ),
    "short_way_in_window": Plant(
        "the short way of leave grants in the recovery window",
        (("leave", "holders == limit - 1 and NOW >= window then", "holders == limit - 1 then"),),
        "two calls, a loss",
    ),
    "any_time_granted": Plant(
        "what an own set_limit or evict grants is believed in any session",
        (("core", "granted if current else ()", "granted"),),
        "a paused line, set_limit, a lapse",
    ),
    "page_removes_all": Plant(
        "a page of a sync removes all that it does not list",
        (("sync", "if ARGV[11] ~= '' then\n", "if false then\n"),),
        "two calls in pages of one, a sync",
    ),
}


def planted_script(plant: Plant | None) -> Any:
    """A function that changes a script's text for `Server`; the change must apply to some script."""

    def changed(name: str, text: str) -> str:
        for where, old, new in plant.changes if plant else ():
            if where == name:
                assert old in text, f"{name}.lua has no {old!r}"
                text = text.replace(old, new)
            elif where == "*":
                assert old in source_of("sync"), f"library.lua has no {old!r}"
                text = text.replace(old, new)
        return text

    return changed


def planted_core(plant: Plant | None) -> type[Core]:
    changes = [change for change in (plant.changes if plant else ()) if change[0] == "core"]
    if not changes:
        return core_over()
    text = inspect.getsource(core_module)
    for _, old, new in changes:
        assert old in text, f"core.py has no {old!r}"
        text = text.replace(old, new)
    module = types.ModuleType("planted")
    exec(compile(text, "planted core.py", "exec"), module.__dict__)
    return core_over(module.QueueCore)
