"""Changes that share a commit share a row of the ledger; and what a process has committed is not checked twice."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from broker.core.errors import Unavailable, WrongState
from broker.core.kinds import SecretVersionState
from broker.core.model import Key, Lease, Receipt, SecretVersion, Session
from broker.store.authentic import MAX_REMEMBERED, Rows
from broker.store.committed import KEPT, Committed
from broker.store.config import StoreConfig
from broker.store.sql import SqlStore
from tests.contracts.store.samples import ROW_KEY, T0, entry, key, lease, opened, put, session
from tests.servers.dba import Dba
from tests.unit.store.test_group import added, pool, together
from tests.unit.store.test_sqlite import place, refuse_commit, writing_connection

__all__ = ["place", "pool"]


class Counted(Rows):
    """Counts the MACs that are compared."""

    def __init__(self) -> None:
        super().__init__(ROW_KEY)
        self.compared = 0

    def genuine(self, kind: type[Any], row: Any) -> bool:
        self.compared += 1
        return super().genuine(kind, row)


@pytest.fixture
def store(place: StoreConfig) -> Iterator[SqlStore]:
    with opened(place) as found:
        yield found


def cells(rows: Rows, record: Any) -> tuple[Any, ...]:
    return tuple(rows.row(record).values())


def vouched(store: SqlStore) -> int:
    """How many rows it will not check."""
    return len(store._rows._committed)  # noqa: SLF001 - what is not vouched for is only checked, which shows nowhere


def marks(place: StoreConfig) -> list[str]:
    lines = [line for path in sorted(place.journal.glob("*.jsonl")) for line in path.read_text().splitlines()]
    return [facts["ledger"] for facts in (json.loads(line).get("facts", {}) for line in lines) if "ledger" in facts]


def test_changes_that_share_a_commit_are_one_count_of_one_slot(
    place: StoreConfig, store: SqlStore, pool: ThreadPoolExecutor
) -> None:
    assert together(store, pool, added(store, "one"), added(store, "two")) == [None] * 3
    (slot,) = Dba(place).rows("ledger")
    assert (slot["slot"], slot["changes"]) == (0, 1)
    told = marks(place)
    assert (len(told), len(set(told))) == (3, 1)
    assert store.inspect() == []


def test_S_01_rows_that_were_changed_twice_in_a_commit_are_summed_up_once(
    place: StoreConfig, pool: ThreadPoolExecutor
) -> None:
    with opened(place) as store:

        def renew() -> None:
            with store.write(entry()) as write:
                first = write.get(Key, "first")
                assert first is not None
                write.replace(first, replace(first, owner="operator/bob"))

        assert together(store, pool, renew, renew) == [None] * 3
        assert store.inspect() == []
    with opened(place) as store:
        assert store.findings == []
        assert (store.get(Key, "first") or key()).revision == 3


def test_a_committed_row_waits_for_its_next_read(store: SqlStore) -> None:
    put(store, session(), lease())
    assert vouched(store) == 2
    for _ in range(2):
        assert store.get(Session, "s") == session()
        assert store.get(Lease, "l") == lease()
        assert vouched(store) == 0


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
    assert vouched(store) == 0


def test_S_01_what_may_not_have_been_committed_is_not_vouched_for(store: SqlStore) -> None:
    writer = writing_connection(store)
    with pytest.raises(Unavailable, match="may or may not"):
        failing(store, lambda: writer.set_authorizer(refuse_commit))
    writer.set_authorizer(None)
    assert vouched(store) == 0


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
    few = Committed()
    few.add((Lease, (number.to_bytes(16, "big"),)) for number in range(KEPT + 10))
    assert len(few) == KEPT
    rows = Counted()
    for kind, row in ((SecretVersion, cells(rows, secret_version())), (Receipt, cells(rows, receipt()))):
        rows.committed([(kind, row)])
        assert rows.known(kind, row)
    assert rows.compared == 2


def receipt() -> Receipt:
    return Receipt(principal="o", request_id="r", rpc="x", digest="00", resource="a", version=1, created_at=T0)


def secret_version() -> SecretVersion:
    return SecretVersion(
        secret="a", number=1, state=SecretVersionState.ENABLED, fields=("f",), root=1, data_key=b"k",
        sealed=b"x" * (MAX_REMEMBERED + 1), author="operator/alice", created_at=T0,
    )  # fmt: skip
