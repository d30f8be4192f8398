"""A compromised version and its replacement begin together, and what hinders the one does not hinder the other."""

from __future__ import annotations

from typing import Any

import pytest

from broker.core.call import Call
from broker.core.clearance import Clearance
from broker.core.keys.states import versions_of
from broker.core.kinds import ImportState, Phase
from broker.core.model import Principal
from broker.core.policy.cedar import FIRST_POLICY
from broker.core.policy.guard import Guard
from broker.core.rotations.containing import Contained
from tests.fakes.calls import ADMIN, call, document, operator
from tests.unit.rotations.bench import REQUEST, House

CONTAINS_ONLY = """
@id("contains") permit (principal == Operator::"carol", action == Action::"CompromiseKeyVersion", resource);
"""
APPROVED = """
@id("contains") permit (principal == Operator::"carol", action == Action::"CompromiseKeyVersion", resource);
@id("rotates") @approvals("1") permit (principal == Operator::"carol", action == Action::"RotateKey", resource);
@id("imports") permit (principal == Operator::"carol", action == Action::"ImportKey", resource);
"""


def furnished(policy: str = "") -> House:
    made = House(guard=Guard(document(FIRST_POLICY + policy)))
    made.furnish()
    return made


@pytest.fixture
def house() -> House:
    return furnished()


def asked(house: House, principal: Principal = ADMIN, **how: Any) -> Call:
    return call("KeyService/CompromiseKeyVersion", principal, house.clock, **how)


def contain(house: House, number: int = 0, made: Call | None = None) -> Contained:
    return house.rotations.compromise(made or asked(house), "pay", number, "leaked", successor=True)


def test_the_replacement_begins_in_the_very_write_that_contains(house: House) -> None:
    done = contain(house)
    assert done.replacement is not None
    assert (done.version.number, done.replacement.memory["version"], done.no_replacement) == (1, "2", "")
    assert house.phases() == {1: Phase.COMPROMISED, 2: Phase.PRE_ACTIVE}
    house.rounds(8)
    assert house.signs() == 2
    assert (house.enabled("bao"), house.enabled("prod")) == ([2], [2])
    assert house.copies()["bao", 1] is ImportState.DISABLED


def test_the_audit_names_the_version_that_was_contained(house: House) -> None:
    contain(house)
    (intent,) = [
        one for one in house.store.entries if one.rpc == "KeyService/CompromiseKeyVersion" and one.phase == "intent"
    ]
    assert intent.facts["version"] == 1


def test_the_same_request_tells_of_the_same_replacement(house: House) -> None:
    house.away("prod")
    first = contain(house, made=asked(house, request_id=REQUEST))
    house.rounds(4)
    again = contain(house, made=asked(house, request_id=REQUEST))
    assert first.replacement is not None
    assert again.replacement is not None
    assert (again.version.number, again.replacement.number) == (1, first.replacement.number)
    assert len(versions_of(house.store, "pay")) == 2


def test_a_client_that_does_not_ask_for_it_gets_none(house: House) -> None:
    done = house.rotations.compromise(house.call("KeyService/CompromiseKeyVersion"), "pay", 0, "leaked")
    assert (done.replacement, done.no_replacement) == (None, "")
    assert house.phases() == {1: Phase.COMPROMISED}


def test_a_version_that_is_not_the_primary_one_needs_none(house: House) -> None:
    house.rotate()
    house.rounds(3)
    done = contain(house, 1)
    assert (done.replacement, done.no_replacement) == (None, "")
    assert house.phases()[1] is Phase.COMPROMISED


def test_a_rotation_that_runs_already_is_the_replacement(house: House) -> None:
    house.away("prod")
    begun = house.rotate().operation
    done = contain(house)
    assert begun is not None
    assert done.replacement is not None
    assert done.replacement.number == begun.number
    assert len(versions_of(house.store, "pay")) == 2


def test_a_rotation_that_was_to_bring_the_compromised_version_is_none(house: House) -> None:
    house.away("prod")
    house.rotate()
    house.rounds(2)
    house.rotations.activate(house.call("KeyService/ActivateKeyVersion"), "pay", 2)
    done = contain(house)
    assert (done.version.number, done.replacement) == (2, None)
    assert "being rotated" in done.no_replacement
    assert house.phases()[2] is Phase.COMPROMISED


@pytest.mark.parametrize(
    ("policy", "said"), [(CONTAINS_ONLY, "does not let you do RotateKey"), (APPROVED, "needs approvals")]
)
def test_who_may_contain_and_not_rotate_contains_all_the_same(policy: str, said: str) -> None:
    house = furnished(policy)
    made = asked(house, operator("carol"))
    made.clearance = Clearance(
        call_id=made.id, rpc=made.rpc, requester="operator/carol", now=house.clock, exact=bytes, details=dict,
        count=lambda _write, _row: 0, facts={},
    )  # fmt: skip
    done = contain(house, made=made)
    assert done.replacement is None
    assert said in done.no_replacement
    assert house.phases() == {1: Phase.COMPROMISED}


def test_a_key_that_is_disabled_is_contained_and_not_replaced(house: House) -> None:
    house.keys.disable(house.call("KeyService/DisableKey"), "pay")
    done = contain(house)
    assert done.replacement is None
    assert "disabled" in done.no_replacement
    house.keys.enable(house.call("KeyService/EnableKey"), "pay")
    house.rotate()
    house.rounds(8)
    told = contain(house, 2, asked(house, validate_only=True))
    assert (told.operation, told.replacement, told.no_replacement) == (None, None, "")
