"""What every kind of target owes the core (``ports.Target``), on the real server of each kind and a real HSM, and what
the fake owes that makes a wrapping key for each import, all of it in memory.

The kinds are found by walking the folders; a folder without a place to be tried in fails the suite.
"""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import load_der_public_key

from broker.core.errors import WrongState
from broker.core.imports.proof import opens, prove
from broker.core.kinds import EncryptionAlgorithm, KeyType, KeyUsage, OaepHash, SignatureAlgorithm
from broker.core.model import RemoteKey, WrappingKey
from broker.core.ports import Cargo
from broker.targets import kinds
from tests.contracts.hsm.keys import ALGORITHMS
from tests.contracts.target.places import PLACES, REAL, Place, cargo_of, fresh
from tests.fakes.fresh_keys import KIND as FRESH_KEYS

KEYS = [
    (KeyType.RSA_2048, KeyUsage.SIGN),
    (KeyType.RSA_2048, KeyUsage.ENCRYPT),
    (KeyType.RSA_3072, KeyUsage.SIGN),
    (KeyType.RSA_4096, KeyUsage.SIGN),
    (KeyType.EC_P256, KeyUsage.SIGN),
    (KeyType.EC_P384, KeyUsage.SIGN),
    (KeyType.EC_P521, KeyUsage.SIGN),
    (KeyType.EC_SECP256K1, KeyUsage.SIGN),
    (KeyType.AES_128, KeyUsage.ENCRYPT),
    (KeyType.AES_256, KeyUsage.ENCRYPT),
]


@pytest.fixture(params=sorted(PLACES))
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    return PLACES[request.param][1](request, tmp_path)


def test_there_is_a_place_for_each_kind() -> None:
    assert {kind for kind, _ in PLACES.values()} == set(kinds()) | {FRESH_KEYS}


@pytest.mark.skipif(not REAL["vault_url"], reason="no real Azure: docs/azure.md says which variables name one")
def test_the_real_azure_is_among_the_places() -> None:
    assert "azure" in PLACES


def test_the_kek_is_rsa_of_a_fair_size_named_and_has_its_thumbprint(place: Place) -> None:
    kek = place.offer(cargo_of(place.generated(KeyType.EC_P256, KeyUsage.SIGN), fresh())).key
    public = load_der_public_key(kek.public_key)
    assert isinstance(public, rsa.RSAPublicKey)
    assert public.key_size >= 2048
    assert hashlib.sha256(kek.public_key).hexdigest() == kek.thumbprint
    assert kek.id


def test_an_offer_is_the_same_for_all_or_another_one_each_time(place: Place) -> None:
    cargo = cargo_of(place.generated(KeyType.EC_P256, KeyUsage.SIGN), fresh())
    offers = [place.offer(cargo) for _ in range(2)]
    assert (offers[0].key == offers[1].key) is not place.port.fresh
    assert offers[0].token not in repr(offers[0]) or not offers[0].token
    if not place.port.fresh:
        assert place.port.offer(cargo) == place.port.offer()


def test_a_file_is_carried_only_where_the_kek_lasts(place: Place) -> None:
    assert not (place.port.fresh and place.port.files)
    assert not (place.port.fresh and place.port.keks)


def test_the_best_hash_that_both_can_do_is_used(place: Place) -> None:
    port = place.port
    assert port.oaep_hash((OaepHash.SHA1,)) is OaepHash.SHA1
    with pytest.raises(WrongState) as caught:
        port.oaep_hash(())
    assert caught.value.reason == "OAEP_HASH_UNSUPPORTED"


@pytest.mark.sampled(4, each="place")
@pytest.mark.parametrize(("key_type", "usage"), KEYS)
def test_a_key_from_the_hsm_is_imported_read_back_and_does_there_what_it_does_here(
    place: Place, key_type: KeyType, usage: KeyUsage
) -> None:
    if not place.takes(key_type, usage):
        return
    key = place.shared(key_type, usage)
    remote = place.imported(key)
    assert (remote.public_key, remote.enabled, remote.exposed) == (key.public_key, True, "")
    assert place.port.versions(remote.name) == [remote]
    if place.port.keks:
        assert remote.name in place.port.keks.names()
    prove(place.hsm, place.port, key, remote)


