"""The token of a place, the estimate of a wait, and what a watch shows of it."""

from __future__ import annotations

import pytest

from genesis.backends.estimate import FEWEST_HOLDS, RECENT_HOLDS, HoldMean, expected_wait
from genesis.backends.places import PlaceToken, decode, encode
from genesis.backends.protocol import WaitStatus
from genesis.queue.watch import _steady


@pytest.mark.parametrize("queue_id", ["sales", "with a space", "☎️ 📞", "nul\0", "ж" * 8_000])
@pytest.mark.parametrize("place", [0.1 + 0.2, -86_400.0, 1.7e9 + 1e-7, 5])
def test_a_token_comes_back_as_it_was(queue_id: str, place: float) -> None:
    """To the last bit of the place, and in characters that fit anywhere."""
    token = encode(queue_id, "host-7:42", place)
    assert token.isalnum()
    assert decode(token) == PlaceToken(queue_id, "host-7:42", place)


@pytest.mark.parametrize("token", ["", "call", "é", "00", "312031", encode("q", "1", 1.0)[:-2] + "ff"])
def test_anything_else_is_no_token(token: str) -> None:
    with pytest.raises(ValueError, match="place token"):
        decode(token)


@pytest.mark.parametrize("text", ["1 nan 7 q", "1 inf 7 q", "2 1.0 7 q", "1 1.0  q", "1 1.0 7 "])
def test_a_token_is_checked_in_every_part(text: str) -> None:
    with pytest.raises(ValueError, match="place token"):
        decode(text.encode().hex())


def test_the_mean_hold_is_exact_at_first_and_follows_the_recent_ones() -> None:
    holds = HoldMean()
    for count in range(1, FEWEST_HOLDS + 1):
        assert holds.value is None
        holds.add(float(count))
    assert holds.value == pytest.approx((FEWEST_HOLDS + 1) / 2)
    for _ in range(10 * RECENT_HOLDS):
        holds.add(100.0)
    assert holds.count == RECENT_HOLDS
    assert holds.value == pytest.approx(100.0, rel=0.001)


def test_the_expected_wait_is_none_while_too_little_is_known() -> None:
    assert expected_wait(3, 2, None) is None
    assert expected_wait(3, 0, 10.0) is None
    assert expected_wait(3, 2, 10.0) == 15.0
    assert expected_wait(3, 2, 0.0) == 0.0


@pytest.mark.parametrize(
    ("position", "expected", "shown"),
    [
        (5, 100.0, 100.0),
        (5, 104.0, 100.0),  # a hold that was a little longer than the mean
        (5, 112.0, 112.0),  # the limit was lowered, or holds are longer now
        (6, 104.0, 104.0),  # a head start before it
        (4, 80.0, 80.0),
        (5, None, None),
    ],
)
def test_an_expected_wait_grows_only_with_new_evidence(
    position: int, expected: float | None, shown: float | None
) -> None:
    last = WaitStatus(5, 9, 30.0, 100.0)
    assert _steady(last, WaitStatus(position, 9, 60.0, expected)) == shown
