"""The Store port's contract, everywhere: what is due, how many there are, entries that go together."""

from __future__ import annotations

from datetime import timedelta

import pytest

from broker.core import ports
from broker.core.entries import AuditEntry
from broker.core.errors import AlreadyExists
from broker.core.kinds import LeaseState, SessionState
from broker.core.model import Key, Lease, Receipt, Record, Session, UsedToken
from broker.core.ports import Store
from broker.store.config import StoreConfig
from tests.contracts.store.grounds import Ground, calls, ground, store
from tests.contracts.store.places import database, place
from tests.contracts.store.samples import T0, entry, key, lease, opened, put, sample, session
from tests.servers.dba import Dba

__all__ = ["database", "ground", "place", "store"]  # fixtures


def test_what_is_due_comes_oldest_first(store: Store) -> None:
    late, soon = T0 + timedelta(microseconds=1), T0 - timedelta(seconds=1)
    put(store, lease("late", expires_at=late), lease("b"), lease("a"), lease("soon", expires_at=soon))
    put(store, lease("gone", state=LeaseState.EXPIRED), session("s"), session("o", state=SessionState.ENDED))
    assert [found.id for found in store.due(Lease, T0, limit=9)] == ["soon", "a", "b"]
    assert [found.id for found in store.due(Lease, T0, limit=2)] == ["soon", "a"]
    assert [found.id for found in store.due(Lease, T0, limit=9, state="expired")] == ["gone"]
    assert [found.id for found in store.due(Session, late, limit=9)] == ["s"]
    assert store.due(Session, soon, limit=9) == []
    put(store, UsedToken(issuer="i", jti="1", until=T0), UsedToken(issuer="i", jti="2", until=late))
    assert [found.jti for found in store.due(UsedToken, T0, limit=9)] == ["1"]
    receipt = sample(Receipt)
    put(store, receipt)
    assert store.due(Receipt, T0, limit=9) == [receipt]
    assert store.due(Receipt, soon, limit=9) == []


def test_count_counts_what_equals(store: Store) -> None:
    put(store, lease("a"), lease("b"), lease("c", state=LeaseState.REVOKED), lease("d", principal="pipeline/other"))
    assert store.count(Lease, {}) == 4
    assert store.count(Lease, {"principal": "pipeline/deploy", "state": LeaseState.ACTIVE}) == 2
    assert store.count(Lease, {"version": 2}) == 0


def test_TL_18_a_damaged_row_does_not_hold_up_the_others(place: StoreConfig) -> None:
    """On databases alone: nobody else writes into a process's own memory."""
    with opened(place) as store:
        put(store, *(lease(f"l{number}") for number in range(6)))
        Dba(place).run("UPDATE leases SET created_at = 9000000000000000000 WHERE id IN ('l0', 'l1', 'l3')")
        assert [found.id for found in store.due(Lease, T0, limit=2)] == ["l2", "l4"]
        assert [found.id for found in store.due(Lease, T0, limit=9)] == ["l2", "l4", "l5"]


def test_further_entries_are_durable_with_the_first_or_not_at_all(store: Store, ground: Ground) -> None:
    with store.write(entry("one")) as write:
        write.also(entry("two"))
        write.also(entry("three"))
    with pytest.raises(AlreadyExists), store.write(entry("lost")) as write:
        also_add(write, entry("lost too"), key(), key())
    bad = entry("bad", peer=None)  # what cannot be written down
    with pytest.raises(TypeError), store.write(entry("also lost")) as write:
        also_add(write, bad, key())
    assert store.get(Key, "payments") is None
    store.record(entry("four"))
    assert calls(ground) == ["one", "two", "three", "four"]


def also_add(write: ports.Write, further: AuditEntry, *records: Record) -> None:
    write.also(further)
    for record in records:
        write.add(record)
