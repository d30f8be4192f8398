"""A target in memory that makes KEKs, and tells before and after each, so that a test can let the process die there."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from broker.core.errors import WrongState
from broker.core.model import WrappingKey

Passing = Callable[[str], None]


class Vault:
    """A target that makes KEKs. ``keks``: by name, with the mark of each. ``refuses``: it makes none."""

    def __init__(self) -> None:
        self.keks: dict[str, tuple[str, WrappingKey]] = {}
        self.refuses = False


class WayToVault:
    """The way to that target, for a process that dies before and after a KEK is made."""

    def __init__(self, vault: Vault, passing: Passing) -> None:
        self._vault, self._passing = vault, passing

    def canonical(self, _kind: str, settings: Mapping[str, str]) -> dict[str, str]:
        return dict(settings)

    def __call__(self, _name: str, _kind: str, settings: Mapping[str, str]) -> Any:
        return _MakesKeks(self._vault, self._passing, settings["kek"])


class _MakesKeks:
    def __init__(self, vault: Vault, passing: Passing, kek: str) -> None:
        self._vault, self._passing, self._kek = vault, passing, kek
        self.keks = self

    def made_wrapping_key(self, mark: str) -> WrappingKey | None:
        if self._kek not in self._vault.keks:
            return None
        marked, kek = self._vault.keks[self._kek]
        if marked != mark:
            raise WrongState("TARGET_KEK_EXISTS", "There is such a key; choose another name.")
        return kek

    def create_wrapping_key(self, mark: str) -> WrappingKey:
        if found := self.made_wrapping_key(mark):
            return found
        self._passing("before a KEK is made")
        if self._vault.refuses:
            raise WrongState("TARGET_DENIED", "It may not.")
        public = _rsa()
        made = WrappingKey(id=f"{self._kek}/1", public_key=public, thumbprint=hashlib.sha256(public).hexdigest())
        self._vault.keks[self._kek] = mark, made
        self._passing("after a KEK is made")
        return made


@cache
def _rsa() -> bytes:
    key = rsa.generate_private_key(65537, 2048).public_key()
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
