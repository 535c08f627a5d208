"""The errors of genesis, all derived from `GenesisError`.

Each message names the queue, the item, the cause and the fix, because it is often the only thing that
an operator sees.
"""

from __future__ import annotations


class GenesisError(Exception):
    """The base of all errors. They survive pickle and copy, with message and attributes.

    Each of the others has the attributes `queue_id` and `item_id`.
    """

    def __reduce__(self) -> tuple[object, ...]:
        # By default, pickle calls __init__ with the message instead of the original arguments.
        return self.__new__, (type(self),), {**self.__dict__, "args": self.args}


class QueueTimeoutError(GenesisError, TimeoutError):
    """The item got no slot within its `timeout`, and has left the line.

    Attributes:
        timeout: seconds, as given.
    """

    def __init__(self, queue_id: str, item_id: str, timeout: float) -> None:
        self.queue_id = queue_id
        self.item_id = item_id
        self.timeout = timeout
        cause = (
            "was refused: no slot was free when it asked, and timeout=0 does not wait"
            if timeout == 0
            else f"has left the line: no slot came free for it within {timeout:g} s"
        )
        super().__init__(
            f"queue {queue_id!r}: item {item_id!r} {cause}. "
            "Raise the timeout, raise the limit (max_concurrent or set_limit), or shorten the holds."
        )


class QueueFullError(GenesisError):
    """`max_waiting` calls already waited, so the item was not enqueued.

    Attributes:
        depth: the number of waiters.
        retry_after: seconds; the expected wait at the end of the line, None if not known.
    """

    def __init__(
        self, queue_id: str, item_id: str, depth: int, retry_after: float | None = None
    ) -> None:
        self.queue_id = queue_id
        self.item_id = item_id
        self.depth = depth
        self.retry_after = retry_after
        when = "later" if retry_after is None else f"in about {retry_after:.0f} s"
        super().__init__(
            f"queue {queue_id!r}: item {item_id!r} was refused: no slot is free and {depth} already "
            f"wait, as many as max_waiting allows. Try again {when}, raise max_waiting, or raise the "
            "limit (max_concurrent or set_limit)."
        )


class QueueDrainingError(GenesisError):
    """`drain` was called on this `Queue`: it accepts no new entries."""

    def __init__(self, queue_id: str, item_id: str) -> None:
        self.queue_id = queue_id
        self.item_id = item_id
        super().__init__(
            f"queue {queue_id!r}: item {item_id!r} was refused: drain() was called, because this "
            "process is about to stop. Enter through another instance, or make a new Queue."
        )


class LimitMismatchError(GenesisError, ValueError):
    """Two call sites of one `Queue` named different limits for a queue in use.

    Attributes:
        current: the limit of the calls in the queue.
        requested: the limit of the refused call.
    """

    def __init__(self, queue_id: str, item_id: str, current: int, requested: int) -> None:
        self.queue_id = queue_id
        self.item_id = item_id
        self.current = current
        self.requested = requested
        super().__init__(
            f"queue {queue_id!r}: item {item_id!r} asked for max_concurrent={requested}, but calls "
            f"that are in this queue asked for max_concurrent={current}; nothing was enqueued. Give "
            "one number at every call site, leave it out (None), or change the limit with set_limit()."
        )


class BackendUnavailableError(GenesisError, ConnectionError):
    """The backend could not be reached in time, rejected the operation, or was closed.

    Attributes:
        backend: the kind of backend.
        operation: the operation that failed.
        cause: the reason, without credentials.
        queue_id, item_id: "" if the operation is about none.
    """

    CLOSED = "it was closed"

    def __init__(
        self, backend: str, operation: str, cause: str, queue_id: str = "", item_id: str = ""
    ) -> None:
        self.backend = backend
        self.operation = operation
        self.cause = cause
        self.queue_id = queue_id
        self.item_id = item_id
        about = f"queue {queue_id!r}: " if queue_id else ""
        about += f"item {item_id!r}: " if item_id else ""
        if cause == self.CLOSED:
            cure = "Make a new Queue; this one has given back all that it had."
        else:
            cure = "Check that the server is up and reachable, then try again."
            if operation in ("enter", "wait"):
                cure = (
                    "What the call held or waited for is given back when the backend is reached, or "
                    f"when the lease lapses. {cure}"
                )
        super().__init__(
            f"{about}the {backend} backend did not carry out {operation!r}: {cause.rstrip('.')}. {cure}"
        )


class SlotLostError(GenesisError):
    """The holder has lost its slot: its lease lapsed, or it was evicted, or the Queue was closed."""

    def __init__(self, queue_id: str, item_id: str, fencing_token: int) -> None:
        self.queue_id = queue_id
        self.item_id = item_id
        self.fencing_token = fencing_token
        super().__init__(
            f"queue {queue_id!r}: item {item_id!r} has lost its slot (fencing token {fencing_token}): "
            "its lease lapsed without a heartbeat, or it was evicted, and another might hold the slot. "
            "Stop the work, or let its target refuse the old fencing token."
        )


class EvictedError(GenesisError):
    """The item was removed from the line by `Queue.evict`."""

    def __init__(self, queue_id: str, item_id: str) -> None:
        self.queue_id = queue_id
        self.item_id = item_id
        super().__init__(
            f"queue {queue_id!r}: item {item_id!r} was evicted while it waited. "
            "Enter again for a new place at the end of the line."
        )
