"""The life of a key version, step by step and at once."""

from __future__ import annotations

from dataclasses import replace

import pytest

from broker.core.keys.phases import ALLOWED, MOVES, Use
from broker.core.kinds import ImportState, OperationState, Phase
from broker.core.model import Operation
from tests.fakes.refusals import ending, refused
from tests.unit.rotations.bench import TARGETS, House


@pytest.fixture
def house() -> House:
    made = House()
    made.furnish()
    return made


def test_every_phase_says_what_it_allows_and_no_way_leads_back() -> None:
    assert set(ALLOWED) == set(Phase)
    assert ALLOWED[Phase.ACTIVE] == frozenset(Use)
    assert all(Use.PROTECT not in ALLOWED[one] for one in Phase if one is not Phase.ACTIVE)
    order = [Phase.PRE_ACTIVE, Phase.ACTIVE, Phase.DEACTIVATED, Phase.COMPROMISED]
    assert all(order.index(after) > order.index(before) for before, found in MOVES.items() for after in found)


def test_prepare_activate_retire_one_by_one(house: House) -> None:
    house.rotations.prepare(house.call("KeyService/PrepareKeyVersion"), "pay")
    assert (house.phases(), house.signs()) == ({1: Phase.ACTIVE, 2: Phase.PRE_ACTIVE}, 1)
    house.imports.import_key(house.call("ImportService/ImportKey"), "pay", 2, "bao", "")
    house.rotations.activate(house.call("KeyService/ActivateKeyVersion"), "pay", 2)
    assert house.signs() == 2
    assert house.rotations.activate(house.call("KeyService/ActivateKeyVersion"), "pay", 2).primary == 2
    house.rotations.retire(house.call("KeyService/RetireKeyVersion"), "pay", 1)
    assert house.phases() == {1: Phase.DEACTIVATED, 2: Phase.ACTIVE}
    retire = house.rotations.retire
    assert ending(lambda: retire(house.call("KeyService/RetireKeyVersion"), "pay", 2)) == "KEY_VERSION_PRIMARY"
    activate = house.rotations.activate
    asked = house.call("KeyService/ActivateKeyVersion")
    assert ending(lambda: activate(asked, "pay", 1)) == "KEY_VERSION_PHASE", "no way leads back"


def test_what_a_phase_does_not_allow_is_refused(house: House) -> None:
    house.rotations.prepare(house.call("KeyService/PrepareKeyVersion"), "pay")
    verify = house.use.verify
    asked = house.call("KeyService/Verify")
    assert ending(lambda: verify(asked, "pay", 2, None, b"m", b"s", prehashed=False)) == "KEY_VERSION_PHASE"
    house.rotations.activate(house.call("KeyService/ActivateKeyVersion"), "pay", 2)
    house.rotations.retire(house.call("KeyService/RetireKeyVersion"), "pay", 1)
    assert ending(lambda: verify(asked, "pay", 1, None, b"m", b"s", prehashed=False)) == "ok"
    bring = house.imports.import_key
    asked = house.call("ImportService/ImportKey")
    assert ending(lambda: bring(asked, "pay", 1, "bao", "other")) != "ok"


def test_a_compromised_version_protects_nothing_from_now_on_and_goes_out_of_use_everywhere(house: House) -> None:
    house.away("prod")
    compromise = house.rotations.compromise
    would = compromise(replace(house.call("KeyService/CompromiseKeyVersion"), validate_only=True), "pay", 0, "leaked")
    assert ([one.target for one in would.places], house.phases()) == (list(TARGETS), {1: Phase.ACTIVE})
    done = compromise(house.call("KeyService/CompromiseKeyVersion"), "pay", 0, "The laptop was stolen.")
    assert done.operation is not None
    assert house.phases() == {1: Phase.COMPROMISED}
    assert ending(house.signs) == "KEY_VERSION_PHASE"
    house.rounds(2)
    assert (house.enabled("bao"), house.enabled("prod")) == ([], [1]), "one that is away holds up no other"
    house.back("prod")
    house.rounds(20, seconds=5)
    assert house.enabled("prod") == []
    assert set(house.copies().values()) == {ImportState.DISABLED}
    over = house.store.get(Operation, done.operation.subject, done.operation.number)
    assert over is not None
    assert over.state is OperationState.DONE
    seconds = [entry.facts["seconds"] for entry in house.ground.store.entries if "seconds" in entry.facts]
    assert len(seconds) == 1
    assert house.moves()[-1] == (1, "compromised", "operator/alice", "The laptop was stolen.")


def test_the_replacement_of_a_compromised_version_signs_again(house: House) -> None:
    house.rotations.compromise(house.call("KeyService/CompromiseKeyVersion"), "pay", 1, "leaked")
    house.rounds(3)
    house.rotate()
    house.rounds(5)
    assert (house.signs(), house.phases()) == (2, {1: Phase.COMPROMISED, 2: Phase.ACTIVE})


@pytest.mark.parametrize("why", ["", "  ", "x" * 501, "two\nlines"])
def test_a_compromise_says_why_in_one_line(house: House, why: str) -> None:
    asked = house.call("KeyService/CompromiseKeyVersion")
    error = refused(lambda: house.rotations.compromise(asked, "pay", 1, why), reason="COMPROMISE_REASON_INVALID")
    assert error.message.endswith(": give one line of at most 500 characters.")
    assert house.phases() == {1: Phase.ACTIVE}


def test_compromise_of_what_is_compromised_or_gone_is_one_sentence(house: House) -> None:
    compromise = house.rotations.compromise
    asked = house.call("KeyService/CompromiseKeyVersion")
    compromise(asked, "pay", 1, "leaked")
    asked = house.call("KeyService/CompromiseKeyVersion")
    assert ending(lambda: compromise(asked, "pay", 1, "again")) == "KEY_VERSION_PHASE"
    assert ending(lambda: compromise(asked, "pay", 7, "none")) == "KEY_VERSION_NOT_FOUND"