def test_rsa_signatures_of_the_target_verify_under_the_hsms_public_key(place: Place) -> None:
    key = place.shared(KeyType.RSA_2048, KeyUsage.SIGN)
    remote = place.imported(key)
    public = load_der_public_key(key.public_key or b"")
    assert isinstance(public, rsa.RSAPublicKey)
    for algorithm in ALGORITHMS[KeyType.RSA_2048]:
        signature = place.port.sign(remote.name, remote.version, algorithm, b"message")
        digest = {"256": hashes.SHA256(), "384": hashes.SHA384(), "512": hashes.SHA512()}[algorithm[2:]]
        salt = padding.PSS(padding.MGF1(digest), digest.digest_size)
        public.verify(signature, b"message", salt if algorithm.startswith("PS") else padding.PKCS1v15(), digest)


@pytest.mark.parametrize(("key_type", "algorithm", "digest"), [
    (KeyType.EC_P256, SignatureAlgorithm.ES256, hashes.SHA256()),
    (KeyType.EC_P384, SignatureAlgorithm.ES384, hashes.SHA384()),
    (KeyType.EC_P521, SignatureAlgorithm.ES512, hashes.SHA512()),
])  # fmt: skip
def test_ec_signatures_of_the_target_verify_under_the_hsms_public_key(
    place: Place, key_type: KeyType, algorithm: SignatureAlgorithm, digest: hashes.HashAlgorithm
) -> None:
    key = place.generated(key_type, KeyUsage.SIGN)
    remote = place.imported(key)
    signature = place.port.sign(remote.name, remote.version, algorithm, b"message")
    public = load_der_public_key(key.public_key or b"")
    assert isinstance(public, ec.EllipticCurvePublicKey)
    public.verify(signature, b"message", ec.ECDSA(digest))


def test_what_the_hsm_encrypts_the_target_decrypts_and_the_other_way_round(place: Place) -> None:
    if not place.takes(KeyType.AES_256, KeyUsage.ENCRYPT):
        return
    key = place.generated(KeyType.AES_256, KeyUsage.ENCRYPT)
    remote = place.imported(key)
    there = place.port.encrypt(remote.name, remote.version, b"from there")
    assert place.hsm.decrypt(key, EncryptionAlgorithm.AES_GCM, there, b"") == b"from there"
    here = place.hsm.encrypt(key, EncryptionAlgorithm.AES_GCM, b"from here", b"")
    algorithm = EncryptionAlgorithm.AES_GCM
    assert place.port.decrypt(remote.name, remote.version, algorithm, here) == b"from here"


@pytest.mark.sampled(2, each="place")
@pytest.mark.parametrize(("key_type", "usage"), [
    (KeyType.EC_P256, KeyUsage.SIGN), (KeyType.RSA_2048, KeyUsage.SIGN), (KeyType.RSA_2048, KeyUsage.ENCRYPT),
    (KeyType.AES_256, KeyUsage.ENCRYPT),
])  # fmt: skip
def test_the_proof_notices_another_key(place: Place, key_type: KeyType, usage: KeyUsage) -> None:
    if not place.takes(key_type, usage):
        return
    ours, theirs = place.shared(key_type, usage), place.generated(key_type, usage)
    remote = place.imported(theirs)
    lying = RemoteKey(name=remote.name, version=remote.version, public_key=ours.public_key)
    for claimed in (remote, lying):  # also when the target shows our public key and holds another
        with pytest.raises(WrongState) as caught:
            prove(place.hsm, place.port, ours, claimed)
        assert caught.value.reason == "PROOF_FAILED"
    if key_type.symmetric:
        assert not opens(place.hsm, place.port, ours, remote)


def test_further_versions_stand_under_the_same_name_oldest_first(place: Place) -> None:
    name, keys = fresh(), [place.generated(KeyType.EC_P256, KeyUsage.SIGN) for _ in range(11)]
    for number, key in enumerate(keys):
        place.imported(key, name, first=number == 0)
    held = place.port.versions(name)
    if place.own_clock:
        assert [one.public_key for one in held] == [key.public_key for key in keys]
    assert {one.public_key for one in held} == {key.public_key for key in keys}
    assert held[-1].public_key == keys[-1].public_key
    third = next(one for one in held if one.public_key == keys[3].public_key)
    prove(place.hsm, place.port, keys[3], third)


def test_a_taken_name_is_refused_and_left_as_it_is(place: Place) -> None:
    remote = place.imported(place.generated(KeyType.EC_P256, KeyUsage.SIGN))
    with pytest.raises(WrongState) as caught:
        place.imported(place.generated(KeyType.EC_P256, KeyUsage.SIGN), remote.name)
    assert caught.value.reason == "TARGET_NAME_TAKEN"
    assert place.port.versions(remote.name) == [remote]


