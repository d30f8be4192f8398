"""A KEK that will not do: the refusal says what is so, and what helps in that very situation; the tests follow it."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from broker.core.errors import Unavailable
from broker.core.kinds import ImportState
from broker.core.model import Target
from broker.targets.azure_key_vault import kek as azure
from tests.contracts.store.samples import read_journal
from tests.fakes.background import carry_on
from tests.fakes.refusals import refused
from tests.live.targets.azure_bench import AzureBench, bench, vault
from tests.servers.azure_key_vault import Effect, FakeVault, KeyVersion, Refused
from tests.servers.fake_azure import key_client

__all__ = ["bench", "vault"]  # fixtures

REQUEST = "5b1c7c9a-6a53-4f0e-9d8e-2f4d2a7c9b10"


def thumbprint(vault: FakeVault, name: str) -> str:
    material = vault.versions(name)[-1].material
    assert isinstance(material, rsa.RSAPrivateKey)
    spki = material.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return ":".join(hashlib.sha256(spki).hexdigest().upper()[at : at + 2] for at in range(0, 64, 2))


def follow(bench: AzureBench, advice: str) -> None:
    """Have another KEK made and pin it, which is what the advice says, and import."""
    assert "`broker target repin bao --kek ID --thumbprint SHA256`" in advice
    assert "--create-kek" not in advice
    assert "target add" not in advice
    kek = bench.vault.add_kek("another")
    bench.targets.repin(bench.call("RepinTarget"), "bao", thumbprint(bench.vault, "another"), kek)
    assert bench.bring(bench.key()).row.state is ImportState.PROVEN


def checked(bench: AzureBench) -> str:
    """What the check says of the target, as far as it does not pass."""
    found = bench.targets.check(bench.call("CheckTarget"), "bao")
    return " ".join(one.detail for one in found if not one.passed)


def test_K11_a_kek_that_was_disabled_can_be_enabled_or_replaced(bench: AzureBench) -> None:
    version = bench.vault.versions("kek")[-1].version
    owner = key_client(bench.vault)
    owner.update_key_properties("kek", version, enabled=False)
    advice = refused(lambda: bench.bring(bench.key()), reason="KEK_UNSUITABLE").message
    assert f"--name kek --version {version} --enabled true" in advice
    assert advice in checked(bench)
    follow(bench, advice)
    owner.update_key_properties("kek", version, enabled=True)


def test_K11_a_kek_that_was_deleted_can_be_recovered_or_replaced(bench: AzureBench) -> None:
    owner = key_client(bench.vault)
    owner.begin_delete_key("kek").wait()
    advice = refused(lambda: bench.bring(bench.key()), reason="TARGET_KEK_MISSING").message
    assert "az keyvault key recover" in advice
    owner.begin_recover_deleted_key("kek").wait()
    assert bench.bring(bench.key()).row.state is ImportState.PROVEN
    owner.begin_delete_key("kek").wait()
    owner.purge_deleted_key("kek")
    advice = refused(lambda: bench.bring(bench.key()), reason="TARGET_KEK_MISSING").message
    assert "nor to be recovered" in advice
    follow(bench, advice)


@pytest.mark.parametrize(("code", "words"), [
    ("KeyExpired", ("has expired", "--expires")), ("KeyNotYetValid", ("is not valid yet", "--not-before")),
    ("KeyDisabled", ("is disabled", "--enabled true")),
])  # fmt: skip
def test_K11_what_keeps_the_kek_from_opening_is_told_apart(
    bench: AzureBench, code: str, words: tuple[str, str]
) -> None:
    bench.vault.faults.add(Refused(403, "Forbidden", "no", inner=code), on="PUT /keys/")
    told = refused(lambda: bench.bring(bench.key()), reason="KEK_UNSUITABLE").message
    assert all(word in told for word in words)
    assert "create-kek" not in told


def test_K11_a_kek_that_was_replaced_is_not_pinned_by_pasting_what_is_offered(bench: AzureBench) -> None:
    bench.vault.swap_kek()
    told = refused(lambda: bench.bring(bench.key()), reason="KEK_CHANGED").message
    assert "`broker target repin bao --thumbprint`" in told
    assert "--thumbprint " + told.split("thumbprint ")[1][:8] not in told
    bench.targets.repin(bench.call("RepinTarget"), "bao", thumbprint(bench.vault, "kek"))
    assert bench.bring(bench.key()).row.state is ImportState.PROVEN


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """RSA-4096 takes its time, and how long the key is counts for nothing here."""
    # Patched: the length is in nobody's configuration.
    monkeypatch.setattr(azure, "KEK_BITS", 2048)


@pytest.mark.usefixtures("small")
def test_K11_a_target_that_is_only_being_registered_is_told_of_making_one(bench: AzureBench) -> None:
    wrong = bench.vault.add_kek("wrong", key_ops=("import", "encrypt"))
    settings = {**bench.settings, "kek": wrong}

    def register(chosen: dict[str, str], *, create: bool = False) -> object:
        call = bench.call("CreateTarget")
        return bench.targets.create(call, "second", bench.kind, chosen, "", create_kek=create)

    told = refused(lambda: register(settings), reason="KEK_UNSUITABLE").message
    assert "--create-kek" in told
    assert "repin" not in told
    told = refused(lambda: register({**settings, "kek": "wrong"}, create=True), reason="TARGET_KEK_EXISTS").message
    assert "choose another name" in told
    register({**settings, "kek": "fresh"}, create=True)
    told = refused(lambda: register({**settings, "kek": "fresh2"}, create=True), reason="TARGET_EXISTS").message
    assert "repin" in told


# ---- a KEK whose answer was lost -------------------------------------------------------------------------------------


def add(bench: AzureBench, kek: str = "fresh", *, request_id: str = "") -> Target:
    asked = bench.call("CreateTarget", request_id=request_id)
    return bench.targets.create(asked, "second", bench.kind, {**bench.settings, "kek": kek}, "", create_kek=True)


def lose_answer(bench: AzureBench, request_id: str = "") -> KeyVersion:
    bench.vault.faults.add(Effect.LOSE_ANSWER, on="POST /keys/fresh")
    with pytest.raises(Unavailable):
        add(bench, request_id=request_id)
    (made,) = bench.vault.versions("fresh")
    return made


def background(bench: AzureBench, **later: float) -> None:
    bench.clock.forward(**later)
    carry_on(bench.operations, bench.clock)


def told(bench: AzureBench) -> list[dict[str, Any]]:
    lines = [line for chain in read_journal(bench.journal).values() for line in chain]
    return [line["facts"] for line in lines if line.get("reason") == "TARGET_NOT_ADDED"]


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("request_id", ["", REQUEST])
def test_a_kek_whose_answer_was_lost_is_found_again_by_a_repetition(bench: AzureBench, request_id: str) -> None:
    made = lose_answer(bench, request_id)
    refused(lambda: add(bench, "another"), reason="OPERATION_RUNNING")
    refused(lambda: bench.register("second"), reason="OPERATION_RUNNING")
    added = add(bench, request_id=request_id)
    assert added.kek_id == f"{bench.vault.url}/keys/fresh/{made.version}"
    assert bench.vault.versions("fresh") == [made]
    background(bench, hours=2)
    assert bench.targets.get(bench.call("GetTarget"), "second") == added
    assert told(bench) == []
    if request_id:
        bench.clock.forward(hours=23)
        for _, forget in bench.operations.chores():
            forget(bench.call("Chore"))
        assert add(bench, request_id=request_id) == added


@pytest.mark.usefixtures("small")
def test_I_22_a_kek_that_nobody_comes_back_for_is_told_and_can_be_registered(bench: AzureBench) -> None:
    made = lose_answer(bench, REQUEST)
    background(bench, minutes=1)
    assert told(bench) == []  # the call may still be under way
    bench.vault.faults.add(Effect.CUT, on="GET /keys/fresh", times=99)
    background(bench, minutes=2)
    assert told(bench) == []
    bench.vault.faults.clear()
    background(bench, minutes=2)
    (facts,) = told(bench)
    assert {"target": "second", "remote_name": "fresh", "state": "kek-stays"}.items() <= facts.items()
    assert facts["kek_thumbprint"] == thumbprint(bench.vault, "fresh").replace(":", "").lower()
    refused(lambda: add(bench, request_id=REQUEST), reason="EARLIER_TRY_UNDONE")
    advice = refused(lambda: add(bench), reason="TARGET_KEK_EXISTS").message
    kek = f"{bench.vault.url}/keys/fresh/{made.version}"
    assert kek in advice
    asked = bench.call("CreateTarget")
    assert bench.targets.create(asked, "second", bench.kind, {**bench.settings, "kek": kek}, "").kek_id == kek


@pytest.mark.usefixtures("small")
def test_a_name_is_free_again_when_the_target_stays_away(bench: AzureBench) -> None:
    lose_answer(bench)
    bench.vault.faults.add(Effect.CUT, on="GET /keys/fresh", times=99)
    background(bench, minutes=3)
    refused(lambda: bench.register("second"), reason="OPERATION_RUNNING")
    background(bench, hours=1)
    (facts,) = told(bench)
    assert (facts["state"], "kek_thumbprint" in facts) == ("kek-unknown", False)
    bench.register("second")


def test_a_target_that_makes_no_kek_leaves_nothing_under_way(bench: AzureBench) -> None:
    bench.vault.faults.add(Refused(403, "Forbidden", "no"), on="POST /keys/fresh")
    refused(lambda: add(bench), reason="TARGET_DENIED")
    (facts,) = told(bench)
    assert facts["state"] == "kek-absent"
    bench.register("second")


def test_a_target_that_does_not_answer_leaves_nothing_under_way(bench: AzureBench) -> None:
    bench.vault.faults.add(Effect.CUT, on="GET /keys/fresh", times=9)
    with pytest.raises(Unavailable):
        add(bench)
    bench.vault.faults.clear()
    bench.register("second")
    assert bench.vault.versions("fresh") == []
