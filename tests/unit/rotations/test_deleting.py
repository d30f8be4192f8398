"""A key destroyed wherever it is: disabled at once, deleted when its time has come, and on record until it is gone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from broker.core.errors import WrongState
from broker.core.holding import Holding
from broker.core.kinds import ImportState, KeyState, KeyType, KeyUsage, OperationState, Sent
from broker.core.model import Import, Operation, Target
from tests.fakes.refusals import ending
from tests.fakes.shelf import Held
from tests.unit.rotations.bench import REQUEST, House

WEEK = timedelta(days=7)


@pytest.fixture
def house() -> House:
    made = House()
    made.furnish()
    return made


def destroy(house: House, request_id: str = "") -> None:
    house.rotations.destroy(house.call("KeyService/ScheduleKeyDestruction", request_id), "pay", WEEK)


def pass_by(house: House, days: int) -> None:
    for _ in range(days):
        house.clock.forward(days=1)
        house.do_chores(house.keys)
        house.rounds(2)


def deletion(house: House, target: str) -> Operation:
    found: Operation | None = house.store.last(Operation, f"key/pay/0/gone/{target}/pay")
    assert found is not None
    return found


def test_a_destroyed_key_is_disabled_everywhere_at_once_and_gone_everywhere_in_the_end(house: House) -> None:
    house.rotate(timedelta(0))
    house.rounds(8)
    destroy(house)
    assert house.key().destroyed_at_targets
    house.rounds(3)
    assert (house.enabled("bao"), house.enabled("prod")) == ([], [])
    assert set(house.copies().values()) == {ImportState.DISABLED}
    pass_by(house, 6)
    assert len(house.shelves["prod"].held["pay"]) == 2, "it can still be saved"
    pass_by(house, 2)
    assert house.key().state is KeyState.DESTROYED
    assert [shelf.held for shelf in house.shelves.values()] == [{}, {}]
    assert set(house.copies().values()) == {ImportState.GONE}


def test_the_same_request_is_the_same_destruction(house: House) -> None:
    destroy(house, REQUEST)
    destroy(house, REQUEST)
    assert deletion(house, "prod").number == 1


def test_BY_13_one_that_is_called_off_deletes_nothing_and_an_import_puts_its_copies_back_to_use(house: House) -> None:
    destroy(house)
    house.rounds(3)
    house.keys.cancel_destruction(house.call("KeyService/CancelKeyDestruction"), "pay")
    pass_by(house, 9)
    assert (house.enabled("prod"), len(house.shelves["prod"].held["pay"])) == ([], 1)
    assert deletion(house, "prod").state is OperationState.DONE
    house.keys.enable(house.call("KeyService/EnableKey"), "pay")
    house.imports.import_key(house.call("ImportService/ImportKey"), "pay", 1, "prod", "")
    assert (house.enabled("prod"), house.copies()["prod", 1]) == ([1], ImportState.PROVEN)


def test_one_that_is_called_off_while_a_target_is_away_disables_nothing_there_on_its_return(house: House) -> None:
    house.away("prod")
    destroy(house)
    house.rounds(3)
    house.keys.cancel_destruction(house.call("KeyService/CancelKeyDestruction"), "pay")
    house.keys.enable(house.call("KeyService/EnableKey"), "pay")
    house.back("prod")
    house.imports.import_key(house.call("ImportService/ImportKey"), "pay", 1, "prod", "")
    house.rounds(5, minutes=3)
    assert (house.enabled("prod"), house.copies()["prod", 1]) == ([1], ImportState.PROVEN)
    assert house.store.last(Operation, "key/pay/1/off/prod/pay").state is OperationState.DONE


def test_one_that_is_asked_for_again_disables_what_the_one_before_did_not(house: House) -> None:
    house.away("prod")
    destroy(house)
    house.rounds(3)
    house.keys.cancel_destruction(house.call("KeyService/CancelKeyDestruction"), "pay")
    destroy(house)
    house.back("prod")
    house.rounds(5, minutes=3)
    assert (house.enabled("prod"), house.copies()["prod", 1]) == ([], ImportState.DISABLED)


def test_one_that_is_called_off_and_then_scheduled_for_the_hsm_alone_leaves_the_targets_alone(house: House) -> None:
    destroy(house)
    house.keys.cancel_destruction(house.call("KeyService/CancelKeyDestruction"), "pay")
    house.keys.schedule_destruction(house.call("KeyService/ScheduleKeyDestruction"), "pay", WEEK)
    pass_by(house, 9)
    assert (house.key().state, len(house.shelves["prod"].held["pay"])) == (KeyState.DESTROYED, 1)


def test_FT_31_a_target_that_is_away_holds_up_neither_the_hsm_nor_the_other_one(house: House) -> None:
    destroy(house)
    house.rounds(3)
    house.away("prod")
    pass_by(house, 9)
    assert (house.key().state, house.copies()["bao", 1]) == (KeyState.DESTROYED, ImportState.GONE)
    live = deletion(house, "prod")
    assert (live.failure, house.operations.alarm(live)) == (
        "TARGET_UNREACHABLE", "a key that is destroyed may still be at a target",
    )  # fmt: skip
    house.back("prod")
    house.rounds(5, minutes=10)
    assert house.copies()["prod", 1] is ImportState.GONE


def test_K06_what_could_come_back_stays_on_record_until_it_cannot(house: House) -> None:
    house.shelves["prod"].kept["pay"] = "It is deleted softly."
    destroy(house)
    pass_by(house, 9)
    row = house.store.get(Import, "pay", 1, "prod", "pay")
    assert (row.state, row.failure) == (ImportState.FAILED, "REMOTE_KEY_MISSING")
    house.shelves["prod"].kept = {}
    pass_by(house, 2)
    assert house.copies()["prod", 1] is ImportState.GONE


def test_what_is_not_the_brokers_under_the_name_is_not_deleted(house: House) -> None:
    house.shelves["prod"].held["pay"].append(Held(ec.generate_private_key(ec.SECP256R1()), "2"))
    destroy(house)
    pass_by(house, 9)
    assert deletion(house, "prod").failure == "REMOTE_KEY_SHARED"
    assert (len(house.shelves["prod"].held["pay"]), house.enabled("prod")) == (2, [2])
    house.shelves["prod"].held["pay"].pop()
    house.rounds(3, minutes=10)
    assert house.copies()["prod", 1] is ImportState.GONE


def test_what_the_target_does_not_show_under_the_name_is_not_deleted_with_the_rest(house: House) -> None:
    theirs = Held(ec.generate_private_key(ec.SECP256R1()), "2", hidden=True)
    house.shelves["prod"].held["pay"].append(theirs)
    destroy(house)
    pass_by(house, 9)
    assert deletion(house, "prod").failure == "REMOTE_KEY_SHARED"
    assert (len(house.shelves["prod"].held["pay"]), theirs.enabled) == (2, True)
    house.shelves["prod"].held["pay"].pop()
    house.rounds(3, minutes=10)
    assert house.copies()["prod", 1] is ImportState.GONE


def test_what_the_broker_has_hidden_itself_does_not_keep_its_key(house: House) -> None:
    house.rotate(timedelta(0))
    house.rounds(8)
    house.shelves["prod"].held["pay"][0].hidden = True  # as the transit engine puts a former version out of use
    destroy(house)
    pass_by(house, 9)
    assert house.shelves["prod"].held == {}


def test_a_target_that_may_not_be_deleted_at_is_an_alarm_and_asked_again(house: House) -> None:
    house.shelves["prod"].refuses["delete"] = [WrongState("TARGET_CANNOT_DELETE", "No.")] * 1000
    destroy(house)
    pass_by(house, 8)
    assert deletion(house, "prod").failure == "TARGET_CANNOT_DELETE"
    house.back("prod")
    house.rounds(3, minutes=10)
    assert house.copies()["prod", 1] is ImportState.GONE


def test_a_target_that_was_removed_meanwhile_is_not_waited_for(house: House) -> None:
    destroy(house)
    house.rounds(3)
    with house.store.write(house.call("TargetService/DeleteTarget").outcome()) as write:
        write.delete(house.store.get(Target, "prod"))
    pass_by(house, 9)
    assert deletion(house, "prod").state is OperationState.DONE


def test_S_09_after_a_restore_nothing_is_deleted_by_itself(house: House) -> None:
    destroy(house)
    house.rounds(3)
    Holding(house.store, house.own).hold()
    pass_by(house, 9)
    assert (house.key().state, len(house.shelves["prod"].held["pay"])) == (KeyState.HELD, 1)
    destroy(house)
    pass_by(house, 9)
    assert house.copies()["prod", 1] is ImportState.GONE


def test_S_09_after_a_restore_nothing_is_disabled_for_a_destruction_that_is_held(house: House) -> None:
    house.away("prod")
    destroy(house)
    house.rounds(3)
    Holding(house.store, house.own).hold()
    house.back("prod")
    house.rounds(5, minutes=3)
    assert (house.key().state, house.enabled("prod")) == (KeyState.HELD, [1])
    destroy(house)
    house.rounds(5, minutes=3)
    assert house.enabled("prod") == []


def test_a_copy_in_a_file_is_not_gone_with_what_was_at_the_target(house: House) -> None:
    old = house.store.get(Import, "pay", 1, "prod", "pay")
    changed = replace(old, state=ImportState.PENDING, failure="EXPORTED", sent=Sent.FILE, remote_version="")
    with house.store.write(house.call("ImportService/ExportKey").outcome()) as write:
        write.replace(old, changed)
    destroy(house)
    pass_by(house, 9)
    assert house.copies()["prod", 1] is ImportState.FAILED


def test_destroying_a_destroyed_key_and_compromising_one_are_refused(house: House) -> None:
    destroy(house)
    pass_by(house, 9)
    assert ending(lambda: destroy(house)) == "KEY_STATE"
    asked = house.call("KeyService/CompromiseKeyVersion")
    assert ending(lambda: house.rotations.compromise(asked, "pay", 1, "leaked")) == "KEY_STATE"
    assert ending(house.rotate) == "KEY_STATE"


def test_a_dry_run_of_a_destruction_changes_nothing(house: House) -> None:
    asked = replace(house.call("KeyService/ScheduleKeyDestruction"), validate_only=True)
    would = house.rotations.destroy(asked, "pay", WEEK)
    assert (would.state, would.destroyed_at_targets) == (KeyState.DESTROY_SCHEDULED, True)
    house.rounds(2)
    assert (house.key().state, house.enabled("prod")) == (KeyState.ENABLED, [1])


def loses_an_upload(house: House, ask: Callable[[], object]) -> None:
    """The target takes what is sent next, and is away from then on."""
    shelf = house.shelves["prod"]
    shelf.passing = lambda point: house.away("prod") if point == "after an upload" else None
    ask()
    shelf.passing = lambda _: None
    assert house.shelves["prod"].refuses, "it was sent something"


@pytest.mark.parametrize("kind", [KeyType.EC_P256, KeyType.AES_256])
def test_a_copy_that_was_just_arriving_is_disabled_when_it_has_and_deleted(house: House, kind: KeyType) -> None:
    usage = KeyUsage.ENCRYPT if kind.symmetric else KeyUsage.SIGN
    house.keys.create(house.call("KeyService/CreateKey"), "new", kind, usage, exportable=True, labels={}, owner="")
    asked = house.call("ImportService/ImportKey")
    loses_an_upload(house, lambda: ending(lambda: house.imports.import_key(asked, "new", 1, "prod", "")))
    house.rotations.destroy(house.call("KeyService/ScheduleKeyDestruction"), "new", WEEK)
    house.rounds(3)
    assert house.store.get(Import, "new", 1, "prod", "new").state is ImportState.PENDING
    house.back("prod")
    house.rounds(6, minutes=3)
    assert [one.enabled for one in house.shelves["prod"].held["new"]] == [False]
    pass_by(house, 9)
    assert house.store.get(Import, "new", 1, "prod", "new").state is ImportState.GONE
    assert "new" not in house.shelves["prod"].held


def test_what_a_rotation_was_bringing_is_disabled_when_it_has_arrived_and_deleted(house: House) -> None:
    def rotate() -> None:
        house.rotate(timedelta(0))
        house.rounds(4)

    loses_an_upload(house, rotate)
    destroy(house)
    house.rounds(3)
    house.back("prod")
    house.rounds(6, minutes=3)
    assert house.enabled("prod") == []
    pass_by(house, 9)
    assert (house.key().state, house.shelves["prod"].held) == (KeyState.DESTROYED, {})
    assert set(house.copies().values()) == {ImportState.GONE}


def test_where_a_rotation_never_came_to_send_anything_a_key_of_that_name_is_left_alone(house: House) -> None:
    house.away("prod")
    house.rotate()
    house.rounds(3)
    assert not house.store.get(Import, "pay", 2, "prod", "pay").may_be_there
    former = house.store.get(Import, "pay", 1, "prod", "pay")
    with house.store.write(house.call("ImportService/ProveImport").outcome()) as write:
        write.replace(former, replace(former, state=ImportState.GONE))
    house.shelves["prod"].held["pay"] = [Held(ec.generate_private_key(ec.SECP256R1()), "1")]
    destroy(house)
    house.back("prod")
    pass_by(house, 9)
    assert (house.key().state, house.enabled("prod")) == (KeyState.DESTROYED, [1])
    assert deletion(house, "prod").state is OperationState.DONE
