"""What people do to a key while it is rotated, and what is in flight when it is contained."""

from __future__ import annotations

from dataclasses import replace

import pytest

from broker.core.errors import WrongState
from broker.core.holding import Holding
from broker.core.kinds import ImportState, KeyState, OperationState, Phase, Sent
from broker.core.model import Import, Operation
from tests.fakes.refusals import ending
from tests.unit.rotations.bench import House


@pytest.fixture
def house() -> House:
    made = House()
    made.furnish()
    return made


def give_up(house: House) -> str:
    asked = house.call("OperationService/AbortOperation")

    def act() -> None:
        with house.store.write(asked.outcome()) as write:
            house.operations.abort(write, asked, house.rotation())

    return ending(act)


def compromise(house: House, number: int) -> None:
    house.rotations.compromise(house.call("KeyService/CompromiseKeyVersion"), "pay", number, "leaked")


def test_a_version_that_is_compromised_before_it_is_in_force_ends_its_rotation(house: House) -> None:
    house.away("prod")
    house.rotate()
    house.rounds(3)
    compromise(house, 2)
    assert house.rotation().state is OperationState.UNDOING
    house.back("prod")
    house.rounds(40, seconds=10)
    assert (house.rotation().state, house.phases()[2]) == (OperationState.UNDONE, Phase.COMPROMISED)
    assert (house.enabled("bao"), house.enabled("prod"), house.signs()) == ([1], [1], 1)
    house.rotate()
    house.rounds(5)
    assert house.signs() == 3


def test_a_version_that_is_retired_before_it_is_in_force_ends_its_rotation(house: House) -> None:
    house.away("prod")
    house.rotate()
    house.rounds(3)
    house.rotations.retire(house.call("KeyService/RetireKeyVersion"), "pay", 2)
    house.back("prod")
    house.rounds(40, seconds=10)
    assert (house.rotation().state, house.signs(), live(house)) == (OperationState.UNDONE, 1, [])


def test_a_version_that_was_put_in_force_by_hand_stays_so_when_its_rotation_is_given_up(house: House) -> None:
    house.away("prod")
    house.rotate()
    house.rounds(3)
    house.rotations.activate(house.call("KeyService/ActivateKeyVersion"), "pay", 2)
    assert house.signs() == 2
    give_up(house)
    house.back("prod")
    house.rounds(40, seconds=10)
    assert (house.signs(), house.phases()[2]) == (2, Phase.ACTIVE)
    assert house.enabled("bao") == [1, 2]


def test_a_key_that_may_not_leave_is_not_rotated_at_targets(house: House) -> None:
    house.keys.seal(house.call("KeyService/SealKey"), "pay")
    assert ending(house.rotate) == "KEY_NOT_EXPORTABLE"
    assert house.key().latest == 1


def test_a_copy_that_arrives_while_its_version_is_contained_is_disabled_too(house: House) -> None:
    house.rotations.prepare(house.call("KeyService/PrepareKeyVersion"), "pay")
    sent_by_a_call_that_died(house)
    compromise(house, 2)
    house.rounds(60, seconds=10)
    assert (house.copies()["prod", 2], house.enabled("prod"), live(house)) == (ImportState.DISABLED, [1], [])


def test_the_replacement_goes_where_the_compromised_version_was_the_last_one(house: House) -> None:
    compromise(house, 1)
    house.rounds(3)
    assert (house.enabled("bao"), house.enabled("prod")) == ([], [])
    house.rotate()
    house.rounds(8)
    assert (house.enabled("bao"), house.enabled("prod"), house.signs()) == ([2], [2], 2)


def test_a_copy_that_is_still_to_be_sent_is_known_when_the_former_one_is_out_of_use_already(house: House) -> None:
    house.shelves["prod"].swaps = True
    house.rotate()
    house.rounds(3)
    compromise(house, 1)
    house.rounds(3)
    assert (house.copies()["prod", 1], house.phases()[2]) == (ImportState.DISABLED, Phase.PRE_ACTIVE)
    give_up(house)
    house.rounds(60, seconds=10)
    assert (live(house), house.enabled("prod")) == ([], [])


def test_a_target_that_refuses_the_key_is_not_filled_with_versions_of_it(house: House) -> None:
    house.shelves["prod"].swaps = True
    house.rotate()
    house.rounds(6 * 60, minutes=1)
    assert house.shelves["prod"].uploads < 20


