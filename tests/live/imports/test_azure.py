"""Keys generated in SoftHSM, imported into a Key Vault and a Managed HSM (strict fakes) and proven there."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from azure.keyvault.keys import JsonWebKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key

from broker.core.errors import InvalidRequest, WrongState
from broker.core.kinds import ImportState, KeyType, KeyUsage
from broker.core.model import Terms
from broker.targets.azure_key_vault.kek import KEK_BITS
from tests.fakes.refusals import refused
from tests.live.imports.bench import same
from tests.live.targets.azure_bench import AzureBench, bench, vault
from tests.servers.azure_key_vault import FakeVault, forbidden
from tests.servers.fake_azure import key_client
from tests.servers.softhsm import KeysHsm

__all__ = ["bench", "vault"]  # fixtures


@pytest.fixture
def padding(vault: FakeVault, hsm: KeysHsm, tmp_path: Path) -> Iterator[AzureBench]:
    """As ``bench``, on a SoftHSM that pads before it wraps."""
    assert not hsm.report().exact_wrap
    made = AzureBench(vault, hsm, tmp_path)
    made.register()
    yield made
    made.close()


# ---- the main road -----------------------------------------------------------------------------------------------


@pytest.mark.sampled(3)
@pytest.mark.parametrize(("key_type", "usage"), [
    (KeyType.EC_P256, KeyUsage.SIGN), (KeyType.EC_P521, KeyUsage.SIGN), (KeyType.EC_SECP256K1, KeyUsage.SIGN),
    (KeyType.RSA_2048, KeyUsage.SIGN), (KeyType.RSA_2048, KeyUsage.ENCRYPT), (KeyType.AES_256, KeyUsage.ENCRYPT),
])  # fmt: skip
def test_a_key_is_imported_read_back_and_proven(bench: AzureBench, key_type: KeyType, usage: KeyUsage) -> None:
    key = bench.key(key_type, usage)
    done = bench.bring(key)
    (held,) = bench.held(key)
    assert (done.row.state, done.row.remote_version, done.extra) == (ImportState.PROVEN, held.version, ())
    assert (held.public_key, held.enabled) == (bench.version(key).public_key, True)
    assert same(bench.bring(key).row, done.row)
    assert bench.uploads(key) == 1


def test_a_new_version_goes_to_the_same_remote_key(bench: AzureBench) -> None:
    key = bench.key(KeyType.AES_256)
    first = bench.run(key)
    second = bench.run(bench.rotate(key))
    assert [one.version for one in bench.held(key)] == [first.remote_version, second.remote_version]
    assert [one.enabled for one in bench.held(key)] == [True, True]


def test_the_upload_is_what_az_keyvault_key_import_sends_for_the_same_file(bench: AzureBench) -> None:
    """As its source has it: the file's bytes as ``t``, kty with -HSM, --protection hsm, and all else as it defaults."""
    key = bench.key()
    bench.run(key)
    ours = next(one for one in bench.vault.requests if one.method == "PUT" and one.body)
    told = json.loads(ours.body)["key"]["key_hsm"]
    file = base64.urlsafe_b64decode(told + "=" * (-len(told) % 4))
    row = bench.row(key)
    assert row is not None
    ciphertext = json.loads(file)["ciphertext"]
    blob = base64.urlsafe_b64decode(ciphertext + "=" * (-len(ciphertext) % 4))
    assert hashlib.sha256(blob).hexdigest() == row.blob_sha256

    # --ops sign verify --kty EC --curve P-256 --byok-file
    jwk = JsonWebKey(key_ops=["sign", "verify"], kty="EC-HSM", t=file, crv="P-256")
    nothing = {"tags": None, "not_before": None, "expires_on": None, "exportable": None, "release_policy": None}
    with key_client(bench.vault) as client:
        client.import_key(name=key.name, key=jwk, hardware_protected=True, enabled=True, **nothing)
    theirs = [one for one in bench.vault.requests if one.method == "PUT" and one.body][-1]
    assert json.loads(ours.body) == json.loads(theirs.body)
    assert (ours.path, ours.query) == (theirs.path, theirs.query)


# ---- terms -------------------------------------------------------------------------------------------------------


def test_terms_are_settled_after_the_proof(bench: AzureBench) -> None:
    key, now = bench.key(), bench.clock().replace(microsecond=0)
    terms = Terms(
        operations=("sign",), tags={"team": "pay"}, enabled=False,
        not_before=now + timedelta(days=1), expires_at=now + timedelta(days=30),
    )  # fmt: skip
    assert bench.bring(key, terms).row.state is ImportState.PROVEN
    (held,) = bench.held(key)
    assert (held.key_ops, held.tags, held.enabled) == (["sign"], {"team": "pay"}, False)
    assert terms.not_before is not None
    assert terms.expires_at is not None
    assert held.attributes.not_before == int(terms.not_before.timestamp())
    assert held.attributes.expires == int(terms.expires_at.timestamp())
    steps = [one.method for one in bench.vault.requests if one.status == 200 and key.name in one.path]
    assert steps.index("PUT") < steps.index("POST") < steps.index("PATCH")
    outcome = [line for line in bench.journalled().splitlines() if '"phase":"outcome"' in line][-1]
    assert '"operations":"sign"' in outcome
    assert '"enabled":0' in outcome