def test_a_disabled_version_is_unusable_until_it_is_enabled(place: Place) -> None:
    key = place.generated(KeyType.EC_P256, KeyUsage.SIGN)
    remote = place.imported(key)
    place.port.disable(remote.name, remote.version)
    place.port.disable(remote.name, remote.version)
    (held,) = place.port.versions(remote.name)
    assert not held.enabled
    with pytest.raises(WrongState) as caught:
        prove(place.hsm, place.port, key, held)
    assert caught.value.reason == "REMOTE_KEY_DISABLED"
    with pytest.raises(WrongState):
        place.port.sign(remote.name, remote.version, SignatureAlgorithm.ES256, b"message")
    place.port.enable(remote.name, remote.version)
    place.port.enable(remote.name, remote.version)
    prove(place.hsm, place.port, key, remote)


@pytest.mark.parametrize("disabled", [False, True])
def test_a_deleted_key_is_not_shown_any_more_and_what_remains_of_it_is_told(
    place: Place,
    disabled: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    remote = place.imported(place.generated(KeyType.EC_P256, KeyUsage.SIGN))
    place.let_delete()
    if disabled:
        place.port.disable(remote.name, remote.version)
    place.port.delete(remote.name)
    assert place.port.versions(remote.name) == []
    assert place.port.remains(remote.name) == "", "it was purged too, or there is no such thing here"
    place.port.delete(remote.name)
    with pytest.raises(WrongState):
        place.port.sign(remote.name, remote.version, SignatureAlgorithm.ES256, b"message")


def test_what_is_not_there_is_no_error_to_ask_for_or_to_disable(place: Place) -> None:
    name = fresh()
    assert place.port.versions(name) == []
    place.port.disable(name, "1")
    place.imported(place.generated(KeyType.EC_P256, KeyUsage.SIGN), name)
    place.port.disable(name, "2")
    assert place.port.versions(name)[0].enabled


def test_the_brokers_credential_may_do_all_it_takes(place: Place) -> None:
    place.port.check()


def test_key_types_that_cannot_be_imported_are_refused_with_the_reason(place: Place) -> None:
    assert not place.takes(KeyType.ED25519, KeyUsage.SIGN)
    assert not place.takes(KeyType.EC_P256, KeyUsage.ENCRYPT)
    assert not place.takes(KeyType.AES_256, KeyUsage.SIGN)


@pytest.mark.sampled(1, each="fault")
@pytest.mark.parametrize("fault", [
    "cut-short", "cut-empty", "flipped-head", "flipped-tail", "other-hash", "other-kek",
])  # fmt: skip
def test_BY_07_a_damaged_blob_is_refused_and_nothing_is_there_afterwards(place: Place, fault: str) -> None:
    key, name = place.generated(KeyType.EC_P256, KeyUsage.SIGN), fresh()
    cargo = cargo_of(key, name)
    offer = place.offer(cargo)
    blob, chosen = place.wrapped(key, offer.key)
    if fault == "other-kek":
        other = place.shared(KeyType.RSA_2048, KeyUsage.ENCRYPT).public_key or b""
        blob, _ = place.wrapped(
            key, WrappingKey(id="x", public_key=other, thumbprint=hashlib.sha256(other).hexdigest())
        )
    if fault == "other-hash":
        chosen = next(one for one in (OaepHash.SHA512, OaepHash.SHA1) if one is not chosen)
    blob = {
        "cut-short": blob[:-8], "cut-empty": b"", "flipped-head": bytes([blob[0] ^ 1]) + blob[1:],
        "flipped-tail": blob[:-1] + bytes([blob[-1] ^ 1]),
    }.get(fault, blob)  # fmt: skip
    with pytest.raises(WrongState) as caught:
        place.port.import_key(cargo, blob, chosen, offer.token)
    assert caught.value.reason == "TARGET_REFUSED"
    assert place.port.versions(name) == []
    assert base64.b64encode(blob).decode() not in caught.value.message or not blob
    place.imported(key, name)


def test_a_blob_of_another_type_than_said_is_refused(place: Place) -> None:
    key, name = place.generated(KeyType.EC_P256, KeyUsage.SIGN), fresh()
    for other in (KeyType.EC_P384, KeyType.RSA_2048, KeyType.AES_256):
        usage = KeyUsage.ENCRYPT if other.symmetric else KeyUsage.SIGN
        if not place.takes(other, usage):
            continue
        cargo = Cargo(name=name, type=other, usage=usage, first=True)
        offer = place.offer(cargo)
        blob, chosen = place.wrapped(key, offer.key)
        with pytest.raises(WrongState) as caught:
            place.port.import_key(cargo, blob, chosen, offer.token)
        assert caught.value.reason == "TARGET_REFUSED"
    assert place.port.versions(name) == []
