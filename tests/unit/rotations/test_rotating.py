"""A key rotated everywhere: in which order, what waits for whom, and what a refusal or a death leaves."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from functools import partial

import pytest

from broker.core.errors import PermissionDenied
from broker.core.imports.rules import MAX_COPIES
from broker.core.kinds import ImportState, KeyType, KeyUsage, OperationState, OperatorState, Phase
from broker.core.model import Import, Operation, Operator, Target
from broker.core.policy.cedar import FIRST_POLICY
from broker.core.policy.guard import Guard
from tests.fakes.calls import document, operator
from tests.fakes.refusals import ending, refused
from tests.unit.rotations.bench import REQUEST, TARGETS, House

GRACE = timedelta(hours=24)


@pytest.fixture
def house() -> House:
    made = House()
    made.furnish()
    return made


def test_the_new_version_is_proven_everywhere_before_it_signs_and_the_former_one_is_retired(house: House) -> None:
    begun = house.rotate()
    assert begun.operation is not None
    assert begun.operation.state is OperationState.RUNNING
    assert (house.phases(), house.signs()) == ({1: Phase.ACTIVE, 2: Phase.PRE_ACTIVE}, 1)
    house.rounds(3)
    assert house.copies() == dict.fromkeys(
        [(name, number) for number in (1, 2) for name in TARGETS], ImportState.PROVEN
    )
    assert (house.phases(), house.signs()) == ({1: Phase.ACTIVE, 2: Phase.ACTIVE}, 2)
    house.rounds(3)
    assert house.phases()[1] is Phase.ACTIVE, "its grace is not over"
    house.rounds(hours=24)
    house.rounds(3)
    assert house.phases() == {1: Phase.DEACTIVATED, 2: Phase.ACTIVE}
    assert house.copies()["bao", 1] is house.copies()["prod", 1] is ImportState.DISABLED
    assert (house.enabled("bao"), house.enabled("prod")) == ([2], [2])
    assert house.rotation().state is OperationState.DONE
    assert house.moves() == [
        (1, "active", "operator/alice", "created"),
        (1, "deactivated", "operator/alice", "rotated"),
        (2, "pre-active", "operator/alice", "created"),
        (2, "active", "operator/alice", "rotated"),
    ]


def test_what_ends_the_former_version_is_begun_for_the_end_of_its_grace(house: House) -> None:
    house.rotate(GRACE)
    house.rounds(3)
    ending_it = house.store.last(Operation, "key/pay/2/former")
    assert ending_it is not None
    assert ending_it.due_at == ending_it.created_at + GRACE
    assert ending_it.revision == 1, "nobody had to take it up to find that it is too early"


def test_a_version_that_is_made_for_a_rotation_is_not_searched_for_in_the_token(house: House) -> None:
    house.rotate()
    assert house.hsm.fresh == [True, True]  # the first version, and the next one


def test_FT_31_a_target_that_is_away_holds_up_no_other_and_is_waited_for(house: House) -> None:
    house.away("prod")
    house.rotate()
    house.rounds(5)
    assert house.copies()["bao", 2] is ImportState.PROVEN
    assert (house.signs(), house.phases()[2]) == (1, Phase.PRE_ACTIVE)
    house.rounds(120, seconds=30)
    house.back("prod")
    house.rounds(20, seconds=3)
    assert (house.copies()["prod", 2], house.signs()) == (ImportState.PROVEN, 2), "within a minute of its return"


def test_a_rotation_of_a_key_that_is_nowhere_else_is_at_once(house: House) -> None:
    asked = house.call("KeyService/CreateKey")
    house.keys.create(asked, "solo", KeyType.AES_256, KeyUsage.ENCRYPT, exportable=False, labels={}, owner="")
    done = house.rotations.rotate(house.call("KeyService/RotateKey"), "solo", None)
    assert (done.key.primary, done.places) == (2, ())


def test_rotating_while_a_rotation_runs_is_refused(house: House) -> None:
    house.away("prod")
    house.rotate()
    assert ending(house.rotate) == "KEY_ROTATION_RUNNING"
    assert house.key().latest == 2


def test_the_same_request_is_the_same_rotation(house: House) -> None:
    first = house.rotate(request_id=REQUEST)
    assert first.operation is not None
    again = house.rotate(request_id=REQUEST)
    assert again.operation is not None
    assert (again.operation.number, house.key().latest) == (first.operation.number, 2)


def test_given_up_in_time_the_version_is_out_of_use_wherever_it_had_come(house: House) -> None:
    house.away("prod")
    house.rotate()
    house.rounds(3)
    assert house.enabled("bao") == [1, 2]
    with house.store.write(house.call("OperationService/AbortOperation").outcome()) as write:
        house.operations.abort(write, house.call("OperationService/AbortOperation"), house.rotation())
    house.back("prod")
    house.rounds(40, seconds=10)
    assert house.rotation().state is OperationState.UNDONE
    assert (house.phases()[2], house.signs(), house.enabled("bao"), house.enabled("prod")) == (
        Phase.DEACTIVATED, 1, [1], [1],
    )  # fmt: skip


def test_once_the_new_version_is_in_force_there_is_no_way_back(house: House) -> None:
    house.rotate()
    house.rounds(3)
    assert ending(lambda: house.operations.aborted(house.rotation())) == "OPERATION_OVER"
    former = house.store.get(Operation, "key/pay/2/former", 1)
    assert ending(lambda: house.operations.aborted(former)) == "OPERATION_ONLY_FORWARD"


def test_during_the_grace_of_a_rotation_the_key_can_be_rotated_and_contained(house: House) -> None:
    house.rotate()
    house.rounds(3)
    house.rotations.compromise(house.call("KeyService/CompromiseKeyVersion"), "pay", 2, "leaked")
    assert ending(house.signs) == "KEY_VERSION_PHASE"
    house.rotate(timedelta(0))
    house.rounds(8)
    assert (house.signs(), house.enabled("bao"), house.enabled("prod")) == (3, [3], [3])
    house.rounds(hours=24)
    house.rounds(4)
    assert house.phases() == {1: Phase.DEACTIVATED, 2: Phase.COMPROMISED, 3: Phase.ACTIVE}


def test_AZ_14_who_asked_and_was_removed_since_brings_nothing_anywhere(house: House) -> None:
    house.away("prod")
    house.rotate()
    stored = house.store.get(Operator, "alice")
    with house.store.write(house.call("OperatorService/RemoveOperator").outcome()) as write:
        write.replace(stored, replace(stored, state=OperatorState.REMOVED))
    house.back("prod")
    house.rounds(20, seconds=10)
    assert ("prod", 2) not in house.copies() or house.copies()["prod", 2] is not ImportState.PROVEN
    assert house.signs() == 1


def test_a_target_that_was_removed_meanwhile_is_not_waited_for(house: House) -> None:
    house.away("prod")
    house.rotate()
    house.rounds(2)
    with house.store.write(house.call("TargetService/DeleteTarget").outcome()) as write:
        write.delete(house.store.get(Target, "prod"))
    house.rounds(20, seconds=10)
    assert house.signs() == 2


def test_a_dry_run_says_where_it_would_go_and_changes_nothing(house: House) -> None:
    asked = replace(house.call("KeyService/RotateKey"), validate_only=True)
    would = house.rotations.rotate(asked, "pay", None)
    assert ([one.target for one in would.places], would.operation, house.key().latest) == (list(TARGETS), None, 1)


@pytest.mark.parametrize("grace", [timedelta(days=367), timedelta(seconds=-1)])
def test_a_grace_that_makes_no_sense_is_refused(house: House, grace: timedelta) -> None:
    assert ending(lambda: house.rotate(grace)) == "GRACE_OUT_OF_RANGE"
    assert house.key().latest == 1


def test_who_may_not_import_the_key_somewhere_begins_no_rotation(house: House) -> None:
    pat = operator("pat")
    only = '@id("pat") permit (principal == Operator::"pat", action == Action::"RotateKey", resource);'
    strict = House(house.ground, Guard(document(FIRST_POLICY + only)))
    asked = strict.asked("KeyService/RotateKey", pat)
    error = refused(lambda: strict.rotations.rotate(asked, "pay", None), PermissionDenied, "POLICY_DENIED")
    assert error.metadata["action"] == "ImportKey"
    assert house.key().latest == 1


def fill(house: House, state: ImportState) -> None:
    """As many copies on record at a target, under names of their own, as there may be."""
    one = house.store.get(Import, "pay", 1, "prod", "pay")
    with house.store.write(house.call("ImportService/ImportKey").outcome()) as write:
        for number in range(MAX_COPIES - 1):
            write.add(replace(one, remote_name=f"a{number}", state=state, revision=1))


def test_a_rotation_for_which_a_target_has_no_room_is_refused_before_a_version_is_made(house: House) -> None:
    fill(house, ImportState.DISABLED)
    assert "--here-only" in refused(house.rotate, reason="IMPORT_QUOTA").message
    assert house.key().latest == 1
    asked = house.call("KeyService/RotateKey")
    assert ending(lambda: house.rotations.check(asked, house.key())) == "IMPORT_QUOTA"
    assert ending(lambda: house.rotations.rotate(replace(asked, validate_only=True), "pay", None)) == "IMPORT_QUOTA"
    assert house.keys.rotate(house.call("KeyService/RotateKey"), "pay").primary == 2


def test_a_version_of_here_only_is_refused_while_another_one_is_on_its_way_to_the_targets(house: House) -> None:
    house.away("prod")
    house.rotate()
    house.rounds(3)
    dry = replace(house.call("KeyService/RotateKey"), validate_only=True)
    for asked in (house.call("KeyService/RotateKey"), dry):
        said = refused(partial(house.keys.rotate, asked, "pay"), reason="KEY_ROTATION_RUNNING").message
        assert "key/pay/rotation/1" in said
        assert "broker key activate pay --version 2" in said
    assert (house.key().latest, house.signs()) == (2, 1)
    live = house.store.get(Operation, "key/pay/rotation", 1)
    with house.store.write(house.call("OperationService/AbortOperation").outcome()) as write:
        house.operations.abort(write, house.call("OperationService/AbortOperation"), live)
    assert house.keys.rotate(house.call("KeyService/RotateKey"), "pay").primary == 3


def test_copies_that_are_gone_take_no_room_and_hide_no_other_one(house: House) -> None:
    fill(house, ImportState.GONE)
    house.rotate(timedelta(0))
    house.rounds(8)
    house.rotate(timedelta(0))
    house.rounds(8)
    assert [house.store.get(Import, "pay", number, "prod", "pay").state for number in (1, 2, 3)] == [
        ImportState.DISABLED, ImportState.DISABLED, ImportState.PROVEN,
    ]  # fmt: skip