def test_terms_that_the_vault_cannot_keep_are_refused_before_anything_is_wrapped(bench: AzureBench) -> None:
    key = bench.key()
    refused(lambda: bench.bring(key, Terms(operations=("import",))), InvalidRequest, "TERMS_UNSUPPORTED")
    refused(lambda: bench.bring(key, Terms(tags={"": "x"})), InvalidRequest, "TERMS_UNSUPPORTED")
    assert bench.row(key) is None
    assert bench.uploads(key) == 0


def test_a_proven_key_is_held_to_new_terms_without_another_upload(bench: AzureBench) -> None:
    key, number = bench.key(), "6f1c1b1e-8f65-4c6e-9a52-0d5c0f2e7a11"
    bench.run(key)
    bench.bring(key, Terms(tags={"a": "b"}), request_id=number)
    bench.bring(key, Terms(tags={"a": "c"}))
    assert bench.held(key)[0].tags == {"a": "c"}
    bench.bring(key, Terms(tags={"a": "b"}), request_id=number)  # an old request again is carried out once
    assert (bench.held(key)[0].tags, bench.uploads(key)) == ({"a": "c"}, 1)


def test_a_key_that_cannot_be_held_to_its_terms_does_not_stay_usable(bench: AzureBench) -> None:
    key = bench.key()
    bench.vault.faults.add(forbidden(), on=f"^PATCH /keys/{key.name}")
    refused(lambda: bench.bring(key, Terms(tags={"a": "b"})), WrongState, "TARGET_DENIED")
    row = bench.row(key)
    assert row is not None
    assert (row.state, bench.held(key)[0].enabled) == (ImportState.FAILED, False)
    assert bench.bring(key, Terms(tags={"a": "b"})).row.state is ImportState.PROVEN
    assert (bench.held(key)[0].enabled, bench.uploads(key)) == (True, 1)


# ---- the KEK -----------------------------------------------------------------------------------------------------


def test_a_kek_is_made_for_importing_only_and_pinned_by_its_version(bench: AzureBench) -> None:
    settings = {**bench.settings, "kek": "made"}
    bench.vault.stock(KEK_BITS)
    target = bench.targets.create(bench.call("CreateTarget"), "second", bench.kind, settings, "", create_kek=True)
    (kek,) = bench.vault.versions("made")
    assert target.kek_id == target.settings["kek"] == f"{bench.vault.url}/keys/made/{kek.version}"
    assert target.kek_thumbprint == hashlib.sha256(kek.public_key or b"").hexdigest()
    assert (kek.key_ops, kek.kty) == (["import"], "RSA-HSM")
    key = bench.key()
    done = bench.imports.import_key(bench.call("ImportKey"), key.name, 0, "second", "")
    assert done.row.state is ImportState.PROVEN
    again = bench.call("CreateTarget")
    refused(
        lambda: bench.targets.create(again, "third", bench.kind, settings, "", create_kek=True),
        WrongState,
        "TARGET_KEK_EXISTS",
    )
    assert len(bench.vault.versions("made")) == 1


def test_a_dry_run_makes_no_kek(bench: AzureBench) -> None:
    dry = bench.call("CreateTarget", validate_only=True)
    settings = {**bench.settings, "kek": "made"}
    bench.targets.create(dry, "second", bench.kind, settings, "", create_kek=True)
    assert bench.vault.versions("made") == []
    settings["kek"] = "kek"
    refused(
        lambda: bench.targets.create(dry, "second", bench.kind, settings, "", create_kek=True),
        WrongState,
        "TARGET_KEK_EXISTS",
    )


def test_BY_01_a_swapped_kek_gets_nothing(bench: AzureBench) -> None:
    key = bench.key()
    bench.vault.swap_kek()
    refused(lambda: bench.run(key), WrongState, "KEK_CHANGED")
    refused(lambda: bench.export(key), WrongState, "KEK_CHANGED")
    assert (bench.row(key), bench.uploads(key)) == (None, 0)


def test_BY_14_another_version_of_the_kek_is_used_once_it_is_pinned(bench: AzureBench) -> None:
    key = bench.key()
    kid = bench.vault.add_kek()
    der = bench.vault.versions("kek")[-1].public_key or b""
    old = bench.export(key)
    bench.targets.repin(bench.call("RepinTarget"), "bao", hashlib.sha256(der).hexdigest(), kid)
    new = bench.export(key)
    assert json.loads(new.transfer_file)["header"]["kid"] == kid != json.loads(old.transfer_file)["header"]["kid"]
    assert bench.run(key).state is ImportState.PROVEN


