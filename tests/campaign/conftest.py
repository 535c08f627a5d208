"""The fixture that the tests of the checker share."""

from __future__ import annotations

import pytest

from tests.campaign.builder import HistoryBuilder


@pytest.fixture
def run() -> HistoryBuilder:
    return HistoryBuilder()
