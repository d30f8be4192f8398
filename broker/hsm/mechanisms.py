"""The closed list of what is asked of a token (HS-06, HS-10): signature schemes and key-generation parameters."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from pkcs11 import MGF, Mechanism

from broker.core import signatures
from broker.core.errors import InvalidRequest, Unavailable
from broker.core.kinds import KeyType, OaepHash, SignatureAlgorithm
from broker.core.reasons import Reason

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

_GENERATORS: Final = {
    **dict.fromkeys((KeyType.RSA_2048, KeyType.RSA_3072, KeyType.RSA_4096), Mechanism.RSA_PKCS_KEY_PAIR_GEN),
    **dict.fromkeys(AES_BITS, Mechanism.AES_KEY_GEN),
    KeyType.ED25519: Mechanism.EC_EDWARDS_KEY_PAIR_GEN,
}


def generator(key_type: KeyType) -> str:
    """The standard's name of the mechanism that makes keys of this type."""
    return standard_name(_GENERATORS.get(key_type, Mechanism.EC_KEY_PAIR_GEN))


def standard_name(mechanism: Mechanism) -> str:
    """As the standard and vendors' manuals write it."""
    return f"CKM_{mechanism.name}"


# DER DigestInfo up to the digest (RFC 8017 9.2, note 1).
_DIGEST_INFO: Final = {
    "sha256": bytes.fromhex("3031300d060960864801650304020105000420"),
    "sha384": bytes.fromhex("3041300d060960864801650304020205000430"),
    "sha512": bytes.fromhex("3051300d060960864801650304020305000440"),
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

    algorithm: SignatureAlgorithm
    key_types: frozenset[KeyType]
    hash: str  # hashlib's name; "" when the token hashes (EdDSA)
    mechanism: Mechanism
    parameter: tuple[Mechanism, MGF, int] | None
    prefix: bytes  # goes before the digest
    finish: Callable[[bytes], bytes]  # from the token's raw form to the released form

    def prepare(self, messages: list[bytes], *, prehashed: bool) -> list[bytes]:
        """The digests of the messages (the messages themselves for EdDSA); checks digests that were given."""
        if not self.hash:
            if prehashed:
                raise InvalidRequest(
                    Reason.DIGEST_LENGTH, "EdDSA signs the message itself; send it instead of a digest."
                )
            return messages
        if not prehashed:
            digest_of = _DIGESTS[self.hash]
            return [digest_of(message).digest() for message in messages]
        size = hashlib.new(self.hash).digest_size
        if any(len(digest) != size for digest in messages):
            raise InvalidRequest(
                Reason.DIGEST_LENGTH, f"A digest does not have the {size} bytes of {self.hash}; hash again."
            )
        return messages

    def release(self, public_key: bytes, raw: bytes, digest: bytes) -> bytes:
        """The signature as it leaves; Unavailable ``HSM_FAULT`` unless it verifies under the public key (HS-20)."""
        try:
            signature = self.finish(raw)
            verified = signatures.verify(public_key, self.algorithm, digest, signature, prehashed=bool(self.hash))
        except ValueError:
            verified = False
        if not verified:
            raise Unavailable(
                Reason.HSM_FAULT, "The HSM made a signature that does not verify; it was withheld. Check the device."
            )
        return signature


def _as_is(raw: bytes) -> bytes:
    return raw


def _ecdsa(algorithm: SignatureAlgorithm, key_type: KeyType, size: int) -> Scheme:
    def finish(raw: bytes) -> bytes:
        if len(raw) != 2 * size:
            raise ValueError("raw ECDSA signature of wrong length")
        return encode_dss_signature(int.from_bytes(raw[:size], "big"), int.from_bytes(raw[size:], "big"))

    return Scheme(algorithm, frozenset({key_type}), _hash(algorithm), Mechanism.ECDSA, None, b"", finish)


def _rsa(algorithm: SignatureAlgorithm) -> Scheme:
    name = _hash(algorithm)
    if algorithm.startswith("PS"):
        return Scheme(algorithm, signatures.RSA_TYPES, name, Mechanism.RSA_PKCS_PSS, _PSS[name], b"", _as_is)
    return Scheme(algorithm, signatures.RSA_TYPES, name, Mechanism.RSA_PKCS, None, _DIGEST_INFO[name], _as_is)


def _hash(algorithm: SignatureAlgorithm) -> str:
    digest = signatures.digest_of(algorithm)
    return digest.name if digest else ""


_EDDSA = SignatureAlgorithm.EDDSA

SCHEMES: Final[dict[SignatureAlgorithm, Scheme]] = {
    **{algorithm: _rsa(algorithm) for algorithm in signatures.RSA_ALGORITHMS},
    SignatureAlgorithm.ES256: _ecdsa(SignatureAlgorithm.ES256, KeyType.EC_P256, 32),
    SignatureAlgorithm.ES384: _ecdsa(SignatureAlgorithm.ES384, KeyType.EC_P384, 48),
    SignatureAlgorithm.ES512: _ecdsa(SignatureAlgorithm.ES512, KeyType.EC_P521, 66),
    SignatureAlgorithm.ES256K: _ecdsa(SignatureAlgorithm.ES256K, KeyType.EC_SECP256K1, 32),
    _EDDSA: Scheme(_EDDSA, frozenset({KeyType.ED25519}), "", Mechanism.EDDSA, None, b"", _as_is),
}
