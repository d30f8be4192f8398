"""A target in memory that really unwraps, proves and disables, for tests of the core; what it holds outlives a process.

``passing`` is told before and after each change, so that a test can let the process die there. ``swaps``: it keeps
another key than the one it was given. ``refuses``: methods that it refuses next, or is away for, with which error.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.keywrap import aes_key_unwrap_with_padding
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from broker.core.errors import BrokerError, Unavailable, WrongState
from broker.core.kinds import EncryptionAlgorithm, KeyType, KeyUsage, OaepHash, SignatureAlgorithm
from broker.core.model import RemoteKey, Terms, WrappingKey
from broker.core.ports import Cargo, Offer

NONCE = 12


@cache
def _kek() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


def kek() -> WrappingKey:
    """The one that every shelf has."""
    spki = _kek().public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return WrappingKey(id="kek", public_key=spki, thumbprint=hashlib.sha256(spki).hexdigest())


@dataclass(slots=True)
class Held:
    """A version: an EC private key, or the bytes of an AES key."""

    material: Any
    version: str
    enabled: bool = True
    terms: Terms = field(default_factory=Terms)
    exposed: str = ""
    hidden: bool = False

    @property
    def public_key(self) -> bytes | None:
        if isinstance(self.material, bytes):
            return None
        spki: bytes = self.material.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return spki


class Shelf:
    """The ``Target`` port, of EC P-256 and AES-256."""

    exact_wrap = False
    fresh = False
    keks = None

    def __init__(self) -> None:
        self.passing: Callable[[str], None] = lambda _: None
        self.held: dict[str, list[Held]] = {}
        self.kept: dict[str, str] = {}  # what is said of deleted keys that could come back
        self.uploads = 0
        self.swaps = False
        self.refuses: dict[str, list[BrokerError]] = {}

    @property
    def terms(self) -> Shelf:
        """It keeps terms, and takes files."""
        return self

    @property
    def files(self) -> Shelf:
        return self

    def offer(self, cargo: Cargo | None = None) -> Offer:  # noqa: ARG002 (the one it has)
        return Offer(key=kek())

    def oaep_hash(self, offered: tuple[OaepHash, ...]) -> OaepHash:
        return offered[0]

    def supports(self, key_type: KeyType, usage: KeyUsage) -> None:
        """All that is asked for."""

    def spelled(self, name: str) -> str:
        return name

    def check_terms(self, key_type: KeyType, usage: KeyUsage, terms: Terms) -> None:
        """As ``supports``."""

    def check_transfer(self) -> None:
        """Files are taken."""

    def transfer_file(
        self,
        key_type: KeyType,
        usage: KeyUsage,  # noqa: ARG002 (the port's)
        blob: bytes,
        kek: WrappingKey,  # noqa: ARG002
        oaep_hash: OaepHash,
    ) -> bytes:
        return json.dumps({"type": key_type, "blob": blob.hex(), "hash": oaep_hash}).encode()

    def carried(self, name: str, key_type: KeyType, file: bytes) -> None:  # noqa: ARG002 (real ones are not told by it)
        """What people do with such a file."""
        given = json.loads(file)
        self._take(name, KeyType(given["type"]), bytes.fromhex(given["blob"]), OaepHash(given["hash"]))

    def import_key(self, cargo: Cargo, blob: bytes, oaep_hash: OaepHash, token: str) -> None:  # noqa: ARG002
        self.passing("before an upload")
        self.uploads += 1
        self._take(cargo.name, cargo.type, blob, oaep_hash)
        self.passing("after an upload")
        self._answer("import_key")

    def versions(self, name: str) -> list[RemoteKey]:
        self._answer("versions")
        return [
            RemoteKey(
                name=name, version=str(number), public_key=one.public_key, enabled=one.enabled, exposed=one.exposed
            )
            for number, one in enumerate(self.held.get(name, []), 1)
            if not one.hidden
        ]

    def hidden(self, name: str) -> list[str]:
        shown = {one.version for one in self.versions(name)}
        return [str(number) for number, _ in enumerate(self.held.get(name, []), 1) if str(number) not in shown]

    def remains(self, name: str) -> str:
        return self.kept.get(name, "")

    def apply(self, name: str, version: str, terms: Terms) -> None:
        self.passing("before terms are set")
        self._answer("apply")
        one = self.held[name][int(version) - 1]
        one.terms, one.enabled = terms, terms.enabled
        self.passing("after terms are set")

    def sign(self, name: str, version: str, algorithm: SignatureAlgorithm, message: bytes) -> bytes:  # noqa: ARG002
        self._answer("sign")
        signature: bytes = self._usable(name, version).material.sign(message, ec.ECDSA(hashes.SHA256()))
        return signature

    def encrypt(self, name: str, version: str, plaintext: bytes) -> bytes:
        self._answer("sign")
        nonce = b"n" * NONCE
        return nonce + AESGCM(self._usable(name, version).material).encrypt(nonce, plaintext, b"")

    def decrypt(self, name: str, version: str, algorithm: EncryptionAlgorithm, ciphertext: bytes) -> bytes:  # noqa: ARG002
        self._answer("decrypt")
        material = self._usable(name, version).material
        try:
            return AESGCM(material).decrypt(ciphertext[:NONCE], ciphertext[NONCE:], b"")
        except Exception as error:
            raise WrongState("TARGET_REFUSED", "It does not open.") from error

    def disable(self, name: str, version: str) -> None:
        self.passing("before a version is disabled")
        self._answer("disable")
        self._set(name, version, enabled=False)
        self.passing("after a version is disabled")

    def enable(self, name: str, version: str) -> None:
        self.passing("before a version is enabled")
        self._answer("enable")
        self._set(name, version, enabled=True)
        self.passing("after a version is enabled")

    def delete(self, name: str) -> None:
        self.passing("before a key is deleted")
        self._answer("delete")
        self.held.pop(name, None)
        self.passing("after a key is deleted")

    def canonical(self, kind: str, settings: Mapping[str, str]) -> dict[str, str]:  # noqa: ARG002 (the way to targets)
        return dict(settings)

    def __call__(self, name: str, kind: str, settings: Mapping[str, str]) -> Any:  # noqa: ARG002
        return self

    def deny(self, method: str) -> None:
        """The next call of it is denied."""
        self.refuses[method] = [WrongState("TARGET_DENIED", "No.")]

    def lose(self, method: str) -> None:
        """Of the next call of it nothing is heard."""
        self.refuses[method] = [Unavailable("TARGET_UNREACHABLE", "Away.")]

    def there(self, name: str) -> list[Held]:
        """The versions of a key that came here, oldest first."""
        return self.held.get(name, [])

    def enabled(self, name: str) -> list[Held]:
        """Those that can be used."""
        return [one for one in self.there(name) if one.enabled]

    def _answer(self, method: str) -> None:
        if self.refuses.get(method):
            raise self.refuses[method].pop()

    def _set(self, name: str, version: str, *, enabled: bool) -> None:
        held = self.held.get(name, [])
        if int(version) <= len(held):
            held[int(version) - 1].enabled = enabled

    def _usable(self, name: str, version: str) -> Held:
        one = self.held[name][int(version) - 1]
        if not one.enabled:
            raise WrongState("TARGET_KEY_DISABLED", "It is disabled.")
        return one

    def _take(self, name: str, key_type: KeyType, blob: bytes, oaep_hash: OaepHash) -> None:
        algorithm = hashes.SHA1() if oaep_hash is OaepHash.SHA1 else hashes.SHA256()  # noqa: S303 (the port's)
        size = _kek().key_size // 8
        wrapped = _kek().decrypt(blob[:size], padding.OAEP(padding.MGF1(algorithm), algorithm, None))
        material: Any = aes_key_unwrap_with_padding(wrapped, blob[size:])
        if not key_type.symmetric:
            material = serialization.load_der_private_key(material, None)
        if self.swaps:
            material = b"x" * 32 if key_type.symmetric else ec.generate_private_key(ec.SECP256R1())
        there = self.held.setdefault(name, [])
        there.append(Held(material, str(len(there) + 1)))
