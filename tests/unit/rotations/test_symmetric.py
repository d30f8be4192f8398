"""A symmetric key that ends: told from another in its place by its use, also when the HSM has it no more."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from broker.core.errors import BrokerError, WrongState
from broker.core.kinds import ImportState, KeyState, KeyType, KeyUsage
from broker.core.model import Import, Key, Operation
from tests.fakes.shelf import Held
from tests.unit.rotations.bench import AWAY, House

WEEK = timedelta(days=7)


@pytest.fixture
def house() -> House:
    made = House()
    made.furnish()
    return made


def pass_by(house: House, days: int) -> None:
    for _ in range(days):
        house.clock.forward(days=1)
        house.do_chores(house.keys)
        house.rounds(2)


def box(house: House) -> None:
    """A symmetric key, at both targets."""
    asked = house.call("KeyService/CreateKey")
    house.keys.create(asked, "box", KeyType.AES_256, KeyUsage.ENCRYPT, exportable=True, labels={}, owner="")
    for name in ("bao", "prod"):
        house.imports.import_key(house.call("ImportService/ImportKey"), "box", 1, name, "")


def put_in_its_place(house: House) -> Held:
    """Somebody else's, under its name and number at one of them."""
    theirs = Held(b"x" * 32, "1")
    house.shelves["prod"].held["box"] = [theirs]
    return theirs


def destroy_box(house: House) -> None:
    house.rotations.destroy(house.call("KeyService/ScheduleKeyDestruction"), "box", WEEK)


def boxed(house: House) -> tuple[ImportState, str]:
    row = house.store.get(Import, "box", 1, "prod", "box")
    return row.state, row.failure


def ended(house: House) -> str:
    """Why the deletion at the target with the other key waits."""
    found: Operation = house.store.last(Operation, "key/box/0/gone/prod/box")
    return found.failure


def test_a_symmetric_key_that_is_in_use_there_is_not_taken_for_the_one_that_was_disabled(house: House) -> None:
    box(house)
    destroy_box(house)
    house.rounds(3)
    put_in_its_place(house)
    pass_by(house, 9)
    assert ("box" in house.shelves["bao"].held, "box" in house.shelves["prod"].held) == (False, True)
    assert ended(house) == "REMOTE_KEY_SHARED"


def test_another_symmetric_key_in_the_place_of_a_destroyed_one_is_neither_disabled_nor_deleted(house: House) -> None:
    box(house)
    theirs = put_in_its_place(house)
    destroy_box(house)
    house.rounds(3)
    assert (theirs.enabled, boxed(house)) == (True, (ImportState.FAILED, "PROOF_FAILED"))
    theirs.enabled = False  # its owner's own decision
    pass_by(house, 9)
    assert (house.shelves["prod"].held["box"], ended(house)) == ([theirs], "REMOTE_KEY_SHARED")
    assert "box" not in house.shelves["bao"].held


def test_another_symmetric_key_in_the_place_of_a_compromised_one_is_disabled_at_once_and_never_deleted(
    house: House,
) -> None:
    box(house)
    theirs = put_in_its_place(house)
    house.rotations.compromise(house.call("KeyService/CompromiseKeyVersion"), "box", 1, "leaked")
    house.rounds(3)
    assert (theirs.enabled, boxed(house)) == (False, (ImportState.FAILED, "PROOF_FAILED"))
    destroy_box(house)
    pass_by(house, 9)
    assert (house.shelves["prod"].held["box"], ended(house)) == ([theirs], "REMOTE_KEY_SHARED")


def test_a_compromised_symmetric_key_that_cannot_be_tried_is_disabled_at_once_and_not_deleted_unproven(
    house: House,
) -> None:
    box(house)
    house.shelves["prod"].refuses["decrypt"] = [WrongState("TARGET_OPERATION_FORBIDDEN", "No.")] * 100
    house.rotations.compromise(house.call("KeyService/CompromiseKeyVersion"), "box", 1, "leaked")
    house.rounds(3)
    assert not house.shelves["prod"].held["box"][0].enabled
    assert boxed(house) == (ImportState.DISABLED, "UNPROVEN")
    destroy_box(house)
    pass_by(house, 9)
    assert ("box" in house.shelves["prod"].held, ended(house)) == (True, "REMOTE_KEY_SHARED")


def away_until_the_hsm_has_it_no_more(house: House, refusal: BrokerError = AWAY) -> None:
    box(house)
    house.shelves["prod"].refuses["versions"] = [refusal] * 10_000
    destroy_box(house)
    pass_by(house, 9)
    assert house.store.get(Key, "box").state is KeyState.DESTROYED


@pytest.mark.parametrize("refusal", [AWAY, WrongState("TARGET_DENIED", "No.")])
def test_FT_31_a_symmetric_key_is_known_again_by_its_use_when_the_hsm_has_it_no_more(
    house: House, refusal: BrokerError
) -> None:
    away_until_the_hsm_has_it_no_more(house, refusal)
    house.back("prod")
    house.rounds(8, minutes=10)
    assert (boxed(house)[0], "box" in house.shelves["prod"].held) == (ImportState.GONE, False)
    assert [row.subject for row in house.rows(Operation) if not row.state.over] == [], "no alarm is left"


def test_another_symmetric_key_that_came_in_its_place_meanwhile_is_left_alone(house: House) -> None:
    away_until_the_hsm_has_it_no_more(house)
    theirs = put_in_its_place(house)
    house.back("prod")
    house.rounds(8, minutes=10)
    assert (theirs.enabled, boxed(house)) == (True, (ImportState.FAILED, "PROOF_FAILED"))
    assert house.shelves["prod"].held["box"] == [theirs]
    deletes = house.store.last(Operation, "key/box/0/gone/prod/box")
    assert "somebody has to take that away" in house.operations.alarm(deletes)


def test_a_symmetric_key_that_cannot_be_proven_any_more_is_left_until_people_have_disabled_it(house: House) -> None:
    away_until_the_hsm_has_it_no_more(house)
    waits = house.store.last(Operation, "key/box/1/off/prod/box")
    with house.store.write(house.call("Test").outcome()) as write:
        write.replace(waits, replace(waits, memory={}))  # as one that an older release has begun
    house.back("prod")
    house.rounds(3, minutes=10)
    [ours] = house.shelves["prod"].held["box"]
    waits = house.store.last(Operation, "key/box/1/off/prod/box")
    assert (ours.enabled, waits.failure) == (True, "REMOTE_KEY_SHARED")
    assert "somebody has to disable it there" in house.operations.alarm(waits)
    ours.enabled = False
    house.rounds(6, minutes=10)
    assert boxed(house)[0] is ImportState.GONE
    assert "box" not in house.shelves["prod"].held
