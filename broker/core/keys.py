"""Keys: born in the HSM, used there, rotated, disabled and destroyed there."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from broker.core.call import Call
from broker.core.guard import Guard
from broker.core.model import EncryptionAlgorithm, Key, KeyType, KeyUsage, KeyVersion, SignatureAlgorithm
from broker.core.page import Page
from broker.core.ports import Hsm, Now, Store


@dataclass(frozen=True, slots=True, kw_only=True)
class Signed:
    """``signatures`` in the order of the inputs; ECDSA as DER."""

    signatures: list[bytes]
    version: int
    algorithm: SignatureAlgorithm


@dataclass(frozen=True, slots=True, kw_only=True)
class Encrypted:
    """``ciphertext`` as the wire carries it (keys.proto, EncryptResponse)."""

    ciphertext: bytes
    version: int
    algorithm: EncryptionAlgorithm


class Keys:
    """The noun behind KeyService. Each method checks the permission first and raises only BrokerError."""

    def __init__(self, store: Store, hsm: Hsm, guard: Guard, now: Now) -> None:
        raise NotImplementedError

    def create(
        self,
        call: Call,
        name: str,
        key_type: KeyType,
        usage: KeyUsage,
        *,
        exportable: bool,
        labels: dict[str, str],
        owner: str,
    ) -> Key:
        raise NotImplementedError

    def get(self, call: Call, name: str) -> Key:
        raise NotImplementedError

    def page(self, call: Call, after: tuple[str | int, ...], limit: int) -> Page[Key]:
        raise NotImplementedError

    def versions(self, call: Call, name: str, after: tuple[str | int, ...], limit: int) -> Page[KeyVersion]:
        raise NotImplementedError

    def public_key(self, call: Call, name: str, version: int) -> tuple[Key, KeyVersion]:
        """WrongState ``NO_PUBLIC_KEY`` for symmetric keys."""
        raise NotImplementedError

    def sign(
        self, call: Call, name: str, algorithm: SignatureAlgorithm | None, inputs: list[bytes], *, prehashed: bool
    ) -> Signed:
        raise NotImplementedError

    def verify(
        self,
        call: Call,
        name: str,
        version: int,
        algorithm: SignatureAlgorithm | None,
        data: bytes,
        signature: bytes,
        *,
        prehashed: bool,
    ) -> tuple[bool, int]:
        """(valid, version); ECDSA signatures come as DER."""
        raise NotImplementedError

    def encrypt(
        self, call: Call, name: str, algorithm: EncryptionAlgorithm | None, plaintext: bytes, aad: bytes
    ) -> Encrypted:
        raise NotImplementedError

    def decrypt(
        self, call: Call, name: str, version: int, algorithm: EncryptionAlgorithm | None, ciphertext: bytes, aad: bytes
    ) -> tuple[bytes, int]:
        """(plaintext, version)."""
        raise NotImplementedError

    def rotate(self, call: Call, name: str) -> Key:
        raise NotImplementedError

    def enable(self, call: Call, name: str) -> Key:
        raise NotImplementedError

    def disable(self, call: Call, name: str) -> Key:
        raise NotImplementedError

    def schedule_destruction(self, call: Call, name: str, delay: timedelta | None) -> Key:
        raise NotImplementedError

    def cancel_destruction(self, call: Call, name: str) -> Key:
        raise NotImplementedError

    def seal(self, call: Call, name: str) -> Key:
        raise NotImplementedError
