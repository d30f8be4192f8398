"""A ``Device`` in memory with its keyrings, as strict as the port says, counting the calls it gets.

For tests of the core: it starts in no time. It is held to the same contract suite as the real edge.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.keywrap import aes_key_wrap_with_padding
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_der_public_key,
)

from broker.core.errors import AlreadyExists, InvalidRequest, NotFound, Unavailable, WrongState
from broker.core.kinds import EncryptionAlgorithm, KeyType, KeyUsage, OaepHash, Purpose, SignatureAlgorithm
from broker.core.model import WrappingKey
from broker.core.ports import RESERVED_IDS, KeyRef
from broker.core.report import HsmReport, Origin

_HASHES: Final[dict[str, hashes.HashAlgorithm]] = {
    "1": hashes.SHA1(),  # noqa: S303 - RSAES-OAEP with SHA-1 is part of the port
    "256": hashes.SHA256(),
    "384": hashes.SHA384(),
    "512": hashes.SHA512(),
}
_CURVES: Final[dict[KeyType, ec.EllipticCurve]] = {
    KeyType.EC_P256: ec.SECP256R1(), KeyType.EC_P384: ec.SECP384R1(), KeyType.EC_P521: ec.SECP521R1(),
    KeyType.EC_SECP256K1: ec.SECP256K1(),
}  # fmt: skip
_SIGNS: Final = {
    KeyType.EC_P256: "ES256", KeyType.EC_P384: "ES384", KeyType.EC_P521: "ES512", KeyType.EC_SECP256K1: "ES256K",
    KeyType.ED25519: "EdDSA",
}  # fmt: skip
_NEVER_PADDED: Final = (KeyType.EC_P384, KeyType.EC_SECP256K1, KeyType.AES_128, KeyType.AES_256)  # as in SoftHSM
_RSA: Final = (KeyType.RSA_2048, KeyType.RSA_3072, KeyType.RSA_4096)


@dataclass(slots=True)
class _Held:
    label: tuple[Purpose, str]
    type: KeyType
    usage: KeyUsage
    extractable: bool
    could_leave: bool  # when it was made
    private: Any  # bytes for AES, else a private key of cryptography's

    def public(self) -> bytes | None:
        if isinstance(self.private, bytes):
            return None
        spki: bytes = self.private.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return spki


class _Device:
    """What all keyrings share."""

    def __init__(self, *, exact_wrap: bool, oaep_hashes: tuple[OaepHash, ...]) -> None:
        self.calls: Counter[str] = Counter()
        self.away = False
        self.keys: dict[bytes, _Held] = {}
        self.exact = exact_wrap
        self.oaep_hashes = oaep_hashes
        self.makes = tuple(KeyType)
        self.refuses = False
        self.claims: set[bytes] = set()
        self.keeps_data = True
        self.guard: Callable[[], None] = lambda: None


class SoftwareKeyring:
    """The ``Hsm`` port for one purpose."""

    def __init__(self, device: _Device, purpose: Purpose) -> None:
        self._device = device
        self._purpose = purpose

    @property
    def keys(self) -> dict[bytes, _Held]:
        return self._device.keys

    def generate(
        self,
        key: KeyRef,
        *,
        exportable: bool,
        fresh: bool = False,  # noqa: ARG002 - here nothing is gained by not looking
    ) -> bytes | None:
        self._enter("generate")
        hsm_id, key_type, usage = key.hsm_id, key.type, key.usage
        self._refuse_reserved(key)
        if key_type not in self._device.makes or self._device.refuses:
            raise WrongState("HSM_MECHANISM_MISSING", f"No keys of type {key_type}.")
        symmetric_or_rsa = key_type.symmetric or key_type in _RSA
        if (usage is KeyUsage.SIGN and key_type.symmetric) or (usage is KeyUsage.ENCRYPT and not symmetric_or_rsa):
            raise InvalidRequest("ALGORITHM_MISMATCH", f"A key of type {key_type} cannot {usage}.")
        if exportable and key_type is KeyType.ED25519:
            raise InvalidRequest("KEY_NOT_EXPORTABLE", "Ed25519 keys are never exportable.")
        if hsm_id not in self.keys:
            label, made = (self._purpose, key.name), _made(key_type)
            self.keys[hsm_id] = _Held(label, key_type, usage, exportable, exportable, made)
        held = self._held(replace(key, check=None))
        if held.extractable != exportable:
            raise AlreadyExists("HSM_ID_TAKEN", "Another key has this id.")
        return held.public()

    def check_value(self, key: KeyRef) -> bytes:
        self._enter("check_value")
        if not key.type.symmetric:
            raise InvalidRequest("ALGORITHM_MISMATCH", "Only AES keys have a check value.")
        return AESGCM(self._held(key).private).encrypt(bytes(12), b"check", key.name.encode())

    def public_key(self, key: KeyRef) -> bytes | None:
        self._enter("public_key")
        return self._held(key).public()

    def origin(self, key: KeyRef) -> Origin:
        self._enter("origin")
        held = self._held(key)
        return Origin(
            local=True,
            sensitive=True,
            always_sensitive=True,
            extractable=held.extractable,
            never_extractable=not held.could_leave,
        )

    def sign(
        self, key: KeyRef, algorithm: SignatureAlgorithm, messages: list[bytes], *, prehashed: bool = False
    ) -> list[bytes]:
        self._enter("sign")
        fits = algorithm[:2] in {"RS", "PS"} if key.type in _RSA else algorithm == _SIGNS.get(key.type)
        if not fits or key.usage is not KeyUsage.SIGN or key.public_key is None:
            raise InvalidRequest("ALGORITHM_MISMATCH", f"A key of type {key.type} cannot sign {algorithm}.")
        digests = _digests(algorithm, messages, prehashed=prehashed)
        held = self._held(key)
        if held.public() != key.public_key:
            raise Unavailable("HSM_FAULT", "The signature does not verify.")
        return [_signed(held.private, algorithm, digest) for digest in digests]

    def encrypt(self, key: KeyRef, algorithm: EncryptionAlgorithm, plaintext: bytes, aad: bytes) -> bytes:
        self._enter("encrypt")
        if algorithm is not EncryptionAlgorithm.AES_GCM or not key.type.symmetric:
            raise InvalidRequest("ALGORITHM_MISMATCH", "Only AES-GCM is encrypted in the HSM.")
        iv = os.urandom(12)
        return iv + AESGCM(self._held(key).private).encrypt(iv, plaintext, aad)

    def decrypt(self, key: KeyRef, algorithm: EncryptionAlgorithm, ciphertext: bytes, aad: bytes) -> bytes:
        self._enter("decrypt")
        gcm = algorithm is EncryptionAlgorithm.AES_GCM
        if key.usage is not KeyUsage.ENCRYPT or gcm != key.type.symmetric:
            raise InvalidRequest("ALGORITHM_MISMATCH", f"A key of type {key.type} cannot undo {algorithm}.")
        private = self._held(key).private
        try:
            if gcm:
                return AESGCM(private).decrypt(ciphertext[:12], ciphertext[12:], aad)
            opened: bytes = private.decrypt(ciphertext if not aad else b"", _oaep(algorithm.rsplit("SHA", 1)[1]))
        except (ValueError, InvalidTag) as fault:
            raise InvalidRequest("CIPHERTEXT_INVALID", "The ciphertext does not open.") from fault
        return opened

    def wrap(self, key: KeyRef, kek: WrappingKey, oaep_hash: OaepHash, *, exact: bool) -> bytes:
        self._enter("wrap")
        target = load_der_public_key(kek.public_key)
        if hashlib.sha256(kek.public_key).hexdigest() != kek.thumbprint or not isinstance(target, rsa.RSAPublicKey):
            raise InvalidRequest("KEK_INVALID", "Not the RSA key that its thumbprint names.")
        if oaep_hash not in self._device.oaep_hashes:
            raise WrongState("HSM_MECHANISM_MISSING", f"No OAEP-{oaep_hash}.")
        held = self._held(key)
        if not held.extractable:
            raise WrongState("KEY_NOT_EXPORTABLE", "Not exportable.")
        plaintext = held.private
        if not isinstance(plaintext, bytes):
            plaintext = plaintext.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
        if not self._device.exact and held.type not in _NEVER_PADDED:
            if exact:
                raise WrongState("WRAP_NOT_EXACT", "This token pads before it wraps.")
            plaintext += bytes(-len(plaintext) % 8)
        ephemeral = os.urandom(32)
        return target.encrypt(ephemeral, _oaep(oaep_hash[3:])) + aes_key_wrap_with_padding(ephemeral, plaintext)

    def differing(self, key: KeyRef, *, exportable: bool) -> tuple[str, ...]:
        self._enter("differing")
        return () if self._held(key).extractable == exportable else ("CKA_EXTRACTABLE",)

    def seal(self, key: KeyRef) -> None:
        self._enter("seal")
        self._held(key).extractable = False

    def destroy(self, key: KeyRef) -> None:
        self._enter("destroy")
        self._refuse_reserved(key)
        self._device.guard()
        if key.hsm_id in self.keys:
            self._held(key)
            del self.keys[key.hsm_id]

    def report(self) -> HsmReport:
        return HsmReport(
            module="software",
            library="cryptography",
            token_label="fake",
            token_serial="0",
            manufacturer="tests",
            model="SoftwareHsm",
            firmware="1",
            key_types=self._device.makes,
            oaep_hashes=self._device.oaep_hashes,
            exact_wrap=self._device.exact,
            one_call_wrap=False,
        )

    def _enter(self, method: str) -> None:
        self._device.calls[method] += 1
        if self._device.away:
            raise Unavailable("HSM_UNAVAILABLE", "The HSM does not answer.")

    def _held(self, key: KeyRef) -> _Held:
        self._refuse_reserved(key)
        held = self.keys.get(key.hsm_id)
        if held is None:
            raise NotFound("KEY_NOT_IN_HSM", "The HSM does not hold this key.")
        if (held.label, held.type, held.usage) != ((self._purpose, key.name), key.type, key.usage):
            raise WrongState("KEY_NOT_THIS", "The object under this id was made as another key.")
        if key.check is not None and not _proves(held, key):
            raise WrongState("KEY_NOT_THIS", "The object under this id is another key than the one that was made.")
        return held

    def _refuse_reserved(self, key: KeyRef) -> None:
        if self._purpose in {Purpose.KEY, Purpose.ROOT} and key.hsm_id.startswith(RESERVED_IDS):
            raise WrongState("KEY_NOT_THIS", "The id belongs to the broker's own keys.")


class _Callers:
    """A software HSM as the keyring of callers' keys."""

    def __init__(self, hsm: SoftwareHsm) -> None:
        self._hsm = hsm

    def __getattr__(self, name: str) -> Any:
        if name in {"keyring", "adopt", "random", "claims", "add_claim", "drop_claims", "guard", "close"}:
            raise AttributeError(name)
        return getattr(self._hsm, name)


