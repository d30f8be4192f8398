"""Changes that share a commit share a row of the ledger; and what a process has committed is not checked twice."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from broker.core.errors import Unavailable, WrongState
from broker.core.kinds import SecretVersionState
from broker.core.model import Key, Lease, Receipt, SecretVersion, Session
from broker.store.authentic import COMMITTED, MAX_REMEMBERED, Rows
from broker.store.config import StoreConfig
from broker.store.sql import SqlStore
from tests.contracts.store.samples import ROW_KEY, T0, config, entry, key, lease, opened, put, session
from tests.servers.dba import Dba

PATIENT = 5.0


class Counted(Rows):
    """Counts the MACs that are compared."""

    def __init__(self) -> None:
        super().__init__(ROW_KEY)
        self.compared = 0

    def genuine(self, kind: type[Any], row: Any) -> bool:
        self.compared += 1
        return super().genuine(kind, row)


@pytest.fixture
def place(tmp_path: Path) -> StoreConfig:
    found = config(f"sqlite:///{tmp_path}/store/broker.db", tmp_path)
    SqlStore.migrate(found)
    return found


@pytest.fixture
def store(place: StoreConfig) -> Iterator[SqlStore]:
    with opened(place) as found:
        yield found


def cells(rows: Rows, record: Any) -> tuple[Any, ...]:
    return tuple(rows.row(record).values())


def in_one_commit(store: SqlStore, *acts: Callable[[], object]) -> None:
    """Begin them while a first change has the turn, so that all of them join its commit."""
    waiting = store._database._group  # type: ignore[attr-defined]  # the tests' database is SQLite
    with ThreadPoolExecutor(len(acts)) as pool:
        with store.write(entry("first")) as write:
            write.add(key("first"))
            ends = [pool.submit(act) for act in acts]
            deadline = time.monotonic() + PATIENT
            while waiting._waiting < len(acts):
                assert time.monotonic() < deadline
                time.sleep(0.0005)
        for end in ends:
            assert end.result(5) is None


def marks(place: StoreConfig) -> list[str]:
    lines = [line for path in sorted(place.journal.glob("*.jsonl")) for line in path.read_text().splitlines()]
    return [facts["ledger"] for facts in (json.loads(line).get("facts", {}) for line in lines) if "ledger" in facts]


def test_changes_that_share_a_commit_are_one_change_of_one_slot(place: StoreConfig, store: SqlStore) -> None:
    in_one_commit(store, lambda: put(store, key("one")), lambda: put(store, key("two")))
    (slot,) = Dba(place).rows("ledger")
    assert (slot["slot"], slot["changes"]) == (0, 1)
    told = marks(place)
    assert (len(told), len(set(told))) == (3, 1)
    assert store.inspect() == []


def test_S_01_rows_that_were_changed_twice_in_a_commit_are_summed_up_once(place: StoreConfig) -> None:
    with opened(place) as store:

        def renew() -> None:
            with store.write(entry()) as write:
                first = write.get(Key, "first")
                assert first is not None
                write.replace(first, replace(first, owner="operator/bob"))

        in_one_commit(store, renew, renew)
        assert store.inspect() == []
    with opened(place) as store:
        assert store.findings == []
        assert (store.get(Key, "first") or key()).revision == 3


def test_a_committed_row_is_not_checked_again_at_its_next_read_only(store: SqlStore) -> None:
    rows = store._rows = store._answers._rows = Counted()
    put(store, session(), lease())
    assert store.get(Session, "s") == session()
    assert rows.compared == 0
    assert store.get(Lease, "l") == lease()
    assert store.get(Lease, "l") == lease()
    assert rows.compared == 1


def test_S_01_a_committed_row_vouches_for_no_other(place: StoreConfig, store: SqlStore) -> None:
    put(store, session())
    dba = Dba(place)
    (row,) = dba.rows("sessions")
    dba.put("sessions", {**row, "principal": "pipeline/other"})
    with pytest.raises(WrongState) as refused:
        store.get(Session, "s")
    assert refused.value.reason == "ROW_FORGED"


def failing(store: SqlStore, fail: Callable[[], object]) -> None:
    with store.write(entry()) as write:
        write.add(session())
        fail()


def test_S_01_what_was_not_committed_is_not_vouched_for(store: SqlStore) -> None:
    with pytest.raises(ValueError, match="invalid literal"):
        failing(store, lambda: int("x"))
    store.finish()  # from here on the journal takes no entries
    with pytest.raises(Unavailable):
        put(store, session())
    assert not store._rows._committed


def test_S_01_what_may_not_have_been_committed_is_not_vouched_for(store: SqlStore) -> None:
    with store._database.transaction() as connection:
        writer: Any = connection.connection.driver_connection
    with pytest.raises(Unavailable, match="may or may not"):
        failing(store, lambda: writer.set_authorizer(refuse_commit))
    writer.set_authorizer(None)
    assert not store._rows._committed


def refuse_commit(action: int, *names: str | None) -> int:
    return sqlite3.SQLITE_DENY if action == sqlite3.SQLITE_TRANSACTION and names[0] == "COMMIT" else sqlite3.SQLITE_OK


def test_S_01_known_is_genuine_for_all_but_the_very_row_and_once() -> None:
    rows = Counted()
    row = cells(rows, lease())
    rows.committed([(Lease, row)])
    assert rows.known(Lease, row)
    assert rows.compared == 0
    assert rows.known(Lease, row)
    assert rows.compared == 1
    for other in (
        (*row[:-1], None),
        (*row[:-1], [1]),
        ("x", *row[1:]),
        tuple(float(cell) if type(cell) is int else cell for cell in row),
        tuple(bool(cell) if cell in (0, 1) else cell for cell in row),
    ):
        rows.committed([(Lease, row)])
        assert not rows.known(Lease, other)


def test_committed_rows_are_few_and_small() -> None:
    rows = Rows(ROW_KEY)
    rows.committed((Lease, (number.to_bytes(16, "big"),)) for number in range(COMMITTED + 10))
    assert len(rows._committed) == COMMITTED
    large = Rows(ROW_KEY)
    large.committed([(SecretVersion, cells(large, secret_version(b"x" * (MAX_REMEMBERED + 1))))])
    large.committed([(Receipt, (b"m" * 16,))])
    assert not large._committed


def secret_version(sealed: bytes) -> SecretVersion:
    return SecretVersion(
        secret="a", number=1, state=SecretVersionState.ENABLED, fields=("f",), root=1, data_key=b"k", sealed=sealed,
        author="operator/alice", created_at=T0,
    )  # fmt: skip
