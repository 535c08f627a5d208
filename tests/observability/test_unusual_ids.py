"""Text from outside: no id breaks a label, a log line or a span."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from genesis import Queue
from genesis.exceptions import QueueTimeoutError
from genesis.observability import Telemetry
from genesis.queue import RedisBackend
from tests.conftest import LEASE, Spans
from tests.support.ids import UNUSUAL_IDS
from tests.support.redis_server import RedisServer


@pytest.fixture
async def noisy(redis_server: RedisServer, telemetry: Telemetry) -> AsyncIterator[Queue]:
    async with Queue(RedisBackend(redis_server.url, lease=LEASE), telemetry=telemetry) as queue:
        yield queue


async def test_no_id_breaks_a_label_a_line_or_a_span(
    noisy: Queue,
    registry: CollectorRegistry,
    spans: Spans,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Every unusual id comes out of metrics, logs and spans as it went in, on a line of its own."""
    caplog.set_level(logging.DEBUG)
    for name in UNUSUAL_IDS:
        async with noisy.slot(name, item_id=name, max_concurrent=1):
            with pytest.raises(QueueTimeoutError):
                async with noisy.slot(name, item_id=name, timeout=0):
                    pass
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("genesis")]
    assert len(lines) >= 4 * len(UNUSUAL_IDS)
    assert not [line for line in lines if not line.isprintable()]
    records = [vars(record) for record in caplog.records]
    seen = {(fields.get("queue_id"), fields.get("item_id")) for fields in records}
    assert {(name, name) for name in UNUSUAL_IDS} <= seen
    labels = {
        sample.labels["queue"]
        for family in text_string_to_metric_families(generate_latest(registry).decode())
        for sample in family.samples
        if "queue" in sample.labels
    }
    assert {name for name in UNUSUAL_IDS if len(name) <= 120} <= labels
    assert all(len(label) <= 120 for label in labels)
    attributes = [json.loads(span.to_json())["attributes"] for span in spans.get_finished_spans()]
    assert set(UNUSUAL_IDS) <= {fields.get("genesis.queue_id") for fields in attributes}


async def test_a_label_that_no_encoding_has_breaks_no_scrape(registry: CollectorRegistry) -> None:
    """`queue_label` might return a lone surrogate, as in a file name that is not UTF-8."""
    queue = Queue(telemetry=Telemetry(registry, queue_label=lambda queue_id: f"{queue_id}\udcff"))
    async with queue.slot("sales"):
        text = generate_latest(registry).decode()
    assert 'genesis_queue_holding{queue="sales\\\\udcff"} 1.0' in text.splitlines()
