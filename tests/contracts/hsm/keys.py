"""Keys made once for many tests, and independent ways to check what an HSM did with them."""

from __future__ import annotations

import functools
import hashlib
import os
from dataclasses import replace
from typing import Any, Final, Protocol

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.keywrap import aes_key_unwrap_with_padding
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_der_private_key,
    load_der_public_key,
)

from broker.core.kinds import KeyType, KeyUsage, OaepHash, SignatureAlgorithm
from broker.core.model import WrappingKey
from broker.core.ports import Device, Hsm, KeyRef
from tests.fakes.hsm import SoftwareHsm

RSA: Final = (KeyType.RSA_2048, KeyType.RSA_3072, KeyType.RSA_4096)
EXPORTABLE: Final = tuple(kind for kind in KeyType if kind is not KeyType.ED25519)
_HASHES: Final[dict[str, hashes.HashAlgorithm]] = {
    "sha1": hashes.SHA1(),  # noqa: S303 - RSAES-OAEP with SHA-1 is part of the port
    "sha256": hashes.SHA256(),
    "sha384": hashes.SHA384(),
    "sha512": hashes.SHA512(),
}
ALGORITHMS: Final = {
    **{kind: [a for a in SignatureAlgorithm if a[:2] in {"RS", "PS"}] for kind in RSA},
    KeyType.EC_P256: [SignatureAlgorithm.ES256],
    KeyType.EC_P384: [SignatureAlgorithm.ES384],
    KeyType.EC_P521: [SignatureAlgorithm.ES512],
    KeyType.EC_SECP256K1: [SignatureAlgorithm.ES256K],
    KeyType.ED25519: [SignatureAlgorithm.EDDSA],
}
SOFTWARE: Final = SoftwareHsm()
"""The one that tests share, as they share the session's real ones."""
_made: dict[tuple[int, KeyType, KeyUsage, bool], KeyRef] = {}


class Whole(Hsm, Device, Protocol):
    """A device that is itself the keyring of callers' keys, as those for tests are."""


def usage_of(key_type: KeyType) -> KeyUsage:
    """What a key of this type is mostly for."""
    return KeyUsage.ENCRYPT if key_type.symmetric else KeyUsage.SIGN


def fresh(hsm: Hsm, key_type: KeyType, usage: KeyUsage | None = None, *, exportable: bool = False) -> KeyRef:
    """A new key."""
    return made(hsm, unmade(key_type, usage), exportable=exportable, fresh=True)


def unmade(key_type: KeyType, usage: KeyUsage | None = None, *, hsm_id: bytes = b"", name: str = "tests/1") -> KeyRef:
    """The name of a key that is still to be made."""
    return KeyRef(
        hsm_id=hsm_id or os.urandom(16), type=key_type, usage=usage or usage_of(key_type), public_key=None, name=name
    )


def made(hsm: Hsm, key: KeyRef, *, exportable: bool = False, fresh: bool = False) -> KeyRef:
    """Make the key that is so named, or find it."""
    return replace(key, public_key=hsm.generate(key, exportable=exportable, fresh=fresh))


def shared(hsm: Hsm, key_type: KeyType, usage: KeyUsage | None = None, *, exportable: bool = False) -> KeyRef:
    """A key that tests share and so must leave as it is. RSA keys take a second to make: they are always exportable."""
    exportable = exportable or key_type in RSA
    token = hsm.keys if isinstance(hsm, SoftwareHsm) else hsm
    name = (id(token), key_type, usage or usage_of(key_type), exportable)
    if name not in _made:
        _made[name] = fresh(hsm, key_type, usage, exportable=exportable)
    return _made[name]


def verify(spki: bytes, algorithm: SignatureAlgorithm, signature: bytes, message: bytes) -> None:
    """Raise InvalidSignature unless the signature over the whole message is right."""
    key: Any = load_der_public_key(spki)
    if algorithm is SignatureAlgorithm.EDDSA:
        key.verify(signature, message)
        return
    hash_algorithm = _HASHES[f"sha{algorithm[2:5]}"]
    if algorithm.startswith("ES"):
        key.verify(signature, message, ec.ECDSA(hash_algorithm))
    elif algorithm.startswith("RS"):
        key.verify(signature, message, padding.PKCS1v15(), hash_algorithm)
    else:
        key.verify(
            signature, message, padding.PSS(padding.MGF1(hash_algorithm), len(hash_of(algorithm))), hash_algorithm
        )


def hash_of(algorithm: SignatureAlgorithm, message: bytes = b"") -> bytes:
    """The algorithm's digest of the message."""
    return hashlib.new(f"sha{algorithm[2:5]}", message).digest()


class Target:
    """A key-exchange key whose private half the test holds."""

    def __init__(self, bits: int = 2048) -> None:
        self.private = rsa.generate_private_key(65537, bits)
        spki = self.private.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        self.kek = WrappingKey(id="kek", public_key=spki, thumbprint=hashlib.sha256(spki).hexdigest())

    def open(self, blob: bytes, oaep_hash: OaepHash) -> bytes:
        """What the blob carries, by pyca; raises on any wrong byte."""
        size = self.private.key_size // 8
        algorithm = _HASHES[oaep_hash]
        ephemeral = self.private.decrypt(blob[:size], padding.OAEP(padding.MGF1(algorithm), algorithm, None))
        assert len(ephemeral) == 32
        return aes_key_unwrap_with_padding(ephemeral, blob[size:])


def der_length(der: bytes) -> int:
    """The length of the DER SEQUENCE that the bytes begin with."""
    if der[1] < 0x80:
        return 2 + der[1]
    octets = der[1] & 0x7F
    return 2 + octets + int.from_bytes(der[2 : 2 + octets], "big")


@functools.cache  # to prove that the parts of a large RSA key are primes takes long, and the shared keys come often
def spki_of(pkcs8: bytes) -> bytes:
    """The public key of a PKCS#8 private key that is parsed strictly."""
    public = load_der_private_key(pkcs8, None).public_key()
    return public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
