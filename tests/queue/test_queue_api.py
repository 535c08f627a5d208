"""The public surface: what programs outside rely on by name, default and behaviour."""

from __future__ import annotations

import asyncio
import copy
import gc
import inspect
import multiprocessing
import pickle
import subprocess
import sys
import textwrap
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import ProcessPoolExecutor
from contextlib import AsyncExitStack, nullcontext
from enum import Enum
from functools import partial
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

import genesis
import genesis.exceptions
import genesis.queue
from genesis import Queue, QueueTimeoutError
from genesis.backends.protocol import EnterRequest, EnterResult, Grant, LeaveResult, Ticket
from genesis.exceptions import (
    BackendUnavailableError,
    EvictedError,
    GenesisError,
    LimitMismatchError,
    QueueDrainingError,
    QueueFullError,
    SlotLostError,
)
from genesis.observability import Telemetry
from genesis.queue import (
    InMemoryBackend,
    QueueBackend,
    QueueSemaphore,
    RedisBackend,
    SlotRequest,
)
from genesis.queue.calls import Calls
from tests.conftest import state_of
from tests.support.waiting import quiesce, wait_until


@pytest.fixture
async def queue(telemetry: Telemetry) -> AsyncIterator[Queue]:
    async with Queue(telemetry=telemetry) as queue:
        yield queue


def parameters(function: Callable[..., Any]) -> dict[str, tuple[Any, bool]]:
    """Name -> (default, keyword-only), without self."""
    found = inspect.signature(function).parameters.values()
    return {p.name: (p.default, p.kind is p.KEYWORD_ONLY) for p in found if p.name != "self"}