class SoftwareHsm(SoftwareKeyring):
    """The ``Device`` port; for the ease of tests itself the keyring of callers' keys too.

    ``calls`` counts by method; ``away`` makes every call Unavailable; ``exact_wrap`` False adds a zero tail;
    ``makes`` says which types of keys there are; with ``refuses`` it says so and makes none. ``of`` is one whose keys
    this one holds too.
    """

    def __init__(
        self,
        *,
        exact_wrap: bool = True,
        oaep_hashes: tuple[OaepHash, ...] = tuple(OaepHash),
        of: SoftwareHsm | None = None,
    ) -> None:
        super().__init__(_Device(exact_wrap=exact_wrap, oaep_hashes=oaep_hashes), Purpose.KEY)
        self.writable = True  # for claims
        if of is not None:
            self._device.keys = of.keys

    @property
    def calls(self) -> Counter[str]:
        return self._device.calls

    @property
    def away(self) -> bool:
        return self._device.away

    @away.setter
    def away(self, value: bool) -> None:
        self._device.away = value

    @property
    def makes(self) -> tuple[KeyType, ...]:
        return self._device.makes

    @makes.setter
    def makes(self, value: tuple[KeyType, ...]) -> None:
        self._device.makes = value

    @property
    def refuses(self) -> bool:
        return self._device.refuses

    @refuses.setter
    def refuses(self, value: bool) -> None:
        self._device.refuses = value

    def keyring(self, purpose: Purpose) -> Any:
        """Of callers' keys what a test's own class does differently; no keyring leads to the device."""
        return _Callers(self) if purpose is Purpose.KEY else SoftwareKeyring(self._device, purpose)

    def keys_of(self, purpose: Purpose) -> dict[bytes, bool]:
        """The ids of the keys of one purpose, and whether each may leave."""
        return {hsm_id: one.extractable for hsm_id, one in self._device.keys.items() if one.label[0] is purpose}

    def random(self, length: int) -> bytes:
        self._enter("random")
        if not 1 <= length <= 1024:
            raise InvalidRequest("RANDOM_LENGTH", "1 to 1024 bytes.")
        return os.urandom(length)

    @property
    def keeps_data(self) -> bool:
        return self._device.keeps_data

    @keeps_data.setter
    def keeps_data(self, value: bool) -> None:
        self._device.keeps_data = value

    def claims(self) -> list[bytes]:
        self._enter("claims")
        return sorted(self._device.claims)

    def add_claim(self, value: bytes) -> None:
        self._enter("add_claim")
        if not self._device.keeps_data:
            raise WrongState("HSM_NO_DATA_OBJECTS", "It keeps none.")
        if not self.writable:
            raise Unavailable("HSM_FAULT", "It is write-protected.")
        self._device.claims.add(value)

    def drop_claims(self, values: Collection[bytes]) -> None:
        self._enter("drop_claims")
        self._device.claims -= set(values)

    def guard(self, check: Callable[[], None]) -> None:
        self._device.guard = check

    def check(self) -> None:
        self._enter("check")

    def close(self) -> None:
        self.away = True


