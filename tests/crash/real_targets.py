"""A target over the wire, for a process that dies before and after each change there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from azure.keyvault.keys import JsonWebKey

from broker.core import ports
from broker.core.kinds import KeyType
from broker.core.model import Terms
from tests.crash.kek_vault import Passing
from tests.crash.vault_process import VaultAddress, steered
from tests.servers.fake_azure import key_client

FORMS = {KeyType.EC_P256: ("EC-HSM", "P-256"), KeyType.AES_256: ("oct-HSM", None)}
CHANGES = {
    "import_key": "an upload",
    "apply": "terms are set",
    "disable": "a version is disabled",
    "enable": "a version is enabled",
    "delete": "a key is deleted",
    "create_wrapping_key": "a KEK is made",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class There:
    """A version at the vault."""

    version: str
    public_key: bytes | None
    enabled: bool
    terms: Terms


class RealShelf:
    """The vault, looked at and steered from outside; as ``tests.fakes.shelf`` for one key, whose name is its own."""

    def __init__(self, vault: VaultAddress, name: str) -> None:
        self._vault, self._name, self._steering = vault, name, steered(vault)

    @property
    def swaps(self) -> bool:
        """It keeps another key than it is sent."""
        return bool(self._steering.keeps_other_keys(self._name))

    @swaps.setter
    def swaps(self, _: bool) -> None:
        self._steering.keep_other_keys(self._name)

    def deny(self, method: str) -> None:
        """The next call of it is denied."""
        self._steering.deny(self._name, method)

    def lose(self, method: str) -> None:
        """Of the next call of it nothing is heard."""
        self._steering.lose(self._name, method)

    @contextmanager
    def called(self, method: str) -> Iterator[None]:
        """It is called now."""
        self._steering.begin(self._name, method)
        try:
            yield
        finally:
            self._steering.end(self._name)

    def carried(self, name: str, key_type: KeyType, file: bytes) -> None:
        """What people do with such a file: Microsoft's own client imports it."""
        kty, curve = FORMS[key_type]
        with key_client(self._vault) as client:
            client.import_key(name, JsonWebKey(kty=kty, crv=curve, t=file), hardware_protected=True)

    def there(self, name: str) -> list[There]:
        """The versions of a key that came here, oldest first."""
        return [
            There(version=version, public_key=public, enabled=enabled, terms=Terms(operations=may, enabled=enabled))
            for version, public, enabled, may in self._steering.there(name)
        ]

    def enabled(self, name: str) -> list[There]:
        """Those that can be used."""
        return [one for one in self.there(name) if one.enabled]


class MortalConnect:
    """The broker's own way to targets; what it gives dies."""

    def __init__(self, connect: ports.Connect, shelf: RealShelf, passing: Passing) -> None:
        self._connect, self._shelf, self._passing = connect, shelf, passing

    def canonical(self, kind: str, settings: Mapping[str, str]) -> dict[str, str]:
        return self._connect.canonical(kind, settings)

    def __call__(self, name: str, kind: str, settings: Mapping[str, str]) -> Any:
        return _Mortal(self._connect(name, kind, settings), self._shelf, self._passing)


class _Mortal:
    """A target or a part of it."""

    def __init__(self, part: Any, shelf: RealShelf, passing: Passing) -> None:
        self._part, self._shelf, self._passing = part, shelf, passing

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._part, name)
        if name in {"terms", "keks"} and found is not None:
            return _Mortal(found, self._shelf, self._passing)
        return partial(self._call, name, found) if callable(found) else found

    def _call(self, name: str, method: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        what = CHANGES.get(name)
        if what:
            self._passing(f"before {what}")
        try:
            with self._shelf.called(name):
                return method(*arguments, **options)
        finally:
            if what:
                self._passing(f"after {what}")
