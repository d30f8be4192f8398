"""Copies put out of use: also those that came to nothing; and what is told where that cannot be done."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from broker.core.errors import WrongState
from broker.core.imports.terms import read
from broker.core.kinds import ImportState, Sent
from broker.core.model import Import, Operation, Terms
from broker.core.reasons import Reason
from broker.core.targets.copies import alarms
from tests.fakes.refusals import refused
from tests.unit.rotations.bench import House


@pytest.fixture
def house() -> House:
    made = House()
    made.furnish()
    return made


def row(house: House, target: str, version: int = 1) -> Import:
    found: Import | None = house.store.get(Import, "pay", version, target, "pay")
    assert found is not None
    return found


def rewrite(house: House, target: str, **changes: object) -> None:
    old = row(house, target)
    with house.store.write(house.call("ImportService/ImportKey").outcome()) as write:
        write.replace(old, replace(old, **changes))  # type: ignore[arg-type]


def compromise(house: House) -> None:
    house.rotations.compromise(house.call("KeyService/CompromiseKeyVersion"), "pay", 1, "leaked")
    house.rounds(10)


@pytest.mark.parametrize(
    ("state", "failure"),
    [
        (ImportState.FAILED, Reason.REMOTE_KEY_MISSING),
        (ImportState.DISABLED, ""),
        (ImportState.HELD, ""),
        (ImportState.PENDING, "EXPORTED"),
    ],
)
def test_K06_a_compromise_reaches_a_copy_that_may_be_there_whatever_the_record_calls_it(
    house: House, state: ImportState, failure: str
) -> None:
    rewrite(house, "prod", state=state, failure=failure, sent=Sent.UPLOAD)
    compromise(house)
    assert (house.enabled("bao"), house.enabled("prod")) == ([], [])
    assert row(house, "prod").state is state, "what came to nothing is not called withdrawn"


def test_a_compromise_leaves_alone_what_is_another_key_under_its_name(house: House) -> None:
    rewrite(house, "prod", state=ImportState.FAILED, failure=Reason.PROOF_FAILED)
    house.shelves["prod"].held["pay"] = house.shelves["bao"].held["pay"][:0]
    house.shelves["prod"].swaps = True
    house.keys.create(
        house.call("KeyService/CreateKey"), "other", house.key().type, house.key().usage,
        exportable=True, labels={}, owner="",
    )  # fmt: skip
    with pytest.raises(WrongState):
        house.imports.import_key(house.call("ImportService/ImportKey"), "other", 1, "prod", "")
    house.shelves["prod"].held["pay"] = house.shelves["prod"].held.pop("other")
    house.shelves["prod"].held["pay"][0].enabled = True
    compromise(house)
    assert house.enabled("prod") == [1]


def test_a_copy_that_its_target_cannot_disable_is_an_alarm_until_it_is(house: House) -> None:
    house.shelves["prod"].refuses["disable"] = [WrongState("TARGET_CANNOT_DISABLE", "It is the newest.")]
    compromise(house)
    assert (row(house, "prod").state, row(house, "prod").failure) == (
        ImportState.PROVEN, Reason.TARGET_CANNOT_DISABLE,
    )  # fmt: skip
    assert [one.target for one in alarms(house.store, "")] == ["prod"]


def test_what_a_copy_was_held_to_is_repeated_for_the_next_version(house: House) -> None:
    now = house.clock()
    terms = Terms(operations=("sign",), tags={"team": "billing"}, expires_at=now + timedelta(days=90))
    house.imports.import_key(house.call("ImportService/ImportKey"), "pay", 1, "prod", "", terms)
    assert read(row(house, "prod").terms or "") == terms
    house.clock.forward(days=30)
    house.rotate()
    house.rounds(5)
    held = house.shelves["prod"].held["pay"][1].terms
    assert (held.operations, held.tags) == (("sign",), {"team": "billing"})
    assert held.expires_at is not None
    assert timedelta(days=90) <= held.expires_at - house.clock() + timedelta(minutes=1) <= timedelta(days=91)
    assert house.shelves["bao"].held["pay"][1].terms == Terms(), "nothing was asked for there"
    house.rounds(3, hours=24)
    house.rotate()
    house.rounds(5)
    assert house.shelves["prod"].held["pay"][2].terms.tags == {"team": "billing"}


def test_a_copy_that_was_put_out_of_use_is_not_proven_and_the_refusal_says_what_it_is(house: House) -> None:
    compromise(house)
    asked = house.call("ImportService/ProveImport")
    found = refused(lambda: house.imports.prove(asked, "pay", 1, "prod"), reason="IMPORT_NOT_PROVEN")
    assert "put out of use there" in found.message


def stuck(house: House, why: str) -> str:
    found = [one for one in house.rows(Operation) if one.kind == "send-copy" and not one.state.over]
    return house.operations.alarm(replace(found[0], failure=why))


def test_the_alarm_of_a_rotation_says_what_it_waits_for(house: House) -> None:
    house.away("prod")
    house.rotate()
    house.rounds(2)
    assert stuck(house, Reason.TARGET_UNREACHABLE) == "a rotation waits for a target"
    assert stuck(house, Reason.POLICY_DENIED) == "who asked for a rotation may not bring its key to a target"
    assert stuck(house, Reason.KEY_STATE) == "a key is not enabled, so its rotation brings it nowhere"
    assert stuck(house, Reason.KEK_CHANGED) == "a rotation is refused at a target"
