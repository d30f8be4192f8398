"""What the inspector looks at, and that each finding is told once, for as long as it stands."""

from __future__ import annotations

from collections.abc import Collection

import pytest
from structlog.testing import capture_logs

from broker.core.entries import AuditEntry
from broker.core.ports import RowFinding
from broker.core.records import DECIDING
from broker.inspector import Inspector
from tests.contracts.store.samples import now
from tests.fakes.memory_store import MemoryStore

BOB = RowFinding("operators", "bob", "put back")
LEASES = RowFinding("leases", "", "not as brokers left it")


class Looked(MemoryStore):
    """A store in which somebody else has changed rows."""

    def __init__(self) -> None:
        super().__init__()
        self.wrong: list[RowFinding] = []
        self.asked: list[Collection[str]] = []
        self.told: list[str] = []

    def inspect(self, tables: Collection[str] = ()) -> list[RowFinding]:
        self.asked.append(tables)
        return [one for one in self.wrong if not tables or one.table in tables]

    def record(self, *entries: AuditEntry) -> None:
        self.told += [f"{entry.resource} {entry.facts['state']} {entry.reason}" for entry in entries]


@pytest.fixture
def store() -> Looked:
    return Looked()


@pytest.fixture
def inspector(store: Looked) -> Inspector:
    return Inspector(store, now)


def test_S_01_a_finding_is_told_once_and_again_when_it_comes_again(store: Looked, inspector: Inspector) -> None:
    store.wrong = [BOB]
    with capture_logs() as logged:
        inspector.look()
        inspector.look()
        assert store.told == ["row/operators/bob put back ROW_FORGED"]
        store.wrong = []
        inspector.look()
        store.wrong = [BOB]
        inspector.look()
    assert len(store.told) == 2
    assert [one["log_level"] for one in logged] == ["error", "error"]


def test_S_01_a_look_at_some_tables_forgets_nothing_of_the_others(store: Looked, inspector: Inspector) -> None:
    store.wrong = [LEASES, BOB]
    for tables in ((), DECIDING, (), DECIDING):
        inspector.look(tables)
    assert store.told == ["row/leases/* not as brokers left it ROW_FORGED", "row/operators/bob put back ROW_FORGED"]
    assert store.asked == [(), DECIDING, (), DECIDING]


class Unlucky(Looked):
    """Each look meets something else."""

    def __init__(self, *met: BaseException) -> None:
        super().__init__()
        self.met = list(met)

    def inspect(self, tables: Collection[str] = ()) -> list[RowFinding]:  # noqa: ARG002  whatever is asked
        raise self.met.pop(0)


def test_NT_14_a_look_that_breaks_is_logged_and_not_the_last() -> None:
    store = Unlucky(FileNotFoundError("a secret path"), BaseException("panic"), ValueError())
    inspector = Inspector(store, now)
    with capture_logs() as logs:
        for _ in range(3):
            inspector.look()
    assert [line["error"] for line in logs] == ["FileNotFoundError", "BaseException", "ValueError"]
    assert "a secret path" not in str(logs)
