"""Every telemetry name, in one place. Code, dashboards, rules, documents and tests are held to it."""

from __future__ import annotations

from typing import Final, Literal, TypeAlias

__all__: list[str] = []  # imported as a module: `names.WAIT_SECONDS`

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
RECLAIMED: Final = "genesis_queue_reclaimed_total"
LIMIT_DISAGREEMENTS: Final = "genesis_queue_limit_disagreements_total"
OPERATION_SECONDS: Final = "genesis_backend_operation_seconds"
DISRUPTIONS: Final = "genesis_backend_disruptions_total"
TELEMETRY_ERRORS: Final = "genesis_telemetry_errors_total"
BUILD_INFO: Final = "genesis_build_info"

OTHER_QUEUES: Final = "_other"  # the `queue` label once there are too many

# Outcomes ------------------------------------------------------------------------------------------
WaitOutcome: TypeAlias = Literal["granted", "timeout", "cancelled", "evicted", "error"]
HoldOutcome: TypeAlias = Literal["released", "error", "lost", "evicted"]
OperationOutcome: TypeAlias = Literal["ok", "timeout", "cancelled", "evicted", "unavailable", "error"]

# Why a backend was lost: the `reason` of DISRUPTIONS, as the library's own backends name it -----------
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

# Operations: the protocol's, and the backend's own heartbeat --------------------------------------
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

# Spans: `<name> <queue>` ---------------------------------------------------------------------------
SPAN_ACQUIRE: Final = "acquire"
SPAN_ENQUEUE: Final = "enqueue"
SPAN_WAIT: Final = "wait"
SPAN_HOLD: Final = "hold"
SPAN_RELEASE: Final = "release"

ITEM_ID: Final = "genesis.item_id"
QUEUE_ID: Final = "genesis.queue_id"
INSTANCE_ID: Final = "genesis.instance_id"
BACKEND: Final = "genesis.backend"
OUTCOME: Final = "genesis.outcome"
AT_POSITION: Final = "genesis.position"
AT_DEPTH: Final = "genesis.depth"
WAITED_SECONDS: Final = "genesis.waited_seconds"
FENCING_TOKEN: Final = "genesis.fencing_token"
LINK: Final = "genesis.link"
LINK_RELEASED_BY: Final = "released_by"
LINK_GRANTED_TO: Final = "granted_to"
MESSAGE_ID: Final = "messaging.message.id"
DESTINATION: Final = "messaging.destination.name"
ERROR_TYPE: Final = "error.type"

# Log events ----------------------------------------------------------------------------------------
LogEvent: TypeAlias = Literal[
    "enqueued",
    "granted",
    "released",
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

# The sinks that may fail: the `sink` label of TELEMETRY_ERRORS ---------------------------------------
Sink: TypeAlias = Literal["metrics", "traces", "logs", "label"]
