"""Versions that are sealed by themselves once every named target has them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

from broker.core.holding import Holding
from broker.core.kinds import ImportState, KeyType, KeyUsage, Phase, Purpose
from broker.core.model import Import, KeyVersion, Operation, Target
from broker.core.policy.cedar import FIRST_POLICY
from broker.core.policy.guard import Guard
from tests.fakes.calls import document, operator
from tests.fakes.refusals import ending
from tests.unit.rotations.bench import House


@pytest.fixture
def house() -> House:
    made = House()
    made.furnish("bao")
    return made


def seal_once(house: House, *targets: str) -> None:
    house.keys.seal_once_at(house.call("KeyService/SealKey"), "pay", targets)


def sealed(house: House) -> Mapping[int, bool]:
    return {row.number: row.sealed for row in house.rows(KeyVersion) if row.key == "pay"}


def may_leave(house: House) -> list[bool]:
    """As the token has it."""
    ids = [row.hsm_id for row in house.rows(KeyVersion) if row.key == "pay"]
    found = house.ground.hsm.keys_of(Purpose.KEY)
    return [found[one] for one in ids]


def register(house: House) -> None:
    """A second target."""
    bao = house.store.get(Target, "bao")
    with house.store.write(house.call("TargetService/CreateTarget").outcome()) as write:
        write.add(replace(bao, name="prod", revision=1))


def minutes(house: House, count: int = 3) -> None:
    house.rounds(count, minutes=2)


def test_a_version_is_sealed_once_every_named_target_has_it_and_not_before(house: House) -> None:
    register(house)
    seal_once(house, "prod", "bao", "bao")
    assert house.key().sealed_once_at == ("bao", "prod")
    minutes(house)
    assert sealed(house) == {1: False}
    house.imports.import_key(house.call("ImportService/ImportKey"), "pay", 1, "prod", "")
    minutes(house)
    assert (sealed(house), may_leave(house), house.key().exportable) == ({1: True}, [False], True)
    asked = house.call("ImportService/ImportKey")
    house.shelves["prod"].held = {}
    assert ending(lambda: house.imports.import_key(asked, "pay", 1, "prod", "")) == "KEY_SEALED"


def test_the_next_version_is_sealed_once_it_is_in_force_everywhere(house: House) -> None:
    register(house)
    house.imports.import_key(house.call("ImportService/ImportKey"), "pay", 1, "prod", "")
    seal_once(house, "bao")
    minutes(house)
    house.away("prod")
    house.rotate()
    minutes(house)
    assert house.copies()["bao", 2] is ImportState.PROVEN
    assert sealed(house) == {1: True, 2: False}, "it is on its way to another target"
    house.back("prod")
    minutes(house, 10)
    assert (house.phases()[2], sealed(house)) == (Phase.ACTIVE, {1: True, 2: True})
    assert house.copies()["prod", 2] is ImportState.PROVEN


def test_a_version_that_protects_nothing_any_more_is_sealed_wherever_it_is(house: House) -> None:
    register(house)
    seal_once(house, "prod")
    house.rotations.compromise(house.call("KeyService/CompromiseKeyVersion"), "pay", 1, "leaked")
    minutes(house)
    assert sealed(house) == {1: True}


def test_by_hand_only_ends_it(house: House) -> None:
    register(house)
    seal_once(house, "bao", "prod")
    minutes(house)
    seal_once(house)
    house.imports.import_key(house.call("ImportService/ImportKey"), "pay", 1, "prod", "")
    minutes(house)
    assert (house.key().sealed_once_at, sealed(house)) == (None, {1: False})
    assert house.store.last(Operation, "key/pay/seal-once").state.over


def test_S_09_after_a_restore_nothing_is_sealed_before_somebody_asks_for_it_again(house: House) -> None:
    seal_once(house, "bao")
    assert Holding(house.store, house.own).hold() == 0, "nothing waits to be settled"
    minutes(house)
    assert (house.key().sealed_once_at, sealed(house)) == (None, {1: False})
    assert house.store.last(Operation, "key/pay/seal-once").failure == "RESTORED"
    seal_once(house, "bao")
    minutes(house)
    assert sealed(house) == {1: True}


def test_S_09_a_held_key_that_is_saved_is_not_sealed_by_a_wish_from_before_the_restore(house: House) -> None:
    register(house)
    seal_once(house, "bao", "prod")
    house.keys.schedule_destruction(house.call("KeyService/ScheduleKeyDestruction"), "pay", None)
    Holding(house.store, house.own).hold()
    house.keys.cancel_destruction(house.call("KeyService/CancelKeyDestruction"), "pay")
    assert house.key().sealed_once_at is None


def test_a_copy_that_came_to_nothing_does_not_count(house: House) -> None:
    old = house.store.get(Import, "pay", 1, "bao", "pay")
    with house.store.write(house.call("ImportService/ImportKey").outcome()) as write:
        write.replace(old, replace(old, state=ImportState.FAILED))
    seal_once(house, "bao")
    minutes(house)
    assert sealed(house) == {1: False}


def test_a_target_that_is_not_there_or_not_to_be_seen_is_refused(house: House) -> None:
    assert ending(lambda: seal_once(house, "nowhere")) == "TARGET_NOT_FOUND"
    policy = FIRST_POLICY + '@id("s") permit(principal == Operator::"eve", action == Action::"SealKey", resource);'
    guarded = house.elsewhere(guard=Guard(document(policy)))
    eve = house.asked("KeyService/SealKey", operator("eve"))
    assert ending(lambda: guarded.keys.seal_once_at(eve, "pay", ("bao",))) == "TARGET_NOT_FOUND"
    assert ending(lambda: seal_once(house, *(f"t{number}" for number in range(17)))) == "FIELD_TOO_LONG"


def test_a_key_that_never_leaves_the_hsm_is_refused(house: House) -> None:
    asked = house.call("KeyService/CreateKey")
    house.keys.create(asked, "stay", KeyType.EC_P256, KeyUsage.SIGN, exportable=False, labels={}, owner="")
    call = house.call("KeyService/SealKey")
    assert ending(lambda: house.keys.seal_once_at(call, "stay", ("bao",))) == "KEY_NOT_EXPORTABLE"
