"""A signature that is not valid: what was expected is said, and what came instead, for all that people confuse."""

from __future__ import annotations

import base64
import hashlib
from datetime import UTC, datetime

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from broker.core import signatures
from broker.core.keys import mismatch
from broker.core.kinds import KeyType, SignatureAlgorithm, VersionState
from broker.core.model import KeyVersion

RSA, EC = rsa.generate_private_key(65537, 2048), ec.generate_private_key(ec.SECP256R1())
EC384, ED = ec.generate_private_key(ec.SECP384R1()), ed25519.Ed25519PrivateKey.generate()
MESSAGE = b"pay 10 to bob\nand 3 to eve\n"
SHA256 = ec.ECDSA(hashes.SHA256())
A = SignatureAlgorithm


def version(key: object, number: int = 2) -> KeyVersion:
    spki = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)  # type: ignore[attr-defined]
    state, at = VersionState.ENABLED, datetime(2026, 1, 1, tzinfo=UTC)
    return KeyVersion(
        key="k", number=number, state=state, hsm_id=bytes(16), public_key=spki, sealed=False, created_at=at
    )


def raw(der: bytes, size: int = 32) -> bytes:
    r, s = decode_dss_signature(der)
    return r.to_bytes(size, "big") + s.to_bytes(size, "big")


def told(key: object, kind: KeyType, algorithm: A, signature: bytes, data: bytes = MESSAGE, *others: object) -> str:
    mine = version(key)
    assert not signatures.verify(mine.public_key or b"", algorithm, data, signature)
    former = [version(one, number) for number, one in enumerate(others, 1)]
    return mismatch.found(kind, algorithm, mine, former, data, signature, prehashed=False)


def test_K19_what_was_expected_is_said() -> None:
    assert mismatch.expected(A.ES256, 3) == (
        "Expected was a signature by version 3 with ES256 (ECDSA, SHA-256), as DER."
    )
    assert "RSA-PSS, a salt of 48 bytes, SHA-384" in mismatch.expected(A.PS384, 1)
    assert "the message whole" in mismatch.expected(A.EDDSA, 1)


def test_K19_r_and_s_side_by_side_are_recognised() -> None:
    der = EC.sign(MESSAGE, SHA256)
    assert "--encoding jose" in told(EC, KeyType.EC_P256, A.ES256, raw(der))
    der = EC384.sign(MESSAGE, ec.ECDSA(hashes.SHA384()))
    assert "--encoding jose" in told(EC384, KeyType.EC_P384, A.ES384, raw(der, 48))
    assert "base64; " not in told(EC, KeyType.EC_P256, A.ES256, b"\x01" * 64)


@pytest.mark.parametrize(("wrap", "word"), [
    (base64.b64encode, "base64"), (base64.urlsafe_b64encode, "base64"), (base64.encodebytes, "base64"),
    (lambda made: base64.urlsafe_b64encode(made).rstrip(b"="), "base64"),
    (lambda made: b"vault:v1:" + base64.b64encode(made), "base64"),
    (lambda made: made.hex().encode(), "hexadecimal"),
    (lambda made: made.hex().upper().encode() + b"\n", "hexadecimal"),
    (lambda made: made + b"\n", "line end"), (lambda made: made + b"\r\n", "line end"),
])  # fmt: skip
def test_K19_a_signature_as_text_is_recognised(wrap: object, word: str) -> None:
    assert callable(wrap)
    assert word in told(EC, KeyType.EC_P256, A.ES256, wrap(EC.sign(MESSAGE, SHA256)))
    assert word in told(ED, KeyType.ED25519, A.EDDSA, wrap(ED.sign(MESSAGE)))
    pss = padding.PSS(padding.MGF1(hashes.SHA256()), 32)
    assert word in told(RSA, KeyType.RSA_2048, A.PS256, wrap(RSA.sign(MESSAGE, pss, hashes.SHA256())))


def test_K19_base64_of_r_and_s_is_recognised_as_both() -> None:
    found = told(EC, KeyType.EC_P256, A.ES256, base64.b64encode(raw(EC.sign(MESSAGE, SHA256))))
    assert "base64" in found
    assert "--encoding jose" in found


@pytest.mark.parametrize(("pad", "digest", "words"), [
    (padding.PKCS1v15(), hashes.SHA256(), "--algorithm RS256"),
    (padding.PKCS1v15(), hashes.SHA512(), "--algorithm RS512"),
    (padding.PSS(padding.MGF1(hashes.SHA384()), 48), hashes.SHA384(), "--algorithm PS384"),
    (padding.PSS(padding.MGF1(hashes.SHA256()), padding.PSS.MAX_LENGTH), hashes.SHA256(), "rsa_pss_saltlen:digest"),
    (padding.PKCS1v15(), hashes.SHA1(), "PKCS#1 v1.5 and SHA-1"),  # noqa: S303
])  # fmt: skip
def test_K19_another_padding_or_hash_is_recognised(
    pad: padding.AsymmetricPadding, digest: hashes.HashAlgorithm, words: str
) -> None:
    made = RSA.sign(MESSAGE, pad, digest)
    assert words in told(RSA, KeyType.RSA_2048, A.PS256, made)
    assert words in told(RSA, KeyType.RSA_2048, A.PS256, base64.b64encode(made))


def test_K19_another_hash_of_an_ec_key_is_recognised() -> None:
    assert "SHA-512" in told(EC, KeyType.EC_P256, A.ES256, EC.sign(MESSAGE, ec.ECDSA(hashes.SHA512())))


@pytest.mark.parametrize(("signed", "words"), [
    (MESSAGE + b"\n", "with a line end after it"), (MESSAGE[:-1], "without its last line end"),
    (MESSAGE.replace(b"\n", b"\r\n"), "CRLF"), (hashlib.sha256(MESSAGE).digest(), "hashed once more"),
    (hashlib.sha256(MESSAGE).hexdigest().encode(), "in hexadecimal"),
])  # fmt: skip
def test_K19_another_message_of_the_same_is_recognised(signed: bytes, words: str) -> None:
    assert words in told(EC, KeyType.EC_P256, A.ES256, EC.sign(signed, SHA256))
    assert words in told(ED, KeyType.ED25519, A.EDDSA, ED.sign(signed))


def test_K19_another_version_of_the_key_is_recognised() -> None:
    old, older = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    found = told(EC, KeyType.EC_P256, A.ES256, raw(old.sign(MESSAGE, SHA256)), MESSAGE, older, old)
    assert "version 2" in found
    assert "--encoding jose" in found


@pytest.mark.parametrize("junk", [b"", b"\x30", b"x", bytes(64), b"\xff" * 4096, b"vault:v1:", b"=", b"-----BEGIN X"])
def test_K19_whatever_is_sent_is_answered(junk: bytes) -> None:
    for key, kind, algorithm in (
        (EC, KeyType.EC_P256, A.ES256), (RSA, KeyType.RSA_2048, A.PS256), (ED, KeyType.ED25519, A.EDDSA),
    ):  # fmt: skip
        found = told(key, kind, algorithm, junk)
        assert found.endswith(".")
        assert "It is valid" not in found
