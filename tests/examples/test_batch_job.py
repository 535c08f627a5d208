"""`examples/batch_job.py`: what its README shows does not depend on how the machine is doing."""

from __future__ import annotations

import asyncio

import pytest

from examples import batch_job
from tests.support.waiting import quiesce


async def test_the_user_is_next_after_those_that_are_under_way(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Documents that end apart from each other, as on a busy machine, let nobody else in earlier."""
    one_at_a_time = asyncio.Lock()  # it is fair: they end in the order in which they began

    async def convert(document: str) -> str:
        async with one_at_a_time:
            await quiesce()
        return document.replace(".docx", ".pdf")

    monkeypatch.setattr(batch_job, "convert", convert)
    await batch_job.main("", 30)
    assert capsys.readouterr().out.endswith("31 documents; urgent.pdf was number 7\n")
