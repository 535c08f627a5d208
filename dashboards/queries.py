"""Every query of the dashboards to Prometheus and Loki, without its presentation.

Two kinds of gauge must not be confused. A process reports its own calls (`waiting`, `holding`): take
the sum over instances. Every instance reports the shared state that it has seen (`depth`, `in_use`,
`limit`, `oldest wait`): take the maximum, because a sum would count it once per instance.

In a range query a window is `$__rate_interval`, so that it always spans four scrapes; what is true now
is an instant query, over the last five minutes (`RECENT`) or over the whole time shown (`$__range`).
"""

from __future__ import annotations

from dashboards.fleet import or_zero
from dashboards.promql import (
    EVERY_INSTANCE,
    KNOWN,
    QUEUE,
    RECENT,
    SHOWN,
    STEP,
    happened,
    series,
    summed,
)
from genesis.observability import names

SERVICE_LEVEL_SECONDS = "20.0"  # as in the `le` label
SERVICE_LEVEL_TARGET = 0.8

GAVE_UP = 'outcome=~"timeout|cancelled"'
HASTY_SECONDS = "5.0"  # callers who give up within this time do not count as abandoned


# Being served in time ------------------------------------------------------------------------------
def ended(by: str = "queue", window: str = STEP, *more: str) -> str:
    """Callers per second whose wait ended, in any way."""
    return summed(by, f"rate({series(names.WAIT_SECONDS + '_count', *more)}[{window}])")


def ended_within(by: str, window: str, outcome: str, seconds: str = SERVICE_LEVEL_SECONDS) -> str:
    within = series(names.WAIT_SECONDS + "_bucket", outcome, f'le="{seconds}"')
    return summed(by, f"rate({within}[{window}])")


def _or_none(what: str, by: str, window: str) -> str:
    # In multiprocess mode an outcome that has not occurred has no series yet.
    return f"({what} or 0 * {ended(by, window)})"


def gave_up_within(by: str, window: str, seconds: str) -> str:
    return _or_none(ended_within(by, window, GAVE_UP, seconds), by, window)


def answered_in_time(by: str, window: str) -> str:
    return _or_none(ended_within(by, window, 'outcome="granted"'), by, window)


def service_level_strict(by: str = "queue", window: str = STEP) -> str:
    """The ratio answered within 20 s, of all whose wait ended."""
    return f"{answered_in_time(by, window)} / ({ended(by, window)} > 0)"


def service_level_lenient(by: str = "queue", window: str = STEP) -> str:
    """The same, without the callers who gave up within 20 s."""
    others = gave_up_within(by, window, SERVICE_LEVEL_SECONDS)
    return f"{answered_in_time(by, window)} / ({ended(by, window)} - {others} > 0)"


def service_level_burn() -> str:
    """The burn rate of the 20 s objective over an hour, as in the alert."""
    recorded = series("job_queue:genesis_service_level:ratio1h", of='job=~"$job", queue=~"$queue"')
    return f"(1 - {recorded}) / {1 - SERVICE_LEVEL_TARGET:.2f}"


def speed_of_answer(by: str = "queue", window: str = STEP) -> str:
    """Mean wait of those who were answered."""
    seconds = series(names.WAIT_SECONDS + "_sum", 'outcome="granted"')
    answered = ended(by, window, 'outcome="granted"')
    return f"{summed(by, f'rate({seconds}[{window}])')} / ({answered} > 0)"


def abandon_rate(by: str = "queue", window: str = STEP) -> str:
    """The ratio that gave up, of all whose wait ended, both without those who gave up within 5 s."""
    hasty = gave_up_within(by, window, HASTY_SECONDS)
    gave_up = _or_none(ended(by, window, GAVE_UP), by, window)
    return f"({gave_up} - {hasty}) / ({ended(by, window)} - {hasty} > 0)"


