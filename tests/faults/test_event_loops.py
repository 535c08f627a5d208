"""The host's loops, processes and threads: several loops, exit without close, forks, abandonment."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import uvloop
from prometheus_client import CollectorRegistry

from genesis import Queue
from genesis.exceptions import BackendUnavailableError
from genesis.observability import Telemetry
from genesis.queue import RedisBackend
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}
HOLDING = "genesis:queue:{line}:holding"


@pytest.fixture(params=LOOPS)
def new_loop(request: pytest.FixtureRequest) -> Callable[[], asyncio.AbstractEventLoop]:
    return LOOPS[request.param]


def queue_on(server: RedisServer, **options: Any) -> Queue:
    backend = RedisBackend(server.url, **{"lease": 60.0, **options})
    return Queue(backend, telemetry=Telemetry(registry=CollectorRegistry()))


def run(new_loop: Callable[[], asyncio.AbstractEventLoop], work: Any) -> Any:
    """As `asyncio.run`: in the end, all tasks are cancelled in one sweep, and the loop is closed."""
    loop = new_loop()
    try:
        return loop.run_until_complete(work)
    finally:
        tasks = asyncio.all_tasks(loop)
        for task in tasks:
            task.cancel()
        loop.run_until_complete(ended(tasks))
        loop.run_until_complete(loop.shutdown_asyncgens())
        close(loop)


async def ended(tasks: Iterable[asyncio.Task[Any]]) -> None:
    await asyncio.gather(*tasks, return_exceptions=True)


def close(loop: asyncio.AbstractEventLoop) -> None:
    """Python warns of the connection that a Queue without `close` leaves, and rightly so.

    An error instead of a warning would keep uvloop from closing it, and `loop.close` from returning.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        loop.close()
        gc.collect()


async def use(queue: Queue) -> None:
    async with queue.slot("line", max_concurrent=2, timeout=5):
        pass


async def hold(queue: Queue) -> None:
    async with queue.slot("line", max_concurrent=2):
        await asyncio.get_running_loop().create_future()


async def begin_to_hold(queue: Queue, count: int = 2) -> list[asyncio.Task[None]]:
    tasks = [asyncio.get_running_loop().create_task(hold(queue)) for _ in range(count)]

    async def holds() -> bool:
        return (await queue.stats("line")).in_use == count

    await wait_until(holds, "they hold")
    return tasks