# ---- the token must wrap exactly ---------------------------------------------------------------------------------


@pytest.mark.parametrize("key_type", [KeyType.EC_P256, KeyType.RSA_2048])
def test_BY_07_what_a_padding_hsm_would_corrupt_is_refused_with_the_ways_out(
    padding: AzureBench, key_type: KeyType
) -> None:
    key = padding.key(key_type)
    dry = padding.call("ImportKey", validate_only=True)
    refused(lambda: padding.imports.import_key(dry, key.name, 0, "bao", ""), WrongState, "WRAP_NOT_EXACT")
    assert padding.row(key) is None
    error = refused(lambda: padding.run(key), WrongState, "WRAP_NOT_EXACT")
    for way in ("ec-p384", "AES", "tolerates", "2.7.0"):
        assert way in error.message
    refused(lambda: padding.export(key), WrongState, "WRAP_NOT_EXACT")
    assert (padding.uploads(key), padding.held(key)) == (0, [])


@pytest.mark.parametrize("key_type", [KeyType.EC_P384, KeyType.AES_256])
def test_BY_07_what_even_a_padding_hsm_does_right_is_imported(padding: AzureBench, key_type: KeyType) -> None:
    assert padding.run(padding.key(key_type)).state is ImportState.PROVEN


# ---- by hand -----------------------------------------------------------------------------------------------------


def upload(bench: AzureBench, name: str, file: bytes) -> None:
    """As Microsoft's own client does it, with none of our code."""
    jwk = JsonWebKey(kty="EC-HSM", crv="P-256", key_ops=["sign", "verify"], t=file)
    with key_client(bench.vault) as client:
        client.import_key(name, jwk, hardware_protected=True)


def test_an_exported_file_is_carried_uploaded_and_confirmed(bench: AzureBench) -> None:
    key = bench.key()
    out = bench.export(key)
    assert set(json.loads(out.transfer_file)) == {"schema_version", "header", "ciphertext", "generator"}
    assert bench.held(key) == []
    upload(bench, key.name, out.transfer_file)
    done = bench.confirm(key, Terms(tags={"carried": "by-hand"}))
    assert (done.row.state, bench.held(key)[0].tags) == (ImportState.PROVEN, {"carried": "by-hand"})


def test_the_kek_in_a_file_is_enough_to_export(bench: AzureBench) -> None:
    key = bench.key()
    public = load_der_public_key(bench.vault.versions("kek")[-1].public_key or b"")
    pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    before = len(bench.vault.requests)
    out = bench.export(key, pem)
    assert len(bench.vault.requests) == before
    upload(bench, key.name, out.transfer_file)
    assert bench.confirm(key).row.state is ImportState.PROVEN


def test_BY_06_a_file_that_was_uploaded_twice_leaves_one_usable_version(bench: AzureBench) -> None:
    key = bench.key()
    file = bench.export(key).transfer_file
    for _ in range(3):
        upload(bench, key.name, file)
    done = bench.confirm(key)
    usable = [one.version for one in bench.held(key) if one.enabled]
    assert usable == [done.row.remote_version]
    rest = [one.version for one in bench.held(key) if not one.enabled]
    assert sorted(one.version for one in done.extra) == sorted(rest)
    assert {one.disabled for one in done.extra} == {True}
    outcome = [line for line in bench.journalled().splitlines() if '"phase":"outcome"' in line][-1]
    assert sorted(json.loads(outcome)["facts"]["extra_versions"].split()) == sorted(rest)


def test_a_double_that_cannot_be_disabled_is_told_and_the_import_stands(bench: AzureBench) -> None:
    key = bench.key()
    file = bench.export(key).transfer_file
    for _ in range(2):
        upload(bench, key.name, file)
    bench.vault.denied.add("update")
    done = bench.confirm(key)
    assert done.row.state is ImportState.PROVEN
    assert [one.disabled for one in done.extra] == [False]
    assert '!"' in [line for line in bench.journalled().splitlines() if "extra_versions" in line][-1]


def test_BY_10_somebody_elses_key_is_neither_added_to_nor_touched(bench: AzureBench) -> None:
    key, other = bench.key(), bench.key()
    upload(bench, key.name, bench.export(other).transfer_file)
    (before,) = bench.held(key)
    refused(lambda: bench.run(key), WrongState, "TARGET_NAME_TAKEN")
    refused(lambda: bench.export(key), WrongState, "TARGET_NAME_TAKEN")
    assert bench.held(key) == [before]
    assert before.enabled
    assert bench.run(key, remote_name="another").state is ImportState.PROVEN
