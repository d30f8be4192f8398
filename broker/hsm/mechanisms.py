"""The closed list of what is asked of a token (HS-06, HS-10): signature schemes and key-generation parameters."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed, encode_dss_signature
from cryptography.hazmat.primitives.serialization import load_der_public_key
from pkcs11 import MGF, Mechanism

from broker.core.errors import InvalidRequest, Unavailable
from broker.core.model import KeyType, OaepHash, SignatureAlgorithm

OAEP: Final[dict[OaepHash, tuple[Mechanism, MGF]]] = {
    OaepHash.SHA1: (Mechanism.SHA_1, MGF.SHA1),
    OaepHash.SHA256: (Mechanism.SHA256, MGF.SHA256),
    OaepHash.SHA384: (Mechanism.SHA384, MGF.SHA384),
    OaepHash.SHA512: (Mechanism.SHA512, MGF.SHA512),
}
CURVE_OIDS: Final[dict[KeyType, bytes]] = {
    KeyType.EC_P256: bytes.fromhex("06082a8648ce3d030107"),
    KeyType.EC_P384: bytes.fromhex("06052b81040022"),
    KeyType.EC_P521: bytes.fromhex("06052b81040023"),
    KeyType.EC_SECP256K1: bytes.fromhex("06052b8104000a"),
    KeyType.ED25519: bytes.fromhex("06032b6570"),
}
"""CKA_EC_PARAMS, DER object identifiers."""
AES_BITS: Final = {KeyType.AES_128: 128, KeyType.AES_256: 256}
_RSA: Final = frozenset({KeyType.RSA_2048, KeyType.RSA_3072, KeyType.RSA_4096})

# DER DigestInfo up to the digest (RFC 8017 9.2, note 1).
_DIGEST_INFO: Final = {
    "sha256": bytes.fromhex("3031300d060960864801650304020105000420"),
    "sha384": bytes.fromhex("3041300d060960864801650304020205000430"),
    "sha512": bytes.fromhex("3051300d060960864801650304020305000440"),
}
_HASHES: Final[dict[str, hashes.HashAlgorithm]] = {
    "sha256": hashes.SHA256(),
    "sha384": hashes.SHA384(),
    "sha512": hashes.SHA512(),
}
_DIGESTS: Final = {"sha256": hashlib.sha256, "sha384": hashlib.sha384, "sha512": hashlib.sha512}
_PSS: Final = {
    "sha256": (Mechanism.SHA256, MGF.SHA256, 32),
    "sha384": (Mechanism.SHA384, MGF.SHA384, 48),
    "sha512": (Mechanism.SHA512, MGF.SHA512, 64),
}


@dataclass(frozen=True, slots=True)
class Scheme:
    """How one JOSE algorithm is done: hash here, raw mechanism in the token, the result verified here."""

    key_types: frozenset[KeyType]
    hash: str  # hashlib's name; "" when the token hashes (EdDSA)
    mechanism: Mechanism
    parameter: tuple[Mechanism, MGF, int] | None
    prefix: bytes  # goes before the digest
    finish: Callable[[bytes], bytes]  # from the token's raw form to the released form
    verify: Callable[[Any, bytes, bytes], None]  # (public key, signature, digest); raises InvalidSignature

    def prepare(self, messages: list[bytes], *, prehashed: bool) -> list[bytes]:
        """The digests of the messages (the messages themselves for EdDSA); checks digests that were given."""
        if not self.hash:
            if prehashed:
                raise InvalidRequest("DIGEST_LENGTH", "EdDSA signs the message itself; send it instead of a digest.")
            return messages
        if not prehashed:
            digest_of = _DIGESTS[self.hash]
            return [digest_of(message).digest() for message in messages]
        size = _HASHES[self.hash].digest_size
        if any(len(digest) != size for digest in messages):
            raise InvalidRequest(
                "DIGEST_LENGTH", f"A digest does not have the {size} bytes of {self.hash}; hash again."
            )
        return messages

    def release(self, public_key: bytes, raw: bytes, digest: bytes) -> bytes:
        """The signature as it leaves; Unavailable ``HSM_FAULT`` unless it verifies under the public key (HS-20)."""
        try:
            signature = self.finish(raw)
            self.verify(load_public_key(public_key), signature, digest)
        except (InvalidSignature, ValueError) as fault:
            raise Unavailable(
                "HSM_FAULT", "The HSM made a signature that does not verify; it was withheld. Check the device."
            ) from fault
        return signature


@lru_cache(maxsize=4096)
def load_public_key(spki: bytes) -> Any:
    """The parsed SubjectPublicKeyInfo; parsing once a key is a tenth of a verification saved each time."""
    return load_der_public_key(spki)


def _as_is(raw: bytes) -> bytes:
    return raw


def _ecdsa(key_type: KeyType, hash_name: str, size: int) -> Scheme:
    algorithm = ec.ECDSA(Prehashed(_HASHES[hash_name]))

    def finish(raw: bytes) -> bytes:
        if len(raw) != 2 * size:
            raise ValueError("raw ECDSA signature of wrong length")
        return encode_dss_signature(int.from_bytes(raw[:size], "big"), int.from_bytes(raw[size:], "big"))

    def verify(key: Any, signature: bytes, digest: bytes) -> None:
        key.verify(signature, digest, algorithm)

    return Scheme(frozenset({key_type}), hash_name, Mechanism.ECDSA, None, b"", finish, verify)


def _rsa(hash_name: str, *, pss: bool) -> Scheme:
    algorithm = _HASHES[hash_name]
    scheme = padding.PSS(padding.MGF1(algorithm), algorithm.digest_size) if pss else padding.PKCS1v15()
    prehashed = Prehashed(algorithm)

    def verify(key: Any, signature: bytes, digest: bytes) -> None:
        key.verify(signature, digest, scheme, prehashed)

    if pss:
        return Scheme(_RSA, hash_name, Mechanism.RSA_PKCS_PSS, _PSS[hash_name], b"", _as_is, verify)
    return Scheme(_RSA, hash_name, Mechanism.RSA_PKCS, None, _DIGEST_INFO[hash_name], _as_is, verify)


def _eddsa() -> Scheme:
    def verify(key: Any, signature: bytes, message: bytes) -> None:
        key.verify(signature, message)

    return Scheme(frozenset({KeyType.ED25519}), "", Mechanism.EDDSA, None, b"", _as_is, verify)


SCHEMES: Final[dict[SignatureAlgorithm, Scheme]] = {
    SignatureAlgorithm.RS256: _rsa("sha256", pss=False),
    SignatureAlgorithm.RS384: _rsa("sha384", pss=False),
    SignatureAlgorithm.RS512: _rsa("sha512", pss=False),
    SignatureAlgorithm.PS256: _rsa("sha256", pss=True),
    SignatureAlgorithm.PS384: _rsa("sha384", pss=True),
    SignatureAlgorithm.PS512: _rsa("sha512", pss=True),
    SignatureAlgorithm.ES256: _ecdsa(KeyType.EC_P256, "sha256", 32),
    SignatureAlgorithm.ES384: _ecdsa(KeyType.EC_P384, "sha384", 48),
    SignatureAlgorithm.ES512: _ecdsa(KeyType.EC_P521, "sha512", 66),
    SignatureAlgorithm.ES256K: _ecdsa(KeyType.EC_SECP256K1, "sha256", 32),
    SignatureAlgorithm.EDDSA: _eddsa(),
}