def test_a_run_that_ends_without_close_gives_back_what_its_tasks_hold(
    own_redis: RedisServer, new_loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    """A module's own Queue, tasks inside, asyncio.run ends: the slots are free at once."""
    queue = queue_on(own_redis)
    run(new_loop, begin_to_hold(queue))
    asyncio.run(wait_until(lambda: not own_redis.client.exists(HOLDING), "the slots are free", 2))


def test_a_queue_is_used_in_several_loops_in_turn(
    own_redis: RedisServer, new_loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    """Each run connects anew, and the last one closes."""
    queue = queue_on(own_redis)
    for _ in range(3):
        run(new_loop, use(queue))
    run(new_loop, use_and_close(queue))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()
    asyncio.run(wait_until(lambda: own_redis.connections() == 0, "no connection is left", 3))


async def use_and_close(queue: Queue) -> None:
    await use(queue)
    await queue.close()


@pytest.mark.parametrize("state", ["never used", "idle", "holding", "open", "stopped with a holder"])
def test_a_queue_may_be_closed_in_another_loop(
    own_redis: RedisServer, new_loop: Callable[[], asyncio.AbstractEventLoop], state: str
) -> None:
    """Whether the first one is closed or only stopped: close returns soon, and raises nothing."""
    queue = queue_on(own_redis)
    loop = new_loop()
    if state == "idle":
        run(new_loop, use(queue))
    elif state == "holding":
        run(new_loop, begin_to_hold(queue))
    elif state == "open":
        loop.run_until_complete(use(queue))
    elif state == "stopped with a holder":
        tasks = loop.run_until_complete(begin_to_hold(queue))
    began = time.monotonic()
    run(new_loop, queue.close())
    assert time.monotonic() - began < 5.0
    if state == "stopped with a holder":
        for task in tasks:
            task.cancel()
        loop.run_until_complete(ended(tasks))
    loop.run_until_complete(asyncio.sleep(0))
    close(loop)
    with pytest.raises(BackendUnavailableError, match="closed"):
        run(new_loop, use(queue))


def test_a_queue_is_closed_from_the_main_thread_while_its_loop_runs_in_another(
    own_redis: RedisServer, new_loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    """It is closed in its own loop, so that holders are given back."""
    queue = queue_on(own_redis)
    loop = new_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        tasks = asyncio.run_coroutine_threadsafe(begin_to_hold(queue), loop).result(5)
        began = time.monotonic()
        asyncio.run(queue.close())
        assert time.monotonic() - began < 5.0
        assert not own_redis.client.exists(HOLDING)
        for task in tasks:
            loop.call_soon_threadsafe(task.cancel)
        asyncio.run_coroutine_threadsafe(asyncio.wait(tasks), loop).result(5)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def test_two_loops_at_once_are_refused(
    own_redis: RedisServer, new_loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    """An immediate, clear error, whether the backend or the Queue detects it."""
    queue = queue_on(own_redis)
    errors: list[BaseException] = []

    async def here() -> None:
        tasks = await begin_to_hold(queue, 1)

        def there() -> None:
            for work in (use(queue), queue.stats("line")):
                try:
                    run(new_loop, work)
                except RuntimeError as error:
                    errors.append(error)

        await asyncio.to_thread(there)
        for task in tasks:
            task.cancel()
        await queue.close()

    run(new_loop, here())
    assert len(errors) == 2
    assert all("loop" in str(error) for error in errors)


async def test_forgotten_queues_leave_no_connection_and_no_task(own_redis: RedisServer) -> None:
    """A notebook cell that creates a Queue, run repeatedly."""
    before = asyncio.all_tasks()
    for _ in range(10):
        queue = queue_on(own_redis)
        await use(queue)
    del queue
    gc.collect()
    await wait_until(lambda: own_redis.connections() == 0, "no connection is left")
    await wait_until(lambda: asyncio.all_tasks() <= before, "no task is left")


async def test_a_queue_that_is_only_used_by_a_task_is_not_forgotten(own_redis: RedisServer) -> None:
    """A call in it keeps it alive: heartbeats continue, and its slot stays."""
    task = asyncio.create_task(_hold_a_queue_of_its_own(own_redis))
    await wait_until(lambda: own_redis.client.exists(HOLDING), "it holds")
    gc.collect()
    await asyncio.sleep(1.5)  # that it is longer than a lease is the subject
    assert own_redis.client.zcard(HOLDING) == 1
    assert not task.done()
    task.cancel()
    await asyncio.wait({task})
    assert task.cancelled()  # it still had its slot
    await wait_until(lambda: not own_redis.client.exists(HOLDING), "it has left")
    del task
    gc.collect()
    await wait_until(lambda: own_redis.connections() == 0, "and then it is forgotten")


async def _hold_a_queue_of_its_own(server: RedisServer) -> None:
    async with queue_on(server, lease=1.0, operation_timeout=1.0).slot("line") as slot:
        try:
            await asyncio.Event().wait()
        finally:
            assert not slot.lost


# Forks


def _in_child(work: Callable[[], object]) -> int:
    """The exit code of a forked child: 0 if `work` returns."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        except RuntimeError as error:
            code = 2 if "fork" in str(error) else 3
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _id_in_child(queue: Queue, work: Callable[[], object]) -> str:
    """The instance_id of a forked child after `work`."""
    read, write = os.pipe()

    def tell() -> None:
        work()
        os.write(write, queue.instance_id.encode())

    assert _in_child(tell) == 0
    with os.fdopen(read) as reading:
        os.close(write)
        return reading.read()


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # Python's, if there are threads
def test_a_backend_made_before_a_fork_and_not_used_works_in_each_process(
    own_redis: RedisServer, new_loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    """As with `gunicorn --preload`: each process is an instance of its own, with its own id."""
    queue = queue_on(own_redis)
    ids = [queue.instance_id]
    ids += [_id_in_child(queue, lambda: run(new_loop, use_and_close(queue))) for _ in range(2)]
    run(new_loop, use_and_close(queue))
    assert len(set(ids)) == 3


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("used", [False, True])
def test_a_memory_backend_made_before_a_fork_is_another_instance_in_each_process(
    new_loop: Callable[[], asyncio.AbstractEventLoop], used: bool
) -> None:
    queue = Queue(telemetry=Telemetry(registry=CollectorRegistry()))
    if used:
        run(new_loop, use(queue))
    ids = [queue.instance_id]
    ids += [_id_in_child(queue, lambda: run(new_loop, use(queue))) for _ in range(2)]
    if not used:
        ids.append(_id_in_child(queue, lambda: None))
    run(new_loop, use(queue))
    assert queue.instance_id == ids[0]
    assert len(set(ids)) == len(ids)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_backend_used_before_a_fork_is_refused_in_the_child(
    own_redis: RedisServer, new_loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    """Parent and child would be one instance, whose tickets are the same: both would hold one slot."""
    queue = queue_on(own_redis)
    run(new_loop, use(queue))
    assert _in_child(lambda: run(new_loop, use(queue))) == 2
    run(new_loop, use_and_close(queue))


# Threads


async def test_a_thread_may_ask_whether_the_slot_is_lost(own_redis: RedisServer) -> None:
    """During other calls: no error, no wrong answer, and no change."""
    queue = queue_on(own_redis)
    answers: list[bool] = []
    errors: list[BaseException] = []
    go_on = True
    async with queue.slot("line", max_concurrent=5) as slot:

        def ask() -> None:
            try:
                while go_on:
                    answers.append(slot.lost)
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=ask)
        thread.start()
        await asyncio.gather(*(use_five(queue) for _ in range(500)))
        go_on = False
        await asyncio.to_thread(thread.join)
    await queue.close()
    assert errors == []
    assert answers
    assert not any(answers)


async def use_five(queue: Queue) -> None:
    async with queue.slot("line", max_concurrent=5):
        pass


async def test_a_thread_sees_that_the_lease_has_run_out_while_the_loop_is_blocked(
    own_redis: RedisServer,
) -> None:
    """No callback of the loop is needed for that."""
    queue = queue_on(own_redis, lease=0.5)
    async with queue.slot("line") as slot:
        seen: list[tuple[float, bool]] = []

        def ask() -> None:
            began = time.monotonic()
            while time.monotonic() - began < 1.0:
                seen.append((time.monotonic() - began, slot.lost))
                time.sleep(0.01)  # how often it asks

        thread = threading.Thread(target=ask)
        thread.start()
        time.sleep(1.1)  # noqa: ASYNC251 - that the loop stands still is the subject
        thread.join()
        assert not seen[0][1]
        assert seen[-1][1]
        assert next(at for at, lost in seen if lost) < 0.9  # while the loop is blocked
        assert slot.lost
    await queue.close()
