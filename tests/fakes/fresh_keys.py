"""A ``ports.Target`` in memory that makes a wrapping key for each import, as AWS KMS and Google Cloud KMS do.

Strict: an offer is made for one cargo, its token opens one upload of that very cargo, and nothing else is opened. It
has neither terms nor transfer files nor a KEK to pin.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.keywrap import InvalidUnwrap, aes_key_unwrap_with_padding
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from broker.core.errors import InvalidRequest, WrongState
from broker.core.kinds import EncryptionAlgorithm, KeyType, KeyUsage, OaepHash, SignatureAlgorithm
from broker.core.model import RemoteKey, WrappingKey
from broker.core.ports import Cargo, Offer
from tests.servers.azure_key_vault import Refused
from tests.servers.azure_key_vault.transfer import private_key

KIND = "fresh-keys"
Material = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | bytes

_HASHES: dict[OaepHash, hashes.HashAlgorithm] = {
    OaepHash.SHA256: hashes.SHA256(),
    OaepHash.SHA1: hashes.SHA1(),  # noqa: S303 - RSAES-OAEP with SHA-1 is part of the port
}
_SHA: dict[str, hashes.HashAlgorithm] = {"256": hashes.SHA256(), "384": hashes.SHA384(), "512": hashes.SHA512()}
_CURVES = {
    KeyType.EC_P256: "secp256r1", KeyType.EC_P384: "secp384r1", KeyType.EC_P521: "secp521r1",
    KeyType.EC_SECP256K1: "secp256k1",
}  # fmt: skip
_RSA = {KeyType.RSA_2048: 2048}
_AES = {KeyType.AES_128: 16, KeyType.AES_256: 32}
_IV = 12


@dataclass(slots=True)
class _Version:
    material: Material
    usage: KeyUsage
    enabled: bool = True


@dataclass(slots=True)
class FreshKeys:
    """What is there, and what was asked of it: ``offered`` has each cargo that an offer was made for."""

    exact_wrap: bool = True
    fresh: bool = True
    terms: None = None
    files: None = None
    keks: None = None
    bits: int = 2048  # of the wrapping keys
    denied: str = ""  # the right that the credential lacks
    offered: list[Cargo] = field(default_factory=list)
    _open: dict[str, tuple[Cargo, rsa.RSAPrivateKey]] = field(default_factory=dict)
    _held: dict[str, list[_Version]] = field(default_factory=dict)

    # ---- offer ---------------------------------------------------------------------------------------------------

    def offer(self, cargo: Cargo | None = None) -> Offer:
        if cargo is None:
            raise WrongState("TARGET_REFUSED", "No wrapping key lasts here; say what is to be imported.")
        self.supports(cargo.type, cargo.usage)
        self._must_fit(cargo)
        self.offered.append(cargo)
        made, token = _wrapping_key(self.bits, len(self.offered) % 3), secrets.token_urlsafe(24)
        self._open[token] = (cargo, made)
        der = made.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        thumbprint = hashlib.sha256(der).hexdigest()
        return Offer(key=WrappingKey(id=f"job/{thumbprint[:8]}", public_key=der, thumbprint=thumbprint), token=token)

    def oaep_hash(self, offered: tuple[OaepHash, ...]) -> OaepHash:
        for known in _HASHES:
            if known in offered:
                return known
        raise WrongState("OAEP_HASH_UNSUPPORTED", "Only SHA-256 and SHA-1 are opened here.")

    def supports(self, key_type: KeyType, usage: KeyUsage) -> None:
        fits = key_type in _RSA or (key_type in (_CURVES if usage is KeyUsage.SIGN else _AES))
        if not fits:
            raise InvalidRequest("KEY_TYPE_UNSUPPORTED", f"A key of type {key_type} is not taken to {usage}.")

    def check(self) -> None:
        if self.denied:
            raise WrongState("TARGET_DENIED", f"The credential lacks {self.denied}.")

    # ---- take ----------------------------------------------------------------------------------------------------

    def spelled(self, name: str) -> str:
        return name

    def import_key(self, cargo: Cargo, blob: bytes, oaep_hash: OaepHash, token: str = "") -> None:
        given, kek = self._open.pop(token, (None, None))
        if kek is None or given != cargo:
            raise _not_taken("the token is not that of an open offer for this key")
        self._must_fit(cargo)
        made = _Version(_material(_opened(kek, blob, oaep_hash), cargo.type), cargo.usage)
        self._held.setdefault(cargo.name, []).append(made)

    def versions(self, name: str) -> list[RemoteKey]:
        held = enumerate(self._held.get(name, []), 1)
        return [
            RemoteKey(name=name, version=str(number), public_key=_public(one.material), enabled=one.enabled)
            for number, one in held
        ]

    def hidden(self, name: str) -> list[str]:  # noqa: ARG002 - all are shown
        return []

    def remains(self, name: str) -> str:  # noqa: ARG002 - what is gone here is gone
        return ""

    def _must_fit(self, cargo: Cargo) -> None:
        held = self._held.get(cargo.name)
        if cargo.first and held:
            raise WrongState("TARGET_NAME_TAKEN", "A key of this name exists here; choose another name.")
        if not cargo.first and not held:
            raise _not_taken("there is no key of this name to make a further version of")

    # ---- use -----------------------------------------------------------------------------------------------------

    def sign(self, name: str, version: str, algorithm: SignatureAlgorithm, message: bytes) -> bytes:
        key, digest = self._usable(name, version, KeyUsage.SIGN), _SHA[algorithm[2:5]]
        if isinstance(key, rsa.RSAPrivateKey):
            pss = padding.PSS(padding.MGF1(digest), digest.digest_size)
            return key.sign(message, pss if algorithm.startswith("PS") else padding.PKCS1v15(), digest)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        return key.sign(message, ec.ECDSA(digest))

    def encrypt(self, name: str, version: str, plaintext: bytes) -> bytes:
        key, iv = self._usable(name, version, KeyUsage.ENCRYPT), secrets.token_bytes(_IV)
        assert isinstance(key, bytes)
        return iv + AESGCM(key).encrypt(iv, plaintext, None)

    def decrypt(self, name: str, version: str, algorithm: EncryptionAlgorithm, ciphertext: bytes) -> bytes:
        key = self._usable(name, version, KeyUsage.ENCRYPT)
        if isinstance(key, bytes):
            return _tried(lambda: AESGCM(key).decrypt(ciphertext[:_IV], ciphertext[_IV:], None))
        digest = _HASHES[OaepHash.SHA1 if algorithm is EncryptionAlgorithm.RSA_OAEP_SHA1 else OaepHash.SHA256]
        assert isinstance(key, rsa.RSAPrivateKey)
        return _tried(lambda: key.decrypt(ciphertext, padding.OAEP(padding.MGF1(digest), digest, None)))

    def _usable(self, name: str, version: str, usage: KeyUsage) -> Material:
        found = self._version(name, version)
        if found is None:
            raise WrongState("REMOTE_KEY_MISSING", "There is no such version here.")
        if not found.enabled:
            raise WrongState("TARGET_KEY_DISABLED", "That version is disabled here.")
        if found.usage is not usage:
            raise WrongState("TARGET_OPERATION_FORBIDDEN", f"That version is not for {usage}.")
        return found.material

    def _version(self, name: str, version: str) -> _Version | None:
        held = self._held.get(name, [])
        return held[int(version) - 1] if 0 < int(version) <= len(held) else None

    # ---- switch --------------------------------------------------------------------------------------------------

    def disable(self, name: str, version: str) -> None:
        if found := self._version(name, version):
            found.enabled = False

    def enable(self, name: str, version: str) -> None:
        if found := self._version(name, version):
            found.enabled = True

    def delete(self, name: str) -> None:
        self._held.pop(name, None)


@cache
def _wrapping_key(bits: int, turn: int) -> rsa.RSAPrivateKey:  # noqa: ARG001
    """Of those that take turns in this process, since making one is slow."""
    return rsa.generate_private_key(65537, bits)


def _opened(kek: rsa.RSAPrivateKey, blob: bytes, oaep_hash: OaepHash) -> bytes:
    size, digest = kek.key_size // 8, _HASHES.get(oaep_hash)
    if digest is None:
        raise _not_taken("the hash is not known")
    scheme = padding.OAEP(padding.MGF1(digest), digest, None)
    return _tried(lambda: aes_key_unwrap_with_padding(kek.decrypt(blob[:size], scheme), blob[size:]))


def _material(content: bytes, key_type: KeyType) -> Material:
    if key_type in _AES:
        if len(content) != _AES[key_type]:
            raise _not_taken("the key is of another length")
        return content
    try:
        key = private_key(content)
    except Refused as error:
        raise _not_taken("it is no PKCS#8 key") from error
    found = _CURVES.get(key_type) == key.curve.name if isinstance(key, ec.EllipticCurvePrivateKey) else False
    if isinstance(key, rsa.RSAPrivateKey):
        found = _RSA.get(key_type) == key.key_size
    if not found:
        raise _not_taken("the key is of another type")
    return key


def _public(material: Material) -> bytes | None:
    if isinstance(material, bytes):
        return None
    return material.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _tried(act: Callable[[], bytes]) -> bytes:
    try:
        return act()
    except (ValueError, InvalidTag, InvalidUnwrap) as error:
        raise _not_taken("it does not open") from error


def _not_taken(why: str) -> WrongState:
    return WrongState("TARGET_REFUSED", f"Refused: {why}.")
