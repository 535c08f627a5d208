"""Tests of `Queue` beyond the contract."""

import pytest

pytest.register_assert_rewrite("tests.queue.line_machine")  # an assertion shows its values
