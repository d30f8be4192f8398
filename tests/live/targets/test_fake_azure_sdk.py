"""The fake under Microsoft's own client: everything an import takes, and every way to use what was imported."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

import pytest
from azure.core.exceptions import HttpResponseError, ResourceExistsError, ResourceNotFoundError
from azure.keyvault.keys import JsonWebKey, KeyVaultKey
from azure.keyvault.keys.crypto import EncryptionAlgorithm, KeyWrapAlgorithm, SignatureAlgorithm
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed, encode_dss_signature
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.keywrap import aes_key_wrap

from tests.servers.azure_key_vault import FakeVault
from tests.servers.fake_azure import Private, StaticToken, b64, crypto_client, key_client, pkcs8, raw_to, transfer

MESSAGE = b"challenge"
OLD = hashes.SHA1()  # noqa: S303 (what RFC 7518 means by RSA-OAEP)
ES: dict[str, tuple[str, ec.EllipticCurve, hashes.HashAlgorithm]] = {
    "ES256": ("P-256", ec.SECP256R1(), hashes.SHA256()),
    "ES384": ("P-384", ec.SECP384R1(), hashes.SHA384()),
    "ES512": ("P-521", ec.SECP521R1(), hashes.SHA512()),
    "ES256K": ("P-256K", ec.SECP256K1(), hashes.SHA256()),
}


@cache
def rsa_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


@pytest.fixture(scope="module", params=["premium", "managed-hsm"])
def vault(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeVault]:
    with FakeVault(tmp_path_factory.mktemp("vault"), kind=request.param) as started:
        yield started


@pytest.fixture
def name() -> str:
    return f"k-{os.urandom(4).hex()}"


def import_key(vault: FakeVault, name: str, key: Private | bytes, crv: str | None = None, **more: Any) -> KeyVaultKey:
    """As the broker does it, a key exchange key first if there is none."""
    with key_client(vault) as client:
        if not vault.versions("kek"):
            client.create_rsa_key("kek", size=2048, hardware_protected=True, key_operations=["import"])
        der = key if isinstance(key, bytes) else pkcs8(key)
        kty = "oct-HSM" if isinstance(key, bytes) else "EC-HSM" if crv else "RSA-HSM"
        web_key = JsonWebKey(kty=kty, crv=crv, key_ops=more.pop("key_ops", None), t=transfer(vault, der))
        return client.import_key(name, web_key, hardware_protected=True, **more)


def public(made: KeyVaultKey, *members: str) -> tuple[Any, ...]:
    """Members of its JSON web key, which the client declares for no kind of key."""
    return tuple(getattr(made.key, member) for member in members)


def test_the_first_request_goes_out_empty_and_only_then_with_the_key(vault: FakeVault, name: str) -> None:
    vault.add_kek()
    before = len(vault.requests)
    made = import_key(vault, name, ec.generate_private_key(ec.SECP256R1()), "P-256")
    bare, full = vault.requests[before:]
    assert (bare.method, bare.path, bare.body, bare.status) == ("PUT", f"/keys/{name}", b"", 401)
    assert (full.method, full.path, full.status) == ("PUT", f"/keys/{name}", 200)
    assert full.body
    assert full.query == {"api-version": "2025-07-01"}
    assert made.id == f"{vault.url}/keys/{name}/{vault.versions(name)[0].version}"


@pytest.fixture(autouse=True)
def _fresh_challenges(monkeypatch: pytest.MonkeyPatch) -> None:
    """The SDK remembers challenges by host for the life of the process."""
    from azure.keyvault.keys._shared import http_challenge_cache  # noqa: PLC0415 (the cache has no public name)

    # Patched: it cannot be emptied otherwise.
    monkeypatch.setattr(http_challenge_cache, "_cache", {})


@pytest.mark.parametrize("version", ["2025-07-01", "7.6", "7.4", "7.2"])
def test_each_version_that_the_client_can_speak_is_served(vault: FakeVault, name: str, version: str) -> None:
    made = import_key(vault, name, rsa_key())
    with key_client(vault, api_version=version) as client:
        assert client.get_key(name).id == made.id


@pytest.mark.parametrize("algorithm", ES)
def test_an_imported_EC_key_signs(vault: FakeVault, name: str, algorithm: str) -> None:
    crv, curve, digest = ES[algorithm]
    key = ec.generate_private_key(curve)
    made = import_key(vault, name, key, crv)
    numbers = key.public_key().public_numbers()
    size = (curve.key_size + 7) // 8
    assert public(made, "x", "y") == (numbers.x.to_bytes(size, "big"), numbers.y.to_bytes(size, "big"))
    assert (*public(made, "crv"), made.key_type, sorted(made.key_operations)) == (crv, "EC-HSM", ["sign", "verify"])
    hashed = hashlib.new(digest.name, MESSAGE).digest()
    with crypto_client(vault, made.id) as client:
        signature = client.sign(SignatureAlgorithm(algorithm), hashed).signature
        assert client.verify(SignatureAlgorithm(algorithm), hashed, signature).is_valid
    assert len(signature) == 2 * size
    r, s = int.from_bytes(signature[:size], "big"), int.from_bytes(signature[size:], "big")
    key.public_key().verify(encode_dss_signature(r, s), hashed, ec.ECDSA(Prehashed(digest)))


@pytest.mark.sampled(4)
@pytest.mark.parametrize("bits", ["256", "384", "512"])
@pytest.mark.parametrize("family", ["RS", "PS"])
def test_an_imported_RSA_key_signs(vault: FakeVault, name: str, family: str, bits: str) -> None:
    made = import_key(vault, name, rsa_key())
    digest = {"256": hashes.SHA256(), "384": hashes.SHA384(), "512": hashes.SHA512()}[bits]
    assert public(made, "n", "e") == (rsa_key().public_key().public_numbers().n.to_bytes(256, "big"), b"\x01\x00\x01")
    hashed = hashlib.new(digest.name, MESSAGE).digest()
    with crypto_client(vault, made.id) as client:
        signature = client.sign(SignatureAlgorithm(f"{family}{bits}"), hashed).signature
        assert client.verify(SignatureAlgorithm(f"{family}{bits}"), hashed, signature).is_valid
    pss = padding.PSS(padding.MGF1(digest), digest.digest_size)
    right, wrong = (pss, padding.PKCS1v15()) if family == "PS" else (padding.PKCS1v15(), pss)
    rsa_key().public_key().verify(signature, MESSAGE, right, digest)
    with pytest.raises(InvalidSignature):
        rsa_key().public_key().verify(signature, MESSAGE, wrong, digest)


@pytest.mark.parametrize(("algorithm", "digest"), [("RSA-OAEP", OLD), ("RSA-OAEP-256", hashes.SHA256())])
def test_an_imported_RSA_key_decrypts_and_unwraps(
    vault: FakeVault, name: str, algorithm: str, digest: hashes.HashAlgorithm
) -> None:
    made = import_key(vault, name, rsa_key())
    sealed = rsa_key().public_key().encrypt(MESSAGE, padding.OAEP(padding.MGF1(digest), digest, None))
    with crypto_client(vault, made.id) as client:
        cipher, wrap = EncryptionAlgorithm(algorithm), KeyWrapAlgorithm(algorithm)
        assert client.decrypt(cipher, sealed).plaintext == MESSAGE
        assert client.unwrap_key(wrap, sealed).key == MESSAGE
        assert client.decrypt(cipher, client.encrypt(cipher, MESSAGE).ciphertext).plaintext == MESSAGE
        assert client.unwrap_key(wrap, client.wrap_key(wrap, MESSAGE).encrypted_key).key == MESSAGE


@pytest.mark.parametrize("size", [16, 24, 32])
def test_an_imported_AES_key_encrypts_and_wraps(managed_hsm: FakeVault, name: str, size: int) -> None:
    key = os.urandom(size)
    made = import_key(managed_hsm, name, key)
    assert made.key_type == "oct-HSM"
    with crypto_client(managed_hsm, made.id) as client:
        cipher = EncryptionAlgorithm(f"A{size * 8}GCM")
        sealed = client.encrypt(cipher, MESSAGE, additional_authenticated_data=b"aad")
        opened = AESGCM(key).decrypt(sealed.iv, sealed.ciphertext + sealed.tag, b"aad")
        ours = AESGCM(key).encrypt(b"n" * 12, MESSAGE, b"aad")
        options = {"iv": b"n" * 12, "authentication_tag": ours[-16:], "additional_authenticated_data": b"aad"}
        assert client.decrypt(cipher, ours[:-16], **options).plaintext == opened == MESSAGE
    # Wrapping is asked for without the client: it would do it here, under a random key in place of the one in the HSM.
    path, right = made.id.removeprefix(managed_hsm.url), aes_key_wrap(key, b"k" * 32)
    with raw_to(managed_hsm) as raw:
        body = {"alg": f"A{size * 8}KW", "value": b64(b"k" * 32)}
        assert raw.ask("POST", f"{path}/wrapkey", body)[1]["value"] == b64(right)
        assert raw.ask("POST", f"{path}/unwrapkey", {**body, "value": b64(right)})[1]["value"] == body["value"]


def test_what_was_asked_of_a_key_is_read_back(vault: FakeVault, name: str) -> None:
    start = datetime(2026, 1, 1, tzinfo=UTC)
    terms: dict[str, Any] = {"enabled": False, "not_before": start, "expires_on": start + timedelta(days=9000)}
    import_key(vault, name, rsa_key(), tags={"owner": "x"}, key_ops=["sign"], exportable=False, **terms)
    with key_client(vault) as client:
        held = client.get_key(name)
        assert (held.properties.enabled, held.properties.not_before, held.properties.expires_on) == tuple(
            terms.values()
        )
        assert (held.properties.tags, held.key_operations) == ({"owner": "x"}, ["sign"])
        assert (held.properties.exportable, held.properties.release_policy) == (False, None)
        changed = client.update_key_properties(name, held.properties.version, enabled=True, key_operations=["verify"])
        assert (changed.properties.enabled, changed.key_operations) == (True, ["verify"])
        assert changed.properties.tags == {"owner": "x"}
        assert changed.properties.not_before == start


def test_all_pages_are_walked(managed_hsm: FakeVault, name: str) -> None:
    made = {import_key(managed_hsm, name, b"k" * 32).id for _ in range(30)}
    with key_client(managed_hsm) as client:
        assert {each.id for each in client.list_properties_of_key_versions(name)} == made
        assert {each.id for each in client.list_properties_of_key_versions(name, max_page_size=7)} == made
        assert [each.name for each in client.list_properties_of_keys()] == [name, "kek"]
        assert list(client.list_properties_of_key_versions("absent")) == []


def test_refusals_reach_the_caller_as_the_client_s_own_errors(vault: FakeVault, name: str) -> None:
    with key_client(vault) as client:
        with pytest.raises(ResourceNotFoundError) as absent:
            client.get_key(name)
        assert absent.value.error is not None
        assert absent.value.error.code == "KeyNotFound"
        with pytest.raises(HttpResponseError) as wrong:
            import_key(vault, name, pkcs8(rsa_key()) + b"\0")
        assert wrong.value.status_code == 400
        made = import_key(vault, name, rsa_key())
        client.update_key_properties(name, enabled=False)
        with crypto_client(vault, made.id) as user, pytest.raises(HttpResponseError) as disabled:
            user.sign(SignatureAlgorithm.rs256, b"x" * 32)
        assert disabled.value.status_code == 403
        assert disabled.value.error is not None
        assert "KeyDisabled" in repr(disabled.value.error.innererror)


def test_a_key_is_deleted_recovered_and_purged(vault: FakeVault, name: str) -> None:
    made = import_key(vault, name, rsa_key())
    with key_client(vault) as client:
        gone = client.begin_delete_key(name).result()
        assert gone.recovery_id == f"{vault.url}/deletedkeys/{name}"
        assert gone.deleted_date is not None
        assert gone.scheduled_purge_date == gone.deleted_date + timedelta(days=90)
        with pytest.raises(ResourceExistsError) as taken:
            import_key(vault, name, rsa_key())
        assert taken.value.error is not None
        assert "ObjectIsDeletedButRecoverable" in repr(taken.value.error.innererror)
        assert name in [each.name for each in client.list_deleted_keys()]
        client.begin_recover_deleted_key(name).wait()
        assert client.get_key(name).id == made.id
        client.begin_delete_key(name).wait()
        client.purge_deleted_key(name)
        with pytest.raises(ResourceNotFoundError):
            client.get_deleted_key(name)


def test_a_credential_is_asked_once_for_many_requests(vault: FakeVault) -> None:
    credential = StaticToken(vault.token)
    with key_client(vault, credential=credential) as client:
        for _ in range(3):
            list(client.list_properties_of_keys())
    assert credential.asked == 1