def held(by: str) -> str:
    """Holds per second that ended."""
    return summed(by, f"rate({series(names.HOLD_SECONDS + '_count')}[{STEP}])")


def per_minute(what: str) -> str:
    return f"60 * {what}"


def wait_quantile(quantile: float, by: str = "") -> str:
    buckets = series(names.WAIT_SECONDS + "_bucket", 'outcome="granted"')
    return _quantile(quantile, buckets, by)


def waits_of_the_answered() -> str:
    return _heatmap('outcome="granted"')


def waits_of_those_who_gave_up() -> str:
    # Without +Inf, the one bucket that is there before the first of them: `increase` sees the first
    # observation in that one alone, and it would be drawn as an endless wait.
    return _heatmap(GAVE_UP, 'le!="+Inf"')


def _heatmap(outcome: str, *more: str) -> str:
    """All buckets, or none when there was nobody: with none at all the panel says so in words."""
    buckets = series(names.WAIT_SECONDS + "_bucket", outcome, *more)
    anybody = f"sum(increase({series(names.WAIT_SECONDS + '_count', outcome)}[{STEP}])) > 0"
    return f"sum by (le) (increase({buckets}[{STEP}])) and on () {anybody}"


def hold_quantile(quantile: float) -> str:
    # Only of those that ended well: see above, the first of another kind would count as endless.
    return _quantile(quantile, series(names.HOLD_SECONDS + "_bucket", 'outcome="released"'), "")


def position_quantile(quantile: float) -> str:
    return _quantile(quantile, series(names.POSITION + "_bucket"), "")


def _quantile(quantile: float, buckets: str, by: str) -> str:
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({quantile:g}, sum by ({labels}) (rate({buckets}[{STEP}])))"


# The state of the queue ----------------------------------------------------------------------------
def waiting(by: str = "queue") -> str:
    return summed(by, series(names.WAITING))


def holding(by: str = "queue") -> str:
    return summed(by, series(names.HOLDING))


def shared(metric: str) -> str:
    """A gauge of shared state, by queue: the maximum of the reports."""
    return f"max by (queue) ({series(metric)})"


def in_all(metric: str) -> str:
    """A gauge of shared state, summed over queues, never over instances."""
    return f"sum({shared(metric)})"


def longest_wait() -> str:
    return f"max({series(names.OLDEST_WAIT)})"


def longest_hold() -> str:
    return f"max({series(names.OLDEST_HOLD)})"


def expected_wait() -> str:
    return f"max({series(names.EXPECTED_WAIT)})"


def limit() -> str:
    """The limit by queue, or the last known one: an idle queue has a limit, but reports none."""
    return f"({_reported_limit()} or max by (queue) (last_over_time({series(names.LIMIT)}[{KNOWN}])))"


def _reported_limit() -> str:
    """By queue, of instances that have calls in it: others may have seen an older limit last."""
    return f"max by (queue) ({series(names.LIMIT)} and {series(names.DEPTH)})"


def limit_of_all() -> str:
    return f"sum({limit()})"


def in_use() -> str:
    """Slots in use, by queue; by the instances' own count where no report of the queue is fresh."""
    return f"({shared(names.IN_USE)} or {holding()})"


def in_use_of_all() -> str:
    """For the queues whose limit is known, so that it can be compared with `limit_of_all`."""
    return f"sum({in_use()} and {limit()})"


def occupancy() -> str:
    """The ratio of slots in use, by queue."""
    return f"{in_use()} / ({limit()} > 0)"


FULL = 1.0005


def occupancy_and_waiters() -> str:
    """The occupancy, plus 0.001 where callers wait: a full queue is bad only if callers wait."""
    return f"({occupancy()}) + 0.001 * ({waiting()} > bool 0)"


def fullest() -> str:
    return f"max({occupancy_and_waiters()})"


