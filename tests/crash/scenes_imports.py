"""Imports, keys that people carry to a target, and what an older release has left of either."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from broker.core.errors import WrongState
from broker.core.imports.rules import EXPORTED
from broker.core.kinds import ImportState, KeyType, Sent
from broker.core.model import Import, Terms
from tests.crash.harness import Scene
from tests.crash.import_house import House

Act = Callable[[House], object]
VERIFY_ONLY = Terms(operations=("verify",), enabled=False)


# ---- what must be so, wherever it died ------------------------------------------------------------------------------


def uploads(house: House) -> int:
    """Nothing that has arrived goes away again."""
    return len(house.shelf.there(house.remote))


def proven(house: House) -> None:
    row = house.held()
    assert (row.state, len(house.shelf.enabled(house.remote)), uploads(house)) == (ImportState.PROVEN, 1, 1)


def proven_or_never_there(house: House) -> None:
    """Nobody came back: nothing is sent in the background, and what had arrived is proven."""
    row = house.row()
    there = row is not None and row.state is ImportState.PROVEN
    assert there == (house.shelf.enabled(house.remote) != [])
    assert uploads(house) <= 1


def on_terms(house: House) -> None:
    """A caller that is told that it is proven is told so of a key that is held to its terms."""
    row = house.row()
    if row is not None and row.state is ImportState.PROVEN:
        (one,) = house.shelf.there(house.remote)
        assert (one.terms, one.enabled) == (VERIFY_ONLY, False)
    assert uploads(house) <= 1


def on_terms_for_certain(house: House) -> None:
    on_terms(house)
    assert house.held().state is ImportState.PROVEN


def of_no_use(house: House) -> None:
    """The wrong key cannot be used; but of an answer that the process did not live to hear nobody knows anything."""
    row = house.row()
    if row is None or row.failure != "REMOTE_KEY_MISSING":
        assert house.shelf.enabled(house.remote) == []
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
    house.shelf.carried(house.remote, KeyType.EC_P256, house.export().transfer_file)


def was_refused(house: House) -> None:
    """A proof was refused once, so what is there was disabled by the broker; now it would not be refused."""
    house.shelf.deny("sign")
    with pytest.raises(WrongState):
        house.bring(request_id="")
    assert house.shelf.enabled(house.remote) == []


def swapping(house: House) -> None:
    house.shelf.swaps = True


def swapping_and_away(house: House) -> None:
    """It keeps another key, and is away when that is to be disabled."""
    swapping(house)
    house.shelf.lose("disable")


def silent(house: House) -> None:
    """It takes the upload, and is not heard of for a while."""
    house.shelf.lose("import_key")
    house.shelf.lose("versions")


def away_when_asked(house: House) -> None:
    """It takes the upload, says so, and cannot be asked about it."""
    house.shelf.lose("versions")


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
    assert house.shelf.enabled(house.remote) == []


def scene(
    *,
    kinds: frozenset[str],
    act: Act,
    check: Act,
    prepare: Act = lambda _: None,
    again: Act | None = None,
    key_type: KeyType = KeyType.EC_P256,
) -> Scene:
    """One story of a plan, in a house that has a key and a target."""

    def furnished(house: House) -> None:
        house.furnish(key_type)
        prepare(house)

    return Scene(kinds=kinds, prepare=furnished, act=act, again=again, check=check, world=House)


def of(*kinds: str) -> frozenset[str]:
    return frozenset(kinds)


IMPORT, ON_TERMS = of("import-key"), of("import-key-on-terms")
AES = KeyType.AES_256

SCENES = {
    "import": scene(kinds=IMPORT, act=House.bring, check=proven_or_never_there),
    "import, asked again": scene(kinds=IMPORT, act=House.bring, again=House.bring, check=proven_or_never_there),
    "import of a symmetric key": scene(kinds=IMPORT, act=House.bring, check=proven_or_never_there, key_type=AES),
    "import, another request later": scene(
        kinds=IMPORT,
        act=House.bring,
        again=lambda house: house.much_later().bring(request_id=""),
        check=proven,
    ),
    "import, what is there was disabled": scene(
        kinds=IMPORT,
        prepare=was_refused,
        act=lambda house: house.bring(request_id=""),
        again=lambda house: house.much_later().bring(request_id=""),
        check=proven,
    ),
    "import, what is there was disabled, and nobody comes back": scene(
        kinds=IMPORT, prepare=was_refused, act=lambda house: house.bring(request_id=""), check=proven_or_never_there
    ),
    "import, another key is kept": scene(kinds=IMPORT, prepare=swapping, act=House.bring, check=of_no_use),
    "import, another symmetric key is kept": scene(
        kinds=IMPORT, prepare=swapping, act=House.bring, check=of_no_use, key_type=AES
    ),
    "import, another key is kept and cannot be disabled": scene(
        kinds=IMPORT, prepare=swapping_and_away, act=House.bring, check=of_no_use
    ),
    "import, another key is kept and cannot be asked": scene(
        kinds=IMPORT, prepare=swapping_and_silent, act=House.bring, check=of_no_use
    ),
    "import, no answer": scene(kinds=IMPORT, prepare=silent, act=House.bring, check=proven_or_never_there),
    "import, cannot be asked": scene(
        kinds=IMPORT, prepare=away_when_asked, act=House.bring, check=proven_or_never_there
    ),
    "import on terms": scene(kinds=ON_TERMS, act=lambda house: house.bring(VERIFY_ONLY), check=on_terms),
    "import on terms, the same request later": scene(
        kinds=ON_TERMS,
        act=lambda house: house.bring(VERIFY_ONLY),
        again=lambda house: house.much_later().bring(VERIFY_ONLY),
        check=on_terms_for_certain,
    ),
    "import on terms, another request later": scene(
        kinds=ON_TERMS,
        act=lambda house: house.bring(VERIFY_ONLY),
        again=lambda house: house.much_later().bring(VERIFY_ONLY, ""),
        check=on_terms_for_certain,
    ),
    "export": scene(kinds=of("export-key"), act=House.export, check=exported_or_not),
    "export, asked again": scene(kinds=of("export-key"), act=House.export, again=House.export, check=exported),
    "confirm": scene(kinds=of("confirm-key"), prepare=carried, act=House.confirm, check=confirmed_or_waits),
    "confirm, asked again": scene(
        kinds=of("confirm-key"), prepare=carried, act=House.confirm, again=House.confirm, check=certain
    ),
    "confirm on terms": scene(
        kinds=of("confirm-key-on-terms"),
        prepare=carried,
        act=lambda house: house.confirm(VERIFY_ONLY),
        check=confirmed_or_waits,
    ),
    "adopted, pending": scene(kinds=IMPORT, prepare=left_pending, act=House.adopt, check=proven),
    "adopted, to be disabled": scene(kinds=IMPORT, prepare=left_disabling, act=House.adopt, check=failed_and_disabled),
}
