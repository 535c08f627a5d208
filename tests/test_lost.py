"""A slot that is lost is never silent, whoever notices it first."""

from __future__ import annotations

import asyncio

import pytest
from prometheus_client import CollectorRegistry

from genesis import Queue
from genesis.backends.protocol import Ticket
from genesis.observability import Telemetry, names
from genesis.queue import InMemoryBackend


class Forgetful(InMemoryBackend):
    """A user's own backend, whose leases lapse without an event."""

    def lapsed(self, ticket: Ticket) -> bool:
        return True


async def test_a_loss_that_only_the_slot_notices_is_counted(registry: CollectorRegistry) -> None:
    """slot.lost and the hold's outcome agree, also for a backend that reports nothing."""
    async with Queue(Forgetful(), telemetry=Telemetry(registry)) as queue:
        async with queue.slot("sales") as slot:
            pass
        assert slot.lost
    labels = {"queue": "sales", "outcome": "lost"}
    assert registry.get_sample_value(f"{names.HOLD_SECONDS}_count", labels) == 1


async def test_a_body_left_in_another_task_tells_no_error_of_its_context(
    telemetry: Telemetry, caplog: pytest.LogCaptureFixture
) -> None:
    """The context of the span belongs to the task that entered; another leaves it alone."""
    async with Queue(telemetry=telemetry) as queue:
        request = queue.slot("sales")
        await request.__aenter__()
        await asyncio.create_task(request.__aexit__(None, None, None))
    assert "Failed to detach" not in caplog.text
