"""The long form of the proof that two hosts of two workers are one broker."""

from __future__ import annotations

import pytest

from tests.live.broker.test_workers import House, house, one_winner

__all__ = ["house"]  # a fixture


@pytest.mark.soak
def test_two_hundred_rounds_have_one_winner_each(house: House) -> None:
    one_winner(house, 200)
