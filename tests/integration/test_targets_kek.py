"""A KEK that will not do: the refusal says what is so, and what helps in that very situation; the tests follow it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from broker.core.errors import BrokerError
from broker.core.kinds import ImportState
from tests.integration.azure_bench import AzureBench, bench, vault
from tests.servers.azure_key_vault import FakeVault, Refused
from tests.servers.fake_azure import key_client

__all__ = ["bench", "vault"]  # fixtures


def refused(reason: str, action: Callable[[], object]) -> str:
    with pytest.raises(BrokerError) as caught:
        action()
    assert caught.value.reason == reason, caught.value.message
    return caught.value.message


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
    advice = refused("KEK_UNSUITABLE", lambda: bench.bring(bench.key()))
    assert f"--name kek --version {version} --enabled true" in advice
    assert advice in checked(bench)
    follow(bench, advice)
    owner.update_key_properties("kek", version, enabled=True)


def test_K11_a_kek_that_was_deleted_can_be_recovered_or_replaced(bench: AzureBench) -> None:
    owner = key_client(bench.vault)
    owner.begin_delete_key("kek").wait()
    advice = refused("TARGET_KEK_MISSING", lambda: bench.bring(bench.key()))
    assert "az keyvault key recover" in advice
    owner.begin_recover_deleted_key("kek").wait()
    assert bench.bring(bench.key()).row.state is ImportState.PROVEN
    owner.begin_delete_key("kek").wait()
    owner.purge_deleted_key("kek")
    advice = refused("TARGET_KEK_MISSING", lambda: bench.bring(bench.key()))
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
    told = refused("KEK_UNSUITABLE", lambda: bench.bring(bench.key()))
    assert all(word in told for word in words)
    assert "create-kek" not in told


def test_K11_a_kek_that_was_replaced_is_not_pinned_by_pasting_what_is_offered(bench: AzureBench) -> None:
    bench.vault.swap_kek()
    told = refused("KEK_CHANGED", lambda: bench.bring(bench.key()))
    assert "`broker target repin bao --thumbprint`" in told
    assert "--thumbprint " + told.split("thumbprint ")[1][:8] not in told
    bench.targets.repin(bench.call("RepinTarget"), "bao", thumbprint(bench.vault, "kek"))
    assert bench.bring(bench.key()).row.state is ImportState.PROVEN


def test_K11_a_target_that_is_only_being_registered_is_told_of_making_one(bench: AzureBench) -> None:
    wrong = bench.vault.add_kek("wrong", key_ops=("import", "encrypt"))
    settings = {**bench.settings, "kek": wrong}

    def register(chosen: dict[str, str], *, create: bool = False) -> object:
        call = bench.call("CreateTarget")
        return bench.targets.create(call, "second", bench.kind, chosen, "", create_kek=create)

    told = refused("KEK_UNSUITABLE", lambda: register(settings))
    assert "--create-kek" in told
    assert "repin" not in told
    told = refused("TARGET_KEK_EXISTS", lambda: register({**settings, "kek": "wrong"}, create=True))
    assert "choose another name" in told
    register({**settings, "kek": "fresh"}, create=True)
    told = refused("TARGET_EXISTS", lambda: register({**settings, "kek": "fresh2"}, create=True))
    assert "repin" in told
