"""What a trust rule has opened ends with it: in the listings at once, in the records within the same call (AZ-24)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from broker.core.errors import Unauthenticated, Unavailable
from broker.core.identity import Verified
from broker.core.kinds import LeaseState, Preset, SessionState
from broker.core.model import Lease, Session, TrustRule
from broker.core.quota import LeaseQuota
from tests.fakes.memory_store import MemoryStore
from tests.unit.sessions.bench import Bench, pipeline

ACTIVE, ENDED = SessionState.ACTIVE, SessionState.ENDED
REQUEST = "0b7e8f3e-1f5f-4c7e-9d59-0f6a4b3a2c1d"


class Shaky(MemoryStore):
    """A store whose lists are not to be had for a while."""

    away = False

    def page(self, kind: type[Any], **how: Any) -> list[Any]:
        if self.away:
            raise Unavailable("STORE_UNAVAILABLE", "The database does not answer.")
        return super().page(kind, **how)


class House(Bench):
    """A bench with the noun of the rules."""

    def __init__(self) -> None:
        super().__init__(Shaky())
        for name in ("deploy", "other"):
            self.add_rule(name)
        for name in ("app/db", "app/api", "other/x"):
            self.put(name)

    def delete(self, name: str = "deploy", **how: Any) -> None:
        self.rules.delete(self.call("TrustService/DeleteTrustRule", **how), name)

    def update(self, **changes: Any) -> None:
        rule = self.store.get(TrustRule, "deploy")
        assert rule is not None
        self.rules.update(self.call("TrustService/UpdateTrustRule"), replace(rule, **changes))

    def listed(self) -> dict[str, SessionState]:
        page = self.sessions.page(self.call("SessionService/ListSessions"), "", (), 1000)
        return {session.id: session.state for session in page.items}

    def lent(self, session: str = "") -> set[LeaseState]:
        page = self.leases.page(self.call("LeaseService/ListLeases"), "", session, (), 1000)
        return {lease.state for lease in page.items}

    def journal(self) -> list[Any]:
        assert isinstance(self.store, MemoryStore)
        return self.store.entries


def _no_token(_rule: TrustRule, _token: str) -> Verified:
    raise AssertionError("no token is read here")


@pytest.fixture
def house() -> House:
    return House()


@pytest.mark.parametrize("change", ["delete", "update"])
def test_AZ_24_a_rule_that_is_gone_or_changed_has_ended_its_sessions_and_their_leases(
    house: House, change: str
) -> None:
    _, mine = house.fetch(pipeline(), "app/db", "app/api")
    _, theirs = house.fetch(pipeline("other"), "other/x")
    assert mine is not None
    assert theirs is not None
    if change == "delete":
        house.delete()
    else:
        house.update(preset=Preset.GENERIC, max_session_seconds=600)
    assert house.listed() == {mine.session.id: ENDED, theirs.session.id: ACTIVE}
    assert house.lent(mine.session.id) == {LeaseState.REVOKED}
    assert house.lent(theirs.session.id) == {LeaseState.ACTIVE}
    assert house.session(mine.session.id).state is ENDED  # in its row, not in the listing alone
    assert set(house.states(mine.session.id)) == {LeaseState.REVOKED}
    with pytest.raises(Unauthenticated):
        house.sessions.authenticate(mine.token)
    last = house.journal()[-1]
    assert (last.rpc, last.facts["count"], last.phase.value) == (
        f"TrustService/{change.title()}TrustRule",
        1,
        "outcome",
    )
    assert any(entry.resource == f"session/{mine.session.id}" for entry in house.journal())


@pytest.mark.parametrize("change", ["delete_rule", "change_rule"])
def test_AZ_24_the_listings_tell_it_before_any_record_does(house: House, change: str) -> None:
    _, opening = house.fetch(pipeline(), "app/db")
    assert opening is not None
    assert (house.listed(), house.lent()) == ({opening.session.id: ACTIVE}, {LeaseState.ACTIVE})
    getattr(house, change)()  # by somebody who died before the sessions were ended
    assert house.session(opening.session.id).state is ACTIVE
    assert (house.listed(), house.lent()) == ({opening.session.id: ENDED}, {LeaseState.EXPIRED})


def test_AZ_24_hundreds_of_sessions_end_in_small_pieces(house: House) -> None:
    house.restart(quota=LeaseQuota(per_principal=1000))
    for _ in range(250):
        house.fetch(pipeline(), "app/db")
    before = len(house.journal())
    house.delete()
    assert set(house.listed().values()) == {ENDED}
    assert house.store.count(Lease, {"state": "active"}) == 0
    told = [entry.resource for entry in house.journal()[before:] if entry.resource.startswith("session/")]
    assert len(set(told)) == len(told) == 250
    assert house.journal()[-1].facts["count"] == 250


def test_AZ_24_a_new_rule_of_that_name_serves_none_of_the_old_sessions(house: House) -> None:
    opening = house.login()
    house.clock.forward(seconds=1)
    house.delete_rule()
    house.add_rule()
    assert house.listed() == {opening.session.id: ENDED}
    assert house.login().session.state is ACTIVE
    assert sorted(house.listed().values()) == [ACTIVE, ENDED]


def test_AZ_24_a_deletion_that_was_cut_off_is_finished_by_its_repetition(house: House) -> None:
    opening = house.login()
    assert isinstance(house.store, Shaky)
    house.store.away = True  # in between
    with pytest.raises(Unavailable):
        house.delete(request_id=REQUEST)
    house.store.away = False
    assert (house.store.get(TrustRule, "deploy"), house.session(opening.session.id).state) == (None, ACTIVE)
    house.delete(request_id=REQUEST)
    assert house.session(opening.session.id).state is ENDED


def test_a_dry_run_ends_nothing(house: House) -> None:
    opening = house.login()
    house.delete(validate_only=True)
    assert house.store.count(Session, {"state": "active"}) == 1
    assert house.listed() == {opening.session.id: ACTIVE}
