"""Imports dead at every place: whether nobody comes next or the same request, what is at the target is what is said.

A *place* is before or after a change at the target, or before or after a commit (``tests.crash.harness``).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import pytest

from broker.core.errors import BrokerError, PermissionDenied, Unavailable, WrongState
from broker.core.imports.road import written
from broker.core.imports.rules import EXPORTED, NO_TERMS, TERMS_UNSETTLED
from broker.core.imports.steps import PATIENCE
from broker.core.kinds import ImportState, KeyType, Sent
from broker.core.model import Import, Operation, Terms
from broker.core.policy.guard import Guard
from tests.crash.harness import Died
from tests.crash.import_house import House
from tests.crash.scenes import SCENES as OTHERS
from tests.fakes.calls import document

VERIFY_ONLY = Terms(operations=("verify",), enabled=False)


def away() -> Unavailable:
    return Unavailable("TARGET_UNREACHABLE", "Away.")


# ---- what must be so, wherever it died ---------------------------------------------------------------------------


def whole(house: House) -> None:
    """What the row says is what the target has."""
    row, enabled = house.row(), house.shelf.enabled("pay")
    assert [one for one in house.rows(Operation) if not one.state.over] == []
    if row is None:
        assert house.shelf.held == {}
        return
    assert row.state in {ImportState.PROVEN, ImportState.FAILED} or (row.state, row.failure) == ("pending", EXPORTED)
    if row.state is ImportState.PROVEN:
        assert row.proven_at is not None
        assert house.shelf.held["pay"][int(row.remote_version) - 1].public_key == public(house)
    elif row.sent is Sent.NOTHING:
        assert house.shelf.held == {}
    if not house.shelf.swaps:
        assert len(enabled) <= 1, "one version of it at most can be used"


def public(house: House) -> bytes | None:
    found = house.store.version("pay", 1)
    assert found is not None
    key: bytes | None = found[1].public_key
    return key


def proven(house: House) -> None:
    row = house.held()
    assert (row.state, len(house.shelf.enabled("pay")), house.shelf.uploads) == (ImportState.PROVEN, 1, 1)


def proven_or_never_there(house: House) -> None:
    """Nobody came back: nothing is sent in the background, and what had arrived is proven."""
    row = house.row()
    there = row is not None and row.state is ImportState.PROVEN
    assert there == (house.shelf.enabled("pay") != [])
    assert house.shelf.uploads <= 1


def on_terms(house: House) -> None:
    """A caller that is told that it is proven is told so of a key that is held to its terms."""
    row = house.row()
    if row is not None and row.state is ImportState.PROVEN:
        (one,) = house.shelf.held["pay"]
        assert (one.terms, one.enabled) == (VERIFY_ONLY, False)
    assert house.shelf.uploads <= 1


def on_terms_for_certain(house: House) -> None:
    on_terms(house)
    assert house.held().state is ImportState.PROVEN


def of_no_use(house: House) -> None:
    """The wrong key cannot be used; but of an answer that the process did not live to hear nobody knows anything."""
    row = house.row()
    if row is None or row.failure != "REMOTE_KEY_MISSING":
        assert house.shelf.enabled("pay") == []
    else:
        assert row.may_be_there


def exported_or_not(house: House) -> None:
    row = house.row()
    if row is not None and row.state is ImportState.PENDING:
        assert (row.failure, row.sent) == (EXPORTED, Sent.FILE)
    elif row is not None:
        assert (row.state, row.failure, row.sent) == (ImportState.FAILED, "ABANDONED", Sent.NOTHING)


def exported(house: House) -> None:
    row = house.held()
    assert (row.state, row.failure, row.sent) == (ImportState.PENDING, EXPORTED, Sent.FILE)


def confirmed_or_waits(house: House) -> None:
    assert (house.held().state, house.held().failure) in {(ImportState.PROVEN, ""), (ImportState.PENDING, EXPORTED)}


def certain(house: House) -> None:
    assert house.held().state is ImportState.PROVEN


# ---- the scenes --------------------------------------------------------------------------------------------------


def carried(house: House) -> None:
    house.shelf.carried("pay", house.export().transfer_file)


def was_refused(house: House) -> None:
    """A proof was refused once, so what is there was disabled by the broker; now it would not be refused."""
    house.shelf.refuses["sign"] = [WrongState("TARGET_DENIED", "No.")]
    with pytest.raises(WrongState):
        house.bring(request_id="")
    assert house.shelf.enabled("pay") == []


def swapping(house: House) -> None:
    house.shelf.swaps = True


def swapping_and_away(house: House) -> None:
    """It keeps another key, and is away when that is to be disabled."""
    swapping(house)
    house.shelf.refuses["disable"] = [away()]


def silent(house: House) -> None:
    """It takes the upload, and is not heard of for a while."""
    house.shelf.refuses.update(import_key=[away()], versions=[away()])


def away_when_asked(house: House) -> None:
    """It takes the upload, says so, and cannot be asked about it."""
    house.shelf.refuses["versions"] = [away()]


def swapping_and_silent(house: House) -> None:
    """It keeps another key, says so, and cannot be asked about it."""
    swapping(house)
    away_when_asked(house)


def left_pending(house: House) -> None:
    """As an older release left it: a row without an operation."""
    house.bring(request_id="")
    row = house.held()
    with house.store.write(house.call("Test").outcome()) as write:
        write.replace(row, Import(**{**fields(row), "state": ImportState.PENDING, "proven_at": None}))
    house.clock.forward(hours=1)


def left_disabling(house: House) -> None:
    left_pending(house)
    row = house.held()
    with house.store.write(house.call("Test").outcome()) as write:
        write.replace(row, Import(**{**fields(row), "state": ImportState.DISABLING, "failure": "PROOF_FAILED"}))


def fields(row: Import) -> dict[str, Any]:
    return {name: getattr(row, name) for name in Import.__slots__}


def failed_and_disabled(house: House) -> None:
    row = house.held()
    assert (row.state, row.failure) == (ImportState.FAILED, "PROOF_FAILED")
    assert house.shelf.enabled("pay") == []


Act = Callable[[House], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """One story of a plan; ``again``: the same request once more, by the next process."""

    kinds: frozenset[str]
    act: Act
    check: Callable[[House], None]
    prepare: Act = lambda _: None
    again: Act | None = None
    key_type: KeyType = KeyType.EC_P256

    def acted(self, at: int) -> House:
        house = House()
        house.furnish(self.key_type)
        self.prepare(house)
        house.fate.begin(at)
        with suppress(Died, BrokerError):
            self.act(house)
        return house


def of(*kinds: str) -> frozenset[str]:
    return frozenset(kinds)


IMPORT, ON_TERMS = of("import-key"), of("import-key-on-terms")
AES = KeyType.AES_256

SCENES = {
    "import": Scene(kinds=IMPORT, act=House.bring, check=proven_or_never_there),
    "import, asked again": Scene(kinds=IMPORT, act=House.bring, again=House.bring, check=proven_or_never_there),
    "import of a symmetric key": Scene(kinds=IMPORT, act=House.bring, check=proven_or_never_there, key_type=AES),
    "import, another request later": Scene(
        kinds=IMPORT,
        act=House.bring,
        again=lambda house: house.much_later().bring(request_id=""),
        check=proven,
    ),
    "import, what is there was disabled": Scene(
        kinds=IMPORT,
        prepare=was_refused,
        act=lambda house: house.bring(request_id=""),
        again=lambda house: house.much_later().bring(request_id=""),
        check=proven,
    ),
    "import, what is there was disabled, and nobody comes back": Scene(
        kinds=IMPORT, prepare=was_refused, act=lambda house: house.bring(request_id=""), check=proven_or_never_there
    ),
    "import, another key is kept": Scene(kinds=IMPORT, prepare=swapping, act=House.bring, check=of_no_use),
    "import, another symmetric key is kept": Scene(
        kinds=IMPORT, prepare=swapping, act=House.bring, check=of_no_use, key_type=AES
    ),
    "import, another key is kept and cannot be disabled": Scene(
        kinds=IMPORT, prepare=swapping_and_away, act=House.bring, check=of_no_use
    ),
    "import, another key is kept and cannot be asked": Scene(
        kinds=IMPORT, prepare=swapping_and_silent, act=House.bring, check=of_no_use
    ),
    "import, no answer": Scene(kinds=IMPORT, prepare=silent, act=House.bring, check=proven_or_never_there),
    "import, cannot be asked": Scene(
        kinds=IMPORT, prepare=away_when_asked, act=House.bring, check=proven_or_never_there
    ),
    "import on terms": Scene(kinds=ON_TERMS, act=lambda house: house.bring(VERIFY_ONLY), check=on_terms),
    "import on terms, the same request later": Scene(
        kinds=ON_TERMS,
        act=lambda house: house.bring(VERIFY_ONLY),
        again=lambda house: house.much_later().bring(VERIFY_ONLY),
        check=on_terms_for_certain,
    ),
    "import on terms, another request later": Scene(
        kinds=ON_TERMS,
        act=lambda house: house.bring(VERIFY_ONLY),
        again=lambda house: house.much_later().bring(VERIFY_ONLY, ""),
        check=on_terms_for_certain,
    ),
    "export": Scene(kinds=of("export-key"), act=House.export, check=exported_or_not),
    "export, asked again": Scene(kinds=of("export-key"), act=House.export, again=House.export, check=exported),
    "confirm": Scene(kinds=of("confirm-key"), prepare=carried, act=House.confirm, check=confirmed_or_waits),
    "confirm, asked again": Scene(
        kinds=of("confirm-key"), prepare=carried, act=House.confirm, again=House.confirm, check=certain
    ),
    "confirm on terms": Scene(
        kinds=of("confirm-key-on-terms"),
        prepare=carried,
        act=lambda house: house.confirm(VERIFY_ONLY),
        check=confirmed_or_waits,
    ),
    "adopted, pending": Scene(kinds=IMPORT, prepare=left_pending, act=House.chores, check=proven),
    "adopted, to be disabled": Scene(kinds=IMPORT, prepare=left_disabling, act=House.chores, check=failed_and_disabled),
}


@pytest.mark.parametrize("title", sorted(SCENES))
def test_I_18_an_import_that_dies_anywhere_is_brought_to_its_end(title: str) -> None:
    scene = SCENES[title]
    house = scene.acted(0)
    assert scene.kinds <= {row.kind for row in house.rows(Operation)}
    places = list(house.fate.passed)
    assert len(places) >= 4
    for at in range(1, len(places) + 1):
        died = scene.acted(at)
        assert died.fate.passed[-1] == places[at - 1]
        house = died.restarted()
        if scene.again is not None:
            with suppress(BrokerError):  # something may still be on its way, or it was given up meanwhile
                scene.again(house)
        later(house)
        try:
            whole(house)
            scene.check(house)
        except AssertionError as error:
            raise AssertionError(f"died {places[at - 1]} (place {at} of {len(places)})") from error


def later(house: House) -> None:
    for _ in range(2):
        house.clock.forward(hours=1)
        with suppress(BrokerError):  # as the loop does, which logs it and tries again
            house.chores()
    house.later()


def test_every_plan_of_imports_has_a_scene() -> None:
    of_others = frozenset[str]().union(*(one.kinds for one in OTHERS.values()))
    assert House().operations.plans.keys() - of_others == frozenset[str]().union(
        *(one.kinds for one in SCENES.values())
    )


@pytest.mark.parametrize("title", sorted(title for title in SCENES if "another" in title and "kept" in title))
def test_BY_05_another_key_than_was_sent_is_disabled_though_the_caller_does_not_come_back(title: str) -> None:
    house = SCENES[title].acted(0)
    house.later()
    assert (house.held().state, house.held().failure) == (ImportState.FAILED, "PROOF_FAILED")
    assert house.shelf.enabled("pay") == []


def test_what_another_request_has_asked_for_meanwhile_is_not_undone_by_the_background() -> None:
    died = SCENES["import on terms"].acted(9)
    assert died.fate.passed[-1] == "before terms are set"
    house = died.restarted().much_later()
    (stale,) = [row for rows in house.operations.due().values() for row in rows]
    wanted = Terms(operations=("sign",))
    house.shelf.refuses["apply"] = [away()]
    with pytest.raises(Unavailable):
        house.bring(wanted, "")
    assert (house.held().state, house.held().failure) == (ImportState.PENDING, TERMS_UNSETTLED)
    (one,) = house.shelf.held["pay"]
    house.operations.carry_on(house.own(stale.subject), stale)
    assert one.terms == NO_TERMS
    house.later()
    assert one.terms == wanted
    whole(house)


def test_I_14_what_people_have_disabled_meanwhile_is_not_enabled_by_the_background() -> None:
    house = SCENES["import on terms"].acted(9).restarted()
    row = next(one for one in house.rows(Operation) if one.kind == "import-key-on-terms")
    with house.store.write(house.call("Test").outcome()) as write:
        write.replace(row, replace(row, memory={**row.memory, "terms": written(Terms(operations=("sign",)))}))
    (one,) = house.shelf.held["pay"]
    one.enabled = False
    house.later()
    assert house.held().state is ImportState.PROVEN
    assert (one.enabled, one.terms) == (False, Terms(operations=("sign",), enabled=False))


def test_while_a_call_may_still_be_at_it_the_background_is_not() -> None:
    house = SCENES["import"].acted(5).restarted()
    house.clock.forward(seconds=PATIENCE.total_seconds() - 1)
    assert house.operations.due() == {}
    house.clock.forward(seconds=1)
    assert list(house.operations.due()) == ["bao"]


def test_S_17_what_nobody_is_permitted_any_more_is_not_sent_by_the_background() -> None:
    died = SCENES["import"].acted(3)
    assert died.fate.passed[-1] == "before an upload"
    house = died.restarted(Guard(document(version=2, text='@id("none") forbid (principal, action, resource);')))
    with pytest.raises(PermissionDenied):
        house.bring()
    later(house)
    assert (house.held().state, house.held().failure) == (ImportState.FAILED, "REMOTE_KEY_MISSING")
    assert (house.shelf.held, house.shelf.uploads) == ({}, 0)
