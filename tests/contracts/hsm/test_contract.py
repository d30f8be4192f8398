"""The contract of ``broker.core.ports.Hsm``, on the real edge with SoftHSM, plain and shimmed, and on fakes."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.serialization import load_der_public_key

from broker.core.errors import AlreadyExists, InvalidRequest, NotFound, Unavailable, WrongState
from broker.core.kinds import EncryptionAlgorithm, KeyType, KeyUsage, OaepHash, SignatureAlgorithm
from broker.core.ports import KeyRef
from tests.contracts.hsm.keys import (
    ALGORITHMS,
    EXPORTABLE,
    RSA,
    SOFTWARE,
    Target,
    Whole,
    der_length,
    fresh,
    hash_of,
    shared,
    spki_of,
    unmade,
    verify,
)
from tests.fakes.hsm import SoftwareHsm
from tests.fakes.refusals import refused

GCM = EncryptionAlgorithm.AES_GCM
PAIRS = [(kind, algorithm) for kind, algorithms in ALGORITHMS.items() for algorithm in algorithms]
_REAL = {"softhsm": "hsm", "shim": "exact_hsm"}
_PADS = SoftwareHsm(exact_wrap=False, oaep_hashes=(OaepHash.SHA1,), of=SOFTWARE)
_FAKES = {"software": SOFTWARE, "software that pads": _PADS}


def _named(request: pytest.FixtureRequest) -> Whole:
    if request.param in _FAKES:
        return _FAKES[request.param]
    real: Whole = request.getfixturevalue(_REAL[request.param])
    return real


@pytest.fixture(params=[*_REAL, "software"])
def device(request: pytest.FixtureRequest) -> Whole:
    return _named(request)


@pytest.fixture(params=[*_REAL, *_FAKES])
def carrier(request: pytest.FixtureRequest) -> Whole:
    return _named(request)


@pytest.fixture(scope="session")
def target() -> Target:
    return Target()


@pytest.mark.parametrize("kind", KeyType)
def test_a_generated_key_is_found_again_and_never_made_twice(device: Whole, kind: KeyType) -> None:
    key = shared(device, kind)
    assert (key.public_key is None) == kind.symmetric
    assert device.public_key(key) == key.public_key
    assert device.generate(key, exportable=kind in RSA) == key.public_key


@pytest.mark.parametrize(
    ("kind", "exportable"), [(KeyType.EC_P256, False), (KeyType.EC_P256, True), (KeyType.AES_256, False)]
)
def test_the_token_tells_where_a_key_comes_from(device: Whole, kind: KeyType, *, exportable: bool) -> None:
    told = device.origin(shared(device, kind, exportable=exportable))
    assert (told.local, told.sensitive, told.always_sensitive) == (True, True, True)
    assert (told.extractable, told.never_extractable) == (exportable, not exportable)


def test_a_sealed_key_was_able_to_leave_once(device: Whole) -> None:
    key = fresh(device, KeyType.EC_P256, exportable=True)
    device.seal(key)
    told = device.origin(key)
    assert (told.extractable, told.never_extractable) == (False, False)
    device.destroy(key)
    refused(lambda: device.origin(key), NotFound, "KEY_NOT_IN_HSM")


def test_an_id_that_names_another_key_is_refused(device: Whole) -> None:
    key = shared(device, KeyType.EC_P256)
    with pytest.raises(AlreadyExists) as taken:
        device.generate(key, exportable=True)
    assert taken.value.reason == "HSM_ID_TAKEN"
    for kind in (KeyType.EC_P384, KeyType.AES_256):
        refused(
            partial(device.generate, unmade(kind, hsm_id=key.hsm_id), exportable=False),
            WrongState,
            "KEY_NOT_THIS",
        )
    assert device.public_key(key) == key.public_key
    secret = shared(device, KeyType.AES_256)
    refused(
        lambda: device.generate(unmade(KeyType.EC_P256, hsm_id=secret.hsm_id), exportable=False),
        WrongState,
        "KEY_NOT_THIS",
    )
    assert device.encrypt(secret, GCM, b"still there", b"")


@pytest.mark.parametrize(
    ("kind", "usage", "exportable", "reason"),
    [
        (KeyType.ED25519, KeyUsage.SIGN, True, "KEY_NOT_EXPORTABLE"),
        (KeyType.ED25519, KeyUsage.ENCRYPT, False, "ALGORITHM_MISMATCH"),
        (KeyType.EC_P256, KeyUsage.ENCRYPT, False, "ALGORITHM_MISMATCH"),
        (KeyType.AES_256, KeyUsage.SIGN, False, "ALGORITHM_MISMATCH"),
    ],
)
def test_impossible_keys_are_refused(
    device: Whole, kind: KeyType, usage: KeyUsage, *, exportable: bool, reason: str
) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        device.generate(unmade(kind, usage), exportable=exportable)
    assert refusal.value.reason == reason


@pytest.mark.parametrize(("kind", "algorithm"), PAIRS)
def test_signatures_verify_in_order(device: Whole, kind: KeyType, algorithm: SignatureAlgorithm) -> None:
    key = shared(device, kind)
    messages = [b"", b"one", os.urandom(5000)]
    signatures = device.sign(key, algorithm, messages)
    assert key.public_key
    for signature, message in zip(signatures, messages, strict=True):
        verify(key.public_key, algorithm, signature, message)


@pytest.mark.parametrize(("kind", "algorithm"), [pair for pair in PAIRS if pair[1] != SignatureAlgorithm.EDDSA])
def test_a_digest_is_signed_as_its_message_would_be(
    device: Whole, kind: KeyType, algorithm: SignatureAlgorithm
) -> None:
    key = shared(device, kind)
    (signature,) = device.sign(key, algorithm, [hash_of(algorithm, b"message")], prehashed=True)
    assert key.public_key
    verify(key.public_key, algorithm, signature, b"message")
    for wrong in (b"", bytes(20), hash_of(algorithm) + b"\0"):
        with pytest.raises(InvalidRequest) as refusal:
            device.sign(key, algorithm, [hash_of(algorithm), wrong], prehashed=True)
        assert refusal.value.reason == "DIGEST_LENGTH"


def test_eddsa_takes_no_digest(device: Whole) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        device.sign(shared(device, KeyType.ED25519), SignatureAlgorithm.EDDSA, [bytes(64)], prehashed=True)
    assert refusal.value.reason == "DIGEST_LENGTH"


def test_HS_10_an_algorithm_of_another_key_type_or_purpose_is_refused(device: Whole) -> None:
    wrong = [
        (shared(device, KeyType.EC_P256), SignatureAlgorithm.ES384),
        (shared(device, KeyType.EC_P256), SignatureAlgorithm.RS256),
        (shared(device, KeyType.AES_256), SignatureAlgorithm.ES256),
        (shared(device, KeyType.RSA_2048, KeyUsage.ENCRYPT), SignatureAlgorithm.RS256),
    ]
    for key, algorithm in wrong:
        with pytest.raises(InvalidRequest) as refusal:
            device.sign(key, algorithm, [b"m"])
        assert refusal.value.reason == "ALGORITHM_MISMATCH"


def test_HS_20_a_signature_that_does_not_verify_is_withheld(device: Whole) -> None:
    key, other = shared(device, KeyType.EC_P256), shared(device, KeyType.EC_P256, exportable=True)
    with pytest.raises(Unavailable) as refusal:
        device.sign(replace(key, public_key=other.public_key), SignatureAlgorithm.ES256, [b"m"])
    assert refusal.value.reason == "HSM_FAULT"


@pytest.mark.parametrize("kind", [KeyType.AES_128, KeyType.AES_256])
@pytest.mark.parametrize("length", [0, 1, 16, 70_000])
def test_what_is_encrypted_is_decrypted(device: Whole, kind: KeyType, length: int) -> None:
    key, plaintext = shared(device, kind), os.urandom(length)
    for aad in (b"", b"bound to this"):
        ciphertext = device.encrypt(key, GCM, plaintext, aad)
        assert len(ciphertext) == 12 + length + 16
        assert device.decrypt(key, GCM, ciphertext, aad) == plaintext


def test_HS_08_no_iv_comes_twice(device: Whole) -> None:
    assert_ivs_differ(device, 200)


def assert_ivs_differ(device: Whole, messages: int) -> None:
    key = shared(device, KeyType.AES_256)
    assert len({device.encrypt(key, GCM, b"", b"")[:12] for _ in range(messages)}) == messages


def test_HS_07_every_failed_decryption_gives_one_error(device: Whole) -> None:
    key = shared(device, KeyType.AES_256)
    good = device.encrypt(key, GCM, b"plaintext", b"aad")
    bad = [good[:-1], good[:20], b"", good + b"\0"]
    bad += [good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :] for at in range(len(good))]
    refusals = {_not_decrypted(device, key, GCM, ciphertext, b"aad") for ciphertext in bad}
    refusals.add(_not_decrypted(device, key, GCM, good, b"other"))
    assert len(refusals) == 1
    assert refusals.pop()[0] == "CIPHERTEXT_INVALID"
    assert device.decrypt(key, GCM, good, b"aad") == b"plaintext"


def test_HS_07_every_failed_oaep_decryption_gives_one_error(device: Whole) -> None:
    key, algorithm = shared(device, KeyType.RSA_2048, KeyUsage.ENCRYPT), EncryptionAlgorithm.RSA_OAEP_SHA1
    good = _oaep(key, hashes.SHA1(), b"plaintext")  # noqa: S303 - as the port has it
    assert device.decrypt(key, algorithm, good, b"") == b"plaintext"
    public = load_der_public_key(key.public_key or b"")
    assert isinstance(public, rsa.RSAPublicKey)
    bad = [
        b"",
        good[:-1],
        good + b"\0",
        bytes(256),
        b"\xff" * 256,
        bytes([good[0] ^ 1]) + good[1:],
        public.encrypt(b"plaintext", padding.PKCS1v15()),
        _oaep(key, hashes.SHA256(), b"plaintext"),
    ]
    refusals = {_not_decrypted(device, key, algorithm, ciphertext, b"") for ciphertext in bad}
    refusals.add(_not_decrypted(device, key, algorithm, good, b"aad"))
    assert len(refusals) == 1
    assert refusals.pop()[0] == "CIPHERTEXT_INVALID"


def test_oaep_with_sha256_works_or_is_refused_as_missing(device: Whole) -> None:
    key = shared(device, KeyType.RSA_2048, KeyUsage.ENCRYPT)
    ciphertext = _oaep(key, hashes.SHA256(), b"plaintext")
    if OaepHash.SHA256 in device.report().oaep_hashes:
        assert device.decrypt(key, EncryptionAlgorithm.RSA_OAEP_SHA256, ciphertext, b"") == b"plaintext"
    else:
        with pytest.raises(WrongState) as refusal:
            device.decrypt(key, EncryptionAlgorithm.RSA_OAEP_SHA256, ciphertext, b"")
        assert refusal.value.reason == "HSM_MECHANISM_MISSING"


def test_a_cipher_of_another_key_type_or_purpose_is_refused(device: Whole) -> None:
    aes, signs = shared(device, KeyType.AES_256), shared(device, KeyType.RSA_2048)
    oaep = EncryptionAlgorithm.RSA_OAEP_SHA1
    for key, algorithm in ((aes, oaep), (signs, oaep), (signs, GCM)):
        assert _not_decrypted(device, key, algorithm, bytes(256), b"")[0] == "ALGORITHM_MISMATCH"
        with pytest.raises(InvalidRequest) as refusal:
            device.encrypt(key, algorithm, b"", b"")
        assert refusal.value.reason == "ALGORITHM_MISMATCH"


@pytest.mark.parametrize("kind", EXPORTABLE)
def test_a_wrapped_key_is_the_key(carrier: Whole, target: Target, kind: KeyType) -> None:
    key = shared(carrier, kind, exportable=True)
    blob = carrier.wrap(key, target.kek, OaepHash.SHA1, exact=False)
    plaintext = target.open(blob, OaepHash.SHA1)
    assert len(blob) == 256 + 8 * -(-len(plaintext) // 8) + 8
    if kind.symmetric:
        ciphertext = carrier.encrypt(key, GCM, b"from the HSM", b"")
        assert AESGCM(plaintext).decrypt(ciphertext[:12], ciphertext[12:], b"") == b"from the HSM"
    else:
        end = der_length(plaintext)
        assert plaintext[end:] == bytes(len(plaintext) - end)
        assert spki_of(plaintext[:end]) == key.public_key


@pytest.mark.parametrize("kind", EXPORTABLE)
def test_an_exact_wrap_has_no_tail_or_is_refused(carrier: Whole, target: Target, kind: KeyType) -> None:
    key = shared(carrier, kind, exportable=True)
    certain = kind.symmetric or kind in {KeyType.EC_P384, KeyType.EC_SECP256K1}
    if not carrier.report().exact_wrap and not certain:
        with pytest.raises(WrongState) as refusal:
            carrier.wrap(key, target.kek, OaepHash.SHA1, exact=True)
        assert refusal.value.reason == "WRAP_NOT_EXACT"
        return
    plaintext = target.open(carrier.wrap(key, target.kek, OaepHash.SHA1, exact=True), OaepHash.SHA1)
    if kind.symmetric:
        assert len(plaintext) * 8 == int(kind[4:])
    else:
        assert spki_of(plaintext) == key.public_key


def test_no_two_blobs_are_alike(carrier: Whole, target: Target) -> None:
    key = shared(carrier, KeyType.AES_256, exportable=True)
    first, second = (carrier.wrap(key, target.kek, OaepHash.SHA1, exact=True) for _ in range(2))
    assert first[:256] != second[:256]
    assert first[256:] != second[256:]


def test_every_offered_oaep_hash_is_the_one_that_is_used(carrier: Whole, target: Target) -> None:
    key = shared(carrier, KeyType.AES_256, exportable=True)
    for oaep_hash in OaepHash:
        if oaep_hash in carrier.report().oaep_hashes:
            assert len(target.open(carrier.wrap(key, target.kek, oaep_hash, exact=True), oaep_hash)) == 32
        else:
            with pytest.raises(WrongState) as refusal:
                carrier.wrap(key, target.kek, oaep_hash, exact=True)
            assert refusal.value.reason == "HSM_MECHANISM_MISSING"


def test_a_key_that_is_not_exportable_stays(carrier: Whole, target: Target) -> None:
    for kind in (KeyType.EC_P256, KeyType.AES_256, KeyType.ED25519):
        for exact in (True, False):
            with pytest.raises(WrongState) as refusal:
                carrier.wrap(shared(carrier, kind), target.kek, OaepHash.SHA1, exact=exact)
            assert refusal.value.reason == "KEY_NOT_EXPORTABLE"


def test_a_sealed_key_stays_for_good_and_still_works(carrier: Whole, target: Target) -> None:
    key = fresh(carrier, KeyType.EC_P384, exportable=True)
    carrier.wrap(key, target.kek, OaepHash.SHA1, exact=False)
    carrier.seal(key)
    carrier.seal(key)
    with pytest.raises(WrongState) as refusal:
        carrier.wrap(key, target.kek, OaepHash.SHA1, exact=False)
    assert refusal.value.reason == "KEY_NOT_EXPORTABLE"
    assert carrier.sign(key, SignatureAlgorithm.ES384, [b"m"])


def test_HS_05_a_kek_that_is_not_the_pinned_one_gets_nothing(carrier: Whole, target: Target) -> None:
    key = shared(carrier, KeyType.AES_256, exportable=True)
    with pytest.raises(InvalidRequest) as refusal:
        carrier.wrap(key, replace(target.kek, thumbprint="0" * 64), OaepHash.SHA1, exact=False)
    assert refusal.value.reason == "KEK_INVALID"


@pytest.mark.parametrize("kind", [KeyType.EC_P256, KeyType.AES_256])
def test_a_destroyed_key_is_gone(device: Whole, target: Target, kind: KeyType) -> None:
    key = fresh(device, kind, exportable=True)
    if kind.symmetric:
        device.encrypt(key, GCM, b"", b"")
    else:
        device.sign(key, SignatureAlgorithm.ES256, [b"m"])
    device.destroy(key)
    device.destroy(key)
    uses: list[Callable[[], object]] = [
        lambda: device.public_key(key),
        lambda: device.wrap(key, target.kek, OaepHash.SHA1, exact=False),
        lambda: device.seal(key),
    ]
    if kind.symmetric:
        uses.append(lambda: device.encrypt(key, GCM, b"", b""))
    else:
        uses.append(lambda: device.sign(key, SignatureAlgorithm.ES256, [b"m"]))
    for use in uses:
        with pytest.raises(NotFound) as refusal:
            use()
        assert refusal.value.reason == "KEY_NOT_IN_HSM"


def test_what_may_leave_and_what_may_not_is_told_by_the_token(device: Whole) -> None:
    made = fresh(device, KeyType.EC_P384, exportable=True)
    assert device.differing(made, exportable=True) == ()
    assert device.differing(made, exportable=False) == ("CKA_EXTRACTABLE",)
    device.seal(made)
    assert device.differing(made, exportable=False) == ()
    device.destroy(made)
    refused(lambda: device.differing(made, exportable=False), NotFound, "KEY_NOT_IN_HSM")


@pytest.mark.parametrize("length", [1, 32, 1024])
def test_random_bytes_come_in_the_length_asked_for(device: Whole, length: int) -> None:
    assert len(device.random(length)) == length


@pytest.mark.parametrize("length", [-1, 0, 1025])
def test_random_lengths_have_limits(device: Whole, length: int) -> None:
    with pytest.raises(InvalidRequest):
        device.random(length)


def test_a_device_that_answers_passes_the_check(device: Whole) -> None:
    device.check()
    assert device.report().token_serial


def _oaep(key: KeyRef, algorithm: hashes.HashAlgorithm, plaintext: bytes) -> bytes:
    public = load_der_public_key(key.public_key or b"")
    assert isinstance(public, rsa.RSAPublicKey)
    return public.encrypt(plaintext, padding.OAEP(padding.MGF1(algorithm), algorithm, None))


def _not_decrypted(
    device: Whole, key: KeyRef, algorithm: EncryptionAlgorithm, ciphertext: bytes, aad: bytes
) -> tuple[str, str]:
    error = refused(lambda: device.decrypt(key, algorithm, ciphertext, aad))
    return error.reason, error.message
