"""The DBA: every table, every column, altered, copied, put back, removed and put in, at once and before the next start.

Nothing that was so changed is ever read as a record, and each change is named by an inspection (S-01 of the threat
model). A run attacks some kinds of records on either database, as its seed chooses, and `make soak` all of them. What
the broker does with the refusals, and the HSM behind it, is in ``tests.live.broker.test_dba``.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from broker.core.certified import Certified
from broker.core.errors import WrongState
from broker.core.findings import DriftReport
from broker.core.model import (
    AuditHead,
    Key,
    KeyUsed,
    Lease,
    Operator,
    Receipt,
    Record,
    Secret,
    SecretRead,
    TrustRule,
    UsedToken,
)
from broker.core.records import RECORDS, key_of
from broker.store.config import StoreConfig
from broker.store.rows import FIELDS, NAMES
from broker.store.sql import SqlStore
from tests.contracts.store.places import database, place
from tests.contracts.store.samples import (
    ROW_KEY,
    T0,
    entry,
    head,
    key,
    lease,
    now,
    opened,
    put,
    rule,
    sample,
    samples,
    session,
)
from tests.fakes.refusals import refused
from tests.servers.dba import Dba, Row

ROWS = list({type(record): record for record in reversed(samples())}.values())
"""One record of each kind."""

UNNAMED = (AuditHead, Certified, DriftReport, KeyUsed, Lease, Receipt, SecretRead)
"""Kinds whose older rows open nothing; the journal does not name them, an inspection tells of their table."""

NAMED = [record for record in ROWS if not isinstance(record, UNNAMED)]

__all__ = ["database", "place"]


def kind_name(record: Record) -> str:
    return type(record).__name__


def other(cell: Any) -> Any:
    """Another cell of the same type."""
    if isinstance(cell, str):
        return cell + "x" if cell else "operator/mallory"
    return cell + 1 if isinstance(cell, int) else bytes(cell) + b"x"


def told(store: SqlStore, record: Record) -> list[str]:
    return [one.how for one in store.inspect() if one.table == NAMES[type(record)]]


def row_of(dba: Dba, record: Record) -> Row:
    names = RECORDS[type(record)].key
    (found,) = [row for row in dba.rows(NAMES[type(record)]) if tuple(row[name] for name in names) == key_of(record)]
    return found


def renewed(store: SqlStore, record: Record) -> Record:
    """The same record, changed once."""
    with store.write(entry()) as write:
        stored = write.get(type(record), *key_of(record))
        assert stored is not None
        return write.replace(stored, stored)


@pytest.mark.sampled(5, each="place")
@pytest.mark.parametrize("record", ROWS, ids=kind_name)
def test_S_01_no_altered_cell_is_read_and_each_is_told(place: StoreConfig, record: Record) -> None:
    dba, table = Dba(place), NAMES[type(record)]
    with opened(place) as store:
        put(store, record)
        good = row_of(dba, record)
        for field in FIELDS[type(record)]:
            if field.name in RECORDS[type(record)].key:
                continue
            cell = good[field.name]
            dba.put(
                table,
                {
                    **good,
                    field.name: b"" if cell is None and field.sql is bytes else 1 if cell is None else other(cell),
                },
            )
            refused(lambda: store.get(type(record), *key_of(record)), WrongState, "ROW_FORGED")
            refused(lambda: store.page(type(record), limit=9), WrongState, "ROW_FORGED")
            assert store.page(type(record), limit=9, sound_only=True) == []
        assert told(store, record) == ["altered"]
        for mac in (None, b"", b"\0" * 16, good["mac"][:-1], good["mac"] + b"\0"):
            dba.put(table, {**good, "mac": mac})
            refused(lambda: store.get(type(record), *key_of(record)), WrongState, "ROW_FORGED")
        dba.put(table, good)
        assert store.get(type(record), *key_of(record)) == record
        assert told(store, record) == []


@pytest.mark.sampled(5, each="place")
@pytest.mark.parametrize("record", ROWS, ids=kind_name)
def test_S_01_a_row_under_another_primary_key_is_not_read(place: StoreConfig, record: Record) -> None:
    dba, table = Dba(place), NAMES[type(record)]
    with opened(place) as store:
        put(store, record)
        good = row_of(dba, record)
        for name in RECORDS[type(record)].key:
            moved = {**good, name: other(good[name])}
            dba.insert(table, moved)
            place_of = tuple(moved[one] for one in RECORDS[type(record)].key)
            refused(lambda at=place_of: store.get(type(record), *at), WrongState, "ROW_FORGED")  # type: ignore[misc]
            assert "altered" in told(store, record)
            dba.delete(table, moved)
        assert store.get(type(record), *key_of(record)) == record


def test_S_01_a_row_holds_up_no_other(place: StoreConfig) -> None:
    dba = Dba(place)
    with opened(place) as store:
        put(store, key("bad"), key("good"))
        dba.run("UPDATE keys SET owner = 'operator/mallory' WHERE name = 'bad'")
        assert store.get(Key, "good") == key("good")
        assert store.page(Key, limit=9, sound_only=True) == [key("good")]
        put(store, key("new"))
    with opened(place) as store:
        assert [(one.table, one.name, one.how) for one in store.findings] == [("keys", "bad", "altered")]
        assert store.get(Key, "good") == key("good")
        refused(lambda: store.get(Key, "bad"), WrongState, "ROW_FORGED")


@pytest.mark.sampled(4, each="place")
@pytest.mark.parametrize("record", NAMED, ids=kind_name)
def test_S_01_a_row_that_is_put_back_is_refused_at_once_and_after_a_restart(place: StoreConfig, record: Record) -> None:
    dba, table = Dba(place), NAMES[type(record)]
    with opened(place) as store:
        put(store, record)
        old = row_of(dba, record)
        renewed(store, record)
        new = row_of(dba, record)
        dba.put(table, old)
        refused(lambda: store.get(type(record), *key_of(record)), WrongState, "ROW_FORGED")
        refused(lambda: renewed(store, record), WrongState, "ROW_FORGED")
        assert "put back" in told(store, record)
    with opened(place) as store:
        assert [one.how for one in store.findings] == ["put back"]
        refused(lambda: store.get(type(record), *key_of(record)), WrongState, "ROW_FORGED")
        dba.put(table, new)
        assert store.get(type(record), *key_of(record)) is not None
        assert told(store, record) == []
    with opened(place) as store:
        assert store.findings == []


@pytest.mark.sampled(4, each="place")
@pytest.mark.parametrize("record", NAMED, ids=kind_name)
def test_S_01_a_row_that_is_removed_is_told_at_once_and_after_a_restart(place: StoreConfig, record: Record) -> None:
    dba, table = Dba(place), NAMES[type(record)]
    with opened(place) as store:
        put(store, record)
        good = row_of(dba, record)
        dba.delete(table, good)
        assert told(store, record) == ["removed"]
        refused(lambda: store.get(type(record), *key_of(record)), WrongState, "ROW_FORGED")
    with opened(place) as store:
        assert [one.how for one in store.findings] == ["removed"]
        refused(lambda: store.get(type(record), *key_of(record)), WrongState, "ROW_FORGED")
        dba.insert(table, good)
        assert told(store, record) == []


@pytest.mark.sampled(4, each="place")
@pytest.mark.parametrize("record", NAMED, ids=kind_name)
def test_S_01_the_name_of_a_row_that_was_removed_is_not_free(place: StoreConfig, record: Record) -> None:
    """An identity token whose row was removed opens no second session: nobody reads that row before adding it."""
    dba, table = Dba(place), NAMES[type(record)]
    with opened(place) as store:
        put(store, record)
        good = row_of(dba, record)
        dba.delete(table, good)
        if not isinstance(record, UsedToken):
            assert told(store, record) == ["removed"]
        refused(lambda: put(store, record), WrongState, "ROW_FORGED")
        assert dba.rows(table) == []
        dba.insert(table, good)
        assert told(store, record) == []


@pytest.mark.sampled(4, each="place")
@pytest.mark.parametrize("record", NAMED, ids=kind_name)
def test_S_01_a_row_that_was_deleted_does_not_come_back(place: StoreConfig, record: Record) -> None:
    dba, table = Dba(place), NAMES[type(record)]
    with opened(place) as store:
        put(store, record)
        good = row_of(dba, record)
        with store.write(entry()) as write:
            write.delete(record)
        assert store.get(type(record), *key_of(record)) is None
        dba.insert(table, good)
        refused(lambda: store.get(type(record), *key_of(record)), WrongState, "ROW_FORGED")
        assert told(store, record) == ["put in again"]
    with opened(place) as store:
        assert [one.how for one in store.findings] == ["put in again"]
        refused(lambda: store.get(type(record), *key_of(record)), WrongState, "ROW_FORGED")


@pytest.mark.parametrize(
    "record", [one for one in ROWS if isinstance(one, UNNAMED) and not isinstance(one, AuditHead)], ids=kind_name
)
def test_S_10_of_rows_that_open_nothing_an_inspection_tells_the_table(place: StoreConfig, record: Record) -> None:
    dba, table = Dba(place), NAMES[type(record)]
    with opened(place) as store:
        put(store, record)
        old = row_of(dba, record)
        renewed(store, record)
        new = row_of(dba, record)
        dba.put(table, old)
        assert told(store, record) == ["not as brokers left it"]
        dba.delete(table, new)
        assert told(store, record) == ["not as brokers left it"]
        dba.put(table, new)
        assert told(store, record) == []


def test_S_10_a_start_is_refused_when_nobody_can_say_which_row_was_put_back(place: StoreConfig) -> None:
    dba = Dba(place)
    with opened(place) as store:
        put(store, lease())
        old = row_of(dba, lease())
        renewed(store, lease())
    dba.put("leases", old)
    with pytest.raises(WrongState) as found, opened(place):
        pass
    assert found.value.reason == "STORE_ALTERED"
    assert "leases" in found.value.message


@pytest.mark.parametrize("what", ["removed", "put back", "altered"])
def test_S_10_the_ledger_cannot_be_put_back_with_the_rows(place: StoreConfig, what: str) -> None:
    """Consistent in itself: all tables as they once were, but for the signed heads."""
    dba = Dba(place)
    with opened(place) as store:
        put(store, key())
        rows, ledger = dba.rows("keys"), dba.rows("ledger")
        renewed(store, key())
        renewed(store, key())
        dba.put("keys", rows[0])
        for row in dba.rows("ledger"):
            dba.delete("ledger", row)
        for row in ledger if what != "removed" else []:
            dba.insert("ledger", row if what == "put back" else {**row, "changes": 3})
        refused(lambda: store.get(Key, "payments"), WrongState, "ROW_FORGED")
        refused(lambda: renewed(store, key()), WrongState, "ROW_FORGED")
        if what != "altered":
            with pytest.raises(WrongState, match="older than this host's audit journal"):
                store.check()
    told = "vouched for by this broker's" if what == "altered" else "older than this host's audit journal"
    with pytest.raises(WrongState, match=told), opened(place):
        pass


def test_FT_01_a_crash_between_the_journal_and_the_commit_is_no_attack(place: StoreConfig) -> None:
    """The journal names a change that the database never got: what a kill at that moment leaves."""
    dba = Dba(place)
    with opened(place) as store:
        put(store, key())
        rows, ledger = dba.rows("keys"), dba.rows("ledger")
        renewed(store, key())
    dba.put("keys", rows[0])
    dba.put("ledger", ledger[0])
    with opened(place) as store:
        assert store.findings == []
        assert store.get(Key, "payments") == key()
        assert renewed(store, key()).revision == 2
    with opened(place) as store:
        assert store.findings == []


def test_A_08_a_mark_that_no_broker_made_keeps_no_broker_from_starting(place: StoreConfig) -> None:
    """Written by who can write into the journal's folder, and has read there whose ledger it is."""
    with opened(place) as store:
        put(store, key())
    (path,) = (path for path in place.journal.glob("*.jsonl") if b'"ledger":"' in path.read_bytes())
    (line,) = (line for line in path.read_bytes().splitlines(keepends=True) if b'"ledger":"' in line)
    owner, slot, counts, mac = json.loads(line)["facts"]["ledger"].split(":")
    further = f"{owner}:{slot}:{int(counts) + 7}"
    for number, mark in enumerate([f"{further}:{mac}", f"{further}:", further]):
        made = line.replace(f"{owner}:{slot}:{counts}:{mac}".encode(), mark.encode())
        assert made != line
        (place.journal / f"broker-2999010{number}T000000000000Z-0123456789abcdef.000001.jsonl").write_bytes(made)
    with opened(place) as store:
        store.check()
        assert store.findings == []
        assert store.get(Key, "payments") == key()


