"""The long forms of the crash loop (FT-01) and of PostgreSQL's restarts (FT-04) under fetches."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.live.secrets.test_fetch_faults import ci, on_postgresql
from tests.servers.fetch_load import away_and_back, crash_rounds
from tests.servers.issuer import Issuer, issuing
from tests.servers.live import Live
from tests.servers.postgres import Postgres

__all__ = ["ci", "on_postgresql"]  # fixtures

RESTARTS = 100
"""Of each kind (P12)."""


@pytest.mark.soak
def test_FT_01_killed_fifty_times_under_fetches_it_keeps_every_promise(tmp_path: Path) -> None:
    with issuing(tmp_path / "issuer") as ci:
        broker = Live(tmp_path / "broker", "--allow-issuer", ci.host)
        try:
            broker.start()
            crash_rounds(broker, ci, 50)
        finally:
            broker.close()


@pytest.mark.soak
@pytest.mark.parametrize("how", ["fast", "immediate", "killed"])
def test_FT_04_postgresql_is_restarted_a_hundred_times(
    on_postgresql: Live, ci: Issuer, postgres: Postgres, how: str
) -> None:
    for _ in range(RESTARTS):
        away_and_back(
            on_postgresql, ci, postgres.kill if how == "killed" else lambda: postgres.stop(how), postgres.start
        )