def too_long() -> str:
    """Seconds of the longest hold, for queues in which it is far longer than usual."""
    oldest = shared(names.OLDEST_HOLD)
    usual = f"{LONG_TIMES} * ({mean_hold('queue', SHOWN)})"
    return f"({oldest} > {LONG_SECONDS} and {oldest} > {usual}) or {oldest} > {OLD_SECONDS}"


LONG_SECONDS, LONG_TIMES = 60, 20  # longer than a minute, and than twenty usual holds
OLD_SECONDS = 3600  # as in the alert GenesisOldHold and in `genesis doctor`


def paused() -> str:
    """Queues whose limit is 0."""
    return f"({_reported_limit()} or {shared(names.LIMIT)}) == 0"


def stuck() -> str:
    """Waiters of a queue that has free slots; nothing if there are none.

    Both must hold in one and the same instance's report: reports of different moments may well differ.
    """
    free = f"{series(names.IN_USE)} < {series(names.LIMIT)}"
    # Not of _other, as in the alert: the waiters of one queue stand beside the free slots of another.
    one_line = series(names.DEPTH, of=f'queue!="{names.OTHER_QUEUES}", {QUEUE}')
    return f"max by (queue) ({one_line} > 0 and {free})"


def how_many(what: str) -> str:
    return or_zero(f"count({what})")


def depth_everywhere() -> str:
    """The waiters, as counted by the backend."""
    return f"sum(max by (queue) ({series(names.DEPTH, of=EVERY_INSTANCE)}))"


def waiting_everywhere() -> str:
    """The waiters, as the sum of the instances' own calls."""
    return f"sum({series(names.WAITING, of=EVERY_INSTANCE)})"


# Demand, slots, faults -----------------------------------------------------------------------------
def arriving(by: str = "queue", window: str = STEP) -> str:
    """Calls per second that entered."""
    return summed(by, f"rate({series(names.POSITION + '_count')}[{window}])")


def mean_hold(by: str = "queue", window: str = STEP) -> str:
    seconds = summed(by, f"rate({series(names.HOLD_SECONDS + '_sum')}[{window}])")
    count = summed(by, f"rate({series(names.HOLD_SECONDS + '_count')}[{window}])")
    return f"{seconds} / ({count} > 0)"


def capacity() -> str:
    """Calls a second that the slots can take at the present length of a call, all queues together.

    The length is that of all calls: by queue, every queue in which none ended just now would be missing
    from the sum, and with calls of some minutes that is most of them.
    """
    return f"{limit_of_all()} / ({mean_hold('', KNOWN)} > 0)"


def load(window: str = RECENT) -> str:
    """Slots that the arriving calls need, of those there are: arrivals x mean hold / limit."""
    return f"{arriving(window=window)} * {mean_hold(window=window)} / ({limit()} > 0)"


def reclaimed(by: str, window: str = STEP) -> str:
    return happened(names.RECLAIMED, by, window=window)


def refused(by: str, window: str = STEP, *more: str) -> str:
    """Refused calls."""
    return happened(names.REFUSED, by, *more, window=window)


def lost(by: str, window: str = STEP) -> str:
    return happened(names.HOLD_SECONDS + "_count", by, 'outcome="lost"', window=window)


def failed(by: str, window: str = STEP) -> str:
    return happened(names.WAIT_SECONDS + "_count", by, 'outcome="error"', window=window)


def limit_disagreements(by: str, window: str = STEP) -> str:
    return happened(names.LIMIT_DISAGREEMENTS, by, window=window)


def faults_of_queues() -> str:
    """What went wrong with calls in the time shown, by queue: 0 on a good day."""
    # Not a sum of sums, which is nothing if one of them is: in multiprocess mode a series comes with
    # the first fault of its kind.
    kinds = (
        series(names.RECLAIMED),
        series(names.HOLD_SECONDS + "_count", 'outcome="lost"'),
        series(names.WAIT_SECONDS + "_count", 'outcome="error"'),
    )
    return summed("queue", " or ".join(f"increase({kind}[{SHOWN}])" for kind in kinds))