def test_S_01_many_changes_and_restarts_leave_nothing_to_be_told(place: StoreConfig) -> None:
    for start in range(3):
        with opened(place) as store:
            assert store.findings == []
            put(store, session(f"s{start}"), rule(f"r{start}"))
            with store.write(entry()) as write:
                write.add(*(lease(f"l{start}-{number}", session=f"s{start}") for number in range(7)))
            with store.write(entry()) as write:
                assert write.end_leases(f"s{start}", lease().state.REVOKED, T0) == 7
            store.save_head(head(f"c{start}"))
            with store.write(entry()) as write:
                write.delete(rule(f"r{start}"))
            put(store, rule(f"r{start}", created_at=now()))
            assert store.inspect() == []


def test_S_10_who_accepts_a_changed_database_has_a_sound_one_again(place: StoreConfig) -> None:
    dba = Dba(place)
    with opened(place) as store:
        put(store, lease(), key())
        old, before = row_of(dba, lease()), dba.rows("keys")
        renewed(store, lease())
        renewed(store, key())
    dba.put("leases", old)
    dba.put("keys", before[0])
    store = SqlStore(place, ROW_KEY, now, accept_restored=True, passing=True)
    assert store.doubted
    store.make_good()
    with store.write(entry()):
        pass
    store.close()
    with opened(place) as store:
        assert store.findings == []
        assert store.get(Key, "payments") == key()
        assert renewed(store, key()).revision == 2
        assert store.inspect() == []


