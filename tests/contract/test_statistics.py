"""The mean hold and the oldest hold."""

from __future__ import annotations

from genesis import Queue
from tests.support.line import Line
from tests.support.waiting import wait_until


async def test_the_mean_hold_is_known_after_ten(queue: Queue) -> None:
    """It is None after nine holds, and known after ten, also while the queue is empty."""
    for _ in range(9):
        async with queue.slot("sales"):
            pass
    await queue._backend.flush()
    assert (await queue.stats("sales")).mean_hold is None
    async with queue.slot("sales"):
        pass
    await queue._backend.flush()
    mean = (await queue.stats("sales")).mean_hold
    assert mean is not None
    assert 0 <= mean < 1


async def test_the_mean_hold_of_a_busy_queue_outlasts_a_thousand_other_queues(queue: Queue) -> None:
    """Whether the queue is in use all the time, as `sales`, or now and then, as `support`."""
    for _ in range(10):
        async with queue.slot("sales"), queue.slot("support"):
            pass
    async with queue.slot("sales"):
        for number in range(1_001):
            async with queue.slot(f"tenant-{number}"):
                pass
            if number % 100 == 0:
                async with queue.slot("support"):
                    pass
    await queue._backend.flush()
    assert (await queue.stats("sales")).mean_hold is not None
    assert (await queue.stats("support")).mean_hold is not None


async def test_the_oldest_hold_is_known(line: Line) -> None:
    """The seconds since the first of the holders was granted its slot; 0.0 without holders."""
    assert (await line.queue.stats("sales")).oldest_hold == 0.0
    await line.call("first", max_concurrent=2)

    async def is_old() -> bool:
        return (await line.queue.stats("sales")).oldest_hold > 0.02

    await wait_until(is_old, "it has held for 20 ms")
    await line.call("second", max_concurrent=2)
    assert 0.02 < (await line.queue.stats("sales")).oldest_hold < 60
    await line.grants()
    assert (await line.queue.stats("sales")).oldest_hold == 0.0
