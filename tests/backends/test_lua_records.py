"""What the scripts keep and for how long, and what they do when Redis has lost one key alone."""

from __future__ import annotations

import pytest

from tests.backends.scripted_line import Line


@pytest.mark.parametrize("by", ["enter", "leave", "beat", "sync"])
def test_a_short_lease_does_not_shorten_the_expiry_for_a_long_one(
    line: Line, by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a lease of 660 s, the slots of an instance that is cut off must outlast it."""
    line.sync("b")
    if by != "enter":
        line.enter("b1")
        line.enter("b2")
    for key in line.client.keys("*"):
        line.client.expire(key, 5_000)
    monkeypatch.setattr("tests.backends.scripted_line.LEASE", 6_000_000)
    actions = {
        "enter": lambda: line.enter("b1"),
        "leave": lambda: line.leave("b1"),
        "beat": lambda: line.mine("beat", "b"),
        "sync": lambda: line.sync("b", ("b2", "w", line.place("b2")), confirmed=1),
    }
    actions[by]()
    assert min(line.client.ttl(key) for key in line.client.keys("*")) > 600
