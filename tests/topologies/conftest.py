"""Instances on Sentinels and on Clusters, and what happens to them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest

from tests.support.instances import Instances
from tests.support.topology import Cluster, SentinelTrio


@pytest.fixture
async def instances() -> AsyncIterator[Instances]:
    made = Instances()
    yield made
    for queue in made.queues:
        await asyncio.wait_for(queue.close(), 20)


@pytest.fixture
def trio() -> Iterator[SentinelTrio]:
    trio = SentinelTrio()
    yield trio
    trio.close()


@pytest.fixture
def own_cluster() -> Iterator[Cluster]:
    """A cluster of this test's own, with a replica of every master."""
    cluster = Cluster(1)
    yield cluster
    cluster.close()
