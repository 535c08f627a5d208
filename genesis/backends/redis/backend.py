"""`RedisBackend`: the public class of the Redis backend."""

from __future__ import annotations

import asyncio
import weakref
from contextvars import Context

from redis.asyncio import Redis, RedisCluster

from genesis.backends.identity import Identity
from genesis.backends.protocol import (
    ONE_REPLY,
    BackendEvent,
    EnterRequest,
    EnterResult,
    Grant,
    LeaveResult,
    Listener,
    Ticket,
)
from genesis.backends.redis.calls import Call, unavailable
from genesis.backends.redis.core import BEATS_PER_LEASE
from genesis.backends.redis.driver import BEFORE, CLOSE_WITHIN, Driver
from genesis.backends.redis.keys import check_key_prefix
from genesis.backends.redis.requests import Requests
from genesis.backends.redis.servers import servers_of
from genesis.backends.redis.ticket import Stage
from genesis.backends.waiting import until_granted
from genesis.exceptions import BackendUnavailableError

_DEFAULT_URL = "redis://localhost:6379"
_MAX_SECONDS = 86_400  # of a lease: one day


class RedisBackend(Requests):
    """Keeps queues in Redis, shared by every instance with the same server and `key_prefix`.

    One connection (in a Cluster one per master in use) carries commands, replies and wake-ups, however
    many calls wait. It is opened by the first operation. From then on the object belongs to the event
    loop that ran that operation, until that loop is closed. A process that forks must create a backend
    in each child, or fork before the first operation.

    Args:
        url: a redis-py URL: `redis://`, `rediss://` for TLS, or `unix://`, with user, password and
            database.
        key_prefix: the prefix of every key and channel. Instances with the same prefix share queues.
        client: instead of a url, a `redis.asyncio.Redis` (also from `Sentinel.master_for`) or a
            `redis.asyncio.RedisCluster`. Only its settings are used; its own connections are neither
            used nor closed.
        lease: seconds after which a dead instance's waiters and holders are reaped. It is renewed
            every `lease / 3` seconds. All instances should use the same value. It may differ during a
            rollout: up to 660 s, and up to 1,980 s while no instance is cut off from Redis, no slot is
            held twice unless Redis loses its data.
        operation_timeout: seconds after which an operation without a reply raises
            `BackendUnavailableError`; by default a third of the lease, and at most the lease.

    Raises:
        TypeError, ValueError: a malformed url, a client of another type, both a url and a client, a
            lease or timeout that is not a positive number of at most one day, a timeout longer than the
            lease, or a key_prefix with braces.
    """

    name = "redis"

    def __init__(
        self,
        url: str = _DEFAULT_URL,
        key_prefix: str = "genesis:queue:",
        *,
        client: Redis | RedisCluster | None = None,
        lease: float = 15.0,
        operation_timeout: float | None = None,
    ) -> None:
        _check_seconds("lease", lease)
        timeout = lease / 3 if operation_timeout is None else operation_timeout
        _check_seconds("operation_timeout", timeout)
        if timeout > lease:
            raise ValueError(
                f"operation_timeout of {timeout:g} s is longer than the lease of {lease:g} s: the "
                "lease would lapse while an operation waits. Use a shorter one, or a longer lease"
            )
        check_key_prefix(key_prefix)
        if client is not None and url is not _DEFAULT_URL:
            raise ValueError("url and client were given; give the one or the other")
        name, self._new_router = servers_of(url, client)
        self._identity = Identity()
        self.heartbeat_interval = lease / BEATS_PER_LEASE
        self.store = f"redis {name} {key_prefix}"
        self._lease = lease
        self._timeout = timeout
        self._key_prefix = key_prefix
        self._listener: Listener | None = None
        self._driver: Driver | None = None
        self._forgotten: weakref.finalize[..., RedisBackend] | None = None
        self._closed = False
        self._closing: asyncio.Task[None] | None = None

    @property
    def instance_id(self) -> str:
        if self._driver is None:
            self._identity.renew_if_forked()
        return self._identity.id

    def listen(self, listener: Listener) -> None:
        if self._listener is not None:
            raise RuntimeError("this RedisBackend belongs to a Queue already; make one for each Queue")
        self._listener = listener

    async def enter(self, request: EnterRequest) -> EnterResult:
        driver = self._join("enter", request.queue_id, request.item_id)
        queue = driver.open(request.queue_id)
        call = Call(queue, request)
        if driver.denied(queue):
            raise unavailable("enter", driver.why_down(queue), *call.ticket[:2])
        driver.enter(call, ONE_REPLY if request.timeout == 0 else request.timeout)
        try:
            result = await call.answer
        except BaseException:
            driver.leave(call, unanswered=True)
            raise
        call.answer = driver.answered
        if result.grant is None and not result.position:  # refused
            driver.leave(call)
        return result

    async def wait(self, ticket: Ticket, timeout: float | None) -> Grant:
        call = self._call(ticket)
        if call is None or call.granted is None:
            raise unavailable("wait", BackendUnavailableError.CLOSED, *ticket[:2])
        return await until_granted(call.granted, timeout)

    def leave(self, ticket: Ticket, context: str = "", keep_place: float = 0.0) -> LeaveResult | None:
        call = self._call(ticket)
        if call is None or not call.wanted:
            return LeaveResult(None)
        call.queue.driver.leave(call, context, keep_place)
        call.observed = call.result is None
        return call.result

    async def flush(self) -> None:
        if self._driver is not None:
            await self._driver.flush()

    def lapsed(self, ticket: Ticket) -> bool:
        call = self._call(ticket)
        if call is None or not call.wanted or call.stage is not Stage.HOLDING:
            return True
        return call.queue.driver.loop.time() >= call.queue.lease_deadline

    async def close(self) -> None:
        # Every call of `close` awaits one task: cancelling `close` halfway must not leak connections.
        self._closed = True
        driver = self._driver
        if driver is None:
            return
        loop = asyncio.get_running_loop()
        if driver.loop is not loop:
            await self._close_elsewhere(driver)
            return
        if self._closing is None:
            driver.end_calls()
            self._closing = loop.create_task(driver.close())
            # A callback: if all tasks are cancelled at once, the task might never have begun.
            self._closing.add_done_callback(lambda _: driver.abort())
        await asyncio.wait({self._closing})

    async def _close_elsewhere(self, driver: Driver) -> None:
        """Close from a loop other than the driver's."""
        if driver.loop.is_running():
            closing = asyncio.run_coroutine_threadsafe(self.close(), driver.loop)
            await asyncio.wait({asyncio.wrap_future(closing)}, timeout=2 * CLOSE_WITHIN)
        else:  # no command can be sent in a stopped loop; what is left is reaped after the lease
            driver.abort()
            self._driver = None

    async def __aenter__(self) -> RedisBackend:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _join(self, operation: str, queue_id: str = "", item_id: str = "") -> Driver:
        """The running driver, or a new one in the running loop."""
        if self._closed:
            raise unavailable(operation, BackendUnavailableError.CLOSED, queue_id, item_id)
        loop = asyncio.get_running_loop()
        driver = self._driver
        if driver is not None:
            if driver.loop is loop:
                return driver
            if not driver.loop.is_closed():
                raise RuntimeError(
                    "this RedisBackend is in use in another event loop; make one for each loop"
                )
            if self._identity.forked:
                # Both processes would have the same instance id, and so share tickets and slots.
                raise RuntimeError(
                    "this RedisBackend was used before the process forked; make one in each process"
                )
            driver.abort()
        # An empty context: the driver's callbacks would keep that of the first call.
        self._driver = successor = Context().run(self._start)
        if driver is not None and driver.down:
            successor.down[BEFORE] = min(driver.down.values())
        return successor

    def _start(self) -> Driver:
        # A weak reference: the loop refers to the driver while a connection is up. An abandoned backend
        # must still be collected, which closes its connection.
        this = weakref.ref(self)

        def emit(event: BackendEvent) -> None:
            backend = this()
            if backend is not None and backend._listener is not None:
                backend._listener(event)

        driver = Driver(
            self._new_router, self.instance_id, self._key_prefix, self._lease, self._timeout, emit
        )
        if self._forgotten is not None:
            self._forgotten.detach()  # it would keep the driver of a closed loop alive
        self._forgotten = weakref.finalize(self, _forget, driver)
        return driver

    def _call(self, ticket: Ticket) -> Call | None:
        return None if self._driver is None else self._driver.calls.get(ticket.id)


def _forget(driver: Driver) -> None:
    """Finalizer: the backend was collected without `close`, perhaps in another thread."""
    if not driver.closing and not driver.loop.is_closed():
        driver.loop.call_soon_threadsafe(driver.abort, context=Context())


def _check_seconds(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be seconds, got {type(value).__name__}: {value!r}")
    if not 0 < value <= _MAX_SECONDS:
        raise ValueError(
            f"{name} must be more than 0 and at most {_MAX_SECONDS:,} s, got {value!r:.50}"
        )
