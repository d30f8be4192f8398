"""Leases: listed as they stand, revoked one by one, by principal and by prefix."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from broker.core.entries import AuditEntry
from broker.core.errors import InvalidRequest, NotFound, Unauthenticated
from broker.core.kinds import LeaseState
from broker.core.model import Lease, Session, TrustRule
from broker.core.sessions import tokens
from tests.fakes.memory_store import MemoryStore
from tests.unit.sessions.bench import Bench, pipeline

ACTIVE, REVOKED = LeaseState.ACTIVE, LeaseState.REVOKED


@pytest.fixture
def bench() -> Bench:
    made = Bench(MemoryStore())
    for name in ("deploy", "other"):
        made.add_rule(name)
    for name in ("app/db", "app/sub/x", "application/x", "app/sub", "other/x"):
        made.put(name)
    return made


def revoke(bench: Bench, *, validate_only: bool = False, request_id: str = "", **which: str) -> int:
    made = bench.call("LeaseService/RevokeLeases", validate_only=validate_only, request_id=request_id)
    return bench.leases.revoke(made, **which)


def active(bench: Bench) -> list[str]:
    return sorted(each.resource for each in bench.store.page(Lease, limit=99) if each.state is ACTIVE)


def test_leases_are_found_by_prefix_in_whole_segments(bench: Bench) -> None:
    bench.fetch(pipeline(), "app/db", "app/sub", "app/sub/x")
    bench.fetch(pipeline("other"), "other/x")
    assert revoke(bench, prefix="ap") == 0
    assert revoke(bench, prefix="app/sub", validate_only=True) == 2
    assert revoke(bench, prefix="app/sub") == 2
    assert active(bench) == ["secret/app/db", "secret/other/x"]
    assert revoke(bench, principal="pipeline/other") == 1
    assert active(bench) == ["secret/app/db"]
    for bad in ("", "App", "a//b", "app/", "/app", "*"):
        with pytest.raises(InvalidRequest):
            revoke(bench, prefix=bad)


def test_TL_06_one_lease_is_revoked_once_and_its_session_lives_on(bench: Bench) -> None:
    found, opening = bench.fetch(pipeline(), "app/db", "app/sub")
    assert opening is not None
    assert found[0].lease is not None
    assert revoke(bench, lease=found[0].lease.id) == 1
    assert revoke(bench, lease=found[0].lease.id) == 0
    assert sorted(bench.states(opening.session.id)) == [ACTIVE, REVOKED]
    bench.sessions.authenticate(opening.token)
    with pytest.raises(NotFound):
        revoke(bench, lease=tokens.new_id())
    with pytest.raises(InvalidRequest):
        revoke(bench, lease="a", principal="b")


def test_every_revocation_is_in_the_audit_on_its_own(bench: Bench) -> None:
    bench.fetch(pipeline(), "app/db", "app/sub")
    assert isinstance(bench.store, MemoryStore)
    before = len(bench.store.entries)
    revoke(bench, principal="pipeline/deploy")
    entries = bench.store.entries[before:]
    told = {entry.resource for entry in entries if entry.facts.get("lease")}
    assert told == {"secret/app/db", "secret/app/sub"}
    assert (entries[-1].phase.value, entries[-1].facts["count"]) == ("outcome", 2)


def test_a_repeated_revocation_answers_as_the_first_did(bench: Bench) -> None:
    bench.fetch(pipeline(), "app/db")
    request = "7f9c24e8-3b1d-4a5e-9c6f-0123456789ab"
    assert revoke(bench, request_id=request, principal="pipeline/deploy") == 1
    assert revoke(bench, request_id=request, principal="pipeline/deploy") == 1


def test_a_page_goes_on_where_the_last_one_ended(bench: Bench) -> None:
    bench.fetch(pipeline(), "app/db", "app/sub", "app/sub/x")
    made = bench.call("LeaseService/ListLeases")
    first = bench.leases.page(made, "pipeline/deploy", "", (), 2)
    rest = bench.leases.page(made, "pipeline/deploy", "", first.next, 2)
    assert (len(first.items), len(rest.items), rest.next) == (2, 1, ())
    assert len({lease.id for lease in [*first.items, *rest.items]}) == 3
    assert bench.leases.page(made, "pipeline/none", "", (), 2).items == []


def test_the_fields_of_one_version_are_under_one_lease(bench: Bench) -> None:
    bench.put("app/login", user=b"u", password=b"p")
    found, _ = bench.fetch(pipeline(), "app/login#user", "app/db", "app/login#password")
    ids = [each.lease.id for each in found if each.lease]
    assert (ids[0], len(set(ids))) == (ids[2], 2)
    assert {lease.id for lease in bench.store.page(Lease, limit=9)} == set(ids)


def test_what_a_session_fetches_again_stays_under_its_lease(bench: Bench) -> None:
    _, opening = bench.fetch(pipeline(), "app/db")
    assert opening is not None
    (first,) = bench.store.page(Lease, limit=9)
    assert isinstance(bench.store, MemoryStore)
    entries = bench.store.entries
    before = len(entries)
    found, _ = bench.fetch(opening.token, "app/db", "app/db#value")
    assert [each.lease and each.lease.id for each in found] == [first.id] * 2
    assert [entry.facts["lease"] for entry in entries[before:]] == [first.id] * 2  # and each is written down
    assert revoke(bench, lease=first.id) == 1
    found, _ = bench.fetch(opening.token, "app/db")
    assert found[0].lease is not None
    assert found[0].lease.id != first.id
    bench.put("app/db")
    newer, _ = bench.fetch(opening.token, "app/db")
    assert newer[0].lease is not None
    assert (newer[0].lease.id != found[0].lease.id, newer[0].lease.version) == (True, 2)


def test_a_session_that_ended_while_its_reading_was_written_down_gives_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under the lease it has, nothing is changed and so no row is held; the journal may take most of a second."""
    _, opening = bench.fetch(pipeline(), "app/db")
    assert opening is not None
    assert isinstance(bench.store, MemoryStore)
    record = bench.store.record

    def ends_first(*entries: AuditEntry) -> None:
        # It comes once.
        monkeypatch.setattr(bench.store, "record", record)
        bench.revoke(session=opening.session.id)
        record(*entries)

    # Patched: the end has to come while the entry is written, in this very call.
    monkeypatch.setattr(bench.store, "record", ends_first)
    with pytest.raises(Unauthenticated):
        bench.fetch(opening.token, "app/db")
    assert bench.store.entries[-1].outcome == "ABORTED"


def test_a_session_is_not_refused_for_what_another_process_has_made_good(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is kept may be older than a renewal, and than a session under a rule that was just changed."""
    bench.change_rule()
    opening = bench.login(pipeline(revision=2), seconds=60)
    rule = bench.store.get(TrustRule, "deploy")
    assert rule is not None
    bench.renew(opening.token, 600)
    kept = {Session: opening.session, TrustRule: replace(rule, revision=1)}
    # Patched: in memory there is no other process, so what is kept is never old.
    monkeypatch.setattr(bench.store, "recent", lambda kind, *_: kept[kind])
    bench.clock.time += timedelta(seconds=61)
    found, _ = bench.fetch(opening.token, "app/db")
    assert found[0].secret is not None
    bench.revoke(session=opening.session.id)
    with pytest.raises(Unauthenticated):
        bench.fetch(opening.token, "app/db")