def test_BY_15_what_a_call_has_sent_before_it_died_is_disabled_when_it_is_given_up(house: House) -> None:
    house.rotations.prepare(house.call("KeyService/PrepareKeyVersion"), "pay")
    sent_by_a_call_that_died(house)
    left, asked = house.store.get(Operation, "import/pay/2/prod/pay", 1), house.call("OperationService/AbortOperation")
    assert left is not None
    with house.store.write(asked.outcome()) as write:
        house.operations.abort(write, asked, left)
    house.rounds(3)
    assert len(live(house)) == 1, "its call may still be at it"
    house.rounds(20, seconds=10)
    row = house.store.get(Import, "pay", 2, "prod", "pay")
    assert row is not None
    assert (row.state, row.failure, row.sent, row.remote_version) == (
        ImportState.FAILED, "GIVEN_UP", Sent.UPLOAD, "2",
    )  # fmt: skip
    assert house.enabled("prod") == [1]


def test_a_compromised_version_that_a_target_could_not_disable_goes_once_its_replacement_is_there(house: House) -> None:
    cannot = WrongState("TARGET_CANNOT_DISABLE", "Not the newest one.")
    house.shelves["prod"].refuses = {"disable": [cannot]}
    compromise(house, 1)
    house.rounds(3)
    assert (house.enabled("prod"), house.copies()["prod", 1]) == ([1], ImportState.PROVEN)
    house.rotate()
    house.rounds(6)
    assert (house.enabled("prod"), house.copies()["prod", 1]) == ([2], ImportState.DISABLED)


def test_the_same_request_tells_of_the_version_it_was_about(house: House) -> None:
    asked = "1b7e8f3e-1f5f-4c7e-9d59-0f6a4b3a2c1d"
    contain = house.rotations.compromise
    contain(house.call("KeyService/CompromiseKeyVersion", asked), "pay", 0, "leaked")
    house.rotate()
    house.rounds(8)
    again = contain(house.call("KeyService/CompromiseKeyVersion", asked), "pay", 0, "leaked")
    assert (again.version.number, house.phases()) == (1, {1: Phase.COMPROMISED, 2: Phase.ACTIVE})


def test_the_rotation_of_a_key_that_is_destroyed_meanwhile_ends(house: House) -> None:
    house.away("prod")
    house.rotate()
    house.rounds(3)
    house.keys.schedule_destruction(house.call("KeyService/ScheduleKeyDestruction"), "pay", None)
    house.back("prod")
    house.rounds(1, days=8)
    for resource, work in list(house.keys.chores()):
        work(house.own(resource))
    house.rounds(20, minutes=1)
    assert (house.key().state, house.rotation().state, live(house)) == (KeyState.DESTROYED, OperationState.UNDONE, [])
    assert (house.enabled("bao"), house.enabled("prod")) == ([1], [1]), "the version that was never in force is nowhere"


def test_a_dry_run_refuses_to_put_in_force_what_is_compromised(house: House) -> None:
    compromise(house, 1)
    asked = replace(house.call("KeyService/ActivateKeyVersion"), validate_only=True)
    assert ending(lambda: house.rotations.activate(asked, "pay", 1)) == "KEY_VERSION_PHASE"


def test_what_a_restore_has_left_half_rotated_goes_with_the_next_rotation(house: House) -> None:
    house.away("prod")
    house.rotate()
    house.rounds(3)
    Holding(house.store, house.own).hold()
    house.back("prod")
    house.rotate()
    house.rounds(20, seconds=20)
    assert house.phases() == {1: Phase.ACTIVE, 2: Phase.PRE_ACTIVE, 3: Phase.ACTIVE}
    house.rounds(hours=24)
    house.rounds(5)
    assert house.phases() == {1: Phase.DEACTIVATED, 2: Phase.DEACTIVATED, 3: Phase.ACTIVE}
    assert (len(house.enabled("bao")), len(house.enabled("prod")), live(house)) == (1, 1, [])


def test_a_file_that_nobody_has_carried_keeps_no_containment_from_ending(house: House) -> None:
    row = house.store.get(Import, "pay", 1, "prod", "pay")
    with house.store.write(house.call("ImportService/ExportKey").outcome()) as write:
        write.add(replace(row, remote_name="other", state=ImportState.PENDING, failure="EXPORTED", proven_at=None))
    compromise(house, 1)
    house.rounds(8)
    assert (live(house), house.enabled("prod")) == ([], [])


def live(house: House) -> list[str]:
    return [row.subject for row in house.rows(Operation) if not row.state.over]


def sent_by_a_call_that_died(house: House) -> None:
    """Version 2 is at a target, and nobody has written that down."""
    house.shelves["prod"].passing = die
    with pytest.raises(DiedError):
        house.imports.import_key(house.call("ImportService/ImportKey"), "pay", 2, "prod", "")
    house.shelves["prod"].passing = lambda _: None


class DiedError(BaseException):
    """The process is gone."""


def die(where: str) -> None:
    if where == "after an upload":
        raise DiedError