def test_ST_04_rows_from_before_there_were_macs_are_vouched_for_once(place: StoreConfig) -> None:
    dba = Dba(place)
    with opened(place) as store:
        put(store, *[one for one in samples() if not isinstance(one, AuditHead)])
    for name in NAMES.values():
        dba.run(f'UPDATE "{name}" SET mac = NULL')  # noqa: S608 (the tests' own)
    dba.run("DELETE FROM ledger")
    with pytest.raises(WrongState) as found:  # this host's journal knows better
        SqlStore(place, ROW_KEY, now, adopting=True)
    assert found.value.reason == "STORE_RESTORED"
    for path in place.journal.iterdir():
        path.unlink()
    for _ in range(2):
        store = SqlStore(place, ROW_KEY, now, role="init", passing=True, adopting=True)
        assert store.findings == []
        assert store.get(Operator, "name") == sample(Operator)
        store.close()
    dba.run("UPDATE operators SET groups = '[\"admins\"]'")
    store = SqlStore(place, ROW_KEY, now, role="init", passing=True, adopting=True)
    assert {one.how for one in store.findings} == {"altered"}
    store.close()


def test_S_01_a_copy_that_its_caller_has_worked_on_counts_by_its_revision(place: StoreConfig) -> None:
    """And the sums are of what was stored, not of the copy."""
    with opened(place) as store:
        put(store, key())
        with store.write(entry()) as write:
            write.replace(replace(key(), owner="operator/bob"), replace(key(), owner="operator/carol"))
        with pytest.raises(WrongState) as found, store.write(entry()) as write:
            write.replace(key(), key())
        assert found.value.reason == "CHANGED_MEANWHILE"
        assert store.inspect() == []
        with store.write(entry()) as write:
            write.delete(replace(key(), revision=2))
        assert store.inspect() == []


def test_kinds_that_the_tests_need() -> None:
    assert {type(one) for one in ROWS} == set(NAMES)
    assert {Secret, TrustRule} <= {type(one) for one in NAMED}
