"""Imports to a target that makes a wrapping key for each of them: nothing is pinned, and all else is as everywhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from broker.core.call import Call
from broker.core.kinds import ImportState, KeyType, KeyUsage
from broker.core.model import Import, Target, Terms
from broker.core.ports import Cargo
from tests.fakes.fresh_keys import KIND, FreshKeys
from tests.fakes.refusals import refused
from tests.worlds.world import World

TYPES = [(KeyType.EC_P256, KeyUsage.SIGN), (KeyType.AES_256, KeyUsage.ENCRYPT), (KeyType.RSA_2048, KeyUsage.SIGN)]


class House(World):
    """A world with a key ``pay`` of the type asked for, and the target ``kms`` once it is registered."""

    def __init__(self) -> None:
        self.port = FreshKeys()
        super().__init__(connect=self)

    def __call__(self, name: str, kind: str, settings: Mapping[str, str]) -> Any:  # noqa: ARG002 (there is one)
        return self.port

    def canonical(self, kind: str, settings: Mapping[str, str]) -> dict[str, str]:  # noqa: ARG002 (it has none)
        return dict(settings)

    def call(self, method: str, *, validate_only: bool = False) -> Call:
        return self.asked(f"X/{method}", validate_only=validate_only)

    def register(self, thumbprint: str = "", **more: Any) -> Target:
        return self.targets.create(self.call("CreateTarget"), "kms", KIND, {}, thumbprint, **more)

    def generate(
        self, key_type: KeyType = KeyType.EC_P256, usage: KeyUsage = KeyUsage.SIGN, *, name: str = "pay"
    ) -> None:
        self.keys.create(self.call("CreateKey"), name, key_type, usage, exportable=True, labels={}, owner="")

    def bring(self, name: str = "", terms: Terms | None = None, *, validate_only: bool = False) -> tuple[Import, Call]:
        asked = self.call("ImportKey", validate_only=validate_only)
        return self.imports.import_key(asked, "pay", 0, "kms", name, terms or Terms()).row, asked


@pytest.fixture
def house() -> House:
    made = House()
    made.register()
    made.generate()
    return made


@pytest.mark.parametrize(("key_type", "usage"), TYPES)
def test_a_key_is_imported_and_proven_under_a_wrapping_key_of_its_own(key_type: KeyType, usage: KeyUsage) -> None:
    house = House()
    registered = house.register()
    assert (registered.kek_id, registered.kek_thumbprint) == ("", "")
    house.generate(key_type, usage)
    row, asked = house.bring()
    assert (row.state, row.remote_version) == (ImportState.PROVEN, "1")
    assert row.kek_thumbprint == asked.facts["kek_thumbprint"]
    assert house.port.offered == [Cargo(name="pay", type=key_type, usage=usage, first=True)]


def test_each_import_has_another_wrapping_key_and_a_proof_has_none(house: House) -> None:
    first, _ = house.bring()
    house.keys.rotate(house.call("RotateKey"), "pay")
    second, _ = house.bring()
    assert [one.remote_version for one in (first, second)] == ["1", "2"]
    assert first.kek_thumbprint != second.kek_thumbprint
    assert [one.first for one in house.port.offered] == [True, False]
    house.bring()
    house.imports.prove(house.call("ProveImport"), "pay", 0, "kms")
    assert len(house.port.offered) == 2, "what is there already is wrapped for nobody"


def test_a_dry_run_makes_no_wrapping_key(house: House) -> None:
    row, _ = house.bring(validate_only=True)
    assert (row.state, row.kek_thumbprint) == (ImportState.PENDING, "")
    assert (house.port.offered, house.store.get(Import, "pay", 1, "kms", "pay")) == ([], None)


def test_BY_02_a_weak_wrapping_key_gets_nothing_and_the_import_is_over(house: House) -> None:
    house.port.bits = 1024
    refused(house.bring, reason="KEK_WEAK")
    assert house.hsm.calls["wrap"] == 0
    row = house.store.get(Import, "pay", 1, "kms", "pay")
    assert row is not None
    assert (row.state, row.failure, row.blob_sha256) == (ImportState.FAILED, "KEK_WEAK", "")
    house.port.bits = 2048
    assert house.bring()[0].state is ImportState.PROVEN


def test_BY_10_a_name_that_is_taken_there_is_refused_before_anything_is_wrapped(house: House) -> None:
    house.bring()
    house.generate(name="other")
    wraps = house.hsm.calls["wrap"]
    refused(
        lambda: house.imports.import_key(house.call("ImportKey"), "other", 0, "kms", "pay"), reason="TARGET_NAME_TAKEN"
    )
    assert house.hsm.calls["wrap"] == wraps


def test_what_such_a_target_has_not_is_refused_with_nothing_done(house: House) -> None:
    terms = Terms(tags={"team": "blue"})
    assert "import it without" in refused(lambda: house.bring(terms=terms), reason="TERMS_UNSUPPORTED").message
    exported = lambda: house.handover.export(house.call("ExportKey"), "pay", 0, "kms", "")  # noqa: E731
    assert "`broker key import`" in refused(exported, reason="TRANSFER_FILES_OFF").message
    assert (house.port.offered, house.store.page(Import, limit=9)) == ([], [])


def test_nothing_can_be_pinned_or_made_at_registration() -> None:
    house = House()
    assert "leave the thumbprint out" in refused(lambda: house.register("0" * 64), reason="THUMBPRINT_INVALID").message
    refused(lambda: house.register(create_kek=True), reason="TARGET_KEK_FIXED")
    house.port.denied = "import"
    assert "import" in refused(house.register, reason="TARGET_DENIED").message
    assert house.store.get(Target, "kms") is None
    house.port.denied = ""
    house.register()
    repin = lambda: house.targets.repin(house.call("RepinTarget"), "kms", "0" * 64)  # noqa: E731
    refused(repin, reason="THUMBPRINT_INVALID")


def test_a_check_says_that_each_import_has_a_new_one(house: House) -> None:
    found = {one.name: one for one in house.targets.check(house.call("CheckTarget"), "kms")}
    assert all(one.passed for one in found.values()), found
    assert "for each import" in found["kek"].detail
    assert house.port.offered == []
    house.port.denied = "import"
    found = {one.name: one for one in house.targets.check(house.call("CheckTarget"), "kms")}
    assert [name for name, one in found.items() if one.passed] == ["reachable", "copies"]