def _proves(held: _Held, key: KeyRef) -> bool:
    try:
        return AESGCM(held.private).decrypt(bytes(12), key.check or b"", key.name.encode()) == b"check"
    except InvalidTag:
        return False


def _made(key_type: KeyType) -> Any:
    if key_type in _CURVES:
        return ec.generate_private_key(_CURVES[key_type])
    if key_type is KeyType.ED25519:
        return ed25519.Ed25519PrivateKey.generate()
    size = int(key_type.rsplit("-", 1)[1])
    return os.urandom(size // 8) if key_type.symmetric else rsa.generate_private_key(65537, size)


def _oaep(bits: str) -> padding.OAEP:
    return padding.OAEP(padding.MGF1(_HASHES[bits]), _HASHES[bits], None)


def _digests(algorithm: SignatureAlgorithm, messages: list[bytes], *, prehashed: bool) -> list[bytes]:
    if algorithm is SignatureAlgorithm.EDDSA:
        if prehashed:
            raise InvalidRequest("DIGEST_LENGTH", "EdDSA takes no digest.")
        return messages
    name = f"sha{algorithm[2:5]}"
    if not prehashed:
        return [hashlib.new(name, message).digest() for message in messages]
    if any(len(digest) != hashlib.new(name).digest_size for digest in messages):
        raise InvalidRequest("DIGEST_LENGTH", "Wrong digest length.")
    return messages


def _signed(private: Any, algorithm: SignatureAlgorithm, digest: bytes) -> bytes:
    if algorithm is SignatureAlgorithm.EDDSA:
        eddsa: bytes = private.sign(digest)
        return eddsa
    hash_algorithm = _HASHES[algorithm[2:5]]
    if algorithm.startswith("ES"):
        ecdsa: bytes = private.sign(digest, ec.ECDSA(Prehashed(hash_algorithm)))
        return ecdsa
    pss = padding.PSS(padding.MGF1(hash_algorithm), hash_algorithm.digest_size)
    scheme = pss if algorithm.startswith("PS") else padding.PKCS1v15()
    signature: bytes = private.sign(digest, scheme, Prehashed(hash_algorithm))
    return signature
