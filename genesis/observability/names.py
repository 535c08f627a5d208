"""Every telemetry name. Code, dashboards, rules, documentation and tests are checked against it."""

from __future__ import annotations

from typing import Final, Literal, TypeAlias

# Metrics -------------------------------------------------------------------------------------------
WAIT_SECONDS: Final = "genesis_queue_wait_seconds"
HOLD_SECONDS: Final = "genesis_queue_hold_seconds"
POSITION: Final = "genesis_queue_position_at_enqueue"
WAITING: Final = "genesis_queue_waiting"
HOLDING: Final = "genesis_queue_holding"
DEPTH: Final = "genesis_queue_depth"
IN_USE: Final = "genesis_queue_in_use"
LIMIT: Final = "genesis_queue_limit"
OLDEST_WAIT: Final = "genesis_queue_oldest_wait_seconds"
OLDEST_HOLD: Final = "genesis_queue_oldest_hold_seconds"
EXPECTED_WAIT: Final = "genesis_queue_expected_wait_seconds"
REFUSED: Final = "genesis_queue_refused_total"
RECLAIMED: Final = "genesis_queue_reclaimed_total"
LIMIT_DISAGREEMENTS: Final = "genesis_queue_limit_disagreements_total"
OPERATION_SECONDS: Final = "genesis_backend_operation_seconds"
DISRUPTIONS: Final = "genesis_backend_disruptions_total"
BACKEND_UP: Final = "genesis_backend_up"
TELEMETRY_ERRORS: Final = "genesis_telemetry_errors_total"
BUILD_INFO: Final = "genesis_build_info"

OTHER_QUEUES: Final = "_other"  # the `queue` label of all queues beyond the maximum

# Outcomes ------------------------------------------------------------------------------------------
WaitOutcome: TypeAlias = Literal["granted", "timeout", "cancelled", "evicted", "error"]
HoldOutcome: TypeAlias = Literal["released", "error", "lost", "evicted"]
OperationOutcome: TypeAlias = Literal[
    "ok", "timeout", "cancelled", "evicted", "unavailable", "unconfirmed", "error"
]
RefusalReason: TypeAlias = Literal["full", "busy", "draining"]

# The `reason` of DISRUPTIONS in the library's own backends -----------------------------------------
DisruptionReason: TypeAlias = Literal[
    "connection",
    "timeout",
    "loading",
    "read_only",
    "denied",
    "refused",
    "scripts_lost",
    "data_lost",
    "slot_moving",
    "cluster_down",
    "other",
]

# Operations: those of the protocol, and the heartbeat ----------------------------------------------
Operation: TypeAlias = Literal[
    "enter",
    "wait",
    "leave",
    "set_limit",
    "stats",
    "wait_status",
    "entries",
    "evict",
    "flush",
    "ping",
    "close",
]
HEARTBEAT: Final = "heartbeat"

# Spans. The queue is an attribute, not part of the name: a trace viewer groups calls by span name.
SPAN_SLOT: Final = "queue.slot"
SPAN_ACQUIRE: Final = "queue.acquire"
SPAN_ENQUEUE: Final = "queue.enqueue"
SPAN_WAIT: Final = "queue.wait"
SPAN_HOLD: Final = "queue.hold"
SPAN_RELEASE: Final = "queue.release"
SPAN_RECLAIM: Final = "queue.reclaim"
SPAN_INSPECTION: Final = "queue."  # followed by the operation; only inside a recording span

ITEM_ID: Final = "genesis.item_id"
QUEUE_ID: Final = "genesis.queue_id"
INSTANCE_ID: Final = "genesis.instance_id"
BACKEND: Final = "genesis.backend"
OUTCOME: Final = "genesis.outcome"
AT_POSITION: Final = "genesis.position"
AT_DEPTH: Final = "genesis.depth"
AT_LIMIT: Final = "genesis.limit"
TIMEOUT_SECONDS: Final = "genesis.timeout_seconds"
HEAD_START: Final = "genesis.head_start"
WAITED_SECONDS: Final = "genesis.waited_seconds"
FENCING_TOKEN: Final = "genesis.fencing_token"
HOLDERS: Final = "genesis.holders"
ERROR_TYPE: Final = "error.type"

# The relation of a link to another call. The other call's ids are span attributes too, because trace
# viewers hide link attributes, and there is no link to a call that was not sampled.
LINK: Final = "genesis.link"
Relation: TypeAlias = Literal["released_by", "granted_to", "reclaimed_from"]
RELATED_ITEM: Final = "genesis.{}.item_id"
RELATED_INSTANCE: Final = "genesis.{}.instance_id"

# Log events ----------------------------------------------------------------------------------------
LogEvent: TypeAlias = Literal[
    "enqueued",
    "granted",
    "released",
    "refused",
    "timeout",
    "cancelled",
    "evicted",
    "error",
    "lost",
    "reclaimed",
    "limit_changed",
    "inspected",
    "closed",
    "backend_unavailable",
    "backend_recovered",
]

# The `sink` label of TELEMETRY_ERRORS --------------------------------------------------------------
Sink: TypeAlias = Literal["metrics", "traces", "logs", "label"]
