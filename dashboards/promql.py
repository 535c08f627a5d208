"""The building blocks of queries: windows, matchers, and the increase of counters."""

from __future__ import annotations

STEP = "$__rate_interval"
SHOWN = "$__range"
RECENT = "5m"
KNOWN = "10m"  # how long the last known limit is used when no call reports one

PROCESS = 'job=~"$job", instance=~"$instance"'
QUEUE = f'{PROCESS}, queue=~"$queue"'
EVERY_INSTANCE = 'job=~"$job", instance=~".+", queue=~"$queue"'  # on purpose, whatever is chosen
INTERVAL = "$__interval"  # between two points of a panel


def series(metric: str, *more: str, of: str = QUEUE) -> str:
    return f"{metric}{{{', '.join([of, *more])}}}"


def summed(by: str, what: str) -> str:
    return f"sum by ({by}) ({what})" if by else f"sum({what})"


def happened(metric: str, by: str, *more: str, of: str = QUEUE, window: str = STEP) -> str:
    """How often. Every counter begins at 0 with the first call, so that the very first time counts.

    In the window `STEP` this is for bars, each of which shows what happened from its time on until that
    of the next one: so what happens now is in the last one, and not in one that is drawn in a minute. A
    window is a step and a scrape, so that each increment is drawn once. Where nothing happened there
    is no bar; with none at all the panel says so in words.
    """
    ahead = f" offset -{INTERVAL}" if window == STEP else ""
    counted = summed(by, f"increase({series(metric, *more, of=of)}[{window}]{ahead})")
    return f"{counted} > 0" if window == STEP else counted
