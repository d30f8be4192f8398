"""A target that is removed in the middle, and another kind registered under its name: nothing of the former is its."""

from __future__ import annotations

from typing import Any

import pytest

from broker.core.errors import Unavailable
from broker.core.findings import DriftReport, Finding
from broker.core.kinds import Drift, ImportState, OperationState
from broker.core.model import Import, Operation, Target
from tests.fakes.refusals import refused
from tests.fakes.shelf import Shelf
from tests.unit.rotations.bench import House

KIND = "other-shelf"


@pytest.fixture
def house() -> House:
    made = House()
    made.furnish()
    return made


def forget(house: House, *, unknown: bool = False) -> None:
    house.targets.delete(house.call("TargetService/DeleteTarget"), "prod", copies_unknown=unknown)


def register_another(house: House) -> Shelf:
    """Another kind of target, in another place, under the name of the former."""
    house.shelves["prod"] = made = Shelf()
    house.targets.create(house.call("TargetService/CreateTarget"), "prod", KIND, {}, "")
    assert house.store.get(Target, "prod").kind == KIND
    return made


def deleted_there(house: House) -> None:
    """People delete the key at the target, and have the broker look."""
    house.shelves["prod"].held.pop("pay")
    asked = house.call("ImportService/ProveImport")
    refused(lambda: house.imports.prove(asked, "pay", 1, "prod"), reason="REMOTE_KEY_MISSING")


def sending(house: House) -> Operation:
    found: Operation | None = house.store.last(Operation, "key/pay/2/to/prod/pay")
    assert found is not None
    return found


def under_way(house: House) -> None:
    """A rotation waits for the target, whose former copy is gone by now."""

    def never_taken(moment: str) -> None:
        if moment == "before an upload":
            raise Unavailable("TARGET_UNREACHABLE", "Away.")

    house.away("prod")
    house.rotate()
    house.rounds(3)
    assert sending(house).state is OperationState.RUNNING
    house.back("prod")
    house.shelves["prod"].passing = never_taken
    deleted_there(house)


def test_a_rotation_does_not_bring_its_version_to_what_has_the_name_by_now(house: House) -> None:
    under_way(house)
    forget(house)
    house.clock.forward(seconds=1)
    other = register_another(house)
    house.rounds(12, minutes=1)
    assert (other.held, other.uploads) == ({}, 0)
    assert (sending(house).state, house.rotation().state) == (OperationState.DONE, OperationState.DONE)
    assert house.signs() == 2
    house.imports.import_key(house.call("ImportService/ImportKey"), "pay", 2, "prod", "")
    assert len(other.held["pay"]) == 1, "who wants it there asks for it"


def test_the_name_of_a_target_where_copies_may_be_is_nobodys_any_more(house: House) -> None:
    house.away("prod")
    house.rotate()
    house.rounds(3)
    refused(lambda: forget(house), reason="TARGET_IN_USE")
    forget(house, unknown=True)
    house.rounds(12, minutes=1)
    assert (sending(house).state, house.signs()) == (OperationState.DONE, 2)
    error = refused(lambda: register_another(house), reason="TARGET_NAME_USED")
    assert "choose another name" in error.message


def test_what_was_gone_at_the_former_is_not_taken_for_what_is_at_the_other(house: House) -> None:
    deleted_there(house)
    forget(house)
    house.clock.forward(seconds=1)
    other = register_another(house)
    assert house.copies()["prod", 1] is ImportState.GONE
    house.imports.import_key(house.call("ImportService/ImportKey"), "pay", 1, "prod", "")
    assert (house.copies()["prod", 1], other.uploads) == (ImportState.PROVEN, 1)


def test_what_a_look_at_the_former_has_found_is_forgotten_with_it(house: House) -> None:
    found: dict[str, Any] = {"key": "pay", "version": 1, "remote_name": "pay", "remote_version": "1", "detail": ""}
    finding = Finding(drift=Drift.DELETED, found_at=house.clock(), **found)
    with house.store.write(house.call("DriftService/CheckDrift").outcome()) as write:
        write.add(DriftReport(place="prod", checked_at=house.clock(), findings=(finding,)))
    deleted_there(house)
    forget(house)
    register_another(house)
    assert house.store.get(DriftReport, "prod") is None
    house.imports.import_key(house.call("ImportService/ImportKey"), "pay", 1, "prod", "")
    rows = [row for row in house.rows(Import) if row.target == "prod"]
    assert [one.drifts for one in house.imports.whereabouts(rows)] == [()]
