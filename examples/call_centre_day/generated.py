"""Draws a day at random, of the same kind as a recorded weekday of a bank's call centre."""

from __future__ import annotations

import itertools
import random

from examples.call_centre_day.day import Call, Day, LimitChange

# Hour of the day, calls an hour, agents: one weekday of the bank's call centre behind Brown et al.,
# "Statistical Analysis of a Telephone Call Center: A Queueing-Science Perspective", JASA 2005, counts
# rounded to tens. As on that day, more calls come in the busiest hours than the agents can take.
HOURS = (
    (7, 50, 4), (8, 140, 6), (9, 210, 8), (10, 220, 10), (11, 210, 11), (12, 170, 11),
    (13, 170, 9), (14, 160, 9), (15, 180, 10), (16, 160, 9), (17, 160, 7), (18, 90, 7),
    (19, 60, 7), (20, 80, 7), (21, 80, 6), (22, 50, 4), (23, 40, 2),
)  # fmt: skip
# Talks are lognormal (Brown et al.): mean and deviation of the logarithm on that day, without the 4 %
# of talks of at most 10 s. The mean talk is then 191 s; on that day it was 194 s.
TALK_LOG_MEAN, TALK_LOG_DEVIATION = 4.87, 0.875
# Patience is exponential, as in the Erlang-A model that Brown et al. compare their data with. The mean
# is the day's seconds of waiting divided by its 728 hang-ups: the maximum-likelihood estimate, given
# that the patience of an answered call is known only to be longer than its wait.
PATIENCE_MEAN = 359.0


def calls_an_hour(at: float) -> float:
    """The rate of arrivals: straight lines between the middles of the hours."""
    middles = [((hour + 0.5) * 3600, float(rate)) for hour, rate, _ in HOURS]
    for (left, low), (right, high) in itertools.pairwise(middles):
        if left <= at <= right:
            return low + (high - low) * (at - left) / (right - left)
    return middles[0][1] if at < middles[0][0] else middles[-1][1]


def generate_day(seed: int) -> Day:
    """Draw a day; the same seed gives the same day.

    Arrivals are a Poisson process whose rate changes with the time of the day, by thinning (Lewis and
    Shedler, "Simulation of nonhomogeneous Poisson processes by thinning", Naval Research Logistics
    Quarterly 1979): arrivals at the highest rate, each kept with the probability rate / highest rate.
    """
    chance = random.Random(seed)
    highest = max(rate for _, rate, _ in HOURS)
    at, close = HOURS[0][0] * 3600.0, (HOURS[-1][0] + 1) * 3600.0
    calls: list[Call] = []
    while (at := at + chance.expovariate(highest / 3600)) < close:
        if chance.random() * highest < calls_an_hour(at):
            patience = chance.expovariate(1 / PATIENCE_MEAN)
            talk = chance.lognormvariate(TALK_LOG_MEAN, TALK_LOG_DEVIATION)
            calls.append(Call(f"call-{len(calls) + 1:04}", at, patience, talk))
    limits = [LimitChange(hour * 3600.0, agents) for hour, _, agents in HOURS]
    return Day(f"a generated day (seed {seed})", calls, limits)
