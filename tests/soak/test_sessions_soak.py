"""The long forms of the races about sessions on real databases."""

from __future__ import annotations

import pytest

from tests.live.sessions.test_store import bench, ends_revoked, one_opens, place
from tests.unit.sessions.bench import Bench

__all__ = ["bench", "place"]  # fixtures


@pytest.mark.soak
def test_AN_15_TL_13_one_of_fifty_opens_each_of_two_hundred_sessions(bench: Bench) -> None:
    one_opens(bench, 200)


@pytest.mark.soak
def test_TL_05_renewing_fetching_and_revoking_at_once_ends_revoked_two_hundred_times(bench: Bench) -> None:
    ends_revoked(bench, 200)
