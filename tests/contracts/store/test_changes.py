"""The Store port's contract, everywhere: changes of several rows at once, of copies, and a leader's."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from datetime import timedelta

import pytest

from broker.core import ports
from broker.core.entries import AuditEntry
from broker.core.errors import BrokerError, WrongState
from broker.core.kinds import LeaseState
from broker.core.model import Key, KeyVersion, Lease
from broker.core.ports import Store
from tests.contracts.store.grounds import Ground, ground, store
from tests.contracts.store.places import database
from tests.contracts.store.samples import T0, entry, key, lease, put, version

__all__ = ["database", "ground", "store"]  # fixtures


def test_a_part_that_was_changed_is_not_committed_by_a_caller_that_goes_on(store: Store) -> None:
    put(store, key("taken"), version(number=1), version(number=2))

    def add(write: ports.Write) -> None:
        write.add(key("free"), key("taken"))

    def replace_both(write: ports.Write) -> None:
        stale = version(number=2, revision=7)
        write.replace_all([(version(number=1), version(number=1, sealed=True)), (stale, stale)])

    for body, reason in ((add, "NAME_TAKEN"), (replace_both, "CHANGED_MEANWHILE")):
        with pytest.raises(BrokerError) as found, store.write(entry()) as write, suppress(BrokerError):
            body(write)
        assert found.value.reason == reason
    assert [each.name for each in store.page(Key, limit=9)] == ["taken"]
    assert store.page(KeyVersion, limit=9) == [version(number=1), version(number=2)]


def test_leases_end_with_their_session_and_never_later_than_they_would(store: Store) -> None:
    hour = timedelta(hours=1)
    put(store, lease("a", expires_at=T0 + hour), lease("b", expires_at=T0 - hour), lease("o", session="other"))
    put(store, lease("gone", state=LeaseState.EXPIRED))
    with store.write(entry()) as write:
        assert write.end_leases("s", LeaseState.REVOKED, T0) == 2
        assert write.end_leases("s", LeaseState.REVOKED, T0) == 0
    assert store.page(Lease, limit=9) == [
        lease("a", state=LeaseState.REVOKED, expires_at=T0, revision=2),
        lease("b", state=LeaseState.REVOKED, expires_at=T0 - hour, revision=2),
        lease("gone", state=LeaseState.EXPIRED),
        lease("o", session="other"),
    ]


def test_a_copy_that_is_as_new_counts_by_its_revision(store: Store) -> None:
    put(store, key())
    with store.write(entry()) as write:
        assert write.replace(key(owner="elsewhere"), key(owner="new")) == key(owner="new", revision=2)
        write.delete(key(owner="elsewhere", revision=2))
    assert store.get(Key, "payments") is None


def test_what_was_read_cannot_be_changed_by_who_reads_it(store: Store) -> None:
    labels = {"team": "red"}
    put(store, key(labels=labels))
    labels["team"] = "blue"
    found = store.get(Key, "payments")
    assert found is not None
    with pytest.raises(TypeError):
        found.labels["team"] = "blue"  # type: ignore[index]
    assert found.labels == {"team": "red"}


def led(fence: int) -> AuditEntry:
    return replace(entry(), facts={"fence": fence})


def test_the_leader_stays_it_and_writes(store: Store) -> None:
    fence = store.lead()
    assert fence is not None
    assert store.lead() == fence
    with store.write(led(fence)) as write:
        write.add(key())
    assert store.get(Key, key().name) == key()


def test_P10_a_former_leader_writes_nothing_any_more(ground: Ground) -> None:
    with ground.opened() as store:
        former = store.lead()
    with ground.opened() as store:
        fence = store.lead()
        assert former is not None
        assert fence is not None
        assert fence > former
        before = ground.journal()
        with pytest.raises(WrongState) as found, store.write(led(former)) as write:
            write.add(key())
        assert found.value.reason == "LEADERSHIP_LOST"
        assert store.get(Key, key().name) is None
        assert ground.journal() == before


def test_a_number_that_nobody_was_given_is_not_the_leaders(store: Store) -> None:
    fence = store.lead() or 0
    with pytest.raises(WrongState), store.write(led(fence + 1)):
        pass
