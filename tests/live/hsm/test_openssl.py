"""Blobs opened by a second, independent implementation: the openssl command line."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.keywrap import InvalidUnwrap

from broker.core.kinds import EncryptionAlgorithm, KeyType, OaepHash
from tests.contracts.hsm.keys import EXPORTABLE, Target, der_length, shared
from tests.live.hsm.openssl import opened_by_openssl, public_key_by_openssl
from tests.servers.softhsm import KeysHsm


@pytest.fixture(scope="module")
def target() -> Target:
    return Target(3072)


@pytest.mark.parametrize("kind", EXPORTABLE)
def test_openssl_opens_the_blob_and_finds_the_hsms_public_key(
    hsm: KeysHsm, target: Target, tmp_path: Path, kind: KeyType
) -> None:
    key = shared(hsm, kind, exportable=True)
    blob = hsm.wrap(key, target.kek, OaepHash.SHA1, exact=False)
    plaintext = opened_by_openssl(target.private, blob, tmp_path)
    assert plaintext.rstrip(b"\0") in target.open(blob, OaepHash.SHA1)
    if kind.symmetric:
        ciphertext = hsm.encrypt(key, EncryptionAlgorithm.AES_GCM, b"from the HSM", b"")
        assert AESGCM(plaintext).decrypt(ciphertext[:12], ciphertext[12:], b"") == b"from the HSM"
    else:
        pkcs8 = plaintext[: der_length(plaintext)]
        assert public_key_by_openssl(pkcs8) == key.public_key


@pytest.mark.parametrize("at", [0, 200, 383, 384, 400, -1])
def test_BY_07_a_flipped_byte_opens_nothing(hsm: KeysHsm, target: Target, at: int) -> None:
    key = shared(hsm, KeyType.EC_P384, exportable=True)
    blob = bytearray(hsm.wrap(key, target.kek, OaepHash.SHA1, exact=True))
    blob[at] ^= 1
    with pytest.raises((ValueError, InvalidUnwrap)):
        target.open(bytes(blob), OaepHash.SHA1)
