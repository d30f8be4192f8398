"""How long the store waits for what: one number, and what follows from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from psycopg.conninfo import conninfo_to_dict

from broker.loop import TICK
from broker.store.config import StoreConfig
from broker.store.postgresql import conninfo
from broker.store.waits import LONGEST, SHORTEST, USUAL, Waits


@pytest.mark.parametrize("patience", [SHORTEST, USUAL, LONGEST])
def test_who_waits_for_another_is_the_last_to_give_up(patience: float) -> None:
    waits = Waits(patience)
    in_order = [waits.turn, waits.lock, waits.statement, waits.server, waits.journal, patience, waits.together]
    assert in_order == sorted(set(in_order))


@pytest.mark.parametrize("patience", [SHORTEST, USUAL, LONGEST])
def test_a_process_that_works_is_never_taken_for_one_that_stands_still(patience: float) -> None:
    """Between two words of a leader are a tick and what a call waits; in a transaction, what the journal takes."""
    waits = Waits(patience)
    assert waits.silence >= 2 * TICK + waits.server
    assert waits.silence > waits.turn + waits.journal


def test_by_default_a_refusal_comes_within_a_second() -> None:
    place = StoreConfig(url="sqlite:////srv/broker.db", journal=Path("/srv/journal"))
    assert place.waits.journal < 1


def test_the_server_is_told() -> None:
    def told(**changes: Any) -> tuple[str, str]:
        place = StoreConfig(url="postgresql://broker@localhost/broker", journal=Path("/srv/journal"), **changes)
        found = conninfo_to_dict(conninfo(place))
        return str(found["options"]), str(found["tcp_user_timeout"])

    usual, patient = told(), told(patience_seconds=20)
    waits = ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout")
    for name, few, more in zip(waits, (700, 500, 5000), (14_000, 10_000, 100_000), strict=True):
        assert f"-c {name}={few} " in f"{usual[0]} "
        assert f"-c {name}={more} " in f"{patient[0]} "
    assert (usual[1], patient[1]) == ("5000", "100000")
