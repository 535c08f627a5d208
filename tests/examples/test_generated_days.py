"""The days that `examples/call_centre.py` draws at random."""

from __future__ import annotations

import math
import statistics

import pytest

from examples.call_centre_day.generated import (
    HOURS,
    PATIENCE_MEAN,
    TALK_LOG_DEVIATION,
    TALK_LOG_MEAN,
    calls_an_hour,
    generate_day,
)


def test_same_seed_same_day() -> None:
    """The same seed gives the same day, and another seed another day."""
    assert generate_day(7) == generate_day(7)
    assert generate_day(7).calls != generate_day(8).calls


def test_generated_arrivals_follow_the_rate_of_the_hour() -> None:
    """The number of calls of each hour is within four standard deviations of its rate."""
    calls = [call for seed in range(10) for call in generate_day(seed).calls]
    for hour, _, _ in HOURS:
        found = sum(hour <= call.entered / 3600 < hour + 1 for call in calls)
        minutes = [calls_an_hour(hour * 3600 + 60 * minute) / 60 for minute in range(60)]
        expected = 10 * sum(minutes)
        assert abs(found - expected) < 4 * math.sqrt(expected), hour


def test_generated_calls_are_in_order_and_within_hours() -> None:
    """Generated calls are in the order of entering, have unique ids, and enter in opening hours."""
    day = generate_day(3)
    entered = [call.entered for call in day.calls]
    assert entered == sorted(entered)
    assert 7 * 3600 <= entered[0] < entered[-1] < 24 * 3600
    assert len({call.call_id for call in day.calls}) == len(day.calls)


def test_generated_talks_and_patience_have_their_distributions() -> None:
    """Talks are lognormal and patience exponential with the documented parameters."""
    calls = [call for seed in range(5) for call in generate_day(seed).calls]
    logarithms = [math.log(call.talk) for call in calls]
    patience = [call.patience for call in calls if call.patience is not None]
    assert statistics.mean(logarithms) == pytest.approx(TALK_LOG_MEAN, rel=0.02)
    assert statistics.stdev(logarithms) == pytest.approx(TALK_LOG_DEVIATION, rel=0.05)
    assert len(patience) == len(calls)
    assert statistics.mean(patience) == pytest.approx(PATIENCE_MEAN, rel=0.05)
    assert statistics.stdev(patience) == pytest.approx(PATIENCE_MEAN, rel=0.1)
