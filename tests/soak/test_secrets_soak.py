"""The long forms of the races about secrets on real databases."""

from __future__ import annotations

import pytest

from tests.fakes.secrets import SecretsHouse
from tests.live.secrets.test_store import house, one_wins, rotated_under_use, url

__all__ = ["house", "url"]  # fixtures


@pytest.mark.soak
def test_of_fifty_writers_exactly_one_wins_each_of_two_hundred_rounds(house: SecretsHouse) -> None:
    one_wins(house, 200)


@pytest.mark.soak
def test_P23_no_read_and_no_write_fails_while_root_keys_are_rotated_forty_times(house: SecretsHouse) -> None:
    rotated_under_use(house, 40)