def run_python(program: str) -> None:
    """Run `program` in a process of its own, which must end well and print nothing."""
    command = [sys.executable, "-c", textwrap.dedent(program)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_names_that_programs_import_are_there() -> None:
    """`genesis`, `genesis.queue` and `genesis.exceptions` offer what design.md section 2 names."""
    new = {"QueueFullError", "QueueDrainingError", "WaitStatus", "until_disconnected"}
    assert {"Queue", "QueueTimeoutError", "RedisBackend"} | new <= set(genesis.__all__)
    assert {"InMemoryBackend", "QueueBackend", "RedisBackend"} | new <= set(genesis.queue.__all__)
    assert genesis.RedisBackend is genesis.queue.RedisBackend
    assert all(hasattr(genesis, name) for name in genesis.__all__)
    assert genesis.QueueTimeoutError is genesis.exceptions.QueueTimeoutError


def test_the_signatures_are_the_promised_ones() -> None:
    """Names, defaults and keyword-only markers of the public calls."""
    required = inspect.Parameter.empty
    assert parameters(Queue) == {"backend": (None, False), "telemetry": (None, True)}
    assert parameters(Queue.slot) == {
        "queue_id": (required, False),
        "item_id": (None, True),
        "max_concurrent": (None, True),
        "timeout": (None, True),
        "max_waiting": (None, True),
        "head_start": (0.0, True),
        "keep_place": (0.0, True),
        "place_token": (None, True),
    }
    assert parameters(Queue.semaphore) == {
        "queue_id": (required, False),
        "max_concurrent": (None, False),
        "timeout": (None, False),
        "max_waiting": (None, True),
        "head_start": (0.0, True),
        "keep_place": (0.0, True),
    }
    assert parameters(QueueSemaphore.__call__) == {
        "item_id": (None, False),
        "place_token": (None, False),
    }
    watch = {"every": (30.0, True), "at_least": (10.0, True)}
    assert parameters(SlotRequest.watch) == watch
    required_ids = {"queue_id": (required, False), "item_id": (required, False)}
    assert parameters(Queue.watch) == {**required_ids, **watch}
    assert parameters(Queue.drain) == {"timeout": (None, False)}
    redis = parameters(RedisBackend)
    assert redis["url"] == ("redis://localhost:6379", False)
    assert redis["key_prefix"] == ("genesis:queue:", False)
    assert redis["lease"] == (15.0, True)
    assert all(only for name, (_, only) in redis.items() if name not in ("url", "key_prefix"))
    assert all(default is not required for default, _ in parameters(InMemoryBackend).values())


def test_the_errors_are_what_programs_catch() -> None:
    """All under GenesisError, and each also of the built-in kind that a handler may name."""
    kinds: dict[type[Exception], type[Exception]] = {
        QueueTimeoutError: TimeoutError,
        LimitMismatchError: ValueError,
        BackendUnavailableError: ConnectionError,
        SlotLostError: GenesisError,
        EvictedError: GenesisError,
        QueueFullError: GenesisError,
        QueueDrainingError: GenesisError,
    }
    for error, kind in kinds.items():
        assert issubclass(error, GenesisError)
        assert issubclass(error, kind)
    assert not issubclass(BackendUnavailableError, TimeoutError)


def test_import_creates_and_prints_nothing() -> None:
    """Importing registers no metric, configures no logging, starts no thread and says nothing."""
    run_python(
        """
        import logging, threading, genesis, genesis.queue
        from prometheus_client import REGISTRY
        assert not [m for m in REGISTRY.collect() if m.name.startswith("genesis")]
        assert threading.active_count() == 1
        assert not logging.getLogger().handlers and not logging.getLogger("genesis").handlers
        """
    )


async def test_both_backends_are_backends() -> None:
    """The protocol can be asked for at run time, and both satisfy it."""
    assert isinstance(InMemoryBackend(), QueueBackend)
    assert isinstance(RedisBackend(), QueueBackend)
    assert not isinstance(object(), QueueBackend)


def test_a_queue_without_arguments_works_and_reports_to_the_process_defaults() -> None:
    """Queue() needs nothing; its metrics are in prometheus_client's default registry."""
    run_python(
        """
        import asyncio, genesis, prometheus_client

        async def main():
            async with genesis.Queue() as queue, queue.slot("sales"):
                assert (await queue.stats("sales")).in_use == 1

        asyncio.run(main())
        labels = {"queue": "sales", "outcome": "granted"}
        count = prometheus_client.REGISTRY.get_sample_value("genesis_queue_wait_seconds_count", labels)
        assert count == 1, count
        """
    )


async def test_a_slot_without_item_id_has_a_uuid(queue: Queue) -> None:
    """Each slot, and each use of a semaphore, gets an item_id of its own."""
    seen = set()
    semaphore = queue.semaphore("sales", 9)
    for request in (queue.slot("sales"), queue.slot("sales"), semaphore, semaphore, semaphore()):
        async with request as slot:
            seen.add(uuid.UUID(slot.item_id))
    assert len(seen) == 5


async def test_a_slot_tells_what_it_is(queue: Queue) -> None:
    """queue_id, item_id, waited, fencing_token and lost, and a repr for logs."""
    async with queue.slot("sales", item_id="call-1") as slot:
        assert (slot.queue_id, slot.item_id, slot.waited, slot.lost) == ("sales", "call-1", 0.0, False)
        assert isinstance(slot.fencing_token, int)
        slot.ensure_held()
        assert "'sales'" in repr(slot)
        assert "'call-1'" in repr(slot)
        assert "lost" not in repr(slot)
        await queue.evict("sales", "call-1")
        assert "lost" in repr(slot)


async def test_a_slot_that_was_given_back_in_time_was_not_lost(queue: Queue) -> None:
    """After the block, slot.lost tells what was true inside it."""
    async with queue.slot("sales", item_id="kept") as kept:
        pass
    async with queue.slot("sales", item_id="taken") as taken:
        await queue.evict("sales", "taken")
    await queue.close()
    assert not kept.lost
    assert taken.lost


async def test_a_slot_request_does_nothing_until_it_is_entered(queue: Queue) -> None:
    """queue.slot() only describes; a request that is thrown away leaves no place in line."""
    queue.slot("sales", max_concurrent=4)
    queue.semaphore("sales", 4)
    assert await queue.stats("sales") == (0, 0, 1, 0.0, 0.0, None)
    assert not state_of(queue)


@pytest.mark.parametrize("when", ["while held", "while it waits", "after it was left"])
async def test_a_slot_request_is_entered_once(queue: Queue, when: str) -> None:
    """A request entered again raises, whatever became of it first, and no slot leaks."""
    request = queue.slot("sales", max_concurrent=2)
    if when == "after it was left":
        async with request:
            pass
        with pytest.raises(RuntimeError, match="once"):
            await request.__aenter__()
    elif when == "while held":
        async with request:
            with pytest.raises(RuntimeError, match="once"):
                await request.__aenter__()
    else:
        await queue.set_limit("sales", 0)
        first = asyncio.create_task(request.__aenter__())
        await quiesce()
        with pytest.raises(RuntimeError, match="once"):
            await asyncio.wait_for(request.__aenter__(), 1)
        await queue.set_limit("sales", None)
        await first
        await request.__aexit__(None, None, None)
    assert (await queue.stats("sales"))[:2] == (0, 0)


async def test_a_request_whose_wait_failed_can_be_left_without_harm(queue: Queue) -> None:
    """__aexit__ after a failed __aenter__ gives back nothing that is another's."""
    async with queue.slot("sales"):
        request = queue.slot("sales", timeout=0)
        with pytest.raises(QueueTimeoutError):
            await request.__aenter__()
        await request.__aexit__(None, None, None)
        assert (await queue.stats("sales"))[:2] == (0, 1)


async def test_a_semaphore_called_from_another_task_is_refused(queue: Queue) -> None:
    """`async with` aside, only the task that entered may leave; nobody else's slot is given back."""
    semaphore = queue.semaphore("sales", 2)
    with pytest.raises(RuntimeError, match=r"'sales'.*holds no slot"):
        await semaphore.__aexit__(None, None, None)
    async with semaphore as slot:
        for leave in (partial(semaphore.__aexit__, None, None, None), partial(leave_in, semaphore)):
            with pytest.raises(RuntimeError, match=r"'sales'.*holds no slot"):
                await asyncio.create_task(leave())
        assert (await queue.stats("sales"))[:2] == (0, 1)
        assert not slot.lost
        await queue.evict("sales", slot.item_id)
        assert slot.lost
    assert not state_of(queue)


async def leave_in(semaphore: QueueSemaphore) -> None:
    await semaphore.__aexit__(None, None, None)


async def test_a_semaphore_in_a_generator_gives_back_its_own_slot(queue: Queue) -> None:
    """Generators that are broken off, or left in any order by any task, have slots of their own."""
    semaphore = queue.semaphore("sales", 5)
    tokens: list[int] = []

    async def generate() -> AsyncIterator[int]:
        async with semaphore as slot:
            tokens.append(slot.fencing_token)
            yield 1
            yield 2

    async def holding() -> list[int | None]:
        return [entry.fencing_token for entry in await queue.entries("sales")]

    async def enter() -> AsyncIterator[int]:
        generator = generate()
        await generator.__anext__()
        return generator

    async def end(generator: AsyncIterator[int]) -> None:
        async for _ in generator:
            pass

    async with semaphore as own:
        first, second = await enter(), await asyncio.create_task(enter())
        async with semaphore as inner:
            assert await holding() == [own.fencing_token, *tokens, inner.fencing_token]
            await end(first)
            assert await holding() == [own.fencing_token, tokens[1], inner.fencing_token]
            await asyncio.create_task(end(second))
            assert await holding() == [own.fencing_token, inner.fencing_token]
            async for _ in generate():
                break
            gc.collect()
            await quiesce()
            assert await holding() == [own.fencing_token, inner.fencing_token]
        assert await holding() == [own.fencing_token]
    assert not state_of(queue)


async def test_a_semaphore_in_an_exit_stack(queue: Queue) -> None:
    """The last one first, in the task that entered."""
    semaphore = queue.semaphore("sales", 8)

    async def call() -> None:
        async with AsyncExitStack() as stack:
            slots = [await stack.enter_async_context(semaphore) for _ in range(2)]
            assert not any(slot.lost for slot in slots)
            await quiesce()

    await asyncio.gather(*(call() for _ in range(4)))
    assert not state_of(queue)


async def test_a_request_that_was_never_entered_cannot_be_left(queue: Queue) -> None:
    """`__aexit__` without `__aenter__` says so in words."""
    with pytest.raises(RuntimeError, match="never entered"):
        await queue.slot("sales").__aexit__(None, None, None)


async def test_a_slot_may_be_left_in_another_task_than_entered(
    queue: Queue, registry: CollectorRegistry
) -> None:
    """The same for slot(); nothing that the layer keeps in the first task's context gets in the way."""
    request = queue.slot("sales")
    await asyncio.create_task(request.__aenter__())
    await asyncio.create_task(request.__aexit__(None, None, None))
    assert not state_of(queue)
    assert registry.get_sample_value("genesis_telemetry_errors_total", {"sink": "traces"}) == 0


async def test_wait_for_around_a_slot_leaks_nothing(queue: Queue) -> None:
    """asyncio.wait_for, which cancels from outside, is as good as timeout=."""

    async def call() -> None:
        async with queue.slot("sales"):
            pytest.fail("two in a queue with limit 1")

    async with queue.slot("sales"):
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(call(), 0.01)
        assert (await queue.stats("sales"))[:2] == (0, 1)
    assert not state_of(queue)


async def test_a_timeout_error_of_the_body_stays_the_bodys(queue: Queue) -> None:
    """A TimeoutError raised inside the block is not taken for the queue's."""
    with pytest.raises(TimeoutError) as caught:
        async with queue.slot("sales", timeout=5):
            raise TimeoutError("the body's own")
    assert not isinstance(caught.value, QueueTimeoutError)


async def test_instances_have_different_names() -> None:
    """instance_id tells two Queues of one process apart, and the entries bear it."""
    first, second = (Queue(telemetry=Telemetry(CollectorRegistry())) for _ in range(2))
    assert first.instance_id != second.instance_id
    async with first.slot("sales"):
        (entry,) = await first.entries("sales")
    assert entry.instance_id == first.instance_id


class Own(InMemoryBackend):
    """A user's backend: its calls are recorded, and it fails on demand."""

    name = "own"

    def __init__(self) -> None:
        super().__init__()
        self.called: list[str] = []
        self.failure: Exception | None = None

    async def enter(self, entry: EnterRequest) -> EnterResult:
        self.called.append("enter")
        if self.failure is not None:
            raise self.failure
        return await super().enter(entry)

    async def wait(self, ticket: Ticket, timeout: float | None) -> Grant:
        self.called.append("wait")
        return await super().wait(ticket, timeout)

    def leave(self, ticket: Ticket, context: str = "", keep_place: float = 0.0) -> LeaveResult:
        self.called.append("leave")
        return super().leave(ticket, context, keep_place)


async def test_a_users_own_backend_is_used_and_observed(
    telemetry: Telemetry, registry: CollectorRegistry
) -> None:
    """Any QueueBackend will do, and its operations bear its name in the metrics."""
    backend = Own()
    async with Queue(backend, telemetry=telemetry) as queue, queue.slot("sales"):
        waiter = asyncio.create_task(queue.slot("sales").__aenter__())
        await wait_until(lambda: "wait" in backend.called, "it waits")
        waiter.cancel()
        await asyncio.wait({waiter})
    assert backend.called == ["enter", "enter", "wait", "leave", "leave"]
    labels = {"backend": "own", "operation": "enter", "outcome": "ok"}
    assert registry.get_sample_value("genesis_backend_operation_seconds_count", labels) == 2


async def test_an_error_of_a_users_backend_reaches_the_call_as_it_is(
    telemetry: Telemetry, registry: CollectorRegistry
) -> None:
    """It is counted, and nothing of the failed call is left."""
    backend = Own()
    backend.failure = ZeroDivisionError("its own")
    async with Queue(backend, telemetry=telemetry) as queue:
        with pytest.raises(ZeroDivisionError) as caught:
            async with queue.slot("sales", max_concurrent=3):
                pytest.fail("entered")
        assert caught.value is backend.failure
        assert not state_of(queue)
        backend.failure = None
        async with queue.slot("sales", max_concurrent=4):
            pass
    labels = {"backend": "own", "operation": "enter", "outcome": "error"}
    assert registry.get_sample_value("genesis_backend_operation_seconds_count", labels) == 1


async def test_every_message_names_the_queue_the_item_the_cause_and_the_way_out() -> None:
    """What an operator sees is enough to act on."""
    errors: list[tuple[Exception, tuple[str, ...]]] = [
        (QueueTimeoutError("sales", "call-1", 30.0), ("30 s", "Raise the timeout")),
        (QueueTimeoutError("sales", "call-1", 0), ("timeout=0", "Raise the")),
        (LimitMismatchError("sales", "call-1", 2, 3), ("max_concurrent=2", "=3", "set_limit")),
        (SlotLostError("sales", "call-1", 42), ("42", "Stop the work")),
        (EvictedError("sales", "call-1"), ("evicted", "Enter again")),
        (QueueFullError("sales", "call-1", 7, 90.4), ("7 already wait", "90 s", "max_waiting")),
        (QueueFullError("sales", "call-1", 7), ("7 already wait", "later", "max_waiting")),
        (QueueDrainingError("sales", "call-1"), ("drain()", "another instance")),
        (
            BackendUnavailableError("redis", "evict", "it did not answer in time", "sales", "call-1"),
            ("did not answer in time", "try again"),
        ),
    ]
    for error, parts in errors:
        for part in ("'sales'", "'call-1'", *parts):
            assert part in str(error)


ERRORS: list[GenesisError] = [
    QueueTimeoutError("sales", "call-1", 30.0),
    QueueFullError("sales", "call-1", 7, 90.0),
    QueueDrainingError("sales", "call-1"),
    LimitMismatchError("sales", "call-1", 2, 3),
    BackendUnavailableError("redis", "enter", "no reply", "sales", "call-1"),
    SlotLostError("sales", "call-1", 42),
    EvictedError("sales", "call-1"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize(
    "through", [lambda error: pickle.loads(pickle.dumps(error)), copy.copy, copy.deepcopy]
)
def test_errors_survive_pickle_and_copy(
    error: GenesisError, through: Callable[[GenesisError], GenesisError]
) -> None:
    """A process pool, a task queue, a logger may take them apart: message and attributes stay."""
    again = through(error)
    assert type(again) is type(error)
    assert (str(again), again.args, vars(again)) == (str(error), error.args, vars(error))


def test_an_error_crosses_the_border_of_a_process() -> None:
    """The parent of a pool gets the error that its worker raised, and the pool goes on."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        with pytest.raises(QueueTimeoutError, match="'call-1'"):
            pool.submit(_raise_a_timeout).result(30)
        assert pool.submit(int, "3").result(30) == 3


def _raise_a_timeout() -> None:
    raise QueueTimeoutError("sales", "call-1", 1.0)


async def test_a_backend_belongs_to_one_queue(telemetry: Telemetry) -> None:
    """A second Queue on the same object is refused when it is made; the first goes on."""
    backend = InMemoryBackend()
    async with Queue(backend, telemetry=telemetry) as queue:
        with pytest.raises(RuntimeError, match="belongs to a Queue"):
            Queue(backend, telemetry=Telemetry(CollectorRegistry()))
        async with queue.slot("sales"):
            pass


class Colour(str, Enum):
    """Ids as applications have them; `str(Colour.RED)` is not "red"."""

    RED = "red"


async def test_ids_that_are_subclasses_of_str_count_as_their_text(queue: Queue) -> None:
    """A `(str, Enum)` member is found by itself and by its text, and stored as text."""
    async with queue.slot(Colour.RED, item_id=Colour.RED) as slot:
        waiter = asyncio.create_task(queue.semaphore(Colour.RED)(Colour.RED).__aenter__())
        await wait_until(lambda: queue.position(Colour.RED, Colour.RED), "it waits")
        assert await queue.position("red", "red") == 1
        entries = await queue.entries("red")
        assert [type(entry.item_id) for entry in entries] == [str, str]
        assert (type(slot.queue_id), type(slot.item_id)) == (str, str)
        assert await queue.evict(Colour.RED, Colour.RED) == 2
        with pytest.raises(EvictedError):
            await waiter


def use_in_a_thread(use: Callable[[], Coroutine[Any, Any, Any]]) -> Coroutine[Any, Any, Any]:
    return asyncio.to_thread(lambda: asyncio.run(use()))


async def test_a_memory_queue_in_two_loops_at_once_is_refused(queue: Queue) -> None:
    """While it has calls, another thread's loop gets an error; `lost` may be asked anywhere."""

    async def enter() -> None:
        async with queue.slot("sales", max_concurrent=2):
            pytest.fail("entered")

    async with queue.slot("sales", max_concurrent=2) as slot:
        for use in (enter, partial(queue.stats, "sales"), partial(queue.entries, "support")):
            with pytest.raises(RuntimeError, match="another event loop"):
                await use_in_a_thread(use)
        assert await asyncio.to_thread(lambda: slot.lost) is False
        assert (await queue.stats("sales"))[:2] == (0, 1)
    assert not state_of(queue)


def test_a_memory_queue_serves_several_loops_in_turn() -> None:
    """Also if a loop was closed with calls inside: these are gone, with the limit they agreed on."""
    queue = Queue(telemetry=Telemetry(CollectorRegistry()))

    async def enter(limit: int) -> SlotRequest:
        request = queue.slot("sales", max_concurrent=limit, timeout=0)
        await request.__aenter__()
        assert (await queue.stats("sales"))[:3] == (0, 1, limit)
        return request

    async def call(limit: int) -> None:
        await (await enter(limit)).__aexit__(None, None, None)

    asyncio.run(call(1))
    asyncio.run(call(2))
    loop = asyncio.new_event_loop()
    left = loop.run_until_complete(enter(3))
    loop.close()
    asyncio.run(call(4))
    asyncio.run(left.__aexit__(None, None, None))  # too late, and without harm
    assert left.slot is None
    assert not state_of(queue)


async def test_one_backend_in_two_loops_is_refused_over_redis() -> None:
    """A RedisBackend belongs to the loop of its first use; another one gets a clear error."""
    backend = RedisBackend("redis://127.0.0.1:1", lease=0.3)
    with pytest.raises(BackendUnavailableError):
        await backend.ping()

    def elsewhere() -> None:
        asyncio.run(backend.ping())

    with pytest.raises(RuntimeError, match="event loop"):
        await asyncio.to_thread(elsewhere)
    await backend.close()


async def test_thousands_that_enter_in_one_turn_let_others_run_and_keep_their_order() -> None:
    """Some of them cancelled meanwhile; one that comes later overtakes nobody."""
    most = 0

    class Counting(InMemoryBackend):
        entered = 0

        async def enter(self, request: EnterRequest) -> EnterResult:
            self.entered += 1
            return await super().enter(request)

    backend = Counting()
    queue = Queue(backend, telemetry=Telemetry(CollectorRegistry()))
    granted: list[int] = []

    async def call(number: int) -> None:
        async with queue.slot("sales", item_id=str(number), max_concurrent=1):
            granted.append(number)

    count = 5_000
    async with queue.slot("sales", item_id="holder", max_concurrent=1):
        tasks = [asyncio.create_task(call(number)) for number in range(count)]
        while backend.entered < 1 + count - 10:
            before = backend.entered
            await asyncio.sleep(0)
            if before <= 1_000 < backend.entered:
                for task in tasks[4_000:4_010]:
                    task.cancel()
            if backend.entered > 2_000 and len(tasks) == count:
                tasks.append(asyncio.create_task(call(count)))
            most = max(most, backend.entered - before)
    await asyncio.wait(tasks)
    assert granted == [*range(4_000), *range(4_010, count + 1)]
    assert most <= 500


@pytest.mark.parametrize("busy", [False, True])
async def test_the_turns_for_which_an_entry_is_held_up_count_for_its_timeout(
    monkeypatch: pytest.MonkeyPatch, busy: bool
) -> None:
    """After the deadline it takes a slot only if one is free."""
    monkeypatch.setattr(Calls, "too_many", lambda self: True)
    queue = Queue(InMemoryBackend(), telemetry=Telemetry(CollectorRegistry()))
    async with queue.slot("sales", max_concurrent=1) if busy else nullcontext():
        # That the deadline has passed is the subject.
        monkeypatch.setattr(Calls, "later_turn", lambda self: asyncio.sleep(0.03))
        passage = queue.slot("sales", max_concurrent=1, timeout=0.01)
        if busy:
            with pytest.raises(QueueTimeoutError, match=r"0\.01"):
                await passage.__aenter__()
        else:
            async with passage as slot:
                assert slot.waited == 0
    assert (await queue.stats("sales"))[:2] == (0, 0)
