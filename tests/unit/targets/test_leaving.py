"""A target is forgotten only once nothing of ours is there; what has to be done before harms nobody else's key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from broker.core.errors import BrokerError, Unavailable, WrongState
from broker.core.kinds import ImportState, Sent
from broker.core.model import Import, Target
from tests.fakes.refusals import refused
from tests.fakes.shelf import Held
from tests.unit.rotations.bench import House


@pytest.fixture
def house() -> House:
    made = House()
    made.furnish()
    return made


def new_key(house: House, refusal: BrokerError) -> Import:
    """Another key, that the target ``prod`` has refused for this reason."""
    asked = house.call("KeyService/CreateKey")
    house.keys.create(asked, "new", house.key().type, house.key().usage, exportable=True, labels={}, owner="")
    return brought(house, refusal)


def brought(house: House, refusal: BrokerError) -> Import:
    def refuse(moment: str) -> None:
        if moment == "before an upload":
            raise refusal

    house.shelves["prod"].passing = refuse
    with pytest.raises(type(refusal)):
        house.imports.import_key(house.call("ImportService/ImportKey"), "new", 1, "prod", "")
    house.shelves["prod"].passing = lambda _: None
    row: Import | None = house.store.get(Import, "new", 1, "prod", "new")
    assert row is not None
    return row


def gone(house: House, target: str = "prod") -> None:
    """The key ``pay`` is deleted there, and the broker has seen it."""
    house.shelves[target].held.pop("pay")
    asked = house.call("ImportService/ProveImport")
    refused(lambda: house.imports.prove(asked, "pay", 1, target), reason="REMOTE_KEY_MISSING")


def forget(house: House, target: str = "prod") -> None:
    house.targets.delete(house.call("TargetService/DeleteTarget"), target)


TAKEN = WrongState("TARGET_NAME_TAKEN", "A key of this name exists.")


@pytest.mark.parametrize("refusal", [TAKEN, WrongState("TARGET_NAME_DELETED", "A deleted one holds it.")])
def test_K06_an_import_of_which_nothing_was_made_is_not_in_the_way(house: House, refusal: BrokerError) -> None:
    row = new_key(house, refusal)
    assert (row.state, row.failure, row.sent) == (ImportState.FAILED, refusal.reason, Sent.NOTHING)
    gone(house)
    forget(house)
    assert house.store.get(Target, "prod") is None


def test_K06_what_an_attempt_before_may_have_left_stays_in_the_way(house: House) -> None:
    lost = new_key(house, Unavailable("TARGET_UNREACHABLE", "Away."))
    assert lost.sent is Sent.UPLOAD
    house.clock.forward(minutes=2)
    assert brought(house, TAKEN).sent is Sent.UPLOAD
    gone(house)
    told = refused(lambda: forget(house), reason="TARGET_IN_USE").message
    assert "broker key prove new --version 1 --target prod --remote-name new" in told
    house.shelves["prod"].held["new"] = [Held(ec.generate_private_key(ec.SECP256R1()), "1")]
    asked = house.call("ImportService/ProveImport")
    refused(lambda: house.imports.prove(asked, "new", 1, "prod"), reason="REMOTE_KEY_MISSING")
    forget(house)
    assert len(house.shelves["prod"].held["new"]) == 1, "it is somebody else's"


def test_K06_a_copy_that_was_put_out_of_use_is_in_the_way_until_it_is_seen_to_be_gone(house: House) -> None:
    house.rotate(timedelta(0))
    house.rounds(8)
    assert house.copies()["prod", 1] is ImportState.DISABLED

    def prove(version: int) -> str:
        asked = house.call("ImportService/ProveImport")
        with pytest.raises(WrongState) as caught:
            house.imports.prove(asked, "pay", version, "prod")
        return caught.value.reason

    assert prove(1) == "IMPORT_NOT_PROVEN"
    refused(lambda: forget(house), reason="TARGET_IN_USE")
    house.shelves["prod"].held.pop("pay")
    assert prove(2) == "REMOTE_KEY_MISSING"
    refused(lambda: forget(house), reason="TARGET_IN_USE")
    assert prove(1) == "REMOTE_KEY_MISSING"
    assert {state for (target, _), state in house.copies().items() if target == "prod"} == {ImportState.GONE}
    forget(house)


def test_what_has_the_place_of_a_copy_that_was_put_out_of_use_is_not_called_ours(house: House) -> None:
    house.rotate(timedelta(0))
    house.rounds(8)
    house.shelves["prod"].held["pay"][0] = Held(ec.generate_private_key(ec.SECP256R1()), "1")
    asked = house.call("ImportService/ProveImport")
    told = refused(lambda: house.imports.prove(asked, "pay", 1, "prod"), reason="IMPORT_NOT_PROVEN").message
    assert "as another key, which is not the broker's to delete" in told


@pytest.mark.parametrize(
    ("changes", "remedy"),
    [
        ({}, "broker key prove pay --version 1 --target prod --remote-name pay"),
        ({"state": ImportState.HELD}, "broker key confirm pay --version 1 --target prod --remote-name pay"),
        ({"state": ImportState.PENDING}, "broker operation list --live"),
        ({"state": ImportState.DISABLING}, "broker operation list --live"),
        ({"state": ImportState.PENDING, "failure": "EXPORTED", "sent": Sent.FILE, "remote_version": ""}, "A file"),
    ],
)
def test_what_is_to_be_done_first_fits_what_is_there(house: House, changes: Mapping[str, object], remedy: str) -> None:
    old = house.store.get(Import, "pay", 1, "prod", "pay")
    assert old is not None
    with house.store.write(house.call("ImportService/ImportKey").outcome()) as write:
        write.replace(old, replace(old, **changes))
    told = refused(lambda: forget(house), reason="TARGET_IN_USE").message
    assert remedy in told
    assert "--copies-unknown" in told
    assert "once each is deleted" not in told
